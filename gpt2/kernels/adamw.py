"""AdamW (Loshchilov and Hutter, 2019, algorithm 2) over flat buffers."""

import numpy as np
from numba import prange

from gpt2.kernels.jit import kernel

# Elements of a flat buffer that make one task, whatever the number of threads.
_BLOCK = 1 << 12


@kernel
def adamw_update(params, grads, m, v, lr, beta1, beta2, eps, weight_decay, grad_scale, step):
    """One AdamW step in one pass: params, m and v are changed, grads are read.

    params, grads, m, v (n,). lr, beta1, beta2, eps, weight_decay: the usual scalars. grad_scale: factor for the
    gradient, for clipping. step: counts from 1, for the correction of the bias towards zero. Returns the sum of the
    squares of grads, added up in their own type in each block, in float64 from block to block.
    """
    n = params.size
    real = params.dtype.type
    rate, epsilon, scale, decay = real(lr), real(eps), real(grad_scale), real(lr * weight_decay)
    b1, b2, rest1, rest2 = real(beta1), real(beta2), real(1.0 - beta1), real(1.0 - beta2)
    unbias1, unbias2 = real(1.0 / (1.0 - beta1**step)), real(1.0 / (1.0 - beta2**step))
    squares = np.empty((n + _BLOCK - 1) // _BLOCK)
    for block in prange(squares.size):
        total = real(0)
        for i in range(block * _BLOCK, min(n, (block + 1) * _BLOCK)):
            total += grads[i] * grads[i]
            g = grads[i] * scale
            m[i] = b1 * m[i] + rest1 * g
            v[i] = b2 * v[i] + rest2 * (g * g)
            update = (m[i] * unbias1) / (np.sqrt(v[i] * unbias2) + epsilon)
            params[i] -= rate * update + decay * params[i]
        squares[block] = total
    return squares.sum()


@kernel
def sum_of_squares(x):
    """Returns the sum of the squares of x (n,) as float64, added up block by block in a fixed order."""
    blocks = (x.size + _BLOCK - 1) // _BLOCK
    partial = np.empty(blocks)
    for block in prange(blocks):
        total = 0.0
        for i in range(block * _BLOCK, min(x.size, (block + 1) * _BLOCK)):
            total += np.float64(x[i]) * np.float64(x[i])
        partial[block] = total
    result = 0.0
    for block in range(blocks):
        result += partial[block]
    return result
