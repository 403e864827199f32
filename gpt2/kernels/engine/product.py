"""Single-threaded matrix product.

The scheme is Goto and van de Geijn's (Anatomy of High-Performance Matrix Multiplication, 2008). A register tile of c,
TILE_ROWS rows by 2 or 3 vectors, accumulates outer products of a column of a and a row of b (`simd.tile`): on AVX-512,
3 loads and 8 broadcasts per 24 multiply-adds. b is packed, _DEPTH rows at a time, into panels as wide as the tile; a
panel stays in L1 while all rows of a stream past it. a is read in place, unless it is transposed: then every step of
the loop would touch another page, so a is packed too.

Each element of c is summed by one thread, in an order that depends only on the depth K.
"""

from gpt2.kernels.engine.jit import inline
from gpt2.kernels.engine.simd import (
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    address,
    copy,
    matrix,
    prefetch,
    stack_array,
    tile,
    transpose,
)

# Rows of b in a panel. With AVX-512 a panel takes 36 kB of a 48 kB L1 cache.
DEPTH = 192
# Stack space in bytes for the panel, the packed a (384 rows of float32) and a tile; macOS threads have 512 kB of stack.
PANEL = DEPTH * TILE_VECTORS * VECTOR_BYTES
BLOCK = DEPTH * 384 * 4
EDGE = TILE_ROWS * TILE_VECTORS * VECTOR_BYTES


def product(M, N, K, c_address, c_row, a_address, a_row, b_address, b_row, transpose_a, transpose_b, alpha, beta):
    """gemm on raw addresses; c_row, a_row and b_row are row strides in bytes."""
    c = matrix(alpha, c_address, c_row, M, N)
    a = matrix(alpha, a_address, a_row, K, M) if transpose_a else matrix(alpha, a_address, a_row, M, K)
    b = matrix(alpha, b_address, b_row, N, K) if transpose_b else matrix(alpha, b_address, b_row, K, N)
    panel, block, edge = stack_array(c, PANEL), stack_array(c, BLOCK), stack_array(c, EDGE)
    vector = VECTOR_BYTES // c.itemsize
    pieces = max(1, (K + DEPTH - 1) // DEPTH)
    # Equal depths, except for the last: a multiple of the vector length, for transposing b.
    step = max(vector, ((K + pieces - 1) // pieces + vector - 1) // vector * vector)
    most_rows = BLOCK // (DEPTH * c.itemsize)
    for top in range(0, M, most_rows):
        height = min(most_rows, M - top)
        for k in range(0, max(1, K), step):
            depth = min(step, K - k)
            keep = beta if k == 0 else c.dtype.type(1)
            if transpose_a:
                _pack_a(block, a[k : k + depth, top : top + height])
            j = 0
            while j < N:
                # Tiles of two or three vectors, as equal as possible, the last zero-padded.
                vectors_left = (N - j + vector - 1) // vector
                tiles_left = (vectors_left + TILE_VECTORS - 1) // TILE_VECTORS
                width = max(2, (vectors_left + tiles_left - 1) // tiles_left) * vector
                columns = min(N - j, width)
                if transpose_b:
                    _pack_transposed_b(panel, b[j : j + columns, k : k + depth], width, vector)
                else:
                    _pack_b(panel, b[k : k + depth, j : j + columns], width, vector)
                # Prefetch b's part of the next panel, some rows with each tile of this one.
                next_j, next_k = (j + columns, k) if j + columns < N else (0, k + step)
                if transpose_b:
                    ahead = b[next_j : next_j + width, next_k : next_k + step]
                else:
                    ahead = b[next_k : next_k + step, next_j : next_j + width]
                tiles = (height + TILE_ROWS - 1) // TILE_ROWS
                for m in range(top, top + height, TILE_ROWS):
                    number = (m - top) // TILE_ROWS
                    for row in range(number * ahead.shape[0] // tiles, (number + 1) * ahead.shape[0] // tiles):
                        prefetch(address(ahead[row:]), ahead.shape[1] * c.itemsize)
                    part = c[m : min(m + TILE_ROWS, top + height), j : j + columns]
                    # a: address of the first element, row stride and column stride in bytes.
                    if transpose_a:
                        rows = address(block) + (m - top) * depth * c.itemsize, c.itemsize, TILE_ROWS * c.itemsize
                    else:
                        rows = address(a[m:, k:]), a.strides[0], c.itemsize
                    multiply(part, rows, panel, width, depth, edge, alpha, keep)
                j += columns


@inline
def _pack_b(panel, b, width, vector):
    """Packs b into the panel's rows of `width` elements, zero-padded."""
    depth, columns = b.shape
    whole = columns // vector * vector
    for j in range(0, whole, vector):
        copy(panel, None, address(b[:, j:]), b.strides[0], address(panel[j:]), width * b.itemsize, depth)
    for k in range(depth):
        for j in range(whole, columns):
            panel[k * width + j] = b[k, j]
        for j in range(columns, width):
            panel[k * width + j] = 0


@inline
def _pack_transposed_b(panel, b, width, vector):
    """Packs b's transpose into the panel's rows of `width` elements, zero-padded."""
    columns, depth = b.shape
    whole_columns, whole_depth = columns // vector * vector, depth // vector * vector
    for j in range(0, whole_columns, vector):
        target = address(panel[j:])
        transpose(panel, address(b[j:]), b.strides[0], target, width * b.itemsize, whole_depth // vector)
    for k in range(depth):
        for j in range(0 if k >= whole_depth else whole_columns, columns):
            panel[k * width + j] = b[j, k]
        for j in range(columns, width):
            panel[k * width + j] = 0


@inline
def _pack_a(block, a):
    """Packs a (depth, rows) into the block, TILE_ROWS columns at a time, each group as (depth, TILE_ROWS)."""
    depth, rows = a.shape
    whole = rows // TILE_ROWS * TILE_ROWS
    for m in range(0, whole, TILE_ROWS):
        target = address(block[m * depth :])
        copy(block, TILE_ROWS, address(a[:, m:]), a.strides[0], target, TILE_ROWS * a.itemsize, depth)
    for k in range(depth):
        for m in range(whole, rows):
            block[whole * depth + k * TILE_ROWS + m - whole] = a[k, m]


@inline
def multiply(c, a, panel, width, depth, edge, alpha, beta):
    """Computes one tile of c, or a partial one: c has at most TILE_ROWS rows and `width` columns.

    a: (address, row stride, column stride) in bytes. edge: scratch for a full tile when c is a partial one.
    """
    rows, columns = c.shape
    whole = rows == TILE_ROWS and columns == width
    target, target_row = (address(c), c.strides[0]) if whole else (address(edge), width * c.itemsize)
    added = beta if whole else c.dtype.type(0)
    # The number of vectors must be a compile-time constant.
    if width * c.itemsize == 2 * VECTOR_BYTES:
        tile(2, target, target_row, a[0], a[1], a[2], rows, panel, depth, alpha, added)
    else:
        tile(TILE_VECTORS, target, target_row, a[0], a[1], a[2], rows, panel, depth, alpha, added)
    if not whole:
        for m in range(rows):
            for j in range(columns):
                value = edge[m * width + j]
                c[m, j] = value if beta == 0 else value + beta * c[m, j]
