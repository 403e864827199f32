"""Trains GPT-2 on the CPU, from a checkout: the same as `gpt2 train`."""

from gpt2.errors import run_command
from gpt2.training.__main__ import main

if __name__ == "__main__":
    run_command(main, output_required=False)
