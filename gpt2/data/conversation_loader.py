"""Batches of conversations: one a row, padded at its right end, rows of like length together."""

import hashlib

import numpy as np

from gpt2.data.dataloader import ROWS_SHOWN, DataLoader, expand
from gpt2.errors import UserError
from gpt2.formats.conversation_file import read_conversations_file
from gpt2.model import NO_TARGET

ASSISTANT, ALL = LOSS_ON = ("assistant", "all")
WINDOW = 64  # steps whose conversations are sorted by length together
PADDING = 0  # an input that no target depends on
NAMED = 8  # conversations named in a message


class ConversationLoader(DataLoader):
    """Iterates over token files of conversations, epoch after epoch; each conversation occurs once in an epoch.

    A batch is B conversations, the last one of an epoch fewer, and as wide as the longest of them. A row begins with a
    conversation's tokens but the last: position 0 is where a conversation begins, in a chat, too.

    patterns: a path or glob, or a list of them. T: the widest batch; conversations of more than T+1 tokens are left
    out, which a line on stdout says. V: vocabulary size, the limit of token ids. shuffle_seed: an integer >= 0, for an
    order that depends only on it, the epoch and the number of conversations in a step, B * accumulation, which are of
    like length; None takes all by length, the shortest first. loss_on: ASSISTANT for a loss on what the assistant
    produces, ALL for one on everything. Raises UserError for a missing or malformed file, a token id at or above V, and
    if no conversation is left.

    Attributes: those of DataLoader but `shards`; `num_tokens`, of the conversations not left out; `num_targets`, those
    with a loss in an epoch; `num_conversations`; `widest`, the widest row, at most T.
    """

    def __init__(self, patterns, B, T, V, shuffle_seed=None, loss_on=ASSISTANT, accumulation=1):
        if B < 1 or T < 1:
            raise UserError(f"batch of {B} x {T} tokens: expected at least 1 x 1")
        assert loss_on in LOSS_ON
        self.B, self.T = B, T
        self._seed, self._step_rows = shuffle_seed, B * accumulation
        self.fingerprint, self._files, rows = [], [], []
        for path in expand(patterns):
            data = read_conversations_file(path)
            _check_ids(data.tokens, path, V)
            self.fingerprint.append({"file": path, "tokens": data.tokens.size, "sha256": _digest(data)})
            if loss_on == ALL:
                data.counts[:] = True
            rows.append(_rows(len(self._files), data, path, T))
            self._files.append(data)
        # For each conversation: its file, its number there, where it starts, its length, its number of targets.
        self._rows_of = np.concatenate(rows, axis=1)
        self.num_conversations = self._rows_of.shape[1]
        if not self.num_conversations:
            raise UserError(f"{self.file_names()}: no conversation is left to train on; choose a larger --seq-len")
        _, _, _, self._lengths, targets = self._rows_of
        self.num_tokens, self.num_targets = int(self._lengths.sum()), int(targets.sum())
        self.widest = int(self._lengths.max()) - 1
        self.num_batches = -(-self.num_conversations // B)
        self._order = None, None  # the last epoch, and the order of its conversations
        self.reset()

    def next_batch(self):
        """Returns new arrays (tokens, targets), int32 (rows, width), rows <= B, width <= T; a target of -1 has no loss.

        Every row has a target.
        """
        epoch, batch = self._position
        places = list(self._rows(epoch, batch))
        width = max(length for _, _, _, length in places) - 1
        shape = len(places), width
        tokens, targets = np.full(shape, PADDING, np.int32), np.full(shape, NO_TARGET, np.int32)
        for row, (file, _, start, length) in enumerate(places):
            data, end = self._files[file], start + length
            tokens[row, : length - 1] = data.tokens[start : end - 1]
            learned = np.flatnonzero(data.counts[start + 1 : end])
            targets[row, learned] = data.tokens[start + 1 : end][learned]
        self._position = (epoch, batch + 1) if batch + 1 < self.num_batches else (epoch + 1, 0)
        return tokens, targets

    def where(self, position):
        """Names the conversations, from 1, in the batch at a position. Raises UserError as `position` does."""
        epoch, batch = self._checked(position)
        rows = list(self._rows(epoch, batch))
        places = [f"{self.fingerprint[file]['file']}, conversation {number + 1:,}" for file, number, _, _ in rows]
        if len(rows) > ROWS_SHOWN:
            places[ROWS_SHOWN:] = [f"and {len(rows) - ROWS_SHOWN:,} more"]
        return f"epoch {epoch:,}, batch {batch:,}: {'; '.join(places)}"

    def _rows(self, epoch, batch):
        """Yields (file, number in it, index of the first token, length) for each row of a batch."""
        rows = self._ordered(epoch)[batch * self.B : (batch + 1) * self.B]
        return zip(*self._rows_of[:4, rows].tolist(), strict=True)

    def _ordered(self, epoch):
        """Returns the order of an epoch's conversations, int64 (num_conversations,); the last epoch's is cached.

        Those of WINDOW steps, drawn at random, are sorted by length and cut into steps; then the steps are shuffled.
        What does not fill a step comes last.
        """
        if self._seed is None:
            epoch = 0
        if self._order[0] == epoch:
            return self._order[1]
        if self._seed is None:
            order = self._by_length(np.arange(self.num_conversations))
        else:
            random, size = np.random.default_rng([self._seed, epoch]), self._step_rows
            drawn = random.permutation(self.num_conversations)
            filled = drawn[: drawn.size // size * size]
            windows = [filled[start : start + WINDOW * size] for start in range(0, filled.size, WINDOW * size)]
            steps = np.concatenate([filled[:0], *map(self._by_length, windows)]).reshape(-1, size)
            random.shuffle(steps)
            order = np.concatenate([steps.ravel(), self._by_length(drawn[filled.size :])])
        self._order = epoch, order
        return order

    def _by_length(self, rows):
        return rows[np.argsort(self._lengths[rows], kind="stable")]


def _rows(file, data, path, T):
    """Returns the conversations of a file that fit and have a target, int64 (5, conversations); names the others."""
    lengths = data.lengths.astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    targets = np.add.reduceat(data.counts, starts, dtype=np.int64) - data.counts[starts]  # the first token is none
    for reason, out in ((f"longer than {T + 1:,} tokens", lengths > T + 1), ("without a target", targets == 0)):
        if count := np.count_nonzero(out):
            named = ", ".join(f"{number + 1:,}" for number in np.flatnonzero(out)[:NAMED])
            named += f" and {count - NAMED:,} more" if count > NAMED else ""
            print(f"{path}: left out {count:,} of {out.size:,} conversations, {reason}: number {named}", flush=True)
    kept = np.flatnonzero((lengths <= T + 1) & (targets > 0))
    return np.stack([np.full(kept.size, file), kept, starts[kept], lengths[kept], targets[kept]])


def _check_ids(tokens, path, V):
    if tokens.max() >= V:
        place = int(np.argmax(tokens >= V))
        raise UserError(
            f"{path}: token {tokens[place]} at position {place:,} is not in 0 .. {V - 1}; was it made with the model's "
            "vocabulary?"
        )


def _digest(data):
    """Returns the SHA-256 of everything in a file of conversations, hexadecimal."""
    digest = hashlib.sha256()
    for part in data:
        digest.update(part)
    return digest.hexdigest()
