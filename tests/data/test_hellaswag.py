"""The multiple-choice format: round trip, byte layout, and every kind of malformed file."""

import tracemalloc

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.data.hellaswag import read_examples
from gpt2.errors import UserError
from tests.support.examples import example_numbers, file_bytes, random_examples, write_examples

CONFIG = GPT2Config(maxT=16, V=50, L=1, NH=1, C=4)


def test_examples_round_trip(tmp_path):
    examples = random_examples(20, np.random.default_rng(0), CONFIG)
    read = list(read_examples(write_examples(tmp_path / "x.bin", examples), CONFIG))
    assert len(read) == 20
    for found, (label, context, completions) in zip(read, examples, strict=True):
        assert found.label == label
        for tokens, expected in zip((found.context, *found.completions), (context, *completions), strict=True):
            assert np.array_equal(tokens, expected)


def test_byte_layout(tmp_path):
    numbers = [65535, 38, 0, 2, 4, *(2, 7, 8), *(1, 10), *(2, 11, 12), *(1, 13), *(3, 14, 15, 16)]
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes([numbers]))
    (example,) = read_examples(path, CONFIG)
    assert example.label == 2
    assert example.context.tolist() == [7, 8]
    assert [tokens.tolist() for tokens in example.completions] == [[10], [11, 12], [13], [14, 15, 16]]


ENDS = [[1], [2, 3], [4], [5]]
FIRST, SECOND = example_numbers(0, 1, [6, 7], ENDS), example_numbers(1, 3, [8], ENDS)


def changed(position, value):
    """Returns a file whose second example has one value replaced."""
    return file_bytes([FIRST, [*SECOND[:position], value, *SECOND[position + 1 :]]], longest=100)


def second(*example):
    return file_bytes([FIRST, example_numbers(1, *example)])


WHOLE = file_bytes([FIRST, SECOND])
WRONG = {
    "empty": (b"", "0 bytes, but an evaluation file starts with a 1024-byte header"),
    "half a header": (WHOLE[:512], "512 bytes, but an evaluation file starts with a 1024-byte header"),
    "token file": (file_bytes([FIRST], magic=20240520), "it starts with 20240520, expected 20240522"),
    "version": (file_bytes([FIRST], version=2), "version 2, expected 1"),
    "no examples": (file_bytes([FIRST], count=0), "0 examples, expected at least 1"),
    "negative count": (file_bytes([FIRST], count=-1), "-1 examples"),
    "fewer examples than it says": (file_bytes([FIRST, SECOND], count=3), "example 2 of 3: truncated"),
    "huge count": (file_bytes([FIRST], count=2**31 - 1), "example 1 of 2147483647: truncated"),
    "more examples than it says": (file_bytes([FIRST, SECOND], count=1), "too long: 32 bytes after the last of 1"),
    "odd length": (WHOLE[:-1], "expected uint16"),
    "last token missing": (WHOLE[:-2], "example 1 of 2: truncated: 30 bytes, expected 32"),
    "no delimiter": (changed(0, 7), "example 1 of 2: it starts with 7, expected 65535"),
    "odd example length": (changed(1, 29), "example 1 of 2: length 29 bytes, expected an even number"),
    "longer than the longest": (file_bytes([FIRST, SECOND], longest=20), "example 0 of 2: .* from 10 to 20"),
    "length of nothing": (changed(1, 0), "example 1 of 2: length 0 bytes"),
    "length too small": (changed(1, 30), "example 1 of 2: completion 3 has 0 tokens, expected 1"),
    "index": (changed(2, 0), "example 1 of 2: index 0, expected 1"),
    "label": (changed(3, 4), "example 1 of 2: label 4, expected 0 .. 3"),
    "completions": (changed(4, 65535), "example 1 of 2: 65535 completions, expected 4"),
    "length within": (changed(5, 60000), "example 1 of 2: the context has 10 tokens, expected 60000"),
    "completion of no tokens": (changed(14, 0), "example 1 of 2: completion 3 has 0 tokens, expected at least 1"),
    "parts too short": (
        file_bytes([FIRST, [65535, 34, *SECOND[2:], 0]]),
        "example 1 of 2: length 34 bytes, but its parts take 32",
    ),
    "no context": (second(0, [], ENDS), "example 1 of 2: the context has 0 tokens, expected at least 1"),
    "no completion": (second(0, [1], [[1], [], [1], [1]]), "example 1 of 2: completion 1 has 0 tokens"),
    "id at V": (second(0, [1, 50], ENDS), "example 1 of 2: token 50 in the context is not in 0 .. 49"),
    "id in a completion": (second(0, [1], [*ENDS[:3], [3, 65535]]), "token 65535 in completion 3"),
    "too long for the model": (
        second(0, [1] * 10, [[1], [1] * 8, [1], [1]]),
        "example 1 of 2: context and completion need 17 positions, but the model has 16",
    ),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_malformed_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_examples(path, CONFIG))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"x\.bin: No such file"):
        list(read_examples(tmp_path / "x.bin", CONFIG))


def test_an_example_of_the_maximum_length(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(second(0, [1] * 10, [[1], [1] * 7, [1], [1]]))
    assert len(list(read_examples(path, CONFIG))) == 2


def test_memory_is_a_small_multiple_of_the_file_size(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(file_bytes([example_numbers(i, 0, [1], [[1]] * 4) for i in range(2000)], count=2**31 - 1))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="example 2000 of 2147483647: truncated"):
            for _ in read_examples(path, CONFIG):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + 50_000
