"""The page of `gpt2 inspect`: what one or two models do with a text."""

import base64
import zlib

import numpy as np

from gpt2.data.tokenizer import decode_text
from gpt2.data.vocabulary import model_vocabulary
from gpt2.errors import UserError
from gpt2.inference.anatomy import dissect
from gpt2.inference.prompt import encode_prompt
from gpt2.inference.warmup import prepare_kernels
from gpt2.model import GPT2
from gpt2.pages import MOST_TOKENS, page
from gpt2.pages.labels import divided_characters, labels

KIND = "inspect"


def inspect(name, text, against=None):
    """Returns (the page, bytes; the number of tokens; the models' mean losses, floats, None for a text of one token).

    name: a model, as pretrained.load_weights takes it; against: a second one, or None. text: str. Raises UserError if
    the text has more than MOST_TOKENS tokens or the model's context, or if the vocabularies are unknown or differ.
    """
    names = [name] if against is None else [name, against]
    vocabulary = _shared_vocabulary(names)
    text = decode_text(text.encode("utf-8", "surrogateescape"), "--text")
    parts, shown = [], set()
    for each in names:
        model = GPT2.from_pretrained(each, writable=False)
        tokens = _encoded(model.config, vocabulary, text)
        if not parts:
            prepare_kernels()
        found = dissect(model, tokens)
        parts.append(_described(each, model.config, found))
        shown.update(tokens, np.unique(found.guesses).tolist())
        del model
    data = {
        "tokens": tokens,
        "labels": labels(vocabulary, shown),
        "divided": divided_characters(vocabulary, tokens),
        "models": parts,
    }
    losses = [part["loss"] for part in parts]
    return page.render(KIND, f"{name}: what the model thinks", data), len(tokens), losses


def _shared_vocabulary(names):
    """Returns the vocabulary of the models. Raises UserError if it is unknown, or not the same."""
    vocabularies = [model_vocabulary(name) for name in names]
    for each in vocabularies:
        if each.problem:
            raise UserError(f"{each.problem}: a text requires the model's vocabulary")
    if vocabularies[0].sha256 != vocabularies[-1].sha256:
        raise UserError(f"--against {names[1]}: its vocabulary is not that of {names[0]}; their tokens would differ")
    return vocabularies[0]


def _encoded(config, vocabulary, text):
    """Returns the tokens of a text, a list of int. Raises UserError if there are none, or too many."""
    count = len(vocabulary.prefix) + len(vocabulary.encode(text, "--text"))
    if not text:
        raise UserError("--text: empty; expected a text to inspect")
    if count > MOST_TOKENS:
        raise UserError(f"--text: {count:,} tokens, but a page shows at most {MOST_TOKENS}; give a shorter text")
    if count > config.maxT:
        raise UserError(f"--text: {count:,} tokens, but the model's context length is {config.maxT}")
    return encode_prompt(config, vocabulary, text, "--text")


def _described(name, config, found):
    """Returns what the page's scripts read of an Anatomy, a dict for JSON."""
    losses = found.losses[-1]
    return {
        "name": str(name),
        "L": config.L,
        "NH": config.NH,
        "V": config.V,
        "parameters": config.num_parameters,
        "loss": float(losses.mean(dtype=np.float64)) if losses.size else None,
        "losses": page.rounded(found.losses),
        "guesses": found.guesses.tolist(),
        "ranks": found.ranks.tolist(),
        "probabilities": page.rounded(found.probabilities),
        "norms": page.rounded(found.norms),
        "spread": page.rounded(_spread(found.attention)),
        "attention": [_packed(layer) for layer in found.attention],
    }


def _spread(attention):
    """Returns how evenly each head attends, (L,NH): its entropy as a fraction of the largest, mean over the queries."""
    T = attention.shape[-1]
    if T == 1:
        return np.zeros(attention.shape[:2])
    entropy = -(attention * np.log(np.maximum(attention, 1e-30))).sum(axis=-1)
    return (entropy[..., 1:] / np.log(np.arange(2, T + 1))).mean(axis=-1)


def _packed(attention):
    """Returns a layer's probabilities (NH,T,T) as base64: the rows up to the diagonal in 65535ths, deflated.

    The high bytes of all numbers precede the low ones: so they deflate better.
    """
    rows, columns = np.tril_indices(attention.shape[-1])
    values = np.rint(attention[:, rows, columns] * 65535).astype(np.uint16).ravel()
    planes = np.concatenate([values >> 8, values & 255]).astype(np.uint8)
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()
