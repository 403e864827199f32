"""Measures a model: loss over a whole split, llm.c's validation loss, and accuracy on HellaSwag."""

import itertools
import math

import numpy as np
from tqdm import tqdm

from gpt2.data.dataloader import DataLoader
from gpt2.data.hellaswag import COMPLETIONS, read_examples
from gpt2.distributed import SERIAL
from gpt2.errors import UserError

# The validation of llm.c's train_gpt2.c.
LLMC_B, LLMC_T, LLMC_BATCHES = 4, 64, 5


def evaluate_split(model, shards, B, T, stride=None, token_bytes=None, world=SERIAL):
    """Averages the losses of `split_losses`; files are independent texts.

    shards: a list of integer arrays (count,) or llmc.TokenFiles, one per file, count >= 2. T, stride: as for `windows`.
    B windows form a batch.
    token_bytes: integers (V,), the length of each token's text, from `token_lengths`; None: no byte metrics.
    world: as for `split_losses`.

    Returns a dict:
      tokens          number of predictions
      loss            their mean, nats per token
      standard_error  of the mean: sample standard deviation / sqrt(tokens). Too low, as it takes
                      neighbouring tokens for independent. None for a single token
      perplexity      e^loss, None if that overflows
      bytes           length of the predicted text
      bits_per_byte   total loss in bits, <|endoftext|> included, / bytes
    """
    losses, targets = split_losses(model, shards, B, T, stride, world)
    loss = float(losses.mean(dtype=np.float64))
    size = None if token_bytes is None else int(token_bytes[targets].sum())
    return {
        "tokens": losses.size,
        "loss": loss,
        "standard_error": standard_error(losses),
        "perplexity": math.exp(loss) if loss < 700 else None,
        "bytes": size,
        "bits_per_byte": loss * losses.size / math.log(2) / size if size else None,
    }


def windows(n, T, stride=None):
    """Cuts a text of n >= 2 tokens into windows, all but the last of one length.

    stride None: as in training, T tokens and the one that follows. Every token but the text's first is predicted once.
    The last window is moved back to end with the text, and only what the others left counts.
    stride from 1 to T: the recipe in Hugging Face's "Perplexity of fixed-length models". Windows of T >= 2 tokens
    advance by `stride` until one reaches the end of the text. A window predicts all of its tokens but its first; those
    in an earlier window do not count again. With stride = T, the first token of each window is never predicted.

    Returns integers (windows,): the index of each window's first token, the end of the window, and the first token that
    counts.
    """
    if stride is None:
        length = min(T + 1, n)
        ends = np.minimum(np.arange(length, n + T, T), n)
        starts = ends - length
    else:
        length = min(T, n)
        starts = np.arange(0, n - length + stride, stride)
        ends = np.minimum(starts + length, n)
    return starts, ends, np.maximum(np.insert(ends[:-1], 0, 0), starts + 1)


def split_losses(model, shards, B, T, stride=None, world=SERIAL):
    """Returns what counts in the `windows` of each file, in order: losses, float32 (tokens,), and targets (tokens,).

    The ranks of a distributed.World share the batches out; each returns all losses.
    """
    cuts = [windows(tokens.size, T, stride) for tokens in shards]
    counts = [np.add.reduceat(ends - firsts, np.arange(0, ends.size, B)) for _, ends, firsts in cuts]
    edges = np.cumsum([0, *itertools.chain.from_iterable(counts)])  # of the batches' parts of what is returned
    shares = _shares(edges.size - 1, world)
    parts = [slice(int(edges[share.start]), int(edges[share.stop])) for share in shares]
    losses, targets = np.empty(edges[-1], np.float32), np.empty(edges[-1], np.int32)
    own, position = shares[world.rank], parts[world.rank].start
    batches = itertools.islice(_batches(shards, cuts, B), own.start, own.stop)
    total = parts[world.rank].stop - position
    with tqdm(total=total, desc="evaluating", unit=" tokens", leave=False, disable=None) as bar:
        for batch in _in_step(batches, shares):
            with world.together():
                if batch is None:
                    continue
                rows, counted = _rows(*batch)
                part = slice(position, position + np.count_nonzero(counted))
                losses[part] = token_losses(model, rows[:, :-1], rows[:, 1:])[counted]
                targets[part] = rows[:, 1:][counted]
                bar.update(part.stop - position)
                position = part.stop
    world.all_gather(losses, parts)
    world.all_gather(targets, parts)
    return losses, targets


def _shares(count, world):
    """Cuts `count` items into a slice for each rank, equal to within one."""
    edges = [rank * count // world.size for rank in range(world.size + 1)]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def _in_step(items, shares):
    """Yields a rank's items, then None until it has yielded as often as the rank with the largest share.

    The ranks meet at each item: none waits long for another at the end.
    """
    rounds = max(share.stop - share.start for share in shares)
    return itertools.islice(itertools.chain(items, itertools.repeat(None)), rounds)


def _batches(shards, cuts, B):
    """Yields the arguments of `_rows` for each batch of B windows."""
    for tokens, cut in zip(shards, cuts, strict=True):
        for i in range(0, cut[0].size, B):
            yield tokens, cut[1][0], *(each[i : i + B] for each in cut)


def _rows(tokens, length, starts, ends, firsts):
    """Returns the tokens of some of a file's `windows`, int32 (windows, length), and which of their targets count."""
    rows = np.zeros((starts.size, length), np.int32)  # a short window is padded at its end
    for row, start, end in zip(rows, starts, ends, strict=True):
        row[: end - start] = tokens[start:end]
    places = starts[:, None] + np.arange(1, length)
    return rows, (places >= firsts[:, None]) & (places < ends[:, None])


def token_losses(model, tokens, targets):
    """Returns the loss of each target, float32 (B,T), valid until the model's next forward pass.

    Raises UserError if a loss is not finite.
    """
    model.forward(tokens, targets)
    losses = model.acts["losses"].reshape(tokens.shape)
    if not np.isfinite(losses).all():
        raise UserError("a loss is not finite: the weights are corrupt, or training diverged")
    return losses


def standard_error(values):
    """Standard error of the mean of independent values: sample standard deviation / sqrt(n). None if n is 1."""
    return float(np.std(values, ddof=1, dtype=np.float64)) / math.sqrt(len(values)) if len(values) > 1 else None


def llmc_val_loss(model, files, B=LLMC_B, T=LLMC_T):
    """Returns the "val loss" that llm.c's train_gpt2.c prints before its first step for this model and these files.

    It is the mean loss of the first 5 batches of B x T tokens (4 x 64 in llm.c): every row starts without context, and
    most of the split is unused. As in llm.c, reading wraps around in files of fewer batches. llm.c sums in float32, so
    its last printed digit may differ.
    """
    loader = DataLoader(files, B, T, model.config.V)
    batches = (loader.next_batch() for _ in range(LLMC_BATCHES))
    bar = tqdm(batches, desc="validating", total=LLMC_BATCHES, leave=False, disable=None)
    return math.fsum(token_losses(model, *batch).mean(dtype=np.float64) for batch in bar) / LLMC_BATCHES


def evaluate_hellaswag(model, path, world=SERIAL):
    """Answers each multiple-choice example with the completion that the model finds most probable; ties: the first.

    Returns a dict:
      examples             number of examples
      accuracy             fraction of correct answers when completions are ranked by summed log-probability
      accuracy_norm        the same, ranked by mean log-probability per token; llm.c prints this one
      standard_error, standard_error_norm   of the accuracies, None for a single example

    The ranks of a distributed.World share the examples out. Checks the whole file first; raises UserError as
    hellaswag.read_examples does.
    """
    examples = list(read_examples(path, model.config))
    shares, hits = _shares(len(examples), world), []
    own = tqdm(examples[shares[world.rank]], desc="HellaSwag", leave=False, disable=None)
    for example in _in_step(own, shares):
        with world.together():
            if example is not None:
                hits.append(_hits(model, example))
    hits = np.array(list(itertools.chain.from_iterable(world.gather(hits))), float)
    accuracy, accuracy_norm = hits.mean(axis=0).tolist()
    return {
        "examples": len(examples),
        "accuracy": accuracy,
        "standard_error": standard_error(hits[:, 0]),
        "accuracy_norm": accuracy_norm,
        "standard_error_norm": standard_error(hits[:, 1]),
    }


def _hits(model, example):
    """Returns whether the example's right completion has the least summed loss, and the least mean loss."""
    losses = completion_losses(model, example)
    sums = [values.sum(dtype=np.float64) for values in losses]
    means = [total / values.size for total, values in zip(sums, losses, strict=True)]
    return np.argmin(sums) == example.label, np.argmin(means) == example.label


def completion_losses(model, example):
    """Returns the per-token losses of each completion after the example's context: a list of float32 (tokens,).

    All completions are one batch, padded at the end; causal attention keeps the padding out of the losses.
    """
    n = example.context.size
    rows = np.zeros((COMPLETIONS, n + max(tokens.size for tokens in example.completions)), np.int32)
    rows[:, :n] = example.context
    for row, tokens in zip(rows, example.completions, strict=True):
        row[n : n + tokens.size] = tokens
    losses = token_losses(model, rows[:, :-1], rows[:, 1:])
    return [row[n - 1 : n - 1 + tokens.size] for row, tokens in zip(losses, example.completions, strict=True)]


def token_lengths(vocabulary, V):
    """Returns the length in bytes of each token's text, int64 (V,); control tokens are no text and have 0.

    Raises UserError if the vocabulary is unknown, unavailable, or not made of bytes.
    """
    if vocabulary.problem:
        raise UserError(vocabulary.problem)
    if vocabulary.token_bytes is None:
        raise UserError("the vocabulary's texts are not the bytes of its tokens")
    control = vocabulary.control_tokens
    lengths = [0 if id in control else len(token) for id, token in enumerate(vocabulary.token_bytes[:V])]
    return np.array(lengths + [0] * (V - len(lengths)))
