"""Compares a model's logits, loss and gradients with a reference state that another implementation wrote.

Usage: python -m gpt2.verify MODEL.bin STATE.bin
"""

import argparse
import typing

import numpy as np

from gpt2.errors import UserError, run_command
from gpt2.formats.files import HEADER_BYTES, atomic_write, check_size, open_to_read, read_header, write_header
from gpt2.layout import parameter_layout
from gpt2.model import GPT2

MAGIC = 20240327
VERSION = 2
LOGITS_LIMIT = 1e-3  # largest difference
LOSS_LIMIT = 1e-4  # difference
GRADIENT_LIMIT = 1e-3  # norm of the difference, relative to the reference's norm


class State(typing.NamedTuple):
    """What a model made of one batch.

    inputs, targets: int32 (B, T). logits: float32 (B, T, V). loss: the mean. grads: dict of name -> float32, with the
    names, order and shapes of parameter_layout(config).
    """

    inputs: np.ndarray
    targets: np.ndarray
    logits: np.ndarray
    loss: float
    grads: dict


def read_state(path, config):
    """Reads a reference state for a model with the sizes of `config`.

    Raises UserError, before anything is allocated, for a header or a length that does not fit, then for token ids.
    """
    layout = parameter_layout(config)
    with open_to_read(path) as file:
        magic, version, B, T = (int(value) for value in read_header(file, path, "a reference state")[:4])
        if magic != MAGIC:
            raise UserError(f"{path}: not a reference state: it starts with {magic}, expected {MAGIC}")
        if version != VERSION:
            raise UserError(f"{path}: reference state of version {version}, expected {VERSION}")
        if B < 1 or not 1 <= T <= config.maxT:
            raise UserError(f"{path}: a batch of {B} x {T}, expected at least 1 x 1 and at most {config.maxT} columns")
        values = 2 * B * T + B * T * config.V + 1 + layout.size
        check_size(file, path, HEADER_BYTES + 4 * values, f"a batch of {B} x {T} for {config}")
        inputs, targets = (np.fromfile(file, "<i4", B * T).reshape(B, T) for _ in range(2))
        for ids in (inputs, targets):
            if ids.min() < 0 or ids.max() >= config.V:
                raise UserError(f"{path}: token ids from {ids.min()} to {ids.max()}, expected 0 .. {config.V - 1}")
        logits = np.fromfile(file, "<f4", B * T * config.V).reshape(B, T, config.V)
        (loss,) = np.fromfile(file, "<f4", 1)
        grads = layout.views(np.fromfile(file, "<f4", layout.size))
    return State(inputs, targets, logits, float(loss), grads)


def write_state(path, config, state):
    """Writes a State as a reference state file, whole or not at all. Raises UserError when the disk refuses."""
    B, T = state.inputs.shape
    shapes = parameter_layout(config).shapes
    assert state.targets.shape == (B, T) and state.logits.shape == (B, T, config.V)
    assert {name: grad.shape for name, grad in state.grads.items()} == shapes
    with atomic_write(path) as file:
        write_header(file, [MAGIC, VERSION, B, T])
        for ids in (state.inputs, state.targets):
            file.write(np.ascontiguousarray(ids, "<i4"))
        for values in (state.logits, state.loss, *(state.grads[name] for name in shapes)):
            file.write(np.ascontiguousarray(values, "<f4"))


def run_model(model, inputs, targets):
    """Runs one forward and backward pass. inputs, targets: int32 (B, T). Returns the State; its grads are views."""
    logits = model.logits(inputs)
    model.zero_grad()
    loss = model.forward(inputs, targets)
    model.backward()
    return State(inputs, targets, logits, loss, model.grads)


def compare(ours, reference):
    """Returns a list of (what, difference, limit) of two States: the logits', the loss's, then each gradient's."""
    with np.errstate(invalid="ignore"):  # inf - inf is a NaN, and that is its verdict
        rows = [
            ("logits", float(np.max(np.abs(ours.logits - reference.logits))), LOGITS_LIMIT),
            ("loss", abs(ours.loss - reference.loss), LOSS_LIMIT),
        ]
        for name, expected in reference.grads.items():
            rows.append((f"d{name}", _relative_difference(ours.grads[name], expected), GRADIENT_LIMIT))
    return rows


def _relative_difference(ours, reference):
    """||ours - reference|| / ||reference||; against a reference of zeros, 0 if ours is zero too, else infinite."""
    difference, size = float(np.linalg.norm(ours - reference)), float(np.linalg.norm(reference))
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


def main():
    """Prints the table; returns the exit status, 1 if any difference is past its limit."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2.verify",
        description="Compare a model's logits, loss and gradients with a reference state of another implementation. "
        "The difference of a gradient is relative to its norm; of the logits, the largest one.",
    )
    parser.add_argument("model", metavar="MODEL.bin", help="model file, version 1, 3 or 5")
    parser.add_argument("state", metavar="STATE.bin", help="reference state: inputs, targets, logits, loss, gradients")
    arguments = parser.parse_args()

    model = GPT2.load(arguments.model)
    reference = read_state(arguments.state, model.config)
    rows = compare(run_model(model, reference.inputs, reference.targets), reference)
    print(f"{'':<10} {'difference':>10} {'limit':>8}")
    failures = 0
    for what, difference, limit in rows:
        passed = difference <= limit  # false for a NaN
        failures += not passed
        print(f"{what:<10} {difference:>10.2e} {limit:>8.0e}  {'PASS' if passed else 'FAIL'}")
    print(f"{failures} of {len(rows)} past their limit" if failures else f"all {len(rows)} within their limits")
    return 1 if failures else 0


if __name__ == "__main__":
    run_command(main)
