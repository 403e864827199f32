"""The shipped chat texts, data/chat: complete, plain, and never with two answers to one question."""

import collections
import json
import re
import subprocess
import sys

import pytest

from gpt2.data.chat_template import ChatTemplate
from gpt2.data.chat_vocabulary import chat_vocabulary
from gpt2.data.trained_vocabulary import byte_pairs
from gpt2.data.vocabulary import save_vocabulary
from tests.support.runs import ROOT

FOLDER = ROOT / "data/chat"
FILES = ("facts.txt", "talks.jsonl", "heldout.jsonl")
TOPICS, PHRASINGS, GREETINGS, TWO_TURNS = 60, 5, 40, 20


def read(name):
    """Returns the conversations of a file, lists of messages."""
    records = [json.loads(line) for line in (FOLDER / name).read_text("ascii").splitlines()]
    assert all(list(record) == ["messages"] for record in records)
    return [record["messages"] for record in records]


def turns(conversations):
    """Yields (question, answer) for each turn."""
    for messages in conversations:
        contents = [message["content"] for message in messages]
        yield from zip(contents[::2], contents[1::2], strict=True)


def bare(text):
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


@pytest.fixture(scope="module")
def talks():
    return read("talks.jsonl")


@pytest.fixture(scope="module")
def heldout():
    return read("heldout.jsonl")


def test_each_topic_has_four_phrasings_to_train_on_and_one_held_out(talks, heldout):
    phrasings = collections.defaultdict(set)
    for question, answer in turns(talks):
        phrasings[answer].add(bare(question))
    answers = [answer for _, answer in turns(heldout)]
    assert len(answers) == len(set(answers)) == TOPICS
    assert all(len(phrasings[answer]) == PHRASINGS - 1 for answer in answers)
    single = [messages for messages in talks if len(messages) == 2]
    greetings = [messages for messages in single if messages[1]["content"] not in answers]
    assert (len(single), len(greetings)) == (TOPICS * (PHRASINGS - 1) + GREETINGS, GREETINGS)
    assert len({bare(question) for question, _ in turns(single)}) == len(single)


def test_the_other_conversations_have_two_turns_of_which_the_second_is_new(talks):
    first = {bare(messages[0]["content"]) for messages in talks if len(messages) == 2}
    longer = [messages for messages in talks if len(messages) > 2]
    assert [len(messages) for messages in longer] == [4] * TWO_TURNS
    assert all(bare(messages[0]["content"]) in first for messages in longer)
    second = {bare(messages[2]["content"]) for messages in longer}
    assert len(second) == TWO_TURNS and not second & first


def test_no_question_has_two_answers(talks, heldout):
    answers = collections.defaultdict(set)
    for question, answer in turns(talks + heldout):
        answers[bare(question)].add(answer)
    assert not {question: found for question, found in answers.items() if len(found) > 1}


def test_no_held_out_phrasing_is_trained_on(talks, heldout):
    trained = {bare(question) for question, _ in turns(talks)}
    assert not trained & {bare(question) for question, _ in turns(heldout)}


@pytest.mark.parametrize("name", FILES[1:])
def test_users_and_assistants_alternate(name):
    for messages in read(name):
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert all(list(message) == ["role", "content"] for message in messages)


def test_texts_are_short_plain_sentences(talks, heldout):
    facts = (FOLDER / FILES[0]).read_text("ascii").splitlines()
    assert 190 <= len(facts) <= 220 and 2400 <= sum(len(fact.split()) for fact in facts) <= 3500
    assert len(set(map(bare, facts))) == len(facts)
    contents = [message["content"] for messages in talks + heldout for message in messages]
    for text in facts + contents:
        assert re.fullmatch(r"[A-Z0-9][A-Za-z0-9 ,.:'!?-]*[.!?]", text) and "  " not in text, text
        assert len(text.split()) <= 30, text


def test_joined_conversations_fill_the_context_with_whole_ones_in_an_order_drawn_by_the_seed(tmp_path, talks):
    words = byte_pairs([message["content"] for messages in talks for message in messages], 1024)
    template = ChatTemplate(chat_vocabulary(words))
    save_vocabulary(words, tmp_path / "words")

    def join(seed):
        command = [sys.executable, FOLDER / "join.py", tmp_path / "words", "40", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return [json.loads(line)["messages"] for line in done.stdout.splitlines()]

    conversations = join(1)
    sizes = [len(template.encode(messages)[0]) for messages in conversations]
    assert len(sizes) == 40 and max(sizes) == 129 and min(sizes) > 129 - 12  # the shortest one adds 11 tokens
    starts = [messages[:2] for messages in talks]
    for messages in conversations:
        parts = [messages[at : at + 2] for at in range(0, len(messages), 2)]
        assert len(set(map(str, parts))) == len(parts) > 1
        assert all(part in starts or parts[at - 1] + part in talks for at, part in enumerate(parts))
    assert join(1) == conversations and not any(messages in conversations for messages in join(2))


def test_the_files_are_small():
    assert sum((FOLDER / name).stat().st_size for name in FILES) < 150_000
