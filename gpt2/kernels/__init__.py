"""Forward and backward passes of the layers, compiled by Numba. They know arrays and sizes, not models or files.

Kernels take outputs first, then inputs, and read sizes off the shapes. Backward kernels follow one contract: they add
to parameter gradients (+=), overwrite activation gradients (=), and add to the residual stream's gradient (+=). Every
sum has one owner and an order that depends only on the shapes, so results are bit-identical for any number of threads.
"""

try:
    import numba  # noqa: F401
except ValueError as error:  # NUMBA_NUM_THREADS=0
    raise SystemExit(f"error: Numba cannot be loaded: {error}") from None
