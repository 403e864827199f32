"""The residual connection. Its backward pass is no kernel: both branches receive the stream's gradient as it is."""

from numba import prange

from gpt2.kernels.jit import kernel


@kernel
def residual_forward(out, inp):
    """out += inp: a layer's output, in place, becomes the residual stream after it. Both (N,C)."""
    N, C = inp.shape
    for n in prange(N):
        for c in range(C):
            out[n, c] += inp[n, c]
