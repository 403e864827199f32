"""The folder that a run writes to: made, locked, and cleared of an earlier run by renaming that."""

import contextlib
import errno
import fcntl
import itertools
import os
import pathlib
import stat
import sys

from gpt2.errors import UserError, from_os_error
from gpt2.formats.run import best_steps, require_no_folders, steps

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
NOT_A_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # on opening a link, a folder, a socket
ATTEMPTS = 100  # at a lock that others remove
LOST = ()  # instead of the identity of a lock

_held = {}  # folder, as its run names it -> identity of the lock that this process holds there


def locked_folder(path, stack):
    """Makes a run's folder and locks it until the ExitStack `stack` closes; returns its path.

    What it made goes again at the end if nothing was written there: the folder and its parents. Raises UserError if it
    cannot be written, another process is at work there, or a folder has the name of a run's file.
    """
    folder = pathlib.Path(path)
    stack.enter_context(_made(folder))
    stack.enter_context(locked(folder))
    require_no_folders(folder)
    return folder


def require_lock(path):
    """Raises UserError if a folder that this process locked, as `path`, is no longer there with that lock in it.

    To be called before anything is written there: by then it may be another run's.
    """
    folder = pathlib.Path(path)
    try:
        if _held.get(folder) in (None, _identity(folder / LOCK)):
            return
    except OSError as error:
        raise from_os_error(error, folder / LOCK) from error
    _held[folder] = LOST
    raise UserError(
        f"{folder}: this run's lock on it is gone: the folder or its {LOCK} was removed, renamed or replaced; "
        "nothing more is written there, and the steps since the last checkpoint are lost; continue from that with "
        "--resume and the name that the folder has now"
    )


def is_lost(folder):
    """Returns whether `require_lock` has raised its error for a folder."""
    return _held.get(folder) == LOST


def set_aside_earlier_run(path, stack, needed=()):
    """Renames a locked folder to NAME-1, or the next free number, if it holds checkpoints, and makes a new one.

    needed: paths that must stay what they are called. Raises UserError if one is in the folder, or on failure.
    """
    if not (steps(path) or best_steps(path)):
        return
    folder, number = path.resolve(), 1
    while os.path.lexists(aside := folder.with_name(f"{folder.name}-{number}")):
        number += 1
    try:
        if reason := _reason_to_stay(folder, needed):
            raise OSError(errno.EBUSY, reason)
        folder.rename(aside)
        folder.mkdir(mode=stat.S_IMODE(aside.stat().st_mode))  # no more open to others than it was
    except OSError as error:
        raise UserError(
            f"{path}: holds an earlier run and cannot be renamed ({error.strerror}); "
            "continue that run with --resume, or choose another --out-dir"
        ) from error
    print(f"{path} held an earlier run, which is now in {aside.name}", flush=True)
    stack.enter_context(locked(path))
    with contextlib.suppress(OSError):
        os.unlink(aside / LOCK)  # this run's until now: the earlier one may be resumed meanwhile


def _reason_to_stay(folder, needed):
    """Why a resolved folder must not be renamed, None if it may be."""
    with contextlib.suppress(FileNotFoundError):  # the working folder was removed
        if pathlib.Path.cwd().is_relative_to(folder):
            return "it is the working folder"
    for each in map(pathlib.Path, needed):
        if any(place.is_relative_to(folder) for place in (each.parent.resolve(), each.resolve())):
            return f"{each} is in it"
    return None


@contextlib.contextmanager
def _made(folder):
    """Makes a folder and its parents. At the end removes those that were not there before, if they are empty."""
    missing = []
    try:
        try:
            missing += itertools.takewhile(lambda each: not each.exists(), [folder, *folder.parents])
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, folder) from error
        yield
    finally:
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()


@contextlib.contextmanager
def locked(folder):
    """A context that only one process at a time can enter for a folder, and only once.

    It holds an flock on the file .lock, which contains the owner's process id and is removed at the end. The lock ends
    with the context or with the process, however that dies. Programs that the process starts do not inherit it; a copy
    of the process made by os.fork alone would hold it, too. Where the file system has no locks, it goes on without one,
    which standard error says. Raises UserError, naming the folder and the other process, if that holds the lock, or if
    the file cannot be written.
    """
    folder = pathlib.Path(folder)
    path = folder / LOCK
    descriptor, exclusive = _acquire(path)
    before = _held.get(folder)  # of a folder that has another name now, or is gone
    try:
        lock = _held[folder] = _identity(descriptor)
        yield
    finally:
        _held[folder] = before
        with contextlib.suppress(OSError):
            if exclusive and _identity(path) == lock:
                os.unlink(path)
        os.close(descriptor)


def _acquire(path):
    """Opens and locks a lock file. Returns (descriptor, whether the file system has locks). Raises UserError."""
    for _ in range(ATTEMPTS):
        descriptor = _open(path)
        try:
            exclusive = _lock(descriptor, path)
            if _identity(path) == _identity(descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor, exclusive
        except OSError as error:
            os.close(descriptor)
            raise from_os_error(error, path) from error
        except UserError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed it after it was opened here
    raise UserError(f"{path}: other processes keep replacing it; choose another folder")


def _open(path):
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in NOT_A_FILE:
            raise from_os_error(error, path) from error
    else:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
            return descriptor
        os.close(descriptor)
    raise UserError(f"{path}: not a lock file: a link, a folder or a device; remove it or choose another folder")


def _identity(file):
    """Returns what tells a path or descriptor from all other files, None for a path that is not there; or OSError."""
    try:
        found = os.fstat(file) if isinstance(file, int) else os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _lock(descriptor, path):
    """Locks a file. Returns whether its file system has locks. Raises UserError, OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 20).decode("ascii", "replace").strip()
        process = f"process {owner}" if owner.isdecimal() else "another process"
        raise UserError(
            f"{path.parent}: {process} is at work there; wait until it ends, stop it, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{path.parent}: its file system has no locks: let no other run write there", file=sys.stderr)
        return False
    return True
