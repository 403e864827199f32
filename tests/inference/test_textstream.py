"""What streams show: whole characters, nothing of a stop text, and everything once it is finished."""

import itertools

import pytest
import tiktoken

from gpt2.data.tokenizer import EOT
from gpt2.inference.sampling import Token
from gpt2.inference.textstream import IdStream, TextStream, TokenLines

# A vocabulary in which a token's id is its byte, but for one that ends within a character.
BYTES = tiktoken.Encoding(
    "bytes",
    pat_str=r"[\s\S]",
    mergeable_ranks={bytes([byte]): byte for byte in range(256)} | {b" \xe2\x80": 256},
    special_tokens={"<|endoftext|>": EOT},
)


def pieces(data, stops=()):
    """The pieces of a text of bytes, of which each is a token, the last one being what `finish` returns."""
    stream, shown = TextStream(BYTES, stops), []
    for byte in data:
        shown.append(stream.feed(Token(byte, 0.5)))
        if stream.done:
            break
    return [*shown, stream.finish()]


def test_bytes_wait_for_the_rest_of_their_character():
    assert pieces("aé€😀b".encode()) == ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]


def test_bytes_that_become_no_character_are_replaced():
    assert pieces(b"a\xffb") == ["a", "�", "b", ""]
    assert pieces(b"a\xe2\x82") == ["a", "", "", "�"]
    assert pieces(b"a\xe2\x82b") == ["a", "", "", "�b", ""]


def test_the_end_of_text_ends_and_shows_what_was_held_back():
    stream = TextStream(BYTES, ["bc"])
    assert [stream.feed(Token(id, 0.5)) for id in (*b"ab", EOT)] == ["a", "", "b"]
    assert stream.done and stream.finish() == ""


def test_a_stop_text_across_tokens_is_not_shown():
    assert pieces(b"one\nYou: two", ["\nYou:"]) == ["o", "n", "e", "", "", "", "", "", ""]


def test_what_only_begins_like_a_stop_text_is_shown_later():
    assert pieces(b"aab aac", ["aac"]) == ["", "", "aab", " ", "", "", "", ""]
    assert pieces(b"xab", ["abc"]) == ["x", "", "", "ab"]


def test_a_beginning_within_a_beginning_is_found():
    assert "".join(pieces(b"aaab", ["aab"])) == "a"
    assert "".join(pieces(b"ababac", ["abac"])) == "ab"


def test_the_first_of_several_stop_texts_cuts():
    assert "".join(pieces(b"1 two three", ["three", "wo"])) == "1 t"
    # One is part of another: the text ends where it can first be known to.
    assert "".join(pieces(b"xabc", ["abc", "b"])) == "xa"


def test_stop_texts_of_several_bytes():
    assert "".join(pieces("a€b".encode(), ["€"])) == "a"


@pytest.mark.parametrize("stops", [["ab"], ["aba", "bb"], ["aabb", "ba"]])
def test_every_short_text_is_cut_where_it_should_be(stops):
    for letters in itertools.product("ab", repeat=7):
        text = "".join(letters)
        # The stop text that is complete first is the one that cuts.
        end, start = min(((text.find(s) + len(s), text.find(s)) for s in stops if s in text), default=(0, len(text)))
        assert "".join(pieces(text.encode(), stops)) == text[:start], (text, end)


def test_ids():
    stream = IdStream()
    assert [stream.feed(Token(7, 0.5)), stream.feed(Token(EOT, 0.5)), stream.finish()] == ["7 ", f"{EOT} ", ""]
    assert not stream.done


def test_lines_of_tokens():
    stream = TokenLines(TextStream(BYTES, ["\n."]), BYTES)
    lines = [stream.feed(Token(*token)).split() for token in ((65, 0.25), (0xE2, 1.0), (10, 1e-9), (46, 0.5))]
    assert lines == [
        ["65", "'A'", "0.250000"],
        ["226", r"b'\xe2'", "1.000000"],
        ["10", r"'\n'", "0.000000"],
        ["46", "'.'", "0.500000"],
    ]
    assert stream.done and stream.finish() == ""
    assert TokenLines(IdStream()).feed(Token(7, 0.5)).split() == ["7", "0.500000"]


def test_nothing_is_shown_after_a_stop_text():
    stream = TextStream(BYTES, [" "])
    assert [stream.feed(Token(ord("a"), 0.5)), stream.feed(Token(256, 0.5)), stream.finish()] == ["a", "", ""]
    assert stream.done
