import sys

import numpy as np
import pytest

from gpt2 import verify
from gpt2.config import GPT2Config
from gpt2.errors import UserError
from gpt2.layout import parameter_layout
from gpt2.model import GPT2

CONFIG = GPT2Config(maxT=4, V=7, L=1, NH=2, C=4)
B, T = 2, 3
SIZE = 1024 + 4 * (2 * B * T + B * T * 7 + 1 + parameter_layout(CONFIG).size)


def state(seed=0):
    random = np.random.default_rng(seed)
    layout = parameter_layout(CONFIG)
    return verify.State(
        inputs=random.integers(0, 7, (B, T), dtype=np.int32),
        targets=random.integers(0, 7, (B, T), dtype=np.int32),
        logits=random.standard_normal((B, T, 7), dtype=np.float32),
        loss=2.5,
        grads=layout.views(random.standard_normal(layout.size, dtype=np.float32)),
    )


def written(path, values=None):
    verify.write_state(path, CONFIG, values or state())
    return path


def run(monkeypatch, capsys, model, reference):
    """Runs the command; returns the exit status and the table as a dict of first word -> rest of the line."""
    monkeypatch.setattr(sys, "argv", ["verify", str(model), str(reference)])
    status = verify.main()
    lines = capsys.readouterr().out.splitlines()
    return status, {line.split()[0]: line for line in lines[1:]}


def test_state_written_is_state_read(tmp_path):
    path = written(tmp_path / "state.bin")
    assert path.stat().st_size == SIZE
    read, expected = verify.read_state(path, CONFIG), state()
    assert read.loss == expected.loss
    for name in ("inputs", "targets", "logits"):
        assert getattr(read, name).dtype == getattr(expected, name).dtype
        assert np.array_equal(getattr(read, name), getattr(expected, name))
    assert list(read.grads) == list(parameter_layout(CONFIG).shapes)
    for name, grad in read.grads.items():
        assert grad.dtype == np.float32
        assert np.array_equal(grad, expected.grads[name])


def test_state_is_laid_out_as_documented(tmp_path):
    content, expected = written(tmp_path / "state.bin").read_bytes(), state()
    assert np.frombuffer(content, "<i4", 4).tolist() == [20240327, 2, B, T]
    assert np.array_equal(np.frombuffer(content, "<i4", 6, offset=1024), expected.inputs.ravel())
    assert np.array_equal(np.frombuffer(content, "<i4", 6, offset=1048), expected.targets.ravel())
    assert np.array_equal(np.frombuffer(content, "<f4", 42, offset=1072), expected.logits.ravel())
    assert np.frombuffer(content, "<f4", 1, offset=1240) == 2.5
    assert np.array_equal(np.frombuffer(content, "<f4", 128 * 4, offset=1244), expected.grads["wte"].ravel())
    assert np.array_equal(np.frombuffer(content[-16:], "<f4"), expected.grads["lnfb"])


def header(**changes):
    values = {"magic": 20240327, "version": 2, "B": B, "T": T} | changes
    return np.array([*values.values()], dtype="<i4").tobytes()


WRONG = {
    "empty": (lambda data: b"", "0 bytes, but a reference state starts"),
    "half a header": (lambda data: data[:512], "512 bytes, but a reference state starts"),
    "truncated": (lambda data: data[:-1], "truncated"),
    "too long": (lambda data: data + b"x", "too long"),
    "magic": (lambda data: header(magic=20240326) + data[16:], "starts with 20240326, expected 20240327"),
    "version": (lambda data: header(version=1) + data[16:], "version 1, expected 2"),
    "no rows": (lambda data: header(B=0) + data[16:], "batch of 0 x 3"),
    "negative": (lambda data: header(B=-2, T=-3) + data[16:], "batch of -2 x -3"),
    "no columns": (lambda data: header(T=0) + data[16:], "batch of 2 x 0"),
    "longer than the model's": (lambda data: header(T=5) + data[16:], "at most 4 columns"),
    "more rows than there are": (lambda data: header(B=2**31 - 1) + data[16:], "truncated"),
    "input at V": (lambda data: data[:1024] + b"\7\0\0\0" + data[1028:], "token ids from . to 7, expected 0 .. 6"),
    "negative target": (lambda data: data[:1048] + b"\xff" * 4 + data[1052:], "token ids from -1 to"),
}


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_states_are_refused(tmp_path, damage, message):
    path = written(tmp_path / "state.bin")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        verify.read_state(path, CONFIG)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_state_of_another_model(tmp_path):
    with pytest.raises(UserError, match="truncated"):
        verify.read_state(written(tmp_path / "state.bin"), GPT2Config(maxT=4, V=7, L=2, NH=2, C=4))


@pytest.mark.parametrize("name", ["missing.bin", "."])
def test_paths_that_are_no_file(tmp_path, name):
    with pytest.raises(UserError, match=r"No such file|Is a directory"):
        verify.read_state(tmp_path / name, CONFIG)


def rows(ours, reference):
    return {what: (difference, limit) for what, difference, limit in verify.compare(ours, reference)}


def test_equal_states_do_not_differ():
    result = rows(state(), state())
    assert list(result) == ["logits", "loss", *(f"d{name}" for name in parameter_layout(CONFIG).shapes)]
    assert all(difference == 0 for difference, _ in result.values())
    assert result["logits"][1] == 1e-3 and result["loss"][1] == 1e-4 and result["dqkvw"][1] == 1e-3


def test_differences_are_the_largest_of_logits_and_the_relative_norm_of_gradients():
    ours, reference = state(), state()
    ours.logits[1, 2, 3] -= 0.5
    ours.logits[0, 0, 0] += 0.25
    ours.grads["fcw"][:] *= 1.5
    reference.grads["lnfb"][:] = [3, 0, 0, 4]
    ours.grads["lnfb"][:] = [3, 1, 0, 4]
    result = rows(ours._replace(loss=2.25), reference)
    assert result["logits"][0] == pytest.approx(0.5)
    assert result["loss"][0] == 0.25
    assert result["dfcw"][0] == pytest.approx(0.5)
    assert result["dlnfb"][0] == pytest.approx(0.2)
    assert result["dfcb"][0] == 0


def test_reference_gradient_of_zeros():
    ours, reference = state(), state()
    for name in ("wpe", "fcb"):
        reference.grads[name][:] = 0
    ours.grads["wpe"][:] = 0
    result = rows(ours, reference)
    assert result["dwpe"][0] == 0
    assert result["dfcb"][0] == np.inf


class Unchanging:
    """A model whose every batch has the logits, loss and gradients of `values`."""

    def __init__(self, values):
        self.config, self.values = CONFIG, values
        self.grads = {name: np.full_like(grad, 99) for name, grad in values.grads.items()}

    def logits(self, tokens):
        assert np.array_equal(tokens, self.values.inputs)
        return self.values.logits

    def zero_grad(self):
        for grad in self.grads.values():
            grad.fill(0)

    def forward(self, tokens, targets):
        assert np.array_equal(tokens, self.values.inputs) and np.array_equal(targets, self.values.targets)
        return self.values.loss

    def backward(self):
        for name, grad in self.values.grads.items():
            self.grads[name] += grad


def scale(name, factor):
    def change(values):
        values.grads[name][:] *= factor
        return values

    return change


def shift_logit(amount):
    def change(values):
        values.logits[1, 1, 1] += amount
        return values

    return change


CHANGES = {
    "nothing": (lambda values: values, set()),
    "logits within": (shift_logit(0.9e-3), set()),
    "logits past": (shift_logit(1.1e-3), {"logits"}),
    "logits NaN": (shift_logit(np.nan), {"logits"}),
    "logits infinite": (shift_logit(np.inf), {"logits"}),
    "loss within": (lambda values: values._replace(loss=2.50009), set()),
    "loss past": (lambda values: values._replace(loss=2.49989), {"loss"}),
    "loss NaN": (lambda values: values._replace(loss=np.nan), {"loss"}),
    "gradient within": (scale("qkvw", 1.0009), set()),
    "gradient past": (scale("qkvw", 1.0011), {"dqkvw"}),
    "gradient zero": (scale("wte", 0), {"dwte"}),
    "gradient NaN": (scale("lnfb", np.nan), {"dlnfb"}),
    "gradient doubled": (scale("attprojb", 2), {"dattprojb"}),
}


@pytest.mark.parametrize("swapped", [False, True], ids=["ours", "reference"])
@pytest.mark.parametrize(("change", "failing"), CHANGES.values(), ids=CHANGES.keys())
def test_command_fails_past_the_limits(tmp_path, monkeypatch, capsys, change, failing, swapped):
    ours, reference = change(state()), state()
    if swapped:
        ours, reference = reference, ours
    monkeypatch.setattr(verify.GPT2, "load", lambda path: Unchanging(ours))
    status, table = run(monkeypatch, capsys, "model.bin", written(tmp_path / "state.bin", reference))
    verdicts = {what: line.split()[-1] for what, line in table.items() if line.endswith(("PASS", "FAIL"))}
    assert len(verdicts) == 18
    assert {what for what, verdict in verdicts.items() if verdict == "FAIL"} == failing
    assert status == (1 if failing else 0)


def test_a_real_model_agrees_with_itself_and_not_with_another(tmp_path, monkeypatch, capsys):
    batch = state()
    for seed in (0, 1):
        model = GPT2(CONFIG, seed=seed)
        model.save(tmp_path / f"model{seed}.bin")
        written(tmp_path / f"state{seed}.bin", verify.run_model(model, batch.inputs, batch.targets))
    assert run(monkeypatch, capsys, tmp_path / "model1.bin", tmp_path / "state1.bin")[0] == 0
    status, table = run(monkeypatch, capsys, tmp_path / "model1.bin", tmp_path / "state0.bin")
    assert status == 1
    assert table["dqkvw"].endswith("FAIL")
