"""Command-line options that several commands share."""

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


def add_threads(parser):
    """Adds --threads to a parser or a group of one. machine.set_threads checks its value."""
    help_text = "threads, which do not affect the result (default: all available CPUs)"
    parser.add_argument("--threads", type=int, default=available_threads(), metavar="N", help=help_text)
