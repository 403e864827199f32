"""Token files from texts: what is written, the split, shards, what is said and what is refused."""

import re

import numpy as np
import pytest

from gpt2 import prepare
from gpt2.data import preparation
from gpt2.data.vocabulary import GPT2Vocabulary, load_vocabulary
from gpt2.errors import UserError
from gpt2.formats.llmc import open_tokens
from gpt2.formats.tokenizer_folder import END_OF_TEXT
from tests.support.vocabulary import pin_byte_vocabulary, write_vocabulary

# " t" is a token of the byte vocabulary, so a cut within " the" would change the tokens.
TEXT = "".join(f"document {number} of the two texts\n" for number in range(200))


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
        "the first document begins: '<|endoftext|>document 0 of the two texts'\n"
    )


@pytest.mark.parametrize(
    ("fraction", "at", "val"),
    [
        ("0.1", "end", "e"),
        ("0.1", "start", "a"),
        ("0.5", "end", "de"),
        ("0.4", "start", "ab"),
        ("0.999", "end", "bcde"),
        ("0.999", "start", "abcd"),
    ],
)
def test_the_split_is_between_the_documents_nearest_to_the_fraction(folder, fraction, at, val):
    (folder / "text.txt").write_text("\n".join(letter * 30 for letter in "abcde"))
    run("--documents", "line", "--val-fraction", fraction, "--val-at", at)
    words = GPT2Vocabulary()
    assert words.decode(tokens("mine_val.bin")) == "".join(END_OF_TEXT + letter * 30 for letter in val)
    train = [letter for letter in "abcde" if letter not in val]
    assert words.decode(tokens("mine_train.bin")) == "".join(END_OF_TEXT + letter * 30 for letter in train)


def test_a_split_far_from_the_fraction_is_said(folder, capsys):
    (folder / "text.txt").write_text("a" * 30 + "\n" + "b c " * 40)
    run("--documents", "line")
    said = "validation is 83% of the tokens, not 10%: no document is divided between the splits\n"
    share = len(tokens("mine_val.bin")) / len(tokens("mine_train.bin") + tokens("mine_val.bin"))
    assert said.replace("83%", f"{share:.0%}") in capsys.readouterr().out and share > 0.5
    (folder / "text.txt").write_text("\n".join("ab" * 9 for _ in range(100)))
    run("--documents", "line", "--force")
    assert "not 10%" not in capsys.readouterr().out


@pytest.mark.parametrize("fraction", ["0.0001", "0.9999"])
def test_both_splits_of_one_document_have_a_token_and_its_target(fraction):
    run("--val-fraction", fraction)
    assert min(len(tokens("mine_train.bin")), len(tokens("mine_val.bin"))) == 2


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


def test_many_tokens_become_shards_which_replace_earlier_files(folder, monkeypatch, capsys):
    run("--documents", "line")
    whole, val = tokens("mine_train.bin"), tokens("mine_val.bin")
    monkeypatch.setattr(preparation, "SHARD", 1000)
    run("--documents", "line", "--force")
    names = [f"mine_train_{number:04d}.bin" for number in range(-(-len(whole) // 1000))]
    assert [token for name in names for token in tokens(name)] == whole and tokens("mine_val.bin") == val
    with pytest.raises(UserError, match=r"^mine_train\.bin: "):
        open_tokens("mine_train.bin", 0)
    assert f"mine_train_0000.bin and {len(names) - 1} more" in capsys.readouterr().out
    monkeypatch.setattr(preparation, "SHARD", 10**6)
    run("--documents", "line", "--force")
    assert tokens("mine_train.bin") == whole and not list(folder.glob("mine_train_*"))


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


BAD = {
    "broken.jsonl": b"{",
    "latin.txt": b"caf\xe9",
    "empty.txt": b"",
    "blank.txt": b" \n" * 100,
    "short.txt": b"short",
}


@pytest.mark.parametrize(
    ("arguments", "input", "message"),
    [
        (["--val-fraction", "-0.1"], "text.txt", "--val-fraction -0.1: choose"),
        (["--name", "../x"], "text.txt", "--name '../x': choose"),
        (["--vocab", "bpe:9999"], "text.txt", "bpe:9999: the text allows "),
        (["--vocab", "nowhere"], "text.txt", "nowhere: no such folder; a vocabulary is gpt2, chars, "),
        (["--vocab", "chars"], "-", "--vocab chars: reads the texts twice"),
        ([], "nowhere.txt", "nowhere.txt: no such file or folder"),
        ([], "broken.jsonl", "broken.jsonl: line 1: not JSON"),
        ([], "latin.txt", "latin.txt: not UTF-8 at byte 3; convert it to UTF-8"),
        ([], "none", "none: no texts in this folder"),
        ([], "empty.txt", "mine: 0 tokens, expected at least 20; choose a longer text"),
        ([], "blank.txt", "mine: 0 tokens, expected at least 20; choose a longer text"),
        ([], "short.txt", "mine: 6 tokens, expected at least 20; choose a longer text"),
        (["--vocab", "chars"], "empty.txt", "mine: 0 tokens, expected at least 20; choose a longer text"),
        (["--vocab", "bpe:300"], "empty.txt", "bpe:300: the text allows 261 tokens"),
        (["--documents", "line"], "blank.txt", "mine: 0 tokens, expected at least 20; choose a longer text"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(folder, arguments, input, message):
    for name, data in BAD.items():
        (folder / name).write_bytes(data)
    (folder / "none").mkdir()
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        run(*arguments, inputs=[input])
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("vocab", ["gpt2", "chars", "bpe:266", "folder"])
@pytest.mark.parametrize(
    "text", [f"a few{' ' * 1_000_001}words" + "\n" * 100, "a\0\0 b\0\n" * 50], ids=["spaces", "nul"]
)
def test_any_text_comes_back_as_it_was_with_every_vocabulary(folder, vocab, text):
    if vocab == "folder":
        run("--vocab", "bpe:266")
        (folder / "mine_vocabulary").rename(folder / "folder")
    elif "bpe" in vocab and "\0" in text:
        vocab = "bpe:262"
    (folder / "text.txt").write_text(text)
    run("--vocab", vocab, "--force")
    words = GPT2Vocabulary() if vocab == "gpt2" else load_vocabulary("mine_vocabulary")
    found = tokens("mine_train.bin") + tokens("mine_val.bin")
    assert words.decode(found) == END_OF_TEXT + text
    assert vocab != "bpe:266" or len(found) < len(text) / 10  # the blanks were merged


def test_words_of_any_length_can_be_trained_on(monkeypatch):
    monkeypatch.setattr(preparation, "LONG_WORD", 8)
    words = list(preparation._with_short_words(["one two three", "x" * 30 + " four", ""]))
    assert "".join(words) == "one two three" + "x" * 30 + " four" and max(map(len, words)) <= 16


@pytest.mark.parametrize("at", ["start", "end"])
def test_there_need_be_no_validation_part(folder, at, capsys):
    run("--documents", "line")
    whole = tokens("mine_train.bin") + tokens("mine_val.bin")
    capsys.readouterr()
    run("--documents", "line", "--val-fraction", "0", "--val-at", at, "--force")
    assert tokens("mine_train.bin") == whole and not (folder / "mine_val.bin").exists()
    assert "mine_val" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mine_train.bin", "mine_train_0000.bin", "mine_val.bin", "mine_vocabulary"])
def test_anything_of_that_name_is_refused(folder, name):
    (folder / name).write_text("there")
    with pytest.raises(
        UserError, match=rf"^{name}: is there already; choose another --name, or --force to replace it$"
    ):
        run()
    assert (folder / name).read_text() == "there" and not set(folder.glob("mine*")) - {folder / name}


def test_files_of_one_stem_go_into_the_same_token_files(folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "text.txt").write_text(f"{name} is a text of its own")
    run(inputs=["a/text.txt", "b/text.txt"])
    assert GPT2Vocabulary().decode(tokens("mine_train.bin")) == f"{END_OF_TEXT}a is a text of its own"
    assert GPT2Vocabulary().decode(tokens("mine_val.bin")) == f"{END_OF_TEXT}b is a text of its own"


def test_what_is_there_stays_unless_forced(folder):
    run()
    before = tokens("mine_train.bin")
    (folder / "text.txt").write_text("another text, long enough to be prepared: " * 5)
    with pytest.raises(UserError, match=r"^mine_train\.bin: is there already; choose another --name, or --force"):
        run()
    assert tokens("mine_train.bin") == before
    run("--force")
    assert tokens("mine_train.bin") != before
