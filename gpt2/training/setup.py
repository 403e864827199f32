"""How a run starts or resumes: checks that there is room, then data, model, state."""

import dataclasses
import glob
import math
import os
import pathlib
import re
import shlex
import time

import numpy as np

from gpt2.config import PRESETS
from gpt2.data.dataloader import DataLoader, bytes_in_memory
from gpt2.errors import UnavailableError, UserError
from gpt2.formats import pretrained
from gpt2.formats.files import data_dir
from gpt2.formats.run import METRICS, steps
from gpt2.formats.training_state import require_savable
from gpt2.kernels.adamw import sum_of_squares
from gpt2.model import GPT2
from gpt2.training import checkpoint, resume
from gpt2.training.budget import checkpoint_bytes, require_disk, require_memory
from gpt2.training.health import first_nonfinite
from gpt2.training.metrics import Metrics
from gpt2.training.options import FINE_TUNING, FROM_SCRATCH, MAX_STEPS, SEQ_LEN, SIZES, Resolved, flag
from gpt2.training.run_folder import is_lost, require_lock
from gpt2.training.samples import Sampler
from gpt2.training.state import TrainState


@dataclasses.dataclass
class Run:
    """A run that is ready for its next step.

    found: the checkpoint it was resumed from, or None. in_place: whether that lies in the run's own folder. saved: the
    newest step with a checkpoint in the folder, or None. metrics: None until `open_metrics`.
    """

    options: object
    folder: pathlib.Path
    state: TrainState
    val_loader: DataLoader | None
    found: checkpoint.Checkpoint | None = None
    in_place: bool = False
    saved: int | None = None
    sampler: Sampler | None = None
    metrics: Metrics | None = None

    @property
    def max_steps(self):
        """The length of the run in steps."""
        return self.state.resolved.max_steps

    def open_metrics(self):
        """Starts the metrics, or continues those of the run resumed from."""
        if self.found:
            self.metrics = Metrics.resume(self.found.folder, self.folder, self.state.step)
            _, val_losses = self.metrics.losses("val_loss")
            if val_losses.size:  # a checkpoint is older than the validation of its own step
                self.state.note_loss("val_loss", float(val_losses[-1]))
            if self.options.skip_spikes and not self.found.progress["options"].get("skip_spikes"):
                self._recall_outliers()
        else:
            self.metrics = Metrics.start(self.folder)

    def _recall_outliers(self):
        """Fills the windows of --skip-spikes, given anew, from the records; says when it acts if they are too few."""
        (loss_steps, losses), (norm_steps, norms) = (self.metrics.losses(key) for key in self.state.outliers)
        _, of_losses, of_norms = np.intersect1d(loss_steps, norm_steps, return_indices=True)
        losses, norms = losses[of_losses], norms[of_norms]
        known = np.isfinite(losses) & np.isfinite(norms)
        for detector, values in zip(self.state.outliers.values(), (losses, norms), strict=True):
            detector.state = values[known][-detector.window :].tolist()
        if missing := detector.window - len(detector.state):
            step = self.state.step + missing + 1
            print(f"--skip-spikes acts from step {step} on: {METRICS} has too few losses of the steps before")

    def _progress(self):
        """What a checkpoint holds besides the arrays: a dict for JSON."""
        description = resume.run_description(self.options, self.state.loader, self.val_loader, self.found)
        return self.state.to_dict() | description

    @property
    def resume_command(self):
        """The command that continues the run, one line for a shell whatever the folder's name."""
        folder = str(self.folder)
        folder = f"./{folder}" if folder.startswith("-") else folder
        if folder.isprintable():
            return f"python train_gpt2.py --resume {shlex.quote(folder)}"
        escaped = "".join(f"\\x{byte:02x}" for byte in os.fsencode(folder))
        return f"python train_gpt2.py --resume $'{escaped}'"

    def require_savable(self):
        """Raises UserError, before the first step, if there is too much to say of the run in a checkpoint."""
        require_savable(self.folder, self._progress())

    def save(self):
        """Saves a checkpoint, unless there is one of this step, or an earlier error said that the folder is lost.

        Raises UserError if that fails, or if the parameters are not finite.
        """
        state, start = self.state, time.perf_counter()
        if self.saved == state.step or is_lost(self.folder):
            return
        require_lock(self.folder)
        if not math.isfinite(sum_of_squares(state.model.params_flat)):
            raise UserError(
                f"after step {state.step} the parameters are not finite, first {first_nonfinite(state.model)}; "
                "that was not saved: try a lower --learning-rate"
            )
        self.metrics.sync()
        written = checkpoint.save(self.folder, state.model, state.optimizer, self._progress(), self.options.keep)
        self.saved = state.step
        print(f"saved {written.model} and {written.state.name} in {time.perf_counter() - start:.1f} s", flush=True)


def start_run(options, folder, make_optimizer):
    """Returns the Run that TrainOptions ask for, in a locked folder. Raises UserError."""
    train_data = options.train_data or default_data("train")
    config = _initial_config(options, train_data)
    val_data = options.val_data or (_default_val_data(options.train_data) if options.val_every else None)
    seq_len = min(SEQ_LEN, config.maxT) if options.seq_len is None else options.seq_len
    _require_memory(options, config, seq_len, (train_data, val_data))
    loaders = _open_data(options, config, seq_len, train_data, val_data)
    max_steps = _length(options, loaders[0], MAX_STEPS if options.max_steps is None else options.max_steps)
    _require_disk(options, config, folder, max_steps)
    model = _initial_model(options, config)
    choices = FROM_SCRATCH if model.is_untrained else FINE_TUNING
    given = {name: getattr(options, name) for name in choices if getattr(options, name) is not None}
    resolved = Resolved(train_data, val_data, **choices | given, seq_len=seq_len, max_steps=max_steps)
    run = _make_run(options, folder, model, loaders, resolved, make_optimizer)
    run.require_savable()
    return run


def resume_run(found, options, resolved, anyway, folder, make_optimizer):
    """Returns the Run that continues a checkpoint.Checkpoint in a locked folder.

    options, resolved: from resume.resumed_options. anyway: accept other data. Raises UserError.
    """
    in_place = folder.samefile(found.folder)
    val_data = resolved.val_data or (_default_val_data(resolved.train_data) if options.val_every else None)
    config = pretrained.load_config(found.model)
    _require_memory(options, config, resolved.seq_len, (resolved.train_data, val_data))
    loaders = _open_data(options, config, resolved.seq_len, resolved.train_data, val_data)
    max_steps = _length(options, loaders[0], resolved.max_steps)
    _require_disk(options, config, folder, max_steps - found.step, len(steps(folder)) if in_place else 0)
    resolved = dataclasses.replace(resolved, val_data=val_data, max_steps=max_steps)
    resume.say_if_length_changed(found, options, max_steps)
    run = _make_run(options, folder, GPT2.load(found.model), loaders, resolved, make_optimizer)
    run.found, run.in_place, run.saved = found, in_place, found.step if in_place else None
    resume.check_data(found, *loaders, anyway)
    resume.restore_position(found, run.state.loader, anyway)
    try:
        run.state.restore(found)
    except (KeyError, TypeError, ValueError, OverflowError, UserError) as error:
        raise resume.incompatible_checkpoint(found) from error
    run.require_savable()
    found.load_moments(run.state.optimizer)
    print(f"[resume] {found.folder} after step {found.step}{resume.changed_versions(found)}", flush=True)
    return run


def default_data(split):
    """The token files of TinyShakespeare, or those of the plays that stand in for it. Raises UserError."""
    tiny, plays = (data_dir() / f"{name}_{split}.bin" for name in ("tiny_shakespeare", "shakespeare"))
    if tiny.exists():
        return (str(tiny),)
    if not plays.exists():
        raise UserError(
            f"{tiny}: no such file; make it with: python prepro_tinyshakespeare.py, or name another with --{split}-data"
        )
    print(f"{tiny} is not there, {plays} (the complete plays) stands in for it: losses are not comparable")
    return (str(plays),)


def _default_val_data(train_data):
    """The validation files that go with training files, or by default TinyShakespeare's.

    train_data: paths and globs, or None. Where one says "train", as in mine_train.bin, its counterpart says "val".
    Raises UserError unless each has one.
    """
    if train_data is None:
        return default_data("val")
    counterparts = []
    for path in train_data:
        folder, name = os.path.split(path)
        counterpart = os.path.join(folder, re.sub(r"(?<![A-Za-z])train(?![A-Za-z])", "val", name))
        if counterpart == path or not (os.path.exists(counterpart) or glob.glob(counterpart)):
            beside = "" if counterpart == path else f" ({counterpart})"
            raise UserError(
                f"--train-data {path}: no validation data beside it{beside}; name some with --val-data, "
                "or train without: --val-every 0"
            )
        counterparts.append(counterpart)
    return tuple(counterparts)


def _make_run(options, folder, model, loaders, resolved, make_optimizer):
    train_loader, val_loader = loaders
    optimizer = make_optimizer(model, options.beta1, options.beta2, options.eps, options.weight_decay)
    run = Run(options, folder, TrainState(model, optimizer, train_loader, resolved), val_loader)
    if options.sample_every:
        run.sampler = Sampler(model, options.sample_tokens, options.prompt, options.seed)
    return run


def vocabulary_size(train_data):
    """The vocabulary size of a model of random weights that is trained on these token files."""
    return PRESETS["gpt2"].V


def _initial_config(options, train_data):
    """The sizes of the model that --init names. Raises UserError, for options that do not go with it, too."""
    given = {name: getattr(options, name) for name in ("size", *SIZES) if getattr(options, name) is not None}
    if options.init != "scratch":
        if given:
            raise UserError(f"{', '.join(map(flag, given))}: only with --init scratch: other models have their sizes")
        return pretrained.load_config(options.init)
    sizes = {SIZES[name]: value for name, value in given.items() if name in SIZES}
    try:
        return dataclasses.replace(PRESETS[options.size or "gpt2"], V=vocabulary_size(train_data), **sizes)
    except UserError as error:
        raise UserError(f"--init scratch: {error}; choose other --channels or --heads") from error


def _length(options, loader, steps):
    """The steps of a run, from --epochs if given; a last update may go on into the next epoch."""
    return steps if options.epochs is None else -(-options.epochs * loader.num_batches // options.grad_accum_steps)


def _require_memory(options, config, seq_len, data):
    """Raises UserError if there is too little memory, or a sequence is too long; data: token files of both splits."""
    if config.maxT < seq_len:
        raise UserError(f"--seq-len {seq_len}: the model's positions end at {config.maxT}")
    # A prompt has at most as many tokens as bytes.
    sample_length = min(config.maxT, max(1, len(options.prompt.encode())) + options.sample_tokens)
    sample_length = sample_length if options.sample_every else 0
    train_data, val_data = data
    data_bytes = bytes_in_memory(train_data) + (bytes_in_memory(val_data) if options.val_every else 0)
    require_memory(config, options.batch_size, seq_len, sample_length, data_bytes)


def _require_disk(options, config, folder, left, present=0):
    """Raises UserError if there is too little disk.

    left: steps to take. present: checkpoints in the folder, to be replaced.
    """
    saves = -(-max(0, left) // options.checkpoint_every) if options.checkpoint_every else 1
    # Old checkpoints go only after the new one is complete.
    at_once = max(1, present, min(present + saves, options.keep + 1))
    require_disk(config, folder, at_once, present * checkpoint_bytes(config))


def _open_data(options, config, T, train_data, val_data):
    """Returns the loaders of both splits, that of the validation None if there is none."""
    B = options.batch_size
    train_loader = DataLoader(train_data, B, T, config.V, options.seed if options.shuffle else None)
    return train_loader, DataLoader(val_data, B, T, config.V) if options.val_every else None


def _initial_model(options, config):
    """Returns the model that --init names, of random weights if those of GPT-2 cannot be had."""
    if options.init == "scratch":
        return GPT2(config, options.seed)
    try:
        return GPT2.from_pretrained(options.init)
    except UnavailableError as error:
        if options.init != "gpt2":
            raise
        print(
            f"GPT-2's released weights cannot be had: {error}. The run starts from random weights instead: "
            "expect a loss of 11 at first and no sensible text. Once the network is there, this command fetches them, "
            f"and the next run starts from them: {pretrained.FETCH_COMMAND}",
            flush=True,
        )
        return GPT2(config, options.seed)
