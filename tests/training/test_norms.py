"""Gradient norms by tensor and layer: the float64 ones of NumPy, together the run's norm, and drawn."""

import dataclasses
import json
import math
import pathlib
import tracemalloc
import types

import matplotlib.axes
import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.distributed import SERIAL
from gpt2.formats.llmc import write_tokens
from gpt2.layout import LAYER_PARAMETERS, parameter_layout
from gpt2.machine import available_threads, set_threads
from gpt2.optimizer import shards
from gpt2.training import norms
from gpt2.training.loop import resume, train
from gpt2.training.norms import draw_norms, layer_norms
from gpt2.training.options import TrainOptions
from tests.support.runs import model_bytes, records

CONFIG = GPT2Config(maxT=16, V=50, L=3, NH=2, C=48)
OPTIONS = TrainOptions(
    init="tiny.bin",
    train_data="train.bin",
    batch_size=2,
    seq_len=8,
    max_steps=5,
    val_every=0,
    sample_every=0,
    norms_every=2,
    threads=1,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GPT2(CONFIG, seed=1).save("tiny.bin")
    write_tokens("train.bin", np.arange(2000) % 50)
    yield
    set_threads(available_threads())


def measured(flat, n, scale):
    """What each of n ranks returns, of which each has its shard of the gradients, flat (size,)."""
    layout, cuts, sent = parameter_layout(CONFIG), shards(flat.size, n), []

    def on_rank(rank, gather):
        own = np.full_like(flat, np.nan)
        own[cuts[rank]] = flat[cuts[rank]]
        state = {
            "world": types.SimpleNamespace(rank=rank, gather=gather),
            "shards": cuts,
            "model": types.SimpleNamespace(grads_flat=own),
            "optimizer": types.SimpleNamespace(layout=layout),
        }
        return layer_norms(types.SimpleNamespace(**state), scale)

    for rank in range(n):
        on_rank(rank, lambda value: sent.append(value) or [value])
    return [on_rank(rank, lambda value: sent) for rank in range(n)]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_they_are_numpys_whatever_part_of_the_gradients_a_rank_has(n):
    layout = parameter_layout(CONFIG)
    flat = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    grads = layout.views(flat.astype(np.float64))
    for measurement in measured(flat, n, scale=0.5):
        assert measurement.keys() == grads.keys()
        for name, found in measurement.items():
            layers = grads[name] if name in LAYER_PARAMETERS else [grads[name]]
            assert found == pytest.approx([0.5 * np.linalg.norm(layer) for layer in layers], rel=1e-12)


def test_together_they_are_the_norm_of_the_run_before_clipping(folder):
    train(dataclasses.replace(OPTIONS, grad_accum_steps=3, grad_clip=1e-3))
    train(dataclasses.replace(OPTIONS, grad_accum_steps=3, grad_clip=1e-3, norms_every=0, out_dir="without"))
    assert [record["step"] for record in records() if "norms" in record] == [2, 4]
    for record in records():
        if norms := record.get("norms"):
            together = math.hypot(*(norm for layers in norms.values() for norm in layers))
            assert together == pytest.approx(record["grad_norm"], rel=1e-12)
    assert model_bytes("out", 5) == model_bytes("without", 5)


def test_no_array_of_a_tensors_size_is_made():
    layout = parameter_layout(dataclasses.replace(CONFIG, V=50257))
    flat = np.ones(layout.size, np.float32)
    state = {
        "world": SERIAL,
        "shards": shards(flat.size, 1),
        "model": types.SimpleNamespace(grads_flat=flat),
        "optimizer": types.SimpleNamespace(layout=layout),
    }
    layer_norms(types.SimpleNamespace(**state), 1.0)
    tracemalloc.start()
    try:
        layer_norms(types.SimpleNamespace(**state), 1.0)
        assert tracemalloc.get_traced_memory()[1] < 100_000  # wte has 9.6 MB
    finally:
        tracemalloc.stop()


def test_a_norm_that_is_not_finite_is_null_in_the_record(folder, monkeypatch):
    overwrite = GPT2.overwrite_gradients

    def break_one(self, *batch):
        loss = overwrite(self, *batch)
        if self.config == CONFIG:  # not the model that loads the kernels
            self.grads["fcw"][1, 2, 3] = np.nan
        return loss

    monkeypatch.setattr(GPT2, "overwrite_gradients", break_one)
    train(dataclasses.replace(OPTIONS, skip_nonfinite=9))
    for record in records():
        if norms := record.get("norms"):
            assert norms["fcw"][1] is None and norms["fcw"][0] > 0 and norms["qkvw"][1] > 0
    assert pathlib.Path("out/norms.png").exists()


def line(step, value, **more):
    norms = {"wte": [value], "qkvw": [3 * value, 0.0], "fcb": [4 * value, value], "lnfw": [None]}
    return json.dumps({"step": step, "norms": norms} | more) + "\n"


@pytest.fixture
def drawn(monkeypatch):
    """The heat maps that are drawn: a list of (edges in x, values)."""
    found, pcolormesh = [], matplotlib.axes.Axes.pcolormesh

    def record(self, x, y, values, **style):
        if np.ma.isMaskedArray(values):  # not of a colour bar
            found.append((list(x), values.filled(-1).tolist()))
        return pcolormesh(self, x, y, values, **style)

    monkeypatch.setattr(matplotlib.axes.Axes, "pcolormesh", record)
    return found


def test_the_picture_has_layers_over_the_steps_and_tensors_of_the_last(tmp_path, drawn):
    path, picture = tmp_path / "metrics.jsonl", tmp_path / "norms.png"
    path.write_text(line(2, 1.0) + '{"step": 3}\n' + line(4, 2.0) + line(8, 1.0))
    draw_norms(path, picture)
    (edges, layers), (_, tensors) = drawn
    assert edges == [1.5, 3, 6, 8.5]
    assert layers == [[1, 2, 1], [5, 10, 5], [1, 2, 1], 3 * [-1]]  # wte, layers 0 and 1, lnfw
    assert tensors == [[-1, -1], [3, 4], [-1, 1], [-1, -1]]
    assert picture.read_bytes().startswith(b"\x89PNG")
    path.write_text('{"step": 3}\n')
    draw_norms(path, picture)
    assert not picture.exists()


@pytest.mark.parametrize("value", [None, 0.0, 1.0])
def test_the_picture_of_nothing_much(tmp_path, value):
    norms = {"wte": [value], "qkvw": [value, value], "lnfw": [value]}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "norms": norms}) + "\n")
    draw_norms(tmp_path / "metrics.jsonl", tmp_path / "norms.png")
    assert (tmp_path / "norms.png").exists()


def test_the_picture_of_many_steps_has_a_bounded_number_of_columns(tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(norms, "_COLUMNS", 4)
    (tmp_path / "metrics.jsonl").write_text("".join(line(step, 1.0) for step in range(100)))
    draw_norms(tmp_path / "metrics.jsonl", tmp_path / "norms.png")
    edges, _ = drawn[0]
    assert 4 <= len(edges) - 1 < 8 and edges[0] == -0.5 and edges[-1] > 80


def test_a_run_draws_it_beside_the_losses_and_a_resumed_one_anew(folder, capsys):
    train(OPTIONS)
    assert capsys.readouterr().out.endswith("out/loss.png\ngradient norms in out/norms.png\n")
    pathlib.Path("out/norms.png").unlink()
    resume("out", {"max_steps": 6})
    assert [record["step"] for record in records() if "norms" in record] == [2, 4, 6]
    assert pathlib.Path("out/norms.png").exists()
    train(dataclasses.replace(OPTIONS, norms_every=0, out_dir="none"))
    assert not pathlib.Path("none/norms.png").exists()
