"""The launches: what stands between depthwise.py and fused_operators.py and the Triton kernels.

Imported only where a kernel is about to run, because it imports Triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.grad import conv3d_input, conv3d_weight

from lightning_csn.models import depthwise_kernels, fused_kernels, tiles
from lightning_csn.models.batchnorm import accurate
from lightning_csn.models.check_kernels import (
    Draw,
    Pair,
    before_relu,
    check_once,
    exact,
    merged,
    moments,
    sums_of,
    through_norm,
)
from lightning_csn.models.depthwise import channels_last, output_sizes, reference
from lightning_csn.models.tiles import Problem, Tile, problem_of, tile_for

INTERPRETED = not isinstance(depthwise_kernels.convolve, triton.JITFunction)
MOST_CLIPS = 65535  # on the third axis of a grid
MOST_PARTIALS = 128  # rows of partial statistics that one program merges at the end: two turns of 64


_known: dict[Any, tuple[Any, Any, list[Any]]] = {}  # kernel, what was compiled, arguments after the tensors


def start(
    kernel: Any,
    grid: tuple[int, int, int],
    tensors: Sequence[Tensor | None],
    arguments: Mapping[str, Any],
    check: Callable[[], None],
) -> None:
    """Launch a kernel on the device of its first tensor; before the first launch of its kind, check it.

    tensors: the first parameters of the kernel. arguments: the others by their names, and how to compile it.

    To find what it compiled, Triton binds and classifies all arguments at each launch, which takes longer than many of
    these kernels run. Here it is found by the arguments as they are: sizes are the same in every step.
    """
    first = tensors[0]
    assert first is not None  # a kernel without its input is none
    pointers = [None if tensor is None else (tensor.dtype, tensor.data_ptr() % 16) for tensor in tensors]
    key = (id(kernel), first.device, *pointers, *arguments, *arguments.values())
    known = _known.get(key)
    if known is None:
        try:
            check()
        except BaseException:  # its own launches may be of this very kind, and are not to be found again
            _known.clear()
            raise
    with torch.cuda.device_of(first):
        if known is not None:
            _, compiled, rest = known
            compiled[grid](*tensors, *rest)
            return
        compiled = kernel[grid](*tensors, **arguments)
        if compiled is not None and torch.version.hip is None:  # None: interpreted; AMD's is of the storage's size too
            if len(_known) >= tiles.MOST_SIZES:  # a step of any depth has about 100
                _known.clear()
            _known[key] = kernel, compiled, [arguments[name] for name in kernel.arg_names[len(tensors) :]]


# The depthwise convolution and its gradients.


class Cut(NamedTuple):
    """How the work of a launch is cut: programs along rows and lanes, chunks in time, and what the kernel is told."""

    rows: int
    lanes: int
    chunks: int
    arguments: dict[str, Any]


def cut_depthwise(large: Tensor, small: Tensor, problem: Problem, tile: Tile, *names: str) -> Cut:
    """The cut of a launch for the larger and the smaller of two tensors, and what the kernel calls them."""
    return _cut_depthwise(large.shape, large.stride(), small.shape, small.stride(), problem, tile, names)


@lru_cache(tiles.MOST_SIZES)  # it takes longer than a launch
def _cut_depthwise(
    large: torch.Size,
    large_steps: tuple[int, ...],
    small: torch.Size,
    small_steps: tuple[int, ...],
    problem: Problem,
    tile: Tile,
    names: tuple[str, ...],
) -> Cut:
    across, along = (3, 4) if problem.channels_last else (4, 3)
    chunks = triton.cdiv(small[2], tile.planes)
    strips = triton.cdiv(small[along], tile.strip)
    sizes = [large[1], *(tensor[axis] for tensor in (large, small) for axis in (2, across, along))]
    arguments = dict(zip(("C", "T", "X", "A", "T_OUT", "X_OUT", "A_OUT"), sizes, strict=True))
    arguments |= {"strips": strips, "chunks": chunks, "STRIDE_T": problem.strides[0], "STRIDE": problem.strides[1]}
    arguments |= {"CHANNELS_LAST": problem.channels_last, "planes": tile.planes, "N": tile.strip}
    # That strips fill their lines saves half of the masks; for the few layers of stride 2 it is not worth compiling.
    arguments["EXACT"] = 2 not in problem.strides and small[along] % tile.strip == 0
    arguments |= {"LANES": problem.lanes, "ROWS": max(1, tile.elements // problem.lanes)}
    arguments["ACC"] = tl.float64 if problem.dtype == str(torch.float64) else tl.float32
    arguments["num_warps"] = max(1, arguments["ROWS"] * arguments["LANES"] // 64)
    for name, steps in zip(names, (large_steps, small_steps), strict=True):
        for axis, letter in ((0, "b"), (1, "c"), (2, "t"), (across, "x"), (along, "a")):
            arguments[f"{name}_{letter}"] = steps[axis]
    return Cut(*problem.blocks(tile), chunks, arguments)


def convolve(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    strides: Sequence[int],
    *,
    flip: bool = False,
    norm: tuple[Tensor, Tensor, bool] | None = None,
    after: tuple[Tensor, Tensor] | None = None,
    statistics: bool = False,
    tile: Tile | None = None,
) -> Tensor | None:
    """Fill `out`. Returns the partial statistics (3, programs, C) of `out` if they are asked for.

    norm: scale and shift (C,) fp32 of the input, and whether a ReLU follows. after: the same for the output, with ReLU.
    """
    if len(x) > MOST_CLIPS:
        options: dict[str, Any] = {"flip": flip, "norm": norm, "after": after, "statistics": statistics, "tile": tile}
        parts = [
            convolve(some, weight, to, strides, **options)
            for some, to in zip(x.split(MOST_CLIPS), out.split(MOST_CLIPS), strict=True)
        ]
        return torch.cat([part for part in parts if part is not None], 1) if statistics else None
    last = norm is not None or channels_last(x)  # fused blocks are in channels_last_3d throughout
    problem = problem_of("norm_convolve" if norm else "convolve", out, strides, last)
    tile = tile or tile_for(problem, x.device)
    rows, lanes, chunks, arguments = cut_depthwise(x, out, problem, tile, "x", "out")
    partial = None
    if statistics:  # sums are per program: one channel per lane
        partial = x.new_empty((3, out.shape[0] * chunks * rows, out.shape[1]), dtype=accurate(x))
    if out.numel():
        scale, shift, relu = norm or (None, None, None)
        after_scale, after_shift = after or (None, None)
        start(
            depthwise_kernels.convolve,
            (rows, lanes * chunks, out.shape[0]),
            (x, weight.contiguous(), out, scale, shift, partial, after_scale, after_shift),
            {
                "FLIP": flip,
                "NORM": 0 if relu is None else 1 + relu,
                "AFTER": 1 if statistics else 2 if after else 0,
                **arguments,
            },
            lambda: check_depthwise(
                x, out, problem, tile, flip=flip, norm=relu, after=after is not None, gather=statistics
            ),
        )
    return partial


def input_gradient(
    grad: Tensor, weight: Tensor, out: Tensor, strides: Sequence[int], *, tile: Tile | None = None
) -> None:
    """Fill `out`, the gradient of the input."""
    if tuple(strides) == (1, 1, 1):
        convolve(grad, weight, out, strides, flip=True, tile=tile)
        return
    if len(grad) > MOST_CLIPS:
        for some, to in zip(grad.split(MOST_CLIPS), out.split(MOST_CLIPS), strict=True):
            input_gradient(some, weight, to, strides, tile=tile)
        return
    problem = problem_of("input_gradient", grad, strides, channels_last(grad))
    tile = tile or tile_for(problem, grad.device)
    rows, lanes, chunks, arguments = cut_depthwise(out, grad, problem, tile, "out", "grad")
    if out.numel():
        start(
            depthwise_kernels.input_gradient,
            (rows, lanes * chunks, grad.shape[0]),
            (grad, weight.contiguous(), out),
            arguments,
            lambda: check_depthwise(out, grad, problem, tile),
        )


def weight_gradient(
    grad: Tensor,
    x: Tensor,
    strides: Sequence[int],
    *,
    norm: tuple[Tensor, Tensor, bool] | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The gradient of the weight, (C, 27), fp32 (fp64 of fp64)."""
    last = norm is not None or channels_last(x)
    problem = problem_of("norm_weight_gradient" if norm else "weight_gradient", grad, strides, last)
    tile = tile or tile_for(problem, x.device)
    rows, lanes, chunks, arguments = cut_depthwise(x, grad, problem, tile, "x", "grad")
    channels = x.shape[1]
    if grad.numel() == 0:
        return x.new_zeros((channels, 27), dtype=accurate(x))
    shape = (tile.clips * chunks * rows, 27, channels, 1)
    if not last:
        shape = (tile.clips * chunks * lanes, 27, channels, arguments["strips"])
    partial = x.new_empty(shape, dtype=accurate(x))
    scale, shift, relu = norm or (None, None, None)
    start(
        depthwise_kernels.weight_gradient,
        (rows, lanes * chunks, tile.clips),
        (x, grad, partial, scale, shift),
        {"B": x.shape[0], "NORM": 0 if relu is None else 1 + relu, **arguments},
        lambda: check_depthwise(x, grad, problem, tile, norm=relu),
    )
    return partial.sum((0, 3)).t().contiguous()  # the second pass: small, and in an order that only the shape decides


# The kernels of fused.py. Tensors are (B, C, T, H, W) in channels_last_3d.


def cut_matrix(tensor: Tensor, *, reduce: bool = False) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """The grid and the sizes of a launch over a tensor; to `reduce`, a program goes through several tiles."""
    if not tensor.is_contiguous(memory_format=torch.channels_last_3d):
        raise ValueError(f"channels_last_3d expected, got sizes {tuple(tensor.shape)} and strides {tensor.stride()}")
    channels = tensor.shape[1]
    return _cut_matrix(
        tensor.numel() // channels, channels, tensor.dtype, tiles.processors(tensor.device) if reduce else None
    )


@lru_cache(tiles.MOST_SIZES)
def _cut_matrix(
    places: int, channels: int, dtype: torch.dtype, processors: int | None
) -> tuple[tuple[int, int, int], dict[str, Any]]:
    lanes = min(64, triton.next_power_of_2(channels))  # 128 bytes at 16 bits; the same for all layers of CSN
    rows = 4096 // lanes  # 16 elements for each thread of 8 warps
    blocks, across = triton.cdiv(places, rows), triton.cdiv(channels, lanes)
    arguments = {"P": places, "C": channels, "ROWS": rows, "LANES": lanes, "num_warps": 8}
    arguments["ACC"] = tl.float64 if dtype == torch.float64 else tl.float32
    if processors is not None:
        arguments["turns"] = max(1, blocks * across // (8 * processors))
        blocks = triton.cdiv(blocks, arguments["turns"])
    return (blocks, across, 1), arguments


def statistics(y: Tensor) -> Tensor:
    """Partial statistics (3, programs, C) of a tensor."""
    grid, arguments = cut_matrix(y, reduce=True)
    partial = y.new_empty((3, grid[0], y.shape[1]), dtype=accurate(y))
    start(fused_kernels.statistics, grid, (y, partial), arguments, lambda: check_norms("statistics", y))
    return partial


def finish(partial: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The normalisation (5, C) that partial statistics and the parameters of a BatchNorm make."""
    programs, channels = partial.shape[1:]
    norm = partial.new_empty((5, channels))
    blocks, share, constants = _cut_channels(programs, channels, partial.dtype, MOST_PARTIALS)

    def check() -> None:
        check_norms("finish", partial[0, 0], weight.dtype)

    if share > 1:
        shares = triton.cdiv(programs, share)
        merged_rows = partial.new_empty((3, shares, channels))
        sizes = {"programs": programs, "share": share, **constants}
        start(fused_kernels.shrink_statistics, (shares, blocks, 1), (partial, merged_rows), sizes, check)
        partial, programs = merged_rows, shares
    sizes = {"programs": programs, "EPS": eps, **constants}
    start(fused_kernels.finish_statistics, (blocks, 1, 1), (partial, weight, bias, norm), sizes, check)
    return norm


@lru_cache(tiles.MOST_SIZES)
def _cut_channels(programs: int, channels: int, dtype: torch.dtype, most: int) -> tuple[int, int, dict[str, Any]]:
    """Programs along the channels, how many partial statistics each merges at first, sizes and constants."""
    lanes = min(32, triton.next_power_of_2(channels))
    share = max(1, triton.cdiv(programs, most))  # with the clips there get more, and few programs below
    constants = {"C": channels, "ROWS": 64, "LANES": lanes}
    constants["ACC"] = tl.float64 if dtype == torch.float64 else tl.float32
    return triton.cdiv(channels, lanes), share, constants


def apply(
    y: Tensor, norm: Tensor, out: Tensor, *, relu: bool, other: Tensor | None = None, other_norm: Tensor | None = None
) -> None:
    """Fill `out`."""
    add = 0 if other is None else 1 if other_norm is None else 2
    grid, arguments = cut_matrix(y)
    tensors = (y, norm, other, other_norm, out)
    options = {"ADD": add, "RELU": relu, **arguments}
    start(fused_kernels.apply, grid, tensors, options, lambda: check_norms("apply", y, relu, add))


def gradient_sums(
    grad: Tensor, y: Tensor, norm: Tensor, *, relu: bool, out: Tensor | None = None, masked: Tensor | None = None
) -> Tensor:
    """Sums (2, C), the gradients of bias and weight; with `out` also fill `masked`."""
    grid, arguments = cut_matrix(y, reduce=True)
    partial = y.new_empty((grid[0], 2, y.shape[1]), dtype=accurate(y))
    start(
        fused_kernels.gradient_sums,
        grid,
        (grad, y, norm, out, masked, partial),
        {"RELU": 2 if out is not None else int(relu), **arguments},
        lambda: check_norms("gradient_sums", y, relu, out is not None),
    )
    return partial.sum(0)


def gradient(grad: Tensor, y: Tensor, norm: Tensor, sums: Tensor, out: Tensor, *, relu: bool, batch: bool) -> None:
    """Fill `out`."""
    grid, arguments = cut_matrix(y)
    tensors = (grad, y, norm, sums, out)
    options = {"RELU": relu, "BATCH": batch, **arguments}
    start(fused_kernels.gradient, grid, tensors, options, lambda: check_norms("gradient", y, relu, batch))


# What each kernel is held against.


def check_depthwise(
    large: Tensor,
    small: Tensor,
    problem: Problem,
    tile: Tile,
    *,
    flip: bool = False,
    norm: bool | None = None,
    after: bool = False,
    gather: bool = False,
) -> None:
    """Check a kernel of the depthwise convolution for two clips of no more planes than need two chunks in time.

    norm: whether a ReLU follows the normalisation of the input, None for none.
    """
    strides = (problem.strides[0], problem.strides[1], problem.strides[1])
    sizes = (min(large.shape[2], strides[0] * (tile.planes + 1)), *large.shape[3:])
    channels, dtype, last = large.shape[1], large.dtype, problem.channels_last
    kernel = "input gradient" if flip else problem.kernel.replace("_", " ")
    key = (kernel, dtype, channels, *sizes, strides, "channels last" if last else "channels first", tile)

    def pairs(draw: Draw) -> Iterator[Pair]:
        x, weight = draw((2, channels, *sizes), dtype, last), draw((channels, 1, 3, 3, 3), dtype, False)
        grad = draw((2, channels, *output_sizes(sizes, strides)), dtype, last)
        scale, shift = (draw((channels,), accurate(x)) for _ in range(2))
        applied = None if norm is None else (scale, shift, norm)
        exact_x, exact_weight, exact_grad = x.double(), weight.double(), grad.double()
        if norm is not None:
            exact_x = exact(x, scale, shift, relu=norm)
        options = (strides, 1, 1, channels)
        if "weight" in kernel:
            found = weight_gradient(grad, x, strides, norm=applied, tile=tile)
            yield kernel, found, conv3d_weight(exact_x, weight.shape, exact_grad, *options).view_as(found)
        elif "input" in kernel:
            found = torch.full_like(x, math.nan)
            input_gradient(grad, weight, found, strides, tile=tile)
            yield kernel, found, conv3d_input(x.shape, exact_weight, exact_grad, *options)
        else:
            found, epilogue = torch.full_like(grad, math.nan), (scale, shift) if after else None
            partial = convolve(x, weight, found, strides, norm=applied, after=epilogue, statistics=gather, tile=tile)
            expected = reference(exact_x, exact_weight, strides)
            yield kernel, found, exact(expected, scale, shift, relu=True) if after else expected
            if partial is not None:
                yield "statistics", *moments(partial, found)

    check_once((*key, norm, after, gather), large.device, pairs)


def check_norms(kernel: str, like: Tensor, *options: Any) -> None:
    """Check a kernel of fused.py for as many channels as `like` has, its last axis or the second of five."""
    channels, dtype = like.shape[1 if like.ndim == 5 else 0], like.dtype

    def pairs(draw: Draw) -> Iterator[Pair]:
        y, grad, other = (draw((2, channels, 3, 5, 7), dtype) for _ in range(3))
        norm, other_norm = (draw((5, channels), accurate(y)) for _ in range(2))
        if kernel == "statistics":
            yield kernel, *moments(statistics(y), y)
        elif kernel == "finish":
            weight, bias = (draw((channels,), options[0]) for _ in range(2))
            partial = torch.stack([draw((MOST_PARTIALS + 70, channels), dtype).abs() + 1 for _ in range(3)])
            count, mean, squares = merged(partial)
            rstd = (squares / count + 1e-3).rsqrt()
            scale = weight.double() * rstd
            expected = torch.stack((mean, squares / (count - 1), rstd, scale, bias.double() - mean * scale))
            yield kernel, finish(partial, weight, bias, 1e-3), expected
        elif kernel == "apply":
            relu, add = options
            out, expected = torch.full_like(y, math.nan), exact(y, norm[3], norm[4])
            apply(y, norm, out, relu=relu, other=other if add else None, other_norm=other_norm if add == 2 else None)
            if add:
                expected += other.double() if add == 1 else exact(other, other_norm[3], other_norm[4])
            yield kernel, out, expected.relu() if relu else expected
        elif kernel == "gradient_sums":
            relu, masks = options
            masked = torch.full_like(y, math.nan) if masks else None
            sums = gradient_sums(grad, y, norm, relu=relu, out=other if masks else None, masked=masked)
            through = before_relu(grad, other if masks else exact(y, norm[3], norm[4]) if relu else None)
            yield kernel, sums, sums_of(through, y, norm)
            if masked is not None:
                yield "masked gradient", masked, through
        else:
            relu, batch = options
            out = torch.full_like(y, math.nan)
            through = before_relu(grad, exact(y, norm[3], norm[4]) if relu else None)
            sums = sums_of(through, y, norm)
            gradient(grad, y, norm, sums.to(norm.dtype), out, relu=relu, batch=batch)
            yield kernel, out, through_norm(through, y, norm, sums, batch=batch)

    check_once((kernel, dtype, channels, *options), like.device, pairs)
