"""The folder that a run writes to: made, locked, and cleared of an earlier run by renaming that."""

import contextlib
import errno
import fcntl
import os
import pathlib
import sys

from gpt2.errors import UserError, from_os_error
from gpt2.formats.run import steps

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def locked_folder(path, stack):
    """Makes a run's folder and locks it until the ExitStack `stack` closes; returns its path.

    Raises UserError if it cannot be written, or another process is at work there.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder) from error
    stack.enter_context(locked(folder))
    return folder


def set_aside_earlier_run(path, stack):
    """Renames a locked folder to NAME-1, or the next free number, if it holds checkpoints, and makes a new one.

    Raises UserError if that is not possible.
    """
    if not steps(path):
        return
    folder, number = path.resolve(), 1
    while os.path.lexists(aside := folder.with_name(f"{folder.name}-{number}")):
        number += 1
    try:
        if pathlib.Path.cwd().is_relative_to(folder):
            raise OSError(errno.EBUSY, "it is the working folder")
        folder.rename(aside)
    except OSError as error:
        raise UserError(
            f"{path}: holds an earlier run and cannot be renamed ({error.strerror}); "
            "continue that run with --resume, or choose another --out-dir"
        ) from error
    print(f"{path} held an earlier run, which is now in {aside.name}", flush=True)
    locked_folder(folder, stack)


@contextlib.contextmanager
def locked(folder):
    """A context that only one process at a time can enter for a folder, and only once.

    It holds an flock on the file .lock, which stays there and contains the owner's process id. The lock ends with the
    context or with the process, however that dies. Programs that the process starts do not inherit it; a copy of the
    process made by os.fork alone would hold it, too. Where the file system has no locks, it goes on without one, which
    standard error says. Raises UserError, naming the folder and the other process, if that holds the lock, or if the
    file cannot be written.
    """
    path = pathlib.Path(folder) / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise from_os_error(error, path) from error
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor, path):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BlockingIOError as error:
        owner = os.read(descriptor, 20).decode("ascii", "replace").strip()
        process = f"process {owner}" if owner.isdecimal() else "another process"
        raise UserError(
            f"{path.parent}: {process} is at work there; wait until it ends, stop it, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise from_os_error(error, path) from error
        print(f"{path.parent}: its file system has no locks: let no other run write there", file=sys.stderr)
