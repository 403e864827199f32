"""Training metrics, a line of JSON for each step in metrics.jsonl, and the loss plot."""

import array
import contextlib
import itertools
import json
import math
import os
import pathlib

import numpy as np

from gpt2.errors import UserError, from_os_error
from gpt2.formats import files
from gpt2.formats.pretrained import RELEASED
from gpt2.formats.run import LOSS_CURVE, METRICS, METRICS_BEFORE, STEP_LIMIT, manifest_step, read_manifest
from gpt2.training.run_folder import require_lock
from gpt2.training.state import finite

LINE_LIMIT = 2**20  # bytes of a record, with the line's end


class Metrics:
    """Appends records to `folder`/metrics.jsonl as they come, and plots them.

    `Metrics.start` begins a new file, `Metrics.resume` continues one, Metrics(folder) leaves the file as it is. Only
    the file holds the records. A killed process leaves at most its last line unfinished, which readers ignore.
    Attributes: `path` of the file; `before`, of the records of the run whose model this one started from, if there are
    any; `picture`, of the plot; `last_step` written or resumed after, None if there is none.
    """

    def __init__(self, folder):
        self.path = pathlib.Path(folder, METRICS)
        self.before = pathlib.Path(folder, METRICS_BEFORE)
        self.picture = pathlib.Path(folder, LOSS_CURVE)
        self.last_step = None

    @classmethod
    def start(cls, folder, lines=(), before=()):
        """Returns Metrics with a new file, which replaces one that is there; and so does that of the run before.

        lines: what it holds before the first record, an iterable of bytes in the order of the steps. before: the same
        of the other file, which is removed if there is none.
        """
        metrics, before = cls(folder), iter(before)
        require_lock(folder)
        if (first := next(before, None)) is None:
            metrics.before.unlink(missing_ok=True)
        else:
            _write_lines(metrics.before, itertools.chain([first], before))
        last = _write_lines(metrics.path, lines)
        metrics.last_step = _parse(last)["step"] if last else None
        return metrics

    @classmethod
    def resume(cls, source_folder, folder, step):
        """Returns Metrics in `folder` that continue after `step`, with the records up to it in `source_folder`.

        Of each step the last record written is kept. Prints how many damaged lines were skipped; an unfinished last
        one is not counted. The folders may be the same, and there need not be a file.
        """
        source, before = source_folder / METRICS, source_folder / METRICS_BEFORE
        lines = _lines_in(source, step) if source.exists() else ()
        return cls.start(folder, lines, _lines_in(before, STEP_LIMIT) if before.is_file() else ())

    def write(self, record):
        """Appends one record, a dict for JSON with "step"; what is not finite becomes null.

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
        """Plots the training and validation losses over the steps; those of the run before at negative ones."""
        import matplotlib.figure  # takes a second to import, and only the end of a run needs it

        require_lock(self.path.parent)
        figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="cross-entropy (nats per token)")
        earlier = read_losses(self.before, "step")[0] if self.before.is_file() else np.array([])
        for key, label, style in (("train_loss", "training batch", "-"), ("val_loss", "validation", "o-")):
            steps, losses = self.losses(key)
            if earlier.size:
                steps_before, losses_before = read_losses(self.before, key)
                steps = np.append(steps_before - earlier[-1], steps)
                losses = np.append(losses_before, losses)
            if steps.size:
                axes.plot(steps, losses, style, label=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        if earlier.size:
            axes.set_xlabel("step, 0: the start of this run")
            axes.axvline(0, color="black", linewidth=0.8)
        with files.atomic_write(self.picture) as file:
            figure.savefig(file, format="png", dpi=120)


def read_losses(path, key):
    """Returns (steps, losses) of a file's records that have the key, float64 (n,) each; NaN for what is no number."""
    steps, losses = array.array("d"), array.array("d")
    for record in read_records(path):
        if key in record:
            steps.append(record["step"])
            losses.append(number(record[key]))
    return np.array(steps), np.array(losses)


def read_records(path):
    """Yields the records of a file, a dict each, in its order; passes over damaged lines."""
    with files.open_to_read(path) as file:
        for _, line in _lines(file):
            if record := _parse(line):
                yield record


@contextlib.contextmanager
def records_before(init):
    """Yields the lines that a new run keeps of the run whose folder an --init names: up to the model it starts from.

    They are bytes, in the order of the steps; none for another --init, or if there is nothing to read. They come from
    an open file: the folder may be renamed meanwhile.
    """
    path, lines = pathlib.Path(init, METRICS), ()
    with contextlib.ExitStack() as stack:
        if init not in ("scratch", *RELEASED) and path.is_file():
            with contextlib.suppress(OSError, UserError):
                step = manifest_step(read_manifest(init), init)
                lines = _lines_until(stack.enter_context(open(path, "rb")), step)
        yield lines


def _write_lines(path, lines):
    """Replaces a file by one of these lines, bytes; returns the last one, None if there is none."""
    last = None
    with files.atomic_write(path) as file:
        for last in lines:
            file.write(last)
    return last


def _lines_in(path, step):
    with files.open_to_read(path) as file:
        yield from _lines_until(file, step)


def _lines_until(file, step):
    """Yields the lines that hold the last record of each step up to `step`, in the order of the steps."""
    steps, offsets = array.array("q"), array.array("q")
    damaged = 0
    for offset, line in _lines(file):
        record = _parse(line)
        if record is None:
            damaged += line.endswith(b"\n")
        elif record["step"] <= step:
            steps.append(record["step"])
            offsets.append(offset)
    if damaged:
        print(f"{file.name}: {damaged:,} damaged line{'s' if damaged > 1 else ''} skipped")
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


def number(value):
    """Returns a record's value as it can be plotted: NaN for what is no number or too large for an axis."""
    return value if isinstance(value, int | float) and abs(value) < 1e100 else math.nan
