"""Beam search: extends the best few continuations in parallel and returns the most probable one."""

import numpy as np
from tqdm import tqdm

from gpt2.inference.sampling import Token, penalise
from gpt2.memory import require

LOGITS_COPIES = 5  # arrays of the logits' size that a step allocates
NO_BEAM = -1e9  # score of a beam not yet in use: at first all beams are copies of the first


def beam_search(context, max_new_tokens, repetition_penalty=1.0, ends=()):
    """Returns the best continuation found, a list of Token with an id in `ends` last, or max_new_tokens tokens.

    context: a Context whose samples, one per beam, have the same tokens; it is advanced. A continuation's score is its
    log-probability divided by its length. The search ends when there are as many finished continuations as beams and no
    running beam scores better at its present length. Equivalent to transformers' do_sample=False,
    early_stopping=False, length_penalty=1. Raises UserError if there is too little memory.
    """
    beams = len(context.tokens)
    require(LOGITS_COPIES * 4 * beams * context.config.V, f"a search with {beams} beams", "choose fewer")
    texts, finished = [[]] * beams, []
    totals = np.full((beams, 1), NO_BEAM, np.float32)
    totals[0] = 0
    for length in tqdm(range(1, max_new_tokens + 1), desc="searching", leave=False, disable=None, delay=1):
        log_probabilities = _log_softmax(context.logits())
        scores = np.stack(
            [penalise(*row, repetition_penalty) for row in zip(log_probabilities.copy(), context.tokens, strict=True)]
        )
        running = []
        # So many candidates that enough keep running, whichever end; only the top `beams` may end.
        for rank, (score, beam, id) in enumerate(_best(scores + totals, (1 + len(ends)) * beams)):
            text = [*texts[beam], Token(id, float(np.exp(log_probabilities[beam, id])))]
            if id not in ends and length < max_new_tokens:
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
    """Yields (score, row, column) of the `count` largest elements of scores (rows, columns), in descending order."""
    flat = scores.ravel()
    count = min(count, flat.size)
    largest = np.argpartition(flat, -count)[-count:]
    for index in largest[np.lexsort((largest, -flat[largest]))]:
        row, column = divmod(int(index), scores.shape[1])
        yield float(flat[index]), row, column


def _log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
