"""Token files from conversations: what is written, the split, what is said and what is refused."""

import json
import re

import numpy as np
import pytest

from gpt2 import prepare
from gpt2.data.chat_template import ChatTemplate
from gpt2.data.conversation_loader import ConversationLoader
from gpt2.data.vocabulary import load_vocabulary, vocabulary_of
from gpt2.errors import UserError
from gpt2.formats.conversation_file import read_conversations_file
from tests.support.chat import write_full_gpt2


def talk(number):
    question, answer = f"What is {number} and one?" * (1 + number % 3), f"It is {number + 1}."
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_DATA_DIR", str(tmp_path))
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": talk(n)}) + "\n" for n in range(50)))
    return tmp_path


def run(*arguments, inputs=("talks.jsonl",)):
    prepare.main([*inputs, "--chat", "--name", "mine", "--data-dir", ".", *arguments])


def conversations(name):
    """Returns [(ids, counts)] of the conversations in a file, lists."""
    tokens, lengths, counts = read_conversations_file(name)
    ends = np.cumsum(lengths)[:-1]
    return [(a.tolist(), b.tolist()) for a, b in zip(np.split(tokens, ends), np.split(counts, ends), strict=True)]


@pytest.mark.parametrize("vocab", ["chars", "bpe:300"])
@pytest.mark.parametrize("at", ["start", "end"])
def test_the_files_hold_the_conversations_as_the_template_writes_them(vocab, at):
    run("--vocab", vocab, "--val-at", at, "--val-fraction", "0.3")
    train, val = conversations("mine_train.bin"), conversations("mine_val.bin")
    words = vocabulary_of("mine_val.bin")
    template = ChatTemplate(words)
    whole = train + val if at == "end" else val + train
    assert whole == [template.encode(talk(number)) for number in range(50)]
    share = sum(len(ids) for ids, _ in val) / sum(len(ids) for ids, _ in whole)
    assert abs(share - 0.3) < 0.02
    assert ConversationLoader("mine_train.bin", 4, 200, words.size).num_conversations == len(train)


def test_there_need_be_no_validation_part(folder, capsys):
    run("--vocab", "chars")
    whole = conversations("mine_train.bin") + conversations("mine_val.bin")
    capsys.readouterr()
    run("--vocab", "chars", "--val-fraction", "0", "--force")
    assert conversations("mine_train.bin") == whole and not (folder / "mine_val.bin").exists()
    assert "mine_val" not in capsys.readouterr().out
    (folder / "one.jsonl").write_text(json.dumps({"messages": talk(1)}) + "\n")
    run("--vocab", "chars", "--val-fraction", "0", "--force", inputs=("one.jsonl",))
    assert capsys.readouterr().out.startswith("1 conversation, the longest of ")


def test_gpt2s_vocabulary_is_extended(folder, monkeypatch):
    write_full_gpt2(folder, monkeypatch)
    run()
    words = vocabulary_of("mine_train.bin")
    assert words.size == 50261 and words.decode(conversations("mine_train.bin")[0][0]) == (
        "<|endoftext|><|user|>What is 0 and one?<|end|><|assistant|>It is 1.<|end|>"
    )


def test_a_vocabularys_own_template_is_used():
    run("--vocab", "chars")
    with open("mine_vocabulary/chat_template.jinja", "w") as file:
        file.write("{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}")
    run("--vocab", "mine_vocabulary", "--force")
    words = load_vocabulary("mine_vocabulary")
    assert words.decode(conversations("mine_train.bin")[0][0]) == "What is 0 and one?<|end|>It is 1.<|end|>"


def test_what_is_said(capsys):
    run("--vocab", "chars")
    train, val = conversations("mine_train.bin"), conversations("mine_val.bin")
    size = sum(len(ids) for ids, _ in train + val)
    counted = sum(sum(counts) for _, counts in train + val)
    longest = max(len(ids) for ids, _ in train + val)
    V = load_vocabulary("mine_vocabulary").size
    assert capsys.readouterr().out == (
        f"50 conversations, the longest of {longest} tokens\n"
        f"{size:,} tokens of {V}; {counted:,} ({counted / size:.0%}) are the assistant's and count for the loss\n"
        f"mine_train.bin: {len(train)} conversations, {sum(len(ids) for ids, _ in train):,} tokens\n"
        f"mine_val.bin: {len(val)} conversations, {sum(len(ids) for ids, _ in val):,} tokens\n"
        "the first one, with what counts in [[ ]]: "
        "<|endoftext|><|user|>What is 0 and one?<|end|><|assistant|>[[It is 1.<|end|>]]\n"
    )


def test_a_long_one_is_shown_in_part(folder, capsys):
    (folder / "talks.txt").write_text("User: a\n\nb\nAssistant: " + "c" * 400 + "\n\nUser: d\nAssistant: e")
    run("--vocab", "chars", inputs=["talks.txt"])
    shown = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"<\|user\|>a\\n\\nb<\|end\|><\|assistant\|>\[\[c{292}\]\] \.\.\.$", shown)


@pytest.mark.parametrize("fraction", ["0.001", "0.999"])
def test_either_split_has_a_conversation(fraction):
    run("--vocab", "chars", "--val-fraction", fraction)
    counts = len(conversations("mine_train.bin")), len(conversations("mine_val.bin"))
    assert sorted(counts) == [1, 49]


def test_token_files_of_texts_are_replaced(folder):
    (folder / "text.txt").write_text("some text\n" * 100)
    prepare.main(["text.txt", "--name", "mine", "--data-dir", ".", "--vocab", "chars"])
    with pytest.raises(UserError, match=r"^mine_train\.bin: is there already"):
        run("--vocab", "chars")
    (folder / "mine_train_0000.bin").write_bytes(b"a shard")
    run("--vocab", "chars", "--force")
    assert conversations("mine_train.bin") and not (folder / "mine_train_0000.bin").exists()


@pytest.mark.parametrize(
    ("arguments", "input", "message"),
    [
        (["--documents", "line"], "talks.jsonl", "--documents is for texts; leave it out with --chat"),
        (["--text-field", "text"], "talks.jsonl", "--text-field is for texts"),
        (["--text-column", "text"], "talks.jsonl", "--text-column is for texts"),
        (["--val-fraction", "-0.1"], "talks.jsonl", "--val-fraction -0.1: choose"),
        (["--vocab", "nowhere"], "talks.jsonl", "nowhere: no such folder"),
        (["--vocab", "char"], "talks.jsonl", "char: no such folder; a vocabulary is gpt2, chars, bpe:N, or a folder"),
        (["--vocab", "bpe:99999"], "talks.jsonl", "bpe:99999: choose a size"),
        ([], "nowhere.jsonl", "nowhere.jsonl: no such file or folder"),
        ([], "text.txt", "text.txt: line 1 begins with 'Once upon a time', expected 'User:'"),
        ([], "one.txt", "mine: one conversation, expected at least 2"),
        ([], "bad.jsonl", "bad.jsonl: line 2: message 2 is the user's, expected the assistant's"),
        (["--vocab", "broken"], "talks.jsonl", "broken/chat_template.jinja: line 1: not a template that parses"),
        (["--vocab", "silent"], "talks.jsonl", "talks.jsonl: line 1: silent/chat_template.jinja marks nothing in it"),
        (["--vocab", "few"], "talks.jsonl", "talks.jsonl: line 1: the vocabulary has no 'W'"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(folder, arguments, input, message):
    run("--vocab", "chars", "--val-fraction", "0.5")
    for name, template in (("broken", "{% if"), ("silent", "{% generation %}{% endgeneration %}a")):
        (folder / "mine_vocabulary" / "chat_template.jinja").write_text(template)
        saved = {path.name: path.read_bytes() for path in (folder / "mine_vocabulary").iterdir()}
        (folder / name).mkdir()
        for file, data in saved.items():
            (folder / name / file).write_bytes(data)
    (folder / "text.txt").write_text("Once upon a time")
    (folder / "one.txt").write_text("User: a\nAssistant: b")
    prepare.main(["one.txt", "--name", "few", "--data-dir", ".", "--vocab", "chars", "--force"])
    (folder / "few_vocabulary").rename(folder / "few")
    twice = json.dumps({"messages": [talk(1)[0], talk(1)[0]]})
    (folder / "bad.jsonl").write_text(json.dumps({"messages": talk(1)}) + "\n" + twice)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        run("--force", *arguments, inputs=[input])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
