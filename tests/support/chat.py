"""Vocabularies and conversations for tests of chats."""

import functools
import hashlib
import itertools
import json

import numpy as np

from gpt2 import GPT2, GPT2Config
from gpt2.data import download, tokenizer
from gpt2.data.chat_template import ChatTemplate
from gpt2.data.chat_vocabulary import chat_vocabulary
from gpt2.data.tokenizer import EOT
from gpt2.data.vocabulary import save_vocabulary
from gpt2.formats.pretrained import vocabulary_path
from gpt2.optimizer import AdamW
from tests.support.vocabulary import byte_level, byte_vocabulary

WORDS = chat_vocabulary(byte_level())


def write_full_gpt2(folder, monkeypatch):
    """Writes GPT-2's vocabulary files with as many tokens, all of one or two bytes, which tokenizer.py then expects."""
    tokens = [token for token in json.loads(byte_vocabulary()["encoder.json"]) if len(token) == 1]
    merges = list(itertools.islice(itertools.product(tokens, tokens), EOT - len(tokens)))
    encoder = {token: id for id, token in enumerate([*tokens, *map("".join, merges), "<|endoftext|>"])}
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    files = {"vocab.bpe": "\n".join(lines).encode(), "encoder.json": json.dumps(encoder).encode()}
    pins = {name: download.Pin(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    monkeypatch.setattr(tokenizer, "VOCAB_FILES", pins)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def talk(*texts, system=None):
    """Returns the messages of a conversation in which the user and the assistant say these in turn."""
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = itertools.cycle(["user", "assistant"])
    return first + [{"role": role, "content": text} for role, text in zip(roles, texts)]  # noqa: B905


TALKS = [
    talk("Hi", "Hello.", "Bye", "So long, friend."),
    talk("Bye", "Good bye."),
    talk("one\ntwo", "Two lines."),
    talk("Hi", "Arr!", system="Be a pirate."),
]


@functools.cache
def tuned_model():
    """Returns a model that was trained on TALKS until it knows them; 3 s."""
    model = GPT2(GPT2Config(maxT=64, V=WORDS.size, L=2, NH=2, C=32), seed=1)
    ids = [ChatTemplate(WORDS).encode(messages)[0] for messages in TALKS]
    rows = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for row, tokens in zip(rows, ids, strict=True):
        row[: len(tokens)] = tokens
    optimizer = AdamW(model)
    for step in range(400):
        if model.overwrite_gradients(rows[:, :-1], rows[:, 1:]) < 0.2 and step > 100:
            break
        optimizer.step(3e-3)
    return model


def endless_model(maxT):
    """Returns a model that says "a" for ever."""
    model = GPT2(GPT2Config(maxT=maxT, V=WORDS.size, L=1, NH=1, C=64))
    model.params_flat[:] = 0
    model.params["wte"][: WORDS.size] = np.random.default_rng(0).standard_normal((WORDS.size, 64))
    model.params["wpe"][:] = 100 * model.params["wte"][ord("a")]
    model.params["lnfw"][:] = 10
    return model


def save(model, path, words=WORDS):
    """Saves a model, and its vocabulary beside it."""
    model.vocabulary = words.sha256
    model.save(path)
    save_vocabulary(words, vocabulary_path(path))
