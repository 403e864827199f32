"""Whether the kernels compute a GPT-2: files say it, so that no program takes a changed model for one."""

import functools
import zlib

from gpt2.errors import UserError

GELU, LAYERNORM = "gelu_new", "layernorm"


@functools.cache
def layers():
    """Returns the names of the activation and the normalisation that the kernels compute."""
    # Here, so that a command that reads no file starts without Numba.
    from gpt2.kernels.gelu import ACTIVATION
    from gpt2.kernels.layernorm import NORMALISATION

    return ACTIVATION, NORMALISATION


def mark():
    """Returns the number in the header of a model file, where llm.c's files have 0."""
    return 0 if layers() == (GELU, LAYERNORM) else zlib.crc32(" ".join(layers()).encode()) >> 1


def require(what, activation=GELU):
    """Raises UserError, naming `what` is read or written, unless the kernels have this activation, and layernorm."""
    if (activation, LAYERNORM) != layers():
        changed = " and ".join(layers())
        raise UserError(f"{what}: a GPT-2 with {activation} and {LAYERNORM}; gpt2/kernels/ computes {changed}")
