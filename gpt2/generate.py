"""Generates text from a model. `python -m gpt2.generate --help` lists the options."""

import argparse
import sys

from tqdm import tqdm

from gpt2.data.tokenizer import EOT, load_tokenizer
from gpt2.errors import UserError, run_command
from gpt2.formats.files import open_to_read
from gpt2.formats.pretrained import load_weights
from gpt2.inference.beam import beam_search
from gpt2.inference.context import Context
from gpt2.inference.interactive import SLID, Conversation
from gpt2.inference.sampling import Sampling, generate, random_streams
from gpt2.inference.textstream import IdStream, TextStream, TokenLines
from gpt2.inference.warmup import prepare_kernels
from gpt2.machine import available_threads, set_threads

DRAWING = ("temperature", "top_k", "top_p", "min_p", "seed")  # options that beam search has no use for


def parse_arguments(arguments=None):
    """Returns the options as a namespace. Raises UserError for values that are wrong or contradict each other."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2.generate",
        description="Continues a prompt, from --prompt, --prompt-file, or standard input if it is piped; without one "
        "it starts a new document. Prints what the model writes, as it is written, without the prompt. A sample ends "
        "at end of text, a stop text or --max-new-tokens.",
    )
    add = parser.add_argument_group("model and prompt").add_argument
    add(
        "--model",
        default="gpt2",
        metavar="FILE.bin|DIR|NAME",
        help="a model file, the folder of a training run, a Hugging Face folder, or a name on the hub (default: gpt2)",
    )
    add("--prompt", metavar="TEXT", help="what to continue; <|endoftext|> in it is text like any other")
    add("--prompt-file", metavar="FILE", help="the same from a file in UTF-8, without the line break that ends it")
    add("--interactive", action="store_true", help="read prompts in a loop that keeps the conversation")

    add = parser.add_argument_group("choosing tokens").add_argument
    add("--temperature", type=float, metavar="X", help="what logits are divided by, 0: greedy (default: 1)")
    add("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens (default: from all)")
    add("--top-p", type=float, metavar="P", help="from the likeliest that have P together (default: from all)")
    add("--min-p", type=float, metavar="P", help="from those P times as probable as the likeliest (default: from all)")
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 avoids repetition (default: 1)")
    add("--num-beams", type=int, default=1, metavar="N", help="beam search, which draws nothing, with N beams")
    add("--seed", type=int, metavar="N", help="the same text for the same seed (default: another text each time)")

    add = parser.add_argument_group("how much, and how it is shown").add_argument
    add("--max-new-tokens", type=int, default=256, metavar="N", help="of a sample or reply (default: 256)")
    add("--num-samples", type=int, default=1, metavar="N", help="texts, made at once and printed at the end")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")
    add("--show-tokens", action="store_true", help="a line for each token: id, token, the model's probability of it")
    add("--threads", type=int, default=available_threads(), metavar="N", help="the text does not depend on it")
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options):
    for name in ("max_new_tokens", "num_samples", "num_beams"):
        if getattr(options, name) < 1:
            raise UserError(f"{_option(name)} {getattr(options, name)}: expected 1 or more")
    if options.seed is not None and options.seed < 0:
        raise UserError(f"--seed {options.seed}: expected 0 or more")
    if "" in options.stop:
        raise UserError("--stop: the text is empty; leave the option out to stop at none")
    if options.prompt is not None and options.prompt_file is not None:
        raise UserError("--prompt and --prompt-file: choose one of them")
    if options.num_beams > 1:
        given = [name for name in DRAWING if getattr(options, name) is not None]
        if options.num_samples > 1:
            given.append("num_samples")
        if given:
            raise UserError(f"--num-beams does not go with {_option(given[0])}: beam search draws nothing")
    if options.interactive:
        for name, single in {"num_samples": 1, "num_beams": 1, "show_tokens": False}.items():
            if getattr(options, name) != single:
                raise UserError(f"--interactive does not go with {_option(name)}")


def _option(name):
    return f"--{name.replace('_', '-')}"


def run(options):
    """Does what the options ask for."""
    temperature = 1.0 if options.temperature is None else options.temperature
    sampling = Sampling(temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty)
    set_threads(options.threads)
    prompt_text = _prompt_text(options)
    config, params = load_weights(options.model, writable=False)
    encoding = _encoding(config, options, prompt_text)
    prompt = _prompt_tokens(config, encoding, prompt_text)
    samples = max(options.num_samples, options.num_beams)
    length = config.maxT if options.interactive else min(config.maxT, len(prompt) + options.max_new_tokens)
    context = Context(config, params, samples, length)
    prepare_kernels()
    rngs = random_streams(options.seed, options.num_samples)
    if options.interactive:
        conversation = Conversation(context, encoding, sampling, rngs[0], options.max_new_tokens, options.stop)
        if prompt_text is not None:
            conversation.add(prompt_text)
        conversation.run()
        return
    context.add([prompt])
    if options.num_beams > 1:
        eot = EOT if encoding else None
        tokens = beam_search(context, options.max_new_tokens, options.repetition_penalty, eot)
        steps = ([token] for token in tokens)
    else:
        steps = generate(context, options.max_new_tokens, sampling, rngs)
    streams = [_stream(encoding, options) for _ in range(options.num_samples)]
    _show(_pieces(steps, streams), options, len(streams))
    if context.slid:
        print(SLID.format(context.length), file=sys.stderr)


def _pieces(steps, streams):
    """Yields, step by step, what each stream makes of its token; at last what they held back."""
    for tokens in steps:
        yield ["" if stream.done else stream.feed(token) for stream, token in zip(streams, tokens, strict=True)]
        if all(stream.done for stream in streams):
            break
    yield [stream.finish() for stream in streams]


def _show(pieces, options, count):
    """Prints one sample as it is made, several under a heading each at the end."""
    if count == 1:
        for (piece,) in pieces:
            print(piece, end="", flush=True)
        print("" if options.show_tokens else "\n", end="", flush=True)
        return
    progress = tqdm(pieces, desc="tokens", total=options.max_new_tokens + 1, leave=False, disable=None)
    texts = ["".join(sample) for sample in zip(*progress, strict=True)]
    for number, text in enumerate(texts, start=1):
        print(f"--- sample {number} of {count} ---\n{text}")


def _stream(encoding, options):
    stream = TextStream(encoding, options.stop) if encoding else IdStream()
    return TokenLines(stream, encoding) if options.show_tokens else stream


def _prompt_text(options):
    """The prompt, or None where none was given. Raises UserError if it is empty or not UTF-8."""
    if options.prompt is not None:
        source, data = "--prompt", options.prompt.encode("utf-8", "surrogateescape")
    elif options.prompt_file is not None:
        source = options.prompt_file
        with open_to_read(source) as file:
            data = _without_last_line_break(file.read())
    elif options.interactive or sys.stdin is None or sys.stdin.isatty():
        return None
    else:
        source, data = "standard input", _without_last_line_break(sys.stdin.buffer.read())
    if not data:
        raise UserError(f"{source}: the prompt is empty; give some text, or no prompt at all for a new document")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 at byte {error.start}; convert it to UTF-8") from error


def _without_last_line_break(data):
    return data.removesuffix(b"\r\n" if data.endswith(b"\r\n") else b"\n")


def _encoding(config, options, prompt_text):
    """GPT-2's vocabulary, or None for a model of another. Raises UserError if what is asked for needs texts."""
    if config.V == EOT + 1:
        return load_tokenizer()
    needing = {"--interactive": options.interactive, "--stop": options.stop, "a prompt": prompt_text is not None}
    for what, asked in needing.items():
        if asked:
            raise UserError(
                f"{options.model}: {config.V} tokens, not GPT-2's {EOT + 1}: {what} needs GPT-2's vocabulary"
            )
    print(f"{options.model}: {config.V} tokens, not GPT-2's {EOT + 1}: they are shown as ids", file=sys.stderr)
    return None


def _prompt_tokens(config, encoding, text):
    """The prompt's tokens, the last maxT of them; without a prompt the last of the vocabulary, GPT-2's end of text."""
    if text is None:
        return [config.V - 1]
    tokens = encoding.encode_ordinary(text)
    cut = len(tokens) - config.maxT
    if cut > 0:
        print(
            f"the prompt has {len(tokens)} tokens, the model reads {config.maxT}: the first {cut} are cut",
            file=sys.stderr,
        )
    return tokens[-config.maxT :]


def main(arguments=None):
    options = parse_arguments(arguments)
    if sys.stdout is None or (options.interactive and sys.stdin is None):
        raise UserError("standard input or output is closed, where text should go")
    sys.stdout.reconfigure(encoding="utf-8")
    if options.interactive:
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    run(options)


if __name__ == "__main__":
    run_command(main)
