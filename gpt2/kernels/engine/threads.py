"""The number of threads the kernels run on."""

import numba
from numba.core import types
from numba.extending import overload


def max_threads():
    """The largest number of threads that can be set."""
    return numba.config.NUMBA_NUM_THREADS


def set_threads(n):
    """Sets the number of threads of all kernels, 1 <= n <= max_threads()."""
    numba.set_num_threads(n)


def threads_in_use():
    """The number of threads kernels run on. Kernels may call it too, outside their prange loops."""
    return numba.get_num_threads()


# A symbol of Numba's runtime, which `calls_gemm` loads. numba.get_num_threads would compile in an address, and Numba
# does not cache a kernel that contains one.
_get_num_threads = types.ExternalFunction("get_num_threads", types.intp())


@overload(threads_in_use)
def _threads_in_use():
    return lambda: _get_num_threads()
