"""What happens between two steps: validation, the caller's on_step, the record, a sample; whatever of it fails."""

import contextlib
import io
import pathlib
import signal

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from gpt2.formats.run import steps
from gpt2.inference.sampling import generate
from gpt2.machine import available_threads, set_threads
from gpt2.training import checkpoint, loop
from gpt2.training import samples as training_samples
from gpt2.training.loop import resume, train
from gpt2.training.metrics import Metrics
from gpt2.training.options import TrainOptions
from gpt2.training.report import StepLines
from gpt2.training.samples import Sampler
from gpt2.training.step import train_step
from tests.support.runs import contents, records, samples, val_losses

CONFIG = GPT2Config(maxT=16, V=50, L=1, NH=2, C=12)
LAST = 10


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GPT2(CONFIG, seed=1).save("tiny.bin")
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        write_tokens(f"{name}.bin", rng.integers(0, CONFIG.V, 150))
    yield
    set_threads(available_threads())


def options(**changes):
    settings = {"init": "tiny.bin", "train_data": "train.bin", "val_data": "val.bin", "batch_size": 2, "seq_len": 8}
    settings |= {"max_steps": LAST, "val_every": 5, "sample_every": 5, "sample_tokens": 6, "learning_rate": 1e-2}
    return TrainOptions(**settings | {"threads": 1, "checkpoint_every": 0, "keep": 9} | changes)


def note(state, record):
    """An on_step that adds to the record."""
    record["mean weight"] = float(state.model.params["wte"].mean())


def printed(function, *arguments, **named):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        function(*arguments, **named)
    return output.getvalue()


def fail_at(step, error):
    """Returns a function to wrap another one in: it raises `error` once, when a run has taken that many steps."""
    raised = []

    def wrap(function, step_of):
        def wrapper(*arguments):
            if step_of(*arguments) == step and not raised:
                raised.append(step)
                raise error
            return function(*arguments)

        return wrapper

    return wrap


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(RuntimeError("no"), marks=pytest.mark.slow, id="error"),
        pytest.param(KeyboardInterrupt(), id="interrupt"),
    ],
)
@pytest.mark.parametrize("step", [5, LAST])
@pytest.mark.parametrize("checkpoint_every", [0, 5], ids=["saved because it fails", "saved before"])
@pytest.mark.parametrize("what", ["validation", "on_step", "record", pytest.param("sample")])
def test_a_step_after_which_something_fails_is_saved_and_made_up_for(monkeypatch, what, checkpoint_every, step, error):
    undisturbed = printed(train, options(out_dir="whole"), on_step=note)
    wrap, on_step = fail_at(step, error), note
    if what == "validation":
        taken = [0]
        monkeypatch.setattr(StepLines, "show", lambda self, record: taken.append(record["step"]))
        monkeypatch.setattr(GPT2, "forward", wrap(GPT2.forward, lambda *_: taken[-1]))
    elif what == "on_step":
        on_step = wrap(note, lambda state, record: state.step)
    elif what == "record":
        monkeypatch.setattr(Metrics, "write", wrap(Metrics.write, lambda self, record: record["step"]))
    else:
        monkeypatch.setattr(Sampler, "show", wrap(Sampler.show, lambda self, step, stop: step))
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(type(error)):
        train(options(checkpoint_every=checkpoint_every), on_step=on_step)
    assert checkpoint.find("out", report=pytest.fail).step == step
    assert records()[-1]["step"] == step - 1
    both = output.getvalue() + printed(resume, "out", {"threads": 1}, on_step=on_step)
    assert contents("out", LAST) == contents("whole", LAST)
    assert records("out")[step].keys() >= {"val_loss", "mean weight"}
    assert set(samples(both)) == set(samples(undisturbed))  # one may be shown again
    assert len(set(samples(undisturbed))) == 2


def test_on_step_gets_the_state_and_the_record_after_validation_and_before_it_is_written():
    seen = []

    def on_step(state, record):
        assert record["step"] == state.step
        seen.append((record["step"], record["train_loss"], record.get("val_loss"), len(records())))
        record["extra"] = np.float32(10 * state.step)

    result = train(options(), on_step=on_step)
    assert [step for step, *_ in seen] == list(range(1, LAST + 1))
    assert {step: loss for step, loss, *_ in seen} == result.train_losses
    assert {step: loss for step, _, loss, _ in seen if loss} | {0: result.val_losses[0]} == result.val_losses
    assert [written for *_, written in seen] == list(range(1, LAST + 1))  # step 0 and those before
    assert [record.get("extra") for record in records()] == [None] + [10 * step for step in range(1, LAST + 1)]


def test_on_step_changes_nothing_by_being_there():
    train(options(out_dir="without"))
    train(options(out_dir="with"), on_step=lambda state, record: None)
    assert contents("with", LAST) == contents("without", LAST)


def test_what_on_step_adds_cannot_cost_the_step():
    def on_step(state, record):
        if state.step == 3:
            record["extra"] = object()  # no JSON

    with pytest.raises(TypeError, match="JSON"):
        train(options(), on_step=on_step)
    assert steps("out") == [3]
    resume("out", {"threads": 1})
    assert [record["step"] for record in records()] == list(range(LAST + 1))


def test_the_error_of_on_step_is_raised_even_if_saving_fails_too(monkeypatch, capsys):
    def fail(*arguments):
        raise UserError("the disk is full")

    def on_step(state, record):
        monkeypatch.setattr(checkpoint, "save", fail)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        train(options(), on_step=on_step)
    assert "step 1 could not be saved: the disk is full" in capsys.readouterr().err


def test_a_signal_in_on_step_is_obeyed_after_it(capsys):
    def on_step(state, record):
        if state.step == LAST - 1:
            signal.raise_signal(signal.SIGTERM)

    train(options(out_dir="whole"))
    interrupted = train(options(max_steps=LAST), on_step=on_step)
    assert interrupted.exit_status == 143 and "resume with:" in capsys.readouterr().out
    assert resume("out").exit_status is None
    assert contents("out", LAST) == contents("whole", LAST)


def test_a_signal_in_the_last_step_leaves_its_validation_to_a_resumed_run(monkeypatch, capsys):
    train(options(out_dir="whole"))

    def step_with_signal(state, options):
        record = train_step(state, options)
        if state.step == LAST:
            signal.raise_signal(signal.SIGTERM)
        return record

    monkeypatch.setattr(loop, "train_step", step_with_signal)
    interrupted = train(options())
    assert interrupted.exit_status == 143 and "resume with:" in capsys.readouterr().out
    assert [record["step"] for record in records()] == list(range(LAST))
    assert resume("out").exit_status is None
    assert contents("out", LAST) == contents("whole", LAST)


def test_a_signal_in_a_validation_ends_it_and_leaves_it_to_a_resumed_run(monkeypatch):
    train(options(out_dir="whole"))
    forward, batches = GPT2.forward, []

    def forward_with_signal(self, *batch):
        if self.config == CONFIG:  # not the one that compiles the kernels
            batches.append(batch)
            if len(batches) == 7:  # step 0 has five, and so has step 5
                signal.raise_signal(signal.SIGTERM)
        return forward(self, *batch)

    monkeypatch.setattr(GPT2, "forward", forward_with_signal)
    assert train(options()).exit_status == 143 and len(batches) == 7
    assert steps("out") == [5] and records()[-1]["step"] == 4
    assert resume("out").exit_status is None
    assert contents("out", LAST) == contents("whole", LAST)


@pytest.mark.parametrize("step", [5, LAST])
def test_a_signal_in_a_sample_ends_it_and_leaves_it_to_a_resumed_run(monkeypatch, capsys, step):
    train(options(out_dir="whole"))
    whole = samples(capsys.readouterr().out)
    tokens = []

    def generate_with_signal(*arguments):
        for token in generate(*arguments):
            tokens.append(token)
            if len(tokens) == (2 if step == 5 else 8):  # a sample has six
                signal.raise_signal(signal.SIGTERM)
            yield token

    monkeypatch.setattr(training_samples, "generate", generate_with_signal)
    assert train(options()).exit_status == 143 and len(tokens) == (2 if step == 5 else 8)
    assert steps("out") == [step] and [record["step"] for record in records()] == list(range(step))
    assert resume("out").exit_status is None
    assert samples(capsys.readouterr().out) == whole and contents("out", LAST) == contents("whole", LAST)


def test_from_python_too_a_failing_print_changes_nothing_and_the_stream_stays_the_callers():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    train(options(out_dir="whole"))
    output = Gone()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        train(options(), on_step=lambda state, record: print("mine"))
        resume("out", {"out_dir": "moved", "max_steps": LAST + 1})
        with pytest.raises(BrokenPipeError):
            print("after it, errors are the caller's again")
    assert contents("out", LAST) == contents("whole", LAST) and steps("moved") == [LAST + 1]


def test_no_step_at_all_still_validates(capsys):
    result = train(options(max_steps=0))
    assert result.train_losses == {} and list(result.val_losses) == [0]
    assert len(val_losses(capsys.readouterr().out)) == 1 and len(records()) == 1
    assert steps("out") == [0]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_steps_before_one_whose_batch_cannot_be_read_are_saved(monkeypatch, accumulation):
    """The file is read row by row and cut short meanwhile."""
    monkeypatch.setattr("gpt2.data.dataloader.READ_BYTES", 0)
    changes = {"out_dir": "cut", "grad_accum_steps": accumulation, "max_steps": 6}
    whole = pathlib.Path("train.bin").read_bytes()

    def cut(state, record):
        if state.step == 2:
            with open("train.bin", "r+b") as file:
                file.truncate(1024 + 2 * (40 if accumulation == 1 else 120))  # step 3 reads up to 49, or 145

    train(options(**changes | {"out_dir": "whole"}))
    with pytest.raises(UserError, match=r"^train\.bin: "):
        train(options(**changes), on_step=cut)
    assert steps("cut") == [2]
    pathlib.Path("train.bin").write_bytes(whole)
    resume("cut", {"threads": 1})
    assert contents("cut", 6)[:2] == contents("whole", 6)[:2]
