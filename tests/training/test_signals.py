"""Signals, sent to child processes that do something else meanwhile."""

import contextlib
import os
import pathlib
import shutil
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
NOTICES = (signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def child(program, *arguments, before=()):
    """A process that has printed its first line. before: a command that starts it."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", BEGINNING + program, *arguments],
        stdin=subprocess.PIPE,
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


@pytest.mark.parametrize("number", NOTICES)
def test_a_notice_stops_the_run_and_may_be_repeated(number):
    with child(LOOP) as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, f"received {int(number)}\nleft\n")
    assert errors == f"{number.name}: finishing this step, then saving\n"


# Sleeps a little after the first signal, in which others come, and tells that it is still there.
PATIENT = """
with StopSignals() as stop:
    say("ready")
    while not stop.received:
        time.sleep(0.02)
    say("received", stop.received)
    input()
    say("saved")
"""


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM])
def test_a_notice_as_the_second_signal_does_not_end_the_saving(first):
    with child(PATIENT) as process:
        process.send_signal(first)
        assert process.stdout.readline() == f"received {int(first)}\n"
        for number in NOTICES:
            process.send_signal(number)
        output, errors = process.communicate("\n", timeout=20)
    assert (process.returncode, output) == (0, "saved\n")
    assert errors.count("\n") == 1


def test_a_request_after_a_notice_is_the_first_and_the_next_ends_at_once():
    with child(LOOP, "slow saving") as process:
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "received 10\n"
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "SIGUSR1: finishing this step, then saving\n"
        assert process.stderr.readline() == f"SIGTERM: {MESSAGE}\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


CPU_LIMIT = """
import resource
used = int(time.process_time()) + 1
resource.setrlimit(resource.RLIMIT_CPU, (used, used + 30))
with StopSignals() as stop:
    say("ready")
    while not stop.received:
        pass
    end = time.process_time() + 2.5  # the kernel repeats the signal each second
    while time.process_time() < end:
        pass
    say("received", stop.received)
"""


@pytest.mark.slow
def test_a_soft_limit_on_cpu_time_leaves_time_to_save():
    with child(CPU_LIMIT) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "received 24\n")
    assert errors == "SIGXCPU: finishing this step, then saving\n"


def test_what_the_parent_ignores_stays_ignored():
    with child(LOOP, before=["bash", "-c", "trap '' INT HUP; exec \"$@\"", "bash"]) as process:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "received 15\nleft\n", f"SIGTERM: {MESSAGE}\n")


def test_a_handler_of_the_callers_own_stays():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGUSR1)
        assert seen == [signal.SIGUSR1] and stop.received is None
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_an_acknowledgement_that_cannot_be_shown_is_dropped(redirection):
    with child(LOOP, before=["bash", "-c", f'exec "$@" {redirection}', "bash"]) as process:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "received 15\nleft\n", "")


def test_an_acknowledgement_does_not_go_into_a_file_that_got_the_closed_descriptor(tmp_path):
    program = f"import os\nfile = open({str(tmp_path / 'model')!r}, 'w')\nassert file.fileno() == 2\n{LOOP}"
    with child(program, before=["bash", "-c", 'exec "$@" 2>&-', "bash"]) as process:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    assert output == "received 15\nleft\n" and (tmp_path / "model").read_bytes() == b""


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def no_namespaces():
    """Why there can be no process 1 of one's own here, or None."""
    if shutil.which("unshare") is None:
        return "there is no unshare"
    tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, timeout=20)
    return tried.stderr.strip() or None


@pytest.mark.parametrize("number", SIGNALS)
def test_process_1_of_a_container_ends_at_the_second_signal(number):
    if reason := no_namespaces():
        pytest.skip(reason)
    with child(LOOP, "slow saving", before=NAMESPACE) as process:
        inside = int(pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        os.kill(inside, number)
        assert process.stdout.readline() == f"received {int(number)}\n"
        os.kill(inside, number)
        assert process.wait(20) == 128 + number


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
    numbers = SIGNALS + NOTICES
    before = {number: signal.getsignal(number) for number in numbers}
    with pytest.raises(ZeroDivisionError), StopSignals() as stop:
        assert all(signal.getsignal(number) != before[number] for number in numbers)
        1 / 0  # noqa: B018
    assert {number: signal.getsignal(number) for number in numbers} == before
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
