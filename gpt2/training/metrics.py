"""Training metrics, a line of JSON for each step in metrics.jsonl, and the loss plot."""

import array
import contextlib
import json
import math
import os
import pathlib

import numpy as np

from gpt2.errors import UserError, from_os_error
from gpt2.formats import files
from gpt2.formats.run import LOSS_CURVE, METRICS
from gpt2.training.run_folder import require_lock
from gpt2.training.state import finite

LINE_LIMIT = 2**20  # bytes of a record, with the line's end


class Metrics:
    """Appends records to `folder`/metrics.jsonl as they come, and plots them.

    `Metrics.start` begins a new file, `Metrics.resume` continues one, Metrics(folder) leaves the file as it is. Only
    the file holds the records. A killed process leaves at most its last line unfinished, which readers ignore.
    Attributes: `path` of the file; `picture`, of the plot; `last_step` written or resumed after, None if there is none.
    """

    def __init__(self, folder):
        self.path = pathlib.Path(folder, METRICS)
        self.picture = pathlib.Path(folder, LOSS_CURVE)
        self.last_step = None

    @classmethod
    def start(cls, folder, lines=()):
        """Returns Metrics with a new file, which replaces one that is there.

        lines: what it holds before the first record, an iterable of bytes in the order of the steps.
        """
        metrics, last = cls(folder), None
        require_lock(folder)
        with files.atomic_write(metrics.path) as file:
            for last in lines:
                file.write(last)
        metrics.last_step = _parse(last)["step"] if last else None
        return metrics

    @classmethod
    def resume(cls, source_folder, folder, step):
        """Returns Metrics in `folder` that continue after `step`, with the records up to it in `source_folder`.

        Of each step the last record written is kept. Prints how many damaged lines were skipped; an unfinished last
        one is not counted. The folders may be the same, and there need not be a file.
        """
        source = source_folder / METRICS
        return cls.start(folder, _lines_until(source, step) if source.exists() else ())

    def write(self, record):
        """Appends one record, a dict of numbers with "step"; what is not finite becomes null.

        Raises UserError if that is not possible, or if the record would take more than LINE_LIMIT bytes.
        """
        line = json.dumps(finite(record), allow_nan=False).encode() + b"\n"
        if len(line) > LINE_LIMIT:
            raise UserError(
                f"{self.path}: the record of step {record['step']} takes {len(line):,} bytes; a line has "
                f"at most {LINE_LIMIT:,}"
            )
        require_lock(self.path.parent)
        try:
            with open(self.path, "ab", buffering=0, opener=_open_to_append) as file:
                while line:  # all of it at once, unless the disk is full
                    line = line[file.write(line) :]
        except OSError as error:
            raise from_os_error(error, self.path) from error
        self.last_step = record["step"]

    def sync(self):
        """fsyncs metrics.jsonl, if it is there."""
        try:
            with contextlib.suppress(FileNotFoundError):
                files.sync(self.path)
        except OSError as error:
            raise from_os_error(error, self.path) from error

    def losses(self, key):
        """Returns what `read_losses` does, of this file."""
        return read_losses(self.path, key)

    def draw(self):
        """Plots the training and validation losses over the steps."""
        import matplotlib.figure  # takes a second to import, and only the end of a run needs it

        require_lock(self.path.parent)
        figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="cross-entropy (nats per token)")
        for key, label, style in (("train_loss", "training batch", "-"), ("val_loss", "validation", "o-")):
            steps, losses = self.losses(key)
            if steps.size:
                axes.plot(steps, losses, style, label=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        with files.atomic_write(self.picture) as file:
            figure.savefig(file, format="png", dpi=120)


def read_losses(path, key):
    """Returns (steps, losses) of a file's records that have the key, float64 (n,) each; NaN for what is no number."""
    steps, losses = array.array("d"), array.array("d")
    with files.open_to_read(path) as file:
        for _, line in _lines(file):
            record = _parse(line)
            if record and key in record:
                steps.append(record["step"])
                losses.append(_number(record[key]))
    return np.array(steps), np.array(losses)


def _lines_until(path, step):
    """Yields the lines that hold the last record of each step up to `step`, in the order of the steps."""
    steps, offsets = array.array("q"), array.array("q")
    damaged = 0
    with files.open_to_read(path) as file:
        for offset, line in _lines(file):
            record = _parse(line)
            if record is None:
                damaged += line.endswith(b"\n")
            elif record["step"] <= step:
                steps.append(record["step"])
                offsets.append(offset)
        if damaged:
            print(f"{path}: {damaged:,} damaged line{'s' if damaged > 1 else ''} skipped")
        order = np.argsort(steps, kind="stable")
        last_of_step = np.diff(np.array(steps)[order], append=-1) != 0
        for i in order[last_of_step]:
            file.seek(offsets[i])
            yield file.readline().strip() + b"\n"


def _lines(file):
    """Yields (offset, line) for each line of an open file; of one above LINE_LIMIT, which is no record, the end."""
    offset = 0
    while line := file.readline(LINE_LIMIT):
        size = len(line)
        while len(line) == LINE_LIMIT and not line.endswith(b"\n"):
            line = file.readline(LINE_LIMIT)
            size += len(line)
        yield offset, line if size <= LINE_LIMIT else line[-1:]
        offset += size


def _open_to_append(path, flags):
    """An opener that neither follows a link nor waits for the reader of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _parse(line):
    """The record that a line, in bytes, holds: a dict with a "step". None if it is damaged."""
    try:
        record = json.loads(line.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if type(step) is int and 0 <= step < 2**63 else None


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def _number(value):
    """The value as it can be plotted: NaN for what is no number or too large for an axis."""
    return value if isinstance(value, int | float) and abs(value) < 1e100 else math.nan
