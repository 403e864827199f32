import numpy as np
import pytest

from gpt2.kernels.gelu import gelu_backward, gelu_forward
from tests import reference
from tests.support.numeric import assert_close, assert_gradient, both_precisions, tiny

SIZES = pytest.mark.parametrize(("N", "C"), [tiny(3, 10), tiny(1, 1), (300, 51), (5, 130)])

FLOAT64 = 1e-12


@SIZES
@both_precisions(5e-7, FLOAT64)
def test_forward(N, C, dtype, tolerance):
    inp = (2 * np.random.default_rng(1).standard_normal((N, C))).astype(dtype)
    out = np.full_like(inp, np.nan)
    gelu_forward(out.reshape(-1), inp.reshape(-1))
    assert_close(out, reference.gelu(inp.astype(float)), tolerance)


@SIZES
@both_precisions(5e-7, FLOAT64)
def test_backward(N, C, dtype, tolerance):
    rng = np.random.default_rng(2)
    inp, dinp = (2 * rng.standard_normal((2, N, C))).astype(dtype)
    expected = reference.gelu_backward(dinp.astype(float), inp.astype(float))
    out = np.full_like(inp, np.nan)
    gelu_backward(dinp.reshape(-1), out.reshape(-1), inp.reshape(-1))
    assert_close(dinp, expected, tolerance)
    assert_close(out, reference.gelu(inp.astype(float)), tolerance)


def test_gradient_tiny():
    rng = np.random.default_rng(3)
    inp, dout = rng.standard_normal((2, 15))
    out, dinp = np.empty_like(inp), dout.copy()
    gelu_backward(dinp, out, inp)

    def loss():
        gelu_forward(out, inp)
        return float(np.sum(dout * out))

    assert_gradient(loss, inp, dinp, rng)


def test_far_out_it_is_zero_or_the_identity_tiny():
    inp = np.array([-1e4, -50.0, 0.0, 50.0, 1e4], np.float32)
    out, dinp = np.empty_like(inp), np.ones_like(inp)
    gelu_forward(out, inp)
    assert np.array_equal(out, np.maximum(inp, 0))
    out.fill(np.nan)
    gelu_backward(dinp, out, inp)
    assert np.array_equal(out, np.maximum(inp, 0))
    assert np.array_equal(dinp, np.array([0, 0, 0.5, 1, 1], np.float32))
