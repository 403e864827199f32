"""Trains some steps with this repository's trainer. Creates the model file first if it is missing."""

import pathlib

import numba
import numpy as np

from bench import common
from gpt2.config import GPT2Config
from gpt2.machine import BF16, set_threads
from gpt2.model import GPT2
from gpt2.optimizer import AdamW


def main():
    job = common.read_job()
    set_threads(job["threads"])
    if not pathlib.Path(job["model"]).exists():
        GPT2(GPT2Config(**job["sizes"]), common.SEED).save(job["model"])
    model = GPT2.load(job["model"])
    model.bf16 = job["precision"] == BF16
    optimizer = AdamW(model, weight_decay=common.WEIGHT_DECAY)
    tokens, targets = common.batch(job)

    def step():
        loss = model.overwrite_gradients(tokens, targets)
        optimizer.step(common.LEARNING_RATE)
        return loss

    step_ms, losses = common.time_steps(step, job)
    common.answer([numba, np], step_ms=step_ms, losses=losses)


if __name__ == "__main__":
    main()
