"""Layer normalisation (Ba, Kiros and Hinton, 2016)."""

import numpy as np
from numba import prange

from gpt2.kernels.engine.jit import kernel

# Files say it, and a model with another one is not exported. Change it with the functions.
NORMALISATION = "layernorm"
_EPSILON = 1e-5
# Channels per task in summing parameter gradients over rows.
_CHANNELS = 128


@kernel
def layernorm_forward(out, mean, rstd, inp, weight, bias):
    """out = (inp - mean) * rstd * weight + bias, with each row's mean and 1/sqrt(variance + 1e-5).

    out (N,C). mean, rstd (N,), kept for the backward pass. inp (N,C). weight, bias (C,).
    """
    N, C = inp.shape
    for n in prange(N):
        out_row, row = out[n], inp[n]
        total = inp.dtype.type(0)
        for c in range(C):
            total += row[c]
        m = total / inp.dtype.type(C)
        squares = inp.dtype.type(0)
        for c in range(C):
            deviation = row[c] - m
            squares += deviation * deviation
        s = np.float32(1) / np.sqrt(squares / inp.dtype.type(C) + inp.dtype.type(_EPSILON))
        for c in range(C):
            out_row[c] = (row[c] - m) * s * weight[c] + bias[c]
        mean[n] = m
        rstd[n] = s


@kernel
def layernorm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd):
    """Gradients of layernorm_forward's inp, weight and bias.

    dinp (N,C) +=, the residual stream's gradient. dweight, dbias (C,) +=. dout (N,C). inp (N,C), weight (C,), mean,
    rstd (N,): as in the forward pass.
    """
    N, C = inp.shape
    for n in prange(N):
        m, s = mean[n], rstd[n]
        dinp_row, dout_row, row = dinp[n], dout[n], inp[n]
        dnorm_sum = inp.dtype.type(0)
        dnorm_norm_sum = inp.dtype.type(0)
        for c in range(C):
            dnorm = dout_row[c] * weight[c]
            dnorm_sum += dnorm
            dnorm_norm_sum += dnorm * ((row[c] - m) * s)
        dnorm_mean = dnorm_sum / inp.dtype.type(C)
        dnorm_norm_mean = dnorm_norm_sum / inp.dtype.type(C)
        for c in range(C):
            norm = (row[c] - m) * s
            dinp_row[c] += (dout_row[c] * weight[c] - dnorm_mean - norm * dnorm_norm_mean) * s
    for block in prange((C + _CHANNELS - 1) // _CHANNELS):
        start, stop = block * _CHANNELS, (block + 1) * _CHANNELS
        weight_total, bias_total = dweight[start:stop], dbias[start:stop]
        for n in range(N):
            m, s = mean[n], rstd[n]
            dout_row, row = dout[n, start:stop], inp[n, start:stop]
            for c in range(row.size):
                weight_total[c] += dout_row[c] * ((row[c] - m) * s)
                bias_total[c] += dout_row[c]
