"""Long runs: what one holds of memory and open files does not grow; a short soak loses nothing, and would say so."""

import os
import statistics
import subprocess
import sys

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.formats.llmc import write_tokens
from tests.soak import show_table, soak
from tests.support import disturbed
from tests.support.runs import ROOT

SOUND = [kind for kind in disturbed.KINDS if not kind.startswith("kernels")]
STEPS = 20_000
WARM = 4_000  # by then everything has happened many times
OPTIONS = (
    "--init tiny.bin --train-data train.bin --val-data val.bin -b 1 -t 8 --shuffle --grad-clip 1 --skip-spikes 8 "
    "--val-every 200 --val-batches 2 --sample-every 200 --sample-tokens 4 --checkpoint-every 200 --threads 1"
)
# Counts the resident bytes and the open files at the end of every hundredth step.
PROGRAM = """
import sys
import psutil
import train_gpt2
from gpt2.training.metrics import Metrics

process, write = psutil.Process(), Metrics.write

def write_and_count(self, record):
    write(self, record)
    if record["step"] % 100 == 0:
        print(record["step"], process.memory_info().rss, process.num_fds(), file=sys.stderr)

Metrics.write = write_and_count
sys.exit(train_gpt2.main())
"""


@pytest.mark.slow
def test_memory_and_open_files_do_not_grow_with_the_steps(tmp_path):
    GPT2(GPT2Config(maxT=8, V=16, L=1, NH=1, C=8), seed=1).save(tmp_path / "tiny.bin")
    rng = np.random.default_rng(0)
    write_tokens(tmp_path / "train.bin", rng.integers(0, 16, 4000))
    write_tokens(tmp_path / "val.bin", rng.integers(0, 16, 400))
    with open(tmp_path / "log", "w") as log:
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, *OPTIONS.split(), "-x", str(STEPS)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
            timeout=1200,
        )
    assert run.returncode == 0, run.stderr
    counted = np.array([line.split() for line in run.stderr.splitlines()], dtype=np.int64)
    assert counted[-1, 0] == STEPS
    counted = counted[counted[:, 0] > WARM]
    warm, end = (statistics.median(rows[:, 1].tolist()) for rows in (counted[:10], counted[-10:]))
    assert end < 1.02 * warm, f"{warm:,} bytes after {WARM:,} steps, {end:,} in the end"
    assert set(counted[:, 2]) == {counted[0, 2]}
    saved = [name for name in os.listdir(tmp_path / "out") if name.startswith(("model", "state"))]
    assert len(saved) == 4


@pytest.mark.slow
def test_a_short_soak_loses_nothing(tmp_path, capsys):
    runs = soak(tmp_path, seconds=10, seed=0, kinds=SOUND)
    assert [fault for run in runs for fault in run.faults] == [] and all(run.same for run in runs)
    show_table(runs)
    assert capsys.readouterr().out.endswith(": the same bits, 0 faults\n")


@pytest.mark.slow
def test_a_soak_with_damaged_kernels_loses_nothing(tmp_path):
    runs = soak(tmp_path, seconds=60, seed=0, numbers=range(4), kinds=["kernels emptied"])
    assert [fault for run in runs for fault in run.faults] == []


@pytest.mark.slow
def test_a_soak_finds_what_a_run_loses(tmp_path, monkeypatch, capsys):
    def meddle(run, kind):
        run.stand.in_peace(run.variant)
        GPT2(GPT2Config(maxT=64, V=512, L=2, NH=2, C=32), seed=2).save(run.stand.folder / "tiny.bin")
        return run.end(run.start(kind))

    monkeypatch.setitem(disturbed.KINDS, "another model", (meddle, 1, "other models"))
    (run,) = soak(tmp_path, seconds=0, seed=0, kinds=["another model"])
    assert not run.same and "other bits than the run in peace" in run.faults
    show_table([run])
    assert "1 runs of OTHER BITS" in capsys.readouterr().out
