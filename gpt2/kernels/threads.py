"""How many threads there are, and how many the kernels use."""

import math
import os
import pathlib

import numba
from numba.core import types
from numba.extending import overload

from gpt2.errors import UserError


def available_threads():
    """CPUs that this process may use: the smaller of its affinity and its container's quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _quota(), numba.config.NUMBA_NUM_THREADS))


def set_threads(n):
    """Makes all kernels run on `n` threads. Raises UserError unless 1 <= n <= the threads that Numba may start."""
    if not 1 <= n <= numba.config.NUMBA_NUM_THREADS:
        raise UserError(f"{n} threads asked for: choose from 1 to {numba.config.NUMBA_NUM_THREADS}")
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


def _quota():
    """CPUs that the control groups (version 2, else 1) grant, infinity where none limits them."""
    try:
        groups = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in groups:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            root, read = pathlib.Path("/sys/fs/cgroup"), _quota_v2
        elif "cpu" in controllers.split(","):
            root, read = pathlib.Path("/sys/fs/cgroup/cpu"), _quota_v1
        else:
            continue
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            quota = min(quota, read(folder))
            if folder == root:
                break
    return quota


def _quota_v2(folder):
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return math.inf if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError):
        return math.inf


def _quota_v1(folder):
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return math.inf if limit <= 0 else max(1, limit // int((folder / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return math.inf
