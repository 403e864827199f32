"""How many threads the kernels use."""

import numba
from numba.core import types
from numba.extending import overload


def max_threads():
    """The most threads that Numba may start."""
    return numba.config.NUMBA_NUM_THREADS


def set_threads(n):
    """Makes all kernels run on `n` threads, 1 <= n <= max_threads()."""
    numba.set_num_threads(n)


def threads_in_use():
    """How many threads the kernels run on. Kernels may ask, too, from outside their prange loops."""
    return numba.get_num_threads()


# By its name in Numba's runtime, which `calls_gemm` loads. numba.get_num_threads has an address that is compiled in,
# and a kernel that calls it cannot be kept on the disk.
_get_num_threads = types.ExternalFunction("get_num_threads", types.intp())


@overload(threads_in_use)
def _threads_in_use():
    return lambda: _get_num_threads()
