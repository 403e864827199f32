"""The page of python -m gpt2.report, from a run's metrics and its newest checkpoint."""

import json
import math
import os
import pathlib

import pytest

from gpt2 import GPT2
from gpt2.errors import UserError
from gpt2.formats.run import METRICS, checkpoint_paths
from gpt2.optimizer import AdamW
from gpt2.pages.run_page import MOST_POINTS, report
from gpt2.report import main
from gpt2.training import checkpoint
from tests.support.pages import CONFIG, page_data


def record(step, **more):
    """A step of 100 tokens that took 2 s."""
    times = {"gradients_ms": 1900.0, "update_ms": 100.0, "tokens_per_s": 50.0}
    return {"step": step, "train_loss": 10.0 / step, "grad_norm": 1.0, "lr": 0.001} | times | more


def write(records, tail=""):
    pathlib.Path("out", METRICS).write_text("".join(json.dumps(each) + "\n" for each in records) + tail)


@pytest.fixture
def out(tmp_path, monkeypatch):
    """An empty folder "out" in the current one."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("out")


def test_tokens_and_hours_are_derived_from_the_times(out):
    write([{"step": 0, "val_loss": 5.5}, record(1), record(2, val_loss=4.5), record(3)])
    page, last = report("out")
    data = page_data(page)
    assert last == 3
    assert data["curves"]["step"] == [1, 2, 3]
    assert data["curves"]["tokens"] == [100, 200, 300]
    assert data["curves"]["hours"] == pytest.approx([2 / 3600, 4 / 3600, 6 / 3600], rel=1e-5)
    assert data["curves"]["train_loss"] == [10, 5, 3.33333]
    assert data["validation"] == {
        "step": [0, 2], "tokens": [0, 200], "hours": [0, 0.00111111], "val_loss": [5.5, 4.5]
    }  # fmt: skip
    facts = dict(data["facts"])
    assert facts["steps"] == "3"
    assert facts["validation loss"] == "4.5000 at last, lowest 4.5000 after step 2"
    assert facts["tokens"] == "300 in 6.0 seconds of training steps"


def test_the_last_record_of_a_step_counts_and_damaged_ones_do_not(out):
    damaged = 'damaged\n[]\n{"step": -1, "gradients_ms": 1, "update_ms": 1}\n{"step": 3'
    write([record(1, train_loss=9.0), record(2, train_loss=None), record(1)], tail=damaged)
    curves = page_data(report("out")[0])["curves"]
    assert curves["step"] == [1, 2]
    assert curves["train_loss"] == [10, None]


def test_a_long_run_is_averaged(out):
    write([record(step, grad_norm=step % 3) for step in range(1, 3 * MOST_POINTS + 1)])
    curves = page_data(report("out")[0])["curves"]
    assert curves["every"] == 3
    assert curves["step"] == list(range(3, 3 * MOST_POINTS + 1, 3))
    assert curves["tokens"][-1] == 300 * MOST_POINTS
    assert set(curves["grad_norm"]) == {1}


def test_samples_and_norms(out):
    norms = {"wte": [0.5], "qkvw": [1.0, math.inf]}
    text = json.dumps(record(2, sample="</script>\nROMEO", norms=norms)).replace("Infinity", "null")
    write([record(1, sample=["no text"])], tail=text + "\n")
    page = report("out")[0]
    data = page_data(page)
    assert data["samples"] == [[2, "</script>\nROMEO"]]
    assert page.count(b"</script") == 2
    assert data["norms"] == {"steps": [2], "tensors": {"wte": [[0.5]], "qkvw": [[1, None]]}}


def test_options_and_facts_come_from_the_newest_checkpoint(out):
    write([record(1)])
    model = GPT2(CONFIG)
    options = {"batch_size": 4, "learning_rate": None, "prompt": "x"}
    progress = {
        "step": 1,
        "options": options,
        "resolved": {"learning_rate": 0.5, "max_steps": 9, "train_data": ["a", "b"]},
    }
    progress |= {"versions": {"numpy": "9.9"}, "skipped": {"spike": 2, "nonfinite": 0}, "train_data": [{"file": "a"}]}
    checkpoint.save("out", model, AdamW(model), progress, keep=1)
    before = sorted(os.listdir("out"))
    data = page_data(report("out")[0])
    assert dict(data["options"]) == {
        "--batch-size": "4", "--learning-rate": "0.5", "--max-steps": "9", "--prompt": "x", "--train-data": "a, b"
    }  # fmt: skip
    facts = dict(data["facts"])
    assert facts["steps"] == "1 of 9"
    assert facts["versions"] == "numpy 9.9"
    assert facts["updates skipped"] == "2 spike"
    assert facts["training data"] == "a"
    assert "L 3, NH 2, C 16" in facts["model"]
    assert sorted(os.listdir("out")) == before
    _, state = checkpoint_paths("out", 1)
    state.write_bytes(state.read_bytes()[:100])
    assert page_data(report("out")[0])["options"] == []


@pytest.mark.parametrize("progress", [{"options": [], "resolved": 3, "train_data": [None], "versions": "1"}, {}])
def test_a_checkpoint_that_says_little(out, progress):
    write([record(1)])
    model = GPT2(CONFIG)
    checkpoint.save("out", model, AdamW(model), {"step": 1} | progress, keep=1)
    assert page_data(report("out")[0])["options"] == []


def test_a_folder_without_metrics(out):
    with pytest.raises(UserError, match=r"out/metrics.jsonl: no such file; expected the folder of a run"):
        report("out")
    write([], tail="{")
    with pytest.raises(UserError, match=r"out/metrics.jsonl: no records yet"):
        report("out")


def test_the_command_writes_into_the_folder_and_replaces_only_a_report(out, capsys):
    write([record(1)])
    main(["out"])
    write([record(1), record(2)])
    main(["out"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("wrote out/report.html: the run up to step 2, ")
    assert page_data(pathlib.Path("out/report.html").read_bytes())["curves"]["step"] == [1, 2]
    assert sorted(os.listdir("out")) == [METRICS, "report.html"]
    pathlib.Path("notes.html").write_text("mine")
    with pytest.raises(UserError, match=r"notes.html: not a page of gpt2 report, so it is not replaced"):
        main(["out", "-o", "notes.html"])
    assert pathlib.Path("notes.html").read_text() == "mine"
