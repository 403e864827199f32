"""Signs of a run that goes astray: numbers that are not finite, losses and gradient norms that are outliers."""

import collections
import math

import numpy as np

from gpt2.errors import UserError
from gpt2.layout import parameter_layout
from gpt2.model import activation_layout

CHUNK = 2**20  # elements examined at a time: the booleans of a whole tensor would take a quarter of its memory


def first_nonfinite(model):
    """Names the first tensor that holds a NaN or an infinity, and the first such place in it; None if there is none.

    model: a GPT2 after a forward pass with targets, before its parameters are updated. Examined in the order of
    computation: parameters, the activations that the forward pass kept, then gradients, as by
    `first_nonfinite_gradient`. Layers, rows, columns and indices count from 0; a row of an activation is a token of the
    batch. Example: "fch of layer 3 (row 17, column 5 of (256, 3072))".
    """
    found = _first_of(parameter_layout(model.config).by_layer(model.params))
    if found is None and model.acts:
        B, T = model.acts["qkv"].shape[1:3]
        found = _first_of(activation_layout(model.config, B, T).by_layer(model.acts))
    return found or first_nonfinite_gradient(model)


def first_nonfinite_gradient(model):
    """The same for the gradients alone, which an update of the parameters does not change.

    They are examined from that of the final layernorm down to those of the embeddings, wte's last.
    """
    if not model.has_gradients:
        return None
    found = _first_of(reversed(list(parameter_layout(model.config).by_layer(model.grads))))
    return found and f"the gradient of {found}"


def _first_of(tensors):
    for name, layer, tensor in tensors:
        flat = tensor.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            finite = np.isfinite(flat[start : start + CHUNK])
            if not finite.all():
                of_layer = "" if layer is None else f" of layer {layer}"
                return f"{name}{of_layer} ({_place(start + int(finite.argmin()), tensor.shape)})"
    return None


def _place(position, shape):
    index = [int(i) for i in np.unravel_index(position, shape)]
    if len(index) == 2:
        return f"row {index[0]}, column {index[1]} of {shape}"
    return f"index {', '.join(map(str, index))} of {shape}"


class OutlierDetector:
    """The z-scores of a series of numbers over a moving window, as outlier_detector.h of llm.c defines them.

    A value is part of the window it is compared with, so no score exceeds sqrt(window - 1), 11.3 for llm.c's window of
    128. Mean and deviation are recomputed from the window each time, not from running sums as in llm.c: nothing drifts,
    and only the window needs to be saved.
    """

    def __init__(self, window=128):
        """window: values in it, at least 2."""
        self._values = collections.deque(maxlen=window)

    def update(self, value):
        """Returns the z-score of the next value: (value - mean) / standard deviation of the last `window` values, this
        one included; 0.0 if they are all the same, and NaN for the first `window` values.

        A value that is not finite gives NaN and doesn't enter the window.
        """
        value = float(value)
        if not math.isfinite(value):
            return math.nan
        values, window = self._values, self._values.maxlen
        was_full = len(values) == window
        values.append(value)
        if not was_full:
            return math.nan
        if min(values) == max(values):
            return 0.0
        mean = math.fsum(each / window for each in values)
        return math.sqrt(window) * (value - mean) / math.hypot(*(each - mean for each in values))

    @property
    def window(self):
        """The number of values compared with."""
        return self._values.maxlen

    @property
    def state(self):
        """The window, a list of floats, oldest first. Assigning a saved one goes on from it.

        Raises UserError if what is assigned cannot be a window.
        """
        return list(self._values)

    @state.setter
    def state(self, values):
        window = self._values.maxlen
        if (
            not isinstance(values, list)
            or len(values) > window
            or not all(type(value) is float and math.isfinite(value) for value in values)
        ):
            raise UserError(f"the values saved for finding outliers are not a list of at most {window} finite numbers")
        self._values = collections.deque(values, window)
