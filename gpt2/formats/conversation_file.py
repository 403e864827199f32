"""Token files of conversations: llm.c's token header with version 2, which is this project's own.

The header (int32) is as in version 1: magic number, version, number of tokens, the vocabulary's digest; then comes the
number of conversations. The body: the tokens, uint16; the number of tokens of each conversation, int32; a bit for each
token, 1 for what the assistant produces, the first token's the highest of its byte.
"""

import typing

import numpy as np

from gpt2.errors import UserError
from gpt2.formats.files import HEADER_BYTES, check_size, open_to_read, read_header, write_header
from gpt2.formats.llmc import CONVERSATIONS_VERSION, TOKENS_DIGEST, TOKENS_MAGIC
from gpt2.memory import require

COUNT, CONVERSATIONS = 2, TOKENS_DIGEST.stop  # places in the header
BYTES_PER_TOKEN = 2 + 1 + 1  # in memory: the token, whether it counts, and what reading that takes
SHORTEST = 2  # tokens of a conversation: one and its target


class Conversations(typing.NamedTuple):
    """Conversations one after the other.

    tokens: uint16 (count,). lengths: how many belong to each conversation, int32 (conversations,). counts: whether the
    assistant produces a token, bool (count,).
    """

    tokens: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray


def write_conversations(file, conversations, vocabulary=None):
    """Writes Conversations to an open file.

    vocabulary: the SHA-256 of its tokens, 64 hexadecimal digits, None for GPT-2's. Raises UserError if the header can't
    count the tokens.
    """
    tokens, lengths, counts = conversations
    if len(tokens) >= 2**31:
        raise UserError(f"{len(tokens):,} tokens are too many for a token file, at most {2**31 - 1:,}; split the data")
    header = np.zeros(CONVERSATIONS + 1, "<i4")
    header[: TOKENS_DIGEST.start] = TOKENS_MAGIC, CONVERSATIONS_VERSION, len(tokens)
    if vocabulary:
        header[TOKENS_DIGEST] = np.frombuffer(bytes.fromhex(vocabulary), "<i4")
    header[CONVERSATIONS] = len(lengths)
    write_header(file, header)
    file.write(np.ascontiguousarray(tokens, "<u2").data)
    file.write(np.ascontiguousarray(lengths, "<i4").data)
    file.write(np.packbits(counts).data)


def holds_conversations(path):
    """Returns whether a file's header says that it is a token file of conversations. Raises UserError if unreadable."""
    with open_to_read(path) as file:
        return file.read(8) == np.array([TOKENS_MAGIC, CONVERSATIONS_VERSION], "<i4").tobytes()


def are_conversations(paths):
    """Returns whether token files hold conversations. Raises UserError if some do and others do not."""
    kinds = {holds_conversations(path): path for path in paths}
    if len(kinds) > 1:
        raise UserError(f"{kinds[True]} holds conversations, {kinds[False]} does not; train on files of one kind")
    return True in kinds


def read_conversations_file(path):
    """Reads a token file of conversations. Returns its Conversations; the ids are not checked.

    Raises UserError for another file, an invalid header or file size, and lengths that do not add up.
    """
    with open_to_read(path) as file:
        header = read_header(file, path, "a token file of conversations")
        magic, version, count, number = (int(header[place]) for place in (0, 1, COUNT, CONVERSATIONS))
        if (magic, version) != (TOKENS_MAGIC, CONVERSATIONS_VERSION):
            raise UserError(f"{path}: not a token file of conversations; prepare them with --chat")
        if count < SHORTEST or not 1 <= number <= count // SHORTEST:
            raise UserError(f"{path}: the header says {number} conversations of {count} tokens, which cannot be")
        mask_bytes = -(-count // 8)
        what = f"a header, {count:,} tokens, {number:,} lengths and a bit a token"
        check_size(file, path, HEADER_BYTES + 2 * count + 4 * number + mask_bytes, what)
        require(BYTES_PER_TOKEN * count + 4 * number, f"the conversations in {path}")
        tokens, lengths = _read(file, path, "<u2", count), _read(file, path, "<i4", number)
        counts = np.unpackbits(_read(file, path, np.uint8, mask_bytes), count=count).view(bool)
    if lengths.min() < SHORTEST or lengths.sum(dtype=np.int64) != count:
        raise UserError(f"{path}: the lengths of its conversations do not add up to {count:,} tokens; prepare it again")
    return Conversations(tokens, lengths, counts)


def _read(file, path, dtype, count):
    out = np.empty(count, dtype)
    if file.readinto(out.view(np.uint8)) < out.nbytes:
        raise UserError(f"{path}: truncated while being read; restore the file")
    return out
