"""The MLP's activation: GELU in GPT-2's tanh approximation (Hendrycks and Gimpel, 2016, section 2).

With 0.5 (1 + tanh u) = 1 / (1 + e^-2u) it takes one exponential and one division. It has no kernel of its own:
matmul.py and small_batch.py fuse these two functions into the product's tasks, in training and in generation.
"""

import math

import numpy as np

from gpt2.kernels.engine.fastmath import exp
from gpt2.kernels.engine.jit import inline

# Transformers' name for the activation; files and exported models say it. Change it with the functions.
ACTIVATION = "gelu_new"
_SCALE = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715
_ONE, _THREE = np.float32(1), np.float32(3)


@inline
def gelu_forward(out, inp):
    """out = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) for each element x of inp: out, inp (C,)."""
    scale, cubic = inp.dtype.type(_SCALE), inp.dtype.type(_CUBIC)
    for c in range(inp.size):
        x = inp[c]
        out[c] = x / (_ONE + exp(-scale * (x + cubic * x * x * x)))


@inline
def gelu_backward(dinp, out, inp):
    """Multiplies dinp by GELU'(inp) in place, and recomputes out = GELU(inp).

    dinp (C,): on entry the gradient of out, on return that of inp. out (C,) =. inp (C,).
    """
    scale, cubic = inp.dtype.type(_SCALE), inp.dtype.type(_CUBIC)
    for c in range(inp.size):
        x = inp[c]
        e = exp(-scale * (x + cubic * x * x * x))
        s = _ONE / (_ONE + e)
        rest = s * e if e < _ONE else _ONE - s  # 1 - s, to all digits
        slope = scale * (_ONE + _THREE * cubic * x * x)
        out[c] = x * s
        dinp[c] *= s + x * s * rest * slope
