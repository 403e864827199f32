"""A Context gives the logits of its window whatever was added, forgotten, reordered or dropped before."""

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.inference.context import Batch, Context
from gpt2.inference.decoder import append

CONFIG = GPT2Config(maxT=16, V=50, L=2, NH=2, C=8)


@pytest.fixture(scope="module")
def model():
    model = GPT2(CONFIG, seed=3)
    model.params["wte"] *= 40
    return model


def check(context, model, tokens):
    np.testing.assert_allclose(context.logits(), model.last_logits(tokens), atol=1e-4)
    np.testing.assert_array_equal(context.tokens, tokens)


def random_tokens(B, n, seed=0):
    return np.random.default_rng(seed).integers(0, CONFIG.V, (B, n))


def test_add_to_all_samples_or_to_each(model):
    context, alike, own = Context(CONFIG, model.params_flat, 3), random_tokens(1, 4), random_tokens(3, 5)
    context.add(alike)
    check(context, model, np.tile(alike, (3, 1)))
    context.add(own)
    check(context, model, np.hstack([np.tile(alike, (3, 1)), own]))
    check(context, model, context.tokens.copy())  # nothing new: the same again
    assert not context.slid


@pytest.mark.parametrize("read", [False, True])
def test_forgotten_tokens_have_no_effect(model, read):
    context, tokens = Context(CONFIG, model.params_flat), random_tokens(1, 9)
    context.add(tokens)
    if read:
        context.logits()
    context.forget(3)
    check(context, model, tokens[:, :6])
    context.forget(100)
    assert context.tokens.shape == (1, 0)
    context.add(tokens[:, 5:])
    check(context, model, tokens[:, 5:])


def test_reorder(model):
    context, tokens = Context(CONFIG, model.params_flat, 3), random_tokens(3, 5)
    context.add(tokens)
    context.logits()
    context.reorder(np.array([2, 2, 0]))
    context.add([[1], [2], [3]])
    check(context, model, np.hstack([tokens[[2, 2, 0]], [[1], [2], [3]]]))


def test_full_window_slides_by_a_quarter(model):
    context, tokens = Context(CONFIG, model.params_flat, 2), random_tokens(2, 30)
    context.add(tokens[:, :16])
    check(context, model, tokens[:, :16])
    assert not context.slid
    first = 0
    for end in range(17, 31):
        context.add(tokens[:, end - 1 : end])
        if end - first > 16:
            first = end - 12
        check(context, model, tokens[:, first:end])
        assert context.slid
    assert first == 15  # it slid at 17, 22 and 27 tokens


@pytest.mark.parametrize(("new", "kept"), [(2, 12), (14, 14), (40, 16)])
def test_new_tokens_are_kept_when_the_window_slides(model, new, kept):
    context, tokens = Context(CONFIG, model.params_flat), random_tokens(1, 15 + new)
    context.add(tokens[:, :15])
    context.logits()
    context.add(tokens[:, 15:])
    context.logits()
    check(context, model, tokens[:, -kept:])


def test_window_of_one_token():
    config = GPT2Config(maxT=1, V=50, L=1, NH=1, C=4)
    model = GPT2(config)
    context = Context(config, model.params_flat)
    for token in (3, 4):
        context.add([[token]])
        np.testing.assert_allclose(context.logits(), model.last_logits([[token]]), atol=1e-5)


def test_interrupted_forward_can_be_repeated(model, monkeypatch):
    context, tokens = Context(CONFIG, model.params_flat), random_tokens(1, 30)
    forward = context._decoder.forward

    def interrupted(tokens):
        forward(tokens[:, :2])
        raise KeyboardInterrupt

    for start, end in ((0, 7), (7, 20)):
        context.add(tokens[:, start:end])
        monkeypatch.setattr(context._decoder, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            context.logits()
        monkeypatch.setattr(context._decoder, "forward", forward)
        context.logits()
        check(context, model, tokens[:, max(0, end - 13) : end] if end > 16 else tokens[:, :end])


def test_interrupted_forward_of_several_samples_can_be_repeated(model, monkeypatch):
    monkeypatch.setattr("gpt2.inference.decoder.CHUNK", 5)
    context, tokens, calls = Context(CONFIG, model.params_flat, batch_size=3), random_tokens(1, 14), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return append(*arguments)

    context.add(tokens)
    monkeypatch.setattr("gpt2.inference.decoder.append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        context.logits()
    expected = model.last_logits(tokens)
    np.testing.assert_allclose(context.logits(), expected.repeat(3, axis=0), atol=1e-4)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_nonfinite_logits_are_an_error(model, broken):
    damaged = model.params_flat.copy()
    damaged[-1] = broken  # in lnfb
    context = Context(CONFIG, damaged, batch_size=2)
    context.add([[1, 2]])
    with pytest.raises(UserError, match="logits are not finite"):
        context.logits()


def test_what_a_context_becomes_is_computed_from_where_it_differs(model, monkeypatch):
    context, read = Context(CONFIG, model.params_flat), []
    forward = context._decoder.forward

    def watched(tokens):
        read.append(np.shape(tokens)[1])
        return forward(tokens)

    monkeypatch.setattr(context._decoder, "forward", watched)
    tokens = random_tokens(1, 12)[0]
    other = tokens.copy()
    other[7] = (other[7] + 1) % CONFIG.V
    for wanted, new in [(tokens[:9], 9), (tokens, 3), (other, 5), (other[:4], 1), (other[:4], 1), (tokens[1:], 11)]:
        context.become(wanted)
        check(context, model, wanted[None])
        assert read.pop() == new and not read


def test_texts_of_a_batch_have_the_logits_of_each_alone_to_the_last_bit():
    """Also while others are begun anew, continued by several tokens, or slide."""
    config = GPT2Config(maxT=40, V=131, L=2, NH=3, C=63)
    model = GPT2(config, seed=3)
    model.params["wte"] *= 40
    rng = np.random.default_rng(0)
    batch = Batch(config, model.params_flat, 8)
    alone = [Context(config, model.params_flat) for _ in range(8)]
    for step in range(120):
        for row, context in enumerate(alone):
            if step == 0 or rng.random() < 0.03:
                tokens = rng.integers(0, config.V, rng.integers(1, 40))
                batch.start(row, tokens)
                context.forget(99)
                context.add([tokens])
        rows = rng.permutation(8)[: rng.integers(1, 9)].tolist()
        for row, logits in zip(rows, batch.logits(rows), strict=True):
            np.testing.assert_array_equal(logits, alone[row].logits()[0])
            np.testing.assert_array_equal(batch.texts[row], alone[row].tokens[0])
            for token in rng.integers(0, config.V, rng.choice([1, 1, 1, 12])):
                batch.add(row, token)
                alone[row].add([[token]])
    assert batch.slid and all(context.slid for context in alone)
