"""Generates text from a model. `gpt2 generate --help` lists the options."""

import sys

from gpt2.arguments import add_model, add_sampling, add_threads, add_weights, command_parser
from gpt2.errors import UserError, run_command
from gpt2.inference.prompt import SILENT_SECONDS, has_prompts
from gpt2.inference.sampling import check_count, check_seed

DRAWING = ("temperature", "top_k", "top_p", "min_p", "seed")  # options without effect on beam search


def make_parser():
    """Returns the Parser."""
    parser = command_parser(
        "generate",
        "The prompt is from --prompt, --prompt-file or piped standard input; without one, or if nothing comes through "
        f"the pipe for {SILENT_SECONDS} seconds, a new document begins. Streams the continuation, without the prompt, "
        "until end of text, a stop text or --max-new-tokens.",
    )
    group = parser.add_argument_group("model and prompt")
    add_model(parser, group, default="gpt2")
    add_weights(group)
    add = group.add_argument
    add("--prompt", "-p", metavar="TEXT", help="text to continue; <|endoftext|> in it is ordinary text")
    add(
        "--prompt-file",
        metavar="FILE",
        help="UTF-8 file with the prompt, - for standard input; a file named *.jsonl has many, which are continued "
        'side by side: each line a JSON string or {"prompt": "..."}',
    )

    add = add_sampling(parser).add_argument
    add("--num-beams", type=int, default=1, metavar="N", help="beam search with N beams instead of sampling")

    group = parser.add_argument_group("length and output")
    add = group.add_argument
    add("--max-new-tokens", type=int, default=256, metavar="N", help="limit for each sample (default: 256)")
    add("--num-samples", type=int, default=1, metavar="N", help="samples generated as one batch, printed at the end")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeat for several")
    add("--show-tokens", action="store_true", help="print a line per token: id, token, the model's probability")
    add_threads(group)
    return parser


def parse_arguments(arguments=None):
    """Returns the options as a namespace. Raises UserError for values that are wrong or contradict each other."""
    options = make_parser().parse_args(arguments)
    _check(options)
    return options


def _check(options):
    for name in ("max_new_tokens", "num_samples", "num_beams"):
        check_count(_flag(name), getattr(options, name))
    check_seed("--seed", options.seed)
    if "" in options.stop:
        raise UserError("--stop: empty text; omit the option to disable it")
    if options.prompt is not None and options.prompt_file is not None:
        raise UserError("--prompt and --prompt-file exclude each other")
    if options.num_beams > 1:
        given = [name for name in DRAWING if getattr(options, name) is not None]
        if options.num_samples > 1:
            given.append("num_samples")
        if given:
            raise UserError(f"--num-beams excludes {_flag(given[0])}: beam search does not sample")
    if has_prompts(options.prompt_file):
        for name in ("num_samples", "num_beams"):
            if getattr(options, name) > 1:
                raise UserError(f"--prompt-file {options.prompt_file}: several prompts exclude {_flag(name)}")


def _flag(name):
    return f"--{name.replace('_', '-')}"


def main(arguments=None):
    options = parse_arguments(arguments)
    if sys.stdout is None:
        raise UserError("standard output is closed; text is written to it")
    sys.stdout.reconfigure(encoding="utf-8")
    from gpt2.inference.print_samples import run

    run(options)


if __name__ == "__main__":
    run_command(main)
