import numba
import pytest
from numba.core import codegen

from gpt2.kernels.engine import target

AVX512 = "+avx512f,+avx512bf16"
TILES = f"{AVX512},+amx-tile,+amx-bf16"


@pytest.mark.parametrize(
    ("features", "permitted", "variable", "form"),
    [
        ("+avx512f", True, "", None),
        (AVX512, True, "", target.AVX512_BF16),
        (TILES, True, "", target.AMX),
        (TILES, False, "", target.AVX512_BF16),
        (f"{AVX512},+amx-tile,+amx-int8", True, "", target.AVX512_BF16),
        ("+avx512f,+amx-tile,+amx-bf16", True, "", None),  # which could not pack the factors
        (TILES, True, "portable", target.PORTABLE),
        ("+avx2", True, "portable", target.PORTABLE),
    ],
)
def test_the_form_of_bfloat16_products(monkeypatch, features, permitted, variable, form):
    monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
    monkeypatch.setattr(target, "permits_amx", lambda: permitted)
    monkeypatch.setenv("GPT2_BF16", variable)
    assert target.bf16_form() == form


def test_machine_code_of_another_form_is_other_code(monkeypatch):
    monkeypatch.setattr(numba.config, "CPU_FEATURES", TILES)
    monkeypatch.delenv(target.BF16_VARIABLE, raising=False)
    keys = set()
    for permitted in (True, False):
        monkeypatch.setattr(target, "permits_amx", lambda permitted=permitted: permitted)
        keys.add(target.code_key.__wrapped__())
    assert len(keys) == 2


@pytest.mark.skipif("+amx-tile" in codegen.get_host_cpu_features(), reason="this CPU has AMX")
def test_a_system_without_amx_does_not_permit_it():
    assert not target.permits_amx.__wrapped__()
