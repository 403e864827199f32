"""Runs that go on where others ended, in one process; test_kills.py ends them in the middle."""

import contextlib
import io
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

import train_gpt2
from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from gpt2.formats.run import newest_model
from gpt2.machine import available_threads, set_threads
from gpt2.training import checkpoint, loop
from gpt2.training import resume as resuming
from tests.support.runs import contents, records, samples, val_losses

CONFIG = GPT2Config(maxT=16, V=50, L=2, NH=2, C=12)
# An epoch is 8 batches: 12 steps of 3 end in the fifth, in the middle of an accumulation.
COMMON = (
    "--init tiny.bin --train-data train-*.bin --val-data val.bin -b 2 -t 8 -l 1e-2 --grad-accum-steps 3 --shuffle "
    "--lr-schedule cosine --warmup-steps 3 --weight-decay 0.1 --grad-clip 1 --val-every 5 --val-batches 3 "
    "--dropout 0.2 --sample-every 3 --sample-tokens 5 --skip-spikes 3 -x 12 --threads 1"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the files that the runs need, and two runs: "whole", and "parts" with every step's checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    with contextlib.chdir(folder):
        GPT2(CONFIG, seed=1).save("tiny.bin")
        rng = np.random.default_rng(0)
        write_tokens("train-1.bin", rng.integers(0, 50, 90))
        write_tokens("train-2.bin", rng.integers(0, 50, 60))
        write_tokens("val.bin", np.arange(100) % 50)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            train("--out-dir", "whole", "--threads", "2")
        train("--out-dir", "parts", "--checkpoint-every", "1", "--keep", "20")
    pathlib.Path(folder, "printed").write_text(printed.getvalue())
    return folder


@pytest.fixture
def folder(runs, tmp_path, monkeypatch):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    set_threads(available_threads())


def train(*arguments):
    return train_gpt2.main([*COMMON.split(), *arguments])


def resume(*arguments):
    return train_gpt2.main(["--resume", *arguments, "--threads", "1"])


def back_to(step, out="parts"):
    """Leaves of a run what there was at a step, but for its metrics."""
    for later in range(step + 1, 13):
        pathlib.Path(out, f"state_{later:08d}.bin").unlink(missing_ok=True)
        pathlib.Path(out, f"model_{later:08d}.bin").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[] if step in (1, 5, 8) else pytest.mark.slow) for step in range(1, 12)]
)
def test_a_resumed_run_is_the_run_it_would_have_been(folder, capsys, step):
    back_to(step)
    assert resume("parts") is None
    whole, resumed = pathlib.Path("printed").read_text(), capsys.readouterr().out
    assert f"parts after step {step}\n" in resumed
    assert contents("parts", 12) == contents("whole", 12)
    assert samples(resumed) == samples(whole)[step // 3 :] and len(samples(whole)) == 4
    assert val_losses(resumed) == val_losses(whole)[1 + step // 5 :] and len(val_losses(whole)) == 4


def test_llmc_s_order_is_resumed_in_the_middle_of_an_epoch(folder):
    constant = ("--lr-schedule", "constant", "--val-every", "0", "--sample-every", "0")
    train("--out-dir", "other", *constant)
    train("--out-dir", "straight", "--shuffle", "llmc", *constant)
    train("-x", "7", "--shuffle", "llmc", *constant)
    assert checkpoint.find("out").progress["position"] == [2, 5]
    resume("out", "-x", "12")
    assert contents("out", 12) == contents("straight", 12) != contents("other", 12)


def test_more_steps_and_another_folder_are_allowed(folder):
    constant = ("--lr-schedule", "constant", "--val-every", "0", "--sample-every", "0")
    train("--out-dir", "long", "-x", "16", *constant)
    train(*constant)
    resume("out", "-x", "16", "--out-dir", "other", "--keep", "1")
    assert contents("other", 16) == contents("long", 16)
    assert [path.name for path in pathlib.Path("out").glob("model*")] == ["model_00000012.bin"]
    assert resume("other") is None  # nothing is left to do, and nothing goes wrong
    assert contents("other", 16) == contents("long", 16)


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["-b", "3"], "--batch-size was 2, not 3"),
        (["-t", "4"], "--seq-len was 8, not 4"),
        (["--grad-accum-steps", "1"], "--grad-accum-steps was 3, not 1"),
        (["-l", "1"], "--lr was 0.01, not 1.0"),
        (["--seed", "1", "--beta1", "0.8"], "--beta1 was 0.9, not 0.8; --seed was 1337, not 1"),
        (["--shuffle", "llmc"], "--shuffle was True, not llmc"),
        (["--train-data", "train-1.bin"], r"--train-data: .*train-2.bin"),
        (["--val-data", "train-1.bin"], r"--val-data: .*(val|train-1).bin"),
    ],
)
def test_what_may_not_differ_is_refused_by_name_unless_it_is_to_go_on_anyway(folder, capsys, arguments, difference):
    back_to(11)
    with pytest.raises(UserError, match=f"^parts: .*{difference}.*--resume-anyway$") as refused:
        resume("parts", *arguments)
    assert "\n" not in str(refused.value)
    assert resume("parts", "--resume-anyway", *arguments) is None
    assert re.search(difference, capsys.readouterr().out)
    assert checkpoint.find("parts").step == 12


def test_the_same_options_given_again_are_no_difference(folder):
    back_to(7)
    train_gpt2.main([*COMMON.split(), "--resume", "parts"])
    assert contents("parts", 12) == contents("whole", 12)


def test_changed_and_vanished_data_are_noticed(folder):
    data = bytearray(pathlib.Path("train-2.bin").read_bytes())
    data[-6] ^= 1
    pathlib.Path("train-2.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"--train-data: .*train-2.bin"):
        resume("parts")
    pathlib.Path("train-2.bin").unlink()
    with pytest.raises(UserError, match=r"--train-data: .*train-2.bin"):
        resume("parts")


def test_data_may_be_moved(folder):
    back_to(6)
    pathlib.Path("moved").mkdir()
    for name in ("train-1.bin", "train-2.bin", "val.bin"):
        shutil.move(name, f"moved/{name}")
    resume("parts", "--train-data", "moved/train-*.bin", "--val-data", "moved/val.bin")
    assert contents("parts", 12) == contents("whole", 12)


def test_a_damaged_checkpoint_is_passed_over_and_none_is_an_error(folder, capsys):
    path = pathlib.Path("parts/state_00000012.bin")
    path.write_bytes(path.read_bytes()[:-1])
    resume("parts")
    printed = capsys.readouterr().out
    assert "state_00000012.bin" in printed and "parts after step 11\n" in printed
    assert contents("parts", 12) == contents("whole", 12)
    for path in pathlib.Path("parts").glob("state*"):
        path.unlink()
    with pytest.raises(UserError, match=r"^parts: no whole checkpoint"):
        resume("parts")
    with pytest.raises(UserError, match=r"^nowhere: no such folder"):
        resume("nowhere")
    assert not pathlib.Path("nowhere").exists()


@pytest.mark.parametrize("option", ["--init scratch", "--layers 2", "--size baby"])
@pytest.mark.parametrize("anyway", [[], ["--resume-anyway"]])
def test_another_model_is_never_taken(folder, option, anyway):
    with pytest.raises(UserError, match=rf"^parts: {option}: a resumed run continues with its own model$"):
        resume("parts", *option.split(), *anyway)


def test_a_model_of_chosen_sizes_is_resumed_with_them_given_again_or_not(folder):
    sizes = "--init scratch --size baby --layers 1 --heads 2 --channels 8 --context 16 --sample-every 0".split()
    train("--out-dir", "long", *sizes)
    train("--out-dir", "short", *sizes, "--checkpoint-every", "5", "--keep", "9")
    for step in (7, 12):
        for path in checkpoint.checkpoint_paths("short", step):
            path.unlink(missing_ok=True)
    resume("short", "-x", "7")
    resume("short", *sizes, "-x", "12")
    assert contents("short", 12) == contents("long", 12)


def test_epochs_are_those_of_the_whole_run_and_either_length_replaces_the_other(folder, capsys):
    def stopped_and_resumed(*arguments):
        back_to(7, "short")
        resume("short", *arguments)
        return checkpoint.find("short", report=str).step

    epochs = ["--epochs", "4"]  # of 8 batches, in steps of 3
    given = [word for word in COMMON.split() if word not in ("-x", "12")]
    for out, saved in (("long", "0"), ("short", "1")):
        train_gpt2.main([*given, *epochs, "--out-dir", out, "--checkpoint-every", saved, "--keep", "20"])
    assert "| 4 epochs = 11 steps |" in capsys.readouterr().out
    assert stopped_and_resumed() == 11
    assert contents("short", 11) == contents("long", 11)
    assert "as if the run had been one of" not in capsys.readouterr().out
    assert stopped_and_resumed("-x", "9") == 9
    assert stopped_and_resumed("--epochs", "3") == 8
    assert "as if the run had been one of 8 steps" in capsys.readouterr().out
    with pytest.raises(UserError, match="--epochs and --max-steps"):
        resume("short", "--epochs", "3", "-x", "9")


def test_validation_data_are_remembered_while_there_is_no_validation(folder):
    back_to(8)
    resume("parts", "--val-every", "0", "-x", "9")
    with pytest.raises(UserError, match=r"--val-data: "):
        resume("parts", "--val-every", "5", "--val-data", "train-1.bin")


def test_what_changes_the_last_digits_or_the_learning_rate_is_said(folder, monkeypatch, capsys):
    back_to(8)
    monkeypatch.setattr(resuming, "code_identity", lambda: "7")
    resume("parts", "-x", "9")
    printed = capsys.readouterr().out
    assert re.search(r"\(low-order digits may differ .*: kernels '[\w-]+' -> 7\)", printed)
    assert "the learning rate continues as if the run had been one of 9 steps" in printed


def test_room_is_asked_for_what_is_still_to_be_saved(folder, monkeypatch, capsys):
    back_to(8)
    usage = shutil.disk_usage(folder)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"^parts: 12 checkpoints"):
        resume("parts")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    resume("parts", "--keep", "2")
    assert "[disk] 8 checkpoints of" in capsys.readouterr().out


def test_updates_left_out_before_do_not_end_a_run_that_tolerates_fewer(folder, monkeypatch):
    back_to(8)
    found = checkpoint.find("parts", report=str)
    found.progress["skipped"]["nonfinite"] = 3
    monkeypatch.setattr(checkpoint, "find", lambda folder: found)
    resume("parts", "--skip-nonfinite", "1")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert checkpoint.find("parts").progress["skipped"] == {"nonfinite": 3, "spike": 0}


def test_a_save_that_was_interrupted_is_brought_to_its_end_even_if_no_step_is_left(folder):
    pathlib.Path("parts/checkpoints.json").write_text(json.dumps({"step": 9}))
    left = [pathlib.Path("parts", f".{name}.abcdefgh") for name in ("loss.png", "report.html", "metrics_before.jsonl")]
    for path in left:
        path.touch()
    resume("parts", "--keep", "3")
    assert newest_model("parts").name == "model_00000012.bin"
    assert checkpoint.steps("parts") == [12, 11, 10] and not any(path.exists() for path in left)


def test_a_folder_that_holds_the_run_to_go_on_with_is_refused(folder):
    pathlib.Path("large").mkdir()
    shutil.move("parts", "large/parts")
    with pytest.raises(UserError, match=r"^--out-dir large: contains the run to resume"):
        resume("large/parts", "--out-dir", "large")


@pytest.mark.parametrize(
    "change",
    [
        lambda progress: progress.pop("options"),
        lambda progress: progress["options"].update(no_such_option=1),
        lambda progress: progress["options"].update(batch_size="two"),
        lambda progress: progress["options"].update(grad_accum_steps=0),
        lambda progress: progress["resolved"].update(learning_rate=float("nan")),
        lambda progress: progress["options"].update(lr_schedule=["foo"]),
        lambda progress: progress["options"].update(max_steps=10**40),
        lambda progress: progress["options"].update(prompt="\ud800"),
        lambda progress: progress.pop("outliers"),
        lambda progress: progress["outliers"].update(train_loss=[1]),
        lambda progress: progress.update(skipped={}),
        lambda progress: progress["skipped"].update(spike=float("inf")),
        lambda progress: progress.update(train_loss="a\nb"),
    ],
)
def test_a_whole_checkpoint_of_another_version_is_refused(folder, monkeypatch, change):
    back_to(2)
    found = checkpoint.find("parts", report=str)
    change(found.progress)
    monkeypatch.setattr(checkpoint, "find", lambda folder: found)
    with pytest.raises(
        UserError, match=r"^parts/state_00000002.bin: not what this version of the trainer saves; resume"
    ):
        resume("parts")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda progress: progress.pop("position"), "position"),
        (lambda progress: progress.update(position=[0, 10**9]), "position"),
        (lambda progress: progress.pop("train_data"), "--train-data: "),
    ],
)
def test_a_place_in_the_data_that_there_is_not_is_refused(folder, monkeypatch, change, message):
    back_to(2)
    found = checkpoint.find("parts", report=str)
    change(found.progress)
    monkeypatch.setattr(checkpoint, "find", lambda folder: found)
    with pytest.raises(UserError, match=message) as refused:
        resume("parts")
    assert "\n" not in str(refused.value)


def test_a_schedule_that_is_not_there_is_named(folder, monkeypatch):
    back_to(2)
    found = checkpoint.find("parts", report=str)
    found.progress["options"]["lr_schedule"] = "mine"
    monkeypatch.setattr(checkpoint, "find", lambda folder: found)
    with pytest.raises(UserError, match=r"^parts: the run's --lr-schedule 'mine' is not in gpt2.optimizer.SCHEDULES"):
        resume("parts")


def test_none_leaves_an_option_as_it_was(folder):
    back_to(7)
    changes = dict.fromkeys(("train_data", "val_data", "learning_rate", "warmup_steps", "grad_clip", "out_dir"))
    loop.resume("parts", changes)
    assert contents("parts", 12) == contents("whole", 12)


def test_a_disk_that_fails_while_moments_are_read_is_not_another_version(folder, monkeypatch):
    def fail(self, optimizer):
        raise UserError("state_00000012.bin: Permission denied")

    monkeypatch.setattr(checkpoint.Checkpoint, "load_state", fail)
    with pytest.raises(UserError, match="Permission denied"):
        resume("parts")


def test_checkpoints_of_a_resumed_run_hold_the_validation_loss_of_before(folder):
    back_to(5)  # step 5 was saved, then validated
    resume("parts", "-x", "7", "--keep", "9")
    validated = {record["step"]: record["val_loss"] for record in records("whole") if "val_loss" in record}
    assert checkpoint.find("parts").progress["val_loss"] == validated[5]
