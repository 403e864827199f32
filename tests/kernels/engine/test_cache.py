"""The kernels' cache: which folders and files count, and what happens where none does."""

import hashlib
import os
import pathlib
import pickle
import re
import resource
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest

from gpt2.kernels.adamw import sum_of_squares
from gpt2.kernels.engine import cache
from gpt2.kernels.engine.target import PACKAGE, code_key

ROOT = pathlib.Path(__file__).resolve().parents[3]
NAME = f"kernels-{code_key()}"
# Loads or compiles one kernel; prints its result and whether this process compiled anything.
PROGRAM = """
import numpy as np
from gpt2.kernels.adamw import sum_of_squares
from gpt2.kernels.engine.jit import code_identity, on_cache_miss

on_cache_miss(None)
print(sum_of_squares(np.arange(9, dtype=np.float32)), "uncached" in code_identity())
"""
LOADED, COMPILED = "204.0 False\n", "204.0 True\n"
UNTRUSTED = "another user owns it or can write to it"


class Executed:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="session")
def compiled():
    """The folder in which this process finds sum_of_squares."""
    sum_of_squares(np.ones(1, np.float32))
    return next(folder for folder in cache.folders.readable if list(folder.glob("adamw.sum_of_squares-*")))


@pytest.fixture
def folder(compiled, tmp_path):
    """A private copy of that folder, under a NUMBA_CACHE_DIR of its own."""
    folder = tmp_path / "cache" / NAME
    folder.mkdir(mode=0o700, parents=True)
    for file in compiled.glob("adamw.*"):
        shutil.copy2(file, folder)
    return folder


def run(root, program=PROGRAM, **arguments):
    """Returns what the program prints on standard output and standard error, with NUMBA_CACHE_DIR = root."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(root), "PYTHONPATH": str(ROOT)} | arguments.pop("env", {})
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, **arguments
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def entry(folder):
    (path,) = [path for path in folder.glob("adamw.sum_of_squares-*") if b"float32" in path.read_bytes()]
    return path


def test_stored_code_is_loaded(folder):
    assert run(folder.parent) == (LOADED, "")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "emptied", "a flipped bit", "the digest alone"])
def test_damaged_code_is_compiled_again_once(folder, damage):
    path, whole = entry(folder), entry(folder).read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:middle],
            "emptied": b"",
            "a flipped bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "the digest alone": whole[: cache.DIGEST_BYTES],
        }[damage]
    )
    out, err = run(folder.parent)
    assert out == COMPILED and err == f"{path}: damaged, so this kernel is compiled again\n"
    assert run(folder.parent) == (LOADED, "")


@pytest.mark.slow
def test_the_code_of_another_function_under_this_ones_name_is_not_used(folder):
    path, whole = entry(folder), entry(folder).read_bytes()
    stored = pickle.loads(whole[cache.DIGEST_BYTES :])
    other = pickle.dumps((("other", *stored[0][1:]), stored[1]))
    path.write_bytes(hashlib.sha256(other).digest() + other)
    assert run(folder.parent)[0] == COMPILED


def plant(folder, trap):
    """Replaces stored code with a whole file that makes the folder `trap` when it is unpickled."""
    contents = pickle.dumps(Executed(trap))
    path = entry(folder)
    path.write_bytes(hashlib.sha256(contents).digest() + contents)
    path.chmod(0o644)
    return path


def test_planted_code_would_be_executed(folder, tmp_path):
    """Else the next test could not fail."""
    plant(folder, tmp_path / "trap")
    with pytest.raises(AssertionError):
        run(folder.parent)
    assert (tmp_path / "trap").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("who", ["folder mode", "file mode", "folder link", "file link", "folder owner", "file owner"])
def test_what_others_could_have_written_is_not_executed(folder, tmp_path, who):
    path = plant(folder, tmp_path / "trap")
    what = folder if who.startswith("folder") else path
    if who.endswith("mode"):
        what.chmod(0o777)
    elif who.endswith("link"):
        what.rename(tmp_path / "elsewhere")
        what.symlink_to(tmp_path / "elsewhere")
    elif os.geteuid() != 0:
        pytest.skip("only root can give files away")
    else:
        shutil.chown(what, 65534)
    out, err = run(folder.parent)
    assert not (tmp_path / "trap").exists()
    assert out == COMPILED and (UNTRUSTED in err) == who.startswith("folder")


def test_new_folders_are_private_whatever_the_umask(tmp_path):
    program = """
import os, pathlib
from gpt2.kernels.engine import cache
os.umask(0)
cache.folders.choose()
cache.folders.store("a", b"b")
print(cache.folders.find("a"))
"""
    assert run(tmp_path / "a" / "b", program)[0] == "b'b'\n"
    made = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / NAME]
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o700] * 3
    assert stat.S_IMODE((made[-1] / "a").stat().st_mode) == 0o644
    assert [path.name for path in made[-1].iterdir()] == ["a"]


HOMELESS = """
import os.path
os.path.expanduser = lambda path: path  # as where there is neither $HOME nor an entry in the list of users
from gpt2.kernels.engine import cache
print(*cache.folders.readable, sep="\\n")
"""


@pytest.mark.parametrize("name", ["", "relative", "absolute"])
def test_the_users_cache_is_never_below_the_working_folder(tmp_path, name):
    chosen = str(tmp_path / "cache") if name == "absolute" else name
    out, _ = run("", HOMELESS, cwd=tmp_path, env={"XDG_CACHE_HOME": chosen})
    expected = [PACKAGE / "__pycache__" / NAME]
    expected += [tmp_path / "cache" / "gpt2-kernels" / NAME] if name == "absolute" else []
    assert out.splitlines() == [*map(str, expected)]


@pytest.mark.slow
def test_without_a_folder_code_goes_to_a_temporary_one(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    out, err = run(tmp_path / "file", env={"TMPDIR": str(tmp_path / "tmp")})
    assert out == COMPILED and re.fullmatch(
        r"compiled kernels cannot be stored: every run compiles them again, for a minute "
        rf"\({tmp_path}/file/{NAME}: .*\)\n",
        err,
    )
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.slow
def test_a_full_disk_stops_nothing(tmp_path):
    """A limit on the size of files stands for the full disk."""
    out, err = run(tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5)))
    assert out == COMPILED and err.count("\n") == 1 and f"{tmp_path / NAME}: File too large" in err
    assert not list((tmp_path / NAME).iterdir())


@pytest.mark.slow
def test_a_disk_that_fills_up_later_stops_nothing(tmp_path):
    program = f"""
from gpt2.kernels.engine import cache
cache.ROOM = 0
{PROGRAM}"""
    out, err = run(tmp_path, program, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**4, 10**4)))
    assert out == COMPILED and err == f"{tmp_path / NAME}: File too large: kernels are not stored\n"
    assert not list((tmp_path / NAME).iterdir())


def test_of_other_versions_only_the_latest_used_stay(tmp_path):
    for number in range(cache.KEPT + 3):
        (tmp_path / f"kernels-{number:016x}").mkdir()
        os.utime(tmp_path / f"kernels-{number:016x}", (10**9 + number,) * 2)
    (tmp_path / "kernels-of-mine").mkdir()
    run(tmp_path, "from gpt2.kernels.engine import cache; cache.folders.choose()")
    kept = {f"kernels-{number:016x}" for number in range(3, cache.KEPT + 3)}
    assert {path.name for path in tmp_path.iterdir()} == kept | {NAME, "kernels-of-mine"}


def test_a_folder_in_use_counts_as_used(folder):
    os.utime(folder, (10**9,) * 2)
    run(folder.parent)
    assert folder.stat().st_mtime > 10**9


def test_beside_the_sources_code_can_be_read_by_everyone(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "PACKAGE", tmp_path)
    cache._make_private(tmp_path / "__pycache__" / NAME)
    assert stat.S_IMODE((tmp_path / "__pycache__" / NAME).stat().st_mode) & 0o777 == 0o755
