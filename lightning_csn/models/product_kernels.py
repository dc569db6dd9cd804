"""Triton kernels of a bottleneck's 1x1x1 convolutions: matrix products that take in what stands before and after them.

Before: BatchNorm and ReLU of the input, applied where it is loaded. After: the statistics of the result, the sum with
the shortcut, or a step of the way back, made of the result while it is still in registers. Where memory sets the pace
a product computed again costs less than one written and read, so the widest tensor of a block (before its last
BatchNorm) is computed four times in a training step and never stored.

A tensor is a matrix here, P places x channels, channels side by side (channels_last_3d); the product is (P, N) of
(P, K), a program makes ROWS x COLUMNS of it. Programs that are neighbours make the same rows, so that these come from
memory once and from L2 after that. A normalisation is a matrix of five rows: see fused_kernels.py. Not yet measured
on a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_csn.models.fused_kernels import load_row, normalise, through_norm, through_relu

SIZES = ["P", "share"]  # one kernel does for all of these; the channels decide about vectors and loops


@triton.jit
def load_activation(pointer, ok, norm_ptr, C, channel, channel_ok, NORM: tl.constexpr, ACC: tl.constexpr):
    """relu(norm(x)) in the dtype of x, or x itself."""
    x = tl.load(pointer, mask=ok, other=0.0)
    if NORM:
        scale = load_row(norm_ptr, 3, C, channel, channel_ok)
        value = tl.fma(x.to(ACC), scale, load_row(norm_ptr, 4, C, channel, channel_ok))
        x = tl.maximum(value, 0.0, tl.PropagateNan.ALL).to(x.dtype)  # a lost NaN would hide a diverged run
    return x


@triton.jit
def multiply(
    x_ptr,
    norm_ptr,
    weight_ptr,
    P,
    K,
    N,
    weight_n,
    weight_k,
    NORM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of relu(norm(x)) @ weight.T, where it lies: place of its first row, places in it, what there is of it."""
    blocks = tl.cdiv(N, COLUMNS)
    first = (tl.program_id(0) // blocks).to(tl.int64) * ROWS
    column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.arange(0, ROWS)[:, None]
    row_ok = row < P - first
    column_ok = column < N
    source = x_ptr + first * K
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for start in range(0, K, INNER):
        inner = start + tl.arange(0, INNER)
        across, down = inner[None, :], inner[:, None]
        x = load_activation(
            source + row * K + across, row_ok & (across < K), norm_ptr, K, across, across < K, NORM, ACC
        )
        weight = tl.load(weight_ptr + column * weight_n + down * weight_k, mask=(down < K) & column_ok, other=0.0)
        total = tl.dot(x.to(OPERANDS), weight.to(OPERANDS), total, input_precision=PRECISION, out_dtype=ACC)
    return total, first, row * N + column, row_ok & column_ok, column, column_ok


@triton.jit(do_not_specialize=SIZES)
def product(
    x_ptr,
    norm_ptr,
    weight_ptr,
    out_ptr,
    partial_ptr,  # (3, row blocks, N): counts, means, sums of squared differences
    P,
    K,
    N,
    weight_n,
    weight_k,
    NORM: tl.constexpr,
    STORE: tl.constexpr,
    STATISTICS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """relu(norm(x)) @ weight.T, its statistics, or both. The statistics are of what is stored, or else of the sums."""
    value, first, place, ok, column, column_ok = multiply(
        x_ptr, norm_ptr, weight_ptr, P, K, N, weight_n, weight_k, NORM, ROWS, COLUMNS, INNER, ACC, OPERANDS, PRECISION
    )
    if STORE:
        stored = value.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + first * N + place, stored, mask=ok)
        value = stored.to(ACC)
    if STATISTICS:
        count = tl.minimum(P - first, ROWS).to(ACC)  # of every column, so that no place needs one of its own
        mean = tl.sum(tl.where(ok, value, 0.0), 0)[None, :] * (1.0 / count)
        apart = tl.where(ok, value - mean, 0.0)
        target = partial_ptr + (first // ROWS) * N + column
        step = tl.cdiv(P, ROWS).to(tl.int64) * N
        tl.store(target, tl.zeros((1, COLUMNS), ACC) + count, mask=column_ok)
        tl.store(target + step, mean, mask=column_ok)
        tl.store(target + 2 * step, tl.sum(apart * apart, 0)[None, :], mask=column_ok)


@triton.jit(do_not_specialize=SIZES)
def product_sum(
    x_ptr,
    norm_ptr,
    weight_ptr,
    last_norm_ptr,
    other_ptr,
    other_norm_ptr,
    out_ptr,
    P,
    K,
    N,
    weight_n,
    weight_k,
    NORM: tl.constexpr,
    ADD: tl.constexpr,  # 1 the other tensor, 2 its normalisation
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """relu(last_norm(relu(norm(x)) @ weight.T) + other)."""
    value, first, place, ok, column, column_ok = multiply(
        x_ptr, norm_ptr, weight_ptr, P, K, N, weight_n, weight_k, NORM, ROWS, COLUMNS, INNER, ACC, OPERANDS, PRECISION
    )
    start = first * N  # added to the pointers, so that the tile's own places stay numbers of 32 bits
    value = normalise(
        value, last_norm_ptr, other_ptr + start, other_norm_ptr, place, ok, N, column, column_ok, ADD, True, ACC
    )
    tl.store(out_ptr + start + place, value.to(out_ptr.dtype.element_ty), mask=ok)


@triton.jit
def store_sums(partial_ptr, block, N, column, column_ok, plain, product):
    """The sums over rows of a gradient and of its product, of a program: (row blocks, 2, N)."""
    row = partial_ptr + block * 2 * N + column
    tl.store(row, tl.sum(plain, 0)[None, :], mask=column_ok)
    tl.store(row + N, tl.sum(product, 0)[None, :], mask=column_ok)


@triton.jit(do_not_specialize=SIZES)
def sum_gradient_sums(
    x_ptr,
    norm_ptr,
    weight_ptr,
    last_norm_ptr,
    grad_ptr,
    out_ptr,
    masked_ptr,
    partial_ptr,
    P,
    K,
    N,
    weight_n,
    weight_k,
    NORM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient before the ReLU of `product_sum`, and its sums: over places, and of it times what last_norm made.

    grad: of out, the result of `product_sum`. masked: the result, which the shortcut needs, and `sum_gradient`,
    for which it is one tensor to read in place of two.
    """
    y, first, place, ok, column, column_ok = multiply(
        x_ptr, norm_ptr, weight_ptr, P, K, N, weight_n, weight_k, NORM, ROWS, COLUMNS, INNER, ACC, OPERANDS, PRECISION
    )
    start = first * N  # added to the pointers, so that the tile's own places stay numbers of 32 bits
    grad = tl.load(grad_ptr + start + place, mask=ok, other=0.0)
    grad = tl.where(tl.load(out_ptr + start + place, mask=ok, other=0.0).to(ACC) <= 0, 0.0, grad)
    tl.store(masked_ptr + start + place, grad, mask=ok)
    grad = grad.to(ACC)
    mean = load_row(last_norm_ptr, 0, N, column, column_ok)
    rstd = load_row(last_norm_ptr, 2, N, column, column_ok)
    centred = tl.where(ok, (y - mean) * rstd, 0.0)
    store_sums(partial_ptr, first // ROWS, N, column, column_ok, grad, grad * centred)


@triton.jit(do_not_specialize=SIZES)
def sum_gradient(
    x_ptr,
    norm_ptr,
    weight_ptr,
    last_norm_ptr,
    sums_ptr,
    masked_ptr,
    grad_y_ptr,
    P,
    K,
    N,
    weight_n,
    weight_k,
    NORM: tl.constexpr,
    BATCH: tl.constexpr,  # mean and variance of last_norm are the batch's own, and the gradient goes through them
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of the product before last_norm, from that before the ReLU of `product_sum`."""
    y, first, place, ok, column, column_ok = multiply(
        x_ptr, norm_ptr, weight_ptr, P, K, N, weight_n, weight_k, NORM, ROWS, COLUMNS, INNER, ACC, OPERANDS, PRECISION
    )
    start = first * N  # added to the pointers, so that the tile's own places stay numbers of 32 bits
    grad = tl.load(masked_ptr + start + place, mask=ok, other=0.0).to(ACC)
    grad = through_norm(grad, y, last_norm_ptr, sums_ptr, P, N, column, column_ok, BATCH)
    tl.store(grad_y_ptr + start + place, grad.to(grad_y_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=SIZES)
def product_input_gradient(
    grad_ptr,
    weight_ptr,
    y_ptr,
    norm_ptr,
    out_ptr,
    partial_ptr,
    P,
    K,
    N,
    weight_n,
    weight_k,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient before the ReLU of relu(norm(y)), of that of its product, and the two sums of norm's gradients.

    Here K counts the channels of the product and N those of y.
    """
    value, first, place, ok, column, column_ok = multiply(
        grad_ptr,
        norm_ptr,
        weight_ptr,
        P,
        K,
        N,
        weight_n,
        weight_k,
        False,
        ROWS,
        COLUMNS,
        INNER,
        ACC,
        OPERANDS,
        PRECISION,
    )
    start = first * N  # added to the pointers, so that the tile's own places stay numbers of 32 bits
    y = tl.load(y_ptr + start + place, mask=ok, other=0.0).to(ACC)
    stored = through_relu(value, y, norm_ptr, N, column, column_ok, True).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + start + place, stored, mask=ok)
    grad = tl.where(ok, stored.to(ACC), 0.0)
    mean = load_row(norm_ptr, 0, N, column, column_ok)
    rstd = load_row(norm_ptr, 2, N, column, column_ok)
    store_sums(partial_ptr, first // ROWS, N, column, column_ok, grad, grad * ((y - mean) * rstd))


@triton.jit(do_not_specialize=SIZES)
def product_weight_gradient(
    grad_ptr,
    y_ptr,
    norm_ptr,
    partial_ptr,
    P,
    K,
    N,
    share,
    ROWS: tl.constexpr,  # channels of the product
    COLUMNS: tl.constexpr,  # channels of y
    INNER: tl.constexpr,  # places
    ACC: tl.constexpr,
    OPERANDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad.T @ relu(norm(y)) over a share of the places, per program: (shares, N, K). grad is (P, N), y is (P, K).

    share: a multiple of INNER.
    The order of the sums is fixed by the shape, and nothing is added atomically.
    """
    channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    column_ok = column < K
    begin = tl.program_id(2).to(tl.int64) * share
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for start in range(0, share, INNER):
        place = start + tl.arange(0, INNER)[:, None]
        ok = place < P - begin
        grad = tl.load(grad_ptr + begin * N + place * N + channel[None, :], mask=ok & (channel[None, :] < N), other=0.0)
        activation = load_activation(
            y_ptr + begin * K + place * K + column, ok & column_ok, norm_ptr, K, column, column_ok, True, ACC
        )
        total = tl.dot(
            tl.trans(grad.to(OPERANDS)), activation.to(OPERANDS), total, input_precision=PRECISION, out_dtype=ACC
        )
    target = partial_ptr + (tl.program_id(2).to(tl.int64) * N + channel[:, None]) * K + column
    tl.store(target, total, mask=(channel[:, None] < N) & column_ok)
