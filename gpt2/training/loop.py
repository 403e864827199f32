"""The training loop: start or resume; then step, save, validate, sample."""

import contextlib
import dataclasses
import math
import os
import pathlib
import sys
import time

import numpy as np
from tqdm import tqdm

from gpt2 import distributed
from gpt2.distributed import SERIAL
from gpt2.errors import UserError
from gpt2.formats.run import NORMS, is_best
from gpt2.inference.warmup import prepare_kernels_on_all
from gpt2.machine import set_threads
from gpt2.model import NO_TARGET
from gpt2.output import lossy_output
from gpt2.training import checkpoint, report
from gpt2.training.metrics import records_before
from gpt2.training.norms import draw_norms
from gpt2.training.options import TrainOptions, flag
from gpt2.training.reporters import require_packages
from gpt2.training.resume import resumed_options
from gpt2.training.run_folder import locked_folder, set_aside_earlier_run
from gpt2.training.samples import SAMPLE_LIMIT
from gpt2.training.setup import resume_run, start_run
from gpt2.training.signals import StopSignals
from gpt2.training.step import due, train_step


@dataclasses.dataclass
class TrainResult:
    """The outcome of a run. The losses are dicts of step -> loss, for the steps that this call took.

    state: the TrainState at the end. signal: number of the signal that ended the run early, or None.
    """

    state: object
    train_losses: dict
    val_losses: dict
    signal: int | None = None

    @property
    def exit_status(self):
        """None for a run that came to its end, else 128 + the signal, as shells count."""
        return None if self.signal is None else 128 + self.signal


@lossy_output()
def train(options, *, on_step=None):
    """Trains as TrainOptions say, from the first step on; returns a TrainResult.

    on_step(state, record): called after each step, its validation and sample, before the record, a dict, goes to
    metrics.jsonl; what it adds goes there, too. On several ranks each calls it, and rank 0 writes its record. Raises
    UserError.
    """
    with contextlib.ExitStack() as stack:
        world = _world(stack, options)
        with world.together():
            options = options.among(world)
            if world.is_first:
                require_packages(options.report_to)
            set_threads(options.threads)
            folder = locked_folder(options.out_dir, stack) if world.is_first else pathlib.Path(options.out_dir)
            run = start_run(options, folder, world)
        with world.together():
            if world.is_first:
                run.before = stack.enter_context(records_before(options.init))
                set_aside_earlier_run(folder, stack, run.token_files)  # only now: its model may be the earlier run's
        return _take_steps(run, on_step)


@lossy_output()
def resume(folder, changes=(), anyway=False, *, on_step=None):
    """Continues the run in a folder from its newest whole checkpoint, as `train` would have; returns a TrainResult.

    changes: a dict of options that get other values, where not None; out_dir moves the run. anyway: accept options or
    data with which the run could not have come there. Raises UserError.
    """
    changes = {"out_dir": folder} | {name: value for name, value in dict(changes).items() if value is not None}
    with distributed.world().together():
        given = TrainOptions(**changes)  # refuses bad values before anything is touched
    with contextlib.ExitStack() as stack:
        world = _world(stack, given)
        out_dir, found = pathlib.Path(changes["out_dir"]), None
        with world.together():
            if world.is_first:
                if not os.path.isdir(folder):
                    raise UserError(f"{folder}: no such folder; --resume takes the --out-dir of an earlier run")
                out_dir = locked_folder(out_dir, stack)
                if out_dir.samefile(folder) and is_best(out_dir):
                    raise UserError(
                        f"{folder}: the best checkpoint of a run; to continue from it, give another --out-dir"
                    )
                found = checkpoint.find(folder)
                if out_dir.resolve() in found.folder.resolve().parents:
                    raise UserError(f"--out-dir {out_dir}: contains the run to resume; choose another, or that folder")
            found = world.of_first(found)
            options, resolved = resumed_options(found, changes, anyway)
            options = options.among(world)
            if world.is_first:
                require_packages(options.report_to)
            set_threads(options.threads)
            run = resume_run(found, options, resolved, anyway, out_dir, world)
        with world.together():
            if world.is_first and run.in_place:
                checkpoint.finish_interrupted_save(found, options.keep)
            elif world.is_first:
                set_aside_earlier_run(out_dir, stack, run.token_files)
        return _take_steps(run, on_step)


def _world(stack, options):
    """Returns the distributed.World, whose ranks act as one until the ExitStack `stack` closes."""
    world = distributed.world()
    world.timeout = options.timeout
    stack.enter_context(world.as_one())
    if world.size > 1:
        values = dataclasses.asdict(options)
        values["threads"] = None  # may differ
        world.require_same({flag(name): value for name, value in values.items()})
    return world


def _take_steps(run, on_step):
    options, state, world = run.options, run.state, run.state.world
    result = TrainResult(state, {}, {})
    report.describe(options, state, run.val_loader)
    _prepare_kernels(type(state.optimizer), world)
    if not run.found:  # a resumed run keeps its precision
        report.offer_bf16(state.model, options.batch_size * state.resolved.seq_len)
    run.open()
    if state.step >= run.max_steps and run.found:
        print(f"nothing is left to do after step {state.step}: --max-steps makes the run longer")
    lines, unshown = report.StepLines(state.step, run.max_steps), None
    with StopSignals(world) as stop, run.reporters:
        complete = True
        if state.record and not run.is_recorded:  # step 0, or a step that was saved, but no more
            complete = _after_step(run, stop, on_step, result)
        while not run.is_over and not stop.received:
            with _saved_if_it_fails(run):
                unshown = record = train_step(state, options)
                result.train_losses[state.step] = record["train_loss"]
            stop.agree()
            is_last = stop.received or state.step == run.max_steps
            if "skipped" in record or is_last or due(state.step, options.log_every):
                lines.show(record)
                unshown = None
            if stop.received or state.step == run.max_steps or due(state.step, options.checkpoint_every):
                run.save()
            with _saved_if_it_fails(run):
                complete = _after_step(run, stop, on_step, result)
        if unshown:  # --patience ended the run
            lines.show(unshown)
        if state.step or run.max_steps == 0:
            run.save()
        if not (run.is_over and complete):
            result.signal = stop.received
            if run.saved is None:
                return result
            print(f"resume with: {run.resume_command}", flush=True)
        else:
            run.finish()
            if run.out_of_patience:
                report.show_end_by_patience(state)
        if world.is_first:
            _draw(run.metrics)
    return result


def _after_step(run, stop, on_step, result):
    """Validates and samples if due, and records the step. Returns False if a signal leaves that to a resumed run."""
    options, state, record = run.options, run.state, dict(run.state.record)
    last = state.step == run.max_steps
    if run.val_loader and (last or state.step == 0 or due(state.step, options.val_every)):
        loss = _validate(state.model, run.val_loader, options.val_batches, stop, state.world)
        if loss is None:
            return False
        print(f"val loss {loss:.6f} after step {state.step}", flush=True)
        record["val_loss"] = result.val_losses[state.step] = loss
        if state.note_validation(loss) and options.keep_best:
            run.save_best()
    samples = options.sample_every and state.step and (last or due(state.step, options.sample_every))
    if samples and state.world.size > 1:
        stop.agree()
        if stop.received:
            return False
    if samples and run.sampler:
        text = run.sampler.show(state.step, stop)
        if text is None:
            return False
        record["sample"] = text[:SAMPLE_LIMIT]
    stop.agree()
    if on_step and state.step:
        on_step(state, record)
    # Last: a step without a record is one that a resumed run completes.
    if len(record) > 1 and state.world.is_first:  # without a validation there is nothing to record of step 0
        run.metrics.write(record)
        run.reporters.write(record)
    return True


@contextlib.contextmanager
def _saved_if_it_fails(run):
    """If anything inside fails, saves the last step that was completed before the error is raised."""
    try:
        yield
    except BaseException:
        try:
            # Of several ranks the others may be anywhere, and all are about to end.
            if run.state.step and not run.state.updating and run.state.world.size == 1:
                run.save()
        except UserError as error:
            print(f"step {run.state.step} could not be saved: {error}", file=sys.stderr, flush=True)
        raise


def _draw(metrics):
    """Draws losses and norms. The run is saved and its exit status stands, whatever becomes of the pictures."""
    norms = metrics.path.with_name(NORMS)
    for shown, picture, draw in (
        (f"losses in {metrics.path} and", metrics.picture, metrics.draw),
        ("gradient norms in", norms, lambda: draw_norms(metrics.path, norms)),
    ):
        try:
            draw()
        except Exception as error:
            reason = error if isinstance(error, UserError) else repr(error)
            print(f"{picture} could not be drawn: {reason}", file=sys.stderr, flush=True)
        else:
            if picture.exists():
                print(f"{shown} {picture}", flush=True)


def _validate(model, loader, batches, stop, world=SERIAL):
    """Returns the mean loss of the targets in the first `batches` of the validation data, 0 for all of them.

    The ranks take turns at the batches. Returns None once a signal asks the run to stop.
    """
    loader.reset()
    loader.skip(world.rank)
    count = min(batches or loader.num_batches, loader.num_batches)
    found = []
    for first in tqdm(range(0, count, world.size), desc="validating", leave=False, disable=None, delay=2):
        stop.agree()
        if stop.received:
            return None
        if first + world.rank < count:
            tokens, targets = loader.next_batch()
            found.append((np.count_nonzero(targets != NO_TARGET), model.forward(tokens, targets)))
            loader.skip(world.size - 1)
    ranks = world.gather(found)
    found = [ranks[batch % world.size][batch // world.size] for batch in range(count)]
    # The targets of the first batch weigh 1, as those of all batches do unless some targets do not count.
    weights = [weight for weight, _ in found]
    return math.fsum(loss * (weight / weights[0]) for weight, loss in found) / (sum(weights) / weights[0])


def _prepare_kernels(optimizer, world):
    start = time.perf_counter()
    prepare_kernels_on_all(world, optimizer=optimizer)
    print(f"kernels ready after {time.perf_counter() - start:.1f} s", flush=True)
