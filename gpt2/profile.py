"""Where a training step goes, layer by layer and kernel by kernel: `gpt2 profile -b 4 -t 64`."""

import math

from gpt2.arguments import add_threads, command_parser
from gpt2.config import PRESETS
from gpt2.errors import UserError, run_command
from gpt2.layout import parameter_layout
from gpt2.machine import BF16, FLOAT32, PRECISIONS, chosen_precision, set_threads
from gpt2.memory import require


def make_parser():
    """Returns the Parser."""
    parser = command_parser("profile", "Kernel by kernel, and how far each is from the machine's peak.")
    add = parser.add_argument
    add("--batch-size", "-b", type=int, default=4, metavar="B", help="sequences in a batch (default: 4)")
    add("--seq-len", "-t", type=int, default=64, metavar="T", help="tokens in a sequence (default: 64)")
    add("--size", choices=PRESETS, default="gpt2", help="the model's sizes; its weights are random (default: gpt2)")
    add("--steps", type=int, default=5, metavar="N", help="steps to measure (default: 5)")
    help_text = f"of the factors of matrix products (default: {FLOAT32})"
    add("--precision", choices=PRECISIONS, default=FLOAT32, help=help_text)
    help_text = "instead, reckon the time of a step on 1, 2, 4, ..., N nodes; see docs/several-machines.md"
    add("--nodes", type=int, metavar="N", help=help_text)
    help_text = "for --nodes, what each sends while it receives as much: 1.1 (the default), 2.7, 9 for 10, 25, 100 GbE"
    add("--bandwidth", type=float, metavar="GB/S", help=help_text)
    add_threads(parser)
    return parser


def main(arguments=None):
    parser = make_parser()
    options = parser.parse_args(arguments)
    from gpt2.model import activations_size
    from gpt2.training.profiler import PEAK_NUMBERS, profile
    from gpt2.training.scaling import reckon

    B, T, config = options.batch_size, options.seq_len, PRESETS[options.size]
    if min(B, T, options.steps) < 1:
        raise UserError("--batch-size, --seq-len and --steps start at 1")
    if options.bandwidth is not None and options.nodes is None:
        parser.error("--bandwidth goes with --nodes")
    bandwidth = 1.1 if options.bandwidth is None else options.bandwidth
    if options.nodes is not None and not (options.nodes >= 1 and 0 < bandwidth < math.inf):
        raise UserError("--nodes starts at 1, --bandwidth above 0")
    set_threads(options.threads)
    if config.maxT < T:
        raise UserError(f"--seq-len {T}: the model's positions end at {config.maxT}")
    numbers = 4 * parameter_layout(config).size + activations_size(config, B, T) + PEAK_NUMBERS
    require(4 * numbers, f"--size {options.size} at -b {B} -t {T}")
    bf16 = chosen_precision(options.precision) == BF16
    if options.nodes is None:
        profile(config, B, T, options.steps, bf16)
    else:
        reckon(config, B, T, options.steps, bf16, options.nodes, 1e9 * bandwidth)


if __name__ == "__main__":
    run_command(main)
