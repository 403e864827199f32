"""One run in a folder at a time."""

import contextlib
import errno
import fcntl
import os
import pathlib
import sys

from gpt2.errors import UserError, from_os_error

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def locked(folder):
    """A context in which no other process, nor this one once more, can enter the same folder's.

    The lock is the system's, on the file .lock, which stays there and holds the owner's process id: it ends with the
    context, or with the process, in whatever way that dies. Programs that the process starts don't inherit it; a copy
    of the process made by os.fork alone would hold it too, as long as that lives. Where the file system has no locks,
    it is done without one, which standard error tells.
    Raises UserError, naming the folder and the other process, if that is in, or if the file cannot be written.
    """
    path = pathlib.Path(folder) / NAME
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
            f"{path.parent}: {process} is at work there; wait for its end, stop it, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise from_os_error(error, path) from error
        print(f"{path.parent}: its file system has no locks: let no other run write there", file=sys.stderr)
