"""Linear layers: matrix products cut into tasks, with bias, residual and GELU fused into a task while it is in cache.

Tasks are as large as the caches allow, to amortise packing, and smaller where that balances the threads. `bf16`: the
factors of products are rounded to bfloat16, sums stay float32.
"""

from numba import prange

from gpt2.kernels.engine.gemm import calls_gemm, gemm
from gpt2.kernels.engine.jit import inline, kernel
from gpt2.kernels.engine.threads import threads_in_use
from gpt2.kernels.gelu import gelu_backward, gelu_forward

# Largest task, for products over the layer's width, and for weight gradients: products over the batch that pack both
# operands. bfloat16 products pack both in any case: wider tasks pack the first less often.
_ROWS, _COLUMNS, _BF16_COLUMNS = 256, 192, 768
_WEIGHT_ROWS, _WEIGHT_COLUMNS = 384, 768
# Estimated packing cost per task, in extra rows and columns.
_COPY = 16


@inline
def _cut(rows, columns, most_rows, most_columns):
    """Returns (tasks, tasks per row of tasks, rows of a task, columns of a task); the last ones may be smaller.

    Minimises the estimated work of the busiest thread. The choice does not change a bit of the product: `gemm` sums
    each element in the same order.
    """
    threads = threads_in_use()
    fewest = max(1, (rows + most_rows - 1) // most_rows)
    best, least = (1, 1, 1, 1), -1
    # Widths are multiples of 64: whole tiles, and whole iterations of vectorised loops over columns.
    for width in range(min(most_columns, _part(columns, 1, 64)), 0, -64):
        across = (columns + width - 1) // width
        for down in range(fewest, max(fewest, rows // 64) + 1):
            height = _part(rows, down, 16)
            tasks = (rows + height - 1) // height * across
            work = (tasks + threads - 1) // threads * (height + _COPY) * (width + _COPY)
            if least < 0 or work < least:
                best, least = (tasks, across, height, width), work
            if tasks >= 8 * threads:  # balanced well enough
                break
    return best


@inline
def _most_columns(bf16):
    return _BF16_COLUMNS if bf16 else _COLUMNS


@inline
def _part(size, parts, multiple):
    """Returns size / parts, rounded up to a multiple of `multiple`."""
    return (size + multiple * parts - 1) // (multiple * parts) * multiple


@calls_gemm
@kernel
def matmul_forward(out, inp, weight, bias, bf16):
    """out = inp @ weight.T + bias.

    out (N,OC). inp (N,C). weight (OC,C). bias (OC,).
    """
    tasks, across, height, width = _cut(*out.shape, _ROWS, _most_columns(bf16))
    for task in prange(tasks):
        row, column = task // across * height, task % across * width
        part = out[row : row + height, column : column + width]
        for n in range(row, row + part.shape[0]):
            out_row, bias_part = out[n, column : column + width], bias[column : column + width]
            for c in range(out_row.size):
                out_row[c] = bias_part[c]
        gemm(part, inp[row : row + height], weight[column : column + width], False, True, 1.0, 1.0, bf16)


@calls_gemm
@kernel
def matmul_residual_forward(out, residual, inp, weight, bias, bf16):
    """out = residual + inp @ weight.T + bias.

    out, residual (N,OC). inp (N,C). weight (OC,C). bias (OC,). The backward pass is matmul_backward; residual's
    gradient is that of out.
    """
    tasks, across, height, width = _cut(*out.shape, _ROWS, _most_columns(bf16))
    for task in prange(tasks):
        row, column = task // across * height, task % across * width
        part = out[row : row + height, column : column + width]
        for n in range(row, row + part.shape[0]):
            out_row, residual_row = out[n, column : column + width], residual[n, column : column + width]
            bias_part = bias[column : column + width]
            for c in range(out_row.size):
                out_row[c] = residual_row[c] + bias_part[c]
        gemm(part, inp[row : row + height], weight[column : column + width], False, True, 1.0, 1.0, bf16)


@calls_gemm
@kernel
def matmul_gelu_forward(out, pre, inp, weight, bias, bf16):
    """pre = inp @ weight.T + bias, out = GELU(pre).

    out, pre (N,OC). inp (N,C). weight (OC,C). bias (OC,).
    """
    tasks, across, height, width = _cut(*out.shape, _ROWS, _most_columns(bf16))
    for task in prange(tasks):
        row, column = task // across * height, task % across * width
        part = pre[row : row + height, column : column + width]
        for n in range(row, row + part.shape[0]):
            pre_row, bias_part = pre[n, column : column + width], bias[column : column + width]
            for c in range(pre_row.size):
                pre_row[c] = bias_part[c]
        gemm(part, inp[row : row + height], weight[column : column + width], False, True, 1.0, 1.0, bf16)
        for n in range(row, row + part.shape[0]):
            gelu_forward(out[n, column : column + width], pre[n, column : column + width])


@calls_gemm
@kernel
def matmul_nt(out, inp, weight, bf16):
    """out = inp @ weight.T: out (N,OC), inp (N,C), weight (OC,C)."""
    tasks, across, height, width = _cut(*out.shape, _ROWS, _most_columns(bf16))
    for task in prange(tasks):
        row, column = task // across * height, task % across * width
        part = out[row : row + height, column : column + width]
        gemm(part, inp[row : row + height], weight[column : column + width], False, True, 1.0, 0.0, bf16)


def matmul_backward(dinp, dweight, dbias, dout, inp, weight, beta, bf16):
    """Gradients of matmul_forward's inp, weight and bias.

    dinp (N,C) =. dweight (OC,C) = beta * dweight + gradient; not read if beta = 0. dbias (OC,) +=. dout (N,OC).
    inp (N,C). weight (OC,C).
    """
    matmul_nn(dinp, dout, weight, bf16)
    matmul_parameters_backward(dweight, dbias, dout, inp, beta, bf16)


@calls_gemm
@kernel
def matmul_nn(dinp, dout, weight, bf16):
    """dinp = dout @ weight: dinp (N,C) =, dout (N,OC), weight (OC,C)."""
    tasks, across, height, width = _cut(*dinp.shape, _ROWS, _most_columns(bf16))
    for task in prange(tasks):
        row, column = task // across * height, task % across * width
        part = dinp[row : row + height, column : column + width]
        gemm(part, dout[row : row + height], weight[:, column : column + width], False, False, 1.0, 0.0, bf16)


@calls_gemm
@kernel
def matmul_gelu_backward(dpre, act, dout, pre, weight, bf16):
    """Backward through a linear layer and the GELU before it: dpre = (dout @ weight) * GELU'(pre).

    dpre (N,C) =. act (N,C) = GELU(pre), the layer's input, recomputed for its weight gradient. dout (N,OC). pre (N,C).
    weight (OC,C).
    """
    tasks, across, height, width = _cut(*dpre.shape, _ROWS, _most_columns(bf16))
    for task in prange(tasks):
        row, column = task // across * height, task % across * width
        part = dpre[row : row + height, column : column + width]
        gemm(part, dout[row : row + height], weight[:, column : column + width], False, False, 1.0, 0.0, bf16)
        for n in range(row, row + part.shape[0]):
            stop = column + width
            gelu_backward(dpre[n, column:stop], act[n, column:stop], pre[n, column:stop])


@calls_gemm
@kernel
def matmul_parameters_backward(dweight, dbias, dout, inp, beta, bf16):
    """matmul_tn, and dbias += dout summed over rows.

    dweight (OC,C) = beta * dweight + dout.T @ inp; not read if beta = 0. dbias (OC,) +=. dout (N,OC). inp (N,C).
    """
    tasks, across, height, width = _cut(*dweight.shape, _WEIGHT_ROWS, _WEIGHT_COLUMNS)
    for task in prange(tasks):
        row, column = task // across * height, task % across * width
        part = dweight[row : row + height, column : column + width]
        gemm(part, dout[:, row : row + height], inp[:, column : column + width], True, False, 1.0, beta, bf16)
        if column == 0:
            _add_rows(dbias[row : row + height], dout[:, row : row + height])


@inline
def _add_rows(total, rows):
    """total (n,) += the sum of rows (N,n), four at a time."""
    N = rows.shape[0]
    for n in range(0, N // 4 * 4, 4):
        row0, row1, row2, row3 = rows[n], rows[n + 1], rows[n + 2], rows[n + 3]
        for c in range(total.size):
            total[c] += (row0[c] + row1[c]) + (row2[c] + row3[c])
    for n in range(N // 4 * 4, N):
        row = rows[n]
        for c in range(total.size):
            total[c] += row[c]


@calls_gemm
@kernel
def matmul_tn(dweight, dout, inp, beta, bf16):
    """dweight = dout.T @ inp + beta * dweight: dweight (OC,C), not read if beta = 0, dout (N,OC), inp (N,C)."""
    tasks, across, height, width = _cut(*dweight.shape, _WEIGHT_ROWS, _WEIGHT_COLUMNS)
    for task in prange(tasks):
        row, column = task // across * height, task % across * width
        part = dweight[row : row + height, column : column + width]
        gemm(part, dout[:, row : row + height], inp[:, column : column + width], True, False, 1.0, beta, bf16)
