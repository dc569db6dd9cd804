"""Which frames of a video make a clip: arithmetic on frame numbers, which opens no file.

A clip holds `length` frames, each `step` frames after the one before it, and so spans (length - 1) * step + 1 frames. A
video shorter than that repeats its last frame. Frames are numbered from 0, as in video.py.
"""

from __future__ import annotations

from fractions import Fraction

import torch

LARGEST_DENOMINATOR = 100_000  # turns 29.97002997 back into 30000/1001, and no real rate into another


def clip_at(start: int, num_frames: int, *, length: int, step: int) -> list[int]:
    """Frame numbers of the clip that begins at frame `start`.

    >>> clip_at(5, 10, length=4, step=2)
    [5, 7, 9, 9]
    """
    return [min(start + i * step, num_frames - 1) for i in range(length)]


def random_clip(num_frames: int, *, length: int, step: int) -> list[int]:
    """Frame numbers of a clip at a random time; every start that fits is as likely, and a short video starts at 0.

    The random number comes from torch's own generator, which a DataLoader seeds in every worker.

    >>> random_clip(3, length=4, step=1)
    [0, 1, 2, 2]
    """
    starts = _last_start(num_frames, length=length, step=step) + 1
    start = int(torch.randint(starts, ()))
    return clip_at(start, num_frames, length=length, step=step)


def spread_clips(num_frames: int, *, length: int, step: int, count: int) -> list[list[int]]:
    """Frame numbers of `count` clips spread evenly over a video.

    The first clip starts at frame 0 and the last ends at the last frame; a single clip sits in the middle. All clips
    of a video that is too short for one are the same.

    >>> spread_clips(10, length=4, step=2, count=2)
    [[0, 2, 4, 6], [3, 5, 7, 9]]
    >>> spread_clips(10, length=4, step=2, count=1)
    [[1, 3, 5, 7]]
    >>> spread_clips(3, length=4, step=1, count=1)
    [[0, 1, 2, 2]]
    """
    last = _last_start(num_frames, length=length, step=step)
    starts = [last // 2] if count == 1 else [i * last // (count - 1) for i in range(count)]
    return [clip_at(start, num_frames, length=length, step=step) for start in starts]


def resample(num_frames: int, source_fps: float | None, target_fps: float | None) -> list[int]:
    """Frame numbers that make a video of `source_fps` frames a second into one of `target_fps` that lasts as long.

    Frame i of the new video is the frame nearest to its time, the later one of two as near. Without a rate on either
    side, every frame is taken once. Rates are exact ratios: 29.97 is not 30000/1001, but 29.97002997 is.

    >>> resample(6, 60, 30)
    [0, 2, 4]
    >>> resample(4, 15, 30)
    [0, 1, 1, 2, 2, 3, 3, 3]
    >>> resample(3, None, 30)
    [0, 1, 2]
    """
    if source_fps is None or target_fps is None:
        return list(range(num_frames))
    frames_per_frame = _ratio(source_fps) / _ratio(target_fps)
    num, den = frames_per_frame.numerator, frames_per_frame.denominator
    count = max(1, (2 * num_frames * den + num) // (2 * num))  # num_frames * den / num, rounded
    return [min((2 * i * num + den) // (2 * den), num_frames - 1) for i in range(count)]


def _last_start(num_frames: int, *, length: int, step: int) -> int:
    """The last frame that a whole clip can begin at; 0 where none fits."""
    return max(0, num_frames - (length - 1) * step - 1)


def _ratio(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(LARGEST_DENOMINATOR)
