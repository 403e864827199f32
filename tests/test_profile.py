"""The profile's arithmetic; no test here asserts how long anything takes."""

import numba
import numpy as np
import pytest

from gpt2 import model as model_module
from gpt2 import profile as command
from gpt2.config import GPT2Config
from gpt2.errors import UserError
from gpt2.kernels.engine.peak import add_scaled, products_in_cache
from gpt2.model import GPT2
from gpt2.optimizer import AdamW
from gpt2.training import profiler as profile
from tests.support.numeric import assert_close, random_batch

CONFIG = GPT2Config(maxT=16, V=60, L=3, NH=2, C=32)
compiled_only = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="kernels are told by how they are compiled")


@pytest.fixture
def records():
    """What one step of a small model records."""
    model = GPT2(CONFIG)
    tokens, targets = random_batch(CONFIG, 2, 10, np.random.default_rng(1))
    before = model_module.matmul_forward
    with profile.Profiler(model) as profiler:
        assert model_module.matmul_forward is not before
        model.overwrite_gradients(tokens, targets)
        AdamW(model).step(1e-3)
    assert model_module.matmul_forward is before
    return profiler.records


@compiled_only
def test_every_layer_is_named_by_its_parameters(records):
    layers = {phase: {layer for p, _, layer in records if p == phase} for phase in profile.PHASES}
    linear = {"qkv", "attproj", "fc", "fcproj", "wte", "ln1", "ln2", "lnf"}
    assert layers["forward"] == linear | {"attention", "classifier"}
    assert layers["backward"] == linear | {"attention", "classifier"}
    assert layers["update"] == {"parameters"}
    # The backward pass makes the layernorms' outputs again.
    assert records["backward", "layernorm_forward", "ln1"][0] == CONFIG.L


@compiled_only
def test_operations_of_the_products_are_six_for_each_weight_and_token(records):
    products = {key: record for key, record in records.items() if "matmul" in key[1]}
    weights = CONFIG.L * 12 * CONFIG.C**2 + CONFIG.Vp * CONFIG.C
    assert sum(record[2] for record in products.values()) == 6 * weights * 20
    launches, _, operations, _ = records["forward", "matmul_forward", "qkv"]
    assert (launches, operations) == (3, 3 * 2 * 20 * 3 * CONFIG.C**2)


@compiled_only
def test_traffic_of_adamw_is_28_bytes_a_parameter(records):
    assert records["update", "adamw_update", "parameters"][3] == 28 * GPT2(CONFIG).params_flat.size


@compiled_only
def test_the_totals_add_up_to_the_step(records):
    lines = []
    seconds = sum(record[1] for record in records.values()) + 0.5
    profile.print_table(records, seconds, 1, 1e12, 1e10, lines.append)
    totals = {name: float(line[54:64]) for line in lines[1:] if (name := line[:54].strip()) and line[0] != " "}
    assert totals["Python, between the kernels"] == pytest.approx(500, abs=0.02)
    parts = [totals[name] for name in (*profile.PHASES, "Python, between the kernels")]
    assert sum(parts) == pytest.approx(totals["step"], abs=0.05)
    assert len(lines) == 1 + len(records) + len(totals)


def test_the_kernels_that_measure_the_machine_do_compute():
    a, b = np.random.default_rng(2).standard_normal((2, 3, 20, 20))
    c = np.empty_like(a)
    products_in_cache(c, a, b, 2, False)
    assert_close(c, a @ b, 1e-14)
    out = np.ones(40_000)
    add_scaled(out, np.arange(40_000.0))
    assert np.array_equal(out, 1 + np.arange(40_000) / 2)


@pytest.mark.parametrize("option", ["-b", "-t", "--steps"])
def test_sizes_start_at_one(option):
    with pytest.raises(UserError, match="start at 1"):
        command.main([option, "0"])
