"""Vocabularies: any text comes back, the same texts give the same vocabulary."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.trained_vocabulary import LARGEST, byte_pairs, characters
from gpt2.data.vocabulary import (
    GPT2Vocabulary,
    UnknownVocabulary,
    extends,
    load_vocabulary,
    save_vocabulary,
    vocabulary_of,
)
from gpt2.errors import UserError
from gpt2.formats.llmc import UNKNOWN_VOCABULARY, write_token_file, write_tokens
from gpt2.formats.tokenizer_folder import END_OF_TEXT
from tests.support.vocabulary import byte_level, grown_by

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n" * 20
ANY = "é\u4e16\U0001f600 \u0301\x00\t\r\n  <|endoftext|> \ufffd"


@pytest.fixture(scope="module")
def pairs():
    return byte_pairs([TEXT], 300)


def test_byte_pairs_give_any_text_back(pairs):
    assert (pairs.size, pairs.begin, pairs.ends) == (300, 295, (295,))

    @settings(max_examples=200, deadline=None)
    @given(st.text())
    def holds(text):
        tokens = pairs.encode(text)
        assert pairs.decode(tokens) == text

    holds()
    assert pairs.decode(pairs.encode(ANY)) == ANY
    assert len(pairs.encode(TEXT)) < len(TEXT) / 2


def test_a_text_that_spells_a_control_token_does_not_contain_it(pairs):
    for each in (pairs, characters([TEXT + END_OF_TEXT])):
        tokens = each.encode(f"to{END_OF_TEXT}be")
        assert each.begin not in tokens and each.decode(tokens) == f"to{END_OF_TEXT}be"
        assert each.decode([each.begin]) == END_OF_TEXT


def test_several_texts_are_encoded_as_one_by_one(pairs):
    assert pairs.encode_all([TEXT, ANY, ""]) == [pairs.encode(text) for text in (TEXT, ANY, "")]


def test_the_same_texts_give_the_same_vocabulary(pairs):
    assert byte_pairs(iter([TEXT]), 300).sha256 == pairs.sha256
    assert byte_pairs([TEXT + "x"], 299).sha256 != pairs.sha256


def test_characters_are_tokens():
    words = characters(["ab", "cé\n", "b"])
    assert words.size == 4 + 1 + 5 and words.encode("\nabcé") == [0, 1, 2, 3, 4]
    assert words.decode([0, 1, 2, 3, 4]) == "\nabcé"


def test_a_character_that_is_missing_is_named_with_its_place():
    words = characters(["ab\n"])
    for encode in (words.encode, lambda text, source: words.encode_all(["a", text], source)):
        with pytest.raises(
            UserError, match=re.escape("mine.txt: the vocabulary has no 'é' (U+00E9, line 2, character 3")
        ):
            encode("ab\nabéx", "mine.txt")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (260, "bpe:260: choose a size from 261"),
        (65_537, "bpe:65537: choose a size"),
        (60_000, "bpe:60000: the text allows "),
    ],
)
def test_sizes_that_cannot_be_are_refused(size, message):
    with pytest.raises(UserError, match=f"^{message}"):
        byte_pairs([TEXT], size)


def test_too_many_characters_are_refused():
    with pytest.raises(UserError, match="different characters"):
        characters(["".join(map(chr, range(0x10000, 0x10000 + LARGEST)))])


def test_a_saved_vocabulary_is_the_same(pairs, tmp_path):
    save_vocabulary(pairs, tmp_path / "saved")
    loaded = load_vocabulary(tmp_path / "saved")
    assert loaded.sha256 == pairs.sha256 and loaded.encode(TEXT) == pairs.encode(TEXT)
    assert (loaded.size, loaded.begin, loaded.ends) == (pairs.size, pairs.begin, pairs.ends)


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        ("tokenizer.json", "{}", ": not a tokenizer that the tokenizers library can read"),
        ("tokenizer.json", "\udcff", ": not a tokenizer that the tokenizers library can read"),
        ("tokenizer.json", None, ": no tokenizer.json there, nor vocab.json with merges.txt"),
        ("tokenizer_config.json", "{", "/tokenizer_config.json: not valid JSON"),
        ("tokenizer_config.json", "[]", "/tokenizer_config.json: expected a JSON object"),
    ],
)
def test_a_damaged_vocabulary_is_named(pairs, tmp_path, file, contents, message):
    folder = tmp_path / "saved"
    save_vocabulary(pairs, folder)
    if contents is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(contents.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"^{re.escape(f'{folder}{message}')}") as error:
        load_vocabulary(folder)
    assert "\n" not in str(error.value)


def test_control_tokens_may_be_given_as_objects(pairs, tmp_path):
    save_vocabulary(pairs, tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": END_OF_TEXT}}))
    loaded = load_vocabulary(tmp_path / "saved")
    assert (loaded.begin, loaded.ends) == (295, (295,))  # the name of the latter is transformers' default


def test_a_vocabulary_replaces_another_but_nothing_else(pairs, tmp_path):
    path = tmp_path / "saved"
    save_vocabulary(pairs, path)
    before = path.stat().st_ino
    save_vocabulary(pairs, path)
    assert path.stat().st_ino == before  # not written again
    other = byte_pairs([TEXT], 290)
    save_vocabulary(other, path)
    assert load_vocabulary(path).sha256 == other.sha256
    (path / "thesis.txt").write_text("years of work")
    for words in (pairs, GPT2Vocabulary()):
        with pytest.raises(UserError, match=r"saved: 'thesis\.txt' is no part of a vocabulary, so it is not replaced"):
            save_vocabulary(words, path)
    assert (path / "thesis.txt").read_text() == "years of work" and load_vocabulary(path).sha256 == other.sha256
    (path / "thesis.txt").unlink()
    save_vocabulary(GPT2Vocabulary(), path)  # of which there are no files
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(UserError, match=r"saved: 'saved' is no part of a vocabulary"):
        save_vocabulary(pairs, path)
    assert path.read_text() == "a file" and list(tmp_path.iterdir()) == [path]


def test_the_vocabulary_of_a_token_file_is_the_one_beside_it(pairs, tmp_path):
    ids = pairs.encode(TEXT)
    for name in ("mine_train.bin", "mine_val.bin", "mine_train_0012.bin"):
        with open(tmp_path / name, "wb") as file:
            write_token_file(file, ids, pairs.sha256)
        with pytest.raises(UserError, match=re.escape(f"{name}: its tokens are not GPT-2's, and {tmp_path}")):
            vocabulary_of(tmp_path / name)
    save_vocabulary(pairs, tmp_path / "mine_vocabulary")
    for name in ("mine_train.bin", "mine_val.bin", "mine_train_0012.bin"):
        assert vocabulary_of(tmp_path / name).sha256 == pairs.sha256
    save_vocabulary(byte_pairs([TEXT], 290), tmp_path / "mine_vocabulary")
    with pytest.raises(UserError, match="its tokens are of another vocabulary than"):
        vocabulary_of(tmp_path / "mine_train.bin")


def test_a_token_file_that_names_no_vocabulary_is_gpt2s_and_one_without_a_header_unknown(tmp_path):
    write_tokens(tmp_path / "a.bin", [1, 2])
    (tmp_path / "ids.bin").write_bytes(bytes(range(200)))
    assert isinstance(vocabulary_of(tmp_path / "a.bin"), GPT2Vocabulary)
    unknown = vocabulary_of(tmp_path / "ids.bin")
    assert unknown.sha256 == UNKNOWN_VOCABULARY
    assert unknown.problem == f"{tmp_path}/ids.bin: its header does not say of what vocabulary its ids are"


def test_one_vocabulary_extends_another_if_it_has_its_tokens_in_their_places():
    small, larger = byte_level(), byte_level(b"the")
    assert extends(small, small) and extends(GPT2Vocabulary(), GPT2Vocabulary())
    assert not extends(larger, small)  # <|endoftext|> is last in both
    grown = grown_by(small, "<|user|>")
    assert grown.size == small.size + 1 and extends(grown, small) and not extends(small, grown)
    unknown = UnknownVocabulary("nowhere to be found")
    assert not extends(unknown, small) and not extends(unknown, GPT2Vocabulary())
    assert not extends(small, GPT2Vocabulary()) and not extends(GPT2Vocabulary(), small)
