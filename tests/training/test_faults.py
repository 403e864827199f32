"""What a disk can do to a checkpoint: refuse at every call, be cut off at every call, give back other bytes."""

import errno
import io
import itertools
import os
import random
import shutil
import tempfile

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.errors import UserError
from gpt2.formats import training_state
from gpt2.model import GPT2
from gpt2.optimizer import AdamW
from gpt2.training import checkpoint

# Small, but larger than what is gathered before it is written.
CONFIG = GPT2Config(maxT=4, V=5, L=1, NH=1, C=8)
BUFFER = 4096
MANIFEST = "checkpoints.json"
FLIPS = 200


def save(folder, step, run=0, keep=2):
    """Saves a checkpoint of which every number depends on run and step."""
    model = GPT2(CONFIG, seed=step)
    optimizer = AdamW(model)
    model.params_flat += run
    optimizer.m.fill(step + run)
    optimizer.v.fill(step)
    optimizer.steps = step
    checkpoint.save(folder, model, optimizer, {"step": step}, keep)


def pair(step):
    return [f"model_{step:08d}.bin", f"state_{step:08d}.bin"]


def assert_loads(found, step):
    """Holds that a found checkpoint gives back what `save` saved at this step of run 0."""
    assert found.step == step
    model = GPT2.load(found.model)
    optimizer = AdamW(model)
    found.load_state(optimizer)
    assert np.array_equal(model.params_flat, GPT2(CONFIG, seed=step).params_flat)
    assert optimizer.steps == step and (optimizer.m == step).all() and (optimizer.v == step).all()


class Calls:
    """Stands between the package and the disk, and knows every write, fsync and rename by its number.

    before: called with that number and the call's name; an OSError that it raises is the call's.
    """

    def __init__(self, patch, before):
        self.names = []
        self.before = before
        patch.setattr(tempfile, "NamedTemporaryFile", self._named_temporary_file)
        for name in ("fsync", "replace"):
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def announce(self, name):
        self.names.append(name)
        self.before(len(self.names) - 1, name)

    def _watched(self, name, function):
        def call(*arguments):
            self.announce(name)
            return function(*arguments)

        return call

    def _named_temporary_file(self, dir, prefix, delete):
        assert not delete
        calls = self

        class Raw(io.FileIO):
            def write(self, data):
                try:
                    calls.announce("write")
                except OSError:
                    super().write(data[: len(data) // 2])
                    raise
                return super().write(data)

        descriptor, name = tempfile.mkstemp(dir=dir, prefix=prefix)
        os.close(descriptor)
        return io.BufferedWriter(Raw(name, "w"), BUFFER)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Spares hundreds of saves the wait for the disk, of which a process that lives on sees nothing."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def calls_of_a_save(folder, monkeypatch, before=lambda number, name: None):
    """Saves step 2 and returns the names of the calls that it took."""
    with monkeypatch.context() as patch:
        calls = Calls(patch, before)
        save(folder, 2)
    return calls.names


@pytest.fixture
def first(tmp_path):
    """A folder with a checkpoint of step 1."""
    folder = tmp_path / "first"
    folder.mkdir()
    save(folder, 1)
    return folder


def test_every_call_that_fails(first, tmp_path, monkeypatch):
    # Once, or from then on, as on a disk that is full: then closing the file fails, too.
    names = calls_of_a_save(shutil.copytree(first, tmp_path / "undisturbed"), monkeypatch)
    assert names.count("replace") == 3 and names.count("fsync") == 6 and names.count("write") >= 6
    cases, outcomes = 0, []
    for number, code, lasting in itertools.product(range(len(names)), (errno.ENOSPC, errno.EIO), (False, True)):
        folder = shutil.copytree(first, tmp_path / "out")

        def refuse(call, name, number=number, code=code, lasting=lasting):
            if call == number or (lasting and call > number):
                raise OSError(code, os.strerror(code))

        with pytest.raises(UserError) as caught:
            calls_of_a_save(folder, monkeypatch, refuse)
        message = str(caught.value)
        assert str(folder) in message and "\n" not in message
        assert ("disk is full" if code == errno.ENOSPC else "Input/output error") in message
        assert not [name for name in os.listdir(folder) if name.startswith(".")]

        renamed = names[:number].count("replace")
        outcomes.append(2 if renamed >= 2 else 1)
        reports = []
        assert_loads(checkpoint.find(folder, reports.append), outcomes[-1])
        assert len(reports) == (1 if renamed in (1, 2) else 0)

        save(folder, 2)
        assert sorted(os.listdir(folder)) == sorted([MANIFEST, *pair(1), *pair(2)])
        assert_loads(checkpoint.find(folder, pytest.fail), 2)
        shutil.rmtree(folder)
        cases += 1
    assert cases == 4 * len(names) >= 4 * 15
    assert {1, 2} == set(outcomes)


def test_the_process_ends_before_every_call(first, tmp_path, monkeypatch):
    # What the folder holds before each call is what a kill at that moment leaves.
    snapshots = []

    def keep(number, name):
        snapshots.append(shutil.copytree(first, tmp_path / f"snapshot{number}"))

    names = calls_of_a_save(first, monkeypatch, keep)
    leftovers = 0
    for number, folder in enumerate(snapshots):
        hidden = [name for name in os.listdir(folder) if name.startswith(".")]
        leftovers += len(hidden)
        assert_loads(checkpoint.find(folder, lambda line: None), 2 if names[:number].count("replace") >= 2 else 1)
        save(folder, 2)
        assert sorted(os.listdir(folder)) == sorted([MANIFEST, *pair(1), *pair(2)])
        assert_loads(checkpoint.find(folder, pytest.fail), 2)
    assert len(snapshots) == len(names) >= 15
    assert leftovers >= 9  # so there was something to be cleared away


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two folders with checkpoints of steps 1 and 2, of two runs."""
    folders = []
    for run in range(2):
        folders.append(tmp_path_factory.mktemp(f"run{run}"))
        for step in (1, 2):
            save(folders[-1], step, run)
    return folders


def damages(name, folder, other):
    """Yields (what, bytes) that are not the file's: the file of step 2, or the manifest, in a folder of both runs."""
    data = (folder / name).read_bytes()
    rng = random.Random(name)
    for size in {0, 1, 4, 1023, 1024, 1025, len(data) // 2, len(data) - 32, len(data) - 1}:
        if size < len(data):
            yield f"truncated to {size}", data[:size]
    for more in (b"\0", b" ", b"\n", b"x", bytes(1024), data):
        yield f"extended by {len(more)}", data + more
        yield f"preceded by {len(more)}", more + data
    for bit in rng.sample(range(8 * len(data)), FLIPS):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} flipped", bytes(flipped)
    yield "another run's", (other / name).read_bytes()
    for file in sorted(folder.iterdir()):
        if file.name != name:
            yield f"swapped with {file.name}", file.read_bytes()


def manifest_of(step, tmp_path):
    folder = tmp_path / f"only{step}"
    folder.mkdir()
    save(folder, step)
    return (folder / MANIFEST).read_bytes()


@pytest.mark.parametrize("name", [*pair(2), MANIFEST])
def test_every_damage_is_detected_and_never_loaded(runs, tmp_path, name):
    folder = shutil.copytree(runs[0], tmp_path / "out")
    cases = dict(damages(name, *runs))
    if name == MANIFEST:
        cases["an older one"] = manifest_of(1, tmp_path)
        cases["one of a later step"] = manifest_of(3, tmp_path)
    assert sum("flipped" in what for what in cases) == FLIPS
    assert sum("swapped" in what for what in cases) == 4
    assert len(cases) >= FLIPS + 15
    right = (folder / name).read_bytes()
    # The two manifests are equal but for the checksums; none of the cases may be the right file.
    assert right not in cases.values()
    for what, data in cases.items():
        (folder / name).write_bytes(data)
        reports = []
        found = checkpoint.find(folder, reports.append)
        assert found.step == (2 if name == MANIFEST else 1), what
        assert any(name in line for line in reports), what
        assert not any("\n" in line for line in reports), what
    assert_loads(found, found.step)
    (folder / name).write_bytes(right)
    assert_loads(checkpoint.find(folder, pytest.fail), 2)


@pytest.mark.parametrize("name", [*pair(2), MANIFEST])
def test_a_file_that_is_gone_is_named(runs, tmp_path, name):
    folder = shutil.copytree(runs[0], tmp_path / "out")
    (folder / name).unlink()
    reports = []
    assert_loads(checkpoint.find(folder, reports.append), 2 if name == MANIFEST else 1)
    assert any(f"{name}: missing" in line for line in reports)


def test_when_all_are_damaged_none_is_loaded(runs, tmp_path):
    folder = shutil.copytree(runs[0], tmp_path / "out")
    for step in (1, 2):
        os.truncate(folder / f"state_{step:08d}.bin", 1500)
    reports = []
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.find(folder, reports.append)
    assert ["state_00000002.bin" in reports[0], "state_00000001.bin" in reports[1]] == [True, True]


def test_a_read_that_fails_is_a_damaged_file(runs, tmp_path, monkeypatch):
    folder = shutil.copytree(runs[0], tmp_path / "out")

    class Unreadable(io.BytesIO):
        def read(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    really = training_state.open_to_read
    monkeypatch.setattr(training_state, "open_to_read", lambda p: Unreadable() if p.name == pair(2)[1] else really(p))
    reports = []
    assert_loads(checkpoint.find(folder, reports.append), 1)
    assert "state_00000002.bin: Input/output error" in reports[0]
