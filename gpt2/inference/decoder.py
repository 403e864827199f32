"""Incremental forward pass: GPT-2 with a KV cache."""

import numpy as np

from gpt2.errors import UserError
from gpt2.kernels.decode import Scratch, Weights, append, last_logits, reorder, scratch_shapes
from gpt2.layout import Layout, parameter_layout
from gpt2.memory import allocate

CHUNK = 512  # rows of a prompt that go through the layers at a time


def cache_layout(config, batch_size, length, narrow=False):
    """The KV cache for `length` tokens of each sequence, and the scratch memory of a forward pass.

    narrow: whether weights are in a narrower form than float32.
    """
    shape = (config.L, batch_size, config.NH, length, config.HS)
    rows = max(batch_size, min(CHUNK, batch_size * length))
    scratch = scratch_shapes(rows, batch_size, length, config.V, config.NH, config.C, narrow)
    return Layout({"keys": shape, "values": shape, "reordered": (config.L * batch_size * config.C,), **scratch})


class Decoder:
    """Computes next-token logits for `batch_size` sequences of up to `length` tokens, with a KV cache.

    Attributes: `config`, `batch_size`, `length`; `positions`, int64 (batch_size,), the number of cached tokens of each
    sequence; `position`, that of all, if they are alike. Setting one to a smaller number drops the tokens after it.
    """

    def __init__(self, config, params, batch_size=1, length=None):
        """params: float32 (parameter_layout(config).size,), or Weights; shared, read-only. length: at most maxT, the
        default.

        Raises UserError for sizes out of range, or if there is too little memory.
        """
        length = config.maxT if length is None else length
        if batch_size < 1 or not 1 <= length <= config.maxT:
            raise UserError(
                f"{batch_size} sequences of {length} tokens: expected at least 1 sequence of 1 to {config.maxT} tokens"
            )
        self.config, self.batch_size, self.length = config, batch_size, length
        self._weights = params if isinstance(params, Weights) else Weights(**parameter_layout(config).views(params))
        dtype = self._weights.wpe.dtype
        layout = cache_layout(config, batch_size, length, narrow=self._weights.wte.dtype != dtype)
        tensors = layout.views(allocate(layout.size, dtype, f"a KV cache of {batch_size}x{length} tokens"))
        self._keys, self._values, self._reordered = (tensors.pop(name) for name in ("keys", "values", "reordered"))
        self._scratch = Scratch(**tensors)
        self.positions = np.zeros(batch_size, np.int64)

    @property
    def position(self):
        return int(self.positions[0])

    @position.setter
    def position(self, position):
        if not 0 <= position <= self.position:
            raise ValueError(f"position {position}: expected 0 to {self.position}, the number of cached tokens")
        self.positions[:] = position

    def forward(self, tokens, rows=None):
        """Appends tokens to each sequence; returns the logits of the next token, float32 (batch_size,V).

        tokens: integers (batch_size,n) below V. With an empty cache, (1,n) is a prompt shared by all sequences and
        computed once. rows: the sequences that tokens (B,n) are for, different integers, for logits (B,V); their
        lengths may differ. The next call overwrites the array returned. Raises UserError for invalid tokens, or more
        than fit.
        """
        tokens = np.asarray(tokens)
        shared = rows is None and self.position == 0 and tokens.shape[:1] == (1,)
        rows = np.arange(1 if shared else self.batch_size) if rows is None else np.asarray(rows, np.int64)
        tokens = self._checked(tokens, rows)
        B, n = tokens.shape
        written = slice(None) if shared else rows
        step = max(1, CHUNK // B)
        for start in range(0, n, step):
            chunk = np.ascontiguousarray(tokens[:, start : start + step])
            append(self._scratch, self._weights, self._keys, self._values, chunk, rows, self.positions)
            end = start + chunk.shape[1]
            if shared:
                for cache in (self._keys, self._values):
                    cache[:, 1:, :, start:end] = cache[:, :1, :, start:end]
            self.positions[written] += chunk.shape[1]
        last_logits(self._scratch, self._weights, B, chunk.shape[1])
        logits = self._scratch.logits
        if shared:
            logits[1:] = logits[0]
        return logits if shared else logits[:B]

    def reorder(self, rows):
        """Replaces each sequence i by a copy of sequence rows[i]; rows: integers (batch_size,)."""
        rows = np.asarray(rows)
        if rows.shape != (self.batch_size,) or rows.min() < 0 or rows.max() >= self.batch_size:
            raise ValueError(
                f"rows {rows.tolist()}: expected {self.batch_size} numbers from 0 to {self.batch_size - 1}"
            )
        if np.array_equal(rows, np.arange(self.batch_size)):
            return
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        for cache in (self._keys, self._values):
            reorder(cache, rows, self.position, self._reordered)

    def _checked(self, tokens, rows):
        config, most = self.config, self.length - int(self.positions[rows].max())
        if tokens.ndim != 2 or tokens.size == 0 or tokens.dtype.kind not in "iu":
            raise UserError(f"tokens of shape {tokens.shape}, {tokens.dtype}: expected integers (B, n), at least one")
        if tokens.shape[0] != rows.size:
            raise UserError(f"tokens of {tokens.shape[0]} sequences: expected {rows.size}, as in the cache")
        if tokens.shape[1] > most:
            raise UserError(f"{tokens.shape[1]} tokens: the cache of {self.length} has room for {most}")
        if tokens.min() < 0 or tokens.max() >= config.V:
            raise UserError(f"a token is out of range: expected 0 to {config.V - 1}")
        return np.ascontiguousarray(tokens, dtype=np.int32)
