"""Beam search: the likeliest of several continuations, of which the best few are followed at once."""

import numpy as np
from tqdm import tqdm

from gpt2.inference.sampling import Token, penalise

# Score of a beam that does not exist: all of them start as copies of the first one.
NO_BEAM = -1e9


def beam_search(context, max_new_tokens, repetition_penalty=1.0, eot=None):
    """Returns the best continuation found, a list of Token. It ends with `eot` or has max_new_tokens tokens.

    context: a Context whose samples, the beams, have the same tokens. A continuation's score is its log
    probability by its length; the search ends once no beam that runs, scored as it stands, is better than as many
    finished ones. This is transformers' search with do_sample=False, early_stopping=False, length_penalty=1.
    """
    beams = len(context.tokens)
    texts, finished = [[]] * beams, []
    totals = np.full((beams, 1), NO_BEAM, np.float32)
    totals[0] = 0
    for length in tqdm(range(1, max_new_tokens + 1), desc="searching", leave=False, disable=None, delay=1):
        log_probabilities = _log_softmax(context.logits())
        scores = np.stack(
            [penalise(*row, repetition_penalty) for row in zip(log_probabilities.copy(), context.tokens, strict=True)]
        )
        running = []
        # Twice as many as there are beams, so that enough are left if as many end. Only the first can end here.
        for rank, (score, beam, id) in enumerate(_best(scores + totals, 2 * beams)):
            text = [*texts[beam], Token(id, float(np.exp(log_probabilities[beam, id])))]
            if id != eot and length < max_new_tokens:
                running.append((score, beam, text))
            elif rank < beams:
                finished.append((score / length, text))
        finished = sorted(finished, key=lambda scored: -scored[0])[:beams]
        running = running[:beams]
        if not running or (len(finished) == beams and running[0][0] / length <= finished[-1][0]):
            break
        totals = np.array([[score] for score, _, _ in running], np.float32)
        texts = [text for _, _, text in running]
        context.reorder(np.array([beam for _, beam, _ in running]))
        context.add([[text[-1].id] for text in texts])
    return finished[0][1]


def _best(scores, count):
    """Yields (score, row, column) of the `count` largest of scores (rows, columns), the largest first."""
    flat = scores.ravel()
    count = min(count, flat.size)
    largest = np.argpartition(flat, -count)[-count:]
    for index in largest[np.lexsort((largest, -flat[largest]))]:
        row, column = divmod(int(index), scores.shape[1])
        yield float(flat[index]), row, column


def _log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
