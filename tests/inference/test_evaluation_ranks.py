"""Evaluation under mpirun: the numbers of one process, bit for bit, and one line for what goes wrong."""

import json
import pathlib

import numpy as np
import pytest

from gpt2.evaluate import main
from gpt2.formats.llmc import write_tokens
from gpt2.machine import available_threads, set_threads
from gpt2.model import GPT2
from tests.support.examples import random_examples, write_examples
from tests.support.ranks import needs_mpi, run
from tests.support.runs import write_small_inputs

# The options of each evaluation. Ranks have unequal shares; of the third some have none.
EVALUATIONS = [
    "--data train.bin val.bin -b 3 -t 16 --hellaswag h.bin",
    "--data val.bin -b 2 -t 16 --stride 5",
    "--data val.bin -b 50",
]
# Evaluates as each line of its argument says. `rank` is at hand for what an argument before that does.
WORKER = """
import os, sys
from gpt2 import distributed, evaluate
from gpt2.errors import run_command
from gpt2.inference import evaluation
rank = int(os.environ["PMI_RANK"])
exec(sys.argv[1])
run_command(lambda: [evaluate.main(line.split()) for line in sys.argv[2].splitlines()] and None)
"""

pytestmark = [needs_mpi, pytest.mark.slow]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    write_small_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = GPT2.load("tiny.bin").config
    write_examples(pathlib.Path("h.bin"), random_examples(5, np.random.default_rng(0), config))
    yield
    set_threads(available_threads())


def evaluate(n, lines, before=""):
    return run(n, "-c", WORKER, before, "\n".join(f"--model tiny.bin {line}" for line in lines), timeout=60)


@pytest.mark.parametrize("n", [2, 3])
def test_ranks_print_and_write_what_one_process_does(n, capsys):
    lines = [f"{options} --json {i}.json" for i, options in enumerate(EVALUATIONS)]
    ended = evaluate(n, lines)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(pathlib.Path(f"{i}.json").read_text()) for i in range(len(lines))]
    for i, line in enumerate(lines):
        main(f"--model tiny.bin {line}".split())
        assert json.loads(pathlib.Path(f"{i}.json").read_text()) == found[i]
    assert ended.stdout == capsys.readouterr().out


COUNTED = """
import atexit
calls, forward = [], evaluation.token_losses
evaluation.token_losses = lambda *batch: (calls.append(1), forward(*batch))[1]
atexit.register(lambda: print(f"rank {rank}: {len(calls)} passes", file=sys.stderr))
"""


def test_ranks_share_the_passes_and_standard_output_has_the_results_once():
    ended = evaluate(2, ["--data val.bin -b 3 -t 16 --hellaswag h.bin --json -"], COUNTED)
    assert json.loads(ended.stdout)["data"]["tokens"] == 399
    assert ended.stderr.count("nats per token") == 1
    # Of 9 batches and 5 examples.
    assert "rank 0: 6 passes" in ended.stderr and "rank 1: 8 passes" in ended.stderr


BAD_FORWARD = """
forward = evaluation.token_losses
def bad(model, tokens, targets):
    if rank == 1 and len(tokens) < 4:
        raise evaluation.UserError("not finite")
    return forward(model, tokens, targets)
evaluation.token_losses = bad
"""
MISTAKES = {
    "a command line": ("", "--data val.bin --stride 5 --compat llmc", 2, "--compat requires --data"),
    "other data": ("os.chdir('other') if rank == 1 else 0", "--data val.bin", 1, "what --data names differs"),
    "a file too short": ("", "--data val.bin --compat llmc -b 100", 1, "error: val.bin: 400 tokens"),
    "a loss of one rank": (
        BAD_FORWARD,
        "--data val.bin -b 4 -t 16",
        1,
        "error: rank 1 on ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_all_ranks_with_one_line(mistake):
    pathlib.Path("other").mkdir()
    pathlib.Path("other/tiny.bin").symlink_to("../tiny.bin")
    write_tokens("other/val.bin", np.arange(400))
    before, options, status, message = MISTAKES[mistake]
    ended = evaluate(2, [options], before)
    assert ended.returncode == status
    assert ended.stderr.count("error: ") == 1 and message in ended.stderr
