"""Compiles or loads all kernels before they are needed."""

import numpy as np

from gpt2.config import GPT2Config
from gpt2.inference import decoder
from gpt2.inference.progress import compilation_shown
from gpt2.model import GPT2
from gpt2.optimizer import AdamW, gradient_norm


def prepare_kernels():
    """Runs every kernel once, on a model of a few numbers: the first run compiles them, later ones load them."""
    model = GPT2(GPT2Config(maxT=4, V=4, L=1, NH=1, C=4))
    tokens = np.zeros((1, 4), np.int32)
    with compilation_shown():
        model.forward(tokens, tokens)
        model.backward()
        gradient_norm(model)
        AdamW(model).step(1e-4)
        decoder.prepare_kernels()
