"""Causal self-attention, a block of query rows at a time: no (T, T) matrix, one log-sum-exp kept for each row.

The scores of _QUERIES rows against all keys up to the last of them are one product; the softmax works on that panel,
and the backward pass makes the panel again from the kept log-sum-exp (Dao et al., FlashAttention, 2022, appendix B).
One task is one head of one sequence.
"""

import numpy as np
from numba import prange

from gpt2.kernels.fastmath import exp, maximum
from gpt2.kernels.gemm import gemm, product_kernel
from gpt2.kernels.jit import inline

_QUERIES = 64


def attention_scratch_shape(B, T, NH):
    """Shape of the scratch that both passes need: two panels of scores for each head of each sequence."""
    return (B * NH, 2, min(T, _QUERIES), T)


@inline
def _scores(panel, queries, keys, first):
    """panel[i,j] = queries[i] . keys[j] / sqrt(HS), -infinity where key j is in the future of query first + i.

    panel (rows,stop), queries (rows,HS), keys (stop,HS).
    """
    gemm(panel, queries, keys, False, True, 1.0 / np.sqrt(queries.shape[1]), 0.0)
    for i in range(panel.shape[0]):
        for j in range(first + i + 1, panel.shape[1]):
            panel[i, j] = -np.inf


@product_kernel
def attention_forward(atty, lse, qkv, scratch):
    """atty = softmax(q k^T / sqrt(HS), over the past and present) v, head by head.

    atty (B,T,C). lse (B,NH,T): log of the sum of each row's exponentials, kept for the backward pass. qkv (B,T,3C):
    queries, keys, values. scratch: see attention_scratch_shape.
    """
    B, NH, T = lse.shape
    C = atty.shape[2]
    HS = C // NH
    for task in prange(B * NH):
        b, h = task // NH, task % NH
        q = qkv[b, :, h * HS : (h + 1) * HS]
        k = qkv[b, :, C + h * HS : C + (h + 1) * HS]
        v = qkv[b, :, 2 * C + h * HS : 2 * C + (h + 1) * HS]
        out = atty[b, :, h * HS : (h + 1) * HS]
        for first in range(0, T, _QUERIES):
            stop = min(T, first + _QUERIES)
            panel = scratch[task, 0, : stop - first, :stop]
            _scores(panel, q[first:stop], k[:stop], first)
            for i in range(stop - first):
                row = scratch[task, 0, i, :stop]
                highest = maximum(row)
                total = row.dtype.type(0)
                for j in range(stop):
                    row[j] = exp(row[j] - highest)
                    total += row[j]
                lse[b, h, first + i] = highest + np.log(total)
                for j in range(stop):
                    row[j] /= total
            gemm(out[first:stop], panel, v[:stop], False, False, 1.0, 0.0)


@product_kernel
def attention_backward(dqkv, datty, qkv, atty, lse, scratch):
    """Gradient of attention_forward's qkv.

    dqkv (B,T,3C) =. datty (B,T,C). qkv, atty, lse: as given to and left by the forward pass. scratch: see
    attention_scratch_shape. With P the softmax, dP = datty v^T and D[i] = datty[i] . atty[i]:
    dv = P^T datty, dS = P (dP - D), dq = dS k / sqrt(HS), dk = dS^T q / sqrt(HS).
    """
    B, NH, T = lse.shape
    C = atty.shape[2]
    HS = C // NH
    scale = 1.0 / np.sqrt(HS)
    for task in prange(B * NH):
        b, h = task // NH, task % NH
        q = qkv[b, :, h * HS : (h + 1) * HS]
        k = qkv[b, :, C + h * HS : C + (h + 1) * HS]
        v = qkv[b, :, 2 * C + h * HS : 2 * C + (h + 1) * HS]
        dq = dqkv[b, :, h * HS : (h + 1) * HS]
        dk = dqkv[b, :, C + h * HS : C + (h + 1) * HS]
        dv = dqkv[b, :, 2 * C + h * HS : 2 * C + (h + 1) * HS]
        dout = datty[b, :, h * HS : (h + 1) * HS]
        for t in range(T):
            for c in range(HS):
                dk[t, c] = np.float32(0)
                dv[t, c] = np.float32(0)
        for first in range(0, T, _QUERIES):
            stop = min(T, first + _QUERIES)
            p = scratch[task, 0, : stop - first, :stop]
            ds = scratch[task, 1, : stop - first, :stop]
            _scores(p, q[first:stop], k[:stop], first)
            for i in range(stop - first):
                row, row_lse = scratch[task, 0, i, :stop], lse[b, h, first + i]
                for j in range(stop):
                    row[j] = exp(row[j] - row_lse)
            gemm(dv[:stop], p, dout[first:stop], True, False, 1.0, 1.0)
            gemm(ds, dout[first:stop], v[:stop], False, True, 1.0, 0.0)
            for i in range(stop - first):
                p_row, ds_row = scratch[task, 0, i, :stop], scratch[task, 1, i, :stop]
                d = ds.dtype.type(0)
                for c in range(h * HS, (h + 1) * HS):
                    d += datty[b, first + i, c] * atty[b, first + i, c]
                for j in range(stop):
                    ds_row[j] = p_row[j] * (ds_row[j] - d)
            gemm(dq[first:stop], ds, k[:stop], False, False, scale, 0.0)
            gemm(dk[:stop], ds, q[first:stop], True, False, scale, 1.0)
