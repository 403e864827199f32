"""Ranks that fail, are killed, stopped or unlike the others: the job ends soon, with one line, and can be resumed."""

import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

from gpt2.formats.llmc import write_tokens
from gpt2.training import checkpoint, loop
from tests.support.ranks import MPICH_LIBRARY, command, environment, needs_mpi, needs_openmpi, run
from tests.support.runs import SCRIPT, contents, read_until, write_small_inputs

SOON = 10  # seconds
TRAIN = (
    "--init tiny.bin --train-data train.bin --val-every 0 --sample-every 0 -b 2 -t 16 -x 8 --checkpoint-every 2".split()
)
# A run in which a rank has an accident at the beginning of a step.
WORKER = """
import errno, os, signal, sys, time
import train_gpt2
from gpt2.errors import run_command
from gpt2.formats import files
from gpt2.training import checkpoint, loop, resume

kind, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
really, fsync, calls, saving = loop.train_step, os.fsync, 0, 0

def telling(function):
    def call(*arguments):
        global saving
        saving = 1
        yield from function(*arguments)
        saving = 0
    return call

def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")

def accident(state):
    print("accident at", time.time(), file=sys.stderr, flush=True)
    if kind == "raise":
        raise RuntimeError("broken")
    if kind == "exit":
        sys.exit(3)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "nan":
        state.model.params["wte"][...] = float("nan")
    if kind == "full":
        os.fsync = full
    if kind == "late signal":
        os.kill(os.getpid(), signal.SIGUSR1)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)

def train_step(state, options):
    if state.world.rank == rank and state.step == step:
        accident(state)
    if kind == "slow":
        time.sleep(0.1)
    return really(state, options)

def die_in_save(descriptor):
    global calls
    calls += saving
    if calls == step:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.002)
    return fsync(descriptor) if descriptor else None

def main():
    from gpt2 import distributed
    world = distributed.world()
    arguments = sys.argv[4:]
    if kind == "die in save" and world.rank == rank:
        world.stream = telling(world.stream)
        wait = world._wait
        world._wait = lambda requests, ranks: (die_in_save(0), wait(requests, ranks))
        os.fsync = die_in_save
    if kind == "elsewhere":
        os.chdir(f"host-{world.rank}")
    if kind == "version" and world.rank == rank:
        resume.platform.python_version = lambda: "2.7"
    if kind == "options":
        arguments += ["--seed", str(world.rank)]
    if kind == "mistake" and world.rank == rank:
        arguments += ["--sed", "1"]
    status = train_gpt2.main(arguments)
    print("status", status, file=sys.stderr, flush=True)
    return status

loop.train_step = train_step
run_command(main, output_required=False)
"""

pytestmark = [needs_mpi, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_small_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_TEST_JOB", job := uuid.uuid4().hex)
    yield tmp_path
    assert processes_of(job) == []


def processes_of(job):
    """The command lines of other processes that have this job in their environment, once they had time to end."""
    for _ in range(30):
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if path.name != str(os.getpid()) and job.encode() in (path / "environ").read_bytes():
                    found.append((path / "cmdline").read_bytes())
            except OSError:
                continue
        if not found:
            break
        time.sleep(0.1)
    return found


def accident(kind, rank, step, *arguments, n=2, library="mpich"):
    """Runs the worker; returns (exit status, stdout, the lines of stderr that are errors of the trainer's)."""
    ended = run(n, "-c", WORKER, kind, rank, step, *TRAIN, *arguments, library=library, timeout=60)
    if at := re.search(r"accident at ([\d.]+)", ended.stderr):
        took = time.time() - float(at[1])
        assert took < SOON + ("stop" in kind) * 8, took
    return ended.returncode, ended.stdout, re.findall(r"^error: .*", ended.stderr, re.MULTILINE)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("kind", "message"),
    [("raise", "RuntimeError broken; all ranks end"), ("exit", "SystemExit 3; all ranks end"), ("kill", None)],
)
def test_a_rank_that_fails_ends_the_job(folder, kind, rank, message):
    status, _, errors = accident(kind, rank, 5)
    assert status != 0
    assert len(errors) == (message is not None)
    assert not message or re.fullmatch(rf"error: rank {rank} on \S+: {re.escape(message)}", errors[0])
    assert checkpoint.find("out").step == 4


@needs_openmpi
@pytest.mark.parametrize("kind", ["raise", "kill"])
def test_so_it_does_under_open_mpi(folder, kind):
    status, _, errors = accident(kind, 1, 5, library="openmpi")
    assert status != 0 and len(errors) == (kind == "raise") and checkpoint.find("out").step == 4


@pytest.mark.parametrize("rank", [0, 1])
def test_numbers_that_are_not_finite_end_it_with_one_line(folder, rank):
    status, _, errors = accident("nan", rank, 5)
    assert status == 1 and len(errors) == 1
    assert re.search(r"error: step 6: the loss is nan, .* is in wte \(row 0, column 0 of .*; batch: ", errors[0])
    assert checkpoint.find("out").step == 4


def test_a_full_disk_ends_it(folder):
    status, _, errors = accident("full", 0, 5)
    assert status == 1 and len(errors) == 1
    assert re.fullmatch(r"error: rank 0 on \S+: out/\S+: the disk is full.*", errors[0])
    assert checkpoint.find("out").step == 4


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_no_longer_answers_ends_it_after_the_timeout(folder, rank):
    status, _, errors = accident("stop", rank, 5, "--timeout", "2")
    assert status != 0 and len(errors) == 1
    assert re.search(
        rf"rank {1 - rank} on \S+: nothing came from rank {rank} on \S+ for [27] s \(--timeout\)", errors[0]
    )
    assert checkpoint.find("out").step == 4


def test_a_signal_to_mpirun_stops_all_after_the_same_step(folder):
    assert run(2, SCRIPT, *TRAIN, "--out-dir", "whole").returncode == 0
    for name in ("TERM", "INT", "USR1"):
        arguments = ["-c", WORKER, "slow", 0, 99, *TRAIN, "--out-dir", name]
        with subprocess.Popen(command(2, arguments), env=environment(), stdout=subprocess.PIPE, text=True) as process:
            read_until(process, r"^step 3/8")
            process.send_signal(getattr(signal, f"SIG{name}"))
            rest = process.stdout.read()
        assert process.returncode not in (0, None)
        assert f"resume with: gpt2 train --resume {name}" in rest
        assert 3 <= checkpoint.find(name).step < 8
        assert run(2, SCRIPT, "--resume", name).returncode == 0
        assert contents(name, 8)[:2] == contents("whole", 8)[:2]


def test_killed_at_any_moment_of_saving_it_can_be_resumed(folder):
    assert run(2, SCRIPT, *TRAIN, "-x", "100", "--out-dir", "whole").returncode == 0
    assert run(2, SCRIPT, *TRAIN, "-x", "2").returncode == 0
    rng, killed = random.Random(0), []
    for _ in range(20):
        # Of a save: rank 0 has the disk sync, or waits for rank 1, ten times; rank 1 sends two messages.
        rank = int(rng.random() < 0.25)
        moment = rng.randint(1, (10, 2)[rank])
        ended = run(2, "-c", WORKER, "die in save", rank, moment, "--resume", "out", "-x", "100", timeout=60)
        killed.append(ended.returncode != 0)
        checkpoint.find("out", report=str)
    assert sum(killed) >= 18
    assert run(2, SCRIPT, "--resume", "out").returncode == 0
    assert contents("out", 100)[:2] == contents("whole", 100)[:2]


def refused(kind, *arguments, n=2, rank=1):
    """The one line with which a job is refused."""
    status, printed, errors = accident(kind, rank, 99, *arguments, n=n)
    assert status == 1 and len(errors) == 1 and "\nstep " not in printed
    return errors[0]


@pytest.mark.parametrize("other", ["train.bin", "tiny.bin"])
def test_another_file_on_a_rank_is_refused(folder, other):
    rng = np.random.default_rng(9)
    for rank in (0, 1):
        host = folder / f"host-{rank}"
        host.mkdir()
        write_small_inputs(host)
    if other == "train.bin":
        write_tokens(folder / "host-1" / other, rng.integers(0, 512, 4801))
    else:
        from gpt2 import GPT2

        model = GPT2.load("tiny.bin")
        model.params["wte"][0, 0] += 1
        model.save(folder / "host-1" / other)
    what = {"train.bin": "--train-data", "tiny.bin": "the model"}[other]
    assert re.search(rf"error: {what} differs between ranks: .* on rank 0 on \S+, .* on rank 1", refused("elsewhere"))


def test_unlike_ranks_are_refused(folder):
    assert "error: the version of python differs between ranks: " in refused("version")
    assert "error: --seed differs between ranks: 0 on rank 0" in refused("options")


def test_what_does_not_go_with_the_ranks_is_refused(folder):
    assert "--grad-accum-steps 3: these micro-batches do not divide among 2 ranks" in refused(
        "", "--grad-accum-steps", "3"
    )
    assert "train.bin: 2 batches of 140 sequences, fewer than the 3 ranks" in refused("", "-b", "140", n=3)
    assert re.search(r"error: rank 0 on \S+: train.bin/out: Not a directory", refused("", "--out-dir", "train.bin/out"))
    assert "error: --batch-size 0: expected a whole number" in refused("", "-b", "0")
    assert re.search(r"error: rank 0 on \S+: nowhere: no such folder", refused("", "--resume", "nowhere"))


def alone(rank, **variables):
    """Runs one process as if a launcher had started it as one of two."""
    return subprocess.run(
        [sys.executable, SCRIPT, *TRAIN], env=environment(**variables), capture_output=True, text=True, timeout=60
    )


def test_ranks_that_do_not_find_each_other_are_refused(folder):
    for rank in (0, 1):
        ended = alone(rank, SLURM_NTASKS="2", SLURM_PROCID=str(rank))
        assert ended.returncode == 1 and ended.stdout == ""
        expected = r"error: started as one of 2 ranks, but .* finds 1: start it with mpirun .* or srun --mpi=pmi2\n"
        assert re.fullmatch("" if rank else expected, ended.stderr)
    assert not pathlib.Path("out").exists()


@needs_openmpi
def test_the_launcher_of_another_library_is_refused(folder):
    ended = subprocess.run(
        command(2, [SCRIPT, *TRAIN], "openmpi"),
        env=environment("openmpi", MPI4PY_LIBMPI=MPICH_LIBRARY),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert len(re.findall(r"^error: started as one of 2 ranks, but MPICH", ended.stderr, re.MULTILINE)) == 1


def test_without_mpi4py_the_extra_is_named(folder):
    (folder / "broken" / "mpi4py").mkdir(parents=True)
    (folder / "broken" / "mpi4py" / "__init__.py").write_text("raise ImportError('not installed')")
    for rank in (0, 1):
        path = f"{folder / 'broken'}{os.pathsep}{environment()['PYTHONPATH']}"
        ended = alone(rank, PMI_SIZE="2", PMI_RANK=str(rank), PYTHONPATH=path)
        expected = r"error: \S+: started as one of 2 ranks, but mpi4py is not installed: pip install '.\[mpi\]'\n"
        assert ended.returncode == 1 and re.fullmatch("" if rank else expected, ended.stderr)
    ended = run(2, SCRIPT, *TRAIN, PYTHONPATH=path)
    assert ended.returncode == 1 and len(re.findall("^error: .* mpi4py is not installed", ended.stderr, re.M)) == 1


def test_a_batch_script_itself_is_no_rank(folder):
    ended = alone(0, SLURM_NTASKS="4", SLURM_PROCID="0", SLURM_JOB_ID="1")
    assert ended.returncode == 0 and "step 8/8" in ended.stdout


def test_a_mistake_on_one_rank_alone_is_printed(folder):
    status, _, errors = accident("mistake", 1, 99)
    assert status == 2 and errors == ["error: --sed: no such option; did you mean --seed?"]


def test_another_state_on_a_rank_is_refused_on_resuming(folder):
    for rank in (0, 1):
        (folder / f"host-{rank}").mkdir()
        write_small_inputs(folder / f"host-{rank}")
    assert run(2, SCRIPT, *TRAIN).returncode == 0
    for rank in (0, 1):
        shutil.copytree("out", folder / f"host-{rank}" / "out")
    state = folder / "host-1" / "out" / "state_00000008.bin"
    data = bytearray(state.read_bytes())
    data[-1000:-900] = bytes(100)
    state.write_bytes(data)
    status, _, errors = accident("elsewhere", 1, 99, "--resume", "out", "-x", "9")
    assert status == 1 and len(errors) == 1
    assert re.search(r"error: rank 1 on \S+: out/state_00000008.bin: damaged", errors[0])


def test_a_signal_before_the_last_sample_is_agreed_on(folder):
    arguments = ["-c", WORKER, "late signal", 0, 7, *TRAIN, "--sample-every", "8"]
    ended = subprocess.run(command(2, arguments), env=environment(), capture_output=True, text=True, timeout=60)
    assert "--- sample ---" not in ended.stdout and ended.stdout.count("resume with:") == 1
    assert len(set(re.findall("^status (.*)$", ended.stderr, re.M))) == 1, ended.stderr


def test_without_a_launcher_no_mpi_is_loaded(folder):
    program = "import sys, train_gpt2; train_gpt2.main(sys.argv[1:]); assert not {'mpi4py'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program, *TRAIN, "-x", "1"], env=environment(), check=True, timeout=60)
    assert loop.distributed.world().size == 1
