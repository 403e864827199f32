"""Reference states in llm.c's format."""

import numpy as np

from gpt2.config import GPT2Config
from gpt2.formats.llmc import State, write_state
from gpt2.layout import parameter_layout

CONFIG = GPT2Config(maxT=4, V=7, L=1, NH=2, C=4)
B, T = 2, 3


def random_state(seed=0):
    """Returns a State with random values and a loss of 2.5."""
    random = np.random.default_rng(seed)
    layout = parameter_layout(CONFIG)
    return State(
        inputs=random.integers(0, 7, (B, T), dtype=np.int32),
        targets=random.integers(0, 7, (B, T), dtype=np.int32),
        logits=random.standard_normal((B, T, 7), dtype=np.float32),
        loss=2.5,
        grads=layout.views(random.standard_normal(layout.size, dtype=np.float32)),
    )


def written(path, values=None):
    """Writes a State, by default a random one, and returns the path."""
    write_state(path, CONFIG, values or random_state())
    return path
