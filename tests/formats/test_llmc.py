"""Model and token files in llm.c's format: byte layout, round trip, and every kind of malformed file."""

import errno
import io
import os
import tempfile
import tracemalloc

import numpy as np
import pytest

from gpt2.config import PRESETS, GPT2Config
from gpt2.errors import UserError
from gpt2.formats import llmc
from gpt2.layout import parameter_layout

CONFIG = GPT2Config(maxT=5, V=7, L=2, NH=2, C=4)
HEADER = [20240326, 3, 5, 7, 2, 2, 4, 128]
UNPADDED = parameter_layout(CONFIG, padded=False)
PADDED = parameter_layout(CONFIG)


def parameters(padding=0):
    """Padded parameters 1, 2, 3, ... modulo 128, divided to be exact in bfloat16; `padding` in wte's padding rows."""
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
    llmc.save_model(path, CONFIG, parameters())
    assert path.read_bytes() == GOOD
    config, params = llmc.load_model(path)
    assert config == CONFIG
    assert params.dtype == np.float32
    assert np.array_equal(params, parameters())


@pytest.mark.parametrize(("dtype", "version"), [("float32", 3), ("bfloat16", 5)])
def test_random_weights_are_flagged_in_an_int_that_llmc_does_not_read(tmp_path, dtype, version):
    trained, untrained = tmp_path / "trained.bin", tmp_path / "untrained.bin"
    llmc.save_model(trained, CONFIG, parameters(), dtype)
    llmc.save_model(untrained, CONFIG, parameters(), dtype, untrained=True)
    headers = [np.frombuffer(path.read_bytes()[:1024], "<i4") for path in (trained, untrained)]
    assert headers[0].tolist() == [20240326, version, 5, 7, 2, 2, 4, 128, *[0] * 248]
    assert headers[1].tolist() == [*headers[0][:8], 1, *[0] * 247]
    assert trained.read_bytes()[1024:] == untrained.read_bytes()[1024:]
    assert np.array_equal(llmc.load_model(untrained)[1], llmc.load_model(trained)[1])
    assert llmc.is_untrained(untrained) and not llmc.is_untrained(trained)


def test_version_1_is_padded(tmp_path):
    params = parameters()
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes([20240326, 1, 5, 7, 2, 2, 4], np.concatenate([params[:28], params[512:]])))
    config, read = llmc.load_model(path)
    assert config == CONFIG
    assert np.array_equal(read, params)


def test_version_5_is_widened(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes([20240326, 5, *HEADER[2:]], (parameters().view(np.uint32) >> 16).astype("<u2")))
    config, params = llmc.load_model(path)
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
    monkeypatch.setattr(llmc, "CHUNK", chunk)
    assert np.array_equal(llmc.load_model(path)[1], params)


def test_padding_rows_are_zero_whatever_the_file_contains(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes(HEADER, parameters(padding=9)))
    assert np.array_equal(llmc.load_model(path)[1], parameters())


@pytest.mark.parametrize("name", ["wte", "fcprojw", "lnfb"])
def test_non_finite_values_are_refused(tmp_path, name):
    params = parameters()
    PADDED.views(params)[name].flat[0] = np.nan
    llmc.save_model(tmp_path / "x.bin", CONFIG, params)
    with pytest.raises(UserError, match=f"x.bin: tensor {name} contains a NaN or an infinity"):
        llmc.load_model(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F80_0000, 0x3F80),
        (0x3F80_7FFF, 0x3F80),  # below the midpoint
        (0x3F80_8000, 0x3F80),  # the midpoint: to even, down
        (0x3F80_8001, 0x3F81),  # above the midpoint
        (0x3F81_7FFF, 0x3F81),
        (0x3F81_8000, 0x3F82),  # the midpoint: to even, up
        (0xBF81_8000, 0xBF82),  # the sign does not matter
        (0x3FFF_8000, 0x4000),  # carries into the exponent
        (0x0000_8001, 0x0001),  # subnormal
        (0x8000_0000, 0x8000),  # negative zero
        (0x7F7F_FFFF, 0x7F80),  # the largest float32 rounds to infinity
        (0x7F80_0000, 0x7F80),  # infinity
        (0x7F80_0001, 0x7FC0),  # a NaN whose upper half is infinity
        (0xFFFF_FFFF, 0xFFFF),  # a NaN that rounding would overflow to zero
    ],
)
def test_rounding_to_bfloat16(bits, expected):
    assert llmc._bfloat16(np.array([bits], "<u4").view("<f4")).tolist() == [expected]


def test_rounding_to_bfloat16_is_to_the_nearest():
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    rounded = (llmc._bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    step = 2.0 ** (np.floor(np.log2(np.abs(values))) - 7)
    assert np.max(np.abs(rounded.astype(float) - values) / step) <= 0.5


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_version_5_is_written_byte_for_byte(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(llmc, "CHUNK", chunk)
    path = tmp_path / "x.bin"
    llmc.save_model(path, CONFIG, parameters() * np.float32(1 + 2**-12), "bfloat16")  # rounds to parameters()
    assert path.read_bytes() == file_bytes(
        [20240326, 5, *HEADER[2:]], (parameters().view(np.uint32) >> 16).astype("<u2")
    )


def test_a_mapped_file_is_never_written(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(GOOD)
    config, params = llmc.map_model(path)
    assert config == CONFIG
    assert type(params) is np.ndarray and params.dtype == np.float32 and params.shape == (PADDED.size,)
    assert np.array_equal(params, parameters())
    params += 1
    assert path.read_bytes() == GOOD


def test_a_mapped_file_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    llmc.save_model(path, CONFIG, np.full(PADDED.size, np.nan, np.float32))
    monkeypatch.setattr(llmc, "allocate", lambda *args: pytest.fail("allocated"))
    assert np.isnan(llmc.map_model(path)[1]).all()


def test_a_bfloat16_file_is_mapped_on_request(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    llmc.save_model(path, CONFIG, parameters(), "bfloat16")
    good = path.read_bytes()
    monkeypatch.setattr(llmc, "allocate", lambda *args: pytest.fail("allocated"))
    config, params = llmc.map_model(path, bfloat16=True)
    assert config == CONFIG and params.dtype == np.uint16
    assert np.array_equal(params, parameters().view(np.uint32) >> 16)
    params += 1
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    ("name", "sizes", "numbers"),
    [
        ("gpt2", (12, 12, 768), 124_475_904),
        ("gpt2-medium", (24, 16, 1024), 354_871_296),
        ("gpt2-large", (36, 20, 1280), 774_090_240),
        ("gpt2-xl", (48, 25, 1600), 1_557_686_400),
        ("distilgpt2", (6, 12, 768), 81_948_672),
    ],
)
def test_files_of_every_released_size(tmp_path, name, sizes, numbers):
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes([20240326, 3, 1024, 50257, *sizes, 50304], np.zeros(0)))
    os.truncate(path, 1024 + 4 * numbers)  # a sparse file
    config, params = llmc.map_model(path)
    assert config == PRESETS[name]
    assert params.size == numbers


@pytest.mark.parametrize("version", [1, 5])
def test_versions_that_cannot_be_mapped_are_read_with_their_header_read_once(tmp_path, monkeypatch, version):
    params = parameters()
    body = {1: np.concatenate([params[:28], params[512:]]), 5: (params.view(np.uint32) >> 16).astype("<u2")}
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes([20240326, version, *HEADER[2:]], body[version]))
    headers = []
    read_header = llmc.read_header
    monkeypatch.setattr(llmc, "read_header", lambda *args: headers.append(args) or read_header(*args))
    assert np.array_equal(llmc.map_model(path)[1], params)
    assert len(headers) == 1


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
    "other layers": (
        file_bytes(HEADER + [0] * 9 + [5], parameters()),
        "made by kernels with another activation or normalisation",
    ),
    "Vp absent": (changed(7, 0), "padded to 0 rows, expected 128"),
    "all sizes at their maximum": (
        file_bytes([20240326, 1, *[2**31 - 1] * 5], np.zeros(1)),
        r"truncated: 1,032 bytes, expected 4\d\d,\d\d\d,",
    ),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_malformed_files_are_refused_before_anything_is_allocated(tmp_path, monkeypatch, content, message):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    monkeypatch.setattr(llmc.np, "zeros", lambda *args, **kwargs: pytest.fail("allocated"))
    for read in (llmc.load_model, llmc.map_model):
        with pytest.raises(UserError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.bin", "."])
def test_paths_that_are_not_files(tmp_path, name):
    with pytest.raises(UserError, match=r"No such file|Is a directory"):
        llmc.load_model(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
def test_an_unreadable_file(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(GOOD)
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        llmc.load_model(path)


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 11])
def test_a_file_truncated_while_being_read(kept):
    with pytest.raises(UserError, match=r"x\.bin: tensor wte ends early: the file was truncated while being read"):
        llmc.read_floats(io.BytesIO(bytes(kept)), np.empty(3, np.float32), "float32", "x.bin: tensor wte")


def test_a_full_disk_keeps_the_old_model(tmp_path, monkeypatch):
    class FullDisk(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_on_full_disk(dir, prefix, delete):
        file = FullDisk(os.path.join(dir, prefix + "tmp"), "w")
        return file

    path = tmp_path / "x.bin"
    llmc.save_model(path, CONFIG, parameters())
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", open_on_full_disk)
    with pytest.raises(UserError, match="disk is full"):
        llmc.save_model(path, CONFIG, parameters() + 1)
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
        _, params = llmc.load_model(path)
        _, loading = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        llmc.save_model(path, config, params, "bfloat16" if version == 5 else "float32")
        _, saving = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert loading < 4 * size + 16 * llmc.CHUNK
    assert saving - before < 30 * llmc.CHUNK < 4 * size


def test_token_files_are_written_byte_for_byte_and_read_back(tmp_path):
    path, tokens = tmp_path / "x.bin", [5, 0, 65535, 7, 1]
    llmc.write_tokens(path, tokens)
    assert path.read_bytes() == file_bytes([20240520, 1, 5], np.array(tokens, "<u2"))
    for room in (10, 9):
        read = llmc.open_tokens(path, room)
        assert read.dtype == np.uint16 and read[:].tolist() == tokens
        assert read[1:9].tolist() == tokens[1:] and read[3:3].size == 0
        assert isinstance(read, llmc.TokenFile) == (room < 10)


def test_too_many_tokens_for_the_header_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^2,147,483,648 tokens are too many for a token file"):
        llmc.write_tokens(tmp_path / "x.bin", np.broadcast_to(np.uint16(0), 2**31))
    assert os.listdir(tmp_path) == []
