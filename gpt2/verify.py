"""Compares a model's logits, loss and gradients with a reference state of another implementation, or writes one."""

import math
import pathlib

import numpy as np

from gpt2.arguments import add_threads, command_parser
from gpt2.data.dataloader import DataLoader
from gpt2.errors import UserError, run_command
from gpt2.formats.llmc import State, read_state, write_state
from gpt2.inference.evaluation import LLMC_B, LLMC_T
from gpt2.machine import set_threads

LOGITS_LIMIT = 1e-3  # largest absolute difference
LOSS_LIMIT = 1e-4  # absolute difference
GRADIENT_LIMIT = 1e-3  # norm of the difference, relative to the reference's norm


def run_model(model, inputs, targets):
    """Runs one forward and backward pass; inputs, targets: int32 (B, T). Returns the State; its grads are views."""
    logits = model.logits(inputs)
    model.zero_grad()
    loss = model.forward(inputs, targets)
    model.backward()
    return State(inputs, targets, logits, loss, model.grads)


def compare(ours, reference):
    """Compares two States. Returns a list of (name, difference, limit): logits, loss, then each gradient."""
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which fails
        rows = [
            ("logits", float(np.max(np.abs(ours.logits - reference.logits))), LOGITS_LIMIT),
            ("loss", abs(ours.loss - reference.loss), LOSS_LIMIT),
        ]
        for name, expected in reference.grads.items():
            rows.append((f"d{name}", _relative_difference(ours.grads[name], expected), GRADIENT_LIMIT))
    return rows


def _relative_difference(ours, reference):
    """Returns ||ours - reference|| / ||reference||; for an all-zero reference, 0 if ours is zero too, else infinity."""
    difference, size = float(np.linalg.norm(ours - reference)), float(np.linalg.norm(reference))
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


def write_reference(path, model, tokens, B, T):
    """Writes the State of a model on the first batch of B x T tokens of a token file, atomically.

    Raises UserError if `path` exists, for an invalid token file or batch, and if the loss is not finite.
    """
    if pathlib.Path(path).exists():
        raise UserError(f"{path}: already exists; choose another name, or delete it")
    if model.config.maxT < T:
        raise UserError(f"--seq-len {T}: the model's context length is {model.config.maxT}")
    state = run_model(model, *DataLoader(tokens, B, T, model.config.V).next_batch())
    if not math.isfinite(state.loss):
        raise UserError("the loss is not finite: the weights are corrupt, or training diverged")
    write_state(path, model.config, state)
    print(f"wrote {path}: a batch of {B} x {T}, loss {state.loss:.6f}")


def make_parser():
    """Returns the Parser."""
    parser = command_parser(
        "verify",
        "Gradients are compared by the relative norm of the difference, logits by the largest absolute difference. "
        "With --write, writes such a state for another implementation to compare itself with.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL.bin", help="model file, version 1, 3 or 5")
    add("state", metavar="STATE.bin", help="reference state: inputs, targets, logits, loss, gradients")
    help_text = "write STATE.bin instead: the model's results on the first batch of --data"
    add("--write", action="store_true", help=help_text)
    add("--data", metavar="FILE", help="of --write: a token file")
    add("--batch-size", "-b", type=int, metavar="B", help=f"of --write (default: {LLMC_B}, llm.c's)")
    add("--seq-len", "-t", type=int, metavar="T", help=f"of --write (default: {LLMC_T}, llm.c's)")
    add_threads(parser)
    return parser


def main(arguments=None):
    """Prints the table, or writes a state. Returns the exit status: 1 if any difference exceeds its limit."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    B, T = options.batch_size, options.seq_len
    if options.write != (options.data is not None):
        parser.error("--write goes with --data, the token file whose first batch is taken")
    if not options.write and (B, T) != (None, None):
        parser.error("--batch-size and --seq-len go with --write")
    from gpt2.model import GPT2

    set_threads(options.threads)
    model = GPT2.load(options.model)
    if options.write:
        B, T = LLMC_B if B is None else B, LLMC_T if T is None else T
        return write_reference(options.state, model, options.data, B, T)
    reference = read_state(options.state, model.config)
    rows = compare(run_model(model, reference.inputs, reference.targets), reference)
    print(f"{'':<10} {'difference':>10} {'limit':>8}")
    failures = 0
    for name, difference, limit in rows:
        passed = difference <= limit  # false for NaN
        failures += not passed
        print(f"{name:<10} {difference:>10.2e} {limit:>8.0e}  {'PASS' if passed else 'FAIL'}")
    print(f"{failures} of {len(rows)} exceed their limits" if failures else f"all {len(rows)} within their limits")
    return 1 if failures else 0


if __name__ == "__main__":
    run_command(main)
