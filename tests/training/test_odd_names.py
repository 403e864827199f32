"""Files and folders with names that a shell, JSON or a terminal treats in its own way: runs with them are resumed."""

import os
import re
import signal
import subprocess

import numpy as np
import pytest

import train_gpt2
from gpt2 import GPT2, GPT2Config
from gpt2.formats.llmc import write_tokens
from gpt2.machine import available_threads, set_threads
from gpt2.training import checkpoint, loop
from gpt2.training.__main__ import parse_arguments
from gpt2.training.options import TrainOptions

BASE = "--init tiny.bin -b 2 -t 8 -x 4 --sample-every 0 --threads 1".split()
NAMES = ["-t.bin", "--resume", "new\nline.bin", os.fsdecode(b"caf\xe9.bin"), "世界.bin", "a b'c\".bin", "[1]*.bin"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GPT2(GPT2Config(maxT=16, V=50, L=1, NH=2, C=12), seed=1).save("tiny.bin")
    yield
    set_threads(available_threads())


def train(*arguments):
    return train_gpt2.main([*BASE, *arguments])


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_token_files_of_any_name_are_trained_on_and_resumed(name):
    write_tokens(name, np.arange(200) % 50)
    train(f"--train-data={name}", f"--val-data={name}", "--max-steps", "2")
    assert checkpoint.find("out", report=pytest.fail).progress["train_data"][0]["file"] == name
    train_gpt2.main(["--resume", "out", "--max-steps", "4", "--threads", "1"])
    train(f"--train-data={name}", f"--val-data={name}", "--out-dir", "whole")
    ends = [checkpoint.find(out, report=pytest.fail) for out in ("out", "whole")]
    assert ends[0].model.read_bytes() == ends[1].model.read_bytes() and ends[0].step == 4


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_output_folders_of_any_name_are_resumed_by_the_command_that_is_printed(name, capfd):
    write_tokens("t.bin", np.arange(200) % 50)
    data = ("--train-data", "t.bin", "--val-data", "t.bin")
    options = TrainOptions(**parse_arguments([*BASE, *data, f"--out-dir={name}"])[0])

    def stop(state, record):
        if state.step == 2:
            signal.raise_signal(signal.SIGTERM)

    assert loop.train(options, on_step=stop).exit_status == 143
    (command,) = re.findall(r"^resume with: gpt2 train (.*)$", capfd.readouterr().out, re.MULTILINE)
    shell = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, timeout=20, check=True)
    train_gpt2.main([*map(os.fsdecode, shell.stdout.split(b"\0")[:-1]), "--threads", "1"])
    assert checkpoint.find(name, report=pytest.fail).step == 4
