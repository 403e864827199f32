"""How much memory there is, asked before it is taken."""

import pathlib

import numpy as np
import psutil

from gpt2.errors import UserError

# A container's limit, what it uses of it and what that is made of: Linux's control groups, version 2 and version 1.
CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


_CACHE_LINE = 64


def available_bytes():
    """Bytes that this process can still have: what the machine has free, or what its container leaves of its limit."""
    available = psutil.virtual_memory().available
    for limit, usage, stat in CONTROL_GROUPS:
        try:
            statistics = dict(line.split() for line in pathlib.Path(stat).read_text().splitlines())
            # Files that were read and can be forgotten count as used, but make room for who asks.
            files = int(statistics["inactive_file"]) + int(statistics["active_file"])
            used = int(pathlib.Path(usage).read_text()) - files
            available = min(available, int(pathlib.Path(limit).read_text()) - used)
        except (OSError, ValueError, KeyError):  # no such control group, or its limit is "max"
            continue
    return max(0, available)


def require(needed_bytes, what):
    """Raises UserError, saying how much `what` needs and how much there is, if there is too little."""
    available = available_bytes()
    if needed_bytes > available:
        raise UserError(
            f"not enough memory: {what} needs {needed_bytes / 1e9:.3g} GB, {available / 1e9:.3g} GB are available; "
            "choose a smaller model, batch or sequence"
        )


def allocate(size, dtype, what):
    """Returns a flat array of `size` zeros, for which there is memory. Raises UserError otherwise.

    It begins where a line of the cache does, so that the vectors of a row whose size is a multiple of them lie in one
    line each. NumPy asks the system for huge pages.
    """
    itemsize = np.dtype(dtype).itemsize
    require(size * itemsize, what)
    try:
        memory = np.zeros(size + _CACHE_LINE // itemsize, dtype)
        first = -memory.ctypes.data % _CACHE_LINE // itemsize
        return memory[first : first + size]
    except (MemoryError, ValueError) as error:
        raise UserError(f"not enough memory: {what}, {size:,} numbers, were refused by the system") from error
