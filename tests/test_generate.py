"""Sampling: draws follow the distribution, depend on the seed only, and see no more than the model's context."""

import numpy as np

from gpt2 import GPT2, GPT2Config
from gpt2.generate import generate, sample

CONFIG = GPT2Config(maxT=8, V=20, L=1, NH=1, C=8)


def test_draws_follow_the_softmax():
    logits = np.array([1.0, -2.0, 0.5, -np.inf, 3.0], np.float32)
    rng, draws = np.random.default_rng(0), 50_000
    counts = np.bincount([sample(logits, rng) for _ in range(draws)], minlength=5)
    expected = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum() * draws
    assert counts[3] == 0
    seen = expected > 0
    chi_square = float(((counts - expected)[seen] ** 2 / expected[seen]).sum())
    assert chi_square < 16.3  # the 0.999 quantile at 3 degrees of freedom


def test_the_seed_decides_the_text():
    model = GPT2(CONFIG, seed=3)
    texts = [list(generate(model, [1, 2], 30, np.random.default_rng(seed))) for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]
    assert all(0 <= token < CONFIG.V for token in texts[0])


def test_past_the_context_the_last_tokens_count():
    model = GPT2(CONFIG, seed=3)
    long = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    (from_long,) = generate(model, long, 1, np.random.default_rng(0))
    (from_window,) = generate(model, long[-CONFIG.maxT :], 1, np.random.default_rng(0))
    assert from_long == from_window


def test_each_token_is_drawn_from_the_logits_of_all_before_it():
    model = GPT2(CONFIG, seed=3)
    model.params["wte"][: CONFIG.V] *= 40  # peaked, so that another context gives another token
    tokens, rng = [1], np.random.default_rng(5)
    for token in generate(model, [1], 7, np.random.default_rng(5)):
        assert token == sample(model.logits([tokens])[0, -1], rng)
        tokens.append(token)
