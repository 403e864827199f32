"""Command-line options that several commands share."""

from gpt2.inference.weights import FORMS
from gpt2.machine import available_threads


def add_model(parser, **details):
    """Adds --model to a parser or a group of one. details: more arguments of add_argument, such as a default."""
    default = f" (default: {details['default']})" if "default" in details else ""
    parser.add_argument(
        "--model",
        metavar="NAME|FILE.bin|DIR",
        help="released weights (gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or OWNER/NAME on the Hugging Face "
        f"hub), a model file, the folder of a training run (its newest model), or a Hugging Face folder{default}",
        **details,
    )


def add_weights(parser):
    """Adds --weights to a parser or a group of one."""
    help_text = (
        "form of the weights, which each token reads: bf16 takes half of float32's memory, int8, with a scale for each "
        "32 weights, little more than a quarter (default: bf16 for a bfloat16 model file, else float32)"
    )
    parser.add_argument("--weights", choices=FORMS, help=help_text)


def add_threads(parser):
    """Adds --threads to a parser or a group of one. machine.set_threads checks its value."""
    help_text = "threads, which do not affect the result (default: all available CPUs)"
    parser.add_argument("--threads", type=int, default=available_threads(), metavar="N", help=help_text)


def add_sampling(parser, temperature=1, top_k=None):
    """Adds the options of sampling to a parser; returns their group. temperature, top_k: the defaults, None for off."""
    group = parser.add_argument_group("sampling")
    add, off = group.add_argument, "off" if top_k is None else top_k
    add("--temperature", type=float, metavar="X", help=f"divides the logits; 0: greedy (default: {temperature})")
    add("--top-k", type=int, metavar="N", help=f"sample from the N most probable tokens (default: {off})")
    add("--top-p", type=float, metavar="P", help="from the most probable tokens that add up to P (default: off)")
    help_text = "from tokens at least P times as probable as the top token (default: off)"
    add("--min-p", type=float, metavar="P", help=help_text)
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: avoid repetition (default: 1)")
    add("--seed", type=int, metavar="N", help="same seed, same text (default: different text each time)")
    return group
