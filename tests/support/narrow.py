"""What weights in narrower forms stand for, from the forms' definitions."""

import numpy as np

from gpt2.formats.llmc import round_to_bfloat16
from gpt2.inference.weights import BF16, INT8, NARROWED, converted, quantised


def values(weights, form):
    """Returns float32 weights (...,C) as rounded to a form, float32 (...,C)."""
    if form == BF16:
        return _eight_bits(np.rint, weights).astype(np.float32)
    if form == INT8:
        C = weights.shape[-1]
        groups = [_int8(weights[..., start : start + 32]) for start in range(0, C, 32)]
        return np.concatenate(groups, axis=-1).astype(np.float32)
    return weights


def _eight_bits(rounded, numbers):
    """Rounds numbers to 8 significant bits, as a bfloat16 has."""
    fractions, exponents = np.frexp(np.asarray(numbers, np.float64))
    return np.ldexp(rounded(fractions * 256), exponents - 8)


def _int8(group):
    scale = _eight_bits(np.ceil, np.abs(group).max(axis=-1, keepdims=True) / np.float32(127))
    return np.rint(group / np.where(scale == 0, 1, scale)) * scale


def stored(weights, form):
    """Returns a float32 matrix (OC,C) in a form, as the kernels take it."""
    return {BF16: round_to_bfloat16, INT8: quantised}.get(form, np.asarray)(weights)


def narrow(model, form):
    """Returns the model's weights in a form, and rounds those of the model accordingly."""
    weights = converted(model.config, model.params_flat.copy(), form)
    for name in NARROWED:
        model.params[name][...] = values(model.params[name], form)
    return weights
