"""Products of bfloat16 in the CPU's form; with AVX512_BF16 but no AMX, the AMX form also runs, in an emulator."""

import ctypes
import mmap
import sys

import numba
import numpy as np
import pytest
from numba.core import codegen

from gpt2 import GPT2, AdamW, GPT2Config
from gpt2.kernels.engine import threads
from gpt2.kernels.engine.gemm import gemm
from gpt2.kernels.engine.target import AVX512_BF16, bf16_form
from gpt2.kernels.matmul import matmul_nn, matmul_nt, matmul_tn
from tests.support.numeric import assert_close, random_batch, randomise, to_bfloat16
from tests.support.other_cpu import run_tests

TRANSPOSES = [(False, False), (False, True), (True, False), (True, True)]
# Around the sizes of AMX's tile (16), block (32) and panel (depth 256), and of the packed a (384).
SIZES = [
    (1, 1, 1),
    (5, 64, 16),
    (16, 5, 31),
    (31, 33, 64),
    (32, 32, 32),
    (33, 31, 5),
    (47, 16, 33),
    (64, 47, 47),
    (64, 64, 256),
    (32, 65, 257),
    (65, 32, 512),
    (385, 1, 34),
    (384, 33, 2),
    (1, 385, 800),
    (417, 96, 1),
]
SCALES = [(1.0, 0.0), (1.0, 1.0), (1.0, 0.5), (0.25, 0.0), (0.25, 1.0), (0.25, 0.5)]

emulator = sys.modules.get("tests.support.amx")  # where these tests run in it
compiled_only = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="tests the compiled product")


@numba.njit
def product(c, a, b, transpose_a, transpose_b, alpha, beta):
    gemm(c, a, b, transpose_a, transpose_b, alpha, beta, True)


@pytest.fixture(autouse=True)
def released():
    yield
    assert emulator is None or emulator.configured() == 0, "tiles that were not released"


class Guarded:
    """A float32 matrix among NaNs, whose last element is the last before memory that must not be touched."""

    def __init__(self, numbers, gap):
        """numbers: float32 (rows,columns). gap: elements between rows."""
        rows, columns = numbers.shape
        pages = -(-rows * (columns + gap) * 4 // mmap.PAGESIZE) + 1
        memory = np.frombuffer(mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE), np.float32)
        self._usable = memory[: pages * mmap.PAGESIZE // 4]
        end = ctypes.c_void_p(self._usable.ctypes.data + self._usable.nbytes)
        assert ctypes.CDLL(None).mprotect(end, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        self._usable.fill(np.nan)
        first = self._usable.size - rows * (columns + gap) + gap
        strides = (columns + gap) * 4, 4
        self.matrix = np.lib.stride_tricks.as_strided(self._usable[first:], (rows, columns), strides)
        self.matrix[...] = numbers

    def is_untouched_around(self):
        """Returns whether the NaNs are still there."""
        return np.isnan(self._usable).sum() == self._usable.size - self.matrix.size + np.isnan(self.matrix).sum()


def factors(rng, M, N, K, transpose_a, transpose_b):
    a = rng.standard_normal((K, M) if transpose_a else (M, K), np.float32)
    b = rng.standard_normal((N, K) if transpose_b else (K, N), np.float32)
    return a, b


@compiled_only
@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSES)
def test_a_product_touches_its_matrices_alone(transpose_a, transpose_b):
    for M, N, K in SIZES:
        check_product(M, N, K, transpose_a, transpose_b)


def check_product(M, N, K, transpose_a, transpose_b):
    rng = np.random.default_rng(7)
    a, b = factors(rng, M, N, K, transpose_a, transpose_b)
    rounded_a, rounded_b = to_bfloat16(a), to_bfloat16(b)
    exact = (rounded_a.T if transpose_a else rounded_a) @ (rounded_b.T if transpose_b else rounded_b)
    guarded_a, guarded_b = Guarded(a, gap=3), Guarded(b, gap=7)
    unknown = np.full((64, 256), np.nan, np.float32)
    for alpha, beta in SCALES:
        # This one leaves NaNs in the packed parts, on the stack.
        product(np.empty((64, 64), np.float32), unknown, unknown, False, True, 1.0, 0.0)
        before = rng.standard_normal((M, N), np.float32)
        c = Guarded(before if beta else np.full_like(before, np.nan), gap=5)
        product(c.matrix, guarded_a.matrix, guarded_b.matrix, transpose_a, transpose_b, alpha, beta)
        assert_close(c.matrix, alpha * exact + beta * before, 1e-6, f"{M} x {N} x {K}, alpha {alpha}, beta {beta}")
        assert c.is_untouched_around()
    assert guarded_a.is_untouched_around() and guarded_b.is_untouched_around()


@compiled_only
@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSES)
def test_the_parts_of_a_product_have_its_bits(transpose_a, transpose_b):
    for alpha, beta in SCALES:
        check_parts(100, 101, 800, transpose_a, transpose_b, alpha, beta)


def check_parts(M, N, K, transpose_a, transpose_b, alpha, beta):
    rng = np.random.default_rng(8)
    a, b = factors(rng, M, N, K, transpose_a, transpose_b)
    before = rng.standard_normal((M, N), np.float32)
    whole, parts = before.copy(), before.copy()
    product(whole, a, b, transpose_a, transpose_b, alpha, beta)
    for top, bottom in ((0, 1), (1, 17), (17, 49), (49, M)):
        for left, right in ((0, 31), (31, 33), (33, 97), (97, N)):
            part_a = a[:, top:bottom] if transpose_a else a[top:bottom]
            part_b = b[left:right] if transpose_b else b[:, left:right]
            product(parts[top:bottom, left:right], part_a, part_b, transpose_a, transpose_b, alpha, beta)
    assert parts.tobytes() == whole.tobytes(), f"alpha {alpha}, beta {beta}"


@compiled_only
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 3, reason="NUMBA_NUM_THREADS is below 3")
def test_threads_have_tiles_of_their_own():
    rng = np.random.default_rng(9)
    inp, weight = (rng.standard_normal((rows, 400), np.float32) for rows in (200, 210))
    out, dinp, dweight = (np.empty(shape, np.float32) for shape in ((200, 210), (200, 400), (210, 400)))
    results, before = [], numba.get_num_threads()
    try:
        for number in (1, 3):
            threads.set_threads(number)
            matmul_nt(out, inp, weight, True)
            matmul_nn(dinp, out, weight, True)
            matmul_tn(dweight, out, inp, 0.0, True)
            results.append((out.tobytes(), dinp.tobytes(), dweight.tobytes()))
    finally:
        threads.set_threads(before)
    assert results[0] == results[1]
    inp, weight, dout = map(to_bfloat16, (inp, weight, out))
    assert_close(out, inp @ weight.T, 1e-6)
    assert_close(dinp, dout @ weight, 1e-6)
    assert_close(dweight, dout.T @ inp, 1e-6)


@compiled_only
def test_a_model_learns_with_it():
    config = GPT2Config(maxT=8, V=50, L=2, NH=2, C=12)
    rng, losses = np.random.default_rng(10), []
    tokens, targets = random_batch(config, 2, 8, rng)
    for bf16 in (False, True):
        model = GPT2(config, seed=1)
        randomise(model, np.random.default_rng(11))
        model.bf16, optimizer = bf16, AdamW(model)
        losses.append([])
        for _ in range(3):
            losses[-1].append(model.overwrite_gradients(tokens, targets))
            optimizer.step(1e-2)
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=5e-3) and losses[1][-1] < losses[1][0]


EMULATED = """
import sys, pytest
from gpt2.kernels.engine import jit, target
target.permits_amx = lambda: True
jit.on_cache_miss(None)  # another process would not have this permission
from tests.support import amx
amx.install()
tests = ["tests/kernels/engine/test_product_bf16.py", "tests/kernels/engine/test_gemm.py"]
# pytest's faulthandler would take SIGILL over.
options = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-m", "not slow", "-k", "not concurrent"]
status = pytest.main([*options, *tests])
assert len(amx.executed()) >= 3, amx.executed()
sys.exit(status)
"""


@compiled_only
@pytest.mark.slow
@pytest.mark.skipif(bf16_form() != AVX512_BF16, reason="a CPU with AVX512_BF16, but not AMX, expected")
def test_the_machine_code_of_amx_in_an_emulator(tmp_path):
    features = set(codegen.get_host_cpu_features().split(",")) - {"-amx-tile", "-amx-bf16"} | {"+amx-tile", "+amx-bf16"}
    run_tests(
        EMULATED,
        NUMBA_CPU_FEATURES=",".join(sorted(features)),
        NUMBA_NUM_THREADS="3",
        NUMBA_CACHE_DIR=str(tmp_path),  # permission comes after the kernels' folder was chosen
    )
