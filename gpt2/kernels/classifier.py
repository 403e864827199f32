"""Softmax cross-entropy over rows of logits; the gradient replaces the logits in place."""

import numpy as np
from numba import prange

from gpt2.kernels.engine.fastmath import exp, maximum
from gpt2.kernels.engine.jit import kernel


@kernel
def classifier_forward(losses, lse, logits, targets, V):
    """losses[n] = -log softmax(logits[n])[targets[n]], over the first V columns.

    losses (N,). lse (N,): log sum_v e^logits[n,v], kept for the backward pass. logits (N,Vp). targets (N,) int32, each
    below V.
    """
    for n in prange(logits.shape[0]):
        row = logits[n, :V]
        highest = maximum(row)
        total = logits.dtype.type(0)
        for v in range(V):
            total += exp(row[v] - highest)
        lse[n] = highest + np.log(total)
        losses[n] = lse[n] - logits[n, targets[n]]


@kernel
def classifier_backward(logits, lse, targets, dloss, V):
    """Gradient of classifier_forward's logits, in place: dloss * (softmax - one-hot target), and 0 in the padding.

    logits (N,Vp). lse (N,), targets (N,) int32: as in the forward pass. dloss: gradient of each row's loss, a scalar.
    """
    Vp = logits.shape[1]
    scale = logits.dtype.type(dloss)
    for n in prange(logits.shape[0]):
        row, row_lse = logits[n, :V], lse[n]
        for v in range(V):
            row[v] = scale * exp(row[v] - row_lse)
        row[targets[n]] -= scale
        for v in range(V, Vp):
            logits[n, v] = np.float32(0)


@kernel
def gather_rows(out, inp, rows):
    """out[i] = inp[rows[i]]. out (n,C), inp (N,C), rows (n,) int64."""
    for i in prange(rows.size):
        out[i] = inp[rows[i]]


@kernel
def scatter_rows(out, inp, rows):
    """out[rows[i]] = inp[i]. out (N,C), inp (n,C), rows (n,) int64, all different."""
    for i in prange(rows.size):
        out[rows[i]] = inp[i]
