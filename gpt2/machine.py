"""What this process may use of the machine: CPUs and memory, by its affinity and its control groups.

The functions import the kernels themselves: commands that only prepare or convert files start without Numba.
"""

import math
import os
import pathlib
import resource

import psutil

from gpt2.errors import UserError

FLOAT32, BF16, AUTO = PRECISIONS = ("float32", "bf16", "auto")
# Which control groups a process is in, and where Linux shows them (version 1 has a hierarchy for each controller).
MEMBERSHIP, GROUPS = pathlib.Path("/proc/self/cgroup"), pathlib.Path("/sys/fs/cgroup")


def available_threads():
    """CPUs that this process may use: the smallest of its affinity, its container's quota and Numba's limit."""
    from gpt2.kernels.engine import threads

    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(map(_cpu_quota, _control_groups("cpu")), default=math.inf)
    return max(1, min(affinity, quota, threads.max_threads()))


def set_threads(n=None):
    """Makes the kernels that this Python thread calls run on `n` threads, None for available_threads().

    Raises UserError unless 1 <= n <= the threads that Numba may start, and where those cannot start.
    """
    from gpt2.kernels.engine import threads

    n = available_threads() if n is None else n
    if not 1 <= n <= threads.max_threads():
        raise UserError(f"{n} threads asked for: choose from 1 to {threads.max_threads()}")
    try:
        threads.set_threads(n)
    except RuntimeError as error:
        raise UserError(str(error)) from error


def chosen_precision(asked):
    """Returns FLOAT32 or BF16 for one of PRECISIONS. Raises UserError for BF16 where the CPU is not made for it."""
    from gpt2.kernels.engine import target

    if (form := os.environ.get(target.BF16_VARIABLE)) not in (None, "", target.PORTABLE):
        raise UserError(f"{target.BF16_VARIABLE}={form}: expected {target.PORTABLE}, or no such variable")
    offered = target.bf16_form() is not None
    if asked == AUTO:
        return BF16 if offered else FLOAT32
    if asked == BF16 and not offered:
        raise UserError(
            "--precision bf16: this CPU has no AVX512_BF16; train in float32, or set "
            f"{target.BF16_VARIABLE}={target.PORTABLE} for the same numbers, slowly"
        )
    return asked


def available_bytes():
    """Bytes of memory that this process can still take: what the machine has free, within its limits."""
    available = _answer(psutil.virtual_memory).available
    return max(0, int(min([available, _address_space_left(), *map(_memory_left, _control_groups("memory"))])))


def held_bytes():
    """Bytes of memory that this process holds: its resident set."""
    return _answer(_memory_info).rss


def _memory_info():
    return psutil.Process().memory_info()


def _answer(question):
    """Calls a function of psutil's. Raises UserError if the system does not answer."""
    try:
        return question()
    except (psutil.Error, OSError) as error:
        raise UserError(f"the system does not tell how much memory there is ({error}); mount /proc") from error


def _address_space_left():
    """Bytes that the process's limit on its address space leaves (`ulimit -v`); infinity if there is none."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if limit == resource.RLIM_INFINITY else limit - _answer(_memory_info).vms


def _control_groups(controller):
    """Yields the folders of the control groups that limit this process, its own first, then those around it."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = GROUPS / controller if controllers else GROUPS
        # In a container the path may be the host's: then only the root is there, and is the container's own.
        group = root / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _cpu_quota(folder):
    """CPUs that a group grants, in either version's form; infinity where it sets no limit."""
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return math.inf if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError):
        pass
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return math.inf if limit <= 0 else max(1, limit // int((folder / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return math.inf


def _memory_left(folder):
    """Bytes that a group's limit leaves, in either version's form; infinity where it sets none."""
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            # The page cache counts as used, but is reclaimable. In version 1 "total" includes the groups below, as
            # the usage does.
            page_cache = sum(
                int(statistics.get(f"total_{kind}", statistics[kind])) for kind in ("inactive_file", "active_file")
            )
            used = int((folder / usage).read_text()) - page_cache
            return int((folder / limit).read_text()) - used
        except (OSError, ValueError, KeyError):  # not of this version, or its limit is "max"
            continue
    return math.inf
