"""Tokenizers in the forms that transformers has written over the years, without it: tokens, control tokens, digest."""

import json

import pytest
import tokenizers

from gpt2.formats import tokenizer_folder
from gpt2.formats.tokenizer_folder import END_OF_TEXT, read_tokenizer_folder, token_digest, token_list
from tests.support.vocabulary import byte_vocabulary

VOCABULARY = json.loads(byte_vocabulary()["encoder.json"])
SMALL = {token: id for token, id in VOCABULARY.items() if id < 257} | {END_OF_TEXT: 257}
TEXT = "to the end, Zürich<|endoftext|><|user|> 東京\n"


def write(folder, **files):
    """Writes files, the dot in a name as two underscores; a str or bytes as it is, another value as JSON."""
    for name, value in files.items():
        data = value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
        (folder / name.replace("__", ".")).write_bytes(data)


def old_form(**more):
    return {"vocab__json": SMALL, "merges__txt": byte_vocabulary()["vocab.bpe"]} | more


def new_form(**more):
    own = tokenizers.Tokenizer(tokenizers.models.BPE(SMALL, [("Ġ", "t")]))
    own.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = tokenizers.decoders.ByteLevel()
    own.add_special_tokens([END_OF_TEXT])
    return {"tokenizer__json": own.to_str()} | more


@pytest.mark.parametrize("form", [old_form, new_form])
def test_both_forms_are_the_same_vocabulary(tmp_path, form):
    write(tmp_path, **form())
    found = read_tokenizer_folder(tmp_path)
    assert found.problem is None and token_list(found.tokenizer) == list(SMALL)
    assert token_digest(list(SMALL)) == token_digest(token_list(found.tokenizer)) != token_digest(list(SMALL)[1:])
    ids = found.tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert 256 in ids and 257 not in ids  # " t"; a control token's name is text
    assert found.tokenizer.decode(ids) == TEXT


UNREADABLE = "not a tokenizer that the tokenizers library can read: "
ADDED = {"content": "<|user|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize(
    "more",
    [
        {"added_tokens__json": {"<|user|>": 258}},
        {"tokenizer_config__json": {"added_tokens_decoder": {"258": ADDED}}},
        {"tokenizer_config__json": {"additional_special_tokens": ["<|user|>"]}},
        {"tokenizer_config__json": {"extra_special_tokens": {"user_token": "<|user|>"}}},
        {"special_tokens_map__json": {"pad_token": {"content": "<|user|>"}}},
    ],
)
@pytest.mark.parametrize("form", [old_form, new_form])
def test_tokens_are_added_in_every_way(tmp_path, form, more):
    write(tmp_path, **form(**more))
    assert token_list(read_tokenizer_folder(tmp_path).tokenizer) == [*SMALL, "<|user|>"]


@pytest.mark.parametrize(("value", "prefix"), [(True, (257,)), (False, ()), (None, ())])
def test_a_tokenizer_may_put_a_token_before_every_text(tmp_path, value, prefix):
    write(tmp_path, **old_form(tokenizer_config__json={"bos_token": END_OF_TEXT, "add_bos_token": value}))
    assert read_tokenizer_folder(tmp_path).prefix == prefix


def test_a_space_may_precede_every_text(tmp_path):
    write(tmp_path, **old_form(tokenizer_config__json={"add_prefix_space": True}))
    assert read_tokenizer_folder(tmp_path).tokenizer.encode("to").ids == [256, SMALL["o"]]


def test_gpt2s_own_tokens_have_no_digest(monkeypatch):
    monkeypatch.setattr(tokenizer_folder, "GPT2_SHA256", token_digest(list(SMALL)))
    assert token_digest(list(SMALL)) is None and token_digest([*SMALL, "<|user|>"]) is not None
