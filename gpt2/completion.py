"""Prints a script that completes commands and options in a shell: `gpt2 completion bash`."""

import argparse
import importlib

from gpt2.arguments import command_parser
from gpt2.commands import COMMANDS
from gpt2.errors import UserError, run_command

SHELLS = ("bash", "zsh")


def make_parser():
    """Returns the Parser."""
    parser = command_parser("completion", "docs/commands.md says where each shell looks for it.")
    parser.add_argument("shell", metavar="|".join(SHELLS), choices=SHELLS, help="the shell that is to read it")
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
        parsers.add_parser(name, parents=[parser], add_help=False, help=command.summary)
    print(shtab.complete(whole, shell))


if __name__ == "__main__":
    run_command(main)
