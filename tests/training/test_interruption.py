"""Signals to real runs of train_gpt2.py: what they leave, and how it goes on; two runs in one folder."""

import contextlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

import train_gpt2
from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from gpt2.machine import available_threads, set_threads
from gpt2.training import checkpoint
from tests.support.runs import contents

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, str(ROOT / "train_gpt2.py")]
STEPS = 300
OPTIONS = (
    "--init tiny.bin --train-data train.bin --val-data val.bin -b 2 -t 8 -l 1e-3 --grad-accum-steps 2 --shuffle "
    f"--val-every 50 --sample-every 0 -x {STEPS} --checkpoint-every 0 --threads 1"
).split()
# From the second checkpoint on, putting it on the disk takes a minute.
SLOW_DISK = """
import os, runpy, sys, time
from gpt2.training import checkpoint

save, fsync, saved = checkpoint.save, os.fsync, []

def counted_save(*arguments):
    saved.append(None)
    return save(*arguments)

def slow_fsync(file):
    if len(saved) > 1:
        print("a slow disk", flush=True)
        time.sleep(60)
    fsync(file)

checkpoint.save, os.fsync = counted_save, slow_fsync
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files that the runs need, and "whole", the output folder of a run in peace."""
    folder = tmp_path_factory.mktemp("signals")
    with contextlib.chdir(folder):
        GPT2(GPT2Config(maxT=8, V=50, L=1, NH=2, C=12), seed=1).save("tiny.bin")
        rng = np.random.default_rng(0)
        write_tokens("train.bin", rng.integers(0, 50, 400))
        write_tokens("val.bin", rng.integers(0, 50, 100))
        train(*OPTIONS, "--out-dir", "whole")
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """A working folder with the files and no run."""
    for name in ("tiny.bin", "train.bin", "val.bin"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    set_threads(available_threads())


def train(*arguments):
    return train_gpt2.main(arguments)


@contextlib.contextmanager
def started(command):
    """A process with both its outputs in one pipe, which is so small that a run waits until what it prints is read."""
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pipesize=4096,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process, pattern):
    """Reads a process's output up to a line in which the pattern is found; returns it."""
    output = ""
    for line in process.stdout:
        output += line
        if re.search(pattern, line):
            return output
    raise AssertionError(f"no {pattern} in {output}")


def last_step(output):
    return int(re.findall(rf"^step +(\d+)/{STEPS} ", output, re.MULTILINE)[-1])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_just_finished_and_the_command_printed_goes_on(files, folder, number, status):
    with started([*SCRIPT, *OPTIONS, "--out-dir", "a folder"]) as process:
        output = read_until(process, r"^step +5/")
        process.send_signal(number)
        output += process.communicate(timeout=60)[0]
    assert process.returncode == status and "Traceback" not in output
    step = last_step(output)
    assert 5 <= step < STEPS and checkpoint.find("a folder", report=pytest.fail).step == step
    (command,) = re.findall(r"^resume with: python train_gpt2.py (.*)$", output, re.MULTILINE)
    arguments = shlex.split(command)
    assert arguments == ["--resume", "a folder"]
    resumed = subprocess.run([*SCRIPT, *arguments], capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert f"a folder after step {step}\n" in resumed.stdout
    assert contents("a folder", STEPS) == contents(files / "whole", STEPS)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_while_saving_ends_at_once_and_leaves_the_checkpoint_before(files, folder, second):
    command = [sys.executable, "-c", SLOW_DISK, SCRIPT[1], *OPTIONS, "--checkpoint-every", "10"]
    with started(command) as process:
        read_until(process, r"^step +11/")
        process.send_signal(signal.SIGINT)
        # It is noted before the second save, or during it if that is step 20's.
        output = read_until(process, "^SIGINT: finishing this step")
        if "a slow disk" not in output:
            read_until(process, "^a slow disk$")
        process.send_signal(second)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == -second and output == ""
    assert checkpoint.find("out", report=pytest.fail).step == 10
    assert train("--resume", "out") is None
    assert contents("out", STEPS) == contents(files / "whole", STEPS)


def test_a_folder_is_for_one_run_at_a_time_and_free_once_that_is_killed(files, folder):
    with started([*SCRIPT, *OPTIONS, "--checkpoint-every", "4"]) as process:
        read_until(process, r"^saved out/model_00000004.bin")
        second = subprocess.run([*SCRIPT, *OPTIONS], capture_output=True, text=True, timeout=300)
        assert second.returncode == 1
        assert re.fullmatch(rf"error: out: process {process.pid} is at work there; .*\n", second.stderr)
        with pytest.raises(UserError, match=r"^out: process .* is at work there"):
            train("--resume", "out")
        process.kill()
        process.wait()
        assert train("--resume", "out") is None
    assert contents("out", STEPS) == contents(files / "whole", STEPS)
