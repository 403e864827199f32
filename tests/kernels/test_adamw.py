import numpy as np
import pytest

from gpt2.kernels.adamw import BLOCK, adamw_update, block_squares, sum_of_squares
from tests import reference
from tests.support.numeric import assert_close, both_precisions, tiny

# The second size gives several tasks, the last one partial.
SIZES = pytest.mark.parametrize("n", [tiny(10), tiny(1), 2 * 65536 + 7])


@SIZES
@both_precisions(1e-6, 1e-13)
def test_steps_equal_the_reference(n, dtype, tolerance):
    rng = np.random.default_rng(1)
    params = rng.standard_normal(n).astype(dtype)
    m, v = np.zeros(n, dtype), np.zeros(n, dtype)
    expected = params.astype(float), np.zeros(n), np.zeros(n)
    for step in (1, 2, 3):
        grads = rng.standard_normal(n).astype(dtype)
        before = grads.copy()
        squares = np.zeros(n // BLOCK + 2)
        adamw_update(params, grads, m, v, 0.01, 0.8, 0.95, 1e-3, 0.3, 0.5, step, squares, 3)
        expected_squares = np.zeros_like(squares)
        for i, square in enumerate(before.astype(float) ** 2):
            expected_squares[(i + 3) // BLOCK] += square
        assert_close(squares, expected_squares, 2 * tolerance)
        expected = reference.adamw(
            expected[0], 0.5 * before.astype(float), *expected[1:], step, 0.01, 0.8, 0.95, 1e-3, 0.3
        )
        assert np.array_equal(grads, before)
    for what, actual, value in zip(("params", "m", "v"), (params, m, v), expected, strict=True):
        assert_close(actual, value, tolerance, what)


def test_a_gradient_of_zero_only_decays_tiny():
    params, zeros = np.arange(5, dtype=np.float64), np.zeros(5)
    adamw_update(params, zeros, zeros.copy(), zeros.copy(), 0.1, 0.9, 0.999, 1e-8, 0.2, 1.0, 1, np.zeros(1), 0)
    assert_close(params, np.arange(5) * (1 - 0.1 * 0.2), 1e-7)


@SIZES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sum_of_squares(n, dtype):
    x = np.random.default_rng(2).standard_normal(n).astype(dtype)
    total = sum_of_squares(x)
    assert total == pytest.approx(np.sum(x.astype(float) ** 2), rel=1e-12)


@SIZES
@pytest.mark.parametrize("cut", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 1])
def test_blocks_are_those_of_the_whole_array_wherever_it_is_cut(n, cut):
    x = np.random.default_rng(3).standard_normal(n).astype(np.float32)
    whole, cut = np.zeros(n // BLOCK + 1), min(cut, n)
    block_squares(x, whole, 0)
    parts = np.zeros_like(whole)
    block_squares(x[:cut], parts, 0)
    block_squares(x[cut:], parts[cut // BLOCK :], cut % BLOCK)
    assert_close(parts, whole, 1e-12)
    assert whole[0] == pytest.approx(np.sum(x[:BLOCK].astype(float) ** 2), rel=1e-12)


def test_sum_of_squares_is_added_up_in_float64_tiny():
    # In float32, (1e-4)^2 would be lost next to 1, and (1e30)^2 would overflow.
    assert sum_of_squares(np.array([1, 1e-4], np.float32)) == pytest.approx(1 + 1e-8, rel=1e-12)
    assert sum_of_squares(np.array([1e30], np.float32)) == pytest.approx(1e60, rel=1e-6)
