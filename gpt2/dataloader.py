"""Token files cut into (B, T) batches in llm.c's order, with a position that can be saved."""

import glob
import os

import numpy as np

from gpt2.errors import UserError
from gpt2.files import HEADER_BYTES, check_size, open_to_read, read_header

MAGIC = 20240520
VERSION = 1
CHUNK = 2**24  # tokens checked at a time


class DataLoader:
    """Walks through token files in sequence: batch k of a file takes B*T+1 tokens starting at k*B*T.

    When fewer remain it goes on with the next file, by name, and after the last with the first, one epoch later.
    patterns: a path or a glob, or a list of those. V: every token id must be below it.
    Raises UserError for no such file, a malformed one, an id at or above V, and fewer than B*T+1 tokens in a file.
    Attributes: `shards`, each file's ids, mapped, integers (count,); `num_tokens` in all of them; `num_batches` in an
    epoch.
    """

    def __init__(self, patterns, B, T, V):
        if B < 1 or T < 1:
            raise UserError(f"a batch of {B} x {T} tokens; both must be at least 1")
        self.B, self.T = B, T
        self.shards = []
        self._shard_batches = []
        for path in _expand(patterns):
            tokens = _open_tokens(path, V)
            if tokens.size < B * T + 1:
                raise UserError(f"{path}: {tokens.size:,} tokens, a batch of {B} x {T} takes at least {B * T + 1:,}")
            self.shards.append(tokens)
            self._shard_batches.append((tokens.size - 1) // (B * T))
        self.num_tokens = sum(tokens.size for tokens in self.shards)
        self.num_batches = sum(self._shard_batches)
        self.reset()

    def next_batch(self):
        """Returns (tokens, targets), int32 (B, T) each; both are views of one new array of B*T+1 tokens."""
        epoch, shard, batch = self._position
        size = self.B * self.T
        window = self.shards[shard][batch * size : (batch + 1) * size + 1].astype(np.int32)
        batch += 1
        if batch == self._shard_batches[shard]:
            shard, batch = shard + 1, 0
        if shard == len(self.shards):
            epoch, shard = epoch + 1, 0
        self._position = epoch, shard, batch
        return window[:-1].reshape(self.B, self.T), window[1:].reshape(self.B, self.T)

    def reset(self):
        """Goes back to the first batch of the first epoch."""
        self._position = 0, 0, 0

    @property
    def position(self):
        """(epoch, file, batch) of the next batch, each counted from 0. Assigning a saved one goes on from there."""
        return self._position

    @position.setter
    def position(self, value):
        epoch, shard, batch = value
        if epoch < 0 or not 0 <= shard < len(self.shards) or not 0 <= batch < self._shard_batches[shard]:
            raise UserError(f"position {tuple(value)} is not in these token files; have they or the batch changed?")
        self._position = epoch, shard, batch


def _expand(patterns):
    """The files that the patterns name, each once, sorted by name."""
    paths = set()
    for pattern in [patterns] if isinstance(patterns, str | os.PathLike) else patterns:
        pattern = os.fspath(pattern)
        # A file may have brackets in its name.
        found = [pattern] if os.path.exists(pattern) else glob.glob(pattern)
        if not found:
            raise UserError(f"{pattern}: no such token file; prepro_tinyshakespeare.py makes some")
        paths.update(found)
    return sorted(paths)


def _open_tokens(path, V):
    """Maps the tokens of a file, of either format, into memory: int (count,), every one in 0 .. V-1."""
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise UserError(f"{path}: empty, expected a file of tokens")
        if file.read(4) == np.array(MAGIC, dtype="<i4").tobytes():
            file.seek(0)
            _, version, count = (int(value) for value in read_header(file, path, "a token file")[:3])
            if version != VERSION:
                raise UserError(f"{path}: token file of version {version}, expected {VERSION}")
            if count < 1:
                raise UserError(f"{path}: the header says {count} tokens, expected at least one")
            check_size(file, path, HEADER_BYTES + 2 * count, f"a header and {count:,} uint16 tokens")
            tokens = np.memmap(file, dtype="<u2", mode="r", offset=HEADER_BYTES)
        elif size % 4:
            raise UserError(f"{path}: {size:,} bytes without a token file's header, and not a multiple of 4 for int32")
        else:
            tokens = np.memmap(file, dtype="<i4", mode="r")
    _check_ids(tokens, path, V)
    return tokens


def _check_ids(tokens, path, V):
    for start in range(0, tokens.size, CHUNK):
        chunk = tokens[start : start + CHUNK]
        if chunk.min() < 0 or chunk.max() >= V:
            wrong = int(np.flatnonzero((chunk < 0) | (chunk >= V))[0])
            raise UserError(
                f"{path}: token {chunk[wrong]} at position {start + wrong:,} is not in 0 .. {V - 1}; "
                "is it a token file, and made with this model's vocabulary?"
            )
