"""Vocabularies of the 256 bytes, small stand-ins for a model's own and for GPT-2's."""

import functools
import hashlib
import itertools
import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from gpt2 import GPT2, model
from gpt2.config import PRESETS
from gpt2.data import download, tokenizer
from gpt2.data.tokenizer import EOT, Encoding
from gpt2.data.vocabulary import GPT2Vocabulary, Vocabulary, model_vocabulary, save_vocabulary
from gpt2.formats import huggingface, llmc
from gpt2.formats.llmc import write_token_file
from gpt2.formats.tokenizer_folder import OTHERS, TokenizerFolder

END = "<|endoftext|>"


def byte_level(*more):
    """Returns a Vocabulary in which a token's id is its byte; `more`, bytes, follow, and then <|endoftext|>.

    No text is encoded to one of `more`.
    """
    character = dict(zip(_byte_order(), _byte_characters(), strict=True))
    tokens = ["".join(character[byte] for byte in token) for token in (*map(bytes, zip(range(256))), *more)]
    own = tokenizers.Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, []))
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own.add_special_tokens([END])
    settings = {"bos_token": END, "eos_token": END}
    files = {"tokenizer.json": own.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    own.encode_special_tokens = True
    end = len(tokens)
    return Vocabulary(TokenizerFolder(files, tokenizer=own, begin=end, ends=(end,)))


def grown_by(vocabulary, *tokens):
    """Returns a Vocabulary with control tokens added to another, as fine-tuning does."""
    own = tokenizers.Tokenizer.from_str(vocabulary.files["tokenizer.json"].decode())
    own.add_special_tokens(list(tokens))
    files = vocabulary.files | {"tokenizer.json": own.to_str().encode()}
    own.encode_special_tokens = True
    return Vocabulary(TokenizerFolder(files, tokenizer=own, begin=vocabulary.begin, ends=vocabulary.ends))


def write_foreign_folder(path, config, words=None):
    """Writes a Hugging Face folder with all that there may be in one; returns its Vocabulary.

    words: a Vocabulary, by default one of the bytes, " t", <|endoftext|> and <|user|>, which ends a text, too.
    """
    words = words or grown_by(byte_level(b" t"), "<|user|>")
    path = pathlib.Path(path)
    path.mkdir()
    files = {name: f"as {name} was".encode() for name in OTHERS}
    end = words.ends[0]
    settings = {
        "tokenizer_config.json": {"bos_token": END, "eos_token": END, "pad_token": END, "model_max_length": 16},
        "special_tokens_map.json": {"bos_token": END, "eos_token": {"content": END, "lstrip": False}},
        "added_tokens.json": {END: end},
        "generation_config.json": {"bos_token_id": end, "eos_token_id": [end, words.size - 1], "temperature": 0.7},
        "config.json": {
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": 3,
            "task_specific_params": {"a": 1},
        },
    }
    files |= {name: json.dumps(fields, indent=3).encode() for name, fields in settings.items()}
    files |= {"tokenizer.json": words.files["tokenizer.json"], "chat_template.jinja": b"{{ messages }}"}
    huggingface.save_folder(path, config, GPT2(config, seed=1).params_flat, vocabulary=TokenizerFolder(files))
    return model_vocabulary(path)


def files_of(path):
    """Returns a dict of name -> bytes of the files in a folder, but for the model card, which has its name."""
    return {file.name: file.read_bytes() for file in pathlib.Path(path).iterdir() if file.name != "README.md"}


def write_tokens_of(vocabulary, path, tokens):
    """Writes a token file, and its vocabulary beside it; path: a pathlib.Path, NAME_train.bin or NAME_val.bin."""
    with open(path, "wb") as file:
        write_token_file(file, tokens, vocabulary.sha256)
    save_vocabulary(vocabulary, path.with_name(f"{path.stem.rpartition('_')[0]}_vocabulary"))


def _byte_order():
    """The bytes in the order of GPT-2's tokens."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != 32]
    return [*printable, *(byte for byte in range(256) if byte not in printable)]


def _byte_characters():
    """What stands for each of them in GPT-2's files."""
    printable = [chr(byte) for byte in range(256) if chr(byte).isprintable() and byte != 32]
    return [*printable, *map(chr, range(256, 256 + 256 - len(printable)))]


# Token 256 ends in the middle of a character, 257 is <|endoftext|>.
BYTES = byte_level(b" \xe2\x80")


def shrink_gpt2(monkeypatch, config):
    """Makes `config` GPT-2's, at most 257 tokens, and its vocabulary the first bytes and <|endoftext|>."""
    end = config.V - 1
    ranks = {bytes([byte]): byte for byte in range(end)}
    small = Encoding("small", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={END: end})
    monkeypatch.setitem(PRESETS, "gpt2", config)
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda data_dir=None: small)
    for module in (llmc, model):
        monkeypatch.setattr(module, "GPT2_SIZE", config.V)
    for name, value in {"size": config.V, "begin": end, "ends": (end,), "control_tokens": {end}}.items():
        monkeypatch.setattr(GPT2Vocabulary, name, value)


@functools.cache
def byte_vocabulary(whole=False):
    """Returns {file name: bytes}: vocab.bpe and encoder.json with the 256 bytes as tokens, and " t" as token 256.

    whole: with as many tokens as GPT-2's, 0.3 s to read; those from 257 on are in no text.
    """
    rare = [character for byte, character in zip(_byte_order(), _byte_characters(), strict=True) if byte >= 0xF6]
    words = itertools.chain.from_iterable(itertools.product(rare, repeat=length) for length in range(2, 6))
    more = ["".join(word) for word in itertools.islice(words, EOT - 257 if whole else 0)]
    encoder = {token: n for n, token in enumerate([*_byte_characters(), "\u0120t", *more])} | {END: EOT}
    merges = ["\u0120 t", *(f"{token[:-1]} {token[-1]}" for token in more)]
    return {
        "vocab.bpe": "\n".join(["#version: 0.2", *merges, ""]).encode(),
        "encoder.json": json.dumps(encoder).encode(),
    }


def pin_byte_vocabulary(monkeypatch, whole=False):
    """Makes tokenizer.py expect the byte vocabulary, at an address where nothing answers."""
    files = byte_vocabulary(whole)
    pins = {name: download.Pin(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    monkeypatch.setattr(tokenizer, "VOCAB_FILES", pins)
    monkeypatch.setattr(tokenizer, "VOCAB_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def write_vocabulary(folder, whole=False):
    for name, data in byte_vocabulary(whole).items():
        (folder / name).write_bytes(data)
