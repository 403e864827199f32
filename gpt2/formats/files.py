"""Files that are either whole or not there: checked reading, and writing beside the target before renaming."""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import tempfile

import numpy as np

from gpt2.errors import UserError, from_os_error

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS


@contextlib.contextmanager
def atomic_write(path):
    """Yields a binary file beside `path` that takes its name once it is complete and on the disk.

    Raises UserError when the folder or the disk refuses. Whatever stood at `path` before is then untouched, unless all
    that failed was to put the new name on the disk: then the new file is there, complete.
    """
    path = pathlib.Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        sync(path.parent)
    except OSError as error:
        raise from_os_error(error, path) from error
    finally:
        if temporary is not None:
            # What went wrong before is what the user is told.
            with contextlib.suppress(OSError):
                os.unlink(temporary)


class HashedFile:
    """Writes to a binary file and takes the SHA-256 of what it writes, meanwhile, in a thread of its own.

    What is given to write() is not copied: it must not change before the next digest() or the end of the `with`.
    Attribute: `size`, the bytes written.
    """

    def __init__(self, file):
        self.size = 0
        self._file = file
        self._hash = hashlib.sha256()
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._last = None

    def write(self, data):
        """Writes an object with a contiguous buffer."""
        self._last = self._thread.submit(self._hash.update, data)
        self.size += self._file.write(data)

    def digest(self):
        """The SHA-256 of everything written so far, 32 bytes."""
        if self._last is not None:
            self._last.result()
        return self._hash.digest()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._thread.shutdown(cancel_futures=True)


def read_header(file, path, expected):
    """Reads the 256 int32 that start an llm.c file.

    file: open for reading in binary, at its start. expected: what the file should be, for the message ("a model file").
    Returns int32 (256,). Raises UserError if the file is shorter than a header.
    """
    data = file.read(HEADER_BYTES)
    if len(data) < HEADER_BYTES:
        raise UserError(f"{path}: {len(data)} bytes, but {expected} starts with a header of {HEADER_BYTES} bytes")
    return np.frombuffer(data, dtype="<i4")


def write_header(file, values):
    """Writes `values`, padded with zeros to 256 int32."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[: len(values)] = values
    file.write(header.tobytes())


def check_size(file, path, expected_bytes, reason):
    """Raises UserError unless the open file has exactly `expected_bytes`; `reason` says where that number is from."""
    size = os.fstat(file.fileno()).st_size
    if size != expected_bytes:
        kind = "truncated" if size < expected_bytes else "too long"
        raise UserError(f"{path}: {kind}: {size:,} bytes, expected {expected_bytes:,} ({reason})")


def make_folder(folder):
    """Makes the folder and its parents where they are missing. Raises UserError where that is refused."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder) from error


def open_to_read(path):
    """Opens a file for reading in binary. Raises UserError naming the path if there is none or it cannot be read."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise from_os_error(error, path) from error


def sha256(path):
    """The file's SHA-256 as 64 hexadecimal digits."""
    with open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path):
    """Has what was written to a file, or which names a folder holds, put on the disk. Raises OSError."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
