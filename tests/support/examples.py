"""Multiple-choice evaluation files."""

import numpy as np


def example_numbers(index, label, context, completions):
    """Returns an example as a file holds it, a list of numbers."""
    parts = [part for tokens in (context, *completions) for part in (len(tokens), *tokens)]
    return [65535, 2 * (5 + len(parts)), index, label, len(completions), *parts]


def file_bytes(examples, magic=20240522, version=1, count=None, longest=None):
    """Returns an evaluation file; examples: a list of what example_numbers returns."""
    header = np.zeros(256, "<i4")
    header[:4] = magic, version, len(examples) if count is None else count, longest or 2 * max(map(len, examples))
    return header.tobytes() + np.array([number for numbers in examples for number in numbers], "<u2").tobytes()


def random_examples(count, rng, config):
    """Returns a list of (label, context, completions), some as long as the model's context allows."""
    examples = []
    for _ in range(count):
        n = rng.integers(1, config.maxT // 2)
        lengths = rng.integers(1, config.maxT - n + 2, 4)
        context, *completions = (rng.integers(0, config.V, size) for size in (n, *lengths))
        examples.append((int(rng.integers(4)), context, completions))
    return examples


def write_examples(path, examples):
    path.write_bytes(file_bytes([example_numbers(i, *example) for i, example in enumerate(examples)]))
    return path
