"""What is in a video at a glance: a path goes in, frames from its beginning to its end side by side come out as JPEG.

Made in processes of their own, as the files are read (see survey.py).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import torch

from lightning_csn.data.crew import Alive, run_apart
from lightning_csn.data.reading import open_video
from lightning_csn.data.video_info import VideoError

WIDTH, FRAMES = 128, 3  # pixels of a frame's longer side, and how many frames


def take_strips(paths: Iterable[str], *, workers: int, seconds: float) -> Iterator[tuple[str, bytes]]:
    """Each path whose frames can be shown, with its strip as JPEG.

    seconds: that opening a file may take, and then reading its frames.
    """
    for path, strip in run_apart(take_strip, dict.fromkeys(paths), workers=workers, seconds=seconds):
        if isinstance(strip, bytes):
            yield path, strip


def take_strip(path: str, alive: Alive) -> bytes | None:
    """A strip of frames from beginning to end as JPEG; None where there is nothing to show."""
    from PIL import Image

    try:
        with open_video(path) as video:
            alive()
            info = video.info
            numbers = [(2 * i + 1) * info.num_frames // (2 * FRAMES) for i in range(FRAMES)]
            frames = video.frames(numbers, size=frame_size(info.height, info.width))  # (T, H, W, C)
    except (VideoError, OSError, MemoryError):
        return None
    strip = torch.cat(list(frames), dim=1).contiguous()
    jpeg = io.BytesIO()
    Image.fromarray(strip.numpy()).save(jpeg, "JPEG", quality=70, optimize=True)
    return jpeg.getvalue()


def frame_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of a frame in a strip: WIDTH wide or high, the other side a quarter of it at least.

    >>> frame_size(1080, 1920), frame_size(1920, 1080), frame_size(2, 300), frame_size(9, 1)
    ((72, 128), (128, 72), (32, 128), (128, 32))
    """
    scale = WIDTH / max(height, width)
    least = WIDTH // 4  # a film of a few pixels in one direction is stretched, to be seen at all
    return max(least, round(height * scale)), max(least, round(width * scale))
