"""Inverted dropout (Srivastava et al., 2014): zeroes elements with probability p, scales the others by 1 / (1 - p).

Masks are never stored: an element's random bits are a hash of where it stands, so the backward pass makes them again,
and they depend on neither threads nor tiling. Column j of row r of a mask with a 64-bit key is dropped if its hash, in
32 bits, is below p 2^32:

    low, high = the 32-bit halves of output r (from 0) of SplitMix64 (Steele, Lea and Flood, 2014), seeded with the key
    x = j ^ low
    x = (x ^ x >> 16) * 0x7FEB352D
    x = (x ^ x >> 15 ^ high) * 0x846CA68B
    hash = x ^ x >> 16

The last three lines are lowbias32 (Wellons, Prospecting for Hash Functions, 2018), with half of the row's key put in
between the multiplications. In 32 bits, LLVM vectorises it.
"""

import hashlib
import struct
import typing

import numpy as np
from numba import prange

from gpt2.kernels.engine.jit import inline, kernel

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOW1, _LOW2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_15, _16, _27, _30, _31, _32 = np.uint32(15), np.uint32(16), *map(np.uint64, (27, 30, 31, 32))
_ONE, _HALF = np.uint64(1), np.uint64(0xFFFFFFFF)

# The mask that drops nothing.
KEEP_ALL = np.uint64(0), np.uint32(0), 1.0


class Dropout(typing.NamedTuple):
    """Dropout of one pass: its probability, 0 <= p < 1, and what its masks depend on. False if p is 0."""

    p: float
    seed: int
    step: int
    micro_step: int

    def __bool__(self):
        return self.p > 0

    def mask(self, layer, place):
        """A mask as kernels take it: (key, highest dropped hash + 1, scale of what is kept).

        The key is the first 8 bytes, little-endian, of the SHA-256 of seed, step, micro-step, layer and place as
        little-endian int64.
        """
        place = struct.pack("<5q", self.seed, self.step, self.micro_step, layer, place)
        key = int.from_bytes(hashlib.sha256(place).digest()[:8], "little")
        return np.uint64(key), np.uint32(int(self.p * 2**32)), 1 / (1 - self.p)


@inline
def drop(values, row, mask):
    """Applies a row of a mask in place: values (n,)."""
    key, threshold, scale = mask
    bits = key + (np.uint64(row) + _ONE) * _GAMMA
    bits = (bits ^ (bits >> _30)) * _MIX1
    bits = (bits ^ (bits >> _27)) * _MIX2
    bits ^= bits >> _31
    low, high = np.uint32(bits & _HALF), np.uint32(bits >> _32)
    zero, factor = values.dtype.type(0), values.dtype.type(scale)
    for j in range(values.size):
        x = np.uint32(np.uint32(j) ^ low)
        x = np.uint32(np.uint32(x ^ np.uint32(x >> _16)) * _LOW1)
        x = np.uint32(np.uint32(x ^ np.uint32(x >> _15) ^ high) * _LOW2)
        x = np.uint32(x ^ np.uint32(x >> _16))
        values[j] = zero if x < threshold else values[j] * factor


@kernel
def dropout_forward(out, inp, mask):
    """out = inp with a mask applied: out, inp (N,C); they may be the same. It is its own backward pass."""
    for n in prange(inp.shape[0]):
        out_row, row = out[n], inp[n]
        for c in range(row.size):
            out_row[c] = row[c]
        drop(out_row, n, mask)


@kernel
def dropout_residual_forward(out, residual, mask):
    """out = residual + out with a mask applied, in place: out, residual (N,C)."""
    for n in prange(out.shape[0]):
        out_row, residual_row = out[n], residual[n]
        drop(out_row, n, mask)
        for c in range(out_row.size):
            out_row[c] += residual_row[c]
