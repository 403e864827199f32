"""Atomic writes on failing disks, hashing, headers, sizes, and where the data folder is."""

import errno
import hashlib
import io
import os
import pathlib
import shutil
import stat
import struct
import tempfile
import threading

import numpy as np
import pytest

from gpt2.errors import UserError
from gpt2.formats import files


def test_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with files.atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_atomic_write_gives_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with files.atomic_write(tmp_path / "x.bin") as file:
        file.write(b"x")
    assert stat.S_IMODE((tmp_path / "x.bin").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), files.atomic_write(path) as file:
        file.write(b"half of the ne")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


class FailingFile(io.FileIO):
    """A file on a full disk: calls of the method `failing` raise."""

    failing = None

    def write(self, data):
        return refuse() if self.failing == "write" else super().write(data)

    def close(self):
        was_open = not self.closed
        super().close()
        if was_open and self.failing == "close":
            refuse()


def refuse(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def fail(patch, call):
    """Makes the system call `call` fail within atomic_write."""

    def named_temporary_file(dir, prefix, delete):
        return io.BufferedWriter(FailingFile(pathlib.Path(dir, f"{prefix}12345678"), "xb"))

    if call in ("write", "close"):
        patch.setattr(FailingFile, "failing", call)
        patch.setattr(tempfile, "NamedTemporaryFile", named_temporary_file)
    else:
        patch.setattr(os, call, refuse)


@pytest.mark.parametrize("size", [3, 100_000], ids=["written on close", "written at once"])
@pytest.mark.parametrize("call", ["write", "fchmod", "fsync", "close", "replace"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, call, size):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        fail(patch, call)
        with pytest.raises(UserError, match="disk is full") as caught, files.atomic_write(path) as file:
            file.write(bytes(size))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_failing_fsync_of_the_folder_is_an_error_but_the_file_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", refuse)
        with pytest.raises(UserError, match="disk is full") as caught, files.atomic_write(path) as file:
            file.write(b"new")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_failing_to_remove_the_temporary_file_does_not_hide_the_error(tmp_path, monkeypatch):
    def refuse_otherwise(*args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        fail(patch, "replace")
        patch.setattr(os, "unlink", refuse_otherwise)
        with pytest.raises(UserError, match="disk is full"), files.atomic_write(tmp_path / "x.bin") as file:
            file.write(b"new")
    (leftover,) = os.listdir(tmp_path)
    assert leftover.startswith(".x.bin.")


def test_hashed_file(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8)
    with open(tmp_path / "x.bin", "wb") as file, files.HashedFile(file) as hashed:
        assert hashed.size == 0 and hashed.digest() == hashlib.sha256(b"").digest()
        for start in range(0, data.size, 70_001):
            hashed.write(data[start : start + 70_001])
        middle = hashed.digest()
        assert middle == hashlib.sha256(data).digest()
        hashed.write(middle)
        hashed.write(np.float32([1, 2]))
        everything = data.tobytes() + middle + struct.pack("<2f", 1, 2)
        assert hashed.digest() == hashlib.sha256(everything).digest()
        assert hashed.size == len(everything)
    assert (tmp_path / "x.bin").read_bytes() == everything


def test_hashing_needs_no_thread(tmp_path, monkeypatch):
    def refuse_thread(thread):
        raise RuntimeError("can't start new thread")

    with open(tmp_path / "x.bin", "wb") as file, files.HashedFile(file) as hashed:
        monkeypatch.setattr(threading.Thread, "start", refuse_thread)
        hashed.write(b"ab")
        monkeypatch.undo()  # a thread that can be had later must not hash it again
        hashed.write(b"c")
        assert hashed.digest() == hashlib.sha256(b"abc").digest()
    assert (tmp_path / "x.bin").read_bytes() == b"abc"


def test_a_failing_hashed_file_leaves_no_thread(tmp_path):
    before = threading.active_count()
    with FailingFile(tmp_path / "x.bin", "wb") as file:
        file.failing = "write"
        with pytest.raises(OSError, match="No space"), files.HashedFile(file) as hashed:
            hashed.write(b"x")
    assert threading.active_count() == before


def test_a_missing_folder(tmp_path):
    path = tmp_path / "missing" / "x.bin"
    with pytest.raises(UserError, match="No such file") as caught, files.atomic_write(path):
        pass
    assert str(path) in str(caught.value)


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="Not a directory"), files.atomic_write(tmp_path / "file" / "x.bin"):
        pass


def test_a_folder_of_the_same_name(tmp_path):
    (tmp_path / "x.bin").mkdir()
    with pytest.raises(UserError, match="directory"), files.atomic_write(tmp_path / "x.bin") as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied"), files.atomic_write(tmp_path / "x.bin"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_headers_round_trip(tmp_path):
    path = tmp_path / "x.bin"
    with files.atomic_write(path) as file:
        files.write_header(file, [20240326, 3, -1])
    assert path.stat().st_size == files.HEADER_BYTES
    assert path.read_bytes()[:8] == b"\xc6\xd7\x34\x01\x03\x00\x00\x00"
    with files.open_to_read(path) as file:
        header = files.read_header(file, path, "a file")
    assert header.dtype == np.int32 and header.shape == (256,)
    assert header[:3].tolist() == [20240326, 3, -1] and not header[3:].any()


@pytest.mark.parametrize("size", [0, 1, files.HEADER_BYTES - 1])
def test_a_file_shorter_than_a_header(tmp_path, size):
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(size))
    with files.open_to_read(path) as file, pytest.raises(UserError, match=f"{size} bytes, but a model file starts"):
        files.read_header(file, path, "a model file")


@pytest.mark.parametrize(("expected", "word"), [(9, "too long"), (11, "truncated")])
def test_an_unexpected_size(tmp_path, expected, word):
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(10))
    with files.open_to_read(path) as file:
        files.check_size(file, path, 10, "ten")
        with pytest.raises(UserError, match=rf"{word}: 10 bytes, expected {expected} \(why\)"):
            files.check_size(file, path, expected, "why")


@pytest.mark.parametrize("name", ["missing", "."])
def test_an_unreadable_path_is_named(tmp_path, name):
    path = pathlib.Path(tmp_path, name)
    with pytest.raises(UserError, match=r"No such file|Is a directory") as caught, files.open_to_read(path):
        pass
    assert str(caught.value).startswith(str(path))


def test_atomic_folder_takes_its_name_at_the_end(tmp_path):
    path = tmp_path / "x"
    with files.atomic_folder(path) as folder:
        (folder / "a").write_bytes(b"new")
        assert not path.exists()
    assert (path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]


def test_atomic_folder_replaces_another_only_if_told_to(tmp_path):
    path = tmp_path / "x"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(UserError, match="x: Directory not empty"), files.atomic_folder(path) as folder:
        (folder / "a").touch()
    assert os.listdir(path) == ["old"]
    with files.atomic_folder(path, replace=True) as folder:
        (folder / "a").touch()
    assert os.listdir(path) == ["a"]
    assert os.listdir(tmp_path) == ["x"]


def no_exchange(*paths):
    raise OSError(errno.EINVAL, "Invalid argument")


def test_a_folder_is_replaced_in_one_step(tmp_path, monkeypatch):
    for name in "xy":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    try:
        files._exchange(tmp_path / "x", tmp_path / "y")
    except OSError as error:
        assert error.errno in files.NO_EXCHANGE
        pytest.skip("the system has no such step")
    assert os.listdir(tmp_path / "x") == ["y"] and os.listdir(tmp_path / "y") == ["x"]
    monkeypatch.setattr(os, "rename", lambda *paths: pytest.fail("a moment without the folder"))
    with files.atomic_folder(tmp_path / "x", replace=True) as folder:
        (folder / "new").touch()
    assert os.listdir(tmp_path / "x") == ["new"] and sorted(os.listdir(tmp_path)) == ["x", "y"]


def test_where_that_takes_two_steps_what_a_kill_between_them_leaves_is_found(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    (disk / "x[1]").mkdir(parents=True)
    (disk / "x[1]" / "old").touch()
    left = []
    rename = os.rename

    def snapshot(source, target):
        left.append(shutil.copytree(disk, tmp_path / f"left{len(left)}") / "x[1]")
        rename(source, target)

    monkeypatch.setattr(files, "_exchange", no_exchange)
    monkeypatch.setattr(os, "rename", snapshot)
    with files.atomic_folder(disk / "x[1]", replace=True) as folder:
        (folder / "new").touch()
    assert os.listdir(disk) == ["x[1]"] and os.listdir(disk / "x[1]") == ["new"]
    before, between = left
    assert os.listdir(before) == ["old"] and files.interrupted_replacement(before) is None
    assert not between.exists() and os.listdir(files.interrupted_replacement(between)) == ["old"]


def test_files_that_belong_together_are_never_an_old_and_a_new_one(tmp_path, monkeypatch):
    names = ["a", "b", "c"]
    paths = [tmp_path / name for name in names]
    seen = []

    def watch(name):
        function = getattr(os, name)

        def call(*arguments):
            seen.append([path.read_text() if path.exists() else None for path in paths])
            return function(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("unlink", "replace", "fsync"):
        watch(name)
    for content in ("old", "new"):
        with files.atomic_write_all(paths) as opened:
            for file in opened:
                file.write(content.encode())
    assert [path.read_text() for path in paths] == ["new"] * 3 and sorted(os.listdir(tmp_path)) == names
    assert ["old"] * 3 in seen and ["new", "new", None] in seen
    assert not [moment for moment in seen if {"old", "new"} <= set(moment)]


def test_two_writers_at_once_leave_the_files_of_one(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in "ab"]

    def write(content):
        with files.atomic_write_all(paths) as opened:
            for file in opened:
                file.write(content)

    other, replace, calls = threading.Thread(target=write, args=[b"second"]), os.replace, []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) == 2:  # between the first writer's two
            other.start()
            other.join(0.5)
        replace(*arguments)

    monkeypatch.setattr(os, "replace", call)
    write(b"first")
    other.join(30)
    assert [path.read_bytes() for path in paths] == [b"second"] * 2


def test_a_full_disk_leaves_all_of_them_as_they_were(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text("old")
    fsync, calls = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse() if calls else calls.append(fsync(descriptor)))
    with pytest.raises(UserError, match="disk is full"), files.atomic_write_all(paths) as opened:
        for file in opened:
            file.write(b"new")
    assert [path.read_text() for path in paths] == ["old", "old"] and len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
@pytest.mark.parametrize("kind", [stat.S_ISREG, stat.S_ISDIR], ids=["file", "folder"])
def test_a_file_system_without_fsync_is_no_error_but_a_failing_one_is(tmp_path, monkeypatch, kind, code):
    def fail(descriptor):
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)

    def write():
        with files.atomic_write(tmp_path / "x.bin") as file:
            file.write(b"new")
        with files.atomic_folder(tmp_path / "x") as folder:
            (folder / "a").touch()

    if code == errno.EINVAL:
        write()
        assert sorted(os.listdir(tmp_path)) == ["x", "x.bin"]
    else:
        with pytest.raises(UserError, match="Input/output error"):
            write()


def test_a_read_that_fails_names_the_file():
    with (
        pytest.raises(UserError, match=r"^/proc/self/mem: Input/output error$"),
        files.open_to_read("/proc/self/mem") as file,
    ):
        file.read(4)


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_what_is_not_a_file_is_refused_without_waiting_for_it(tmp_path, what):
    path = tmp_path / "pipe" if what == "pipe" else pathlib.Path("/dev/null")
    if what == "pipe":
        os.mkfifo(path)
        other_end = os.open(path, os.O_RDWR)  # or the test would wait if the function did
    with pytest.raises(UserError, match=f"^{path}: not a regular file; name a file"), files.open_to_read(path):
        pass
    with files.open_to_read(path, pipe=True) as file:
        if what == "pipe":
            os.write(other_end, b"text")
            os.close(other_end)
            assert file.read() == b"text"


def installed_in(folder, monkeypatch):
    """Makes gpt2.formats.files a file of a package in `folder`, and HOME a folder beside that."""
    monkeypatch.setattr(files, "__file__", str(folder / "gpt2" / "formats" / "files.py"))
    monkeypatch.setenv("HOME", str(folder.parent / "home"))
    monkeypatch.chdir(folder.parent)
    for name in ("GPT2_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


def test_the_data_folder_of_a_checkout(tmp_path, monkeypatch):
    root = installed_in(tmp_path / "checkout", monkeypatch)
    root.mkdir()
    (root / "pyproject.toml").touch()
    assert files.data_dir() == root / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert files.data_dir() == root / "data"


def test_the_data_folder_of_this_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("GPT2_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert files.data_dir() == pathlib.Path(__file__).resolve().parents[2] / "data"


def test_the_data_folder_of_an_installed_package(tmp_path, monkeypatch):
    installed_in(tmp_path / "site-packages", monkeypatch)
    assert files.data_dir() == tmp_path / "home" / ".cache" / "gpt2" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert files.data_dir() == tmp_path / "cache" / "gpt2" / "data"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert files.data_dir() == tmp_path / "home" / ".cache" / "gpt2" / "data"
    assert os.listdir(tmp_path) == []


def test_the_data_folder_of_the_environment_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_DATA_DIR", str(tmp_path / "mine"))
    assert files.data_dir() == tmp_path / "mine"
    monkeypatch.setenv("GPT2_DATA_DIR", "")
    assert files.data_dir().name == "data"


def test_without_a_home_the_data_folder_has_to_be_named(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    installed_in(tmp_path / "site-packages", monkeypatch)
    monkeypatch.setattr(pathlib.Path, "home", no_home)
    with pytest.raises(UserError, match="set GPT2_DATA_DIR"):
        files.data_dir()


def test_sha256(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1000)
    assert files.sha256(path) == hashlib.sha256(b"abc" * 1000).hexdigest()
