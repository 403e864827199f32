"""The product of two matrices on one thread, written down to the registers.

The scheme is Goto and van de Geijn's (Anatomy of High-Performance Matrix Multiplication, 2008). A tile of c,
ROWS x VECTORS vectors, is held in registers while a loop over the depth adds the outer product of a column of a and a
row of b to it: VECTORS loads and ROWS broadcasts for ROWS * VECTORS multiply-adds. b is first copied, _DEPTH rows at a
time, into a panel as wide as the tile, which stays in the nearest cache while all rows of a go past it. a is read where
it is, unless it is transposed: then a step of the loop would touch another page of memory, so it is copied too.

What Numba cannot express, vectors held in registers, is written as LLVM's vector instructions, in the functions
below that are decorated with @intrinsic. LLVM turns them into AVX-512, AVX2, SSE or NEON: they differ only in the
length of a vector and in the number of registers.
"""

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from gpt2.kernels.jit import inline


def _target_features():
    """The instruction sets that Numba compiles for: the machine's, or those that NUMBA_CPU_FEATURES names."""
    if numba.config.CPU_FEATURES is not None:
        return set(numba.config.CPU_FEATURES.split(","))
    if numba.config.CPU_NAME == "generic":
        return set()
    return set(llvmlite.binding.get_host_cpu_features().flatten().split(","))


def _registers():
    """(bytes of a vector, rows of the tile): the tile takes 12 of 16 vector registers, or 24 of 32."""
    if "+avx512f" in _target_features():
        return 64, 8
    if "+avx2" in _target_features():
        return 32, 4
    return 16, 8 if llvmlite.binding.get_process_triple().startswith(("aarch64", "arm64")) else 4


_VECTOR_BYTES, _ROWS = _registers()
_VECTORS = 3
# Rows of b in a panel, and rows of a that pass it. AVX-512's panel takes 36 kB of a nearest cache of 48.
_DEPTH = 192
_HEIGHT = 256

_index = ir.IntType(64)


def _llvm(real):
    """(element type, elements in a vector) of a Numba float type."""
    return ir.FloatType() if real == types.float32 else ir.DoubleType(), _VECTOR_BYTES * 8 // real.bitwidth


def _load(builder, address, kind, align):
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _store(builder, value, address, align):
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def _splat(builder, scalar, kind):
    undefined = ir.Constant(kind, ir.Undefined)
    first = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(builder.insert_element(undefined, scalar, ir.IntType(32)(0)), undefined, first)


@intrinsic(prefer_literal=True)
def _stack(typingctx, real, size):
    """Address of memory for `size` numbers, a constant, that is the calling function's until it returns."""
    dtype, count = real.dtype, size.literal_value

    def codegen(context, builder, signature, arguments):
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(_llvm(dtype)[0], count))
        memory.align = 64
        return builder.ptrtoint(memory, _index)

    return types.int64(real, size), codegen


@intrinsic
def _address(typingctx, array):
    """Address of an array's first element."""

    def codegen(context, builder, signature, arguments):
        return builder.ptrtoint(context.make_array(array)(context, builder, arguments[0]).data, _index)

    return types.int64(array), codegen


@intrinsic
def _view(typingctx, real, address, rows, columns):
    """Pointer for numba.carray."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[1], _llvm(real.dtype)[0].as_pointer())

    return types.CPointer(real.dtype)(real, address, rows, columns), codegen


@intrinsic(prefer_literal=True)
def _tile(typingctx, real, vectors, c, c_row, a, a_row, a_step, rows, b, depth, alpha, beta):
    """c = alpha * a @ b + beta * c for a tile of ROWS rows and `vectors` (a constant) vectors; beta 0: c is not read.

    c, a, b: addresses. c_row, a_row: bytes from a row to the next; a_step: from a column of a to the next. Rows of a
    from `rows` on repeat the last. b: packed.
    """
    element, lanes = _llvm(real.dtype)
    size, columns = real.dtype.bitwidth // 8, range(vectors.literal_value)
    vector = ir.VectorType(element, lanes)
    arguments = (real, vectors, *[types.int64] * 8, real.dtype, real.dtype)

    def codegen(context, builder, signature, arguments):
        c, c_row, a, a_row, a_step, rows, b, depth, alpha, beta = arguments[2:]
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f{8 * size}"
        )
        prefetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, *[ir.IntType(32)] * 3]),
            "llvm.prefetch.p0",
        )
        c_rows = [builder.add(c, builder.mul(c_row, _index(i))) for i in range(_ROWS)]
        for address in c_rows:
            for j in columns:
                line = builder.inttoptr(builder.add(address, _index(j * _VECTOR_BYTES)), cgutils.voidptr_t)
                builder.call(prefetch, [line, ir.IntType(32)(1), ir.IntType(32)(3), ir.IntType(32)(1)])
        a_rows = []
        for i in range(_ROWS):
            row = builder.select(builder.icmp_signed("<", _index(i), rows), _index(i), builder.sub(rows, _index(1)))
            a_rows.append(builder.add(a, builder.mul(row, a_row)))
        zero = ir.Constant(vector, [0.0] * lanes)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in columns] for _ in range(_ROWS)]
        for row_sums in sums:
            for place in row_sums:
                builder.store(zero, place)

        def steps(first, count, unroll):
            with cgutils.for_range(builder, count) as loop:
                for u in range(unroll):
                    k = builder.add(first, builder.add(builder.mul(loop.index, _index(unroll)), _index(u)))
                    b_k = builder.add(b, builder.mul(k, _index(len(columns) * _VECTOR_BYTES)))
                    b_vectors = [
                        _load(builder, builder.add(b_k, _index(j * _VECTOR_BYTES)), vector, _VECTOR_BYTES)
                        for j in columns
                    ]
                    a_k = builder.mul(k, a_step)
                    for address, row_sums in zip(a_rows, sums, strict=True):
                        factor = _splat(builder, _load(builder, builder.add(address, a_k), element, size), vector)
                        for b_vector, place in zip(b_vectors, row_sums, strict=True):
                            builder.store(builder.call(multiply_add, [factor, b_vector, builder.load(place)]), place)

        quarter = builder.ashr(depth, _index(2))
        rest = builder.and_(depth, _index(3))
        steps(_index(0), quarter, 4)
        steps(builder.shl(quarter, _index(2)), rest, 1)

        alphas, betas = _splat(builder, alpha, vector), _splat(builder, beta, vector)
        with builder.if_else(builder.fcmp_ordered("==", beta, element(0.0))) as (write, add):
            for branch, adds in ((write, False), (add, True)):
                with branch:
                    for address, row_sums in zip(c_rows, sums, strict=True):
                        for j, place in zip(columns, row_sums, strict=True):
                            target = builder.add(address, _index(j * _VECTOR_BYTES))
                            value = builder.fmul(alphas, builder.load(place))
                            if adds:
                                before = _load(builder, target, vector, size)
                                value = builder.call(multiply_add, [betas, before, value])
                            _store(builder, value, target, size)
        return context.get_dummy_value()

    return types.void(*arguments), codegen


@intrinsic(prefer_literal=True)
def _copy(typingctx, real, count, lanes, source, source_row, target, target_row, rows):
    """Copies `rows` rows of `count` times `lanes` adjacent elements (constants). Rows are so many bytes apart."""
    element, _ = _llvm(real.dtype)
    vector = ir.VectorType(element, lanes.literal_value)
    size = real.dtype.bitwidth // 8
    row_bytes = size * lanes.literal_value

    def codegen(context, builder, signature, arguments):
        source, source_row, target, target_row, rows = arguments[3:]
        with cgutils.for_range(builder, rows) as loop:
            origin = builder.add(source, builder.mul(loop.index, source_row))
            goal = builder.add(target, builder.mul(loop.index, target_row))
            for j in range(count.literal_value):
                part = _load(builder, builder.add(origin, _index(j * row_bytes)), vector, size)
                _store(builder, part, builder.add(goal, _index(j * row_bytes)), size)
        return context.get_dummy_value()

    return types.void(real, count, lanes, *[types.int64] * 5), codegen


@intrinsic
def _transpose(typingctx, real, source, source_row, target, target_row, blocks):
    """Transposes `blocks` squares of a vector by a vector, side by side in `source`, one below the other in `target`.

    Rows are so many bytes apart. A square is held in registers; interleaving the first half of its rows with the
    second, as often as halving its size takes to come to 1, transposes it.
    """
    element, lanes = _llvm(real.dtype)
    vector = ir.VectorType(element, lanes)
    halves = [[part * lanes // 2 + i // 2 + i % 2 * lanes for i in range(lanes)] for part in (0, 1)]
    masks = [ir.Constant(ir.VectorType(ir.IntType(32), lanes), half) for half in halves]

    def codegen(context, builder, signature, arguments):
        source, source_row, target, target_row, blocks = arguments[1:]
        size = real.dtype.bitwidth // 8
        with cgutils.for_range(builder, blocks) as loop:
            origin = builder.add(source, builder.mul(loop.index, _index(_VECTOR_BYTES)))
            goal = builder.add(target, builder.mul(builder.mul(loop.index, _index(lanes)), target_row))
            square = [
                _load(builder, builder.add(origin, builder.mul(source_row, _index(i))), vector, size)
                for i in range(lanes)
            ]
            for _ in range(lanes.bit_length() - 1):
                pairs = zip(square[: lanes // 2], square[lanes // 2 :], strict=True)
                square = [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in masks]
            for i, row in enumerate(square):
                _store(builder, row, builder.add(goal, builder.mul(target_row, _index(i))), size)
        return context.get_dummy_value()

    return types.void(real, *[types.int64] * 5), codegen


def gemm(c, a, b, transpose_a, transpose_b, alpha, beta):
    """c = alpha op(a) op(b) + beta c on this thread, where op transposes if its flag says so.

    c (M,N), op(a) (M,K), op(b) (K,N): float32 or all float64, rows of any stride, elements of a row adjacent.
    With beta = 0, c is not read. This body is what runs under NUMBA_DISABLE_JIT=1.
    """
    product = alpha * ((a.T if transpose_a else a) @ (b.T if transpose_b else b))
    c[...] = product if beta == 0 else product + beta * c


@overload(gemm, jit_options={"error_model": "numpy"})
def _gemm(c, a, b, transpose_a, transpose_b, alpha, beta):
    if c.dtype not in (types.float32, types.float64) or a.dtype != c.dtype or b.dtype != c.dtype:
        raise numba.TypingError(f"no matrix product of {a.dtype} and {b.dtype} into {c.dtype}")
    real = getattr(np, c.dtype.name)
    size, lanes = c.dtype.bitwidth // 8, _llvm(c.dtype)[1]
    panel_size, block_size, edge_size = _DEPTH * _VECTORS * lanes, _DEPTH * _HEIGHT, _ROWS * _VECTORS * lanes
    width = _VECTORS * lanes

    @inline
    def pack_b(panel, address, b, transpose_b, k, depth, j, columns, vectors):
        """Copies op(b)[k : k + depth, j : j + columns] into the panel, filling its rows up to `vectors` vectors."""
        whole_columns = columns // lanes * lanes
        whole_depth = depth // lanes * lanes
        row = vectors * lanes
        if transpose_b:
            for first in range(0, whole_columns, lanes):
                source = _address(b) + (j + first) * b.strides[0] + k * size
                _transpose(real, source, b.strides[0], address + first * size, row * size, depth // lanes)
            for i in range(whole_depth, depth):
                for n in range(whole_columns):
                    panel[i * row + n] = b[j + n, k + i]
            for n in range(whole_columns, columns):
                for i in range(depth):
                    panel[i * row + n] = b[j + n, k + i]
        else:
            for first in range(0, whole_columns, lanes):
                source = _address(b) + k * b.strides[0] + (j + first) * size
                _copy(real, 1, lanes, source, b.strides[0], address + first * size, row * size, depth)
            for i in range(depth):
                for n in range(whole_columns, columns):
                    panel[i * row + n] = b[k + i, j + n]
        for i in range(depth):
            for n in range(columns, row):
                panel[i * row + n] = real(0)

    @inline
    def pack_a(block, address, a, k, depth, m, rows):
        """Copies a[k : k + depth, m : m + rows], a slice of _ROWS columns after the other."""
        whole = rows // _ROWS * _ROWS
        for first in range(0, whole, _ROWS):
            source = _address(a) + k * a.strides[0] + (m + first) * size
            _copy(real, 1, _ROWS, source, a.strides[0], address + first * depth * size, _ROWS * size, depth)
        for i in range(depth):
            for r in range(whole, rows):
                block[whole * depth + i * _ROWS + r - whole] = a[k + i, m + r]

    @inline
    def multiply(c, m, j, rows, columns, vectors, a, a_row, a_step, panel, depth, edge, edge_address, alpha, beta):
        full = rows >= _ROWS and columns == vectors * lanes
        target = _address(c) + m * c.strides[0] + j * size if full else edge_address
        target_row = c.strides[0] if full else vectors * lanes * size
        factor = beta if full else real(0)
        if vectors == 3:
            _tile(real, 3, target, target_row, a, a_row, a_step, rows, panel, depth, alpha, factor)
        elif vectors == 2:
            _tile(real, 2, target, target_row, a, a_row, a_step, rows, panel, depth, alpha, factor)
        else:
            _tile(real, 1, target, target_row, a, a_row, a_step, rows, panel, depth, alpha, factor)
        if not full:
            for i in range(min(rows, _ROWS)):
                for n in range(columns):
                    value = edge[i * vectors * lanes + n]
                    c[m + i, j + n] = value if beta == 0 else value + beta * c[m + i, j + n]

    def implementation(c, a, b, transpose_a, transpose_b, alpha, beta):
        M, N = c.shape
        K = a.shape[0] if transpose_a else a.shape[1]
        panel_address, block_address = _stack(real, panel_size), _stack(real, block_size)
        edge_address = _stack(real, edge_size)
        panel = numba.carray(_view(real, panel_address, 0, 0), (panel_size,))
        block = numba.carray(_view(real, block_address, 0, 0), (block_size,))
        edge = numba.carray(_view(real, edge_address, 0, 0), (edge_size,))
        pieces = (K + _DEPTH - 1) // _DEPTH
        # Equal pieces of the depth, each but the last a multiple of a vector.
        step = ((K + pieces - 1) // pieces + lanes - 1) // lanes * lanes
        for top in range(0, M, _HEIGHT):
            bottom = min(M, top + _HEIGHT)
            for k in range(0, K, step):
                depth = min(step, K - k)
                factor = real(beta) if k == 0 else real(1)
                if transpose_a:
                    pack_a(block, block_address, a, k, depth, top, bottom - top)
                for j in range(0, N, width):
                    columns = min(width, N - j)
                    vectors = (columns + lanes - 1) // lanes
                    pack_b(panel, panel_address, b, transpose_b, k, depth, j, columns, vectors)
                    for m in range(top, bottom, _ROWS):
                        rows = bottom - m
                        if transpose_a:
                            origin, a_row, a_step = block_address + (m - top) * depth * size, size, _ROWS * size
                        else:
                            origin, a_row, a_step = _address(a) + m * a.strides[0] + k * size, a.strides[0], size
                        multiply(
                            c,
                            m,
                            j,
                            rows,
                            columns,
                            vectors,
                            origin,
                            a_row,
                            a_step,
                            panel_address,
                            depth,
                            edge,
                            edge_address,
                            real(alpha),
                            factor,
                        )

    return implementation
