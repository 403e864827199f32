import copy
import itertools
import math
import pickle

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.model import GPT2
from gpt2.optimizer import SCHEDULES, AdamW, clip_scale, learning_rate, norm_of
from tests import reference
from tests.support.numeric import assert_close, random_batch, randomise

CONFIG = GPT2Config(maxT=9, V=31, L=2, NH=2, C=10)


def make(seed, dtype=np.float32):
    model = GPT2(CONFIG, dtype=dtype)
    randomise(model, np.random.default_rng(seed))
    return model


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_ten_steps_of_training_equal_the_reference(weight_decay):
    model = make(1)
    rng = np.random.default_rng(2)
    batches = [random_batch(CONFIG, 2, 9, rng) for _ in range(10)]
    expected_losses, expected_params = reference.train(
        model.params, CONFIG, batches, lr=1e-2, weight_decay=weight_decay, eps=1e-6
    )
    optimizer = AdamW(model, weight_decay=weight_decay, eps=1e-6)
    losses = []
    for tokens, targets in batches:
        losses.append(model.forward(tokens, targets))
        model.zero_grad()
        model.backward()
        optimizer.step(1e-2)
    assert np.max(np.abs(np.subtract(losses, expected_losses))) < 1e-4
    assert abs(losses[-1] - losses[0]) > 0.05  # or the run would show nothing
    for name, expected in expected_params.items():
        assert_close(model.params[name], expected, 1e-3, name)


def test_decay_is_for_matrices_and_embeddings_only():
    model = make(3)
    before = model.params_flat.copy()
    views = {name: tensor.copy() for name, tensor in model.params.items()}
    AdamW(model, weight_decay=0.5).step(0.1)  # the gradients are zero
    assert not np.array_equal(model.params_flat, before)
    for name, tensor in model.params.items():
        assert_close(tensor, views[name] * (0.95 if name in reference.DECAYED else 1.0), 1e-6, name)


def test_grad_scale_multiplies_the_gradient():
    rng = np.random.default_rng(4)
    scaled, plain = make(5), make(5)
    gradient = rng.standard_normal(plain.grads_flat.size).astype(np.float32)
    scaled.grads_flat[:] = 4 * gradient
    plain.grads_flat[:] = gradient
    first, second = AdamW(scaled), AdamW(plain)
    first.step(0.01, grad_scale=0.25)
    second.step(0.01)
    assert np.array_equal(scaled.params_flat, plain.params_flat)
    assert np.array_equal(first.m, second.m)
    assert np.array_equal(first.v, second.v)


def test_one_batch_can_be_overfitted():
    model = GPT2(CONFIG, seed=1)
    optimizer = AdamW(model)
    tokens, targets = random_batch(CONFIG, 2, 9, np.random.default_rng(6))
    first = model.forward(tokens, targets)
    assert first == pytest.approx(math.log(CONFIG.V), abs=0.1)
    for _ in range(150):
        loss = model.forward(tokens, targets)
        model.zero_grad()
        model.backward()
        optimizer.step(1e-2)
    assert loss < 0.02


def test_the_norm_is_of_all_gradients_together():
    model = make(7)
    optimizer = AdamW(model)
    model.grads_flat[:] = np.random.default_rng(7).standard_normal(model.grads_flat.size)
    optimizer.measure()
    assert norm_of(optimizer.squares) == pytest.approx(np.linalg.norm(model.grads_flat.astype(float)), rel=1e-12)
    model.zero_grad()
    optimizer.measure()
    assert norm_of(optimizer.squares) == 0


def test_clip_scale():
    assert clip_scale(4.0, 1.0) == 0.25
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(1.0, 1.0) == 1.0
    assert clip_scale(4.0, 0.0) == 1.0  # off
    assert clip_scale(0.0, 1.0) == 1.0


def rates(schedule, warmup_steps=0, max_steps=100, final_fraction=0.1):
    return [learning_rate(step, schedule, 2.0, warmup_steps, max_steps, final_fraction) for step in range(max_steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_linear_and_ends_at_the_peak(schedule):
    assert rates(schedule, warmup_steps=4)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_it_starts_at_the_peak_and_never_rises(schedule):
    values = rates(schedule)
    assert values[0] == 2.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))
    assert values[-1] >= 0.2


def test_constant_stays():
    assert set(rates("constant")) == {2.0}


def test_linear_falls_by_the_same_amount_each_step():
    assert np.allclose(np.diff(rates("linear", warmup_steps=20)[20:]), -1.8 / 80)


def test_cosine_is_half_way_in_the_middle():
    values = rates("cosine", warmup_steps=20)
    assert values[60] == pytest.approx((2.0 + 0.2) / 2)
    assert values[40] == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_wsd_decays_over_the_last_fifth():
    values = rates("wsd", warmup_steps=10)
    assert set(values[10:81]) == {2.0}
    assert np.allclose(np.diff(values[80:]), -1.8 / 20)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("warmup_steps", "max_steps"), [(0, 1), (1, 1), (5, 3), (3, 3), (2, 4)])
def test_short_runs(schedule, warmup_steps, max_steps):
    assert all(0 < rate <= 2.0 for rate in rates(schedule, warmup_steps, max_steps))


def test_a_final_fraction_of_one_is_constant():
    for schedule in SCHEDULES:
        assert rates(schedule, final_fraction=1.0) == pytest.approx([2.0] * 100)


@pytest.mark.parametrize("name", ["m", "v", "model"])
def test_arrays_of_another_size_are_refused(name):
    optimizer = AdamW(make(1))
    other = GPT2(GPT2Config(maxT=9, V=31, L=3, NH=2, C=10)) if name == "model" else np.zeros(3, np.float32)
    setattr(optimizer, name, other)
    with pytest.raises(ValueError, match=r"expected \(\d+,\)"):
        optimizer.step(1e-3)
    assert optimizer.steps == 0


def test_a_deep_copy_is_a_model_and_an_optimizer_of_its_own():
    model, rng = make(1), np.random.default_rng(2)
    tokens, targets = random_batch(CONFIG, 2, 9, rng)
    optimizer = AdamW(model)

    def step(optimizer):
        optimizer.model.overwrite_gradients(tokens, targets)
        optimizer.step(1e-2)

    step(optimizer)
    deep, pickled = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
    step(optimizer)
    for other in (deep, pickled):
        assert other.steps == 1
        step(other)
        assert np.array_equal(other.model.params_flat, model.params_flat)
