"""What --report-to passes on, and that nothing that happens there costs a run anything."""

import importlib.util
import os
import pathlib
import struct
import sys

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from gpt2.machine import available_threads, set_threads
from gpt2.training import reporters
from gpt2.training.loop import resume, train
from gpt2.training.options import TrainOptions
from tests.support.runs import model_bytes, records

CONFIG = GPT2Config(maxT=16, V=50, L=2, NH=2, C=12)
OPTIONS = {
    "init": "tiny.bin",
    "train_data": "train.bin",
    "val_data": "val.bin",
    "batch_size": 2,
    "seq_len": 8,
    "max_steps": 4,
    "val_every": 2,
    "sample_every": 2,
    "sample_tokens": 5,
    "norms_every": 2,
    "threads": 1,
}
needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="needs tensorboardX: pip install '.[tensorboard]'"
)
# Stands in for the package of that name: keeps what it is asked for.
WANDB = """
calls = []


class Html:
    def __init__(self, text):
        self.text = text


class Settings(dict):
    pass


class Run:
    def __init__(self, id):
        self.id = id or "made-up"

    def log(self, values, step):
        calls.append(("log", step, values))

    def finish(self, exit_code):
        calls.append(("finish", exit_code))


def init(**arguments):
    calls.append(("init", arguments))
    return Run(arguments["id"])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_DATA_DIR", "data")
    GPT2(CONFIG, seed=1).save("tiny.bin")
    write_tokens("train.bin", np.arange(2000) % 50)
    write_tokens("val.bin", np.arange(300) % 50)
    yield tmp_path
    set_threads(available_threads())


@pytest.fixture
def wandb(folder, monkeypatch):
    """The calls of a wandb that stands in for the real one."""
    pathlib.Path("fake").mkdir()
    pathlib.Path("fake/wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend("fake")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield importlib.import_module("wandb").calls
    del sys.modules["wandb"]


def run(*names, **options):
    return train(TrainOptions(**OPTIONS | {"report_to": names} | options))


def events(path):
    """The events in an event file."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data, found = pathlib.Path(path).read_bytes(), []
    while data:
        size = struct.unpack("<Q", data[:8])[0]
        assert data[8:12] == struct.pack("<I", masked_crc32c(data[:8]))
        assert data[12 + size : 16 + size] == struct.pack("<I", masked_crc32c(data[12 : 12 + size]))
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert found[0].file_version == "brain.Event:2"
    return found[1:]


def event_files(out="out"):
    return sorted(pathlib.Path(out, "tensorboard").iterdir())


def values(found):
    """(step, tag) -> number or text."""
    return {
        (event.step, value.tag): value.tensor.string_val[0].decode() if value.HasField("tensor") else value.simple_value
        for event in found
        for value in event.summary.value
    }


@needs_tensorboard
def test_tensorboard_has_what_the_metrics_have(folder):
    run("tensorboard")
    (path,) = event_files()
    assert path.name.startswith("events.out.tfevents.")  # or TensorBoard overlooks it
    written, expected = values(events(path)), {}
    for record in records():
        step = record.pop("step")
        for name, norms in record.pop("norms", {}).items():
            for layer, norm in enumerate(norms):
                expected[step, f"norms/{name}/{layer}" if len(norms) > 1 else f"norms/{name}"] = pytest.approx(norm)
        if "sample" in record:
            sample = record.pop("sample")
            expected[step, "sample/text_summary"] = "\n".join(f"    {line}" for line in sample.split("\n"))
        expected |= {(step, key): pytest.approx(value) for key, value in record.items()}
    assert written == expected
    assert {(0, "val_loss"), (3, "train_loss"), (4, "norms/qkvw/1"), (2, "sample/text_summary")} <= written.keys()


@needs_tensorboard
def test_a_resumed_run_goes_on_in_the_same_folder_after_its_checkpoint(folder):
    run("tensorboard")
    resume("out", {"max_steps": 6})
    first, second = map(events, event_files())
    assert first[0].session_log.status == second[0].session_log.status == 1  # START: hides what was there
    assert (first[0].step, second[0].step) == (0, 5)
    assert {step for step, _ in values(first)} == {0, 1, 2, 3, 4} and {step for step, _ in values(second)} == {5, 6}
    resume("out", {"max_steps": 7, "report_to": "none"})
    assert len(event_files()) == 2


@needs_tensorboard
def test_a_new_run_leaves_the_events_of_an_earlier_one_with_its_checkpoints(folder):
    run("tensorboard")
    run("tensorboard", max_steps=1)
    assert len(event_files("out-1")) == len(event_files("out")) == 1


def test_wandb_gets_the_options_the_numbers_and_the_samples_as_text(wandb):
    run("wandb")
    (_, begin), *logs, end = wandb
    assert begin["project"] == "gpt2" and begin["name"] == "out" and begin["id"] is None
    assert begin["dir"] == pathlib.Path("out")
    assert begin["config"]["batch_size"] == 2 and begin["config"]["grad_clip"] == 1.0 and begin["config"]["C"] == 12
    assert begin["settings"]["init_timeout"] <= 60 and begin["settings"]["finish_timeout"] <= 120
    assert end == ("finish", 0)
    written = records()
    assert [step for _, step, _ in logs] == [0, 1, 2, 3, 4]
    for (_, step, logged), record in zip(logs, written, strict=True):
        assert all(logged[key] == record[key] for key in ("train_loss", "val_loss", "lr") if key in record)
        assert ("sample" in logged) == (step in (2, 4))
    assert logs[2][2]["norms/fcw/1"] == written[2]["norms"]["fcw"][1]
    assert logs[2][2]["norms/wte"] == written[2]["norms"]["wte"][0]


def test_a_sample_is_shown_by_wandb_as_it_is_whatever_it_looks_like(wandb, monkeypatch):
    monkeypatch.setattr("gpt2.training.samples.Sampler.show", lambda *arguments: "<b>\n a & b")
    run("wandb")
    shown = [call[2]["sample"].text for call in wandb if call[0] == "log" and "sample" in call[2]]
    assert shown == 2 * ["<pre>&lt;b&gt;\n a &amp; b</pre>"]


def test_wandb_goes_on_with_the_run_that_is_resumed_and_not_with_its_copy(wandb):
    run("wandb")
    resume("out", {"max_steps": 5})
    resume("out", {"max_steps": 5, "out_dir": "copy"})
    run("wandb")
    begins = [call[1] for call in wandb if call[0] == "init"]
    assert [(begin["id"], begin["resume"]) for begin in begins] == [
        *[(None, None), ("made-up", "allow"), (None, None), (None, None)]
    ]


def test_wandb_learns_of_a_run_that_fails(wandb):
    def fail(state, record):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        train(TrainOptions(**OPTIONS, report_to="wandb"), on_step=fail)
    assert wandb[-1] == ("finish", 1)


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named_before_anything_is_made(folder, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    expected = rf"^--report-to {name} needs the package {package}: pip install '\.\[{name}\]'$"
    with pytest.raises(UserError, match=expected):
        run(name)
    assert not os.path.exists("out")
    run("none", max_steps=1)
    with pytest.raises(UserError, match=expected):
        resume("out", {"report_to": name, "max_steps": 2, "out_dir": "new"})
    assert not os.path.exists("new")


class Failing:
    """Fails at the method that FAILS names, and counts the records that arrived."""

    PACKAGE, FAILS = "sys", None

    def __init__(self, run, step):
        self.written = 0
        self._fail("__init__")

    def write(self, record):
        self.written += 1
        self._fail("write" if self.written > 1 else None)

    def close(self, failed):
        self._fail("close")

    def _fail(self, method):
        if method == self.FAILS:
            raise RuntimeError("no network\nand more")


@pytest.mark.parametrize("method", ["__init__", "write", "close"])
def test_a_reporter_that_fails_costs_the_run_a_line_on_stderr(folder, wandb, monkeypatch, capsys, method):
    run("none", out_dir="alone")
    monkeypatch.setitem(reporters.REPORTERS, "failing", Failing)
    monkeypatch.setattr(Failing, "FAILS", method)
    capsys.readouterr()
    assert run("failing", "wandb").exit_status is None
    assert capsys.readouterr().err == "--report-to failing failed, nothing more is reported to it: no network\n"
    assert model_bytes("out", 4) == model_bytes("alone", 4)
    assert [call[0] for call in wandb] == ["init", *5 * ["log"], "finish"]  # the other one goes on


@needs_tensorboard
def test_a_full_disk_under_the_events_ends_only_them(folder, monkeypatch, capsys):
    class Full(reporters.TensorBoard):
        def __init__(self, run, step):
            super().__init__(run, step)
            self._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115

    monkeypatch.setitem(reporters.REPORTERS, "tensorboard", Full)
    run("tensorboard")
    assert capsys.readouterr().err == (
        "--report-to tensorboard failed, nothing more is reported to it: [Errno 28] No space left on device\n"
    )
    assert len(records()) == 5
