"""Which tile a kernel gets, and the launches: what stands between depthwise.py and fused.py and the Triton kernels.

Imported only where a kernel is about to run, because it imports Triton.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.grad import conv3d_input, conv3d_weight

from lightning_csn.models import depthwise_kernels, fused_kernels
from lightning_csn.models.batchnorm import accurate
from lightning_csn.models.depthwise import channels_last, memory_format, output_sizes, reference

INTERPRETED = not isinstance(depthwise_kernels.convolve, triton.JITFunction)
TILES = "depthwise_tiles.json"  # in the cache folder
MOST_CLIPS = 65535  # on the third axis of a grid
MOST_PARTIALS = 128  # rows of partial statistics that one program merges at the end: two turns of 64


@dataclass(frozen=True)
class Tile:
    """How the work is cut: outputs per strip, elements of a tile per program, planes in time per program."""

    strip: int
    elements: int = 256  # four warps of two neighbouring lanes a thread: 4 bytes at 16 bits, 128 a warp
    planes: int = 32
    clips: int = 1  # side by side, for the weight gradient


@dataclass(frozen=True)
class Problem:
    """What decides about the tile: sizes of the output, and the axes that lanes and strips run along."""

    kernel: str
    B: int
    C: int
    T: int
    H: int
    W: int
    strides: tuple[int, int]  # in time, in space
    dtype: str
    channels_last: bool

    @property
    def lanes(self) -> int:
        """Lanes of a tile: a power of two, at most 64."""
        return min(64, triton.next_power_of_2(max(1, self.C if self.channels_last else self.W)))

    def rows(self, tile: Tile) -> int:
        """Rows of all tiles together."""
        if self.channels_last:
            return triton.cdiv(self.W, tile.strip) * self.H
        return self.C * triton.cdiv(self.H, tile.strip)

    def blocks(self, tile: Tile) -> tuple[int, int]:
        """Programs along the rows and along the lanes."""
        rows = triton.cdiv(self.rows(tile), max(1, tile.elements // self.lanes))
        return rows, triton.cdiv(self.C if self.channels_last else self.W, self.lanes)


@cache  # it costs as much as a launch
def default_tile(problem: Problem, multiprocessors: int) -> Tile:
    """A tile by rule, without measuring: strips that fill the line, and enough programs for every multiprocessor.

    Registers a thread as compiled for compute capability 9.0 (bf16, channels_last_3d): 147 at strips of 7 for the plain
    convolution; with a norm, and for the weight gradient, 185 to 202 at 7 and 142 to 156 at 4. So 12 warps or more fit
    on a multiprocessor if the latter take strips of 4. Nothing is spilled, but for the weight
    gradient at stride 2 with strips of 7, which is why stride 2 always takes 4.
    """
    along = problem.W if problem.channels_last else problem.H
    strips = (7, 8, 4) if problem.kernel == "convolve" else (4, 7, 8)  # the first of those that leave least over
    strip = 4 if 2 in problem.strides else min(strips, key=lambda n: triton.cdiv(along, n) * n - along)
    tile = Tile(strip, planes=problem.T, clips=problem.B)
    programs = math.prod(problem.blocks(tile))
    wanted = 6 * multiprocessors  # two rounds of three programs side by side
    if problem.kernel.endswith("weight_gradient"):  # each program ends with 27 sums over its rows: no more than needed
        tile = replace(tile, clips=max(1, min(problem.B, wanted // programs)))
    programs *= tile.clips
    while programs < wanted and tile.planes > 4:
        tile = replace(tile, planes=triton.cdiv(tile.planes, 2))
        programs *= 2
    return tile


def candidate_tiles(problem: Problem, multiprocessors: int) -> Iterator[Tile]:
    """The few tiles that `tune` measures: the default, other strips, and twice or half as many programs."""
    tile = default_tile(problem, multiprocessors)
    yield tile
    for strip in {4, 7, 8} - {tile.strip}:
        yield replace(tile, strip=strip)
    yield replace(tile, elements=512)
    yield replace(tile, planes=max(1, tile.planes // 2))
    if problem.kernel.endswith("weight_gradient") and tile.clips > 1:
        yield replace(tile, clips=tile.clips // 2)


def tile_for(problem: Problem, device: torch.device) -> Tile:
    """The tile that `tune` found on this kind of GPU, or else the default one: the first step never measures."""
    found = chosen(TILES, problem, device)
    return Tile(**found) if found else default_tile(problem, processors(device))


def chosen(file: str, problem: Any, device: torch.device) -> Any:
    """What `keep` wrote to a file for a problem on this kind of GPU; None for nothing."""
    found = measured(cache_path(file))
    return found.get(cache_key(problem, device)) if found else None  # each launch asks: no key for an empty file


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def cache_path(file: str) -> Path:
    """Where measured choices are kept: LIGHTNING_CSN_CACHE, or lightning_csn in the user's cache folder."""
    return _path(os.environ.get("LIGHTNING_CSN_CACHE"), os.environ.get("XDG_CACHE_HOME"), file)


@cache
def _path(folder: str | None, caches: str | None, file: str) -> Path:
    return (Path(folder) if folder else Path(caches or Path.home() / ".cache") / "lightning_csn") / file


def cache_key(problem: Any, device: torch.device) -> str:
    """Everything that a measured time depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    return f"{name}, triton {triton.__version__}, {problem}"


@cache
def measured(path: Path) -> dict[str, Any]:
    """Choices of a file that `keep` wrote, by their keys; none if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}


def keep(path: Path, key: str, choice: Any) -> None:
    """Add a choice to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({**measured(path), key: choice}, indent=1))
    partial.replace(path)  # another process never reads half a file
    measured.cache_clear()


def tune(
    launch: Callable[[Tile], Any], problem: Problem, device: torch.device, measure: Callable[..., float]
) -> dict[Tile, float]:
    """Measure the candidates, keep the fastest in the file, and return the times in milliseconds.

    launch: runs the kernel of `problem` with a tile. measure: time of a function, such as triton.testing.do_bench.
    """
    times = {tile: measure(lambda tile=tile: launch(tile)) for tile in candidate_tiles(problem, processors(device))}
    best = min(times, key=lambda tile: times[tile])
    keep(cache_path(TILES), cache_key(problem, device), asdict(best))
    return times


def problem_of(kernel: str, small: Tensor, strides: Sequence[int], last: bool) -> Problem:
    """The problem of a kernel; `small` is the tensor of the output's sizes (the smaller one, at stride 2)."""
    b, c, t, h, w = small.shape
    return Problem(kernel, b, c, t, h, w, (strides[0], strides[2]), str(small.dtype), last)


def shape_arguments(large: Tensor, small: Tensor, problem: Problem, tile: Tile) -> tuple[dict[str, Any], int]:
    """Sizes, strips and constants that all kernels take, and the number of chunks in time."""
    across, along = (3, 4) if problem.channels_last else (4, 3)
    chunks = triton.cdiv(small.shape[2], tile.planes)
    strips = triton.cdiv(small.shape[along], tile.strip)
    sizes = [large.shape[1], *(tensor.shape[axis] for tensor in (large, small) for axis in (2, across, along))]
    arguments = dict(zip(("C", "T", "X", "A", "T_OUT", "X_OUT", "A_OUT"), sizes, strict=True))
    arguments |= {"strips": strips, "chunks": chunks, "STRIDE_T": problem.strides[0], "STRIDE": problem.strides[1]}
    arguments |= {"CHANNELS_LAST": problem.channels_last, "planes": tile.planes, "N": tile.strip}
    # That strips fill their lines saves half of the masks; for the few layers of stride 2 it is not worth compiling.
    arguments["EXACT"] = 2 not in problem.strides and small.shape[along] % tile.strip == 0
    arguments |= {"LANES": problem.lanes, "ROWS": max(1, tile.elements // problem.lanes)}
    arguments["ACC"] = tl.float64 if large.dtype == torch.float64 else tl.float32
    arguments["num_warps"] = max(1, arguments["ROWS"] * arguments["LANES"] // 64)
    return arguments, chunks


def step_arguments(name: str, tensor: Tensor, last: bool) -> dict[str, int]:
    """Steps in memory of a tensor, along clips, channels, time, across the strips and along them."""
    b, c, t, h, w = tensor.stride()
    across, along = (h, w) if last else (w, h)
    return {f"{name}_b": b, f"{name}_c": c, f"{name}_t": t, f"{name}_x": across, f"{name}_a": along}


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
    check_depthwise(x, out, problem, tile, flip=flip, norm=norm and norm[2], after=after is not None, gather=statistics)
    arguments, chunks = shape_arguments(x, out, problem, tile)
    rows, lanes = problem.blocks(tile)
    partial = None
    if statistics:  # sums are per program: one channel per lane
        partial = x.new_empty((3, out.shape[0] * chunks * rows, out.shape[1]), dtype=accurate(x))
    if out.numel():
        with torch.cuda.device_of(x):
            depthwise_kernels.convolve[(rows, lanes * chunks, out.shape[0])](
                x,
                weight.contiguous(),
                out,
                norm and norm[0],
                norm and norm[1],
                partial,
                after and after[0],
                after and after[1],
                FLIP=flip,
                NORM=0 if norm is None else 1 + norm[2],
                AFTER=1 if statistics else 2 if after else 0,
                **arguments,
                **step_arguments("x", x, last),
                **step_arguments("out", out, last),
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
    last = channels_last(grad)
    problem = problem_of("input_gradient", grad, strides, last)
    tile = tile or tile_for(problem, grad.device)
    check_depthwise(out, grad, problem, tile)
    arguments, chunks = shape_arguments(out, grad, problem, tile)
    rows, lanes = problem.blocks(tile)
    if out.numel():
        with torch.cuda.device_of(grad):
            depthwise_kernels.input_gradient[(rows, lanes * chunks, grad.shape[0])](
                grad,
                weight.contiguous(),
                out,
                **arguments,
                **step_arguments("grad", grad, last),
                **step_arguments("out", out, last),
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
    check_depthwise(x, grad, problem, tile, norm=norm and norm[2])
    arguments, chunks = shape_arguments(x, grad, problem, tile)
    rows, lanes = problem.blocks(tile)
    channels = x.shape[1]
    if grad.numel() == 0:
        return x.new_zeros((channels, 27), dtype=accurate(x))
    shape = (tile.clips * chunks * rows, 27, channels, 1)
    if not last:
        shape = (tile.clips * chunks * lanes, 27, channels, arguments["strips"])
    partial = x.new_empty(shape, dtype=accurate(x))
    with torch.cuda.device_of(x):
        depthwise_kernels.weight_gradient[(rows, lanes * chunks, tile.clips)](
            x,
            grad,
            partial,
            norm and norm[0],
            norm and norm[1],
            B=x.shape[0],
            NORM=0 if norm is None else 1 + norm[2],
            **arguments,
            **step_arguments("x", x, last),
            **step_arguments("grad", grad, last),
        )
    return partial.sum((0, 3)).t().contiguous()  # the second pass: small, and in an order that only the shape decides


# The kernels of fused.py. Tensors are (B, C, T, H, W) in channels_last_3d.


def tiles(tensor: Tensor, *, reduce: bool = False) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid and the sizes of a launch over a tensor; to `reduce`, a program goes through several tiles."""
    if not tensor.is_contiguous(memory_format=torch.channels_last_3d):
        raise ValueError(f"channels_last_3d expected, got sizes {tuple(tensor.shape)} and strides {tensor.stride()}")
    channels = tensor.shape[1]
    places = tensor.numel() // channels
    lanes = min(64, triton.next_power_of_2(channels))  # 128 bytes at 16 bits; the same for all layers of CSN
    rows = 4096 // lanes  # 16 elements for each thread of 8 warps
    blocks, across = triton.cdiv(places, rows), triton.cdiv(channels, lanes)
    arguments = {"P": places, "C": channels, "ROWS": rows, "LANES": lanes, "num_warps": 8}
    arguments["ACC"] = tl.float64 if tensor.dtype == torch.float64 else tl.float32
    if reduce:
        arguments["turns"] = max(1, blocks * across // (8 * processors(tensor.device)))
        blocks = triton.cdiv(blocks, arguments["turns"])
    return (blocks, across), arguments


def statistics(y: Tensor) -> Tensor:
    """Partial statistics (3, programs, C) of a tensor."""
    check_norms("statistics", y)
    grid, arguments = tiles(y, reduce=True)
    partial = y.new_empty((3, grid[0], y.shape[1]), dtype=accurate(y))
    with torch.cuda.device_of(y):
        fused_kernels.statistics[grid](y, partial, **arguments)
    return partial


def finish(partial: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The normalisation (5, C) that partial statistics and the parameters of a BatchNorm make."""
    check_norms("finish", partial[0, 0], weight.dtype)
    channels, programs = partial.shape[2], partial.shape[1]
    norm = partial.new_empty((5, channels))
    lanes = min(32, triton.next_power_of_2(channels))
    blocks = triton.cdiv(channels, lanes)
    constants = {"C": channels, "ROWS": 64, "LANES": lanes}
    constants["ACC"] = tl.float64 if partial.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(partial):
        if programs > MOST_PARTIALS:  # with the clips there get more of them, and few programs below
            share = triton.cdiv(programs, MOST_PARTIALS)
            shares = triton.cdiv(programs, share)
            merged_rows = partial.new_empty((3, shares, channels))
            fused_kernels.shrink_statistics[(shares, blocks)](
                partial, merged_rows, programs=programs, share=share, **constants
            )
            partial, programs = merged_rows, shares
        fused_kernels.finish_statistics[(blocks,)](partial, weight, bias, norm, programs=programs, EPS=eps, **constants)
    return norm


def apply(
    y: Tensor, norm: Tensor, out: Tensor, *, relu: bool, other: Tensor | None = None, other_norm: Tensor | None = None
) -> None:
    """Fill `out`."""
    add = 0 if other is None else 1 if other_norm is None else 2
    check_norms("apply", y, relu, add)
    grid, arguments = tiles(y)
    with torch.cuda.device_of(y):
        fused_kernels.apply[grid](y, norm, other, other_norm, out, ADD=add, RELU=relu, **arguments)


def gradient_sums(
    grad: Tensor, y: Tensor, norm: Tensor, *, relu: bool, out: Tensor | None = None, masked: Tensor | None = None
) -> Tensor:
    """Sums (2, C), the gradients of bias and weight; with `out` also fill `masked`."""
    check_norms("gradient_sums", y, relu, out is not None)
    grid, arguments = tiles(y, reduce=True)
    partial = y.new_empty((grid[0], 2, y.shape[1]), dtype=accurate(y))
    mode = 2 if out is not None else int(relu)
    with torch.cuda.device_of(y):
        fused_kernels.gradient_sums[grid](grad, y, norm, out, masked, partial, RELU=mode, **arguments)
    return partial.sum(0)


def gradient(grad: Tensor, y: Tensor, norm: Tensor, sums: Tensor, out: Tensor, *, relu: bool, batch: bool) -> None:
    """Fill `out`."""
    check_norms("gradient", y, relu, batch)
    grid, arguments = tiles(y)
    with torch.cuda.device_of(y):
        fused_kernels.gradient[grid](grad, y, norm, sums, out, RELU=relu, BATCH=batch, **arguments)


# Each kernel is held against its definition before its first result is used. They were written where no GPU was at
# hand, so each machine sees for itself. The tensors are small ones of the same layout, channels, lines and tile, for
# which Triton has no more to compile than for the launch to come.

CHECKED_DEVICES = ["cuda"]  # not the CPU: in the interpreter the tests do the same
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5, torch.float64: 1e-12}  # of the largest
_checked: set[Any] = set()

Draw = Callable[..., Tensor]
Pair = tuple[str, Tensor, Tensor]  # what it is, as found, as expected in fp64


def check_once(
    key: tuple[Any, ...],
    device: torch.device,
    pairs: Callable[[Draw], Iterator[Pair]],
    tolerance: Mapping[torch.dtype, float] = TOLERANCE,
) -> None:
    """Compare the names, results and definitions that `pairs` yields, once in a process for each key and device.

    Raises RuntimeError where they differ, and where the first use is inside the capture of a CUDA graph, in which
    nothing can be compared.
    """
    if device.type not in CHECKED_DEVICES or (key, device) in _checked:
        return
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "the first use of a kernel with these shapes is in a CUDA graph: run one step before the capture"
                )
    generator = torch.Generator(device).manual_seed(0)

    def draw(shape: Sequence[int], dtype: torch.dtype, last: bool = True) -> Tensor:
        drawn = torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device=device).to(dtype)
        return drawn.contiguous(memory_format=memory_format(last)) if len(shape) == 5 else drawn

    _checked.add((key, device))  # the launches below are the same ones
    agreed = False
    try:
        for name, found, expected in pairs(draw):
            off = ((found.double() - expected).abs().max() / expected.abs().max()).item()
            if not off <= tolerance[found.dtype]:  # nan is no agreement either
                raise RuntimeError(
                    f"a kernel disagrees with its definition on {device}: the {name} is off by {off:.1e} of the largest"
                    f" value ({', '.join(map(str, key))}); set LIGHTNING_CSN_DEPTHWISE=reference to run nn.Conv3d, and"
                    " please report this with your GPU and the versions of torch and triton"
                )
        agreed = True
    finally:
        if not agreed:
            _checked.discard((key, device))


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
            variance = squares / count
            rstd = (variance + 1e-3).rsqrt()
            scale = weight.double() * rstd
            expected = torch.stack((mean, variance, rstd, scale, bias.double() - mean * scale))
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


def per_channel(vector: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1, 1) in fp64."""
    return vector.double()[:, None, None, None]


def exact(x: Tensor, scale: Tensor, shift: Tensor, *, relu: bool = False) -> Tensor:
    """scale x + shift in fp64, and its ReLU."""
    value = x.double() * per_channel(scale) + per_channel(shift)
    return value.relu() if relu else value


def before_relu(grad: Tensor, value: Tensor | None) -> Tensor:
    """The gradient in fp64 before the ReLU of a value; None for no ReLU."""
    return grad.double() if value is None else grad.double() * (value > 0)


def sums_of(grad: Tensor, y: Tensor, norm: Tensor) -> Tensor:
    """The gradients (2, C) of a norm's bias and weight in fp64."""
    centred = exact(y, norm[2], -norm[0].double() * norm[2])
    return torch.stack((grad.sum((0, 2, 3, 4)), (grad * centred).sum((0, 2, 3, 4))))


def through_norm(grad: Tensor, y: Tensor, norm: Tensor, sums: Tensor, *, batch: bool) -> Tensor:
    """The gradient of y in fp64 from that of norm(y), and its sums."""
    if batch:
        centred = exact(y, norm[2], -norm[0].double() * norm[2])
        grad = grad - (per_channel(sums[0]) + centred * per_channel(sums[1])) / (y.numel() // y.shape[1])
    return grad.double() * per_channel(norm[3])


def merged(partial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared differences (C,) in fp64, of partial statistics (3, programs, C)."""
    count, mean, squares = partial.double()
    total = count.sum(0)
    centre = (count * mean).sum(0) / total
    return total, centre, (squares + count * (mean - centre) ** 2).sum(0)


def moments(partial: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (2, C) by partial statistics, and by a tensor itself."""
    total, mean, squares = merged(partial)
    axes = (0, 2, 3, 4)
    return (
        torch.stack((mean, squares / total)).to(partial.dtype),
        torch.stack((y.double().mean(axes), y.double().var(axes, correction=0))),
    )
