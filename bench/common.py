"""Shared by the worker processes: the job they are given, the batch, timing, and the line of JSON they print.

A worker's job is its only argument, a JSON object. For training: `model` (path, llm.c's format), `sizes` (of
gpt2.GPT2Config), `B`, `T`, `threads`, `precision` ("float32" or "bf16"), `warmup_steps`, `steps` (the timed ones) and,
for PyTorch, `mode` ("eager" or "compile"). For generation: `model`, `sizes`, `threads`, `cases` (see generate.CASES),
`weights` (as the worker's side names them), `folder` (the same model as a Hugging Face folder), `gguf` (dtype -> path
of the same as a GGUF file) and `llama` (path of node-llama-cpp's index.js).
"""

import json
import platform
import resource
import statistics
import sys
import time

import numpy as np

SEED = 1337
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.1  # on matrices and embeddings only
WARMUP_TOKENS = 8


def read_job():
    return json.loads(sys.argv[1])


def batch(job):
    """Returns (tokens, targets), int64 (B,T) each: random, identical in every process and step."""
    V = job["sizes"]["V"]
    tokens = np.random.default_rng(SEED).integers(0, V, (job["B"], job["T"] + 1))
    return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def time_steps(step, job):
    """Calls `step()` for the warm-up and the timed steps.

    Returns (milliseconds of each timed step, return values of all steps including the warm-up).
    """
    milliseconds, returned = [], []
    for _ in range(job["warmup_steps"] + job["steps"]):
        start = time.perf_counter()
        returned.append(step())
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return milliseconds[job["warmup_steps"] :], returned


def prompt_of(case, job):
    """Returns the prompt of a case's samples, int64 (prompt,): random, identical in every process."""
    return np.random.default_rng(SEED).integers(0, job["sizes"]["V"], case["prompt"])


def time_cases(generate, job):
    """Calls `generate(prompt, new)`, which returns (seconds, tokens (B,new)), for each case, after a short warm-up.

    Returns (dict of case -> median seconds, dict of case -> list of each sample's tokens). Prompts are int64
    (B,prompt), the same `prompt_of` for all samples.
    """
    seconds, tokens = {}, {}
    for name, case in job["cases"].items():
        prompt = prompt_of(case, job)[None].repeat(case["B"], axis=0)
        generate(prompt, min(case["new"], WARMUP_TOKENS))
        calls = [generate(prompt, case["new"]) for _ in range(case["times"])]
        seconds[name] = statistics.median(time for time, _ in calls)
        tokens[name] = calls[-1][1].tolist()
    return seconds, tokens


def answer(modules, **measured):
    """Prints the worker's result as a line of JSON: measurements, peak resident memory, and the modules' versions."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    versions = {"python": platform.python_version()} | {module.__name__: module.__version__ for module in modules}
    peak_bytes = peak if sys.platform == "darwin" else 1024 * peak
    print(json.dumps({**measured, "peak_bytes": peak_bytes, "versions": versions}))
