"""--keep-best and --patience: what stays, when the run ends, and that a resumed run comes to the same."""

import contextlib
import io
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config, evaluate, generate
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from gpt2.formats.run import newest_model, steps
from gpt2.machine import available_threads, set_threads
from gpt2.training import checkpoint, loop
from gpt2.training.loop import resume, train
from gpt2.training.options import TrainOptions
from tests.support.runs import contents, records

CONFIG = GPT2Config(maxT=16, V=50, L=1, NH=2, C=12)
LAST, EVERY, SAVED = 60, 3, 7  # steps of the run, between validations, and between checkpoints
BEST = 42  # the step of the lowest validation loss; the curve rises after it, and once, at step 3 and 6, before
PATIENT = 51  # where --patience 3 ends the run
SNAPSHOTS = (8, 13, 15, 20, 39, 42, 43, 47, 51, 55)  # after a step without a validation, with one, a checkpoint, a best


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a tiny model, a text so short that it overfits, and the run that keeps its best, in "whole".

    "at-N" is the run's folder as a kill in step N leaves it, after validation but before the record.
    """
    folder, rng = tmp_path_factory.mktemp("best"), np.random.default_rng(0)
    with contextlib.chdir(folder):
        GPT2(CONFIG, seed=1).save("tiny.bin")
        for name, count in (("train", 120), ("val", 150)):
            write_tokens(f"{name}.bin", np.cumsum(rng.integers(1, 4, count)) % CONFIG.V)

        def snapshot(state, record):
            if state.step in SNAPSHOTS:
                shutil.copytree("whole", f"at-{state.step}", ignore=shutil.ignore_patterns(".lock"))

        pathlib.Path("printed").write_text(printed(train, options(out_dir="whole"), on_step=snapshot))
    return folder


@pytest.fixture(autouse=True)
def folder(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    set_threads(available_threads())


def options(**changes):
    settings = {"init": "tiny.bin", "train_data": "train.bin", "val_data": "val.bin", "batch_size": 2, "seq_len": 8}
    settings |= {"max_steps": LAST, "val_every": EVERY, "val_batches": 0, "sample_every": 0, "learning_rate": 3e-2}
    settings |= {"warmup_steps": 0, "grad_clip": 1.0, "threads": 1, "checkpoint_every": SAVED, "keep_best": True}
    return TrainOptions(**settings | changes)


def printed(function, *arguments, **named):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        function(*arguments, **named)
    return output.getvalue()


def curve(out):
    """A dict of step -> validation loss."""
    return {record["step"]: record["val_loss"] for record in records(out) if "val_loss" in record}


def lowest(losses):
    """The step of the lowest loss in a dict."""
    return min(losses, key=losses.get)


def kept(out):
    """The bytes of the files in a run's folder of the best checkpoint, but for what depends on the clock."""
    found = checkpoint.find(f"{out}/best", report=pytest.fail)
    assert newest_model(f"{out}/best") == found.model and steps(f"{out}/best") == [found.step]
    moments = found.state.read_bytes()[-2 * GPT2.load(found.model).params_flat.nbytes - 32 : -32]
    return found.step, found.progress["validations"], found.model.read_bytes(), moments


def new_bests(text):
    """The steps that a run's output calls a new best."""
    return [int(step) for step in re.findall(r"^new best: val loss \d+\.\d+ after step (\d+), saved in ", text, re.M)]


def test_the_checkpoint_of_the_lowest_validation_loss_stays(capsys):
    losses = curve("whole")
    assert lowest(losses) == BEST and losses[3] > losses[0] < losses[6] and losses[LAST] > losses[BEST]
    text = pathlib.Path("printed").read_text()
    assert new_bests(text) == [step for step in losses if losses[step] == min(list(losses.values())[: step // 3 + 1])]
    step, validations, model, _ = kept("whole")
    assert (step, validations["best"], validations["loss"]) == (BEST, BEST, losses[BEST])
    assert steps("whole") == [60, 56]  # --keep 2
    train(options(keep_best=False, checkpoint_every=1, keep=99))
    assert model == pathlib.Path(f"out/model_{BEST:08}.bin").read_bytes()
    assert contents("out", LAST) == contents("whole", LAST)  # keeping it changes nothing of the run


def test_a_command_takes_its_folder_as_that_of_a_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    checkpoint.list_checkpoints("whole/best")
    assert f"{curve('whole')[BEST]:.6f}" in capsys.readouterr().out
    generate.main(["--model", "whole/best", "--prompt-file", "-", "--max-new-tokens", "3"])
    evaluate.main("--model whole/best --data val.bin".split())
    train(options(init="whole/best", max_steps=0, keep_best=False))
    assert GPT2.load("out").params_flat.tobytes() == GPT2.load("whole/best").params_flat.tobytes()


@pytest.mark.parametrize("step", SNAPSHOTS)
def test_a_killed_run_keeps_the_same_best_when_it_is_resumed(step):
    text = printed(resume, f"at-{step}", {"threads": 1})
    assert contents(f"at-{step}", LAST) == contents("whole", LAST)
    assert kept(f"at-{step}") == kept("whole")
    saved = step // SAVED * SAVED
    assert new_bests(text) == [each for each in new_bests(pathlib.Path("printed").read_text()) if each > saved] or (
        step == BEST and new_bests(text) == [BEST]  # saved in this step, but not recorded: it is validated once more
    )


def test_a_better_one_of_steps_that_are_given_up_does_not_replace_the_best():
    assert steps("at-20/best") == [18, 12]  # 12 was the best at the checkpoint of step 14
    assert newest_model("at-20/best").name == "model_00000018.bin"
    text = printed(resume, "at-20", {"max_steps": 15, "val_every": 100, "threads": 1})  # validates the last step only
    assert new_bests(text) == [15] and kept("at-20")[0] == 15
    resume("at-13", {"max_steps": 7, "threads": 1})
    assert newest_model("at-13/best").name == "model_00000000.bin"


def test_the_best_comes_along_to_another_folder():
    before = {path: path.read_bytes() for path in pathlib.Path("at-47").rglob("*") if path.is_file()}
    resume("at-47", {"out_dir": "moved", "threads": 1})
    assert kept("moved") == kept("whole")
    assert before == {path: path.read_bytes() for path in pathlib.Path("at-47").rglob("*") if path.is_file()}


def test_the_best_is_continued_in_another_folder_only():
    with pytest.raises(UserError, match="best: the best checkpoint of a run; to continue from it, give another --out-"):
        resume("at-47/best", {"threads": 1})
    resume("at-47/best", {"out_dir": "branch", "threads": 1})
    assert steps("branch")


@pytest.mark.parametrize(("damage", "next_one"), [("gone", 45), ("cut off", 45), ("given anew", 48)])
def test_a_best_that_is_not_there_any_more_is_said_and_the_next_counts(damage, next_one):
    path = pathlib.Path(f"at-47/best/model_{BEST:08}.bin")
    if damage == "gone":
        shutil.rmtree(path.parent)
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        train(options(out_dir="at-47", keep_best=False, max_steps=47, val_every=6))
    text = printed(resume, "at-47", {"threads": 1, "keep_best": True, "max_steps": LAST})
    assert f"\nthe next validation counts as the best so far, not that of step {BEST}: {path}: " in text
    assert new_bests(text) == [next_one] and kept("at-47")[0] == next_one
    assert contents("at-47", LAST)[:2] == contents("whole", LAST)[:2]


def test_losses_of_another_validation_are_not_compared():
    text = printed(resume, "at-47", {"threads": 1, "val_batches": 1})
    assert f"the next validation counts as the best so far, not that of step {BEST}: the validation is another" in text
    assert kept("at-47")[0] == lowest({step: loss for step, loss in curve("at-47").items() if step > BEST})


def test_the_best_of_an_earlier_run_that_saved_nothing_else_is_set_aside():
    shutil.copytree("whole/best", "out/best")
    train(options(max_steps=1))
    assert steps("out-1/best") == [BEST] and BEST not in steps("out/best")


def test_a_best_that_cannot_be_saved_leaves_the_one_before_and_a_run_to_resume(folder, monkeypatch):
    write = checkpoint.write

    def full_disk(folder, model, optimizer, progress, *rest):
        if folder.name == "best" and progress["step"] == 15:
            raise UserError("best: the disk is full")
        return write(folder, model, optimizer, progress, *rest)

    monkeypatch.setattr(checkpoint, "write", full_disk)
    with pytest.raises(UserError, match="the disk is full"):
        train(options())
    assert steps("out/best") == [12] and steps("out") == [15, 14]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    resume("out", {"threads": 1})
    assert kept("out")[2:] == kept("whole")[2:] and contents("out", LAST) == contents("whole", LAST)


@pytest.mark.parametrize("other", ["at-13", "whole"])
def test_nothing_is_written_into_the_best_of_another_run(monkeypatch, other):
    validate = loop._validate
    if other == "whole":
        shutil.rmtree("whole/best")  # a run without --keep-best: nothing is made there, either

    def replace(*arguments):
        if steps("out") == [7]:
            pathlib.Path("out").rename("aside")
            shutil.copytree(other, "out")
        return validate(*arguments)

    monkeypatch.setattr(loop, "_validate", replace)
    with pytest.raises(UserError, match=r"this run's lock on it is gone"):
        train(options())
    files = [
        {path.relative_to(out): path.is_file() and path.read_bytes() for path in pathlib.Path(out).rglob("*")}
        for out in ("out", other)
    ]
    assert files[0] == files[1]


def test_parameters_that_are_not_finite_are_no_best():
    def overflow(state, record):
        if state.step == 8:
            state.model.params["wpe"][15] = np.inf  # a position that no sequence reaches

    with pytest.raises(UserError, match=r"^after step 9 the parameters are not finite, first wpe"):
        train(options(), on_step=overflow)
    assert steps("out/best") == [0] and steps("out") == [7]


def test_patience_ends_a_run_some_validations_after_its_best(capsys):
    patient = train(options(patience=3))
    assert patient.exit_status is None and patient.state.step == PATIENT and steps("out") == [PATIENT, 49]
    text = capsys.readouterr().out
    assert "--patience ends the run after step 51: 3 validations without a new best, that of step 42 is the" in text
    assert "resume with" not in text and text.endswith("loss.png\n")
    assert curve("out") == {step: loss for step, loss in curve("whole").items() if step <= PATIENT}
    assert kept("out") == kept("whole")
    assert train(options(patience=2)).state.step == 6  # step 0 was better
    impatient = options(patience=1, keep_best=False, out_dir="first")
    assert train(impatient).state.step == 3 and not pathlib.Path("first/best").exists()


@pytest.mark.parametrize("step", SNAPSHOTS)
def test_a_resumed_run_is_as_patient(step, capsys):
    result = resume(f"at-{step}", {"threads": 1, "patience": 3})
    printed = capsys.readouterr().out
    if step < 56:  # the checkpoint is older than the end
        assert result.state.step == PATIENT and "--patience ends the run after step 51" in printed
        assert curve(f"at-{step}") == {step: loss for step, loss in curve("whole").items() if step <= PATIENT}
    assert resume(f"at-{step}", {"threads": 1}).state.step == PATIENT  # it has ended
    assert "--patience ends the run after step 51" in capsys.readouterr().out
    resume(f"at-{step}", {"threads": 1, "patience": 99})
    assert contents(f"at-{step}", LAST) == contents("whole", LAST)


def test_patience_counts_a_validation_once_however_often_it_is_repeated(monkeypatch):
    """A run that fails after its validation, but before the record, validates that step again."""

    def fail(state, record):
        if state.step == 45:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(options(patience=3), on_step=fail)
    assert checkpoint.find("out").progress["validations"] == {"last": 45, "best": 42, "since": 1} | {
        "loss": curve("whole")[BEST]
    }
    assert resume("out", {"threads": 1}).state.step == PATIENT


def test_losses_that_are_not_finite_are_no_best(monkeypatch):
    monkeypatch.setattr(loop, "_validate", lambda *arguments: float("nan"))
    result = train(options(patience=2))
    assert result.state.step == 3 and not pathlib.Path("out/best").exists()


@pytest.mark.parametrize("option", [{"patience": 1, "keep_best": False}, {"keep_best": True}])
def test_without_validations_there_is_no_best(option):
    name = "--patience" if "patience" in option else "--keep-best"
    with pytest.raises(UserError, match=rf"^{name} needs validations, but --val-every is 0$"):
        options(val_every=0, **option)
    with pytest.raises(UserError, match=rf"^{name} needs validations, but --val-every is 0$"):
        train(options(max_steps=2, out_dir="out", **option)) and resume("out", {"val_every": 0})
