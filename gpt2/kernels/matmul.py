"""Linear layers: products of matrices, cut into tiles that each go to the single-threaded BLAS.

Call these inside `blas.single_threaded()`. A tile is large enough that BLAS copies little for what it multiplies, and
small enough that the narrowest layer of GPT-2 124M, 256 rows of 768 columns, is still four tasks.
"""

from numba import prange

from gpt2.kernels.blas import gemm
from gpt2.kernels.jit import kernel

_ROWS, _COLUMNS = 256, 192
# Columns of dout whose sum over all rows one task makes.
_CHANNELS = 64


@kernel
def matmul_forward(out, inp, weight, bias):
    """out = inp @ weight.T + bias.

    out (N,OC). inp (N,C). weight (OC,C). bias (OC,).
    """
    N, OC = out.shape
    across = (OC + _COLUMNS - 1) // _COLUMNS
    for tile in prange((N + _ROWS - 1) // _ROWS * across):
        row, column = tile // across * _ROWS, tile % across * _COLUMNS
        out_tile = out[row : row + _ROWS, column : column + _COLUMNS]
        for n in range(out_tile.shape[0]):
            for c in range(out_tile.shape[1]):
                out_tile[n, c] = bias[column + c]
        gemm(out_tile, inp[row : row + _ROWS], weight[column : column + _COLUMNS], False, True, 1.0, 1.0)


def matmul_backward(dinp, dweight, dbias, dout, inp, weight):
    """Gradients of matmul_forward's inp, weight and bias.

    dinp (N,C) =. dweight (OC,C) +=. dbias (OC,) +=. dout (N,OC). inp (N,C). weight (OC,C).
    """
    matmul_nn(dinp, dout, weight)
    matmul_tn_add(dweight, dout, inp)
    bias_backward(dbias, dout)


@kernel
def matmul_nt(out, inp, weight):
    """out = inp @ weight.T: out (N,OC), inp (N,C), weight (OC,C)."""
    N, OC = out.shape
    across = (OC + _COLUMNS - 1) // _COLUMNS
    for tile in prange((N + _ROWS - 1) // _ROWS * across):
        row, column = tile // across * _ROWS, tile % across * _COLUMNS
        out_tile = out[row : row + _ROWS, column : column + _COLUMNS]
        gemm(out_tile, inp[row : row + _ROWS], weight[column : column + _COLUMNS], False, True, 1.0, 0.0)


@kernel
def matmul_nn(dinp, dout, weight):
    """dinp = dout @ weight: dinp (N,C), dout (N,OC), weight (OC,C)."""
    N, C = dinp.shape
    across = (C + _COLUMNS - 1) // _COLUMNS
    for tile in prange((N + _ROWS - 1) // _ROWS * across):
        row, column = tile // across * _ROWS, tile % across * _COLUMNS
        dinp_tile = dinp[row : row + _ROWS, column : column + _COLUMNS]
        gemm(dinp_tile, dout[row : row + _ROWS], weight[:, column : column + _COLUMNS], False, False, 1.0, 0.0)


@kernel
def matmul_tn_add(dweight, dout, inp):
    """dweight += dout.T @ inp: dweight (OC,C), dout (N,OC), inp (N,C). Every tile sums over all rows itself."""
    OC, C = dweight.shape
    across = (C + _COLUMNS - 1) // _COLUMNS
    for tile in prange((OC + _ROWS - 1) // _ROWS * across):
        row, column = tile // across * _ROWS, tile % across * _COLUMNS
        dweight_tile = dweight[row : row + _ROWS, column : column + _COLUMNS]
        gemm(dweight_tile, dout[:, row : row + _ROWS], inp[:, column : column + _COLUMNS], True, False, 1.0, 1.0)


@kernel
def bias_backward(dbias, dout):
    """dbias += the sum of dout's rows: dbias (OC,), dout (N,OC)."""
    N, OC = dout.shape
    for block in prange((OC + _CHANNELS - 1) // _CHANNELS):
        start, stop = block * _CHANNELS, min(OC, (block + 1) * _CHANNELS)
        for n in range(N):
            for c in range(start, stop):
                dbias[c] += dout[n, c]
