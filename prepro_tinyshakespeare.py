"""Makes the token files that train_gpt2.py reads: tiny_shakespeare_train.bin and tiny_shakespeare_val.bin."""

import argparse
import pathlib

from gpt2.data.dataset import prepare
from gpt2.errors import UserError, run_command
from gpt2.formats.files import data_dir


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    text = "UTF-8 texts instead of TinyShakespeare (or a copy of it that you have), each for token files of its own"
    parser.add_argument("--input", nargs="+", action="extend", metavar="FILE", help=text)
    folder = "folder for downloads and token files (default: %(default)s)"
    parser.add_argument("--data-dir", metavar="DIR", default=data_dir(), help=folder)
    arguments = parser.parse_args()
    names = [pathlib.Path(path).stem for path in arguments.input or []]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--input: several texts would become {twice}_train.bin; rename all but one, or join them")
    for path in arguments.input or [None]:
        prepare(path, arguments.data_dir)


if __name__ == "__main__":
    run_command(main)
