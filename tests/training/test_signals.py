"""Signals, sent to child processes that do something else meanwhile."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from gpt2.training.signals import StopSignals

ROOT = pathlib.Path(__file__).resolve().parents[2]
BEGINNING = f"""
import signal, sys, time, types
sys.modules["gpt2"] = types.ModuleType("gpt2")  # without its model, whose import takes most of a test
sys.modules["gpt2"].__path__ = [{str(ROOT / "gpt2")!r}]
from gpt2.training.signals import StopSignals

def say(*words):
    print(*words, flush=True)
"""
# Sleeps in steps, as a training loop does, and reports how many it finished after the signal.
LOOP = """
with StopSignals() as stop:
    say("ready")
    while not stop.received:
        time.sleep(0.02)
    say("received", stop.received)
    if len(sys.argv) > 1:
        time.sleep(30)  # the saving, which a second signal ends
say("left")
"""
MESSAGE = "finishing this step, then saving; a second Ctrl-C or SIGTERM ends at once"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def child(program, *arguments):
    """A process that has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGINNING + program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_step_finished(number):
    with child(LOOP) as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, f"received {int(number)}\nleft\n")
    assert errors == f"{number.name}: {MESSAGE}\n"


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_at_once_with_its_status(first, second):
    with child(LOOP, "slow saving") as process:
        process.send_signal(first)
        assert process.stdout.readline() == f"received {int(first)}\n"
        process.send_signal(second)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (-second, "")
    assert errors.count("\n") == 1


# As the package's kernels do, it holds the interpreter: Python's handlers wait for it to return.
KERNEL = """
import numba

@numba.njit
def kernel(n):
    state = 1
    for _ in range(n):
        state = state * 6364136223846793005 + 1442695040888963407
    return state

def run_for(seconds):
    n = 10_000_000
    kernel(n)
    start = time.perf_counter()
    kernel(n)
    n = int(n * seconds / (time.perf_counter() - start))
    say("ready")
    kernel(n)
"""
NOTED = """
with StopSignals() as stop:
    run_for(1)
    say("received", stop.received)
"""


@pytest.mark.slow
def test_a_signal_during_a_kernel_is_noted_after_it():
    with child(KERNEL + NOTED) as process:
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "received 15\n", f"SIGTERM: {MESSAGE}\n")


@pytest.mark.slow
def test_two_signals_during_a_kernel_end_the_process_after_it():
    with child(KERNEL + NOTED) as process:
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (-signal.SIGTERM, "")
    assert errors == f"SIGINT: {MESSAGE}\n"


WRITING = """
import io

class Slow(io.FileIO):
    def write(self, data):
        signal.raise_signal(signal.SIGTERM)
        return super().write(data)

with StopSignals() as stop:
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(Slow(2, "w", closefd=False)))
    print("step", file=sys.stderr, flush=True)
    say("received", stop.received)
"""


def test_a_signal_in_the_middle_of_a_print_to_the_same_stream():
    ended = subprocess.run([sys.executable, "-c", BEGINNING + WRITING], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout) == (0, "received 15\n")
    assert ended.stderr == f"SIGTERM: {MESSAGE}\nstep\n"


def test_the_handlers_before_are_restored():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.raises(ZeroDivisionError), StopSignals() as stop:
        assert all(signal.getsignal(number) != before[number] for number in SIGNALS)
        1 / 0  # noqa: B018
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert stop.received is None


def test_after_a_signal_they_are_restored_too(capfd):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    files = len(os.listdir("/dev/fd"))
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    assert signal.set_wakeup_fd(-1) == -1 and len(os.listdir("/dev/fd")) == files
    assert capfd.readouterr().err == f"SIGTERM: {MESSAGE}\n"


def test_in_another_thread_it_does_nothing():
    found = []

    def run():
        with StopSignals() as stop:
            found.append((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), stop.received))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), None)]
