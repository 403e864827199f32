"""Texts in the forms that people have: what becomes a document, and what is refused in a line."""

import gzip
import io
import json
import pathlib
import re
import sys

import numpy as np
import pytest

from gpt2.data import texts
from gpt2.data.texts import Form, documents, expand, refuse_texts
from gpt2.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(name, data, form=Form()):  # noqa: B008
    """Returns the documents of a file with these contents, its pieces joined."""
    with open(name, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
    found = []
    for begins, text in documents(name, form):
        if begins:
            found.append("")
        found[-1] += text
    return found


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a", "a.log"])
def test_a_plain_file_is_a_document(name):
    assert read(name, "one\n\ntwo\n") == ["one\n\ntwo\n"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("line", ["one", "two", "three"]),
        ("paragraph", ["one\n\n", "two\nthree"]),
        ("two", ["one\n\n", "\nthree"]),
        ("<|endoftext|>", ["one\n\ntwo\nthree"]),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 2**20])
def test_plain_text_is_cut_as_asked(monkeypatch, kind, expected, chunk):
    monkeypatch.setattr(texts, "CHUNK", chunk)
    assert read("a.txt", "one\n\ntwo\nthree", Form(kind)) == expected


@pytest.mark.parametrize("kind", ["file", "line", "paragraph", "XX"])
@pytest.mark.parametrize("piece", [1, 5, 30])
def test_long_documents_come_in_pieces_that_are_the_whole(monkeypatch, kind, piece):
    monkeypatch.setattr(texts, "CHUNK", 7)
    monkeypatch.setattr(texts, "PIECE", piece)
    text = "some words and more\nin lines \n\n of XX texts, and paragraphs\n\n\nXXend" * 5
    separator = {"file": None, "line": "\n", "paragraph": "\n\n"}.get(kind, kind)
    whole = text.split(separator) if separator else [text]
    if kind == "paragraph":
        whole = [f"{each}\n\n" for each in whole[:-1]] + whole[-1:]
    assert read("a.txt", text, Form(kind)) == [each for each in whole if each.strip()]


@pytest.mark.parametrize("size", range(1, 30))
def test_a_separator_with_a_blank_in_it_is_found_wherever_pieces_end(monkeypatch, size):
    monkeypatch.setattr(texts, "CHUNK", size)
    monkeypatch.setattr(texts, "PIECE", 3)
    assert read("a.txt", "one two== ==three four== ==five" * 3, Form("== ==")) == [
        "one two", "three four", "fiveone two", "three four", "fiveone two", "three four", "five"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["file", "line", "paragraph", "XX"])
@pytest.mark.parametrize("character", ["x", " "])
def test_a_word_without_end_is_refused_before_it_fills_the_memory(monkeypatch, kind, character):
    monkeypatch.setattr(texts, "CHUNK", 100)
    monkeypatch.setattr(texts, "PIECE", 50)
    monkeypatch.setattr(texts, "LONGEST_WORD", 1000)
    text = "a few words, " + character * 1000 + " more"
    assert read("a.txt", text, Form(kind)) == [text]
    pathlib.Path("b.txt").write_text("a few words, " + character * 100_000)
    counts = []
    with pytest.raises(UserError, match=r"^b\.txt: 1,\d\d\d characters or more without a break between words; "):
        list(documents("b.txt", Form(kind), counts.append))
    assert sum(counts) < 2000


@pytest.mark.parametrize("chunk", [1, 2, 2**20])
def test_marks_and_line_ends_are_those_of_unix(monkeypatch, chunk):
    monkeypatch.setattr(texts, "CHUNK", chunk)
    assert read("a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\xc3\xa9\r") == ["one\ntwo\nthreeé\n"]
    assert read("a.txt", b"") == read("a.txt", b" \n") == []
    assert (
        read("a.jsonl", '"one\\r\\ntwo\\rthree"')
        == read("a.csv", 'text\r\n"one\r\ntwo\rthree"\r\n')
        == ["one\ntwo\nthree"]
    )


@pytest.mark.parametrize("chunk", [1, 4, 2**20])
@pytest.mark.parametrize(("data", "byte"), [(b"\xff", 0), (b"abc\xc3\xa9\xc3", 5), (b"abcd\xe4\xb8a", 4)])
def test_what_is_not_utf_8_is_named_with_its_byte(monkeypatch, chunk, data, byte):
    monkeypatch.setattr(texts, "CHUNK", chunk)
    with pytest.raises(UserError, match=rf"^a\.txt: not UTF-8 at byte {byte}; "):
        read("a.txt", data)


def test_standard_input_that_is_not_utf_8_is_named(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    with pytest.raises(UserError, match=r"^standard input: not UTF-8 at byte 2; "):
        list(documents("-", Form()))


def test_records_are_documents():
    records = [{"text": "one\ntwo"}, {"text": "\u2028", "id": 3}, "three"]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    expected = ["one\ntwo", "\u2028", "three"]
    assert read("a.jsonl", f"\n{lines}\n") == read("a.json", json.dumps(records)) == expected
    assert read("a.json", '{"body": "x"}', Form(field="body")) == ["x"]
    assert read("a.csv", 'id,text\n1,"one\n""two"""\n2,three\n') == ['one\n"two"', "three"]
    assert read("a.csv", "body\none\n") == ["one"]
    assert read("a.csv", "a,b\n1,2\n", Form(column="b")) == ["2"]
    assert read("a.csv", f"text\n{'x' * 300_000}\n") == ["x" * 300_000]
    assert read("a.csv", "text\na\0b\n") == read("a.jsonl", '"a\\u0000b"') == ["a\0b"]


def test_compressed_files_are_read():
    zstandard = pytest.importorskip("zstandard")
    assert read("a.txt.gz", gzip.compress(b"one")) == ["one"]
    assert read("a.jsonl.zst", zstandard.compress(b'{"text": "one"}')) == ["one"]
    assert read("a.txt.zst", zstandard.compress(b"one") + zstandard.compress(b"two")) == ["onetwo"]
    with pytest.raises(UserError, match=r"^a\.txt\.zst: damaged, or not compressed as its name says: "):
        read("a.txt.zst", b"no")


def test_a_zst_file_without_the_package_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match=r"^a\.txt\.zst: needs the zstandard package: "):
        read("a.txt.zst", b"x")


@pytest.mark.parametrize(
    ("name", "data", "form", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text"', Form(), "a.jsonl: line 2: not JSON: "),
        (
            "a.jsonl",
            '{"body": "a"}',
            Form(),
            "a.jsonl: line 1: no field 'text', but ['body']; name it with --text-field",
        ),
        ("a.jsonl", '{"messages": []}', Form(), "a.jsonl: line 1: no field 'text', but ['messages']; prepare conv"),
        ("a.jsonl", '{"text": 3}', Form(), "a.jsonl: line 1: 3, expected a text"),
        ("a.jsonl", '{"text": "\\ud800"}', Form(), "a.jsonl: line 1: half of a surrogate pair"),
        ("a.jsonl", "[" * 100_000, Form(), "a.jsonl: line 1: "),
        ("a.json", "[1", Form(), "a.json: not JSON: "),
        ("a.json", "[null]", Form(), "a.json: record 1: None, expected a text"),
        ("a.csv", "a,b\n1,2\n", Form(), "a.csv: no column 'text', but ['a', 'b']; name it with --text-column"),
        ("a.csv", "", Form(), "a.csv: no column 'text', but []; "),
        ("a.csv", "a,text\n1\n", Form(), "a.csv: line 2: 1 values, the header has 2"),
        ("a.csv", 'text\n"a', Form(), "a.csv: line 2: unexpected end of data"),
        ("a.csv", "text\na\n", Form("line"), "a.csv: --documents is for plain text"),
        ("a.txt.gz", gzip.compress(b"text" * 99)[:20] + b"\xff" * 40, Form(), "a.txt.gz: damaged, or not compressed"),
        ("a.txt.gz", b"no", Form(), "a.txt.gz: damaged, or not compressed"),
        ("a.txt.gz", gzip.compress(b"text" * 99)[:-9], Form(), "a.txt.gz: damaged, or not compressed"),
    ],
)
def test_bad_files_are_named_in_a_line(name, data, form, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as error:
        read(name, data, form)
    assert "\n" not in str(error.value)


def test_inputs_are_files_folders_and_globs(folder):
    for name in ("deep", ".git"):
        (folder / "in" / name).mkdir(parents=True)
    for name in ("b.txt", "a.jsonl.gz", ".hidden.txt", ".git/d.txt", "image.png", "deep/c.md", "x.txt.zst"):
        (folder / "in" / name).touch()
    assert expand(["in"]) == ["in/a.jsonl.gz", "in/b.txt", "in/deep/c.md", "in/x.txt.zst"]
    assert expand(["in/*.txt", "-", "in/image.png"]) == ["in/b.txt", "-", "in/image.png"]
    assert expand(["in/**/*.md"]) == ["in/deep/c.md"]
    for inputs, message in (
        (["no.txt"], "no.txt: no such file"),
        (["in/b.txt", "./in/b.txt"], "./in/b.txt: given"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(message)}"):
            expand(inputs)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"^empty: no texts in this folder"):
        expand(["empty"])


TOKENS = np.arange(20)
HEADER = np.array([20240520, 1, 20], "<i4").tobytes() + bytes(1012)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.txt", b"text", True),
        ("a.txt", "é\n".encode("utf-16"), True),
        ("a.jsonl.gz", gzip.compress(b"{}"), True),
        ("a", b"To be, or not to be.", True),
        ("a.log", ("é" * 1000).encode(), True),
        ("a.bin", b"x" + ("é" * 1000).encode(), True),
        ("a.bin", TOKENS.astype("<i4").tobytes(), False),
        ("a.bin", np.full(20, 50256, "<i4").tobytes(), False),
        ("a.bin", HEADER + TOKENS.astype("<u2").tobytes(), False),
        ("a.txt", HEADER + TOKENS.astype("<u2").tobytes(), False),
        ("a.bin", HEADER + np.full(20, 0x6161, "<u2").tobytes(), False),
        ("a.png", b"\x89PNG", False),
        ("a.txt", b"", False),
    ],
)
def test_texts_are_told_from_token_files(name, data, text):
    pathlib.Path(name).write_bytes(data)
    pathlib.Path("b.bin").write_bytes(HEADER)
    if not text:
        return refuse_texts(["b.bin", name])
    with pytest.raises(UserError, match=rf"^{name}: a text, not a token file; "):
        refuse_texts(["b.bin", name])


def test_the_command_that_makes_token_files_is_named_ready_to_run(monkeypatch):
    monkeypatch.setenv("GPT2_DATA_DIR", "data")
    for name in ("my text (1).txt.gz", "b.md"):
        pathlib.Path(name).write_text("text")
    with pytest.raises(UserError) as error:
        refuse_texts(["my text (1).txt.gz", "b.md"])
    assert str(error.value) == (
        "my text (1).txt.gz: a text, not a token file; make token files of it with: "
        "gpt2 prepare 'my text (1).txt.gz' b.md --name my_text_1_; "
        "then train with --train-data data/my_text_1__train.bin, or evaluate with --data data/my_text_1__val.bin"
    )


def test_standard_input_is_plain_text(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\r\n")))
    assert list(documents("-", Form())) == [(True, "one\n")]
