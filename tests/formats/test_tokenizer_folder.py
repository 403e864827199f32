"""A Hugging Face folder's tokenizer: its forms, the ids that begin and end a text, and damaged files."""

import json
import re

import pytest
import tokenizers
from tokenizers import models

from gpt2.data.vocabulary import Vocabulary, load_vocabulary
from gpt2.errors import UserError
from gpt2.formats import tokenizer_folder
from gpt2.formats.tokenizer_folder import read_tokenizer_folder
from tests.support.tokenizer_forms import (
    CONTROL,
    FORMS,
    NAMES,
    byte_level,
    complete,
    form_of_2023,
    pairs_of_bytes,
    some_texts,
    word_pieces,
    write,
    write_vocab_and_merges,
)

SAME = ("vocab and merges", "merges with CRLF", "tokenizer.json", "the same, PreTrainedTokenizerFast", "normalizer")


def digests(names, tmp_path):
    for name in names:
        (tmp_path / name).mkdir()
        FORMS[name](tmp_path / name)
    return {load_vocabulary(tmp_path / name).sha256 for name in names}


def test_the_digest_does_not_depend_on_the_form(tmp_path):
    assert len(digests(SAME, tmp_path)) == len(digests(("2020", "2021"), tmp_path)) == 1
    assert len(digests(("2023", "tokens outside the bytes"), tmp_path)) == 2


def test_another_vocabulary_of_gpt2s_size_is_not_gpt2s(tmp_path):
    write_vocab_and_merges(tmp_path, *pairs_of_bytes(50257))
    assert load_vocabulary(tmp_path).sha256 is not None


@pytest.mark.parametrize("name", FORMS)
def test_texts_decoded_piece_by_piece_are_whole(name, tmp_path):
    FORMS[name](tmp_path)
    words = load_vocabulary(tmp_path)
    for text in some_texts(200):
        ids, decoder = words.encode(text), words.decoder()
        assert "".join([*map(decoder.feed, ids), decoder.finish()]) == words.decode(ids)


def test_tokens_are_shown_as_soon_as_they_are_complete(tmp_path):
    FORMS["BPE with byte fallback"](tmp_path)
    words = load_vocabulary(tmp_path)
    decoder, ids = words.decoder(), words.encode("the é中e")
    shown = [decoder.feed(id) for id in ids]
    assert [piece for piece in shown if piece] == ["the", " ", "é", "中", "e"] and decoder.finish() == ""
    decoder = words.decoder()
    bad = [words.tokens.index(f"<0x{byte}>") for byte in ("41", "C3", "28")]  # as a whole, the library has three U+FFFD
    assert [*map(decoder.feed, bad), decoder.finish()] == ["A", "", "", "\ufffd\ufffd"]


def test_merges_and_tokens_may_hold_any_character(tmp_path):
    FORMS["merges with odd whitespace"](tmp_path)
    words = load_vocabulary(tmp_path)
    assert words.encode("ab") == [words.tokens.index("ab")]
    FORMS["tokens outside the bytes"](tmp_path)
    assert load_vocabulary(tmp_path).decode([400, 401]) == "a b中"
    complete(byte_level(last=("café",)))(tmp_path)
    words = load_vocabulary(tmp_path)
    assert words.decode([words.size - 1]) == "café"


def test_characters_of_a_foreign_vocabulary_may_be_unknown(tmp_path):
    for name, text in (("words", "the sea ."), ("characters, some unknown", "helios")):
        FORMS[name](tmp_path)
        assert 0 in load_vocabulary(tmp_path).encode(text)


def test_a_text_that_cannot_be_encoded_is_an_error(tmp_path):
    complete(tokenizers.Tokenizer(models.WordLevel({"the": 0, "<s>": 1}, unk_token="[UNK]")))(tmp_path)
    words = load_vocabulary(tmp_path)
    for encode in (words.encode, lambda text, source: words.encode_all([text], source)):
        with pytest.raises(UserError, match=r"^mine: the vocabulary cannot encode it: .*\[UNK\]"):
            encode("sea", "mine")


@pytest.mark.parametrize(
    ("config", "generation", "begin", "ends"),
    [
        ({}, None, 0, (2,)),  # the tokenizer's
        ({"bos_token_id": 5, "eos_token_id": [6, 7]}, None, 5, (6, 7)),
        ({"bos_token_id": 5, "eos_token_id": 6}, {"bos_token_id": 8}, 8, ()),
        ({"bos_token_id": 5, "eos_token_id": 6}, {"eos_token_id": None}, 0, ()),
        ({"eos_token_id": None}, None, 0, ()),
        ({"vocab_size": 400, "bos_token_id": 50256, "eos_token_id": 50256}, None, 0, ()),
        ({"vocab_size": 0}, None, None, ()),
        (None, None, 0, (2,)),
    ],
)
def test_what_begins_and_ends_a_text(tmp_path, config, generation, begin, ends):
    complete(byte_level(first=CONTROL, last=()), "GPT2Tokenizer", **NAMES)(tmp_path)
    for name, fields in (("config.json", config), ("generation_config.json", generation)):
        if fields is not None:
            write(tmp_path, name, fields)
    found = read_tokenizer_folder(tmp_path)
    assert (found.begin, found.ends, found.prefix) == (begin, ends, ())


def test_the_special_tokens_map_goes_before_settings_without_added_tokens(tmp_path):
    FORMS["the map goes before the settings"](tmp_path)
    assert read_tokenizer_folder(tmp_path).ends == (2,)


def test_what_a_tokenizer_puts_before_a_text(tmp_path):
    complete(word_pieces())(tmp_path)
    assert (read_tokenizer_folder(tmp_path).prefix, read_tokenizer_folder(tmp_path).begin) == ((2,), 2)


@pytest.mark.parametrize("name", ["vocab.txt", "spiece.model", "vocab.json", None])
def test_other_tokenizers_are_unknown(tmp_path, name):
    if name:
        write(tmp_path, name, "{}")
    expected = f"its tokenizer, {name}, cannot be read" if name and name != "vocab.json" else "no tokenizer.json there"
    assert expected in read_tokenizer_folder(tmp_path).problem
    with pytest.raises(UserError, match=expected):
        load_vocabulary(tmp_path)


def edited(path, value, tokenizer=None):
    """Returns a tokenizer.json with another value at a path."""
    fields = json.loads((tokenizer or byte_level()).to_str())
    part = fields
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return fields


SETTINGS = "tokenizer_config.json"
DAMAGE = [
    ("tokenizer.json", "{}", "not a tokenizer that the tokenizers library can read"),
    ("tokenizer.json", "[" * 100_000, "not a tokenizer"),
    ("tokenizer.json", edited(["model", "vocab", "a"], 10**9), "the token 'a' has the id 1000000000, expected 0 to"),
    ("tokenizer.json", edited(["model", "vocab", "a"], 1), "have the same id, 1"),
    ("tokenizer.json", edited(["model", "continuing_subword_prefix"], "x" * 50), "out of range"),  # a panic of Rust's
    ("tokenizer.json", edited(["model"], {"type": "BPE", "vocab": {}, "merges": []}), None),
    (SETTINGS, {"added_tokens_decoder": [1]}, "not a tokenizer"),
    (SETTINGS, {"added_tokens_decoder": {"x": {"content": "a"}}}, "not a tokenizer"),
    (SETTINGS, {"added_tokens_decoder": {"9" * 5000: {"content": "a"}}}, "not a tokenizer"),
    (SETTINGS, {"added_tokens_decoder": {"700": {"content": 5}}}, "not a tokenizer"),
    (SETTINGS, {"added_tokens_decoder": {str(10**9): {"content": "a far one"}}}, None),
    (SETTINGS, {"extra_special_tokens": 5}, "not a tokenizer"),
    (SETTINGS, {"eos_token": {"a": 1}}, "not a tokenizer"),
    (SETTINGS, {"eos_token": [1], "tokenizer_class": 3, "add_bos_token": "x"}, None),
    ("added_tokens.json", {"a": "b"}, "not a tokenizer"),
]


@pytest.mark.parametrize(("name", "contents", "problem"), DAMAGE)
def test_a_damaged_tokenizer_is_unknown(tmp_path, name, contents, problem):
    write(tmp_path, "tokenizer.json", byte_level().to_str())
    write(tmp_path, name, contents)
    found = read_tokenizer_folder(tmp_path)
    assert "\n" not in (found.problem or "")
    if problem is None:
        assert found.problem is None and len(Vocabulary(found).tokens) < 1000
    else:
        assert found.tokenizer is None and re.search(problem, found.problem), found.problem


@pytest.mark.parametrize(
    ("vocab", "merges", "problem"),
    [
        ({"a": 0, "b": 0}, [], "the tokens 'a' and 'b' have the same id, 0"),
        ({"a": 0.5}, [], "the token 'a' has the id 0.5"),
        ({"a": True}, [], "the token 'a' has the id True"),
        ({"a": -1}, [], "the token 'a' has the id -1"),
        ({}, [], "it has no tokens"),
        ({"a": 0, "b": 1}, ["a b"], "not a tokenizer"),
        ({"a": 0, "b": 1}, ["a b c"], "not a tokenizer"),
    ],
)
def test_damaged_vocab_and_merges_are_unknown(tmp_path, vocab, merges, problem):
    write_vocab_and_merges(tmp_path, vocab, merges)
    found = read_tokenizer_folder(tmp_path)
    assert found.tokenizer is None and problem in found.problem and "\n" not in found.problem


@pytest.mark.parametrize("id", [0.5, -1, True, "2", {}, [2, True], [[2]]])
def test_ids_that_are_none_are_refused(tmp_path, id):
    form_of_2023(tmp_path)
    write(tmp_path, "config.json", {"eos_token_id": id})
    with pytest.raises(UserError, match=r"config.json: eos_token_id is .*, expected a token id"):
        read_tokenizer_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", SETTINGS])
def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch, name):
    form_of_2023(tmp_path)
    for limit in ("LIMIT", "SETTINGS_LIMIT"):
        monkeypatch.setattr(tokenizer_folder, limit, 100_000)
    assert read_tokenizer_folder(tmp_path).problem is None
    with open(tmp_path / name, "a") as file:
        file.truncate(100_001)
    with pytest.raises(UserError, match=f"{name}: more than 100,000 bytes"):
        read_tokenizer_folder(tmp_path)


@pytest.mark.parametrize(("name", "data"), [(SETTINGS, b"\xff"), (SETTINGS, b"[]"), (SETTINGS, b"[" * 100_000)])
def test_settings_that_are_no_json_object_are_refused(tmp_path, name, data):
    form_of_2023(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / name))}: (not valid JSON|expected a JSON)"):
        read_tokenizer_folder(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    assert "not a tokenizer" in read_tokenizer_folder(tmp_path).problem
