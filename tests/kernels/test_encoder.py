import numpy as np
import pytest

from gpt2.kernels.encoder import encoder_backward, encoder_forward
from tests import reference
from tests.support.numeric import assert_close, assert_gradient, both_precisions, tiny

VP, MAX_T = 12, 7
SIZES = pytest.mark.parametrize(("B", "T", "C"), [tiny(2, 3, 10), tiny(1, 1, 66), (3, 7, 51), (2, 5, 130)])


def embeddings(rng, C, dtype):
    return rng.standard_normal((VP, C)).astype(dtype), rng.standard_normal((MAX_T, C)).astype(dtype)


@SIZES
@both_precisions(1e-7, 1e-15)
def test_forward(B, T, C, dtype, tolerance):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, VP, (B, T), dtype=np.int32)
    wte, wpe = embeddings(rng, C, dtype)
    out = np.full((B, T, C), np.nan, dtype)
    encoder_forward(out, tokens, wte, wpe)
    assert_close(out, reference.embedding(tokens, wte.astype(float), wpe.astype(float)), tolerance)


@SIZES
@both_precisions(3e-7, 1e-14)
def test_backward_adds(B, T, C, dtype, tolerance):
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, VP, (B, T), dtype=np.int32)
    dout = rng.standard_normal((B, T, C)).astype(dtype)
    dwte, dwpe = embeddings(rng, C, dtype)
    before = dwte.astype(float), dwpe.astype(float)
    expected = reference.embedding_backward(dout.astype(float), tokens, *before)
    encoder_backward(dwte, dwpe, dout, tokens)
    assert_close(dwte - before[0], expected[0], tolerance, "dwte")
    assert_close(dwpe - before[1], expected[1], tolerance, "dwpe")


def test_gradient_tiny():
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, VP, (2, 4), dtype=np.int32)
    wte, wpe = embeddings(rng, 5, np.float64)
    dout, out = rng.standard_normal((2, 2, 4, 5))
    dwte, dwpe = np.zeros_like(wte), np.zeros_like(wpe)
    encoder_backward(dwte, dwpe, dout, tokens)

    def loss():
        encoder_forward(out, tokens, wte, wpe)
        return float(np.sum(dout * out))

    assert_gradient(loss, wte, dwte, rng)
    assert_gradient(loss, wpe, dwpe, rng)


def test_one_token_everywhere_adds_up_tiny():
    # Small integers: the sums are exact, so a lost update cannot hide in rounding.
    dout = np.arange(3 * 7 * 70, dtype=np.float32).reshape(3, 7, 70)
    dwte, dwpe = np.zeros((VP, 70), np.float32), np.zeros((MAX_T, 70), np.float32)
    encoder_backward(dwte, dwpe, dout, np.full((3, 7), 4, np.int32))
    assert np.array_equal(dwte[4], dout.sum(axis=(0, 1)))
    assert not np.any(np.delete(dwte, 4, axis=0))
    assert np.array_equal(dwpe, dout.sum(axis=0))
