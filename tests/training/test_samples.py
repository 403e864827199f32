"""The text that a run shows: the model's own, and the same for the same weights, seed and step."""

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.data import tokenizer
from gpt2.errors import UserError
from gpt2.training.samples import Sampler
from gpt2.training.signals import StopSignals
from tests.support.numeric import randomise
from tests.support.vocabulary import BYTES

CONFIG = GPT2Config(maxT=24, V=258, L=1, NH=2, C=64)


@pytest.fixture(autouse=True)
def byte_vocabulary(monkeypatch):
    """A vocabulary of the 256 bytes, one more token, and <|endoftext|>."""
    monkeypatch.setattr(tokenizer, "EOT", CONFIG.V - 1)
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda: BYTES)


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
    assert shown(Sampler(spelling_model(text), count, "", 1), 1, capsys) == f"--- sample ---\n{text}\n--------------\n"
    assert f"\n{text[:5]}\n" in shown(Sampler(spelling_model(text), 5, "", 1), 1, capsys)


def test_a_prompt_is_shown_and_continued(capsys):
    # The last byte of the prompt is at position 2.
    assert "\nabc be, \n" in shown(Sampler(spelling_model("to be, or not"), 5, "abc", 1), 1, capsys)


@pytest.mark.parametrize("prompt", ["a\r\nc", "\ufeffa\nc"])
def test_a_prompt_with_crlf_or_a_byte_order_mark_is_the_same_prompt(capsys, prompt):
    assert "\na\nc be, \n" in shown(Sampler(spelling_model("to be, or not"), 5, prompt, 1), 1, capsys)


def test_a_sample_depends_on_the_seed_and_the_step_alone(capsys):
    sampler = Sampler(random_model(), 12, "", seed=1)
    first, second = shown(sampler, 1, capsys), shown(sampler, 2, capsys)
    assert first != second
    assert shown(sampler, 1, capsys) == first  # whatever came before
    assert shown(Sampler(random_model(), 12, "", seed=1), 2, capsys) == second
    assert shown(Sampler(random_model(), 12, "", seed=2), 1, capsys) not in (first, second)


def test_a_sample_is_of_the_weights_at_that_step(capsys):
    model = spelling_model("one")
    sampler = Sampler(model, 3, "", 1)
    shown(sampler, 1, capsys)
    model.params_flat[:] = spelling_model("two").params_flat
    assert "\ntwo\n" in shown(sampler, 2, capsys)


def test_a_sample_may_be_longer_than_the_model_has_positions(capsys):
    text = shown(Sampler(spelling_model("x" * CONFIG.maxT), 60, "", 1), 1, capsys)
    assert f"\n{'x' * 60}\n" in text


def test_without_the_vocabulary_samples_are_token_ids_and_prompts_are_refused(monkeypatch, capsys):
    def missing():
        raise UserError("vocab.bpe: no such file")

    expected = " ".join(map(str, b"to be"))
    monkeypatch.setattr(tokenizer, "load_tokenizer", missing)
    sampler = Sampler(spelling_model("to be"), 5, "", 1)
    assert capsys.readouterr().out == "samples are shown as token ids: vocab.bpe: no such file\n"
    assert f"\n{expected}\n" in shown(sampler, 1, capsys)
    monkeypatch.setattr(tokenizer, "EOT", 50256)
    sampler = Sampler(spelling_model("to be"), 5, "", 1)
    assert capsys.readouterr().out == "the model's vocabulary is not GPT-2's: samples are shown as token ids\n"
    assert f"\n{expected}\n" in shown(sampler, 1, capsys)
    with pytest.raises(UserError, match=r"^--prompt needs GPT-2's vocabulary"):
        Sampler(spelling_model("to be"), 5, "a prompt", 1)
