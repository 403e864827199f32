import numpy as np
import pytest

from gpt2.kernels.blas import single_threaded
from gpt2.kernels.matmul import matmul_backward, matmul_forward, matmul_nn, matmul_nt, matmul_tn_add
from tests.numeric import assert_close, assert_gradient, both_precisions, tiny

# Past the edges of the tiles: over 256 rows, over 192 columns, and for the weight's gradient both in OC and C.
SIZES = pytest.mark.parametrize(
    ("N", "C", "OC"), [tiny(3, 10, 7), tiny(1, 1, 1), (1, 51, 20), (300, 51, 215), (5, 200, 260), (259, 390, 33)]
)


def operands(rng, N, C, OC, dtype):
    """Returns inp (N,C), weight (OC,C), bias (OC,), dout (N,OC)."""
    shapes = (N, C), (OC, C), (OC,), (N, OC)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


@SIZES
@both_precisions(1e-6, 1e-14)
def test_forward(N, C, OC, dtype, tolerance):
    inp, weight, bias, _ = operands(np.random.default_rng(1), N, C, OC, dtype)
    out = np.full((N, OC), np.nan, dtype)
    with single_threaded():
        matmul_forward(out, inp, weight, bias)
    assert_close(out, inp.astype(float) @ weight.astype(float).T + bias, tolerance)


@SIZES
@both_precisions(1e-6, 1e-14)
def test_backward_writes_dinp_and_adds_the_others(N, C, OC, dtype, tolerance):
    rng = np.random.default_rng(2)
    inp, weight, _, dout = operands(rng, N, C, OC, dtype)
    dinp = np.full((N, C), np.nan, dtype)
    _, dweight, dbias, _ = operands(rng, N, C, OC, dtype)
    before = dweight.astype(float), dbias.astype(float)
    with single_threaded():
        matmul_backward(dinp, dweight, dbias, dout, inp, weight)
    exact = dout.astype(float)
    assert_close(dinp, exact @ weight, tolerance, "dinp")
    assert_close(dweight, before[0] + exact.T @ inp, tolerance, "dweight")
    assert_close(dbias, before[1] + exact.sum(axis=0), tolerance, "dbias")


@SIZES
@both_precisions(1e-6, 1e-14)
def test_products_without_bias(N, C, OC, dtype, tolerance):
    rng = np.random.default_rng(3)
    inp, weight, _, dout = operands(rng, N, C, OC, dtype)
    out, dinp, dweight = np.full((N, OC), np.nan, dtype), np.full((N, C), np.nan, dtype), weight.copy()
    with single_threaded():
        matmul_nt(out, inp, weight)
        matmul_nn(dinp, dout, weight)
        matmul_tn_add(dweight, dout, inp)
    assert_close(out, inp.astype(float) @ weight.T, tolerance, "nt")
    assert_close(dinp, dout.astype(float) @ weight, tolerance, "nn")
    assert_close(dweight, weight + dout.astype(float).T @ inp, tolerance, "tn")


def test_gradient_tiny():
    rng = np.random.default_rng(4)
    inp, weight, bias, dout = operands(rng, 3, 5, 4, np.float64)
    dinp, dweight, dbias, out = np.empty_like(inp), np.zeros_like(weight), np.zeros_like(bias), np.empty_like(dout)

    def loss():
        with single_threaded():
            matmul_forward(out, inp, weight, bias)
        return float(np.sum(dout * out))

    with single_threaded():
        matmul_backward(dinp, dweight, dbias, dout, inp, weight)
    for x, gradient in ((inp, dinp), (weight, dweight), (bias, dbias)):
        assert_gradient(loss, x, gradient, rng)
