"""Runs under mpirun: the bits of one process, whatever the number of ranks, the library and the threads."""

import dataclasses
import importlib.util
import json
import math
import pathlib

import numpy as np
import pytest

from gpt2 import GPT2
from gpt2.data.dataloader import DataLoader
from gpt2.distributed import add_as_tree
from gpt2.kernels.dropout import Dropout
from gpt2.optimizer import AdamW, clip_scale, norm_of
from gpt2.training import checkpoint, loop
from gpt2.training.options import TrainOptions
from tests.support.ranks import needs_mpi, needs_openmpi, run
from tests.support.runs import records, write_small_inputs

OPTIONS = TrainOptions(
    init="tiny.bin",
    train_data="train.bin",
    val_data="val.bin",
    batch_size=2,
    seq_len=16,
    learning_rate=1e-2,
    warmup_steps=0,
    grad_clip=0.0,
    weight_decay=0.1,
    dropout=0.1,
    shuffle=True,
    max_steps=5,
    val_every=5,
    sample_every=0,
    out_dir="out",
)
# Trains once for each set of options in a file.
WORKER = """
import json, pathlib, sys
from gpt2.training.loop import resume, train
from gpt2.training.options import TrainOptions
for options in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    resumed = options.pop("resume", None)
    if resumed:
        resume(resumed, options)
    else:
        train(TrainOptions(**options))
"""

pytestmark = [needs_mpi, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_small_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)


def train_on(n, *runs, library="mpich"):
    """Trains on n ranks, in one job, once for each dict of changes to OPTIONS; {"resume": folder, ...} resumes."""
    base = dataclasses.asdict(OPTIONS)
    pathlib.Path("runs.json").write_text(
        json.dumps([changes if "resume" in changes else base | changes for changes in runs])
    )
    ended = run(n, "-c", WORKER, "runs.json", library=library)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def expected(n, accumulation, clip):
    """Trains in this process, which adds the gradients that each of n ranks would have in the order of `add_as_tree`.

    Returns (parameters, m, v, norms), the first three as bytes.
    """
    model = GPT2.load("tiny.bin")
    optimizer = AdamW(model, weight_decay=OPTIONS.weight_decay)
    loader, norms = DataLoader("train.bin", 2, 16, 512, OPTIONS.seed), []
    for step in range(1, OPTIONS.max_steps + 1):
        parts = []
        for rank in range(n):
            for i in range(accumulation // n):
                compute = model.add_gradients if i else model.overwrite_gradients
                compute(*loader.next_batch(), Dropout(0.1, OPTIONS.seed, step, rank * (accumulation // n) + i))
            parts.append(model.grads_flat.copy())
        model.grads_flat[:] = add_as_tree(np.stack(parts))
        optimizer.measure()
        scale = 1 / accumulation
        norms.append(scale * norm_of(optimizer.squares))
        optimizer.step(1e-2, scale * clip_scale(norms[-1], clip))
    return model.params_flat.tobytes(), optimizer.m.tobytes(), optimizer.v.tobytes(), norms


def result(out):
    """Returns what `expected` does, of a run."""
    found = checkpoint.find(out, report=str)
    model = GPT2.load(found.model)
    optimizer = AdamW(model)
    found.load_state(optimizer)
    norms = [record["grad_norm"] for record in records(out) if record["step"]]
    return model.params_flat.tobytes(), optimizer.m.tobytes(), optimizer.v.tobytes(), norms


def require_expected(n, library="mpich", threads=(1, 2)):
    runs = {
        f"out-{accumulation}-{clip}-{count}": {"grad_accum_steps": accumulation, "grad_clip": clip, "threads": count}
        for accumulation, clip, count in ((n, 0.0, 1), (n, 0.5, 2), (2 * n, 0.5, 1), (2 * n, 0.0, 2))
        if count in threads
    }
    train_on(n, *({"out_dir": out} | changes for out, changes in runs.items()), library=library)
    for out, changes in runs.items():
        norms = result(out)[3]
        assert result(out) == expected(n, changes["grad_accum_steps"], changes["grad_clip"]), out
        assert (max(norms) > 0.5) and len(norms) == 5  # clipping does something


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_bits_are_those_of_one_process_that_adds_the_ranks_gradients(folder, n):
    require_expected(n)


@needs_openmpi
@pytest.mark.parametrize("n", [2, 3])
def test_they_are_the_same_under_open_mpi(folder, n):
    require_expected(n, "openmpi", threads=(1,))


def test_the_same_total_batch_gives_the_same_losses_on_any_number_of_ranks(folder):
    runs = {"grad_accum_steps": 4, "max_steps": 20, "dropout": 0.1, "val_batches": 3}
    loop.train(dataclasses.replace(OPTIONS, **runs, out_dir="out-1"))
    for n in (2, 4):
        train_on(n, runs | {"out_dir": f"out-{n}"})
        for key in ("train_loss", "val_loss"):
            one, several = ([r[key] for r in records(out) if key in r] for out in ("out-1", f"out-{n}"))
            assert len(one) >= 5 and np.abs(np.subtract(one, several)).max() < 1e-5
        assert [r.get("epoch") for r in records(f"out-{n}")] == [r.get("epoch") for r in records("out-1")]
        assert checkpoint.find(f"out-{n}").progress["position"] == checkpoint.find("out-1").progress["position"]


def test_a_run_resumes_on_as_many_ranks_to_the_same_bits_and_on_others_from_them(folder):
    whole = {"grad_accum_steps": 12, "max_steps": 4, "val_every": 0}
    train_on(3, whole | {"out_dir": "whole"}, whole | {"max_steps": 2})
    before = result("out")
    position = checkpoint.find("out").progress["position"]
    # Without a further step, a checkpoint in another folder is what was loaded.
    train_on(3, {"resume": "out", "out_dir": "same", "max_steps": 4})
    assert result("same") == result("whole")
    for n in (1, 2, 4):
        train_on(
            n, *({"resume": "out", "out_dir": f"{name}-{n}", "max_steps": x} for name, x in (("copy", 2), ("on", 4)))
        )
        assert result(f"copy-{n}") == before
        assert checkpoint.find(f"copy-{n}").progress["position"] == position
        ours, theirs = (np.frombuffer(result(out)[0], np.float32) for out in (f"on-{n}", "whole"))
        assert np.abs(ours - theirs).max() < 1e-4  # Adam's first steps divide small numbers by small ones


def test_best_checkpoints_spikes_and_samples_are_those_of_one_process(folder):
    options = {"keep_best": True, "skip_spikes": 3.0, "val_every": 1, "sample_every": 5, "grad_accum_steps": 2}
    printed = train_on(2, options)
    assert printed.count("--- sample ---") == 1 and printed.count("new best: val loss") >= 1
    assert "[ranks] 2: 2 on " in printed and "| exchange " in printed
    best = checkpoint.find("out/best")
    losses = {record["step"]: record["val_loss"] for record in records()}
    assert best.step == min(losses, key=losses.get)
    assert all(record["exchange_ms"] > 0 for record in records() if record["step"])


def test_norms_by_layer_are_those_of_one_process_and_only_the_first_rank_reports(folder):
    options = {"grad_accum_steps": 3, "norms_every": 2}
    if importlib.util.find_spec("tensorboardX"):
        options["report_to"] = ["tensorboard"]
    loop.train(dataclasses.replace(OPTIONS, **options, out_dir="one"))
    train_on(3, options)
    one, several = ([record["norms"] for record in records(out) if "norms" in record] for out in ("one", "out"))
    assert len(one) == len(several) == 2
    for norms, others in zip(one, several, strict=True):
        assert norms.keys() == others.keys()
        assert all(others[name] == pytest.approx(norms[name], rel=1e-3) for name in norms)
    for record in records():
        if "norms" in record:
            together = math.hypot(*(norm for layers in record["norms"].values() for norm in layers))
            assert together == pytest.approx(record["grad_norm"], rel=1e-12)
    if "report_to" in options:
        assert len(list(pathlib.Path("out/tensorboard").iterdir())) == 1
