"""Prints a script that completes commands and options in a shell: `gpt2 completion bash`."""

import argparse
import importlib
import re

from gpt2.arguments import command_parser
from gpt2.commands import COMMANDS
from gpt2.errors import UserError, run_command

SHELLS = ("bash", "zsh")
_NAMES_FILES = re.compile("FILE|DIR|FOLDER|INPUT|MODEL|SRC|DST|TEXTS")  # metavars


def make_parser():
    """Returns the Parser."""
    parser = command_parser("completion", "docs/commands.md says where each shell looks for it.")
    parser.add_argument(
        "shell", metavar="SHELL", choices=SHELLS, help=f"the shell that is to read it: {', '.join(SHELLS)}"
    )
    return parser


def main(arguments=None):
    shell = make_parser().parse_args(arguments).shell
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs the package shtab: pip install shtab") from error
    whole = argparse.ArgumentParser("gpt2")
    parsers = whole.add_subparsers()
    for name, command in COMMANDS.items():
        parser = importlib.import_module(command.module).make_parser()
        for action in parser._actions:
            if _NAMES_FILES.search(str(action.metavar)):
                action.complete = shtab.FILE
        parsers.add_parser(name, parents=[parser], add_help=False, help=command.summary)
    print(shtab.complete(whole, shell))


if __name__ == "__main__":
    run_command(main)
