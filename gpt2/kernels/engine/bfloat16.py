"""bfloat16 factors in pairs, as AVX512_BF16 and AMX multiply them: LLVM instructions for compiled code only.

A pair is two bfloat16 that are neighbours along a product's depth, in 32 bits; one instruction multiplies 16 pairs with
16 others and adds both products of each to a float32 sum. llvmlite has no bfloat16, so vectors of pairs are kept as
32-bit integers.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16

_index, _integer = ir.IntType(64), ir.IntType(32)
_floats = ir.VectorType(ir.FloatType(), LANES)
PAIRS = ir.VectorType(_integer, LANES)
_words = ir.VectorType(ir.IntType(16), 2 * LANES)


class _BFloat(ir.types._BaseFloatType):
    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self):
        return "bfloat"


_BFloat._create_instance()
_bfloats = ir.VectorType(_BFloat(), 2 * LANES)


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def add_pairs(builder, sums, a, b):
    """Returns sums, 16 float32, plus both products of each pair of a with that of b."""
    a, b = builder.bitcast(a, _bfloats), builder.bitcast(b, _bfloats)
    return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _floats, sums, a, b)


def first_lanes(builder, count):
    """Returns a mask of the first `count` of 16 lanes: none if it is negative."""
    lanes = ir.Constant(PAIRS, list(range(LANES)))
    undefined = ir.Constant(PAIRS, ir.Undefined)
    count = builder.insert_element(undefined, builder.trunc(count, _integer), _integer(0))
    count = builder.shuffle_vector(count, undefined, ir.Constant(PAIRS, [0] * LANES))
    return builder.icmp_signed("<", lanes, count)


def load_floats(builder, address, count=None):
    """Returns 16 float32 at an address; given a count, only as many, then zeros: what lies beyond is not touched."""
    pointer = builder.inttoptr(address, _floats.as_pointer())
    if count is None:  # a mask costs as much as the rounding
        return builder.load(pointer, align=4)
    mask, zeros = first_lanes(builder, count), ir.Constant(_floats, [0.0] * LANES)
    return _call(builder, "llvm.masked.load.v16f32.p0", _floats, pointer, _integer(4), mask, zeros)


def _load_two(builder, address, count=None):
    """Returns 32 float32 at an address, in two vectors; count: as for `load_floats`."""
    rest = None if count is None else builder.sub(count, _index(LANES))
    return load_floats(builder, address, count), load_floats(builder, builder.add(address, _index(64)), rest)


def _rounded(builder, low, high):
    """Returns 32 bfloat16, as PAIRS: 16 float32, then 16 others, each rounded to the nearest, ties to even."""
    return builder.bitcast(_call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _bfloats, high, low), PAIRS)


def _store(builder, value, address):
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


@intrinsic
def round_row(typingctx, source, count, target):
    """Rounds `count` float32 at `source` to bfloat16 at `target`, zero-padded to a multiple of 32. Addresses."""

    def codegen(context, builder, signature, arguments):
        source, count, target = arguments

        def pack(step, left=None):
            numbers = _load_two(builder, builder.add(source, builder.shl(step, _index(7))), left)
            _store(builder, _rounded(builder, *numbers), builder.add(target, builder.shl(step, _index(6))))

        whole, left = builder.ashr(count, _index(5)), builder.and_(count, _index(31))
        with cgutils.for_range(builder, whole) as loop:
            pack(loop.index)
        with builder.if_then(builder.icmp_signed(">", left, _index(0))):
            pack(whole, left)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def pair_rows(typingctx, source, source_row, rows, count, target, target_row):
    """Rounds `count` (0 to 16) columns of float32 rows, and pairs each row with the next: a target row is 16 pairs.

    Addresses; source_row, target_row: row strides in bytes. Columns and an odd last row are padded with zeros.
    """
    # Rounding two rows gives the first's 16 numbers, then the second's: element i of a pair row is of number i // 2.
    order = ir.Constant(ir.VectorType(_integer, 2 * LANES), [i // 2 + i % 2 * LANES for i in range(2 * LANES)])

    def codegen(context, builder, signature, arguments):
        source, source_row, rows, count, target, target_row = arguments

        def pack(pair, low_count=None, high_count=None):
            low = builder.add(source, builder.mul(builder.shl(pair, _index(1)), source_row))
            values = (
                load_floats(builder, low, low_count),
                load_floats(builder, builder.add(low, source_row), high_count),
            )
            words = builder.bitcast(_rounded(builder, *values), _words)
            words = builder.shuffle_vector(words, words, order)
            _store(builder, words, builder.add(target, builder.mul(pair, target_row)))

        pairs = builder.ashr(rows, _index(1))
        with builder.if_else(builder.icmp_signed("==", count, _index(LANES))) as (whole, partial):
            with whole, cgutils.for_range(builder, pairs) as loop:
                pack(loop.index)
            with partial, cgutils.for_range(builder, pairs) as loop:
                pack(loop.index, count, count)
        with builder.if_then(builder.trunc(rows, ir.IntType(1))):
            pack(pairs, count, _index(0))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@intrinsic
def pair_columns(typingctx, source, source_row, rows, count, target, target_row):
    """Rounds up to 16 float32 rows of `count` columns, pairs neighbours, and transposes: a target row is 16 pairs.

    Addresses; source_row, target_row: row strides in bytes. There are count / 2 target rows, padded with zeros to a
    multiple of 16. The 16 x 16 squares of pairs are transposed as in `simd.transpose`.
    """
    halves = [[part * 8 + i // 2 + i % 2 * LANES for i in range(LANES)] for part in (0, 1)]
    masks = [ir.Constant(PAIRS, half) for half in halves]

    def codegen(context, builder, signature, arguments):
        source, source_row, rows, count, target, target_row = arguments

        def pack(step, left=None):
            vectors = []
            for i in range(LANES):
                row = builder.add(builder.mul(source_row, _index(i)), builder.shl(step, _index(7)))
                is_row = builder.icmp_signed("<", _index(i), rows)
                present = None if left is None else builder.select(is_row, left, _index(0))
                vectors.append(_rounded(builder, *_load_two(builder, builder.add(source, row), present)))
            for _ in range(4):
                pairs = zip(vectors[:8], vectors[8:], strict=True)
                vectors = [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in masks]
            first = builder.add(target, builder.mul(builder.shl(step, _index(4)), target_row))
            for i, vector in enumerate(vectors):
                _store(builder, vector, builder.add(first, builder.mul(target_row, _index(i))))

        steps = builder.ashr(builder.add(count, _index(31)), _index(5))
        is_whole = builder.icmp_signed("==", rows, _index(LANES))
        whole = builder.select(is_whole, builder.ashr(count, _index(5)), _index(0))
        with cgutils.for_range(builder, whole) as loop:
            pack(loop.index)
        with cgutils.for_range(builder, steps, start=whole) as loop:
            pack(loop.index, builder.sub(count, builder.shl(loop.index, _index(5))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen
