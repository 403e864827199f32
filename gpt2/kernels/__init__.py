"""Forward and backward passes of the layers, compiled by Numba. They know arrays and sizes, not models or files.

Kernels take outputs first, then inputs, and read sizes off the shapes. Backward kernels follow one contract: they add
to parameter gradients (+=), overwrite activation gradients (=), and add to the residual stream's gradient (+=). Every
sum has one owner and an order that depends only on the shapes, so results are bit-identical for any number of threads.
"""

try:
    import numba  # noqa: F401
except ValueError as error:  # NUMBA_NUM_THREADS=0
    raise SystemExit(f"error: Numba cannot be loaded: {error}") from None

from gpt2.kernels.engine.jit import on_cache_miss


def _compile_in_child(folder):
    from gpt2.inference.warmup import compile_in_child

    compile_in_child(folder)


on_cache_miss(_compile_in_child)
