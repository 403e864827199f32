"""Generates greedily with this repository's decoder. Creates the model's files first if they are missing."""

import pathlib
import statistics
import time

import numba
import numpy as np
from numba import prange

from bench import common
from gpt2.config import GPT2Config
from gpt2.formats.huggingface import save_folder
from gpt2.formats.pretrained import load_weights
from gpt2.inference import sampling
from gpt2.inference.context import Context
from gpt2.kernels.engine.jit import kernel
from gpt2.machine import set_threads
from gpt2.model import GPT2

_BLOCK = 1 << 14


@kernel
def sum_of_blocks(sums, flat):
    """sums[i] = sum of the i-th block of `flat`. Its time is what reading the array once takes."""
    for block in prange(sums.size):
        part = flat[block * _BLOCK : (block + 1) * _BLOCK]
        total = np.float32(0)
        for i in range(part.size):
            total += part[i]
        sums[block] = total


def main():
    job = common.read_job()
    set_threads(job["threads"])
    if not pathlib.Path(job["model"]).exists():
        model = GPT2(GPT2Config(**job["sizes"]), common.SEED)
        model.save(job["model"])
        folder = pathlib.Path(job["folder"])
        folder.mkdir()
        save_folder(folder, model.config, model.params_flat)
    config, params = load_weights(job["model"], writable=False)

    def generate(prompt, new):
        start = time.perf_counter()
        context = Context(config, params, len(prompt), prompt.shape[1] + new)
        context.add(prompt)
        steps = list(sampling.generate(context, new, sampling.Sampling(temperature=0), [None] * len(prompt)))
        return time.perf_counter() - start, np.array([[token.id for token in step] for step in steps]).T

    sums, times = np.zeros(-(-params.size // _BLOCK), np.float32), []

    def read_all():
        for _ in range(10):
            start = time.perf_counter()
            sum_of_blocks(sums, params)
            times.append(time.perf_counter() - start)

    generate(np.ones((1, 16), int), 2)
    sum_of_blocks(sums, params)
    read_all()
    seconds, tokens = common.time_cases(generate, job)
    read_all()
    common.answer([numba, np], seconds=seconds, tokens=tokens, sum_s=statistics.median(times))


if __name__ == "__main__":
    main()
