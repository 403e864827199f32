"""Runs of the trainer as tests look at them."""

import json
import pathlib
import re
import shutil

import numpy as np

from gpt2 import GPT2, GPT2Config
from gpt2.formats.llmc import write_tokens
from gpt2.inference.warmup import prepare_kernels
from gpt2.kernels.engine.cache import folders
from gpt2.training import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "train_gpt2.py")
# The options of a run of the small model on the files of `write_small_inputs`.
SMALL = "--init tiny.bin --train-data train.bin --val-data val.bin -b 2 -t 16".split()
TIMES = {"gradients_ms", "update_ms", "tokens_per_s"}


def write_small_inputs(folder):
    """Writes the small model and its token files: tiny.bin, train.bin (an epoch is 150 batches) and val.bin."""
    GPT2(GPT2Config(maxT=64, V=512, L=2, NH=2, C=32), seed=1).save(folder / "tiny.bin")
    rng = np.random.default_rng(0)
    write_tokens(folder / "train.bin", rng.integers(0, 512, 4801))
    write_tokens(folder / "val.bin", rng.integers(0, 512, 400))


def copy_kernels(cache):
    """Copies the compiled kernels for use as NUMBA_CACHE_DIR; returns the folder in it that holds them."""
    prepare_kernels()
    compiled = next(folder for folder in folders.readable if folder.is_dir() and any(folder.iterdir()))
    copy = cache / compiled.name
    shutil.copytree(compiled, copy)
    copy.chmod(0o700)
    return copy


def read_until(process, pattern):
    """Reads a process's output up to a line in which the pattern is found; returns it."""
    output = ""
    for line in process.stdout:
        output += line
        if re.search(pattern, line):
            return output
    raise AssertionError(f"no {pattern} in {output}")


def saved_steps(printed):
    """The steps that a run's output says were saved."""
    return {int(step) for step in re.findall(r"^saved .*model_(\d+)\.bin and ", printed, re.MULTILINE)}


def records(out="out"):
    """The records of a run's metrics.jsonl."""
    return [json.loads(line) for line in pathlib.Path(out, "metrics.jsonl").read_text().splitlines()]


def train_losses(out="out"):
    return [record["train_loss"] for record in records(out) if "train_loss" in record]


def model_bytes(out, step):
    return pathlib.Path(out, f"model_{step:08d}.bin").read_bytes()


def contents(out, step, without=()):
    """Everything of a run that does not depend on the clock: parameters, moments, metrics, spike windows.

    without: keys of the metrics to leave out.
    """
    found = checkpoint.find(out, report=str)
    assert found.step == step
    lines = [{key: value for key, value in record.items() if key not in {*TIMES, *without}} for record in records(out)]
    moments = found.state.read_bytes()[-2 * GPT2.load(found.model).params_flat.nbytes - 32 : -32]
    return found.model.read_bytes(), moments, lines, found.progress["outliers"]


def samples(printed):
    """The samples in a run's output."""
    return re.findall(r"--- sample ---\n(.*)\n---", printed)


def val_losses(printed):
    """The lines of validation losses in a run's output."""
    return re.findall(r"^val loss .*$", printed, re.MULTILINE)
