"""The first place that is not finite, found where it was put."""

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.model import GPT2
from gpt2.training import health
from gpt2.training.health import first_nonfinite, first_nonfinite_gradient
from tests.numeric import random_batch, randomise

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
    model.forward(*random_batch(CONFIG, B, T, rng), accumulate=False)
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
    assert not {"grads", "grads_flat"} & vars(model).keys()


def test_scratch_is_not_looked_at(model):
    model.backward()
    for name in ("ln", "atty", "dresidual", "dnarrow", "shared"):
        model.acts[name][...] = np.nan
    assert first_nonfinite(model) is None


def test_the_place_is_right_whatever_the_chunk(model, monkeypatch):
    monkeypatch.setattr(health, "CHUNK", 7)
    model.acts["fch"][2, 9, 30:] = np.nan
    assert first_nonfinite(model) == "fch of layer 2 (row 9, column 30 of (10, 32))"
