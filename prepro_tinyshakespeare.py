"""Makes the token files that train_gpt2.py reads: tiny_shakespeare_train.bin and tiny_shakespeare_val.bin."""

import argparse

from gpt2.data.dataset import prepare
from gpt2.errors import run_command
from gpt2.formats.files import data_dir


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    text = "a UTF-8 text to use instead of TinyShakespeare, or a copy of TinyShakespeare that you already have"
    parser.add_argument("--input", metavar="FILE", help=text)
    folder = "folder for downloads and token files (default: %(default)s)"
    parser.add_argument("--data-dir", metavar="DIR", default=data_dir(), help=folder)
    arguments = parser.parse_args()
    prepare(arguments.input, arguments.data_dir)


if __name__ == "__main__":
    run_command(main)
