"""Memory is asked for before it is taken."""

import numpy as np
import pytest

from gpt2 import memory
from gpt2.errors import UserError


def test_available_bytes_is_what_the_tightest_limit_leaves(tmp_path, monkeypatch):
    (tmp_path / "max").write_text("5000000\n")
    (tmp_path / "current").write_text("1000000\n")
    (tmp_path / "unlimited").write_text("max\n")
    (tmp_path / "stat").write_text("anon 100\ninactive_file 300000\nactive_file 200000\n")
    limited, unlimited = ([tmp_path / first, tmp_path / "current", tmp_path / "stat"] for first in ("max", "unlimited"))
    monkeypatch.setattr(memory, "CONTROL_GROUPS", (unlimited, ["missing"] * 3))
    assert memory.available_bytes() > 5_000_000
    monkeypatch.setattr(memory, "CONTROL_GROUPS", (limited,))
    assert memory.available_bytes() == 4_500_000


def test_a_request_that_does_not_fit_names_both_amounts(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * 10**9)
    with pytest.raises(UserError, match=r"the model needs 4 GB, 2 GB are available"):
        memory.allocate(10**9, np.float32, "the model")
    assert memory.allocate(5, np.float64, "little").tolist() == [0.0] * 5


def test_a_refusal_by_the_system_is_said_too(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**80)
    with pytest.raises(UserError, match="were refused by the system"):
        memory.allocate(2**58, np.float32, "the model")
