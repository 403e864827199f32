"""Token and position embedding."""

from numba import prange

from gpt2.kernels.engine.jit import kernel

# Channels per task. Tasks own channels, so that repeated tokens cannot race.
_CHANNELS = 128


@kernel
def encoder_forward(out, tokens, wte, wpe):
    """out[b,t] = wte[tokens[b,t]] + wpe[t].

    out (B,T,C). tokens (B,T) int32, each below wte's rows. wte (Vp,C). wpe (maxT,C).
    """
    B, T, C = out.shape
    for row in prange(B * T):
        b, t = row // T, row % T
        out_row, token_row, position_row = out[b, t], wte[tokens[b, t]], wpe[t]
        for c in range(C):
            out_row[c] = token_row[c] + position_row[c]


@kernel
def encoder_backward(dwte, dwpe, dout, tokens):
    """Gradients of encoder_forward's wte and wpe: adds each row of dout to its token's and its position's row.

    dwte (Vp,C) +=. dwpe (maxT,C) +=. dout (B,T,C). tokens (B,T) int32.
    """
    B, T, C = dout.shape
    for block in prange((C + _CHANNELS - 1) // _CHANNELS):
        start, stop = block * _CHANNELS, (block + 1) * _CHANNELS
        for b in range(B):
            for t in range(T):
                row = dout[b, t, start:stop]
                token_row, position_row = dwte[tokens[b, t], start:stop], dwpe[t, start:stop]
                for c in range(row.size):
                    token_row[c] += row[c]
                    position_row[c] += row[c]
