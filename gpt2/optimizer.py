"""AdamW over the flat buffers, the gradient's norm, and learning-rate schedules."""

import itertools
import math

from gpt2.kernels.adamw import adamw_update, sum_of_squares
from gpt2.layout import MATRICES, parameter_layout
from gpt2.memory import allocate


class AdamW:
    """AdamW with decoupled weight decay on matrices and embeddings only; moments live in two flat arrays, m and v."""

    def __init__(self, model, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        self.model = model
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.layout = parameter_layout(model.config)
        self.m = allocate(self.layout.size, model.params_flat.dtype, "AdamW's first moments")
        self.v = allocate(self.layout.size, model.params_flat.dtype, "AdamW's second moments")
        self.steps = 0
        self._parts = []
        for is_matrix, names in itertools.groupby(self.layout.shapes, MATRICES.__contains__):
            slices = [self.layout.slice(name) for name in names]
            self._parts.append((slice(slices[0].start, slices[-1].stop), is_matrix))

    def step(self, lr, grad_scale=1.0):
        """Updates the model's parameters with its gradients times `grad_scale`; returns the norm of the gradients."""
        self.steps += 1
        squares = 0.0
        for part, is_matrix in self._parts:
            squares += adamw_update(
                self.model.params_flat[part],
                self.model.grads_flat[part],
                self.m[part],
                self.v[part],
                lr,
                self.beta1,
                self.beta2,
                self.eps,
                self.weight_decay if is_matrix else 0.0,
                grad_scale,
                self.steps,
            )
        return math.sqrt(squares)


def gradient_norm(model):
    """The Euclidean norm of all gradients together."""
    return math.sqrt(sum_of_squares(model.grads_flat))


def clip_scale(norm, limit):
    """The factor that brings a gradient of this norm to at most `limit`; 1.0 for limit 0, which is off."""
    return limit / norm if 0 < limit < norm else 1.0


SCHEDULES = ("constant", "cosine", "linear", "wsd")


def learning_rate(step, schedule, peak, warmup_steps, max_steps, final_fraction):
    """The learning rate of a step, counted from 0 to max_steps - 1.

    It climbs to `peak` over `warmup_steps`, linearly, then goes as `schedule` says to final_fraction * peak: cosine and
    linear over all steps that are left, wsd (warm-up, stable, decay; Hu et al., MiniCPM, 2024) linearly over the last
    fifth of the run; constant stays at the peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    decay_steps = {"constant": 0, "wsd": max(1, max_steps // 5)}.get(schedule, max_steps - warmup_steps)
    progress = (step - (max_steps - decay_steps)) / decay_steps if decay_steps else 0.0
    if progress <= 0:
        return peak
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return peak * (final_fraction + (1 - final_fraction) * remaining)
