"""Weights in the forms that text is generated from: what is mapped, what is converted, and how it is rounded."""

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.formats import llmc
from gpt2.formats.pretrained import load_weights
from gpt2.inference import weights as weights_module
from gpt2.inference.context import Batch, Context
from gpt2.inference.forms import BF16, FLOAT32, FORMS, INT8
from gpt2.inference.weights import NARROWED, converted, form_of, load, quantised
from gpt2.kernels.small_batch import widen
from tests.support.narrow import values
from tests.support.numeric import randomise

CONFIG = GPT2Config(maxT=40, V=50, L=2, NH=2, C=36)


@pytest.fixture
def model():
    model = GPT2(CONFIG)
    randomise(model, np.random.default_rng(4))
    return model


@pytest.mark.parametrize(("dtype", "stored"), [("float32", FLOAT32), ("bfloat16", BF16)])
@pytest.mark.parametrize("form", [None, *FORMS])
def test_a_model_file_in_any_form(tmp_path, model, dtype, stored, form):
    path = tmp_path / "x.bin"
    llmc.save_model(path, CONFIG, model.params_flat, dtype)
    config, weights = load(path, form)
    assert config == CONFIG
    assert form_of(weights) == (form or stored)
    for name, expected in model.params.items():
        expected = values(expected, stored)
        matrix = getattr(weights, name)
        if name in NARROWED:
            expected = values(expected, form or stored)
            wide = np.empty((expected.size // expected.shape[-1], expected.shape[-1]), np.float32)
            widen(wide, matrix.reshape(len(wide), -1))
            matrix = wide.reshape(expected.shape)
        assert matrix.dtype == np.float32
        assert np.array_equal(matrix, expected), name


def test_a_bfloat16_file_is_mapped(tmp_path, model, monkeypatch):
    path = tmp_path / "x.bin"
    llmc.save_model(path, CONFIG, model.params_flat, "bfloat16")
    monkeypatch.setattr(llmc, "allocate", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(weights_module, "load_weights", lambda *args, **options: mapped)
    mapped = load_weights(path, writable=False, bfloat16=True)
    _, weights = load(path)
    assert all(np.shares_memory(getattr(weights, name), mapped[1]) for name in NARROWED)
    before = path.read_bytes()
    weights.qkvw[:] = 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("C", [1, 31, 32, 33, 64, 100])
def test_rounding_to_int8_errs_by_half_a_step_at_most(C):
    rows = np.random.default_rng(0).standard_normal((50, C), np.float32) * np.float32(1e-3)
    rows[3] = 0
    rows[4, 0] = 1e30
    wide = np.empty(rows.shape, np.float32)
    widen(wide, quantised(rows))
    for start in range(0, C, 32):
        part = rows[:, start : start + 32]
        step = np.abs(part).max(axis=1, keepdims=True) / 127 * (1 + 2**-7)
        assert (np.abs(wide[:, start : start + 32] - part) <= step * 0.5001).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["wte", "fcprojw"])
def test_a_weight_that_is_not_finite_does_not_become_a_number(model, broken, name):
    model.params[name][..., 2, 1] = broken
    context = Context(CONFIG, converted(CONFIG, model.params_flat, INT8))
    context.add([[2]])
    with pytest.raises(UserError, match="logits are not finite"):
        context.logits()


def test_a_weight_too_large_for_bfloat16_is_refused(model):
    model.params["fcw"][1, 2, 3] = 3.4e38
    with pytest.raises(UserError, match="too large for bfloat16; choose float32"):
        converted(CONFIG, model.params_flat, BF16)


@pytest.mark.parametrize("form", FORMS)
def test_texts_side_by_side_have_the_bits_that_each_has_alone(model, form):
    weights, rng = converted(CONFIG, model.params_flat, form), np.random.default_rng(0)
    texts = [rng.integers(0, CONFIG.V, n) for n in (1, 30, 7, 1, 12)]
    batch = Batch(CONFIG, weights, len(texts))
    for row, text in enumerate(texts):
        batch.start(row, text)
    together = [batch.logits(range(5))]
    for row in range(5):
        batch.add(row, 3)
    together.append(batch.logits(range(5)))
    for row, text in enumerate(texts):
        alone = Context(CONFIG, weights)
        alone.add([text])
        assert np.array_equal(alone.logits()[0], together[0][row])
        alone.add([[3]])
        assert np.array_equal(alone.logits()[0], together[1][row])
