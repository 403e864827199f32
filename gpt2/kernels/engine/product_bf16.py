"""Products of float32 matrices whose elements are rounded to bfloat16, with float32 sums.

Where the CPU has AVX512_BF16, both factors are packed as pairs of bfloat16, and its dot product does twice the
multiply-adds of float32 an instruction; it takes denormals, below 1.2e-38, as zeros. With AMX, tiles of such pairs are
multiplied instead (product_amx.py). Elsewhere the same numbers are multiplied as float32, in other sums: the portable
form. GPT2_BF16=portable in the environment asks for it on any CPU.
"""

import numpy as np

from gpt2.kernels.engine.bfloat16 import LANES, pair_columns, pair_rows, round_row
from gpt2.kernels.engine.jit import inline
from gpt2.kernels.engine.product import BLOCK, EDGE, PANEL, multiply, product
from gpt2.kernels.engine.product_amx import product_of_tiles
from gpt2.kernels.engine.simd import TILE_ROWS, TILE_VECTORS, address, matrix, prefetch, stack_array
from gpt2.kernels.engine.target import AMX, AVX512_BF16, bf16_form

# Elements of the depth in a panel, which takes as many bytes as in float32.
_DEPTH = 384
_ROWS, _ROWS_AHEAD = 384, 6


def product_of_pairs(
    M, N, K, c_address, c_row, a_address, a_row, b_address, b_row, transpose_a, transpose_b, alpha, beta
):
    """`product.product` in float32, of factors that are rounded to bfloat16."""
    c = matrix(alpha, c_address, c_row, M, N)
    pairs = matrix(np.int32(0), b_address, 4, 1, 1)  # for the type of its elements
    panel, block, edge = stack_array(pairs, PANEL), stack_array(pairs, BLOCK), stack_array(c, EDGE)
    pieces = max(1, (K + _DEPTH - 1) // _DEPTH)
    step = max(32, ((K + pieces - 1) // pieces + 31) // 32 * 32)
    for top in range(0, M, _ROWS):
        height = min(_ROWS, M - top)
        for k in range(0, max(1, K), step):
            depth = min(step, K - k)
            padded = (depth + 31) // 32 * 32
            keep = beta if k == 0 else c.dtype.type(1)
            if transpose_a:
                for m in range(0, height, LANES):
                    source, target = a_address + k * a_row + (top + m) * 4, address(block) + m * padded * 2
                    pair_rows(source, a_row, depth, min(LANES, height - m), target, 4 * LANES)
            else:
                _round_rows(address(block), 2 * padded, a_address + top * a_row + k * 4, a_row, height, depth)
            j = 0
            while j < N:
                vectors_left = (N - j + LANES - 1) // LANES
                tiles_left = (vectors_left + TILE_VECTORS - 1) // TILE_VECTORS
                vectors = max(2, (vectors_left + tiles_left - 1) // tiles_left)
                width = vectors * LANES
                columns = min(N - j, width)
                for v in range(vectors):
                    first = j + v * LANES
                    present = max(0, min(LANES, N - first))
                    target = address(panel) + v * 4 * LANES
                    if transpose_b:
                        pair_columns(b_address + first * b_row + k * 4, b_row, present, depth, target, width * 4)
                    else:
                        pair_rows(b_address + k * b_row + first * 4, b_row, depth, present, target, width * 4)
                # Prefetch b's part of the next panel, some rows with each tile of this one.
                next_j, next_k = (j + columns, k) if j + columns < N else (0, k + step)
                ahead_rows, ahead_size = min(step, K - next_k), min(width, N - next_j)
                ahead = b_address + next_k * b_row + next_j * 4
                if transpose_b:
                    ahead_rows, ahead_size = ahead_size, ahead_rows
                    ahead = b_address + next_j * b_row + next_k * 4
                ahead_rows = ahead_rows if ahead_size > 0 else 0
                tiles = (height + TILE_ROWS - 1) // TILE_ROWS
                for m in range(0, height, TILE_ROWS):
                    number = m // TILE_ROWS
                    for row in range(number * ahead_rows // tiles, (number + 1) * ahead_rows // tiles):
                        prefetch(ahead + row * b_row, ahead_size * 4)
                    part = c[top + m : min(top + m + TILE_ROWS, top + height), j : j + columns]
                    if transpose_a:
                        rows = address(block) + m // LANES * LANES * padded * 2 + m % LANES * 4, 4, 4 * LANES
                    else:
                        rows = address(block) + m * padded * 2, padded * 2, 4
                    multiply(part, rows, panel, width, (depth + 1) // 2, edge, alpha, keep)
                j += columns


@inline
def _round_rows(target, target_row, source, source_row, rows, count):
    """Rounds rows of `count` float32 to bfloat16, zero-padded as in round_row. Addresses and row strides, in bytes."""
    for m in range(rows):
        if m + _ROWS_AHEAD < rows:  # rows are too short for the CPU to see a stream in time
            prefetch(source + (m + _ROWS_AHEAD) * source_row, count * 4)
        round_row(source + m * source_row, count, target + m * target_row)


@inline
def rounded(x):
    """Returns a float32 rounded to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.float32(x).view(np.int32)
    bits = np.int32((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000)
    return x if x != x else bits.view(np.float32)


# The portable form's blocks of rounded factors: as much as the stack holds beside the arrays of a product.
_SIDE = 96
_BLOCK_BYTES = 4 * _SIDE * _SIDE
_product = inline(product)


def portable_product(
    M, N, K, c_address, c_row, a_address, a_row, b_address, b_row, transpose_a, transpose_b, alpha, beta
):
    """product_of_pairs on any CPU: products of blocks that are rounded, but stay float32."""
    like = matrix(alpha, c_address, c_row, M, N)
    a, b = stack_array(like, _BLOCK_BYTES), stack_array(like, _BLOCK_BYTES)
    for m in range(0, M, _SIDE):
        for n in range(0, N, _SIDE):
            rows, columns, place = min(_SIDE, M - m), min(_SIDE, N - n), c_address + m * c_row + n * 4
            for k in range(0, max(1, K), _SIDE):
                depth, keep = min(_SIDE, K - k), beta if k == 0 else np.float32(1)
                _round_block(a, a_address, a_row, m, rows, k, depth, transpose_a)
                _round_block(b, b_address, b_row, n, columns, k, depth, not transpose_b)
                a_b = address(a), 4 * _SIDE, address(b), 4 * _SIDE
                _product(rows, columns, depth, place, c_row, *a_b, transpose_a, transpose_b, alpha, keep)


@inline
def _round_block(block, source, source_row, first, count, k, depth, depth_first):
    """Copies part of a factor, rounded, into a block with rows of _SIDE elements.

    The part: from `first` on `count` of its rows or columns, from k on `depth` of the others, which are the rows if
    depth_first.
    """
    if depth_first:
        first, count, k, depth = k, depth, first, count
    part = matrix(np.float32(0), source + first * source_row + k * 4, source_row, count, depth)
    for i in range(count):
        for j in range(depth):
            block[i * _SIDE + j] = rounded(part[i, j])


rounded_product = {AMX: product_of_tiles, AVX512_BF16: product_of_pairs}.get(bf16_form(), portable_product)
