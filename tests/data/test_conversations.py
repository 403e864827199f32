"""Conversations in four forms, and what is said of those that are none."""

import gzip
import json
import re

import pytest

from gpt2.data.conversations import read_conversations
from gpt2.errors import UserError

HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
SYSTEM = {"role": "system", "content": "Be kind."}
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]


def read(path, text):
    """Returns [messages] of a file with a text in it, whose name says how it is compressed."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return [messages for _, messages in read_conversations(str(path))]


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.txt"])
@pytest.mark.parametrize(
    "record",
    [
        {"messages": HELLO},
        {"conversations": SHARED},
        {"messages": SHARED, "id": 3},
        {"instruction": "Hi", "input": "", "output": "Hello."},
        {"instruction": "Hi", "output": "Hello."},
    ],
)
def test_the_form_is_seen_from_the_record(tmp_path, name, record):
    assert read(tmp_path / name, "\ufeff\n" + lines(record, record)) == [HELLO, HELLO]
    assert read(tmp_path / name, json.dumps([record] * 3, indent=1)) == [HELLO] * 3


def test_a_single_record_may_span_lines(tmp_path):
    assert read(tmp_path / "a.json", json.dumps({"messages": [SYSTEM, *HELLO]}, indent=2)) == [[SYSTEM, *HELLO]]


def test_an_alpaca_input_follows_the_instruction_after_a_blank_line(tmp_path):
    record = {"instruction": "Translate.", "input": "Hi\nyou", "output": " Salut\n", "system": "Be kind."}
    expected = [
        SYSTEM,
        {"role": "user", "content": "Translate.\n\nHi\nyou"},
        {"role": "assistant", "content": " Salut\n"},
    ]
    assert read(tmp_path / "a.jsonl", lines(record)) == [expected]


def test_contents_in_json_stay_as_they_are(tmp_path):
    contents = ["  Hi\r\n\n", "\tUser: \u00e9\U0001f600 </s>\n"]
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=True)]
    assert read(tmp_path / "a.jsonl", lines({"messages": messages})) == [messages]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("User: Hi\nAssistant: Hello.\n", [["Hi", "Hello."]]),
        ("\n\nUser:Hi\r\nAssistant:  Hello. \r\n\r\n", [["Hi", "Hello."]]),
        ("User: Hi\nthere\n\n  User: x\nAssistant:\nHello.\n\nBye.\n", [["Hi\nthere\n\n  User: x", "Hello.\n\nBye."]]),
        ("User: a\nAssistant: b\nUser: c\nAssistant: d\n\n\nUser: e\nAssistant: f", [["a", "b", "c", "d"], ["e", "f"]]),
        ("User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: d", [["a", "b"], ["c", "d"]]),
        ("User: a Assistant: b </s>\nUser: c Assistant: d", [["a", "b"], ["c", "d"]]),
        ("User: a Assistant: b User: c Assistant: d\nUser: e\nAssistant: f", [["a", "b", "c", "d"], ["e", "f"]]),
        ("User: a\nAssistant: say User: or Assistant: first", [["a", "say User: or Assistant: first"]]),
    ],
)
def test_plain_text(tmp_path, text, expected):
    found = read(tmp_path / "a.txt", text)
    assert [[message["content"] for message in messages] for messages in found] == expected
    for messages in found:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)


def test_a_system_message_begins_a_conversation_in_plain_text(tmp_path):
    text = "System: Be kind.\n\nUser: Hi\nAssistant: Hello.\nSystem: Be kind.\nUser: Hi\nAssistant: Hello."
    assert read(tmp_path / "a.txt", text) == [[SYSTEM, *HELLO]] * 2


def test_strings_in_json_are_plain_text(tmp_path):
    text = json.dumps(["User: Hi Assistant: Hello. </s>", "User: Hi\nAssistant: Hello."])
    assert read(tmp_path / "a.json", text) == [HELLO, HELLO]


def test_the_place_is_the_line_or_the_record(tmp_path):
    for text, places in (
        ("\n" + lines({"messages": HELLO}) * 2, ["line 2", "line 3"]),
        (json.dumps([{"messages": HELLO}] * 2, indent=1), ["record 1", "record 2"]),
        ("User: a\nAssistant: b\n\nUser: c\nAssistant: d", ["line 1", "line 4"]),
    ):
        (tmp_path / "a.json").write_text(text)
        found = [place for place, _ in read_conversations(str(tmp_path / "a.json"))]
        assert found == [f"{tmp_path / 'a.json'}: {place}" for place in places]


def of(*roles, content="x"):
    return lines({"messages": HELLO}, {"messages": [{"role": role, "content": content} for role in roles]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (of("user", "user"), "line 2: message 2 is the user's, expected the assistant's"),
        (of("assistant"), "line 2: message 1 is the assistant's, expected the user's"),
        (of("user", "system", "assistant"), "line 2: message 2 is the system's, expected the assistant's"),
        (of("system", "system"), "line 2: message 2 is the system's, expected the user's"),
        (of("user"), "line 2: the conversation does not end with an answer"),
        (of("system"), "line 2: the conversation does not end with an answer"),
        (of(), "line 2: the conversation does not end with an answer"),
        (of("user", "assistant", content=" \n"), "line 2: message 1, the user's, is empty"),
        (of("user", "tool"), "line 2: unknown role 'tool', expected system, user, assistant, human, gpt"),
        (of("user", ["x"]), "line 2: unknown role ['x']"),
        (lines({"messages": [{"content": "x"}]}), "line 1: unknown role None"),
        (lines({"messages": [{"role": "user"}]}), "line 1: None in a message's place, expected a text"),
        (lines({"messages": ["x"]}), "line 1: 'x' among the messages, expected an object"),
        (lines({"messages": "x"}), "line 1: 'messages' is 'x', expected a list"),
        (lines({"instruction": "Hi", "output": ""}), "line 1: message 2, the assistant's, is empty"),
        (lines({"instruction": "Hi", "output": 3}), "line 1: 3 in a message's place, expected a text"),
        (lines({"instruction": "Hi", "output": "\ud800"}), "line 1: half of a surrogate pair"),
        (lines({"text": "Hi"}), "line 1: no conversation in the fields ['text'], expected 'messages'"),
        (lines({"messages": HELLO}) + '{"messages": [\n', "line 2: not JSON: "),
        (lines({"messages": HELLO}) + "[" * 100_000, "line 2: not JSON that can be read: "),
        ("[\n{},\n{]\n", "line 3: not JSON: "),
        ("[3]", "record 1: 3, expected an object"),
        ('["Hi"]', "record 1: line 1 begins with 'Hi', expected 'User:'"),
        (json.dumps(["User: a\nAssistant: b\n\nUser: a\nAssistant: b"]), "record 1: 2 conversations in a text"),
        ("Once upon a time\n", "line 1 begins with 'Once upon a time', expected 'User:' or 'System:'; texts are"),
        ("Assistant: b\n", "line 1: message 1 is the assistant's, expected the user's"),
        ("User: a\nAssistant: b\n\nUser: c\nUser: d", "line 4: message 2 is the user's"),
        ("User: a\nAssistant: </s>", "line 1: message 2, the assistant's, is empty"),
        ("User: a\nAssistant: b\n\nUser: c", "line 4: the conversation does not end with an answer"),
        (" \n\n", "empty, expected conversations"),
        ("[ ]", "an empty list, expected conversations"),
        (b"User: \xff", "not UTF-8 at byte 6"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_bad_input_is_a_line_that_names_the_place(tmp_path, name, text, message):
    with pytest.raises(UserError, match=f"^{re.escape(f'{tmp_path / name}: {message}')}") as error:
        read(tmp_path / name, text)
    assert "\n" not in str(error.value)
