"""AMX's tile registers, as LLVM instructions for compiled code only.

A thread has 8 tiles, here of 16 rows by 64 bytes: 16 x 16 float32 sums, or 16 x 32 bfloat16. One instruction multiplies
two tiles of bfloat16: rows of a, and rows of pairs of b (see bfloat16.py), which are neighbours along the depth.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from gpt2.kernels.engine.bfloat16 import LANES, _call, first_lanes, load_floats
from gpt2.kernels.engine.simd import _prefetch, _splat

# Rows and columns of a block of c: 2 x 2 tiles. The depth goes in steps of a tile's bfloat16.
SIDE = 32
_ROWS, _ROW_BYTES = 16, 64
# Rows of the next block of c to prefetch with each step of the depth: all of them within a depth of 256.
_AHEAD = 4

_index, _number, _nothing = ir.IntType(64), ir.IntType(8), ir.VoidType()


def _pointer(builder, address):
    return builder.inttoptr(address, cgutils.voidptr_t)


@intrinsic
def configure_tiles(typingctx):
    """Gives the calling thread its tiles, until `release_tiles`."""
    palette, rows = 1, bytes([_ROWS] * 8)
    layout = bytes([palette, *[0] * 15]) + _ROW_BYTES.to_bytes(2, "little") * 8 + bytes(16) + rows + bytes(8)

    def codegen(context, builder, signature, arguments):
        constant = cgutils.global_constant(builder, "tiles", cgutils.make_bytearray(layout))
        _call(builder, "llvm.x86.ldtilecfg", _nothing, builder.bitcast(constant, cgutils.voidptr_t))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def release_tiles(typingctx):
    """Frees the calling thread's tiles: the system need not save them any longer."""

    def codegen(context, builder, signature, arguments):
        _call(builder, "llvm.x86.tilerelease", _nothing)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def multiply_tiles(typingctx, c, c_row, a, a_row, b, steps, adds, ahead, ahead_row):
    """c = a @ b, or c += a @ b if `adds`, for SIDE rows and columns of float32 c; the depth is SIDE * steps.

    Addresses; c_row, a_row, ahead_row: row strides in bytes. a: rows of bfloat16. b: rows of SIDE pairs. ahead: the c
    to be multiplied next, which is prefetched.
    """

    def codegen(context, builder, signature, arguments):
        c, c_row, a, a_row, b, steps, adds, ahead, ahead_row = arguments
        b_row = _index(2 * _ROW_BYTES)

        def load(tile, address, row):
            _call(builder, "llvm.x86.tileloadd64", _nothing, _number(tile), _pointer(builder, address), row)

        def add_product(total, a_tile, b_tile):
            _call(builder, "llvm.x86.tdpbf16ps", _nothing, *map(_number, (total, a_tile, b_tile)))

        def below(address, row):
            return builder.add(address, builder.mul(row, _index(_ROWS)))

        def beside(address):
            return builder.add(address, _index(_ROW_BYTES))

        places = [c, beside(c), below(c, c_row), beside(below(c, c_row))]
        with builder.if_else(adds) as (sum_on, start):
            with sum_on:
                for tile, place in enumerate(places):
                    load(tile, place, c_row)
            with start:
                for tile in range(4):
                    _call(builder, "llvm.x86.tilezero", _nothing, _number(tile))
        with cgutils.for_range(builder, steps) as loop:
            a_step = builder.add(a, builder.mul(loop.index, _index(_ROW_BYTES)))
            b_step = builder.add(b, builder.mul(loop.index, builder.mul(b_row, _index(_ROWS))))
            load(4, a_step, a_row)
            load(6, b_step, b_row)
            add_product(0, 4, 6)
            load(7, beside(b_step), b_row)
            add_product(1, 4, 7)
            load(5, below(a_step, a_row), a_row)
            add_product(2, 5, 6)
            add_product(3, 5, 7)
            first = builder.and_(builder.mul(loop.index, _index(_AHEAD)), _index(SIDE - 1))
            for i in range(_AHEAD):
                row = builder.add(ahead, builder.mul(builder.add(first, _index(i)), ahead_row))
                _prefetch(builder, [row, beside(row)], write=1, locality=3)
        for tile, place in enumerate(places):
            _call(builder, "llvm.x86.tilestored64", _nothing, _number(tile), _pointer(builder, place), c_row)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, types.boolean, *[types.int64] * 2), codegen


@intrinsic
def scale_rows(typingctx, target, target_row, source, source_row, rows, columns, alpha, beta):
    """target = alpha * source + beta * target for `rows` rows of up to SIDE float32; beta = 0: target is not read.

    Addresses; target_row, source_row: row strides in bytes. Nothing beyond `columns` is touched.
    """
    vector = ir.VectorType(ir.FloatType(), LANES)

    def codegen(context, builder, signature, arguments):
        target, target_row, source, source_row, rows, columns, alpha, beta = arguments

        def scale(adds):
            with cgutils.for_range(builder, rows) as loop:
                for lane in range(0, SIDE, LANES):
                    left = builder.sub(columns, _index(lane))
                    place, number = (
                        builder.add(builder.add(start, _index(4 * lane)), builder.mul(loop.index, row))
                        for start, row in ((target, target_row), (source, source_row))
                    )
                    value = builder.fmul(_splat(builder, alpha, vector), load_floats(builder, number, left))
                    if adds:
                        factors = _splat(builder, beta, vector), load_floats(builder, place, left), value
                        value = _call(builder, "llvm.fmuladd.v16f32", vector, *factors)
                    pointer, mask = builder.inttoptr(place, vector.as_pointer()), first_lanes(builder, left)
                    _call(builder, "llvm.masked.store.v16f32.p0", _nothing, value, pointer, ir.IntType(32)(4), mask)

        with builder.if_else(builder.fcmp_ordered("==", beta, ir.FloatType()(0.0))) as (overwrite, add):
            with overwrite:
                scale(False)
            with add:
                scale(True)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, types.float32, types.float32), codegen
