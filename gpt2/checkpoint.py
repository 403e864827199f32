"""Lists the checkpoints of a run, every byte verified: `python -m gpt2.checkpoint DIR`."""

import argparse

from gpt2.errors import run_command
from gpt2.training.checkpoint import list_checkpoints


def main():
    parser = argparse.ArgumentParser(
        prog="python -m gpt2.checkpoint",
        description="List the checkpoints of a run, every byte of them verified. --resume takes the one marked *.",
    )
    parser.add_argument("folder", metavar="DIR", help="the output folder of a run")
    list_checkpoints(parser.parse_args().folder)


if __name__ == "__main__":
    run_command(main)
