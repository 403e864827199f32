"""AdamW over the flat buffers, the gradient's norm, and learning-rate schedules."""

import itertools
import math

from gpt2.kernels.adamw import adamw_update, sum_of_squares
from gpt2.layout import MATRICES, parameter_layout
from gpt2.memory import allocate


class AdamW:
    """AdamW with decoupled weight decay on matrices and embeddings only.

    Attributes: `m` and `v`, the moments, flat arrays laid out like the parameters; `steps` taken. These are what a
    checkpoint keeps, so an optimizer of your own is a subclass with another `step`: train(options, optimizer=Lion).
    """

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
        """Updates the model's parameters with its gradients times `grad_scale`; returns the norm of the gradients.

        Raises ValueError if `m`, `v` or `model` were replaced by others of another size.
        """
        arrays = {"m": self.m, "v": self.v, "params_flat": self.model.params_flat}
        for name, array in arrays.items():
            if array.shape != (self.layout.size,):
                raise ValueError(f"{name} of shape {array.shape}: expected ({self.layout.size},)")
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


def learning_rate(step, schedule, peak, warmup_steps, max_steps, final_fraction):
    """The learning rate of a step, counted from 0 to max_steps - 1.

    It climbs to `peak` linearly over `warmup_steps`, then falls towards final_fraction * peak as the function in
    SCHEDULES that `schedule` names says.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    remaining = SCHEDULES[schedule](step, warmup_steps, max_steps)
    return peak if remaining == 1 else peak * (final_fraction + (1 - final_fraction) * remaining)


def constant(step, warmup_steps, max_steps):
    """The peak throughout."""
    return 1.0


def cosine(step, warmup_steps, max_steps):
    """Half a cosine over all steps after the warm-up (Loshchilov and Hutter, SGDR, 2017)."""
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(step, warmup_steps, max_steps):
    """Linearly over all steps after the warm-up."""
    return 1 - (step - warmup_steps) / (max_steps - warmup_steps)


def wsd(step, warmup_steps, max_steps):
    """Warm-up, stable, decay (Hu et al., MiniCPM, 2024): linearly over the last fifth of the run."""
    decay_steps = max(1, max_steps // 5)
    return 1 - max(0, step - (max_steps - decay_steps)) / decay_steps


# Name -> function(step, warmup_steps, max_steps), which returns what is left of the way from the peak down to the final
# rate, from 1 to 0, for a step after the warm-up. A schedule of your own is one more entry: --lr-schedule takes it.
SCHEDULES = {function.__name__: function for function in (constant, cosine, linear, wsd)}
