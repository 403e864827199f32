import numpy as np
import pytest

from gpt2.kernels.classifier import classifier_backward, classifier_forward
from tests import reference
from tests.support.numeric import assert_close, assert_gradient, both_precisions, tiny

SIZES = pytest.mark.parametrize(("N", "V", "Vp"), [tiny(3, 7, 16), tiny(1, 1, 4), tiny(2, 8, 8), (300, 131, 256)])


def rows(rng, N, V, Vp, dtype):
    """Returns (logits, targets); the padding holds values that would spoil any sum that included them."""
    logits = (3 * rng.standard_normal((N, Vp))).astype(dtype)
    logits[:, V:] = 1e30
    targets = rng.integers(0, V, N, dtype=np.int32)
    targets[-1] = V - 1
    return logits, targets


def run_forward(logits, targets, V):
    """Returns (losses, lse)."""
    losses, lse = np.full((2, len(logits)), np.nan, logits.dtype)
    classifier_forward(losses, lse, logits, targets, V)
    return losses, lse


@SIZES
@both_precisions(1e-6, 1e-14)
def test_forward(N, V, Vp, dtype, tolerance):
    logits, targets = rows(np.random.default_rng(1), N, V, Vp, dtype)
    before = logits.copy()
    losses, lse = run_forward(logits, targets, V)
    exact = logits[:, :V].astype(float)
    assert_close(lse, reference.log_sum_exp(exact), tolerance, "lse")
    if V > 1:
        assert_close(losses, reference.cross_entropy(exact, targets), tolerance, "losses")
    else:
        assert np.array_equal(losses, [0])
    assert np.array_equal(logits, before)


@SIZES
@both_precisions(2e-6, 1e-13)
def test_backward_replaces_the_logits_and_zeroes_the_padding(N, V, Vp, dtype, tolerance):
    logits, targets = rows(np.random.default_rng(2), N, V, Vp, dtype)
    expected = reference.cross_entropy_backward(np.full(N, 0.125), logits[:, :V].astype(float), targets)
    _, lse = run_forward(logits, targets, V)
    classifier_backward(logits, lse, targets, 0.125, V)
    assert_close(logits[:, :V], expected, tolerance)
    assert not np.any(logits[:, V:])


def test_gradient_tiny():
    rng = np.random.default_rng(3)
    logits, targets = rows(rng, 3, 5, 5, np.float64)
    gradient = logits.copy()
    classifier_backward(gradient, run_forward(logits, targets, 5)[1], targets, 1 / 3, 5)
    assert_gradient(lambda: float(run_forward(logits, targets, 5)[0].mean()), logits, gradient, rng)


def test_logits_far_apart_tiny():
    logits = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]], np.float32)
    targets = np.array([1, 2], np.int32)
    losses, lse = run_forward(logits, targets, 3)
    assert losses[0] == 1e4
    assert losses[1] == pytest.approx(np.log(3), abs=2e-3)  # float32 spacing at 10^4 is 1e-3
    classifier_backward(logits, lse, targets, 1.0, 3)
    assert np.array_equal(logits[0], [1, -1, 0])
