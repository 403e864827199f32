"""Multiple-choice examples, such as HellaSwag's, in llm.c's evaluation format.

A header of 256 int32 (20240522, version 1, number of examples, bytes in the longest example), then uint16 values. An
example is 65535, its length in bytes, its index, the label, the number of completions, then the context and the
completions, each preceded by its token count.
"""

import typing

import numpy as np

from gpt2.errors import UserError
from gpt2.formats.files import HEADER_BYTES, open_to_read, read_header

MAGIC = 20240522
VERSION = 1
START = 65535
COMPLETIONS = 4
FIELDS = 5  # uint16 values before the context


class Example(typing.NamedTuple):
    """A context and its candidate completions.

    context: uint16 (n,), n >= 1. completions: list of 4 such arrays. label: index of the correct one.
    """

    context: np.ndarray
    completions: list
    label: int


def read_examples(path, config):
    """Yields the file's Examples in order, each checked against the model's sizes, `config`.

    Holds the whole file in memory. Raises UserError for malformed data, a token id at or above V, and an example
    longer than maxT.
    """
    with open_to_read(path) as file:
        magic, version, count, longest = (int(value) for value in read_header(file, path, "an evaluation file")[:4])
        if magic != MAGIC:
            raise UserError(f"{path}: not a multiple-choice evaluation file: it starts with {magic}, expected {MAGIC}")
        if version != VERSION:
            raise UserError(f"{path}: evaluation file version {version}, expected {VERSION}")
        if count < 1:
            raise UserError(f"{path}: the header says {count} examples, expected at least 1")
        body = file.read()
    if len(body) % 2:
        raise UserError(f"{path}: {len(body):,} bytes after the {HEADER_BYTES}-byte header, expected uint16 values")
    numbers = np.frombuffer(body, dtype="<u2")
    start = 0
    for index in range(count):
        try:
            fields = _cut(numbers, start, index, longest)
            example = _parse(fields, config)
        except UserError as error:
            raise UserError(f"{path}: example {index} of {count}: {error}") from error
        yield example
        start += fields.size
    if start < numbers.size:
        raise UserError(f"{path}: too long: {2 * (numbers.size - start):,} bytes after the last of {count} examples")


def count_examples(path, config):
    """Checks a whole file and returns its number of examples. Raises UserError as `read_examples` does."""
    return sum(1 for _ in read_examples(path, config))


def _cut(numbers, start, index, longest):
    """Returns the values of the example at `start`; at most `longest` bytes. Raises UserError if it is truncated."""
    fields = numbers[start : start + FIELDS]
    if fields.size < FIELDS:
        raise UserError(f"truncated: {fields.size} values, expected at least {FIELDS}")
    if fields[0] != START:
        raise UserError(f"it starts with {fields[0]}, expected {START}")
    if fields[2] != index:
        raise UserError(f"index {fields[2]}, expected {index}")
    size = int(fields[1])
    if size % 2 or not 2 * FIELDS <= size <= longest:
        raise UserError(f"length {size} bytes, expected an even number from {2 * FIELDS} to {longest}")
    fields = numbers[start : start + size // 2]
    if 2 * fields.size < size:
        raise UserError(f"truncated: {2 * fields.size} bytes, expected {size}")
    return fields


def _parse(fields, config):
    """Returns the Example that its values, uint16 (n,), encode. Raises UserError if it is malformed or too long."""
    label, completions = int(fields[3]), int(fields[4])
    if completions != COMPLETIONS:
        raise UserError(f"{completions} completions, expected {COMPLETIONS}")
    if label >= completions:
        raise UserError(f"label {label}, expected 0 .. {completions - 1}")
    position, parts = FIELDS, []
    for part in ("the context", *(f"completion {n}" for n in range(completions))):
        length = int(fields[position]) if position < fields.size else 0
        tokens = fields[position + 1 : position + 1 + length]
        if not 0 < length == tokens.size:
            raise UserError(f"{part} has {tokens.size} tokens, expected {length or 'at least 1'}")
        if tokens.max() >= config.V:
            raise UserError(f"token {tokens.max()} in {part} is not in 0 .. {config.V - 1}")
        position += 1 + length
        parts.append(tokens)
    if position < fields.size:
        raise UserError(f"length {2 * fields.size} bytes, but its parts take {2 * position}")
    context, *completions = parts
    # The last token is only a target, and needs no position.
    longest = context.size + max(tokens.size for tokens in completions) - 1
    if longest > config.maxT:
        raise UserError(f"context and completion need {longest} positions, but the model has {config.maxT}")
    return Example(context, completions, label)
