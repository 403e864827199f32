"""Token files from texts: what is written, the split, shards, what is said and what is refused."""

import re

import numpy as np
import pytest

from gpt2 import prepare
from gpt2.data import preparation
from gpt2.data.vocabulary import END_OF_TEXT, GPT2Vocabulary, load_vocabulary
from gpt2.errors import UserError
from gpt2.formats.llmc import open_tokens
from tests.support.vocabulary import pin_byte_vocabulary, write_vocabulary

TEXT = "".join(f"document {number} of some words\n" for number in range(200))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pin_byte_vocabulary(monkeypatch, whole=True)
    write_vocabulary(tmp_path, whole=True)
    monkeypatch.setenv("GPT2_DATA_DIR", str(tmp_path))
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def run(*arguments, inputs=("text.txt",)):
    prepare.main([*inputs, "--name", "mine", "--data-dir", ".", *arguments])


def tokens(name):
    return open_tokens(name, 2**30).tolist()


def test_documents_begin_with_the_vocabularys_token_and_none_is_in_both_splits(capsys):
    run("--documents", "line", "--val-fraction", "0.25")
    train, val, words = tokens("mine_train.bin"), tokens("mine_val.bin"), GPT2Vocabulary()
    assert words.decode(train + val) == "".join(END_OF_TEXT + line for line in TEXT.splitlines())
    assert train[0] == val[0] == words.begin
    assert 0.22 < len(val) / len(train + val) < 0.28
    count = len(train + val)
    assert capsys.readouterr().out == (
        f"200 documents, {count:,} tokens of 50,257, {(len(TEXT) - 200) / count:.2f} bytes a token\n"
        f"mine_train.bin: {len(train):,} tokens\nmine_val.bin: {len(val):,} tokens\n"
        "the first document begins: '<|endoftext|>document 0 of some words'\n"
    )


@pytest.mark.parametrize("at", ["start", "end"])
def test_validation_is_taken_where_asked(capsys, at):
    run("--val-at", at, "--vocab", "chars")
    train, val, words = tokens("mine_train.bin"), tokens("mine_val.bin"), load_vocabulary("mine_vocabulary")
    parts = (train, val) if at == "end" else (val, train)
    assert words.decode(parts[0] + parts[1]) == END_OF_TEXT + TEXT
    assert len(val) == round((len(TEXT) + 1) * 0.1)
    assert "one document: " in capsys.readouterr().out


@pytest.mark.parametrize("vocab", ["chars", "bpe:280"])
def test_the_header_names_the_vocabulary_beside_the_files(vocab):
    run("--vocab", vocab)
    words = load_vocabulary("mine_vocabulary")
    for name in ("mine_train.bin", "mine_val.bin"):
        header = np.fromfile(name, "<i4", 256)
        assert header[3:11].tobytes().hex() == words.sha256 and not header[11:].any()
    run("--vocab", "mine_vocabulary", "--force")
    assert load_vocabulary("mine_vocabulary").sha256 == words.sha256
    run("--force")
    assert not np.fromfile("mine_val.bin", "<i4", 256)[3:].any()  # GPT-2's, as in llm.c's own files


def test_many_tokens_become_shards_which_replace_earlier_files(monkeypatch, capsys):
    run("--documents", "line")
    whole, val = tokens("mine_train.bin"), tokens("mine_val.bin")
    monkeypatch.setattr(preparation, "SHARD", 1000)
    run("--documents", "line", "--force")
    names = [f"mine_train_{number:04d}.bin" for number in range(-(-len(whole) // 1000))]
    assert [token for name in names for token in tokens(name)] == whole and tokens("mine_val.bin") == val
    with pytest.raises(UserError, match=r"^mine_train\.bin: "):
        open_tokens("mine_train.bin", 0)
    assert f"mine_train_0000.bin and {len(names) - 1} more" in capsys.readouterr().out


@pytest.mark.parametrize("batch", [1, 50, 2**18])
def test_the_tokens_do_not_depend_on_how_they_are_made(monkeypatch, batch):
    run("--documents", "line")
    expected = tokens("mine_train.bin")
    monkeypatch.setattr(preparation, "BATCH", batch)
    monkeypatch.setattr("gpt2.data.texts.CHUNK", 11)
    monkeypatch.setattr("gpt2.data.texts.PIECE", 7)
    run("--documents", "line", "--force")
    assert tokens("mine_train.bin") == expected


def test_the_separator_of_the_usual_convention_is_mentioned_unless_it_separates(folder, capsys):
    (folder / "text.txt").write_text(f"one document{END_OF_TEXT}another document of words{END_OF_TEXT}" * 5)
    run()
    assert f"{END_OF_TEXT} is in the texts 10 times, as ordinary text; --documents" in capsys.readouterr().out
    run("--documents", END_OF_TEXT, "--force")
    printed = capsys.readouterr().out
    assert printed.startswith("10 documents, ") and "ordinary" not in printed


@pytest.mark.parametrize(
    ("arguments", "input", "message"),
    [
        (["--val-fraction", "0"], "text.txt", "--val-fraction 0: choose"),
        (["--name", "../x"], "text.txt", "--name '../x': choose"),
        (["--vocab", "bpe:9999"], "text.txt", "bpe:9999: the text allows "),
        (["--vocab", "nowhere"], "text.txt", "nowhere: no such folder, expected one with tokenizer.json"),
        (["--vocab", "chars"], "-", "--vocab chars: reads the texts twice"),
        ([], "nowhere.txt", "nowhere.txt: no such file or folder"),
        ([], "broken.jsonl", "broken.jsonl: line 1: not JSON"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(folder, arguments, input, message):
    (folder / "broken.jsonl").write_text("{")
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        run(*arguments, inputs=[input])
    assert {path.name for path in folder.iterdir()} == before


def test_too_short_a_text_is_refused(folder):
    (folder / "text.txt").write_text("short")
    with pytest.raises(UserError, match=r"^mine: \d+ tokens, expected at least 20"):
        run()


def test_what_is_there_stays_unless_forced(folder):
    run()
    before = tokens("mine_train.bin")
    (folder / "text.txt").write_text("another text, long enough to be prepared: " * 5)
    with pytest.raises(UserError, match=r"^mine_train\.bin: is there already; choose another --name, or --force"):
        run()
    assert tokens("mine_train.bin") == before
    run("--force")
    assert tokens("mine_train.bin") != before
