"""Makes the token files that `gpt2 train` reads: tiny_shakespeare_train.bin and tiny_shakespeare_val.bin."""

import pathlib

from gpt2.arguments import Parser, add_data_dir
from gpt2.data.dataset import prepare
from gpt2.errors import UserError, run_command


def make_parser():
    """Returns the Parser."""
    parser = Parser("python prepro_tinyshakespeare.py", __doc__, ["", "--input mine.txt"])
    text = "UTF-8 texts instead of TinyShakespeare (or a copy of it that you have), each for token files of its own"
    parser.add_argument("--input", nargs="+", action="extend", metavar="FILE", help=text)
    add_data_dir(parser)
    return parser


def main():
    arguments = make_parser().parse_args()
    names = [pathlib.Path(path).stem for path in arguments.input or []]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--input: several texts would become {twice}_train.bin; rename all but one, or join them")
    for path in arguments.input or [None]:
        prepare(path, arguments.data_dir)


if __name__ == "__main__":
    run_command(main)
