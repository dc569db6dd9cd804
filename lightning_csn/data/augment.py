"""Changes of colour and shape to train on, the same for every frame of a clip, in a worker or on the device.

RandAugment: Cubuk et al. 2019, arXiv:1909.13719. TrivialAugment: Müller and Hutter 2021, arXiv:2103.10158, its wide
space. The operations are those of torchvision's transforms.v2, as strong and as likely, with two differences. What
depends on the picture is found over the whole clip: torchvision's AutoContrast, Equalize and Contrast look at each
frame by itself, which would make a clip flicker and hide that it grows dark. And moved and sharpened pixels are whole
numbers found here: torchvision's way there, through grid_sample and conv2d, is ten times slower (32 frames of 224
pixels, one core) and rounds otherwise on another device.

Shapes: a clip is uint8 (C, T, H, W); B videos with V views each are (B, V, C, T, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from lightning_csn.errors import check_choice, check_count, check_number

POLICIES = ("none", "randaugment", "trivialaugment")
STRENGTHS = 31  # of each operation, 0 to 30
# Of what is erased, as in Zhong et al. 2017, arXiv:1708.04896: share of the picture's area, and height by width.
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)


class Augment:
    """RandAugment or TrivialAugment, then colour jitter, then random erasing, of what is asked for.

    policy: "none"; "randaugment": `num_ops` operations of strength `magnitude` (0 to 30); or "trivialaugment": one
        operation of any strength.
    color_jitter: brightness, contrast and saturation each change by a factor from 1 - color_jitter to 1 + color_jitter,
        in any order; the hue stays.
    erasing: how probably a rectangle of the clip, the same in all frames, is made black.

    Neither policy mirrors a clip, but both turn, shift and shear it: randaugment by up to 30 degrees and 45% of a side
    (at magnitude 30), trivialaugment by up to 135 degrees, which makes a movement to the left one to the right. For
    classes that differ in a direction, take randaugment. What comes in at the edges is black. Raises InputError for
    values that make no sense.
    """

    def __init__(
        self,
        policy: str,
        *,
        magnitude: int = 9,
        num_ops: int = 2,
        color_jitter: float = 0.0,
        erasing: float = 0.0,
    ) -> None:
        check_choice("augment", policy, POLICIES)
        check_count("magnitude", magnitude, least=0)
        check_number("magnitude", magnitude, 0, STRENGTHS - 1)
        check_count("num_ops", num_ops, least=0)
        check_number("color_jitter", color_jitter, 0, 1)
        check_number("erasing", erasing, 0, 1)
        self.policy = policy
        self.magnitude = magnitude
        self.num_ops = num_ops
        self.color_jitter = color_jitter
        self.erasing = erasing

    @property
    def nothing(self) -> bool:
        """Whether every clip stays as it is."""
        chosen = self.policy == "trivialaugment" or (self.policy == "randaugment" and self.num_ops > 0)
        return not (chosen or self.color_jitter or self.erasing)

    def __call__(self, clip: Tensor, seed: int) -> Tensor:
        """The changed clip, uint8 (C, T, H, W) as the one given; what changes depends on `seed` and the shape alone.

        The numbers are drawn on the CPU wherever the clip is, by a generator of their own: torch's are left alone.

        >>> clip = torch.full((3, 8, 56, 56), 100, dtype=torch.uint8)
        >>> augment = Augment("none", erasing=1.0)
        >>> changed = augment(clip, seed=1)
        >>> tuple(changed.shape), torch.equal(changed, augment(clip, seed=1)), torch.equal(changed, clip)
        ((3, 8, 56, 56), True, False)
        """
        draw = Generator().manual_seed(seed)
        if self.policy == "randaugment":
            for _ in range(self.num_ops):
                clip = operate(clip, self.policy, self.magnitude, draw)
        elif self.policy == "trivialaugment":
            clip = operate(clip, self.policy, None, draw)
        if self.color_jitter:
            clip = jitter_colours(clip, self.color_jitter, draw)
        if self.erasing and _between(0, 1, draw) < self.erasing:
            clip = erase(clip, draw)
        return clip


def apply_to_batch(augment: Augment, clips: Tensor, seeds: Tensor) -> Tensor:
    """Changed clips, uint8 (B, V, C, T, H, W) as those given, each view of a video in its own way.

    seeds: int64 (B,), one of each video; view v of it is changed by seed + v. The clips may be on any device.

    >>> clips = torch.full((2, 3, 3, 4, 16, 16), 100, dtype=torch.uint8)
    >>> augment = Augment("none", erasing=1.0)
    >>> changed = apply_to_batch(augment, clips, torch.tensor([7, 1]))
    >>> tuple(changed.shape), torch.equal(changed[1, 2], augment(clips[1, 2], seed=3))
    ((2, 3, 3, 4, 16, 16), True)
    """
    if augment.nothing:
        return clips
    changed = torch.empty_like(clips)
    for b, seed in enumerate(seeds.tolist()):
        for v in range(clips.shape[1]):
            changed[b, v] = augment(clips[b, v], seed + v)
    return changed


def operate(clip: Tensor, policy: str, magnitude: int | None, draw: Generator) -> Tensor:
    """A clip after one operation, each as likely, in one of its two directions if it has two.

    magnitude: 0 to 30; None draws it.
    """
    name = list(OPERATIONS)[int(torch.randint(len(OPERATIONS), (), generator=draw))]
    amount = 0.0
    if ends := strengths(policy, *clip.shape[-2:]).get(name):
        if magnitude is None:
            magnitude = int(torch.randint(STRENGTHS, (), generator=draw))
        amount = float(torch.linspace(*ends, STRENGTHS)[magnitude])
        if ends[0] == 0 and _between(0, 1, draw) <= 0.5:
            amount = -amount
    return OPERATIONS[name](clip, amount)


def strengths(policy: str, height: int, width: int) -> dict[str, tuple[float, float]]:
    """The amounts of each operation that has any, at magnitude 0 and at 30; those from 0 go both ways.

    Translate: pixels. Rotate: degrees. Posterize: bits that stay. Solarize: the value, on the scale 0 to 1, from which
    on pixels are inverted. Shear and the colours: shares.
    """
    if policy == "randaugment":
        shear, across, down, degrees, colour, bits = 0.3, 150 / 331 * width, 150 / 331 * height, 30.0, 0.9, 4.0
    else:
        shear, across, down, degrees, colour, bits = 0.99, 32.0, 32.0, 135.0, 0.99, 2.0
    return {
        "ShearX": (0.0, shear),
        "ShearY": (0.0, shear),
        "TranslateX": (0.0, across),
        "TranslateY": (0.0, down),
        "Rotate": (0.0, degrees),
        "Brightness": (0.0, colour),
        "Color": (0.0, colour),
        "Contrast": (0.0, colour),
        "Sharpness": (0.0, colour),
        "Posterize": (8.0, bits),
        "Solarize": (1.0, 0.0),
    }


def move(clip: Tensor, across: Sequence[float], down: Sequence[float]) -> Tensor:
    """A clip whose pixel at (x, y) is what was nearest to (a x + b y + c, d x + e y + f); black where nothing was.

    across: a, b, c. down: d, e, f. x and y are in pixels, from the top left corner of the picture.

    >>> move(torch.tensor([[[[1, 2, 3]]]], dtype=torch.uint8), across=(1, 0, -1), down=(0, 1, 0))  # to the right
    tensor([[[[0, 1, 2]]]], dtype=torch.uint8)
    """
    height, width = clip.shape[-2:]
    # On the CPU and in float64: a GPU may multiply matrices in TF32, which is off by a pixel.
    y = torch.arange(height, dtype=torch.float64)[:, None] + 0.5  # of the pixels' centres
    x = torch.arange(width, dtype=torch.float64) + 0.5
    column, row = ((p * x + q * y + r).floor().long() for p, q, r in (across, down))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = torch.where(inside, row * width + column, 0).flatten().to(clip.device)
    pixels = clip.flatten(2)  # (C, T, H * W)
    moved = pixels.gather(2, source.expand(pixels.shape)) * inside.flatten().to(clip.device)
    return moved.view(clip.shape)


def rotate(clip: Tensor, degrees: float) -> Tensor:
    """A clip turned about its centre, counterclockwise."""
    height, width = clip.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return move(clip, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


def sharpen(clip: Tensor, factor: float) -> Tensor:
    """A clip, all but the picture's edge, `factor` times as far from its blurred image: 0 is blurred, 1 as it was."""
    wide = clip.to(torch.int16)
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    inner = wide[..., 1:-1, 1:-1]
    weighed = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner  # 1 for the neighbours, 5 for the pixel
    blurred = weighed.float().div_(13).round_()
    sharpened = clip.clone()
    sharpened[..., 1:-1, 1:-1] = (inner - blurred).mul_(factor).add_(blurred).clamp_(0, 255).to(torch.uint8)
    return sharpened


def _whole(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torchvision's operation on a clip as on one tall picture, (C, T * H, W), and so by one measure for all frames."""
    return lambda clip, amount: kernel(clip.flatten(1, 2), amount).reshape(clip.shape)


OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {  # in torchvision's order, and so the same when drawn
    "Identity": lambda clip, _: clip,
    "ShearX": lambda clip, share: move(clip, (1, share, 0), (0, 1, 0)),
    "ShearY": lambda clip, share: move(clip, (1, 0, 0), (share, 1, 0)),
    "TranslateX": lambda clip, pixels: move(clip, (1, 0, -int(pixels)), (0, 1, 0)),
    "TranslateY": lambda clip, pixels: move(clip, (1, 0, 0), (0, 1, -int(pixels))),
    "Rotate": rotate,
    "Brightness": _whole(lambda picture, more: F.adjust_brightness(picture, 1 + more)),
    "Color": _whole(lambda picture, more: F.adjust_saturation(picture, 1 + more)),
    "Contrast": _whole(lambda picture, more: F.adjust_contrast(picture, 1 + more)),
    "Sharpness": lambda clip, more: sharpen(clip, 1 + more),
    "Posterize": _whole(lambda picture, bits: F.posterize(picture, round(bits))),
    "Solarize": _whole(lambda picture, share: F.solarize(picture, 255 * share)),
    "AutoContrast": _whole(lambda picture, _: F.autocontrast(picture)),
    "Equalize": _whole(lambda picture, _: F.equalize(picture)),
}


def jitter_colours(clip: Tensor, most: float, draw: Generator) -> Tensor:
    """A clip whose brightness, contrast and saturation are changed by up to `most`, in any order."""
    names = ("Brightness", "Contrast", "Color")
    for i in torch.randperm(len(names), generator=draw).tolist():
        clip = OPERATIONS[names[i]](clip, _between(-most, most, draw))
    return clip


def erase(clip: Tensor, draw: Generator) -> Tensor:
    """A clip with a rectangle that is black in every frame; a picture too small for one stays as it is."""
    height, width = clip.shape[-2:]
    for _ in range(10):  # as in torchvision: after that many that do not fit, none
        area = height * width * _between(*ERASED_AREA, draw)
        ratio = math.exp(_between(math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1]), draw))
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if high < height and wide < width:
            top = int(torch.randint(height - high + 1, (), generator=draw))
            left = int(torch.randint(width - wide + 1, (), generator=draw))
            erased = clip.clone()
            erased[..., top : top + high, left : left + wide] = 0
            return erased
    return clip


def _between(least: float, most: float, draw: Generator) -> float:
    return least + (most - least) * float(torch.rand((), generator=draw))
