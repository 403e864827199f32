"""Trains GPT-2 on the CPU. `python train_gpt2.py --help` lists the options; the loop itself is gpt2/trainer.py."""

import argparse
import math
import sys

from gpt2.errors import run_command
from gpt2.machine import available_threads
from gpt2.optimizer import SCHEDULES
from gpt2.training.loop import FINE_TUNING, FROM_SCRATCH, train


def parse_arguments(arguments=None):
    """Returns the options as a namespace; exits with argparse's usual message if they are wrong."""
    parser = argparse.ArgumentParser(
        description="Trains GPT-2 on the CPU, from its released weights unless --init says otherwise.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("model and data").add_argument
    add(
        "--init",
        default="gpt2",
        metavar="NAME|FILE.bin|DIR|scratch",
        help="start from released weights (gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or OWNER/NAME on the "
        "Hugging Face hub), a model file, the folder of a run, a Hugging Face folder, or random weights",
    )
    files = {"nargs": "+", "metavar": "FILE", "default": argparse.SUPPRESS}
    add("--train-data", **files, help="token files or globs (default: what prepro_tinyshakespeare.py made)")
    add("--val-data", **files, help="the same for validation")
    add("--shuffle", action="store_true", help="read the training data in another order each epoch, drawn by --seed")

    add = parser.add_argument_group("batches and steps").add_argument
    add("--batch-size", "-b", type=_whole(1), default=4, metavar="B", help="sequences in a batch")
    add("--seq-len", "-t", type=_whole(1), default=64, metavar="T", help="tokens in a sequence")
    add("--grad-accum-steps", type=_whole(1), default=1, metavar="N", help="batches whose gradients make one update")
    add("--max-steps", "-x", type=_whole(0), default=40, metavar="N", help="updates")
    add("--overfit-single-batch", action="store_true", help="train on the first batch only, to see it learned by heart")

    add = parser.add_argument_group("optimizer").add_argument
    add(
        "--learning-rate",
        "-l",
        type=_real(0),
        default=argparse.SUPPRESS,
        metavar="LR",
        help=f"the peak (default: {FINE_TUNING['learning_rate']:g}, "
        f"{FROM_SCRATCH['learning_rate']:g} from random weights)",
    )
    add(
        "--lr-schedule",
        choices=SCHEDULES,
        default="constant",
        help="how it falls after the warm-up; wsd stays and falls over the last fifth of the run",
    )
    add(
        "--warmup-steps",
        type=_whole(0),
        default=argparse.SUPPRESS,
        metavar="N",
        help=f"steps in which it climbs to the peak, 0: off (default: {FINE_TUNING['warmup_steps']}, "
        f"{FROM_SCRATCH['warmup_steps']} from random weights)",
    )
    add("--final-lr-fraction", type=_real(0, 1), default=0.0, metavar="F", help="where it ends, as a part of the peak")
    add("--beta1", type=_real(0, 1, open_end=True), default=0.9, help="AdamW's decay of the first moment")
    add("--beta2", type=_real(0, 1, open_end=True), default=0.999, help="AdamW's decay of the second moment")
    add("--eps", type=_real(0, open_start=True), default=1e-8, help="AdamW's guard against division by zero")
    add("--weight-decay", type=_real(0), default=0.0, metavar="W", help="on matrices and embeddings only")
    add("--grad-clip", type=_real(0), default=0.0, metavar="NORM", help="largest gradient norm, 0: off")
    add(
        "--skip-nonfinite",
        type=_whole(0),
        default=0,
        metavar="N",
        help="leave out up to so many updates whose loss or gradient is not finite, instead of ending the run",
    )
    add(
        "--skip-spikes",
        type=_real(0),
        default=0.0,
        metavar="Z",
        help="leave out updates whose loss or gradient norm lies more than Z standard deviations above the mean of the "
        "last 128 (at most 11.3 are possible), 0: off",
    )

    add = parser.add_argument_group("validation and samples").add_argument
    add("--val-every", type=_whole(0), default=10, metavar="N", help="steps between validations, 0: never")
    add("--val-batches", type=_whole(0), default=5, metavar="N", help="batches of a validation, 0: the whole split")
    add("--sample-every", type=_whole(0), default=20, metavar="N", help="steps between samples of text, 0: never")
    add("--sample-tokens", type=_whole(1), default=64, metavar="N", help="tokens in a sample")
    add("--prompt", type=_text, default="", metavar="TEXT", help="what a sample continues; empty: a new document")

    add = parser.add_argument_group("the run").add_argument
    add("--out-dir", default="out", metavar="DIR", help="where checkpoints, metrics.jsonl and loss.png go")
    add("--checkpoint-every", type=_whole(0), default=200, metavar="N", help="steps between them, 0: only at the end")
    add("--keep", type=_whole(1), default=2, metavar="N", help="how many checkpoints stay, the newest ones")
    add(
        "--resume",
        nargs="?",
        const="",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="go on from the newest checkpoint in DIR or --out-dir, with that run's options but for those given anew",
    )
    add("--resume-anyway", action="store_true", help="go on even if the run could not have come there by these options")
    add("--seed", type=_whole(0), default=1337, metavar="N", help="of random weights, samples and --shuffle")
    add("--threads", type=int, default=available_threads(), metavar="N", help="the result does not depend on it")
    return _complete(parser, arguments)


def _complete(parser, arguments):
    """Returns all options, and what --resume needs: `arguments`, the names of those `given`, and `parse`."""
    undecided = dict.fromkeys(("train_data", "val_data", "learning_rate", "warmup_steps", "resume"))
    defaults = vars(parser.parse_args([], argparse.Namespace(**undecided)))
    arguments = sys.argv[1:] if arguments is None else arguments
    # What an attribute holds already, argparse leaves: None stays where nothing is given.
    values = vars(parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(defaults))))
    given = {name: value for name, value in values.items() if value is not None}
    more = {"arguments": arguments, "given": given.keys(), "parse": parse_arguments}
    options = argparse.Namespace(**defaults | given | more)
    if options.resume and "out_dir" not in given:
        options.out_dir = options.resume
    elif options.resume == "":
        options.resume = options.out_dir
    return options


def _whole(lowest, highest=2**31 - 1):
    def whole_number(text):
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{value} is below {lowest}")
        if value > highest:
            raise argparse.ArgumentTypeError(f"{value} is above {highest}")
        return value

    return whole_number


def _real(lowest, highest=math.inf, open_start=False, open_end=False):
    def number(text):
        value = float(text)
        outside = math.isinf(value) or (open_start and value == lowest) or (open_end and value == highest)
        if outside or not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text} is not in the range from {lowest} to {highest}")
        return value

    return number


def _text(text):
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from error
    return text


if __name__ == "__main__":
    run_command(lambda: train(parse_arguments()))
