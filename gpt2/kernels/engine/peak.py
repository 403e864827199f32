"""Kernels that measure the machine's peak rates, which `gpt2 profile` compares the others with."""

from numba import prange

from gpt2.kernels.engine.gemm import calls_gemm, gemm
from gpt2.kernels.engine.jit import kernel

_BLOCK = 1 << 14


@calls_gemm
@kernel
def products_in_cache(c, a, b, repeats, bf16):
    """c[i] = a[i] @ b[i] for all i, `repeats` times: arrays (n,M,M), M small enough to stay in cache."""
    for i in prange(c.shape[0]):
        for _ in range(repeats):
            gemm(c[i], a[i], b[i], False, False, 1.0, 0.0, bf16)


@kernel
def add_scaled(out, inp):
    """out += inp / 2: arrays (n,), too large for the caches; two reads and a write per element."""
    for block in prange((out.size + _BLOCK - 1) // _BLOCK):
        out_part, inp_part = out[block * _BLOCK : (block + 1) * _BLOCK], inp[block * _BLOCK : (block + 1) * _BLOCK]
        for i in range(out_part.size):
            out_part[i] += inp_part[i] / 2
