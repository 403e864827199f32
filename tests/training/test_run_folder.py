"""A run's folder: its lock, between processes, and how an earlier run in it is set aside."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from gpt2.errors import UserError
from gpt2.training.run_folder import LOCK, is_lost, locked, locked_folder, require_lock, set_aside_earlier_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Without the package's model, whose import takes most of a test.
OWNER = f"""
import os, subprocess, sys, types
sys.modules["gpt2"] = types.ModuleType("gpt2")
sys.modules["gpt2"].__path__ = [{str(ROOT / "gpt2")!r}]
from gpt2.errors import UserError
from gpt2.training.run_folder import locked
try:
    with locked(sys.argv[1]):
        if sys.argv[2] == "with child":
            child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            print(child.pid, flush=True)
        print("locked", flush=True)
        sys.stdin.readline()
        if sys.argv[2] == "dies":
            1 / 0
except UserError as error:
    print(error, flush=True)
"""


@pytest.fixture
def owner():
    """Starts processes that lock a folder until a line is sent to them."""
    processes = []

    def start(folder, mode=""):
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_second_process_is_refused_until_the_first_ends(tmp_path, owner):
    first = owner(tmp_path)
    assert first.stdout.readline() == "locked\n"
    second = owner(tmp_path)
    refusal = (
        f"{tmp_path}: process {first.pid} is at work there; wait until it ends, stop it, or choose another folder\n"
    )
    assert second.communicate(timeout=20) == (refusal, "")
    with pytest.raises(UserError, match=f"process {first.pid} is at work"), locked(tmp_path):
        pytest.fail("two owners")
    assert os.listdir(tmp_path) == [".lock"] and (tmp_path / ".lock").read_text() == f"{first.pid}\n"
    first.communicate("\n", timeout=20)
    third = owner(tmp_path)
    assert third.stdout.readline() == "locked\n"
    assert (tmp_path / ".lock").read_text() == f"{third.pid}\n"


@pytest.mark.parametrize("mode", ["", "with child"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_dies_with_its_owner(tmp_path, owner, number, mode):
    first = owner(tmp_path, mode)
    child = int(first.stdout.readline()) if mode else None
    try:
        assert first.stdout.readline() == "locked\n"
        first.send_signal(number)
        assert first.wait(timeout=20) == -number
        if child:
            os.kill(child, 0)  # it is alive
        with locked(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def test_an_error_ends_it(tmp_path, owner):
    first = owner(tmp_path, "dies")
    assert first.stdout.readline() == "locked\n"
    assert "ZeroDivisionError" in first.communicate("\n", timeout=20)[1]
    with locked(tmp_path):
        pass


def test_the_same_process_twice(tmp_path):
    with locked(tmp_path):
        with pytest.raises(UserError, match=rf"^{tmp_path}: process {os.getpid()} is at work there"), locked(tmp_path):
            pytest.fail("two owners")
        with pytest.raises(UserError), locked(tmp_path):  # the refused one has not ended it
            pytest.fail("two owners")
        (tmp_path / "other").mkdir()
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path):
        pass


def test_a_folder_that_is_renamed_stays_locked(tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        (tmp_path / "out").rename(tmp_path / "aside")
        with pytest.raises(UserError, match="aside: process"), locked(tmp_path / "aside"):
            pytest.fail("two owners")


@pytest.mark.parametrize("content", ["", "no number", "123456789\n"])
def test_what_is_in_a_file_that_nobody_holds_does_not_matter(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("content", ["", "no number", "\N{SUPERSCRIPT TWO}"])
def test_an_owner_that_has_not_said_who_it_is(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with open(tmp_path / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is at work there"), locked(tmp_path):
            pytest.fail("two owners")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys, number):
    def refuse(*args):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        assert capsys.readouterr().err == f"{tmp_path}: its file system has no locks: let no other run write there\n"
    assert capsys.readouterr() == ("", "")
    assert os.listdir(tmp_path) == [LOCK]  # another process may be there, too


def test_a_folder_that_cannot_be_locked(tmp_path):
    with pytest.raises(UserError, match=r"missing/.lock: No such file or directory"), locked(tmp_path / "missing"):
        pytest.fail("locked")


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "folder", "pipe", "device"])
def test_what_is_no_lock_file_is_refused_and_not_touched(tmp_path, kind):
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    if kind != "dangling link":
        target.write_text("precious")
    {
        "link": lambda lock: lock.symlink_to(target),
        "dangling link": lambda lock: lock.symlink_to(target),
        "hard link": lambda lock: lock.hardlink_to(target),
        "folder": lambda lock: lock.mkdir(),
        "pipe": os.mkfifo,
        "device": lambda lock: lock.symlink_to("/dev/null"),
    }[kind](out / LOCK)
    before = os.lstat(out / LOCK)
    with pytest.raises(UserError, match=rf"^{out}/\.lock: not a lock file: .*; remove it or"), locked(out):
        pytest.fail("locked")
    assert os.lstat(out / LOCK).st_ino == before.st_ino
    assert kind == "dangling link" or target.read_text() == "precious"
    assert kind != "dangling link" or not target.exists()


def test_a_lock_removed_by_its_owner_while_another_opens_it_is_not_taken_for_one(tmp_path, monkeypatch):
    flock = fcntl.flock
    removed = []

    def remove_first(descriptor, operation):
        if not removed:
            removed.append(os.unlink(tmp_path / LOCK))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with locked(tmp_path):
        assert removed and (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
        with pytest.raises(UserError, match="is at work there"), locked(tmp_path):
            pytest.fail("two owners")
    assert os.listdir(tmp_path) == []


def test_a_run_that_writes_nothing_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    for path in ("there", "new", "a/b/c"):
        with pytest.raises(ZeroDivisionError), contextlib.ExitStack() as stack:
            assert (locked_folder(tmp_path / path, stack) / LOCK).exists()
            1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == ["there"] and os.listdir(tmp_path / "there") == []
    with contextlib.ExitStack() as stack:
        (locked_folder(tmp_path / "a" / "b", stack) / "file").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["file"]


@pytest.mark.parametrize(
    "name", ["model_00000001.bin", "state_00000001.bin", "checkpoints.json", "metrics.jsonl", "metrics_before.jsonl"]
)
def test_a_folder_of_a_files_name_is_refused(tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"out/{name}: a folder, but .*; rename it"), contextlib.ExitStack() as stack:
        locked_folder(tmp_path / "out", stack)
    assert os.listdir(tmp_path / "out") == [name]


def remove_lock(folder):
    (folder / LOCK).unlink()


def remove_folder(folder):
    shutil.rmtree(folder)


def move_away(folder):
    folder.rename(folder.with_name("elsewhere"))


def move_and_replace(folder):
    move_away(folder)
    folder.mkdir()
    (folder / LOCK).write_text("another\n")


@pytest.mark.parametrize("change", [remove_lock, remove_folder, move_away, move_and_replace])
def test_a_lock_that_is_gone_is_noticed_and_another_runs_is_not_removed(tmp_path, change):
    out = tmp_path / "out"
    with contextlib.ExitStack() as stack:
        folder = locked_folder(out, stack)
        (folder / "file").touch()
        require_lock(folder)
        assert not is_lost(folder)
        change(out)
        for _ in range(2):
            with pytest.raises(
                UserError, match=rf"^{out}: this run's lock on it is gone: .* the last checkpoint are lost"
            ):
                require_lock(folder)
            assert is_lost(folder)
    left = {remove_lock: ["file"], move_and_replace: [LOCK]}
    assert (os.listdir(out) if out.exists() else None) == left.get(change)
    require_lock(out)  # this process holds none there, so there is nothing to compare


def test_what_cannot_be_compared_is_not_called_lost(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    with locked(tmp_path):
        monkeypatch.setattr(os, "lstat", fail)
        with pytest.raises(UserError, match=r"\.lock: Input/output error"):
            require_lock(tmp_path)
        monkeypatch.undo()
        require_lock(tmp_path)


def set_aside(path):
    """Locks a folder as a run does and sets aside what is in it; returns the names beside it while it is locked."""
    with contextlib.ExitStack() as stack:
        folder = locked_folder(path, stack)
        set_aside_earlier_run(folder, stack)
        with pytest.raises(UserError, match="is at work there"), locked(folder):
            pytest.fail("the new folder is not locked")
        return sorted(os.listdir(folder.resolve().parent))


@pytest.mark.parametrize("name", ["model_00000004.bin", "state_00000004.bin"])
def test_an_earlier_run_is_renamed_with_all_its_files(tmp_path, capsys, name):
    out = tmp_path / "out"
    for number, beside in enumerate((["out", "out-1"], ["out", "out-1", "out-2"]), start=1):
        out.mkdir(exist_ok=True)
        (out / name).write_text(f"run {number}")
        (out / "metrics.jsonl").touch()
        assert set_aside(out) == beside
        assert os.listdir(out) == []
        assert (tmp_path / f"out-{number}" / name).read_text() == f"run {number}"
        assert sorted(os.listdir(tmp_path / f"out-{number}")) == ["metrics.jsonl", name]
        assert capsys.readouterr().out == f"{out} held an earlier run, which is now in out-{number}\n"


def test_an_earlier_run_that_was_set_aside_is_free(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model_00000004.bin").touch()
    with contextlib.ExitStack() as stack:
        set_aside_earlier_run(locked_folder(tmp_path / "out", stack), stack)
        with locked(tmp_path / "out-1"):
            require_lock(tmp_path / "out")
            require_lock(tmp_path / "out-1")


def test_a_folder_that_cannot_be_looked_for_is_an_error_in_a_line(tmp_path):
    with pytest.raises(UserError, match=r"^.*/x+: File name too long$"), contextlib.ExitStack() as stack:
        locked_folder(tmp_path / ("x" * 300), stack)


def test_a_folder_without_checkpoints_stays_where_it_is(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    for name in ("metrics.jsonl", "model_4.bin", "notes.txt"):
        (tmp_path / "out" / name).touch()
    assert set_aside(tmp_path / "out") == ["out"]
    assert len(os.listdir(tmp_path / "out")) == 3 and capsys.readouterr().out == ""


def test_a_name_that_is_taken_is_passed_over_even_by_a_broken_link(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model_00000004.bin").touch()
    (tmp_path / "out-1").symlink_to("nowhere")
    (tmp_path / "out-2").touch()
    assert set_aside(tmp_path / "out") == ["out", "out-1", "out-2", "out-3"]
    assert (tmp_path / "out-3" / "model_00000004.bin").exists()


def test_a_folder_behind_a_link_is_renamed_where_it_is(tmp_path):
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "disk" / "real" / "model_00000004.bin").touch()
    (tmp_path / "link").symlink_to("disk/real")
    assert set_aside(tmp_path / "link") == ["real", "real-1"]
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "link") == []


def test_an_earlier_run_that_cannot_be_renamed_stops_the_new_one(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model_00000004.bin").touch()
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(UserError, match=r"holds an earlier run and cannot be renamed \(it is the working folder\); .*"):
        set_aside(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out"] and (tmp_path / "out" / "model_00000004.bin").exists()


@pytest.mark.parametrize("where", ["out/train.bin", "out/sub/train.bin", "link/train.bin", "train.bin"])
def test_an_earlier_run_is_not_renamed_with_files_that_the_new_one_needs(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("out/sub").mkdir(parents=True)
    pathlib.Path("out/model_00000004.bin").touch()
    pathlib.Path("link").symlink_to("out")
    if where == "train.bin":
        pathlib.Path("out/real.bin").touch()
        pathlib.Path(where).symlink_to("out/real.bin")
    else:
        pathlib.Path(where).touch()
    with pytest.raises(UserError, match=rf"^out: holds an earlier run and cannot be renamed \({where} is in it\); "):
        set_aside_earlier_run(pathlib.Path("out"), contextlib.ExitStack(), ["elsewhere.bin", where])
    assert pathlib.Path(where).exists() and pathlib.Path("out/model_00000004.bin").exists()


def test_the_new_folder_is_no_more_open_to_others_than_the_earlier_one(tmp_path):
    (tmp_path / "out").mkdir(mode=0o700)
    (tmp_path / "out" / "model_00000004.bin").touch()
    assert set_aside(tmp_path / "out") == ["out", "out-1"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


def test_a_working_folder_that_was_removed_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model_00000004.bin").touch()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        assert set_aside(tmp_path / "out") == ["out", "out-1"]
    finally:
        os.chdir(tmp_path)
