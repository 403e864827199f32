"""Ctrl-C while kernels are compiled."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from gpt2.kernels.engine import interrupts

ROOT = pathlib.Path(__file__).resolve().parents[3]
COMPILE_HERE = """
from gpt2.errors import run_command
from gpt2.inference.warmup import prepare_kernels
from gpt2.kernels.engine import jit

jit.on_cache_miss(None)
with jit.watch_compilation(lambda name: print(name, flush=True)):
    run_command(prepare_kernels)
"""


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_waits_for_the_end_of_the_context():
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        interrupt()
        steps.append("went on")
    assert steps == ["went on"]
    with interrupts.deferred():
        pass  # the earlier one is not reported again
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_an_interrupt_before_an_error_is_reported_instead_of_it_and_not_later():
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        interrupt()
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        interrupt()
        with interrupts.allowed():
            pytest.fail("not interrupted")
    with interrupts.deferred():
        pass


def test_an_interrupt_acts_at_once_where_it_is_allowed():
    with pytest.raises(KeyboardInterrupt), interrupts.deferred(), interrupts.allowed():
        interrupt()
        pytest.fail("not interrupted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_programs_own_handler_stays():
    received = []
    before = signal.signal(signal.SIGINT, lambda *_: received.append("signal"))
    try:
        with interrupts.deferred(), interrupts.allowed():
            interrupt()
            assert received == ["signal"]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_mask", "multiply", "layernorm_forward", "matmul_nt"])
def test_an_interrupt_while_compiling_in_this_process_ends_it_in_one_line(tmp_path, name):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", COMPILE_HERE], env=environment, **pipes) as process:
        assert any(line.strip() == name for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")
