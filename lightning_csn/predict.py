"""What a network says of a video, as a whole and over time. Of many videos, many.py says it sooner.

Shapes: C channels, T frames, H x W pixels, V views, K classes. Times are in seconds from the first frame.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_csn.data.dataset import frame_numbers, read_views
from lightning_csn.data.reading import open_video
from lightning_csn.data.samples import Sample
from lightning_csn.data.sampling import evaluation_clips
from lightning_csn.data.transforms import CROPS
from lightning_csn.errors import InputError, check_choice
from lightning_csn.module import LitCSN
from lightning_csn.visualize import FRAMES, Card, spread

Top = list[tuple[str, float]]  # classes and their probabilities, the likeliest first


@dataclass(frozen=True)
class Prediction:
    """What a network says of one video.

    top: of the whole video.
    timeline: (start_seconds, end_seconds, top) of one window after the other, from the first frame to the last.
    short: whether the video is shorter than a clip, so that its last frame was repeated.
    """

    path: str
    top: Top
    timeline: list[tuple[float, float, Top]]
    short: bool


def classify(
    model: LitCSN,
    path: str | os.PathLike[str],
    *,
    clips: int = 10,
    crops: int | str = 1,
    top: int = 5,
    every: float | None = None,
) -> Prediction:
    """The likeliest classes of a video.

    clips, crops: views that are averaged: so many clips, spread evenly, of 1, 3 or 10 squares each or the full picture
        (see VideoDataModule).
    top: how many classes to name. Outputs that have no names are called "output 0" and so on.
    every: seconds of a window of the timeline; None for no timeline. A window is judged by as many clips as it is
        long, at most `clips`; one that is shorter than a clip is judged by the clip around it.

    A video that is shorter than a clip repeats its last frame. The model runs on the device where it is, in eval mode,
    and is left in the mode that it was in. Raises VideoError where the video cannot be read, InputError for crops that
    are none of these, an `every` that is shorter than a frame, or any `every` for a video without times.
    """
    check_choice("crops", crops, CROPS)
    spec = model.clip
    with open_video(path) as video, evaluating(model):
        numbers = frame_numbers(video, Sample(os.fspath(path), -1, 0), spec.fps)

        def answer(first: int, end: int, count: int) -> Top:
            """Of `count` clips out of the resampled frames first to end."""
            picks = evaluation_clips(end - first, spec, count)
            wanted = [[numbers[first + i] for i in pick] for pick in picks]
            probabilities = model(read_views(video, wanted, spec, crops).unsqueeze(0).to(model.device))[0]  # (K,)
            return likeliest(probabilities, model.classes, top)

        whole = answer(0, len(numbers), clips)
        timeline = []
        if every is not None:
            if video.info.seconds is None:
                raise InputError(f"{path}: the file has no times, so there is no timeline of it")
            fps = len(numbers) / video.info.seconds
            for start_seconds, end_seconds, first, end in plan_timeline(len(numbers), fps=fps, every=every):
                count = min(clips, -(-(end - first) // spec.span))
                around = widen(first, end, span=spec.span, num_frames=len(numbers))
                timeline.append((start_seconds, end_seconds, answer(*around, count)))
    return Prediction(os.fspath(path), whole, timeline, short=len(numbers) < spec.span)


def plan_timeline(num_frames: int, *, fps: float, every: float) -> list[tuple[float, float, int, int]]:
    """Windows of `every` seconds that cover a video: (start_seconds, end_seconds, first frame, frame after the last).

    The last window ends with the video. InputError for windows shorter than a frame.

    >>> plan_timeline(25, fps=10, every=1)
    [(0, 1, 0, 10), (1, 2, 10, 20), (2, 2.5, 20, 25)]
    """
    if every * fps < 1:
        raise InputError(f"a window of {every} s is shorter than a frame, of {1 / fps:.3g} s")
    count = math.ceil(num_frames / (every * fps))
    windows: list[tuple[float, float, int, int]] = []
    for k in range(count):
        first, end = round(k * every * fps), min(round((k + 1) * every * fps), num_frames)
        if first == num_frames:  # less than half a frame is left: it belongs to the window before
            start_seconds, _, first, _ = windows.pop()
        else:
            start_seconds = k * every
        last = k == count - 1
        windows.append(
            (start_seconds, num_frames / fps if last else (k + 1) * every, first, num_frames if last else end)
        )
    return windows


def widen(first: int, end: int, *, span: int, num_frames: int) -> tuple[int, int]:
    """The frames first to end, and as many on both sides as a clip of `span` frames needs, within the video.

    >>> widen(10, 14, span=8, num_frames=100), widen(0, 4, span=8, num_frames=100), widen(2, 4, span=8, num_frames=5)
    ((8, 16), (0, 8), (0, 5))
    """
    if end - first >= span:
        return first, end
    first = max(0, min((first + end - span) // 2, num_frames - span))
    return first, min(first + span, num_frames)


def likeliest(probabilities: Tensor, classes: Sequence[str] | None, top: int) -> Top:
    """The `top` largest of the probabilities (K,), with their classes' names; outputs without names are numbered.

    >>> likeliest(torch.tensor([0.25, 0.75]), None, 5)
    [('output 1', 0.75), ('output 0', 0.25)]
    """
    values, numbers = probabilities.float().topk(min(top, len(probabilities)))
    names = [classes[number] if classes else f"output {number}" for number in numbers.tolist()]
    return list(zip(names, values.tolist(), strict=True))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def card(answer: Prediction, truth: str | None = None) -> Card:
    """A card for the contact sheet: frames of the video, the answer, and the class that it should be."""
    with open_video(answer.path) as video:
        frames = video.frames(spread(video.info.num_frames, FRAMES))
    return Card(answer.path, frames, answer.top, truth)
