"""Batches of conversations: rows, targets, padding, order, positions, and what is left out."""

import re

import numpy as np
import pytest

from gpt2.data.conversation_loader import ConversationLoader
from gpt2.errors import UserError
from gpt2.formats.conversation_file import Conversations, write_conversations

V = 60_000


def write(path, lengths, counted=2, first=1000):
    """Writes conversations of these lengths, whose tokens are numbered through from `first`; the last ones count."""
    lengths = np.array(lengths, np.int32)
    counts = np.concatenate([np.arange(length) >= length - counted for length in lengths])
    with open(path, "wb") as file:
        write_conversations(file, Conversations(first + np.arange(lengths.sum()), lengths, counts))
    return path


@pytest.fixture
def mixed(tmp_path):
    """77 conversations of 4 to 60 tokens."""
    return write(tmp_path / "talks.bin", np.random.default_rng(1).integers(4, 61, 77))


def rows_of(batch):
    """Returns the rows of a batch as (tokens, targets), lists without the padding."""
    tokens, targets = batch
    lengths = [int(np.flatnonzero(row != -1)[-1]) + 1 for row in targets]  # the end of an answer is its last target
    return [(tokens[i, :n].tolist(), targets[i, :n].tolist()) for i, n in enumerate(lengths)]


def epoch_of(loader):
    """Returns the rows of the next epoch, of all batches."""
    epoch, rows = loader.epoch, []
    while loader.epoch == epoch:
        rows += rows_of(loader.next_batch())
    return rows


def test_a_row_is_a_conversation_and_targets_are_what_counts(tmp_path):
    loader = ConversationLoader(write(tmp_path / "talks.bin", [5, 3]), B=2, T=10, V=V)
    tokens, targets = loader.next_batch()
    assert tokens.dtype == targets.dtype == np.int32 and tokens.flags.c_contiguous
    assert tokens.tolist() == [[1005, 1006, 0, 0], [1000, 1001, 1002, 1003]]
    assert targets.tolist() == [[1006, 1007, -1, -1], [-1, -1, 1003, 1004]]
    assert (loader.num_batches, loader.num_conversations, loader.num_tokens, loader.num_targets) == (1, 2, 8, 4)
    assert loader.widest == 4


def test_a_loss_on_everything(tmp_path):
    loader = ConversationLoader(write(tmp_path / "talks.bin", [5, 3]), B=2, T=10, V=V, loss_on="all")
    assert loader.next_batch()[1].tolist() == [[1006, 1007, -1, -1], [1001, 1002, 1003, 1004]]
    assert loader.num_targets == 6


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize(("B", "accumulation"), [(1, 1), (4, 1), (4, 3), (77, 1), (100, 1)])
def test_every_conversation_occurs_once_an_epoch(mixed, seed, B, accumulation):
    loader = ConversationLoader(mixed, B, 100, V, seed, accumulation=accumulation)
    assert loader.num_batches == -(-77 // B)
    starts = {row[0][0] for row in epoch_of(ConversationLoader(mixed, 1, 100, V))}
    for _ in range(3):
        rows = epoch_of(loader)
        assert len(rows) == 77 and {tokens[0] for tokens, _ in rows} == starts
        for tokens, targets in rows:
            assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))
            assert targets == [-1] * (len(tokens) - 2) + [tokens[-1], tokens[-1] + 1]


def test_the_order_depends_on_the_seed_and_the_epoch_alone(mixed):
    loader, same, other = (ConversationLoader(mixed, 4, 100, V, seed) for seed in (3, 3, 4))
    first, second = epoch_of(loader), epoch_of(loader)
    assert first != second and epoch_of(other) not in (first, second)
    assert [epoch_of(same), epoch_of(same)] == [first, second]
    loader.reset()
    assert epoch_of(loader) == first


def test_a_step_has_the_same_conversations_however_it_is_cut(mixed):
    whole, cut = ConversationLoader(mixed, 8, 100, V, 5), ConversationLoader(mixed, 2, 100, V, 5, accumulation=4)
    for _ in range(77 // 8):
        rows = [row for _ in range(4) for row in rows_of(cut.next_batch())]
        assert rows_of(whole.next_batch()) == rows


def test_a_saved_position_continues(mixed):
    loader, again = (ConversationLoader(mixed, 4, 100, V, 3) for _ in range(2))
    for _ in range(27):
        loader.next_batch()
    again.position = list(loader.position)
    assert again.position == (1, 7)
    for _ in range(30):
        for ours, theirs in zip(loader.next_batch(), again.next_batch(), strict=True):
            assert np.array_equal(ours, theirs)
    for position in ((0, 20), (-1, 0), [0], None):
        with pytest.raises(UserError, match="is not in these token files, whose epoch has 20 batches"):
            again.position = position


def test_rows_of_like_length_are_together(tmp_path):
    """With lengths as those of typical sets, log-normal, where batches at random would be more than half padding."""
    lengths = np.clip(np.random.default_rng(0).lognormal(4.6, 0.7, 1100), 8, 1000).astype(int)
    path = write(tmp_path / "talks.bin", lengths, first=0)
    for B, accumulation in ((4, 1), (8, 1), (12, 1), (4, 4)):
        loader = ConversationLoader(path, B, 1000, 2**16, 1, accumulation=accumulation)
        sizes = [loader.next_batch()[0].size for _ in range(loader.num_batches)]
        assert 1 - (lengths - 1).sum() / sum(sizes) < 0.09
        middle = len(sizes) // 2
        assert abs(np.log(sum(sizes[:middle]) / sum(sizes[middle:]))) < 0.5  # not the short ones first


def test_unshuffled_the_shortest_come_first(mixed):
    lengths = [len(tokens) for tokens, _ in epoch_of(ConversationLoader(mixed, 4, 100, V))]
    assert lengths == sorted(lengths)


def test_long_conversations_are_left_out_and_named(tmp_path, capsys):
    path = write(tmp_path / "talks.bin", [5, 12, 3, 11, 30, 4])
    loader = ConversationLoader(path, B=2, T=10, V=V)
    assert capsys.readouterr().out == f"{path}: left out 2 of 6 conversations, longer than 11 tokens: number 2, 5\n"
    assert {tokens[0] for tokens, _ in epoch_of(loader)} == {1000, 1017, 1020, 1061}
    assert (loader.num_conversations, loader.num_tokens, loader.widest) == (4, 23, 10)
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match=r"talks\.bin: no conversation is left to train on; choose a larger --seq-len"):
        ConversationLoader(path, B=2, T=1, V=V)


def test_many_that_are_left_out_are_counted(tmp_path, capsys):
    ConversationLoader(write(tmp_path / "talks.bin", [2] + [9] * 12), B=2, T=5, V=V)
    assert capsys.readouterr().out.endswith(": number 2, 3, 4, 5, 6, 7, 8, 9 and 4 more\n")


def test_conversations_without_a_target_are_left_out(tmp_path, capsys):
    path = tmp_path / "talks.bin"
    counts = np.array([1, 0, 0, 0, 0, 1], bool)  # the first token of a conversation is no target
    with open(path, "wb") as file:
        write_conversations(file, Conversations(np.arange(6), np.array([3, 3]), counts))
    loader = ConversationLoader(path, B=2, T=5, V=V)
    assert "left out 1 of 2 conversations, without a target: number 1\n" in capsys.readouterr().out
    assert loader.next_batch()[0].tolist() == [[3, 4]]
    assert ConversationLoader(path, B=2, T=5, V=V, loss_on="all").num_conversations == 2


def test_several_files_are_one_set(tmp_path):
    write(tmp_path / "b.bin", [4, 6], first=2000)
    write(tmp_path / "a.bin", [5])
    loader = ConversationLoader(str(tmp_path / "*.bin"), 2, 10, V, 1)
    assert {tokens[0] for tokens, _ in epoch_of(loader)} == {1000, 2000, 2004}
    assert loader.file_names() == f"{tmp_path / 'a.bin'}, {tmp_path / 'b.bin'}"
    assert re.fullmatch(r"epoch 3, batch 1: .*[ab]\.bin, conversation [12]", loader.where((3, 1)))


def test_a_place_names_the_first_conversations(mixed):
    places = ConversationLoader(mixed, 6, 100, V, 1).where((0, 0))
    numbers = re.findall(r"conversation (\d+)", places)
    assert len(set(numbers)) == 4 and places.endswith("; and 2 more")


def test_other_contents_are_told_from_an_earlier_runs(tmp_path):
    path = write(tmp_path / "talks.bin", [5, 7, 4])
    before = ConversationLoader(path, 2, 10, V).fingerprint
    assert ConversationLoader(path, 3, 10, V, 1, "all").difference(before) is None
    for change in ({"counted": 3}, {"first": 1001}):
        write(path, [5, 7, 4], **change)
        assert "has different tokens" in ConversationLoader(path, 2, 10, V).difference(before)
    write(path, [5, 4, 7])
    assert "has different tokens" in ConversationLoader(path, 2, 10, V).difference(before)
    write(path, [5, 7])
    assert "has 12 tokens, not 16" in ConversationLoader(path, 2, 10, V).difference(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"B": 0}, "batch of 0 x 10 tokens"),
        ({"V": 1005}, "token 1005 at position 5 is not in 0 .. 1004"),
        ({"patterns": "nowhere.bin"}, "nowhere.bin: no such token file"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, arguments, message):
    path = write(tmp_path / "talks.bin", [5, 7])
    with pytest.raises(UserError, match=re.escape(message)):
        ConversationLoader(**{"patterns": path, "B": 2, "T": 10, "V": V} | arguments)
