"""Checks available memory before large allocations."""

import numpy as np

from gpt2 import machine
from gpt2.errors import UserError

_CACHE_LINE = 64


def readable(count):
    """A number of bytes for people: "2.13 GB", or "5.40 MB" below 100 MB."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"


def require(needed_bytes, what, advice="choose a smaller model, batch or sequence"):
    """Raises UserError, saying how much `what` needs and how much there is, if there is too little."""
    available = machine.available_bytes()
    if needed_bytes > available:
        raise UserError(
            f"not enough memory: {what} needs {readable(needed_bytes)}, {readable(available)} are available; {advice}"
        )


def allocate(size, dtype, what):
    """Returns a flat array of `size` zeros, 64-byte aligned. Raises UserError if there is too little memory.

    Aligned, the vectors of a row whose size is a multiple of 64 bytes never straddle two cache lines. NumPy asks the
    system for huge pages.
    """
    itemsize = np.dtype(dtype).itemsize
    require(size * itemsize, what)
    try:
        memory = np.zeros(size + _CACHE_LINE // itemsize, dtype)
        first = -memory.ctypes.data % _CACHE_LINE // itemsize
        return memory[first : first + size]
    except (MemoryError, ValueError) as error:
        raise UserError(f"not enough memory: {what}, {size:,} numbers, were refused by the system") from error
