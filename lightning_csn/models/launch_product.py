"""The 1x1x1 convolutions of a fused block, each with the steps beside it: which kernels make them, and the launches.

Each step has two forms. Where memory sets the pace the kernels of product_kernels.py make the product and the steps
in one pass; where arithmetic does, the library makes the product, and the kernels of fused_kernels.py the steps.

Imported only where a kernel is about to run, because it imports Triton. Tensors are (B, C, T, H, W) in
channels_last_3d, weights (N, K, 1, 1, 1), normalisations (5, C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_csn.models import choices, launch, product_kernels, tiles
from lightning_csn.models.batchnorm import accurate
from lightning_csn.models.check_kernels import TOLERANCE, Draw, Pair, before_relu, check_once, exact, moments, sums_of
from lightning_csn.models.fused import memory_bound
from lightning_csn.models.fused_operators import empty, library_product, matrix

PRODUCTS = "products.json"  # in the cache folder
_form: str | None = None
ROWS, COLUMNS = 128, 64  # places and channels of a tile


def takes_in(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels of our own make a product, and take in the steps beside it.

    By `form`, by what `tune` found on this kind of GPU, or else by counting.
    """
    if _form is not None:
        return _form == "own"
    found = choices.chosen(PRODUCTS, product_of(x, weight), x.device)
    return memory_bound(weight.shape[1], weight.shape[0], x.element_size()) if found is None else found == "own"


def product_of(x: Tensor, weight: Tensor) -> str:
    """What a measured form holds for."""
    return f"product {weight.shape[1]} to {weight.shape[0]}, {x.dtype}"


@contextmanager
def form(name: str) -> Iterator[None]:
    """Inside of the block all products are made in one form: "own" or "library"."""
    global _form
    before, _form = _form, name
    try:
        yield
    finally:
        _form = before


def tune(
    steps: Callable[[], Any], x: Tensor, weight: Tensor, measure: Callable[[Callable[[], Any]], float]
) -> dict[str, float]:
    """Measure both forms, the one that was counted first; keep the faster one, and return the times in milliseconds.

    steps: makes the product of x, with the steps beside it. measure: time of a function.
    """
    counted = memory_bound(weight.shape[1], weight.shape[0], x.element_size())
    times = {}
    for name in ("own", "library") if counted else ("library", "own"):
        with form(name):
            times[name] = measure(steps)
    choices.keep(PRODUCTS, product_of(x, weight), x.device, min(times, key=lambda name: times[name]))
    return times


# The launches.


def cut_product(x: Tensor, weight: Tensor) -> tuple[tuple[int, int, int], int, dict[str, Any]]:
    """Grid, blocks of places, sizes and constants of a product (P, N) of x (P, K) and a weight (N, K) of any steps."""
    if not x.is_contiguous(memory_format=torch.channels_last_3d):
        raise ValueError(f"channels_last_3d expected, got sizes {tuple(x.shape)} and strides {x.stride()}")
    n, k = weight.shape[:2]
    sizes = (x.numel() // k, k, n, *weight.stride()[:2])
    return _cut_product(*sizes, x.dtype, rounds_to_tf32(x.dtype), ROWS, COLUMNS)


@lru_cache(tiles.MOST_SIZES)
def _cut_product(
    places: int,
    k: int,
    n: int,
    weight_n: int,
    weight_k: int,
    dtype: torch.dtype,
    tf32: bool,
    rows: int,
    columns: int,
) -> tuple[tuple[int, int, int], int, dict[str, Any]]:
    blocks, columns = triton.cdiv(places, rows), min(columns, max(16, triton.next_power_of_2(n)))
    arguments = {"P": places, "K": k, "N": n, "weight_n": weight_n, "weight_k": weight_k}
    arguments |= {"ROWS": rows, "COLUMNS": columns, "num_warps": 8}
    if torch.version.hip is None:  # where Triton knows no such option
        arguments["maxnreg"] = 128  # two programs side by side
    return (blocks * triton.cdiv(n, columns), 1, 1), blocks, arguments | inner(k, dtype, tf32)


def inner(size: int, dtype: torch.dtype, tf32: bool) -> dict[str, Any]:
    """Steps of the loop of a product, and what it computes in."""
    accurate_type = tl.float64 if dtype == torch.float64 else tl.float32
    operands = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(dtype, accurate_type)
    return {
        "INNER": min(128 // dtype.itemsize, max(16, triton.next_power_of_2(size))),  # the same shared memory for all
        "ACC": accurate_type,
        "OPERANDS": accurate_type if launch.INTERPRETED else operands,  # the interpreter multiplies no bfloat16
        "PRECISION": "tf32" if tf32 else "ieee",
    }


def rounds_to_tf32(dtype: torch.dtype) -> bool:
    """Whether products of a type may be made of operands with ten bits of mantissa, as PyTorch was told."""
    if dtype != torch.float32:
        return False
    switches = torch.backends.cuda.matmul  # the older switch of the two raises where a program used the newer one
    precision = getattr(switches, "fp32_precision", None)  # of torch 2.9
    return bool(switches.allow_tf32) if precision is None else precision == "tf32"


def product(x: Tensor, norm: Tensor | None, weight: Tensor, out: Tensor | None, *, statistics: bool) -> Tensor | None:
    """Fill `out`, unless it is None, and return the partial statistics (3, programs, N) if they are asked for."""
    grid, blocks, arguments = cut_product(x, weight)
    partial = None
    if statistics:
        partial = x.new_empty((3, blocks, weight.shape[0]), dtype=accurate(x))
    options = {"NORM": norm is not None, "STORE": out is not None, "STATISTICS": statistics}
    launch.start(
        product_kernels.product,
        grid,
        (x, norm, weight, out, partial),
        options | arguments,
        lambda: check_product("product", x, weight.shape[0], *options.values()),
    )
    return partial


def product_sum(
    x: Tensor,
    norm: Tensor | None,
    weight: Tensor,
    last_norm: Tensor,
    other: Tensor,
    other_norm: Tensor | None,
    out: Tensor,
) -> None:
    """Fill `out` with relu(last_norm(product) + other), or + other_norm(other)."""
    grid, _, arguments = cut_product(x, weight)
    launch.start(
        product_kernels.product_sum,
        grid,
        (x, norm, weight, last_norm, other, other_norm, out),
        {"NORM": norm is not None, "ADD": 1 if other_norm is None else 2, **arguments},
        lambda: check_product("product sum", x, weight.shape[0], norm is not None, other_norm is not None),
    )


def sum_gradient(
    grad: Tensor, out: Tensor, x: Tensor, norm: Tensor, weight: Tensor, last_norm: Tensor, *, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the product, of last_norm's bias and weight as (2, N), and of other, from that of `out`."""
    grid, blocks, arguments = cut_product(x, weight)
    masked, grad_y = torch.empty_like(grad), torch.empty_like(grad)
    partial = x.new_empty((blocks, 2, weight.shape[0]), dtype=accurate(x))
    product_of = (x, norm, weight, last_norm)

    def check() -> None:
        check_product("sum gradient", x, weight.shape[0], batch)

    options = {"NORM": True, **arguments}
    launch.start(product_kernels.sum_gradient_sums, grid, (*product_of, grad, out, masked, partial), options, check)
    sums = partial.sum(0)
    options = {"NORM": True, "BATCH": batch, **arguments}
    launch.start(product_kernels.sum_gradient, grid, (*product_of, sums, masked, grad_y), options, check)
    return grad_y, sums, masked


def input_gradient(grad: Tensor, weight: Tensor, y: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of norm(y), and of norm's bias and weight as (2, K), from that of the product of relu(norm(y))."""
    grid, blocks, arguments = cut_product(grad, weight.transpose(0, 1))
    out = torch.empty_like(y)
    partial = y.new_empty((blocks, 2, y.shape[1]), dtype=accurate(y))
    launch.start(
        product_kernels.product_input_gradient,
        grid,
        (grad, weight, y, norm, out, partial),
        arguments,
        lambda: check_product("product input gradient", y, weight.shape[0]),
    )
    return out, partial.sum(0)


def weight_gradient(grad: Tensor, y: Tensor, norm: Tensor) -> Tensor:
    """The gradient (N, K) of the product's weight, fp32 (fp64 of fp64); relu(norm(y)) is made where y is loaded."""
    n, k = grad.shape[1], y.shape[1]
    grid, arguments = _cut_weight_gradient(
        y.numel() // k, k, n, y.dtype, rounds_to_tf32(y.dtype), tiles.processors(y.device)
    )
    partial = y.new_empty((grid[2], n, k), dtype=accurate(y))
    launch.start(
        product_kernels.product_weight_gradient,
        grid,
        (grad, y, norm, partial),
        arguments,
        lambda: check_product("product weight gradient", y, n),
    )
    return partial.sum(0)


@lru_cache(tiles.MOST_SIZES)
def _cut_weight_gradient(
    places: int, k: int, n: int, dtype: torch.dtype, tf32: bool, processors: int
) -> tuple[tuple[int, int, int], dict[str, Any]]:
    rows, columns = (min(128, max(16, triton.next_power_of_2(size))) for size in (n, k))
    blocks = triton.cdiv(n, rows), triton.cdiv(k, columns)
    arguments = inner(places, dtype, tf32)
    shares = max(1, 2 * processors // math.prod(blocks))  # two programs side by side
    turns = triton.cdiv(triton.cdiv(places, shares), arguments["INNER"])
    arguments |= {"P": places, "K": k, "N": n, "share": turns * arguments["INNER"]}
    arguments |= {"ROWS": rows, "COLUMNS": columns, "num_warps": 8 if rows * columns > 8192 else 4}
    return (*blocks, triton.cdiv(places, arguments["share"])), arguments


# The steps of a block, in their two forms.


def product_statistics(x: Tensor, norm: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The product of relu(norm(x)), or of x, and its partial statistics."""
    if takes_in(x, weight):
        out = empty(x, channels=weight.shape[0])
        partial = product(x, norm, weight, out, statistics=True)
        assert partial is not None  # because of statistics=True
        return out, partial
    out = library_product(x if norm is None else activation(x, norm), weight)
    return out, launch.statistics(out)


def norm_product(x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
    """The product of relu(norm(x))."""
    if not takes_in(x, weight):
        return library_product(activation(x, norm), weight)
    out = empty(x, channels=weight.shape[0])
    product(x, norm, weight, out, statistics=False)
    return out


def normalised_sum(
    x: Tensor, norm: Tensor | None, weight: Tensor, last_norm: Tensor, other: Tensor, other_norm: Tensor | None
) -> Tensor:
    """relu(last_norm(product of relu(norm(x)) or of x) + other), or + other_norm(other)."""
    if takes_in(x, weight):
        out = empty(x, channels=weight.shape[0])
        product_sum(x, norm, weight, last_norm, other, other_norm, out)
        return out
    out = library_product(x if norm is None else activation(x, norm), weight)
    launch.apply(out, last_norm, out, relu=True, other=other, other_norm=other_norm)  # read before it is written
    return out


def statistics_sum(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    last: tuple[Tensor, Tensor, float],
    other: Tensor,
    other_norm: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`normalised_sum` by the product's own statistics, and last_norm. last: weight, bias and eps of its BatchNorm."""
    if takes_in(x, weight):  # computed twice, and never written
        partial = product(x, norm, weight, None, statistics=True)
        assert partial is not None  # because of statistics=True
        last_norm = launch.finish(partial, *last)
        return normalised_sum(x, norm, weight, last_norm, other, other_norm), last_norm
    out = library_product(activation(x, norm), weight)
    last_norm = launch.finish(launch.statistics(out), *last)
    launch.apply(out, last_norm, out, relu=True, other=other, other_norm=other_norm)  # read before it is written
    return out, last_norm


def product_gradient(
    grad: Tensor, y: Tensor, norm: Tensor, weight: Tensor, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, of norm's bias and weight as (2, K), and of the weight, from that of `norm_product`.

    batch: norm is by the statistics of y itself.
    """
    if takes_in(y, weight):
        grad_weight = weight_gradient(grad, y, norm)
        out, sums = input_gradient(grad, weight, y, norm)
        launch.gradient(out, y, norm, sums, out, relu=False, batch=batch)  # each place is read before it is written
        return out, sums, grad_weight.to(weight.dtype).view_as(weight)
    return _library_gradient(grad, activation(y, norm), y, norm, weight, batch)


def _library_gradient(
    grad: Tensor, made: Tensor, y: Tensor, norm: Tensor, weight: Tensor, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_weight = (matrix(grad).t() @ matrix(made)).view_as(weight)
    out = library_product(grad, weight.transpose(0, 1))
    sums = launch.gradient_sums(out, y, norm, relu=True)
    launch.gradient(out, y, norm, sums, out, relu=True, batch=batch)
    return out, sums, grad_weight


def normalised_sum_gradient(
    grad: Tensor, out: Tensor, y: Tensor, norm: Tensor, weight: Tensor, last_norm: Tensor, batch: bool, last_batch: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The way back through `normalised_sum`, which made `out` of y: what `product_gradient` gives, and two more.

    These are the gradients of last_norm's bias and weight as (2, N), and of other (of other_norm(other)).
    """
    if takes_in(y, weight):
        grad_product, last_sums, masked = sum_gradient(grad, out, y, norm, weight, last_norm, batch=last_batch)
        return *product_gradient(grad_product, y, norm, weight, batch), masked, last_sums
    made = activation(y, norm)
    product_again, masked = library_product(made, weight), torch.empty_like(grad)
    last_sums = launch.gradient_sums(grad, product_again, last_norm, relu=False, out=out, masked=masked)
    launch.gradient(masked, product_again, last_norm, last_sums, product_again, relu=False, batch=last_batch)
    return *_library_gradient(product_again, made, y, norm, weight, batch), masked, last_sums


def activation(y: Tensor, norm: Tensor) -> Tensor:
    """relu(norm(y))."""
    out = torch.empty_like(y)
    launch.apply(y, norm, out, relu=True)
    return out


# Each kernel is held against its definition once: check_once.


def check_product(kernel: str, x: Tensor, n: int, *options: bool) -> None:
    """Check a kernel for a product of x with n channels, of the same kind as the one to come."""
    k = x.shape[1]

    def pairs(draw: Draw) -> Iterator[Pair]:
        y, other, grad = draw((2, k, 3, 5, 7), x.dtype), draw((2, n, 3, 5, 7), x.dtype), draw((2, n, 3, 5, 7), x.dtype)
        w = (draw((n, k), x.dtype) / k**0.5).view(n, k, 1, 1, 1)
        norm, last_norm, other_norm = (draw((5, size), accurate(x)) for size in (k, n, n))
        applied = norm if kernel not in ("product", "product sum") or options[0] else None
        made = y if applied is None else activation(y, norm)
        expected = library_product(made.double(), w.double())
        found = torch.full_like(other, math.nan)
        if kernel == "product":
            _, stores, gathers = options
            partial = product(y, applied, w, found if stores else None, statistics=gathers)
            if stores:
                yield kernel, found, expected
            if partial is not None:
                yield "statistics", *moments(partial, found if stores else expected)
        elif kernel == "product sum":
            product_sum(y, applied, w, last_norm, other, other_norm if options[1] else None, found)
            added = exact(other, other_norm[3], other_norm[4]) if options[1] else other.double()
            yield kernel, found, (exact(expected, last_norm[3], last_norm[4]) + added).relu()
        elif kernel == "sum gradient":
            grad_y, sums, masked = sum_gradient(grad, other, y, norm, w, last_norm, batch=options[0])
            through = before_relu(grad, other)
            wanted = sums_of(through, expected, last_norm)
            yield "masked gradient", masked, through
            yield "sums", sums, wanted
            yield kernel, grad_y, launch.through_norm(through, expected, last_norm, wanted, batch=options[0])
        elif kernel == "product input gradient":
            out, sums = input_gradient(grad, w, y, norm)
            through = before_relu(
                library_product(grad.double(), w.double().transpose(0, 1)), exact(y, norm[3], norm[4])
            )
            yield kernel, out, through
            yield "sums", sums, sums_of(out, y, norm)  # as stored
        else:
            yield kernel, weight_gradient(grad, y, norm), matrix(grad.double()).t() @ matrix(made.double())

    key: tuple[Any, ...] = (kernel, x.dtype, k, n, *options)
    if rounds_to_tf32(x.dtype):
        check_once((*key, "tf32"), x.device, pairs, {x.dtype: TOLERANCE[torch.float16]})
    else:
        check_once(key, x.device, pairs)
