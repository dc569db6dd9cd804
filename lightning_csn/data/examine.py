"""What there is to say of a collection before training: arithmetic on what a survey of its files found.

A collection and the entries of its files go in, a Report comes out. No file is opened here.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_csn.clip import ClipSpec
from lightning_csn.data.index import Entry
from lightning_csn.data.problems import UNREADABLE_LIMIT, find_problems
from lightning_csn.data.report import Bin, Fate, Report, Row, files_of, rate_text
from lightning_csn.data.samples import Collection, Sample
from lightning_csn.data.sampling import part_frames, resample
from lightning_csn.data.video_info import VideoInfo, VideoLayout
from lightning_csn.errors import InputError

BINS = 12  # of the histogram of lengths


def examine(
    collection: Collection,
    entries: Mapping[str, Entry | None],
    copies: Sequence[Sequence[str]] = (),
    *,
    root: str = "",
    clip: ClipSpec | None = None,
    decoded: bool = False,
    limit: float = UNREADABLE_LIMIT,
    frames_fps: float | None = None,
) -> Report:
    """All that is to be said of a collection.

    entries: of each path, None where there is no file. copies: see copies.py. limit: the share of a split that may
    be unreadable. frames_fps: pictures per second of folders of frames.
    """
    classes = collection.classes
    if frames_fps is not None:
        entries = {path: _with_rate(entry, frames_fps) for path, entry in entries.items()}
    rows = [
        _row(split, sample, classes, entries.get(sample.path), clip)
        for split, samples in collection.samples.items()
        for sample in samples
    ]
    counts = {split: _counts([row for row in rows if row.split == split], classes) for split in collection.samples}
    infos = [entry.info for entry in files_of(rows).values() if entry.info is not None]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    frames = [row.num_frames for row in rows if row.num_frames is not None]
    return Report(
        root=root,
        layout=collection.layout,
        classes=tuple(classes),
        clip=clip,
        decoded=decoded,
        problems=tuple(find_problems(collection, rows, counts, copies, root=root, clip=clip, limit=limit)),
        rows=tuple(rows),
        counts=counts,
        lengths=tuple(histogram(seconds or frames)),
        seconds=_spread(seconds),
        frames=_spread(frames),
        properties=_properties(infos),
    )


def _with_rate(entry: Entry | None, frames_fps: float) -> Entry | None:
    """What is known of a folder of frames, with its rate; other entries as they are."""
    if entry is None or entry.info is None or entry.layout is not None or entry.info.fps is not None:
        return entry
    return dataclasses.replace(entry, info=dataclasses.replace(entry.info, fps=frames_fps))


def _row(split: str, sample: Sample, classes: Sequence[str], entry: Entry | None, clip: ClipSpec | None) -> Row:
    labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
    num_frames = seconds = fate = None
    error = f"{sample.path}: no such file" if entry is None else entry.error
    if entry is not None and entry.info is not None:
        info, times = entry.info, _times(entry)
        try:
            part = range(info.num_frames)
            if sample.part is not None:
                part = part_frames(sample.part, info.num_frames, info.fps, times)
            num_frames = len(part)
            seconds = None if info.fps is None else num_frames / info.fps
            fate = None if clip is None else fate_of(info, clip, part=part, times=times)
        except InputError as refusal:
            error = f"{sample.path}: {refusal}"
    return Row(
        split=split,
        path=sample.path,
        classes=tuple(classes[label] if 0 <= label < len(classes) else "?" for label in labels),
        part=sample.part,
        entry=entry,
        error=error,
        missing=entry is None,
        num_frames=num_frames,
        seconds=seconds,
        fate=fate,
    )


def _times(entry: Entry) -> list[float] | None:
    """Seconds of each frame from the first, of a video whose rate varies; None of any other."""
    if entry.info is None or not entry.info.variable_rate or entry.layout is None:
        return None
    layout = VideoLayout.from_dict(entry.layout)
    if not layout.times or not layout.unit[0]:
        return None
    unit = layout.unit[0] / layout.unit[1]
    return [(time - layout.times[0]) * unit for time in layout.times]


def fate_of(
    info: VideoInfo, clip: ClipSpec, *, part: range | None = None, times: Sequence[float] | None = None
) -> Fate:
    """What the clip does with a video, or the frames of a part of it.

    >>> info = VideoInfo(num_frames=60, fps=60, height=120, width=160)
    >>> clip = ClipSpec(frames=8, step=5, fps=30, short_side=128, crop=112, test_crop=112,
    ...                 mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> fate_of(info, clip)  # 30 frames of the 36 that a clip spans: frames 0, 5, ... 25, and 29 twice
    Fate(num_frames=30, short=True, repeated=2, resampled=True, upscaled=1.0666666666666667)
    """
    part = range(info.num_frames) if part is None else part
    here = None if times is None else [times[number] for number in part]
    num_frames = len(resample(len(part), info.fps, clip.fps, here))
    return Fate(
        num_frames=num_frames,
        short=num_frames < clip.span,
        repeated=repeated(num_frames, clip),
        resampled=clip.fps is not None and info.fps is not None and abs(info.fps - clip.fps) > 0.001 * clip.fps,
        upscaled=max(1.0, clip.short_side / min(info.height, info.width)),
    )


def repeated(num_frames: int, clip: ClipSpec) -> int:
    """How many frames of a clip out of so many of a video are frames that it has already."""
    if clip.sampling == "segments":
        return max(0, clip.frames - num_frames)
    return sum(i * clip.step >= num_frames for i in range(clip.frames))


def _counts(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, tuple[int, int]]:
    every = Counter(name for row in rows for name in row.classes)
    readable = Counter(name for row in rows if row.error is None for name in row.classes)
    unknown = ["?"] if every["?"] else []
    return {name: (readable[name], every[name]) for name in [*classes, *unknown]}


def _spread(values: Sequence[Any]) -> Any:
    return (min(values), statistics.median_low(values), max(values)) if values else None


def histogram(values: Sequence[float], bins: int = BINS) -> list[Bin]:
    """At most `bins` bars of equal width, in round numbers; the last takes what is far longer than all others.

    >>> for bar in histogram([0.5, 1.2, 1.4, 2.9, 100.0], bins=4):
    ...     print(bar.start, bar.end, bar.count)
    0.0 1.0 1
    1.0 2.0 2
    2.0 3.0 1
    3.0 None 1
    """
    if not values:
        return []
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    usual = ordered[min(len(ordered) - 1, int(0.98 * (len(ordered) - 1)))]
    exact = max((usual - low) / max(1, bins - 1), usual / 20, 1e-6)  # lengths that are nearly the same are one bar
    scale = 10.0 ** _exponent(exact)
    width = next(step * scale for step in (1, 2, 5, 10) if step * scale >= exact * (1 - 1e-9))
    first = int(low / width)
    count = min(bins, int(high / width) - first + 1)
    heights = [0] * count
    for value in ordered:
        heights[min(count - 1, int(value / width) - first)] += 1
    open_end = int(high / width) - first >= count
    edges = [round((first + i) * width, 9) for i in range(count + 1)]
    return [
        Bin(edges[i], None if open_end and i == count - 1 else edges[i + 1], height) for i, height in enumerate(heights)
    ]


def _exponent(value: float) -> int:
    """The power of ten of the first digit."""
    return int(f"{value:e}".partition("e")[2])


def _properties(infos: Sequence[VideoInfo]) -> dict[str, dict[str, int]]:
    """How many files there are of each size, rate, codec and so on, the most frequent first."""
    columns = {
        "size": [f"{info.width}x{info.height}" for info in infos],
        "rate": [rate_text(info.fps) + (" (varies)" if info.variable_rate else "") for info in infos],
        "codec": [info.codec or "unknown" for info in infos],
        "pixel format": [info.pixel_format or "unknown" for info in infos],
        "rotation": [f"{info.rotation}°" + (" mirrored" if info.mirrored else "") for info in infos],
    }
    return {name: dict(Counter(sorted(values)).most_common()) for name, values in columns.items()}
