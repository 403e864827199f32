"""Times text generation by this repository and by transformers in alternating processes; see bench/README.md.

`python bench/compare.py --setup` creates their environment, `python bench/generate.py` measures.
"""

import datetime
import json
import pathlib
import shutil
import statistics
import sys

BENCH = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent))

from bench.compare import GPT2_124M, RESULTS, WORK, ask, checked, machine, make_parser, pair_ratios  # noqa: E402
from gpt2.errors import UserError, run_command  # noqa: E402
from gpt2.formats.files import atomic_write  # noqa: E402

# B samples of `new` tokens after a prompt of `prompt` tokens, `times` times. target_ratio: minimum of transformers'
# time / ours.
CASES = {
    "text": {"B": 1, "prompt": 1, "new": 256, "times": 1, "target_ratio": 1.5},
    "first token": {"B": 1, "prompt": 512, "new": 1, "times": 9, "target_ratio": 1.0},
    "8 samples": {"B": 8, "prompt": 1, "new": 256, "times": 1, "target_ratio": 1.0},
}
# Minimum of (time to read all weights once per token / our time) for "text", and of the tokens/s of "8 samples" / those
# of "text".
TARGET_SHARE, TARGET_BATCH = 0.75, 3.0
COLUMNS = ("", "tokens/s", "transformers", "ratio", "target", "besides")


def main(arguments=None):
    options = parse_arguments(arguments)
    if not options.pytorch_python.is_file():
        raise UserError(f"{options.pytorch_python}: no such file; create it with: python bench/compare.py --setup")
    cases = {name: case | {"new": min(case["new"], options.most_new)} for name, case in CASES.items()}
    rounds = run(cases, options)
    entry = summarise(cases, rounds) | {
        "threads": options.threads,
        "machine": machine(rounds),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }
    print(table(entry))
    RESULTS.mkdir(exist_ok=True)
    with atomic_write(RESULTS / "generate.json") as file:
        file.write((json.dumps(entry, indent=1) + "\n").encode())
    print(f"written to {RESULTS / 'generate.json'}")


def parse_arguments(arguments=None):
    """Returns the options as a namespace; exits with argparse's message if they are invalid."""
    parser = make_parser("Times text generation by this repository and by transformers in alternating processes.")
    parser.add_argument("--most-new", type=int, default=256, metavar="N", help="limit on new tokens in every case")
    options = checked(parser, parser.parse_args(arguments))
    if options.most_new < 1:
        parser.error(f"--most-new {options.most_new}: expected 1 or more")
    return options


def run(cases, options):
    """Runs all processes; returns a list of rounds, each a dict of process -> result."""
    workers = {
        "ours": (sys.executable, "decoder_worker"),
        "transformers": (options.pytorch_python, "transformers_worker"),
    }
    job = {"model": str(WORK / "model.bin"), "folder": str(WORK / "model"), "sizes": GPT2_124M, "cases": cases}
    job["threads"] = options.threads

    def answer_of(who, label, **changes):
        print(f"{label}: {who} ...", end=" ", flush=True)
        answer = ask(*workers[who], job | changes)
        print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in answer["seconds"].items()), flush=True)
        return answer

    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    try:
        # Creates the model's files and fills the cache of compiled code.
        answer_of("ours", "preparation", cases={})
        rounds = []
        for number in range(options.pairs):
            label = f"round {number + 1}/{options.pairs}"
            order = list(workers) if number % 2 == 0 else list(reversed(workers))
            rounds.append({who: answer_of(who, label) for who in order})
            check_tokens(rounds[-1]["ours"]["tokens"], rounds[-1]["transformers"]["tokens"])
        return rounds
    finally:
        shutil.rmtree(WORK)


def check_tokens(ours, theirs):
    """Raises UserError unless the tokens agree: timings of different computations cannot be compared."""
    for name, tokens in ours.items():
        if tokens != theirs[name]:
            raise UserError(f"{name}: tokens generated here differ from those of transformers")


def summarise(cases, rounds):
    """Returns the results for the JSON file, a dict."""

    def seconds(who, name):
        return [answers[who]["seconds"][name] for answers in rounds]

    def rate(name):
        return [cases[name]["B"] * cases[name]["new"] / time for time in seconds("ours", name)]

    entry = {"peak_bytes": {who: statistics.median(a[who]["peak_bytes"] for a in rounds) for who in rounds[0]}}
    entry["cases"] = {
        name: case
        | {
            "tokens_per_s": {
                who: case["B"] * case["new"] / statistics.median(seconds(who, name)) for who in ("ours", "transformers")
            },
            "time": pair_ratios(seconds("transformers", name), seconds("ours", name)),
        }
        for name, case in cases.items()
    }
    read = [answers["ours"]["sum_s"] * cases["text"]["new"] for answers in rounds]
    entry["share_of_reading"] = pair_ratios(read, seconds("ours", "text"))
    entry["samples_over_text"] = pair_ratios(rate("8 samples"), rate("text"))
    return entry


def table(entry):
    """Returns the table to print, a line per case; a missed target ends in "!"."""
    besides = {
        "text": ("of the speed of reading the weights", entry["share_of_reading"]["median"], TARGET_SHARE),
        "8 samples": ("times the tokens/s of text", entry["samples_over_text"]["median"], TARGET_BATCH),
    }
    lines = [COLUMNS]
    for name, case in entry["cases"].items():
        time, target = case["time"], case["target_ratio"]
        what, value, least = besides.get(name, ("", 0.0, 0.0))
        lines.append(
            (
                name,
                f"{case['tokens_per_s']['ours']:.1f}",
                f"{case['tokens_per_s']['transformers']:.1f}",
                f"{time['median']:.2f} ({time['lowest']:.2f}-{time['highest']:.2f})",
                f">={target:.2f}" + ("" if time["median"] >= target else " !"),
                f"{value:.2f} {what}, >={least:.2f}" + ("" if value >= least else " !") if what else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


if __name__ == "__main__":
    run_command(main)
