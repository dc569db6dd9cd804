"""Each kernel is held against its definition before its first result is used.

They were written where no GPU was at hand, so each machine sees for itself. The tensors are small ones of the same
layout, channels, lines and tile, for which Triton has no more to compile than for the launch to come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_csn.models.depthwise import memory_format

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
