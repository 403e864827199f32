"""One step of training: micro-batches, then an update of the parameters, or a reason to skip it."""

import itertools
import math
import time

import numpy as np

from gpt2.errors import UserError
from gpt2.kernels.dropout import Dropout
from gpt2.model import NO_TARGET
from gpt2.optimizer import clip_scale, learning_rate, norm_of
from gpt2.training.health import first_nonfinite, first_nonfinite_gradient
from gpt2.training.norms import layer_norms


def train_step(state, options):
    """Takes the next step of a TrainState; returns its record, a dict for metrics.jsonl.

    Each rank of state.world computes its share of the micro-batches and updates its shard of the parameters. Raises
    UserError if a loss or gradient is not finite and options.skip_nonfinite does not cover it; then the state's
    parameters may be lost.
    """
    step, resolved, world = state.step + 1, state.resolved, state.world
    lr = learning_rate(
        state.step,
        resolved.lr_schedule,
        resolved.learning_rate,
        resolved.warmup_steps,
        resolved.max_steps,
        options.final_lr_fraction,
    )
    epoch = state.loader.epoch
    start, exchanged = time.perf_counter(), world.exchanged
    losses, tokens, where = _gradients(state, options)
    middle, exchanged_before = time.perf_counter(), world.exchanged - exchanged
    state.updating = True
    loss, tokens, norm = _combine(state, options, losses, tokens)
    norms = layer_norms(state, 1 / options.grad_accum_steps) if due(step, options.norms_every) else None
    norm, skipped = _update(state, options, loss, norm, lr)
    if not skipped:
        world.all_gather(state.model.params_flat, state.shards)
    end, exchanged = time.perf_counter(), world.exchanged - exchanged
    seconds = max(end - start, 1e-9)  # a clock may stand still
    record = {
        "step": step,
        "epoch": epoch,
        "train_loss": loss,
        "grad_norm": norm,
        "lr": lr,
        "gradients_ms": 1e3 * (middle - start - exchanged_before),
        "update_ms": 1e3 * (end - middle - (exchanged - exchanged_before)),
        "tokens_per_s": tokens / seconds,
    }
    if world.size > 1:
        record["exchange_ms"] = 1e3 * exchanged
    if norms:
        record["norms"] = norms
    if skipped:
        state.skipped[skipped] += 1
        record |= {"skipped": skipped, "skipped_so_far": state.skipped[skipped]}
        if skipped == "nonfinite" and state.skipped[skipped] > options.skip_nonfinite:
            with world.together():
                raise UserError(
                    f"step {step}: the loss is {loss}, the gradient's norm {norm}; the first number that is not finite "
                    f"is in {_first_place(world, where)}; nothing of this step was saved: try a lower --lr, or "
                    "--skip-nonfinite"
                )
    state.finish_step(record)
    return record


def due(step, every):
    """True if an action with this interval goes with `step`; 0 = never."""
    return every > 0 and step % every == 0


def _gradients(state, options):
    """Computes the gradients of this rank's micro-batches of the step, summed up.

    Returns (the losses, each as its part of the step's mean; tokens; a function that returns the tensor in which the
    first number came up that is not finite, None if there is none, whether that was in computing a loss, and a
    description).
    """
    model, loader, world, count = state.model, state.loader, state.world, options.grad_accum_steps
    own, losses, tensor, start = count // world.size, [], None, loader.position
    try:
        loader.skip(world.rank * own)
        batch = loader.position
        batches = [_next_batch(loader, options) for _ in range(own)]
        if not options.overfit_single_batch:
            loader.skip(count - (world.rank + 1) * own)
        counts = [np.count_nonzero(targets != NO_TARGET) for _, _, targets in batches]
        total = sum(world.gather(sum(counts)))
        for i, (position, tokens, targets) in enumerate(batches):
            compute = model.add_gradients if i else model.overwrite_gradients
            dropout = Dropout(options.dropout, options.seed, state.step + 1, world.rank * own + i)
            # Each target of the step counts alike, wherever it is; the update divides by the micro-batches' number.
            weight = counts[i] * count / total
            batch_loss = compute(tokens, targets, dropout, weight)
            if not (math.isfinite(batch_loss) or tensor):
                tensor, batch = first_nonfinite(model), position
            losses.append(batch_loss * weight / count)
    except BaseException:
        loader.position = start  # the step may be saved as not begun
        raise

    def where():
        if tensor:
            return tensor, True, f"{tensor}; batch: {loader.where(batch)}"
        found, others = first_nonfinite_gradient(model), f" (or the {count - 1} after it)" if count > 1 else ""
        return found, False, f"{found}; batch: {loader.where(start)}{others}"

    return losses, sum(tokens.size for _, tokens, _ in batches), where


def _next_batch(loader, options):
    """Returns (position, tokens, targets) of the next batch."""
    if options.overfit_single_batch:
        loader.reset()
    return loader.position, *loader.next_batch()


def _combine(state, options, losses, tokens):
    """Adds up what the ranks have: each shard's gradients on its own rank, the rest on all.

    Returns (the loss, tokens, the norm of the gradients' sum, or None if the update is to measure it).
    """
    world, optimizer = state.world, state.optimizer
    world.reduce_scatter(state.model.grads_flat, state.shards)
    is_measured = world.size > 1 or _is_watched(state, options) or not math.isfinite(sum(losses))
    if is_measured:
        optimizer.measure()
    ranks, combined = world.to_first((losses, tokens, optimizer.squares if is_measured else None)), None
    if world.is_first:
        losses, counts, squares = zip(*ranks, strict=True)
        loss = 0.0
        for each in itertools.chain.from_iterable(losses):  # in order: sum() has another from Python 3.12 on
            loss += each
        combined = loss, sum(counts), norm_of(np.concatenate(squares)) if is_measured else None
    return world.of_first(combined)


def _update(state, options, loss, norm, lr):
    """Updates the parameters, unless there is a reason not to.

    Returns (the norm of the mean gradient, None or the reason: "nonfinite" or "spike").
    """
    optimizer, clip, scale = state.optimizer, state.resolved.grad_clip, 1 / options.grad_accum_steps
    if norm is None:
        # The norm is a by-product of the update's own pass over the gradients.
        norm = scale * optimizer.step(lr, scale)
        return norm, None if math.isfinite(norm) else "nonfinite"
    norm *= scale
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return norm, "nonfinite"
    if _is_watched(state, options):
        scores = state.outliers["train_loss"].update(loss), state.outliers["grad_norm"].update(norm)
        if options.skip_spikes and any(score > options.skip_spikes for score in scores):
            return norm, "spike"
    optimizer.step(lr, scale * clip_scale(norm, clip))
    return norm, None


def _is_watched(state, options):
    """Whether the update depends on the norm."""
    return bool(state.resolved.grad_clip or options.skip_nonfinite or options.skip_spikes)


def _first_place(world, where):
    """Describes where the first number is that is not finite, on whichever rank it came up."""
    found = [(is_loss, place) for tensor, is_loss, place in world.gather(where()) if tensor]
    return next((place for is_loss, place in found if is_loss), found[0][1])
