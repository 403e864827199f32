"""The kernels as plain Python, where NumPy checks indices; compiled code reads out of bounds silently."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = (
    "kernels/test_adamw",
    "kernels/test_attention",
    "kernels/test_classifier",
    "kernels/test_dropout",
    "kernels/test_encoder",
    "kernels/test_gelu",
    "kernels/test_layernorm",
    "kernels/test_matmul",
    "kernels/engine/test_fastmath",
    "kernels/engine/test_gemm",
    "inference/test_decoder",
    "test_model",
)


@pytest.mark.slow
def test_kernels_on_tiny_sizes_uncompiled():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "tiny"]
        + [f"tests/{module}.py" for module in MODULES],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    summary = run.stdout.splitlines()[-1]
    passed = re.search(r"(\d+) passed", summary)
    assert passed and int(passed[1]) >= 100, summary
    assert "skipped" not in summary, summary


def test_the_subprocess_runs_python_code():
    # The test above relies on this: without the JIT, kernels are Python functions that raise IndexError.
    script = (
        "import numpy as np, types\n"
        "from gpt2.kernels.classifier import classifier_forward\n"
        "assert isinstance(classifier_forward, types.FunctionType)\n"
        "classifier_forward(np.zeros(1), np.zeros(1), np.zeros((1, 4)), np.array([7]), 4)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stderr.splitlines()[-1].startswith("IndexError"), run.stderr
