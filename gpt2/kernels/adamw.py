"""AdamW (Loshchilov and Hutter, 2019, algorithm 2) over flat buffers."""

import numpy as np
from numba import prange

from gpt2.kernels.engine.jit import inline, kernel

# Elements per task, independent of the number of threads.
_BLOCK = 1 << 12


@kernel
def adamw_update(params, grads, m, v, lr, beta1, beta2, eps, weight_decay, grad_scale, step):
    """One fused AdamW step: updates params, m and v in place. Returns the sum of squares of grads, in float64.

    params, grads, m, v (n,). lr, beta1, beta2, eps, weight_decay: the usual scalars. grad_scale: factor applied to
    grads, for clipping. step: counts from 1, for bias correction.
    """
    n = params.size
    real = params.dtype.type
    rate, epsilon, scale, decay = real(lr), real(eps), real(grad_scale), real(lr * weight_decay)
    b1, b2, rest1, rest2 = real(beta1), real(beta2), real(1.0 - beta1), real(1.0 - beta2)
    unbias1, unbias2 = real(1.0 / (1.0 - beta1**step)), real(1.0 / (1.0 - beta2**step))
    squares = np.empty((n + _BLOCK - 1) // _BLOCK)
    for block in prange(squares.size):
        start, stop = block * _BLOCK, (block + 1) * _BLOCK
        p, dp, first, second = params[start:stop], grads[start:stop], m[start:stop], v[start:stop]
        total = 0.0
        for i in range(p.size):
            total += np.float64(dp[i]) * np.float64(dp[i])
            g = dp[i] * scale
            first[i] = b1 * first[i] + rest1 * g
            second[i] = b2 * second[i] + rest2 * (g * g)
            update = (first[i] * unbias1) / (np.sqrt(second[i] * unbias2) + epsilon)
            p[i] -= rate * update + decay * p[i]
        squares[block] = total
    return _sum(squares)


@kernel
def sum_of_squares(x):
    """Returns the sum of squares of x (n,), accumulated in float64, block by block in a fixed order."""
    blocks = (x.size + _BLOCK - 1) // _BLOCK
    partial = np.empty(blocks)
    for block in prange(blocks):
        part = x[block * _BLOCK : (block + 1) * _BLOCK]
        total = 0.0
        for i in range(part.size):
            total += np.float64(part[i]) * np.float64(part[i])
        partial[block] = total
    return _sum(partial)


@inline
def _sum(values):
    """Sequential sum; Numba would split values.sum() among the threads."""
    result = 0.0
    for i in range(values.size):
        result += values[i]
    return result
