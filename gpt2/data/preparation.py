"""Token files from any amount of text: tokenised document by document into a temporary file, then split and written."""

import collections
import concurrent.futures
import contextlib
import os
import pathlib
import re
import tempfile

import numpy as np
from tqdm import tqdm

from gpt2.data import texts, vocabulary
from gpt2.data.tokenizer import cut_points
from gpt2.data.trained_vocabulary import byte_pairs, characters
from gpt2.errors import UserError, from_os_error, safe_repr
from gpt2.formats import files
from gpt2.formats.llmc import write_token_file
from gpt2.formats.tokenizer_folder import END_OF_TEXT
from gpt2.output import lossy_output

SHARD = 100_000_000  # tokens of a training file
BATCH = 2**18  # characters tokenised at a time
MIN_TOKENS, MIN_SPLIT = 20, 2  # of the texts, of a split: a token and its target
FIRST = 40  # tokens shown
FAR = 0.05  # of the tokens, that the splits may be off without a word
LONG_WORD = 2**13  # characters


class Tokens:
    """The tokens of documents, one after the other, in files, so that they take no memory.

    Attributes: `documents`, `size`, the numbers of documents and tokens; `bytes`, of the texts in UTF-8; `separators`,
    how often the texts spell <|endoftext|>.
    """

    def __init__(self, tokens, starts):
        """tokens, starts: empty binary files."""
        self._tokens, self._starts = tokens, starts
        self.documents = self.size = self.bytes = self.separators = 0

    @classmethod
    @contextlib.contextmanager
    def temporary(cls, folder):
        """Yields Tokens in temporary files in a folder; an OSError in the `with` becomes a UserError that names it."""
        try:
            with tempfile.TemporaryFile(dir=folder) as tokens, tempfile.TemporaryFile(dir=folder) as starts:
                yield cls(tokens, starts)
        except OSError as error:
            raise from_os_error(error, folder) from error

    def add(self, tokens, starts):
        """Appends tokens, uint16 (count,); starts: where documents begin in them, int64 (documents,)."""
        self._starts.write(self.size + starts)
        self._tokens.write(tokens)
        self.documents += starts.size
        self.size += tokens.size

    def range(self, start, stop):
        """Returns the tokens from `start` to `stop`, uint16 (count,), mapped."""
        self._tokens.flush()
        return np.memmap(self._tokens, np.uint16, "r", 2 * start, (stop - start,))

    def starts(self):
        """Returns where each document begins, int64 (documents,), mapped."""
        self._starts.flush()
        return np.memmap(self._starts, np.int64, "r", shape=(self.documents,))


def tokenise(documents, words, tokens):
    """Adds documents, an iterable of (path, begins, text), to Tokens, each after the Vocabulary's `begin`.

    Raises UserError, OSError.
    """
    begin = [] if words.begin is None else [words.begin]
    cores = os.cpu_count()

    def encode(batch):
        encoded = words.encode_all([text for _, _, text in batch], batch[0][0])
        ids, starts = [], []
        for (_, begins, _), more in zip(batch, encoded, strict=True):
            if begins:
                starts.append(len(ids))
                ids += begin
            ids += more
        return np.array(ids, np.uint16), np.array(starts, np.int64)

    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        waiting = collections.deque()
        for batch in _batches(documents):
            waiting.append((batch, pool.submit(encode, batch)))
            if len(waiting) > 2 * cores:
                _take(tokens, *waiting.popleft())
        while waiting:
            _take(tokens, *waiting.popleft())


def _documents(paths, form, what):
    """Yields (path, begins, text) for the documents of all files, with a progress bar."""
    total = sum(os.path.getsize(path) for path in paths if path != texts.STDIN)
    with tqdm(desc=what, total=total, unit="B", unit_scale=True, leave=False, disable=None, delay=1) as bar:
        for path in paths:
            for begins, text in texts.documents(path, form, bar.update):
                yield path, begins, text


def _batches(pieces):
    """Groups pieces, so that short documents are tokenised many at a time."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[2])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _take(tokens, batch, encoded):
    tokens.add(*encoded.result())
    for _, _, text in batch:
        tokens.bytes += len(text.encode())
        tokens.separators += text.count(END_OF_TEXT)


@lossy_output(then_raise=True)
def prepare_texts(inputs, name, vocab, form, data_dir, val_fraction=0.1, val_at="end", force=False):
    """Makes `data_dir`/NAME_train.bin, or shards of it, and NAME_val.bin, reporting on stdout. Returns their paths.

    inputs: files, folders, globs or "-". vocab: "gpt2", "chars", "bpe:N" or a folder; all but GPT-2's is written to
    NAME_vocabulary. form: a texts.Form. val_fraction: of the tokens, as nearly as documents allow, at the start or the
    end. force: replace what an earlier call made. Raises UserError.
    """
    folder, earlier = destination(name, data_dir, val_fraction, force)
    paths = texts.expand(inputs)
    found = (text for _, _, text in _documents(paths, form, "making the vocabulary"))
    words = named_vocabulary(vocab, paths, found)
    with Tokens.temporary(folder) as tokens:
        tokenise(_documents(paths, form, "tokenising"), words, tokens)
        return _write(tokens, words, folder, name, (val_fraction, val_at), earlier)


def destination(name, data_dir, val_fraction, force):
    """Returns (folder, files that an earlier call made under this name), creating the folder.

    Raises UserError for a name or fraction that cannot be, and if there are such files, unless `force`.
    """
    folder = pathlib.Path(data_dir)
    files.make_folder(folder)
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"--name {safe_repr(name)}: choose letters, digits, dots, dashes and underscores")
    if not 0 <= val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction:g}: choose a number from 0, for no validation part, below 1")
    earlier = [*folder.glob(f"{name}_train.bin"), *folder.glob(f"{name}_train_[0-9]*.bin")]
    earlier += [path for path in (folder / f"{name}_val.bin", folder / f"{name}_vocabulary") if path.exists()]
    if earlier and not force:
        raise UserError(f"{earlier[0]}: is there already; choose another --name, or --force to replace it")
    return folder, earlier


def named_vocabulary(vocab, paths, found):
    """Returns the vocabulary that --vocab names, made of the texts `found`, an iterable, if need be.

    paths: where those come from.
    """
    if vocab == "gpt2":
        return vocabulary.GPT2Vocabulary()
    size = re.fullmatch(r"bpe:(\d+)", vocab)
    if vocab != "chars" and not size:
        return vocabulary.load_vocabulary(vocab)
    if texts.STDIN in paths:
        raise UserError(f"--vocab {vocab}: reads the texts twice, which standard input cannot be; give a file")
    if not size:
        return characters("".join(set(text)) for text in found)
    return byte_pairs(_with_short_words(found), int(size[1]))


def _with_short_words(found):
    """Yields the texts in parts, with words longer than LONG_WORD divided: training takes time by their square."""
    for text in found:
        start = 0
        for end in cut_points(text, LONG_WORD):
            size = LONG_WORD if end - start > 2 * LONG_WORD else end - start
            yield from (text[at : min(at + size, end)] for at in range(start, end, size))
            start = end


def require_enough(tokens, name):
    """Raises UserError if the Tokens are too few for two splits."""
    if tokens.size < MIN_TOKENS:
        raise UserError(f"{name}: {tokens.size} tokens, expected at least {MIN_TOKENS}; choose a longer text")


def write_ranges(tokens, ranges, paths, sha256=None):
    """Writes ranges of the Tokens, (start, stop), as token files that belong together; sha256: of their vocabulary."""
    with files.atomic_write_all(paths) as opened:
        for file, part in zip(opened, ranges, strict=True):
            write_token_file(file, tokens.range(*part), sha256)


def _write(tokens, words, folder, name, val, earlier):
    require_enough(tokens, name)
    boundary = _boundary(tokens, *val)
    ranges = [(0, boundary), (boundary, tokens.size)]
    (train_start, train_stop), val_range = ranges if val[1] == "end" else reversed(ranges)
    starts = range(train_start, train_stop, SHARD)
    shards = [(start, min(start + SHARD, train_stop)) for start in starts]
    paths = [folder / f"{name}_train_{number:04d}.bin" for number in range(len(shards))]
    paths = paths if len(shards) > 1 else [folder / f"{name}_train.bin"]
    if boundary not in (0, tokens.size):
        paths, shards = [*paths, folder / f"{name}_val.bin"], [*shards, val_range]
    vocabulary.save_vocabulary(words, folder / f"{name}_vocabulary")
    write_ranges(tokens, shards, paths, words.sha256)
    remove_others(earlier, paths)
    _report(tokens, words, paths, (train_stop - train_start, val_range[1] - val_range[0]))
    return paths


def remove_others(earlier, paths):
    """Removes the token files of an earlier call that are not replaced by `paths`."""
    for path in earlier:
        if path.suffix == ".bin" and path not in paths:
            path.unlink()


def _boundary(tokens, fraction, at):
    """Returns where validation begins, at the end of the tokens, or ends, at their start: between two documents."""
    if not fraction:
        return tokens.size if at == "end" else 0
    point = round(tokens.size * (1 - fraction if at == "end" else fraction))
    if tokens.documents == 1:
        print("one document: its end is the validation part" if at == "end" else "one document: validation begins it")
        return min(max(point, MIN_SPLIT), tokens.size - MIN_SPLIT)
    inner = tokens.starts()[1:]
    after = min(int(np.searchsorted(inner, point)), inner.size - 1)
    boundary = int(min(inner[max(after - 1, 0)], inner[after], key=lambda start: abs(start - point)))
    if abs(boundary - point) > FAR * tokens.size:
        share = (tokens.size - boundary if at == "end" else boundary) / tokens.size
        print(f"validation is {share:.0%} of the tokens, not {fraction:.0%}: no document is divided between the splits")
    return boundary


def _report(tokens, words, paths, sizes):
    count, per_token = tokens.documents, tokens.bytes / tokens.size
    plural = "" if count == 1 else "s"
    print(f"{count:,} document{plural}, {tokens.size:,} tokens of {words.size:,}, {per_token:.2f} bytes a token")
    train, val = (paths[:-1], paths[-1:]) if sizes[1] else (paths, [])
    shown = train[0] if len(train) == 1 else f"{train[0]} and {len(train) - 1:,} more"
    for name, size in zip([shown, *val], sizes, strict=False):
        print(f"{name}: {size:,} tokens")
    start, stop = [*tokens.starts()[:2].tolist(), tokens.size][:2]
    first = words.decode(tokens.range(start, min(stop, start + FIRST)).tolist())
    print(f"the first document begins: {first!r}")
    if tokens.separators:
        print(
            f"{END_OF_TEXT} is in the texts {tokens.separators:,} times, as ordinary text; "
            f"--documents '{END_OF_TEXT}' would separate documents there"
        )
