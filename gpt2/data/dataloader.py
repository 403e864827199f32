"""Splits token files into (B, T) batches, in llm.c's order or shuffled, with a position that can be saved."""

import glob
import hashlib
import itertools
import os

import numpy as np

from gpt2.data import texts
from gpt2.data.llmc_order import LlmcOrder
from gpt2.errors import UserError, safe_repr
from gpt2.formats.files import open_to_read
from gpt2.formats.llmc import TokenFile, open_tokens

CHUNK = 2**18  # tokens checked and hashed at a time: they fit in cache
READ_BYTES = 2**26  # files are read into memory up to this total, and others row by row
ROWS_SHOWN = FILES_SHOWN = 4
LLMC = "llmc"


class DataLoader:
    """Iterates over token files, epoch after epoch.

    A file of N tokens yields (N-1) // (B*T) batches of B rows; row r is the T+1 tokens starting at r*T. In sequence, an
    epoch takes the files sorted by name and each from its start. Shuffled, it takes the rows of all files in an order
    that depends only on the seed and the epoch. In llm.c's order, an epoch takes the files shuffled, and from each its
    batches shuffled: see llmc_order.

    patterns: a path or glob, or a list of them. V: vocabulary size, the limit of token ids. shuffle_seed: None for no
    shuffling, an integer >= 0, or LLMC for llm.c's order. shrink: whether B, or else T, too, may become smaller if no
    file has the B*T+1 tokens of a batch. Files with fewer are left out. Prints a line in both cases. Raises UserError
    for a missing or malformed file, a text, a token id at or above V, and if all files are left out.

    The first files, up to 64 MiB in total, are read into memory, so later changes to them do no harm. The others are
    read as batches need them. They may be replaced by a rename, deleted or appended to; if one is truncated,
    `next_batch` raises UserError. Other tokens written into one in place are used unchecked.

    Attributes: `B`, `T`; `shards`, the token ids of each file not left out, an array of integers (count,) or an
    llmc.TokenFile; `num_tokens`, their total; `num_batches` per epoch; `fingerprint`, for `difference`: for each of
    these files a dict of its name as given ("file"), its number of "tokens" and the "sha256" of its ids as stored.
    """

    def __init__(self, patterns, B, T, V, shuffle_seed=None, shrink=False):
        if B < 1 or T < 1:
            raise UserError(f"batch of {B} x {T} tokens: expected at least 1 x 1")
        files = _read(patterns, V)
        self.B, self.T = B, T = _fitting_batch([entry for _, entry in files], B, T, shrink)
        used = [(tokens, entry) for tokens, entry in files if tokens.size > B * T]
        self.shards, self.fingerprint = map(list, zip(*used, strict=True))
        if short := [entry for tokens, entry in files if tokens.size <= B * T]:
            total = sum(entry["tokens"] for entry in short)
            print(f"left out, too short for a batch of {B} x {T}: {_names(short)}, {total:,} tokens in all", flush=True)
        rows = [(tokens.size - 1) // (B * T) * B for tokens in self.shards]
        self._first_rows = np.cumsum([0, *rows])  # of each shard, among all rows; then the total
        self.num_tokens = sum(tokens.size for tokens in self.shards)
        self.num_batches = sum(rows) // B
        self._seed = None if shuffle_seed == LLMC else shuffle_seed
        self._batch_order = LlmcOrder([count // B for count in rows]) if shuffle_seed == LLMC else None
        if shuffle_seed is not None and sum(rows) > 2**32:
            raise UserError(f"{sum(rows):,} sequences are too many to shuffle, at most {2**32:,}; choose a larger T")
        self._order = None, None  # the epoch last shuffled, and the order of its rows, or of its batches
        self.reset()

    def next_batch(self):
        """Returns new arrays (tokens, targets), int32 (B, T); each target is the token that follows."""
        tokens, targets = np.empty((2, self.B, self.T), np.int32)
        for i, (shard, start) in enumerate(self._rows(*self._position)):
            row = self.shards[shard][start : start + self.T + 1]
            tokens[i], targets[i] = row[:-1], row[1:]
        epoch, batch = self._position
        self._position = (epoch, batch + 1) if batch + 1 < self.num_batches else (epoch + 1, 0)
        return tokens, targets

    def reset(self):
        """Returns to the first batch of the first epoch."""
        self._position = 0, 0

    def skip(self, count):
        """Goes on by `count` batches without reading them."""
        epoch, batch = self._position
        epochs, batch = divmod(batch + count, self.num_batches)
        self._position = epoch + epochs, batch

    @property
    def epoch(self):
        """The epoch of the next batch, from 0."""
        return self._position[0]

    @property
    def position(self):
        """The next batch as (epoch, batch within the epoch), both from 0.

        Assign a saved position to continue there. Raises UserError if it is not a position in these files.
        """
        return self._position

    @position.setter
    def position(self, value):
        self._position = self._checked(value)

    def where(self, position):
        """Describes where the batch at a position is in the files. Raises UserError as `position` does."""
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

    def file_names(self):
        """Names the files, in one line; of many, the first ones and how many more there are."""
        return _names(self.fingerprint)

    def difference(self, saved):
        """Compares the files with `saved`, the `fingerprint` of an earlier run, which may be malformed.

        Returns a description of the first difference, or None. Only contents and their order count, not names.
        """
        if not _is_fingerprint(saved):
            return "the saved fingerprint of the token files is malformed"
        names, saved_names = ({_name(entry) for entry in entries} for entries in (self.fingerprint, saved))
        for before, now in itertools.zip_longest(saved, self.fingerprint):
            if before is None:
                return f"{_printable(now['file'])} is an additional file"
            if now is None:
                return f"{_printable(before['file'])} is missing"
            if now["tokens"] == before["tokens"] and now["sha256"] == before["sha256"]:
                continue
            new, old = _printable(now["file"]), _printable(before["file"])
            if _name(before) not in names:
                return f"{old} is missing"
            if _name(now) not in saved_names:
                return f"{new} is an additional file"
            if _name(now) != _name(before):
                return f"the files are in a different order: {new} is where {old} was"
            if now["tokens"] != before["tokens"]:
                return f"{new} has {now['tokens']:,} tokens, not {before['tokens']:,} as before"
            return f"{new} has different tokens, as many as before"
        return None

    def _checked(self, position):
        """Returns a position as a tuple. Raises UserError if it is invalid."""
        valid = isinstance(position, list | tuple) and [type(part) for part in position] == [int, int]
        if not valid or position[0] < 0 or not 0 <= position[1] < self.num_batches:
            raise UserError(
                f"position {safe_repr(position)} is not in these token files, whose epoch has {self.num_batches:,} "
                f"batches of {self.B} x {self.T}; have the files or the batch size changed?"
            )
        return tuple(position)

    def _rows(self, epoch, batch):
        """Yields (shard, index of its first token) for each row of a batch."""
        if self._batch_order is not None:
            batch = int(self._shuffled(epoch)[batch])
        first, end = batch * self.B, (batch + 1) * self.B
        rows = np.arange(first, end) if self._seed is None else self._shuffled(epoch)[first:end]
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        starts = (rows - self._first_rows[shards]) * self.T
        return zip(shards.tolist(), starts.tolist(), strict=True)

    def _shuffled(self, epoch):
        """Returns the order of an epoch's rows, uint32 (rows,), or batches, (batches,); the last epoch's is cached."""
        if self._order[0] != epoch:
            self._order = None, None  # frees the old one first
            if self._batch_order is not None:
                order = self._batch_order(epoch)
            else:
                order = np.arange(self._first_rows[-1], dtype=np.uint32)
                np.random.default_rng([self._seed, epoch]).shuffle(order)
            self._order = epoch, order
        return self._order[1]


def _read(patterns, V):
    """Returns the files' (ids, entry of the fingerprint), a list. Raises UserError."""
    paths, files, room = expand(patterns), [], READ_BYTES
    texts.refuse_texts(paths)
    for path in paths:
        tokens = open_tokens(path, room)
        if not isinstance(tokens, TokenFile):
            room -= tokens.nbytes
        files.append((tokens, {"file": path, "tokens": tokens.size, "sha256": _check_ids(tokens, path, V)}))
    return files


def _fitting_batch(entries, B, T, shrink):
    """Returns (B, T) if a file has B*T+1 tokens; else smaller ones for the longest file, and prints a line.

    entries: a fingerprint of all files. T stays as long as a B >= 1 allows it. Raises UserError if they may not shrink,
    or if no file has two tokens.
    """
    longest = max(entries, key=lambda entry: entry["tokens"])
    size, path = longest["tokens"], _printable(longest["file"])
    if size > B * T:
        return B, T
    longest = f"{size:,} tokens" + (f", the most of {len(entries):,} files" if entries[1:] else "")
    short = f"{path}: {longest}, a batch of {B} x {T} takes at least {B * T + 1:,}"
    if size < 2:
        raise UserError(f"{short}; choose a longer text")
    B, T = ((size - 1) // T, T) if size > T else (1, size - 1)
    if not shrink:
        raise UserError(f"{short}; choose --batch-size {B} --seq-len {T}")
    print(f"{short}; its batches are {B} x {T}", flush=True)
    return B, T


def bytes_in_memory(patterns):
    """Returns the bytes that a DataLoader of these files reads into memory, headers included.

    Raises UserError for a missing file.
    """
    room = READ_BYTES
    for path in expand(patterns):
        with open_to_read(path) as file:
            size = os.fstat(file.fileno()).st_size
        room -= size if size <= room else 0
    return READ_BYTES - room


def _names(entries):
    names = [_printable(entry["file"]) for entry in entries[:FILES_SHOWN]]
    more = len(entries) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


def _name(entry):
    return os.path.basename(entry["file"])


def _printable(path):
    """Returns a file name in printable form: it may contain control characters or undecodable bytes."""
    return path if path.isprintable() else ascii(path)


def _is_fingerprint(value):
    """Returns whether a value has the structure of a fingerprint."""
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("file"), str)
        and type(entry.get("tokens")) is int
        and isinstance(entry.get("sha256"), str)
        for entry in value
    )


def expand(patterns):
    """Returns the files that match the patterns, sorted, without duplicates."""
    paths = {}
    for pattern in [patterns] if isinstance(patterns, str | os.PathLike) else patterns:
        pattern = os.fsdecode(pattern)
        # A file name may contain glob characters.
        found = [pattern] if os.path.exists(pattern) else glob.glob(pattern)
        if not found:
            raise UserError(f"{pattern}: no such token file; make one with gpt2 prepare")
        for path in found:
            paths.setdefault(os.path.abspath(path), path)  # "./x" and "x" are one file
    return sorted(paths.values())


def _check_ids(tokens, path, V):
    """Checks that all tokens are in 0 .. V-1, or raises UserError; returns their SHA-256, hexadecimal."""
    digest = hashlib.sha256()
    for start in range(0, tokens.size, CHUNK):
        chunk = tokens[start : start + CHUNK]
        if chunk.min() < 0 or chunk.max() >= V:
            wrong = int(np.flatnonzero((chunk < 0) | (chunk >= V))[0])
            raise UserError(
                f"{path}: token {chunk[wrong]} at position {start + wrong:,} is not in 0 .. {V - 1}; "
                "is this a token file, made with the model's vocabulary?"
            )
        digest.update(chunk)
    return digest.hexdigest()
