"""What the kernels' machine code is compiled from and for."""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys

import llvmlite.binding
import numba
from numba.core import codegen

# The forms of products of bfloat16, see product_bf16.py. PORTABLE takes no instruction of the CPU for them; it is asked
# for by this value of the variable.
PORTABLE, AVX512_BF16, AMX = "portable", "AVX512_BF16", "AMX"
BF16_VARIABLE = "GPT2_BF16"
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


def bf16_form():
    """Returns the form of products of bfloat16: PORTABLE if that is asked for, else the best of the CPU's, or None.

    The CPU is the one that Numba compiles for. AMX also takes the system's permission.
    """
    if os.environ.get(BF16_VARIABLE) == PORTABLE:
        return PORTABLE
    features = target_features()
    if not {"+avx512f", "+avx512bf16"} <= features:
        return None
    return AMX if {"+amx-tile", "+amx-bf16"} <= features and permits_amx() else AVX512_BF16


@functools.cache
def permits_amx():
    """Asks Linux, once, to let this process use AMX's tiles; returns whether it does.

    The permission lasts as long as the process, whose alternate signal stacks must have room for the tiles from then
    on. Linux refuses if one has not, or if it is older than 5.16.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):  # other systems have other numbers for their calls
        return False
    # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    return ctypes.CDLL(None).syscall(*map(ctypes.c_long, (158, 0x1023, 18))) == 0


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
    key.update(repr([getattr(numba.config, name) for name in _SETTINGS] + [bf16_form()]).encode())
    return key.hexdigest()[:16]
