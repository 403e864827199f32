"""How much memory there is, asked before it is taken."""

import pathlib

import numpy as np
import psutil

from gpt2.errors import UserError

# Where Linux says which control groups a process is in, and shows them: version 2, or version 1's for memory.
MEMBERSHIP, GROUPS = pathlib.Path("/proc/self/cgroup"), pathlib.Path("/sys/fs/cgroup")
LIMIT_AND_USAGE = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
_CACHE_LINE = 64


def available_bytes():
    """Bytes that this process can still have: what the machine has free, or what its container, or any other group
    that it is in, leaves of its limit.
    """
    available = psutil.virtual_memory().available
    for folder in _groups():
        for limit, usage in LIMIT_AND_USAGE:
            try:
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                # Files that were read and can be forgotten count as used, but make room for who asks. In version 1
                # "total" includes the groups below, as the usage does.
                files = sum(
                    int(statistics.get(f"total_{kind}", statistics[kind])) for kind in ("inactive_file", "active_file")
                )
                used = int((folder / usage).read_text()) - files
                available = min(available, int((folder / limit).read_text()) - used)
            except (OSError, ValueError, KeyError):  # not of this version, or its limit is "max"
                continue
    return max(0, available)


def _groups():
    """Yields the folders of the control groups that can limit this process's memory: its own, and those around it."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = GROUPS / "memory" if controllers else GROUPS
        # In a container the path may be the host's: then only the root is there, and is the container's own.
        group = root / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def readable(count):
    """A number of bytes for people: "2.13 GB", or "5.40 MB" where there are less than 100 of those."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"


def require(needed_bytes, what):
    """Raises UserError, saying how much `what` needs and how much there is, if there is too little."""
    available = available_bytes()
    if needed_bytes > available:
        raise UserError(
            f"not enough memory: {what} needs {readable(needed_bytes)}, {readable(available)} are available; "
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
