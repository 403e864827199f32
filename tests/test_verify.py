"""The comparison with a reference state: differences, limits, and the command's table and exit status."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gpt2 import verify
from gpt2.config import GPT2Config
from gpt2.errors import UserError, run_command
from gpt2.formats.llmc import read_state, write_tokens
from gpt2.layout import parameter_layout
from gpt2.model import GPT2
from tests.support.states import CONFIG, random_state, written


def run(monkeypatch, capsys, model, reference):
    """Runs the command. Returns the exit status, and the lines of the table by their first word."""
    monkeypatch.setattr(sys, "argv", ["verify", str(model), str(reference)])
    status = verify.main()
    lines = capsys.readouterr().out.splitlines()
    return status, {line.split()[0]: line for line in lines[1:]}


def rows(ours, reference):
    return {what: (difference, limit) for what, difference, limit in verify.compare(ours, reference)}


def test_equal_states_do_not_differ():
    result = rows(random_state(), random_state())
    assert list(result) == ["logits", "loss", *(f"d{name}" for name in parameter_layout(CONFIG).shapes)]
    assert all(difference == 0 for difference, _ in result.values())
    assert result["logits"][1] == 1e-3 and result["loss"][1] == 1e-4 and result["dqkvw"][1] == 1e-3


def test_differences_are_the_largest_of_logits_and_the_relative_norm_of_gradients():
    ours, reference = random_state(), random_state()
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
    ours, reference = random_state(), random_state()
    for name in ("wpe", "fcb"):
        reference.grads[name][:] = 0
    ours.grads["wpe"][:] = 0
    result = rows(ours, reference)
    assert result["dwpe"][0] == 0
    assert result["dfcb"][0] == np.inf


class StubModel:
    """A model that returns the logits, loss and gradients of `values` for its batch."""

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
    ours, reference = change(random_state()), random_state()
    if swapped:
        ours, reference = reference, ours
    monkeypatch.setattr(GPT2, "load", lambda path: StubModel(ours))
    status, table = run(monkeypatch, capsys, "model.bin", written(tmp_path / "state.bin", reference))
    verdicts = {what: line.split()[-1] for what, line in table.items() if line.endswith(("PASS", "FAIL"))}
    assert len(verdicts) == 18
    assert {what for what, verdict in verdicts.items() if verdict == "FAIL"} == failing
    assert status == (1 if failing else 0)


def test_a_real_model_agrees_with_itself_and_not_with_another(tmp_path, monkeypatch, capsys):
    batch = random_state()
    for seed in (0, 1):
        model = GPT2(CONFIG, seed=seed)
        model.save(tmp_path / f"model{seed}.bin")
        written(tmp_path / f"state{seed}.bin", verify.run_model(model, batch.inputs, batch.targets))
    assert run(monkeypatch, capsys, tmp_path / "model1.bin", tmp_path / "state1.bin")[0] == 0
    status, table = run(monkeypatch, capsys, tmp_path / "model1.bin", tmp_path / "state0.bin")
    assert status == 1
    assert table["dqkvw"].endswith("FAIL")


# --write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a model, tiny.bin, and tokens, tokens.bin; returns the model."""
    monkeypatch.chdir(tmp_path)
    model = GPT2(GPT2Config(maxT=16, V=50, L=2, NH=2, C=12), seed=3)
    model.save("tiny.bin")
    write_tokens("tokens.bin", np.random.default_rng(0).integers(0, 50, 100))
    return model


def command(monkeypatch, line):
    monkeypatch.setattr(sys, "argv", ["verify", *line.split()])
    return verify.main()


def test_what_is_written_is_accepted_and_a_change_is_not(folder, monkeypatch, capsys):
    assert not command(monkeypatch, "tiny.bin state.bin --write --data tokens.bin -b 3 -t 10")
    state = read_state("state.bin", folder.config)
    tokens = np.random.default_rng(0).integers(0, 50, 100)
    assert np.array_equal(state.inputs, tokens[:30].reshape(3, 10))
    assert np.array_equal(state.targets, tokens[1:31].reshape(3, 10))
    assert f"wrote state.bin: a batch of 3 x 10, loss {state.loss:.6f}\n" in capsys.readouterr().out
    assert command(monkeypatch, "tiny.bin state.bin") == 0
    assert "all 18 within their limits" in capsys.readouterr().out
    path = pathlib.Path("state.bin")
    whole = path.read_bytes()
    inputs = 1024
    logits = inputs + 2 * 4 * 30
    loss = logits + 4 * 30 * 50
    for place, failing in ((inputs, "dwte"), (logits, "logits"), (loss, "loss"), (loss + 4, "dwte"), (-4, "dlnfb")):
        number = np.frombuffer(whole, "<f4" if place != inputs else "<i4", 1, place % len(whole))
        changed = (number + 1).tobytes()
        at = place % len(whole)
        path.write_bytes(whole[:at] + changed + whole[at + 4 :])
        assert command(monkeypatch, "tiny.bin state.bin") == 1
        assert f"\n{failing} " in (printed := capsys.readouterr().out)
        assert next(line for line in printed.splitlines() if line.startswith(failing)).endswith("FAIL")


def test_the_batch_is_llmcs_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = GPT2Config(maxT=64, V=50, L=1, NH=1, C=4)
    GPT2(config).save("tiny.bin")
    write_tokens("tokens.bin", np.arange(300) % 50)
    command(monkeypatch, "tiny.bin state.bin --write --data tokens.bin")
    assert read_state("state.bin", config).inputs.shape == (4, 64)


BAD = {
    "state there": ("tiny.bin tokens.bin --write --data tokens.bin -t 8", "tokens.bin: already exists"),
    "no tokens": ("tiny.bin state.bin --write --data none.bin -t 8", "none.bin: no such token file"),
    "too few tokens": (
        "tiny.bin state.bin --write --data tokens.bin -t 16 -b 9",
        "tokens.bin: 100 tokens, .* at least 145",
    ),
    "not tokens": ("tiny.bin state.bin --write --data tiny.bin -t 8", "tiny.bin: "),
    "T beyond maxT": ("tiny.bin state.bin --write --data tokens.bin", "--seq-len 64: the model's context length is 16"),
    "T 0": ("tiny.bin state.bin --write --data tokens.bin -t 0", "batch of 4 x 0 tokens"),
    "B 0": ("tiny.bin state.bin --write --data tokens.bin -t 8 -b 0", "batch of 0 x 8 tokens"),
    "no folder": (
        "tiny.bin none/state.bin --write --data tokens.bin -t 8",
        "none/state.bin: No such file or directory",
    ),
    "no model": ("none.bin state.bin --write --data tokens.bin", "none.bin: No such file or directory"),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_nothing_is_written(folder, monkeypatch, line, message):
    before = {path.name: path.read_bytes() for path in pathlib.Path().iterdir()}
    monkeypatch.setattr(sys, "argv", ["verify", *line.split()])
    with pytest.raises(UserError, match=f"^{message}") as caught:
        verify.main()
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in pathlib.Path().iterdir()} == before


def test_a_batch_without_write_is_a_usage_error(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verify", "tiny.bin", "state.bin", "-b", "3"])
    with pytest.raises(SystemExit) as caught:
        run_command(verify.main)
    assert caught.value.code == 2 and "go with --write" in capsys.readouterr().err


def test_threads_that_cannot_start_are_refused_in_a_line():
    command = [sys.executable, "-m", "gpt2.verify", "model.bin", "state.bin"]
    environment = os.environ | {"OMP_STACKSIZE": "64k"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("error: OMP_STACKSIZE: ") and done.stderr.count("\n") == 1
