"""Compiled kernels: another process makes them, and this one loads them, from the first time on."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from numba.core import types

from gpt2.kernels import decode
from gpt2.kernels.engine.compiler import _describe, _understand

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAM = """
import hashlib, sys
import numpy as np
from gpt2.kernels.engine import compiler
from gpt2.kernels.adamw import sum_of_squares
from gpt2.kernels.classifier import classifier_forward
from gpt2.kernels.engine.jit import watch_compilation

if sys.argv[1:] == ["alone"]:
    def refuse(*command, **streams):
        raise OSError("no more processes")
    compiler.subprocess.Popen = refuse

rng = np.random.default_rng(0)
logits = rng.standard_normal((67, 256), dtype=np.float32)
losses, lse = np.empty((2, 67), np.float32)
names = []
with watch_compilation(names.append, lambda: names.append("end")):
    classifier_forward(losses, lse, logits, np.zeros(67, np.int32), 201)
    total = sum_of_squares(logits.reshape(-1))
own = sum(sum(kernel.stats.cache_misses.values()) for kernel in (classifier_forward, sum_of_squares))
print(hashlib.sha256(losses.tobytes() + lse.tobytes()).hexdigest(), total)
print(own, "classifier_forward" in names, names.count("end"), len(names))
"""
PRODUCT = """
import sys
import numpy as np
from gpt2.kernels import matmul

out, a, b = np.ones((3, 4, 4), np.float32)
getattr(matmul, sys.argv[1])(out, a, b)
print(out.sum(), getattr(matmul, sys.argv[1]).stats.cache_misses)
"""
DECODER = """
import numpy as np
from gpt2 import GPT2, GPT2Config
from gpt2.inference.decoder import Decoder

model = GPT2(GPT2Config(maxT=8, V=13, L=2, NH=2, C=10))
print(Decoder(model.config, model.params_flat, 2).forward(np.ones((2, 5), int)).sum())
"""


def execute(program, cache, *arguments):
    """Returns what the program prints, which must end well and say nothing on standard error."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0 and process.stderr == "", process.stderr
    return process.stdout


def run(cache, *arguments):
    numbers, counts = execute(PROGRAM, cache, *arguments).splitlines()
    return numbers, counts.split()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return cache, run(cache)


def test_the_first_run_computes_what_later_ones_do_to_the_last_bit(first):
    cache, (numbers, (own, seen, ends, names)) = first
    assert own == "0" and seen == "True" and int(names) == 2 * int(ends) > 0
    again, (own, seen, ends, _) = run(cache)
    assert (own, seen, ends) == ("0", "False", "0")
    assert again == numbers


def test_where_no_process_can_be_started_kernels_are_compiled_all_the_same(first, tmp_path):
    numbers, (own, seen, _, _) = run(tmp_path, "alone")
    assert int(own) > 0 and seen == "True"
    _, total = numbers.split()
    assert float(total) == pytest.approx(float(first[1][0].split()[1]), rel=1e-12)


def test_a_kernel_is_compiled_where_only_what_it_calls_is_in_the_cache(tmp_path):
    for name in ("matmul_nt", "matmul_nn"):
        assert execute(PRODUCT, tmp_path, name) == "64.0 Counter()\n"


def test_a_function_is_compiled_where_only_the_kernels_that_it_calls_are_in_the_cache(tmp_path):
    first = execute(DECODER, tmp_path)
    compiled = list(tmp_path.rglob("decode.append*"))
    assert compiled
    for file in compiled:
        file.unlink()
    assert execute(DECODER, tmp_path) == first
    assert execute(DECODER, tmp_path) == first


def test_signatures_arrive_as_they_were_sent():
    array = types.Array(types.float32, 2, "A", readonly=True, aligned=False)
    scratch = types.BaseTuple.from_types([array] * len(decode.Scratch._fields), decode.Scratch)
    signature = (types.int64, types.float64, types.boolean, array, types.UniTuple(types.int32, 3), scratch)
    assert _understand(json.loads(json.dumps(_describe(signature)))) == signature
