"""Atomic writes on failing disks, hashing, headers, sizes, and where the data folder is."""

import errno
import hashlib
import io
import os
import pathlib
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
    with pytest.raises(UserError, match=r"No such file|Is a directory") as caught:
        files.open_to_read(path)
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
