"""How kernels are compiled, and the on-disk cache of their machine code.

Code that Numba runs in the process that compiled it is optimised once more than the code it saves, so its sums may
differ in their last bits from those of every later run. Therefore kernels are compiled in another process, if one has
been registered with `on_cache_miss`, and loaded from the cache from the first run on.

Nothing here changes what other users of Numba in the process get: the cache, its folder and the vector width belong to
the functions decorated here.
"""

import functools
import hashlib
import importlib.metadata
import os
import pathlib
import sys
import tempfile

import llvmlite.binding
import numba
from numba.core import caching, codegen, compiler, event, sigutils
from numba.core.ccallback import CFunc
from numba.core.registry import cpu_target

# All of LLVM's fast-math flags except `nnan` and `ninf`, which would make isnan() always False (numba issue 9383).
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}

# Numba settings that change the generated code.
_CODE_SETTINGS = (
    "CPU_NAME",
    "CPU_FEATURES",
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "ENABLE_AVX",
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
)


def target_features():
    """Returns the set of instruction-set extensions that Numba compiles for, as LLVM spells them: "+avx2", "-sse4a"."""
    if numba.config.CPU_FEATURES is not None:  # NUMBA_CPU_FEATURES; "" for NUMBA_CPU_NAME=generic
        return set(numba.config.CPU_FEATURES.split(","))
    return set(codegen.get_host_cpu_features().split(","))


@functools.cache
def cache_key():
    """Identifies the kernels' machine code: 16 hex digits, a hash of sources, compiler, CPU and features.

    Numba's own check covers only the file of the function that is called, not those of its callees.
    """
    key = hashlib.sha256()
    for source in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        key.update(source.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        key.update(importlib.metadata.version(package).encode())
    key.update(f"{sys.version} {llvmlite.binding.get_host_cpu_name()} {sorted(target_features())}".encode())
    key.update(repr([getattr(numba.config, name) for name in _CODE_SETTINGS]).encode())
    return key.hexdigest()[:16]


def _cache_folder():
    """Returns a private, writable folder for the compiled kernels, or None."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    roots = [pathlib.Path(__file__).parents[1] / "__pycache__", pathlib.Path(user_cache) / "gpt2-kernels"]
    if numba.config.CACHE_DIR:
        roots.insert(0, pathlib.Path(numba.config.CACHE_DIR))
    for root in roots:
        folder = root / f"kernels-{cache_key()}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


CACHE_FOLDER = None if numba.config.DISABLE_JIT else _cache_folder()
if CACHE_FOLDER is None and not numba.config.DISABLE_JIT:
    print("no writable folder for compiled kernels: every run compiles them again, for a minute", file=sys.stderr)


class _Locator(caching._SourceFileBackedLocatorMixin, caching._CacheLocator):
    """Puts a function's code into CACHE_FOLDER."""

    def __init__(self, function, file):
        self._py_file, self._lineno = file, function.__code__.co_firstlineno

    def get_cache_path(self):
        return str(CACHE_FOLDER / self.get_suitable_cache_subpath(self._py_file))


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(caching.FunctionCache):
    """A function's cache, which has missing code compiled in another process first."""

    _impl_class = _CacheImpl
    compile_elsewhere = None

    def load_overload(self, sig, target_context):
        code = super().load_overload(sig, target_context)
        if code is None and _Cache.compile_elsewhere is not None:
            compile_elsewhere, _Cache.compile_elsewhere = _Cache.compile_elsewhere, None
            compile_elsewhere()
            code = super().load_overload(sig, target_context)
        return code


def on_cache_miss(compile_elsewhere):
    """Registers a function without arguments, or None, to call once, when code is first found missing in the cache.

    It may fill the cache. What is missing after that is compiled in this process.
    """
    _Cache.compile_elsewhere = compile_elsewhere


class _WideVectorLibrary(codegen.JITCodeLibrary):
    """Machine code in which LLVM vectorises loops for 64 bytes on CPUs for which it would prefer 32 (prefer-256-bit).

    That preference makes the kernels slower.
    """

    def add_ir_module(self, ir_module):
        for function in ir_module.functions:
            if not function.is_declaration:
                set.add(function.attributes, '"prefer-vector-width"="512"')  # a set that knows no string attributes
        super().add_ir_module(ir_module)


# Explicit settings of the user's stand.
_WIDE_VECTORS = (numba.config.CPU_NAME, numba.config.CPU_FEATURES) == (None, None) and "+avx512f" in target_features()


class _Compiler(compiler.Compiler):
    """Compiles a function and all it calls with wide vectors. Runs under Numba's compiler lock."""

    def compile_extra(self, func):
        if not _WIDE_VECTORS:
            return super().compile_extra(func)
        shared = cpu_target.target_context.codegen()
        before, shared._library_class = shared._library_class, _WideVectorLibrary
        try:
            return super().compile_extra(func)
        finally:
            shared._library_class = before


_options = {"fastmath": FASTMATH, "error_model": "numpy"}


def _compiled(function, **options):
    dispatcher = numba.njit(pipeline_class=_Compiler, **_options, **options)(function)
    if CACHE_FOLDER is not None:
        dispatcher._cache = _Cache(function)
    return dispatcher


def kernel(function):
    """Decorates a function called from Python, whose prange loops run on all threads."""
    return _compiled(function, parallel=True)


def inline(function):
    """Decorates a function called from kernels."""
    return _compiled(function)


def standalone(signature):
    """Decorates a function that is compiled separately, for `signature`, and called by its address."""

    def decorate(function):
        compiled = CFunc(function, sigutils.normalize_signature(signature), {}, dict(_options), _Compiler)
        if CACHE_FOLDER is not None:
            compiled._cache = _Cache(function)
        compiled.compile()
        return compiled

    return decorate


class _CompilationListener(event.Listener):
    def __init__(self, started):
        self._started = started

    def on_start(self, compilation):
        self._started(compilation.data["dispatcher"].__name__)

    def on_end(self, compilation):
        pass


def watch_compilation(started):
    """Returns a context in which started(name) is called when compiling a function begins, not when it is loaded."""
    return event.install_listener("numba:compile", _CompilationListener(started))
