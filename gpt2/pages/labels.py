"""Tokens as a page shows them."""

import bisect
import itertools


def labels(vocabulary, ids):
    """Returns a dict of id -> its text, str, for a set of a model's token ids.

    A byte that is not part of a whole character is a lone surrogate, U+DC80 to U+DCFF, as Python's surrogateescape has
    it. Where the vocabulary is not made of bytes, the text is the token's name; beyond the vocabulary it is the id.
    """
    if (pieces := vocabulary.token_bytes) is None:
        names = vocabulary.tokens
        return {id: names[id] if id < len(names) and names[id] is not None else f"[{id}]" for id in ids}
    return {id: _decoded(pieces[id]) if id < len(pieces) and pieces[id] else f"[{id}]" for id in ids}


def divided_characters(vocabulary, tokens):
    """Returns a dict of position -> the characters, str, that the token there holds only a part of."""
    if vocabulary.token_bytes is None:
        return {}
    pieces = [vocabulary.token_bytes[id] for id in tokens]
    ends = list(itertools.accumulate(map(len, pieces)))
    found, start = {}, 0
    for character in _decoded(b"".join(pieces)):
        stop = start + len(character.encode("utf-8", "surrogateescape"))
        first, last = bisect.bisect_right(ends, start), bisect.bisect_right(ends, stop - 1)
        for position in range(first, last + 1) if first < last else ():
            found[position] = found.get(position, "") + character
        start = stop
    return found


def _decoded(data):
    return data.decode("utf-8", "surrogateescape")
