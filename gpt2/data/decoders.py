"""From tokens back to text, as they come."""

import codecs

BYTES = 256
# What transformers replaces, in this order, in texts of tokenizers with clean_up_tokenization_spaces.
CLEAN_UP = (
    [(f" {mark}", mark) for mark in ".?!,"]
    + [(" ' ", "'")]
    + [(f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")]
)
LONGEST_CLEAN_UP = 4


class ByteDecoder:
    """Decodes tokens that are bytes, holding back an incomplete character; what is not UTF-8 becomes U+FFFD."""

    def __init__(self, token_bytes):
        self._bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, id):
        return self._utf8.decode(self._bytes[id]) if id < len(self._bytes) else ""

    def finish(self):
        return self._utf8.decode(b"", final=True)


class StreamDecoder:
    """Decodes the tokens of any vocabulary, holding back what a further one may change.

    What it has returned stays, where bytes that are not UTF-8 make the library replace the good ones before them.
    """

    def __init__(self, decode, held):
        """decode: takes the list of all ids so far, returns their text. held: characters at its end that may change."""
        self._decode, self._held = decode, held
        self._ids, self._shown = [], 0

    def feed(self, id):
        self._ids.append(id)
        text = self._decode(self._ids)
        return self._show(text[: max(0, len(text.rstrip("\ufffd")) - self._held)])

    def finish(self):
        return self._show(self._decode(self._ids))

    def _show(self, text):
        piece = text[self._shown :]
        self._shown += len(piece)
        return piece


def decoded(vocabulary, tokens):
    """Yields the text of tokens, integers, in pieces."""
    decoder = vocabulary.decoder()
    yield from map(decoder.feed, tokens)
    yield decoder.finish()


def byte_level_map():
    """Returns the byte that each character of a byte-level token stands for, a dict, as in GPT-2's encoder.py."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(BYTES + n): byte for n, byte in enumerate(others)}
