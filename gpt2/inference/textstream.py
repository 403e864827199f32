"""Streams that turn tokens into printable text.

A stream has feed(token), which takes a sampling.Token and returns the text that can be printed now; finish(), which
returns what it held back; and `done`, True once the sample has ended and no more tokens may be fed.
"""


def text_pieces(steps, streams):
    """Yields, for each step, a list with each stream's text, "" once it is done; at the end, what they held back.

    steps: an iterable of lists of Tokens, one per stream; it is left when all streams are done.
    """
    for tokens in steps:
        yield ["" if stream.done else stream.feed(token) for stream, token in zip(streams, tokens, strict=True)]
        if all(stream.done for stream in streams):
            break
    yield [stream.finish() for stream in streams]


class TextStream:
    """The decoded text up to the end of text or the first stop text.

    Incomplete UTF-8 characters are held back, and so is a possible start of a stop text. Invalid UTF-8 becomes U+FFFD.
    """

    def __init__(self, vocabulary, stops=(), ends=None):
        """vocabulary: the model's, a known one. stops: non-empty texts; the output ends before the first of them.

        ends: the ids that end the text, by default the vocabulary's.
        """
        self.done = False
        self._ends, self._stops = vocabulary.ends if ends is None else ends, stops
        self._decoder = vocabulary.decoder()
        self._held = ""

    def feed(self, token):
        if token.id in self._ends:
            text = self.finish()
            self.done = True
            return text
        return self._show(self._decoder.feed(token.id))

    def finish(self):
        if self.done:
            return ""
        text = self._show(self._decoder.finish()) + self._held
        self._held = ""
        return text

    def _show(self, text):
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.done, self._held = True, ""
            return text[: min(found)]
        end = len(text) - max((_pending_prefix(text, stop) for stop in self._stops), default=0)
        self._held = text[end:]
        return text[:end]


class WholeText:
    """All the text of another stream, returned by finish()."""

    def __init__(self, stream):
        self._stream, self._text = stream, ""

    @property
    def done(self):
        return self._stream.done

    def feed(self, token):
        self._text += self._stream.feed(token)
        return ""

    def finish(self):
        return self._text + self._stream.finish()


class IdStream:
    """Token ids, for a model without a known vocabulary."""

    def __init__(self, ends=()):
        """ends: the ids that end a text."""
        self.done = False
        self._ends = ends

    def feed(self, token):
        self.done = token.id in self._ends
        return f"{token.id} "

    def finish(self):
        return ""


class TokenLines:
    """One line per token: id, token, probability. The sample ends when `stream` does."""

    def __init__(self, stream, vocabulary):
        """stream: a TextStream or IdStream. vocabulary: the model's; an unknown one leaves the token out."""
        self._stream, self._vocabulary = stream, vocabulary

    @property
    def done(self):
        return self._stream.done

    def feed(self, token):
        self._stream.feed(token)
        return f"{token.id:>6}  {self._repr(token.id):<20}  {token.probability:.6f}\n"

    def finish(self):
        return ""

    def _repr(self, id):
        if self._vocabulary.problem:
            return ""
        if self._vocabulary.token_bytes is None:
            return repr(self._vocabulary.decode([id]))
        data = b"".join(self._vocabulary.token_bytes[id : id + 1])
        try:
            return repr(data.decode())
        except UnicodeDecodeError:
            return repr(data)


def _pending_prefix(text, stop):
    """Returns the length of the longest proper prefix of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
