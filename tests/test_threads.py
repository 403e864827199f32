import numba
import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.errors import UserError
from gpt2.kernels import threads
from gpt2.model import GPT2
from gpt2.optimizer import AdamW, gradient_norm
from tests.numeric import random_batch, randomise

# Odd sizes, which give most kernels several tasks.
CONFIG = GPT2Config(maxT=101, V=300, L=2, NH=5, C=130)


@pytest.fixture(autouse=True)
def restore_threads():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def train(n, B=3, T=101, steps=3):
    """Trains on n threads. Returns everything that came of it as bytes."""
    threads.set_threads(n)
    model = GPT2(CONFIG)
    rng = np.random.default_rng(1)
    randomise(model, rng)
    optimizer = AdamW(model, weight_decay=0.1)
    results = []
    for _ in range(steps):
        tokens, targets = random_batch(CONFIG, B, T, rng)
        results.append(model.forward(tokens, targets, accumulate=False))
        model.backward()
        results += [gradient_norm(model), model.grads_flat.tobytes()]
        optimizer.step(1e-2)
    return [*results, model.params_flat.tobytes(), optimizer.m.tobytes(), optimizer.v.tobytes()]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 3, reason="NUMBA_NUM_THREADS is below 3")
def test_the_same_bits_for_any_number_of_threads():
    expected = train(1)
    assert train(2) == expected
    for _ in range(5):  # more threads than many a machine has cores
        assert train(3) == expected


def test_set_threads_is_obeyed():
    for n in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        threads.set_threads(n)
        assert numba.get_num_threads() == n


@pytest.mark.parametrize("n", [0, -1, numba.config.NUMBA_NUM_THREADS + 1])
def test_impossible_numbers_of_threads(n):
    before = numba.get_num_threads()
    with pytest.raises(UserError, match=f"{n} threads"):
        threads.set_threads(n)
    assert numba.get_num_threads() == before


def test_available_threads_is_the_smallest_of_its_limits(monkeypatch):
    assert 1 <= threads.available_threads() <= numba.config.NUMBA_NUM_THREADS
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(threads, "_quota", lambda: 1)
    assert threads.available_threads() == 1
    monkeypatch.setattr(threads, "_quota", lambda: 65)
    assert threads.available_threads() == numba.config.NUMBA_NUM_THREADS


@pytest.mark.parametrize(
    ("text", "quota"), [("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("max 100000", float("inf"))]
)
def test_quota_of_control_groups_version_2(tmp_path, text, quota):
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert threads._quota_v2(tmp_path) == quota


@pytest.mark.parametrize(("limit", "quota"), [("300000", 3), ("50000", 1), ("-1", float("inf"))])
def test_quota_of_control_groups_version_1(tmp_path, limit, quota):
    (tmp_path / "cpu.cfs_quota_us").write_text(limit + "\n")
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    assert threads._quota_v1(tmp_path) == quota


def test_no_quota_where_none_can_be_read(tmp_path):
    assert threads._quota_v2(tmp_path) == threads._quota_v1(tmp_path) == float("inf")
