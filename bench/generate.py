"""Times text generation by this repository, transformers and llama.cpp in alternating processes; see bench/README.md.

`python bench/compare.py --setup` creates transformers' environment, `python bench/generate.py` measures.
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
from gpt2.formats import gguf_file  # noqa: E402
from gpt2.formats.files import atomic_write  # noqa: E402

# B samples of `new` tokens after a prompt of `prompt` tokens, `times` times. llama.cpp runs those of one sample.
CASES = {
    "text": {"B": 1, "prompt": 1, "new": 256, "times": 1},
    "first token": {"B": 1, "prompt": 512, "new": 1, "times": 9},
    "8 samples": {"B": 8, "prompt": 1, "new": 256, "times": 1},
}
# Who generates -> (worker, the weights it is measured with).
WORKERS = {
    "ours": ("decoder_worker", ("float32", "bf16", "int8")),
    "transformers": ("transformers_worker", ("float32", "bfloat16")),
    "llama.cpp": ("llama_worker", tuple(gguf_file.DTYPES)),
}
PEERS = tuple(WORKERS)[1:]
OURS, TRANSFORMERS, LLAMA = (f"{who} float32" for who in WORKERS)  # their tokens must agree
CHECKED_TOKENS = 32
# Case, whose speed, over whose, and the minimum of that ratio.
GOALS = (
    ("text", OURS, TRANSFORMERS, 1.5),
    ("text", OURS, LLAMA, 1.1),
    ("text", "ours bf16", OURS, 1.75),
    ("text", "ours bf16", "llama.cpp bfloat16", 1.25),
    ("text", "ours bf16", "llama.cpp float16", 1.25),
    ("text", "ours int8", OURS, 2.8),
    ("text", "ours int8", "llama.cpp q8_0", 1.4),
    ("first token", OURS, TRANSFORMERS, 1.0),
    ("8 samples", OURS, TRANSFORMERS, 1.0),
)
# Minimum of (time to read all weights once per token / our time) for "text", and of the tokens/s of "8 samples" / those
# of "text".
TARGET_SHARE, TARGET_BATCH = 0.75, 3.0
LLAMA_INSTALL = "npm install --ignore-scripts --no-save --prefix {} node-llama-cpp@3.22.1"


def main(arguments=None):
    options = parse_arguments(arguments)
    require_peers(options)
    cases = {name: case | {"new": min(case["new"], options.most_new)} for name, case in CASES.items()}
    rounds = run(cases, options)
    entry = summarise(cases, rounds) | {
        "threads": options.threads,
        "machine": machine(rounds),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }
    RESULTS.mkdir(exist_ok=True)
    with atomic_write(RESULTS / "generate.json") as file:
        file.write((json.dumps(entry, indent=1) + "\n").encode())
    from bench import report  # not before the workers run, see compare.main

    print(report.generation_tables(entry))
    report.draw_generation(entry, RESULTS / "generate.png")
    print(f"written to {RESULTS}: generate.json, generate.png")


def parse_arguments(arguments=None):
    """Returns the options as a namespace; exits with argparse's message if they are invalid."""
    parser = make_parser("Times text generation by this repository and by others in alternating processes.")
    add = parser.add_argument
    add("--peers", nargs="*", choices=PEERS, default=["transformers"], metavar="NAME", help=f"of {', '.join(PEERS)}")
    add("--most-new", type=int, default=256, metavar="N", help="limit on new tokens in every case")
    add("--llama-dir", type=pathlib.Path, default=BENCH, metavar="PATH", help="where npm installed node-llama-cpp")
    options = checked(parser, parser.parse_args(arguments))
    if options.most_new < 1:
        parser.error(f"--most-new {options.most_new}: expected 1 or more")
    return options


def llama_module(options):
    """Returns the path of the JavaScript module through which llama.cpp runs."""
    return options.llama_dir.absolute() / "node_modules/node-llama-cpp/dist/index.js"


def require_peers(options):
    """Raises UserError, saying how to install it, if a peer is not there."""
    if "transformers" in options.peers and not options.pytorch_python.is_file():
        raise UserError(f"{options.pytorch_python}: no such file; create it with: python bench/compare.py --setup")
    if "llama.cpp" in options.peers:
        gguf_file.library()
        if not shutil.which("node"):
            raise UserError("llama.cpp runs in Node.js, and there is no node on the PATH; install version 20 or later")
        if not llama_module(options).is_file():
            install = LLAMA_INSTALL.format(options.llama_dir)
            raise UserError(f"{llama_module(options)}: no such file; install it with: {install}")


def run(cases, options):
    """Runs all processes; returns a list of rounds, each a dict of process -> result."""
    gguf = {dtype: str(WORK / f"{dtype}.gguf") for dtype in gguf_file.DTYPES} if "llama.cpp" in options.peers else {}
    job = {"model": str(WORK / "model.bin"), "folder": str(WORK / "model"), "gguf": gguf, "sizes": GPT2_124M}
    job |= {"threads": options.threads, "cases": cases, "llama": str(llama_module(options))}
    processes = {
        f"{who} {weights}": (options.pytorch_python if who == "transformers" else sys.executable, worker, weights)
        for who, (worker, all_weights) in WORKERS.items()
        for weights in (all_weights if who in ("ours", *options.peers) else ())
    }

    def answer_of(who, label, **changes):
        python, worker, weights = processes[who]
        print(f"{label}: {who} ...", end=" ", flush=True)
        answer = ask(python, worker, job | {"weights": weights} | changes)
        print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in answer["seconds"].items()), flush=True)
        return answer

    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    try:
        # Creates the model's files and fills the cache of compiled code.
        answer_of(OURS, "preparation", cases={})
        rounds = []
        for number in range(options.pairs):
            label = f"round {number + 1}/{options.pairs}"
            order = list(processes) if number % 2 == 0 else list(reversed(processes))
            rounds.append({who: answer_of(who, label) for who in order})
            for who in {TRANSFORMERS, LLAMA} & processes.keys():
                check_tokens(rounds[-1][OURS]["tokens"], who, rounds[-1][who]["tokens"])
        return rounds
    finally:
        shutil.rmtree(WORK)


def check_tokens(ours, who, theirs):
    """Raises UserError unless the first tokens agree: timings of different computations cannot be compared.

    Later ones need not: the logits of random weights are so nearly equal that rounding may decide, and then all differ.
    """
    for name, tokens in theirs.items():
        for here, there in zip(ours[name], tokens, strict=True):
            if here[:CHECKED_TOKENS] != there[:CHECKED_TOKENS]:
                raise UserError(f"{name}: the first {CHECKED_TOKENS} tokens differ from those of {who}")


def summarise(cases, rounds):
    """Returns the results for the JSON file, a dict."""

    def seconds(who, name):
        return [answers[who]["seconds"][name] for answers in rounds]

    def rates(who, name):
        return [cases[name]["B"] * cases[name]["new"] / time for time in seconds(who, name)]

    processes = list(rounds[0])
    measured = {name: [who for who in processes if name in rounds[0][who]["seconds"]] for name in cases}
    goals = [
        {"what": f"{name}: {ours} / {theirs}", "target": target} | pair_ratios(rates(ours, name), rates(theirs, name))
        for name, ours, theirs, target in GOALS
        if {ours, theirs} <= set(measured[name])
    ]
    read = [1 / answers[OURS]["sum_s"] for answers in rounds]  # tokens/s
    goals.append(
        {"what": f"text: {OURS} / reading the weights", "target": TARGET_SHARE} | pair_ratios(rates(OURS, "text"), read)
    )
    batch = pair_ratios(rates(OURS, "8 samples"), rates(OURS, "text"))
    goals.append({"what": f"{OURS}: 8 samples / text", "target": TARGET_BATCH} | batch)
    return {
        "cases": {
            name: case | {"tokens_per_s": {who: spread(rates(who, name)) for who in measured[name]}}
            for name, case in cases.items()
        },
        "peak_bytes": {who: statistics.median(answers[who]["peak_bytes"] for answers in rounds) for who in processes},
        "goals": goals,
    }


def spread(values):
    """Returns a dict of the values' median, lowest and highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


if __name__ == "__main__":
    run_command(main)
