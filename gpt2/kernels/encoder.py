"""Token and position embedding."""

from numba import prange

from gpt2.kernels.jit import kernel

# Channels that one task adds up: two tasks never write the same element, however often a token occurs.
_CHANNELS = 64


@kernel
def encoder_forward(out, tokens, wte, wpe):
    """out[b,t] = wte[tokens[b,t]] + wpe[t].

    out (B,T,C). tokens (B,T) int32, each below wte's rows. wte (Vp,C). wpe (maxT,C).
    """
    B, T, C = out.shape
    for row in prange(B * T):
        b, t = row // T, row % T
        token = tokens[b, t]
        for c in range(C):
            out[b, t, c] = wte[token, c] + wpe[t, c]


@kernel
def encoder_backward(dwte, dwpe, dout, tokens):
    """Adds dout's rows to the rows of the tokens and of the positions that they came from.

    dwte (Vp,C) +=. dwpe (maxT,C) +=. dout (B,T,C). tokens (B,T) int32.
    """
    B, T, C = dout.shape
    for block in prange((C + _CHANNELS - 1) // _CHANNELS):
        start, stop = block * _CHANNELS, min(C, (block + 1) * _CHANNELS)
        for b in range(B):
            for t in range(T):
                token = tokens[b, t]
                for c in range(start, stop):
                    dwte[token, c] += dout[b, t, c]
                    dwpe[t, c] += dout[b, t, c]
