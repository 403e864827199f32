"""Dropout: masks equal those of the documented formula, drop as often as they should, and depend on nothing else."""

import itertools

import numpy as np
import pytest

from gpt2.kernels.dropout import KEEP_ALL, Dropout, dropout_forward, dropout_residual_forward
from tests import reference
from tests.support.numeric import assert_close, both_precisions, tiny

# Around the lengths of vectors.
SIZES = pytest.mark.parametrize(
    ("N", "C"), [tiny(1, 1), tiny(3, 7), tiny(2, 17), (5, 15), (64, 16), (3, 33), (130, 100)]
)
DEPENDS_ON = 2**31 - 1, 10**9, 3  # seed, step, micro-step


def kept(p, *depends_on, layer=0, place=0, N=1000, C=1000):
    """A mask (N,C) as the kernels see it: 0 or 1 / (1 - p)."""
    out = np.empty((N, C), np.float32)
    dropout_forward(out, np.ones((N, C), np.float32), Dropout(p, *depends_on).mask(layer, place))
    return out


@SIZES
@pytest.mark.parametrize("p", [0.2, 0.9])
@both_precisions(1e-7, 1e-15)
def test_forward(N, C, p, dtype, tolerance):
    inp = np.random.default_rng(1).standard_normal((N, C)).astype(dtype)
    residual = np.random.default_rng(2).standard_normal((N, C)).astype(dtype)
    mask, mask_array = Dropout(p, *DEPENDS_ON).mask(5, 2), reference.dropout_masks(p, *DEPENDS_ON)(5, 2, N, C)
    out = np.full_like(inp, np.nan)
    dropout_forward(out, inp, mask)
    assert_close(out, inp * mask_array, tolerance)
    in_place = inp.copy()
    dropout_forward(in_place, in_place, mask)
    assert np.array_equal(in_place, out)
    out = inp.copy()
    dropout_residual_forward(out, residual, mask)
    assert_close(out, residual + inp * mask_array, tolerance)


def test_nothing_is_dropped_by_the_mask_that_keeps_all_tiny():
    inp = np.random.default_rng(3).standard_normal((3, 5)).astype(np.float32)
    out = np.empty_like(inp)
    dropout_forward(out, inp, KEEP_ALL)
    assert np.array_equal(out, inp)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.2, 0.5, 0.9])
def test_mean_and_variance_are_those_of_inverted_dropout(p):
    for step in range(5):
        mask = kept(p, 1, step, 0).astype(np.float64)
        assert set(np.unique(mask)) == {0.0, float(np.float32(1 / (1 - p)))}
        deviation = np.sqrt(p / (1 - p))  # of an element: its mean is 1
        assert abs(mask.mean() - 1) < 4 * deviation / np.sqrt(mask.size)
        assert mask.var() == pytest.approx(deviation**2, rel=0.03)
        # Nor are there rows or columns that are kept more than others.
        for axis in (0, 1):
            means = mask.mean(axis=axis)
            assert np.std(means) == pytest.approx(deviation / np.sqrt(mask.shape[axis]), rel=0.15)


def test_masks_of_other_places_and_neighbours_within_one_are_uncorrelated():
    whole = np.array(kept(0.5, 1, 1, 0), bool)
    others = {
        "seed": kept(0.5, 2, 1, 0),
        "step": kept(0.5, 1, 2, 0),
        "micro-step": kept(0.5, 1, 1, 1),
        "layer": kept(0.5, 1, 1, 0, layer=1),
        "place": kept(0.5, 1, 1, 0, place=1),
    }
    masks = [whole, *(np.array(other, bool) for other in others.values())]
    pairs = list(itertools.combinations(masks, 2))
    for distance in (1, 2, 16, 64):
        pairs += [(whole[distance:], whole[:-distance]), (whole[:, distance:], whole[:, :-distance])]
    for one, other in pairs:
        # Two fair coins agree in half of the throws, with a standard deviation of sqrt(n) / 2.
        assert abs(np.mean(one == other) - 0.5) < 4.5 * 0.5 / np.sqrt(one.size)
