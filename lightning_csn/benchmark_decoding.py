"""Where our time of reading a clip goes, and how many frames are decoded for it, against how many must be."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import av

from lightning_csn.benchmark_videos import Source
from lightning_csn.data.video import OPEN_OPTIONS, Video


def shares_of(sources: Sequence[Source], numbers: Sequence[Sequence[Sequence[int]]]) -> dict[str, Any]:
    """Milliseconds of a random clip, by what they go into, and how many frames were decoded for it.

    needed: frames that were asked for, and those from the keyframe on that they may refer to.
    from_keyframe: all frames from the keyframe to the last that was asked for, by order of decoding.
    Both are 0 where the times of a video do not tell in which order its frames are decoded.
    """
    clock: defaultdict[str, float] = defaultdict(float)
    needed = through = 0
    orders = [decoding_order(source) for source in sources]
    if not all(orders):
        orders = [[] for _ in sources]  # a mean over the others would be held against what all took
    for source, order, rounds in zip(sources, orders, numbers, strict=True):
        for wanted in rounds:
            start = time.perf_counter()
            with WatchedVideo(source.path, clock) as video:
                opened = time.perf_counter()
                clock["frames to open"] += clock.pop("frames", 0)
                video.frames(wanted, size=source.size)
            clock["frames to read"] += clock.pop("frames", 0)
            clock["open"] += opened - start
            clock["read"] += time.perf_counter() - opened
            counted = count_needed(order, wanted)
            needed, through = needed + counted[0], through + counted[1]
    clips = sum(map(len, numbers))
    return {
        "ms": {
            "opening": 1e3 * clock["open"] / clips,
            "demuxing and decoding": 1e3 * (clock["read"] - clock["convert"]) / clips,
            "converting": 1e3 * clock["convert"] / clips,
        },
        "frames": {
            "asked_for": sum(len(wanted) for rounds in numbers for wanted in rounds) / clips,
            "needed": needed / clips,
            "decoded": clock["frames to read"] / clips,
            "from_keyframe": through / clips,
        },
    }


class Coded(NamedTuple):
    """A frame in the order in which frames lie in the file. number: in the order in which they are shown."""

    number: int
    is_keyframe: bool
    is_reference: bool


def decoding_order(source: Source) -> list[Coded]:
    """The frames of a video as they are decoded; FFmpeg says which of them others refer to, by decoding those alone."""
    place = {time: number for number, time in enumerate(source.layout.times)}
    with av.open(f"file:{source.path}", **OPEN_OPTIONS) as container:
        stream: Any = container.streams.best("video")
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size]
    with av.open(f"file:{source.path}", **OPEN_OPTIONS) as container:
        stream = container.streams.best("video")
        stream.codec_context.skip_frame = "NONREF"
        references = {frame.pts for frame in container.decode(stream)}
    return [Coded(place[pts], keyframe, pts in references) for pts, keyframe in packets if pts in place]


def count_needed(order: Sequence[Coded], wanted: Sequence[int]) -> tuple[int, int]:
    """(Frames that must be decoded for these, all frames from the keyframes to them); 0 where the order is unknown.

    >>> order = [Coded(0, True, True), Coded(3, False, True), Coded(1, False, False), Coded(2, False, False)]
    >>> count_needed(order, [2])
    (3, 4)
    """
    places = {frame.number: place for place, frame in enumerate(order)}
    starts = [place for place, frame in enumerate(order) if frame.is_keyframe]
    last: dict[int, int] = {}  # place of a keyframe -> that of the last frame which is wanted after it
    for number in wanted:
        if number in places and starts and places[number] >= starts[0]:
            start = starts[bisect_right(starts, places[number]) - 1]
            last[start] = max(last.get(start, 0), places[number])
    return needed_between(order, last, set(wanted)), sum(end - start + 1 for start, end in last.items())


def needed_between(order: Sequence[Coded], last: dict[int, int], wanted: Set[int]) -> int:
    """How many frames between these places are referred to, or wanted."""
    spans = (order[start : end + 1] for start, end in last.items())
    return sum(frame.is_reference or frame.number in wanted for span in spans for frame in span)


class WatchedVideo(Video):
    """Adds to `clock` the seconds of its conversions, and the frames that come out of the decoder."""

    def __init__(self, path: str, clock: defaultdict[str, float]) -> None:
        self._clock = clock  # before the rest, for it decodes
        super().__init__(path)

    def _decode(self, packet: Any) -> Any:
        frames = super()._decode(packet)
        self._clock["frames"] += len(frames)
        return frames

    def _put(self, *arguments: Any) -> None:
        start = time.perf_counter()
        super()._put(*arguments)
        self._clock["convert"] += time.perf_counter() - start
