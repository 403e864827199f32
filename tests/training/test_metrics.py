import errno
import json
import math
import os
import signal
import subprocess
import sys
import tracemalloc

import matplotlib.axes
import numpy as np
import pytest

from gpt2.errors import UserError
from gpt2.formats import files
from gpt2.training.metrics import LINE_LIMIT, Metrics


def read(folder):
    """The records in a folder's file, each line of which must be strict JSON."""
    data = (folder / "metrics.jsonl").read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in data.splitlines()]


def steps(folder):
    return [record["step"] for record in read(folder)]


def put(folder, *lines):
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))


def line(step, **more):
    return json.dumps({"step": step} | more).encode() + b"\n"


def test_a_line_for_each_record(tmp_path):
    put(tmp_path, line(7))
    metrics = Metrics.start(tmp_path)
    assert read(tmp_path) == []  # a new run starts a new file
    records = [{"step": 0, "val_loss": 11.0}, {"step": 1, "train_loss": 10.5, "lr": 3e-4}]
    for count, record in enumerate(records, start=1):
        metrics.write(record)
        assert read(tmp_path) == records[:count]  # nothing waits in a buffer
    assert metrics.path == tmp_path / "metrics.jsonl"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_what_is_not_finite_is_null(tmp_path, value):
    record = {"step": 1, "train_loss": value, "grad_norm": 2.0}
    Metrics.start(tmp_path).write(record)
    assert read(tmp_path) == [{"step": 1, "train_loss": None, "grad_norm": 2.0}]
    assert record["train_loss"] is value


def test_records_are_not_kept_in_memory(tmp_path):
    metrics = Metrics.start(tmp_path)
    metrics.write({"step": 0})
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for step in range(1, 2001):
            metrics.write({"step": step, "train_loss": step / 7, "lr": step / 9})
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(read(tmp_path)) == 2001
    assert grown < 20_000  # 2,000 records would take 500,000 bytes and more


def test_looking_at_a_file_does_not_empty_it(tmp_path):
    put(tmp_path, line(1, train_loss=2.0))
    for folder in (tmp_path, str(tmp_path)):
        metrics = Metrics(folder)
        metrics.draw()
        assert metrics.losses("train_loss")[1].tolist() == [2.0]
        assert steps(tmp_path) == [1] and metrics.picture.exists()


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path, capsys):
    with open(tmp_path / "metrics.jsonl", "wb") as file:
        file.write(line(1, train_loss=1.0))
        file.seek(10**8, os.SEEK_CUR)
        file.write(b"\n" + line(2, train_loss=2.0))
        file.seek(10**8, os.SEEK_CUR)
        file.write(b"0")
    tracemalloc.start()
    try:
        metrics = Metrics.resume(tmp_path, tmp_path, 5)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
    assert steps(tmp_path) == [1, 2] and metrics.losses("train_loss")[1].tolist() == [1.0, 2.0]
    assert capsys.readouterr().out == f"{tmp_path / 'metrics.jsonl'}: 1 damaged line skipped\n"


def test_a_record_of_any_length_is_read_back_or_refused(tmp_path):
    room = LINE_LIMIT - len(line(1, x=""))
    metrics = Metrics.start(tmp_path)
    metrics.write({"step": 1, "x": room * "x"})
    with pytest.raises(UserError, match=rf"metrics\.jsonl: the record of step 2 takes {LINE_LIMIT + 1:,} bytes"):
        metrics.write({"step": 2, "x": (room + 1) * "x"})
    metrics.write({"step": 3})
    Metrics.resume(tmp_path, tmp_path, 5)
    assert steps(tmp_path) == [1, 3]


def test_a_link_in_its_place_is_replaced_and_never_written_through(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "metrics.jsonl").symlink_to(target)
    metrics = Metrics.start(tmp_path)
    metrics.write({"step": 0})
    assert steps(tmp_path) == [0] and not metrics.path.is_symlink()
    metrics.path.unlink()
    metrics.path.symlink_to(target)
    with pytest.raises(UserError, match=r"metrics\.jsonl: Too many levels of symbolic links"):
        metrics.write({"step": 1})
    assert target.read_text() == "precious"


def test_a_pipe_in_its_place_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    metrics = Metrics(tmp_path)
    with pytest.raises(UserError, match=r"metrics\.jsonl: No such device"):  # nobody reads it
        metrics.write({"step": 1})
    other_end = os.open(metrics.path, os.O_RDWR)  # or the test would wait if the function did
    for call in (lambda: Metrics.resume(tmp_path, tmp_path, 5), metrics.draw):
        with pytest.raises(UserError, match=r"metrics\.jsonl: not a regular file"):
            call()
    os.close(other_end)


def test_resumed_file_goes_on_after_the_step(tmp_path, capsys):
    metrics = Metrics.start(tmp_path)
    for step in range(8):
        metrics.write({"step": step, "run": 1})
    metrics = Metrics.resume(tmp_path, tmp_path, 5)
    for step in range(6, 10):
        metrics.write({"step": step, "run": 2})
    assert read(tmp_path) == [{"step": step, "run": 1 if step < 6 else 2} for step in range(10)]
    assert capsys.readouterr().out == ""


def test_resumed_into_another_folder_leaves_the_first_alone(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    put(old, line(0), line(1), line(2), b'{"st')
    put(new, line(99))
    before = (old / "metrics.jsonl").read_bytes()
    metrics = Metrics.resume(old, new, 1)
    metrics.write({"step": 2, "lr": 0.5})
    assert read(new) == [{"step": 0}, {"step": 1}, {"step": 2, "lr": 0.5}]
    assert (old / "metrics.jsonl").read_bytes() == before
    assert sorted(os.listdir(new)) == ["metrics.jsonl"]


def test_nothing_to_resume_from(tmp_path):
    Metrics.resume(tmp_path, tmp_path, 5).write({"step": 6})
    assert steps(tmp_path) == [6]
    put(tmp_path)
    Metrics.resume(tmp_path, tmp_path, 5).write({"step": 6})
    assert steps(tmp_path) == [6]


def test_wherever_the_last_line_is_torn(tmp_path, capsys):
    last = line(2, train_loss=3.25)
    for length in range(len(last)):
        put(tmp_path, line(0), line(1), last[:length])
        Metrics.resume(tmp_path, tmp_path, 2).write({"step": 3})
        # Only the line's end is missing: then its record is whole.
        assert steps(tmp_path) == ([0, 1, 2, 3] if length == len(last) - 1 else [0, 1, 3])
    assert capsys.readouterr().out == ""


DAMAGED = {
    "half a record": b'{"step": 5, "train_l\n',
    "two in one line": b'{"step": 5}{"step": 6}\n',
    "not an object": b"[5]\n",
    "a number": b"5\n",
    "empty": b"\n",
    "no step": b'{"train_loss": 5.0}\n',
    "negative step": b'{"step": -1}\n',
    "step not whole": b'{"step": 5.0}\n',
    "step is true": b'{"step": true}\n',
    "step is text": b'{"step": "5"}\n',
    "step too large for a number": b'{"step": 1' + 30 * b"0" + b"}\n",
    "more digits than Python reads": b'{"step": 1' + 5000 * b"0" + b"}\n",
    "NaN": b'{"step": 5, "train_loss": NaN}\n',
    "infinity": b'{"step": 5, "train_loss": -Infinity}\n',
    "invalid UTF-8": b'{"step": 5, "x": "\xff"}\n',
    "UTF-16": '{"step": 5}\n'.encode("utf-16-be"),
    "NULs": 40 * b"\0" + b"\n",
    "NULs before a record": b'\0\0{"step": 5}\n',
    "nested deeply": 100_000 * b"[" + b"\n",
    "a nested value": b'{"step": 5, "x": ' + 100_000 * b'{"a":' + b"\n",
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_lines_are_skipped_and_counted(tmp_path, capsys, damaged):
    put(tmp_path, line(0), damaged, line(1), damaged, line(2))
    Metrics.resume(tmp_path, tmp_path, 10**6)
    assert steps(tmp_path) == [0, 1, 2]
    assert capsys.readouterr().out == f"{tmp_path / 'metrics.jsonl'}: 2 damaged lines skipped\n"
    put(tmp_path, damaged, line(0), b"\0\0\0")
    Metrics.resume(tmp_path, tmp_path, 10**6)
    assert steps(tmp_path) == [0]
    assert capsys.readouterr().out == f"{tmp_path / 'metrics.jsonl'}: 1 damaged line skipped\n"


def test_of_a_step_the_last_record_stays(tmp_path):
    first = [line(step, run=1) for step in range(6)]
    second = [line(step, run=2) for step in range(3, 5)]
    put(tmp_path, *first, *second, line(1, run=3), line(7, run=3), line(6, run=3))
    Metrics.resume(tmp_path, tmp_path, 6)
    assert [(record["step"], record["run"]) for record in read(tmp_path)] == [
        *[(0, 1), (1, 3), (2, 1), (3, 2), (4, 2), (5, 1), (6, 3)]
    ]


def test_lines_are_kept_as_they_are(tmp_path):
    put(tmp_path, b'{"lr":1e-4,  "step":0, "note":"\xc3\xa9\xe2\x80\xa8"}\r\n', line(1))
    Metrics.resume(tmp_path, tmp_path, 9)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        b'{"lr":1e-4,  "step":0, "note":"\xc3\xa9\xe2\x80\xa8"}\n' + line(1)
    )


def test_any_bytes_become_a_file_of_one_record_a_step(tmp_path, capsys):
    rng = np.random.default_rng(0)
    valid = b"".join(line(step, train_loss=step / 3) for step in range(12))
    for _ in range(300):
        data = bytearray(valid)
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(len(data)))
            match rng.integers(4):
                case 0:
                    data[at] = rng.integers(256)
                case 1:
                    del data[at : at + int(rng.integers(1, 60))]
                case 2:
                    data[at:at] = rng.bytes(int(rng.integers(1, 20)))
                case 3:
                    data[at:at] = data[: int(rng.integers(1, len(data)))]
        put(tmp_path, data)
        metrics = Metrics.resume(tmp_path, tmp_path, 10)
        metrics.write({"step": 11})
        written = steps(tmp_path)
        assert written == sorted(set(written)) and written[-1] == 11
        assert metrics.losses("train_loss")[0].size < 12
        assert capsys.readouterr().out.count("\n") <= 1


SCRIPT = """
import pathlib, sys
from gpt2.training.metrics import LINE_LIMIT, Metrics
folder, step = pathlib.Path(sys.argv[1]), int(sys.argv[2])
metrics = Metrics.resume(folder, folder, step) if step else Metrics.start(folder)
while True:
    step += 1
    metrics.write({"step": step, "train_loss": 1 / step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_runs_leave_one_record_a_step(tmp_path):
    saved = 0
    for _ in range(3):
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path), str(saved)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as run:
            said = [int(run.stdout.readline()) for _ in range(30)]
            run.send_signal(signal.SIGKILL)
        assert said == list(range(saved + 1, saved + 31))
        assert steps(tmp_path)[: said[-1]] == list(range(1, said[-1] + 1))  # what was said to be written is there
        saved = said[-1] - 10  # the next run goes on from an earlier checkpoint
    Metrics.resume(tmp_path, tmp_path, saved)
    assert read(tmp_path) == [{"step": step, "train_loss": 1 / step} for step in range(1, saved + 1)]


class PartialFile:
    """Takes a few bytes of each write, then has no more room."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        count = min(len(data), 8, self.room)
        if count == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= count
        return self.file.write(data[:count])


@pytest.mark.parametrize("room", [0, 20])
def test_full_disk_tears_at_most_the_last_line(tmp_path, monkeypatch, room):
    metrics = Metrics.start(tmp_path)
    metrics.write({"step": 0})
    monkeypatch.setattr("builtins.open", lambda *args, real=open, **more: PartialFile(real(*args, **more), room))
    with pytest.raises(UserError, match=r"metrics\.jsonl: the disk is full"):
        metrics.write({"step": 1, "train_loss": 1.25})
    monkeypatch.undo()
    assert len(metrics.path.read_bytes()) == len(line(0)) + room
    Metrics.resume(tmp_path, tmp_path, 1)
    assert steps(tmp_path) == [0]


def test_partial_writes_are_completed(tmp_path, monkeypatch):
    metrics = Metrics.start(tmp_path)
    monkeypatch.setattr("builtins.open", lambda *args, real=open, **more: PartialFile(real(*args, **more), 1000))
    metrics.write({"step": 1, "train_loss": 1.25})
    monkeypatch.undo()
    assert read(tmp_path) == [{"step": 1, "train_loss": 1.25}]


def test_failing_resumption_leaves_the_old_file(tmp_path, monkeypatch):
    put(tmp_path, line(0), line(1), b"{")
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="Input/output error"):
        Metrics.resume(tmp_path, tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_sync_reaches_the_disk_or_says_why_not(tmp_path, monkeypatch):
    metrics = Metrics.start(tmp_path)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    metrics.sync()
    assert synced == [metrics.path.stat().st_ino]

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files, "sync", fail)
    with pytest.raises(UserError, match=r"metrics\.jsonl: Input/output error"):
        metrics.sync()
    monkeypatch.undo()
    metrics.path.unlink()
    metrics.sync()  # a file that was removed must not cost a checkpoint


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl: No such file"):
        Metrics.start(tmp_path / "missing")


def test_picture_shows_what_the_file_holds(tmp_path, monkeypatch):
    drawn = {}
    plot = matplotlib.axes.Axes.plot

    def record(self, x, y, *style, label):
        drawn[label] = x.tolist(), y.tolist()
        return plot(self, x, y, *style, label=label)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", record)
    Metrics.start(tmp_path).write({"step": 0, "val_loss": 11.0})
    metrics = Metrics.resume(tmp_path, tmp_path, 0)
    for step, loss in ((1, 10.0), (2, math.nan), (3, 9)):
        metrics.write({"step": step, "train_loss": loss})
    metrics.write({"step": 4, "train_loss": 8.0, "val_loss": math.inf})
    for damaged in DAMAGED.values():
        with open(metrics.path, "ab") as file:
            file.write(damaged)
    with open(metrics.path, "ab") as file:
        file.write(b'{"step": 5, "train_loss": 1e999}\n{"step": 6, "train_loss": "x"}\n{"step": 7, "train_')
    metrics.draw()
    assert metrics.picture.read_bytes().startswith(b"\x89PNG")
    assert drawn.keys() == {"training batch", "validation"}
    nan = pytest.approx(math.nan, nan_ok=True)
    assert drawn["training batch"] == ([1, 2, 3, 4, 5, 6], [10, nan, 9, 8, nan, nan])
    assert drawn["validation"] == ([0, 4], [11, nan])


def test_picture_of_nothing(tmp_path):
    metrics = Metrics.start(tmp_path)
    metrics.draw()
    assert metrics.picture.read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_the_run_before_at_negative_steps(tmp_path, monkeypatch):
    drawn, borders = {}, []
    axes = matplotlib.axes.Axes
    monkeypatch.setattr(axes, "plot", lambda self, x, y, *style, label: drawn.update({label: (list(x), list(y))}))
    monkeypatch.setattr(axes, "axvline", lambda self, x, **style: borders.append(x))
    before = [line(0, val_loss=6.0), line(1, train_loss=5.0), line(2, train_loss=4.0, val_loss=4.5), line(3)]
    Metrics.start(tmp_path, before=before).write({"step": 0, "val_loss": 4.0})
    (tmp_path / "moved").mkdir()
    metrics = Metrics.resume(tmp_path, tmp_path / "moved", 0)
    metrics.write({"step": 1, "train_loss": 3.0})
    metrics.draw()
    assert drawn == {"training batch": ([-2, -1, 1], [5, 4, 3]), "validation": ([-3, -1, 0], [6, 4.5, 4])}
    assert borders == [0] and metrics.picture.read_bytes().startswith(b"\x89PNG")
    for damaged in (b"", b"\xff\n{"):  # shows this run alone
        borders.clear()
        metrics.before.write_bytes(damaged)
        metrics.draw()
        assert drawn["validation"] == ([0], [4]) and not borders
    Metrics.resume(tmp_path / "moved", tmp_path / "moved", 0)
    Metrics.start(tmp_path)
    for folder in (tmp_path / "moved", tmp_path):
        assert not (folder / "metrics_before.jsonl").exists()  # of an earlier run that saved nothing
