"""Times, on ranks that mpirun started, this trainer's exchange of a flat array and MPI's own. Rank 0 prints a result.

The job, see common.py: `count` (floats), `times` (calls of each).
"""

import pathlib
import time

import mpi4py
import numpy as np

from bench import common
from gpt2 import distributed
from gpt2.optimizer import shards


def main():
    job, world = common.read_job(), distributed.world()
    from mpi4py import MPI  # after world(), which has set mpi4py up

    flat = np.random.default_rng(world.rank).standard_normal(job["count"], np.float32)
    out, parts = np.empty_like(flat), shards(job["count"], world.size)
    calls = {
        "reduce": lambda: world.reduce_scatter(flat, parts),
        "gather": lambda: world.all_gather(flat, parts),
        "Allreduce": lambda: MPI.COMM_WORLD.Allreduce(flat, out),
    }
    seconds, sent = {}, {}
    for name, call in calls.items():
        call()  # connects, and touches the buffers
        before, seconds[name] = loopback_bytes(), []
        for _ in range(job["times"]):
            flat.fill(1)  # sums stay finite
            world.gather(None)
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
        world.gather(None)
        sent[name] = (loopback_bytes() - before) / job["times"]
    if world.is_first:
        library = MPI.Get_library_version().replace("\t", " ").splitlines()[0]
        common.answer([np, mpi4py], seconds=seconds, loopback_bytes=sent, ranks=world.size, library=library)


def loopback_bytes():
    """Bytes that the loopback interface has sent since boot; 0 if unknown."""
    try:
        lines = pathlib.Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[9]) for line in lines if line.split()[0] == "lo:"), 0)


if __name__ == "__main__":
    main()
