"""Two ranks in network namespaces of their own, with a link between them, as two hosts would have."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from gpt2.training import checkpoint
from tests.support.ranks import MPICH, environment, needs_mpi, run
from tests.support.runs import SCRIPT, contents, write_small_inputs

TRAIN = "--init tiny.bin --train-data train.bin --val-every 0 --sample-every 0 -b 2 -t 16 -x 8 --checkpoint-every 2"
# Ranks on a host would talk through its memory, whatever UCX_TLS says.
TCP = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self"}
LINK_GOES_DOWN = """
import subprocess, sys, time
import train_gpt2
from gpt2.errors import run_command
from gpt2.training import loop
really = loop.train_step

def train_step(state, options):
    if state.world.rank == 0 and state.step == 5:
        print("down at", time.time(), file=sys.stderr, flush=True)
        subprocess.run(["ip", "link", "set", sys.argv[1], "down"], check=True)
    return really(state, options)

loop.train_step = train_step
run_command(lambda: train_gpt2.main(sys.argv[2:]), output_required=False)
"""


def _ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, timeout=20, check=True)


def _can_make_namespaces():
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    try:
        _ip("netns", "add", name := f"gpt2-try-{os.getpid()}")
        _ip("netns", "del", name)
    except (subprocess.SubprocessError, OSError):
        return False
    return True


pytestmark = [
    needs_mpi,
    pytest.mark.slow,
    pytest.mark.skipif(not _can_make_namespaces(), reason="needs root, and the command ip"),
]


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """The names of two namespaces, and of the first one's end of the link between them."""
    write_small_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    names, ends = [f"gpt2-{os.getpid()}-{i}" for i in range(2)], ["veth0", "veth1"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for i, (name, end) in enumerate(zip(names, ends, strict=True)):
            _ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", end)
            for each in ("lo", end):
                _ip("-n", name, "link", "set", each, "up")
        for name, end in zip(names, ends, strict=True):
            for _ in range(100):
                if b"state UP" in _ip("-n", name, "link", "show", end).stdout:
                    break
                time.sleep(0.05)
        yield names, ends[0]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)


def run_in(names, *arguments):
    """Runs Python with the arguments, on a rank in each namespace."""
    command = [MPICH]
    for name in names:
        program = ["ip", "netns", "exec", name, sys.executable, *map(str, arguments)]
        command += [*([":"] if command[1:] else []), "-n", "1", *program]
    return subprocess.run(command, env=environment(**TCP), capture_output=True, text=True, timeout=60)


def received(name, interface):
    lines = subprocess.run(
        ["ip", "netns", "exec", name, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True
    ).stdout
    return int(re.search(rf"{interface}:\s*(\d+)", lines)[1])


def test_over_tcp_the_bits_are_the_same(hosts):
    (names, end), size = hosts, 4 * 43904
    ended = run_in(names, SCRIPT, *TRAIN.split(), "--out-dir", "tcp")
    assert ended.returncode == 0, ended.stderr
    assert received(names[0], end) > 8 * size  # half the gradients, half the parameters, eight times
    assert run(2, SCRIPT, *TRAIN.split(), "--out-dir", "memory").returncode == 0
    assert contents("tcp", 8)[:2] == contents("memory", 8)[:2]


def test_a_link_that_goes_down_ends_the_job_after_the_timeout(hosts):
    names, end = hosts
    ended = run_in(names, "-c", LINK_GOES_DOWN, end, *TRAIN.split(), "--timeout", "3")
    took = time.time() - float(re.search(r"down at ([\d.]+)", ended.stderr)[1])
    assert ended.returncode != 0 and took < 3 + 10
    assert re.search(r"^error: rank \d on \S+: .*rank \d on .*for \d s \(--timeout\)", ended.stderr, re.MULTILINE)
    assert checkpoint.find("out").step == 4
