import os
import pathlib
import subprocess
import sys

import numba
import numpy as np
import pytest

from gpt2 import machine
from gpt2.config import GPT2Config
from gpt2.kernels.adamw import sum_of_squares
from gpt2.kernels.dropout import Dropout
from gpt2.model import GPT2
from gpt2.optimizer import AdamW
from tests.support.numeric import random_batch, randomise

# Odd sizes that give most kernels several tasks.
CONFIG = GPT2Config(maxT=101, V=300, L=2, NH=5, C=130)


@pytest.fixture(autouse=True)
def restore_threads():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def train(n, p, B=3, T=101, steps=3):
    """Trains on n threads, with dropout of probability p.

    Returns losses, norms, gradients, parameters and moments, the arrays as bytes.
    """
    machine.set_threads(n)
    model = GPT2(CONFIG)
    rng = np.random.default_rng(1)
    randomise(model, rng)
    optimizer = AdamW(model, weight_decay=0.1)
    results = []
    for step in range(steps):
        tokens, targets = random_batch(CONFIG, B, T, rng)
        results.append(model.overwrite_gradients(tokens, targets, Dropout(p, 1, step, 0)))
        results += [sum_of_squares(model.grads_flat), model.grads_flat.tobytes()]
        optimizer.step(1e-2)
    return [*results, model.params_flat.tobytes(), optimizer.m.tobytes(), optimizer.v.tobytes()]


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 3, reason="NUMBA_NUM_THREADS is below 3")
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_the_same_bits_for_any_number_of_threads(p):
    expected = train(1, p)
    assert train(2, p) == expected
    for _ in range(5):  # usually more threads than cores
        assert train(3, p) == expected


def test_set_threads_is_obeyed():
    for n in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        machine.set_threads(n)
        assert numba.get_num_threads() == n


ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import multiprocessing, sys, threading
import numpy as np
from gpt2 import machine
from gpt2.kernels.adamw import sum_of_squares

def work(number):
    return [sum_of_squares(np.full(100000, number, np.float32)) for _ in range(50)]

expected = [[100000.0 * n * n] * 50 for n in range(4)]
how = sys.argv[1]
if how == "threads":
    results = [None] * 4
    def fill(n):
        results[n] = work(n)
    threads = [threading.Thread(target=fill, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
elif how == "once":
    machine.set_threads(1)
    results = expected
else:
    if how == "used, then forked":
        work(1)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        try:
            results = pool.map(work, range(4))
        except RuntimeError as error:
            results = str(error)
    assert work(2) == expected[2]
print("right" if results == expected else results)
"""


def run_program(how, **settings):
    """Returns (exit status, standard output, last line of standard error) of PROGRAM."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | settings
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.strip(), (done.stderr.splitlines() or [""])[-1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["threads", "forked", "used, then forked"])
@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_kernels_in_python_threads_and_forked_processes_work_or_say_why_not(layer, how):
    status, out, err = run_program(how, NUMBA_THREADING_LAYER=layer)
    assert (status, err) == (0, "")
    if how == "used, then forked" and layer == "default" and numba.threading_layer() == "omp":
        assert out.startswith("kernels ran before this process was forked") and "'spawn'" in out
    else:
        assert out == "right"


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("NUMBA_THREADING_LAYER", "bogus", "Numba's threads cannot start: The threading layer requested 'bogus' is"),
        ("NUMBA_NUM_THREADS", "0", "error: Numba cannot be loaded: Number of threads specified must be > 0."),
        ("NUMBA_NUM_THREADS", "100000", "NUMBA_NUM_THREADS=100000: choose from 1 to 16384"),
        ("OMP_STACKSIZE", "64k", "OMP_STACKSIZE: 64 kB of stack; the kernels' threads need 512 kB each"),
        ("OMP_STACKSIZE", " 65536 B ", "OMP_STACKSIZE: 64 kB of stack; the kernels' threads need 512 kB each"),
        ("GOMP_STACKSIZE", "100", "GOMP_STACKSIZE: 100 kB of stack; the kernels' threads need 512 kB each"),
    ],
)
def test_settings_with_which_kernels_would_crash_are_refused_in_a_line(name, value, message):
    status, out, err = run_program("once", **{name: value})
    assert (status, out) == (1, "") and err.removeprefix("gpt2.errors.UserError: ").startswith(message)


def test_a_small_stack_is_refused_in_a_line():
    command = ["bash", "-c", 'ulimit -s 256; exec "$@"', "-", sys.executable, "-c", PROGRAM, "once"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("ulimit -s: 256 kB of stack; the kernels' threads need 512 kB each")
    assert run_program("once", OMP_STACKSIZE="512k", GOMP_STACKSIZE="1M") == (0, "right", "")
