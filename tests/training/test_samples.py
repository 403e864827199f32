"""The text that a run shows: the model's own, and the same for the same weights, seed and step."""

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.data import tokenizer
from gpt2.data.vocabulary import GPT2Vocabulary, UnknownVocabulary
from gpt2.errors import UserError
from gpt2.training.samples import Sampler, readable
from gpt2.training.signals import StopSignals
from tests.support.numeric import randomise
from tests.support.vocabulary import BYTES

CONFIG = GPT2Config(maxT=24, V=258, L=1, NH=2, C=64)


def sampler(model, count, prompt="", seed=1, words=BYTES):
    return Sampler(model, words, count, prompt, seed)


def spelling_model(text):
    """A model that continues whatever is at position i with the i-th byte of `text`."""
    model = GPT2(CONFIG)
    model.params_flat[:] = 0
    model.params["wte"][: CONFIG.V] = np.random.default_rng(0).standard_normal((CONFIG.V, CONFIG.C))
    for position, byte in enumerate(text.encode()):
        model.params["wpe"][position] = 100 * model.params["wte"][byte]
    model.params["lnfw"][:] = 10
    return model


def random_model():
    model = GPT2(CONFIG)
    randomise(model, np.random.default_rng(1))
    return model


def shown(sampler, step, capsys):
    capsys.readouterr()
    sampler.show(step, StopSignals())
    return capsys.readouterr().out


@pytest.mark.parametrize("text", ["to be, or not", "the sea \u2014 was"])
def test_a_sample_is_what_the_model_writes(capsys, text):
    count = len(text.encode())
    assert shown(sampler(spelling_model(text), count), 1, capsys) == f"--- sample ---\n{text}\n--------------\n"
    assert f"\n{text[:5]}\n" in shown(sampler(spelling_model(text), 5), 1, capsys)


def test_a_prompt_is_shown_and_continued(capsys):
    # The last byte of the prompt is at position 2.
    assert "\nabc be, \n" in shown(sampler(spelling_model("to be, or not"), 5, "abc"), 1, capsys)


@pytest.mark.parametrize("prompt", ["a\r\nc", "\ufeffa\nc"])
def test_a_prompt_with_crlf_or_a_byte_order_mark_is_the_same_prompt(capsys, prompt):
    assert "\na\nc be, \n" in shown(sampler(spelling_model("to be, or not"), 5, prompt), 1, capsys)


def test_a_sample_depends_on_the_seed_and_the_step_alone(capsys):
    one = sampler(random_model(), 12)
    first, second = shown(one, 1, capsys), shown(one, 2, capsys)
    assert first != second
    assert shown(one, 1, capsys) == first  # whatever came before
    assert shown(sampler(random_model(), 12), 2, capsys) == second
    assert shown(sampler(random_model(), 12, seed=2), 1, capsys) not in (first, second)


def test_a_sample_is_of_the_weights_at_that_step(capsys):
    model = spelling_model("one")
    one = sampler(model, 3)
    shown(one, 1, capsys)
    model.params_flat[:] = spelling_model("two").params_flat
    assert "\ntwo\n" in shown(one, 2, capsys)


def test_a_sample_may_be_longer_than_the_model_has_positions(capsys):
    text = shown(sampler(spelling_model("x" * CONFIG.maxT), 60), 1, capsys)
    assert f"\n{'x' * 60}\n" in text


def test_a_sample_starts_with_the_token_that_begins_a_text(capsys):
    model = spelling_model("to be")
    model.params["wpe"][0] = 0  # the first token is repeated
    assert shown(sampler(model, 3), 1, capsys) == "--- sample ---\n<|endoftext|>o \n--------------\n"


def test_without_the_vocabulary_samples_are_token_ids_and_prompts_are_refused(monkeypatch, capsys):
    def missing(data_dir):
        raise UserError("vocab.bpe: no such file")

    monkeypatch.setattr(tokenizer, "load_tokenizer", missing)
    assert readable(GPT2Vocabulary()).problem == "vocab.bpe: no such file"
    words = readable(UnknownVocabulary("nowhere to be found"))
    printed = (
        "samples are shown as token ids: vocab.bpe: no such file",
        f"samples are shown as token ids: {words.problem}",
    )
    assert capsys.readouterr().out.splitlines() == list(printed)
    expected = " ".join(map(str, b"to be"))
    assert f"\n{expected}\n" in shown(sampler(spelling_model("to be"), 5, words=words), 1, capsys)
    with pytest.raises(UserError, match=r"^--prompt needs the model's vocabulary, but nowhere to be found$"):
        sampler(spelling_model("to be"), 5, "a prompt", words=words)
    assert readable(BYTES) is BYTES and capsys.readouterr().out == ""
