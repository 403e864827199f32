"""Times training on one and on two ranks of MPI, and their exchange alone; bench/README.md explains the results."""

import argparse
import datetime
import functools
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

import numpy as np

BENCH = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent))

from bench.compare import RESULTS, cpu_times, least_disturbed, machine, pair_ratios, stolen  # noqa: E402
from bench.report import draw_scaling, scaling_tables  # noqa: E402
from gpt2.config import PRESETS  # noqa: E402
from gpt2.errors import UserError, run_command  # noqa: E402
from gpt2.formats.files import atomic_write  # noqa: E402
from gpt2.formats.llmc import write_tokens  # noqa: E402
from gpt2.layout import parameter_layout  # noqa: E402
from gpt2.machine import available_threads  # noqa: E402
from gpt2.model import GPT2  # noqa: E402
from gpt2.training.scaling import STRONG_TOKENS, efficiency, node_counts  # noqa: E402

B, T, ACCUMULATION, THREADS = 4, 64, 2, 2
SEED = 1337
MOST_NODES = 1024
BANDWIDTHS = {"10 GbE": 1.1e9, "25 GbE": 2.7e9, "100 GbE": 9e9}  # bytes a second
FAST_RATE = 5000  # tokens a second of a large node, for comparison with this one
MOST_RATIO = 1.10  # of two ranks' step to one's
# Where messages go -> (what makes MPICH send them there, the most seconds that an exchange may take).
WAYS = {
    "shared memory": ({}, {"reduce": 0.35, "gather": 0.25}),
    "TCP loopback": ({"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self"}, {"reduce": 0.8, "gather": 0.8}),
}


def main(arguments=None):
    options = parse_arguments(arguments)
    size = parameter_layout(PRESETS[options.size]).size
    with tempfile.TemporaryDirectory() as folder:
        rounds = train_rounds(pathlib.Path(folder), options)
    exchanges = {way: exchange(way, size, options.times) for way in WAYS}
    entry = summarise(rounds, exchanges, size) | {
        "size": options.size,
        "machine": machine([exchanges]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }
    print(scaling_tables(entry))
    if options.size == "gpt2":
        RESULTS.mkdir(exist_ok=True)
        with atomic_write(RESULTS / "scaling.json") as file:
            file.write((json.dumps(entry, indent=1) + "\n").encode())
        draw_scaling(entry, RESULTS / "scaling.png")
        print(f"written to {RESULTS}: scaling.json, scaling.png")


def parse_arguments(arguments=None):
    """Returns the options as a namespace; exits with argparse's message if they are invalid."""
    parser = argparse.ArgumentParser(
        description="Times training on one and on two ranks in alternating processes, and their exchange alone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--size", choices=PRESETS, default="gpt2", help="the model's sizes; results are kept of gpt2's alone")
    add("--pairs", type=int, default=5, metavar="N", help="rounds, each of which runs both processes once")
    add("--steps", type=int, default=6, metavar="N", help="timed steps of each, after one to warm up")
    add("--times", type=int, default=7, metavar="N", help="timed exchanges of each kind")
    options = parser.parse_args(arguments)
    if min(options.pairs, options.steps, options.times) < 1:
        parser.error("--pairs, --steps and --times start at 1")
    if available_threads() < THREADS:
        raise UserError(f"{available_threads()} CPU: two ranks need {THREADS}")
    return options


def mpirun():
    """The command that starts two ranks, without their program. Raises UserError."""
    beside = os.path.dirname(sys.executable)
    found = shutil.which("mpirun", path=beside) or shutil.which("mpirun")
    if not found:
        raise UserError("no mpirun: pip install '.[mpi]'")
    return [found, "-n", "2"]


def finished(command, folder=BENCH.parent, **settings):
    """Runs a command; returns what it printed. Raises UserError if it fails."""
    environment = os.environ | {"PYTHONPATH": str(BENCH.parent)} | settings
    process = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        print("failed", flush=True)
        raise UserError(f"{pathlib.Path(command[0]).name} ended with status {process.returncode}, see above")
    return process.stdout


def train_rounds(folder, options):
    """Trains on one rank and on two in alternation; returns a list of rounds, dicts of 1 and 2 -> result of `train`."""
    config = PRESETS[options.size]
    GPT2(config, SEED).save(folder / "model.bin")
    tokens = (options.steps + 1) * ACCUMULATION * B * T + 1
    write_tokens(folder / "train.bin", np.random.default_rng(SEED).integers(0, config.V, tokens))

    def run(label, ranks, steps=options.steps):
        print(f"{label}: {ranks} rank{'s' if ranks > 1 else ''} ...", end=" ", flush=True)
        before = cpu_times()
        answer = train(folder, ranks, steps) | {"stolen": stolen(before, cpu_times())}
        print(f"{answer['step_ms']:.1f} ms a step, {answer['stolen']:.0%} of the CPU time stolen", flush=True)
        return answer

    run("preparation", 1, 1)  # discarded: it may compile the kernels
    rounds = []
    for number in range(options.pairs):
        label, order = f"round {number + 1}/{options.pairs}", (1, 2) if number % 2 == 0 else (2, 1)
        rounds.append({ranks: least_disturbed(functools.partial(run, label, ranks)) for ranks in order})
    return rounds


def train(folder, ranks, steps):
    """Trains; returns a dict: medians of the steps after the first in ms, and the peak memory of a rank in bytes."""
    arguments = ["--init", "model.bin", "--train-data", "train.bin", "-b", B, "-t", T, "--out-dir", "out"]
    arguments += ["--grad-accum-steps", ACCUMULATION, "--threads", THREADS // ranks, "--max-steps", steps + 1]
    arguments += ["--val-every", 0, "--sample-every", 0, "--warmup-steps", 0]
    command = [sys.executable, BENCH.parent / "train_gpt2.py", *map(str, arguments)]
    printed = finished([*(mpirun() if ranks > 1 else []), *command], folder)
    lines = (folder / "out/metrics.jsonl").read_text().splitlines()
    shutil.rmtree(folder / "out")
    records = [record for record in map(json.loads, lines) if record["step"] > 1]
    times = {
        "step_ms": [1e3 * ACCUMULATION * B * T / record["tokens_per_s"] for record in records],
        "gradients_ms": [record["gradients_ms"] for record in records],
        "update_ms": [record["update_ms"] for record in records],
        "exchange_ms": [record.get("exchange_ms", 0.0) for record in records],
    }
    peak = float(re.search(r"peak memory ([\d.]+) GB", printed)[1])
    return {name: statistics.median(values) for name, values in times.items()} | {"peak_bytes": 1e9 * peak}


def exchange(way, count, times):
    """Times exchanges of `count` floats; returns exchange_worker's answer. Raises UserError if they go another way."""
    print(f"exchange of {count:,} floats, {way} ...", end=" ", flush=True)
    job = json.dumps({"count": count, "times": times})
    settings, _ = WAYS[way]
    printed = finished([*mpirun(), sys.executable, "-m", "bench.exchange_worker", job], **settings)
    answer = json.loads(printed.splitlines()[-1])
    least = 4 * count  # bytes that two ranks send in a reduce or in a gather
    over_tcp = min(answer["loopback_bytes"][name] for name in ("reduce", "gather")) >= least
    if over_tcp != bool(settings):
        raise UserError(f"{answer['library']}: the messages did not go through {way}; use MPICH, as '.[mpi]' installs")
    print(", ".join(f"{name} {1e3 * statistics.median(seconds):.0f} ms" for name, seconds in answer["seconds"].items()))
    return answer


def summarise(rounds, exchanges, size):
    """Returns the entry for the JSON file; size: the model's parameters, padding included."""

    def medians(ranks):
        names = rounds[0][ranks].keys() - {"stolen"}
        found = {name: statistics.median(answers[ranks][name] for answers in rounds) for name in sorted(names)}
        return found | {"most_stolen": max(answers[ranks]["stolen"] for answers in rounds)}

    ratio = pair_ratios(*([answers[ranks]["step_ms"] for answers in rounds] for ranks in (2, 1)))
    steps = {str(ranks): medians(ranks) for ranks in (1, 2)}
    rate = 1e3 * ACCUMULATION * B * T / steps["1"]["step_ms"]
    return {
        "B": B,
        "T": T,
        "accumulation": ACCUMULATION,
        "parameters": size,
        "steps": steps,
        "ratio": ratio | {"target": MOST_RATIO},
        "exchanges": {way: _exchange_summary(answer, size, WAYS[way][1]) for way, answer in exchanges.items()},
        "reckoned": {
            f"{per_node:,.0f} tok/s a node, {name}": {
                str(nodes): efficiency(nodes, STRONG_TOKENS / nodes, per_node, 4 * size, bandwidth)
                for nodes in node_counts(MOST_NODES)
            }
            for per_node in (rate, FAST_RATE)
            for name, bandwidth in BANDWIDTHS.items()
        },
    }


def _exchange_summary(answer, size, goals):
    """Per kind: ms, GB/s that a rank sends, and the goal in ms or None."""
    found = {}
    for name, seconds in answer["seconds"].items():
        sent = 4 * size * (answer["ranks"] - 1) / answer["ranks"] * (2 if name == "Allreduce" else 1)
        median, goal = statistics.median(seconds), goals.get(name)
        found[name] = {
            "ms": 1e3 * median,
            "lowest_ms": 1e3 * min(seconds),
            "gb_per_s": sent / median / 1e9,
            "target_ms": None if goal is None else 1e3 * goal,
        }
    return found


if __name__ == "__main__":
    run_command(main)
