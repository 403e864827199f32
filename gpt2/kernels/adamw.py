"""AdamW (Loshchilov and Hutter, 2019, algorithm 2) over flat buffers."""

import numpy as np
from numba import prange

from gpt2.kernels.engine.jit import inline, kernel

# Elements per task, independent of the number of threads.
BLOCK = 1 << 12


@kernel
def adamw_update(params, grads, m, v, lr, beta1, beta2, eps, weight_decay, grad_scale, step, squares, offset):
    """One fused AdamW step: updates params, m and v in place, and adds to `squares` as `block_squares` does.

    params, grads, m, v (n,). lr, beta1, beta2, eps, weight_decay: the usual scalars. grad_scale: factor applied to
    grads, for clipping. step: counts from 1, for bias correction. squares, offset: as for `block_squares` of grads.
    """
    n = params.size
    real = params.dtype.type
    rate, epsilon, scale, decay = real(lr), real(eps), real(grad_scale), real(lr * weight_decay)
    b1, b2, rest1, rest2 = real(beta1), real(beta2), real(1.0 - beta1), real(1.0 - beta2)
    unbias1, unbias2 = real(1.0 / (1.0 - beta1**step)), real(1.0 / (1.0 - beta2**step))
    for block in prange((offset + n + BLOCK - 1) // BLOCK):
        start, stop = max(0, block * BLOCK - offset), (block + 1) * BLOCK - offset
        p, dp, first, second = params[start:stop], grads[start:stop], m[start:stop], v[start:stop]
        squares[block] += _squared(dp)
        for i in range(p.size):
            g = dp[i] * scale
            first[i] = b1 * first[i] + rest1 * g
            second[i] = b2 * second[i] + rest2 * (g * g)
            update = (first[i] * unbias1) / (np.sqrt(second[i] * unbias2) + epsilon)
            p[i] -= rate * update + decay * p[i]


@kernel
def block_squares(x, squares, offset):
    """Adds the sum of squares of each block of x (n,), accumulated in float64, to that block's place in `squares`.

    Blocks are of BLOCK elements, and x begins `offset` elements, fewer than that, after the start of the first one.
    """
    for block in prange((offset + x.size + BLOCK - 1) // BLOCK):
        squares[block] += _squared(x[max(0, block * BLOCK - offset) : (block + 1) * BLOCK - offset])


@kernel
def sum_of_squares(x):
    """Returns the sum of squares of x (n,), accumulated in float64, block by block in a fixed order."""
    squares = np.empty((x.size + BLOCK - 1) // BLOCK)
    for block in prange(squares.size):
        squares[block] = _squared(x[block * BLOCK : (block + 1) * BLOCK])
    total = 0.0
    for i in range(squares.size):  # Numba would split squares.sum() among the threads
        total += squares[i]
    return total


@inline
def _squared(x):
    result = 0.0
    for i in range(x.size):
        result += np.float64(x[i]) * np.float64(x[i])
    return result
