"""Times training steps of this trainer and of PyTorch in alternating processes; bench/README.md explains the results.

`python bench/compare.py --setup` creates PyTorch's environment, `python bench/compare.py` measures.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys

BENCH = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent))

from gpt2.errors import UserError, run_command  # noqa: E402
from gpt2.formats.files import atomic_write  # noqa: E402
from gpt2.machine import BF16, FLOAT32, available_threads, chosen_precision  # noqa: E402

VENV = BENCH / ".venv"
WORK = BENCH / "work"
RESULTS = BENCH / "results"
MODES = ("eager", "compile")
# Beside a row in bf16: what it gains over this trainer in float32, which it must by at least this, and over PyTorch.
OURS_FLOAT32, EAGER_FLOAT32 = FLOAT32_MODES = ("ours-float32", "eager-float32")
LEAST_GAIN = 1 / 0.56
WARMUP_STEPS = 1
# On a shared host, a process that loses more than this fraction of CPU time to other machines is run again, up to
# TRIES runs in all; the least disturbed run counts. This applies to all processes alike.
MOST_STOLEN, TRIES = 0.05, 4
# Only the first losses must agree: later on, two float32 trainers may diverge.
CHECKED_STEPS, LOSS_TOLERANCE = 3, 1e-3


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: a training configuration and its targets.

    sizes: of gpt2.GPT2Config. steps: timed steps per process. target_ratio: minimum of PyTorch's time / ours.
    target_memory: maximum of our peak memory / PyTorch's. target_bytes: upper bound on our peak memory. precision: BF16
    compares with PyTorch's autocast to bfloat16.
    """

    name: str
    B: int
    T: int
    sizes: dict
    steps: int
    target_ratio: float
    target_memory: float
    target_bytes: float = float("inf")
    precision: str = FLOAT32


GPT2_124M = {"maxT": 1024, "V": 50257, "L": 12, "NH": 12, "C": 768}
GPT2_355M = {"maxT": 1024, "V": 50257, "L": 24, "NH": 16, "C": 1024}
BABY = {"maxT": 64, "V": 65, "L": 4, "NH": 4, "C": 128}
ROWS = {
    row.name: row
    for row in (
        Row("124M-4x64", 4, 64, GPT2_124M, 6, 1.5, 0.90),
        Row("124M-4x256", 4, 256, GPT2_124M, 3, 1.4, 0.80),
        Row("124M-2x1024", 2, 1024, GPT2_124M, 2, 1.3, 0.70),
        Row("124M-4x1024", 4, 1024, GPT2_124M, 2, 1.3, 0.60, 5.5e9),
        Row("baby-12x64", 12, 64, BABY, 100, 2.0, 0.75),
        Row("355M-1x256", 1, 256, GPT2_355M, 3, 1.3, 0.85),
        Row("124M-4x64-bf16", 4, 64, GPT2_124M, 6, 2.1, 0.90, precision=BF16),
        Row("124M-4x256-bf16", 4, 256, GPT2_124M, 3, 1.4, 0.80, precision=BF16),
        Row("124M-2x1024-bf16", 2, 1024, GPT2_124M, 2, 1.3, 0.70, precision=BF16),
    )
}


def main(arguments=None):
    options = parse_arguments(arguments)
    if options.setup:
        return set_up()
    if not options.pytorch_python.is_file():
        raise UserError(f"{options.pytorch_python}: no such file; create it with: python bench/compare.py --setup")
    for precision in {ROWS[name].precision for name in options.rows}:
        chosen_precision(precision)
    results, entries = read_results(RESULTS / "compare.json"), {}
    for name in options.rows:
        rounds = run_row(ROWS[name], options)
        entries[name] = summarise(ROWS[name], rounds, modes_of(ROWS[name], options)) | {
            "threads": options.threads,
            "machine": machine(rounds),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        }
        results[name] = entries[name]
        write_results(RESULTS / "compare.json", results)
    # Not before the workers run: on Linux a process inherits its parent's peak memory, and Matplotlib raises it.
    from bench import report

    print(report.table(entries))
    report.draw(results, RESULTS)
    print(f"written to {RESULTS}: compare.json (latest result of every row), compare_time.png, compare_memory.png")


def parse_arguments(arguments=None):
    """Returns the options as a namespace; exits with argparse's message if they are invalid."""
    parser = make_parser("Times training steps of this trainer and of PyTorch in alternating processes.")
    add = parser.add_argument
    add("--setup", action="store_true", help="create PyTorch's environment and exit")
    add(
        "--rows",
        nargs="+",
        choices=ROWS,
        metavar="NAME",
        help=f"rows, by default those of --precision: {', '.join(ROWS)}",
    )
    add("--precision", choices=(FLOAT32, BF16), default=FLOAT32, help="of the factors of products")
    add(
        "--modes",
        nargs="+",
        choices=MODES,
        default=list(MODES),
        metavar="MODE",
        help=f"modes: {', '.join(MODES)}",
    )
    options = checked(parser, parser.parse_args(arguments))
    options.rows = options.rows or [name for name, row in ROWS.items() if row.precision == options.precision]
    return options


def modes_of(row, options):
    """Returns what a row compares with: PyTorch's modes, and of a row in bf16 both sides in float32."""
    return [*options.modes, *(FLOAT32_MODES if row.precision == BF16 else ())]


def make_parser(description):
    """Returns a parser with the options that both benchmarks share; see `checked`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add, python = parser.add_argument, VENV / "bin" / "python"
    add("--pairs", type=int, default=5, metavar="N", help="rounds, each of which runs every process once")
    add("--threads", type=int, default=available_threads(), metavar="N", help="threads of every process")
    add("--pytorch-python", type=pathlib.Path, default=python, metavar="PATH", help="PyTorch's interpreter")
    return parser


def checked(parser, options):
    """Returns the options; exits as argparse does if one of make_parser's is invalid."""
    # The workers start in the repository root. Not resolve(): a venv's interpreter is a symlink to the base one.
    options.pytorch_python = options.pytorch_python.absolute()
    if options.pairs < 1:
        parser.error(f"--pairs {options.pairs}: expected 1 or more")
    if not 1 <= options.threads <= available_threads():
        parser.error(f"--threads {options.threads}: expected 1 to {available_threads()}")
    return options


def set_up():
    """Creates PyTorch's environment."""
    print(f"creating {VENV}", flush=True)
    install = [VENV / "bin" / "python", "-m", "pip", "install", "--requirement", BENCH / "requirements.txt"]
    for command in ([sys.executable, "-m", "venv", "--clear", VENV], install):
        if subprocess.run(command).returncode:
            shutil.rmtree(VENV, ignore_errors=True)
            raise UserError("failed to create PyTorch's environment, see above")


def ask(python, module, job):
    """Runs a worker module of this folder in its own process; returns its result, a dict."""
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(variables, str(job["threads"]))
    command = [python, "-m", f"bench.{module}", json.dumps(job)]
    process = subprocess.run(command, cwd=BENCH.parent, env=environment, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        print("failed", flush=True)
        raise UserError(f"{module} exited with status {process.returncode}, see above")
    if not process.stdout:
        raise UserError(f"{python}: printed nothing; --pytorch-python must be a Python interpreter")
    return json.loads(process.stdout.splitlines()[-1])


def run_row(row, options):
    """Runs all processes of a row; returns a list of rounds, each a dict of process -> result."""
    workers = {"ours": (sys.executable, "gpt2_worker", {})}
    workers |= {mode: (options.pytorch_python, "pytorch_worker", {"mode": mode}) for mode in options.modes}
    if row.precision == BF16:
        workers[OURS_FLOAT32] = sys.executable, "gpt2_worker", {"precision": FLOAT32}
        workers[EAGER_FLOAT32] = options.pytorch_python, "pytorch_worker", {"mode": "eager", "precision": FLOAT32}
    # Bare products vary less and need fewer steps.
    bare = {"warmup_steps": 1, "steps": (row.steps + 1) // 2}
    workers["bare"] = (options.pytorch_python, "bare_worker", bare)
    job = {"model": str(WORK / "model.bin"), "sizes": row.sizes, "B": row.B, "T": row.T, "threads": options.threads}
    job |= {"precision": row.precision, "warmup_steps": WARMUP_STEPS, "steps": row.steps}

    def run(who, label, **changes):
        python, module, own = workers[who]
        print(f"[{row.name}] {label}: {who} ...", end=" ", flush=True)
        before = cpu_times()
        answer = ask(python, module, job | own | changes)
        answer["stolen"] = stolen(before, cpu_times())
        print(f"{progress(answer)}, {answer['stolen']:.0%} of the CPU time stolen", flush=True)
        return answer

    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    try:
        # Discarded: the first creates the model file, and both fill the caches of compiled code, so that later peaks
        # are those of training, not of a compiler.
        for who in ("ours", "compile"):
            if who in workers:
                run(who, "preparation", warmup_steps=0, steps=1)
        rounds = []
        for number in range(options.pairs):
            label = f"round {number + 1}/{options.pairs}"
            order = list(workers) if number % 2 == 0 else list(reversed(workers))
            rounds.append({who: least_disturbed(functools.partial(run, who, label)) for who in order})
            for mode in modes_of(row, options):
                check_losses(row, rounds[-1]["ours"]["losses"], mode, rounds[-1][mode]["losses"])
        return rounds
    finally:
        shutil.rmtree(WORK)


def least_disturbed(run):
    """Calls `run()`, repeatedly if too much CPU time was stolen; returns the result with the smallest "stolen"."""
    answers = [run()]
    while answers[-1]["stolen"] > MOST_STOLEN and len(answers) < TRIES:
        answers.append(run())
    return min(answers, key=lambda answer: answer["stolen"])


def cpu_times():
    """Returns (stolen ticks, total ticks) of all CPUs since boot; (0, 1) if unknown."""
    try:
        ticks = [int(value) for value in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return 0, 1
    return ticks[7], sum(ticks)


def stolen(before, after):
    """Returns the fraction of CPU time stolen between two `cpu_times`; 0.0 if unknown."""
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def progress(answer):
    """Returns a one-line summary of a result."""
    step_ms = answer["step_ms"]
    if isinstance(step_ms, dict):
        return ", ".join(f"{library} {statistics.median(times):.1f} ms" for library, times in step_ms.items())
    return f"{statistics.median(step_ms):.1f} ms a step, peak {answer['peak_bytes'] / 1e9:.2f} GB"


def check_losses(row, ours, mode, theirs):
    """Raises UserError unless the first losses agree: timings of different computations cannot be compared."""
    for step, (a, b) in enumerate(zip(ours[:CHECKED_STEPS], theirs[:CHECKED_STEPS], strict=True), 1):
        if not abs(a - b) <= LOSS_TOLERANCE * abs(b):
            raise UserError(f"{row.name}: loss of step {step} is {a:.6f} here, {b:.6f} elsewhere ({mode})")


def pair_ratios(numerators, denominators):
    """Divides pair by pair; returns a dict of the quotients, "pairs", and their median, lowest and highest."""
    pairs = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return {"median": statistics.median(pairs), "lowest": min(pairs), "highest": max(pairs), "pairs": pairs}


def summarise(row, rounds, modes):
    """Returns a row's entry for the JSON file. A process's step time is the median of its timed steps."""

    def steps(who):
        return [statistics.median(answers[who]["step_ms"]) for answers in rounds]

    def peaks(who):
        return [answers[who]["peak_bytes"] for answers in rounds]

    def summary(who):
        step_ms = statistics.median(steps(who))
        tokens_per_s = 1e3 * row.B * row.T / step_ms
        most_stolen = max(answers[who]["stolen"] for answers in rounds)
        return {
            "step_ms": step_ms,
            "tokens_per_s": tokens_per_s,
            "peak_bytes": statistics.median(peaks(who)),
            "most_stolen": most_stolen,
        }

    bare = {
        library: [statistics.median(answers["bare"]["step_ms"][library]) for answers in rounds]
        for library in rounds[0]["bare"]["step_ms"]
    }
    library = min(bare, key=lambda name: statistics.median(bare[name]))
    return dataclasses.asdict(row) | {
        # JSON has no infinity.
        "target_bytes": row.target_bytes if row.target_bytes < float("inf") else None,
        "ours": summary("ours"),
        "pytorch": {
            mode: summary(mode)
            | {"time": pair_ratios(steps(mode), steps("ours")), "memory": pair_ratios(peaks("ours"), peaks(mode))}
            | {"target_ratio": {OURS_FLOAT32: LEAST_GAIN, EAGER_FLOAT32: None}.get(mode, row.target_ratio)}
            | {"target_memory": None if mode in FLOAT32_MODES else row.target_memory}
            for mode in modes
        },
        "bare": {
            "library": library,
            "step_ms": statistics.median(bare[library]),
            "share": pair_ratios(bare[library], steps("ours")),
        },
    }


def machine(rounds):
    """Returns a dict: CPU model, number of cores, and the versions that each worker reports."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {who: answer["versions"] for who, answer in rounds[0].items()}
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "versions": versions}


def read_results(path):
    """Returns the results of earlier runs, a dict of row name -> entry."""
    try:
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fix or remove it") from error
    entries = results.values() if isinstance(results, dict) else [None]
    if not all(isinstance(entry, dict) and {"ours", "pytorch", "bare"} <= entry.keys() for entry in entries):
        raise UserError(f"{path}: not results of this benchmark; fix or remove it")
    return results


def write_results(path, results):
    """Writes the entries in the order of ROWS; entries of unknown rows are dropped."""
    path.parent.mkdir(exist_ok=True)
    ordered = {name: results[name] for name in ROWS if name in results}
    with atomic_write(path) as file:
        file.write((json.dumps(ordered, indent=1) + "\n").encode())


if __name__ == "__main__":
    run_command(main)
