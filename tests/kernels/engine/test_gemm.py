import numba
import numpy as np
import pytest

from gpt2.kernels.engine import threads
from gpt2.kernels.engine.gemm import gemm
from gpt2.kernels.matmul import matmul_forward, matmul_nn, matmul_tn
from tests.support.numeric import assert_close, both_precisions, tiny, to_bfloat16

compiled_only = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="tests the compiled product")


@numba.njit
def product(c, a, b, transpose_a, transpose_b, alpha, beta, bf16=False):
    gemm(c, a, b, transpose_a, transpose_b, alpha, beta, bf16)


@both_precisions(1e-6, 1e-14)
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1.0, 0.5])
def test_gemm_of_parts_of_matrices_tiny(dtype, tolerance, transpose_a, transpose_b, beta):
    M, N, K = 5, 3, 7
    rng = np.random.default_rng(1)
    a = rng.standard_normal((9, 20)).astype(dtype)[2:, 4:][slice(K if transpose_a else M), : M if transpose_a else K]
    b = rng.standard_normal((9, 20)).astype(dtype)[1:, 3:][slice(N if transpose_b else K), : K if transpose_b else N]
    whole = rng.standard_normal((8, 11)).astype(dtype)
    c, before = whole[2 : 2 + M, 1 : 1 + N], whole.astype(float)
    expected = before.copy()
    expected[2 : 2 + M, 1 : 1 + N] *= beta
    expected[2 : 2 + M, 1 : 1 + N] += 0.25 * (a.T if transpose_a else a).astype(float) @ (b.T if transpose_b else b)
    if beta == 0:
        c.fill(np.nan)  # c must not be read
    product(c, a, b, transpose_a, transpose_b, 0.25, beta)
    assert_close(whole, expected, tolerance)


# Around the sizes of a tile (8 or 4 rows; 48, 24 or 12 columns; vectors of 16, 8 or 4), of a panel (depth 192) and of
# the packed a (384 rows in float32, 192 in float64).
@compiled_only
@both_precisions(2e-6, 1e-13)
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [(1, 1, 1), (8, 48, 192), (9, 49, 193), (7, 47, 191), (16, 65, 400), (386, 33, 17), (3, 100, 31), (24, 16, 32)],
)
def test_gemm_past_every_edge(M, N, K, dtype, tolerance, transpose_a, transpose_b):
    rng = np.random.default_rng(3)
    a = rng.standard_normal((K, M) if transpose_a else (M, K)).astype(dtype)
    b = rng.standard_normal((N, K) if transpose_b else (K, N)).astype(dtype)
    whole = rng.standard_normal((M + 2, N + 2)).astype(dtype)
    expected = whole.astype(float)
    exact = (a.T if transpose_a else a).astype(float) @ (b.T if transpose_b else b)
    for beta in (0.0, 1.0):
        expected[1:-1, 1:-1] = exact + (expected[1:-1, 1:-1] if beta else 0)
        product(whole[1:-1, 1:-1], a, b, transpose_a, transpose_b, 1.0, beta)
        assert_close(whole, expected, tolerance)


# Around the sizes of a tile (8 rows, 48 columns, vectors of 16), of pairs of bfloat16 in vectors (32), of a panel
# (depth 384), of the packed a (384 rows), and of the portable form's blocks (96).
BF16_SIZES = [
    (8, 48, 384),
    (9, 49, 385),
    (7, 47, 383),
    (17, 65, 800),
    (386, 33, 17),
    (3, 100, 31),
    (97, 95, 193),
    (1, 1, 2),
]


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [tiny(1, 1, 1), tiny(5, 3, 7), *BF16_SIZES])
def test_gemm_of_rounded_factors(M, N, K, transpose_a, transpose_b):
    rng = np.random.default_rng(5)
    a = rng.standard_normal((K, M) if transpose_a else (M, K), np.float32)
    b = rng.standard_normal((N, K) if transpose_b else (K, N), np.float32)
    whole = rng.standard_normal((M + 2, N + 2), np.float32)
    expected, part = whole.astype(float), whole[1:-1, 1:-1]
    rounded_a, rounded_b = to_bfloat16(a), to_bfloat16(b)
    exact = (rounded_a.T if transpose_a else rounded_a) @ (rounded_b.T if transpose_b else rounded_b)
    for beta in (0.0, 1.0, 0.5):
        expected[1:-1, 1:-1] = 0.25 * exact + (beta * expected[1:-1, 1:-1] if beta else 0)
        if beta == 0:
            part.fill(np.nan)  # must not be read
        product(part, a, b, transpose_a, transpose_b, 0.25, beta, True)
        assert_close(whole, expected, 1e-6)


def test_factors_are_rounded_to_nearest_even_tiny():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000, 0x7F7FFFFF, 0x7F800000], np.uint32)
    rounded = np.array([0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF82, 0x7F80, 0x7F80], np.uint32) << 16
    one, column = np.ones((1, 1), np.float32), bits.view(np.float32).reshape(-1, 1)
    c = np.empty((len(bits), 1), np.float32)
    product(c, column, one, False, False, 1.0, 0.0, True)
    assert np.array_equal(c[:, 0].view(np.uint32), rounded)
    row = np.empty((1, len(bits)), np.float32)
    product(row, one, column, False, True, 1.0, 0.0, True)
    assert np.array_equal(row[0].view(np.uint32), rounded)
    product(c, np.full((len(bits), 1), np.nan, np.float32), one, False, False, 1.0, 0.0, True)
    assert np.isnan(c).all()


@compiled_only
def test_float64_is_never_rounded():
    a, b = np.random.default_rng(6).standard_normal((2, 9, 9))
    c = np.empty((9, 9))
    product(c, a, b, False, False, 1.0, 0.0, True)
    assert_close(c, a @ b, 1e-14)


@compiled_only
def test_gemm_of_different_types_is_refused():
    a, b = np.zeros((2, 2)), np.zeros((2, 2), np.float32)
    with pytest.raises(numba.TypingError, match="gemm of float64 and float32 into float64"):
        product(np.zeros((2, 2)), a, b, False, False, 1.0, 0.0)


@compiled_only
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 3, reason="NUMBA_NUM_THREADS is below 3")
@pytest.mark.parametrize("bf16", [False, True])
def test_concurrent_products_are_always_the_same(bf16):
    # Usually more threads than cores, each with its own panels.
    rng = np.random.default_rng(2)
    inp, weight = rng.standard_normal((2, 520, 400)).astype(np.float32)
    bias = rng.standard_normal(520).astype(np.float32)
    out, dinp, dweight = (np.empty(shape, np.float32) for shape in ((520, 520), (520, 400), (520, 400)))
    results = []
    before = numba.get_num_threads()
    try:
        for number in range(100):
            threads.set_threads(3 if number else 1)
            matmul_forward(out, inp, weight, bias, bf16)
            matmul_nn(dinp, out, weight, bf16)
            matmul_tn(dweight, out, inp, 0.0, bf16)
            results.append((out.tobytes(), dinp.tobytes(), dweight.tobytes()))
            del results[1:-1]
            assert results[0] == results[-1]
    finally:
        threads.set_threads(before)
    round_factor = to_bfloat16 if bf16 else np.float64
    inp, weight, dout = map(round_factor, (inp, weight, out))
    assert_close(out, inp @ weight.T + bias, 1e-6)
    assert_close(dinp, dout @ weight, 1e-6)
    assert_close(dweight, dout.T @ inp, 1e-6)


@compiled_only
def test_a_single_row_may_have_any_stride():
    @numba.njit
    def product(out, row, matrix):
        gemm(out, row[None], matrix, False, False, 1.0, 0.0, False)

    rng = np.random.default_rng(4)
    row, matrix, out = rng.standard_normal(5), rng.standard_normal((5, 3)), np.empty((1, 3))
    product(out, row, matrix)
    assert_close(out[0], row @ matrix, 1e-14)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [tiny(0, 3, 4), tiny(2, 0, 4), tiny(2, 3, 0)])
def test_gemm_of_nothing(M, N, K, bf16):
    c = np.arange(M * N, dtype=np.float32).reshape(M, N)
    expected = 0.5 * c
    product(c, np.ones((M, K), np.float32), np.ones((K, N), np.float32), False, False, 1.0, 0.5, bf16)
    assert np.array_equal(c, expected)


def test_kernels_of_nothing_return():
    matmul_forward(np.zeros((0, 5)), np.zeros((0, 3)), np.zeros((5, 3)), np.zeros(5), False)


@compiled_only
def test_arrays_that_are_not_contiguous_are_refused():
    out, inp, weight, bias = np.zeros((3, 4)), np.ones((3, 10)), np.ones((4, 5)), np.zeros(4)
    for unfit in (inp[:, ::2], np.asfortranarray(inp[:, :5])):
        with pytest.raises(ValueError, match=r"matmul_forward: .* is not contiguous"):
            matmul_forward(out, unfit, weight, bias, False)
