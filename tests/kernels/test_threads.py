import numba
import numpy as np
import pytest

from gpt2 import machine
from gpt2.config import GPT2Config
from gpt2.model import GPT2
from gpt2.optimizer import AdamW, gradient_norm
from tests.support.numeric import random_batch, randomise

# Odd sizes that give most kernels several tasks.
CONFIG = GPT2Config(maxT=101, V=300, L=2, NH=5, C=130)


@pytest.fixture(autouse=True)
def restore_threads():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def train(n, B=3, T=101, steps=3):
    """Trains on n threads; returns losses, norms, gradients, parameters and moments, the arrays as bytes."""
    machine.set_threads(n)
    model = GPT2(CONFIG)
    rng = np.random.default_rng(1)
    randomise(model, rng)
    optimizer = AdamW(model, weight_decay=0.1)
    results = []
    for _ in range(steps):
        tokens, targets = random_batch(CONFIG, B, T, rng)
        results.append(model.overwrite_gradients(tokens, targets))
        results += [gradient_norm(model), model.grads_flat.tobytes()]
        optimizer.step(1e-2)
    return [*results, model.params_flat.tobytes(), optimizer.m.tobytes(), optimizer.v.tobytes()]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 3, reason="NUMBA_NUM_THREADS is below 3")
def test_the_same_bits_for_any_number_of_threads():
    expected = train(1)
    assert train(2) == expected
    for _ in range(5):  # usually more threads than cores
        assert train(3) == expected


def test_set_threads_is_obeyed():
    for n in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        machine.set_threads(n)
        assert numba.get_num_threads() == n
