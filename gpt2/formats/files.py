"""Reading and writing files: atomic replacement, fsync, checked headers and sizes, and where the data folder is."""

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
            # The original error is the one to report.
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextlib.contextmanager
def atomic_folder(path, replace=False):
    """Yields a new empty folder next to `path`, which takes that name once its files are fsynced.

    replace: whether a folder at `path` is replaced. Raises UserError on an I/O error; the old folder is then untouched.
    """
    path = pathlib.Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as hidden:
            new, old = pathlib.Path(hidden, "new"), pathlib.Path(hidden, "old")
            new.mkdir()
            yield new
            for entry in [*new.iterdir(), new]:
                sync(entry)
            try:
                if replace and path.exists():
                    os.rename(path, old)
                os.rename(new, path)
            except BaseException:
                if old.exists():
                    os.rename(old, path)
                raise
            sync(path.parent)
    except OSError as error:
        raise from_os_error(error, path) from error


class HashedFile:
    """Wraps a binary file and computes the SHA-256 of what is written, in a background thread.

    Buffers passed to write() are not copied: they must not change before the next digest() or the end of the `with`.
    Attribute: `size`, the bytes written.
    """

    def __init__(self, file):
        self.size = 0
        self._file = file
        self._hash = hashlib.sha256()
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._last = None

    def write(self, data):
        """Writes a contiguous buffer."""
        self._last = self._thread.submit(self._hash.update, data)
        self.size += self._file.write(data)

    def digest(self):
        """Returns the SHA-256 of everything written so far, 32 bytes."""
        if self._last is not None:
            self._last.result()
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


def make_folder(folder):
    """Creates the folder and its parents if they are missing. Raises UserError on an I/O error."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder) from error


def open_to_read(path):
    """Opens a file for binary reading. Raises UserError if it is missing or unreadable."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise from_os_error(error, path) from error


def sha256(path):
    """Returns the file's SHA-256, 64 hexadecimal digits. Raises UserError if it is missing or unreadable."""
    with open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path):
    """fsyncs a file or a folder. Raises OSError."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
