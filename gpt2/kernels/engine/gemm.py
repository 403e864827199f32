"""Single-threaded matrix product for kernels: `gemm`, and how they link to the compiled product."""

import functools

import llvmlite.binding
import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from gpt2.kernels.engine import threads
from gpt2.kernels.engine.jit import standalone
from gpt2.kernels.engine.product import product
from gpt2.kernels.engine.product_bf16 import rounded, rounded_product
from gpt2.kernels.engine.simd import address


def gemm(c, a, b, transpose_a, transpose_b, alpha, beta, bf16):
    """c = alpha op(a) op(b) + beta c on the calling thread; op transposes if its flag is set.

    c (M,N), op(a) (M,K), op(b) (K,N): all float32 or all float64, any row stride, contiguous rows. beta = 0: c is not
    read. bf16: the elements of a and b, if float32, are rounded to bfloat16; c and the sums are not. Callable from
    functions decorated with `calls_gemm` and their callees. This body runs under NUMBA_DISABLE_JIT=1.
    """
    if bf16 and a.dtype == np.float32:
        round_all = np.vectorize(rounded, otypes=[np.float32])
        a, b = round_all(a), round_all(b)
    product = alpha * ((a.T if transpose_a else a) @ (b.T if transpose_b else b))
    c[...] = product if beta == 0 else product + beta * c


def calls_gemm(dispatcher):
    """Decorates a `kernel` or `inline` function that is called from Python and calls `gemm`, directly or indirectly.

    The product is compiled once per type, and kernels link to it by symbol, instead of spending seconds each on
    compiling a copy. The symbol must exist before a kernel's code is compiled or loaded.
    """
    if numba.config.DISABLE_JIT:
        return dispatcher
    compile_or_load = dispatcher.compile

    def link_first(signature):
        arrays = [
            array
            for argument in signature
            for array in getattr(argument, "types", [argument])  # of a tuple, or the argument itself
            if isinstance(array, types.Array)
        ]
        for array in arrays:
            if array.layout != "C" and array.ndim > 1:
                raise ValueError(f"{dispatcher.__name__}: {array} is not contiguous (C order)")
        threads.start()  # loads Numba's runtime, whose symbol threads_in_use links to
        for array in arrays:
            if isinstance(array.dtype, types.Float):
                _link(array.dtype)
                if array.dtype == types.float32:
                    _link(array.dtype, True)
        return compile_or_load(signature)

    dispatcher.compile = link_first
    return dispatcher


@functools.cache
def _link(real, bf16=False):
    """Compiles or loads a product of a Numba float type; returns (the CFunc, the function kernels call)."""
    arguments = [*[types.int64] * 9, types.boolean, types.boolean, real, real]
    compiled = standalone(types.void(*arguments))(rounded_product if bf16 else product)
    name = f"gpt2_product_{'bf16' if bf16 else real}"
    llvmlite.binding.add_symbol(name, compiled.address)
    return compiled, types.ExternalFunction(name, types.void(*arguments))


@overload(gemm, jit_options={"error_model": "numpy"})
def _gemm(c, a, b, transpose_a, transpose_b, alpha, beta, bf16):
    if c.dtype not in (types.float32, types.float64) or a.dtype != c.dtype or b.dtype != c.dtype:
        raise numba.TypingError(f"gemm of {a.dtype} and {b.dtype} into {c.dtype}: all float32 or all float64 expected")
    _, product = _link(c.dtype)
    _, product_bf16 = _link(c.dtype, c.dtype == types.float32)  # float64 is never rounded

    def implementation(c, a, b, transpose_a, transpose_b, alpha, beta, bf16):
        real = c.dtype.type
        M, N = c.shape
        K = a.shape[0] if transpose_a else a.shape[1]
        places = address(c), c.strides[0], address(a), a.strides[0], address(b), b.strides[0]
        if bf16:
            product_bf16(M, N, K, *places, transpose_a, transpose_b, real(alpha), real(beta))
        else:
            product(M, N, K, *places, transpose_a, transpose_b, real(alpha), real(beta))

    return implementation
