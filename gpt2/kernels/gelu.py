"""GELU in GPT-2's tanh approximation (Hendrycks and Gimpel, 2016, section 2).

It has no kernel of its own: matmul.py fuses it into the product's tasks.
"""

import math

import numpy as np

from gpt2.kernels.engine.fastmath import tanh
from gpt2.kernels.engine.jit import inline

_SCALE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715
_HALF, _ONE, _THREE = np.float32(0.5), np.float32(1), np.float32(3)


@inline
def gelu_forward(out, inp):
    """out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) for each element x of inp: out, inp (C,)."""
    scale, cubic = inp.dtype.type(_SCALE), inp.dtype.type(_CUBIC)
    for c in range(inp.size):
        x = inp[c]
        out[c] = _HALF * x * (_ONE + tanh(scale * (x + cubic * x * x * x)))


@inline
def gelu_backward(dinp, out, inp):
    """Multiplies dinp by GELU'(inp) in place, and recomputes out = GELU(inp).

    dinp (C,): on entry the gradient of out, on return that of inp. out (C,) =. inp (C,).
    """
    scale, cubic = inp.dtype.type(_SCALE), inp.dtype.type(_CUBIC)
    for c in range(inp.size):
        x = inp[c]
        t = tanh(scale * (x + cubic * x * x * x))
        slope = scale * (_ONE + _THREE * cubic * x * x)
        out[c] = _HALF * x * (_ONE + t)
        dinp[c] *= _HALF * (_ONE + t) + _HALF * x * (_ONE - t * t) * slope
