"""Checkpoints of the first form, whose options held what the run had settled on, are still resumed."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from gpt2.formats.run import steps
from gpt2.machine import available_threads, set_threads
from gpt2.optimizer import AdamW
from gpt2.training import checkpoint, setup
from gpt2.training.loop import resume, train
from gpt2.training.options import TrainOptions
from tests.support.runs import contents

CONFIG = GPT2Config(maxT=16, V=50, L=1, NH=2, C=12)
OPTIONS = TrainOptions(
    init="scratch",
    train_data="train.bin",
    val_data="val.bin",
    batch_size=2,
    seq_len=8,
    max_steps=10,
    val_every=5,
    sample_every=0,
    checkpoint_every=5,
    threads=1,
)
FIRST_KEYS = {"step", "train_loss", "val_loss", "left_out", "outliers", "position"}
FIRST_KEYS |= {"options", "train_data", "val_data", "versions"}
LATER_OPTIONS = {"size", "layers", "heads", "channels", "context", "epochs", "patience", "keep_best", "precision"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(setup.PRESETS, "gpt2", CONFIG)
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        write_tokens(f"{name}.bin", rng.integers(0, CONFIG.V, 150))
    yield
    set_threads(available_threads())


def stopped_in_the_first_form(options):
    """Trains; leaves the finished run in "whole", and in "out" what the first form had saved of it at step 5.

    Options that it did not have are left at their defaults.

    Returns what was saved there.
    """
    train(options)
    shutil.copytree("out", "whole")
    for path in checkpoint.checkpoint_paths("out", 10):
        path.unlink()
    found = checkpoint.find("out", report=str)
    model = GPT2.load(found.model)
    optimizer = AdamW(model)
    found.load_state(optimizer)
    progress = dict(found.progress)
    del progress["record"], progress["validations"]
    progress["left_out"] = progress.pop("skipped")
    progress["options"] = progress["options"] | progress.pop("resolved")
    for name in LATER_OPTIONS:
        assert progress["options"].pop(name) == getattr(TrainOptions(), name)
    assert progress.keys() == FIRST_KEYS and None not in progress["options"].values()
    checkpoint.save("out", model, optimizer, progress, keep=1)
    return progress


@pytest.mark.parametrize(
    "changes",
    [
        {},  # the recipe for random weights: clipped at 1, which those of GPT-2 are not
        {"grad_clip": 0.0},
        {"grad_clip": 0.01, "learning_rate": 1e-2, "warmup_steps": 0},
        {"skip_spikes": 3.0, "shuffle": True, "lr_schedule": "cosine"},
    ],
)
def test_the_resumed_run_is_the_run_it_would_have_been(changes):
    saved = stopped_in_the_first_form(dataclasses.replace(OPTIONS, **changes))
    assert saved["options"]["grad_clip"] == changes.get("grad_clip", 1.0)
    result = resume("out", {"threads": 1})
    assert list(result.train_losses) == [6, 7, 8, 9, 10]
    assert contents("out", 10) == contents("whole", 10)
    assert result.state.resolved.grad_clip == saved["options"]["grad_clip"]


def test_no_clipping_is_not_clipping_by_the_recipe():
    clipped = dataclasses.replace(OPTIONS, weight_decay=0.1, eps=1e-2, learning_rate=1e-2)
    assert train(clipped).state.resolved.grad_clip == 1.0
    stopped_in_the_first_form(dataclasses.replace(clipped, grad_clip=0.0))
    with pytest.raises(UserError, match=r"--grad-clip was 0\.0, not 1\.0"):
        resume("out", {"grad_clip": 1.0, "threads": 1})
    with pytest.raises(UserError, match=r"--lr was 0\.01, not 0\.02"):
        resume("out", {"learning_rate": 0.02, "threads": 1})
    resume("out", {"grad_clip": 0.0, "threads": 1})
    assert contents("out", 10) == contents("whole", 10)


def test_updates_skipped_before_still_count():
    saved = stopped_in_the_first_form(OPTIONS)
    saved["left_out"] = {"nonfinite": 2, "spike": 7}
    found = checkpoint.find("out")
    model = GPT2.load(found.model)
    optimizer = AdamW(model)
    found.load_state(optimizer)
    checkpoint.save("out", model, optimizer, saved, keep=1)
    assert resume("out", {"threads": 1}).state.skipped == {"nonfinite": 2, "spike": 7}
    assert checkpoint.find("out").progress["skipped"] == {"nonfinite": 2, "spike": 7}


def test_a_step_of_which_only_the_checkpoint_was_left_has_no_record():
    stopped_in_the_first_form(OPTIONS)
    metrics = pathlib.Path("out/metrics.jsonl")
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:5]))  # of steps 0 to 4
    resume("out", {"threads": 1})
    assert contents("out", 10)[:2] == contents("whole", 10)[:2]
    before, after = contents("whole", 10)[2], contents("out", 10)[2]
    assert after == before[:5] + before[6:] and steps("out") == [10, 5]


def test_it_can_be_moved_without_taking_a_step():
    stopped_in_the_first_form(OPTIONS)
    resume("out", {"out_dir": "moved", "max_steps": 5})
    resume("moved", {"max_steps": 10})
    assert contents("moved", 10)[:2] == contents("whole", 10)[:2]
