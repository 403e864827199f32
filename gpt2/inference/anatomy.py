"""What a model does with one text: losses and guesses at every layer, attention, the size of the residual stream."""

import dataclasses

import numpy as np

from gpt2.errors import UserError
from gpt2.kernels.classifier import classifier_forward
from gpt2.kernels.layernorm import layernorm_forward
from gpt2.kernels.matmul import matmul_nt
from gpt2.model import CLASSIFIER_ROWS, attention_probabilities

GUESSES = 5  # likeliest tokens kept for each position and layer


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """A forward pass over T tokens, taken apart.

    Row 0 of what is said by layer is the sum of the embeddings, row l the residual stream after layer l; row L of the
    guesses and losses is the model's output. Position t says what is expected after tokens[: t + 1].

    tokens: int32 (T,). attention: float32 (L,NH,T,T), see GPT2.attention. norms: float32 (L+1,T), Euclidean lengths of
    the residual stream. guesses: int32 (L+1,T,G), the likeliest tokens in falling order, G = min(GUESSES, V);
    probabilities: float32 of the same shape. losses: float32 (L+1,T-1), in nats, of the token that follows; ranks:
    int32 (L+1,T-1), how many tokens are likelier than that.
    """

    tokens: np.ndarray
    attention: np.ndarray
    norms: np.ndarray
    guesses: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    ranks: np.ndarray


def dissect(model, tokens):
    """Returns the Anatomy of a model's forward pass over integers (T,), T at least 1 and at most maxT.

    The logit lens reads the residual stream after each layer as the model reads that after the last: through the final
    layernorm and wte. Raises UserError for tokens that the model does not take, and if a loss is not finite.
    """
    config, tokens = model.config, np.asarray(tokens)
    model.forward(tokens[None])
    acts = model.acts
    stream = [acts["encoded"], *acts["residual3"]]
    lens = [_read(model, residual, tokens) for residual in stream]
    guesses, probabilities, losses, ranks = (np.stack(parts) for parts in zip(*lens, strict=True))
    if not (np.isfinite(losses).all() and np.isfinite(probabilities).all()):
        raise UserError("a loss is not finite: the weights are corrupt, or training diverged")
    return Anatomy(
        tokens=tokens.astype(np.int32),
        attention=np.concatenate([attention_probabilities(qkv, config.NH) for qkv in acts["qkv"]]),
        norms=np.stack([np.linalg.norm(residual, axis=-1) for residual in stream]),
        guesses=guesses,
        probabilities=probabilities,
        losses=losses[:, :-1],
        ranks=ranks[:, :-1],
    )


def _read(model, residual, tokens):
    """Returns (guesses, probabilities, losses, ranks) of a residual stream (T,C); the last loss and rank mean nothing.

    The model's own scratch takes the logits, of as many rows at a time as there.
    """
    V, p = model.config.V, model.params
    T, C = residual.shape
    count = min(GUESSES, V)
    hidden = np.empty((T, C), residual.dtype)
    losses, lse, *statistics = np.empty((4, T), residual.dtype)
    layernorm_forward(hidden, *statistics, residual, p["lnfw"], p["lnfb"])
    targets = np.append(tokens[1:], 0).astype(np.int32)
    guesses, ranks = np.empty((T, count), np.int32), np.empty(T, np.int32)
    probabilities = np.empty((T, count), np.float32)
    for start in range(0, T, CLASSIFIER_ROWS):
        rows = slice(start, min(T, start + CLASSIFIER_ROWS))
        logits = model.scratch["logits"][: rows.stop - start]
        matmul_nt(logits, hidden[rows], p["wte"], model.bf16)
        classifier_forward(losses[rows], lse[rows], logits, targets[rows], V)
        logits, each = logits[:, :V], np.arange(rows.stop - start)
        ranks[rows] = (logits > logits[each, targets[rows], None]).sum(axis=-1)
        for place in range(count):
            best = guesses[rows, place] = logits.argmax(axis=-1)
            probabilities[rows, place] = np.exp(logits[each, best] - lse[rows])
            logits[each, best] = -np.inf
    return guesses, probabilities, losses, ranks
