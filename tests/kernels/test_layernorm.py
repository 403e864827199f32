import numpy as np
import pytest

from gpt2.kernels.layernorm import layernorm_backward, layernorm_forward
from tests import reference
from tests.support.numeric import assert_close, assert_gradient, both_precisions, tiny

SIZES = pytest.mark.parametrize(("N", "C"), [tiny(3, 10), tiny(1, 66), (5, 51), (259, 130)])


def inputs(rng, N, C, dtype):
    """Returns (inp, weight, bias); inp is far from mean 0 and variance 1, which would hide mistakes."""
    inp = 3 + 2 * rng.standard_normal((N, C))
    return tuple(x.astype(dtype) for x in (inp, rng.standard_normal(C), rng.standard_normal(C)))


def run_forward(inp, weight, bias):
    """Returns (out, mean, rstd)."""
    N = inp.shape[0]
    out, mean, rstd = np.full_like(inp, np.nan), np.full(N, np.nan, inp.dtype), np.full(N, np.nan, inp.dtype)
    layernorm_forward(out, mean, rstd, inp, weight, bias)
    return out, mean, rstd


@SIZES
@both_precisions(1e-6, 1e-11)
def test_forward(N, C, dtype, tolerance):
    inp, weight, bias = inputs(np.random.default_rng(1), N, C, dtype)
    out, mean, rstd = run_forward(inp, weight, bias)
    exact = inp.astype(float)
    assert_close(out, reference.layernorm(exact, weight.astype(float), bias.astype(float)), tolerance)
    assert_close(mean, exact.mean(axis=1), tolerance, "mean")
    assert_close(rstd, 1 / np.sqrt(exact.var(axis=1) + 1e-5), tolerance, "rstd")


@SIZES
@both_precisions(2e-6, 1e-11)
def test_backward_adds(N, C, dtype, tolerance):
    rng = np.random.default_rng(2)
    inp, weight, bias = inputs(rng, N, C, dtype)
    _, mean, rstd = run_forward(inp, weight, bias)
    dout = rng.standard_normal((N, C)).astype(dtype)
    gradients = rng.standard_normal((N, C)).astype(dtype), *rng.standard_normal((2, C)).astype(dtype)
    before = [gradient.astype(float) for gradient in gradients]
    layernorm_backward(*gradients, dout, inp, weight, mean, rstd)
    expected = reference.layernorm_backward(*(x.astype(float) for x in (dout, inp, weight, bias)))
    for what, gradient, old, new in zip(("dinp", "dweight", "dbias"), gradients, before, expected, strict=True):
        assert_close(gradient - old, new, tolerance, what)


def test_gradient_tiny():
    rng = np.random.default_rng(3)
    inp, weight, bias = inputs(rng, 3, 5, np.float64)
    dout = rng.standard_normal(inp.shape)
    _, mean, rstd = run_forward(inp, weight, bias)
    gradients = np.zeros_like(inp), np.zeros_like(weight), np.zeros_like(bias)
    layernorm_backward(*gradients, dout, inp, weight, mean, rstd)
    for x, gradient in zip((inp, weight, bias), gradients, strict=True):
        assert_gradient(lambda: float(np.sum(dout * run_forward(inp, weight, bias)[0])), x, gradient, rng)


def test_a_large_mean_does_not_swallow_the_variance_tiny():
    # E[x^2] - E[x]^2 would cancel to 0 or below.
    inp = np.float32(4096) + np.arange(8, dtype=np.float32)[None]
    out, _, _ = run_forward(inp, np.ones(8, np.float32), np.zeros(8, np.float32))
    assert_close(out, reference.layernorm(inp.astype(float), 1.0, 0.0), 1e-6)


def test_a_row_of_equal_values_becomes_the_bias_tiny():
    bias = np.arange(7, dtype=np.float32)
    out, _, rstd = run_forward(np.full((2, 7), 2.5, np.float32), np.ones(7, np.float32), bias)
    assert np.array_equal(out, np.tile(bias, (2, 1)))
    assert_close(rstd, np.full(2, 1e5**0.5), 1e-6)
