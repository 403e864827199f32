"""Runs that are killed with SIGKILL, most times while they save, and resumed: they end as if nothing had been."""

import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time

import numpy as np
import pytest

import train_gpt2
from gpt2 import GPT2, GPT2Config, errors
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from gpt2.training import checkpoint
from tests.support.runs import contents, samples, saved_steps

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNS, KILLS = 10, 5  # 50 kills in all
KILLS_IN_SAVES = 3  # of a run, at the least: these look for one
STEPS = 16
# An epoch is 8 batches, so that steps of 3 are killed in the middle of epochs and on their borders.
OPTIONS = (
    "--init tiny.bin --train-data train-*.bin --val-data val.bin -b 2 -t 8 -l 1e-2 --grad-accum-steps 3 --shuffle "
    "--lr-schedule cosine --warmup-steps 3 --weight-decay 0.1 --grad-clip 1 --val-every 5 --val-batches 3 "
    f"--sample-every 6 --sample-tokens 5 --skip-spikes 3 -x {STEPS} --checkpoint-every 2 --keep 2 --keep-best"
).split()
PAUSE = 0.002  # seconds that each call which saves takes longer
# A checkpoint takes 21 of these calls, or 23 with one to remove.
LATEST_CALL = 45
context = multiprocessing.get_context("forkserver")


def run(arguments, saving, last_call):
    """What a child does: a run that saves slowly, its output appended to "log".

    saving: a shared flag, set while a checkpoint is saved. last_call: the number of the call at which the process
    kills itself, counted over the calls that save a checkpoint; 0 for none.
    """
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    slow_down(saving, last_call)
    errors.run_command(lambda: train_gpt2.main(arguments))


def slow_down(saving, last_call):
    calls = 0

    def pause():
        nonlocal calls
        if saving.value:
            calls += 1
            if calls == last_call:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(PAUSE)

    def slow(function):
        def call(*arguments, **options):
            pause()
            return function(*arguments, **options)

        return call

    def slow_file(*arguments, **options):
        file = named_temporary_file(*arguments, **options)
        write = file.write

        def write_in_halves(data):
            data = memoryview(data).cast("B")
            write(data[: len(data) // 2])
            file.flush()
            pause()
            write(data[len(data) // 2 :])
            return len(data)

        file.write = write_in_halves
        return file

    def telling(function):
        def call(*arguments):
            within, saving.value = saving.value, True
            saved = function(*arguments)
            saving.value = within
            return saved

        return call

    named_temporary_file, tempfile.NamedTemporaryFile = tempfile.NamedTemporaryFile, slow_file
    checkpoint.save, checkpoint.write = telling(checkpoint.save), telling(checkpoint.write)
    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, slow(getattr(os, name)))


def start(*arguments, last_call=0):
    """Starts a child in the working folder. Returns the process and the flag that it sets while it saves."""
    saving = context.RawValue("b", False)
    process = context.Process(target=run, args=(arguments, saving, last_call))
    process.start()
    return process, saving


def ended(process, seconds=120):
    """The exit status of a process, which is killed if it takes longer than so many seconds."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def log():
    return pathlib.Path("log").read_text()


def begin_or_go_on():
    """The arguments for the next child. Nothing that a run said it saved may be lost.

    Where nothing was saved before the kill, --resume must refuse.
    """
    said = max(saved_steps(log()), default=0)
    try:
        assert checkpoint.find("out", report=str).step >= said
        return ["--resume", "out"]
    except UserError:
        assert said == 0
    process, _ = start("--resume", "out")
    assert ended(process) == 1
    assert re.search(r"error: out: no (whole checkpoint|such folder).*\n\Z", log())
    return [*OPTIONS, "--out-dir", "out"]


def outcome():
    """What a run leaves that must not depend on kills: its contents, and its best checkpoint."""
    best = checkpoint.find("out/best", report=pytest.fail)
    return contents("out", STEPS), best.step, best.model.read_bytes(), files("out/best")


def files(out):
    """What belongs to checkpoints in a folder."""
    return sorted(name for name in os.listdir(out) if re.match(r"\.?(model|state|checkpoints)", name))


@pytest.fixture(scope="module", autouse=True)
def fork_server():
    context.set_forkserver_preload(["tests.warm_kernels", "tests.training.test_kills"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # Python 3.11's server has no other way to these modules
        multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="module")
def undisturbed(fork_server, tmp_path_factory):
    """A folder with the files that the runs need and "out" of a run in peace; its contents; the seconds it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        GPT2(GPT2Config(maxT=16, V=50, L=2, NH=2, C=12), seed=1).save("tiny.bin")
        rng = np.random.default_rng(0)
        write_tokens("train-1.bin", rng.integers(0, 50, 90))
        write_tokens("train-2.bin", rng.integers(0, 50, 60))
        write_tokens("val.bin", np.arange(100) % 50)
        process, _ = start("--resume", "nowhere")  # else the time would be the server's, too
        assert ended(process) == 1
        pathlib.Path("log").unlink()
        before = time.perf_counter()
        process, _ = start(*OPTIONS)
        assert ended(process) == 0, log()
        return folder, outcome(), time.perf_counter() - before


@pytest.mark.parametrize("number", range(RUNS))
def test_a_killed_run_ends_as_if_nothing_had_been(undisturbed, number, tmp_path, monkeypatch):
    folder, expected, seconds = undisturbed
    for name in ("tiny.bin", "train-1.bin", "train-2.bin", "val.bin"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "log").touch()
    monkeypatch.chdir(tmp_path)
    rng = random.Random(number)
    kills = in_saves = 0
    while kills < KILLS:
        in_save = kills < KILLS_IN_SAVES
        process, saving = start(
            *begin_or_go_on(),
            *("--threads", str(rng.randint(1, 2))),
            last_call=rng.randint(1, LATEST_CALL) if in_save else 0,
        )
        status = ended(process) if in_save else ended(process, rng.uniform(0, seconds))
        if status == 0:  # it was done before the moment had come
            assert outcome() == expected
            shutil.rmtree("out")
            pathlib.Path("log").write_text("")
            seconds *= 0.7
            continue
        assert status == -signal.SIGKILL, log()
        assert saving.value or not in_save
        kills += 1
        in_saves += saving.value
    assert in_saves >= KILLS_IN_SAVES
    process, _ = start(*begin_or_go_on())
    assert ended(process) == 0, log()
    assert outcome() == expected
    assert files("out") == files(folder / "out")  # nothing of what was killed is left
    assert set(samples(log())) == set(samples((folder / "log").read_text()))
