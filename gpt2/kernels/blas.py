"""SciPy's matrix product, callable from inside a prange.

OpenBLAS threads by itself, and that fights with Numba's threads and, called from several of them at once, has returned
wrong results (numpy issues 11046 and 29391). So the kernels cut a product into tiles and call the single-threaded
product from their own threads; `single_threaded` holds the library to one thread while they run.
"""

import contextlib

import llvmlite.binding
import numba
import numpy as np
import scipy.linalg.cython_blas
import threadpoolctl
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import get_cython_function_address, intrinsic, overload

_pools = threadpoolctl.ThreadpoolController().select(user_api="blas")


@contextlib.contextmanager
def single_threaded():
    """Holds every BLAS library of the process to one thread inside the `with`, and restores it after.

    Raises RuntimeError if a library does not obey.
    """
    with _pools.limit(limits=1):
        for library in _pools.lib_controllers:
            if library.num_threads != 1:
                raise RuntimeError(f"{library.filepath} could not be held to one thread")
        yield


def _symbol(name):
    """Registers SciPy's product under a name that LLVM can link, which keeps kernels cacheable on disk."""
    signature = str(scipy.linalg.cython_blas.__pyx_capi__[name])
    if "int *" not in signature or "int64" in signature:
        raise RuntimeError(f"scipy.linalg.cython_blas.{name} has an unknown signature: {signature}")
    symbol = f"gpt2_{name}"
    llvmlite.binding.add_symbol(symbol, get_cython_function_address("scipy.linalg.cython_blas", name))
    return symbol


_SYMBOLS = {types.float32: _symbol("sgemm"), types.float64: _symbol("dgemm")}


@intrinsic
def _fortran_gemm(typingctx, transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """Calls ?gemm, C = alpha op(A) op(B) + beta C: column-major, every argument by reference. a, b, c are arrays."""
    if c.dtype not in _SYMBOLS or a.dtype != c.dtype or b.dtype != c.dtype:
        raise numba.TypingError(f"no matrix product of {a.dtype} and {b.dtype} into {c.dtype}")
    real, integer, char = c.dtype, types.int32, types.uint8
    signature = types.void(char, char, integer, integer, integer, real, a, integer, b, integer, real, c, integer)

    def codegen(context, builder, signature, arguments):
        pointers = []
        for numba_type, value in zip(signature.args, arguments, strict=True):
            if isinstance(numba_type, types.Array):
                pointer = context.make_array(numba_type)(context, builder, value).data
            else:
                pointer = cgutils.alloca_once_value(builder, value)
            pointers.append(builder.bitcast(pointer, cgutils.voidptr_t))
        function_type = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t] * len(pointers))
        function = cgutils.get_or_insert_function(builder.module, function_type, _SYMBOLS[c.dtype])
        builder.call(function, pointers)
        return context.get_dummy_value()

    return signature, codegen


def gemm(c, a, b, transpose_a, transpose_b, alpha, beta):
    """c = alpha op(a) op(b) + beta c on this thread, where op transposes if its flag says so.

    c (M,N), op(a) (M,K), op(b) (K,N): float32 or all float64, rows of any stride, elements of a row adjacent.
    With beta = 0, c is not read. This body is what runs under NUMBA_DISABLE_JIT=1.
    """
    product = alpha * ((a.T if transpose_a else a) @ (b.T if transpose_b else b))
    c[...] = product if beta == 0 else product + beta * c


@overload(gemm, jit_options={"error_model": "numpy"})
def _gemm(c, a, b, transpose_a, transpose_b, alpha, beta):
    itemsize, real = c.dtype.bitwidth // 8, getattr(np, c.dtype.name)

    def implementation(c, a, b, transpose_a, transpose_b, alpha, beta):
        # A row-major matrix is its transpose in column-major: c.T = op(b).T op(a).T. A single row may have any stride,
        # but BLAS wants one that holds it.
        _fortran_gemm(
            np.uint8(ord("T") if transpose_b else ord("N")),
            np.uint8(ord("T") if transpose_a else ord("N")),
            np.int32(c.shape[1]),
            np.int32(c.shape[0]),
            np.int32(a.shape[0] if transpose_a else a.shape[1]),
            real(alpha),
            b,
            np.int32(max(b.strides[0] // itemsize, b.shape[1])),
            a,
            np.int32(max(a.strides[0] // itemsize, a.shape[1])),
            real(beta),
            c,
            np.int32(max(c.strides[0] // itemsize, c.shape[1])),
        )

    return implementation
