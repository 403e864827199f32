"""The benchmark's arithmetic, JSON and argument checks; nothing is timed here."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from bench import common, compare, report
from gpt2.errors import UserError, run_command

ROW = compare.ROWS["124M-4x1024"]


def made_up_round(ours, eager, numpy_ms, torch_ms):
    """Results of a round, from (median step in ms, peak in bytes) of both sides and the times of the bare products."""

    def answer(step_ms, peak_bytes):
        return {
            "step_ms": [step_ms / 2, step_ms, 3 * step_ms],
            "peak_bytes": peak_bytes,
            "versions": {"numpy": "2"},
            "stolen": 0.25,
        }

    bare = {"numpy": [numpy_ms] * 3, "torch": [torch_ms] * 3}
    return {"ours": answer(*ours), "eager": answer(*eager), "bare": {**answer(1.0, 1), "step_ms": bare}}


@pytest.fixture
def entry():
    rounds = [
        made_up_round((1000.0, 2e9), (1500.0, 4e9), 700.0, 650.0),
        made_up_round((2000.0, 2e9), (2000.0, 4e9), 800.0, 900.0),
        made_up_round((1250.0, 6e9), (2500.0, 5e9), 810.0, 1000.0),
    ]
    return compare.summarise(ROW, rounds, ["eager"])


def test_ratios_are_per_pair():
    # The ratio of the medians would be 2000 / 1250 = 1.6.
    ratios = compare.pair_ratios([1500.0, 2000.0, 2500.0], [1000.0, 2000.0, 1250.0])
    assert ratios == {"median": 1.5, "lowest": 1.0, "highest": 2.0, "pairs": [1.5, 1.0, 2.0]}
    assert compare.pair_ratios([3.0, 1.0], [1.0, 1.0])["median"] == 2.0


def test_pairs_must_be_complete():
    with pytest.raises(ValueError, match="shorter"):
        compare.pair_ratios([1.0, 2.0], [1.0])


def test_summary(entry):
    assert entry["ours"] == {"step_ms": 1250.0, "tokens_per_s": 4 * 1024 / 1.25, "peak_bytes": 2e9, "most_stolen": 0.25}
    eager = entry["pytorch"]["eager"]
    assert eager["step_ms"] == 2000.0
    assert eager["time"]["pairs"] == [1.5, 1.0, 2.0]
    assert eager["memory"]["pairs"] == [0.5, 0.5, 1.2]
    # NumPy's median, 800, is below PyTorch's, 900.
    assert entry["bare"]["library"] == "numpy"
    assert entry["bare"]["step_ms"] == 800.0
    assert entry["bare"]["share"]["pairs"] == [0.7, 0.4, 0.648]


def test_entry_is_strict_json_and_includes_the_row(entry):
    read_back = json.loads(json.dumps(entry, allow_nan=False))
    assert read_back == entry
    assert {field.name for field in dataclasses.fields(compare.Row)} < read_back.keys()
    baby = compare.ROWS["baby-12x64"]
    without_limit = compare.summarise(baby, [made_up_round((1.0, 1), (1.0, 1), 1.0, 1.0)], ["eager"])
    assert json.loads(json.dumps(without_limit, allow_nan=False))["target_bytes"] is None


def test_new_results_replace_only_their_rows(tmp_path):
    path = tmp_path / "results" / "compare.json"
    assert compare.read_results(path) == {}
    first, second, third = ({"ours": number, "pytorch": {}, "bare": {}} for number in (1, 2, 3))
    compare.write_results(path, {"baby-12x64": first, "124M-4x64": second})
    results = compare.read_results(path)
    compare.write_results(path, results | {"baby-12x64": third})
    assert list(compare.read_results(path).items()) == [("124M-4x64", second), ("baby-12x64", third)]


def test_corrupt_results_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "compare.json"
    for text, message in (("{", "not JSON"), ("[]", "not results"), ('{"124M-4x64": {}}', "not results")):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"compare\.json: {message}"):
            compare.read_results(path)


def test_table_marks_missed_targets(entry):
    line = report.table({ROW.name: entry}).splitlines()[-1]
    assert "1.50 (1.00-2.00)" in line
    assert ">=1.30 " in line and ">=1.30 !" not in line
    assert "<=0.60, <5.5 GB" in line and "GB !" not in line
    eager = entry["pytorch"]["eager"] | {"target_ratio": 1.6}
    missed = entry | {"pytorch": {"eager": eager}, "target_bytes": 2e9}
    line = report.table({ROW.name: missed}).splitlines()[-1]
    assert ">=1.60 !" in line and "<2.0 GB !" in line


def test_a_row_in_bf16_stands_beside_both_sides_in_float32(tmp_path):
    options = compare.parse_arguments(["--precision", "bf16", "--modes", "eager", "--pytorch-python", "python"])
    assert options.rows == ["124M-4x64-bf16", "124M-4x256-bf16", "124M-2x1024-bf16"]
    row = compare.ROWS["124M-4x64-bf16"]
    modes = compare.modes_of(row, options)
    assert modes == ["eager", "ours-float32", "eager-float32"]
    assert compare.modes_of(ROW, options) == ["eager"]
    rounds = [made_up_round((500.0, 2e9), (1100.0, 2e9), 1.0, 1.0)]
    for round_ in rounds:
        round_ |= {"ours-float32": made_up_round((850.0, 2e9), (1.0, 1), 1.0, 1.0)["ours"]}
        round_ |= {"eager-float32": round_["eager"]}
    entry = compare.summarise(row, rounds, modes)
    first, second, third = report.table({row.name: entry}).splitlines()[-3:]
    assert "2.20 (2.20-2.20)" in first and ">=2.10 " in first and ">=2.10 !" not in first
    assert "1.70 (1.70-1.70)" in second and ">=1.79 !" in second
    assert third.startswith("124M-4x64-bf16 eager-float32") and ">=2" not in third
    report.draw({row.name: entry}, tmp_path)


def test_plots_are_written(entry, tmp_path):
    report.draw({ROW.name: entry}, tmp_path)
    for name in ("compare_time.png", "compare_memory.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_disturbed_process_is_repeated_and_the_least_disturbed_run_counts():
    for stolen, expected, left in (
        ([0.04, 0.0], 0.04, 1),
        ([0.5, 0.051, 0.05, 0.01], 0.05, 1),
        ([0.5, 0.2, 0.3, 0.4, 0.0], 0.2, 1),
    ):
        answers = [{"stolen": share} for share in stolen]
        assert compare.least_disturbed(lambda answers=answers: answers.pop(0)) == {"stolen": expected}
        assert len(answers) == left


def test_stolen_time_is_a_fraction_of_all_cpu_time():
    assert compare.stolen((10, 1000), (60, 1200)) == 0.25
    assert compare.stolen((0, 1), (0, 1)) == 0.0
    taken, everything = compare.cpu_times()
    assert 0 <= taken < everything


def test_different_losses_are_an_error():
    ours = [4.0, 3.5, 3.0, 2.5, 2.0, 1.0]
    compare.check_losses(ROW, ours, "eager", [loss * 1.0009 for loss in ours[:3]] + [9.0] * 3)
    for step, wrong in ((2, 3.51), (3, float("nan"))):
        theirs = ours[: step - 1] + [wrong] + ours[step:]
        with pytest.raises(UserError, match=rf"124M-4x1024: loss of step {step} .*\(compile\)"):
            compare.check_losses(ROW, ours, "compile", theirs)


def test_every_row_runs_enough_steps_to_check_losses():
    assert all(row.steps + compare.WARMUP_STEPS >= compare.CHECKED_STEPS for row in compare.ROWS.values())


def test_warmup_is_not_timed_but_its_results_are_kept():
    results = iter(range(9))
    milliseconds, returned = common.time_steps(lambda: next(results), {"warmup_steps": 2, "steps": 3})
    assert len(milliseconds) == 3
    assert returned == [0, 1, 2, 3, 4]


def test_batch_is_deterministic():
    job = {"B": 3, "T": 5, "sizes": {"V": 7}}
    tokens, targets = common.batch(job)
    assert tokens.shape == targets.shape == (3, 5)
    assert np.array_equal(tokens[:, 1:], targets[:, :-1])
    assert tokens.min() >= 0 and targets.max() < 7
    assert all(np.array_equal(*pair) for pair in zip((tokens, targets), common.batch(job), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "124M-9x9"], "'124M-9x9'"),
        (["--modes", "lazy"], "'lazy'"),
        (["--pairs", "0"], "--pairs 0: expected 1 or more"),
        (["--threads", "0"], "--threads 0: expected 1 to"),
        (["--threads", "9999"], "--threads 9999: expected 1 to"),
    ],
)
def test_bad_arguments_are_rejected_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        compare.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_missing_environment_is_one_line_that_says_how_to_create_it(tmp_path):
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: compare.main(["--pytorch-python", str(tmp_path / "python")]))
    line = str(ended.value.code)
    assert str(tmp_path / "python") in line and line.endswith("--setup") and "\n" not in line


def test_default_environment_is_the_one_that_setup_creates():
    assert compare.parse_arguments([]).pytorch_python == pathlib.Path(compare.__file__).parent / ".venv/bin/python"
