"""Memory is checked before it is taken."""

import numpy as np
import pytest

from gpt2 import machine, memory
from gpt2.errors import UserError


def test_amounts_are_readable():
    amounts = {2_132_000_000: "2.13 GB", 1_234_567_000_000: "1,234.57 GB", 10**8: "0.10 GB", 99_994_000: "99.99 MB"}
    for count, text in amounts.items() | {(0, "0.00 MB")}:
        assert memory.readable(count) == text


def test_a_request_that_does_not_fit_names_both_amounts(monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda: 2 * 10**9)
    with pytest.raises(UserError, match=r"the model needs 4.00 GB, 2.00 GB are available"):
        memory.allocate(10**9, np.float32, "the model")
    assert memory.allocate(5, np.float64, "little").tolist() == [0.0] * 5


def test_a_refusal_by_the_system_is_said_too(monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda: 2**80)
    with pytest.raises(UserError, match="were refused by the system"):
        memory.allocate(2**58, np.float32, "the model")
