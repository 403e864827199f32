"""Runs of the trainer as tests look at them."""

import json
import pathlib
import re

from gpt2 import GPT2
from gpt2.training import checkpoint

TIMES = {"gradients_ms", "update_ms", "tokens_per_s"}


def records(out="out"):
    """The records of a run's metrics.jsonl."""
    return [json.loads(line) for line in pathlib.Path(out, "metrics.jsonl").read_text().splitlines()]


def train_losses(out="out"):
    return [record["train_loss"] for record in records(out) if "train_loss" in record]


def model_bytes(out, step):
    return pathlib.Path(out, f"model_{step:08d}.bin").read_bytes()


def contents(out, step):
    """Everything of a run that does not depend on the clock: parameters, moments, metrics, spike windows."""
    found = checkpoint.find(out, report=str)
    assert found.step == step
    lines = [{key: value for key, value in record.items() if key not in TIMES} for record in records(out)]
    moments = found.state.read_bytes()[-2 * GPT2.load(found.model).params_flat.nbytes - 32 : -32]
    return found.model.read_bytes(), moments, lines, found.progress["outliers"]


def samples(printed):
    """The samples in a run's output."""
    return re.findall(r"--- sample ---\n(.*)\n---", printed)


def val_losses(printed):
    """The lines of validation losses in a run's output."""
    return re.findall(r"^val loss .*$", printed, re.MULTILINE)
