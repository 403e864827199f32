"""What a batch of samples is continued from: their last tokens, and the decoder that has read them."""

import numpy as np

from gpt2.errors import UserError
from gpt2.inference.decoder import Decoder


class Context:
    """The tokens of `batch_size` samples of equal length, of which the decoder holds the last `length` at most.

    When there are more, the window slides: positions are learned, so the tokens that stay are read anew from position
    0. For that not to happen at every token, a quarter of the window is let go at once: length - length // 4 tokens
    stay, the new ones among them (or all new ones, if they are more).

    Attributes: `tokens`, int32 (batch_size, n), the window; `slid`, whether tokens were let go.
    """

    def __init__(self, config, params, batch_size=1, length=None):
        """params: float32 (parameter_layout(config).size,). length: at most maxT, which is the default."""
        self._decoder = Decoder(config, params, batch_size, length)
        self.length = self._decoder.length
        self.tokens = np.empty((batch_size, 0), np.int32)
        self.slid = False

    def add(self, tokens):
        """Appends tokens, integers (batch_size, n), or (1, n) for all samples alike. They are read when needed."""
        tokens = np.asarray(tokens, np.int32)
        self.tokens = np.hstack([self.tokens, np.broadcast_to(tokens, (len(self.tokens), tokens.shape[1]))])

    def forget(self, count):
        """Takes the last `count` tokens of each sample away, or all if they are fewer."""
        self.tokens = self.tokens[:, : max(0, self.tokens.shape[1] - count)]
        self._decoder.position = min(self._decoder.position, self.tokens.shape[1])

    def reorder(self, rows):
        """Sample i becomes a copy of what sample rows[i] was; rows: int (batch_size,)."""
        self._decoder.reorder(rows)
        self.tokens = self.tokens[rows]

    def logits(self):
        """Returns the logits after the last token, float32 (batch_size, V), valid until the next call.

        What is already read is not read again. Nothing is lost if this call is interrupted. Raises UserError if they
        are not finite.
        """
        decoder, count = self._decoder, self.tokens.shape[1]
        if count > self.length:
            kept = max(self.length - self.length // 4, min(count - decoder.position, self.length))
            decoder.position = 0
            self.tokens = self.tokens[:, -kept:]
            self.slid = True
        # The last token is read again if nothing was added: only a call gives logits.
        decoder.position = min(decoder.position, self.tokens.shape[1] - 1)
        unread = self.tokens[:, decoder.position :]
        alike = decoder.position == 0 and (unread == unread[0]).all()
        logits = decoder.forward(unread[:1] if alike else unread)
        if not np.isfinite(logits.max(axis=1)).all():
            raise UserError("the model's logits are not finite: its weights are damaged, or no GPT-2's")
        return logits
