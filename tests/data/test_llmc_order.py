"""llm.c's order of batches, against its data loader in plain Python on an mt19937 of its own."""

import itertools

import numpy as np
import pytest

from gpt2.data import llmc_order
from gpt2.data.dataloader import LLMC, DataLoader
from gpt2.data.llmc_order import LlmcOrder
from gpt2.formats.llmc import write_tokens

V = 50257


class Mt19937:
    """The generator as Matsumoto and Nishimura published it, seeded by init_genrand."""

    def __init__(self, seed):
        self.state = [seed]
        for n in range(1, 624):
            before = self.state[-1]
            self.state.append((1812433253 * (before ^ (before >> 30)) + n) % 2**32)
        self.place = 624

    def __call__(self):
        if self.place == 624:
            self.twist()
        y = self.state[self.place]
        self.place += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)

    def twist(self):
        for n in range(624):
            y = (self.state[n] & 0x80000000) | (self.state[(n + 1) % 624] & 0x7FFFFFFF)
            self.state[n] = self.state[(n + 397) % 624] ^ (y >> 1) ^ (0x9908B0DF if y % 2 else 0)
        self.place = 0


def test_the_generator_of_this_test():
    generator = Mt19937(5489)
    outputs = [generator() for _ in range(10000)]
    assert outputs[:3] == [3499211612, 581869302, 3890346734]
    assert outputs[-1] == 4123659995  # as the C++ standard has it
    generator = Mt19937(137)
    # From the comment at the head of llm.c's rand.h.
    assert [generator() for _ in range(5)] == [4053805790, 2173880614, 380293709, 1237255315, 2986595568]


def llmc_batches(shards, B, T):
    """Yields (tokens, targets) without end, as llm.c's dataloader.h: shards, lists of token ids in the files' order."""
    generator = Mt19937(42)

    def permute(values):
        for i in range(len(values) - 1, 0, -1):
            j = generator() % (i + 1)
            values[i], values[j] = values[j], values[i]

    files = list(range(len(shards)))
    while True:
        permute(files)
        for file in files:
            samples = list(range((len(shards[file]) - 1) // (B * T)))
            permute(samples)
            for sample in samples:
                start = sample * B * T
                tokens, targets = (shards[file][i : i + B * T] for i in (start, start + 1))
                yield np.reshape(tokens, (B, T)), np.reshape(targets, (B, T))


def write(folder, *counts):
    """Writes token files of so many tokens, each token another; returns (pattern, their tokens)."""
    first, shards = 0, []
    for number, count in enumerate(counts):
        shards.append(list(range(first, first + count)))
        write_tokens(folder / f"train_{number:06d}.bin", shards[-1])
        first += count
    return str(folder / "train_*.bin"), shards


@pytest.mark.parametrize(
    ("counts", "B", "T"),
    [
        ((3000,), 2, 3),  # 499 batches: a state of the generator is spent before the second epoch
        ((101, 50, 75, 26), 2, 3),
        ((7, 7), 2, 3),  # a batch each
        ((7,), 2, 3),  # nothing to draw
        ((400, 401, 1500, 90, 33, 260), 1, 4),
    ],
)
def test_batches_are_those_of_llmc(tmp_path, counts, B, T):
    pattern, shards = write(tmp_path, *counts)
    loader = DataLoader(pattern, B, T, V, shuffle_seed=LLMC)
    for step, expected in enumerate(itertools.islice(llmc_batches(shards, B, T), 4 * loader.num_batches + 1)):
        assert loader.position == divmod(step, loader.num_batches)
        tokens, targets = loader.next_batch()
        assert tokens.dtype == targets.dtype == np.int32
        assert np.array_equal(tokens, expected[0]) and np.array_equal(targets, expected[1])


def test_any_position_can_be_returned_to(tmp_path, monkeypatch):
    monkeypatch.setattr(llmc_order, "DRAWS", 7)
    pattern, shards = write(tmp_path, 101, 50, 75, 26)
    batches = list(itertools.islice(llmc_batches(shards, 2, 3), 10 * 41))
    loader = DataLoader(pattern, 2, 3, V, shuffle_seed=LLMC)
    assert loader.num_batches == 40
    for epoch, batch in ((5, 17), (5, 39), (2, 0), (2, 3), (9, 39), (0, 1), (1, 0)):
        loader.position = [epoch, batch]
        for step in range(epoch * 40 + batch, min(epoch * 40 + batch + 3, len(batches))):
            assert np.array_equal(loader.next_batch()[0], batches[step][0])
    loader.reset()
    assert np.array_equal(loader.next_batch()[0], batches[0][0])


def test_an_epoch_has_every_batch_once():
    order = LlmcOrder([5, 1, 30])
    epochs = [order(epoch).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(36)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_where_a_batch_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 26, 19)
    loader = DataLoader("train_*.bin", 2, 3, V, shuffle_seed=LLMC)
    for _ in range(9):
        position = loader.position
        first = int(loader.next_batch()[0][0, 0])
        file, start = ("train_000001.bin", first - 26) if first >= 26 else ("train_000000.bin", first)
        expected = f"epoch {position[0]}, batch {position[1]}: {file}, tokens {start} to {start + 5}"
        assert loader.where(position) == expected
