"""The oracle itself, against finite differences and against values known without it."""

import math

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.layout import parameter_layout
from tests import reference
from tests.support.numeric import assert_close, assert_gradient

CONFIG = GPT2Config(maxT=6, V=11, L=2, NH=2, C=6)
LAYERS = {
    "layernorm": (reference.layernorm, reference.layernorm_backward, [(2, 3, 5), (5,), (5,)]),
    "linear": (reference.linear, reference.linear_backward, [(2, 3, 5), (4, 5), (4,)]),
    "gelu": (reference.gelu, lambda dout, x: [reference.gelu_backward(dout, x)], [(3, 5)]),
    "attention": (
        lambda qkv: reference.attention(qkv, 2),
        lambda dout, qkv: [reference.attention_backward(dout, qkv, 2)],
        [(2, 4, 3 * 6)],
    ),
}


def random_parameters(rng):
    return {name: 0.3 * rng.standard_normal(shape) for name, shape in parameter_layout(CONFIG).shapes.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_gradients(name):
    forward, backward, shapes = LAYERS[name]
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(shape) for shape in shapes]
    dout = rng.standard_normal(forward(*inputs).shape)
    for x, gradient in zip(inputs, backward(dout, *inputs), strict=True):
        assert_gradient(lambda: float(np.sum(dout * forward(*inputs))), x, gradient, rng)


def test_embedding_gradient_adds_up_repeated_tokens():
    rng = np.random.default_rng(2)
    tokens = np.array([[3, 1, 3], [3, 0, 1]])
    wte, wpe, dout = rng.standard_normal((5, 4)), rng.standard_normal((6, 4)), rng.standard_normal((2, 3, 4))
    dwte, dwpe = reference.embedding_backward(dout, tokens, wte, wpe)
    for x, gradient in ((wte, dwte), (wpe, dwpe)):
        assert_gradient(lambda: float(np.sum(dout * reference.embedding(tokens, wte, wpe))), x, gradient, rng)
    assert_close(dwte[3], dout[0, 0] + dout[0, 2] + dout[1, 0], 1e-15)


def test_cross_entropy_gradient():
    rng = np.random.default_rng(3)
    logits, targets, dout = rng.standard_normal((2, 3, 7)), rng.integers(0, 7, (2, 3)), rng.standard_normal((2, 3))
    gradient = reference.cross_entropy_backward(dout, logits, targets)
    assert_gradient(lambda: float(np.sum(dout * reference.cross_entropy(logits, targets))), logits, gradient, rng)


def test_model_gradients():
    rng = np.random.default_rng(4)
    params = random_parameters(rng)
    tokens, targets = rng.integers(0, CONFIG.V, (2, 2, 5))
    _, grads = reference.loss_and_gradients(params, CONFIG, tokens, targets)

    def loss():
        return float(reference.cross_entropy(reference.forward(params, CONFIG, tokens)[0], targets).mean())

    for name, tensor in params.items():
        assert_gradient(loss, tensor, grads[name], rng, samples=5, what=f"d{name}")


def test_known_values():
    # Equal logits: the loss is log V. GELU's tanh form at 1 is 0.841192 (the exact GELU's 0.841345 rounds otherwise).
    assert reference.cross_entropy(np.zeros((1, 7)), np.array([3]))[0] == pytest.approx(math.log(7), rel=1e-14)
    assert reference.gelu(np.array([1.0]))[0] == pytest.approx(0.841192, abs=5e-7)
    norm = reference.layernorm(np.array([[1.0, 2.0, 3.0, 4.0]]), np.ones(4), np.zeros(4))
    assert_close(norm, np.array([[-1.5, -0.5, 0.5, 1.5]]) / math.sqrt(1.25 + 1e-5), 1e-15)


def test_attention_of_two_positions_by_hand():
    # One head of HS = 4, so the scores are divided by 2: position 1 weighs keys 0 and 1 by softmax(6/2, 2/2).
    q, k, v = np.zeros((3, 2, 4))
    q[1] = [2, 0, 0, 0]
    k[:, 0] = [3, 1]
    v[:, 0] = [10, 20]
    out = reference.attention(np.concatenate([q, k, v], axis=1)[None], NH=1)
    weight = 1 / (1 + math.exp(-2))
    assert out[0, 0, 0] == pytest.approx(10, rel=1e-14)
    assert out[0, 1, 0] == pytest.approx(10 * weight + 20 * (1 - weight), rel=1e-14)


def test_adamw_by_hand():
    # The first step's corrected moments are g and g^2, so it moves by lr * sign(g), plus the decay.
    param, m, v = reference.adamw(2.0, -0.5, 0.0, 0.0, 1, 0.1, 0.9, 0.999, 0.0, 0.01)
    assert param == pytest.approx(2.0 + 0.1 - 0.1 * 0.01 * 2.0, rel=1e-14)
    assert (m, v) == (pytest.approx(-0.05), pytest.approx(0.00025))
    # The second with g = 0: m = 0.9 * -0.05 / 0.19, v = 0.999 * 0.00025 / 0.001999.
    after, _, _ = reference.adamw(param, 0.0, m, v, 2, 0.1, 0.9, 0.999, 0.0, 0.0)
    expected = param - 0.1 * (0.9 * -0.05 / 0.19) / math.sqrt(0.999 * 0.00025 / 0.001999)
    assert after == pytest.approx(expected, rel=1e-12)


def test_training_lowers_the_loss_of_a_batch():
    rng = np.random.default_rng(5)
    tokens, targets = rng.integers(0, CONFIG.V, (2, 2, 5))
    losses, _ = reference.train(random_parameters(rng), CONFIG, [(tokens, targets)] * 100, lr=0.02)
    assert losses[-1] < 0.3 * losses[0]
