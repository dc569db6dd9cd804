"""Which tile a kernel of the depthwise convolution gets: by rule, or as measured on a kind of GPU and kept in a file.

Imported only where a kernel is about to run, because it imports Triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lightning_csn.models.choices import chosen, keep

MOST_SIZES = 4096  # that anything is remembered of: many times what a network has, where they are new each time
TILES = "depthwise_tiles.json"  # in the cache folder


class Tile(NamedTuple):
    """How the work is cut: outputs per strip, elements of a tile per program, planes in time per program."""

    strip: int
    elements: int = 256  # four warps of two neighbouring lanes a thread: 4 bytes at 16 bits, 128 a warp
    planes: int = 32
    clips: int = 1  # side by side, for the weight gradient


class Problem(NamedTuple):
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


@lru_cache(MOST_SIZES)  # it costs as much as a launch
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
        tile = tile._replace(clips=max(1, min(problem.B, wanted // programs)))
    programs *= tile.clips
    while programs < wanted and tile.planes > 4:
        tile = tile._replace(planes=triton.cdiv(tile.planes, 2))
        programs *= 2
    return tile


def candidate_tiles(problem: Problem, multiprocessors: int) -> Iterator[Tile]:
    """The few tiles that `tune` measures: the default, other strips, and twice or half as many programs."""
    tile = default_tile(problem, multiprocessors)
    yield tile
    for strip in {4, 7, 8} - {tile.strip}:
        yield tile._replace(strip=strip)
    yield tile._replace(elements=512)
    yield tile._replace(planes=max(1, tile.planes // 2))
    if problem.kernel.endswith("weight_gradient") and tile.clips > 1:
        yield tile._replace(clips=tile.clips // 2)


def tile_for(problem: Problem, device: torch.device) -> Tile:
    """The tile that `tune` found on this kind of GPU, or else the default one: the first step never measures."""
    found = chosen(TILES, problem, device)
    return Tile(**found) if found else default_tile(problem, processors(device))


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def tune(
    launch: Callable[[Tile], Any], problem: Problem, device: torch.device, measure: Callable[..., float]
) -> dict[Tile, float]:
    """Measure the candidates, keep the fastest in the file, and return the times in milliseconds.

    launch: runs the kernel of `problem` with a tile. measure: time of a function, such as triton.testing.do_bench.
    """
    times = {tile: measure(lambda tile=tile: launch(tile)) for tile in candidate_tiles(problem, processors(device))}
    best = min(times, key=lambda tile: times[tile])
    keep(TILES, problem, device, best._asdict())
    return times


def problem_of(kernel: str, small: Tensor, strides: Sequence[int], last: bool) -> Problem:
    """The problem of a kernel; `small` is the tensor of the output's sizes (the smaller one, at stride 2)."""
    b, c, t, h, w = small.shape
    return Problem(kernel, b, c, t, h, w, (strides[0], strides[2]), str(small.dtype), last)
