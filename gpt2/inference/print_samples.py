"""The text that `gpt2 generate` prints: continuations of one prompt, or of many side by side."""

import sys

from tqdm import tqdm

from gpt2.data.vocabulary import model_vocabulary
from gpt2.errors import UserError
from gpt2.inference.beam import beam_search
from gpt2.inference.context import Batch, Context
from gpt2.inference.prompt import encode_prompt, has_prompts, read_prompt, read_prompts
from gpt2.inference.sampling import Continuation, Sampling, generate, generate_each, random_streams
from gpt2.inference.textstream import IdStream, TextStream, TokenLines, WholeText, text_pieces
from gpt2.inference.warmup import prepare_kernels
from gpt2.inference.weights import form_of, load
from gpt2.kernels.small_batch import SMALL_BATCH
from gpt2.machine import set_threads

SLID = "text exceeds the context of {} tokens: the model no longer sees its beginning"


def run(options):
    """Generates as the options of `gpt2 generate` say, to standard output. Raises UserError."""
    temperature = 1.0 if options.temperature is None else options.temperature
    sampling = Sampling(temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty)
    set_threads(options.threads)
    if has_prompts(options.prompt_file):
        prompts = read_prompts(options.prompt_file)
        config, weights = load(options.model, options.weights)
        vocabulary = _load_vocabulary(options, prompts)
        context = _continue_prompts(config, weights, vocabulary, prompts, sampling, options)
    else:
        text = read_prompt(options.prompt, options.prompt_file, sys.stdin)
        config, weights = load(options.model, options.weights)
        vocabulary = _load_vocabulary(options, text)
        context = _continue_prompt(config, weights, vocabulary, text, sampling, options)
    if context.slid:
        print(SLID.format(context.length), file=sys.stderr)


def _load_vocabulary(options, prompt):
    """Returns the model's vocabulary. Raises UserError if that is unknown, and an option requires text."""
    vocabulary = model_vocabulary(options.model)
    if vocabulary.problem:
        for what, given in (("--stop", options.stop), ("a prompt", prompt)):
            if given:
                raise UserError(f"{vocabulary.problem}: {what} requires the model's vocabulary")
        print(f"{vocabulary.problem}: printing token ids", file=sys.stderr)
    return vocabulary


def _continue_prompts(config, weights, vocabulary, prompts, sampling, options):
    """Prints the continuation of each of several prompts, (place, text), under a heading; returns the Batch.

    Each draws the random numbers that it would draw alone.
    """
    continuations = []
    for place, text in prompts:
        tokens, (rng,) = encode_prompt(config, vocabulary, text, place), random_streams(options.seed, 1)
        stream = WholeText(_stream(vocabulary, options))
        continuations.append(Continuation(tokens, options.max_new_tokens, stream, rng))
    count, longest = len(prompts), max(len(each.prompt) for each in continuations)
    length = min(config.maxT, longest + options.max_new_tokens)
    batch = Batch(config, weights, min(count, SMALL_BATCH), length)
    prepare_kernels(form_of(weights))
    ended = generate_each(batch, continuations, sampling)
    for _ in tqdm(ended, desc="prompts", total=count, leave=False, disable=None):
        pass
    for number, each in enumerate(continuations, start=1):
        print(f"--- prompt {number} of {count} ---\n{each.stream.finish()}")
    return batch


def _continue_prompt(config, weights, vocabulary, text, sampling, options):
    """Prints the continuations of a prompt, or of none; returns the Context."""
    prompt = encode_prompt(config, vocabulary, text)
    length = min(config.maxT, len(prompt) + options.max_new_tokens)
    context = Context(config, weights, max(options.num_samples, options.num_beams), length)
    prepare_kernels(form_of(weights))
    context.add([prompt])
    streams = [_stream(vocabulary, options) for _ in range(options.num_samples)]
    _print_samples(text_pieces(_steps(context, sampling, vocabulary, options), streams), options)
    return context


def _steps(context, sampling, vocabulary, options):
    """Returns an iterable of the Tokens of each step, one per sample."""
    if options.num_beams > 1:
        best = beam_search(context, options.max_new_tokens, options.repetition_penalty, vocabulary.ends)
        return ([token] for token in best)
    return generate(context, options.max_new_tokens, sampling, random_streams(options.seed, options.num_samples))


def _stream(vocabulary, options):
    stream = IdStream(vocabulary.ends) if vocabulary.problem else TextStream(vocabulary, options.stop)
    return TokenLines(stream, vocabulary) if options.show_tokens else stream


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
