"""From tokens to what is shown of them, piece by piece.

A stream has `feed(token)`, which takes a sampling.Token and returns the piece that can be shown now; `finish()`, which
returns what was held back; and `done`, whether the sample has ended, after which nothing is fed.
"""

import codecs

from gpt2.data.tokenizer import EOT


class TextStream:
    """The text, up to the end of text or the first stop text.

    Bytes that are not yet a whole character are held back, and so is what may become a stop text. Bytes that never
    become a character are shown as U+FFFD.
    """

    def __init__(self, encoding, stops=()):
        """encoding: GPT-2's tiktoken.Encoding. stops: texts, none empty; the text is cut before the first of them."""
        self.done = False
        self._encoding, self._stops = encoding, stops
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, token):
        if token.id == EOT:
            text = self.finish()
            self.done = True
            return text
        return self._show(self._utf8.decode(self._encoding.decode_single_token_bytes(token.id)))

    def finish(self):
        if self.done:
            return ""
        text = self._show(self._utf8.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _show(self, text):
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.done, self._held = True, ""
            return text[: min(found)]
        end = len(text) - max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[end:]
        return text[:end]


class IdStream:
    """The ids, for a vocabulary whose texts are not known."""

    done = False

    def feed(self, token):
        return f"{token.id} "

    def finish(self):
        return ""


class TokenLines:
    """A line for each token: id, token, probability. The sample ends where `stream` does."""

    def __init__(self, stream, encoding=None):
        """stream: TextStream or IdStream. encoding: GPT-2's tiktoken.Encoding; without one the token is not shown."""
        self._stream, self._encoding = stream, encoding

    @property
    def done(self):
        return self._stream.done

    def feed(self, token):
        self._stream.feed(token)
        return f"{token.id:>6}  {self._quoted(token.id):<20}  {token.probability:.6f}\n"

    def finish(self):
        return ""

    def _quoted(self, id):
        if self._encoding is None:
            return ""
        data = self._encoding.decode_single_token_bytes(id)
        try:
            return repr(data.decode())
        except UnicodeDecodeError:
            return repr(data)


def _begun(text, stop):
    """How many characters at the end of `text` are the beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
