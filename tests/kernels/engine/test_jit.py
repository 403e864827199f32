"""The kernels' own cache and code generation, and that other Numba code in the process does not notice them."""

import os
import pathlib
import re
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba import prange
from numba.core.caching import NullCache

from gpt2.kernels.engine import jit, target

ROOT = pathlib.Path(__file__).resolve().parents[3]
IMPORTER = """
import numba

def settings():
    return numba.config.CACHE_DIR, numba.config.CPU_FEATURES, numba.config.CPU_NAME

before = settings()
import gpt2
import users

users.double(2)
assert settings() == before, settings()
"""
HOOK = """
import sys
import numpy as np
from gpt2.kernels.adamw import sum_of_squares
from gpt2.kernels.engine import jit

jit.on_cache_miss(lambda folder: print("hook"))
print(sum_of_squares(np.ones(4, np.float32)), sum_of_squares(np.ones(5)))
print(sum(sum_of_squares.stats.cache_misses.values()), sum(sum_of_squares.stats.cache_hits.values()))
"""
KEY = "from gpt2.kernels.engine import jit; print(jit.code_key())"


def execute(program, cache="", path=ROOT, **settings):
    """Returns the lines that a Python program prints; it must not fail or print to stderr."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": f"{ROOT}{os.pathsep}{path}"} | settings
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return run.stdout.splitlines()


def test_importing_the_package_changes_nothing_for_other_users_of_numba(tmp_path):
    users = tmp_path / "users.py"
    users.write_text("import numba\n\n@numba.njit(cache=True)\ndef double(x):\n    return 2 * x\n")
    execute(IMPORTER, path=tmp_path)
    assert list((tmp_path / "__pycache__").glob("users.double-*.nbi"))


@pytest.mark.slow
def test_a_cache_folder_set_by_the_user_holds_the_kernels_code(tmp_path):
    execute(HOOK, tmp_path)
    assert list(tmp_path.glob("kernels-*/adamw.sum_of_squares-*"))


@pytest.mark.slow
def test_the_hook_runs_once_for_missing_code_which_is_then_compiled_here(tmp_path):
    assert execute(HOOK, tmp_path) == ["hook", "4.0 5.0", "2 0"]
    assert execute(HOOK, tmp_path) == ["4.0 5.0", "0 2"]


INTERRUPTED = """
import os, signal

calls = []
def hook(folder):
    calls.append(folder)
    if len(calls) == 1:
        os.kill(os.getpid(), signal.SIGINT)

jit.on_cache_miss(hook)
try:
    sum_of_squares(np.ones(4, np.float32))
except KeyboardInterrupt:
    print("interrupted")
print(sum_of_squares(np.ones(4, np.float32)), sum_of_squares(np.ones(5)), len(calls))
"""


@pytest.mark.slow
def test_the_hook_runs_again_after_an_interrupt(tmp_path):
    imports = HOOK.partition("\njit.")[0]
    assert execute(imports + INTERRUPTED, tmp_path) == ["interrupted", "4.0 5.0 2"]


@pytest.mark.slow
def test_code_that_the_hook_leaves_in_the_cache_is_loaded(tmp_path):
    fill = HOOK.replace('print("hook")', "subprocess.run([sys.executable, '-c', fill])")
    program = f"import subprocess\nfill = {HOOK!r}\n{fill}"
    assert execute(program, tmp_path) == ["hook", "4.0 5.0", "2 0", "4.0 5.0", "0 2"]


@pytest.mark.slow
def test_the_cache_key_changes_with_the_target():
    assert execute(KEY) == execute(KEY) == [jit.code_key()]
    assert execute(KEY, NUMBA_OPT="2") != execute(KEY)
    assert execute(KEY, NUMBA_CPU_NAME="generic") != execute(KEY)
    assert execute(f"import numba; numba.config.USING_SVML = True; {KEY}") != execute(KEY)


def test_the_link_by_which_an_editor_marks_a_file_is_no_source(monkeypatch, tmp_path):
    monkeypatch.setattr(target, "PACKAGE", tmp_path)
    key = target.code_key.__wrapped__
    before = key()
    (tmp_path / ".#kernel.py").symlink_to("user@host.1")
    assert key() == before
    (tmp_path / "kernel.py").write_text("a = 1")
    assert key() != before


@pytest.mark.slow
@pytest.mark.parametrize("wide", [True, False])
def test_only_kernels_prefer_wide_vectors(monkeypatch, wide):
    monkeypatch.setattr(jit, "_WIDE_VECTORS", wide)

    def add(out, inp):
        for n in prange(out.shape[0]):
            for c in range(out.shape[1]):
                out[n, c] += inp[n, c]

    ours, theirs = jit.kernel(add), numba.njit(parallel=True)(add)
    ours._cache = NullCache()  # Numba shows no code that was loaded
    for function in (ours, theirs):
        function(np.ones((2, 3)), np.ones((2, 3)))
    assert _prefers_wide_vectors(ours) == wide
    assert not _prefers_wide_vectors(theirs)


def _prefers_wide_vectors(dispatcher):
    """Whether all loops of a compiled function, which are functions of their own in it, have LLVM's attribute."""
    (code,) = dispatcher.inspect_llvm().values()
    groups = dict(re.findall(r"^attributes (#\d+) = (.*)$", code, re.MULTILINE))
    loops = re.findall(r"^define .*__numba_parfor_gufunc.*$", code, re.MULTILINE)
    assert loops
    wide = '"prefer-vector-width"="512"'
    return all(any(wide in groups[group] for group in re.findall(r"#\d+", loop)) for loop in loops)
