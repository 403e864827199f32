"""A training run is bit-identical for any number of threads, under each of Numba's threading layers."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.formats.llmc import write_tokens
from tests.support.runs import contents

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYERS = ("omp", "tbb", "workqueue")
THREADS = (1, 2, 3, 8)
STEPS = 4
# Odd sizes that give most kernels several tasks.
CONFIG = GPT2Config(maxT=101, V=300, L=2, NH=5, C=130)
OPTIONS = (
    "--init model.bin --train-data train.bin --val-data val.bin -b 3 -t 101 -l 1e-2 --grad-accum-steps 2 --shuffle "
    f"--weight-decay 0.1 --dropout 0.2 --val-every 2 --val-batches 2 --sample-every 2 --sample-tokens 20 "
    f"--skip-spikes 3 -x {STEPS}"
)
# Runs that differ only in the number of threads and the output folder; prints the threading layer at the end.
PROGRAM = """
import sys
import numba
import train_gpt2
from gpt2.training import loop

options, *numbers = sys.argv[1:]
for threads in numbers:
    train_gpt2.main([*options.split(), "--threads", threads, "--out-dir", "out" + threads])
    assert numba.get_num_threads() == int(threads)
print("layer", numba.threading_layer())
"""
# Numba loads a threading layer only when it first needs it.
PROBE = """
import numba
numba.set_num_threads(1)
print(numba.threading_layer())
"""


def environment(layer):
    """The environment of a child with this threading layer and, usually, more threads than cores."""
    variables = os.environ | {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "8", "PYTHONPATH": str(ROOT)}
    # With more threads than cores, spinning threads would starve those they wait for.
    variables["OMP_WAIT_POLICY"] = "passive"
    if layer == "tbb" and (library := tbb_folder()):
        variables["LD_LIBRARY_PATH"] = os.pathsep.join([library, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return variables


def tbb_folder():
    """The folder of the tbb package's library, which is not on the loader's path; None if it is not installed."""
    try:
        files = importlib.metadata.files("tbb") or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(file.locate().resolve().parent) for file in files if file.name.startswith("libtbb.so")), None)


def run(program, *arguments, layer):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment(layer), capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def loadable():
    """The threading layers that Numba can load on this machine."""
    found = [layer for layer in LAYERS if run(PROBE, layer=layer).stdout == f"{layer}\n"]
    assert found, "Numba can load none of its threading layers"
    return found


@pytest.fixture(scope="module")
def expected(loadable, tmp_path_factory):
    """(a folder with the runs' input files, the result of one thread under the first layer)."""
    folder = tmp_path_factory.mktemp("layers")
    GPT2(CONFIG, seed=1).save(folder / "model.bin")
    rng = np.random.default_rng(0)
    write_tokens(folder / "train.bin", rng.integers(0, 300, 2000))
    write_tokens(folder / "val.bin", rng.integers(0, 300, 700))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran = run(PROGRAM, OPTIONS, "1", layer=loadable[0])
    assert ran.returncode == 0, ran.stderr
    return folder, contents(folder / "out1", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_the_same_bits_for_any_number_of_threads(loadable, expected, layer, tmp_path, monkeypatch):
    if layer not in loadable:
        pytest.skip(f"Numba cannot load {layer}")
    folder, first = expected
    for path in folder.glob("*.bin"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    ran = run(PROGRAM, OPTIONS, *map(str, THREADS), layer=layer)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith(f"layer {layer}\n")
    for threads in THREADS:
        assert contents(f"out{threads}", STEPS) == first, f"{threads} threads"
