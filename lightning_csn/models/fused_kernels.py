"""Triton kernels of everything between the matrix products and the depthwise convolution of a bottleneck block.

A tensor is a matrix here, P places x C channels, channels side by side (channels_last_3d); each kernel reads each of
its inputs once and writes each of its outputs once, in vectors of 16 bytes where C is a multiple of 16. Sums over
places are made per program, and then over the programs in a fixed order. Not yet measured on a GPU.

The normalisation of a layer is a matrix of five rows and C columns: MEAN, VARIANCE (unbiased, as running statistics;
RSTD is by the biased one), RSTD, SCALE, SHIFT, with norm(y) = SCALE y + SHIFT.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_csn.models.depthwise_kernels import merge_statistics

SIZES = [
    "P",
    "turns",
    "programs",
    "share",
]  # one kernel does for all of these; not for all C (depthwise_kernels.py says why)


@triton.jit
def tile_of(turn, turns, P, C, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Places in memory of a tile, where it lies inside of the matrix, its channels, and which of these there are."""
    row = (tl.program_id(0).to(tl.int64) * turns + turn) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * LANES + tl.arange(0, LANES)[None, :]
    return row * C + channel, (row < P) & (channel < C), channel, channel < C


@triton.jit(do_not_specialize=SIZES)
def statistics(y_ptr, partial_ptr, P, C, turns, ROWS: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr):
    """Count, mean and sum of squared differences of each channel, per program: (3, programs, C)."""
    place, ok, channel, channel_ok = tile_of(0, turns, P, C, ROWS, LANES)
    pivot = tl.load(y_ptr + place, mask=ok, other=0.0).to(ACC)  # read again below, from cache; nothing cancels then
    count = tl.zeros((ROWS, LANES), ACC)
    first = tl.zeros((ROWS, LANES), ACC)
    second = tl.zeros((ROWS, LANES), ACC)
    for turn in range(turns):
        place, ok, channel, channel_ok = tile_of(turn, turns, P, C, ROWS, LANES)
        difference = tl.load(y_ptr + place, mask=ok, other=0.0).to(ACC) - pivot
        difference = tl.where(ok, difference, 0.0)
        count += ok.to(ACC)
        first += difference
        second = tl.fma(difference, difference, second)
    merge_statistics(
        partial_ptr, tl.program_id(0), tl.num_programs(0), C, channel, channel_ok, pivot, count, first, second
    )


@triton.jit
def merge_rows(
    partial_ptr,
    begin,
    end,
    programs,
    C,
    channel,
    channel_ok,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Count, mean and sum of squared differences of rows begin to end of partial statistics, read once."""
    step = programs.to(tl.int64) * C
    total = tl.zeros((1, LANES), ACC)
    mean = tl.zeros((1, LANES), ACC)
    squares = tl.zeros((1, LANES), ACC)
    for turn in range(tl.cdiv(end - begin, ROWS)):
        row = begin + turn * ROWS + tl.arange(0, ROWS)[:, None]
        ok = (row < end) & channel_ok
        place = partial_ptr + row.to(tl.int64) * C + channel
        count = tl.load(place, mask=ok, other=0.0)
        centre = tl.load(place + step, mask=ok, other=0.0)
        square = tl.load(place + 2 * step, mask=ok, other=0.0)
        here = tl.sum(count, 0)[None, :]
        mean_here = tl.sum(count * centre, 0)[None, :] / tl.maximum(here, 1.0)
        square += count * (centre - mean_here) * (centre - mean_here)
        share = here / tl.maximum(total + here, 1.0)
        apart = mean_here - mean
        squares += tl.sum(square, 0)[None, :] + apart * apart * (total * share)
        mean += apart * share
        total += here
    return total, mean, squares


@triton.jit(do_not_specialize=SIZES)
def shrink_statistics(
    partial_ptr, merged_ptr, programs, C, share, ROWS: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr
):
    """Partial statistics (3, programs, C) to fewer: each program merges its share of the rows."""
    channel = tl.program_id(1) * LANES + tl.arange(0, LANES)[None, :]
    channel_ok = channel < C
    begin = tl.program_id(0) * share
    end = tl.minimum(begin + share, programs)
    total, mean, squares = merge_rows(partial_ptr, begin, end, programs, C, channel, channel_ok, ROWS, LANES, ACC)
    place = merged_ptr + tl.program_id(0).to(tl.int64) * C + channel
    step = tl.num_programs(0).to(tl.int64) * C
    tl.store(place, total, mask=channel_ok)
    tl.store(place + step, mean, mask=channel_ok)
    tl.store(place + 2 * step, squares, mask=channel_ok)


@triton.jit(do_not_specialize=SIZES)
def finish_statistics(
    partial_ptr,
    weight_ptr,
    bias_ptr,
    norm_ptr,
    programs,
    C,
    EPS: tl.constexpr,  # a number handed over at the launch would be one of 32 bits, for fp64 too
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ACC: tl.constexpr,
):
    """The five rows of a normalisation, from partial statistics (3, programs, C)."""
    channel = tl.program_id(0) * LANES + tl.arange(0, LANES)[None, :]
    channel_ok = channel < C
    total, mean, squares = merge_rows(partial_ptr, 0, programs, programs, C, channel, channel_ok, ROWS, LANES, ACC)
    variance = squares / tl.maximum(total - 1.0, 1.0)
    rstd = 1.0 / tl.sqrt(squares / tl.maximum(total, 1.0) + EPS)
    scale = rstd * tl.load(weight_ptr + channel, mask=channel_ok, other=0.0).to(ACC)
    shift = tl.load(bias_ptr + channel, mask=channel_ok, other=0.0).to(ACC) - mean * scale
    tl.store(norm_ptr + channel, mean, mask=channel_ok)
    tl.store(norm_ptr + C + channel, variance, mask=channel_ok)
    tl.store(norm_ptr + 2 * C + channel, rstd, mask=channel_ok)
    tl.store(norm_ptr + 3 * C + channel, scale, mask=channel_ok)
    tl.store(norm_ptr + 4 * C + channel, shift, mask=channel_ok)


@triton.jit
def load_row(norm_ptr, ROW: tl.constexpr, C, channel, channel_ok):
    """One row of a normalisation."""
    return tl.load(norm_ptr + ROW * C + channel, mask=channel_ok, other=0.0)


@triton.jit
def normalise(
    value,
    norm_ptr,
    other_ptr,
    other_norm_ptr,
    place,
    ok,
    C,
    channel,
    channel_ok,
    ADD: tl.constexpr,  # 0 nothing, 1 the other tensor, 2 its normalisation
    RELU: tl.constexpr,
    ACC: tl.constexpr,
):
    """relu(norm(value) + other), or less of it."""
    value = tl.fma(value, load_row(norm_ptr, 3, C, channel, channel_ok), load_row(norm_ptr, 4, C, channel, channel_ok))
    if ADD > 0:
        other = tl.load(other_ptr + place, mask=ok, other=0.0).to(ACC)
        if ADD == 2:
            scale = load_row(other_norm_ptr, 3, C, channel, channel_ok)
            other = tl.fma(other, scale, load_row(other_norm_ptr, 4, C, channel, channel_ok))
        value += other
    if RELU:
        value = tl.maximum(value, 0.0, tl.PropagateNan.ALL)  # as PyTorch's: a lost NaN would hide a diverged run
    return value


@triton.jit(do_not_specialize=SIZES)
def apply(
    y_ptr,
    norm_ptr,
    other_ptr,
    other_norm_ptr,
    out_ptr,
    P,
    C,
    ADD: tl.constexpr,  # 0 nothing, 1 the other tensor, 2 its normalisation
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ACC: tl.constexpr,
):
    """out = relu(norm(y) + other), or less of it."""
    place, ok, channel, channel_ok = tile_of(0, 1, P, C, ROWS, LANES)
    value = tl.load(y_ptr + place, mask=ok, other=0.0).to(ACC)
    value = normalise(value, norm_ptr, other_ptr, other_norm_ptr, place, ok, C, channel, channel_ok, ADD, RELU, ACC)
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=ok)


@triton.jit
def through_relu(grad, y, norm_ptr, C, channel, channel_ok, RELU: tl.constexpr):
    """The gradient before the ReLU of norm(y), which is computed again."""
    if RELU:
        scale = load_row(norm_ptr, 3, C, channel, channel_ok)
        grad = tl.where(tl.fma(y, scale, load_row(norm_ptr, 4, C, channel, channel_ok)) <= 0, 0.0, grad)  # NaN passes
    return grad


@triton.jit(do_not_specialize=SIZES)
def gradient_sums(
    grad_ptr,
    y_ptr,
    norm_ptr,
    out_ptr,
    masked_ptr,
    partial_ptr,  # (programs, 2, C)
    P,
    C,
    turns,
    RELU: tl.constexpr,  # 0 none, 1 of norm(y), computed again, 2 of out, where the gradient goes on into two branches
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Sums over places of the gradient and of its product with the normalised y, per program.

    With RELU 2 the gradient before the ReLU is written to masked, since two branches need it.
    """
    place, ok, channel, channel_ok = tile_of(0, turns, P, C, ROWS, LANES)
    mean = load_row(norm_ptr, 0, C, channel, channel_ok)
    rstd = load_row(norm_ptr, 2, C, channel, channel_ok)
    plain = tl.zeros((ROWS, LANES), ACC)
    product = tl.zeros((ROWS, LANES), ACC)
    for turn in range(turns):
        place, ok, channel, channel_ok = tile_of(turn, turns, P, C, ROWS, LANES)
        grad = tl.load(grad_ptr + place, mask=ok, other=0.0).to(ACC)
        y = tl.load(y_ptr + place, mask=ok, other=0.0).to(ACC)
        if RELU == 2:
            grad = tl.where(tl.load(out_ptr + place, mask=ok, other=0.0).to(ACC) <= 0, 0.0, grad)
            tl.store(masked_ptr + place, grad.to(masked_ptr.dtype.element_ty), mask=ok)
        grad = through_relu(grad, y, norm_ptr, C, channel, channel_ok, RELU == 1)
        plain += grad
        product = tl.fma(grad, (y - mean) * rstd, product)
    row = partial_ptr + tl.program_id(0).to(tl.int64) * 2 * C + channel
    tl.store(row, tl.sum(plain, 0)[None, :], mask=channel_ok)
    tl.store(row + C, tl.sum(product, 0)[None, :], mask=channel_ok)


@triton.jit
def through_norm(grad, y, norm_ptr, sums_ptr, P, C, channel, channel_ok, BATCH: tl.constexpr):
    """The gradient of y from that of norm(y); BATCH: mean and variance are the batch's, and it goes through them."""
    if BATCH:
        mean = load_row(norm_ptr, 0, C, channel, channel_ok)
        rstd = load_row(norm_ptr, 2, C, channel, channel_ok)
        share = 1.0 / P.to(grad.dtype)  # one division, not two for each channel
        grad -= load_row(sums_ptr, 0, C, channel, channel_ok) * share
        grad -= (y - mean) * rstd * (load_row(sums_ptr, 1, C, channel, channel_ok) * share)
    return grad * load_row(norm_ptr, 3, C, channel, channel_ok)


@triton.jit(do_not_specialize=SIZES)
def gradient(
    grad_ptr,
    y_ptr,
    norm_ptr,
    sums_ptr,
    out_ptr,
    P,
    C,
    RELU: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ACC: tl.constexpr,
):
    """The gradient of y, from that of relu(norm(y)) or of norm(y)."""
    place, ok, channel, channel_ok = tile_of(0, 1, P, C, ROWS, LANES)
    grad = tl.load(grad_ptr + place, mask=ok, other=0.0).to(ACC)
    y = tl.zeros((ROWS, LANES), ACC)
    if RELU or BATCH:
        y = tl.load(y_ptr + place, mask=ok, other=0.0).to(ACC)
    grad = through_relu(grad, y, norm_ptr, C, channel, channel_ok, RELU)
    grad = through_norm(grad, y, norm_ptr, sums_ptr, P, C, channel, channel_ok, BATCH)
    tl.store(out_ptr + place, grad.to(out_ptr.dtype.element_ty), mask=ok)
