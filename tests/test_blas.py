import contextlib
import types

import numba
import numpy as np
import pytest
import scipy.linalg.blas
import threadpoolctl

from gpt2.kernels import blas, threads
from gpt2.kernels.matmul import matmul_forward, matmul_nn, matmul_tn_add
from tests.numeric import assert_close, both_precisions

compiled_only = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="the compiled product is what is tested")


def blas_threads():
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


def test_single_threaded_holds_every_blas_and_restores_it():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        assert max(before) == 2, "no BLAS that threads: this test would show nothing"
        with blas.single_threaded():
            assert blas_threads() == [1] * len(before)
            with blas.single_threaded():
                pass
            assert blas_threads() == [1] * len(before)
        assert blas_threads() == before


def test_single_threaded_restores_after_an_error():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with pytest.raises(ZeroDivisionError), blas.single_threaded():
            raise ZeroDivisionError
        assert blas_threads() == before


def test_the_library_that_multiplies_is_among_those_held():
    held = {library.filepath for library in blas._pools.lib_controllers}
    assert scipy.linalg.blas.sgemm is not None  # loads SciPy's BLAS, if the kernels had not
    assert held == {pool["filepath"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}


def test_a_library_that_does_not_obey_is_an_error(monkeypatch):
    stubborn = types.SimpleNamespace(num_threads=2, filepath="libstubborn.so")
    pools = types.SimpleNamespace(limit=lambda limits: contextlib.nullcontext(), lib_controllers=[stubborn])
    monkeypatch.setattr(blas, "_pools", pools)
    with pytest.raises(RuntimeError, match=r"libstubborn\.so"), blas.single_threaded():
        pass


@numba.njit
def product(c, a, b, transpose_a, transpose_b, alpha, beta):
    blas.gemm(c, a, b, transpose_a, transpose_b, alpha, beta)


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
        c.fill(np.nan)  # c is not read
    with blas.single_threaded():
        product(c, a, b, transpose_a, transpose_b, 0.25, beta)
    assert_close(whole, expected, tolerance)


@compiled_only
def test_gemm_of_different_types_is_refused():
    a, b = np.zeros((2, 2)), np.zeros((2, 2), np.float32)
    with pytest.raises(numba.TypingError, match="no matrix product of float32 and float64 into float64"):
        product(np.zeros((2, 2)), a, b, False, False, 1.0, 0.0)


@compiled_only
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 3, reason="NUMBA_NUM_THREADS is below 3")
def test_concurrent_products_are_always_the_same():
    # More threads than many a machine has cores; a library that threads by itself has returned wrong results here.
    rng = np.random.default_rng(2)
    inp, weight = rng.standard_normal((2, 520, 400)).astype(np.float32)
    bias = rng.standard_normal(520).astype(np.float32)
    out, dinp = np.empty((520, 520), np.float32), np.empty((520, 400), np.float32)
    results = []
    before = numba.get_num_threads()
    threads.set_threads(3)
    try:
        with blas.single_threaded():
            for _ in range(300):
                dweight = np.zeros_like(weight)
                matmul_forward(out, inp, weight, bias)
                matmul_nn(dinp, out, weight)
                matmul_tn_add(dweight, out, inp)
                results.append((out.tobytes(), dinp.tobytes(), dweight.tobytes()))
                del results[1:-1]
                assert results[0] == results[-1]
    finally:
        threads.set_threads(before)
    assert_close(out, inp.astype(float) @ weight.T.astype(float) + bias, 1e-6)
    assert_close(dinp, out.astype(float) @ weight, 1e-6)
    assert_close(dweight, out.T.astype(float) @ inp, 1e-6)


@compiled_only
def test_a_single_row_may_have_any_stride():
    @numba.njit
    def product(out, row, matrix):
        blas.gemm(out, row[None], matrix, False, False, 1.0, 0.0)

    rng = np.random.default_rng(4)
    row, matrix, out = rng.standard_normal(5), rng.standard_normal((5, 3)), np.empty((1, 3))
    product(out, row, matrix)
    assert_close(out[0], row @ matrix, 1e-14)
