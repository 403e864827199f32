"""GPT-2 on the CPU: flat float32 buffers, Numba kernels, no framework."""

from gpt2.config import GPT2Config
from gpt2.inference.warmup import compile_in_child
from gpt2.kernels.engine.jit import on_cache_miss
from gpt2.model import GPT2

on_cache_miss(compile_in_child)

__all__ = ["GPT2", "GPT2Config"]
