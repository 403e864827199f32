"""The arithmetic, tables and picture of bench/scaling.py, and a short run of it on a small model."""

import json

import pytest

from bench import report, scaling
from gpt2.errors import UserError
from tests.support.ranks import needs_mpi

SIZE = 10**9


def trained(step_ms, exchange_ms=0.0):
    """A result of `scaling.train`."""
    times = {"step_ms": step_ms, "gradients_ms": 0.75 * step_ms, "update_ms": 20.0, "exchange_ms": exchange_ms}
    return times | {"peak_bytes": 2e9, "stolen": 0.1}


@pytest.fixture
def entry():
    rounds = [{1: trained(1000.0), 2: trained(1200.0, 80.0)}, {1: trained(2000.0), 2: trained(2000.0, 90.0)}]
    seconds = {"reduce": [0.5, 0.25, 0.75], "gather": [0.25] * 3, "Allreduce": [1.0] * 3}
    exchanges = {way: {"seconds": seconds, "ranks": 2} for way in scaling.WAYS}
    return scaling.summarise(rounds, exchanges, SIZE)


def test_the_ratio_is_of_pairs_and_the_rates_are_of_bytes_that_a_rank_sends(entry):
    assert entry["ratio"]["pairs"] == pytest.approx([1.2, 1.0])
    assert entry["steps"]["2"]["exchange_ms"] == 85 and entry["steps"]["1"]["most_stolen"] == 0.1
    found = entry["exchanges"]["TCP loopback"]
    assert found["reduce"] == {"ms": 500, "lowest_ms": 250, "gb_per_s": 4.0, "target_ms": 800}
    assert found["Allreduce"]["gb_per_s"] == 4.0 and found["Allreduce"]["target_ms"] is None
    json.dumps(entry, allow_nan=False)


def test_missed_goals_are_marked(entry):
    lines = report.scaling_tables(entry).splitlines()
    (reduce,) = [line for line in lines if line.startswith("shared memory  reduce")]
    assert "<=350 !" in reduce
    assert sum(" !" in line for line in lines) == 1
    entry["ratio"]["median"] = 1.11
    assert "target <=1.10 !" in report.scaling_tables(entry)


def test_what_is_drawn_reaches_1024_nodes(entry, tmp_path):
    # 512 tokens in 1.5 s here, and 5,000 tokens a second; three networks each.
    rates = [name.partition(" tok/s")[0] for name in entry["reckoned"]]
    assert rates == ["341"] * 3 + ["5,000"] * 3
    assert all(list(line)[-1] == "1024" and line["1"] == 1 for line in entry["reckoned"].values())
    report.draw_scaling(entry, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.parametrize("options", ["--pairs 0", "--size huge"])
def test_bad_options_are_refused(options):
    with pytest.raises(SystemExit):
        scaling.parse_arguments(options.split())


@needs_mpi
@pytest.mark.slow
def test_messages_that_take_another_way_are_refused(monkeypatch, capsys):
    answer = scaling.exchange("TCP loopback", 100_000, 2)
    assert min(answer["loopback_bytes"].values()) >= 400_000 and len(answer["seconds"]["reduce"]) == 2
    monkeypatch.setitem(scaling.WAYS, "TCP loopback", ({"UCX_TLS": "tcp,self"}, {}))
    with pytest.raises(UserError, match="did not go through TCP loopback"):
        scaling.exchange("TCP loopback", 100_000, 1)


@needs_mpi
@pytest.mark.slow
@pytest.mark.skipif(scaling.available_threads() < 2, reason="two ranks need two CPUs")
def test_a_run_on_a_small_model_prints_the_tables_and_keeps_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "RESULTS", tmp_path / "results")
    scaling.main("--size baby --pairs 1 --steps 1 --times 1".split())
    assert "step, 2 ranks / 1: " in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
