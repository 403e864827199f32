"""The reference state in llm.c's format: byte layout, round trip, and every kind of malformed file."""

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.errors import UserError
from gpt2.formats.llmc import read_state
from gpt2.layout import parameter_layout
from tests.support.states import CONFIG, B, T, random_state, written

SIZE = 1024 + 4 * (2 * B * T + B * T * 7 + 1 + parameter_layout(CONFIG).size)


def test_state_written_is_state_read(tmp_path):
    path = written(tmp_path / "state.bin")
    assert path.stat().st_size == SIZE
    read, expected = read_state(path, CONFIG), random_state()
    assert read.loss == expected.loss
    for name in ("inputs", "targets", "logits"):
        assert getattr(read, name).dtype == getattr(expected, name).dtype
        assert np.array_equal(getattr(read, name), getattr(expected, name))
    assert list(read.grads) == list(parameter_layout(CONFIG).shapes)
    for name, grad in read.grads.items():
        assert grad.dtype == np.float32
        assert np.array_equal(grad, expected.grads[name])


def test_state_is_laid_out_as_documented(tmp_path):
    content, expected = written(tmp_path / "state.bin").read_bytes(), random_state()
    assert np.frombuffer(content, "<i4", 4).tolist() == [20240327, 2, B, T]
    assert np.array_equal(np.frombuffer(content, "<i4", 6, offset=1024), expected.inputs.ravel())
    assert np.array_equal(np.frombuffer(content, "<i4", 6, offset=1048), expected.targets.ravel())
    assert np.array_equal(np.frombuffer(content, "<f4", 42, offset=1072), expected.logits.ravel())
    assert np.frombuffer(content, "<f4", 1, offset=1240) == 2.5
    assert np.array_equal(np.frombuffer(content, "<f4", 128 * 4, offset=1244), expected.grads["wte"].ravel())
    assert np.array_equal(np.frombuffer(content[-16:], "<f4"), expected.grads["lnfb"])


def header(**changes):
    values = {"magic": 20240327, "version": 2, "B": B, "T": T} | changes
    return np.array([*values.values()], dtype="<i4").tobytes()


WRONG = {
    "empty": (lambda data: b"", "0 bytes, but a reference state starts"),
    "half a header": (lambda data: data[:512], "512 bytes, but a reference state starts"),
    "truncated": (lambda data: data[:-1], "truncated"),
    "too long": (lambda data: data + b"x", "too long"),
    "magic": (lambda data: header(magic=20240326) + data[16:], "starts with 20240326, expected 20240327"),
    "version": (lambda data: header(version=1) + data[16:], "version 1, expected 2"),
    "no rows": (lambda data: header(B=0) + data[16:], "batch of 0 x 3 tokens"),
    "negative": (lambda data: header(B=-2, T=-3) + data[16:], "batch of -2 x -3"),
    "no columns": (lambda data: header(T=0) + data[16:], "batch of 2 x 0"),
    "longer than maxT": (
        lambda data: header(T=5) + data[16:],
        "batch of 2 x 5 tokens, .* T in 1 .. 4",
    ),
    "more rows than there are": (lambda data: header(B=2**31 - 1) + data[16:], "truncated"),
    "input at V": (lambda data: data[:1024] + b"\7\0\0\0" + data[1028:], "token ids from . to 7, expected 0 .. 6"),
    "negative target": (lambda data: data[:1048] + b"\xff" * 4 + data[1052:], "token ids from -1 to"),
}


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG.keys())
def test_malformed_states_are_refused(tmp_path, damage, message):
    path = written(tmp_path / "state.bin")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        read_state(path, CONFIG)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_state_of_another_model(tmp_path):
    with pytest.raises(UserError, match="truncated"):
        read_state(written(tmp_path / "state.bin"), GPT2Config(maxT=4, V=7, L=2, NH=2, C=4))


@pytest.mark.parametrize("name", ["missing.bin", "."])
def test_paths_that_are_not_files(tmp_path, name):
    with pytest.raises(UserError, match=r"No such file|Is a directory"):
        read_state(tmp_path / name, CONFIG)
