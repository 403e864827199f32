"""From logits to the next token: temperature, filters, repetition penalty, the draw, and the loop around it."""

import dataclasses
import math
import typing

import numpy as np

from gpt2.errors import UserError

# Dividing by less could overflow float32, in which the logits are.
LOWEST_TEMPERATURE = LOWEST_PENALTY = 1e-6


class Token(typing.NamedTuple):
    """A token that was chosen. probability: the model's own, before temperature, filters and penalty."""

    id: int
    probability: float


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises UserError, naming the option, for a value out of range.

    temperature: what the logits are divided by; 0 always takes the likeliest token. top_k: keep that many of the
    likeliest. top_p: keep the likeliest that together have at least this probability. min_p: keep those at least this
    many times as probable as the likeliest. repetition_penalty: makes tokens of the context less likely if above 1.
    None switches a filter off. They apply in transformers' order (the penalty, then as listed) and leave its tokens.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        valid = self.temperature == 0 or LOWEST_TEMPERATURE <= self.temperature < math.inf
        _require(valid, "--temperature", self.temperature, f"0 (greedy), or a number from {LOWEST_TEMPERATURE:g}")
        _require(self.top_k is None or self.top_k >= 1, "--top-k", self.top_k, "1 or more")
        _require(self.top_p is None or 0 < self.top_p <= 1, "--top-p", self.top_p, "a number above 0, at most 1")
        _require(self.min_p is None or 0 <= self.min_p <= 1, "--min-p", self.min_p, "a number from 0 to 1")
        valid = LOWEST_PENALTY <= self.repetition_penalty <= 1 / LOWEST_PENALTY
        expected = f"a number from {LOWEST_PENALTY:g} to {1 / LOWEST_PENALTY:g} (1 is none)"
        _require(valid, "--repetition-penalty", self.repetition_penalty, expected)

    def scores(self, logits, context):
        """Returns float32 (V,): what the draw is from, -inf for tokens that are not to be drawn.

        logits: float32 (V,), not changed. context: ids of the tokens that the penalty applies to.
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
        """Returns the index of the chosen token; see `scores`. rng: numpy.random.Generator, unused at temperature 0."""
        scores = self.scores(logits, context)
        return int(scores.argmax()) if self.temperature == 0 else draw(scores, rng)


def draw(scores, rng):
    """Draws an index from softmax(scores); scores (V,), -inf for what is never drawn."""
    cumulative = np.cumsum(np.exp(scores - scores.max(), dtype=np.float64))
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def penalise(scores, tokens, penalty):
    """Divides the scores of `tokens` by the penalty, in place, or multiplies the negative ones; returns them."""
    if penalty != 1:
        chosen, penalty = scores[tokens], np.float32(penalty)
        scores[tokens] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    return scores


def random_streams(seed, count):
    """Returns `count` independent random generators; the first ones do not depend on how many there are.

    seed: an integer from 0, or None for another one each time.
    """
    return [np.random.default_rng(sequence) for sequence in np.random.SeedSequence(seed).spawn(count)]


def generate(context, max_new_tokens, sampling, rngs):
    """Continues a context that has tokens; yields, step by step, a list of the Token of each sample.

    context: a Context, to which each token is added before it is yielded. rngs: a generator for each of its
    samples. End of text does not end a sample: that is the caller's to see.
    """
    for _ in range(max_new_tokens):
        logits = context.logits()
        ids = [sampling.choose(*row) for row in zip(logits, context.tokens, rngs, strict=True)]
        chosen = [Token(id, probability(row, id)) for id, row in zip(ids, logits, strict=True)]
        context.add([[id] for id in ids])
        yield chosen


def probability(logits, id):
    """The softmax of logits (V,) at one index."""
    shifted = logits - logits.max()
    return float(np.exp(shifted[id]) / np.exp(shifted).sum())


def _keep_top_p(scores, top_p):
    """Takes away the least likely tokens whose probabilities sum up to no more than 1 - top_p, but not the last one.

    Of equally likely tokens those with the lower ids go first.
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


def _require(valid, option, value, expected):
    if not valid:
        raise UserError(f"{option} {value}: expected {expected}")
