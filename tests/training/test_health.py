"""The first place that is not finite, found where it was put."""

import json
import math

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.errors import UserError
from gpt2.model import GPT2
from gpt2.training import health
from gpt2.training.health import OutlierDetector, first_nonfinite, first_nonfinite_gradient
from tests.support.numeric import random_batch, randomise

CONFIG = GPT2Config(maxT=7, V=11, L=3, NH=2, C=8)
B, T = 2, 5
# What a forward pass makes, in its order; N = B T = 10.
OF_LAYER = {
    "ln1_mean": (10,),
    "ln1_rstd": (10,),
    "qkv": (2, 5, 24),
    "lse": (2, 2, 5),
    "residual2": (10, 8),
    "ln2_mean": (10,),
    "ln2_rstd": (10,),
    "fch": (10, 32),
    "residual3": (10, 8),
}
BEFORE, AFTER = {"encoded": (10, 8)}, {"lnf": (10, 8), "lnf_mean": (10,), "lnf_rstd": (10,)}
AFTER |= {"logits_lse": (10,), "losses": (10,)}
# What a backward pass makes, in its order but for a layer's weight and bias, which one kernel makes.
GRADIENTS_OF_LAYER = ("fcprojb fcprojw fcb fcw ln2b ln2w attprojb attprojw qkvb qkvw ln1b ln1w").split()


@pytest.fixture
def model():
    model = GPT2(CONFIG)
    rng = np.random.default_rng(0)
    randomise(model, rng)
    model.forward(*random_batch(CONFIG, B, T, rng))
    return model


def test_every_activation_in_the_order_of_the_forward_pass(model):
    """Made NaN from the last to the first: each time the one just made so is the first."""
    order = [(name, None, shape) for name, shape in BEFORE.items()]
    order += [(name, layer, shape) for layer in range(3) for name, shape in OF_LAYER.items()]
    order += [(name, None, shape) for name, shape in AFTER.items()]
    rng = np.random.default_rng(1)
    assert first_nonfinite(model) is None
    for name, layer, shape in reversed(order):
        index = tuple(int(rng.integers(size)) for size in shape)
        tensor = model.acts[name] if layer is None else model.acts[name][layer]
        assert tensor.shape == shape
        tensor[index] = rng.choice([np.nan, np.inf, -np.inf])
        found = first_nonfinite(model)
        assert found.startswith(name + (" (" if layer is None else f" of layer {layer} (")), found
        place = f"row {index[0]}, column {index[1]}" if len(index) == 2 else "index " + ", ".join(map(str, index))
        assert found.endswith(f"({place} of {shape})"), found


def test_every_gradient_in_the_order_of_the_backward_pass(model):
    model.backward()
    order = [("lnfb", None), ("lnfw", None)]
    order += [(name, layer) for layer in (2, 1, 0) for name in GRADIENTS_OF_LAYER]
    order += [("wpe", None), ("wte", None)]
    assert len(order) == 12 * 3 + 4
    for name, layer in reversed(order):
        tensor = model.grads[name] if layer is None else model.grads[name][layer]
        tensor[(-1,) * tensor.ndim] = np.inf
        expected = f"the gradient of {name}" + (" (" if layer is None else f" of layer {layer} (")
        for found in (first_nonfinite(model), first_nonfinite_gradient(model)):
            assert found.startswith(expected), found


def test_parameters_come_first_layer_by_layer(model):
    model.backward()
    model.grads_flat[:] = np.nan
    model.acts["encoded"][:] = np.nan
    model.params["lnfb"][3] = np.nan
    assert first_nonfinite(model) == "lnfb (index 3 of (8,))"
    model.params["ln1w"][2, 6] = np.inf
    model.params["fcw"][1, 17, 5] = np.inf
    assert first_nonfinite(model) == "fcw of layer 1 (row 17, column 5 of (32, 8))"
    assert first_nonfinite_gradient(model) == "the gradient of lnfb (index 0 of (8,))"


def test_an_overflow_is_found_where_it_happened():
    model = GPT2(CONFIG)
    model.params["fcw"][1] = 3e38
    model.params["ln2b"][1] = 3.0
    assert not np.isfinite(model.forward(*random_batch(CONFIG, B, T, np.random.default_rng(2))))
    assert first_nonfinite(model) == "fch of layer 1 (row 0, column 0 of (10, 32))"


def test_gradients_that_do_not_exist_are_not_made():
    model = GPT2(CONFIG)
    model.forward(*random_batch(CONFIG, B, T, np.random.default_rng(3)))
    assert first_nonfinite(model) is None and first_nonfinite_gradient(model) is None
    assert not model.has_gradients


def test_scratch_is_not_looked_at(model):
    model.backward()
    for tensor in model.scratch.values():
        tensor[...] = np.nan
    assert first_nonfinite(model) is None


def test_the_place_is_right_whatever_the_chunk(model, monkeypatch):
    monkeypatch.setattr(health, "CHUNK", 7)
    model.acts["fch"][2, 9, 30:] = np.nan
    assert first_nonfinite(model) == "fch of layer 2 (row 9, column 30 of (10, 32))"


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
