"""Pixels as a network sees them: on the scale 0 to 1, less the mean of their colour, over its standard deviation; and
how they and the weights lie in memory.

Shapes: C channels, T frames, H x W pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_csn.clip import ClipSpec


def colours(clip: ClipSpec, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the colours that weights ask for, float32 (C, 1, 1, 1) each."""
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1, 1) for values in (clip.mean, clip.std))
    return mean, std


def normalised(clips: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Clips (..., C, T, H, W) of pixels, 0 to 255, as a network takes them; in the dtype of the mean.

    >>> white = torch.full((1, 3, 1, 1, 1), 255, dtype=torch.uint8)
    >>> normalised(white, torch.full((3, 1, 1, 1), 0.5), torch.full((3, 1, 1, 1), 0.25)).unique()
    tensor([2.])
    """
    return (clips.to(mean.dtype) / 255 - mean) / std


class Layouts(NamedTuple):
    """How normalised clips and the weights of 3D convolutions lie in memory; None leaves clips as they come."""

    clips: torch.memory_format | None
    weights: torch.memory_format


def layouts(kind: str) -> Layouts:
    """Those of a kind of device, in training and in answering."""
    if kind == "cuda":
        # What the Triton kernels are built for, and what cuDNN has its products in 16 bits for; not measured yet.
        return Layouts(torch.channels_last_3d, torch.channels_last_3d)
    if kind == "cpu":
        # Small networks run and train nearly twice as fast so (ircsn_tiny, two cores); oneDNN orders weights itself.
        return Layouts(torch.channels_last_3d, torch.contiguous_format)
    return Layouts(None, torch.contiguous_format)


def lay_out_clips(clips: Tensor) -> Tensor:
    """The same clips (N, C, T, H, W), as those on their device lie in memory."""
    form = layouts(clips.device.type).clips
    return clips if form is None else clips.contiguous(memory_format=form)


def lay_out_weights(network: nn.Module, device: torch.device, *, whole: bool = True) -> None:
    """Have the weights of 3D convolutions lie as on this device, in place. Before an optimiser is made: its state lies
    as the weights do.

    whole: False where they are going to be cut into pieces, which have to be contiguous.
    """
    if hasattr(network, "unshard"):  # in pieces from a run before
        return
    form = layouts(device.type).weights if whole else torch.contiguous_format
    with torch.inference_mode(mode=False):  # what is made in that mode can never be trained
        for parameter in network.parameters():
            if parameter.ndim == 5 and not parameter.is_contiguous(memory_format=form):
                parameter.data = parameter.data.contiguous(memory_format=form)


def lay_out_state(optimizer: Optimizer) -> None:
    """Have what an optimiser keeps of weights, contiguous in checkpoints, lie in memory as they do."""
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                kept[name] = torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def contiguous(kept: Any) -> Any:
    """The same dicts and lists of tensors and other things, with tensors contiguous: as any strategy can load them.

    >>> contiguous({"momentum": torch.ones(2, 3).T})["momentum"].stride()
    (2, 1)
    """
    if isinstance(kept, dict):
        return {name: contiguous(value) for name, value in kept.items()}
    if isinstance(kept, list):
        return [contiguous(value) for value in kept]
    return kept.contiguous() if isinstance(kept, Tensor) else kept
