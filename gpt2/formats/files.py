"""Reading and writing files: atomic replacement, fsync, checked headers and sizes, and where the data folder is."""

import collections
import concurrent.futures
import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import pathlib
import stat
import tempfile

import numpy as np

from gpt2.errors import UserError, from_os_error

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
BUFFERS = 16  # of a HashedFile
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def data_dir():
    """Returns the path of the folder for downloads, token files and converted weights; it need not exist yet.

    $GPT2_DATA_DIR if set; in a checkout, its data/ folder, whatever the current folder; for an installed package,
    gpt2/data in $XDG_CACHE_HOME or ~/.cache. Raises UserError if there is no home folder.
    """
    if chosen := os.environ.get("GPT2_DATA_DIR"):
        return pathlib.Path(chosen)
    root = pathlib.Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return root / "data"
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # the XDG specification has relative paths ignored
        try:
            cache = pathlib.Path.home() / ".cache"
        except RuntimeError as error:
            raise UserError("no home folder to keep data in; set GPT2_DATA_DIR to a folder") from error
    return pathlib.Path(cache, "gpt2", "data")


@contextlib.contextmanager
def atomic_write(path):
    """Yields a temporary binary file in the same folder, which replaces `path` once it is complete and fsynced.

    Raises UserError on an I/O error. The old file is then untouched, unless only the final fsync of the folder failed:
    then `path` is the new file, complete.
    """
    with atomic_write_all([path]) as (file,):
        yield file


@contextlib.contextmanager
def atomic_write_all(paths):
    """Yields a temporary binary file for each path, all in one folder, that replace files which belong together.

    Nothing is replaced before all are complete and fsynced. A process killed while they are leaves some of them
    missing, but never a new file beside an old one: those after the first are removed before the first is replaced.
    Of several processes, one at a time replaces its files. Raises UserError on an I/O error.
    """
    paths = [pathlib.Path(path) for path in paths]
    path, temporary = paths[0], []
    try:
        with contextlib.ExitStack() as stack:
            files = []
            for path in paths:
                new = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
                files.append(stack.enter_context(new))
                temporary.append(new.name)
            yield files
            for file in files:
                file.flush()
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                _fsync(file.fileno())
        with _locked(path.parent) if paths[1:] else contextlib.nullcontext():
            for path in paths[1:]:
                path.unlink(missing_ok=True)
                sync(path.parent)
            for path in paths:
                os.replace(temporary[0], path)
                del temporary[0]
            sync(path.parent)
    except OSError as error:
        raise from_os_error(error, path) from error
    finally:
        for name in temporary:
            # The original error is the one to report.
            with contextlib.suppress(OSError):
                os.unlink(name)


@contextlib.contextmanager
def atomic_folder(path, replace=False):
    """Yields a new empty folder next to `path`, which takes that name once its files are fsynced.

    replace: whether a folder at `path` is replaced: in one step where the system can, else a process killed in between
    leaves what `interrupted_replacement` finds. Raises UserError on an I/O error; the old folder is then untouched.
    """
    path = pathlib.Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as hidden:
            new = pathlib.Path(hidden, "new")
            new.mkdir()
            yield new
            for entry in [*new.iterdir(), new]:
                sync(entry)
            if replace and path.exists():
                _replace_folder(new, path)
            else:
                os.rename(new, path)
            sync(path.parent)
    except OSError as error:
        raise from_os_error(error, path) from error


def interrupted_replacement(path):
    """Returns the path of the folder that a killed process was replacing by `atomic_folder`, None if there is none."""
    path = pathlib.Path(path)
    found = [] if path.exists() else path.parent.glob(f".{glob.escape(path.name)}.*/old")
    return next(iter(found), None)


def _replace_folder(new, path):
    """Gives the folder `new` the name of the folder `path`, which stays beside `new`. Raises OSError."""
    try:
        return _exchange(new, path)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
    old = new.with_name("old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise


def _exchange(one, other):
    """Exchanges two paths in one step. Raises OSError, with an errno of NO_EXCHANGE where that is not possible."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class HashedFile:
    """Wraps a binary file and computes the SHA-256 of what is written, in a background thread if one can be started.

    Buffers passed to write() are not copied: they must not change before the next digest() or the end of the `with`.
    At most BUFFERS of them wait to be hashed. Attribute: `size`, the bytes written.
    """

    def __init__(self, file):
        self.size = 0
        self._file = file
        self._hash = hashlib.sha256()
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._threaded, self._pending = True, collections.deque()

    def write(self, data):
        """Writes a contiguous buffer."""
        if self._threaded:
            try:
                self._pending.append(self._thread.submit(self._hash.update, data))
            except RuntimeError:  # the process may have no more threads
                self._threaded = False
        if not self._threaded:
            self._hash.update(data)
        elif len(self._pending) > BUFFERS:
            self._pending.popleft().result()
        self.size += self._file.write(data)

    def digest(self):
        """Returns the SHA-256 of everything written so far, 32 bytes."""
        if self._pending:
            self._pending[-1].result()
        return self._hash.digest()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._thread.shutdown(cancel_futures=True)


def read_header(file, path, expected):
    """Reads the header of an llm.c file: 256 int32.

    file: binary, at its start. expected: the kind of file, for the error message ("a model file").
    Returns int32 (256,). Raises UserError if the file is shorter than a header.
    """
    data = file.read(HEADER_BYTES)
    if len(data) < HEADER_BYTES:
        raise UserError(f"{path}: {len(data)} bytes, but {expected} starts with a {HEADER_BYTES}-byte header")
    return np.frombuffer(data, dtype="<i4")


def write_header(file, values):
    """Writes `values`, zero-padded to 256 int32."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[: len(values)] = values
    file.write(header.tobytes())


def check_size(file, path, expected_bytes, reason):
    """Raises UserError unless the open file has exactly `expected_bytes`; `reason` says where that size comes from."""
    size = os.fstat(file.fileno()).st_size
    if size != expected_bytes:
        kind = "truncated" if size < expected_bytes else "too long"
        raise UserError(f"{path}: {kind}: {size:,} bytes, expected {expected_bytes:,} ({reason})")


def read_json(path, limit, what):
    """Returns the JSON object in a file of at most `limit` bytes, a dict; what: it is, for the error message.

    Raises UserError.
    """
    with open_to_read(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise UserError(f"{path}: more than {limit:,} bytes, expected the few of {what}")
        try:
            fields = json.load(file)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected a JSON object, {what}")
    return fields


def write_json(path, fields):
    """Writes a JSON object, formatted as by Hugging Face's libraries. Raises OSError."""
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def make_folder(folder):
    """Creates the folder and its parents if they are missing. Raises UserError on an I/O error."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder) from error


@contextlib.contextmanager
def open_to_read(path, pipe=False):
    """Yields a file opened for binary reading. Raises UserError if it is missing, unreadable, or not a regular file.

    An OSError in the `with`, where only this file should be read, becomes a UserError that names it.
    pipe: whether it may also be a pipe or a device.
    """

    def opened(path, flags):
        descriptor = os.open(path, flags if pipe else flags | os.O_NONBLOCK)  # opening a pipe waits for its writer
        if not (pipe or stat.S_ISREG(os.fstat(descriptor).st_mode) or stat.S_ISDIR(os.fstat(descriptor).st_mode)):
            os.close(descriptor)
            raise UserError(f"{path}: not a regular file; name a file, not a pipe or a device")
        return descriptor

    try:
        with open(path, "rb", opener=opened) as file:
            yield file
    except OSError as error:
        raise from_os_error(error, path) from error


def sha256(path):
    """Returns the file's SHA-256, 64 hexadecimal digits. Raises UserError if it is missing or unreadable."""
    with open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(folder):
    """Holds the folder's lock, waiting for another process that does; goes without where the system has no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path):
    """fsyncs a file or a folder. Raises OSError."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            _fsync(descriptor)
        finally:
            os.close(descriptor)


def _fsync(descriptor):
    """fsyncs a descriptor, unless its file system has no fsync for it, as some FUSE and CIFS mounts."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
