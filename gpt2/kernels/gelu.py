"""GELU in the tanh form that GPT-2 uses (Hendrycks and Gimpel, 2016, section 2)."""

import math

import numpy as np
from numba import prange

from gpt2.kernels.fastmath import tanh
from gpt2.kernels.jit import kernel

_SCALE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715
_HALF, _ONE, _THREE = np.float32(0.5), np.float32(1), np.float32(3)


@kernel
def gelu_forward(out, inp):
    """out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) of each element x of inp; out and inp (N,C)."""
    N, C = inp.shape
    scale, cubic = inp.dtype.type(_SCALE), inp.dtype.type(_CUBIC)
    for n in prange(N):
        for c in range(C):
            x = inp[n, c]
            out[n, c] = _HALF * x * (_ONE + tanh(scale * (x + cubic * x * x * x)))


@kernel
def gelu_backward(dinp, dout, inp):
    """dinp = dout times GELU's derivative at inp; all (N,C), and dinp may be dout itself."""
    N, C = inp.shape
    scale, cubic = inp.dtype.type(_SCALE), inp.dtype.type(_CUBIC)
    for n in prange(N):
        for c in range(C):
            x = inp[n, c]
            t = tanh(scale * (x + cubic * x * x * x))
            slope = scale * (_ONE + _THREE * cubic * x * x)
            dinp[n, c] = dout[n, c] * (_HALF * (_ONE + t) + _HALF * x * (_ONE - t * t) * slope)
