"""Folders of numbered pictures as videos: the same interface as a video file has.

Frame n is the n-th picture in the order of the numbers in their names, whatever they start from and however many digits
they have. Pictures of more than one kind in a folder (img_00001.jpg beside flow_x_00001.jpg) are told apart by what
stands around the number.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lightning_csn.data.closing import Closing
from lightning_csn.data.names import picture_number
from lightning_csn.data.video_info import VideoError, VideoInfo

FIRST_CHOICES = ("img", "image", "frame", "rgb", "")  # how the names begin where other kinds lie there too
_MOST_NAMED = 5  # stretches of missing numbers that a message names


class FrameFolder(Closing):
    """A folder of numbered pictures, open; to be closed, or used in a `with` block.

    fps: pictures per second when they were filmed; None where nobody knows, for pictures do not say it.
    cancelled: once it is set, from another thread, reading ends with a VideoError.

    Names are read at once, and the first picture, whose size holds for all. Raises VideoError for a folder without
    numbered pictures, with two pictures of one number or with numbers missing, and for a picture that cannot be read.
    Numbers that all go in the same steps (0, 5, 10) miss none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._cancelled = cancelled
        self._names = picture_names(self.path)
        height, width = _read(self._picture(0)).shape[:2]
        self.info = VideoInfo(
            num_frames=len(self._names),
            fps=fps,
            height=height,
            width=width,
            codec=os.path.splitext(self._names[0])[1].lower().lstrip("."),
        )

    @property
    def times(self) -> None:
        """None: pictures have no times."""
        return None

    def frames(self, numbers: Sequence[int], *, size: tuple[int, int] | None = None) -> Tensor:
        """The frames of these numbers, uint8 (T, H, W, C); each is read once however often it is named.

        size: (height, width) to scale them to; without it they have that of the first.
        """
        height, width = size or (self.info.height, self.info.width)
        out = torch.empty((len(numbers), height, width, 3), dtype=torch.uint8)
        rows: dict[int, list[int]] = {}
        for row, number in enumerate(numbers):
            rows.setdefault(int(number), []).append(row)
        for number in rows:
            if not 0 <= number < self.info.num_frames:
                raise VideoError(
                    f"{self.path}: frame {number} was asked for, the video has {self.info.num_frames} "
                    f"(0 to {self.info.num_frames - 1})"
                )
        for number, places in rows.items():
            if self._cancelled is not None and self._cancelled.is_set():
                raise VideoError(f"{self.path}: reading was cut off")
            out[places] = torch.from_numpy(_read(self._picture(number), (height, width)))
        return out

    def close(self) -> None:
        """Nothing is open between calls."""

    def _picture(self, number: int) -> str:
        return os.path.join(self.path, self._names[number])


def picture_names(folder: str | os.PathLike[str]) -> list[str]:
    """The names of a folder's numbered pictures, in the order of their numbers."""
    try:
        found = os.listdir(folder)
    except OSError as error:
        raise VideoError(f"{folder}: {error.strerror}") from error
    kinds: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name in found:
        if numbered := picture_number(name):
            kinds.setdefault((numbered.before, numbered.after), []).append((numbered.number, name))
    if not kinds:
        reason = f"no numbered pictures among its {len(found)} files" if found else "the folder is empty"
        raise VideoError(f"{folder}: {reason}")
    pictures = sorted(kinds[_choose(list(kinds), folder)])
    for (number, name), (other_number, other) in itertools.pairwise(pictures):
        if number == other_number:
            raise VideoError(f"{folder}: {name} and {other} both have the number {number}")
    if missing := missing_numbers([number for number, _ in pictures]):
        raise VideoError(f"{folder}: pictures are missing: {missing} of {pictures[0][0]} to {pictures[-1][0]}")
    return [name for _, name in pictures]


def _choose(kinds: Sequence[tuple[str, str]], folder: str | os.PathLike[str]) -> tuple[str, str]:
    """The kind of pictures that shows the video: the only one, or the one that is called like pictures."""
    if len(kinds) == 1:
        return kinds[0]
    for choice in FIRST_CHOICES:
        fitting = [kind for kind in kinds if kind[0].lower().rstrip("_-. ") == choice]
        if len(fitting) == 1:
            return fitting[0]
    examples = ", ".join(sorted(f"{before}N{after}" for before, after in kinds)[:_MOST_NAMED])
    raise VideoError(
        f"{folder}: pictures of {len(kinds)} kinds ({examples}), and none is called "
        f"{', '.join(choice for choice in FIRST_CHOICES if choice)} or by its number alone"
    )


def missing_numbers(numbers: Sequence[int]) -> str:
    """The numbers that ascending ones leave out, as text; "" where they all go in the same steps.

    >>> missing_numbers([1, 2, 5, 6, 8]), missing_numbers([7, 8, 9]), missing_numbers([0, 5, 10])
    ('3 to 4, 7', '', '')
    >>> missing_numbers([1, 3])
    '2'
    """
    pairs = list(itertools.pairwise(numbers))
    steps = {second - first for first, second in pairs}
    if len(steps) <= 1 and (len(pairs) > 1 or steps <= {1}):
        return ""
    gaps = [(first + 1, second - 1) for first, second in pairs if second - first > 1]
    named = [f"{first} to {last}" if first < last else str(first) for first, last in gaps[:_MOST_NAMED]]
    return ", ".join(named) + (f" and {len(gaps) - _MOST_NAMED} stretches more" if len(gaps) > _MOST_NAMED else "")


def _read(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of a picture, uint8 (H, W, 3), turned as its camera says, scaled to (height, width)."""
    try:
        with Image.open(path) as image:
            if size is not None:
                image.draft("RGB", size[::-1])  # a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size
            picture = _in_colours(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: the picture cannot be read: {error}") from error
    if size is not None and (picture.height, picture.width) != size:
        picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.array(picture)


def _in_colours(image: Image.Image) -> Image.Image:
    """An image of any kind as 8 bits of red, green and blue; what is transparent is shown as if it were not."""
    if image.mode.startswith("I"):  # 16 bits of gray, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")
