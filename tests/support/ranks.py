"""Programs started under mpirun, with MPICH's launcher or Open MPI's."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The folder in which a virtual environment has Open MPI: beside MPICH's, its mpirun would replace that.
OPENMPI = os.environ.get("GPT2_OPENMPI")
MPICH = shutil.which("mpirun", path=str(pathlib.Path(sys.executable).parent))
MPICH_LIBRARY = f"{sys.prefix}/lib/libmpi.so.12"

needs_mpi = pytest.mark.skipif(
    not (importlib.util.find_spec("mpi4py") and MPICH),
    reason="needs mpi4py and the mpirun of MPICH: pip install '.[test]'",
)
needs_openmpi = pytest.mark.skipif(not OPENMPI, reason="$GPT2_OPENMPI names no environment with Open MPI")


def command(n, arguments, library="mpich"):
    """The command that runs Python with `arguments` on n ranks."""
    if library == "mpich":
        return [MPICH, "-n", str(n), sys.executable, *map(str, arguments)]
    launcher = [f"{OPENMPI}/bin/mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(n)]
    return [*launcher, sys.executable, *map(str, arguments)]


def environment(library="mpich", **settings):
    """os.environ for such a program; of Numba's threads each rank gets two."""
    values = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "2"}
    if library == "openmpi":
        (found,) = pathlib.Path(OPENMPI, "lib").glob("libmpi.so.[0-9]*")
        as_root = {f"OMPI_ALLOW_RUN_AS_ROOT{suffix}": "1" for suffix in ("", "_CONFIRM")}
        values |= as_root | {"MPI4PY_LIBMPI": str(found)}
    return values | settings


def run(n, *arguments, library="mpich", timeout=100, **settings):
    """Runs Python with the arguments on n ranks; returns the CompletedProcess, its output as text."""
    return subprocess.run(
        command(n, arguments, library),
        env=environment(library, **settings),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
