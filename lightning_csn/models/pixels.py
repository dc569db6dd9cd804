"""Pixels as a network sees them: on the scale 0 to 1, less the mean of their colour, over its standard deviation.

Shapes: C channels, T frames, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
