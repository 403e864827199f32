"""A forward pass taken apart equals the float64 reference's, layer by layer."""

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.inference.anatomy import GUESSES, dissect
from gpt2.model import CLASSIFIER_ROWS
from tests import reference
from tests.support.numeric import assert_close, randomise

SMALL = GPT2Config(maxT=2 * CLASSIFIER_ROWS, V=131, L=2, NH=3, C=66)


def make(config, T):
    """Returns (model, random tokens (T,))."""
    rng = np.random.default_rng(1)
    model = GPT2(config)
    randomise(model, rng)
    return model, rng.integers(0, config.V, T)


def expected_stream(model, tokens):
    """The reference's residual stream (L+1,T,C), and its attention probabilities (L,NH,T,T)."""
    _, trace = reference.forward(model.params, model.config, tokens[None])
    stream = np.concatenate([*(block["residual"] for block in trace[:-2]), trace[-2]])
    scores = [reference.attention_scores(block["qkv"], model.config.NH) for block in trace[:-2]]
    return stream, reference.softmax(np.concatenate(scores))


@pytest.mark.parametrize("T", [2, 50, CLASSIFIER_ROWS + 3])
def test_every_part_equals_the_reference(T):
    model, tokens = make(SMALL, T)
    found = dissect(model, tokens)
    stream, attention = expected_stream(model, tokens)
    assert_close(found.attention, attention, 1e-5)
    assert_close(found.norms, np.linalg.norm(stream, axis=-1), 1e-5)
    p = {name: tensor.astype(np.float64) for name, tensor in model.params.items()}
    logits = reference.layernorm(stream, p["lnfw"], p["lnfb"]) @ p["wte"][: SMALL.V].T
    targets = np.tile(tokens[1:], (SMALL.L + 1, 1))
    assert_close(found.losses, reference.cross_entropy(logits[:, :-1], targets), 1e-5)
    order = np.argsort(-logits, axis=-1)
    assert (found.guesses == order[..., :GUESSES]).mean() > 0.999  # two may be as likely to the last digit
    probabilities = np.take_along_axis(reference.softmax(logits), order[..., :GUESSES], axis=-1)
    assert np.abs(found.probabilities - probabilities).max() < 1e-5
    ranks = np.argmax(order[:, :-1] == targets[..., None], axis=-1)
    assert (found.ranks == ranks).mean() > 0.99


def test_a_vocabulary_of_fewer_tokens_than_guesses():
    model, tokens = make(GPT2Config(maxT=4, V=3, L=1, NH=1, C=4), 4)
    found = dissect(model, tokens)
    assert found.guesses.shape == (2, 4, 3)
    assert np.allclose(found.probabilities.sum(axis=-1), 1)


def test_one_token_has_guesses_but_no_loss():
    model, tokens = make(SMALL, 1)
    found = dissect(model, tokens)
    assert found.losses.shape == found.ranks.shape == (SMALL.L + 1, 0)
    assert found.guesses.shape == (SMALL.L + 1, 1, GUESSES)


def test_a_diverged_model_is_refused():
    model, tokens = make(SMALL, 4)
    model.params["lnfb"][0] = np.nan
    with pytest.raises(UserError, match="a loss is not finite"):
        dissect(model, tokens)
