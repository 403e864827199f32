"""The sliding window of tokens that generation continues, and the decoder that has read them."""

import numpy as np

from gpt2.errors import UserError
from gpt2.inference.decoder import Decoder


class Context:
    """A window of at most `length` tokens over `batch_size` samples of equal length.

    When it is full, it slides. Position embeddings are absolute, so the tokens kept are read again from position 0. To
    amortise that, a quarter of the window is dropped at once: length - length // 4 tokens remain, new ones included (or
    all new ones, if there are more).

    Attributes: `config`, `length`; `tokens`, int32 (batch_size, n), the window; `slid`, True once tokens were dropped.
    """

    def __init__(self, config, params, batch_size=1, length=None):
        """params: float32 (parameter_layout(config).size,), shared. length: at most maxT, the default."""
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
        self.tokens = self.tokens[:, : max(0, self.tokens.shape[1] - count)]
        self._decoder.position = min(self._decoder.position, self.tokens.shape[1])

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
            kept = max(self.length - self.length // 4, min(count - decoder.position, self.length))
            decoder.position = 0
            self.tokens = self.tokens[:, -kept:]
            self.slid = True
        # With nothing new, the last token is read again: logits are not kept.
        decoder.position = min(decoder.position, self.tokens.shape[1] - 1)
        unread = self.tokens[:, decoder.position :]
        alike = decoder.position == 0 and (unread == unread[0]).all()
        logits = decoder.forward(unread[:1] if alike else unread)
        if not np.isfinite(logits.max(axis=1)).all():
            raise UserError("the logits are not finite: the model's weights are corrupt, or not a GPT-2's")
        return logits
