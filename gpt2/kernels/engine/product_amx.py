"""Products of float32 matrices whose elements are rounded to bfloat16, by AMX: `product_of_tiles`.

Both factors are packed, a as rows of bfloat16, b as rows of pairs, and multiplied in blocks of 2 x 2 tiles (amx.py): 4
loads for 4 products of tiles, which take 64 cycles, and a block 512. The next block's c is needed soon
after, so it is prefetched meanwhile.
"""

import numpy as np

from gpt2.kernels.engine.amx import SIDE, configure_tiles, multiply_tiles, release_tiles, scale_rows
from gpt2.kernels.engine.bfloat16 import LANES, pair_columns, pair_rows, round_row
from gpt2.kernels.engine.jit import inline
from gpt2.kernels.engine.simd import address, matrix, prefetch, stack_array, transpose

# Of a pair, and of a row of SIDE pairs.
_PAIR_BYTES, _ROW_BYTES = 4, 4 * SIDE
# The packed part of each factor. A panel of b takes 16 kB and stays in L1, which has 48 kB, while rows of a come from
# L2, another 16 kB for each block of c.
_DEPTH, _ROWS = 256, 384
_PANEL = _DEPTH // 2 * _ROW_BYTES
_BLOCK = _ROWS * (2 * _DEPTH + 64)
_SUMS = SIDE * SIDE * 4


def product_of_tiles(
    M, N, K, c_address, c_row, a_address, a_row, b_address, b_row, transpose_a, transpose_b, alpha, beta
):
    """`product.product` in float32, of factors that are rounded to bfloat16."""
    c = matrix(alpha, c_address, c_row, M, N)
    pairs = matrix(np.int32(0), b_address, _PAIR_BYTES, 1, 1)  # for the type of its elements
    panel, block, sums = stack_array(pairs, _PANEL), stack_array(pairs, _BLOCK), stack_array(c, _SUMS)
    pieces = max(1, (K + _DEPTH - 1) // _DEPTH)
    step = max(SIDE, ((K + pieces - 1) // pieces + SIDE - 1) // SIDE * SIDE)
    block_row = 2 * step | 64  # an odd number of cache lines: the rows of a tile are in different sets of L1
    configure_tiles()
    for top in range(0, M, _ROWS):
        height = min(_ROWS, M - top)
        for k in range(0, max(1, K), step):
            depth = min(step, K - k)
            keep = beta if k == 0 else c.dtype.type(1)
            if transpose_a:
                _pack_columns(block, block_row, a_address + k * a_row + top * 4, a_row, depth, height, panel)
            else:
                for m in range(height):
                    round_row(a_address + (top + m) * a_row + k * 4, depth, address(block) + m * block_row)
            for j in range(0, N, SIDE):
                columns = min(SIDE, N - j)
                if transpose_b:
                    _pack_transposed_panel(panel, b_address + j * b_row + k * 4, b_row, depth, columns)
                else:
                    _pack_panel(panel, b_address + k * b_row + j * 4, b_row, depth, columns)
                # Prefetch b's part of the next panel, some rows with each block of this one.
                next_j, next_k = (j + SIDE, k) if j + SIDE < N else (0, k + step)
                ahead_rows, ahead_columns = max(0, min(step, K - next_k)), min(SIDE, N - next_j)
                ahead = b_address + next_k * b_row + next_j * 4
                if transpose_b:
                    ahead_rows, ahead_columns = ahead_columns if ahead_rows else 0, ahead_rows
                    ahead = b_address + next_j * b_row + next_k * 4
                blocks = (height + SIDE - 1) // SIDE
                for i in range(blocks):
                    for row in range(i * ahead_rows // blocks, (i + 1) * ahead_rows // blocks):
                        prefetch(ahead + row * b_row, ahead_columns * 4)
                    m = i * SIDE
                    part = c[top + m : top + min(m + SIDE, height), j : j + columns]
                    rows = address(block) + m * block_row
                    next_row, next_column = (m + SIDE, j) if m + SIDE < height else (0, next_j)
                    next_c = c_address + (top + next_row) * c_row + next_column * 4
                    _multiply(part, rows, block_row, panel, (depth + 31) // 32, sums, alpha, keep, next_c)
    release_tiles()


@inline
def _pack_columns(block, block_row, a, a_row, depth, height, squares):
    """Rounds the transpose of a (depth, height) at an address into the block's rows, zero-padded to whole steps.

    squares: scratch for the pairs of 16 columns.
    """
    used, padded = (depth + 1) // 2 * LANES, (depth + 31) // 32 * 16 * LANES
    squares[used:padded] = 0
    for m in range(0, height, LANES):
        pair_rows(a + m * 4, a_row, depth, min(LANES, height - m), address(squares), _PAIR_BYTES * LANES)
        for k in range(0, padded, LANES * LANES):
            target = address(block) + m * block_row + k // LANES * _PAIR_BYTES
            transpose(squares, address(squares[k:]), _PAIR_BYTES * LANES, target, block_row, 1)


@inline
def _pack_panel(panel, b, b_row, depth, columns):
    """Rounds and pairs b (depth, columns) at an address into the panel's rows of SIDE, zero-padded to whole steps."""
    panel[(depth + 1) // 2 * SIDE : (depth + 31) // 32 * 16 * SIDE] = 0
    for j in range(0, SIDE, LANES):
        present = max(0, min(LANES, columns - j))
        pair_rows(b + j * 4, b_row, depth, present, address(panel[j:]), _ROW_BYTES)


@inline
def _pack_transposed_panel(panel, b, b_row, depth, columns):
    """Does _pack_panel for the transpose of b (columns, depth)."""
    for j in range(0, SIDE, LANES):
        present = max(0, min(LANES, columns - j))
        pair_columns(b + j * b_row, b_row, present, depth, address(panel[j:]), _ROW_BYTES)


@inline
def _multiply(c, a, a_row, panel, steps, sums, alpha, beta, next_c):
    """c = alpha * a @ panel + beta * c for at most SIDE rows and columns; beta = 0: c is not read.

    a, next_c: addresses; next_c is prefetched. Sums go on from c where they can: its elements must not depend on
    whether a block is whole.
    """
    rows, columns = c.shape
    adds = alpha == 1 and beta == 1
    if rows == SIDE and columns == SIDE and (adds or (alpha == 1 and beta == 0)):
        multiply_tiles(address(c), c.strides[0], a, a_row, address(panel), steps, adds, next_c, c.strides[0])
        return
    if adds:
        scale_rows(address(sums), _ROW_BYTES, address(c), c.strides[0], rows, columns, alpha, c.dtype.type(0))
        beta = c.dtype.type(0)
    multiply_tiles(address(sums), _ROW_BYTES, a, a_row, address(panel), steps, adds, next_c, c.strides[0])
    scale_rows(address(c), c.strides[0], address(sums), _ROW_BYTES, rows, columns, alpha, beta)
