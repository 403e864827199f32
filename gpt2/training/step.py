"""One step of training: micro-batches, then an update of the parameters, or a reason to skip it."""

import math
import time

import numpy as np

from gpt2.errors import UserError
from gpt2.kernels.dropout import Dropout
from gpt2.model import NO_TARGET
from gpt2.optimizer import clip_scale, gradient_norm, learning_rate
from gpt2.training.health import first_nonfinite, first_nonfinite_gradient


def train_step(state, options):
    """Takes the next step of a TrainState; returns its record, a dict for metrics.jsonl.

    Raises UserError if a loss or gradient is not finite and options.skip_nonfinite does not cover it; then the state's
    parameters may be lost.
    """
    step, resolved = state.step + 1, state.resolved
    lr = learning_rate(
        state.step,
        resolved.lr_schedule,
        resolved.learning_rate,
        resolved.warmup_steps,
        resolved.max_steps,
        options.final_lr_fraction,
    )
    epoch = state.loader.epoch
    start = time.perf_counter()
    loss, tokens, where = _gradients(state, options)
    middle = time.perf_counter()
    state.updating = True
    norm, skipped = _update(state, options, loss, lr)
    end = time.perf_counter()
    seconds = max(end - start, 1e-9)  # a clock may stand still
    record = {
        "step": step,
        "epoch": epoch,
        "train_loss": loss,
        "grad_norm": norm,
        "lr": lr,
        "gradients_ms": 1e3 * (middle - start),
        "update_ms": 1e3 * (end - middle),
        "tokens_per_s": tokens / seconds,
    }
    if skipped:
        state.skipped[skipped] += 1
        record |= {"skipped": skipped, "skipped_so_far": state.skipped[skipped]}
        if skipped == "nonfinite" and state.skipped[skipped] > options.skip_nonfinite:
            raise UserError(
                f"step {step}: the loss is {loss}, the gradient's norm {norm}; the first number that is not finite is "
                f"in {where()}; nothing of this step was saved: try a lower --learning-rate, or --skip-nonfinite"
            )
    state.finish_step(record)
    return record


def _gradients(state, options):
    """Computes the gradients of the step's micro-batches, summed up.

    Returns (mean loss, tokens, a function that says where the first number that is not finite came up).
    """
    model, loader, count = state.model, state.loader, options.grad_accum_steps
    loss, tensor, batch = 0.0, None, loader.position
    start = batch
    try:
        batches = [_next_batch(loader, options) for _ in range(count)]
        counts = [np.count_nonzero(targets != NO_TARGET) for _, _, targets in batches]
        for micro_step, (position, tokens, targets) in enumerate(batches):
            compute = model.add_gradients if micro_step else model.overwrite_gradients
            dropout = Dropout(options.dropout, options.seed, state.step + 1, micro_step)
            # Each target of the step counts alike, wherever it is; the update divides by the micro-batches' number.
            weight = counts[micro_step] * count / sum(counts)
            batch_loss = compute(tokens, targets, dropout, weight)
            if not (math.isfinite(batch_loss) or tensor):
                tensor, batch = first_nonfinite(model), position
            loss += batch_loss * weight / count
    except BaseException:
        loader.position = start  # the step may be saved as not begun
        raise

    def where():
        others = f" (or the {count - 1} after it)" if count > 1 and not tensor else ""
        return f"{tensor or first_nonfinite_gradient(model)}; batch: {loader.where(batch)}{others}"

    return loss, sum(tokens.size for _, tokens, _ in batches), where


def _next_batch(loader, options):
    """Returns (position, tokens, targets) of the next batch."""
    if options.overfit_single_batch:
        loader.reset()
    return loader.position, *loader.next_batch()


def _update(state, options, loss, lr):
    """Updates the parameters, unless there is a reason not to.

    Returns (the gradient's norm, None or the reason: "nonfinite" or "spike").
    """
    optimizer, clip, scale = state.optimizer, state.resolved.grad_clip, 1 / options.grad_accum_steps
    if math.isfinite(loss) and not (clip or options.skip_nonfinite or options.skip_spikes):
        # The norm is a by-product of the update's own pass over the gradients.
        norm = scale * optimizer.step(lr, scale)
        return norm, None if math.isfinite(norm) else "nonfinite"
    norm = scale * gradient_norm(state.model)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return norm, "nonfinite"
    scores = state.outliers["train_loss"].update(loss), state.outliers["grad_norm"].update(norm)
    if options.skip_spikes and any(score > options.skip_spikes for score in scores):
        return norm, "spike"
    return scale * optimizer.step(lr, scale * clip_scale(norm, clip)), None
