"""The state of a run between two steps: with the options, all that later steps depend on, and so what is saved."""

import dataclasses
import math

import numpy as np

from gpt2.distributed import SERIAL
from gpt2.errors import UserError
from gpt2.optimizer import shards
from gpt2.training.health import OutlierDetector


@dataclasses.dataclass
class Validations:
    """What --keep-best and --patience need to know of the validations so far.

    last: the step of the last one. best: the step of the lowest finite loss, None before there is one. loss: that loss.
    since: how many validations came after it.
    """

    last: int | None = None
    best: int | None = None
    loss: float = math.inf
    since: int = 0

    def add(self, step, loss):
        """Counts the validation after `step`, unless it is the last one repeated; returns whether it is the best."""
        if step == self.last:
            return False
        self.last, is_best = step, loss < self.loss
        self.since = 0 if is_best else self.since + 1
        if is_best:
            self.best, self.loss = step, loss
        return is_best

    def to_dict(self):
        return finite(dataclasses.asdict(self))

    @classmethod
    def from_saved(cls, saved):
        """Returns what `to_dict` was taken of. Raises TypeError, ValueError or OverflowError if that is malformed."""
        values = dict(saved)
        loss = values.pop("loss")
        counts = {name: None if value is None else int(value) for name, value in values.items()}
        return cls(**counts, loss=math.inf if loss is None else float(loss))


class TrainState:
    """A run between two steps.

    Attributes: `model`, `optimizer`; `loader`, whose position is that of the next batch; `resolved`, what the options
    left open (options.Resolved); `world`, the distributed.World that takes the steps, and `shards`, what each of its
    ranks updates; `step`, steps taken; `record` of the last one, a dict, or None if it is unknown; `updating`, whether
    a further step has begun to change anything else; `losses`, the last finite "train_loss" and "val_loss"; `skipped`,
    updates skipped by reason; `outliers`, an OutlierDetector each for losses and gradient norms; `validations`, a
    Validations.
    """

    def __init__(self, model, optimizer, loader, resolved, world=SERIAL):
        self.model, self.optimizer, self.loader, self.resolved = model, optimizer, loader, resolved
        self.world, self.shards = world, shards(model.params_flat.size, world.size)
        self.step, self.record, self.updating = 0, {"step": 0}, False
        self.losses = {}
        self.validations = Validations()
        self.skipped = {"nonfinite": 0, "spike": 0}
        self.outliers = {"train_loss": OutlierDetector(), "grad_norm": OutlierDetector()}

    def finish_step(self, record):
        """Counts a step as taken; record: its dict, with "step" and "train_loss"."""
        self.step, self.record, self.updating = record["step"], record, False
        self.note_loss("train_loss", record["train_loss"])

    def note_validation(self, loss):
        """Notes the validation loss after the last step; returns whether it is a new best."""
        self.note_loss("val_loss", loss)
        return self.validations.add(self.step, loss)

    def note_loss(self, name, loss):
        if math.isfinite(loss):
            self.losses[name] = loss

    def share(self):
        """Takes over what rank 0 knows of validations and outliers, which it may have read from files."""
        values = self.validations, self.losses, {name: each.state for name, each in self.outliers.items()}
        self.validations, self.losses, outliers = self.world.of_first(values)
        for name, detector in self.outliers.items():
            detector.state = outliers[name]

    def to_dict(self):
        """Returns all but the arrays as a dict for JSON; parameters and moments are files' own (checkpoint.save)."""
        return {
            "step": self.step,
            **self.losses,
            **({"record": finite(self.record)} if self.record else {}),
            "validations": self.validations.to_dict(),
            "skipped": self.skipped,
            "outliers": {name: detector.state for name, detector in self.outliers.items()},
            "position": self.loader.position,
            "resolved": dataclasses.asdict(self.resolved),
        }

    def restore(self, found):
        """Makes this the state that a checkpoint.Checkpoint holds, but for arrays and the position in the data.

        Raises UserError, KeyError, TypeError, ValueError or OverflowError if that lacks something or is malformed.
        """
        saved = found.progress
        skipped = saved["skipped"] if "skipped" in saved else saved["left_out"]  # what it was called first
        self.skipped = {name: int(skipped[name]) for name in self.skipped}
        for name, detector in self.outliers.items():
            detector.state = saved["outliers"][name]
        if "validations" in saved:  # earlier forms had none
            self.validations = Validations.from_saved(saved["validations"])
        self.losses = {name: float(saved[name]) for name in ("train_loss", "val_loss") if name in saved}
        self.step = found.step
        # The first form had none, as steps were saved after all else.
        self.record = saved.get("record")
        if "record" in saved and not (isinstance(self.record, dict) and self.record.get("step") == found.step):
            raise UserError(f"the record saved with step {found.step} is not of that step")


def finite(record):
    """Returns a record with Python's numbers in place of NumPy's, and None in place of NaN and the infinities.

    The same goes for dicts and lists in it.
    """
    if isinstance(record, dict):
        return {key: finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [finite(value) for value in record]
    value = record.item() if isinstance(record, np.generic) else record
    return None if isinstance(value, float) and not math.isfinite(value) else value
