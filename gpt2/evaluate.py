"""How good a model is: its loss over a whole split, llm.c's validation loss, and its accuracy on HellaSwag.

Usage: python -m gpt2.evaluate --model MODEL --data FILES --hellaswag FILE
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import sys

import numpy as np
from tqdm import tqdm

from gpt2.data.dataloader import DataLoader
from gpt2.data.hellaswag import COMPLETIONS, count_examples, read_examples
from gpt2.data.tokenizer import EOT, load_tokenizer
from gpt2.errors import UserError, run_command
from gpt2.formats.files import atomic_write
from gpt2.inference.warmup import prepare_kernels
from gpt2.machine import available_threads, set_threads
from gpt2.model import GPT2

BATCH_TOKENS = 1024  # in a batch, unless asked otherwise: enough rows for the products to run at their best
LLMC_B, LLMC_T, LLMC_BATCHES = 4, 64, 5


def evaluate_split(model, shards, B, T, stride, token_bytes=None):
    """Predicts every token of the files but each file's first, each file being a text of its own.

    shards: each file's ids, integers (count,), at least 2 of them. A window is T tokens that predict the T after them;
    windows advance by `stride`, and of each but a file's first only the last `stride` predictions count, so that more
    than T - stride tokens stand before what is predicted. A file's last window ends with it and counts what is left.
    B windows make a batch.
    token_bytes: integers (V,), the length of each token's text; None leaves the bits per byte out (None).

    Returns a dict. "tokens": how many were predicted; "loss": their mean, in nats; "standard_error" of that mean, the
    sample's standard deviation / sqrt(tokens), as if tokens were independent (those of a text are not quite: it is
    more), None for a single token; "perplexity": e^loss, None if that is no float; "bytes": of the predicted tokens'
    text; "bits_per_byte": the sum of the losses in bits, those of <|endoftext|> among them, / bytes.
    """
    losses = split_losses(model, shards, B, T, stride)
    loss = float(losses.mean(dtype=np.float64))
    size = None if token_bytes is None else sum(int(token_bytes[tokens[1:]].sum()) for tokens in shards)
    return {
        "tokens": losses.size,
        "loss": loss,
        "standard_error": standard_error(losses),
        "perplexity": math.exp(loss) if loss < 700 else None,
        "bytes": size,
        "bits_per_byte": loss * losses.size / math.log(2) / size if size else None,
    }


def split_losses(model, shards, B, T, stride):
    """Returns the losses behind evaluate_split, float32, in the tokens' order."""
    out = np.empty(sum(tokens.size - 1 for tokens in shards), np.float32)
    position = 0
    with tqdm(total=out.size, desc="evaluating", unit=" tokens", leave=False, disable=None) as bar:
        for tokens in shards:
            N = tokens.size - 1
            width = min(T, N)
            ends = np.minimum(np.arange(width, N + stride, stride), N)
            counts = np.diff(ends, prepend=0)
            for i in range(0, ends.size, B):
                rows = tokens[ends[i : i + B, None] - width + np.arange(width + 1)]
                counted = np.arange(width) >= width - counts[i : i + B, None]
                losses = token_losses(model, rows[:, :-1], rows[:, 1:])[counted]
                out[position : position + losses.size] = losses
                position += losses.size
                bar.update(losses.size)
    return out


def token_losses(model, tokens, targets):
    """Returns the loss of each target, float32 (B,T), valid until the model's next forward pass.

    Raises UserError if one is not finite.
    """
    model.forward(tokens, targets)
    losses = model.acts["losses"].reshape(tokens.shape)
    if not np.isfinite(losses).all():
        raise UserError("a loss is not finite: the model's weights are damaged, or its training went astray")
    return losses


def standard_error(values):
    """Of the mean of independent values: their sample standard deviation / sqrt(n). None for a single one."""
    return float(np.std(values, ddof=1, dtype=np.float64)) / math.sqrt(len(values)) if len(values) > 1 else None


def llmc_val_loss(model, files, B=LLMC_B, T=LLMC_T):
    """Returns what llm.c's train_gpt2.c prints as "val loss" before its first step, with this model and these files.

    That is the mean over the first 5 batches of B x T tokens (it has 4 x 64) of each batch's mean loss, in which every
    row starts without context, and most of the split has no part. Files of fewer batches are begun anew, as there.
    llm.c adds in float32, so that its last printed digit may differ.
    """
    loader = DataLoader(files, B, T, model.config.V)
    batches = (loader.next_batch() for _ in range(LLMC_BATCHES))
    bar = tqdm(batches, desc="validating", total=LLMC_BATCHES, leave=False, disable=None)
    return math.fsum(token_losses(model, *batch).mean(dtype=np.float64) for batch in bar) / LLMC_BATCHES


def evaluate_hellaswag(model, path):
    """Chooses the completion of each example that the model finds likeliest, the first of equals.

    Returns a dict. "examples": how many; "accuracy": the part of them where the completion with the largest sum of its
    tokens' log-probabilities is the right one; "accuracy_norm": the same with the mean for the sum, which is what
    llm.c prints; "standard_error" and "standard_error_norm", of these, None for a single example.
    The file is checked from end to end before the first example is computed; see hellaswag.read_examples.
    """
    count = count_examples(path, model.config)
    hits = np.empty((count, 2))
    examples = read_examples(path, model.config)
    for i, example in enumerate(tqdm(examples, desc="HellaSwag", total=count, leave=False, disable=None)):
        losses = completion_losses(model, example)
        sums = [values.sum(dtype=np.float64) for values in losses]
        means = [total / values.size for total, values in zip(sums, losses, strict=True)]
        hits[i] = np.argmin(sums) == example.label, np.argmin(means) == example.label
    accuracy, accuracy_norm = hits.mean(axis=0).tolist()
    return {
        "examples": count,
        "accuracy": accuracy,
        "standard_error": standard_error(hits[:, 0]),
        "accuracy_norm": accuracy_norm,
        "standard_error_norm": standard_error(hits[:, 1]),
    }


def completion_losses(model, example):
    """Returns a list of each completion's losses, float32 (its tokens,), after the example's context.

    They are rows of one batch, padded at the end, where no token of theirs can look.
    """
    n = example.context.size
    rows = np.zeros((COMPLETIONS, n + max(tokens.size for tokens in example.completions)), np.int32)
    rows[:, :n] = example.context
    for row, tokens in zip(rows, example.completions, strict=True):
        row[n : n + tokens.size] = tokens
    losses = token_losses(model, rows[:, :-1], rows[:, 1:])
    return [row[n - 1 : n - 1 + tokens.size] for row, tokens in zip(losses, example.completions, strict=True)]


def load_token_bytes(V):
    """Returns the length in bytes of each of GPT-2's tokens, int64 (V,), 0 for <|endoftext|>, which is no text.

    Says why, and returns None, where V is not GPT-2's or its vocabulary cannot be had.
    """
    if V != EOT + 1:
        print("no bits per byte: the model's vocabulary is not GPT-2's")
        return None
    try:
        encoding = load_tokenizer()
    except UserError as error:
        print(f"no bits per byte: {error}")
        return None
    return np.array([len(encoding.decode_single_token_bytes(token)) for token in range(EOT)] + [0])


def evaluate(options):
    """Runs what the options ask for (see --help), prints the results and returns them as a dict to be written."""
    model, B, T = GPT2.from_pretrained(options.model, writable=False), options.batch_size, options.seq_len
    if options.hellaswag:
        count_examples(options.hellaswag, model.config)  # its errors should not wait for the split to be done
    prepare_kernels()
    results = {"model": options.model}
    if options.data and options.compat:
        B, T = B or LLMC_B, T or LLMC_T
        _check_length(T, model.config)
        loss = llmc_val_loss(model, options.data, B, T)
        print(f"val loss {loss:.6f}")
        results["llmc"] = {"files": options.data, "B": B, "T": T, "batches": LLMC_BATCHES, "val_loss": loss}
    elif options.data:
        T = T or model.config.maxT
        _check_length(T, model.config)
        stride = T if options.stride is None else options.stride
        if stride > T:
            raise UserError(f"--stride {stride}: choose from 1 to {T}, the tokens of a window")
        B = B or max(1, BATCH_TOKENS // T)
        shards = DataLoader(options.data, 1, 1, model.config.V).shards
        split = evaluate_split(model, shards, B, T, stride, load_token_bytes(model.config.V))
        results["data"] = {"files": options.data, "T": T, "stride": stride} | split
        _print_split(results["data"])
    if options.hellaswag:
        results["hellaswag"] = {"file": options.hellaswag} | evaluate_hellaswag(model, options.hellaswag)
        _print_hellaswag(results["hellaswag"])
    return results


def _check_length(T, config):
    if config.maxT < T:
        raise UserError(f"--seq-len {T}: the model's positions end at {config.maxT}")


def _print_split(result):
    print("{tokens:,} tokens predicted, in windows of {T} that advance by {stride}".format(**result))
    print(f"loss {result['loss']:.6f}{_plus_minus(result['standard_error'])} nats per token")
    if result["perplexity"] is not None:
        print(f"perplexity {result['perplexity']:.4f}")
    if result["bits_per_byte"] is not None:
        print("bits per byte {bits_per_byte:.6f}, of {bytes:,} bytes".format(**result))


def _print_hellaswag(result):
    print(f"HellaSwag, {result['examples']:,} examples")
    print(f"accuracy {result['accuracy']:.4f}{_plus_minus(result['standard_error'])}")
    print(f"length-normalised accuracy {result['accuracy_norm']:.4f}{_plus_minus(result['standard_error_norm'])}")


def _plus_minus(error):
    return "" if error is None else f" +- {error:.4f}"


def parse_arguments(arguments=None):
    """Returns the options as a namespace. Raises UserError for values that no model allows."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2.evaluate",
        description="Prints a model's loss, perplexity and bits per byte over token files, and its accuracy on "
        "HellaSwag.",
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="NAME|FILE.bin|DIR",
        help="released weights (gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, or OWNER/NAME on the Hugging Face "
        "hub), a model file, the folder of a training run (its newest model), or a Hugging Face folder",
    )
    add("--data", nargs="+", metavar="FILE", help="token files or globs, each file a text of its own")
    add(
        "--stride",
        type=int,
        metavar="S",
        help="tokens by which windows advance: more than T - S tokens stand before each that is predicted, but for "
        "those of a file's first window, and it takes T / S times as long (default: T)",
    )
    add("--batch-size", "-b", type=int, metavar="B", help=f"windows in a batch (default: {BATCH_TOKENS} tokens' worth)")
    add("--seq-len", "-t", type=int, metavar="T", help="tokens in a window (default: as many as the model takes)")
    add(
        "--compat",
        choices=["llmc"],
        help=f"llmc: the validation loss that llm.c prints for these files: the mean of the first {LLMC_BATCHES} "
        f"batches, of {LLMC_B} x {LLMC_T} unless -b and -t say otherwise",
    )
    add("--hellaswag", metavar="FILE", help="multiple-choice examples in llm.c's evaluation format")
    add(
        "--json",
        metavar="FILE",
        help="where the results go as JSON; -: standard output, which then has nothing else; "
        "a file that is there is replaced",
    )
    add("--threads", type=int, default=available_threads(), metavar="N", help="the result does not depend on it")
    options = parser.parse_args(arguments)
    if not (options.data or options.hellaswag):
        parser.error("name what to evaluate on: --data, --hellaswag or both")
    if options.compat and (not options.data or options.stride is not None):
        parser.error("--compat goes with --data, and not with --stride")
    numbers = {"--batch-size": options.batch_size, "--seq-len": options.seq_len, "--stride": options.stride}
    for option, value in numbers.items():
        if value is not None and value < 1:
            raise UserError(f"{option} {value}: choose at least 1")
    return options


def main(arguments=None):
    options = parse_arguments(arguments)
    set_threads(options.threads)
    if options.json is None:
        evaluate(options)
    elif options.json == "-":
        with contextlib.redirect_stdout(sys.stderr):
            results = evaluate(options)
        print(_json(results))
    else:
        path = pathlib.Path(options.json)
        # That nothing can be written there should not be found out in the end.
        if path.is_dir():
            raise UserError(f"{path}: a folder, expected a file to write the results to")
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"{path}: no file can be made in {path.parent}; name another")
        text = (_json(evaluate(options)) + "\n").encode()
        if path.exists() and not path.is_file():
            path.write_bytes(text)  # a device or a pipe has no other to be written beside it
        else:
            with atomic_write(path) as file:
                file.write(text)


def _json(results):
    return json.dumps(results, indent=2, allow_nan=False)


if __name__ == "__main__":
    run_command(main)
