"""Token files from conversations: tokenised by the vocabulary's chat template, split and written as whole ones."""

import itertools
import os

import numpy as np
from tqdm import tqdm

from gpt2.data import preparation, texts, vocabulary
from gpt2.data.chat_template import ChatTemplate
from gpt2.data.chat_vocabulary import chat_vocabulary
from gpt2.data.conversations import read_conversations
from gpt2.errors import UserError
from gpt2.formats import files
from gpt2.formats.conversation_file import Conversations, write_conversations
from gpt2.output import lossy_output

FIRST = 300  # tokens shown


@lossy_output(then_raise=True)
def prepare_conversations(inputs, name, vocab, data_dir, val_fraction=0.1, val_at="end", force=False):
    """Makes `data_dir`/NAME_train.bin and NAME_val.bin of conversations, reporting on stdout. Returns their paths.

    inputs, vocab, val_at, force: as for preparation.prepare_texts; the vocabulary is written to NAME_vocabulary, with
    its chat template. val_fraction: of the tokens, as nearly as whole conversations allow; either split has at least
    one, but there is no NAME_val.bin if it is 0. Raises UserError.
    """
    folder, earlier = preparation.destination(name, data_dir, val_fraction, force)
    found = list(_conversations(texts.expand(inputs)))
    if len(found) < 2 and val_fraction:
        raise UserError(f"{name}: one conversation, expected at least 2: for training and for validation")
    contents = (message["content"] for _, messages in found for message in messages)
    words = chat_vocabulary(preparation.named_vocabulary(vocab, (), contents))
    whole = _tokenise(found, words)
    first = _boundary(whole.lengths, val_fraction, val_at)
    parts = _part(whole, 0, first), _part(whole, first, len(whole.lengths))
    parts = parts if val_at == "end" else parts[::-1]
    splits = ("train", "val") if val_fraction else ("train",)
    paths, parts = [folder / f"{name}_{split}.bin" for split in splits], parts[: len(splits)]
    vocabulary.save_vocabulary(words, folder / f"{name}_vocabulary")
    with files.atomic_write_all(paths) as opened:
        for file, part in zip(opened, parts, strict=True):
            write_conversations(file, part, words.sha256)
    preparation.remove_others(earlier, paths)
    _report(whole, words, paths, parts)
    return paths


def _conversations(paths):
    """Yields (place, messages) for the conversations in all files, with a progress bar."""
    total = sum(os.path.getsize(path) for path in paths if path != texts.STDIN)
    with tqdm(desc="reading", total=total, unit="B", unit_scale=True, leave=False, disable=None, delay=1) as bar:
        for path in paths:
            yield from read_conversations(path, bar.update)


def _tokenise(found, words):
    """Returns the Conversations of (place, messages), a list."""
    template = ChatTemplate(words)
    tokens, lengths, counts = bytearray(), [], bytearray()
    for place, messages in tqdm(found, "tokenising", leave=False, disable=None, delay=1):
        ids, counted = template.encode_to_learn(messages, place)
        tokens += np.array(ids, np.uint16).tobytes()
        counts += bytes(counted)
        lengths.append(len(ids))
    return Conversations(np.frombuffer(tokens, np.uint16), np.array(lengths, np.int32), np.frombuffer(counts, bool))


def _boundary(lengths, fraction, at):
    """Returns the number of conversations before the border between the splits."""
    if not fraction:
        return len(lengths) if at == "end" else 0
    ends = np.cumsum(lengths, dtype=np.int64)
    point = ends[-1] * (1 - fraction if at == "end" else fraction)
    return 1 + int(np.abs(ends[:-1] - point).argmin())


def _part(whole, first, stop):
    """Returns the Conversations from the one numbered `first` to the one before `stop`."""
    start, end = int(whole.lengths[:first].sum(dtype=np.int64)), int(whole.lengths[:stop].sum(dtype=np.int64))
    return Conversations(whole.tokens[start:end], whole.lengths[first:stop], whole.counts[start:end])


def _report(whole, words, paths, parts):
    counted, size = np.count_nonzero(whole.counts), whole.tokens.size
    print(f"{_number(whole)}, the longest of {whole.lengths.max():,} tokens")
    share = f"{counted:,} ({counted / size:.0%})"
    print(f"{size:,} tokens of {words.size:,}; {share} are the assistant's and count for the loss")
    for path, part in zip(paths, parts, strict=True):
        print(f"{path}: {_number(part)}, {part.tokens.size:,} tokens")
    print(f"the first one, with what counts in [[ ]]: {_shown(_part(whole, 0, 1), words)}")


def _number(part):
    return f"{part.lengths.size:,} conversation{'' if part.lengths.size == 1 else 's'}"


def _shown(one, words):
    """Returns a conversation in one line, what the assistant produces in brackets; of a long one, its beginning."""
    tokens, counts = one.tokens[:FIRST], one.counts[:FIRST]
    borders = [0, *(np.flatnonzero(counts[1:] != counts[:-1]) + 1).tolist(), tokens.size]
    out = ""
    for start, stop in itertools.pairwise(borders):
        text = repr(words.decode(tokens[start:stop].tolist()))[1:-1]
        out += f"[[{text}]]" if counts[start] else text
    return out + (" ..." if one.tokens.size > FIRST else "")
