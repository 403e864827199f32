"""bfloat16 factors in pairs, as AVX512_BF16 multiplies them: LLVM instructions for compiled code only.

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


def _load_first(builder, address, count):
    """Returns the first `count` of 16 float32 at an address, and zeros: what lies beyond is not touched."""
    lanes = ir.Constant(PAIRS, list(range(LANES)))
    undefined = ir.Constant(PAIRS, ir.Undefined)
    count = builder.insert_element(undefined, builder.trunc(count, _integer), _integer(0))
    count = builder.shuffle_vector(count, undefined, ir.Constant(PAIRS, [0] * LANES))
    mask = builder.icmp_signed("<", lanes, count)
    pointer = builder.inttoptr(address, _floats.as_pointer())
    zeros = ir.Constant(_floats, [0.0] * LANES)
    return _call(builder, "llvm.masked.load.v16f32.p0", _floats, pointer, _integer(4), mask, zeros)


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
        steps = builder.sdiv(builder.add(count, _index(31)), _index(32))
        with cgutils.for_range(builder, steps) as loop:
            start = builder.shl(loop.index, _index(5))
            left, place = builder.sub(count, start), builder.add(source, builder.shl(start, _index(2)))
            low = _load_first(builder, place, left)
            high = _load_first(builder, builder.add(place, _index(64)), builder.sub(left, _index(16)))
            _store(builder, _rounded(builder, low, high), builder.add(target, builder.shl(start, _index(1))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def pair_rows(typingctx, source, source_row, rows, count, target, target_row):
    """Rounds `count` (1 to 16) columns of float32 rows, and pairs each row with the next: a target row is 16 pairs.

    Addresses; source_row, target_row: row strides in bytes. Columns and an odd last row are padded with zeros.
    """
    # Rounding two rows gives the first's 16 numbers, then the second's: element i of a pair row is of number i // 2.
    order = ir.Constant(ir.VectorType(_integer, 2 * LANES), [i // 2 + i % 2 * LANES for i in range(2 * LANES)])

    def codegen(context, builder, signature, arguments):
        source, source_row, rows, count, target, target_row = arguments

        def pack(pair, high_count):
            low = builder.add(source, builder.mul(builder.shl(pair, _index(1)), source_row))
            values = _load_first(builder, low, count), _load_first(builder, builder.add(low, source_row), high_count)
            words = builder.bitcast(_rounded(builder, *values), _words)
            words = builder.shuffle_vector(words, words, order)
            _store(builder, words, builder.add(target, builder.mul(pair, target_row)))

        pairs = builder.ashr(rows, _index(1))
        with cgutils.for_range(builder, pairs) as loop:
            pack(loop.index, count)
        with builder.if_then(builder.trunc(rows, ir.IntType(1))):
            pack(pairs, _index(0))
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
        steps = builder.sdiv(builder.add(count, _index(31)), _index(32))
        with cgutils.for_range(builder, steps) as loop:
            start = builder.shl(loop.index, _index(5))
            left = builder.sub(count, start)
            vectors = []
            for i in range(LANES):
                present = builder.select(builder.icmp_signed("<", _index(i), rows), left, _index(0))
                place = builder.add(
                    source, builder.add(builder.mul(source_row, _index(i)), builder.shl(start, _index(2)))
                )
                low = _load_first(builder, place, present)
                high = _load_first(builder, builder.add(place, _index(64)), builder.sub(present, _index(16)))
                vectors.append(_rounded(builder, low, high))
            for _ in range(4):
                pairs = zip(vectors[:8], vectors[8:], strict=True)
                vectors = [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in masks]
            first = builder.add(target, builder.mul(builder.shl(loop.index, _index(4)), target_row))
            for i, vector in enumerate(vectors):
                _store(builder, vector, builder.add(first, builder.mul(target_row, _index(i))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen
