"""exp and tanh in plain arithmetic, so that LLVM vectorises the loops that call them.

np.exp and np.tanh on a float32 are a call into the C library for each element.
"""

import math

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from gpt2.kernels.engine.jit import FASTMATH

# Reassociation would put ln 2's two parts together again.
_options = {"fastmath": FASTMATH - {"reassoc"}, "error_model": "numpy"}

_LOG2_E = np.float32(1.44269504)
# ln 2 in two parts: the high one has few bits, so that n * _LN2_HIGH is exact (Cody and Waite's range reduction).
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
# Below the first exp is 0 here, above the second it overflows float32 (the largest is e^88.72).
_LOWEST, _HIGHEST = np.float32(-86.5), np.float32(88.7)
# Taylor's 1/k! from k = 7 down to 2: on |r| <= ln(2)/2 the first term left out is below 6e-9.
_C7, _C6, _C5 = np.float32(1 / 5040), np.float32(1 / 720), np.float32(1 / 120)
_C4, _C3, _C2 = np.float32(1 / 24), np.float32(1 / 6), np.float32(1 / 2)
_ONE, _HALF, _ZERO, _TWO, _TEN = np.float32(1), np.float32(0.5), np.float32(0), np.float32(2), np.float32(10)


def exp(x):
    """e^x of a scalar; for float32 within 1e-7 of the value, 0 below x = -86.5, infinity above 88.7, NaN stays NaN.

    e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln(2)/2: a polynomial for e^r, and 2^n written into the exponent's
    bits.
    """
    if isinstance(x, np.float32):
        return _exp_float32(x)
    return np.exp(x)


def tanh(x):
    """tanh x of a scalar, as 1 - 2 / (e^2x + 1); for float32 within 2e-7 (absolute)."""
    if isinstance(x, np.float32):
        return _tanh_float32(x)
    return np.tanh(x)


def maximum(row):
    """The largest element of a row, (n,), whose elements are adjacent."""
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
    # 2^n as 2 * 2^(n-1): n = 128, which has no float32, comes up just below the overflow.
    power = np.int32((np.int32(n) + np.int32(126)) << np.int32(23)).view(np.float32)
    return _TWO * (p * power)


def _tanh_float32(x):
    # Exactly 1 from 10 on: GELU's slope multiplies 1 - tanh^2 by x^3.
    x = -_TEN if x < -_TEN else (_TEN if x > _TEN else x)
    return _ONE - _TWO / (_exp_in_range(_TWO * x) + _ONE)


@overload(exp, jit_options=_options)
def _exp(x):
    return _exp_float32 if x == types.float32 else lambda x: math.exp(x)


@overload(tanh, jit_options=_options)
def _tanh(x):
    return _tanh_float32 if x == types.float32 else lambda x: math.tanh(x)


def _maximum_float32(row):
    # A maximum of floats is not vectorised, for NaN's sake; one of integers is. A float's bits, those below the sign
    # inverted where it is set, are integers in the floats' order.
    bits = row.view(np.int32)
    highest = np.int32(-0x80000000)
    for i in range(bits.size):
        highest = max(highest, bits[i] ^ ((bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return np.int32(highest ^ ((highest >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@overload(maximum, jit_options=_options)
def _maximum(row):
    return _maximum_float32 if row.dtype == types.float32 else lambda row: row.max()
