"""Signals to real runs of train_gpt2.py, output that cannot be shown; what they leave, and how it goes on."""

import contextlib
import os
import pathlib
import pty
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
from tests.support.runs import contents, read_until

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
def started(command, **options):
    """A process with both its outputs in one pipe, which is so small that a run waits until what it prints is read."""
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pipesize=4096,
        text=True,
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def last_step(output):
    return int(re.findall(rf"^step +(\d+)/{STEPS} ", output, re.MULTILINE)[-1])


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138), (signal.SIGXCPU, 152)],
)
def test_a_signal_saves_the_step_just_finished_and_the_command_printed_goes_on(files, folder, number, status):
    with started([*SCRIPT, *OPTIONS, "--out-dir", "a folder"]) as process:
        output = read_until(process, r"^step +5/")
        process.send_signal(number)
        output += process.communicate(timeout=60)[0]
    assert process.returncode == status and "Traceback" not in output
    step = last_step(output)
    assert 5 <= step < STEPS and checkpoint.find("a folder", report=pytest.fail).step == step
    assert pathlib.Path("a folder/loss.png").read_bytes().startswith(b"\x89PNG")
    (command,) = re.findall(r"^resume with: gpt2 train (.*)$", output, re.MULTILINE)
    arguments = shlex.split(command)
    assert arguments == ["--resume", "a folder"]
    resumed = subprocess.run([*SCRIPT, *arguments], capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert f"a folder after step {step}\n" in resumed.stdout
    assert contents("a folder", STEPS) == contents(files / "whole", STEPS)


def test_ctrl_c_to_a_pipeline_saves_although_its_reader_is_gone(files, folder):
    # Ctrl-C on a terminal goes to all processes of the pipeline.
    with started([*SCRIPT, *OPTIONS], process_group=0) as process:
        tee = subprocess.Popen(
            ["tee", "log"], stdin=process.stdout, stdout=subprocess.PIPE, text=True, process_group=process.pid
        )
        process.stdout.close()
        with tee:
            output = read_until(tee, r"^step +5/")
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) == 130
            assert "Traceback" not in output + tee.stdout.read()
    assert 5 <= checkpoint.find("out", report=pytest.fail).step < STEPS
    assert train("--resume", "out") is None
    assert contents("out", STEPS) == contents(files / "whole", STEPS)


def test_a_terminal_that_goes_away_stops_the_run_saved(files, folder):
    terminal, other_end = pty.openpty()
    command = ["setsid", "--ctty", *SCRIPT, *OPTIONS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdin=other_end, stdout=other_end, stderr=other_end) as process:
        os.close(other_end)
        output = b""
        while b"step   5/" not in output:
            output += os.read(terminal, 4096)
        os.close(terminal)  # SIGHUP; from now on, writing is an Input/output error
        try:
            assert process.wait(60) == 129
        finally:
            process.kill()
    assert 5 <= checkpoint.find("out", report=pytest.fail).step < STEPS
    assert train("--resume", "out") is None
    assert contents("out", STEPS) == contents(files / "whole", STEPS)


# Every sample is of curly quotes.
QUOTES = """
import runpy, sys, types
from gpt2.training import setup
setup.readable = lambda words: types.SimpleNamespace(problem=None, begin=49, decode=lambda tokens: chr(0x2019))
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
SHORT = ["-x", "6", "--val-every", "2", "--sample-every", "1", "--checkpoint-every", "2"]


@pytest.fixture(scope="module")
def short(files):
    """An output folder of a short run in peace."""
    with contextlib.chdir(files):
        train(*OPTIONS, *SHORT, "--sample-every", "0", "--out-dir", "short")
    return files / "short"


@pytest.mark.parametrize(
    "redirection",
    [
        "| head -n 1",
        "2>&1 | true",
        ">/dev/full",
        ">/dev/full 2>/dev/full",
        ">&-",
        "2>&-",
        ">&- 2>&-",
    ],
)
@pytest.mark.parametrize("buffering", ["", "1"])
def test_output_that_cannot_be_shown_changes_nothing(short, folder, redirection, buffering):
    shell = ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": buffering}
    command = [*shell, sys.executable, "-c", QUOTES, SCRIPT[1], *OPTIONS, *SHORT]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr and "Exception" not in ended.stderr
    assert contents("out", 6, without=["sample"]) == contents(short, 6)


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
@pytest.mark.parametrize("out", [b"caf\xe9", "世界".encode()])
def test_what_cannot_be_encoded_changes_nothing(short, folder, environment, out):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", QUOTES, SCRIPT[1], *OPTIONS, *SHORT, "--out-dir", out]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.count(b"--- sample ---\n\\u2019\n") == 6
    listing = [sys.executable, "-m", "gpt2.checkpoint", out]
    pathlib.Path(os.fsdecode(out), "state_00000004.bin").write_bytes(b"")
    listed = subprocess.run(listing, env=environment, capture_output=True, timeout=300)
    assert (listed.returncode, listed.stderr) == (0, b"") and listed.stdout.count(b"\n") == 3
    assert contents(os.fsdecode(out), 6, without=["sample"]) == contents(short, 6)


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
