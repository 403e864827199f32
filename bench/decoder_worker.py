"""Generates greedily with this repository's decoder. Creates the model's files first if they are missing."""

import itertools
import pathlib
import statistics
import time

import numba
import numpy as np
import tokenizers
from numba import prange
from tokenizers import models, pre_tokenizers

from bench import common
from gpt2.config import GPT2Config
from gpt2.formats.gguf_file import save_gguf
from gpt2.formats.huggingface import save_folder
from gpt2.formats.pretrained import load_weights
from gpt2.formats.tokenizer_folder import TokenizerFolder
from gpt2.inference import sampling
from gpt2.inference.context import Context
from gpt2.inference.warmup import prepare_kernels
from gpt2.inference.weights import converted
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


def write_model(job):
    """Writes the same random weights in every format of the job."""
    model, folder = GPT2(GPT2Config(**job["sizes"]), common.SEED), pathlib.Path(job["folder"])
    model.save(job["model"])
    folder.mkdir()
    save_folder(folder, model.config, model.params_flat)
    for dtype, path in job["gguf"].items():
        save_gguf(path, model.config, model.params_flat, dtype, made_up_vocabulary(model.config.V))


def made_up_vocabulary(V):
    """Returns the TokenizerFolder of a byte-level BPE with V tokens, which a GGUF file cannot do without."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = itertools.chain.from_iterable(itertools.product(alphabet, repeat=length) for length in (1, 2))
    ids = {"".join(name): id for id, name in enumerate(itertools.islice(names, V))}
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TokenizerFolder({}, tokenizer=tokenizer, begin=V - 1, ends=(V - 1,))


def main():
    job = common.read_job()
    set_threads(job["threads"])
    if not pathlib.Path(job["model"]).exists():
        write_model(job)
    config, params = load_weights(job["model"], writable=False)
    weights = converted(config, params, job["weights"])
    prepare_kernels(job["weights"])

    def generate(prompt, new):
        start = time.perf_counter()
        context = Context(config, weights, len(prompt), prompt.shape[1] + new)
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
