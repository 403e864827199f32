"""The arithmetic, tables and checks of bench/generate.py; nothing is timed here."""

import json

import pytest

from bench import generate, report
from gpt2.errors import UserError, run_command

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


def test_other_tokens_are_refused():
    tokens = {"text": [[1, 2]], "8 samples": [[3], [4]]}
    generate.check_tokens(tokens, "transformers float32", tokens)
    generate.check_tokens(tokens, "llama.cpp float32", {"text": [[1, 2]]})
    with pytest.raises(UserError, match=r"^8 samples: tokens generated here differ from those of llama.cpp float32$"):
        generate.check_tokens(tokens, "llama.cpp float32", {"8 samples": [[3], [5]]})
