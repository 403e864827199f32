"""Linear layers for few rows, bound by reading the weights: each is read once, in the form in which it is stored.

Forms of a weight (OC,C): float32; bfloat16, as uint16 (OC,C); int8 with a scale for each GROUP weights of a row, as
int8 (OC,quantised_row(C)[1]).
"""

import numpy as np
from numba import prange
from numba.core import types
from numba.extending import overload

from gpt2.kernels.engine.jit import inline, kernel
from gpt2.kernels.engine.simd import address
from gpt2.kernels.engine.widen import GROUP, LINE, dot_row, quantised_row
from gpt2.kernels.gelu import gelu_forward

# Largest batch for these kernels.
SMALL_BATCH = 8
# Weight rows per task: a cache line of the output.
_OUTPUTS = 16


@kernel
def small_batch_forward(out, inp, weight, bias):
    """matmul_forward for small N: out = inp @ weight.T + bias.

    out (N,OC). inp (N,C). weight (OC,C), in any form. bias (OC,).
    """
    N, OC = out.shape
    for task in prange((OC + _OUTPUTS - 1) // _OUTPUTS):
        start, stop = task * _OUTPUTS, min(OC, (task + 1) * _OUTPUTS)
        dots(out, inp, weight, start, stop)
        for n in range(N):
            for o in range(start, stop):
                out[n, o] += bias[o]


@kernel
def small_batch_residual_forward(out, residual, inp, weight, bias):
    """matmul_residual_forward for small N: out = residual + inp @ weight.T + bias.

    out, residual (N,OC). inp (N,C). weight (OC,C), in any form. bias (OC,).
    """
    N, OC = out.shape
    for task in prange((OC + _OUTPUTS - 1) // _OUTPUTS):
        start, stop = task * _OUTPUTS, min(OC, (task + 1) * _OUTPUTS)
        dots(out, inp, weight, start, stop)
        for n in range(N):
            for o in range(start, stop):
                out[n, o] += residual[n, o] + bias[o]


@kernel
def small_batch_gelu_forward(out, pre, inp, weight, bias):
    """matmul_gelu_forward for small N: pre = inp @ weight.T + bias, out = GELU(pre).

    out, pre (N,OC). inp (N,C). weight (OC,C), in any form. bias (OC,).
    """
    N, OC = out.shape
    for task in prange((OC + _OUTPUTS - 1) // _OUTPUTS):
        start, stop = task * _OUTPUTS, min(OC, (task + 1) * _OUTPUTS)
        dots(pre, inp, weight, start, stop)
        for n in range(N):
            for o in range(start, stop):
                pre[n, o] += bias[o]
            gelu_forward(out[n, start:stop], pre[n, start:stop])


@kernel
def small_batch_nt(out, inp, weight):
    """matmul_nt for small N: out = inp @ weight.T: out (N,OC), inp (N,C), weight (OC,C), in any form."""
    OC = out.shape[1]
    for task in prange((OC + _OUTPUTS - 1) // _OUTPUTS):
        dots(out, inp, weight, task * _OUTPUTS, min(OC, (task + 1) * _OUTPUTS))


@kernel
def widen(out, weight):
    """out = weight: out (n,C) float32, weight (n or more,C), in a narrower form."""
    for o in prange(out.shape[0]):
        widen_row(out[o], weight[o])


@inline
def widen_row(out, row):
    """out (C,) = a row of weights, in any form."""
    C = out.size
    step = GROUP if row.itemsize == 1 else C
    for first in range(0, C, step):
        part, numbers, scale = out[first : first + step], _numbers(row, C)[first : first + step], _scale(row, first)
        for i in range(part.size):
            part[i] = _number(numbers, i) * scale


@inline
def dots(out, inp, weight, start, stop):
    """out[n,o] = inp[n] . weight[o] for all n and start <= o < stop.

    A dot product's summation order depends only on its length. out (N,OC). inp (N,C). weight (OC,C), in any form.
    """
    N, C = inp.shape
    line = LINE // weight.itemsize
    whole = C // line * line
    # Weight row by weight row, in the order of memory: with several at a time, prefetchers give half the bandwidth.
    for n in range(0, N - 3, 4):
        for o in range(start, stop):
            out[n, o], out[n + 1, o], out[n + 2, o], out[n + 3, o] = _products(4, inp[n:], weight, o)
    for n in range(N // 4 * 4, N):
        for o in range(start, stop):
            (out[n, o],) = _products(1, inp[n:], weight, o)
    if whole < C:
        for o in range(start, stop):
            for n in range(N):
                row, total = weight[o], out[n, o]
                numbers = _numbers(row, C)
                for i in range(whole, C):
                    total += _number(numbers, i) * _scale(row, i) * inp[n, i]
                out[n, o] = total


def _products(count, inp, weight, o):
    """Returns the products of row o of weight with the first `count` rows of inp, a tuple, over whole cache lines."""
    C, line = inp.shape[1], LINE // weight.itemsize
    row, numbers = weight[o], _numbers(weight[o], C)
    row = np.array([_number(numbers, i) * _scale(row, i) for i in range(C // line * line)], np.float32)
    return tuple(inp[:count, : row.size] @ row)


@overload(_products, prefer_literal=True)
def _compiled_products(count, inp, weight, o):
    def implementation(count, inp, weight, o):
        C = inp.shape[1]
        row, lines = address(weight) + o * weight.strides[0], C // (LINE // weight.itemsize)
        return dot_row(count, weight, row, quantised_row(C)[0], lines, address(inp), inp.strides[0])

    return implementation


def _numbers(row, C):
    """Returns the part of a row of C weights that holds the weights."""
    return _int8_numbers(row, C) if row.dtype == np.int8 else row


def _int8_numbers(row, C):
    return row[quantised_row(C)[0] :]


@overload(_numbers)
def _compiled_numbers(row, C):
    return _int8_numbers if row.dtype == types.int8 else lambda row, C: row


def _number(numbers, i):
    """Returns weight i as float32, which in int8 rows is yet to be multiplied by its group's scale."""
    return _NUMBERS[numbers.dtype.name](numbers, i)


def _bfloat16_number(numbers, i):
    return np.uint32(np.uint32(numbers[i]) << np.uint32(16)).view(np.float32)


_NUMBERS = {
    "float32": lambda numbers, i: numbers[i],
    "uint16": _bfloat16_number,
    "int8": lambda numbers, i: np.float32(numbers[i]),
}


@overload(_number)
def _compiled_number(numbers, i):
    return _NUMBERS[numbers.dtype.name]


def _scale(row, i):
    """Returns the scale of weight i of a row, float32; 1 unless the row is int8."""
    return _int8_scale(row, i) if row.dtype == np.int8 else np.float32(1)


def _int8_scale(row, i):
    bits = np.uint32(row.view(np.uint16)[i // GROUP])
    return np.uint32(bits << np.uint32(16)).view(np.float32)


@overload(_scale)
def _compiled_scale(row, i):
    return _int8_scale if row.dtype == types.int8 else lambda row, i: np.float32(1)
