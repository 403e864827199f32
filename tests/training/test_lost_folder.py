"""Runs whose folder is taken from under them: they stop in one line and touch nothing of what is there now."""

import os
import pathlib
import shutil

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from gpt2.formats.run import newest_model
from gpt2.machine import available_threads, set_threads
from gpt2.training import checkpoint
from gpt2.training.loop import resume, train
from gpt2.training.options import TrainOptions

CONFIG = GPT2Config(maxT=16, V=50, L=1, NH=2, C=12)
OUT = pathlib.Path("out")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GPT2(CONFIG, seed=1).save("tiny.bin")
    for name in ("train", "val"):
        write_tokens(f"{name}.bin", np.arange(200) % CONFIG.V)
    yield
    set_threads(available_threads())


def options(**changes):
    settings = {"init": "tiny.bin", "train_data": "train.bin", "val_data": "val.bin", "batch_size": 2, "seq_len": 8}
    settings |= {"max_steps": 6, "val_every": 0, "sample_every": 0, "checkpoint_every": 2, "threads": 1}
    return TrainOptions(**settings | changes)


def snapshot(folder):
    """What is in a folder, to the last byte and the last write; None if there is none."""
    if not folder.exists():
        return None
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


def remove_lock():
    (OUT / ".lock").unlink()


def remove_folder():
    shutil.rmtree(OUT)


def move_away():
    OUT.rename("elsewhere")


def second_run():
    remove_lock()
    train(options(max_steps=2))  # sets the first run's folder aside


def second_run_resumed():
    remove_lock()
    resume("out", {"threads": 1, "max_steps": 5, "keep": 1})


def second_run_in_a_new_folder():
    remove_folder()
    train(options(max_steps=1))


@pytest.mark.parametrize(
    "change",
    [remove_lock, remove_folder, move_away, second_run, second_run_resumed, second_run_in_a_new_folder],
)
@pytest.mark.parametrize("step", [3, 4], ids=["between saves", "after a save"])
def test_a_run_whose_folder_is_taken_away_stops_without_a_trace(capsys, change, step):
    left = []

    def on_step(state, record):
        if state.step == step:
            change()
            left.extend(map(snapshot, (OUT, pathlib.Path("elsewhere"), pathlib.Path("out-1"))))

    with pytest.raises(UserError, match=r"^out: this run's lock on it is gone: .* since the last checkpoint are lost;"):
        train(options(), on_step=on_step)
    assert capsys.readouterr().err == ""  # the error is the only line
    assert [*map(snapshot, (OUT, pathlib.Path("elsewhere"), pathlib.Path("out-1")))] == left


def test_where_the_folder_is_now_the_run_is_resumed():
    with pytest.raises(UserError):
        train(options(), on_step=lambda state, record: move_away() if state.step == 3 else None)
    assert checkpoint.find("elsewhere").step == 2
    assert resume("elsewhere", {"threads": 1}).state.step == 6


@pytest.mark.parametrize("writing", ["write_model", "write_training_state", "make_manifest"])
def test_a_folder_taken_while_a_checkpoint_is_written_keeps_the_one_before(monkeypatch, writing):
    write, before = getattr(checkpoint, writing), []

    def write_and_lose(*arguments, **named):
        if (OUT / "checkpoints.json").exists():
            remove_lock()
            before.append(snapshot(OUT))
        return write(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, writing, write_and_lose)
        with pytest.raises(UserError, match="lock on it is gone"):
            train(options(keep=1))
    assert snapshot(OUT) == {name: content for name, content in before[0].items() if not name.startswith(".")}
    assert newest_model(OUT).name == "model_00000002.bin" and checkpoint.find(OUT, report=str).step in (2, 4)


@pytest.mark.parametrize("arguments", ["missing data", "bad checkpoint", "damaged options"])
def test_a_refused_run_leaves_no_folder(arguments):
    train(options(out_dir="run", max_steps=2))
    before = sorted(os.listdir())
    with pytest.raises(UserError):
        if arguments == "missing data":
            train(options(train_data="missing.bin", out_dir="a/b"))
        elif arguments == "bad checkpoint":
            pathlib.Path("empty").mkdir()
            before = sorted(os.listdir())
            resume("empty", {"out_dir": "a/b"})
        else:
            resume("run", {"out_dir": "a/b", "learning_rate": 1.0})
    assert sorted(os.listdir()) == before
    assert ".lock" not in os.listdir("run")
