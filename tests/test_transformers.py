"""Cross-checks with transformers' GPT-2 on PyTorch: logits, gradients, and whole training trajectories.

The same at GPT-2 124M's sizes, with random weights (a few minutes, 6 GB):
    python -m tests.test_transformers
"""

import numpy as np
import pytest

from gpt2.config import PRESETS, GPT2Config
from gpt2.formats.llmc import write_tokens
from gpt2.model import GPT2
from gpt2.optimizer import AdamW
from gpt2.training.loop import train
from gpt2.training.options import TrainOptions
from tests import reference
from tests.support.foreign import (
    foreign_forward,
    foreign_model,
    foreign_optimizer,
    gradient_differences,
    require,
)
from tests.support.numeric import assert_close, random_batch, randomise

pytestmark = pytest.mark.crosscheck

SMALL = GPT2Config(maxT=100, V=131, L=3, NH=3, C=66)
BATCH = {"B": 3, "T": 90}  # more rows than one chunk of the classifier
DECAY = 0.1


def differences(model, B, T, steps=10, lr=1e-3, dtype="float32"):
    """Trains `model` and transformers' copy of it side by side on the same random batches.

    Returns a dict: "logits" and "gradients" of the first batch (the largest difference of a logit; each name's relative
    difference), "losses" of all steps (the largest difference), "first" and "last" loss (ours, theirs).
    """
    theirs, config = foreign_model(model, dtype), model.config
    rng = np.random.default_rng(2)
    tokens, targets = random_batch(config, B, T, rng)
    foreign_logits = foreign_forward(theirs, tokens, targets)[0].detach().numpy()
    result = {"logits": float(np.max(np.abs(model.logits(tokens) - foreign_logits)))}
    ours, foreign = AdamW(model, weight_decay=DECAY), foreign_optimizer(theirs, lr, DECAY)
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
        if step % 2:  # each batch twice, so that the losses depend on the updates
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


def test_reference_in_float64():
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


def foreign_trajectory(model, tokens, options):
    """Trains transformers' copy of `model`; returns (loss, gradient norm before clipping) of each step, (steps, 2)."""
    torch = require("torch")
    theirs = foreign_model(model, "float32")
    optimizer = foreign_optimizer(theirs, options.learning_rate, options.weight_decay)
    B, T, micro_steps = options.batch_size, options.seq_len, options.grad_accum_steps
    batches = iter(range(0, tokens.size, B * T))
    trajectory = []
    for _ in range(options.max_steps):
        optimizer.zero_grad()
        mean = 0.0
        for _ in range(micro_steps):
            start = next(batches)
            inputs, targets = (tokens[i : i + B * T].reshape(B, T) for i in (start, start + 1))
            loss = foreign_forward(theirs, inputs, targets)[1] / micro_steps
            loss.backward()
            mean += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), options.grad_clip)
        optimizer.step()
        trajectory.append((mean, norm.item()))
    return np.array(trajectory)


def test_training_trajectory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make(np.float32)
    model.save("start.bin")
    options = TrainOptions(
        init="start.bin",
        train_data="train.bin",
        val_every=0,
        sample_every=0,
        batch_size=3,
        seq_len=30,
        grad_accum_steps=2,
        max_steps=10,
        learning_rate=3e-3,
        weight_decay=DECAY,
        grad_clip=1.0,
    )
    # Text with structure, so that there is something to learn.
    tokens = np.cumsum(np.random.default_rng(3).integers(0, 3, 3 * 30 * 2 * 10 + 1)) % SMALL.V
    write_tokens("train.bin", tokens)
    theirs = foreign_trajectory(model, tokens, options)
    records = []
    train(options, on_step=lambda state, record: records.append(dict(record)))
    ours = np.array([(record["train_loss"], record["grad_norm"]) for record in records])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert (ours[:, 1] > options.grad_clip).all()  # every step was clipped
    assert ours[-1, 0] < ours[0, 0] - 1


if __name__ == "__main__":
    for key, value in differences(GPT2(PRESETS["gpt2"]), B=4, T=64, lr=1e-4).items():
        print(f"{key:<10}", value if key != "gradients" else "")
        for name, difference in value.items() if key == "gradients" else ():
            print(f"  d{name:<10} {difference:.2e}")
