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
def test_failure_in_the_middle_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), files.atomic_write(path) as file:
        file.write(b"half of the ne")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


class FailingFile(io.FileIO):
    """A file on a disk that refuses every call of the name `failing`."""

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
    """Has `call` fail in what atomic_write does."""

    def named_temporary_file(dir, prefix, delete):
        return io.BufferedWriter(FailingFile(pathlib.Path(dir, f"{prefix}12345678"), "xb"))

    if call in ("write", "close"):
        patch.setattr(FailingFile, "failing", call)
        patch.setattr(tempfile, "NamedTemporaryFile", named_temporary_file)
    else:
        patch.setattr(os, call, refuse)


@pytest.mark.parametrize("size", [3, 100_000], ids=["written when it is closed", "written at once"])
@pytest.mark.parametrize("call", ["write", "fchmod", "fsync", "close", "replace"])
def test_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, call, size):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        fail(patch, call)
        with pytest.raises(UserError, match="disk is full") as caught, files.atomic_write(path) as file:
            file.write(bytes(size))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_new_name_that_cannot_be_put_on_the_disk_is_an_error_and_the_file_complete(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", refuse)
        with pytest.raises(UserError, match="disk is full") as caught, files.atomic_write(path) as file:
            file.write(b"new")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_temporary_file_that_cannot_be_removed_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
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


def test_hashed_file_that_cannot_be_written_leaves_no_thread(tmp_path):
    before = threading.active_count()
    with FailingFile(tmp_path / "x.bin", "wb") as file:
        file.failing = "write"
        with pytest.raises(OSError, match="No space"), files.HashedFile(file) as hashed:
            hashed.write(b"x")
    assert threading.active_count() == before


def test_folder_that_is_not_there(tmp_path):
    path = tmp_path / "missing" / "x.bin"
    with pytest.raises(UserError, match="No such file") as caught, files.atomic_write(path):
        pass
    assert str(path) in str(caught.value)


def test_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="Not a directory"), files.atomic_write(tmp_path / "file" / "x.bin"):
        pass


def test_folder_of_the_same_name(tmp_path):
    (tmp_path / "x.bin").mkdir()
    with pytest.raises(UserError, match="directory"), files.atomic_write(tmp_path / "x.bin") as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied"), files.atomic_write(tmp_path / "x.bin"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_header_written_is_header_read(tmp_path):
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
def test_file_shorter_than_a_header(tmp_path, size):
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(size))
    with files.open_to_read(path) as file, pytest.raises(UserError, match=f"{size} bytes, but a model file starts"):
        files.read_header(file, path, "a model file")


@pytest.mark.parametrize(("expected", "word"), [(9, "too long"), (11, "truncated")])
def test_size_that_is_not_the_expected_one(tmp_path, expected, word):
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(10))
    with files.open_to_read(path) as file:
        files.check_size(file, path, 10, "ten")
        with pytest.raises(UserError, match=rf"{word}: 10 bytes, expected {expected} \(why\)"):
            files.check_size(file, path, expected, "why")


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_cannot_be_opened_is_named(tmp_path, name):
    path = pathlib.Path(tmp_path, name)
    with pytest.raises(UserError, match=r"No such file|Is a directory") as caught:
        files.open_to_read(path)
    assert str(caught.value).startswith(str(path))


def test_sha256(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1000)
    assert files.sha256(path) == hashlib.sha256(b"abc" * 1000).hexdigest()
