"""What the packets of a video say before any of them is decoded: how many frames there are, when, and where to start.

A packet is what a file holds of one picture, mostly. Its time is in units of the stream, and of the picture as it is
shown, while packets follow in the order in which they are decoded.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

MPEG4_PICTURE = b"\x00\x00\x01\xb6"  # the start code of a coded picture (ISO 14496-2, vop_start_code)
SMALLEST_CODED_MPEG4_BYTES = 20  # FFmpeg's MAX_NVOP_SIZE is 19: in packed streams, what is smaller is a filler
UNIT_START = b"\x00\x00\x01"  # of a NAL unit in a byte stream (ISO 23008-2, annex B)
HEVC_PICTURES = range(32)  # the types of NAL units in which a picture is coded
FRAMES_WORTH_A_JUMP = 8  # a decoder holds a few frames back, which are decoded twice where reading starts anew
LARGEST_JITTER = 0.1  # of a frame's duration: at a constant rate, times are rounded, or measured by a camera


class Packet(NamedTuple):
    """What a packet says of itself: its time in units of the stream, if it adds a frame, if decoding can start."""

    time: int | None
    frames: int  # 0 or 1
    is_keyframe: bool = False
    is_corrupt: bool = False


class Index(NamedTuple):
    """A video by its packets.

    span: time from the first frame to the last, in units of the stream; 0 where it is not known.
    times: of each frame, ascending; empty where they prove nothing.
    starts: numbers of the frames, ascending, with whose packets decoding can start; elsewhere it is the beginning.
    reordered: whether frames are shown in another order than they are decoded, by their times.
    """

    num_frames: int
    span: int = 0
    times: Sequence[int] = ()
    starts: Sequence[int] = ()
    reordered: bool = False


def index_packets(packets: Sequence[Packet]) -> Index:
    """Count the frames of a video and find the keyframes from which decoding may start.

    Packets before the first keyframe give no frame. Times and starts are given only where every frame has a time of
    its own, nothing is damaged, and nothing is shown before the first keyframe: then the frame of a keyframe has as
    many frames before it as there are smaller times.

    >>> i, p, b = (Packet(0, 1, is_keyframe=True), Packet(3, 1), Packet(1, 1))
    >>> index_packets([i, p, b, Packet(2, 1), Packet(4, 1, is_keyframe=True)])
    Index(num_frames=5, span=4, times=range(0, 5), starts=[0, 4], reordered=True)
    """
    first = next((i for i, packet in enumerate(packets) if packet.is_keyframe), 0)
    shown = [packet for packet in packets[first:] if packet.frames]
    decoded = [packet.time for packet in shown if packet.time is not None]
    times = sorted(decoded)
    span = times[-1] - times[0] if times else 0
    orderly = (
        first == 0
        and len(shown) == len(set(times)) > 0
        and packets[0].time is not None
        and packets[0].time <= times[0]
        and not any(packet.is_corrupt for packet in packets)
    )
    if not orderly:
        return Index(len(shown), span)
    starts = sorted(
        bisect_left(times, packet.time) for packet in shown if packet.is_keyframe and packet.time is not None
    )
    return Index(len(shown), span, compact(times), starts, reordered=decoded != times)


def compact(times: list[int]) -> Sequence[int]:
    """The same times, as a range where one step is between all of them.

    >>> compact([3, 5, 7]), compact([3, 5, 8]), compact([3])
    (range(3, 8, 2), [3, 5, 8], [3])
    """
    if len(times) < 2:
        return times
    constant = range(times[0], times[-1] + 1, times[1] - times[0])
    return constant if len(constant) == len(times) and times == list(constant) else times


def varies(times: Sequence[int]) -> bool:
    """Whether times, ascending, are not those of one rate: more than rounding or a camera's jitter away from it.

    >>> varies([0, 33, 67, 100, 133]), varies([0, 33, 100, 133, 167])
    (False, True)
    """
    if isinstance(times, range) or len(times) < 3:
        return False
    step = (times[-1] - times[0]) / (len(times) - 1)
    allowed = max(1.0, LARGEST_JITTER * step)
    return any(abs(time - times[0] - i * step) > allowed for i, time in enumerate(times))


def plan_runs(numbers: Sequence[int], starts: Sequence[int]) -> list[tuple[int | None, list[int]]]:
    """Group frame numbers, ascending and without repeats, by the start, None the beginning, to decode them from.

    It is the last one before a frame, unless decoding on from the frame before is about as near.

    >>> plan_runs([10, 45, 55, 70, 130], [50, 100])
    [(None, [10, 45, 55, 70]), (100, [130])]
    """
    runs: list[tuple[int | None, list[int]]] = []
    for number in numbers:
        place = bisect_right(starts, number)
        start = starts[place - 1] if place else None
        if runs and (start is None or start - runs[-1][1][-1] <= FRAMES_WORTH_A_JUMP):
            runs[-1][1].append(number)
        else:
            runs.append((start, [number]))
    return runs


def unpack(pictures: Sequence[int]) -> list[int]:
    """How many frames each packet of MPEG-4 adds, by how many pictures are coded in it.

    In AVI, a packet may hold a picture together with one or more that are shown before it, and a later packet no more
    than a filler of a few bytes. The decoder puts out one frame for each packet, as long as it has one; what is left
    after the last packet is lost. Where nothing is packed, few bytes are a picture in which little changed.

    >>> unpack([1, 0, 2, 1, 0, 2]), unpack([1, 0, 1])
    ([1, 0, 1, 1, 1, 1], [1, 1, 1])
    """
    if max(pictures, default=1) < 2:
        return [1] * len(pictures)
    frames, waiting = [], 0
    for n in pictures:
        waiting += n
        frames.append(min(waiting, 1))
        waiting -= frames[-1]
    return frames


def count_pictures(content: memoryview, codec: str) -> int:
    """How many pictures are coded in a packet; one, but for two old codecs."""
    if codec == "mpeg4":
        if len(content) < SMALLEST_CODED_MPEG4_BYTES:
            return 0
        return max(1, content.tobytes().count(MPEG4_PICTURE))
    if codec == "vp8":  # has frames that others refer to but nobody sees: bit 4 of the first byte (RFC 6386, 9.1)
        return content[0] >> 4 & 1
    return 1


def temporal_layer(content: bytes, size_bytes: int) -> int:
    """The layer, 0 the lowest, of the HEVC picture in a packet: those of higher layers may refer to any below.

    size_bytes: how many bytes before each NAL unit say its size; 0 where units begin with a start code.

    >>> temporal_layer(bytes([0, 0, 0, 2, 0x46, 1, 0, 0, 0, 3, 0x02, 2, 0]), 4)
    1
    """
    at = 0
    while True:
        if size_bytes:
            unit = at + size_bytes
            at = unit + int.from_bytes(content[at:unit], "big")
        else:
            found = content.find(UNIT_START, at)
            unit = at = found + len(UNIT_START) if found >= 0 else len(content)
        if unit + 2 > len(content):
            return 0  # no picture in it
        if content[unit] >> 1 & 63 in HEVC_PICTURES:
            return (content[unit + 1] & 7) - 1
