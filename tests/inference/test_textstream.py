"""Streams print whole characters, nothing of a stop text, and everything held back once finished."""

import itertools

import pytest

from gpt2.data.vocabulary import UnknownVocabulary
from gpt2.inference.sampling import Token
from gpt2.inference.textstream import IdStream, TextStream, TokenLines, text_pieces
from tests.support.vocabulary import BYTES

(EOT,) = BYTES.ends


def pieces(data, stops=()):
    """Feeds bytes as one token each; returns what feed returned for each, and at the end what finish did."""
    stream, shown = TextStream(BYTES, stops), []
    for byte in data:
        shown.append(stream.feed(Token(byte, 0.5)))
        if stream.done:
            break
    return [*shown, stream.finish()]


def test_incomplete_characters_are_held_back():
    assert pieces("aé€😀b".encode()) == ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]


def test_invalid_utf8_is_replaced():
    assert pieces(b"a\xffb") == ["a", "�", "b", ""]
    assert pieces(b"a\xe2\x82") == ["a", "", "", "�"]
    assert pieces(b"a\xe2\x82b") == ["a", "", "", "�b", ""]


def test_end_of_text_ends_the_sample_and_releases_held_text():
    stream = TextStream(BYTES, ["bc"])
    assert [stream.feed(Token(id, 0.5)) for id in (*b"ab", EOT)] == ["a", "", "b"]
    assert stream.done and stream.finish() == ""


def test_stop_text_across_tokens_is_not_printed():
    assert pieces(b"one\nYou: two", ["\nYou:"]) == ["o", "n", "e", "", "", "", "", "", ""]


def test_false_start_of_a_stop_text_is_released():
    assert pieces(b"aab aac", ["aac"]) == ["", "", "aab", " ", "", "", "", ""]
    assert pieces(b"xab", ["abc"]) == ["x", "", "", "ab"]


def test_stop_text_that_starts_within_a_false_start_is_found():
    assert "".join(pieces(b"aaab", ["aab"])) == "a"
    assert "".join(pieces(b"ababac", ["abac"])) == "ab"


def test_the_first_of_several_stop_texts_cuts():
    assert "".join(pieces(b"1 two three", ["three", "wo"])) == "1 t"
    # One contains the other: whichever is complete first cuts.
    assert "".join(pieces(b"xabc", ["abc", "b"])) == "xa"


def test_stop_text_of_multibyte_characters():
    assert "".join(pieces("a€b".encode(), ["€"])) == "a"


@pytest.mark.parametrize("stops", [["ab"], ["aba", "bb"], ["aabb", "ba"]])
def test_stop_texts_exhaustively_on_short_texts(stops):
    for letters in itertools.product("ab", repeat=7):
        text = "".join(letters)
        # The stop text that is complete first cuts.
        end, start = min(((text.find(s) + len(s), text.find(s)) for s in stops if s in text), default=(0, len(text)))
        assert "".join(pieces(text.encode(), stops)) == text[:start], (text, end)


def test_id_stream():
    stream = IdStream()
    assert [stream.feed(Token(7, 0.5)), stream.feed(Token(EOT, 0.5)), stream.finish()] == ["7 ", f"{EOT} ", ""]
    assert not stream.done
    stream = IdStream(ends=(3, 5))
    assert [(stream.feed(Token(id, 0.5)), stream.done) for id in (4, 5)] == [("4 ", False), ("5 ", True)]


def test_token_lines():
    stream = TokenLines(TextStream(BYTES, ["\n."]), BYTES)
    lines = [stream.feed(Token(*token)).split() for token in ((65, 0.25), (0xE2, 1.0), (10, 1e-9), (46, 0.5))]
    assert lines == [
        ["65", "'A'", "0.250000"],
        ["226", r"b'\xe2'", "1.000000"],
        ["10", r"'\n'", "0.000000"],
        ["46", "'.'", "0.500000"],
    ]
    assert stream.done and stream.finish() == ""
    unknown = UnknownVocabulary("nowhere to be found")
    assert TokenLines(IdStream(), unknown).feed(Token(7, 0.5)).split() == ["7", "0.500000"]


def test_nothing_is_printed_after_a_stop_text():
    stream = TextStream(BYTES, [" "])
    assert [stream.feed(Token(ord("a"), 0.5)), stream.feed(Token(256, 0.5)), stream.finish()] == ["a", "", ""]
    assert stream.done


def test_text_pieces_stop_reading_steps_once_all_streams_are_done():
    streams = [TextStream(BYTES), TextStream(BYTES, ["yz"])]
    steps = iter([[Token(id, 0.5) for id in ids] for ids in ((ord("a"), ord("x")), (EOT, ord("y")), (7, EOT), (7, 7))])
    assert list(text_pieces(steps, streams)) == [["a", "x"], ["", ""], ["", "y"], ["", ""]]
    assert len(list(steps)) == 1
    assert list(text_pieces([[Token(ord("y"), 0.5)]], [TextStream(BYTES, ["yz"])])) == [[""], ["y"]]
