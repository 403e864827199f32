"""The sliding windows of tokens that generation continues, and the decoder that has read them."""

import numpy as np

from gpt2.errors import UserError
from gpt2.inference.decoder import Decoder
from gpt2.kernels.small_batch import SMALL_BATCH


class Context:
    """A window of at most `length` tokens over `batch_size` samples of equal length.

    When it is full, it slides. Position embeddings are absolute, so the tokens kept are read again from position 0. To
    amortise that, a quarter of the window is dropped at once: length - length // 4 tokens remain, new ones included (or
    all new ones, if there are more).

    Attributes: `config`, `length`; `tokens`, int32 (batch_size, n), the window; `slid`, True once tokens were dropped.
    """

    def __init__(self, config, params, batch_size=1, length=None):
        """params: float32 (parameter_layout(config).size,), or Weights; shared. length: at most maxT, the default."""
        self._decoder = Decoder(config, params, batch_size, length)
        self.config, self.length = config, self._decoder.length
        self.tokens = np.empty((batch_size, 0), np.int32)
        self.slid = False

    def add(self, tokens):
        """Appends tokens, integers (batch_size, n), or (1, n) for all samples; `logits` reads them."""
        tokens = np.asarray(tokens, np.int32)
        self.tokens = np.hstack([self.tokens, np.broadcast_to(tokens, (len(self.tokens), tokens.shape[1]))])

    def forget(self, count):
        """Removes the last `count` tokens of each sample, or all if there are fewer."""
        left = max(0, self.tokens.shape[1] - count)
        # In this order, as Ctrl-C may come between: no token counts as read that was not.
        self._decoder.position = min(self._decoder.position, left)
        self.tokens = self.tokens[:, :left]

    def become(self, tokens):
        """Makes tokens, integers (n,), all that is in each sample; those that it begins with already stay read."""
        tokens = np.asarray(tokens, np.int32)
        n = min(tokens.size, self.tokens.shape[1])
        same = (self.tokens[:, :n] == tokens[:n]).all(axis=0)
        kept = n if same.all() else int(same.argmin())
        self.forget(self.tokens.shape[1] - kept)
        self.add([tokens[kept:]])

    def reorder(self, rows):
        """Replaces each sample i by a copy of sample rows[i]; rows: int (batch_size,)."""
        self._decoder.reorder(rows)
        self.tokens = self.tokens[rows]

    def logits(self):
        """Returns the logits of the next token, float32 (batch_size, V), valid until the next call.

        Only unread tokens are computed. An interrupted call can be repeated. Raises UserError if the logits are not
        finite.
        """
        decoder, count = self._decoder, self.tokens.shape[1]
        if count > self.length:
            decoder.position, kept = 0, _kept(count, decoder.position, self.length)
            self.tokens = self.tokens[:, -kept:]
            self.slid = True
        # With nothing new, the last token is read again: logits are not kept.
        decoder.position = min(decoder.position, self.tokens.shape[1] - 1)
        unread = self.tokens[:, decoder.position :]
        alike = decoder.position == 0 and (unread == unread[0]).all()
        logits = decoder.forward(unread[:1] if alike else unread)
        _require_finite(logits)
        return logits


class Batch:
    """Up to SMALL_BATCH texts of different lengths, continued together; each as in a Context of its own, bit for bit.

    What is new in a text is read alone if it is more than a token, with others in one pass if it is one token.

    Attributes: `length`, as in Context; `texts`, a list of int32 (n,), the window of each; `slid`, True once tokens of
    any were dropped.
    """

    def __init__(self, config, params, size, length=None):
        """size: of texts, at most SMALL_BATCH. params, length: as for Context."""
        assert size <= SMALL_BATCH, "more rows go through other kernels, which sum in another order"
        self._decoder = Decoder(config, params, size, length)
        self.config, self.length = config, self._decoder.length
        self.texts = [np.empty(0, np.int32)] * size
        self.slid = False

    def start(self, row, tokens):
        """Replaces a text by tokens, a non-empty list of int."""
        self._decoder.positions[row] = 0
        self.texts[row] = np.array(tokens, np.int32)

    def add(self, row, token):
        """Appends a token to a text."""
        self.texts[row] = np.append(self.texts[row], np.int32(token))

    def logits(self, rows):
        """Returns the logits of the next token of some texts, float32 (len(rows), V). Each must have an unread token.

        rows: their numbers. Raises UserError if the logits are not finite.
        """
        logits = np.empty((len(rows), self.config.V), np.float32)
        unread = [self._unread(row) for row in rows]
        for place, row in enumerate(rows):
            if unread[place].size > 1:
                logits[place] = self._decoder.forward([unread[place]], [row])[0]
        single = [place for place in range(len(rows)) if unread[place].size == 1]
        if single:
            tokens = np.stack([unread[place] for place in single])
            logits[single] = self._decoder.forward(tokens, [rows[place] for place in single])
        _require_finite(logits)
        return logits

    def _unread(self, row):
        """Returns the tokens of a text that are not in the cache, int32 (n,), once its window has slid."""
        positions, text = self._decoder.positions, self.texts[row]
        if text.size > self.length:
            kept = _kept(text.size, positions[row], self.length)
            positions[row], self.texts[row], self.slid = 0, text[-kept:], True
        return self.texts[row][positions[row] :]


def _kept(count, read, length):
    """Returns how many of `count` tokens, `read` of which were read, stay in a full window of `length`."""
    return max(length - length // 4, min(count - int(read), length))


def _require_finite(logits):
    if not np.isfinite(logits.max(axis=1)).all():
        raise UserError("the logits are not finite: the model's weights are corrupt, or not a GPT-2's")
