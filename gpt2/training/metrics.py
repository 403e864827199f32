"""Training metrics, a line of JSON for each step in metrics.jsonl, and the loss plot."""

import array
import json
import math

import numpy as np

from gpt2.errors import from_os_error
from gpt2.formats import files
from gpt2.formats.run import LOSS_CURVE, METRICS
from gpt2.training.state import finite


class Metrics:
    """Appends records to `folder`/metrics.jsonl as they come, and plots them.

    Metrics(folder) starts a new file, `Metrics.resume` continues one. Only the file holds the records. A killed process
    leaves at most its last line unfinished, which readers ignore.
    Attributes: `path` of the file; `picture`, of the plot; `last_step` that has a record, None if none has.
    """

    def __init__(self, folder, lines=()):
        """lines: what the file holds before the first record, an iterable of bytes in the order of the steps."""
        self.path = folder / METRICS
        self.picture = folder / LOSS_CURVE
        last = None
        with files.atomic_write(self.path) as file:
            for last in lines:
                file.write(last)
        self.last_step = _parse(last)["step"] if last else None

    @classmethod
    def resume(cls, source_folder, folder, step):
        """Returns Metrics in `folder` that continue after `step`, with the records up to it in `source_folder`.

        Of each step the last record written is kept. Prints how many damaged lines were skipped; an unfinished last
        one is not counted. The folders may be the same, and there need not be a file.
        """
        source = source_folder / METRICS
        return cls(folder, _lines_until(source, step) if source.exists() else ())

    def write(self, record):
        """Appends one record, a dict of numbers with "step"; what is not finite becomes null."""
        line = json.dumps(finite(record), allow_nan=False).encode() + b"\n"
        try:
            with open(self.path, "ab", buffering=0) as file:
                while line:  # all of it at once, unless the disk is full
                    line = line[file.write(line) :]
        except OSError as error:
            raise from_os_error(error, self.path) from error
        self.last_step = record["step"]

    def sync(self):
        """fsyncs metrics.jsonl."""
        try:
            files.sync(self.path)
        except OSError as error:
            raise from_os_error(error, self.path) from error

    def losses(self, key):
        """Returns what `read_losses` does, of this file."""
        return read_losses(self.path, key)

    def draw(self):
        """Plots the training and validation losses over the steps."""
        import matplotlib.figure  # takes a second to import, and only the end of a run needs it

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
        for line in file:
            record = _parse(line)
            if record and key in record:
                steps.append(record["step"])
                losses.append(_number(record[key]))
    return np.array(steps), np.array(losses)


def _lines_until(path, step):
    """Yields the lines that hold the last record of each step up to `step`, in the order of the steps."""
    steps, offsets = array.array("q"), array.array("q")
    offset = damaged = 0
    with files.open_to_read(path) as file:
        for line in file:
            record = _parse(line)
            if record is None:
                damaged += line.endswith(b"\n")
            elif record["step"] <= step:
                steps.append(record["step"])
                offsets.append(offset)
            offset += len(line)
        if damaged:
            print(f"{path}: {damaged:,} damaged line{'s' if damaged > 1 else ''} skipped")
        order = np.argsort(steps, kind="stable")
        last_of_step = np.diff(np.array(steps)[order], append=-1) != 0
        for i in order[last_of_step]:
            file.seek(offsets[i])
            yield file.readline().strip() + b"\n"


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
