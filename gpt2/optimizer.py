"""Optimizers over the flat arrays, the gradient's norm, and learning-rate schedules."""

import dataclasses
import itertools
import math

import numpy as np

from gpt2.kernels.adamw import BLOCK, adamw_update, block_squares
from gpt2.layout import MATRICES, parameter_layout
from gpt2.memory import allocate


@dataclasses.dataclass
class Part:
    """A stretch of the flat arrays whose parameters are updated alike.

    params, grads: views (n,). state: a tuple of views (n,), in the order of the optimizer's STATE. weight_decay: that
    of these parameters, 0 for biases and layernorms. squares, offset: as for kernels.adamw.block_squares of grads.
    """

    params: np.ndarray
    grads: np.ndarray
    state: tuple[np.ndarray, ...]
    weight_decay: float
    squares: np.ndarray
    offset: int


class Optimizer:
    """Updates a model's parameters in place. A subclass declares STATE and has `update`; OPTIMIZERS lists it.

    STATE names the flat arrays, laid out like the parameters, that it keeps from step to step: attributes, which a
    checkpoint saves with `steps`, the steps taken. MEASURES: whether `update` adds to part.squares itself. Weight decay
    is for matrices and embeddings only.

    shard: the slice of the flat arrays that it updates and has a state for, from a multiple of BLOCK on. None: all.
    squares: float64 (blocks,), sums of squares of the last step's gradients by block of the shard.
    """

    STATE = ()
    MEASURES = False

    def __init__(self, model, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, shard=None):
        self.model = model
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.layout = parameter_layout(model.config)
        self.shard = shard or slice(0, self.layout.size)
        self.size = self.shard.stop - self.shard.start
        assert self.shard.start % BLOCK == 0
        for name in self.STATE:
            setattr(self, name, allocate(self.size, model.params_flat.dtype, f"the optimizer's {name}"))
        self.squares = np.zeros(-(-self.size // BLOCK))
        self.steps = 0

    @property
    def state(self):
        """The arrays that STATE names, each (size,). Raises ValueError if one was replaced by another size."""
        arrays = tuple(getattr(self, name) for name in self.STATE)
        for name, array in zip(self.STATE, arrays, strict=True):
            if array.shape != (self.size,):
                raise ValueError(f"{name} of shape {array.shape}: expected ({self.size},)")
        return arrays

    def step(self, lr, grad_scale=1.0):
        """Updates the model's parameters with its gradients times `grad_scale`; returns the norm of the gradients.

        Raises ValueError if `model` or an array of the state was replaced by another of another size.
        """
        parts = self._parts()
        self.steps += 1
        if self.MEASURES:
            self.squares.fill(0)
        else:
            self.measure()
        for part in parts:
            self.update(part, lr, grad_scale)
        return norm_of(self.squares)

    def update(self, part, lr, grad_scale):
        """Updates a Part's parameters and state in place, with its gradients times `grad_scale`. lr: the rate."""
        raise NotImplementedError

    def measure(self):
        """Sets `squares` to those of the gradients that there are now."""
        self.squares.fill(0)
        for part in self._parts():
            block_squares(part.grads, part.squares, part.offset)

    def _parts(self):
        params, grads, state = self.model.params_flat, self.model.grads_flat, self.state
        if params.shape != (self.layout.size,):
            raise ValueError(f"params_flat of shape {params.shape}: expected ({self.layout.size},)")
        parts, first = [], self.shard.start
        for is_matrix, names in itertools.groupby(self.layout.shapes, MATRICES.__contains__):
            slices = [self.layout.slice(name) for name in names]
            start, stop = max(slices[0].start, first), min(slices[-1].stop, self.shard.stop)
            if start < stop:
                own = slice(start - first, stop - first)
                block, offset = divmod(own.start, BLOCK)
                decay = self.weight_decay if is_matrix else 0.0
                views = params[start:stop], grads[start:stop], tuple(array[own] for array in state)
                parts.append(Part(*views, decay, self.squares[block:], offset))
        return parts


class AdamW(Optimizer):
    """AdamW with decoupled weight decay (Loshchilov and Hutter, 2019). `m` and `v` are the moments."""

    STATE = ("m", "v")
    MEASURES = True  # in the one pass over the gradients

    def update(self, part, lr, grad_scale):
        adamw_update(
            part.params,
            part.grads,
            *part.state,
            lr,
            self.beta1,
            self.beta2,
            self.eps,
            part.weight_decay,
            grad_scale,
            self.steps,
            part.squares,
            part.offset,
        )


# Name -> subclass of Optimizer. One of your own is one more entry: --optimizer takes it.
OPTIMIZERS = {"adamw": AdamW}


def shards(size, n):
    """Cuts flat arrays of `size` elements into n slices, one a rank: of whole blocks, equal to within one block."""
    blocks = -(-size // BLOCK)
    cuts = [min(size, rank * blocks // n * BLOCK) for rank in range(n + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts)]


def norm_of(squares):
    """The Euclidean norm, from sums of squares, float64 (n,), n >= 1, which are added from the first to the last."""
    return math.sqrt(np.cumsum(squares)[-1])


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
