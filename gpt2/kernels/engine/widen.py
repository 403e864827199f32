"""Dot products of float32 rows with weights in a narrower form, which are widened to float32 in registers.

The dtype of an array of weights tells its form: float32; uint16, the bits of a bfloat16, which is the upper half of a
float32; int8, rows of bytes as in `quantised_row`.
"""

import itertools

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, register_jitable

from gpt2.kernels.engine import simd

# Weights that share a scale, a bfloat16.
GROUP = 32
# Bytes of a weight row per step, and partial sums of a dot product: enough to hide the latency of the multiply-adds.
LINE = 64
_CHAINS = 2

_INDEX = ir.IntType(64)
# With flags of their own, operations keep their order: Numba adds `reassoc` only to those without.
_EXACT = ("nsz",)
_LANES = simd.VECTOR_BYTES // 4


@register_jitable
def quantised_row(C):
    """Returns (offset of the weights, length), in bytes, of a row of C int8 weights.

    The scales come first: behind the weights, each row would begin with a cache miss far ahead. The last group is
    padded with zeros. Both numbers are multiples of 16, so that vectors do not straddle cache lines.
    """
    groups = -(-C // GROUP)
    offset = -(-groups * 2 // 16) * 16
    return offset, offset + groups * GROUP


@intrinsic(prefer_literal=True)
def dot_row(typingctx, count, weight, row, offset, lines, x, x_row):
    """Returns the dot products of a row of weights with `count` (a constant) rows of float32, a tuple.

    weight: an array of the weights' dtype. row, x: addresses; x_row: row stride in bytes. offset: of the weights in an
    int8 row, in bytes. lines: how many cache lines of the row to sum. The order of a sum depends on its length alone.
    """
    dtype, inputs = weight.dtype, count.literal_value
    size = dtype.bitwidth // 8
    # Vectors that share a scale, or are summed one by one.
    together = GROUP // _LANES if dtype == types.int8 else 1

    def codegen(context, builder, signature, arguments):
        row, offset, lines, x, x_row = arguments[2:]
        vector = simd._vector(types.float32)
        zero = ir.Constant(vector, [0.0] * _LANES)
        multiply_add = simd._function(builder, f"llvm.fmuladd.v{_LANES}f32", vector, [vector] * 3)
        sums = [[cgutils.alloca_once(builder, vector) for _ in range(_CHAINS)] for _ in range(inputs)]
        for place in itertools.chain(*sums):
            builder.store(zero, place)
        numbers_start = builder.add(row, offset) if dtype == types.int8 else row
        x_rows = [builder.add(x, builder.mul(x_row, _INDEX(i))) for i in range(inputs)]
        with cgutils.for_range(builder, lines) as loop:
            line = builder.add(numbers_start, builder.mul(loop.index, _INDEX(LINE)))
            columns = builder.mul(loop.index, _INDEX(LINE // size * 4))
            starts = [builder.add(start, columns) for start in x_rows]
            scales_of_line = None
            if dtype == types.int8:
                scale_row = builder.add(row, builder.mul(loop.index, _INDEX(4)))
                scales_of_line = _two_scales(builder, scale_row, vector)
            for step, first in enumerate(range(0, LINE // size // _LANES, together)):
                numbers = range(first, first + together)
                weights = [
                    _widened(builder, dtype, builder.add(line, _INDEX(v * _LANES * size)), vector) for v in numbers
                ]
                for start, chains in zip(starts, sums, strict=True):
                    factors = [
                        simd._load(builder, builder.add(start, _INDEX(v * simd.VECTOR_BYTES)), vector, 4)
                        for v in numbers
                    ]
                    place = chains[step % _CHAINS]
                    total = builder.load(place)
                    if scales_of_line:
                        group = builder.fmul(weights[0], factors[0], flags=_EXACT)
                        for pair in zip(weights[1:], factors[1:], strict=True):
                            group = builder.call(multiply_add, [*pair, group])
                        total = builder.call(multiply_add, [group, scales_of_line[step], total])
                    else:
                        total = builder.call(multiply_add, [weights[0], factors[0], total])
                    builder.store(total, place)
        totals = [_total(builder, [builder.load(place) for place in chains]) for chains in sums]
        return context.make_tuple(builder, signature.return_type, totals)

    return types.UniTuple(types.float32, inputs)(count, weight, *[types.int64] * 5), codegen


def _two_scales(builder, place, vector):
    """Loads the scales of a line's two groups, each as a vector of copies."""
    integers = ir.VectorType(ir.IntType(32), vector.count)
    pair = simd._splat(builder, simd._load(builder, place, ir.IntType(32), 4), integers)
    first = builder.shl(pair, ir.Constant(integers, [16] * vector.count))
    second = builder.and_(pair, ir.Constant(integers, [0xFFFF0000] * vector.count))
    return [builder.bitcast(scale, vector) for scale in (first, second)]


def _widened(builder, dtype, place, vector):
    """Loads a vector of weights and widens it."""
    if dtype == types.float32:
        return simd._load(builder, place, vector, 4)
    integers = ir.VectorType(ir.IntType(32), vector.count)
    narrow = ir.VectorType(ir.IntType(dtype.bitwidth), vector.count)
    loaded = simd._load(builder, place, narrow, dtype.bitwidth // 8)
    if dtype == types.int8:
        return builder.sitofp(builder.sext(loaded, integers), vector)
    upper = builder.shl(builder.zext(loaded, integers), ir.Constant(integers, [16] * vector.count))
    return builder.bitcast(upper, vector)


def _total(builder, chains):
    """Returns the sum of all elements of vectors."""
    vector, *others = chains
    for other in others:
        vector = builder.fadd(vector, other, flags=_EXACT)
    undefined, count = ir.Constant(vector.type, ir.Undefined), _LANES
    while count > 1:
        count //= 2
        upper = [count + i if i < count else 0 for i in range(_LANES)]
        upper = builder.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), upper))
        vector = builder.fadd(vector, upper, flags=_EXACT)
    return builder.extract_element(vector, ir.IntType(32)(0))
