"""The threads the kernels run on: how many, and what must hold before they start."""

import os
import re
import resource
import sys
import threading

import numba
from numba.core import types
from numba.extending import overload

# Bytes of stack that a thread needs: the arrays of a product (350 kB) and what surrounds them.
STACK_BYTES = 2**19
MOST_THREADS = 2**14  # GNU OpenMP runs 20,000 and crashes at 100,000

_running = False
_forked = False
_starting = threading.Lock()
_lock = None  # Numba's workqueue serves one Python thread at a time


def max_threads():
    """The largest number of threads that can be set."""
    return numba.config.NUMBA_NUM_THREADS


def set_threads(n):
    """Sets the number of threads of the kernels that this Python thread calls, 1 <= n <= max_threads().

    Raises RuntimeError as `start` does.
    """
    start()
    numba.set_num_threads(n)


def start():
    """Starts the threads, if this process has not yet, and returns the lock a kernel must hold, or None.

    Raises RuntimeError, one line, where Numba or the kernels would crash: too small a stack, a threading layer that
    this machine lacks, or a process forked from one that has run kernels.
    """
    if not _running:
        with _starting:
            _start()
    return _lock


def _start():
    global _running, _lock
    if _running:
        return
    if _forked:
        raise RuntimeError(
            "kernels ran before this process was forked, and their threads are not in the copy: start processes with "
            "multiprocessing's 'spawn' or 'forkserver' method, or before the first kernel runs"
        )
    if not 1 <= max_threads() <= MOST_THREADS:
        raise RuntimeError(f"NUMBA_NUM_THREADS={max_threads()}: choose from 1 to {MOST_THREADS}")
    try:
        numba.get_num_threads()  # starts them
    except (ValueError, ImportError) as error:
        raise RuntimeError(f"Numba's threads cannot start: {' '.join(str(error).split())}") from error
    _check_stack()
    _lock = threading.RLock() if numba.threading_layer() == "workqueue" else None
    _running = True


def _check_stack():
    stacks = {"threading.stack_size()": threading.stack_size() or STACK_BYTES}
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if limit != resource.RLIM_INFINITY:
        stacks["ulimit -s"] = limit
    if numba.threading_layer() == "omp":
        for name in ("OMP_STACKSIZE", "GOMP_STACKSIZE"):
            if size := re.fullmatch(r"\s*(\d+)\s*([bkmg]?)\s*", os.environ.get(name, "").lower()):
                stacks[name] = int(size[1]) * {"b": 1, "": 2**10, "k": 2**10, "m": 2**20, "g": 2**30}[size[2]]
    for name, size in stacks.items():
        if size < STACK_BYTES:
            raise RuntimeError(
                f"{name}: {size // 1024} kB of stack; the kernels' threads need {STACK_BYTES // 1024} kB each"
            )


def _after_fork():
    global _running, _forked, _lock, _starting
    _starting = threading.Lock()  # another thread may have held it
    try:
        layer = numba.threading_layer()  # that other users of Numba may have started
    except ValueError:
        return
    if layer == "omp" and sys.platform == "linux":  # GNU's, which kills the copy
        _running, _forked = False, True
    elif _lock is not None:
        _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def threads_in_use():
    """The number of threads kernels run on. Kernels may call it too, outside their prange loops."""
    return numba.get_num_threads()


# A symbol of Numba's runtime, which `start` loads. numba.get_num_threads would compile in an address, and Numba does
# not cache a kernel that contains one.
_get_num_threads = types.ExternalFunction("get_num_threads", types.intp())


@overload(threads_in_use)
def _threads_in_use():
    return lambda: _get_num_threads()
