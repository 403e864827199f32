"""The child process that compiles the kernels: when it is started, what is printed, and how it may end."""

import io
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from gpt2.inference import warmup
from gpt2.kernels.engine.target import code_key
from gpt2.optimizer import OPTIMIZERS, AdamW

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINE = "compiling the kernels: a minute, in the first run only\n"
# Prints a hash of all results, children started, kernels compiled here, and kernels that the warm-up had not loaded.
RUN = """
import hashlib, subprocess, sys
import numpy as np
from gpt2 import GPT2, GPT2Config
from gpt2.inference.decoder import Decoder
from gpt2.inference.warmup import prepare_kernels
from gpt2.inference.weights import converted
from gpt2.kernels import decode
from gpt2.kernels.adamw import sum_of_squares
from gpt2.optimizer import AdamW

popen, children = subprocess.Popen, []
subprocess.Popen = lambda *command, **pipes: children.append(command) or popen(*command, **pipes)
kernels = {
    id(each): each
    for name, module in list(sys.modules.items()) if name.startswith("gpt2.kernels.")
    for each in vars(module).values() if hasattr(each, "overloads")
}.values()
loaded = 0
if sys.argv[1:] == ["prepared"]:
    prepare_kernels()
    loaded = sum(len(kernel.overloads) for kernel in kernels)
rng = np.random.default_rng(0)
model = GPT2(GPT2Config(maxT=64, V=512, L=2, NH=2, C=34))
optimizer = AdamW(model, weight_decay=0.1)
results = []
for gradients in (model.overwrite_gradients, model.add_gradients, model.forward):
    tokens, targets = rng.integers(0, 512, (2, 3, 64))
    results.append(gradients(tokens, targets))
    model.backward()
    results += [sum_of_squares(model.grads_flat), optimizer.step(1e-2), model.logits(tokens), model.last_logits(tokens)]
for B in (1, 12):
    decoder = Decoder(model.config, model.params_flat, B)
    results.append(decoder.forward(rng.integers(0, 512, (1, 9))).copy())
    decoder.reorder(np.zeros(B, int))
    results.append(decoder.forward(rng.integers(0, 512, (B, 1))))
digest = hashlib.sha256(b"".join(np.asarray(each).tobytes() for each in [*results, model.params_flat])).hexdigest()
misses = sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels)
print(digest, len(children), misses, sum(len(kernel.overloads) for kernel in kernels) - loaded)
"""
PREPARE = "from gpt2.errors import run_command; from gpt2.inference.warmup import *; run_command(prepare_kernels)"


def start(cache, program, *arguments):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def run(cache, *arguments, program=RUN):
    """Returns (digest, children, kernels compiled in the parent, kernels loaded late, standard error) of a program."""
    with start(cache, program, *arguments) as process:
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    digest, *counts = out.split()
    return digest, *map(int, counts), err


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A cache folder, and what the run that filled it gave."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, run(cache)


@pytest.mark.slow
def test_the_first_run_compiles_nothing_itself_and_equals_later_ones_to_the_last_bit(first):
    cache, (digest, children, compiled, _, err) = first
    assert (children, compiled, err) == (1, 0, LINE)
    assert run(cache, "prepared") == (digest, 0, 0, 0, "")


@pytest.mark.slow
def test_kernels_for_a_form_of_weights_are_prepared_once_asked_for(first):
    cache, (digest, *_) = first
    program = RUN.replace("prepare_kernels()", "prepare_kernels('int8')")
    program = program.replace("(model.config, model.params_flat, B)", "(model.config, weights, B)")
    program = program.replace("for B in", "weights = converted(model.config, model.params_flat, 'int8')\nfor B in")
    narrow, *counts = run(cache, "prepared", program=program)
    assert counts == [1, 0, 0, LINE] and narrow != digest
    assert run(cache, "prepared", program=program) == (narrow, 0, 0, 0, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decode.append", "matmul.matmul_nn", "product.product"])
def test_a_function_is_compiled_where_only_those_that_it_calls_are_in_the_cache(first, name):
    cache, (digest, *_) = first
    removed = list(cache.rglob(f"{name}-*"))
    assert removed
    for file in removed:
        file.unlink()
    assert run(cache)[:3] == (digest, 1, 0)
    assert run(cache)[:3] == (digest, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent_and_says_nothing(tmp_path, signal_number):
    with start(tmp_path, PREPARE) as process:
        assert process.stderr.readline() == LINE
        os.killpg(process.pid, signal_number)
        # Standard error is the child's as well: it ends when both have ended.
        out, err = process.communicate(timeout=20)
    interrupted = signal_number == signal.SIGINT
    assert (process.returncode, out, err) == ((130, "", "interrupted\n") if interrupted else (-9, "", ""))


def test_it_takes_a_step_of_the_optimizer_that_runs_and_the_child_of_each_that_is_listed(monkeypatch, tmp_path):
    stepped = []

    class Lion(AdamW):
        def step(self, *arguments):
            stepped.append(type(self))

    class Muon(Lion):
        pass

    warmup.prepare_kernels(optimizer=Lion)
    assert stepped == [Lion]
    monkeypatch.setattr(warmup.jit, "compile_into", lambda folder: None)
    for each in (Lion, Muon):
        monkeypatch.setitem(OPTIMIZERS, each.__name__, each)
    warmup.compile_kernels(tmp_path, warmup.FORMS[0], code_key())
    assert stepped == [Lion, Lion, Muon]
    with pytest.raises(SystemExit, match="other kernels than its parent runs"):
        warmup.compile_kernels(tmp_path, warmup.FORMS[0], "of another form")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fill(monkeypatch, child, stderr):
    """Returns what compile_in_child prints with a Python program as the child."""
    monkeypatch.setattr(warmup, "_CHILD", child)
    monkeypatch.setattr(sys, "stderr", stderr)
    warmup.compile_in_child(pathlib.Path())
    return stderr.getvalue()


def test_a_log_gets_a_line_if_anything_is_compiled(monkeypatch):
    assert fill(monkeypatch, "print('one'); print('two')", io.StringIO()) == LINE
    assert fill(monkeypatch, "", io.StringIO()) == ""


def test_a_terminal_shows_what_is_compiled_and_how_many_functions_were(monkeypatch):
    child = "import time; time.sleep(0.6); print('one', flush=True); time.sleep(0.2); print('two')"
    shown = fill(monkeypatch, child, Terminal())
    assert "1 functions" in shown and "one" in shown and "2 functions" in shown and "two" in shown
    assert LINE not in shown
    assert fill(monkeypatch, "import time; time.sleep(0.6)", Terminal()).strip() == ""


@pytest.mark.parametrize("printed", ["", "one"])
def test_a_child_that_is_killed_is_survived(monkeypatch, printed):
    child = f"import os; print('{printed}', end='', flush=True); os.kill(os.getpid(), 9)"
    shown = fill(monkeypatch, child, io.StringIO())
    assert shown.removeprefix(LINE if printed else "") == (
        "the kernels' compiler process failed (exit status -9); compiling in this process instead: "
        "results may differ from other runs' in their last digits\n"
    )


def test_without_a_standard_error_the_child_is_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(warmup, "_CHILD", f"print('one'); open({str(tmp_path / 'done')!r}, 'w')")
    monkeypatch.setattr(sys, "stderr", None)  # closed before Python started
    warmup.compile_in_child(pathlib.Path())
    assert (tmp_path / "done").exists()


def test_a_child_that_cannot_be_started_is_survived(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "failed (No such file or directory)" in fill(monkeypatch, "", io.StringIO())
