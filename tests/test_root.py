"""Full disks, foreign folders, read-only file systems, control groups, process 1: what only root can bring about.

Elsewhere these tests are skipped; tests/support/root.py says why.
"""

import contextlib
import hashlib
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from gpt2.data.dataset import prepare
from gpt2.errors import UserError
from gpt2.training import checkpoint
from tests.support import root
from tests.support.runs import ROOT, SCRIPT, SMALL, contents, copy_kernels, read_until, saved_steps, write_small_inputs
from tests.support.vocabulary import pin_byte_vocabulary, write_vocabulary

STEPS = 200
OPTIONS = [*SMALL, *f"-x {STEPS} --checkpoint-every 5 --sample-every 0 --threads 1".split()]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peace(tmp_path_factory):
    """A folder with the input files and "out", the output folder of a run in peace."""
    folder = tmp_path_factory.mktemp("peace")
    write_small_inputs(folder)
    train(folder).check_returncode()
    return folder


@pytest.fixture
def folder(peace, tmp_path, monkeypatch):
    """A working folder with the input files."""
    for name in ("tiny.bin", "train.bin", "val.bin"):
        shutil.copy(peace / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(folder, *arguments, prefix=(), timeout=300, **env):
    """A finished run of train_gpt2.py: with OPTIONS, unless it is resumed."""
    options = ["--threads", "1"] if "--resume" in arguments else OPTIONS
    command = [*prefix, sys.executable, SCRIPT, *options, *arguments]
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, cwd=folder, env=os.environ | env, timeout=timeout, **streams)


@contextlib.contextmanager
def started(command):
    """A process with its output in a pipe, which is killed at the end."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def refused(run, pattern):
    """Holds that a run ended with one line, as commands do on bad input."""
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.fullmatch(rf"error: {pattern}.*\n", run.stderr), run.stderr


@root.needs("a tmpfs")
def test_a_disk_that_fills_up_ends_the_run_and_leaves_the_checkpoint_before(peace, folder):
    with root.tmpfs(folder / "disk", "8m") as disk:
        with started([sys.executable, SCRIPT, *OPTIONS, "--out-dir", "disk/out"]) as process:
            output = read_until(process, "^saved disk/out/model_00000005")
            filler = root.fill(disk)
            more, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        # One line for the file that failed, and before it one for the step, if that then could not be saved.
        unsaved = r"step \d+ could not be saved: .* the disk is full; .*\n"
        assert re.fullmatch(rf"({unsaved})?error: disk/out/.*: the disk is full; .*\n", errors), errors
        saved = max(saved_steps(output + more))
        assert checkpoint.find("disk/out").step == saved
        filler.unlink()
        resumed = train(folder, "--resume", "disk/out")
        assert resumed.returncode == 0 and f"disk/out after step {saved}\n" in resumed.stdout, resumed.stderr
        assert contents("disk/out", STEPS) == contents(peace / "out", STEPS)


@root.needs("a tmpfs")
def test_a_full_data_folder_leaves_no_half_of_a_token_file(tmp_path, monkeypatch, capsys):
    pin_byte_vocabulary(monkeypatch)
    (tmp_path / "mine.txt").write_text("To be, or not to be.\n\n" * 5000)
    with root.tmpfs(tmp_path / "data", "1m") as data:
        monkeypatch.setenv("GPT2_DATA_DIR", str(data))
        write_vocabulary(data)
        filler = root.fill(data)
        with pytest.raises(UserError, match=rf"^{data}(/mine_(train|val).bin)?: the disk is full; "):
            prepare(tmp_path / "mine.txt")
        assert sorted(os.listdir(data)) == ["encoder.json", "filler", "vocab.bpe"]
        filler.unlink()
        assert [path.name for path in prepare(tmp_path / "mine.txt")] == ["mine_train.bin", "mine_val.bin"]


@root.needs("another user")
@pytest.mark.parametrize("arguments", [(), ("--resume", "out")], ids=["new", "resumed"])
def test_a_folder_of_another_user_is_named(peace, folder, arguments):
    shutil.copytree(peace / "out", "out")
    for path in [pathlib.Path("out"), *pathlib.Path("out").iterdir()]:
        os.chown(path, root.NOBODY, root.NOBODY)
    before = sorted(os.listdir("out"))
    refused(train(folder, *arguments, prefix=root.UNPRIVILEGED), r"out/\.lock: Permission denied")
    assert sorted(os.listdir("out")) == before


@root.needs("another user")
def test_a_run_that_another_user_keeps_private_is_named(peace, folder):
    shutil.copytree(peace / "out", "theirs")
    os.chmod("theirs", 0o700)
    os.chown("theirs", root.NOBODY, root.NOBODY)
    run = train(folder, "--resume", "theirs", "--out-dir", "mine", prefix=root.UNPRIVILEGED)
    refused(run, "theirs: Permission denied")


@root.needs("a read-only mount")
def test_a_run_on_a_read_only_file_system_is_resumed_elsewhere(peace, folder):
    partly = train(folder, "-x", "100", "--out-dir", "disk/out")
    assert partly.returncode == 0, partly.stderr
    before = sorted(os.listdir("disk/out"))
    with root.read_only(folder / "disk"):
        refused(train(folder, "--resume", "disk/out"), r"disk/out/\.lock: Read-only file system")
        refused(train(folder, "--out-dir", "disk/new"), "disk/new: Read-only file system")
        run = train(folder, "--resume", "disk/out", "--out-dir", "out", "--max-steps", str(STEPS))
        assert run.returncode == 0, run.stderr
        assert sorted(os.listdir("disk/out")) == before
    assert contents("out", STEPS) == contents(peace / "out", STEPS)


@root.needs("a memory control group")
def test_a_control_group_that_suffices_and_a_batch_that_does_not_fit_in_it(peace, folder):
    with root.memory_group(500 * 10**6) as prefix:
        run = train(folder, prefix=prefix)
        assert run.returncode == 0, run.stderr
        assert re.search(r"^\[memory\] .* needed \| 0\.[2-5]\d GB available$", run.stdout, re.MULTILINE), run.stdout
        run = train(folder, "-b", "4000", "-t", "64", "--out-dir", "other", prefix=prefix)
        refused(run, "not enough memory: training at ")
    assert contents("out", STEPS) == contents(peace / "out", STEPS)


@root.needs("a memory control group")
def test_a_control_group_that_is_too_small_is_found_out_before_the_kernel_kills(peace, folder):
    with root.memory_group(100 * 10**6) as prefix:
        run = train(folder, prefix=prefix)
    if run.returncode:
        refused(run, "not enough memory: ")


@root.needs("prlimit")
def test_a_limit_on_the_size_of_files(peace, folder):
    run = train(folder, prefix=root.limited(fsize=100_000))
    refused(run, r"ulimit -f: 0\.10 MB is the most .* a checkpoint's larger file takes 0\.35 MB; raise the limit")
    assert not (folder / "out").exists()


@root.needs("a PID namespace")
def test_process_1_trains_and_stops_at_the_first_signal(peace, folder):
    with started([*root.AS_PID_1, sys.executable, SCRIPT, *OPTIONS, "--max-steps", "100000"]) as process:
        read_until(process, "^step +3/")
        (trainer,) = psutil.Process(process.pid).children()
        trainer.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and errors.count("\n") == 1, errors
    assert checkpoint.find("out").step == max(saved_steps(output))
    resumed = train(folder, "--resume", "--max-steps", str(checkpoint.find("out").step + 1), prefix=root.AS_PID_1)
    assert resumed.returncode == 0, resumed.stderr


SLOW_SAVING = """
import time
from gpt2.training.signals import StopSignals

with StopSignals() as stop:
    print("ready", flush=True)
    while not stop.received:
        time.sleep(0.02)
    print("saving", flush=True)
    time.sleep(10)
"""


@root.needs("a PID namespace")
def test_process_1_ends_at_the_second_signal():
    with started([*root.AS_PID_1, sys.executable, "-c", SLOW_SAVING]) as process:
        read_until(process, "^ready$")
        (trainer,) = psutil.Process(process.pid).children()
        trainer.send_signal(signal.SIGINT)
        read_until(process, "^saving$")
        start = time.monotonic()
        trainer.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode and time.monotonic() < start + 5


def without_one_kernel(cache):
    """Copies the compiled kernels, of which one is to be compiled again."""
    for path in copy_kernels(cache).glob("encoder.*"):
        path.unlink()


@root.needs("a tmpfs")
def test_a_full_disk_under_the_kernel_cache_is_named_and_the_run_goes_on(peace, folder):
    with root.tmpfs(folder / "cache", "32m") as cache:
        without_one_kernel(cache)
        root.fill(cache)
        run = train(folder, NUMBA_CACHE_DIR=str(cache))
    assert run.returncode == 0, run.stderr
    assert str(cache) in run.stderr and "Traceback" not in run.stderr


class Ends:
    """What a foreign cache may hold: unpickled, it ends the process."""

    def __reduce__(self):
        return os._exit, (3,)


@root.needs("another user")
def test_kernels_that_another_user_could_have_written_are_not_loaded(peace, folder):
    cache = folder / "cache"
    planted = pickle.dumps(Ends())
    for path in copy_kernels(cache).iterdir():
        path.write_bytes(hashlib.sha256(planted).digest() + planted)
    for path in [cache, *cache.rglob("*")]:
        os.chown(path, root.NOBODY, root.NOBODY)
        path.chmod(0o777)
    run = train(folder, NUMBA_CACHE_DIR=str(cache))
    assert run.returncode == 0, run.stderr
    assert contents("out", STEPS) == contents(peace / "out", STEPS)
