"""What is cut out of decoded frames, the same for all frames of a clip: at random to train, in fixed views to test.

Shapes: frames are uint8 (T, C, H, W), a clip is uint8 (C, T, H, W). Normalisation happens on the device.
Random numbers come from torch alone, which Lightning seeds in every worker.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lightning_csn.clip import ClipSpec

CROPS = (1, 3)  # of a test view: the centre; or both ends of the longer side and the centre, as in the paper
# Shares of a picture's area to train on. PyTorchVideo's jitter, 224 pixels of a short side of 256 to 320, takes down
# to 0.28 of a picture of 16:9; torchvision's default of 0.08 would often miss what happens.
SCALE = (0.25, 1.0)


class TrainTransform:
    """A random part of every frame, scaled to clip.crop x clip.crop, and mirrored or not.

    scale: the smallest and the largest share of the picture's area.
    flip: how probably a clip is mirrored, left to right.
    """

    def __init__(
        self,
        clip: ClipSpec,
        *,
        flip: float = 0.5,
        scale: tuple[float, float] = SCALE,
    ) -> None:
        self.flip = flip
        # Width by height of the part: 3/4 to 4/3, torchvision's default, which is that of Szegedy et al. 2014
        # (arXiv:1409.4842, section 6).
        self._cut = v2.RandomResizedCrop(clip.crop, scale=scale, antialias=True)

    def __call__(self, frames: Tensor) -> tuple[Tensor, bool]:
        """(clip, mirrored): uint8 (C, T, crop, crop) of frames uint8 (T, C, H, W), and if it shows the mirror image.

        Classes that a mirror changes (left, right) are the caller's to swap.

        >>> clip = ClipSpec(frames=8, step=1, fps=None, short_side=64, crop=56, test_crop=64,
        ...                 mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
        >>> view, mirrored = TrainTransform(clip, flip=1.0)(torch.zeros(8, 3, 48, 80, dtype=torch.uint8))
        >>> tuple(view.shape), mirrored
        ((3, 8, 56, 56), True)
        """
        view = self._cut(frames)
        mirrored = bool(torch.rand(()) < self.flip)
        return as_clip(F.horizontal_flip(view) if mirrored else view), mirrored


def views(frames: Tensor, clip: ClipSpec, crops: int = 1) -> Tensor:
    """Test views uint8 (crops, C, T, test_crop, test_crop) of frames uint8 (T, C, H, W).

    The short side is scaled to clip.short_side. One crop is the centre; three lie along the longer side: left (or
    top), centre, right (or bottom).

    >>> clip = ClipSpec(frames=8, step=1, fps=None, short_side=32, crop=24, test_crop=32,
    ...                 mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    >>> tuple(views(torch.zeros(8, 3, 48, 80, dtype=torch.uint8), clip, crops=3).shape)
    (3, 3, 8, 32, 32)
    """
    size = list(short_side_size(frames.shape[-2], frames.shape[-1], clip.short_side))
    scaled = F.resize(frames, size, antialias=True)
    boxes = crop_corners(size[0], size[1], clip.test_crop, crops)
    side = clip.test_crop
    return torch.stack([as_clip(scaled[..., top : top + side, left : left + side]) for top, left in boxes])


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) of a picture whose shorter side was scaled to `short_side` pixels, the longer one rounded.

    >>> short_side_size(1080, 1920, 256), short_side_size(320, 240, 256)
    ((256, 455), (341, 256))
    """
    if height <= width:
        return short_side, max(short_side, round(width * short_side / height))
    return max(short_side, round(height * short_side / width)), short_side


def crop_corners(height: int, width: int, side: int, crops: int) -> list[tuple[int, int]]:
    """(top, left) of the squares that are cut out of a picture, see `views`; the centre of an odd rest is rounded down.

    >>> crop_corners(256, 455, 256, crops=3)
    [(0, 0), (0, 99), (0, 199)]
    >>> crop_corners(341, 256, 224, crops=1)
    [(58, 16)]
    """
    bottom, right = height - side, width - side
    if crops == 1:
        return [(bottom // 2, right // 2)]
    if height > width:
        return [(top, right // 2) for top in (0, bottom // 2, bottom)]
    return [(bottom // 2, left) for left in (0, right // 2, right)]


def as_clip(frames: Tensor) -> Tensor:
    """(T, C, H, W) -> (C, T, H, W), laid out anew."""
    return frames.transpose(0, 1).contiguous()
