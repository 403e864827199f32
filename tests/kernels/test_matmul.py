import numpy as np
import pytest

from gpt2.kernels import matmul
from gpt2.kernels.matmul import (
    matmul_backward,
    matmul_forward,
    matmul_gelu_backward,
    matmul_gelu_forward,
    matmul_nn,
    matmul_nt,
    matmul_residual_forward,
    matmul_tn,
)
from tests import reference
from tests.support.numeric import assert_close, assert_gradient, both_precisions, tiny, to_bfloat16

# Beyond one task: over 256 rows or 192 columns, and for weight gradients over 384 in OC or 768 in C.
SIZES = pytest.mark.parametrize(
    ("N", "C", "OC"), [tiny(3, 10, 7), tiny(1, 1, 1), (1, 51, 20), (300, 51, 215), (5, 200, 390), (259, 770, 33)]
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
    matmul_forward(out, inp, weight, bias, False)
    assert_close(out, inp.astype(float) @ weight.astype(float).T + bias, tolerance)


@SIZES
@both_precisions(1e-6, 1e-14)
def test_forward_with_residual(N, C, OC, dtype, tolerance):
    inp, weight, bias, residual = operands(np.random.default_rng(5), N, C, OC, dtype)
    out, before = np.full((N, OC), np.nan, dtype), residual.copy()
    matmul_residual_forward(out, residual, inp, weight, bias, False)
    assert_close(out, residual + inp.astype(float) @ weight.astype(float).T + bias, tolerance)
    assert np.array_equal(residual, before)


@SIZES
@both_precisions(1e-6, 1e-12)
def test_gelu_after_and_before_a_product(N, C, OC, dtype, tolerance):
    inp, weight, bias, dout = operands(np.random.default_rng(6), N, C, OC, dtype)
    out, pre = np.full((2, N, OC), np.nan, dtype)
    matmul_gelu_forward(out, pre, inp, weight, bias, False)
    exact = inp.astype(float) @ weight.astype(float).T + bias
    assert_close(pre, exact, tolerance, "pre")
    assert_close(out, reference.gelu(exact), tolerance, "out")
    dpre, act = np.full((2, N, C), np.nan, dtype)
    matmul_gelu_backward(dpre, act, dout, inp, weight, False)
    before = inp.astype(float)
    assert_close(dpre, reference.gelu_backward(dout.astype(float) @ weight, before), tolerance, "dpre")
    assert_close(act, reference.gelu(before), tolerance, "act")


@SIZES
@both_precisions(1e-6, 1e-14)
def test_backward_writes_dinp_and_adds_the_others(N, C, OC, dtype, tolerance):
    rng = np.random.default_rng(2)
    inp, weight, _, dout = operands(rng, N, C, OC, dtype)
    dinp = np.full((N, C), np.nan, dtype)
    _, dweight, dbias, _ = operands(rng, N, C, OC, dtype)
    before = dweight.astype(float), dbias.astype(float)
    matmul_backward(dinp, dweight, dbias, dout, inp, weight, 1.0, False)
    exact = dout.astype(float)
    assert_close(dinp, exact @ weight, tolerance, "dinp")
    assert_close(dweight, before[0] + exact.T @ inp, tolerance, "dweight")
    assert_close(dbias, before[1] + exact.sum(axis=0), tolerance, "dbias")
    dweight.fill(np.nan)
    matmul_backward(dinp, dweight, dbias, dout, inp, weight, 0.0, False)
    assert_close(dweight, exact.T @ inp, tolerance, "dweight, overwritten")


@SIZES
@both_precisions(1e-6, 1e-14)
def test_products_without_bias(N, C, OC, dtype, tolerance):
    rng = np.random.default_rng(3)
    inp, weight, _, dout = operands(rng, N, C, OC, dtype)
    out, dinp, dweight = np.full((N, OC), np.nan, dtype), np.full((N, C), np.nan, dtype), weight.copy()
    matmul_nt(out, inp, weight, False)
    matmul_nn(dinp, dout, weight, False)
    matmul_tn(dweight, dout, inp, 1.0, False)
    assert_close(out, inp.astype(float) @ weight.T, tolerance, "nt")
    assert_close(dinp, dout.astype(float) @ weight, tolerance, "nn")
    assert_close(dweight, weight + dout.astype(float).T @ inp, tolerance, "tn")


def test_gradient_tiny():
    rng = np.random.default_rng(4)
    inp, weight, bias, dout = operands(rng, 3, 5, 4, np.float64)
    dinp, dweight, dbias, out = np.empty_like(inp), np.zeros_like(weight), np.zeros_like(bias), np.empty_like(dout)

    def loss():
        matmul_forward(out, inp, weight, bias, False)
        return float(np.sum(dout * out))

    matmul_backward(dinp, dweight, dbias, dout, inp, weight, 1.0, False)
    for x, gradient in ((inp, dinp), (weight, dweight), (bias, dbias)):
        assert_gradient(loss, x, gradient, rng)


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (63, 500), (256, 768), (1000, 192), (3072, 768), (50304, 768)])
def test_a_cut_covers_the_product(rows, columns, threads, monkeypatch):
    tasks, across, height, width = cut(rows, columns, threads, monkeypatch)
    corners = {(task // across * height, task % across * width) for task in range(tasks)}
    covered = sum(min(height, rows - row) * min(width, columns - column) for row, column in corners)
    assert covered == rows * columns and height <= 256 and width <= 192


@pytest.mark.parametrize(
    ("rows", "columns", "threads", "tasks"),
    [(256, 768, 1, 4), (256, 768, 2, 4), (256, 1024, 2, 8), (256, 768, 8, 8), (768, 128, 2, 4), (4096, 768, 3, 64)],
)
def test_the_threads_share_a_product(rows, columns, threads, tasks, monkeypatch):
    assert cut(rows, columns, threads, monkeypatch)[0] == tasks


def cut(rows, columns, threads, monkeypatch):
    """Returns what _cut gives for tasks of at most 256 x 192, with any number of threads."""
    monkeypatch.setattr(matmul, "threads_in_use", lambda: threads)
    monkeypatch.setattr(matmul, "_part", getattr(matmul._part, "py_func", matmul._part))
    return getattr(matmul._cut, "py_func", matmul._cut)(rows, columns, 256, 192)


def test_kernels_round_factors_and_nothing_else():
    N, C, OC = 70, 50, 90
    rng = np.random.default_rng(8)
    inp, weight, bias, residual = operands(rng, N, C, OC, np.float32)
    dout = rng.standard_normal((N, OC), np.float32)
    i, w, d = map(to_bfloat16, (inp, weight, dout))
    out, pre = np.empty((2, N, OC), np.float32)
    matmul_forward(out, inp, weight, bias, True)
    assert_close(out, i @ w.T + bias, 1e-6)
    matmul_residual_forward(out, residual, inp, weight, bias, True)
    assert_close(out, residual + i @ w.T + bias, 1e-6)
    matmul_gelu_forward(out, pre, inp, weight, bias, True)
    assert_close(pre, i @ w.T + bias, 1e-6)
    matmul_nt(out, inp, weight, True)
    assert_close(out, i @ w.T, 1e-6)
    dpre, act = np.empty((2, N, C), np.float32)
    matmul_gelu_backward(dpre, act, dout, inp, weight, True)
    assert_close(dpre, reference.gelu_backward(d @ w, inp.astype(float)), 1e-6)
    dinp, dweight, dbias = np.empty_like(inp), np.empty_like(weight), np.zeros_like(bias)
    matmul_backward(dinp, dweight, dbias, dout, inp, weight, 0.0, True)
    assert_close(dinp, d @ w, 1e-6)
    assert_close(dweight, d.T @ i, 1e-6)
    assert_close(dbias, dout.sum(axis=0, dtype=float), 1e-6)
    matmul_tn(dweight, dout, inp, 0.0, True)
    assert_close(dweight, d.T @ i, 1e-6)
