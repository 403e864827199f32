"""Token files from any amount of text: tokenised document by document into a temporary file, then split and written."""

import array
import collections
import concurrent.futures
import os
import pathlib
import re
import tempfile

import numpy as np
from tqdm import tqdm

from gpt2.data import texts, vocabulary
from gpt2.errors import UserError, from_os_error, safe_repr
from gpt2.formats import files
from gpt2.formats.llmc import write_token_file
from gpt2.output import lossy_output

SHARD = 100_000_000  # tokens of a training file
BATCH = 2**18  # characters tokenised at a time
MIN_TOKENS = 20
FIRST = 40  # tokens shown


class Tokens:
    """The tokens of documents, one after the other, in a temporary file, which is gone at the end of the `with`.

    Attributes: `starts`, where each document begins, an array of int; `size`, the number of tokens; `bytes`, of the
    texts in UTF-8; `separators`, how often the texts spell <|endoftext|>.
    """

    def __init__(self, folder):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.starts, self.size = array.array("q"), 0
        self.bytes = self.separators = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def add(self, begins, tokens):
        """Appends a document's tokens, uint16 (count,), or with begins False more of the last one's."""
        if begins:
            self.starts.append(self.size)
        self._file.write(tokens)
        self.size += tokens.size

    def range(self, start, stop):
        """Returns the tokens from `start` to `stop`, uint16 (count,), mapped."""
        self._file.flush()
        return np.memmap(self._file, np.uint16, "r", 2 * start, (stop - start,))


def tokenise(paths, form, words, tokens):
    """Adds the documents in the files to Tokens, each after the Vocabulary's `begin`. Raises UserError, OSError."""
    begin = [] if words.begin is None else [words.begin]
    cores = os.cpu_count()

    def encode(batch):
        encoded = words.encode_all([text for _, _, text in batch], batch[0][0])
        pairs = zip(batch, encoded, strict=True)
        return [np.array(begin * begins + ids, np.uint16) for (_, begins, _), ids in pairs]

    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        waiting = collections.deque()
        for batch in _batches(_documents(paths, form, "tokenising")):
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
    for (_, begins, text), ids in zip(batch, encoded.result(), strict=True):
        tokens.bytes += len(text.encode())
        tokens.separators += text.count(vocabulary.END_OF_TEXT)
        tokens.add(begins, ids)


@lossy_output(then_raise=True)
def prepare_texts(inputs, name, vocab, form, data_dir, val_fraction=0.1, val_at="end", force=False):
    """Makes `data_dir`/NAME_train.bin, or shards of it, and NAME_val.bin, reporting on stdout. Returns their paths.

    inputs: files, folders, globs or "-". vocab: "gpt2", "chars", "bpe:N" or a folder; all but GPT-2's is written to
    NAME_vocabulary. form: a texts.Form. val_fraction: of the tokens, as nearly as documents allow, at the start or the
    end. force: replace what an earlier call made. Raises UserError.
    """
    folder = pathlib.Path(data_dir)
    files.make_folder(folder)
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"--name {safe_repr(name)}: choose letters, digits, dots, dashes and underscores")
    if not 0 < val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction:g}: choose a number above 0 and below 1")
    earlier = [*folder.glob(f"{name}_train.bin"), *folder.glob(f"{name}_train_[0-9]*.bin")]
    earlier += [path for path in (folder / f"{name}_val.bin", folder / f"{name}_vocabulary") if path.exists()]
    if earlier and not force:
        raise UserError(f"{earlier[0]}: is there already; choose another --name, or --force to replace it")
    paths = texts.expand(inputs)
    words = _vocabulary(vocab, paths, form)
    try:
        with Tokens(folder) as tokens:
            tokenise(paths, form, words, tokens)
            return _write(tokens, words, folder, name, (val_fraction, val_at), earlier)
    except OSError as error:
        raise from_os_error(error, folder) from error


def _vocabulary(vocab, paths, form):
    """Returns the Vocabulary that --vocab names, trained on the texts if need be."""
    if vocab == "gpt2":
        return vocabulary.GPT2Vocabulary()
    size = re.fullmatch(r"bpe:(\d+)", vocab)
    if vocab != "chars" and not size:
        return vocabulary.load_vocabulary(vocab)
    if texts.STDIN in paths:
        raise UserError(f"--vocab {vocab}: reads the texts twice, which standard input cannot be; give a file")
    found = (text for _, _, text in _documents(paths, form, "making the vocabulary"))
    return vocabulary.byte_pairs(found, int(size[1])) if size else vocabulary.characters(found)


def _write(tokens, words, folder, name, val, earlier):
    if tokens.size < MIN_TOKENS:
        raise UserError(f"{name}: {tokens.size} tokens, expected at least {MIN_TOKENS}; choose a longer text")
    boundary = _boundary(tokens, *val)
    ranges = [(0, boundary), (boundary, tokens.size)]
    (train_start, train_stop), val_range = ranges if val[1] == "end" else reversed(ranges)
    starts = range(train_start, train_stop, SHARD)
    shards = [(start, min(start + SHARD, train_stop)) for start in starts]
    paths = [folder / f"{name}_train_{number:04d}.bin" for number in range(len(shards))]
    paths = [*(paths if len(shards) > 1 else [folder / f"{name}_train.bin"]), folder / f"{name}_val.bin"]
    if words.sha256:
        vocabulary.save_vocabulary(words, folder / f"{name}_vocabulary")
    with files.atomic_write_all(paths) as opened:
        for file, part in zip(opened, [*shards, val_range], strict=True):
            write_token_file(file, tokens.range(*part), words.sha256)
    for path in earlier:
        if path.suffix == ".bin" and path not in paths:
            path.unlink()
    _report(tokens, words, paths, (train_stop - train_start, val_range[1] - val_range[0]))
    return paths


def _boundary(tokens, fraction, at):
    """Returns where validation begins, at the end of the tokens, or ends, at their start: between two documents."""
    point = round(tokens.size * (1 - fraction if at == "end" else fraction))
    inner = np.array(tokens.starts[1:], np.int64)
    if not inner.size:
        print("one document: its end is the validation part" if at == "end" else "one document: validation begins it")
        return min(max(point, 1), tokens.size - 1)
    return int(inner[np.abs(inner - point).argmin()])


def _report(tokens, words, paths, sizes):
    count, per_token = len(tokens.starts), tokens.bytes / tokens.size
    print(f"{count:,} documents, {tokens.size:,} tokens of {words.size:,}, {per_token:.2f} bytes a token")
    *train, val = paths
    shown = train[0] if len(train) == 1 else f"{train[0]} and {len(train) - 1:,} more"
    print(f"{shown}: {sizes[0]:,} tokens\n{val}: {sizes[1]:,} tokens")
    start, stop = tokens.starts[0], tokens.starts[1] if count > 1 else tokens.size
    first = words.decode(tokens.range(start, min(stop, start + FIRST)).tolist())
    print(f"the first document begins: {first!r}")
    if tokens.separators:
        print(
            f"{vocabulary.END_OF_TEXT} is in the texts {tokens.separators:,} times, as ordinary text; "
            f"--documents '{vocabulary.END_OF_TEXT}' would separate documents there"
        )
