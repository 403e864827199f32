"""The arithmetic, tables and checks of bench/generate.py, and our worker on a tiny model."""

import json
import sys

import pytest

from bench import decoder_worker, generate, report
from gpt2.errors import UserError, run_command
from gpt2.inference.weights import form_of

CASES = {name: case | {"new": min(case["new"], 100)} for name, case in generate.CASES.items()}


def answer(text, samples=None, sum_s=0.01):
    """Returns a worker's result of a text, and of 8 samples, that take so many seconds."""
    seconds = {"text": text, "first token": 0.5} | ({"8 samples": samples} if samples else {})
    return {"seconds": seconds, "peak_bytes": 5e8, "versions": {"numpy": "2"}, "sum_s": sum_s}


@pytest.fixture
def entry():
    rounds = [
        {"ours float32": answer(2.0, 5.0), "transformers float32": answer(4.0, 5.0), "llama.cpp float32": answer(3.0)},
        {"ours float32": answer(4.0, 8.0), "transformers float32": answer(4.0, 9.0), "llama.cpp float32": answer(4.0)},
        {"ours float32": answer(2.5, 4.0), "transformers float32": answer(5.0, 9.0), "llama.cpp float32": answer(1.0)},
    ]
    return generate.summarise(CASES, rounds)


def test_goals_are_ratios_of_speed_per_round(entry):
    goals = {goal["what"]: goal for goal in entry["goals"]}
    assert goals["text: ours float32 / transformers float32"]["pairs"] == [2.0, 1.0, 2.0]
    assert goals["text: ours float32 / llama.cpp float32"]["pairs"] == pytest.approx([1.5, 1.0, 0.4])
    assert goals["text: ours float32 / reading the weights"]["pairs"] == pytest.approx([0.5, 0.25, 0.4])
    assert goals["ours float32: 8 samples / text"]["pairs"] == pytest.approx([3.2, 4.0, 5.0])
    # What was not measured has no goal: here bf16, and llama.cpp's eight samples.
    assert len(goals) == 6


def test_rates_are_tokens_a_second(entry):
    text, samples = (entry["cases"][name]["tokens_per_s"] for name in ("text", "8 samples"))
    assert text["ours float32"] == {"median": 40.0, "lowest": 25.0, "highest": 50.0}
    assert samples["ours float32"]["median"] == 160.0
    assert "llama.cpp float32" not in samples
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_tables_and_plot(entry, tmp_path):
    rates, goals = report.generation_tables(entry).split("\n\n")
    assert "40.0 (25.0-50.0)" in next(line for line in rates.splitlines() if line.startswith("ours float32"))
    ends = {line.split("  ")[0]: line.endswith("!") for line in goals.splitlines()[1:]}
    assert not ends["text: ours float32 / transformers float32"]
    assert ends["text: ours float32 / llama.cpp float32"]
    report.draw_generation(entry | {"threads": 2}, tmp_path / "generate.png")
    assert (tmp_path / "generate.png").read_bytes().startswith(b"\x89PNG")


def error_of(arguments):
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: generate.main(arguments))
    return str(caught.value.code)


def test_what_is_missing_is_named_with_how_to_install_it(tmp_path, monkeypatch):
    there = ["--llama-dir", str(tmp_path), "--peers", "llama.cpp"]
    monkeypatch.setattr(generate.shutil, "which", lambda name: None)
    assert "no node on the PATH" in error_of(there)
    monkeypatch.setattr(generate.shutil, "which", lambda name: "/bin/node")
    found = error_of(there)
    assert f"no such file; install it with: npm install --ignore-scripts --no-save --prefix {tmp_path} " in found
    assert "compare.py --setup" in error_of(["--pytorch-python", str(tmp_path / "python")])


def test_other_first_tokens_are_refused():
    count = generate.CHECKED_TOKENS
    tokens = {"text": [[1] * count + [2]], "8 samples": [[3] * count, [4] * count]}
    generate.check_tokens(tokens, "transformers float32", tokens)
    generate.check_tokens(tokens, "llama.cpp float32", {"text": [[1] * count + [5]]})
    with pytest.raises(
        UserError, match=rf"^8 samples: the first {count} tokens differ from those of llama.cpp float32$"
    ):
        generate.check_tokens(tokens, "llama.cpp float32", {"8 samples": [[3] * count, [4] * (count - 1) + [5]]})


@pytest.mark.slow
@pytest.mark.parametrize("weights", generate.WORKERS["ours"][1])
def test_our_worker_generates_from_every_form_of_weights(tmp_path, monkeypatch, capsys, weights):
    job = {"model": str(tmp_path / "model.bin"), "folder": str(tmp_path / "model"), "gguf": {}, "threads": 1}
    job |= {"sizes": {"maxT": 18, "V": 50, "L": 1, "NH": 1, "C": 32}, "weights": weights}
    job["cases"] = {"text": {"B": 2, "prompt": 3, "new": 5, "times": 1}}
    used, converted = [], decoder_worker.converted
    monkeypatch.setattr(decoder_worker, "converted", lambda *args: used.append(converted(*args)) or used[-1])
    monkeypatch.setattr(sys, "argv", ["decoder_worker", json.dumps(job)])
    decoder_worker.main()
    answer = json.loads(capsys.readouterr().out)
    assert form_of(used[0]) == weights
    assert answer["seconds"]["text"] > 0 and answer["sum_s"] > 0
    assert [len(sample) for sample in answer["tokens"]["text"]] == [5, 5]
