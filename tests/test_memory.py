"""Memory is asked for before it is taken."""

import numpy as np
import psutil
import pytest

from gpt2 import memory
from gpt2.errors import UserError

VERSION_2 = {"limit": "memory.max", "usage": "memory.current"}
VERSION_1 = {"limit": "memory.limit_in_bytes", "usage": "memory.usage_in_bytes"}
STATISTICS = {"anon": 100, "inactive_file": 300_000, "active_file": 200_000}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Makes a control group; the process is in those that `memberships` name."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")

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
    assert memory.available_bytes() == 4_500_000
    groups(path, names, 900_000, 1_500_001, STATISTICS, memberships)
    assert memory.available_bytes() == 0


def test_the_tightest_limit_counts(groups):
    for path, limit in {"": "max", "a": 7_000_000, "a/b": 6_000_000, "a/b/c": "max", "other": 10}.items():
        groups(path, VERSION_2, limit, 1_000_000, STATISTICS, "0::/a/b/c\n")
    assert memory.available_bytes() == 5_500_000


def test_version_1_counts_the_files_of_groups_below(groups):
    below = {"total_inactive_file": 350_000, "total_active_file": 250_000}
    groups("memory", VERSION_1, 5_000_000, 1_000_000, STATISTICS | below, "4:memory:/\n")
    assert memory.available_bytes() == 4_600_000


def test_no_limit_leaves_what_the_machine_has(groups, tmp_path):
    machine = psutil.virtual_memory().total
    assert 10_000_000 < memory.available_bytes() <= machine  # there is no membership file
    groups("", VERSION_2, "max", 1_000_000, STATISTICS, "0::/\n")
    assert 10_000_000 < memory.available_bytes() <= machine
    groups("cpu", VERSION_2, 5_000_000, 1_000_000, STATISTICS, "3:cpu:/\n")
    assert memory.available_bytes() > 10_000_000
    groups("", VERSION_2, 5_000_000, 1_000_000, {}, "0::/\n")
    assert memory.available_bytes() > 10_000_000


def test_amounts_are_readable():
    amounts = {2_132_000_000: "2.13 GB", 1_234_567_000_000: "1,234.57 GB", 10**8: "0.10 GB", 99_994_000: "99.99 MB"}
    for count, text in amounts.items() | {(0, "0.00 MB")}:
        assert memory.readable(count) == text


def test_a_request_that_does_not_fit_names_both_amounts(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * 10**9)
    with pytest.raises(UserError, match=r"the model needs 4.00 GB, 2.00 GB are available"):
        memory.allocate(10**9, np.float32, "the model")
    assert memory.allocate(5, np.float64, "little").tolist() == [0.0] * 5


def test_a_refusal_by_the_system_is_said_too(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**80)
    with pytest.raises(UserError, match="were refused by the system"):
        memory.allocate(2**58, np.float32, "the model")
