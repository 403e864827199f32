"""A text of a few hundred tokens from `gpt2 prepare` to a trained model, by following the lines that are printed."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.support.runs import records

ROOT = pathlib.Path(__file__).resolve().parents[1]
LINES = [f"{number} bottles of beer on the wall, {number} bottles of beer.\n" for number in range(99, 88, -1)]


def run(command, folder):
    """Runs a command line as a user would, from a folder of its own; returns (exit status, all that it printed)."""
    assert command[0] == "gpt2"
    words = [sys.executable, "-m", *command]
    environment = {"PYTHONPATH": str(ROOT), "GPT2_DATA_DIR": "data", "HOME": str(folder)}
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("lines", [2, 11], ids=["100 tokens", "600 tokens"])
def test_a_short_text_is_trained_on_by_following_what_is_printed(tmp_path, lines):
    (tmp_path / "song.txt").write_text("".join(LINES[:lines]))
    train = "gpt2 train --init scratch --size baby --max-steps 3 --train-data".split()
    status, printed = run([*train, "song.txt"], tmp_path)
    assert status == 1
    prepare = shlex.split(re.search(r"(gpt2 prepare .*?);", printed)[1])
    data = re.search(r"--train-data (\S+?),", printed)[1]
    status, printed = run([*prepare, "--vocab", "chars"], tmp_path)
    assert status == 0, printed
    status, printed = run([*train, data], tmp_path)
    if fitting := re.search(r"choose (--batch-size \d+ --seq-len \d+)$", printed):
        assert status == 1 and lines == 2
        status, printed = run([*train, data, *fitting[1].split()], tmp_path)
    assert status == 0, printed
    assert "; its batches are 1 x " in printed
    losses = [record["val_loss"] for record in records(tmp_path / "out") if "val_loss" in record]
    assert len(losses) == 2 and losses[1] < losses[0]
