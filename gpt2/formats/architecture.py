"""Whether the kernels compute a GPT-2: files say it, so that no program takes a changed model for one."""

import zlib

from gpt2.errors import UserError
from gpt2.kernels.gelu import ACTIVATION
from gpt2.kernels.layernorm import NORMALISATION

GELU, LAYERNORM = "gelu_new", "layernorm"
LAYERS = ACTIVATION, NORMALISATION
# In the header of a model file; llm.c's files have 0 there.
MARK = 0 if LAYERS == (GELU, LAYERNORM) else zlib.crc32(" ".join(LAYERS).encode()) >> 1


def require(what, activation=GELU):
    """Raises UserError, naming `what` is read or written, unless the kernels have this activation, and layernorm."""
    if (activation, LAYERNORM) != LAYERS:
        changed = " and ".join(LAYERS)
        raise UserError(f"{what}: a GPT-2 with {activation} and {LAYERNORM}; gpt2/kernels/ computes {changed}")
