"""Generates text from a model. `python -m gpt2.generate --help` lists the options."""

import argparse
import sys

from tqdm import tqdm

from gpt2.arguments import add_model, add_threads
from gpt2.data.vocabulary import model_vocabulary
from gpt2.errors import UserError, run_command
from gpt2.formats.pretrained import load_weights
from gpt2.inference.beam import beam_search
from gpt2.inference.context import Context
from gpt2.inference.interactive import SLID, Conversation
from gpt2.inference.prompt import SILENT_SECONDS, STDIN, encode_prompt, read_prompt
from gpt2.inference.sampling import Sampling, generate, random_streams
from gpt2.inference.textstream import IdStream, TextStream, TokenLines, text_pieces
from gpt2.inference.warmup import prepare_kernels
from gpt2.machine import set_threads

DRAWING = ("temperature", "top_k", "top_p", "min_p", "seed")  # options without effect on beam search


def parse_arguments(arguments=None):
    """Returns the options as a namespace. Raises UserError for values that are wrong or contradict each other."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2.generate",
        description="Continues a prompt from --prompt, --prompt-file or piped standard input; without one, or if "
        f"nothing comes through the pipe for {SILENT_SECONDS} seconds, starts a new document. Streams the "
        "continuation, without the prompt, until end of text, a stop text or --max-new-tokens.",
    )
    group = parser.add_argument_group("model and prompt")
    add_model(group, default="gpt2")
    add = group.add_argument
    add("--prompt", metavar="TEXT", help="text to continue; <|endoftext|> in it is ordinary text")
    add("--prompt-file", metavar="FILE", help="UTF-8 file with the prompt, - for standard input")
    add("--interactive", action="store_true", help="read prompts in a loop that keeps the conversation")

    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=float, metavar="X", help="divides the logits; 0: greedy (default: 1)")
    add("--top-k", type=int, metavar="N", help="sample from the N most probable tokens (default: off)")
    add("--top-p", type=float, metavar="P", help="from the most probable tokens that add up to P (default: off)")
    add(
        "--min-p",
        type=float,
        metavar="P",
        help="from tokens at least P times as probable as the top token (default: off)",
    )
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: avoid repetition (default: 1)")
    add("--num-beams", type=int, default=1, metavar="N", help="beam search with N beams instead of sampling")
    add("--seed", type=int, metavar="N", help="same seed, same text (default: different text each time)")

    group = parser.add_argument_group("length and output")
    add = group.add_argument
    add("--max-new-tokens", type=int, default=256, metavar="N", help="limit for each sample or reply (default: 256)")
    add("--num-samples", type=int, default=1, metavar="N", help="samples generated as one batch, printed at the end")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeat for several")
    add("--show-tokens", action="store_true", help="print a line per token: id, token, the model's probability")
    add_threads(group)
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options):
    for name in ("max_new_tokens", "num_samples", "num_beams"):
        if not 1 <= getattr(options, name) < 2**31:
            raise UserError(f"{_flag(name)} {getattr(options, name)}: expected 1 to {2**31 - 1}")
    if options.seed is not None and options.seed < 0:
        raise UserError(f"--seed {options.seed}: expected 0 or more")
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
    if options.interactive:
        for name, default in {"num_samples": 1, "num_beams": 1, "show_tokens": False}.items():
            if getattr(options, name) != default:
                raise UserError(f"--interactive excludes {_flag(name)}")
        if options.prompt_file == STDIN:
            raise UserError("--interactive excludes --prompt-file -: what is typed comes from there")


def _flag(name):
    return f"--{name.replace('_', '-')}"


def run(options):
    """Generates as the options say, to standard output."""
    temperature = 1.0 if options.temperature is None else options.temperature
    sampling = Sampling(temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty)
    set_threads(options.threads)
    stdin = None if options.interactive else sys.stdin
    text = read_prompt(options.prompt, options.prompt_file, stdin)
    config, params = load_weights(options.model, writable=False)
    vocabulary = _load_vocabulary(options, text)
    if options.interactive:
        context = Context(config, params)
        prepare_kernels()
        rng = random_streams(options.seed, 1)[0]
        conversation = Conversation(context, vocabulary, sampling, rng, options.max_new_tokens, options.stop)
        if text is not None:
            conversation.add(text)
        conversation.run()
        return
    prompt = encode_prompt(config, vocabulary, text)
    length = min(config.maxT, len(prompt) + options.max_new_tokens)
    context = Context(config, params, max(options.num_samples, options.num_beams), length)
    prepare_kernels()
    context.add([prompt])
    _print_samples(text_pieces(_steps(context, sampling, vocabulary, options), _streams(vocabulary, options)), options)
    if context.slid:
        print(SLID.format(context.length), file=sys.stderr)


def _load_vocabulary(options, prompt):
    """Returns the model's vocabulary. Raises UserError if that is unknown, and an option requires text."""
    vocabulary = model_vocabulary(options.model)
    if vocabulary.problem:
        for what, given in (("--interactive", options.interactive), ("--stop", options.stop), ("a prompt", prompt)):
            if given:
                raise UserError(f"{vocabulary.problem}: {what} requires the model's vocabulary")
        print(f"{vocabulary.problem}: printing token ids", file=sys.stderr)
    return vocabulary


def _steps(context, sampling, vocabulary, options):
    """Returns an iterable of the Tokens of each step, one per sample."""
    if options.num_beams > 1:
        best = beam_search(context, options.max_new_tokens, options.repetition_penalty, vocabulary.ends)
        return ([token] for token in best)
    return generate(context, options.max_new_tokens, sampling, random_streams(options.seed, options.num_samples))


def _streams(vocabulary, options):
    def stream():
        return IdStream(vocabulary.ends) if vocabulary.problem else TextStream(vocabulary, options.stop)

    streams = [stream() for _ in range(options.num_samples)]
    return [TokenLines(stream, vocabulary) for stream in streams] if options.show_tokens else streams


def _print_samples(pieces, options):
    """Streams a single sample; prints several at the end, each under a heading."""
    count = options.num_samples
    if count == 1:
        for (piece,) in pieces:
            print(piece, end="", flush=True)
        print("" if options.show_tokens else "\n", end="", flush=True)
        return
    progress = tqdm(pieces, desc="tokens", total=options.max_new_tokens + 1, leave=False, disable=None)
    texts = ["".join(sample) for sample in zip(*progress, strict=True)]
    for number, text in enumerate(texts, start=1):
        print(f"--- sample {number} of {count} ---\n{text}")


def main(arguments=None):
    options = parse_arguments(arguments)
    if sys.stdout is None or (options.interactive and sys.stdin is None):
        raise UserError("standard input or output is closed; text is read from one and written to the other")
    sys.stdout.reconfigure(encoding="utf-8")
    if options.interactive:
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
    run(options)


if __name__ == "__main__":
    run_command(main)
