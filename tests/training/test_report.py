"""What a run prints about itself."""

import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.data.dataloader import DataLoader
from gpt2.formats.llmc import write_tokens
from gpt2.optimizer import AdamW
from gpt2.training import report
from gpt2.training.options import Resolved, TrainOptions
from gpt2.training.state import TrainState

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = GPT2Config(maxT=16, V=50, L=1, NH=2, C=12)
RECORD = {"step": 3, "train_loss": 3.25, "grad_norm": 1.5, "lr": 2e-4, "tokens_per_s": 321.4}
RECORD |= {"gradients_ms": 99.6, "update_ms": 10.4}


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, a list of one number."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_step_is_a_line(clock, capsys):
    lines = report.StepLines(2, 1000)
    clock[0] += 4
    lines.show(RECORD)
    assert capsys.readouterr().out == (
        "step    3/1000 | train loss 3.250000 | norm 1.5000 | lr 2.00e-04 | gradients 100 ms | update 10 ms | "
        "321 tok/s | 1:06:28 left\n"
    )


def test_time_left_counts_from_the_steps_of_this_process(clock, capsys):
    lines = report.StepLines(10, 20)
    for step, left in ((11, "0:00:18"), (12, "0:00:16"), (20, "0:00:00")):
        clock[0] = 100 + 2 * (step - 10)
        lines.show(RECORD | {"step": step})
        assert f"| {left} left\n" in capsys.readouterr().out


def test_a_skipped_update_is_named_and_a_loss_that_is_not_finite_shown(capsys):
    record = RECORD | {"train_loss": float("nan"), "skipped": "nonfinite", "skipped_so_far": 2}
    report.StepLines(0, 9).show(record)
    printed = capsys.readouterr().out
    assert "train loss nan" in printed and "| skipped: nonfinite, number 2 |" in printed


def test_a_run_is_described(tmp_path, capsys):
    write_tokens(tmp_path / "train.bin", np.arange(1700) % 50)
    model = GPT2(CONFIG)
    loader = DataLoader(tmp_path / "train.bin", 2, 8, 50)
    options = TrainOptions(batch_size=2, seq_len=8, grad_accum_steps=3, max_steps=7, seed=5, threads=2)
    for clip, said in ((0.0, "no clipping"), (0.5, "clip 0.5")):
        state = TrainState(
            model, AdamW(model), loader, Resolved(("train.bin",), None, 1e-3, "wsd", 4, clip, 8, 7, "float32")
        )
        report.describe(options, state, None)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "[GPT-2] maxT 16 | V 50 | Vp 128 | L 1 | NH 2 | C 12"
        assert lines[-2:] == [
            f"[data] training: 1,700 tokens, 106 batches an epoch, from {tmp_path / 'train.bin'}",
            f"[run] B 2 | T 8 | accumulation 3 | 7 steps | lr 0.001 wsd, warm-up 4, {said} | seed 5 | threads 2",
        ]
    shown = [re.match(r"  (\w+) +([\d,]+)  \((.*)\)", line).groups() for line in lines[2:-2]]
    assert [name for name, *_ in shown] == list(model.params)
    assert sum(int(size.replace(",", "")) for _, size, _ in shown) == model.params_flat.size
    report.describe(TrainOptions(epochs=2, dropout=0.2), state, loader)
    printed = capsys.readouterr().out
    assert f"[data] validation: 1,700 tokens, 106 batches an epoch, from {tmp_path}" in printed
    assert "| 2 epochs = 7 steps |" in printed and ", clip 0.5 | dropout 0.2 | seed " in printed


@pytest.mark.slow
def test_peak_memory_is_in_bytes_and_stays_when_memory_is_given_back():
    program = """
import numpy as np
from gpt2.training.report import peak_bytes
before = peak_bytes()
np.ones(before // 8 + 2**24)  # as much again, and 128 MiB
print(before, peak_bytes())
"""
    held = np.ones(2**27)  # 1 GiB, which is not the child's
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    del held
    before, after = map(int, run.stdout.split())
    assert 2**24 < before < 2**30 and before + 2**27 <= after < 2 * before + 2**28


def test_a_clock_that_jumps_costs_no_step(clock, capsys):
    lines = report.StepLines(0, 2**31 - 1)
    clock[0] += 1e6
    lines.show(RECORD | {"step": 1})
    assert " days, " in capsys.readouterr().out
