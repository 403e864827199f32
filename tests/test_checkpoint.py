import errno
import io
import os
import tempfile
import tracemalloc

import numpy as np
import pytest

from gpt2 import checkpoint
from gpt2.config import GPT2Config
from gpt2.errors import UserError
from gpt2.layout import parameter_layout

CONFIG = GPT2Config(maxT=5, V=7, L=2, NH=2, C=4)
HEADER = [20240326, 3, 5, 7, 2, 2, 4, 128]
UNPADDED = parameter_layout(CONFIG, padded=False)
PADDED = parameter_layout(CONFIG)


def parameters(padding=0):
    """Padded parameters 1, 2, 3, ..., exact in bfloat16's 8 bits through the division, `padding` in wte's last rows."""
    params = np.full(PADDED.size, padding, dtype=np.float32)
    real = np.arange(1, UNPADDED.size + 1, dtype=np.float32) % 128 / 16
    params[: 7 * 4] = real[: 7 * 4]
    params[128 * 4 :] = real[7 * 4 :]
    return params


def file_bytes(header, body):
    header = np.array(header + [0] * (256 - len(header)), dtype="<i4")
    return header.tobytes() + body.tobytes()


def changed(index, value):
    header = list(HEADER)
    header[index] = value
    return file_bytes(header, parameters())


GOOD = file_bytes(HEADER, parameters())


def test_version_3_is_written_byte_for_byte_and_read_back(tmp_path):
    path = tmp_path / "x.bin"
    checkpoint.save_model(path, CONFIG, parameters())
    assert path.read_bytes() == GOOD
    config, params = checkpoint.load_model(path)
    assert config == CONFIG
    assert params.dtype == np.float32
    assert np.array_equal(params, parameters())


def test_version_1_is_padded(tmp_path):
    params = parameters()
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes([20240326, 1, 5, 7, 2, 2, 4], np.concatenate([params[:28], params[512:]])))
    config, read = checkpoint.load_model(path)
    assert config == CONFIG
    assert np.array_equal(read, params)


def test_version_5_is_widened(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes([20240326, 5, *HEADER[2:]], (parameters().view(np.uint32) >> 16).astype("<u2")))
    config, params = checkpoint.load_model(path)
    assert config == CONFIG
    assert params.dtype == np.float32
    assert np.array_equal(params, parameters())


@pytest.mark.parametrize("chunk", [1, 3, 28, 1000])
@pytest.mark.parametrize("version", [1, 3, 5])
def test_chunks_of_any_size_read_the_same(tmp_path, monkeypatch, version, chunk):
    params = parameters()
    body = {1: np.concatenate([params[:28], params[512:]]), 3: params, 5: (params.view(np.uint32) >> 16).astype("<u2")}
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes([20240326, version, *HEADER[2:]], body[version]))
    monkeypatch.setattr(checkpoint, "CHUNK", chunk)
    assert np.array_equal(checkpoint.load_model(path)[1], params)


def test_rows_that_pad_the_vocabulary_are_zero_whatever_the_file_holds(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes(HEADER, parameters(padding=9)))
    assert np.array_equal(checkpoint.load_model(path)[1], parameters())


WRONG = {
    "empty": (b"", "0 bytes, but a model file starts"),
    "half a header": (GOOD[:512], "512 bytes, but a model file starts"),
    "no body": (GOOD[:1024], "truncated"),
    "one byte short": (GOOD[:-1], "truncated"),
    "one float short": (GOOD[:-4], "truncated"),
    "one byte long": (GOOD + b"x", "too long"),
    "magic": (changed(0, 20240520), "starts with 20240520, expected 20240326"),
    "version 0": (changed(1, 0), "version 0"),
    "version 2": (changed(1, 2), "version 2"),
    "version 1 with padding": (changed(1, 1), "too long"),
    "version 5 with float32": (changed(1, 5), "too long"),
    "maxT": (changed(2, 6), "truncated"),
    "no maxT": (changed(2, 0), "maxT=0"),
    "no V": (changed(3, 0), "V=0"),
    "negative L": (changed(4, -1), "L=-1"),
    "no NH": (changed(5, 0), "NH=0"),
    "NH does not divide C": (changed(5, 3), "4 channels.*3 heads"),
    "C": (changed(6, 8), "truncated"),
    "Vp": (changed(7, 256), "padded to 256 rows, expected 128"),
    "Vp absent": (changed(7, 0), "padded to 0 rows, expected 128"),
    "all sizes at their largest": (
        file_bytes([20240326, 1, *[2**31 - 1] * 5], np.zeros(1)),
        r"truncated: 1,032 bytes, expected 4\d\d,\d\d\d,",
    ),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_files_are_refused_before_anything_is_allocated(tmp_path, monkeypatch, content, message):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    monkeypatch.setattr(checkpoint.np, "zeros", lambda *args, **kwargs: pytest.fail("allocated"))
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.load_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.bin", "."])
def test_paths_that_are_no_file(tmp_path, name):
    with pytest.raises(UserError, match=r"No such file|Is a directory"):
        checkpoint.load_model(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(GOOD)
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        checkpoint.load_model(path)


def test_full_disk_keeps_the_old_model(tmp_path, monkeypatch):
    class FullDisk(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_on_full_disk(dir, prefix, delete):
        file = FullDisk(os.path.join(dir, prefix + "tmp"), "w")
        return file

    path = tmp_path / "x.bin"
    checkpoint.save_model(path, CONFIG, parameters())
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", open_on_full_disk)
    with pytest.raises(UserError, match="disk is full"):
        checkpoint.save_model(path, CONFIG, parameters() + 1)
    assert path.read_bytes() == GOOD
    assert os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("version", [3, 5])
def test_the_model_is_in_memory_only_once(tmp_path, version):
    config = GPT2Config(maxT=1024, V=128, L=1, NH=1, C=1024)
    size = parameter_layout(config).size
    path = tmp_path / "x.bin"
    path.write_bytes(
        file_bytes([20240326, version, 1024, 128, 1, 1, 1024, 128], np.zeros(size, "<u2" if version == 5 else "<f4"))
    )
    tracemalloc.start()
    try:
        _, params = checkpoint.load_model(path)
        _, loading = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        checkpoint.save_model(path, config, params)
        _, saving = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert loading < 4 * size + 16 * checkpoint.CHUNK
    assert saving - before < 2**20
