"""What several nodes gain, by a cost model: the time of a step and its efficiency, reckoned from one node's speed."""

import statistics

from gpt2.layout import parameter_layout
from gpt2.training.profiler import seconds_of, training_step

LATENCY = 50e-6  # seconds of a message
STRONG_TOKENS = 2**19  # tokens of a step under strong scaling: the batch that GPT-2 and llm.c train with


def step_seconds(nodes, tokens, rate, size, bandwidth):
    """Returns the time of a step in seconds on that many nodes.

    Each computes its tokens, sends its part of the gradients' sum and receives the others', then the same with the
    parameters. The update, which nodes share out, counts as if each did all of it.

    tokens: of a node, in a step. rate: tokens a second of a node by itself. size: bytes of the gradients. bandwidth:
    bytes a second that a node sends while it receives as many.
    """
    exchange = 2 * (nodes - 1) * (size / nodes / bandwidth + LATENCY)
    return tokens / rate + exchange


def efficiency(nodes, tokens, rate, size, bandwidth):
    """Returns the fraction of a step that is not exchange; arguments as for `step_seconds`.

    Under strong scaling that is the speed-up over one node / nodes; under weak scaling the time on one node / the time.
    """
    return tokens / rate / step_seconds(nodes, tokens, rate, size, bandwidth)


def node_counts(most):
    """Returns 1, 2, 4, ... and `most`."""
    return [*(2**i for i in range((most - 1).bit_length())), most]


def reckon(config, B, T, steps, bf16, nodes, bandwidth, print_line=print):
    """Measures `steps` training steps of a random model of B x T tokens, and prints the table for up to `nodes` nodes.

    bandwidth: as for `step_seconds`.
    """
    _, step = training_step(config, B, T, bf16)
    rate = B * T / statistics.median(seconds_of(step) for _ in range(steps))
    print_line(f"measured: {rate:,.0f} tokens a second on this machine, B {B}, T {T}, median of {steps} steps")
    print_line(f"reckoned: nodes like it that exchange {bandwidth / 1e9:g} GB/s each, {1e6 * LATENCY:.0f} us a message")
    print_table(rate, B * T, 4 * parameter_layout(config).size, bandwidth, nodes, print_line)


def print_table(rate, tokens, size, bandwidth, nodes, print_line):
    """Prints a line for 1, 2, 4, ... nodes. tokens: of a node and step, under weak scaling."""
    print_line(f"{'':9}{f'strong: {STRONG_TOKENS:,} tokens a step':>37}{f'weak: {tokens:,} tokens a node':>37}")
    print_line(f"{'nodes':>9}" + 2 * f"{'s/step':>13}{'tok/s':>12}{'efficiency':>12}")
    for count in node_counts(nodes):
        line = f"{count:9,}"
        for own in (STRONG_TOKENS / count, tokens):
            seconds = step_seconds(count, own, rate, size, bandwidth)
            share = efficiency(count, own, rate, size, bandwidth)
            line += f"{seconds:13,.2f}{count * own / seconds:12,.0f}{share:12.0%}"
        print_line(line)
