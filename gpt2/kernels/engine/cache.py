"""The on-disk cache of the kernels' machine code: folders that can be trusted, and files that are verified.

A file holds one compiled function: the SHA-256 of what follows, then a pickle of the function's key and its code.
Unpickling executes what it reads, so a file and its folder must belong to the user or root, and nobody else may be able
to write to them.
"""

import atexit
import contextlib
import errno
import hashlib
import os
import pathlib
import pickle
import re
import shutil
import stat
import sys
import tempfile

import numba
from numba.core import caching
from numba.core.serialize import dumps

from gpt2.kernels.engine import interrupts
from gpt2.kernels.engine.target import PACKAGE, code_key

DIGEST_BYTES = 32
# How many folders of other versions or CPUs are kept: those used last.
KEPT = 7
# Bytes a folder must have room for: more than the 4 MB that all kernels take.
ROOM = 2**23
_FOLDER = re.compile(r"kernels-[0-9a-f]{16}")


class Folders:
    """Where this process reads compiled kernels from, and where it stores them."""

    def __init__(self):
        roots = [numba.config.CACHE_DIR] if numba.config.CACHE_DIR else [PACKAGE / "__pycache__", *_user_cache()]
        self._lasting = [pathlib.Path(root).absolute() / f"kernels-{code_key()}" for root in roots]
        self.readable = list(self._lasting)
        self.writable = None
        self.chosen = False
        self._used = False

    def write_to(self, folder):
        """Stores kernels in a folder, a path, and reads from there first."""
        self.writable, self.chosen = folder, True
        self.readable = [folder, *(other for other in self._lasting if other != folder)]

    def choose(self):
        """Chooses the folder to store kernels in, once: the first with room for them, or a temporary one.

        Warns if it is a temporary one, or if there is none.
        """
        self.chosen, problems = True, []
        for folder in self._lasting:
            try:
                _make_private(folder)
                _check_room(folder)
            except OSError as error:
                problems.append(f"{folder}: {error.strerror}")
            else:
                self.write_to(folder)
                _remove_old(folder)
                return
        print(
            f"compiled kernels cannot be stored: every run compiles them again, for a minute ({'; '.join(problems)})",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(OSError):
            folder = pathlib.Path(tempfile.mkdtemp(prefix="gpt2-kernels-"))
            atexit.register(_remove_own, folder, os.getpid())
            _check_room(folder)
            self.write_to(folder)

    def find(self, name):
        """Returns the contents of a file, or None if no folder has it whole. Removes damaged ones, with a warning."""
        for folder in self.readable:
            path = folder / name
            try:
                contents = _read_trusted(folder, path)
            except OSError:
                continue
            if hashlib.sha256(contents[DIGEST_BYTES:]).digest() == contents[:DIGEST_BYTES]:
                self._note_use(folder)
                return contents[DIGEST_BYTES:]
            print(f"{path}: damaged, so this kernel is compiled again", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def store(self, name, contents):
        """Writes a file atomically. Raises OSError."""
        descriptor, temporary = tempfile.mkstemp(dir=self.writable)
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(contents).digest() + contents)
                file.flush()
                os.fsync(descriptor)
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.writable / name)
        except BaseException:
            os.unlink(temporary)
            raise

    def _note_use(self, folder):
        if not self._used:
            self._used = True
            with contextlib.suppress(OSError):
                os.utime(folder)


def _user_cache():
    """Returns a list of the user's own folder for the kernels: empty if there is no home folder."""
    folders = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")
    # The XDG specification has relative paths ignored; without a home folder, "~" stays as it is.
    return [os.path.join(folder, "gpt2-kernels") for folder in folders if os.path.isabs(folder)][:1]


def _make_private(folder):
    """Makes a folder and its missing parents, writable by the user alone.

    Raises OSError if that is not possible, or the folder is there and others can write to it.
    """
    for missing in [*reversed(folder.parents), folder]:
        if not missing.is_dir():
            # Beside the package's sources, whoever can read those may read the compiled code.
            missing.mkdir(mode=0o755 if PACKAGE in missing.parents else 0o700, exist_ok=True)
    if not _is_trusted(folder.lstat(), stat.S_ISDIR):
        raise PermissionError(errno.EPERM, "another user owns it or can write to it")


def _check_room(folder):
    """Raises OSError unless the kernels can be stored in the folder."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(ROOM))
        file.flush()


def _is_trusted(status, is_kind):
    return is_kind(status.st_mode) and status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022


def _read_trusted(folder, path):
    """Returns a file's contents. Raises OSError if there is none, or others could have written it."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if _is_trusted(folder.lstat(), stat.S_ISDIR) and _is_trusted(os.fstat(file.fileno()), stat.S_ISREG):
            return file.read()
    raise PermissionError(errno.EPERM, "another user owns it or can write to it")


def _remove_old(folder):
    """Removes the folders of other versions or CPUs beside a folder, except those used last."""
    with contextlib.suppress(OSError):
        others = [each for each in folder.parent.iterdir() if _FOLDER.fullmatch(each.name) and each != folder]
        for other in sorted(others, key=lambda path: path.lstat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(other, ignore_errors=True)


def _remove_own(folder, process):
    """Removes a folder, but not in forked copies of the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


folders = None if numba.config.DISABLE_JIT else Folders()


class _Locator(caching._SourceFileBackedLocatorMixin, caching._CacheLocator):
    """Gives Numba the hash of a function's source file. The folders are chosen by `Folders`."""

    def __init__(self, function, file):
        self._py_file, self._lineno = file, function.__code__.co_firstlineno

    def get_cache_path(self):
        return ""

    def ensure_cache_path(self):
        pass


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Files:
    """What FunctionCache expects of its files."""

    def __init__(self, base, stamp):
        self._base, self._stamp = base, stamp

    def load(self, key):
        key, name = self._identify(key)
        contents = folders.find(name)
        if contents is None:
            return None
        stored_key, code = pickle.loads(contents)
        return code if stored_key == key else None

    def save(self, key, code):
        key, name = self._identify(key)
        folders.store(name, dumps((key, code)))

    def _identify(self, key):
        key = (self._stamp, *key)
        return key, f"{self._base}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"


class KernelCache(caching.FunctionCache):
    """A function's cache, which has missing code compiled in another process first.

    compile_elsewhere: see `jit.on_cache_miss`. must_store: raise OSError if code cannot be stored, rather than going on
    without. compiled_here: whether this process has compiled any code.
    """

    _impl_class = _CacheImpl
    compile_elsewhere = None
    must_store = False
    compiled_here = False

    def __init__(self, function):
        super().__init__(function)
        self._cache_file = _Files(self._impl.filename_base, self._impl.locator.get_source_stamp())

    def load_overload(self, sig, target_context):
        code = super().load_overload(sig, target_context)
        if code is None and not folders.chosen:
            folders.choose()
            code = super().load_overload(sig, target_context)
        if code is None and folders.writable and KernelCache.compile_elsewhere:
            with interrupts.allowed():
                KernelCache.compile_elsewhere(folders.writable)
            KernelCache.compile_elsewhere = None  # only now: after Ctrl-C, the next call tries again
            code = super().load_overload(sig, target_context)
        return code

    def save_overload(self, sig, data):
        KernelCache.compiled_here = True
        if folders.writable:
            try:
                super().save_overload(sig, data)
            except OSError as error:
                if KernelCache.must_store:
                    raise
                print(f"{folders.writable}: {error.strerror}: kernels are not stored", file=sys.stderr, flush=True)
                folders.writable = None
