"""Vocabularies of the 256 bytes, small stand-ins for GPT-2's."""

import hashlib
import json

from gpt2.data import download, tokenizer
from gpt2.data.tokenizer import EOT, Encoding

# A token's id is its byte; token 256 ends in the middle of a character.
BYTES = Encoding(
    "bytes",
    pat_str=r"[\s\S]",
    mergeable_ranks={bytes([byte]): byte for byte in range(256)} | {b" \xe2\x80": 256},
    special_tokens={"<|endoftext|>": EOT},
)


def byte_vocabulary():
    """Returns {file name: bytes}: vocab.bpe and encoder.json with the 256 bytes as tokens, and " t" as token 256."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte != 32]
    others = [byte for byte in range(256) if byte not in printable]
    tokens = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))] + ["\u0120t"]
    encoder = {token: n for n, token in enumerate(tokens)} | {"<|endoftext|>": EOT}
    return {"vocab.bpe": "#version: 0.2\n\u0120 t\n".encode(), "encoder.json": json.dumps(encoder).encode()}


def pin_byte_vocabulary(monkeypatch):
    """Makes tokenizer.py expect the byte vocabulary, at an address where nothing answers."""
    pins = {name: download.Pin(len(data), hashlib.sha256(data).hexdigest()) for name, data in byte_vocabulary().items()}
    monkeypatch.setattr(tokenizer, "VOCAB_FILES", pins)
    monkeypatch.setattr(tokenizer, "VOCAB_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def write_vocabulary(folder):
    for name, data in byte_vocabulary().items():
        (folder / name).write_bytes(data)
