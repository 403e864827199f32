"""A run at work: the state, and what is written of it to the run's folder."""

import dataclasses
import math
import os
import pathlib
import shlex
import shutil
import time
import zlib
from collections.abc import Iterable

import numpy as np

from gpt2.data.dataloader import DataLoader
from gpt2.data.vocabulary import save_vocabulary
from gpt2.errors import UserError
from gpt2.formats.run import METRICS, RUN_VOCABULARY
from gpt2.formats.training_state import require_savable
from gpt2.kernels.adamw import sum_of_squares
from gpt2.training import checkpoint, resume
from gpt2.training.best import BestCheckpoint
from gpt2.training.health import first_nonfinite
from gpt2.training.metrics import Metrics
from gpt2.training.options import flag
from gpt2.training.reporters import Reporters
from gpt2.training.run_folder import is_lost, require_lock
from gpt2.training.samples import Sampler
from gpt2.training.state import TrainState, Validations


@dataclasses.dataclass
class Run:
    """A run that is ready for its next step.

    vocabulary: the model's, see data.vocabulary. found: the checkpoint it was resumed from, or None. in_place: whether
    that lies in the run's own folder. saved: the newest step with a checkpoint in the folder, or None. before: lines to
    keep of another run's records, see metrics.records_before. metrics: None until `open_metrics`. best: None until
    `open_best`, and without --keep-best.
    """

    options: object
    folder: pathlib.Path
    state: TrainState
    val_loader: DataLoader | None
    vocabulary: object
    found: checkpoint.Checkpoint | None = None
    in_place: bool = False
    is_recorded: bool = False
    saved: int | None = None
    sampler: Sampler | None = None
    before: Iterable[bytes] = ()
    metrics: Metrics | None = None
    best: BestCheckpoint | None = None
    reporters: Reporters = dataclasses.field(default_factory=Reporters)

    @property
    def max_steps(self):
        """The length of the run in steps."""
        return self.state.resolved.max_steps

    @property
    def out_of_patience(self):
        """Whether --patience ends the run."""
        return 0 < self.options.patience <= self.state.validations.since

    @property
    def is_over(self):
        """Whether no step is left to take."""
        return self.state.step >= self.max_steps or self.out_of_patience

    def open(self):
        """Makes ready what is written beside checkpoints, on rank 0; the others learn what it found there."""
        with self.state.world.together():
            if self.state.world.is_first:
                self.save_vocabulary()
                self.open_metrics()
                self.open_best()
                self.is_recorded = self.metrics.last_step == self.state.step
                self.reporters.open(self.options.report_to, self, self.state.step + self.is_recorded)
        self.state.share()
        self.is_recorded = self.state.world.of_first(self.is_recorded)

    def open_metrics(self):
        """Starts the metrics, or continues those of the run resumed from."""
        if self.found:
            self.metrics = Metrics.resume(self.found.folder, self.folder, self.state.step)
            validated, val_losses = self.metrics.losses("val_loss")
            if validated.size and validated[-1] == self.state.step:  # a checkpoint is older than its own validation
                self.state.note_validation(float(val_losses[-1]))
            if self.options.skip_spikes and not self.found.progress["options"].get("skip_spikes"):
                self._recall_outliers()
        else:
            self.metrics = Metrics.start(self.folder, before=self.before)

    def save_vocabulary(self):
        """Puts the model's vocabulary into the folder."""
        require_lock(self.folder)
        for left in self.folder.glob(f".{RUN_VOCABULARY}.*"):  # by a killed process
            shutil.rmtree(left, ignore_errors=True)
        save_vocabulary(self.vocabulary, self.folder / RUN_VOCABULARY)

    def open_best(self):
        """Makes ready for --keep-best and --patience; says so if the best of the run resumed does not count."""
        options, validations = self.options, self.state.validations
        self.best = BestCheckpoint(self.folder, self.vocabulary) if options.keep_best else None
        if validations.best is None or not self.found:
            return
        reason = None
        if not resume.validates_alike(self.found, options, self.val_loader):
            reason = "the validation is another now"
        elif self.best:
            try:
                self.best.resume(self.found, validations.best)
            except UserError as error:
                reason = error
        if reason:
            self.state.validations = Validations()
            if options.keep_best or options.patience:
                print(f"the next validation counts as the best so far, not that of step {validations.best}: {reason}")

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
    def token_files(self):
        """The paths of the files of both splits, as given."""
        loaders = [self.state.loader, *([self.val_loader] if self.val_loader else [])]
        return [entry["file"] for loader in loaders for entry in loader.fingerprint]

    @property
    def resume_command(self):
        """The command that continues the run, one line for a shell whatever the folder's name."""
        folder = str(self.folder)
        folder = f"./{folder}" if folder.startswith("-") else folder
        if folder.isprintable():
            return f"gpt2 train --resume {shlex.quote(folder)}"
        escaped = "".join(f"\\x{byte:02x}" for byte in os.fsencode(folder))
        return f"gpt2 train --resume $'{escaped}'"

    def require_same(self):
        """Raises UserError, before the first step, if a rank has other data, another model or another version."""
        state = self.state
        if state.world.size > 1:
            loaders = {"--train-data": state.loader, "--val-data": self.val_loader}
            fingerprints = {
                name: [(entry["tokens"], entry["sha256"]) for entry in loader.fingerprint] if loader else None
                for name, loader in loaders.items()
            }
            model = {"the model": zlib.crc32(state.model.params_flat)}
            chosen = dataclasses.asdict(state.resolved)
            choices = {flag(name): value for name, value in chosen.items() if not name.endswith("_data")}
            state.world.require_same(resume.code_versions() | fingerprints | model | choices)

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
        self._require_finite()
        chunks = state.world.stream(state.optimizer.state, state.shards)
        if not state.world.is_first:
            self.saved = state.step
            return _send(chunks)
        require_lock(self.folder)
        self.metrics.sync()
        written = checkpoint.save(
            self.folder, state.model, state.optimizer, self._progress(), self.options.keep, chunks
        )
        self.saved = state.step
        if self.best:
            self.best.settle()
        print(f"saved {written.model} and {written.state.name} in {time.perf_counter() - start:.1f} s", flush=True)

    def save_best(self):
        """Saves the step that was validated as the best so far. Raises UserError as `save` does."""
        state = self.state
        self._require_finite()
        chunks = state.world.stream(state.optimizer.state, state.shards)
        if not state.world.is_first:
            return _send(chunks)
        self.best.save(state.model, state.optimizer, self._progress(), chunks)
        print(
            f"new best: val loss {state.validations.loss:.6f} after step {state.step}, saved in {self.best.folder}",
            flush=True,
        )

    def finish(self):
        """To be called when the last step, validated and recorded, is saved."""
        if self.best:
            self.metrics.sync()
            self.best.settle()

    def _require_finite(self):
        with self.state.world.together():
            if not math.isfinite(sum_of_squares(self.state.model.params_flat)):
                raise UserError(
                    f"after step {self.state.step} the parameters are not finite, first "
                    f"{first_nonfinite(self.state.model)}; that was not saved: try a lower --lr"
                )


def _send(chunks):
    """Sends what this rank has of a checkpoint to rank 0, which writes it."""
    for _ in chunks:
        raise AssertionError("only rank 0 has chunks to write")
