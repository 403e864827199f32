import math
import platform
import re

import numba
import numpy as np
import pytest

from gpt2.kernels.engine import fastmath
from gpt2.kernels.engine.jit import FASTMATH

compiled_only = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="no machine code without the JIT")


@numba.njit(fastmath=FASTMATH, error_model="numpy")
def exp_of_all(out, x):
    for i in range(x.size):
        out[i] = fastmath.exp(x[i])


def applied(function, x):
    out = np.full_like(x, np.nan)
    function(out, x)
    return out


def grid(low, high, count=1_000_001):
    return np.linspace(low, high, count).astype(np.float32)


@compiled_only
def test_exp_over_its_range():
    x = grid(-86.5, 88.69)
    exact = np.exp(x.astype(float))
    error = np.abs(applied(exp_of_all, x) / exact - 1)
    assert np.max(error) < 1e-7


def test_exp_at_the_edges_tiny():
    x = np.array([0, -0.0, -86.51, -1e4, -np.inf, 89, 1e4, np.inf, np.nan, 88.7], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        out = applied(exp_of_all, x)
    assert np.array_equal(out[:9], np.array([1, 1, 0, 0, 0, np.inf, np.inf, np.inf, np.nan]), equal_nan=True)
    assert out[9] == pytest.approx(math.exp(float(x[9])), rel=1e-6)


def test_values_of_one_element_tiny():
    # Less than a vector: the scalar remainder loop.
    x = np.array([-3.25], np.float32)
    assert applied(exp_of_all, x)[0] == pytest.approx(math.exp(-3.25), rel=2e-7)


def test_float64_is_computed_in_float64_tiny():
    x = np.array([-700.5, -1.1, 0.0, 0.3, 700.5])
    assert np.allclose(applied(exp_of_all, x), np.exp(x), rtol=1e-14, atol=0)
    assert np.isnan(applied(exp_of_all, np.array([np.nan]))[0])


@compiled_only
def test_the_loop_becomes_vector_instructions():
    packed = {
        "x86_64": r"\b(v?mulps|vfn?m(add|sub)\d+ps)\b",
        "aarch64": r"\bf(mul|mla|mls)(\.4s)?\s+v\d+",
    }
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if machine not in packed:
        pytest.skip(f"no pattern for the vector instructions of {machine}")
    x = np.ones(64, np.float32)
    applied(exp_of_all, x)
    signatures = [signature for signature in exp_of_all.signatures if "float32" in str(signature)]
    (assembly,) = map(exp_of_all.inspect_asm, signatures)
    assert re.search(packed[machine], assembly)
    assert not re.search(r"\bexpf\b", assembly)
