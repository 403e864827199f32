"""Beam search against exhaustive search, greedy decoding and transformers."""

import itertools

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config, machine
from gpt2.errors import UserError
from gpt2.inference.beam import beam_search
from gpt2.inference.context import Context
from gpt2.inference.sampling import Sampling, generate, probability
from tests.support.foreign import foreign_model, require
from tests.support.numeric import randomise

CONFIG = GPT2Config(maxT=32, V=30, L=2, NH=2, C=8)


def make_model(config, seed=3, scale=1.0):
    model = GPT2(config)
    randomise(model, np.random.default_rng(seed))
    model.params["wte"] *= scale
    model.params["wpe"] *= 3  # avoids repetitive text
    return model


def search(model, prompt, beams, count, **settings):
    context = Context(model.config, model.params_flat, batch_size=beams)
    context.add([prompt])
    return beam_search(context, count, **settings)


def mean_log_probability(model, prompt, text):
    logits = model.logits([[*prompt, *text]])[0, len(prompt) - 1 : -1]
    return np.mean([np.log(probability(row.astype(float), id)) for row, id in zip(logits, text, strict=True)])


@pytest.mark.parametrize("ends", [(), (2,), (0, 2)])
def test_with_enough_beams_equals_exhaustive_search(ends):
    config = GPT2Config(maxT=8, V=4, L=1, NH=1, C=8)
    for seed in range(5):
        model = make_model(config, seed, scale=2.0)
        texts = set()
        for text in itertools.product(range(4), repeat=3):
            texts.add(next((text[: n + 1] for n, token in enumerate(text) if token in ends), text))
        scores = {text: mean_log_probability(model, [1, 3], text) for text in texts}
        found = search(model, [1, 3], 64, 3, ends=ends)
        assert tuple(token.id for token in found) == max(scores, key=scores.get)
        log_probabilities = np.log([token.probability for token in found])
        assert log_probabilities.mean() == pytest.approx(max(scores.values()), rel=1e-4)


@pytest.mark.parametrize("beams", [2, 3])
def test_with_many_ends_as_many_beams_keep_running(beams):
    """All continuations of the beams, in order: the best that do not end run on, those of the first that end count."""
    ends, count, config = (1, 2, 3), 5, GPT2Config(maxT=8, V=6, L=1, NH=1, C=8)
    for seed in range(20):
        model = make_model(config, seed, scale=2.0)
        model.params["wte"][list(ends)] *= 1.5
        running, finished = [()], {}
        for length in range(1, count + 1):
            scores = {(*text, id): 0.0 for text in running for id in range(config.V)}
            scores = {text: length * mean_log_probability(model, [0, 4], text) for text in scores}
            ranked = sorted(scores, key=scores.get, reverse=True)
            ended = [text for text in ranked[:beams] if text[-1] in ends or length == count]
            finished |= {text: scores[text] / length for text in ended}
            running = [text for text in ranked if text[-1] not in ends][:beams]
            best = sorted(finished.values(), reverse=True)[:beams]
            if len(best) == beams and scores[running[0]] / length <= best[-1]:
                break
        found = tuple(token.id for token in search(model, [0, 4], beams, count, ends=ends))
        assert found == max(finished, key=finished.get), seed


def test_one_beam_is_greedy_decoding():
    model = make_model(CONFIG)
    context = Context(CONFIG, model.params_flat)
    context.add([[5, 6]])
    greedy = [token.id for (token,) in generate(context, 12, Sampling(temperature=0), [None])]
    assert [token.id for token in search(model, [5, 6], 1, 12)] == greedy


@pytest.mark.crosscheck
@pytest.mark.parametrize("ends", [(), (13,), (13, 4), (13, 4, 20, 21, 22)])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_same_text_as_transformers(ends, penalty):
    torch = require("torch")
    ended = 0
    for seed, beams in zip(range(4), (2, 5, 4, 3), strict=True):
        model = make_model(CONFIG, seed)
        prompt = [seed, 5, 6]
        expected = foreign_model(model, "float32").generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, 3, dtype=torch.int64),
            do_sample=False,
            num_beams=beams,
            early_stopping=False,
            length_penalty=1.0,
            max_new_tokens=15,
            repetition_penalty=penalty,
            eos_token_id=list(ends) or None,
            pad_token_id=0,
        )
        found = [token.id for token in search(model, prompt, beams, 15, repetition_penalty=penalty, ends=ends)]
        assert found == expected[0, 3:].tolist(), (seed, beams)
        ended += len(found) < 15
    assert (ended > 0) == bool(ends)


def test_more_beams_than_there_is_memory_for_are_refused(monkeypatch):
    context = Context(CONFIG, GPT2(CONFIG).params_flat, batch_size=3)
    context.add([[0]])
    monkeypatch.setattr(machine, "available_bytes", lambda: 4 * 3 * CONFIG.V)
    with pytest.raises(UserError, match="not enough memory: a search with 3 beams"):
        beam_search(context, 2)
