"""Which frames of a video make a clip: arithmetic on frame numbers, which opens no file.

A clip holds `length` frames, each `step` frames after the one before it, and so spans (length - 1) * step + 1 frames. A
video shorter than that repeats its last frame. Only `segment_clips` spreads one clip over the whole video. Frames are
numbered from 0, as in video.py. Random numbers come from torch's own generator, which a DataLoader seeds in every
worker.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from fractions import Fraction

import torch

from lightning_csn.clip import ClipSpec
from lightning_csn.data.samples import Part
from lightning_csn.errors import InputError

LARGEST_DENOMINATOR = 100_000  # turns 29.97002997 back into 30000/1001, and no real rate into another
ROUNDING = 1e-6  # seconds by which equal times may differ: files count in steps of 11 microseconds or more


def clip_at(start: int, num_frames: int, *, length: int, step: int) -> list[int]:
    """Frame numbers of the clip that begins at frame `start`.

    >>> clip_at(5, 10, length=4, step=2)
    [5, 7, 9, 9]
    """
    return [min(start + i * step, num_frames - 1) for i in range(length)]


def random_clip(num_frames: int, *, length: int, step: int) -> list[int]:
    """Frame numbers of a clip at a random time; every start that fits is as likely, and a short video starts at 0.

    >>> random_clip(3, length=4, step=1)
    [0, 1, 2, 2]
    """
    starts = _last_start(num_frames, length=length, step=step) + 1
    start = int(torch.randint(starts, ()))
    return clip_at(start, num_frames, length=length, step=step)


def random_clips(num_frames: int, *, length: int, step: int, count: int) -> list[list[int]]:
    """Frame numbers of `count` clips, each at a random time of its own: several clips of a video that is read once.

    They may overlap, or be the same.

    >>> random_clips(3, length=4, step=1, count=2)
    [[0, 1, 2, 2], [0, 1, 2, 2]]
    """
    return [random_clip(num_frames, length=length, step=step) for _ in range(count)]


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


def evaluation_clips(num_frames: int, clip: ClipSpec, count: int) -> list[list[int]]:
    """Frame numbers of the `count` clips that a video is judged by: spread over it, as clip.sampling says.

    >>> clip = ClipSpec(frames=2, step=3, fps=None, short_side=8, crop=8, test_crop=8, mean=(0, 0, 0), std=(1, 1, 1))
    >>> evaluation_clips(8, clip, 2)
    [[0, 3], [4, 7]]
    >>> evaluation_clips(8, ClipSpec.from_dict({"sampling": "segments"}, base=clip), 2)
    [[1, 5], [3, 7]]
    """
    if clip.sampling == "segments":
        return segment_clips(num_frames, length=clip.frames, jitter=False, count=count)
    return spread_clips(num_frames, length=clip.frames, step=clip.step, count=count)


def dense_clips(num_frames: int, *, length: int, step: int, stride: int) -> list[list[int]]:
    """Frame numbers of a clip every `stride` frames over the whole video.

    Where that leaves frames over at the end, one more clip ends with the last frame.

    >>> dense_clips(9, length=2, step=2, stride=3)
    [[0, 2], [3, 5], [6, 8]]
    >>> dense_clips(8, length=2, step=2, stride=3)
    [[0, 2], [3, 5], [5, 7]]
    """
    last = _last_start(num_frames, length=length, step=step)
    starts = [*range(0, last, stride), last]
    return [clip_at(start, num_frames, length=length, step=step) for start in starts]


def segment_clips(num_frames: int, *, length: int, jitter: bool, count: int = 1) -> list[list[int]]:
    """Frame numbers of `count` clips that each span the whole video: one frame of each of `length` segments.

    The segments are as equal as whole frames allow (Wang et al., "Temporal Segment Networks", ECCV 2016,
    arXiv:1608.00859). With `jitter` every frame of a segment is as likely; without, a clip takes the middle of each,
    and several clips divide it evenly. A video of fewer frames than segments repeats frames, evenly too.

    >>> segment_clips(12, length=4, jitter=False)
    [[1, 4, 7, 10]]
    >>> segment_clips(16, length=4, jitter=False, count=2)
    [[1, 5, 9, 13], [3, 7, 11, 15]]
    >>> segment_clips(2, length=4, jitter=True)
    [[0, 0, 1, 1]]
    """
    starts = [i * num_frames // length for i in range(length + 1)]
    segments = [(start, max(1, after - start)) for start, after in itertools.pairwise(starts)]
    if jitter:
        return [[start + int(torch.randint(size, ())) for start, size in segments] for _ in range(count)]
    return [[start + (2 * k + 1) * size // (2 * count) for start, size in segments] for k in range(count)]


def resample(
    num_frames: int, source_fps: float | None, target_fps: float | None, times: Sequence[float] | None = None
) -> list[int]:
    """Frame numbers that make a video of `source_fps` frames a second into one of `target_fps` that lasts as long.

    Frame i of the new video is the frame nearest to its time, the later one of two as near. Without a rate on either
    side, every frame is taken once. Rates are exact ratios: 29.97 is not 30000/1001, but 29.97002997 is.

    times: seconds of each frame, ascending, where the rate varies. Then frame i is what a player shows at its time,
    counted from the first frame, and half a frame of the faster rate later: so times that a file rounds to milliseconds
    make no frame come twice, and those of a steady rate give what that rate gives, unless target_fps is above it.
    source_fps then only says how long the last frame is shown.

    >>> resample(6, 60, 30)
    [0, 2, 4]
    >>> resample(4, 15, 30)
    [0, 1, 1, 2, 2, 3, 3, 3]
    >>> resample(3, None, 30)
    [0, 1, 2]
    >>> resample(4, 20, 20, times=[0.0, 0.05, 0.25, 0.3])  # a still of a fifth of a second
    [0, 1, 1, 1, 1, 2, 3]
    """
    if target_fps is None or (source_fps is None and times is None):
        return list(range(num_frames))
    if times is not None:
        seconds = _seconds(num_frames, source_fps, times)
        step = min(1 / target_fps, seconds / num_frames)
        late = times[0] + step / 2 + ROUNDING
        count = max(1, math.floor(seconds * target_fps + 0.5 + ROUNDING))
        return [max(0, bisect_right(times, i / target_fps + late) - 1) for i in range(count)]
    assert source_fps is not None
    frames_per_frame = _ratio(source_fps) / _ratio(target_fps)
    num, den = frames_per_frame.numerator, frames_per_frame.denominator
    count = max(1, (2 * num_frames * den + num) // (2 * num))  # num_frames * den / num, rounded
    return [min((2 * i * num + den) // (2 * den), num_frames - 1) for i in range(count)]


def part_frames(part: Part, num_frames: int, fps: float | None = None, times: Sequence[float] | None = None) -> range:
    """The numbers of the frames that begin in a part of a video; of a part between two, the frame on screen.

    fps, times: frames a second, or seconds of each frame where the rate varies; a part in frames needs neither. A part
    that goes on beyond the video ends with it. Raises InputError for one that begins after the video has ended, for an
    end that is not after the start, and for seconds in a video without times.

    >>> part_frames(Part(1.0, 2.5), num_frames=100, fps=10)
    range(10, 25)
    >>> part_frames(Part(0.52, 0.58), num_frames=100, fps=10)
    range(5, 6)
    >>> part_frames(Part(90, 200, "frames"), num_frames=100)
    range(90, 100)
    """
    asked = f"{part.start:g} to {part.end:g} {part.unit} of the video were asked for"
    if not 0 <= part.start < part.end:
        raise InputError(f"{asked}; a part starts at 0 or later, and ends after that")
    if part.unit == "frames":
        first, after, shown = math.ceil(part.start), math.ceil(part.end), math.floor(part.start)
        ended, length = part.start >= num_frames, f"{num_frames} frames"
    elif times is not None:
        first, after = (bisect_left(times, times[0] + seconds - ROUNDING) for seconds in part[:2])
        shown = max(0, first - 1)
        ended, length = part.start + ROUNDING >= (end := _seconds(num_frames, fps, times)) > 0, f"{end:.2f} seconds"
    elif fps is not None:
        begin, stop = (Fraction(seconds).limit_denominator(1_000_000) * _ratio(fps) for seconds in part[:2])
        first, after, shown = math.ceil(begin), math.ceil(stop), math.floor(begin)
        ended, length = begin >= num_frames, f"{num_frames / fps:.2f} seconds"
    else:
        raise InputError(
            f"{asked}, but it has no times: name parts in frames, or give folders of pictures a rate (frames_fps)"
        )
    if ended:
        raise InputError(f"{asked}, which ends after {length}")
    if first >= min(after, num_frames):
        return range(shown, shown + 1)
    return range(first, min(after, num_frames))


def _last_start(num_frames: int, *, length: int, step: int) -> int:
    """The last frame that a whole clip can begin at; 0 where none fits."""
    return max(0, num_frames - (length - 1) * step - 1)


def _ratio(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(LARGEST_DENOMINATOR)


def _seconds(num_frames: int, fps: float | None, times: Sequence[float]) -> float:
    """How long a video is shown: its last frame as long as one of `fps`, or without it as long as the average."""
    shown = times[-1] - times[0]
    if fps is not None:
        return shown + 1 / fps
    return shown * num_frames / (num_frames - 1) if num_frames > 1 else 0.0
