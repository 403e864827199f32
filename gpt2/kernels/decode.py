"""Forward pass with a KV cache, for one token or a prompt.

A generation step has few rows and is bound by reading the weights: the small-batch kernels read each once, in place. A
prompt has many rows and runs through training's kernels, which pack float32 weights for speed; matrices in a narrower
form (see small_batch.py) are widened for them one at a time.
"""

from collections import namedtuple

import numpy as np
from numba import prange
from numba.extending import overload

from gpt2.kernels.engine.fastmath import exp, maximum
from gpt2.kernels.engine.gemm import calls_gemm, gemm
from gpt2.kernels.engine.jit import inline, kernel
from gpt2.kernels.layernorm import layernorm_forward
from gpt2.kernels.matmul import matmul_forward, matmul_gelu_forward, matmul_nt, matmul_residual_forward
from gpt2.kernels.small_batch import (
    SMALL_BATCH,
    dots,
    small_batch_forward,
    small_batch_gelu_forward,
    small_batch_nt,
    small_batch_residual_forward,
    widen,
    widen_row,
)

# Queries per panel of scores; a sequence with no more than _FEW_QUERIES of them is processed query by query.
_QUERIES = 64
_FEW_QUERIES = 4
# Rows of a narrow wte per task.
_COLUMNS = 64

Weights = namedtuple(
    "Weights", "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb"
)
Scratch = namedtuple("Scratch", "residual residual2 norm mean rstd qkv atty fch fch_gelu scores last logits wide")


def scratch_shapes(rows, batch_size, length, V, NH, C, narrow):
    """Returns a dict of Scratch's fields -> shape, for up to `rows` rows per call and a cache of `length` tokens.

    narrow: whether matrices are in a narrower form than float32; `wide` holds one of a layer, or part of wte.
    """
    return {
        "residual": (rows, C),
        "residual2": (rows, C),
        "norm": (rows, C),
        "qkv": (rows, 3 * C),
        "atty": (rows, C),
        "fch": (rows, 4 * C),
        "fch_gelu": (rows, 4 * C),
        "last": (batch_size, C),
        "wide": (C * max(4 * C, _COLUMNS) if narrow and rows > SMALL_BATCH else 0,),
        # The sizes of these are not multiples of a cache line.
        "scores": (batch_size * NH, min(rows, _QUERIES), length),
        "mean": (rows,),
        "rstd": (rows,),
        "logits": (batch_size, V),
    }


@calls_gemm
@inline
def append(scratch, weights, keys, values, tokens, rows, positions):
    """Runs all layers on tokens that follow those in the cache, and caches their keys and values.

    scratch: Scratch; `residual` (B*n,C) receives the input of the final layernorm. weights: Weights, shaped as in
    parameter_layout, with wte, qkvw, attprojw, fcw and fcprojw in any form. keys, values (L,batch_size,NH,length,HS).
    tokens (B,n) int32. rows (B,) int64: the sequences in the cache that they belong to. positions (batch_size,) int64:
    the number of tokens of each sequence in the cache.
    """
    B, n = tokens.shape
    L, C = weights.ln1w.shape
    N = B * n
    residual, residual2, norm = scratch.residual[:N], scratch.residual2[:N], scratch.norm[:N]
    mean, rstd, qkv, atty = scratch.mean[:N], scratch.rstd[:N], scratch.qkv[:N], scratch.atty[:N]
    fch, fch_gelu, wide = scratch.fch[:N], scratch.fch_gelu[:N], scratch.wide
    for b in range(B):
        for t in range(n):
            row, position_row = residual[b * n + t], weights.wpe[positions[rows[b]] + t]
            widen_row(row, weights.wte[tokens[b, t]])
            for c in range(C):
                row[c] += position_row[c]
    for l in range(L):
        layernorm_forward(norm, mean, rstd, residual, weights.ln1w[l], weights.ln1b[l])
        _linear(qkv, norm, weights.qkvw[l], weights.qkvb[l], wide)
        atty_rows, qkv_rows = atty.reshape((B, n, C)), qkv.reshape((B, n, 3 * C))
        cached_attention_forward(atty_rows, keys[l], values[l], qkv_rows, scratch.scores, rows, positions)
        _linear_residual(residual2, residual, atty, weights.attprojw[l], weights.attprojb[l], wide)
        layernorm_forward(norm, mean, rstd, residual2, weights.ln2w[l], weights.ln2b[l])
        _linear_gelu(fch_gelu, fch, norm, weights.fcw[l], weights.fcb[l], wide)
        _linear_residual(residual, residual2, fch_gelu, weights.fcprojw[l], weights.fcprojb[l], wide)


@calls_gemm
@inline
def last_logits(scratch, weights, B, n):
    """Computes scratch.logits (B,V) of each sequence's last token, after append() of (B,n) tokens.

    scratch: Scratch, as append() left it. weights: Weights.
    """
    norm, last, logits = scratch.norm[:B], scratch.last[:B], scratch.logits[:B]
    for b in range(B):
        last[b] = scratch.residual[(b + 1) * n - 1]
    layernorm_forward(norm, scratch.mean[:B], scratch.rstd[:B], last, weights.lnfw, weights.lnfb)
    wte = weights.wte[: logits.shape[1]]
    if B <= SMALL_BATCH:
        small_batch_nt(logits, norm, wte)
    else:
        _many_logits(logits, norm, wte, scratch.wide)


@inline
def _linear(out, inp, weight, bias, wide):
    if inp.shape[0] <= SMALL_BATCH:
        small_batch_forward(out, inp, weight, bias)
    else:
        matmul_forward(out, inp, _widened(weight, wide, inp), bias, False)


@inline
def _linear_residual(out, residual, inp, weight, bias, wide):
    if inp.shape[0] <= SMALL_BATCH:
        small_batch_residual_forward(out, residual, inp, weight, bias)
    else:
        matmul_residual_forward(out, residual, inp, _widened(weight, wide, inp), bias, False)


@inline
def _linear_gelu(out, pre, inp, weight, bias, wide):
    if inp.shape[0] <= SMALL_BATCH:
        small_batch_gelu_forward(out, pre, inp, weight, bias)
    else:
        matmul_gelu_forward(out, pre, inp, _widened(weight, wide, inp), bias, False)


def _widened(weight, wide, inp):
    """Returns a weight (OC,C) as float32, in the scratch array `wide` unless it is that already. inp: (N,C)."""
    if weight.dtype == inp.dtype:
        return weight
    OC, C = weight.shape[0], inp.shape[1]
    out = wide[: OC * C].reshape((OC, C))
    widen(out, weight)
    return out


@overload(_widened)
def _compiled_widened(weight, wide, inp):
    def implementation(weight, wide, inp):
        OC, C = weight.shape[0], inp.shape[1]
        out = wide[: OC * C].reshape((OC, C))
        widen(out, weight)
        return out

    return (lambda weight, wide, inp: weight) if weight.dtype == inp.dtype else implementation


def _many_logits(logits, norm, wte, wide):
    """matmul_nt with wte in any form."""
    if wte.dtype == norm.dtype:
        matmul_nt(logits, norm, wte, False)
    else:
        _narrow_nt(logits, norm, wte, wide)


@overload(_many_logits)
def _compiled_many_logits(logits, norm, wte, wide):
    if wte.dtype == norm.dtype:
        return lambda logits, norm, wte, wide: matmul_nt(logits, norm, wte, False)
    return lambda logits, norm, wte, wide: _narrow_nt(logits, norm, wte, wide)


@calls_gemm
@kernel
def _narrow_nt(out, inp, weight, wide):
    """matmul_nt with a narrower weight, which is widened in parts: into wide, scratch for at least _COLUMNS rows."""
    OC, C = weight.shape[0], inp.shape[1]
    size = _COLUMNS * C
    tasks = wide.size // size
    for start in range(0, OC, tasks * _COLUMNS):
        for task in prange(tasks):
            first = min(OC, start + task * _COLUMNS)
            rows = weight[first : first + _COLUMNS]
            part = wide[task * size : task * size + rows.shape[0] * C].reshape((rows.shape[0], C))
            for o in range(rows.shape[0]):
                widen_row(part[o], rows[o])
            gemm(out[:, first : first + rows.shape[0]], inp, part, False, True, 1.0, 0.0, False)


@kernel
def cached_attention_forward(atty, keys, values, qkv, scores, rows, positions):
    """atty = softmax(q k^T / sqrt(HS)) v for n new tokens, which attend to the cache and causally to each other.

    atty (B,n,C). keys, values (batch_size,NH,length,HS): of sequence rows[b] the first positions[rows[b]] are read, the
    next n written. qkv (B,n,3C): queries, keys and values of the new tokens. scores: scratch (B*NH,queries,length), a
    panel per head. rows (B,), positions (batch_size,) int64.
    """
    B, n, _ = atty.shape
    NH, HS = keys.shape[1], keys.shape[3]
    heads = qkv.reshape((B * n * 3 * NH, HS))
    for task in prange(B * NH):
        b, h = task // NH, task % NH
        k, v, position = keys[rows[b], h], values[rows[b], h], positions[rows[b]]
        for t in range(n):
            row = (b * n + t) * 3 * NH + h
            for c in range(HS):
                k[position + t, c] = heads[row + NH, c]
                v[position + t, c] = heads[row + 2 * NH, c]
        if n <= _FEW_QUERIES:
            for t in range(n):
                row, stop = (b * n + t) * 3 * NH + h, position + t + 1
                dots(scores[task, :1], heads[row : row + 1], k, 0, stop)
                _softmax(scores[task, 0, :stop], stop, HS)
                _weighted_sum(atty[b, t, h * HS : (h + 1) * HS], scores[task, 0, :stop], v)
        else:
            q, out = qkv[b, :, h * HS : (h + 1) * HS], atty[b, :, h * HS : (h + 1) * HS]
            for first in range(0, n, scores.shape[1]):
                last = min(n, first + scores.shape[1])
                stop = position + last
                panel = scores[task, : last - first, :stop]
                gemm(panel, q[first:last], k[:stop], False, True, 1.0, 0.0, False)
                for t in range(first, last):
                    _softmax(scores[task, t - first, :stop], position + t + 1, HS)
                gemm(out[first:last], panel, v[:stop], False, False, 1.0, 0.0, False)


@inline
def _softmax(row, count, HS):
    """In-place softmax of row / sqrt(HS) over its first `count` elements; the rest, future keys, become 0."""
    scale = row.dtype.type(1 / np.sqrt(HS))
    present = row[:count]
    highest = maximum(present)
    total = row.dtype.type(0)
    for j in range(count):
        present[j] = exp((present[j] - highest) * scale)
        total += present[j]
    for j in range(count):
        present[j] /= total
    for j in range(count, row.size):
        row[j] = row.dtype.type(0)


@inline
def _weighted_sum(out, weights, rows):
    """out (HS,) = weights (n,) @ rows (n or more,HS), four rows at a time."""
    n, zero = weights.size, out.dtype.type(0)
    for c in range(out.size):
        out[c] = zero
    for j in range(0, n // 4 * 4, 4):
        row0, row1, row2, row3 = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        weight0, weight1, weight2, weight3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        for c in range(out.size):
            out[c] += weight0 * row0[c] + weight1 * row1[c] + weight2 * row2[c] + weight3 * row3[c]
    for j in range(n // 4 * 4, n):
        weight, row = weights[j], rows[j]
        for c in range(out.size):
            out[c] += weight * row[c]


@kernel
def reorder(cache, rows, count, scratch):
    """cache[:, b] = cache[:, rows[b]] for all b simultaneously, for the first `count` tokens.

    cache (L,B,NH,length,HS). rows (B,) integers. scratch: flat, at least L*NH*B*HS elements.
    """
    L, B, NH, _, HS = cache.shape
    for task in prange(L * NH):
        l, h = task // NH, task % NH
        kept = scratch[task * B * HS : (task + 1) * B * HS].reshape((B, HS))
        for t in range(count):
            for b in range(B):
                for c in range(HS):
                    kept[b, c] = cache[l, rows[b], h, t, c]
            for b in range(B):
                if rows[b] != b:
                    for c in range(HS):
                        cache[l, b, h, t, c] = kept[b, c]
