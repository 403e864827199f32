"""How kernels are compiled; cache.py keeps their machine code.

Code that Numba runs in the process that compiled it is optimised once more than the code it saves, so its sums may
differ in their last bits from those of every later run. Therefore kernels are compiled in another process, if one has
been registered with `on_cache_miss`, and loaded from the cache from the first run on.

Nothing here changes what other users of Numba in the process get: the cache, its folder and the vector width belong to
the functions decorated here.
"""

import numba
from numba.core import codegen, compiler, event, sigutils
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher, cpu_target

from gpt2.kernels.engine import interrupts, threads
from gpt2.kernels.engine.cache import KernelCache, folders
from gpt2.kernels.engine.target import code_key, target_features

# All of LLVM's fast-math flags except `nnan` and `ninf`, which would make isnan() always False (numba issue 9383).
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}


def on_cache_miss(compile_elsewhere):
    """Registers a function to call with the cache's folder when code is first found missing there.

    It may fill the folder, but not call kernels itself. Once it has returned, it is not called again: what is still
    missing is compiled in this process.
    """
    KernelCache.compile_elsewhere = compile_elsewhere


def compile_into(folder):
    """Compiles what is missing in this process, and stores it in a folder, a path; storing may raise OSError."""
    KernelCache.compile_elsewhere, KernelCache.must_store = None, True
    folders.write_to(folder)


def code_identity():
    """What the bits of results depend on besides the input: identifies the machine code that this process has run."""
    if folders is None:
        return "interpreted"
    return code_key() + ("-uncached" if KernelCache.compiled_here else "")


class _WideVectorLibrary(codegen.JITCodeLibrary):
    """Machine code in which LLVM vectorises loops for 64 bytes on CPUs for which it would prefer 32 (prefer-256-bit).

    That preference makes the kernels slower.
    """

    def add_ir_module(self, ir_module):
        for function in ir_module.functions:
            if not function.is_declaration:
                set.add(function.attributes, '"prefer-vector-width"="512"')  # its own add() refuses string attributes
        super().add_ir_module(ir_module)


# The user's explicit settings take precedence.
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


class _Dispatcher(CPUDispatcher):
    """A compiled function. Calls from Python raise RuntimeError where Numba's threads cannot start."""

    def __call__(self, *arguments):
        lock = threads.start()
        if lock is None:
            return super().__call__(*arguments)
        with lock:
            return super().__call__(*arguments)

    def _compile_for_args(self, *arguments, **keywords):
        with interrupts.deferred():
            return super()._compile_for_args(*arguments, **keywords)


def _compiled(function, **options):
    if folders is None:
        return function
    dispatcher = _Dispatcher(function, targetoptions=_options | {"nopython": True} | options, pipeline_class=_Compiler)
    dispatcher._cache = KernelCache(function)
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
        compiled._cache = KernelCache(function)
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
