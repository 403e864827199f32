"""`gpt2 COMMAND`, or `python -m gpt2 COMMAND`."""

import difflib
import importlib
import sys

from gpt2.commands import COMMANDS, overview
from gpt2.errors import error_line, run_command


def main(arguments=None):
    """Runs a command; returns its exit status. arguments: words, default those of the command line."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return importlib.import_module(COMMANDS[name].module).main(rest)
    if name in ("-h", "--help"):
        print(overview())
        return None
    if name == "--version":
        from gpt2.version import __version__

        print(f"gpt2 {__version__}")
        return None
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    advice = f"did you mean {near[0]}?" if near else "gpt2 --help lists the commands"
    print(error_line(f"{name}: no such command; {advice}"), file=sys.stderr)
    return 2


def script():
    """The installed script `gpt2`."""
    # Training goes on when nobody reads what it prints.
    run_command(main, output_required=sys.argv[1:2] != ["train"])


if __name__ == "__main__":
    script()
