"""What needs root or the kernel's help: small file systems, control groups, namespaces, a process without privileges.

Each is tried once, at import: the mark `needs(...)` skips a test where it does not work, and says why. A prefix is a
list of words to put before a command's own.
"""

import contextlib
import os
import pathlib
import subprocess
import tempfile

import pytest

NOBODY = 65534
# Root's user id without its privileges: to the package, one user among others, who may still start root's Python.
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]
# The command is process 1 of a PID namespace; killing unshare kills it.
AS_PID_1 = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
GROUPS = pathlib.Path("/sys/fs/cgroup")


def run(*command):
    """Runs a command of the system. Raises OSError or CalledProcessError."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def tmpfs(path, size):
    """A context in which an empty file system of at most so many bytes is mounted on the folder, which is made."""
    path.mkdir(exist_ok=True)
    with _mounted(path, "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs"):
        yield path


@contextlib.contextmanager
def read_only(path):
    """A context in which a folder that exists is on a read-only file system, whoever writes there."""
    with _mounted(path, "--bind", path):
        run("mount", "-o", "remount,bind,ro", path)
        yield path


@contextlib.contextmanager
def _mounted(path, *arguments):
    run("mount", *arguments, path)
    try:
        yield
    finally:
        run("umount", "--lazy", path)  # at once, even if a killed run's child is still at work there


def fill(folder):
    """Fills a folder's file system to the last byte. Returns the path of the file to delete, to make space again."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**16, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return filler


@contextlib.contextmanager
def memory_group(limit):
    """A context with the prefix that starts a command in a control group of so many bytes, and no swap."""
    if (GROUPS / "memory").is_dir():  # version 1
        root, memory, swap, swapped = GROUPS / "memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", limit
    else:
        root, memory, swap, swapped = GROUPS, "memory.max", "memory.swap.max", 0
    group = pathlib.Path(tempfile.mkdtemp(dir=root, prefix="gpt2-test-"))
    try:
        (group / memory).write_text(str(limit))
        if (group / swap).exists():  # else the kernel does not count it
            (group / swap).write_text(str(swapped))
        yield ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh"]
    finally:
        group.rmdir()


def limited(**limits):
    """The prefix that starts a command under limits, by prlimit's names: fsize, as, stack, nproc, cpu."""
    return ["prlimit", *(f"--{name}={limit}" for name, limit in limits.items()), "--"]


def _missing(context):
    """Why a context, or a command started in it, does not work here, in a line; None if it does."""
    try:
        with context as prefix:
            run(*(prefix if isinstance(prefix, list) else ()), "true")
        return None
    except subprocess.CalledProcessError as error:
        return (error.stderr.strip().splitlines() or [str(error)])[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


@contextlib.contextmanager
def _owned_by_nobody(path):
    path.touch()
    os.chown(path, NOBODY, NOBODY)
    yield UNPRIVILEGED


def _try_all():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        return {
            "a tmpfs": _missing(tmpfs(folder / "disk", "1m")),
            "a read-only mount": _missing(read_only(folder)),
            "a memory control group": _missing(memory_group(10**8)),
            "another user": _missing(_owned_by_nobody(folder / "theirs")),
            "a PID namespace": _missing(contextlib.nullcontext(AS_PID_1)),
            "prlimit": _missing(contextlib.nullcontext(limited(fsize=1))),
        }


MISSING = _try_all()


def needs(*names):
    """The mark that skips a test, with the reason, where one of these is missing."""
    reasons = [f"needs {name}: {MISSING[name]}" for name in names if MISSING[name]]
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))
