"""Token files cut into (B, T) batches, in llm.c's order or shuffled, with a position that can be saved."""

import glob
import hashlib
import itertools
import os

import numpy as np

from gpt2.errors import UserError, from_os_error
from gpt2.formats.files import HEADER_BYTES, check_size, open_to_read, read_header

MAGIC = 20240520
VERSION = 1
CHUNK = 2**18  # tokens checked and hashed at a time: they stay in the cache
READ_BYTES = 2**26  # how much of the files is read at once, rather than mapped
ROWS_SHOWN = 4


class DataLoader:
    """Walks through token files, epoch after epoch.

    A file of N tokens makes (N-1) // (B*T) batches of B rows each; row r is the T+1 tokens from r*T on. In sequence, an
    epoch goes through the files by name and through each from its start. Shuffled, the rows of all files together come
    in an order that depends on the seed and the epoch alone.

    patterns: a path or a glob, or a list of those. V: every token id must be below it. shuffle_seed: None or an integer
    that is not negative. Raises UserError for no such file, a malformed one, an id at or above V, and fewer than B*T+1
    tokens in a file.

    The first files, up to 64 MiB together, are read at once, so that what happens to them later does no harm. Larger
    ones are mapped: replaced by a rename they may be, but not changed in place, before the run has ended.

    Attributes: `shards`, each file's ids, integers (count,); `num_tokens` in all of them; `num_batches` in an epoch;
    `fingerprint`, what `difference` compares: a dict of each file, its name as given ("file"), its "tokens", and the
    "sha256" of its ids as they are stored.
    """

    def __init__(self, patterns, B, T, V, shuffle_seed=None):
        if B < 1 or T < 1:
            raise UserError(f"a batch of {B} x {T} tokens; both must be at least 1")
        self.B, self.T, self._seed = B, T, shuffle_seed
        self.shards, self.fingerprint = [], []
        room = READ_BYTES
        for path in _expand(patterns):
            tokens = _open_tokens(path, room)
            if not isinstance(tokens, np.memmap):
                room -= tokens.nbytes
            digest = _check_ids(tokens, path, V)
            if tokens.size < B * T + 1:
                raise UserError(f"{path}: {tokens.size:,} tokens, a batch of {B} x {T} takes at least {B * T + 1:,}")
            self.shards.append(tokens)
            self.fingerprint.append({"file": path, "tokens": tokens.size, "sha256": digest})
        rows = [(tokens.size - 1) // (B * T) * B for tokens in self.shards]
        self._first_rows = np.cumsum([0, *rows])  # of each shard, counted over all of them; in the end their number
        self.num_tokens = sum(tokens.size for tokens in self.shards)
        self.num_batches = sum(rows) // B
        if shuffle_seed is not None and sum(rows) > 2**32:
            raise UserError(f"{sum(rows):,} sequences, too many to shuffle; choose longer ones")
        self._order = None, None  # an epoch, and the order of its rows
        self.reset()

    def next_batch(self):
        """Returns (tokens, targets), int32 (B, T) each, newly made: a target is the token after."""
        tokens, targets = np.empty((2, self.B, self.T), np.int32)
        for i, (shard, start) in enumerate(self._rows(*self._position)):
            row = self.shards[shard][start : start + self.T + 1]
            tokens[i], targets[i] = row[:-1], row[1:]
        epoch, batch = self._position
        self._position = (epoch, batch + 1) if batch + 1 < self.num_batches else (epoch + 1, 0)
        return tokens, targets

    def reset(self):
        """Goes back to the first batch of the first epoch."""
        self._position = 0, 0

    @property
    def epoch(self):
        """The epoch of the next batch, counted from 0."""
        return self._position[0]

    @property
    def position(self):
        """(epoch, batch) of the next batch, each counted from 0, the batch over all files.

        Assigning a saved one goes on from there. Raises UserError for what is not a position in these files.
        """
        return self._position

    @position.setter
    def position(self, value):
        self._position = self._checked(value)

    def where(self, position):
        """Returns where the batch at a position lies in the files, in words. Raises UserError as `position` does."""
        epoch, batch = self._checked(position)
        rows = list(self._rows(epoch, batch))
        files = [_printable(entry["file"]) for entry in self.fingerprint]
        if self._seed is None:
            shard, start = rows[0]
            places = [f"{files[shard]}, tokens {start:,} to {start + self.B * self.T - 1:,}"]
        else:
            places = [f"{files[shard]} from token {start:,}" for shard, start in rows[:ROWS_SHOWN]]
            if len(rows) > ROWS_SHOWN:
                places.append(f"and {len(rows) - ROWS_SHOWN:,} more")
        return f"epoch {epoch:,}, batch {batch:,}: {'; '.join(places)}"

    def difference(self, saved):
        """Compares the files with the `fingerprint` of an earlier run, whatever a checkpoint holds in its place.

        Returns the first difference in words, or None. Folders and names do not matter where contents and their order
        are the same.
        """
        if not _is_fingerprint(saved):
            return "what was noted of the token files is malformed"
        names, saved_names = ({_name(entry) for entry in entries} for entries in (self.fingerprint, saved))
        for before, now in itertools.zip_longest(saved, self.fingerprint):
            if before is None:
                return f"{_printable(now['file'])} is one file more"
            if now is None:
                return f"{_printable(before['file'])} is gone"
            if now["tokens"] == before["tokens"] and now["sha256"] == before["sha256"]:
                continue
            new, old = _printable(now["file"]), _printable(before["file"])
            if _name(before) not in names:
                return f"{old} is gone"
            if _name(now) not in saved_names:
                return f"{new} is one file more"
            if _name(now) != _name(before):
                return f"the files are in another order: {new} stands where {old} was"
            if now["tokens"] != before["tokens"]:
                return f"{new} has {now['tokens']:,} tokens, it had {before['tokens']:,}"
            return f"{new} has other tokens, as many as before"
        return None

    def _checked(self, position):
        """The position as a tuple, if it is one."""
        valid = isinstance(position, list | tuple) and [type(part) for part in position] == [int, int]
        if not valid or position[0] < 0 or not 0 <= position[1] < self.num_batches:
            raise UserError(
                f"position {position!r:.60} is not in these token files, whose epoch has {self.num_batches:,} batches "
                f"of {self.B} x {self.T}; have they or the batch changed?"
            )
        return tuple(position)

    def _rows(self, epoch, batch):
        """Yields the shard and the first token in it of each row of a batch."""
        first, end = batch * self.B, (batch + 1) * self.B
        rows = np.arange(first, end) if self._seed is None else self._shuffled(epoch)[first:end]
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        starts = (rows - self._first_rows[shards]) * self.T
        return zip(shards.tolist(), starts.tolist(), strict=True)

    def _shuffled(self, epoch):
        """The order of all rows in an epoch, uint32; it is drawn anew where another epoch's was the last."""
        if self._order[0] != epoch:
            self._order = None, None  # two at a time would be twice the memory
            rows = np.arange(self._first_rows[-1], dtype=np.uint32)
            np.random.default_rng([self._seed, epoch]).shuffle(rows)
            self._order = epoch, rows
        return self._order[1]


def _name(entry):
    return os.path.basename(entry["file"])


def _printable(path):
    """A file's name as it may stand in a line: it need not be text."""
    return path if path.isprintable() else ascii(path)


def _is_fingerprint(value):
    """Whether a value has the form of a loader's fingerprint."""
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("file"), str)
        and type(entry.get("tokens")) is int
        and isinstance(entry.get("sha256"), str)
        for entry in value
    )


def _expand(patterns):
    """The files that the patterns name, each once, sorted by name."""
    paths = {}
    for pattern in [patterns] if isinstance(patterns, str | os.PathLike) else patterns:
        pattern = os.fsdecode(pattern)
        # A file may have brackets in its name.
        found = [pattern] if os.path.exists(pattern) else glob.glob(pattern)
        if not found:
            raise UserError(f"{pattern}: no such token file; prepro_tinyshakespeare.py makes some")
        for path in found:
            paths.setdefault(os.path.abspath(path), path)  # "./x" is "x"
    return sorted(paths.values())


def _open_tokens(path, room):
    """The tokens of a file, of either format: integers (count,), read if they take at most `room` bytes, else mapped.

    Which ids they are is not yet checked.
    """
    with open_to_read(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise UserError(f"{path}: empty, expected a file of tokens")
            if file.read(4) == np.array(MAGIC, dtype="<i4").tobytes():
                file.seek(0)
                _, version, count = (int(value) for value in read_header(file, path, "a token file")[:3])
                if version != VERSION:
                    raise UserError(f"{path}: token file of version {version}, expected {VERSION}")
                if count < 1:
                    raise UserError(f"{path}: the header says {count} tokens, expected at least one")
                check_size(file, path, HEADER_BYTES + 2 * count, f"a header and {count:,} uint16 tokens")
                dtype, start = "<u2", HEADER_BYTES
            elif size % 4:
                raise UserError(
                    f"{path}: {size:,} bytes without a token file's header, and not a multiple of 4 for int32"
                )
            else:
                dtype, start = "<i4", 0
            if size - start > room:
                return np.memmap(file, dtype=dtype, mode="r", offset=start)
            file.seek(start)
            return np.fromfile(file, dtype=dtype)
        except OSError as error:
            raise from_os_error(error, path) from error


def _check_ids(tokens, path, V):
    """Reads all tokens once: raises UserError unless each is in 0 .. V-1, and returns their SHA-256, hexadecimal."""
    digest = hashlib.sha256()
    for start in range(0, tokens.size, CHUNK):
        chunk = tokens[start : start + CHUNK]
        if chunk.min() < 0 or chunk.max() >= V:
            wrong = int(np.flatnonzero((chunk < 0) | (chunk >= V))[0])
            raise UserError(
                f"{path}: token {chunk[wrong]} at position {start + wrong:,} is not in 0 .. {V - 1}; "
                "is it a token file, and made with this model's vocabulary?"
            )
        digest.update(chunk)
    return digest.hexdigest()
