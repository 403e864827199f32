"""What this process may use: affinity, quotas and limits, with control groups made in a folder."""

import pathlib
import subprocess
import sys

import numba
import psutil
import pytest

from gpt2 import machine
from gpt2.errors import UserError
from gpt2.kernels.engine import threads

ROOT = pathlib.Path(__file__).resolve().parents[1]
VERSION_2 = {"limit": "memory.max", "usage": "memory.current"}
VERSION_1 = {"limit": "memory.limit_in_bytes", "usage": "memory.usage_in_bytes"}
STATISTICS = {"anon": 100, "inactive_file": 300_000, "active_file": 200_000}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Makes a control group; the process is in those that `memberships` name."""
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")

    def make(path, names, limit, usage, statistics, memberships):
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names["limit"]).write_text(f"{limit}\n")
        (folder / names["usage"]).write_text(f"{usage}\n")
        (folder / "memory.stat").write_text("".join(f"{key} {value}\n" for key, value in statistics.items()))
        (tmp_path / "membership").write_text(memberships)

    return make


@pytest.mark.parametrize(
    ("path", "names", "memberships"),
    [
        ("", VERSION_2, "0::/\n"),  # a container's own
        ("", VERSION_2, "0::/../../host/of/container\n"),
        ("job", VERSION_2, "0::/job\n"),
        ("job", VERSION_2, "0::/job/step/task\n"),
        ("memory", VERSION_1, "5:cpu,cpuacct:/\n4:memory:/\n0::/\n"),
        ("memory", VERSION_1, "4:memory:/docker/of_the_host\n"),
        ("memory/job", VERSION_1, "4:hugetlb,memory:/job/step\n"),
    ],
)
def test_available_bytes_is_what_the_groups_limit_leaves(groups, path, names, memberships):
    groups(path, names, 5_000_000, 1_000_000, STATISTICS, memberships)
    assert machine.available_bytes() == 4_500_000
    groups(path, names, 900_000, 1_500_001, STATISTICS, memberships)
    assert machine.available_bytes() == 0


def test_the_tightest_limit_counts(groups):
    for path, limit in {"": "max", "a": 7_000_000, "a/b": 6_000_000, "a/b/c": "max", "other": 10}.items():
        groups(path, VERSION_2, limit, 1_000_000, STATISTICS, "0::/a/b/c\n")
    assert machine.available_bytes() == 5_500_000


def test_version_1_counts_the_files_of_groups_below(groups):
    below = {"total_inactive_file": 350_000, "total_active_file": 250_000}
    groups("memory", VERSION_1, 5_000_000, 1_000_000, STATISTICS | below, "4:memory:/\n")
    assert machine.available_bytes() == 4_600_000


def test_no_limit_leaves_what_the_machine_has(groups, tmp_path):
    total = psutil.virtual_memory().total
    assert 10_000_000 < machine.available_bytes() <= total  # there is no membership file
    groups("", VERSION_2, "max", 1_000_000, STATISTICS, "0::/\n")
    assert 10_000_000 < machine.available_bytes() <= total
    groups("cpu", VERSION_2, 5_000_000, 1_000_000, STATISTICS, "3:cpu:/\n")
    assert machine.available_bytes() > 10_000_000
    groups("", VERSION_2, 5_000_000, 1_000_000, {}, "0::/\n")
    assert machine.available_bytes() > 10_000_000


def test_a_limit_on_the_address_space_counts():
    program = """
import resource
from gpt2 import machine
unlimited = machine.available_bytes()
limit = machine.psutil.Process().memory_info().vms + 300_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(unlimited, machine.available_bytes(), machine.held_bytes())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    unlimited, limited, held = map(int, run.stdout.split())
    assert unlimited > 310_000_000 > limited > 250_000_000 and 5_000_000 < held < 500_000_000


@pytest.mark.parametrize("n", [0, -1, numba.config.NUMBA_NUM_THREADS + 1])
def test_impossible_numbers_of_threads(n):
    before = numba.get_num_threads()
    with pytest.raises(UserError, match=f"{n} threads"):
        machine.set_threads(n)
    assert numba.get_num_threads() == before


def quota(groups, files, memberships):
    for name, text in files.items():
        path = machine.GROUPS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    machine.MEMBERSHIP.write_text(memberships)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("max 100000", 3), ("nonsense", 3)],
)
def test_cpu_quota_of_version_2(groups, monkeypatch, text, expected):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(threads, "max_threads", lambda: 3)
    quota(groups, {"job/cpu.max": text}, "0::/job/step\n")
    assert machine.available_threads() == expected


@pytest.mark.parametrize(("limit", "expected"), [("200000", 2), ("50000", 1), ("-1", 3)])
def test_cpu_quota_of_version_1(groups, monkeypatch, limit, expected):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(threads, "max_threads", lambda: 3)
    files = {"cpu/job/cpu.cfs_quota_us": limit, "cpu/job/cpu.cfs_period_us": "100000"}
    quota(groups, files, "4:memory:/job\n3:cpu,cpuacct:/job\n")
    assert machine.available_threads() == expected


def test_available_threads_is_the_smallest_of_its_limits(groups, monkeypatch):
    assert 1 <= machine.available_threads() <= numba.config.NUMBA_NUM_THREADS
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(threads, "max_threads", lambda: 64)
    assert machine.available_threads() == 2
    quota(groups, {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n")
    assert machine.available_threads() == 1


@pytest.mark.parametrize("question", ["virtual_memory", "Process"])
def test_a_system_that_does_not_answer_is_an_error(monkeypatch, question):
    def fail(*arguments):
        raise psutil.NoSuchProcess(1) if question == "Process" else FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, question, fail)
    with pytest.raises(UserError, match=r"^the system does not tell how much memory there is \([^\n]*\); mount /proc$"):
        machine.held_bytes() + machine.available_bytes()
