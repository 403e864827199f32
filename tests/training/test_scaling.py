"""The cost model of several nodes, against arithmetic by hand."""

import pytest

from gpt2 import profile as command
from gpt2.errors import UserError
from gpt2.training import scaling


def test_a_step_is_computation_then_two_exchanges():
    # 1,000 tokens at 100 a second, and three quarters of 2 GB at 1 GB/s, twice; 6 messages.
    assert scaling.step_seconds(4, 1000, 100, 2e9, 1e9) == pytest.approx(10 + 2 * 1.5 + 6 * 50e-6)
    assert scaling.step_seconds(1, 1000, 100, 2e9, 1e9) == 10
    assert scaling.efficiency(4, 1000, 100, 2e9, 1e9) == pytest.approx(10 / 13.0003)


def test_the_table_is_of_one_batch_shared_out_and_of_one_a_node():
    lines = []
    scaling.print_table(5000, 1024, 498e6, 1.1e9, 12, lines.append)
    rows = [line.replace(",", "").split() for line in lines[2:]]
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "12"]
    assert rows[0][1:] == ["104.86", "5000", "100%", "0.20", "5000", "100%"]
    # 8 nodes: 65,536 tokens take 13.107 s or 1,024 take 0.205, the exchange 0.793.
    assert rows[3][1:] == ["13.90", "37718", "94%", "1.00", "8210", "21%"]


def test_the_command_measures_and_reckons(capsys):
    command.main("--size baby -b 1 -t 8 --steps 1 --nodes 2 --bandwidth 2.5 --threads 1".split())
    out = capsys.readouterr().out
    assert "2.5 GB/s each" in out and len(out.splitlines()) == 6


def test_a_bandwidth_alone_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--bandwidth", "2"])
    assert "--bandwidth goes with --nodes" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["--nodes 0", "--nodes 2 --bandwidth 0", "--nodes 2 --bandwidth nan"])
def test_bad_values_are_refused(options):
    with pytest.raises(UserError, match="--nodes starts at 1"):
        command.main(options.split())
