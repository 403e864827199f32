"""Filters keep the right tokens, those of transformers; draws follow the distribution and the seed."""

import numpy as np
import pytest

from gpt2 import GPT2Config
from gpt2.errors import UserError
from gpt2.inference.context import Context
from gpt2.inference.sampling import Sampling, draw, generate, penalise, probability, random_streams
from gpt2.model import GPT2
from tests.support.foreign import foreign_model, require
from tests.support.numeric import randomise

# Logits of the probabilities 1/2, 1/4, 1/8 and twice 1/16, unordered.
LOGITS = np.log(np.array([1 / 16, 1 / 4, 1 / 2, 1 / 16, 1 / 8])).astype(np.float32)


def kept(logits=LOGITS, **settings):
    scores = Sampling(**settings).scores(logits, np.array([], np.int32))
    finite = np.isfinite(scores)
    np.testing.assert_array_equal(scores[finite], logits[finite])
    return set(np.flatnonzero(finite).tolist())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 1}, {2}),
        ({"top_k": 3}, {1, 2, 4}),
        ({"top_k": 4}, {0, 1, 2, 3, 4}),  # ties with the fourth are kept
        ({"top_k": 9}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.45}, {2}),
        ({"top_p": 0.55}, {1, 2}),  # the token that crosses P is kept
        ({"top_p": 0.8}, {1, 2, 4}),
        ({"top_p": 0.9}, {1, 2, 3, 4}),  # of equals, the lower id is dropped
        ({"top_p": 1e-9}, {2}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.0}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.2}, {1, 2, 4}),
        ({"min_p": 0.45}, {1, 2}),
        ({"min_p": 1.0}, {2}),
        ({"top_k": 2, "top_p": 0.6}, {2}),  # of the remaining two the first has 2/3
        ({"top_p": 0.8, "min_p": 0.3}, {1, 2}),
    ],
)
def test_filters_on_a_hand_computed_distribution(settings, expected):
    assert kept(**settings) == expected


def test_temperature_comes_before_the_filters():
    # The squared probabilities are 64, 16, 4, 1 and 1 out of 86: the top two have 93 %.
    scores = Sampling(temperature=0.5, top_p=0.9).scores(LOGITS, np.array([], np.int32))
    assert set(np.flatnonzero(np.isfinite(scores)).tolist()) == {1, 2}
    np.testing.assert_allclose(scores[[1, 2]], 2 * LOGITS[[1, 2]], rtol=1e-6)


def test_penalty_lowers_positive_and_negative_scores_once_per_token():
    scores = penalise(np.array([2.0, -2.0, 1.0, -1.0, 0.0], np.float32), np.array([1, 0, 0, 1, 4]), 4.0)
    assert scores.tolist() == [0.5, -8.0, 1.0, -1.0, 0.0]


def test_penalty_comes_before_temperature_and_applies_to_greedy():
    logits, context = np.array([3.0, 2.0, -1.0], np.float32), np.array([0], np.int32)
    assert Sampling(temperature=2.0, repetition_penalty=2.0).scores(logits, context).tolist() == [0.75, 1.0, -0.5]
    assert Sampling(temperature=0).choose(logits, context, None) == 0
    assert Sampling(temperature=0, repetition_penalty=2.0).choose(logits, context, None) == 1
    assert logits.tolist() == [3.0, 2.0, -1.0]


def theirs(settings, logits, context):
    torch = require("torch")
    process = require("transformers").generation.logits_process
    processors = {
        "repetition_penalty": process.RepetitionPenaltyLogitsProcessor,
        "temperature": process.TemperatureLogitsWarper,
        "top_k": process.TopKLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
    }
    ids, scores = torch.from_numpy(context.astype(np.int64))[None], torch.from_numpy(logits.copy())[None]
    for name, processor in processors.items():
        if name in settings:
            scores = processor(settings[name])(ids, scores)
    return scores[0].numpy()


@pytest.mark.crosscheck
@pytest.mark.parametrize("ties", [False, True])
def test_same_tokens_as_transformers(ties):
    rng = np.random.default_rng(0)
    for _ in range(300):
        logits = (rng.uniform(0.5, 5) * rng.standard_normal(rng.choice([5, 60, 3000]))).astype(np.float32)
        if ties:
            logits = np.round(logits)
        context = rng.integers(0, logits.size, 30)
        choices = {
            "temperature": float(rng.choice([0.3, 0.7, 1.6])),
            "top_k": int(rng.choice([1, 3, 40])),
            "top_p": float(rng.choice([0.1, 0.5, 0.9, 0.95])),
            "min_p": float(rng.choice([0.01, 0.05, 0.4, 1.0])),
            "repetition_penalty": float(rng.choice([0.8, 1.2, 2.0])),
        }
        settings = {name: value for name, value in choices.items() if rng.random() < 0.5}
        ours, expected = Sampling(**settings).scores(logits, context), theirs(settings, logits, context)
        if ties and "top_p" in settings:
            # PyTorch's sort is not stable: it decides which of equal tokens are dropped, but not how many.
            ours, expected = np.sort(ours), np.sort(expected)
        np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(expected), err_msg=str(settings))
        np.testing.assert_allclose(ours, expected, rtol=1e-6, err_msg=str(settings))


def test_draws_follow_the_softmax():
    scores = np.array([1.0, -2.0, 0.5, -np.inf, 3.0, 2.9, -1.0], np.float32)
    rng, draws = np.random.default_rng(0), 100_000
    counts = np.bincount([draw(scores, rng) for _ in range(draws)], minlength=scores.size)
    weights = np.exp(scores.astype(float))
    expected = weights / weights.sum() * draws
    assert counts[3] == 0
    seen = expected > 0
    chi_square = float(((counts - expected)[seen] ** 2 / expected[seen]).sum())
    assert chi_square < 20.5  # the 0.999 quantile at 5 degrees of freedom


def test_extreme_random_numbers_draw_the_first_and_last_token():
    class Fixed:
        def __init__(self, value):
            self.random = lambda: value

    scores = np.array([-np.inf, 0.0, 0.0, -np.inf], np.float32)
    assert draw(scores, Fixed(0.0)) == 1
    assert draw(scores, Fixed(0.5)) == 2
    assert draw(scores, Fixed(np.nextafter(1.0, 0.0))) == 2


def test_random_stream_depends_only_on_seed_and_index():
    one, eight, other = ([rng.random() for rng in random_streams(seed, n)] for seed, n in ((5, 1), (5, 8), (6, 8)))
    assert one[0] == eight[0]
    assert len({*eight, *other}) == 16
    assert random_streams(None, 1)[0].random() != random_streams(None, 1)[0].random()


def test_probability_is_the_softmax():
    assert probability(LOGITS + 3, 4) == pytest.approx(1 / 8, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, np.nan, np.inf, 1e-9]),
        ("top_k", [0, -1]),
        ("top_p", [0.0, 1.01, -1.0, np.nan]),
        ("min_p", [-0.1, 1.1, np.nan]),
        ("repetition_penalty", [0.0, -1.0, np.nan, np.inf]),
    ],
)
def test_values_out_of_range_are_rejected(name, values):
    for value in values:
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} .*: expected"):
            Sampling(**{name: value})


CONFIG = GPT2Config(maxT=40, V=50, L=2, NH=2, C=8)


def make_model():
    model = GPT2(CONFIG, seed=3)
    randomise(model, np.random.default_rng(3))
    model.params["wpe"][...] *= 5  # avoids repetitive greedy text
    return model


def run(model, prompt, count, sampling, rngs):
    context = Context(CONFIG, model.params_flat, batch_size=len(rngs))
    context.add([prompt])
    return list(generate(context, count, sampling, rngs))


@pytest.mark.parametrize("length", [1, 10, 23])
def test_greedy_text_equals_the_uncached_models(length):
    model = make_model()
    prompt = np.random.default_rng(length).integers(0, CONFIG.V, length).tolist()
    tokens = list(prompt)
    for (token,) in run(model, prompt, 12, Sampling(temperature=0), [None]):
        logits = model.logits([tokens])[0, -1]
        assert token.id == logits.argmax()
        assert token.probability == pytest.approx(probability(logits, token.id), rel=1e-3)
        tokens.append(token.id)
    assert len(set(tokens[length:])) > 2


@pytest.mark.crosscheck
@pytest.mark.parametrize("length", [1, 10, 23])
def test_greedy_text_equals_transformers(length):
    model = make_model()
    torch, theirs = require("torch"), foreign_model(model, "float32")
    prompt = np.random.default_rng(length).integers(0, CONFIG.V, length)
    for penalty in (1.0, 1.3):
        expected = theirs.generate(
            torch.from_numpy(prompt)[None],
            attention_mask=torch.ones(1, length, dtype=torch.int64),
            do_sample=False,
            max_new_tokens=15,
            repetition_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
        )
        steps = run(model, prompt, 15, Sampling(temperature=0, repetition_penalty=penalty), [None])
        assert [token.id for (token,) in steps] == expected[0, length:].tolist()


@pytest.mark.crosscheck
@pytest.mark.parametrize("length", [1, 10, 500])
def test_200_greedy_tokens_equal_transformers(length):
    # Prompts shorter and longer than a block of queries.
    config = GPT2Config(maxT=704, V=300, L=2, NH=4, C=64)
    model = GPT2(config)
    randomise(model, np.random.default_rng(3))
    torch, theirs = require("torch"), foreign_model(model, "float32")
    prompt = np.random.default_rng(length).integers(0, config.V, length)
    mask = torch.ones(1, length, dtype=torch.int64)
    options = {"do_sample": False, "max_new_tokens": 200, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(torch.from_numpy(prompt)[None], attention_mask=mask, **options)
    context = Context(config, model.params_flat)
    context.add([prompt])
    steps = generate(context, 200, Sampling(temperature=0), [None])
    assert [token.id for (token,) in steps] == expected[0, length:].tolist()


def test_each_sample_uses_its_own_logits_and_random_stream():
    model, settings = make_model(), Sampling(temperature=1.5, top_k=20, repetition_penalty=1.2)
    steps = run(model, [7, 8], 10, settings, random_streams(5, 3))
    for sample, rng in enumerate(random_streams(5, 3)):
        tokens = [7, 8]
        for step in steps:
            assert step[sample].id == settings.choose(model.logits([tokens])[0, -1], np.array(tokens), rng)
            tokens.append(step[sample].id)
    assert len({tuple(step[sample].id for step in steps) for sample in range(3)}) == 3
