"""The options of a training run, each declared once: default, check, help, and whether a resumed run may change it."""

import argparse
import dataclasses
import math
import os
import typing

import numpy as np

from gpt2.config import PRESETS
from gpt2.data.conversation_loader import ASSISTANT, LOSS_ON
from gpt2.data.dataloader import LLMC
from gpt2.errors import UserError, safe_repr
from gpt2.machine import AUTO, PRECISIONS, available_threads
from gpt2.optimizer import OPTIMIZERS, SCHEDULES
from gpt2.training.reporters import REPORTERS

# How a resumed run may change an option: not at all, as it would be another run; freely; to other files of the same
# contents. An option of the process is not part of the run.
FIXED, FREE, CONTENTS, PROCESS = "fixed", "free", "contents", "process"


class Kind(typing.NamedTuple):
    """A set of values. convert: from the command line's text; it may fail with ValueError.

    expected: for messages, or a function that returns it.
    """

    convert: typing.Callable
    contains: typing.Callable
    expected: str | typing.Callable


def whole(lowest, highest=2**31 - 1):
    expected = f"a whole number from {lowest} to {highest}"
    return Kind(int, lambda value: type(value) is int and lowest <= value <= highest, expected)


def real(lowest, below=math.inf, expected=None):
    """Numbers from `lowest` that are less than `below`."""

    def contains(value):
        return type(value) is float and lowest <= value < below

    return Kind(float, contains, expected or f"a finite number from {lowest} up")


def _is_text(value):
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


TEXT = Kind(str, _is_text, "text in UTF-8")
PATH = Kind(str, lambda value: isinstance(value, str) and value != "" and "\0" not in value, "a path")
FRACTION = Kind(float, lambda value: type(value) is float and 0 <= value <= 1, "a number from 0 to 1")
BELOW_ONE = real(0, below=1, expected="a number from 0, below 1")
SWITCH = Kind(bool, lambda value: isinstance(value, bool), "True or False")
ORDER = Kind(str, lambda value: isinstance(value, bool) or value == LLMC, f"no value (True), or {LLMC}")
LOSS = Kind(str, lambda value: value in LOSS_ON, f"one of {', '.join(LOSS_ON)}")


def _entry(entries):
    """The names in a dict, which may grow."""
    return Kind(str, lambda value: isinstance(value, str) and value in entries, lambda: f"one of {', '.join(entries)}")


def _are_reporters(value):
    known = isinstance(value, tuple) and value and all(isinstance(name, str) for name in value)
    return known and (value == (NOWHERE,) or set(value) <= set(REPORTERS))


SCHEDULE, OPTIMIZER = _entry(SCHEDULES), _entry(OPTIMIZERS)
PRECISION = Kind(str, lambda value: value in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
SIZE = Kind(str, lambda value: isinstance(value, str) and value in PRESETS, f"one of {', '.join(PRESETS)}")
PATHS = Kind(
    str,
    lambda value: isinstance(value, tuple) and value and all(map(PATH.contains, value)),
    "a path or glob, or several of them",
)

NOWHERE = "none"  # instead of reporters, as transformers has it
REPORT_TO = Kind(str, _are_reporters, f"{NOWHERE}, or one or several of {', '.join(REPORTERS)}")
SEVERAL = (PATHS, REPORT_TO)  # whose options take any number of values


def _option(group, default, kind, help_text, metavar=None, short=None, on_resume=FIXED, shown_default=None):
    details = {"group": group, "kind": kind, "help": help_text, "metavar": metavar, "short": short}
    details |= {"on_resume": on_resume, "shown_default": shown_default}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=details)
    return dataclasses.field(default=default, metadata=details)


# Defaults that depend on whether the weights were trained before. For trained ones: llm.c's. For random ones: of the
# rates tried from 3e-4 to 2e-3, the higher ones sent the validation loss up on the way through 40 steps of the default
# batch; unclipped, the norm of a gradient could be above 300.
FINE_TUNING = {"learning_rate": 1e-4, "lr_schedule": "constant", "warmup_steps": 0, "grad_clip": 0.0}
FROM_SCRATCH = {"learning_rate": 3e-4, "lr_schedule": "constant", "warmup_steps": 10, "grad_clip": 1.0}
# For conversations: after pre-training, and from random weights the best of those tried on data/chat.
TUNING = {"learning_rate": 5e-5, "lr_schedule": "constant", "warmup_steps": 0, "grad_clip": 1.0}
TALKING_FROM_SCRATCH = {"learning_rate": 3e-3, "lr_schedule": "cosine", "warmup_steps": 20, "grad_clip": 1.0}
# (whether the data are conversations, whether the weights are random) -> their defaults, and epochs instead of steps.
RECIPES = {
    (False, False): (FINE_TUNING, None),
    (False, True): (FROM_SCRATCH, None),
    (True, False): (TUNING, 2),
    (True, True): (TALKING_FROM_SCRATCH, 60),
}
SEQ_LEN, MAX_STEPS = 64, 40  # defaults, unless the model's context is shorter, or --epochs counts the steps
# The options that size a model of random weights -> the size that each replaces.
SIZES = {"layers": "L", "heads": "NH", "channels": "C", "context": "maxT"}

_DATA, _BATCH, _OPTIMIZER = "model and data", "batches and steps", "optimizer"
_SHOWN, _LOGS, _RUN = "validation and samples", "logs", "the run"


def _size(help_text, metavar):
    return _option(_DATA, None, whole(1), help_text, metavar, shown_default="that of --size")


def _recipe_default(name):
    tuning = f"of conversations {TUNING[name]:g}, {TALKING_FROM_SCRATCH[name]:g}"
    return f"{FINE_TUNING[name]:g}, {FROM_SCRATCH[name]:g} from random weights; {tuning}"


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """The options of a run. Raises UserError for a value out of range.

    None leaves the choice to the run, which keeps what it chose in a `Resolved`. `gpt2 train --help`
    describes all options.
    """

    init: str = _option(
        _DATA,
        "gpt2",
        PATH,
        "start from released weights (gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or OWNER/NAME on the Hugging "
        "Face hub), a model file, the folder of a run, a Hugging Face folder, or random weights",
        "NAME|FILE.bin|DIR|scratch",
    )
    size: str | None = _option(
        _DATA,
        None,
        SIZE,
        f"sizes of a model of random weights, with --init scratch as the next four: {', '.join(PRESETS)}",
        "NAME",
        shown_default="gpt2",
    )
    layers: int | None = _size("its layers", "L")
    heads: int | None = _size("its attention heads in a layer", "NH")
    channels: int | None = _size("its channels, a multiple of the heads", "C")
    context: int | None = _size("the longest sequence that it takes, in tokens", "T")
    train_data: tuple[str, ...] | None = _option(
        _DATA,
        None,
        PATHS,
        "token files or globs",
        "FILE",
        on_resume=CONTENTS,
        shown_default="what prepro_tinyshakespeare.py made",
    )
    val_data: tuple[str, ...] | None = _option(
        _DATA,
        None,
        PATHS,
        "the same for validation",
        "FILE",
        on_resume=CONTENTS,
        shown_default="mine_val.bin for mine_train.bin",
    )
    shuffle: bool | str = _option(
        _DATA,
        False,
        ORDER,
        "read the training data in another order each epoch, drawn by --seed; llmc: in the order of llm.c's trainer, "
        "whatever the seed",
        LLMC,
        shown_default="the order of the files",
    )

    batch_size: int = _option(_BATCH, 4, whole(1), "sequences in a batch", "B", "-b")
    seq_len: int | None = _option(
        _BATCH,
        None,
        whole(1),
        "tokens in a sequence",
        "T",
        "-t",
        shown_default=f"{SEQ_LEN}, or as many as the model takes",
    )
    grad_accum_steps: int | None = _option(
        _BATCH,
        None,
        whole(1),
        "micro-batches whose gradients make one update; under mpirun, those of all ranks, the same number on each",
        "N",
        shown_default="1, or one a rank",
    )
    max_steps: int | None = _option(
        _BATCH, None, whole(0), "updates", "N", "-x", on_resume=FREE, shown_default=MAX_STEPS
    )
    epochs: int | None = _option(
        _BATCH,
        None,
        whole(1),
        "instead of --max-steps: as many updates as it takes to go through the training data N times",
        "N",
        on_resume=FREE,
        shown_default="none",
    )
    patience: int = _option(
        _BATCH, 0, whole(0), "end the run after N validations without a new lowest loss, 0: off", "N", on_resume=FREE
    )
    loss_on: str = _option(
        _BATCH,
        ASSISTANT,
        LOSS,
        "of conversations, learn what the assistant says and where its turns end, or everything",
        "|".join(LOSS_ON),
    )
    precision: str = _option(
        _BATCH,
        "float32",
        PRECISION,
        "of the factors of matrix products; sums, parameters and all else are float32. bf16 (bfloat16) is faster where "
        f"the CPU has AVX512_BF16; {AUTO} is bf16 there, float32 elsewhere",
        "|".join(PRECISIONS),
    )
    overfit_single_batch: bool = _option(_BATCH, False, SWITCH, "train on the first batch only, to see it memorised")

    optimizer: str = _option(_OPTIMIZER, "adamw", OPTIMIZER, f"what updates: {', '.join(OPTIMIZERS)}", "NAME")
    learning_rate: float | None = _option(
        _OPTIMIZER, None, real(0), "learning rate, its peak", "LR", "-l", shown_default=_recipe_default("learning_rate")
    )
    lr_schedule: str | None = _option(
        _OPTIMIZER,
        None,
        SCHEDULE,
        f"how it falls after the warm-up: {', '.join(SCHEDULES)} (stable, then linear over the last fifth of the run)",
        "NAME",
        shown_default=f"constant; of conversations, from random weights, {TALKING_FROM_SCRATCH['lr_schedule']}",
    )
    warmup_steps: int | None = _option(
        _OPTIMIZER,
        None,
        whole(0),
        "steps in which it climbs linearly to the peak, 0: off",
        "N",
        shown_default=_recipe_default("warmup_steps"),
    )
    final_lr_fraction: float = _option(
        _OPTIMIZER, 0.0, FRACTION, "final learning rate as a fraction of the peak; no effect on constant", "F"
    )
    beta1: float = _option(_OPTIMIZER, 0.9, BELOW_ONE, "decay of the first moment", "BETA1")
    beta2: float = _option(_OPTIMIZER, 0.999, BELOW_ONE, "decay of the second moment", "BETA2")
    eps: float = _option(
        _OPTIMIZER,
        1e-8,
        real(1.2e-38, below=3.4e38, expected="a number from 1.2e-38, below 3.4e38"),  # float32's range
        "guard against division by zero",
        "EPS",
    )
    weight_decay: float = _option(_OPTIMIZER, 0.0, real(0), "on matrices and embeddings only", "W")
    dropout: float = _option(
        _OPTIMIZER,
        0.0,
        BELOW_ONE,
        "probability with which training zeroes an element of the embeddings, of attention's probabilities and of what "
        "a layer adds to the residual stream, 0: off",
        "P",
    )
    grad_clip: float | None = _option(
        _OPTIMIZER, None, real(0), "largest gradient norm, 0: off", "NORM", shown_default=_recipe_default("grad_clip")
    )
    skip_nonfinite: int = _option(
        _OPTIMIZER,
        0,
        whole(0),
        "skip up to N updates whose loss or gradient is not finite, instead of ending the run",
        "N",
        on_resume=FREE,
    )
    skip_spikes: float = _option(
        _OPTIMIZER,
        0.0,
        real(0),
        "skip updates whose loss or gradient norm lies more than Z standard deviations above the mean of the last 128 "
        "(at most 11.3 are possible), 0: off",
        "Z",
        on_resume=FREE,
    )

    val_every: int = _option(_SHOWN, 10, whole(0), "steps between validations, 0: never", "N", on_resume=FREE)
    val_batches: int = _option(_SHOWN, 5, whole(0), "batches of a validation, 0: the whole split", "N", on_resume=FREE)
    sample_every: int = _option(_SHOWN, 20, whole(0), "steps between samples of text, 0: never", "N", on_resume=FREE)
    sample_tokens: int = _option(_SHOWN, 64, whole(1), "tokens in a sample", "N", on_resume=FREE)
    prompt: str = _option(
        _SHOWN,
        "",
        TEXT,
        "what a sample continues",
        "TEXT",
        on_resume=FREE,
        shown_default="none, a sample begins a new document",
    )

    log_every: int = _option(
        _LOGS,
        1,
        whole(0),
        "steps between those that are printed, besides the last one and skipped updates; metrics.jsonl has all of them",
        "N",
        on_resume=FREE,
    )
    norms_every: int = _option(
        _LOGS,
        0,
        whole(0),
        "steps between those whose gradient norms go, by tensor and layer, to metrics.jsonl and norms.png, 0: never",
        "N",
        on_resume=FREE,
    )
    report_to: tuple[str, ...] = _option(
        _LOGS,
        (NOWHERE,),
        REPORT_TO,
        "also report what metrics.jsonl has to: tensorboard, in the folder tensorboard inside --out-dir; wandb",
        f"{NOWHERE}|{'|'.join(REPORTERS)}",
        on_resume=FREE,
        shown_default=NOWHERE,
    )

    out_dir: str = _option(
        _RUN, "out", PATH, "where checkpoints, metrics.jsonl and loss.png go", "DIR", on_resume=PROCESS
    )
    checkpoint_every: int = _option(
        _RUN, 200, whole(0), "steps between checkpoints, 0: only at the end", "N", on_resume=FREE
    )
    keep: int = _option(_RUN, 2, whole(1), "checkpoints that stay, the newest ones", "N", on_resume=FREE)
    keep_best: bool = _option(
        _RUN,
        False,
        SWITCH,
        "keep the checkpoint of the lowest validation loss, too, in the folder best inside --out-dir",
        on_resume=FREE,
    )
    seed: int = _option(_RUN, 1337, whole(0), "of random weights, samples, --shuffle and --dropout", "N")
    threads: int | None = _option(
        _RUN,
        None,
        whole(1),
        "the result does not depend on it",
        "N",
        on_resume=PROCESS,
        shown_default="all available CPUs, shared out among ranks",
    )
    timeout: int = _option(
        _RUN,
        600,
        whole(1, 10**6),
        "under mpirun: seconds after which a rank that waits for another in vain ends the run",
        "S",
        on_resume=PROCESS,
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            kind = field.metadata["kind"]
            value = _normalised(getattr(self, field.name), kind)
            object.__setattr__(self, field.name, value)
            if not (kind.contains(value) or (value is None and field.default is None)):
                expected = kind.expected() if callable(kind.expected) else kind.expected
                shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
                raise UserError(f"{flag(field.name)} {safe_repr(shown)}: expected {expected}")
        if self.epochs is not None and self.max_steps is not None:
            raise UserError("--epochs and --max-steps both say how long the run is; give one of them")
        for name in ("keep_best", "patience"):
            if getattr(self, name) and not self.val_every:
                raise UserError(f"{flag(name)} needs validations, but --val-every is 0")

    def among(self, world):
        """Returns these options with what depends on the distributed.World filled in. Raises UserError."""
        count = self.grad_accum_steps or world.size
        if count % world.size:
            raise UserError(
                f"--grad-accum-steps {count}: these micro-batches do not divide among {world.size} ranks; choose a "
                f"multiple of {world.size}, or start as many ranks as divide {count}"
            )
        threads = self.threads or max(1, available_threads() // world.sharers)
        return dataclasses.replace(self, grad_accum_steps=count, threads=threads)

    @classmethod
    def from_saved(cls, saved):
        """Returns the options that a checkpoint holds. Raises UserError, TypeError or ValueError for what are none."""
        return cls(**saved)

    def to_save(self):
        """Returns what a checkpoint keeps, a dict for JSON: all but the options of this process."""
        return {name: value for name, value in dataclasses.asdict(self).items() if on_resume(name) != PROCESS}


@dataclasses.dataclass(frozen=True)
class Resolved:
    """The choices a run made where its options leave one: token files, those of FINE_TUNING, lengths, the precision."""

    train_data: tuple[str, ...]
    val_data: tuple[str, ...] | None  # None: the run never validated
    learning_rate: float
    lr_schedule: str
    warmup_steps: int
    grad_clip: float
    seq_len: int
    max_steps: int
    precision: str

    @classmethod
    def from_saved(cls, progress):
        """Returns that of a checkpoint's run. Raises KeyError, TypeError or UserError if there is none.

        Older checkpoints have some of it, or all, among the options, and no precision: theirs is float32.
        """
        source = dataclasses.asdict(TrainOptions.from_saved(progress["options"])) | progress.get("resolved", {})
        values = {field.name: source[field.name] for field in dataclasses.fields(cls)}
        checked = TrainOptions(**values)
        resolved = cls(**{name: getattr(checked, name) for name in values})
        if None in dataclasses.asdict(dataclasses.replace(resolved, val_data=())).values():
            raise UserError("a choice that was never made")
        return resolved


def _normalised(value, kind):
    """Returns the value in the one type that an option has: a path as str, a number as Python's int or float.

    A kernel would be compiled once more for an int in the place of a float.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if kind in SEVERAL and isinstance(value, list | tuple):
        return tuple(_normalised(each, PATH) for each in value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if kind in SEVERAL and isinstance(value, str):
        return (value,)
    if kind.convert is float and type(value) is int:
        return float(value) if abs(value) < 2**1000 else math.inf
    return value


def flag(name):
    """The command-line form of an option's name."""
    return "--lr" if name == "learning_rate" else f"--{name.replace('_', '-')}"


def on_resume(name):
    """FIXED, FREE, CONTENTS or PROCESS."""
    return _FIELDS[name].metadata["on_resume"]


_FIELDS = {field.name: field for field in dataclasses.fields(TrainOptions)}


def add_arguments(parser):
    """Adds an argument for each option to an argparse.ArgumentParser, of which only those given leave a value.

    The values' ranges are checked by TrainOptions.
    """
    groups = {}
    for name, field in _FIELDS.items():
        details = field.metadata
        if details["group"] not in groups:
            groups[details["group"]] = parser.add_argument_group(details["group"])
        names = [flag(name), details["short"]] if details["short"] else [flag(name)]
        kind = details["kind"]
        if kind is SWITCH:
            groups[details["group"]].add_argument(
                *names, action="store_true", dest=name, help=details["help"], default=argparse.SUPPRESS
            )
            continue
        shown = details["shown_default"] or field.default
        groups[details["group"]].add_argument(
            *names,
            type=kind.convert,
            dest=name,
            nargs="+" if kind in SEVERAL else "?" if kind is ORDER else None,
            const=True if kind is ORDER else None,
            action="extend" if kind in SEVERAL else "store",
            metavar=details["metavar"],
            help=f"{details['help']} (default: {shown})".replace("%", "%%"),
            default=argparse.SUPPRESS,
        )
