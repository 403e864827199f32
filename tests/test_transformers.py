"""Cross-check with the GPT-2 of transformers, on PyTorch; skipped where they are not installed.

By hand, at GPT-2 124M's sizes and with random weights (a few minutes, 6 GB):
    python -m tests.test_transformers
"""

import numpy as np
import pytest

from gpt2.config import PRESETS, GPT2Config
from gpt2.formats.huggingface import FOREIGN_NAMES, FOREIGN_SIZES, TRANSPOSED
from gpt2.model import GPT2
from gpt2.optimizer import AdamW
from tests import reference
from tests.numeric import assert_close, random_batch, randomise, relative_error

SMALL = GPT2Config(maxT=100, V=131, L=3, NH=3, C=66)
BATCH = {"B": 3, "T": 90}  # more rows than one chunk of the classifier has
DECAY = 0.1


def foreign_model(model, dtype):
    """Returns transformers' GPT-2 with the parameters of `model`, computing in float32 or float64."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {foreign: getattr(model.config, ours) for ours, foreign in FOREIGN_SIZES.items()}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(**sizes, **dropouts, attn_implementation="eager")
    theirs = transformers.GPT2LMHeadModel(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for _, parameter, ours in pieces(theirs, model.params, model.config):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(ours)))
    return theirs


def pieces(theirs, tensors, config):
    """Yields (our name, their parameter, the part of our tensor that belongs to it, in its shape)."""
    parameters = dict(theirs.transformer.named_parameters())
    for name, foreign in FOREIGN_NAMES.items():
        ours = tensors[name][: config.V] if name == "wte" else tensors[name]
        if "{}" not in foreign:
            yield name, parameters[foreign], ours
            continue
        for layer in range(config.L):
            part = ours[layer].T if name in TRANSPOSED else ours[layer]
            yield name, parameters[foreign.format(layer)], part


def foreign_forward(theirs, tokens, targets):
    """Returns (logits, loss), tensors of PyTorch."""
    import torch

    logits = theirs(torch.from_numpy(tokens.astype(np.int64))).logits
    rows = logits.reshape(-1, logits.shape[-1])
    return logits, torch.nn.functional.cross_entropy(rows, torch.from_numpy(targets.reshape(-1).astype(np.int64)))


def gradient_differences(theirs, grads, config):
    """Returns a dict of each of the 16 names -> relative difference of the gradient, over all layers together."""
    parts = {}
    for name, parameter, ours in pieces(theirs, grads, config):
        parts.setdefault(name, []).append((np.asarray(ours).ravel(), parameter.grad.numpy().ravel()))
    return {name: relative_error(*map(np.concatenate, zip(*pairs, strict=True))) for name, pairs in parts.items()}


def foreign_optimizer(theirs, lr):
    import torch

    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() == 2], "weight_decay": DECAY},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)


def differences(model, B, T, steps=10, lr=1e-3, dtype="float32"):
    """Trains `model` and transformers' copy of it side by side on the same random batches.

    Returns a dict: "logits" and "gradients" of the first batch (the largest difference of a logit; each name's relative
    difference), "losses" of all steps (the largest difference), and "first" and "last" loss.
    """
    theirs, config = foreign_model(model, dtype), model.config
    rng = np.random.default_rng(2)
    tokens, targets = random_batch(config, B, T, rng)
    result = {
        "logits": float(
            np.max(np.abs(model.logits(tokens) - foreign_forward(theirs, tokens, targets)[0].detach().numpy()))
        )
    }
    ours, foreign = AdamW(model, weight_decay=DECAY), foreign_optimizer(theirs, lr)
    losses = []
    for step in range(steps):
        foreign.zero_grad()
        model.zero_grad()
        _, loss = foreign_forward(theirs, tokens, targets)
        loss.backward()
        losses.append((model.forward(tokens, targets), loss.item()))
        model.backward()
        if step == 0:
            result["gradients"] = gradient_differences(theirs, model.grads, config)
        foreign.step()
        ours.step(lr)
        if step % 2:  # every batch twice, so that the losses show the updates
            tokens, targets = random_batch(config, B, T, rng)
    result["losses"] = float(np.max(np.abs(np.subtract(*zip(*losses, strict=True)))))
    return result | {"first": losses[0], "last": losses[-1]}


def make(dtype):
    model = GPT2(SMALL, dtype=dtype)
    randomise(model, np.random.default_rng(1))
    return model


def test_small_model_in_float32():
    result = differences(make(np.float32), **BATCH)
    assert len(result["gradients"]) == 16
    assert result["logits"] < 1e-4, result
    assert max(result["gradients"].values()) < 1e-4, result
    assert result["losses"] < 1e-4, result
    assert abs(result["first"][0] - result["last"][0]) > 0.01, result


def test_small_model_in_float64():
    result = differences(make(np.float64), **BATCH, dtype="float64")
    assert result["logits"] < 1e-10, result
    assert max(result["gradients"].values()) < 1e-10, result
    assert result["losses"] < 1e-10, result


def test_the_reference_in_float64():
    model = make(np.float64)
    theirs = foreign_model(model, "float64")
    tokens, targets = random_batch(SMALL, **BATCH, rng=np.random.default_rng(2))
    logits, loss = foreign_forward(theirs, tokens, targets)
    loss.backward()
    assert_close(reference.forward(model.params, SMALL, tokens)[0], logits.detach().numpy(), 1e-12)
    expected_loss, grads = reference.loss_and_gradients(model.params, SMALL, tokens, targets)
    assert expected_loss == pytest.approx(loss.item(), rel=1e-12)
    found = gradient_differences(theirs, grads, SMALL)
    assert max(found.values()) < 1e-11, found


if __name__ == "__main__":
    for key, value in differences(GPT2(PRESETS["gpt2"]), B=4, T=64, lr=1e-4).items():
        print(f"{key:<10}", value if key != "gradients" else "")
        for name, difference in value.items() if key == "gradients" else ():
            print(f"  d{name:<10} {difference:.2e}")
