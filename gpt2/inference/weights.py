"""Weights in the form that text is generated from: float32, bfloat16, or int8 with a scale for each group of a row."""

import numpy as np

from gpt2.formats.llmc import round_to_bfloat16, widen_bfloat16
from gpt2.formats.pretrained import load_weights
from gpt2.inference.forms import BF16, FLOAT32, INT8
from gpt2.kernels.decode import Weights
from gpt2.kernels.engine.widen import GROUP, quantised_row
from gpt2.layout import MATRICES, parameter_layout
from gpt2.memory import allocate

# What a token reads in whole; biases, layernorms and position embeddings stay float32.
NARROWED = tuple(name for name in MATRICES if name != "wpe")
_DTYPES = {FLOAT32: np.float32, BF16: np.uint16, INT8: np.int8}
_CHUNK = 2**18  # weights converted at a time
_LARGEST = 127


def load(name, form=None):
    """Returns (GPT2Config, Weights) of a model; name and errors as for `load_weights`.

    form: one of FORMS; None: as stored. A version 3 file as float32, and a version 5 file as bf16, are memory-mapped.
    """
    config, params = load_weights(name, writable=False, bfloat16=form != FLOAT32)
    return config, converted(config, params, form)


def converted(config, params, form=None):
    """Returns Weights. params: float32, or uint16 for bfloat16, (parameter_layout(config).size,). form: as for `load`.

    What is in that form already is not copied. Raises UserError if there is too little memory, or a weight is too large
    for bfloat16. A NaN stays one.
    """
    stored = BF16 if params.dtype == np.uint16 else FLOAT32
    form, tensors = form or stored, parameter_layout(config).views(params)
    if form == stored == FLOAT32:
        return Weights(**tensors)
    return Weights(
        **{name: _in_form(tensor, stored, form if name in NARROWED else FLOAT32) for name, tensor in tensors.items()}
    )


def form_of(weights):
    """Returns the form of Weights."""
    return next(form for form, dtype in _DTYPES.items() if weights.wte.dtype == dtype)


def _in_form(tensor, stored, form):
    """Converts a tensor (...,C), chunk by chunk; float32 is copied, so that nothing keeps the model's own in memory."""
    if stored == form == BF16:
        return tensor
    C = tensor.shape[-1]
    columns = quantised_row(C)[1] if form == INT8 else C
    rows = tensor.reshape(-1, C)
    out = allocate(len(rows) * columns, _DTYPES[form], f"the weights as {form}").reshape(-1, columns)
    step = max(1, _CHUNK // C)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        if stored == BF16:
            widened = np.empty(part.shape, np.float32)
            widen_bfloat16(part, widened)
            part = widened
        out[start : start + step] = {FLOAT32: np.asarray, BF16: round_to_bfloat16, INT8: quantised}[form](part)
    return out.reshape(*tensor.shape[:-1], columns)


def quantised(rows):
    """Rounds rows of weights, float32 (n,C), to int8 rows as in `quantised_row`, (n, its length).

    A scale is the largest magnitude of a group / 127, rounded up to a bfloat16. One of NaN or infinity is NaN.
    """
    n, C = rows.shape
    offset, length = quantised_row(C)
    groups = np.zeros((n, -(-C // GROUP) * GROUP), np.float32)
    groups[:, :C] = rows
    groups = groups.reshape(n, -1, GROUP)
    largest = np.abs(groups).max(axis=2)
    bits = (largest / np.float32(_LARGEST)).view(np.uint32)
    scales = ((bits + 0xFFFF) >> 16).astype(np.uint16)
    finite = np.isfinite(largest)
    scales[~finite] = 0x7FC0
    divisors = np.ones(scales.shape, np.float32)
    usable = finite & (scales > 0)
    widened = np.empty(scales.shape, np.float32)
    widen_bfloat16(scales, widened)
    divisors[usable] = widened[usable]
    numbers = np.where(finite[:, :, None], np.rint(groups / divisors[:, :, None]), 1)
    out = np.zeros((n, length), np.int8)
    out[:, : 2 * scales.shape[1]] = scales.view(np.int8)
    out[:, offset : offset + numbers[0].size] = numbers.reshape(n, -1)
    return out
