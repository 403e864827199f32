"""Token files of conversations: what is written is read, other files and damaged ones are refused."""

import io
import re

import numpy as np
import pytest

from gpt2.errors import UserError
from gpt2.formats.conversation_file import (
    Conversations,
    holds_conversations,
    read_conversations_file,
    write_conversations,
)
from gpt2.formats.llmc import open_tokens, tokens_vocabulary, write_tokens

TOKENS = np.array([1, 2, 3, 65535, 5, 6, 7, 8, 9, 10, 11], np.uint16)
LENGTHS = np.array([4, 2, 5], np.int32)
COUNTS = np.array([0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1], bool)
DIGEST = "0123456789abcdef" * 4


def written(vocabulary=DIGEST):
    file = io.BytesIO()
    write_conversations(file, Conversations(TOKENS, LENGTHS, COUNTS), vocabulary)
    return file.getvalue()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "talks_train.bin"
    path.write_bytes(written())
    return path


@pytest.mark.parametrize("vocabulary", [DIGEST, None])
def test_the_layout(path, vocabulary):
    data = written(vocabulary)
    path.write_bytes(data)
    header, body = np.frombuffer(data[:1024], "<i4"), data[1024:]
    assert header[:3].tolist() == [20240520, 2, 11] and header[11] == 3 and not header[12:].any()
    assert header[3:11].tobytes().hex() == (vocabulary or "0" * 64)
    assert body == TOKENS.tobytes() + LENGTHS.tobytes() + bytes([0b00110100, 0b01100000])
    assert tokens_vocabulary(path) == vocabulary


def test_what_is_written_is_read(path):
    found = read_conversations_file(path)
    for array, expected in zip(found, (TOKENS, LENGTHS, COUNTS), strict=True):
        assert array.dtype == expected.dtype and np.array_equal(array, expected)


def test_the_kind_of_file_is_seen(path, tmp_path):
    write_tokens(tmp_path / "text.bin", [1, 2, 3])
    assert holds_conversations(path) and not holds_conversations(tmp_path / "text.bin")
    with pytest.raises(UserError, match=r"text\.bin: not a token file of conversations; prepare them"):
        read_conversations_file(tmp_path / "text.bin")
    for room in (0, 2**20):
        with pytest.raises(UserError, match=r"talks_train\.bin: conversations, not the tokens of a text"):
            open_tokens(path, room)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 1, "not a token file of conversations"),
        (2, 12, "truncated: 1,060 bytes, expected 1,062 (a header, 12 tokens"),
        (2, -1, "the header says 3 conversations of -1 tokens"),
        (2, 1, "the header says 3 conversations of 1 tokens"),
        (11, 0, "the header says 0 conversations of 11 tokens"),
        (11, 6, "the header says 6 conversations of 11 tokens"),
        (11, 2, "too long: "),
    ],
)
def test_a_damaged_file_is_refused(path, place, value, message):
    damaged = np.frombuffer(path.read_bytes(), "<i4").copy()
    damaged[place] = value
    path.write_bytes(damaged.tobytes())
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {message}')}"):
        read_conversations_file(path)


@pytest.mark.parametrize("lengths", [[11, 1, -1], [9, 1, 1], [4, 2, 4], [4, 2, 6], [2**31 - 1, 2**31 - 1, 13]])
def test_lengths_that_cannot_be_are_refused(path, lengths):
    data = path.read_bytes()
    path.write_bytes(data[: 1024 + 22] + np.array(lengths, "<i4").tobytes() + data[-2:])
    with pytest.raises(UserError, match="the lengths of its conversations do not add up"):
        read_conversations_file(path)


def test_a_file_without_a_header_is_refused(path):
    path.write_bytes(b"short")
    with pytest.raises(UserError, match="starts with a 1024-byte header"):
        read_conversations_file(path)
    assert not holds_conversations(path)


def test_more_tokens_than_the_header_counts_are_refused():
    many = np.broadcast_to(np.uint16(0), 2**31)
    with pytest.raises(UserError, match="too many for a token file"):
        write_conversations(io.BytesIO(), Conversations(many, LENGTHS, many))
