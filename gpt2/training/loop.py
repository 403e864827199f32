"""The training loop: train, validate, sample, log, save."""

import contextlib
import datetime
import math
import os
import resource
import shlex
import sys
import time

from tqdm import tqdm

from gpt2.data.dataloader import DataLoader
from gpt2.errors import UserError
from gpt2.formats.run import steps
from gpt2.inference.warmup import prepare_kernels
from gpt2.kernels.adamw import sum_of_squares
from gpt2.machine import set_threads
from gpt2.model import GPT2
from gpt2.optimizer import AdamW, clip_scale, gradient_norm, learning_rate
from gpt2.training import checkpoint
from gpt2.training.budget import checkpoint_bytes, require_disk, require_memory
from gpt2.training.health import first_nonfinite, first_nonfinite_gradient
from gpt2.training.metrics import Metrics
from gpt2.training.outliers import OutlierDetector
from gpt2.training.resume import (
    changed_versions,
    check_data,
    go_to_position,
    not_this_version,
    resumed_options,
    run_description,
)
from gpt2.training.samples import Sampler
from gpt2.training.signals import StopSignals
from gpt2.training.start import DATA, data_files, initial_config, initial_model, locked_folder, make_way

# From trained weights: llm.c's. From random ones: of the rates tried from 3e-4 to 2e-3, the higher ones sent the
# validation loss up on the way through 40 steps of the default batch.
FINE_TUNING = {"learning_rate": 1e-4, "warmup_steps": 0}
FROM_SCRATCH = {"learning_rate": 3e-4, "warmup_steps": 10}


def train(options):
    """Runs what the options of train_gpt2.py (see its --help) ask for.

    Returns the exit status: None, or 128 and the number of the signal that ended the run early.
    """
    started = time.perf_counter()
    set_threads(options.threads)
    if options.resume is not None and not os.path.isdir(options.resume):
        raise UserError(f"{options.resume}: no such folder; --resume goes on with a run whose --out-dir that was")
    with contextlib.ExitStack() as stack:
        out_dir, found = locked_folder(options.out_dir, stack), None
        if options.resume is not None:
            found = checkpoint.find(options.resume)
            if out_dir.resolve() in found.folder.resolve().parents:
                raise UserError(
                    f"--out-dir {out_dir}: the run to go on with lies in it; choose another, or that folder"
                )
            options = resumed_options(options, found)
        run = Run(options, out_dir, found)
        if not run.in_place:
            # Only now: the new run's model may be the earlier one's.
            make_way(out_dir, stack)
        status = run.go()
    minutes = (time.perf_counter() - started) / 60
    print(f"{run.step} steps, {minutes:.1f} minutes, peak memory {_peak_bytes() / 1e9:.2f} GB", flush=True)
    return status


class Run:
    """A training run from its first step on, or from a checkpoint on.

    What its next steps depend on is the model, the optimizer, the position of `train_loader`, the windows of
    `outliers`, `step` and the options. A checkpoint holds all that: a resumed run is the run it would have been.
    """

    def __init__(self, options, out_dir, found=None):
        """out_dir: a folder that nobody else writes to. found: the checkpoint.Checkpoint to go on from."""
        self.options, self.out_dir, self.found = options, out_dir, found
        self.in_place = found is not None and os.path.samefile(found.folder, out_dir)
        self.step, self.losses = 0, {}
        self.left_out = {"nonfinite": 0, "spike": 0}
        self.outliers = {"train_loss": OutlierDetector(), "grad_norm": OutlierDetector()}
        self._open_data(initial_config(found.model if found else options.init))
        self.model = GPT2.load(found.model) if found else self._initial_model()
        self.optimizer = AdamW(self.model, options.beta1, options.beta2, options.eps, options.weight_decay)
        if found:
            self._restore()
        self._describe()
        _compile_kernels()
        self.sampler = None
        if options.sample_every:
            self.sampler = Sampler(self.model, options.sample_tokens, options.prompt, options.seed, DATA)

    def _open_data(self, config):
        """Opens the token files, having checked that there is room for what training takes."""
        options, B, T = self.options, self.options.batch_size, self.options.seq_len
        if config.maxT < T:
            raise UserError(f"--seq-len {T}: the model's positions end at {config.maxT}")
        options.train_data = data_files(options.train_data, "train")
        options.val_data = data_files(options.val_data, "val") if options.val_every else options.val_data
        self._require_room(config)
        shuffle_seed = options.seed if options.shuffle else None
        self.train_loader = DataLoader(options.train_data, B, T, config.V, shuffle_seed)
        self.val_loader = DataLoader(options.val_data, B, T, config.V) if options.val_every else None

    def _require_room(self, config):
        options = self.options
        # A prompt has at most as many tokens as bytes.
        sample_length = min(config.maxT, max(1, len(options.prompt.encode())) + options.sample_tokens)
        require_memory(config, options.batch_size, options.seq_len, sample_length if options.sample_every else 0)
        left = max(0, options.max_steps - (self.found.step if self.found else 0))
        saves = -(-left // options.checkpoint_every) if options.checkpoint_every else 1
        present = len(steps(self.out_dir)) if self.in_place else 0
        # While one is written, those that stay are still there.
        at_once = max(1, present, min(present + saves, options.keep + 1))
        require_disk(config, self.out_dir, at_once, present * checkpoint_bytes(config))

    def _initial_model(self):
        options = self.options
        model, pretrained = initial_model(options.init, options.seed)
        for name, value in (FINE_TUNING if pretrained else FROM_SCRATCH).items():
            if getattr(options, name) is None:
                setattr(options, name, value)
        return model

    def go(self):
        """Takes the steps that are left, and saves. Returns what `train` does."""
        options, found = self.options, self.found
        if self.in_place:
            checkpoint.settle(found, options.keep)
        self.metrics = Metrics.resume(found.folder, self.out_dir, self.step) if found else Metrics(self.out_dir)
        if not found and self.val_loader:
            self.metrics.write({"step": 0, "val_loss": _validate(self.model, self.val_loader, options.val_batches)})
        saved = self.step if self.in_place else None
        self._resumed_at, self._loop_started = self.step, time.perf_counter()
        with StopSignals() as stop:
            while self.step < options.max_steps and not stop.received:
                self._advance()
                if _due(self.step, options.checkpoint_every):
                    self._save()
                    saved = self.step
            if saved != self.step:
                self._save()
        if self.step < options.max_steps:
            print(f"go on with: python train_gpt2.py --resume {shlex.quote(str(self.out_dir))}", flush=True)
            return 128 + stop.received
        self.metrics.draw()
        print(f"losses in {self.metrics.path} and {self.metrics.picture}")
        return None

    def _advance(self):
        """Takes one step, with what is due after it."""
        options, step = self.options, self.step + 1
        last = step == options.max_steps
        record = {"step": step} | self._train_step(step)
        print(f"{_step_line(record, options.max_steps)} | {self._time_left(step)} left", flush=True)
        if self.val_loader and (last or _due(step, options.val_every)):
            record["val_loss"] = _validate(self.model, self.val_loader, options.val_batches)
        self.metrics.write(record)
        if self.sampler and (last or _due(step, options.sample_every)):
            self.sampler.show(step)
        self.step = step
        for name in ("train_loss", "val_loss"):
            if math.isfinite(record.get(name, math.nan)):
                self.losses[name] = record[name]

    def _time_left(self, step):
        seconds = (time.perf_counter() - self._loop_started) / (step - self._resumed_at)
        return datetime.timedelta(seconds=round(seconds * (self.options.max_steps - step)))

    def _train_step(self, step):
        """One update of the parameters; returns its record."""
        options, model, loader = self.options, self.model, self.train_loader
        count = options.grad_accum_steps
        lr = learning_rate(
            step - 1,
            options.lr_schedule,
            options.learning_rate,
            options.warmup_steps,
            options.max_steps,
            options.final_lr_fraction,
        )
        forward = backward = loss = 0.0
        batch, nonfinite, epoch = loader.position, None, loader.epoch
        start = time.perf_counter()
        for micro_step in range(count):
            if options.overfit_single_batch:
                loader.reset()
            position = loader.position
            tokens, targets = loader.next_batch()
            before = time.perf_counter()
            batch_loss = model.forward(tokens, targets, accumulate=micro_step > 0)
            between = time.perf_counter()
            if not (math.isfinite(batch_loss) or nonfinite):
                batch, nonfinite = position, first_nonfinite(model)
            model.backward()
            loss += batch_loss / count
            forward += between - before
            backward += time.perf_counter() - between
        update_start = time.perf_counter()
        norm, left_out = self._update(loss, lr)
        end = time.perf_counter()
        record = {
            "epoch": epoch,
            "train_loss": loss,
            "grad_norm": norm,
            "lr": lr,
            "forward_ms": 1e3 * forward,
            "backward_ms": 1e3 * backward,
            "update_ms": 1e3 * (end - update_start),
            "tokens_per_s": options.batch_size * options.seq_len * count / (end - start),
        }
        if left_out:
            self.left_out[left_out] += 1
            record |= {"left_out": left_out, "left_out_so_far": self.left_out[left_out]}
        if left_out == "nonfinite" and self.left_out[left_out] > options.skip_nonfinite:
            where = loader.where(batch) + (f" (or the {count - 1} after it)" if count > 1 and not nonfinite else "")
            raise UserError(
                f"step {step}: the loss is {loss}, the gradient's norm {norm}; the first number that is not finite is "
                f"in {nonfinite or first_nonfinite_gradient(model)}; batch: {where}; nothing of this step was saved: "
                "try a lower --learning-rate, or --skip-nonfinite"
            )
        return record

    def _update(self, loss, lr):
        """Updates the parameters, unless there is a reason not to.

        Returns (the gradient's norm, None or the reason: "nonfinite" or "spike").
        """
        options, scale = self.options, 1 / self.options.grad_accum_steps
        if math.isfinite(loss) and not (options.grad_clip or options.skip_nonfinite or options.skip_spikes):
            # The norm comes out of the update's own pass over the gradients.
            norm = scale * self.optimizer.step(lr, scale)
            return norm, None if math.isfinite(norm) else "nonfinite"
        norm = scale * gradient_norm(self.model)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return norm, "nonfinite"
        scores = self.outliers["train_loss"].update(loss), self.outliers["grad_norm"].update(norm)
        if options.skip_spikes and any(score > options.skip_spikes for score in scores):
            return norm, "spike"
        return scale * self.optimizer.step(lr, scale * clip_scale(norm, options.grad_clip)), None

    def _save(self):
        start = time.perf_counter()
        if not math.isfinite(sum_of_squares(self.model.params_flat)):
            raise UserError(
                f"after step {self.step} the parameters are not finite, first {first_nonfinite(self.model)}; "
                "that was not saved: try a lower --learning-rate"
            )
        self.metrics.sync()
        progress = {
            "step": self.step,
            **self.losses,
            "left_out": self.left_out,
            "outliers": {name: detector.state for name, detector in self.outliers.items()},
            "position": self.train_loader.position,
            **run_description(self.options, self.train_loader, self.val_loader, self.found),
        }
        saved = checkpoint.save(self.out_dir, self.model, self.optimizer, progress, self.options.keep)
        print(f"saved {saved.model} and {saved.state.name} in {time.perf_counter() - start:.1f} s", flush=True)

    def _describe(self):
        options, config = self.options, self.model.config
        print(
            f"[GPT-2] maxT {config.maxT} | V {config.V} | Vp {config.Vp} | L {config.L} | NH {config.NH} | C {config.C}"
        )
        print(f"number of parameters: {config.num_parameters:,}")
        for name, tensor in self.model.params.items():
            print(f"  {name:9s}{tensor.size:>12,}  {tensor.shape}")
        for name, loader in (("training", self.train_loader), ("validation", self.val_loader)):
            if loader:
                print(f"[data] {loader.num_tokens:,} tokens, {loader.num_batches:,} {name} batches an epoch")
        print(
            f"[run] B {options.batch_size} | T {options.seq_len} | accumulation {options.grad_accum_steps} | "
            f"{options.max_steps} steps | lr {options.learning_rate:g} {options.lr_schedule}, "
            f"warm-up {options.warmup_steps} | seed {options.seed} | threads {options.threads}",
            flush=True,
        )

    def _restore(self):
        """Makes everything but the parameters what it was at the checkpoint."""
        found = self.found
        check_data(found, self.train_loader, self.val_loader, self.options)
        go_to_position(found, self.train_loader, self.options)
        try:
            for name, detector in self.outliers.items():
                detector.state = found.progress["outliers"][name]
            self.left_out = {name: int(found.progress["left_out"][name]) for name in self.left_out}
            self.losses = {
                name: float(found.progress[name]) for name in ("train_loss", "val_loss") if name in found.progress
            }
        except (KeyError, TypeError, ValueError, OverflowError, UserError) as error:
            raise not_this_version(found) from error
        found.load_moments(self.optimizer)
        self.step = found.step
        print(f"[resume] {found.folder} after step {found.step}{changed_versions(found)}", flush=True)


def _due(step, every):
    """Whether what happens every so many steps (0: only at the end) happens after this one."""
    return every > 0 and step % every == 0


def _validate(model, loader, batches):
    """Prints and returns the mean loss over the first `batches` of the validation data, 0 for all of them."""
    loader.reset()
    count = min(batches or loader.num_batches, loader.num_batches)
    losses = [
        model.forward(*loader.next_batch())
        for _ in tqdm(range(count), desc="validating", leave=False, disable=None, delay=2)
    ]
    loss = math.fsum(losses) / count
    print(f"val loss {loss:.6f}", flush=True)
    return loss


def _step_line(record, max_steps):
    line = (
        "step {step:{width}d}/{max_steps} | train loss {train_loss:.6f} | norm {grad_norm:.4f} | lr {lr:.2e} | "
        "forward {forward_ms:.0f} ms | backward {backward_ms:.0f} ms | update {update_ms:.0f} ms | "
        "{tokens_per_s:.0f} tok/s"
    ).format(width=len(str(max_steps)), max_steps=max_steps, **record)
    return line + (" | left out: {left_out}, number {left_out_so_far}".format(**record) if "left_out" in record else "")


def _compile_kernels():
    """Loads all kernels, compiled before in the first run, and prints how long that took."""
    start = time.perf_counter()
    prepare_kernels()
    print(f"kernels ready after {time.perf_counter() - start:.1f} s", flush=True)


def _peak_bytes():
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
