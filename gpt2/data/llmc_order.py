"""The order in which llm.c's training takes its batches: dataloader.h with should_shuffle, for one process."""

import numpy as np

SEED = 42  # of llm.c's process 0
DRAWS = 2**20  # random numbers skipped at a time


class LlmcOrder:
    """The batches of an epoch in llm.c's order, which depends on the files alone.

    llm.c draws from one generator, mt19937, for the whole run: at the start of an epoch it shuffles the files, from
    their order in the epoch before, and at the start of a file its batches, from their order in the file.
    """

    def __init__(self, counts):
        """counts: the number of batches in each file, integers from 1."""
        self._counts = np.array(counts)
        self._firsts = np.cumsum([0, *counts[:-1]])
        self._restart()

    def _restart(self):
        self._next = 0  # epoch
        self._random = np.random.RandomState(SEED)
        self._files = np.arange(self._counts.size)

    def __call__(self, epoch):
        """Returns the batches of an epoch, numbered through all files, uint32 (batches,).

        Epochs before the last one asked for, and gaps, cost all draws from the beginning.
        """
        if epoch < self._next:
            self._restart()
        while self._next < epoch:
            self._shuffle(self._files)
            self._skip(int((self._counts - 1).sum()))
            self._next += 1
        self._shuffle(self._files)
        self._next += 1
        return np.concatenate([self._firsts[file] + self._batches(file) for file in self._files]).astype(np.uint32)

    def _batches(self, file):
        batches = np.arange(self._counts[file])
        self._shuffle(batches)
        return batches

    def _shuffle(self, values):
        """Shuffles an array as llm.c's random_permutation: from the last place down, each with one not after it."""
        places = np.arange(values.size - 1, 0, -1)
        others = self._draw(places.size) % (places + 1)
        shuffled = values.tolist()
        for i, j in zip(places.tolist(), others.tolist(), strict=True):
            shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
        values[:] = shuffled

    def _draw(self, count):
        """Returns the next numbers of mt19937, int64 (count,) in 0 .. 2^32 - 1."""
        return self._random.randint(2**32, size=count, dtype=np.uint32).astype(np.int64)

    def _skip(self, count):
        for start in range(0, count, DRAWS):
            self._draw(min(DRAWS, count - start))
