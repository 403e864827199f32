"""exp and maximum in plain arithmetic, so that LLVM vectorises loops that call them.

np.exp of a float32 calls the C library once per element.
"""

import math

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from gpt2.kernels.engine.jit import FASTMATH

# Reassociation would recombine the two parts of ln 2.
_options = {"fastmath": FASTMATH - {"reassoc"}, "error_model": "numpy"}

_LOG2_E = np.float32(1.44269504)
# ln 2 split in two (Cody and Waite's range reduction): the high part has few bits, so n * _LN2_HIGH is exact.
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
# exp returns 0 below the first and infinity above the second (float32 overflows at e^88.72).
_LOWEST, _HIGHEST = np.float32(-86.5), np.float32(88.7)
# Taylor coefficients 1/k! for k = 7 down to 2: on |r| <= ln(2)/2 the first omitted term is below 6e-9.
_C7, _C6, _C5 = np.float32(1 / 5040), np.float32(1 / 720), np.float32(1 / 120)
_C4, _C3, _C2 = np.float32(1 / 24), np.float32(1 / 6), np.float32(1 / 2)
_ONE, _HALF, _ZERO, _TWO = np.float32(1), np.float32(0.5), np.float32(0), np.float32(2)


def exp(x):
    """e^x of a scalar. float32: relative error below 1e-7, 0 below x = -86.5, infinity above 88.7, NaN for NaN.

    e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln(2)/2: a polynomial for e^r, and 2^n from its exponent bits.
    """
    if isinstance(x, np.float32):
        return _exp_float32(x)
    return np.exp(x)


def maximum(row):
    """The largest element of a contiguous row (n,)."""
    return row.max()


def _exp_float32(x):
    result = _exp_in_range(_LOWEST if x < _LOWEST else (_HIGHEST if x > _HIGHEST else x))
    result = _ZERO if x < _LOWEST else result
    return np.float32(np.inf) if x > _HIGHEST else result


@numba.njit(**_options)
def _exp_in_range(x):
    n = np.floor(x * _LOG2_E + _HALF)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = _C7
    p = p * r + _C6
    p = p * r + _C5
    p = p * r + _C4
    p = p * r + _C3
    p = p * r + _C2
    p = (p * r) * r + r + _ONE
    # 2^n as 2 * 2^(n-1): n can be 128 just below the overflow, and 2^128 is no float32.
    power = np.int32((np.int32(n) + np.int32(126)) << np.int32(23)).view(np.float32)
    return _TWO * (p * power)


@overload(exp, jit_options=_options)
def _exp(x):
    return _exp_float32 if x == types.float32 else lambda x: math.exp(x)


def _maximum_float32(row):
    # LLVM vectorises integer maxima, but not float maxima, because of NaN. Float bits, with all but the sign bit
    # inverted in negative numbers, compare as integers in the order of the floats.
    bits = row.view(np.int32)
    highest = np.int32(-0x80000000)
    for i in range(bits.size):
        highest = max(highest, bits[i] ^ ((bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return np.int32(highest ^ ((highest >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@overload(maximum, jit_options=_options)
def _maximum(row):
    return _maximum_float32 if row.dtype == types.float32 else lambda row: row.max()
