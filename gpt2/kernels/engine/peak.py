"""What this machine can do at best: the measure that `gpt2.profile` holds the other kernels against."""

from numba import prange

from gpt2.kernels.engine.gemm import calls_gemm, gemm
from gpt2.kernels.engine.jit import kernel

_BLOCK = 1 << 14


@calls_gemm
@kernel
def products_in_cache(c, a, b, repeats):
    """c[i] = a[i] @ b[i] for all i, `repeats` times over: arrays (n,M,M), M small enough for the cache."""
    for i in prange(c.shape[0]):
        for _ in range(repeats):
            gemm(c[i], a[i], b[i], False, False, 1.0, 0.0)


@kernel
def add_scaled(out, inp):
    """out += inp / 2, the arrays (n,) too large for the cache: three numbers of traffic for each element."""
    for block in prange((out.size + _BLOCK - 1) // _BLOCK):
        out_part, inp_part = out[block * _BLOCK : (block + 1) * _BLOCK], inp[block * _BLOCK : (block + 1) * _BLOCK]
        for i in range(out_part.size):
            out_part[i] += inp_part[i] / 2
