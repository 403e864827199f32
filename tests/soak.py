"""A soak: trains a small model in peace, then again and again under kills, signals and damage, and compares every bit.

    python -m tests.soak --minutes 15

A disturbed run is a handful of processes, each with a disturbance or after one, and a last one in peace. Its final
parameters, moments and metrics must be those of the run in peace. Prints a line for each disturbed run, then a table;
exits with 1, and keeps the folder, if a bit differs or a process did not end as it should.
"""

import argparse
import collections
import itertools
import pathlib
import shutil
import signal
import sys
import tempfile
import time

from gpt2.inference.warmup import prepare_kernels
from tests.support.disturbed import KINDS, Run, Stand


def soak(folder, seconds, seed, numbers=None, kinds=tuple(KINDS)):
    """Does disturbed runs, one at least, until the time is up, and prints a line for each. Returns the Runs."""
    prepare_kernels()  # into the cache that the stand copies
    stand, runs, start = Stand(folder, seed), [], time.monotonic()
    for number in itertools.count() if numbers is None else numbers:
        runs.append(run := Run(stand, number, kinds))
        happened = "; ".join(f"{kind} ({steps})" for kind, steps, _ in run.processes)
        print(f"run {number}: {happened}: {'the same bits' if run.same else 'OTHER BITS'}", flush=True)
        for fault in run.faults:
            print(f"run {number}: FAULT: {fault}", flush=True)
        if time.monotonic() > start + seconds:
            break
    return runs


def show_table(runs):
    """Prints a row for each kind of disturbance, then the sums in one line."""
    rows = collections.defaultdict(collections.Counter)
    for run in runs:
        for kind, steps, resumed in run.processes:
            rows[kind].update({"times": 1, "resumed": resumed, "steps trained": steps, "lost bits": not run.same})
    columns = ("times", "resumed", "steps trained", "lost bits")
    print("\n" + f"{'kind':22}" + "".join(f"{column:>15}" for column in columns))
    for kind, row in rows.items():
        print(f"{kind:22}" + "".join(f"{row[column]:15,}" for column in columns))
    sums = collections.Counter()
    for kind, row in rows.items():
        if kind in KINDS:
            sums[KINDS[kind][2]] += row["times"]
    steps = sum(row["steps trained"] for row in rows.values())
    differing, faults = sum(not run.same for run in runs), sum(len(run.faults) for run in runs)
    figures = [f"{len(runs):,} runs", f"{steps:,} steps", *(f"{count:,} {what}" for what, count in sums.items())]
    verdict = f"{differing} runs of OTHER BITS" if differing else "the same bits"
    print(f"\n{', '.join(figures)}: {verdict}, {faults} faults")


def main():
    parser = argparse.ArgumentParser(description="Trains under kills, signals and damage, and compares every bit.")
    parser.add_argument("--minutes", type=float, default=15, help="how long (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of the disturbances (default: %(default)s)")
    parser.add_argument("--run", type=int, metavar="N", help="only the run of this number")
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="gpt2-soak-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays mounted
    numbers = None if arguments.run is None else [arguments.run]
    runs = soak(folder, 60 * arguments.minutes, arguments.seed, numbers)
    show_table(runs)
    if failed := [run.number for run in runs if run.faults]:
        again = f"python -m tests.soak --seed {arguments.seed} --run {failed[0]}"
        print(f"what the failed runs left is in {folder}; the first again, as nearly as time allows: {again}")
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
