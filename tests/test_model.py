import copy
import inspect

import numpy as np
import pytest

import gpt2.kernels.matmul
import gpt2.model
from gpt2 import machine, memory
from gpt2.config import PRESETS, GPT2Config
from gpt2.errors import UserError
from gpt2.kernels.dropout import Dropout
from gpt2.layout import parameter_layout
from gpt2.model import GPT2, activation_layout, activations_size
from gpt2.optimizer import AdamW
from tests import reference
from tests.support.numeric import (
    assert_close,
    assert_gradient,
    both_precisions,
    random_batch,
    randomise,
    relative_error,
)

NAMES = list(parameter_layout(GPT2Config()).shapes)
TINY = GPT2Config(maxT=7, V=11, L=2, NH=2, C=10)
# More than one task, block and chunk of everything: B*T past 256, T past 64, 4C past 192, C past 64.
WIDE = GPT2Config(maxT=101, V=131, L=2, NH=3, C=66)


def make(config, seed, dtype=np.float32):
    """Returns a model without a single parameter that is 0 or 1 by chance."""
    model = GPT2(config, dtype=dtype)
    randomise(model, np.random.default_rng(seed))
    return model


@pytest.mark.parametrize(
    ("config", "B", "T"),
    [
        pytest.param(TINY, 2, 5, id="tiny"),
        pytest.param(TINY, 1, 1, id="tiny-one-token"),
        pytest.param(GPT2Config(maxT=3, V=1, L=1, NH=5, C=5), 1, 3, id="tiny-one-of-everything"),
        pytest.param(WIDE, 3, 101, id="wide"),
    ],
)
@both_precisions(1e-5, 1e-11)
def test_logits_loss_and_gradients_equal_the_reference(config, B, T, dtype, tolerance):
    model = make(config, 1, dtype)
    tokens, targets = random_batch(config, B, T, np.random.default_rng(2))
    expected_logits, _ = reference.forward(model.params, config, tokens)
    expected_loss, expected_grads = reference.loss_and_gradients(model.params, config, tokens, targets)
    assert_close(model.logits(tokens), expected_logits, tolerance, "logits")
    loss = model.forward(tokens, targets)
    model.backward()
    assert isinstance(loss, float)
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    whole = np.sqrt(sum(np.sum(grad**2) for grad in expected_grads.values()))
    for name, expected in expected_grads.items():
        # A gradient that is nothing but cancelled terms, as dqkvw at T = 1 is in part, is held to the whole's size.
        difference = np.linalg.norm(model.grads[name] - expected)
        assert difference <= tolerance * max(np.linalg.norm(expected), 1e-3 * whole), f"d{name}"


@pytest.mark.parametrize(
    ("config", "B", "T"), [pytest.param(TINY, 2, 5, id="tiny"), pytest.param(WIDE, 3, 101, id="wide")]
)
def test_products_of_rounded_factors_are_near_the_reference(config, B, T):
    model = make(config, 1)
    tokens, targets = random_batch(config, B, T, np.random.default_rng(2))
    loss, expected = reference.loss_and_gradients(model.params, config, tokens, targets)
    exact, rounded = [], []
    for model.bf16, found in ((False, exact), (True, rounded)):
        found.append(model.overwrite_gradients(tokens, targets))
        found += [model.grads[name].copy() for name in expected]
        model.add_gradients(tokens, targets)
        assert_close(model.grads_flat, 2 * np.concatenate([gradient.ravel() for gradient in found[1:]]), 1e-6)
    assert rounded[0] != exact[0] and rounded[0] == pytest.approx(loss, rel=0.01)
    for name, one, other in zip(expected, exact[1:], rounded[1:], strict=True):
        assert not np.array_equal(one, other), name
    whole = np.concatenate([gradient.ravel() for gradient in expected.values()])
    assert_close(np.concatenate([gradient.ravel() for gradient in rounded[1:]]), whole, 0.03)


@pytest.mark.parametrize("dropout", [None, Dropout(0.1, 1, 2, 3)])
def test_every_product_rounds_its_factors(monkeypatch, dropout):
    told = []

    def watched(function):
        return lambda *arguments: told.append(arguments[-1]) or function(*arguments)

    for module in (gpt2.model, gpt2.kernels.matmul):
        for name, function in vars(module).items():
            if name.startswith(("matmul_", "attention_")) and "bf16" in inspect.signature(function).parameters:
                monkeypatch.setattr(module, name, watched(function))
    model, (tokens, targets) = make(TINY, 1), random_batch(TINY, 2, 5, np.random.default_rng(2))
    model.bf16 = True
    model.overwrite_gradients(tokens, targets, dropout)
    model.logits(tokens)
    model.last_logits(tokens)
    assert len(told) > 20 * TINY.L and all(told)


def test_bfloat16_is_for_models_in_float32():
    with pytest.raises(ValueError, match="a model in float64 has no bfloat16 products"):
        GPT2(TINY, dtype=np.float64).bf16 = True
    model = GPT2(TINY)
    model.bf16 = True
    assert copy.deepcopy(model).bf16 and model.grown(TINY.V + 1).bf16


def masked_batch(config, B, T, rng, share=0.7):
    """A batch of which about that share of the targets is -1, the first row's all, and not all of the last row's."""
    tokens, targets = random_batch(config, B, T, rng)
    targets[rng.random((B, T)) < share] = -1
    targets[0], targets[-1, -1] = -1, 0
    return tokens, targets


@pytest.mark.parametrize(
    ("config", "B", "T"),
    [
        pytest.param(TINY, 2, 5, id="tiny"),
        pytest.param(TINY, 2, 1, id="tiny-one-token"),
        pytest.param(WIDE, 5, 101, id="wide"),
    ],
)
@both_precisions(1e-5, 1e-11)
def test_targets_that_do_not_count(config, B, T, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(gpt2.model, "CLASSIFIER_ROWS", 40)  # several chunks of the wide one's rows
    model = make(config, 21, dtype)
    tokens, targets = masked_batch(config, B, T, np.random.default_rng(22))
    expected_loss, expected_grads = reference.loss_and_gradients(model.params, config, tokens, targets)
    model.forward(tokens, tokens)  # leaves losses everywhere
    assert model.overwrite_gradients(tokens, targets) == pytest.approx(expected_loss, rel=tolerance)
    losses = model.acts["losses"].reshape(B, T)
    assert losses[targets >= 0].mean() == pytest.approx(expected_loss, rel=10 * tolerance)
    assert not losses[targets < 0].any()
    whole = np.sqrt(sum(np.sum(grad**2) for grad in expected_grads.values()))
    for name, expected in expected_grads.items():
        difference = np.linalg.norm(model.grads[name] - expected)
        assert difference <= tolerance * max(np.linalg.norm(expected), 1e-3 * whole), f"d{name}"
    grads = model.grads_flat.copy()
    assert model.forward(tokens, targets) == pytest.approx(expected_loss, rel=tolerance)
    model.zero_grad()
    model.backward()
    assert np.array_equal(model.grads_flat, grads)
    model.overwrite_gradients(tokens, targets, weight=0.25)
    assert_close(model.grads_flat, grads.astype(float) / 4, tolerance)


@pytest.mark.parametrize("extra", [1, 5, 16])
def test_padding_behind_a_row_changes_no_bit(extra):
    config = GPT2Config(maxT=32, V=131, L=2, NH=2, C=32)
    tokens, targets = masked_batch(config, 3, 16, np.random.default_rng(23))
    results = []
    for width in (0, extra):
        model = make(config, 24)
        padded = np.pad(tokens, ((0, 0), (0, width))), np.pad(targets, ((0, 0), (0, width)), constant_values=-1)
        loss = model.overwrite_gradients(*padded)
        results.append((loss, model.grads_flat.copy(), model.forward(*padded)))
    assert results[0][0] == results[1][0] and results[0][2] == results[1][2]
    assert np.array_equal(results[0][1], results[1][1])


def test_some_target_must_count():
    with pytest.raises(UserError, match="no token of the batch has a target"):
        GPT2(TINY).forward([[1, 2]], [[-1, -1]])
    with pytest.raises(UserError, match="vocabulary"):
        GPT2(TINY).forward([[-1, 2]], [[-1, 1]])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_by_finite_differences_tiny(name):
    model = make(TINY, 3, np.float64)
    rng = np.random.default_rng(4)
    tokens, targets = random_batch(TINY, 2, 6, rng)
    loss = model.forward(tokens, targets)
    model.backward()
    assert loss > 0
    tensor, gradient = model.params[name], model.grads[name].copy()
    if name == "wte":
        tensor, gradient = tensor[: TINY.V], gradient[: TINY.V]
    assert_gradient(lambda: model.forward(tokens, targets), tensor, gradient, rng, samples=6, what=f"d{name}")


@pytest.mark.parametrize(
    ("config", "B", "T"),
    [
        pytest.param(TINY, 2, 5, id="tiny"),
        pytest.param(TINY, 1, 1, id="tiny-one-token"),
        pytest.param(WIDE, 3, 101, id="wide"),
    ],
)
@both_precisions(1e-5, 1e-11)
def test_dropout_equals_the_reference_with_the_same_masks(config, B, T, dtype, tolerance):
    model, dropout = make(config, 1, dtype), Dropout(0.2, 3, 8, 1)
    tokens, targets = random_batch(config, B, T, np.random.default_rng(2))
    mask = reference.dropout_masks(*dropout)
    expected_loss, expected_grads = reference.loss_and_gradients(model.params, config, tokens, targets, mask)
    assert model.overwrite_gradients(tokens, targets, dropout) == pytest.approx(expected_loss, rel=tolerance)
    whole = np.sqrt(sum(np.sum(grad**2) for grad in expected_grads.values()))
    for times in (1, 2, 3):
        for name, expected in expected_grads.items():
            difference = np.linalg.norm(model.grads[name] / times - expected)
            assert difference <= tolerance * max(np.linalg.norm(expected), 1e-3 * whole), f"{times} d{name}"
        # The same masks once more; then the backward pass alone makes them again.
        model.add_gradients(tokens, targets, dropout) if times == 1 else model.backward()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_with_dropout_by_finite_differences_tiny(name):
    model, dropout = make(TINY, 3, np.float64), Dropout(0.2, 3, 8, 1)
    rng = np.random.default_rng(4)
    tokens, targets = random_batch(TINY, 2, 6, rng)
    model.overwrite_gradients(tokens, targets, dropout)
    tensor, gradient = model.params[name], model.grads[name].copy()
    if name == "wte":
        tensor, gradient = tensor[: TINY.V], gradient[: TINY.V]

    def loss():
        return model.overwrite_gradients(tokens, targets, dropout)

    assert_gradient(loss, tensor, gradient, rng, samples=6, what=f"d{name}")


def test_dropout_needs_no_memory_and_leaves_forward_alone():
    model, other = make(WIDE, 5), make(WIDE, 5)
    batch = random_batch(WIDE, 3, 90, np.random.default_rng(5))
    loss, memory_of_activations = model.overwrite_gradients(*batch), model._acts_flat.size
    assert model.overwrite_gradients(*batch, Dropout(0.2, 1, 1, 0)) != loss
    assert model.forward(*batch) == loss and model._acts_flat.size == memory_of_activations
    model.overwrite_gradients(*batch, Dropout(0.0, 1, 1, 0))
    other.overwrite_gradients(*batch)
    assert np.array_equal(model.grads_flat, other.grads_flat)


def test_chunks_of_the_classifier_add_up_to_the_whole_tiny(monkeypatch):
    tokens, targets = random_batch(TINY, 3, 5, np.random.default_rng(5))
    whole = make(TINY, 5, np.float64)
    loss = whole.forward(tokens, targets)
    whole.backward()
    logits = whole.logits(tokens)
    monkeypatch.setattr(gpt2.model, "CLASSIFIER_ROWS", 4)  # 4 + 4 + 4 + 3 rows
    chunked = make(TINY, 5, np.float64)
    assert chunked.forward(tokens, targets) == pytest.approx(loss, rel=1e-14)
    chunked.backward()
    assert chunked.scratch["logits"].shape == (4, TINY.Vp)
    assert_close(chunked.grads_flat, whole.grads_flat, 1e-13)
    assert_close(chunked.logits(tokens), logits, 1e-14)


@pytest.mark.parametrize(
    ("config", "B", "T"), [pytest.param(TINY, 2, 5, id="tiny"), pytest.param(WIDE, 3, 90, id="wide")]
)
def test_backward_twice_doubles_the_gradients(config, B, T):
    model = make(config, 6)
    model.forward(*random_batch(config, B, T, np.random.default_rng(6)))
    model.backward()
    once = model.grads_flat.astype(float)
    model.backward()
    assert np.linalg.norm(once) > 0
    assert_close(model.grads_flat, 2 * once, 1e-6)
    model.zero_grad()
    assert not np.any(model.grads_flat)


@pytest.mark.parametrize(
    ("config", "B", "T"), [pytest.param(TINY, 2, 5, id="tiny"), pytest.param(WIDE, 3, 90, id="wide")]
)
def test_gradients_are_overwritten_or_added_to_as_the_name_says(config, B, T):
    batch = random_batch(config, B, T, np.random.default_rng(13))
    model, trained = make(config, 13), make(config, 13)
    loss = model.forward(*batch)
    model.backward()
    trained.grads_flat.fill(np.nan)
    assert trained.overwrite_gradients(*batch) == loss
    assert np.array_equal(trained.grads_flat, model.grads_flat)
    assert trained.add_gradients(*batch) == loss
    assert_close(trained.grads_flat, 2 * model.grads_flat.astype(float), 1e-6)
    trained.backward()  # of the same batch, once more
    assert_close(trained.grads_flat, 3 * model.grads_flat.astype(float), 1e-6)


def test_gradients_of_two_batches_add_up_tiny():
    model = make(TINY, 7, np.float64)
    batches = [random_batch(TINY, 2, T, np.random.default_rng(T)) for T in (4, 6)]
    parts = []
    for batch in batches:
        model.zero_grad()
        model.forward(*batch)
        model.backward()
        parts.append(model.grads_flat.copy())
    model.zero_grad()
    for batch in batches:
        model.forward(*batch)
        model.backward()
    assert_close(model.grads_flat, parts[0] + parts[1], 1e-13)


def test_padded_vocabulary_has_no_gradient_and_no_logits_tiny():
    model = make(TINY, 8)
    tokens, targets = random_batch(TINY, 2, 5, np.random.default_rng(8))
    assert model.logits(tokens).shape == (2, 5, TINY.V)
    loss = model.forward(tokens, targets)
    model.backward()
    assert TINY.Vp == 128
    assert not np.any(model.grads["wte"][TINY.V :])
    assert np.all(np.any(model.grads["wte"][: TINY.V], axis=1))
    model.params["wte"][TINY.V :] = 7
    assert model.forward(tokens, targets) == loss


def test_a_repeated_token_adds_up_in_its_embedding_tiny():
    # Tokens outside the targets' softmax differ only through the encoder: compare with the reference on a batch of one.
    model = make(TINY, 9, np.float64)
    tokens = np.full((2, 6), 4, np.int32)
    targets = np.random.default_rng(9).integers(0, TINY.V, (2, 6), dtype=np.int32)
    model.forward(tokens, targets)
    model.backward()
    expected = reference.loss_and_gradients(model.params, TINY, tokens, targets)[1]["wte"]
    assert_close(model.grads["wte"][4], expected[4], 1e-11)


@pytest.mark.parametrize(("config", "T"), [pytest.param(TINY, 6, id="tiny"), pytest.param(WIDE, 90, id="wide")])
def test_a_future_token_cannot_change_past_logits(config, T):
    model = make(config, 10)
    tokens, _ = random_batch(config, 2, T, np.random.default_rng(10))
    before = model.logits(tokens)
    changed = T - 2
    tokens[:, changed] = (tokens[:, changed] + 1) % config.V
    after = model.logits(tokens)
    assert np.array_equal(after[:, :changed], before[:, :changed])
    for t in range(changed, T):
        assert not np.allclose(after[:, t], before[:, t])


def test_last_logits_are_the_last_row_of_all_logits_tiny():
    model = make(TINY, 11)
    tokens, _ = random_batch(TINY, 2, 5, np.random.default_rng(11))
    assert_close(model.last_logits(tokens), model.logits(tokens)[:, -1], 1e-6)


def test_what_ran_before_leaves_no_trace_tiny():
    rng = np.random.default_rng(12)
    large, small = random_batch(TINY, 3, 7, rng), random_batch(TINY, 2, 3, rng)
    used, fresh = make(TINY, 12), make(TINY, 12)
    used.forward(*large)
    used.backward()
    used.zero_grad()
    for model in (used, fresh):
        model.loss = model.forward(*small)
        model.backward()
    assert used.loss == fresh.loss
    assert np.array_equal(used.grads_flat, fresh.grads_flat)
    assert used.forward(*large) == make(TINY, 12).forward(*large)


def test_forward_without_targets_returns_none_and_has_no_backward_tiny():
    model = make(TINY, 13)
    tokens, targets = random_batch(TINY, 1, 3, np.random.default_rng(13))
    with pytest.raises(RuntimeError, match="backward"):
        model.backward()
    model.forward(tokens, targets)
    assert model.forward(tokens) is None
    with pytest.raises(RuntimeError, match="backward"):
        model.backward()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0, 11]], "vocabulary"),
        ([[0, -2]], "vocabulary"),
        ([0, 1], "shape"),
        (np.zeros((0, 3), np.int32), "shape"),
        (np.zeros((1, 8), np.int32), "positions end at 7"),
    ],
)
def test_tokens_that_no_model_takes(tokens, message):
    model = GPT2(TINY)
    with pytest.raises(UserError, match=message):
        model.forward(tokens)
    with pytest.raises(UserError, match=message):
        model.forward(np.zeros((1, 2), np.int32), tokens)


def test_targets_of_another_shape():
    with pytest.raises(UserError, match=r"\(1, 2\).*\(1, 3\)"):
        GPT2(TINY).forward(np.zeros((1, 3), np.int32), np.zeros((1, 2), np.int32))


def test_views_share_memory_with_the_flat_arrays():
    model = GPT2(TINY)
    assert list(model.params) == list(model.grads) == NAMES
    for views, flat in ((model.params, model.params_flat), (model.grads, model.grads_flat)):
        flat[:] = np.arange(flat.size)
        assert np.array_equal(np.concatenate([view.ravel() for view in views.values()]), flat)
        for view in views.values():
            assert np.shares_memory(view, flat)
            view.fill(-1)
        assert np.all(flat == -1)


def test_initialisation_is_gpt2s():
    model = GPT2(GPT2Config(maxT=64, V=200, L=8, NH=2, C=64), seed=3)
    params = model.params
    for name, deviation in {
        "wte": 0.02,
        "wpe": 0.02,
        "qkvw": 0.02,
        "fcw": 0.02,
        "attprojw": 0.005,
        "fcprojw": 0.005,
    }.items():
        weights = params[name][: 200 if name == "wte" else None]
        # 4096 or more draws: their deviation's own is 1.1% at most, the mean's 1.6% of the deviation.
        assert weights.std() == pytest.approx(deviation, rel=0.06), name
        assert abs(weights.mean()) < 0.08 * deviation, name
    for name in ("ln1w", "ln2w", "lnfw"):
        assert np.all(params[name] == 1)
    for name in ("ln1b", "qkvb", "attprojb", "ln2b", "fcb", "fcprojb", "lnfb"):
        assert not np.any(params[name])
    assert not np.any(params["wte"][200:])


def test_seed_decides_the_initialisation():
    assert np.array_equal(GPT2(TINY, seed=5).params_flat, GPT2(TINY, seed=5).params_flat)
    assert relative_error(GPT2(TINY, seed=5).params["wpe"], GPT2(TINY, seed=6).params["wpe"]) > 0.5


def test_saved_and_loaded_it_computes_the_same(tmp_path):
    model = make(TINY, 14)
    tokens, targets = random_batch(TINY, 2, 5, np.random.default_rng(14))
    model.save(tmp_path / "model.bin")
    loaded = GPT2.load(tmp_path / "model.bin")
    assert loaded.config == TINY
    assert loaded.forward(tokens, targets) == model.forward(tokens, targets)
    loaded.backward()
    model.backward()
    assert np.array_equal(loaded.grads_flat, model.grads_flat)


def test_random_weights_are_known_until_they_change(tmp_path):
    def saved(model):
        model.save(tmp_path / "x.bin")
        loaded = [GPT2.load(tmp_path / "x.bin"), GPT2.from_pretrained(tmp_path / "x.bin", writable=False)]
        assert {each.is_untrained for each in loaded} == {model.is_untrained}
        return model.is_untrained, loaded[0]

    model = GPT2(TINY, seed=3)
    tokens, targets = random_batch(TINY, 2, 5, np.random.default_rng(14))
    model.overwrite_gradients(tokens, targets)  # no update yet
    untrained, loaded = saved(model)
    assert untrained and saved(loaded)[0] and copy.deepcopy(loaded).is_untrained
    loaded.params["wte"][0, 0] += 1  # any change, not only an optimizer's
    AdamW(model).step(1e-3)
    for changed in (loaded, model):
        untrained, reloaded = saved(changed)
        assert not untrained and not saved(reloaded)[0] and not copy.deepcopy(changed).is_untrained


def test_from_pretrained_takes_any_name(tmp_path, monkeypatch):
    model = make(TINY, 14)
    model.save(tmp_path / "gpt2_124M.bin")
    monkeypatch.setitem(PRESETS, "gpt2", TINY)
    for name in ("gpt2", tmp_path / "gpt2_124M.bin"):
        assert np.array_equal(GPT2.from_pretrained(name, tmp_path).params_flat, model.params_flat)
    with pytest.raises(UserError, match="gpt5"):
        GPT2.from_pretrained("gpt5")


def test_a_model_that_only_evaluates_has_no_gradients(monkeypatch):
    model = make(TINY, 14)
    tokens, targets = random_batch(TINY, 2, 5, np.random.default_rng(14))
    model.forward(tokens, targets)  # reserves the activations
    allocated = []
    monkeypatch.setattr("gpt2.model.allocate", lambda *args: allocated.append(args) or memory.allocate(*args))
    model.logits(tokens)
    model.forward(tokens, targets)
    assert allocated == []
    model.backward()
    assert [args[0] for args in allocated] == [model.params_flat.size]
    assert model.grads_flat is model.grads_flat and np.shares_memory(model.grads["wte"], model.grads_flat)


def test_a_token_that_would_wrap_round_or_be_cut_off_is_refused():
    model = GPT2(TINY)
    for tokens in ([[2**32 + 1]], [[-1]], [[TINY.V]], [[1.7]], [1, 2], [[]], [[1] * (TINY.maxT + 1)]):
        with pytest.raises(UserError):
            model.forward(np.array(tokens))


def test_after_a_refusal_of_memory_the_model_still_works(monkeypatch):
    model = make(WIDE, 11)
    expected = model.logits([[1, 2, 3]])
    monkeypatch.setattr(machine, "available_bytes", lambda: 0)
    with pytest.raises(UserError, match="not enough memory: the activations of 2x90 tokens"):
        model.forward(np.ones((2, 90), int))
    monkeypatch.undo()
    np.testing.assert_array_equal(model.logits([[1, 2, 3]]), expected)


def test_what_becomes_of_the_callers_tokens_does_not_matter():
    model, tokens, targets, expected = _with_gradients()
    tokens, targets = tokens.astype(np.int32), targets.astype(np.int32)
    model.zero_grad()
    model.forward(tokens, targets)
    tokens.fill(2**30)
    targets.fill(2**30)
    model.backward()
    assert_close(model.grads_flat, expected, 1e-12)


@pytest.mark.parametrize("call", ["forward", "overwrite_gradients", "add_gradients"])
def test_an_interrupted_pass_has_no_backward_tiny(monkeypatch, call):
    model, tokens, targets, _ = _with_gradients()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpt2.model.attention_forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(model, call)(tokens, targets)
    with pytest.raises(RuntimeError, match="backward"):
        model.backward()


def test_activations_are_named_in_the_order_of_computation_tiny():
    model = make(TINY, 15)
    assert model.acts == {} and not model.has_gradients
    model.forward(*random_batch(TINY, 2, 5, np.random.default_rng(15)))
    entries = list(activation_layout(TINY, 2, 5).by_layer(model.acts))
    assert [(name, layer) for name, layer, _ in entries if layer in (None, 1)] == [
        *[("encoded", None), ("ln1_mean", 1), ("ln1_rstd", 1), ("qkv", 1), ("lse", 1), ("residual2", 1)],
        *[("ln2_mean", 1), ("ln2_rstd", 1), ("fch", 1), ("residual3", 1), ("lnf", None), ("lnf_mean", None)],
        *[("lnf_rstd", None), ("logits_lse", None), ("losses", None)],
    ]
    assert all(np.shares_memory(array, model._acts_flat) for _, _, array in entries)


def test_a_copy_is_a_model_of_its_own():
    model = _with_gradients()[0]
    model.vocabulary = "ab" * 32
    other = copy.deepcopy(model)
    assert other.vocabulary == model.vocabulary
    assert np.array_equal(other.params_flat, model.params_flat)
    other.params_flat.fill(0)
    assert not other.params["wte"].any() and model.params["wte"].any()
    assert not other.grads_flat.any()


def _with_gradients():
    """A model in float64, a batch, and the gradients of the batch."""
    model = GPT2(TINY, dtype=np.float64)
    rng = np.random.default_rng(12)
    randomise(model, rng)
    tokens, targets = random_batch(TINY, 2, 5, rng)
    model.forward(tokens, targets)
    model.backward()
    return model, tokens, targets, model.grads_flat.copy()


def test_its_repr_says_what_memory_it_has():
    config = GPT2Config(maxT=128, V=500, L=2, NH=2, C=100)
    model = GPT2(config)
    first = f"GPT2({config}), 305,600 parameters"
    assert repr(model) == f"{first}\nmemory: parameters 1.2 MB"
    tokens = np.zeros((4, 64), int)
    model.overwrite_gradients(tokens, tokens)
    sizes = {"parameters": 1.2, "gradients": 1.2, "activations": activations_size(config, 4, 64) * 4 / 1e6}
    assert repr(model) == f"{first}\nmemory: {', '.join(f'{what} {size:.1f} MB' for what, size in sizes.items())}"


def test_flat_arrays_are_changed_in_place_and_not_replaced():
    model = GPT2(GPT2Config(maxT=4, V=4, L=1, NH=1, C=4))
    model.params_flat *= 2
    model.grads_flat += 1
    assert (model.params["ln1w"] == 2).all() and (model.grads["ln1w"] == 1).all()
    for name in ("params_flat", "grads_flat"):
        with pytest.raises(AttributeError, match=f"{name}: other arrays are views of it"):
            setattr(model, name, getattr(model, name).copy())


@both_precisions(1e-5, 1e-12)
def test_attention_equals_the_reference(dtype, tolerance):
    model = make(WIDE, 1, dtype)
    tokens, _ = random_batch(WIDE, 2, 90, np.random.default_rng(2))
    _, trace = reference.forward(model.params, WIDE, tokens)
    for layer in range(WIDE.L):
        found = model.attention(tokens, layer)
        assert found.dtype == dtype
        expected = reference.softmax(reference.attention_scores(trace[layer]["qkv"], WIDE.NH))
        assert_close(found, expected, tolerance)
        assert not np.triu(found, 1).any()
        assert np.allclose(found.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("layer", [-1, 2])
def test_attention_of_a_layer_that_is_not_there(layer):
    with pytest.raises(UserError, match=f"layer {layer}: the model's layers are 0 to 1"):
        make(TINY, 1).attention([[1, 2]], layer)
