"""The training loop and its two scripts, end to end on a model of a few thousand parameters."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import train_gpt2
from gpt2 import GPT2, GPT2Config, machine
from gpt2.errors import UnavailableError, UserError
from gpt2.formats import pretrained
from gpt2.formats.llmc import load_model, write_tokens
from gpt2.machine import available_threads, set_threads
from gpt2.training import metrics, setup, state
from gpt2.training.options import FROM_SCRATCH
from gpt2.training.samples import SAMPLE_LIMIT
from tests.support.runs import model_bytes, records, train_losses
from tests.support.vocabulary import shrink_gpt2

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = GPT2Config(maxT=16, V=50, L=2, NH=2, C=12)
KEYS = {"step", "epoch", "train_loss", "grad_norm", "lr", "gradients_ms", "update_ms", "tokens_per_s"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a tiny model and tokens that a model can learn: 0, 1, ..., 49 over and over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_DATA_DIR", "data")
    GPT2(CONFIG, seed=1).save("tiny.bin")
    write_tokens("train.bin", np.arange(2000) % 50)
    write_tokens("val.bin", np.arange(300) % 50)
    yield tmp_path
    set_threads(available_threads())


def train(*arguments):
    base = (
        "--init tiny.bin --train-data train.bin --val-data val.bin -b 2 -t 8 -x 4 -l 1e-2 --sample-tokens 5 --threads 1"
    )
    return train_gpt2.main([*base.split(), *arguments])


def test_script_end_to_end(folder):
    arguments = (
        "--init tiny.bin --train-data train.bin --val-data val.bin -b 2 -t 8 -x 10 --threads 1 -l 1e-2 --val-every 4"
    )
    command = [sys.executable, str(ROOT / "train_gpt2.py"), *arguments.split(), "--sample-every", "5"]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert run.returncode == 0, run.stderr
    assert f"number of parameters: {CONFIG.num_parameters:,}" in run.stdout
    assert "kernels ready after" in run.stdout
    assert len(re.findall(r"^step +\d+/10 \| train loss \d+\.\d+ \| norm ", run.stdout, re.MULTILINE)) == 10
    assert (
        len(re.findall(r"^val loss \d+\.\d+ after step \d+$", run.stdout, re.MULTILINE)) == 4
    )  # before, after 4, after 8, at the end
    assert run.stdout.count("--- sample ---") == 2
    written = records()
    assert [record["step"] for record in written] == list(range(11))
    assert all(record.keys() >= KEYS for record in written[1:])
    assert [record["step"] for record in written if "val_loss" in record] == [0, 4, 8, 10]
    assert written[-1]["val_loss"] < written[0]["val_loss"] - 0.1
    assert pathlib.Path("out/loss.png").read_bytes().startswith(b"\x89PNG")
    config, params = load_model("out/model_00000010.bin")
    assert config == CONFIG and not np.array_equal(params, GPT2.load("tiny.bin").params_flat)


def test_same_bits_for_any_number_of_threads(folder):
    for threads in (1, 2, 3):
        train("--threads", str(threads), "--out-dir", f"out{threads}")
    for threads in (2, 3):
        assert train_losses(f"out{threads}") == train_losses("out1")
        assert model_bytes(f"out{threads}", 4) == model_bytes("out1", 4)


def test_accumulated_batches_equal_one_large_batch(folder):
    train("-b", "4", "--out-dir", "large", "--grad-clip", "0.5")
    train("-b", "2", "--grad-accum-steps", "2", "--out-dir", "small", "--grad-clip", "0.5")
    for large, small in zip(records("large")[1:], records("small")[1:], strict=True):
        assert small["train_loss"] == pytest.approx(large["train_loss"], rel=1e-5)
        assert small["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-4)


def test_logged_norm_is_before_clipping_and_clipping_changes_the_run(folder):
    train("--out-dir", "free", "--eps", "1")  # a large eps, for AdamW forgives the gradient's scale
    train("--out-dir", "clipped", "--eps", "1", "--grad-clip", "1e-3")
    free, clipped = records("free"), records("clipped")
    assert clipped[1]["grad_norm"] == free[1]["grad_norm"] > 1e-3
    assert clipped[-1]["val_loss"] > free[-1]["val_loss"]


def test_overfitting_a_single_batch(folder):
    train("--overfit-single-batch", "-x", "60", "--val-every", "0", "--sample-every", "0")
    assert train_losses()[0] > 3 and train_losses()[-1] < 0.2


def test_zero_switches_validation_and_samples_off(folder, capsys):
    train("--val-every", "0", "--sample-every", "0", "--val-data", "missing.bin")
    printed = capsys.readouterr().out
    assert "val loss" not in printed and "sample" not in printed
    assert [record["step"] for record in records()] == [1, 2, 3, 4]


def test_validation_is_the_mean_over_the_batches_asked_for(folder):
    set_threads(1)
    model, loader = GPT2.load("tiny.bin"), setup.DataLoader("val.bin", 2, 8, 50)
    expected = [model.forward(*loader.next_batch()) for _ in range(loader.num_batches)]
    for count, first in ((3, 3), (0, loader.num_batches), (1000, loader.num_batches)):
        train("-x", "0", "--val-batches", str(count))
        assert records() == [{"step": 0, "val_loss": pytest.approx(np.mean(expected[:first]), rel=1e-7)}]


def test_random_weights_and_their_recipe_stand_in_for_weights_that_cannot_be_had(folder, monkeypatch, capsys):
    def unavailable():
        raise UnavailableError("no network")

    monkeypatch.setattr(pretrained, "fetch_gpt2", unavailable)
    shrink_gpt2(monkeypatch, CONFIG)
    train_gpt2.main("--train-data train.bin --val-data val.bin -b 2 -t 8 -x 2 --threads 1".split())
    printed = capsys.readouterr().out
    (paragraph,) = [line for line in printed.splitlines() if "random weights" in line]
    assert "no network" in paragraph and pretrained.FETCH_COMMAND in paragraph
    warmup, peak = FROM_SCRATCH["warmup_steps"], FROM_SCRATCH["learning_rate"]
    assert [record["lr"] for record in records()[1:]] == pytest.approx([peak / warmup, 2 * peak / warmup])


@pytest.mark.parametrize("name", ["gpt2-medium", "someone/theirs"])
def test_nothing_stands_in_for_weights_that_were_asked_for(folder, monkeypatch, name):
    def unavailable(*file):
        raise UnavailableError("no network")

    monkeypatch.setattr(pretrained, "fetch", unavailable)
    with pytest.raises(UnavailableError, match="no network"):
        train("--init", name)
    assert not os.path.exists("out/metrics.jsonl")


def test_corrupt_weights_are_not_taken_for_unavailable_ones(folder):
    pathlib.Path("data").mkdir()
    pathlib.Path("data/gpt2_124M.bin").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"gpt2_124M\.bin: not a model file"):
        train("--init", "gpt2")


def test_bad_input_is_refused_in_one_line(folder, monkeypatch):
    pathlib.Path("empty.bin").touch()
    pathlib.Path("file").write_text("not a folder")
    write_tokens("large.bin", np.arange(2000) % 51)
    for arguments, message in (
        (["--init", "missing.bin"], "missing.bin: No such file"),
        (["--init", "train.bin"], "train.bin: not a model file"),
        (["--init", "."], "config.json"),
        (["--train-data", "missing.bin"], "missing.bin: no such token file"),
        (["--train-data", "empty.bin"], "empty.bin: empty"),
        (["--val-data", "large.bin"], "large.bin: token 50 at position 50 is not in 0 .. 49"),
        (["-b", "1000"], "train.bin: 2,000 tokens, a batch of 1000 x 8 takes at least 8,001; choose --batch-size 249 "),
        (["-t", "17"], "--seq-len 17: the model's positions end at 16"),
        (["--threads", "0"], "--threads 0: expected a whole number from 1"),
        (["--threads", "4096"], "4096 threads"),
        (["--out-dir", "file/out"], "file/out: Not a directory"),
        (["--out-dir", "file"], "file: File exists"),
        (["--prompt", "hello"], "--prompt needs the model's vocabulary, but tiny.bin: its vocabulary is not"),
    ):
        with pytest.raises(UserError) as refused:
            train(*arguments)
        assert message in str(refused.value) and "\n" not in str(refused.value)


def test_too_little_memory_or_disk_is_said_before_it_is_taken(folder, monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda: 70_000)
    with pytest.raises(UserError, match=r"^not enough memory: training at --batch-size 2 --seq-len 8 needs "):
        train()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"^out: 1 checkpoint, 0.07 MB of disk, would not fit: 0.00 MB are free"):
        train()
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    ("error", "reason"), [(UserError("the disk is full"), "the disk is full"), (MemoryError(), "MemoryError()")]
)
def test_a_picture_that_cannot_be_drawn_costs_neither_the_model_nor_the_status(
    folder, monkeypatch, capsys, error, reason
):
    def refuse(self):
        raise error

    monkeypatch.setattr(metrics.Metrics, "draw", refuse)
    assert train() is None
    assert load_model("out/model_00000004.bin")[0] == CONFIG
    assert capsys.readouterr().err == f"out/loss.png could not be drawn: {reason}\n"


def test_a_number_that_is_not_finite_stops_the_run_and_says_where_it_came_up(folder):
    model = GPT2.load("tiny.bin")
    model.params["fcw"][1].fill(1e30)
    model.params["fcprojw"][1].fill(1e30)
    model.save("nan.bin")
    with pytest.raises(UserError, match=r"^step 1: the loss is nan.* in residual3 of layer 1 .*batch 0: train.bin"):
        train("--init", "nan.bin", "--val-every", "0")
    assert not list(pathlib.Path("out").glob("model*"))


def broken_backward(monkeypatch, at_steps):
    """Puts a NaN into a gradient in the backward passes of those numbers, counted from 1."""
    count, overwrite = [0], GPT2.overwrite_gradients

    def break_sometimes(self, *batch):
        loss = overwrite(self, *batch)
        if self.config == CONFIG:  # not the one that compiles the kernels
            count[0] += 1
            if count[0] in at_steps:
                self.grads["qkvb"][1, 3] = np.nan
        return loss

    monkeypatch.setattr(GPT2, "overwrite_gradients", break_sometimes)


def test_a_gradient_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(folder, monkeypatch):
    train("-x", "2", "--out-dir", "good")
    broken_backward(monkeypatch, {3})
    with pytest.raises(UserError, match=r"^step 3: .*norm nan.* the gradient of qkvb of layer 1 .* batch 2: train.bin"):
        train("--checkpoint-every", "1")
    assert model_bytes("out", 2) == model_bytes("good", 2)
    assert not pathlib.Path("out/model_00000003.bin").exists()
    assert [record["step"] for record in records()] == [0, 1, 2]


def test_updates_that_are_not_finite_are_left_out_up_to_the_number_given(folder, monkeypatch):
    broken_backward(monkeypatch, {2, 3})
    train("-x", "3", "--skip-nonfinite", "2", "--checkpoint-every", "1", "--keep", "9")
    assert model_bytes("out", 1) == model_bytes("out", 2) == model_bytes("out", 3)
    assert [record.get("skipped_so_far") for record in records()] == [None, None, 1, 2]
    assert [record["grad_norm"] is None for record in records()[1:]] == [False, True, True]
    broken_backward(monkeypatch, {2, 3})
    with pytest.raises(UserError, match=r"^step 3: "):
        train("--skip-nonfinite", "1", "--out-dir", "one")


def test_parameters_that_are_not_finite_are_not_saved(folder):
    with pytest.raises(UserError, match=r"^after step 1 the parameters are not finite, first wte \(row 0, column 0"):
        train("-l", "1e39", "-x", "1", "--val-every", "0", "--sample-every", "0")
    assert not list(pathlib.Path("out").glob("model*"))


def test_spikes_are_left_out(folder, monkeypatch):
    scores = iter([0, 0, 0, 5, 0, 0, 5, 5])  # loss and norm of each of four steps
    monkeypatch.setattr(state.OutlierDetector, "update", lambda self, value: next(scores))
    train("--skip-spikes", "4", "--checkpoint-every", "1", "--keep", "9")
    assert model_bytes("out", 1) == model_bytes("out", 2) != model_bytes("out", 3) == model_bytes("out", 4)
    assert [record.get("skipped") for record in records()[1:]] == [None, "spike", None, "spike"]


def test_a_new_run_gives_way_to_none_of_an_earlier_one(folder, capsys):
    train()
    before = model_bytes("out", 4)
    train("--init", "out", "-x", "1")  # the run's own newest model, in the same folder
    assert "out held an earlier run, which is now in out-1" in capsys.readouterr().out
    train("-x", "1")
    assert model_bytes("out-1", 4) == before and len(records("out-1")) == 5
    assert pathlib.Path("out-2/model_00000001.bin").exists() and len(records()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--init", "missing.bin"], 1, "error: missing.bin: No such file or directory"),
        (["--batch-size", "0"], 1, "error: --batch-size 0: expected a whole number from 1 to 2147483647"),
        (["--batch-size", "two"], 2, "error: --batch-size two: expected a whole number\n"),
        (
            ["--lr-schedule", "cosinus"],
            1,
            "error: --lr-schedule 'cosinus': expected one of constant, cosine, linear, wsd",
        ),
        (["--no-such-option"], 2, "error: --no-such-option: no such option; gpt2 train --help lists the options\n"),
        (["--batchsize", "3"], 2, "error: --batchsize: no such option; did you mean --batch-size?\n"),
        (["--threads", "abc"], 2, "error: --threads abc: expected a whole number\n"),
        (["--lr", "fast"], 2, "error: --lr fast: expected a number\n"),
        (["--resume-anyway"], 2, "--resume-anyway goes with --resume"),
        (["--lr", "nan"], 1, "error: --lr nan: expected a finite number from 0"),
        (["--eps", "0"], 1, "error: --eps 0.0: expected a number from 1.2e-38, below 3.4e38"),
        (["--prompt", "q\udcff"], 1, "error: --prompt 'q\\udcff': expected text in UTF-8"),
    ],
)
def test_exit_status_and_one_line_without_traceback(folder, arguments, status, message):
    command = [sys.executable, str(ROOT / "train_gpt2.py"), "--train-data", "train.bin", "--val-data", "val.bin"]
    run = subprocess.run(command + arguments, capture_output=True, text=True, timeout=300)
    assert run.returncode == status
    assert message in run.stderr and "Traceback" not in run.stderr
    assert run.stderr.count("\n") == 1


def test_help_is_grouped_and_shows_defaults():
    command = [sys.executable, str(ROOT / "train_gpt2.py"), "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"COLUMNS": "200"})
    for text in ("model and data:", "optimizer:", "validation and samples:", "(default: 0.999)", "(default: 40)"):
        assert text in printed.stdout
    assert "SUPPRESS" not in printed.stdout and "None" not in printed.stdout


DATA = ROOT / "data"
WHAT_LLMC_NEEDS = [DATA / name for name in ("gpt2_124M.bin", "tiny_shakespeare_train.bin", "tiny_shakespeare_val.bin")]


@pytest.mark.skipif(not all(path.exists() for path in WHAT_LLMC_NEEDS), reason="GPT-2's weights or data are not there")
def test_llmc_trajectory_from_the_released_weights(tmp_path):
    weights, train_data, val_data = map(str, WHAT_LLMC_NEEDS)
    arguments = ["--init", weights, "--train-data", train_data, "--val-data", val_data, "-x", "4"]
    train_gpt2.main([*arguments, "--sample-every", "0", "--out-dir", str(tmp_path)])
    assert records(tmp_path)[0]["val_loss"] == pytest.approx(5.3255, abs=1e-3)
    assert train_losses(tmp_path) == pytest.approx([5.356, 4.301, 4.623, 4.600], abs=2e-3)


def test_an_output_folder_may_be_a_link_or_the_working_folder(folder, capsys):
    pathlib.Path("large disk").mkdir()
    pathlib.Path("link").symlink_to("large disk/real")
    pathlib.Path("large disk/real").mkdir()
    for _ in range(2):
        train("-x", "1", "--out-dir", "link")
    assert sorted(os.listdir("large disk")) == ["real", "real-1"] and os.path.islink("link")
    assert "which is now in real-1" in capsys.readouterr().out
    init, train_data, val_data = map(os.path.abspath, ("tiny.bin", "train.bin", "val.bin"))
    os.chdir("large disk/real")
    with pytest.raises(UserError, match=r"^\.: holds an earlier run and cannot be renamed \(it is the working"):
        arguments = ["--init", init, "--train-data", train_data, "--val-data", val_data, "-b", "2", "-t", "8"]
        train_gpt2.main([*arguments, "-x", "1", "--out-dir", "."])


def test_a_step_is_saved_before_it_is_validated_and_sampled_from(folder, capsys):
    train("-x", "3", "--checkpoint-every", "2", "--val-every", "2", "--sample-every", "2")
    events = re.findall(r"^(val loss|step \d|saved out/model_\d+|--- sample)", capsys.readouterr().out, re.MULTILINE)
    after = ["val loss", "--- sample"]
    first, last = ["saved out/model_00000002", *after], ["saved out/model_00000003", *after]
    assert events == ["val loss", "step 1", "step 2", *first, "step 3", *last]


def test_a_skipped_update_and_the_last_step_are_printed_whatever_log_every_says(folder, monkeypatch, capsys):
    overwrite, calls = GPT2.overwrite_gradients, []

    def break_one(self, *batch):
        loss = overwrite(self, *batch)
        if self.config == CONFIG:  # not the model that loads the kernels
            calls.append(None)
            if len(calls) == 3:
                self.grads["fcw"].fill(np.inf)
        return loss

    monkeypatch.setattr(GPT2, "overwrite_gradients", break_one)
    train("-x", "7", "--log-every", "5", "--skip-nonfinite", "1", "--val-every", "6", "--sample-every", "0")
    printed = capsys.readouterr().out
    assert re.findall(r"^step (\d)/7 ", printed, re.MULTILINE) == ["3", "5", "7"]
    validated = re.findall(r"^val loss (\d+\.\d{6}) after step (\d)$", printed, re.MULTILINE)
    written = records()
    assert validated == [(f"{written[step]['val_loss']:.6f}", str(step)) for step in (0, 6, 7)]
    assert [record["step"] for record in written] == list(range(8))


def test_a_long_sample_fits_into_its_record(folder, monkeypatch):
    text = 10**6 * "\N{GRINNING FACE}"
    monkeypatch.setattr("gpt2.training.samples.Sampler.show", lambda *arguments: text)
    train("-x", "1", "--norms-every", "1")
    assert records()[-1]["sample"] == text[:SAMPLE_LIMIT] and SAMPLE_LIMIT > 10**4


def test_an_output_folder_with_the_token_files_in_it_is_not_renamed(folder):
    pathlib.Path("data").mkdir()
    shutil.move("train.bin", "data")
    arguments = "--init tiny.bin --train-data data/train.bin --val-data val.bin -b 2 -t 8 -x 1 --out-dir data".split()
    train_gpt2.main([*arguments, "--threads", "1"])
    with pytest.raises(UserError, match=r"cannot be renamed \(data/train\.bin is in it\)"):
        train_gpt2.main([*arguments, "--threads", "1"])
    assert sorted(os.listdir()) == ["data", "tiny.bin", "val.bin"]


def test_resuming_an_empty_name_is_refused(folder, capsys):
    train("-x", "1")
    with pytest.raises(SystemExit):
        train_gpt2.main(["--resume", "", "-x", "2"])
    assert "error: --resume '': expected a folder, or nothing for --out-dir\n" in capsys.readouterr().err
    assert not os.path.exists("out/model_00000002.bin")
    train_gpt2.main(["--resume", "-x", "2", "--threads", "1"])
    assert os.path.exists("out/model_00000002.bin")
