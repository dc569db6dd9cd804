"""What is cut out of decoded frames, the same for all frames of a clip: at random to train, in fixed views to test.

Shapes: frames are uint8 (T, C, H, W), a clip is uint8 (C, T, H, W). Normalisation happens on the device.
Random numbers come from torch alone, which Lightning seeds in every worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lightning_csn.clip import ClipSpec
from lightning_csn.errors import InputError, check_count

CROPS = (1, 3, 10, "full")  # what `views` cuts out; three are those of the paper
# Shares of a picture's area to train on. PyTorchVideo's jitter, 224 pixels of a short side of 256 to 320, takes down
# to 0.28 of a picture of 16:9; torchvision's default of 0.08 would often miss what happens.
SCALE = (0.25, 1.0)


class TrainTransform:
    """A random part of every frame, scaled to clip.crop x clip.crop, and mirrored or not.

    scale: the smallest and the largest share of the picture's area.
    flip: how probably a clip is mirrored, left to right.
    short_sides: cut as PySlowFast and PyTorchVideo do, and not by `scale`: the short side is scaled to a whole
        number of pixels from the first to the second, every one as likely, and a square of clip.crop is cut out. Raises
        InputError where that square would not fit.
    """

    def __init__(
        self,
        clip: ClipSpec,
        *,
        flip: float = 0.5,
        scale: tuple[float, float] = SCALE,
        short_sides: tuple[int, int] | None = None,
    ) -> None:
        if short_sides is not None:
            least, most = (check_count("each of short_sides", side) for side in short_sides)
            if not clip.crop <= least <= most:
                raise InputError(
                    f"short_sides must be two numbers of pixels, the smaller first, and clip.crop ({clip.crop}) must "
                    f"fit into both; got {least} and {most}"
                )
            short_sides = least, most
        self.flip = flip
        self.crop = clip.crop
        self.scale = scale
        self.short_sides = short_sides
        # Width by height of the part: 3/4 to 4/3, torchvision's default, which is that of Szegedy et al. 2014
        # (arXiv:1409.4842, section 6).
        self._cut = v2.RandomResizedCrop(clip.crop, scale=scale, antialias=True)

    @property
    def largest_side(self) -> int:
        """Short side in pixels that is as good as any larger one: of that, the smallest part is made smaller still."""
        if self.short_sides is not None:
            return self.short_sides[1]
        return math.ceil(self.crop / math.sqrt(self.scale[0]))

    def __call__(self, frames: Tensor) -> tuple[Tensor, bool]:
        """(clip, mirrored): uint8 (C, T, crop, crop) of frames uint8 (T, C, H, W), and if it shows the mirror image.

        Classes that a mirror changes (left, right) are the caller's to swap.

        >>> clip = ClipSpec(frames=8, step=1, fps=None, short_side=64, crop=56, test_crop=64,
        ...                 mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
        >>> view, mirrored = TrainTransform(clip, flip=1.0)(torch.zeros(8, 3, 48, 80, dtype=torch.uint8))
        >>> tuple(view.shape), mirrored
        ((3, 8, 56, 56), True)
        """
        view = self._cut(frames) if self.short_sides is None else self._square(frames, *self.short_sides)
        mirrored = bool(torch.rand(()) < self.flip)
        return as_clip(F.horizontal_flip(view) if mirrored else view), mirrored

    def _square(self, frames: Tensor, least: int, most: int) -> Tensor:
        """Scaling and cutting in one step: the square is found in the picture, and only its pixels are scaled."""
        height, width = frames.shape[-2:]
        short_side = int(torch.randint(least, most + 1, ()))
        side = max(1, round(self.crop * min(height, width) / short_side))  # of the square, in pixels of the picture
        top, left = (int(torch.randint(length - side + 1, ())) for length in (height, width))
        return F.resized_crop(frames, top, left, side, side, [self.crop, self.crop], antialias=True)


def check_cut(scale: Sequence[float], short_sides: Sequence[int] | None) -> None:
    """InputError for options of TrainTransform that are no two shares of an area, or numbers of pixels, in order."""
    pair = isinstance(scale, Sequence) and len(scale) == 2
    if not (pair and all(isinstance(share, int | float) for share in scale) and 0 < scale[0] <= scale[1] <= 1):
        raise InputError(f"scale is two shares of the area, above 0, up to 1, the smaller first; got {scale}")
    if short_sides is not None and not (isinstance(short_sides, Sequence) and len(short_sides) == 2):
        raise InputError(f"short_sides is two numbers of pixels, the smaller first; got {short_sides}")
    if short_sides is not None and not 1 <= short_sides[0] <= short_sides[1]:
        raise InputError(f"short_sides is two numbers of pixels, the smaller first; got {list(short_sides)}")


def views(frames: Tensor, clip: ClipSpec, crops: int | str = 1) -> Tensor:
    """Test views uint8 (V, C, T, H', W') of frames uint8 (T, C, H, W), V = num_views(crops).

    The short side is scaled to clip.short_side, and squares of clip.test_crop are cut out. One crop is the centre.
    Three lie along the longer side: left (or top), centre, right (or bottom). Ten are top left, top right, bottom left,
    bottom right, centre, and the mirror images of these in the same order: not for classes that a mirror changes.
    "full" is the whole picture, with nothing cut away, for networks that take any size: H' and W' follow the video.

    >>> clip = ClipSpec(frames=8, step=1, fps=None, short_side=32, crop=24, test_crop=32,
    ...                 mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    >>> frames = torch.zeros(8, 3, 48, 80, dtype=torch.uint8)
    >>> [tuple(views(frames, clip, crops).shape) for crops in (3, "full")]
    [(3, 3, 8, 32, 32), (1, 3, 8, 32, 53)]
    """
    size = list(short_side_size(frames.shape[-2], frames.shape[-1], clip.short_side))
    scaled = F.resize(frames, size, antialias=True)
    if crops == "full":
        return as_clip(scaled)[None]
    side = clip.test_crop
    boxes = crop_corners(size[0], size[1], side, crops)
    squares = torch.stack([as_clip(scaled[..., top : top + side, left : left + side]) for top, left in boxes])
    return torch.cat([squares, squares.flip(-1)]) if crops == 10 else squares


def num_views(crops: int | str) -> int:
    """How many views `views` makes of a clip.

    >>> [num_views(crops) for crops in CROPS]
    [1, 3, 10, 1]
    """
    return 1 if isinstance(crops, str) else crops


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) of a picture whose shorter side was scaled to `short_side` pixels, the longer one rounded.

    >>> short_side_size(1080, 1920, 256), short_side_size(320, 240, 256)
    ((256, 455), (341, 256))
    """
    if height <= width:
        return short_side, max(short_side, round(width * short_side / height))
    return max(short_side, round(height * short_side / width)), short_side


def crop_corners(height: int, width: int, side: int, crops: int | str) -> list[tuple[int, int]]:
    """(top, left) of the squares that are cut out of a picture, see `views`; the centre of an odd rest is rounded down.

    Of ten these are five: the others are their mirror images.

    >>> crop_corners(256, 455, 256, crops=3)
    [(0, 0), (0, 99), (0, 199)]
    >>> crop_corners(341, 256, 224, crops=1)
    [(58, 16)]
    >>> crop_corners(341, 256, 224, crops=10)
    [(0, 0), (0, 32), (117, 0), (117, 32), (58, 16)]
    """
    bottom, right = height - side, width - side
    centre = (bottom // 2, right // 2)
    if crops == 1:
        return [centre]
    if crops == 10:
        return [(0, 0), (0, right), (bottom, 0), (bottom, right), centre]
    if height > width:
        return [(0, right // 2), centre, (bottom, right // 2)]
    return [(bottom // 2, 0), centre, (bottom // 2, right)]


def as_clip(frames: Tensor) -> Tensor:
    """(T, C, H, W) -> (C, T, H, W), laid out anew."""
    return frames.transpose(0, 1).contiguous()
