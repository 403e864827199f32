"""GPT2.generate: the text of `gpt2 generate`, from Python."""

import copy

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config, Tokenizer, TrainOptions, train
from gpt2.data.vocabulary import save_vocabulary
from gpt2.errors import UserError
from gpt2.formats.pretrained import vocabulary_path
from gpt2.generate import main
from tests.support.numeric import randomise
from tests.support.vocabulary import byte_level, pin_byte_vocabulary, write_tokens_of, write_vocabulary

WORDS = byte_level(b" t")


@pytest.fixture
def path(tmp_path):
    """A model file with its vocabulary beside it. The model ends no text and writes ASCII."""
    model = GPT2(GPT2Config(maxT=32, V=WORDS.size, L=1, NH=2, C=8))
    randomise(model, np.random.default_rng(1))
    model.params["lnfw"][0], model.params["lnfb"][0] = 0, 10
    model.params["wte"][:, 0] = 0
    model.params["wte"][128:, 0] = -3
    model.vocabulary = WORDS.sha256
    model.save(tmp_path / "m.bin")
    save_vocabulary(WORDS, vocabulary_path(tmp_path / "m.bin"))
    return tmp_path / "m.bin"


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.9, "repetition_penalty": 1.2}])
def test_the_text_is_the_commands(path, capsys, sampling):
    options = [word for name, value in sampling.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    main(["--model", str(path), "--prompt", "To be", "--max-new-tokens", "40", "--seed", "3", *options])
    text = GPT2.load(path).generate("To be", 40, seed=3, **sampling)
    assert text + "\n" == "To be" + capsys.readouterr().out
    assert len(text) > 40  # more than the model's context


def test_it_draws_anew_unless_there_is_a_seed(path):
    model = GPT2.load(path)
    assert model.generate("a", 20, seed=1) == model.generate("a", 20, seed=1)
    assert model.generate("a", 20) != model.generate("a", 20)
    assert model.generate("a", 20, temperature=0) == model.generate("a", 20, temperature=0)


def test_without_a_prompt_a_document_begins(path):
    assert len(GPT2.load(path).generate(max_new_tokens=10, seed=1)) >= 10


def test_the_text_ends_where_the_model_ends_it(path):
    model = GPT2.load(path)
    model.params["wte"][WORDS.ends[0], 0] = 9
    assert model.generate("To be", 40) == "To be"


def test_copies_know_the_vocabulary_and_weights_may_have_changed(path):
    model = GPT2.load(path)
    text = model.generate("a", 9, seed=1)
    model.params["wte"][: WORDS.size, 1:] *= -1
    other = copy.deepcopy(model)
    assert other.generate("a", 9, seed=1) == model.generate("a", 9, seed=1) != text
    assert model.grown(WORDS.size + 1).generate("a", 9, seed=1).startswith("a")


def test_a_model_that_was_trained_has_the_vocabulary_of_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tokens_of(WORDS, tmp_path / "a_train.bin", np.array(WORDS.encode("To be, or not to be. " * 9), np.uint16))
    given = {"init": "scratch", "layers": 1, "heads": 1, "channels": 4, "context": 8, "train_data": ("a_train.bin",)}
    options = TrainOptions(**given, max_steps=1, val_every=0, sample_every=0)
    trained = train(options).state.model
    for model in (trained, copy.deepcopy(trained), GPT2.load("out")):
        assert model.generate("To", 9, seed=1) == trained.generate("To", 9, seed=1)


def test_a_model_of_an_unknown_vocabulary_is_given_one(path):
    model = GPT2(GPT2Config(maxT=32, V=WORDS.size, L=1, NH=2, C=8))
    with pytest.raises(UserError, match=r"the model: its vocabulary is not .*; name one: generate\(..., tokenizer="):
        model.generate("a")
    tokenizer = Tokenizer.from_pretrained(vocabulary_path(path))
    assert model.generate("a", 9, seed=1, tokenizer=tokenizer).startswith("a")


def test_a_new_model_of_gpt2s_size_has_its_vocabulary(tmp_path, monkeypatch):
    pin_byte_vocabulary(monkeypatch, whole=True)
    write_vocabulary(tmp_path, whole=True)
    monkeypatch.setenv("GPT2_DATA_DIR", str(tmp_path))
    tokenizer = Tokenizer.from_pretrained("gpt2")
    model = GPT2(GPT2Config(maxT=16, L=1, NH=1, C=2))
    assert tokenizer.encode("a t") == [64, 256] and tokenizer.decode([64, 256]) == "a t"
    assert model.generate("a t", 1, seed=1).startswith("a t")
    assert repr(tokenizer) == "Tokenizer(50,257 tokens, GPT-2)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0: expected 1"),
        ({"seed": -1}, "seed -1: expected 0 or more"),
        ({"temperature": -1}, "temperature -1: expected 0"),
        ({"prompt": "\udc80"}, "the prompt: not UTF-8"),
    ],
)
def test_bad_arguments_are_refused(path, arguments, message):
    with pytest.raises(UserError, match=message):
        GPT2.load(path).generate(**arguments)


def test_in_float64_there_is_no_text():
    with pytest.raises(ValueError, match="float64 generates no text"):
        GPT2(GPT2Config(maxT=4, V=300, L=1, NH=1, C=4), dtype=np.float64).generate("a")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json there"):
        Tokenizer.from_pretrained(tmp_path)
