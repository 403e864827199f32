"""Runs with an optimizer of one's own: OPTIMIZERS, --optimizer, and what a checkpoint keeps of it."""

import numpy as np
import pytest

from gpt2.errors import UserError
from gpt2.optimizer import OPTIMIZERS, AdamW, Optimizer
from gpt2.training import checkpoint, loop
from gpt2.training.options import TrainOptions
from tests.support.runs import contents, model_bytes, write_small_inputs

OPTIONS = {"init": "tiny.bin", "train_data": "train.bin", "batch_size": 2, "seq_len": 16, "val_every": 0}
OPTIONS |= {"sample_every": 0, "learning_rate": 1e-2}


class Momentum(Optimizer):
    STATE = ("momentum",)

    def update(self, part, lr, grad_scale):
        (momentum,) = part.state
        momentum *= np.float32(self.beta1)
        momentum += np.float32(grad_scale) * part.grads
        part.params -= np.float32(lr) * momentum


class SGD(Optimizer):
    def update(self, part, lr, grad_scale):
        part.params -= np.float32(lr * grad_scale) * part.grads


class Three(AdamW):
    """AdamW that also counts its steps, parameter by parameter."""

    STATE = ("m", "v", "count")

    def update(self, part, lr, grad_scale):
        part.state[2][:] += 1
        part.state, kept = part.state[:2], part.state
        super().update(part, lr, grad_scale)
        part.state = kept


ARRAYS = {"momentum": (Momentum, 1), "sgd": (SGD, 0), "three": (Three, 3)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_small_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, (optimizer, _) in ARRAYS.items():
        monkeypatch.setitem(OPTIMIZERS, name, optimizer)


def train(steps, **options):
    return loop.train(TrainOptions(max_steps=steps, **OPTIONS | options))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_resumed_run_is_the_unbroken_one(folder, name, clip):
    train(6, optimizer=name, grad_clip=clip, out_dir="whole")
    train(3, optimizer=name, grad_clip=clip, out_dir="parts")
    result = loop.resume("parts", {"max_steps": 6})
    assert type(result.state.optimizer) is ARRAYS[name][0] and result.state.optimizer.steps == 6
    assert model_bytes("parts", 6) == model_bytes("whole", 6) != model_bytes("parts", 3)
    whole, parts = (checkpoint.find(each).state.read_bytes() for each in ("whole", "parts"))
    kept = ARRAYS[name][1] * result.state.model.params_flat.nbytes
    assert whole[-kept - 32 : -32] == parts[-kept - 32 : -32]
    assert len(whole) < kept + 1024 + 32 + 20_000  # the JSON, and no array more


def test_three_arrays_train_as_two_do(folder):
    train(3, out_dir="adamw")
    optimizer = train(3, optimizer="three", out_dir="three").state.optimizer
    assert contents("adamw", 3)[0] == contents("three", 3)[0]
    assert (optimizer.count == 3).all()


def test_another_optimizer_does_not_continue_a_run(folder, monkeypatch):
    train(2, optimizer="momentum")
    with pytest.raises(UserError, match=r"--optimizer was momentum, not adamw"):
        loop.resume("out", {"optimizer": "adamw", "max_steps": 3})
    with pytest.raises(UserError, match=r"state_00000002.bin: 1 arrays of an optimizer, but AdamW has 2"):
        loop.resume("out", {"optimizer": "adamw", "max_steps": 3}, anyway=True)
    monkeypatch.delitem(OPTIMIZERS, "momentum")
    with pytest.raises(UserError, match=r"the run's --optimizer 'momentum' is not in gpt2.optimizer.OPTIMIZERS"):
        loop.resume("out", {"max_steps": 3})
    with pytest.raises(UserError, match=r"--optimizer 'momentum': expected one of adamw, sgd, three"):
        train(1, optimizer="momentum")


def test_an_optimizer_whose_arrays_were_replaced_by_others_is_refused(folder):
    optimizer = train(1, optimizer="momentum").state.optimizer
    optimizer.momentum = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"momentum of shape \(3,\)"):
        optimizer.step(1e-3)
