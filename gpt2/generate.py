"""Sampling text from a model."""

import numpy as np


def generate(model, prompt, max_new_tokens, rng):
    """Yields `max_new_tokens` token ids drawn from the model's distribution, each given all that came before.

    prompt: token ids, at least one. rng: a numpy.random.Generator. Past maxT tokens, the last maxT are what counts.
    """
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        logits = model.last_logits([tokens[-model.config.maxT :]])[0]
        tokens.append(sample(logits, rng))
        yield tokens[-1]


def sample(logits, rng):
    """Draws an index from softmax(logits); logits (V,)."""
    cumulative = np.cumsum(np.exp(logits - logits.max(), dtype=np.float64))
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
