"""Outliers by z-score, against the definition in NumPy."""

import json
import math

import numpy as np
import pytest

from gpt2.errors import UserError
from gpt2.training.outliers import OutlierDetector


def test_scores_are_those_of_the_definition():
    values = np.random.default_rng(0).normal(5, 0.3, 400)
    values[300] = 9.0
    detector = OutlierDetector()
    scores = [detector.update(value) for value in values]
    assert np.isnan(scores[:128]).all()
    windows = np.lib.stride_tricks.sliding_window_view(values, 128)[1:]
    expected = (windows[:, -1] - windows.mean(axis=1)) / windows.std(axis=1)
    assert np.allclose(scores[128:], expected, rtol=1e-12, atol=1e-12)
    assert max(scores[128:]) == scores[300] > 7


def test_running_sums_as_in_llm_c_give_the_same_scores():
    """outlier_detector.h: sums of values and squares, the oldest subtracted, the newest added."""
    values = np.random.default_rng(1).normal(3, 1, 60).tolist()
    detector = OutlierDetector(window=8)
    total, squares = sum(values[:8]), sum(value**2 for value in values[:8])
    assert all(math.isnan(detector.update(value)) for value in values[:8])
    for oldest, value in zip(values, values[8:], strict=False):
        total, squares = total - oldest + value, squares - oldest**2 + value**2
        expected = (value - total / 8) / math.sqrt(squares / 8 - (total / 8) ** 2)
        assert detector.update(value) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("window", [2, 7, 128])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-320, 1e300])
def test_values_that_are_all_the_same_score_zero(window, value):
    detector = OutlierDetector(window)
    scores = [detector.update(value) for _ in range(2 * window)]
    assert np.isnan(scores[:window]).all() and scores[window:] == [0.0] * window


def test_no_score_exceeds_its_bound():
    detector = OutlierDetector()
    for _ in range(128):
        detector.update(1.0)
    assert detector.update(1e12) == pytest.approx(math.sqrt(127))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_does_not_enter(value):
    detector = OutlierDetector(window=2)
    detector.update(1)
    assert math.isnan(detector.update(value))
    assert detector.state == [1.0]
    detector.update(2)
    assert detector.update(4) == 1.0  # of 2 and 4
    assert math.isnan(detector.update(value)) and detector.state == [2.0, 4.0]


@pytest.mark.parametrize("count", [0, 3, 5, 9])
def test_a_detector_goes_on_from_a_saved_state(count):
    values = np.random.default_rng(2).normal(size=20).astype(np.float32)
    first, second = OutlierDetector(window=5), OutlierDetector(window=5)
    for value in values[:count]:
        first.update(value)
    second.update(77)
    second.state = json.loads(json.dumps(first.state))
    assert second.state == [float(value) for value in values[max(0, count - 5) : count]]
    first_scores, second_scores = ([each.update(value) for value in values[count:]] for each in (first, second))
    assert np.array_equal(first_scores, second_scores, equal_nan=True)
    assert np.isfinite(first_scores[-5:]).all()


@pytest.mark.parametrize(
    "state",
    [None, {}, "12", 5, [1.0] * 6, [1.0, math.nan], [math.inf], ["1"], [[1.0]], [None], [True], [10**400]],
    ids=lambda state: repr(state)[:20],
)
def test_a_state_that_is_none_is_refused(state):
    detector = OutlierDetector(window=5)
    detector.update(3)
    with pytest.raises(UserError, match="not a list of at most 5 finite numbers"):
        detector.state = state
    assert detector.state == [3.0]
