"""GPT-2 on the CPU: flat float32 buffers, Numba kernels, no framework."""

from gpt2.config import GPT2Config
from gpt2.model import GPT2

__all__ = ["GPT2", "GPT2Config"]
