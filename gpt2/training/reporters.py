"""Reporters: pass a run's records on to TensorBoard and Weights & Biases. None of them can end a run."""

import dataclasses
import html
import importlib.util
import numbers
import os
import socket
import struct
import sys
import textwrap
import time

from gpt2.errors import UserError
from gpt2.formats.run import TENSORBOARD, WANDB

INIT_SECONDS, FINISH_SECONDS = 30, 60  # that wandb may take to start, and at the end for what is left to upload


class TensorBoard:
    """Writes records to an event file of its own in `folder`/tensorboard, where an earlier part of the run has others.

    Each record is one write at the file's end: there is no thread or buffer that a full disk or a kill could catch.
    """

    PACKAGE = "tensorboardX"

    def __init__(self, run, step):
        """step: the first one to be written; TensorBoard hides what earlier files have from there on."""
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import masked_crc32c

        self._event, self._summary, self._text, self._checksum = Event, Summary, summary.text, masked_crc32c
        folder = run.folder / TENSORBOARD
        folder.mkdir(exist_ok=True)
        path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._append(file_version="brain.Event:2")
        self._append(step=step, session_log=SessionLog(status=SessionLog.START))

    def write(self, record):
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record)]
        self._append(step=record["step"], summary=self._summary(value=values))
        if "sample" in record:
            verbatim = textwrap.indent(record["sample"], "    ", lambda line: True)  # a block of code in Markdown
            self._append(step=record["step"], summary=self._text("sample", verbatim))

    def close(self, failed):
        self._file.close()

    def _append(self, **event):
        data = self._event(wall_time=time.time(), **event).SerializeToString()
        size = struct.pack("<Q", len(data))
        parts = (part + struct.pack("<I", self._checksum(part)) for part in (size, data))
        line = b"".join(parts)
        if self._file.write(line) < len(line):
            raise OSError("the disk is full")


class Wandb:
    """Logs records to a run of Weights & Biases, whose id stays in `folder`/wandb/run_id."""

    PACKAGE = "wandb"

    def __init__(self, run, step):
        import wandb

        path = run.folder / WANDB / "run_id"
        known = path.read_text().strip() if run.in_place and path.exists() else None
        options = dataclasses.asdict(run.options) | dataclasses.asdict(run.state.resolved)
        self._html = wandb.Html
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "gpt2"),
            name=os.environ.get("WANDB_NAME", run.folder.resolve().name),
            dir=run.folder,
            id=known,
            resume="allow" if known else None,
            config=options | dataclasses.asdict(run.state.model.config),
            settings=wandb.Settings(
                console="off",
                init_timeout=INIT_SECONDS,
                login_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{self._run.id}\n")

    def write(self, record):
        values = dict(scalars(record))
        if "sample" in record:
            values["sample"] = self._html(f"<pre>{html.escape(record['sample'])}</pre>")
        self._run.log(values, step=record["step"])

    def close(self, failed):
        self._run.finish(exit_code=int(failed))


# Name -> class. An instance is made with (run.Run, the first step that it gets) and has write(record) and
# close(failed), which may fail in any way.
REPORTERS = {"tensorboard": TensorBoard, "wandb": Wandb}


class Reporters:
    """The reporters of a run, a context that closes them. One that fails is dropped, with a line on stderr."""

    def __init__(self):
        self._reporters = {}

    def open(self, names, run, step):
        """Opens reporters by name, keys of REPORTERS or "none". run: a run.Run. step: the first one to come."""
        for name in dict.fromkeys(names):
            if name in REPORTERS:
                self._try(name, lambda name=name: self._reporters.update({name: REPORTERS[name](run, step)}))

    def write(self, record):
        """Reports a step's record, as in metrics.jsonl."""
        for name, reporter in list(self._reporters.items()):
            self._try(name, lambda reporter=reporter: reporter.write(record))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, where):
        for name, reporter in list(self._reporters.items()):
            self._try(name, lambda reporter=reporter: reporter.close(failed=kind is not None))

    def _try(self, name, action):
        try:
            action()
        except Exception as error:
            self._reporters.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"--report-to {name} failed, nothing more is reported to it: {reason}", file=sys.stderr, flush=True)


def require_packages(names):
    """Raises UserError if the package that a reporter needs is not installed."""
    for name in names:
        if name in REPORTERS and importlib.util.find_spec(package := REPORTERS[name].PACKAGE) is None:
            raise UserError(f"--report-to {name} needs the package {package}: pip install '.[{name}]'")


def scalars(record):
    """Yields (name, number) for each number in a record but the step; that of norms is norms/TENSOR or .../LAYER."""
    for key, value in record.items():
        if key == "norms":
            for name, norms in value.items():
                layers = [f"/{layer}" for layer in range(len(norms))] if len(norms) > 1 else [""]
                yield from ((f"norms/{name}{layer}", norm) for layer, norm in zip(layers, norms, strict=True))
        elif key != "step" and isinstance(value, numbers.Real):
            yield key, float(value)
