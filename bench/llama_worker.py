"""Generates greedily with llama.cpp, one sample at a time: becomes the Node.js process of llama_worker.mjs."""

import json
import os
import pathlib

from bench import common

SCRIPT = pathlib.Path(__file__).with_suffix(".mjs")


def main():
    job = common.read_job()
    cases = [
        case | {"name": name, "prompt": common.prompt_of(case, job).tolist()}
        for name, case in job["cases"].items()
        if case["B"] == 1
    ]
    own = {"module": job["llama"], "gguf": job["gguf"][job["weights"]], "threads": job["threads"], "cases": cases}
    own["warmup_tokens"] = common.WARMUP_TOKENS
    os.execvp("node", ["node", str(SCRIPT), json.dumps(own)])


if __name__ == "__main__":
    main()
