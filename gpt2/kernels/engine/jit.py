"""How kernels are compiled, and where the compiled code is kept."""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import sys
import tempfile

import llvmlite.binding
import numba
from numba.core import event

from gpt2.kernels.engine.compiler import Compiler, Listener

# All of LLVM's fast-math but `nnan` and `ninf`, which would make isnan() always False (numba issue 9383).
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}


# LLVM prefers vectors of 32 bytes to AVX-512's 64 for loops like the kernels', which they make slower.
_FEATURES = llvmlite.binding.get_host_cpu_features().flatten()
_choice = numba.config.CPU_FEATURES, numba.config.CPU_NAME, numba.config.ENABLE_AVX
if _choice == (None, None, 1) and "+avx512f" in _FEATURES.split(","):
    numba.config.CPU_FEATURES = f"{_FEATURES},-prefer-256-bit"


# Numba's settings that change the code it makes.
_CODE_SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")


def _cache_key():
    """Changes with the kernels' sources, the compiler and the CPU: Numba's own check sees only the caller's file."""
    key = hashlib.sha256()
    for source in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        key.update(source.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        key.update(importlib.metadata.version(package).encode())
    key.update(f"{sys.version} {llvmlite.binding.get_host_cpu_name()} {numba.config.CPU_NAME}".encode())
    key.update(f"{_FEATURES} {numba.config.CPU_FEATURES}".encode())
    key.update(repr([getattr(numba.config, name) for name in _CODE_SETTINGS]).encode())
    return key.hexdigest()[:16]


def _cache_folder():
    """Returns a private, writable folder for the compiled kernels, or None."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    roots = [pathlib.Path(__file__).parents[1] / "__pycache__", pathlib.Path(user_cache) / "gpt2-kernels"]
    if numba.config.CACHE_DIR:
        roots.insert(0, pathlib.Path(numba.config.CACHE_DIR))
    for root in roots:
        folder = root / f"kernels-{_cache_key()}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


CACHE_FOLDER = None if numba.config.DISABLE_JIT else _cache_folder()
if CACHE_FOLDER is not None:
    numba.config.CACHE_DIR = str(CACHE_FOLDER)
elif not numba.config.DISABLE_JIT:
    print("no folder for the compiled kernels can be written: they are compiled anew in every run", file=sys.stderr)

_options = {"fastmath": FASTMATH, "error_model": "numpy", "cache": CACHE_FOLDER is not None}

_compiler = Compiler()


def kernel(function):
    """Decorates a function called from Python, whose prange loops run on all threads."""
    dispatcher = numba.njit(parallel=True, **_options)(function)
    if numba.config.DISABLE_JIT:
        return dispatcher
    compile_or_load = dispatcher.compile

    def load(signature):
        fill_cache(dispatcher, signature)
        return compile_or_load(signature)

    dispatcher.compile = load
    return dispatcher


inline = numba.njit(**_options)
inline.__doc__ = "Decorates a function called from kernels."


def standalone(signature):
    """Decorates a function that is compiled by itself, for `signature`, and called by its address."""
    return numba.cfunc(signature, **_options)


def fill_cache(dispatcher, signature):
    """Has a kernel compiled in another process for a tuple of Numba types, unless it is in the cache or has none."""
    cache = dispatcher._cache
    if CACHE_FOLDER is None or not dispatcher.py_func.__module__.startswith("gpt2.kernels."):
        return
    key = cache._index_key(signature, dispatcher.targetctx.codegen())
    if key not in cache._cache_file._load_index():
        _compiler.compile(dispatcher, signature)


@contextlib.contextmanager
def watch_compilation(started, ended):
    """A context in which started(name) and ended() are called around each compilation of a function, not a loading."""
    _compiler.watchers.append((started, ended))
    try:
        with event.install_listener("numba:compile", Listener(started, ended)):
            yield
    finally:
        _compiler.watchers.remove((started, ended))
        _compiler.stop()
