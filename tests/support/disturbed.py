"""Runs of the small model under kills, signals and damage, which must end as the same runs in peace."""

import contextlib
import functools
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from gpt2.errors import UserError
from gpt2.formats.run import checkpoint_paths, steps
from gpt2.training import checkpoint
from tests.support import root
from tests.support.runs import SCRIPT, SMALL, contents, copy_kernels, samples, saved_steps, write_small_inputs

STEPS, KEEP = 400, 3
OPTIONS = (
    SMALL
    + (
        f"-x {STEPS} -l 1e-3 --lr-schedule cosine --warmup-steps 5 --weight-decay 0.1 --grad-clip 1 --skip-spikes 4 "
        f"--val-every 20 --val-batches 2 --sample-every 30 --sample-tokens 5 --checkpoint-every 6 --keep {KEEP}"
    ).split()
)
VARIANTS = ("--shuffle --grad-accum-steps 3", "--shuffle", "--grad-accum-steps 2")
THREADS = 3
START = 2  # seconds until a process takes steps, or a little more
LIMIT = 300  # seconds of a process, even if it compiles all kernels
DISK = "16m"  # has room for the checkpoints of a run and of some that were set aside


class Stand:
    """What all runs share: the input files, a kernel cache of their own, and what the runs in peace left."""

    def __init__(self, folder, seed):
        self.folder, self.seed = folder, seed
        self.caches = itertools.count()
        self.restore_cache()
        write_small_inputs(folder)

    def restore_cache(self):
        """Copies the compiled kernels to a new folder: an orphan may still be at work in the one before."""
        self.cache = self.folder / f"cache{next(self.caches)}"
        copy_kernels(self.cache)
        self.env = os.environ | {
            "NUMBA_CACHE_DIR": str(self.cache),
            "NUMBA_NUM_THREADS": str(THREADS),
            "OMP_WAIT_POLICY": "passive",  # more threads than cores would wait for each other in a loop
        }

    @functools.cache  # noqa: B019
    def in_peace(self, variant):
        """Returns what a variant's undisturbed run leaves, and its samples."""
        out = self.folder / f"in peace {VARIANTS.index(variant)}"
        command = [sys.executable, SCRIPT, *OPTIONS, *variant.split(), "--out-dir", str(out)]
        run = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=2 * LIMIT)
        assert run.returncode == 0, run.stderr
        return contents(out, STEPS), set(samples(run.stdout))


class Run:
    """A run that is disturbed.

    same: whether its end is that of the run in peace. faults: a line for each thing that is not as it should be.
    processes: (kind of disturbance, steps taken, whether it was resumed) of each of its processes.
    """

    def __init__(self, stand, number, kinds):
        self.stand, self.number = stand, number
        self.rng = random.Random(f"{stand.seed}, {number}")
        self.variant = self.rng.choice(VARIANTS)
        self.folder = stand.folder / f"run {number}"
        self.disk, self.out = self.folder / "disk", self.folder / "disk" / "out"
        self.sound = set()  # the steps that were said to be saved, and not damaged since
        self.faults, self.processes = [], []
        self.disk.mkdir(parents=True)
        with contextlib.nullcontext() if root.MISSING["a tmpfs"] else root.tmpfs(self.disk, DISK):
            try:
                self.disturb(kinds)
            finally:
                self.process.kill()  # it is alive only if this one is stopped
            self.same = self.is_same()
            if self.faults:
                shutil.copytree(self.disk, self.folder / "kept")
        if any(kind.startswith("kernels") for kind, *_ in self.processes):
            stand.restore_cache()
        if not self.faults:
            shutil.rmtree(self.folder)

    def disturb(self, kinds):
        weights = [KINDS[kind][1] for kind in kinds]
        for kind in self.rng.choices(kinds, weights, k=self.rng.randint(3, 8)):
            if KINDS[kind][0](self, kind):
                return  # it came to its end
        self.end(self.start("in peace"))

    def newest(self):
        """The step of the newest whole checkpoint, 0 if there is none."""
        try:
            return checkpoint.find(self.out, report=lambda line: None).step if self.out.is_dir() else 0
        except UserError:
            return 0

    def start(self, kind, **streams):
        """Starts or resumes the run. What was said to be saved must be there."""
        self.found = self.newest()
        if self.found < max(self.sound, default=0):
            self.faults.append(f"step {max(self.sound)} was saved, but {self.found} is found")
        if not self.found:
            self.sound.clear()
        self.log = self.folder / f"log{len(self.processes)}"
        self.processes.append((kind, 0, False))
        arguments = ["--resume"] if self.found else [*OPTIONS, *self.variant.split()]
        arguments += ["--out-dir", str(self.out), "--threads", str(self.rng.randint(1, THREADS))]
        with open(self.log, "ab") as log:
            streams = {"stdout": log, "stderr": log} | streams
            command, stand = [sys.executable, SCRIPT, *arguments], self.stand
            self.process = subprocess.Popen(command, cwd=stand.folder, env=stand.env, **streams)
        return self.process

    def wait(self, process):
        """Waits for a random moment: while the process starts, or after a number of steps."""
        if self.rng.random() < 0.3:
            return wait(process, self.rng.uniform(0, START))
        step = self.found + self.rng.randint(1, (STEPS - self.found) // 3 + 1)
        limit = time.monotonic() + LIMIT
        while process.poll() is None and time.monotonic() < limit and max(steps_taken(self.log), default=0) < step:
            time.sleep(self.rng.uniform(0, 0.02))

    def end(self, process, *statuses):
        """Waits for the end of a process, which must be by one of these statuses or 0; returns whether it was 0."""
        wait(process, LIMIT)
        if process.poll() is None:
            self.faults.append(f"{self.log.name}: still at work after {LIMIT} s")
            process.kill()
        status, printed, kind = process.wait(), self.log.read_text(errors="replace"), self.processes[-1][0]
        taken = steps_taken(self.log)
        self.processes[-1] = (kind, len(taken), self.found > 0)
        self.sound = set(sorted(self.sound | saved_steps(printed))[-KEEP:])
        wrong = {
            f"exit status {status}": status not in (0, *statuses),
            # Only while Python imports the modules Ctrl-C is its own.
            "a traceback": "Traceback" in printed and not ("SIGINT" in kind and "[memory]" not in printed),
            "steps not saved": status > 128 and taken and self.newest() < taken[-1],
            "samples that the run in peace has not": not set(samples(printed)) <= self.stand.in_peace(self.variant)[1],
        }
        last = printed.strip().rpartition("\n")[2]
        self.faults += [f"{self.log.name}, {kind}: {what}: {last}" for what in wrong if wrong[what]]
        return status == 0

    def is_same(self):
        """Compares the end with that of the run in peace."""
        if left := [name for name in os.listdir(self.out) if name.startswith(".") and name != ".lock"]:
            self.faults.append(f"left behind: {left}")
        try:
            same = contents(self.out, STEPS) == self.stand.in_peace(self.variant)[0]
        except (AssertionError, OSError, UserError) as error:
            self.faults.append(f"no final checkpoint: {error}")
            return False
        self.faults += [] if same else ["other bits than the run in peace"]
        return same


def steps_taken(log):
    """The steps that a log shows."""
    return [int(step) for step in re.findall(rb"^step +(\d+)/", log.read_bytes(), re.MULTILINE)]


def wait(process, seconds):
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def killed(run, kind):
    process = run.start(kind)
    run.wait(process)
    process.kill()
    return run.end(process, -signal.SIGKILL)


def killed_in_a_save(run, kind):
    process = run.start(kind)
    run.wait(process)
    while process.poll() is None:
        if run.out.is_dir() and re.search(r"\.(model|state|checkpoints)", " ".join(os.listdir(run.out))):
            time.sleep(run.rng.uniform(0, 0.003))
            break
    process.kill()
    return run.end(process, -signal.SIGKILL)


def signalled(run, kind):
    """Sends the signals that the kind names. Before the first step they may end the process as they always do."""
    numbers = [signal.Signals[name] for name in kind.split(", ")]
    process = run.start(kind)
    run.wait(process)
    for number in numbers:
        process.send_signal(number)
        wait(process, run.rng.uniform(0, 0.02))
    return run.end(process, *(status for number in numbers for status in (128 + number, -number)))


def unheard(run, kind):
    """Closes the pipe that the process prints to."""
    process = run.start(kind, stdout=subprocess.PIPE)
    with open(run.log, "ab") as log:
        log.writelines(itertools.islice(process.stdout, run.rng.randint(1, STEPS)))
    process.stdout.close()
    return run.end(process, 141)


def full_disk(run, kind):
    process = run.start(kind)
    run.wait(process)
    filler = root.fill(run.disk)
    ended = run.end(process, 1)
    filler.unlink()
    return ended


def spoil(path, how, rng):
    """Damages a file."""
    if how == "deleted":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[rng.randrange(len(data)) :]
    elif how == "flipped bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "emptied":
        data.clear()
    path.write_bytes(data)


def damaged(run, kind):
    """Damages a file of the newest checkpoint, or puts that of an earlier step in its place."""
    if not run.sound:
        return False
    newest = max(run.sound)
    path = run.rng.choice(checkpoint_paths(run.out, newest))
    if kind == "swapped":
        earlier = [step for step in steps(run.out) if step < newest]
        if not earlier:
            return False
        shutil.copy(str(path).replace(f"{newest:08d}", f"{earlier[0]:08d}"), path)
    else:
        spoil(path, kind, run.rng)
    run.sound.discard(newest)
    return killed(run, kind)


def littered(run, kind):
    """Leaves what killed processes leave: temporary files and an unfinished line of metrics; and a bad manifest."""
    if not run.out.is_dir():
        return False
    for name in (".model_00000006.bin.abcdefgh", ".state_00000400.bin.abcd1234", ".metrics.jsonl.________"):
        (run.out / name).write_bytes(run.rng.randbytes(1000))
    with open(run.out / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 399, "train_loss": 1')
    (run.out / checkpoint.MANIFEST).write_bytes(run.rng.randbytes(100))
    return killed(run, kind)


def spoilt_kernels(run, kind):
    path = run.rng.choice(sorted(path for path in run.stand.cache.rglob("*") if path.is_file()))
    spoil(path, kind.removeprefix("kernels "), run.rng)
    faults = len(run.faults)
    ended = killed(run, kind) if run.rng.random() < 0.5 else run.end(run.start(kind))
    if len(run.faults) > faults:
        run.faults[-1] += f" ({path.name})"
        run.stand.restore_cache()
    return ended


def _kinds(disturb, weight, counted, *kinds):
    return dict.fromkeys(kinds, (disturb, weight, counted))


# kind: (what does it, how often it is chosen, how the sum counts it)
KINDS = {
    **_kinds(killed, 4, "SIGKILLs", "SIGKILL"),
    **_kinds(killed_in_a_save, 4, "SIGKILLs", "SIGKILL in a save"),
    **_kinds(signalled, 1, "other signals", "SIGTERM", "SIGINT", "SIGHUP", "SIGINT, SIGINT", "SIGTERM, SIGINT"),
    **_kinds(unheard, 1, "closed pipes", "closed pipe"),
    **_kinds(damaged, 1, "damaged files", "cut", "flipped bit", "deleted", "emptied", "swapped"),
    **_kinds(littered, 1, "littered folders", "stray files"),
    **_kinds(spoilt_kernels, 0.3, "damaged kernels", *(f"kernels {how}" for how in ("cut", "flipped bit", "deleted"))),
    **_kinds(spoilt_kernels, 0.3, "damaged kernels", "kernels emptied"),
    **_kinds(full_disk, 0 if root.MISSING["a tmpfs"] else 2, "full disks", "full disk"),
}
