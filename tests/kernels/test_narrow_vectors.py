"""The kernels on CPUs without AVX-512: compiled for a smaller instruction set than this machine's."""

import platform

import pytest

from tests.support.other_cpu import run_tests

pytestmark = pytest.mark.slow

TESTS = [
    f"tests/{name}.py"
    for name in (
        "kernels/engine/test_gemm",
        "kernels/engine/test_fastmath",
        "kernels/test_gelu",
        "kernels/test_attention",
        "kernels/test_classifier",
        "kernels/test_dropout",
        "inference/test_decoder",
    )
]
X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.mark.skipif(not X86, reason="the instruction sets are those of x86")
@pytest.mark.parametrize(
    ("name", "features", "vector_bytes"),
    [("haswell", "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2", 32), ("nehalem", "+sse4.2", 16)],
)
def test_the_kernels_with_shorter_vectors_and_fewer_registers(name, features, vector_bytes):
    script = (
        "import sys, pytest\n"
        "from gpt2.kernels.engine import simd\n"
        f"assert (simd.VECTOR_BYTES, simd.TILE_ROWS) == ({vector_bytes}, 4), simd.VECTOR_BYTES\n"
        f"tests = {TESTS!r}\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'not concurrent', *tests]))\n"
    )
    run_tests(script, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
