"""Causal self-attention, a block of query rows at a time: no (T, T) matrix, one log-sum-exp kept per row.

The scores of _QUERIES rows against all keys up to the last of them are one product, a panel on which the softmax works.
The backward pass recomputes the panel from the log-sum-exp (Dao et al., FlashAttention, 2022, appendix B), and the
output from the panel: one more product instead of an array per layer. A task is one head of one sequence.
"""

import numpy as np
from numba import prange

from gpt2.kernels.dropout import drop
from gpt2.kernels.engine.fastmath import exp, maximum
from gpt2.kernels.engine.gemm import calls_gemm, gemm
from gpt2.kernels.engine.jit import inline, kernel

_QUERIES = 32


def attention_scratch_shape(B, T, NH):
    """Shape of both passes' scratch: two panels of scores per head and sequence."""
    return (B * NH, 2, min(T, _QUERIES), T)


@inline
def _scores(panel, queries, keys, bf16):
    """panel[i,j] = queries[i] . keys[j] / sqrt(HS): panel (rows,stop), queries (rows,HS), keys (stop,HS)."""
    gemm(panel, queries, keys, False, True, 1.0 / np.sqrt(queries.shape[1]), 0.0, bf16)


@inline
def _mask(row, first, past):
    """Sets the future of a row of scores to -infinity: all after the first `past` elements, with past > first."""
    future = row.dtype.type(-np.inf)
    for j in range(first, row.size):
        row[j] = row[j] if j < past else future


@calls_gemm
@kernel
def attention_forward(atty, lse, qkv, scratch, dropout, bf16):
    """atty = dropout(softmax(q k^T / sqrt(HS))) v with a causal mask, head by head.

    atty (B,T,C). lse (B,NH,T): log-sum-exp of each row of scores, kept for the backward pass. qkv (B,T,3C): queries,
    keys, values. scratch: see attention_scratch_shape. dropout: a mask of (B*NH*T, T), see dropout.py.
    """
    dropped = dropout[1] > 0
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
            _scores(panel, q[first:stop], k[:stop], bf16)
            for i in range(stop - first):
                row = scratch[task, 0, i, :stop]
                _mask(row, first, first + i + 1)
                highest = maximum(row)
                total = row.dtype.type(0)
                for j in range(row.size):
                    row[j] = exp(row[j] - highest)
                    total += row[j]
                lse[b, h, first + i] = highest + np.log(total)
                scale = row.dtype.type(1) / total
                for j in range(row.size):
                    row[j] *= scale
                if dropped:
                    drop(row, task * T + first + i, dropout)
            gemm(out[first:stop], panel, v[:stop], False, False, 1.0, 0.0, bf16)


@calls_gemm
@kernel
def attention_backward(dqkv, datty, qkv, atty, lse, scratch, dropout, bf16):
    """Gradient of attention_forward's qkv; also recomputes its output, atty.

    dqkv (B,T,3C) =. datty (B,T,C). qkv (B,T,3C), lse (B,NH,T), dropout: as in the forward pass. atty (B,T,C) =.
    scratch: see attention_scratch_shape. With P the softmax, dP = dropout(datty v^T) and D[i] = sum_j P[i,j] dP[i,j]:
    dv = dropout(P)^T datty, dS = P (dP - D), dq = dS k / sqrt(HS), dk = dS^T q / sqrt(HS).
    """
    dropped = dropout[1] > 0
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
        out, dout = atty[b, :, h * HS : (h + 1) * HS], datty[b, :, h * HS : (h + 1) * HS]
        for first in range(0, T, _QUERIES):
            stop = min(T, first + _QUERIES)
            p = scratch[task, 0, : stop - first, :stop]
            ds = scratch[task, 1, : stop - first, :stop]
            _scores(p, q[first:stop], k[:stop], bf16)
            for i in range(stop - first):
                row, row_lse = scratch[task, 0, i, :stop], lse[b, h, first + i]
                _mask(row, first, first + i + 1)
                for j in range(row.size):
                    row[j] = exp(row[j] - row_lse)
                if dropped:
                    kept = scratch[task, 1, i, :stop]
                    for j in range(kept.size):
                        kept[j] = row[j]
                    drop(kept, task * T + first + i, dropout)
            weights = ds if dropped else p  # before ds is computed, its panel holds dropout(P)
            gemm(out[first:stop], weights, v[:stop], False, False, 1.0, 0.0, bf16)
            _add_transposed(dv, weights, dout[first:stop], first, 1.0, bf16)
            gemm(ds, dout[first:stop], v[:stop], False, True, 1.0, 0.0, bf16)
            for i in range(stop - first):
                p_row, ds_row = scratch[task, 0, i, :stop], scratch[task, 1, i, :stop]
                if dropped:
                    drop(ds_row, task * T + first + i, dropout)
                d = ds.dtype.type(0)
                for j in range(stop):
                    d += p_row[j] * ds_row[j]
                for j in range(stop):
                    ds_row[j] = p_row[j] * (ds_row[j] - d)
            gemm(dq[first:stop], ds, k[:stop], False, False, scale, 0.0, bf16)
            _add_transposed(dk, ds, q[first:stop], first, scale, bf16)


@inline
def _add_transposed(out, panel, rows, first, scale, bf16):
    """out[:stop] += scale panel^T rows, but rows from `first` on, not written before, are overwritten.

    out (T,HS). panel (n,stop). rows (n,HS).
    """
    gemm(out[:first], panel[:, :first], rows, True, False, scale, 1.0, bf16)
    gemm(out[first : panel.shape[1]], panel[:, first:], rows, True, False, scale, 0.0, bf16)
