"""What the kernels' machine code is compiled from and for."""

import functools
import hashlib
import importlib.metadata
import os
import pathlib
import sys

import llvmlite.binding
import numba
from numba.core import codegen

# Where this variable is PORTABLE, products of bfloat16 take no instruction of the CPU for them: see product_bf16.py.
BF16_VARIABLE, PORTABLE = "GPT2_BF16", "portable"
PACKAGE = pathlib.Path(__file__).parents[1]

# Numba settings that change the generated code.
_SETTINGS = (
    "CPU_NAME",
    "CPU_FEATURES",
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "ENABLE_AVX",
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
    "USING_SVML",
)


def target_features():
    """Returns the set of instruction-set extensions that Numba compiles for, as LLVM spells them: "+avx2", "-sse4a"."""
    if numba.config.CPU_FEATURES is not None:  # NUMBA_CPU_FEATURES; "" for NUMBA_CPU_NAME=generic
        return set(numba.config.CPU_FEATURES.split(","))
    return set(codegen.get_host_cpu_features().split(","))


def has_bf16():
    """Returns whether the CPU that Numba compiles for multiplies pairs of bfloat16: AVX512_BF16."""
    return {"+avx512f", "+avx512bf16"} <= target_features()


def is_bf16_portable():
    """Returns whether products of bfloat16 are asked for in their portable form."""
    return os.environ.get(BF16_VARIABLE) == PORTABLE


@functools.cache
def code_key():
    """Identifies the kernels' machine code: 16 hex digits, a hash of sources, compiler, CPU and features.

    Numba's own check covers only the file of the function that is called, not those of its callees.
    """
    key = hashlib.sha256()
    for source in sorted(PACKAGE.rglob("*.py")):
        if source.is_file():  # Emacs marks a file that is being edited with a dangling link, .#NAME.py
            key.update(source.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        key.update(importlib.metadata.version(package).encode())
    key.update(f"{sys.version} {llvmlite.binding.get_host_cpu_name()} {sorted(target_features())}".encode())
    key.update(repr([getattr(numba.config, name) for name in _SETTINGS] + [is_bf16_portable()]).encode())
    return key.hexdigest()[:16]
