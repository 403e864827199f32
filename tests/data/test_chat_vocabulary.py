"""Vocabularies for conversations: control tokens reserved or added, and the files that go with them."""

import json

import pytest

import gpt2.data.chat_vocabulary
from gpt2.data.chat_vocabulary import chat_vocabulary
from gpt2.data.trained_vocabulary import CHAT_TOKENS, byte_pairs, characters
from gpt2.data.vocabulary import GPT2Vocabulary, UnknownVocabulary, extends, load_vocabulary, save_vocabulary
from gpt2.errors import UserError
from gpt2.formats.tokenizer_folder import END_OF_TEXT
from tests.support.chat import write_full_gpt2
from tests.support.vocabulary import pin_byte_vocabulary, write_vocabulary

TEXT = "To be, or not to be: that is the question.\n" * 20


@pytest.fixture
def byte_gpt2(tmp_path, monkeypatch):
    """A stand-in for GPT-2's vocabulary, in which texts are bytes; there is a token for every id."""
    write_full_gpt2(tmp_path, monkeypatch)
    return GPT2Vocabulary(tmp_path)


def without_chat_tokens(words, folder):
    """Returns a vocabulary as made before control tokens were reserved, in a folder with a model's config.json."""
    tokenizer = json.loads(words.files["tokenizer.json"])
    added = [token for token in tokenizer["added_tokens"] if token["content"] == END_OF_TEXT]
    files = words.files | {
        "tokenizer.json": json.dumps(tokenizer | {"added_tokens": added}).encode(),
        "config.json": json.dumps(
            {"vocab_size": words.size - 4, "eos_token_id": added[0]["id"], "n_layer": 3}
        ).encode(),
    }
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return load_vocabulary(folder)


@pytest.mark.parametrize("make", [lambda: byte_pairs([TEXT], 280), lambda: characters([TEXT])])
def test_own_vocabularies_reserve_the_control_tokens(make, tmp_path):
    words = make()
    assert words.tokens[-5:] == [END_OF_TEXT, *CHAT_TOKENS]
    assert words.begin == words.size - 5 and words.ends == (words.begin,)
    chat = chat_vocabulary(words)
    assert chat.sha256 == words.sha256 and chat.ends == (words.begin, words.size - 1)
    save_vocabulary(chat, tmp_path / "mine_vocabulary")
    loaded = load_vocabulary(tmp_path / "mine_vocabulary")
    assert (loaded.tokens, loaded.begin, loaded.ends) == (chat.tokens, chat.begin, chat.ends)
    assert chat_vocabulary(loaded) is loaded


def test_gpt2s_vocabulary_grows_by_four(byte_gpt2, tmp_path):
    chat = chat_vocabulary(byte_gpt2, tmp_path)
    assert chat.size == 50257 + 4 and chat.tokens[50256:] == [END_OF_TEXT, *CHAT_TOKENS]
    assert (chat.begin, chat.ends) == (50256, (50256, 50260))
    text = "a \u00e9\u4e16\U0001f600\n\n the <|end|> that<|user|>"
    assert chat.encode(text) == byte_gpt2.encode(text) and chat.decode(chat.encode(text)) == text
    save_vocabulary(chat, tmp_path / "mine_vocabulary")
    loaded = load_vocabulary(tmp_path / "mine_vocabulary")
    assert (loaded.sha256, loaded.begin, loaded.ends) == (chat.sha256, chat.begin, chat.ends)
    generation = json.loads(chat.files["generation_config.json"])
    assert generation == {"bos_token_id": 50256, "eos_token_id": [50256, 50260], "pad_token_id": 50256}
    settings = json.loads(chat.files["tokenizer_config.json"])
    assert {settings[f"{name}_token"] for name in ("bos", "eos", "pad")} == {END_OF_TEXT}


def test_a_models_vocabulary_keeps_its_tokens_and_settings(tmp_path):
    old = without_chat_tokens(byte_pairs([TEXT], 280), tmp_path / "model")
    chat = chat_vocabulary(old)
    assert chat.size == old.size + 4 and chat.tokens[: old.size] == old.tokens and extends(chat, old)
    assert chat.ends == (*old.ends, chat.size - 1)
    save_vocabulary(chat, tmp_path / "mine_vocabulary")
    loaded = load_vocabulary(tmp_path / "mine_vocabulary")
    assert (loaded.tokens, loaded.ends) == (chat.tokens, chat.ends)
    assert json.loads(loaded.files["config.json"])["n_layer"] == 3


def test_a_vocabulary_in_gpt2s_form_becomes_one_in_tokenizer_json(byte_gpt2, tmp_path):
    (tmp_path / "encoder.json").rename(tmp_path / "vocab.json")
    (tmp_path / "vocab.bpe").rename(tmp_path / "merges.txt")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|more|>": 50257}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": END_OF_TEXT}}))
    old = load_vocabulary(tmp_path)
    chat = chat_vocabulary(old)
    assert sorted(chat.files) == [
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert chat.tokens[50256:] == [END_OF_TEXT, "<|more|>", *CHAT_TOKENS] and chat.begin == old.begin == 50256
    assert json.loads(chat.files["tokenizer_config.json"])["bos_token"] == {"content": END_OF_TEXT}


def test_a_vocabulary_with_a_template_of_its_own_stays(tmp_path):
    old = without_chat_tokens(byte_pairs([TEXT], 280), tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    words = load_vocabulary(tmp_path / "model")
    assert chat_vocabulary(words) is words and words.size == old.size


def test_a_vocabulary_whose_ids_have_gaps_is_refused(tmp_path, monkeypatch):
    pin_byte_vocabulary(monkeypatch)
    write_vocabulary(tmp_path)
    with pytest.raises(UserError, match="tokens for conversations cannot follow its own, whose ids have gaps"):
        chat_vocabulary(GPT2Vocabulary(tmp_path), tmp_path)


def test_what_cannot_be_extended_is_refused(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"^no tokenizer$"):
        chat_vocabulary(UnknownVocabulary("no tokenizer"))
    old = without_chat_tokens(byte_pairs([TEXT], 280), tmp_path / "model")
    monkeypatch.setattr(gpt2.data.chat_vocabulary, "LARGEST", 278)
    with pytest.raises(UserError, match=r"model: 280 tokens with those for conversations, at most 278 fit$"):
        chat_vocabulary(old)
