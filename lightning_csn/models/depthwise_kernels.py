"""Triton kernels of the depthwise 3x3x3 convolution: forward, input gradient, weight gradient.

Imported by launch.py only, because it imports Triton. `depthwise.py` holds the definition, the function that users call
and the registration; tests/test_depthwise.py compares the two.

**The tile.** A program owns a tile of rows x lanes, and each element of the tile computes a strip of N neighbouring
outputs, plane after plane in time. The 27 weights of its channel, the strip's running sums (of three planes at
stride 1, of two at stride 2) and the line just loaded live in registers; sums are fp32 (fp64 for fp64).

    layout              lanes          strip along   rows
    channels_last_3d    channels (C)   W             strips of W x lines of H, H fastest
    contiguous          places (W)     H             channels x strips of H

Strides are arguments, so any layout is right, and these two are fast. The loads of neighbouring lanes are neighbours in
memory. A plane is loaded as 3 x (N + 2) vectors, of which each is used for up to nine of the 27 taps.

**Traffic, counted at stride 1** for N = 7 and 8 rows in channels_last_3d, per element of the input:

    registers <- L1    3 (N + 2) / N = 3.9 loads, against 27 for one thread per output
    L1 <- L2           (N + 2) / N x (8 + 2) / 8 = 1.6, if the eight lines of a program meet in its L1
    L2 <- memory       1, and the halo in time: (P + 2) / P for P planes a program (1.06 at 32, 1.13 at 16); the halos
                       of neighbouring programs are read at about the same time and are counted as L2 hits
    arithmetic         27 multiply-adds and 3.9 conversions

So memory sets the pace at 16 bits (4 bytes per place), with arithmetic close behind: 27 multiply-adds at 60 TFLOP/s
take 0.9 of the time that 4 bytes take at 4.3 TB/s. Counted, not yet measured on a GPU.

The contiguous layout loads its three columns as three vectors (shifted by one place, so never aligned): the same
count of loads, but of 2 bytes a thread, half the width of L1. It is the slower of the two where C fills the lanes.
"""

# ruff: noqa: RUF005 - Triton joins tuples with + only

from __future__ import annotations

import triton
import triton.language as tl

# One kernel does for all of these. C is not among them: only where it is known to be a multiple of 16 are the loads of
# neighbouring channels one instruction.
SIZES = ["B", "T", "X", "A", "T_OUT", "X_OUT", "A_OUT", "strips", "chunks", "planes"]


@triton.jit
def load_line(
    pointer,
    stride_a,
    in_line,
    in_a,
    scale,
    shift,
    NORM: tl.constexpr,
    WIDTH: tl.constexpr,
    EXACT: tl.constexpr,
    ACC: tl.constexpr,
):
    """WIDTH places along a strip, as a tuple; 0 outside of the tensor, after the norm as well."""
    line = ()
    for j in tl.static_range(WIDTH):
        inside = in_line
        if (j == 0 or j == WIDTH - 1) or not EXACT:  # strips that fill the line reach outside with their ends only
            inside = in_line & in_a[j]
        value = tl.load(pointer + j * stride_a, mask=inside, other=0.0).to(ACC)
        if NORM > 0:
            value = tl.fma(value, scale, shift)
            if NORM == 2:
                value = tl.maximum(value, 0.0, tl.PropagateNan.ALL)  # a lost NaN would hide a diverged run
            value = tl.where(inside, value, 0.0)
        line = line + (value,)
    return line


@triton.jit
def add_taps(sums, line, weights, K: tl.constexpr, N: tl.constexpr, STRIDE: tl.constexpr):
    """The strip's N sums with three taps added: weights K, K + 1 and K + 2."""
    added = ()
    for n in tl.static_range(N):
        total = sums[n]
        for ka in tl.static_range(3):
            total = tl.fma(line[STRIDE * n + ka], weights[K + ka], total)
        added = added + (total,)
    return added


@triton.jit
def load_weights(weight_ptr, channel, channel_ok, CHANNELS_LAST: tl.constexpr, FLIP: tl.constexpr, ACC: tl.constexpr):
    """The 27 weights of each channel, ordered (time, across the strip, along the strip)."""
    weights = ()
    for kt in tl.static_range(3):
        for kx in tl.static_range(3):
            for ka in tl.static_range(3):
                k = 9 * kt + (3 * kx + ka if CHANNELS_LAST else 3 * ka + kx)
                k = 26 - k if FLIP else k
                weights = weights + (tl.load(weight_ptr + channel * 27 + k, mask=channel_ok, other=0.0).to(ACC),)
    return weights


@triton.jit
def long(step):
    """A step in memory in 64 bits, so that no multiple of it overflows."""
    return tl.program_id(0).to(tl.int64) * 0 + step  # a step of 1 is a constant, which has no method to()


@triton.jit
def locate(
    C, X, A, STRIPS, N: tl.constexpr, CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, CHUNKS
):
    """Channel, place across and start along the strip, chunk in time, and whether there is such a place, of a tile.

    X and A are the sizes across and along the strips. Each result is (ROWS, 1), (1, LANES) or a number.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    lane = (tl.program_id(1) // CHUNKS) * LANES + tl.arange(0, LANES)[None, :]
    chunk = tl.program_id(1) % CHUNKS
    if CHANNELS_LAST:
        channel = lane
        across = row % X
        start = (row // X) * N
        channel_ok = lane < C
        ok = channel_ok & (start < A)
    else:
        channel = row // STRIPS
        across = lane
        start = (row % STRIPS) * N
        channel_ok = channel < C
        ok = channel_ok & (lane < X)
    return channel, channel_ok, across, start, chunk, ok


@triton.jit(do_not_specialize=SIZES)
def convolve(
    x_ptr,
    weight_ptr,
    out_ptr,
    scale_ptr,
    shift_ptr,
    statistics_ptr,  # (3, programs, C): counts, means, sums of squared differences
    after_scale_ptr,
    after_shift_ptr,
    C,
    T,
    X,
    A,
    T_OUT,
    X_OUT,
    A_OUT,
    strips,
    chunks,
    planes,
    x_b,
    x_c,
    x_t,
    x_x,
    x_a,
    out_b,
    out_c,
    out_t,
    out_x,
    out_a,
    STRIDE_T: tl.constexpr,
    STRIDE: tl.constexpr,
    FLIP: tl.constexpr,
    NORM: tl.constexpr,  # of the input: 0 none, 1 scale and shift, 2 and ReLU
    AFTER: tl.constexpr,  # of the output: 0 nothing, 1 statistics, 2 scale, shift and ReLU
    CHANNELS_LAST: tl.constexpr,
    EXACT: tl.constexpr,  # the strips fill their lines
    N: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Forward; with FLIP and stride 1 the input gradient. Grid (rows, lanes x chunks of `planes` outputs, B)."""
    WIDTH: tl.constexpr = STRIDE * (N - 1) + 3
    x_x, x_a, out_a = long(x_x), long(x_a), long(out_a)
    channel, channel_ok, across, start, chunk, ok = locate(
        C, X_OUT, A_OUT, strips, N, CHANNELS_LAST, ROWS, LANES, chunks
    )
    clip = tl.program_id(2).to(tl.int64)
    weights = load_weights(weight_ptr, channel, channel_ok, CHANNELS_LAST, FLIP, ACC)
    scale = 0.0
    shift = 0.0
    if NORM > 0:
        scale = tl.load(scale_ptr + channel, mask=channel_ok, other=0.0)
        shift = tl.load(shift_ptr + channel, mask=channel_ok, other=0.0)
    if AFTER == 2:
        after_scale = tl.load(after_scale_ptr + channel, mask=channel_ok, other=0.0)
        after_shift = tl.load(after_shift_ptr + channel, mask=channel_ok, other=0.0)

    x_first = STRIDE * across - 1
    a_first = STRIDE * start - 1
    in_x = ()
    for kx in tl.static_range(3):
        in_x = in_x + (ok & (x_first + kx >= 0) & (x_first + kx < X),)
    in_a = ()
    for j in tl.static_range(WIDTH):
        in_a = in_a + ((a_first + j >= 0) & (a_first + j < A),)
    flat = start * 0  # makes vectors of numbers: the interpreter takes no number in a mask
    wide = channel.to(tl.int64)
    source = x_ptr + (clip * x_b + wide * x_c + x_first.to(tl.int64) * x_x + a_first.to(tl.int64) * x_a)
    target = out_ptr + (clip * out_b + wide * out_c + across.to(tl.int64) * out_x + start.to(tl.int64) * out_a)

    zero = tl.zeros((ROWS, LANES), ACC)
    empty = (zero,) * N
    sums = empty
    later = empty
    pivot = zero
    count = zero
    first = zero
    second = zero
    t_first = chunk * planes
    for i in range(planes + 3 - STRIDE_T):
        if STRIDE_T == 1:  # plane t is the last of output t - 1, the middle of t and the first of t + 1
            t = t_first - 1 + i
            in_t = (flat + t >= 0) & (flat + t < T)
            done = sums
            sums = later
            later = empty
            for kx in tl.static_range(3):
                pointer = source + (t.to(tl.int64) * x_t + kx * x_x)
                line = load_line(pointer, x_a, in_x[kx] & in_t, in_a, scale, shift, NORM, WIDTH, EXACT, ACC)
                done = add_taps(done, line, weights, 18 + 3 * kx, N, STRIDE)
                sums = add_taps(sums, line, weights, 9 + 3 * kx, N, STRIDE)
                later = add_taps(later, line, weights, 3 * kx, N, STRIDE)
            t_out = t - 1
        else:  # plane 2 t is the middle of output t; plane 2 t + 1 is its last, and the first of t + 1
            t_out = t_first - 1 + i
            t = 2 * t_out
            in_t = (flat + t >= 0) & (flat + t < T)
            done = sums
            for kx in tl.static_range(3):
                pointer = source + (t.to(tl.int64) * x_t + kx * x_x)
                line = load_line(pointer, x_a, in_x[kx] & in_t, in_a, scale, shift, NORM, WIDTH, EXACT, ACC)
                done = add_taps(done, line, weights, 9 + 3 * kx, N, STRIDE)
            t = t + 1
            in_t = (flat + t >= 0) & (flat + t < T)
            sums = empty
            for kx in tl.static_range(3):
                pointer = source + (t.to(tl.int64) * x_t + kx * x_x)
                line = load_line(pointer, x_a, in_x[kx] & in_t, in_a, scale, shift, NORM, WIDTH, EXACT, ACC)
                done = add_taps(done, line, weights, 18 + 3 * kx, N, STRIDE)
                sums = add_taps(sums, line, weights, 3 * kx, N, STRIDE)
        store_ok = ok & (flat + t_out >= t_first) & (flat + t_out < T_OUT)
        pointer = target + t_out.to(tl.int64) * out_t
        for n in tl.static_range(N):
            value = done[n]
            if AFTER == 2:
                value = tl.maximum(tl.fma(value, after_scale, after_shift), 0.0, tl.PropagateNan.ALL)
            stored = value.to(out_ptr.dtype.element_ty)
            here = store_ok
            if not EXACT:
                here = store_ok & (start + n < A_OUT)
            tl.store(pointer + n * out_a, stored, mask=here)
            if AFTER == 1:  # of the values as stored, relative to one of them, so that nothing cancels
                value = stored.to(ACC)
                if n == 0:
                    pivot = tl.where(here & (flat + t_out == t_first), value, pivot)
                difference = tl.where(here, value - pivot, 0.0)
                count += here.to(ACC)
                first += difference
                second = tl.fma(difference, difference, second)
    if AFTER == 1:
        merge_statistics(
            statistics_ptr,
            (tl.program_id(2) * chunks + chunk) * tl.num_programs(0) + tl.program_id(0),
            tl.num_programs(2) * chunks * tl.num_programs(0),
            C,
            channel,
            channel_ok,
            pivot,
            count,
            first,
            second,
        )


@triton.jit
def merge_statistics(statistics_ptr, program, programs, C, channel, channel_ok, pivot, count, first, second):
    """Store count, mean and sum of squared differences of each lane of a tile (Chan, Golub, LeVeque 1979)."""
    divisor = tl.maximum(count, 1.0)
    mean = pivot + first / divisor
    squares = second - first * first / divisor
    total = tl.sum(count, 0)[None, :]
    centre = tl.sum(count * mean, 0)[None, :] / tl.maximum(total, 1.0)
    squares = tl.sum(squares + count * (mean - centre) * (mean - centre), 0)[None, :]
    place = statistics_ptr + program.to(tl.int64) * C + channel
    step = programs.to(tl.int64) * C
    tl.store(place, total, mask=channel_ok)
    tl.store(place + step, centre, mask=channel_ok)
    tl.store(place + 2 * step, squares, mask=channel_ok)


@triton.jit(do_not_specialize=SIZES)
def input_gradient(
    grad_ptr,
    weight_ptr,
    out_ptr,
    C,
    T,
    X,
    A,
    T_OUT,
    X_OUT,
    A_OUT,
    strips,
    chunks,
    planes,
    grad_b,
    grad_c,
    grad_t,
    grad_x,
    grad_a,
    out_b,
    out_c,
    out_t,
    out_x,
    out_a,
    STRIDE_T: tl.constexpr,
    STRIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EXACT: tl.constexpr,  # the strips fill their lines
    N: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Input gradient (sizes T, X, A) of an output gradient (T_OUT, X_OUT, A_OUT) at stride 2 in space, time or both.

    An element of the tile owns N cells along the strip; a cell is the STRIDE_T x STRIDE x STRIDE places of the input
    whose middle tap meets one place of the output. A place at an even distance meets one tap of that axis, at an odd
    one two: 27 multiply-adds for the eight places of a cell. Each gradient is loaded again for the planes and lines
    beside it (up to 2 x 2 times (N + 1) / N, from L1), against eight values (four at stride (1, 2, 2)) written.
    """
    BELOW_T: tl.constexpr = 1 if STRIDE_T == 1 else 0  # cells before this one that reach into it
    BELOW: tl.constexpr = 1 if STRIDE == 1 else 0
    NT: tl.constexpr = 2 + BELOW_T
    NX: tl.constexpr = 2 + BELOW
    WIDTH: tl.constexpr = N + NX - 1
    grad_x, grad_a, out_x, out_a = long(grad_x), long(grad_a), long(out_x), long(out_a)
    channel, channel_ok, across, start, chunk, ok = locate(
        C, X_OUT, A_OUT, strips, N, CHANNELS_LAST, ROWS, LANES, chunks
    )
    clip = tl.program_id(2).to(tl.int64)
    weights = load_weights(weight_ptr, channel, channel_ok, CHANNELS_LAST, False, ACC)
    flat = start * 0
    wide = channel.to(tl.int64)
    source = grad_ptr + (
        clip * grad_b + wide * grad_c + (across - BELOW).to(tl.int64) * grad_x + (start - BELOW).to(tl.int64) * grad_a
    )
    target = out_ptr + (
        clip * out_b + wide * out_c + (STRIDE * across).to(tl.int64) * out_x + (STRIDE * start).to(tl.int64) * out_a
    )
    for i in range(planes):
        cell = chunk * planes + i
        grads = ()
        for dt in tl.static_range(NT):
            t = cell - BELOW_T + dt
            in_t = ok & (flat + t >= 0) & (flat + t < T_OUT)
            for dx in tl.static_range(NX):
                in_x = in_t & (across - BELOW + dx >= 0) & (across - BELOW + dx < X_OUT)
                for j in tl.static_range(WIDTH):
                    inside = in_x
                    if (j == 0 or j >= N) or not EXACT:
                        inside = in_x & (start - BELOW + j >= 0) & (start - BELOW + j < A_OUT)
                    pointer = source + t.to(tl.int64) * grad_t + dx * grad_x + j * grad_a
                    grads = grads + (tl.load(pointer, mask=inside, other=0.0).to(ACC),)
        for pt in tl.static_range(STRIDE_T):
            t = STRIDE_T * cell + pt
            in_t = ok & (flat + t < T) & (flat + cell < T_OUT)
            for px in tl.static_range(STRIDE):
                in_x = in_t & (STRIDE * across + px < X)
                for n in tl.static_range(N):
                    for pa in tl.static_range(STRIDE):
                        total = tl.zeros((ROWS, LANES), ACC)
                        for kt in tl.static_range((pt + 1) % STRIDE_T, 3, STRIDE_T):  # the taps that meet it
                            for kx in tl.static_range((px + 1) % STRIDE, 3, STRIDE):
                                for ka in tl.static_range((pa + 1) % STRIDE, 3, STRIDE):
                                    total = tl.fma(
                                        grads[
                                            (
                                                ((pt + 1 - kt) // STRIDE_T + BELOW_T) * NX
                                                + (px + 1 - kx) // STRIDE
                                                + BELOW
                                            )
                                            * WIDTH
                                            + (pa + 1 - ka) // STRIDE
                                            + BELOW
                                            + n
                                        ],
                                        weights[9 * kt + 3 * kx + ka],
                                        total,
                                    )
                        here = in_x
                        if n == N - 1 or not EXACT:
                            here = in_x & (STRIDE * (start + n) + pa < A) & (start + n < A_OUT)
                        pointer = target + t.to(tl.int64) * out_t + px * out_x + (STRIDE * n + pa) * out_a
                        tl.store(pointer, total.to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def add_products(sums, line, grads, K: tl.constexpr, N: tl.constexpr, STRIDE: tl.constexpr):
    """The 27 sums with the products of a line and the strip's gradients added at taps K, K + 1 and K + 2."""
    added = ()
    for k in tl.static_range(27):
        total = sums[k]
        if k >= K and k < K + 3:
            for n in tl.static_range(N):
                total = tl.fma(line[STRIDE * n + k - K], grads[n], total)
        added = added + (total,)
    return added


@triton.jit
def load_strip(pointer, stride_a, ok, start, A, N: tl.constexpr, EXACT: tl.constexpr, ACC: tl.constexpr):
    """N places along the strip, as a tuple; 0 outside of the tensor."""
    strip = ()
    for n in tl.static_range(N):
        inside = ok
        if not EXACT:
            inside = ok & (start + n < A)
        strip = strip + (tl.load(pointer + n * stride_a, mask=inside, other=0.0).to(ACC),)
    return strip


@triton.jit(do_not_specialize=SIZES)
def weight_gradient(
    x_ptr,
    grad_ptr,
    partial_ptr,
    scale_ptr,
    shift_ptr,
    B,
    C,
    T,
    X,
    A,
    T_OUT,
    X_OUT,
    A_OUT,
    strips,
    chunks,
    planes,
    x_b,
    x_c,
    x_t,
    x_x,
    x_a,
    grad_b,
    grad_c,
    grad_t,
    grad_x,
    grad_a,
    STRIDE_T: tl.constexpr,
    STRIDE: tl.constexpr,
    NORM: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EXACT: tl.constexpr,  # the strips fill their lines
    N: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ACC: tl.constexpr,
):
    """Partial sums of the weight gradient: 27 per channel in registers, one pass over input and output gradient.

    Grid (rows, lanes x chunks, clips that run side by side); a program goes through its share of the clips. partial is
    (clips side by side, chunks, row blocks, 27, C) in channels_last_3d, (clips, chunks, lane blocks, 27, rows) else.
    The order of the sums is fixed by the shape, and nothing is added atomically: the same input gives the same bits.
    """
    WIDTH: tl.constexpr = STRIDE * (N - 1) + 3
    x_x, x_a, grad_a = long(x_x), long(x_a), long(grad_a)
    channel, channel_ok, across, start, chunk, ok = locate(
        C, X_OUT, A_OUT, strips, N, CHANNELS_LAST, ROWS, LANES, chunks
    )
    scale = 0.0
    shift = 0.0
    if NORM > 0:
        scale = tl.load(scale_ptr + channel, mask=channel_ok, other=0.0)
        shift = tl.load(shift_ptr + channel, mask=channel_ok, other=0.0)
    x_first = STRIDE * across - 1
    a_first = STRIDE * start - 1
    in_x = ()
    for kx in tl.static_range(3):
        in_x = in_x + (ok & (x_first + kx >= 0) & (x_first + kx < X),)
    in_a = ()
    for j in tl.static_range(WIDTH):
        in_a = in_a + ((a_first + j >= 0) & (a_first + j < A),)
    flat = start * 0
    wide = channel.to(tl.int64)
    x_place = wide * x_c + x_first.to(tl.int64) * x_x + a_first.to(tl.int64) * x_a
    grad_place = wide * grad_c + across.to(tl.int64) * grad_x + start.to(tl.int64) * grad_a
    zero = tl.zeros((ROWS, LANES), ACC)
    sums = (zero,) * 27
    t_first = chunk * planes
    for turn in range(tl.cdiv(B - tl.program_id(2), tl.num_programs(2))):
        b = tl.program_id(2) + turn * tl.num_programs(2)
        source = x_ptr + (b.to(tl.int64) * x_b + x_place)
        slope = grad_ptr + (b.to(tl.int64) * grad_b + grad_place)
        t = t_first - 1
        before = load_strip(slope + t.to(tl.int64) * grad_t, grad_a, ok & (flat + t >= 0), start, A_OUT, N, EXACT, ACC)
        t = t_first
        now = load_strip(slope + t.to(tl.int64) * grad_t, grad_a, ok & (flat + t < T_OUT), start, A_OUT, N, EXACT, ACC)
        for i in range(planes):
            o = t_first + i  # outputs o - 1, o and o + 1 are before, now and after
            after = load_strip(
                slope + (o + 1).to(tl.int64) * grad_t, grad_a, ok & (flat + o + 1 < T_OUT), start, A_OUT, N, EXACT, ACC
            )
            t = STRIDE_T * o
            for kx in tl.static_range(3):
                pointer = source + (t.to(tl.int64) * x_t + kx * x_x)
                in_line = in_x[kx] & (flat + t < T)
                line = load_line(pointer, x_a, in_line, in_a, scale, shift, NORM, WIDTH, EXACT, ACC)
                sums = add_products(sums, line, now, 9 + 3 * kx, N, STRIDE)
                if STRIDE_T == 1:
                    sums = add_products(sums, line, before, 18 + 3 * kx, N, STRIDE)
                    sums = add_products(sums, line, after, 3 * kx, N, STRIDE)
            if STRIDE_T == 2:
                t = t + 1
                for kx in tl.static_range(3):
                    pointer = source + (t.to(tl.int64) * x_t + kx * x_x)
                    in_line = in_x[kx] & (flat + t < T)
                    line = load_line(pointer, x_a, in_line, in_a, scale, shift, NORM, WIDTH, EXACT, ACC)
                    sums = add_products(sums, line, now, 18 + 3 * kx, N, STRIDE)
                    sums = add_products(sums, line, after, 3 * kx, N, STRIDE)
            before = now
            now = after
    share = tl.program_id(2) * chunks + chunk
    for kt in tl.static_range(3):
        for kx in tl.static_range(3):
            for ka in tl.static_range(3):
                k = 9 * kt + (3 * kx + ka if CHANNELS_LAST else 3 * ka + kx)
                total = sums[9 * kt + 3 * kx + ka]
                if CHANNELS_LAST:
                    place = ((share * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * 27 + k) * C + channel
                    tl.store(partial_ptr + place, tl.sum(total, 0)[None, :], mask=channel_ok)
                else:
                    lane_blocks = tl.num_programs(1) // chunks
                    block = (share * lane_blocks + tl.program_id(1) // chunks).to(tl.int64)
                    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
                    place = (block * 27 + k) * (C * strips) + row
                    tl.store(partial_ptr + place, tl.sum(total, 1)[:, None], mask=channel_ok)
