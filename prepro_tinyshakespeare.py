"""Makes the token files that train_gpt2.py reads: data/tiny_shakespeare_train.bin and data/tiny_shakespeare_val.bin."""

import argparse

from gpt2.data.dataset import prepare
from gpt2.errors import run_command


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    text = "a UTF-8 text to use instead of TinyShakespeare, or that text itself where it has been downloaded already"
    parser.add_argument("--input", metavar="FILE", help=text)
    folder = "where what is fetched and made is kept (default: %(default)s)"
    parser.add_argument("--data-dir", metavar="DIR", default="data", help=folder)
    arguments = parser.parse_args()
    prepare(arguments.input, arguments.data_dir)


if __name__ == "__main__":
    run_command(main)
