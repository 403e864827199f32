"""Measures a model on conversations: the loss of the assistant's words, and its answers under greedy decoding."""

import math
import typing

import numpy as np
from tqdm import tqdm

from gpt2.data.chat_template import ChatTemplate
from gpt2.data.conversations import ASSISTANT, read_conversations
from gpt2.errors import UserError
from gpt2.inference.context import Batch
from gpt2.inference.evaluation import standard_error, token_losses
from gpt2.inference.sampling import Continuation, Sampling, generate_each
from gpt2.inference.textstream import TextStream, WholeText
from gpt2.kernels.matmul import matmul_nt
from gpt2.kernels.small_batch import SMALL_BATCH

BATCH_TOKENS = 2048  # of conversations in a batch, padding included
ROWS = 256  # of logits at a time
SLACK = 16  # tokens that an answer may take beyond twice those of the right one


class Talks(typing.NamedTuple):
    """Conversations to measure a model on.

    template: the ChatTemplate. found: a list of (place, messages, ids, counts), the last two arrays (n,), int32 and
    bool, as by ChatTemplate.encode. too_long: a list of str, the places of those that exceed the model's context.
    """

    template: ChatTemplate
    found: list
    too_long: list


def read_talks(path, words, config):
    """Returns the Talks in a file, for a model of that GPT2Config and vocabulary.

    path: as for conversations.read_conversations. Raises UserError, also if all conversations are too long.
    """
    talks = Talks(ChatTemplate(words), [], [])
    for place, messages in read_conversations(path):
        ids, counts = talks.template.encode_to_learn(messages, place)
        if len(ids) - 1 > config.maxT:
            talks.too_long.append(place)
        else:
            talks.found.append((place, messages, np.array(ids, np.int32), np.array(counts)))
    if not talks.found:
        raise UserError(f"{path}: all conversations exceed the model's context of {config.maxT:,} tokens")
    return talks


def evaluate_chat(model, words, talks):
    """Measures a model on Talks. words: its vocabulary.

    Returns a dict:
      conversations   number of them
      too_long        list of str, the places of those that exceed the model's context, which are left out
      tokens          number of tokens that the assistant has to produce: its words and what ends each of its turns
      loss            their mean, nats per token
      standard_error  of the mean, as in evaluate_split
      accuracy        share of them that the model finds most probable, given all that precedes
      answers         number of the assistant's turns
      exact           how many of them the model gives word for word, and ends, after what truly precedes them
      ended           how many it ends at all, within about twice the length of the right one
    """
    losses, hits = _counted_losses(model, [each[2:] for each in talks.found])
    turns = [turn for place, messages, *_ in talks.found for turn in _turns(talks.template, messages, place)]
    exact, ended = _check_answers(model, words, talks.template, turns)
    return {
        "conversations": len(talks.found) + len(talks.too_long),
        "too_long": talks.too_long,
        "tokens": losses.size,
        "loss": math.fsum(losses) / losses.size,
        "standard_error": standard_error(losses),
        "accuracy": float(hits.mean()),
        "answers": len(turns),
        "exact": exact,
        "ended": ended,
    }


def _counted_losses(model, conversations):
    """Returns (losses, hits), float32 and bool (tokens,), of what counts in (ids, counts), arrays (n,), of each."""
    losses, hits = [], []
    ordered = sorted(conversations, key=lambda each: -each[0].size)
    with tqdm(desc="losses", total=len(ordered), leave=False, disable=None) as bar:
        while ordered:
            longest = ordered[0][0].size
            batch = ordered[: max(1, BATCH_TOKENS // longest)]
            del ordered[: len(batch)]
            rows, counted = np.zeros((len(batch), longest), np.int32), np.zeros((len(batch), longest), bool)
            for row, mask, (ids, counts) in zip(rows, counted, batch, strict=True):
                row[: ids.size], mask[: ids.size] = ids, counts
            targets, counted = rows[:, 1:], counted[:, 1:]
            losses.append(token_losses(model, rows[:, :-1], targets)[counted])
            hits.append(_most_probable(model, counted.ravel()) == targets[counted])
            bar.update(len(batch))
    return np.concatenate(losses), np.concatenate(hits)


def _most_probable(model, counted):
    """Returns the most probable next token at some places of the model's last batch; counted: bool (B*T,)."""
    config, states = model.config, model.acts["lnf"][counted]
    out = np.empty((ROWS, config.Vp), states.dtype)
    found = np.empty(len(states), np.int64)
    for start in range(0, len(states), ROWS):
        part = states[start : start + ROWS]
        logits = out[: len(part)]
        matmul_nt(logits, part, model.params["wte"], model.bf16)
        found[start : start + ROWS] = logits[:, : config.V].argmax(axis=1)
    return found


def _turns(template, messages, place):
    """Yields (prompt, answer), lists of int, for each of the assistant's turns."""
    for number, message in enumerate(messages):
        if message["role"] == ASSISTANT:
            prompt, _ = template.encode(messages[:number], reply=True, source=place)
            ids, counts = template.encode(messages[: number + 1], source=place)
            if not any(counts):
                raise UserError(f"{place}: {template.name} marks nothing of turn {number + 1} as the assistant's")
            last = first = max(index for index, count in enumerate(counts) if count)
            while first and counts[first - 1]:
                first -= 1
            yield prompt, ids[first : last + 1]


def _check_answers(model, words, template, turns):
    """Returns (exact, ended): how many (prompt, answer), lists of int, the model answers word for word, and ends."""
    config, control = model.config, words.control_tokens
    continuations, expected = [], []
    for prompt, answer in turns:
        most = min(2 * len(answer) + SLACK, config.maxT + 1 - len(prompt))
        continuations.append(Continuation(prompt, most, WholeText(TextStream(words, template.stops))))
        expected.append(words.decode([id for id in answer if id not in control]))
    length = min(config.maxT, max(len(each.prompt) + each.most for each in continuations))
    batch = Batch(config, model.params_flat, min(len(turns), SMALL_BATCH), length)
    done = generate_each(batch, continuations, Sampling(temperature=0))
    for _ in tqdm(done, desc="answers", total=len(turns), leave=False, disable=None):
        pass
    exact = ended = 0
    for each, text in zip(continuations, expected, strict=True):
        found = each.stream.finish()
        same = found.strip() == text.strip() if template.is_plain else found == text
        ended += each.stream.done
        exact += each.stream.done and same
    return exact, ended
