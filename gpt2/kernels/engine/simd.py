"""Vector code that Numba cannot express, as LLVM instructions: the building blocks of `gemm`, for compiled code only.

LLVM lowers it to AVX-512, AVX2, SSE or NEON. Here these differ only in vector length and number of registers.
"""

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from gpt2.kernels.engine.bfloat16 import add_pairs
from gpt2.kernels.engine.target import target_features


def _registers():
    """Returns (vector length in bytes, rows of a tile): the tile takes 12 of 16 vector registers, or 24 of 32."""
    if "+avx512f" in target_features():
        return 64, 8
    if "+avx2" in target_features():
        return 32, 4
    return 16, 8 if llvmlite.binding.get_process_triple().startswith(("aarch64", "arm64")) else 4


VECTOR_BYTES, TILE_ROWS = _registers()
TILE_VECTORS = 3

_index = ir.IntType(64)


def _lanes(dtype):
    """Elements of a Numba type per vector."""
    return VECTOR_BYTES * 8 // dtype.bitwidth


_ELEMENTS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.int32: ir.IntType(32)}


def _vector(dtype, count=None):
    return ir.VectorType(_ELEMENTS[dtype], count or _lanes(dtype))


def _load(builder, address, kind, align):
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def _store(builder, value, address, align):
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=align)


def _splat(builder, scalar, kind):
    undefined = ir.Constant(kind, ir.Undefined)
    first = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(builder.insert_element(undefined, scalar, ir.IntType(32)(0)), undefined, first)


@intrinsic(prefer_literal=True)
def stack_array(typingctx, like, size):
    """Allocates an array of `size` bytes (a constant), of the dtype of `like`, on the calling function's stack."""
    array_type = types.Array(like.dtype, 1, "C")
    itemsize = like.dtype.bitwidth // 8
    count = size.literal_value // itemsize

    def codegen(context, builder, signature, arguments):
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(_vector(like.dtype).element, count))
        memory.align = VECTOR_BYTES
        array = make_array(array_type)(context, builder)
        populate_array(
            array,
            data=builder.bitcast(memory, array.data.type),
            shape=[_index(count)],
            strides=[_index(itemsize)],
            itemsize=_index(itemsize),
            meminfo=None,
        )
        return array._getvalue()

    return array_type(like, size), codegen


@intrinsic
def matrix(typingctx, like, address, row_bytes, rows, columns):
    """Returns the array (rows, columns) at `address`, of the type of the scalar `like`, with row stride `row_bytes`."""
    array_type = types.Array(like, 2, "A")

    def codegen(context, builder, signature, arguments):
        _, address, row_bytes, rows, columns = arguments
        itemsize = like.bitwidth // 8
        array = make_array(array_type)(context, builder)
        populate_array(
            array,
            data=builder.inttoptr(address, array.data.type),
            shape=[rows, columns],
            strides=[row_bytes, _index(itemsize)],
            itemsize=_index(itemsize),
            meminfo=None,
        )
        return array._getvalue()

    return array_type(like, *[types.int64] * 4), codegen


@intrinsic
def address(typingctx, array):
    """Returns the address of an array's first element."""

    def codegen(context, builder, signature, arguments):
        return builder.ptrtoint(make_array(array)(context, builder, arguments[0]).data, _index)

    return types.int64(array), codegen


@intrinsic(prefer_literal=True)
def tile(typingctx, vectors, c, c_row, a, a_row, a_step, rows, panel, depth, alpha, beta):
    """c = alpha * a @ panel + beta * c for TILE_ROWS rows and `vectors` (a constant) vectors; beta = 0: c is not read.

    c, a: addresses. c_row, a_row: row strides in bytes; a_step: column stride of a in bytes. rows: rows that a has; the
    last is repeated up to TILE_ROWS. panel: array of `depth` rows of `vectors` vectors; one of int32 means that its
    elements and those of a are pairs of bfloat16 (see bfloat16.py), and that c is float32.
    """
    of_pairs = panel.dtype == types.int32
    dtype, count = types.float32 if of_pairs else panel.dtype, vectors.literal_value
    vector, size = _vector(dtype), dtype.bitwidth // 8
    arguments = (vectors, *[types.int64] * 6, panel, types.int64, dtype, dtype)

    def codegen(context, builder, signature, arguments):
        c, c_row, a, a_row, a_step, rows, panel_array, depth, alpha, beta = arguments[1:]
        b = builder.ptrtoint(make_array(panel)(context, builder, panel_array).data, _index)
        multiply_add = _function(builder, f"llvm.fmuladd.v{vector.count}f{8 * size}", vector, [vector] * 3)
        factors = _vector(panel.dtype)
        targets = [
            builder.add(c, builder.add(builder.mul(c_row, _index(i)), _index(j * VECTOR_BYTES)))
            for i in range(TILE_ROWS)
            for j in range(count)
        ]
        last = builder.sub(rows, _index(1))
        a_rows = []
        for i in range(TILE_ROWS):
            row = builder.select(builder.icmp_signed("<", _index(i), rows), _index(i), last)
            a_rows.append(builder.add(a, builder.mul(row, a_row)))
        zero = ir.Constant(vector, [0.0] * vector.count)
        sums = [cgutils.alloca_once(builder, vector) for _ in targets]
        for place in sums:
            builder.store(zero, place)

        def add_products(k):
            b_k = builder.add(b, builder.mul(k, _index(count * VECTOR_BYTES)))
            b_vectors = [
                _load(builder, builder.add(b_k, _index(j * VECTOR_BYTES)), factors, VECTOR_BYTES) for j in range(count)
            ]
            a_k = _opaque(builder, builder.mul(k, a_step))
            for i, a_i in enumerate(a_rows):
                factor = _splat(builder, _load(builder, builder.add(a_i, a_k), factors.element, size), factors)
                for b_vector, place in zip(b_vectors, sums[i * count : (i + 1) * count], strict=True):
                    if of_pairs:
                        total = add_pairs(builder, builder.load(place), factor, b_vector)
                    else:
                        total = builder.call(multiply_add, [factor, b_vector, builder.load(place)])
                    builder.store(total, place)

        # Prefetch the tile of c, which is written at the end, row by row: faster than all of it at once. The loop over
        # the depth is unrolled by two, with a loop for the remainder.
        pairs = builder.udiv(depth, _index(2 * TILE_ROWS))
        with cgutils.for_range(builder, _index(TILE_ROWS)) as rows_of_c:
            row = builder.add(c, builder.mul(c_row, rows_of_c.index))
            _prefetch(builder, [builder.add(row, _index(j * VECTOR_BYTES)) for j in range(count)], write=1, locality=3)
            first = builder.mul(rows_of_c.index, pairs)
            with cgutils.for_range(builder, pairs) as loop:
                for step in range(2):
                    add_products(builder.add(builder.shl(builder.add(first, loop.index), _index(1)), _index(step)))
        done = builder.mul(pairs, _index(2 * TILE_ROWS))
        with cgutils.for_range(builder, builder.sub(depth, done)) as loop:
            add_products(builder.add(done, loop.index))

        _write_scaled(builder, targets, [builder.load(place) for place in sums], alpha, beta, multiply_add)
        return context.get_dummy_value()

    return types.void(*arguments), codegen


def _write_scaled(builder, targets, sums, alpha, beta, multiply_add):
    """Stores alpha * sums + beta * what is there at the target addresses, which are not read if beta = 0."""
    vector = sums[0].type
    size = VECTOR_BYTES // vector.count
    alphas, betas = _splat(builder, alpha, vector), _splat(builder, beta, vector)
    results = [builder.fmul(alphas, total) for total in sums]
    with builder.if_else(builder.fcmp_ordered("==", beta, vector.element(0.0))) as (overwrite, add):
        with overwrite:
            for target, result in zip(targets, results, strict=True):
                _store(builder, result, target, size)
        with add:
            for target, result in zip(targets, results, strict=True):
                before = _load(builder, target, vector, size)
                _store(builder, builder.call(multiply_add, [betas, before, result]), target, size)


def _opaque(builder, number):
    """Hides a number's origin from LLVM, which would otherwise keep an induction variable per address derived from it:
    more than there are registers, and as many instructions as the multiply-adds."""
    return builder.asm(ir.FunctionType(number.type, [number.type]), "", "=r,0", [number], side_effect=False)


def _function(builder, name, result, arguments):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _prefetch(builder, places, write, locality):
    integer = ir.IntType(32)
    instruction = _function(builder, "llvm.prefetch.p0", ir.VoidType(), [cgutils.voidptr_t, *[integer] * 3])
    flags = [integer(write), integer(locality), integer(1)]
    for place in places:
        builder.call(instruction, [builder.inttoptr(place, cgutils.voidptr_t), *flags])


@intrinsic
def prefetch(typingctx, address, size):
    """Prefetches `size` bytes at `address` into L2."""

    def codegen(context, builder, signature, arguments):
        address, size = arguments
        lines = builder.ashr(builder.add(size, _index(63)), _index(6))
        with cgutils.for_range(builder, lines) as loop:
            _prefetch(builder, [builder.add(address, builder.shl(loop.index, _index(6)))], write=0, locality=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def copy(typingctx, array, count, source, source_row, target, target_row, rows):
    """Copies `rows` rows of `count` (a constant; None: one vector of) contiguous elements of the dtype of `array`.

    source, target: addresses; source_row, target_row: row strides in bytes.
    """
    vector, size = _vector(array.dtype, getattr(count, "literal_value", None)), array.dtype.bitwidth // 8

    def codegen(context, builder, signature, arguments):
        source, source_row, target, target_row, rows = arguments[2:]
        with cgutils.for_range(builder, rows) as loop:
            numbers = _load(builder, builder.add(source, builder.mul(loop.index, source_row)), vector, size)
            _store(builder, numbers, builder.add(target, builder.mul(loop.index, target_row)), size)
        return context.get_dummy_value()

    return types.void(array, count, *[types.int64] * 5), codegen


@intrinsic
def transpose(typingctx, array, source, source_row, target, target_row, squares):
    """Transposes `squares` squares of lanes x lanes elements, side by side in `source`, stacked vertically in `target`.

    array: gives the dtype. Addresses and strides as in `copy`. A square is held in registers and transposed by
    interleaving the first half of its rows with the second half, log2(lanes) times.
    """
    vector, count, size = _vector(array.dtype), _lanes(array.dtype), array.dtype.bitwidth // 8
    halves = [[part * count // 2 + i // 2 + i % 2 * count for i in range(count)] for part in (0, 1)]
    masks = [ir.Constant(ir.VectorType(ir.IntType(32), count), half) for half in halves]

    def codegen(context, builder, signature, arguments):
        source, source_row, target, target_row, squares = arguments[1:]
        with cgutils.for_range(builder, squares) as loop:
            origin = builder.add(source, builder.mul(loop.index, _index(VECTOR_BYTES)))
            goal = builder.add(target, builder.mul(builder.mul(loop.index, _index(count)), target_row))
            rows = [
                _load(builder, builder.add(origin, builder.mul(source_row, _index(i))), vector, size)
                for i in range(count)
            ]
            for _ in range(count.bit_length() - 1):
                pairs = zip(rows[: count // 2], rows[count // 2 :], strict=True)
                rows = [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in masks]
            for i, row in enumerate(rows):
                _store(builder, row, builder.add(goal, builder.mul(target_row, _index(i))), size)
        return context.get_dummy_value()

    return types.void(array, *[types.int64] * 5), codegen
