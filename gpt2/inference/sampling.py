"""Sampling: logits to next token through temperature, filters and repetition penalty; and the generation loop."""

import dataclasses
import typing

import numpy as np

from gpt2.errors import UserError

# Dividing float32 logits by less could overflow. The inverse is the highest.
LOWEST_TEMPERATURE = LOWEST_PENALTY = 1e-6


class Token(typing.NamedTuple):
    """A generated token. probability: the model's own, before temperature, filters and penalty."""

    id: int
    probability: float


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling parameters. Raises UserError, naming the option, for a value out of range.

    temperature: divides the logits; 0 is greedy. top_k: keep the k most probable tokens. top_p: keep the most probable
    tokens that add up to at least p. min_p: keep tokens at least p times as probable as the top token.
    repetition_penalty: above 1, makes tokens of the context less probable. None disables a filter. The order (penalty,
    then as listed) and the tokens kept are those of transformers.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        valid = self.temperature == 0 or LOWEST_TEMPERATURE <= self.temperature <= 1 / LOWEST_TEMPERATURE
        expected = f"0 (greedy), or a number from {LOWEST_TEMPERATURE:g} to {1 / LOWEST_TEMPERATURE:g}"
        _require(valid, "--temperature", self.temperature, expected)
        _require(self.top_k is None or self.top_k >= 1, "--top-k", self.top_k, "1 or more")
        _require(self.top_p is None or 0 < self.top_p <= 1, "--top-p", self.top_p, "a number above 0, up to 1")
        _require(self.min_p is None or 0 <= self.min_p <= 1, "--min-p", self.min_p, "a number from 0 to 1")
        valid = LOWEST_PENALTY <= self.repetition_penalty <= 1 / LOWEST_PENALTY
        expected = f"a number from {LOWEST_PENALTY:g} to {1 / LOWEST_PENALTY:g} (1: off)"
        _require(valid, "--repetition-penalty", self.repetition_penalty, expected)

    def scores(self, logits, context):
        """Returns the filtered logits, float32 (V,), -inf for excluded tokens.

        logits: float32 (V,), not modified. context: integers, the ids that the penalty applies to.
        """
        scores = penalise(np.array(logits, np.float32), context, self.repetition_penalty)
        if self.temperature == 0:
            return scores
        scores /= np.float32(self.temperature)
        if self.top_k is not None and self.top_k < scores.size:
            scores[scores < np.partition(scores, -self.top_k)[-self.top_k]] = -np.inf
        if self.top_p is not None and self.top_p < 1:
            _keep_top_p(scores, self.top_p)
        if self.min_p is not None:
            probabilities = _softmax(scores, scores.max())
            scores[probabilities < np.float32(self.min_p) * probabilities.max()] = -np.inf
        return scores

    def choose(self, logits, context, rng):
        """Returns the id of the next token; see `scores`. rng: numpy.random.Generator, unused at temperature 0."""
        scores = self.scores(logits, context)
        return int(scores.argmax()) if self.temperature == 0 else draw(scores, rng)


def draw(scores, rng):
    """Samples an index from softmax(scores); scores: (V,), -inf for probability 0."""
    cumulative = np.cumsum(np.exp(scores - scores.max(), dtype=np.float64))
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def penalise(scores, tokens, penalty):
    """Divides the positive scores of `tokens` by the penalty and multiplies the negative ones; in place, returned."""
    if penalty != 1:
        chosen, penalty = scores[tokens], np.float32(penalty)
        scores[tokens] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    return scores


def random_streams(seed, count):
    """Returns a list of `count` independent generators; generator i depends only on the seed and i.

    seed: a nonnegative integer, or None for fresh entropy.
    """
    return [np.random.default_rng(sequence) for sequence in np.random.SeedSequence(seed).spawn(count)]


def generate(context, max_new_tokens, sampling, rngs):
    """Continues a non-empty context; yields at each step a list of Tokens, one per sample.

    context: a Context; each token is added to it before it is yielded. rngs: a generator per sample. End of text is
    yielded like any other token: ending the sample is up to the caller.
    """
    for _ in range(max_new_tokens):
        rows = zip(context.logits(), context.tokens, rngs, strict=True)
        chosen = [next_token(sampling, *row) for row in rows]
        context.add([[token.id] for token in chosen])
        yield chosen


class Continuation(typing.NamedTuple):
    """A prompt, a list of int, to be continued by at most `most` tokens, and what takes them.

    stream: has feed(token), and `done` once it wants no more. rng: as for Sampling.choose.
    """

    prompt: list
    most: int
    stream: typing.Any
    rng: np.random.Generator | None = None


def generate_each(batch, continuations, sampling):
    """Continues prompts side by side, each as `generate` continues it alone; yields each Continuation that has ended.

    batch: a context.Batch; as soon as a text has ended, the next takes its place.
    """
    waiting, active = iter(continuations), {}
    free = list(range(len(batch.texts)))
    while True:
        for row, each in zip(list(free), waiting):  # noqa: B905  no more than there are free rows, or waiting
            free.remove(row)
            batch.start(row, each.prompt)
            active[row] = each, each.most
        if not active:
            return
        rows = list(active)
        for row, logits in zip(rows, batch.logits(rows), strict=True):
            each, most = active.pop(row)
            token = next_token(sampling, logits, batch.texts[row], each.rng)
            batch.add(row, token.id)
            each.stream.feed(token)
            if each.stream.done or most == 1:
                free.append(row)
                yield each
            else:
                active[row] = each, most - 1


def next_token(sampling, logits, context, rng):
    """Returns the Token that follows; see Sampling.choose."""
    id = sampling.choose(logits, context, rng)
    return Token(id, probability(logits, id))


def probability(logits, id):
    """Returns the softmax of logits (V,) at index `id`, a float."""
    shifted = logits - logits.max()
    return float(np.exp(shifted[id]) / np.exp(shifted).sum())


def _keep_top_p(scores, top_p):
    """Excludes the least probable tokens whose probabilities add up to at most 1 - top_p, but never all tokens.

    Among equally probable tokens, lower ids are excluded first.
    """
    ascending = np.sort(scores)
    cumulative = np.cumsum(_softmax(ascending, ascending[-1]), dtype=np.float64).astype(np.float32)
    dropped = min(np.count_nonzero(cumulative <= np.float32(1 - top_p)), scores.size - 1)
    cutoff = ascending[dropped]
    equal_dropped = dropped - np.searchsorted(ascending, cutoff)
    equal = np.flatnonzero(scores == cutoff)
    scores[scores < cutoff] = -np.inf
    scores[equal[:equal_dropped]] = -np.inf


def _softmax(scores, largest):
    exponentials = np.exp(scores - largest)
    return exponentials / exponentials.sum()


def check_count(option, value):
    """Raises UserError, naming the option, unless value is a number of tokens or samples."""
    _require(1 <= value < 2**31, option, value, f"1 to {2**31 - 1}")


def check_seed(option, value):
    """Raises UserError, naming the option, unless value is a seed: a nonnegative integer, or None."""
    _require(value is None or value >= 0, option, value, "0 or more")


def _require(valid, option, value, expected):
    if not valid:
        raise UserError(f"{option} {value}: expected {expected}")
