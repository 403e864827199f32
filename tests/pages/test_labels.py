"""Tokens as a page shows them."""

import pytest

from gpt2.data.vocabulary import Vocabulary
from gpt2.formats.tokenizer_folder import read_tokenizer_folder
from gpt2.pages.labels import divided_characters, labels
from tests.support.tokenizer_forms import bert
from tests.support.vocabulary import byte_level


def test_tokens_of_bytes_are_their_text():
    words = byte_level(b" \xf0\x9f", b"\x98\x80!", b"")
    found = labels(words, {65, 0xC3, 256, 257, 259, 400})
    assert found == {
        65: "A",
        0xC3: "\udcc3",
        256: " \udcf0\udc9f",
        257: "\udc98\udc80!",
        259: "<|endoftext|>",
        400: "[400]",
    }


@pytest.mark.parametrize(
    ("tokens", "divided"),
    [
        ([65, 66], {}),
        ([65, 256, 257], {1: "\U0001f600", 2: "\U0001f600"}),
        # The middle token holds the end of one character and the beginning of the next.
        ([0xC3, 258, 0xA9], {0: "\u00e9", 1: "\u00e9\u00e9", 2: "\u00e9"}),
        ([0xC3, 65], {}),
    ],
)
def test_characters_divided_between_tokens(tokens, divided):
    assert divided_characters(byte_level(b" \xf0\x9f", b"\x98\x80!", b"\xa9\xc3"), tokens) == divided


def test_tokens_that_are_no_bytes_are_their_names(tmp_path):
    bert()(tmp_path)
    words = Vocabulary(read_tokenizer_folder(tmp_path))
    ids = words.encode("the sea")
    assert [labels(words, set(ids))[id] for id in ids] == [words.tokens[id] for id in ids]
    assert labels(words, {10**6}) == {10**6: "[1000000]"}
    assert divided_characters(words, ids) == {}
