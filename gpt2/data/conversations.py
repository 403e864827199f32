"""Conversations as people have them: JSON or text, in four forms, told apart by what the file holds.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    {"instruction": "Translate", "input": "Hi", "output": "Bonjour"}                                     (Alpaca)
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}            (ShareGPT)
    User: Hi
    Assistant: Hello.

JSON is one record a line, a single record, or an array of them. In text a message ends before the next line that begins
with a role, and a conversation before a blank line and `User:`. One may also be a single line, or a string in JSON.
"""

import itertools
import json
import re

from gpt2.data import texts
from gpt2.errors import UserError, safe_repr

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
SYNONYMS = {role: role for role in ROLES} | {"human": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT}
LABEL = re.compile(r"(System|User|Assistant):")
INLINE = re.compile(r"\s(?=(?:User|Assistant):)")
END = "</s>"  # ends a line in RustGPT's texts


def read_conversations(path, progress=lambda count: None):
    """Yields (place, messages) for a file's conversations; .gz and .zst are decompressed, "-" is standard input.

    place: the file and the line or record, a str for error messages. messages: a list of dicts of "role", one of ROLES,
    and "content", in the order that `check_messages` demands. progress: called with numbers of bytes read. Raises
    UserError for a file without conversations and for the first bad one.
    """
    lines = texts.lines(path, progress)
    first = next((line for line in lines if line[1].strip()), None)
    if first is None:
        raise UserError(f"{path}: empty, expected conversations")
    lines = itertools.chain([first], lines)
    if first[1].lstrip()[0] not in "[{":
        yield from _from_text(lines, path)
        return
    for place, record in _records(first, lines, path):
        messages = _messages(record, place)
        check_messages(messages, place)
        yield place, messages


def check_messages(messages, place):
    """Raises UserError, beginning with `place`, unless messages are a conversation in which the assistant answers.

    A system's message may come first, then the user's and the assistant's alternate, and the last is the assistant's.
    All but the system's have a text.
    """
    first = 1 if messages and messages[0]["role"] == SYSTEM else 0
    for number, message in enumerate(messages):
        role, expected = message["role"], (USER, ASSISTANT)[(number - first) % 2] if number >= first else SYSTEM
        if role != expected:
            raise UserError(f"{place}: message {number + 1} is the {role}'s, expected the {expected}'s")
        if role != SYSTEM and not message["content"].strip():
            raise UserError(f"{place}: message {number + 1}, the {role}'s, is empty")
    if len(messages) == first or messages[-1]["role"] != ASSISTANT:
        raise UserError(f"{place}: the conversation does not end with an answer of the assistant")


def _records(first, lines, path):
    """Yields (place, value) for the values of a JSON file; first: its first line that is not blank."""
    number, start = first
    spans_lines = path.removesuffix(".gz").removesuffix(".zst").endswith(".json") and not _is_json(start)
    if start.lstrip()[0] == "{" and not spans_lines:
        for number, line in lines:
            if line.strip():
                yield f"{path}: line {number:,}", _parsed(line, path, number)
        return
    value = _parsed("\n".join(line for _, line in lines), path, number)
    if value == []:
        raise UserError(f"{path}: an empty list, expected conversations")
    for number, record in enumerate(value if isinstance(value, list) else [value], 1):
        yield f"{path}: record {number:,}", record


def _is_json(text):
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text, path, number):
    """Returns the value of JSON that begins in a line, by its number."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number + error.lineno - 1:,}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: line {number:,}: not JSON that can be read: {error}") from error


def _messages(record, place):
    """Returns the messages of a JSON record, unchecked but for their roles and types."""
    if isinstance(record, str):
        conversations = [messages for _, messages in _from_text(enumerate(record.split("\n"), 1), place)]
        if len(conversations) != 1:
            raise UserError(f"{place}: {len(conversations)} conversations in a text, expected one")
        return conversations[0]
    if not isinstance(record, dict):
        raise UserError(f"{place}: {safe_repr(record)}, expected an object")
    system = [{"role": SYSTEM, "content": _text(record["system"], place)}] if record.get("system") else []
    for field in ("messages", "conversations"):
        if field in record:
            if not isinstance(record[field], list):
                raise UserError(f"{place}: {field!r} is {safe_repr(record[field])}, expected a list")
            return system + [_message(message, place) for message in record[field]]
    if "instruction" in record and "output" in record:
        asked = [_text(record["instruction"], place), _text(record.get("input") or "", place)]
        question = "\n\n".join(part for part in asked if part.strip())
        answer = _text(record["output"], place)
        return system + [{"role": USER, "content": question}, {"role": ASSISTANT, "content": answer}]
    there = safe_repr(list(record))
    raise UserError(
        f"{place}: no conversation in the fields {there}, expected 'messages', 'conversations', or 'instruction' and "
        "'output'; texts are prepared without --chat"
    )


def _message(message, place):
    if not isinstance(message, dict):
        raise UserError(f"{place}: {safe_repr(message)} among the messages, expected an object")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role not in SYNONYMS:
        raise UserError(f"{place}: unknown role {safe_repr(role)}, expected {', '.join(SYNONYMS)}")
    return {"role": SYNONYMS[role], "content": _text(message.get("content", message.get("value")), place)}


def _text(value, place):
    if not isinstance(value, str):
        raise UserError(f"{place}: {safe_repr(value)} in a message's place, expected a text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{place}: half of a surrogate pair, which is no text")
    return value


def _from_text(lines, path):
    """Yields (place, messages), checked, for the conversations in numbered lines."""
    messages, place, closed = [], None, False
    for number, line in lines:
        one_line = line.startswith("User:") and re.search(r"\sAssistant:", line)
        label = LABEL.match(line)
        # What can begin a conversation does so after an answer only: a blank line may follow a system's message.
        begins = label and label[1] != "Assistant" and messages and messages[-1]["role"] == ASSISTANT
        if begins and (closed or one_line or label[1] == "System"):
            yield place, _checked(messages, place)
            messages = []
        if not messages:
            place = f"{path}: line {number:,}"
        if not messages and not label and line.strip():
            start = f"{place} begins with {safe_repr(line[:20])}"
            raise UserError(f"{start}, expected 'User:' or 'System:'; texts are prepared without --chat")
        for piece in INLINE.split(line) if one_line else [line]:
            if label := LABEL.match(piece):
                messages.append({"role": label[1].lower(), "content": piece[label.end() :]})
            elif messages:
                messages[-1]["content"] += f"\n{piece}"
        closed = bool(one_line) or not line.strip()
    if messages:
        yield place, _checked(messages, place)


def _checked(messages, place):
    """Returns messages of a text, without the space around them and the mark at the end. Raises UserError."""
    for message in messages:
        message["content"] = message["content"].strip().removesuffix(END).rstrip()
    check_messages(messages, place)
    return messages
