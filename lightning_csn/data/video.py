"""Video files as frames: how many there are, how they look, and any of them by number.

Frame n is the n-th frame that the decoder puts out, counted from 0, in every file. Time stamps do not number frames:
in the AVI files of UCF101 and HMDB51 they are out of order, and picking frames by them scrambles the motion.

Frames come as a player shows them: turned and mirrored by the display matrix (a broken matrix is left out), stretched
to square pixels where the file says that its pixels are not square (the smaller side grows; no pixel is thrown away),
and 8 bits of red, green and blue, whatever the file holds. The size of the first frame holds for the whole video.

Nothing here chooses frames; that is sampling.py.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import av
import torch
import torch.nn.functional as F
from av.video.reformatter import VideoReformatter
from torch import Tensor

from lightning_csn.errors import InputError

_log = logging.getLogger(__name__)

LARGEST_PIXEL_ASPECT = 4  # a film of 2.39:1 in a square picture has 2.39; more is a broken header, not a lens
LARGEST_RATE_ERROR = 0.05  # FLV headers say 1000 frames per second; rounding of time stamps is below this share
MPEG4_PICTURE = b"\x00\x00\x01\xb6"  # the start code of a coded picture (ISO 14496-2, vop_start_code)
SMALLEST_CODED_MPEG4_BYTES = 20  # FFmpeg's MAX_NVOP_SIZE is 19: in packed streams, what is smaller is a filler
# PyAV 18 wants to be told that titles need not be UTF-8, as one in HMDB51 is not; PyAV 19 does not mind
OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
FRAMES_WORTH_A_JUMP = 8  # a decoder holds a few frames back, which are decoded twice where reading starts anew


class VideoError(InputError):
    """A file that cannot be read as a video, or a frame that it does not have; the message begins with the path."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What is known about a video after its packets were counted and its first frame was decoded.

    num_frames: counted from the packets, not the header, which is wrong or empty in more than half of all files.
        Frames hidden by an edit list, before the first keyframe or packed into one packet are counted as they come out
        of the decoder. Only damage that shows in decoding alone makes it too high: see Video.frames.
    fps: frames per second, the mean over the video where that varies; None where the file has no times.
    height, width: of a frame as it is shown, in square pixels: after turning and stretching.
    codec: FFmpeg's name of it, such as "h264".
    pixel_format: FFmpeg's name of how the decoder's frames lie in memory, such as "yuv420p10le".
    rotation: degrees clockwise, 0, 90, 180 or 270, that the decoder's frames are turned by to be shown.
    mirrored: whether they are also mirrored left to right, before they are turned.
    variable_rate: whether times of frames prove that they do not follow at one rate (rounding of times apart).
    """

    num_frames: int
    fps: float | None
    height: int
    width: int
    codec: str = ""
    pixel_format: str = ""
    rotation: int = 0
    mirrored: bool = False
    variable_rate: bool = False

    @property
    def seconds(self) -> float | None:
        """How long the video lasts at its rate; None without a rate."""
        return None if self.fps is None else self.num_frames / self.fps


@dataclass(frozen=True, kw_only=True)
class VideoLayout:
    """What `Video` found out about a file when it looked at all of its packets; kept, it saves looking again.

    times: of each frame, ascending, in units of the stream; empty where they prove nothing.
    unit: seconds, as numerator and denominator; (0, 1) where it is not known.
    starts: numbers of the frames from which decoding can start, ascending; 0 is always one.
    """

    info: VideoInfo
    times: Sequence[int]
    unit: tuple[int, int]
    starts: Sequence[int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times at a constant rate as first, step and number."""
        times: Any = list(self.times)
        steps = {after - before for before, after in pairwise(times)}
        if len(steps) == 1:
            times = {"first": times[0], "step": steps.pop()}
        return {"info": asdict(self.info), "times": times, "unit": list(self.unit), "starts": list(self.starts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VideoLayout:
        """The layout that `to_dict` gave these values of."""
        info, times = VideoInfo(**values["info"]), values["times"]
        if isinstance(times, Mapping):
            first, step = times["first"], times["step"]
            times = range(first, first + step * info.num_frames, step)
        return cls(info=info, times=times, unit=(values["unit"][0], values["unit"][1]), starts=list(values["starts"]))


class Orientation(NamedTuple):
    """How a decoded picture is turned to be shown: first rows and columns change places, then the order of each."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False


class Packet(NamedTuple):
    """What a packet says of itself: its time in units of the stream, if it adds a frame, if decoding can start."""

    time: int | None
    frames: int  # 0 or 1
    is_keyframe: bool = False
    is_corrupt: bool = False


class Start(NamedTuple):
    """A place where decoding can start: the number of the packet to begin with, and of the frame that this gives."""

    packet: int
    frame: int


class Index(NamedTuple):
    """A video by its packets.

    span: time from the first frame to the last, in units of the stream; 0 where it is not known.
    times: of each frame, ascending; empty where they prove nothing.
    """

    num_frames: int
    span: int
    times: list[int]
    starts: list[Start]


class _OutOfStepError(Exception):
    """The frames after a keyframe are not those that the packets promised: only reading from the beginning is exact."""


def index_packets(packets: Sequence[Packet]) -> Index:
    """Count the frames of a video and find the keyframes from which decoding may start.

    Packets before the first keyframe give no frame. The first start is always the beginning; there are others only
    where every frame has a time of its own, nothing is damaged, and nothing is shown before the first keyframe: then
    the frame of a keyframe has as many frames before it as there are smaller times.

    >>> i, p, b = (Packet(0, 1, is_keyframe=True), Packet(3, 1), Packet(1, 1))
    >>> index_packets([i, p, b, Packet(2, 1), Packet(4, 1, is_keyframe=True)])
    Index(num_frames=5, span=4, times=[0, 1, 2, 3, 4], starts=[Start(packet=0, frame=0), Start(packet=4, frame=4)])
    """
    first = next((i for i, packet in enumerate(packets) if packet.is_keyframe), 0)
    shown = [packet for packet in packets[first:] if packet.frames]
    times = sorted(packet.time for packet in shown if packet.time is not None)
    span = times[-1] - times[0] if times else 0
    starts = [Start(0, 0)]
    orderly = (
        first == 0
        and len(shown) == len(set(times)) > 0
        and packets[0].time is not None
        and packets[0].time <= times[0]
        and not any(packet.is_corrupt for packet in packets)
    )
    if not orderly:
        return Index(len(shown), span, [], starts)
    for i, packet in enumerate(packets[1:], 1):
        if packet.is_keyframe and packet.frames and packet.time is not None:
            starts.append(Start(i, bisect_left(times, packet.time)))
    return Index(len(shown), span, times, sorted(starts, key=lambda start: start.frame))


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


def plan_runs(numbers: Sequence[int], starts: Sequence[Start]) -> list[tuple[Start, list[int]]]:
    """Group frame numbers, ascending and without repeats, by where decoding starts for them.

    It starts at the last keyframe before a frame, unless decoding on from the frame before is about as near.

    >>> starts = [Start(0, 0), Start(50, 50), Start(100, 100)]
    >>> plan_runs([10, 45, 55, 70, 130], starts)
    [(Start(packet=0, frame=0), [10, 45, 55, 70]), (Start(packet=100, frame=100), [130])]
    """
    runs: list[tuple[Start, list[int]]] = []
    for number in numbers:
        start = starts[bisect_right(starts, number, key=lambda start: start.frame) - 1]
        if runs and start.frame - runs[-1][1][-1] <= FRAMES_WORTH_A_JUMP:
            runs[-1][1].append(number)
        else:
            runs.append((start, [number]))
    return runs


def read_orientation(matrix: Sequence[int]) -> Orientation:
    """The orientation that a display matrix asks for: nine numbers, row by row, of which the first four of 2 x 2 count.

    A picture's column x and row y are shown at column a*x + c*y and row b*x + d*y. A matrix that is not a quarter turn
    or a mirror, such as the one of zeros that broken headers hold, changes nothing.

    >>> read_orientation([0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30])  # a phone held upright
    Orientation(transposed=True, rows_reversed=False, columns_reversed=True)
    >>> read_orientation([0] * 9)
    Orientation(transposed=False, rows_reversed=False, columns_reversed=False)
    """
    a, b, _, c, d = matrix[:5]
    straight, turned = min(abs(a), abs(d)), min(abs(b), abs(c))
    if straight > 100 * max(abs(b), abs(c)):  # a degree off is a quarter turn, rounded
        return Orientation(transposed=False, rows_reversed=d < 0, columns_reversed=a < 0)
    if turned > 100 * max(abs(a), abs(d)):
        return Orientation(transposed=True, rows_reversed=b < 0, columns_reversed=c < 0)
    return Orientation()


class Video:
    """An open video file; close it, or use it in a `with` block, since open ones leak memory.

    source: a path, the bytes of a file, or an open binary file that can seek.
    name: what messages call the video; None takes the path.
    threads: that decode; 1 is right in the workers of a DataLoader, which are many already.
    layout: what `layout` said of the same file before: then neither its packets nor its first frame are looked at in
        advance. Where a frame is out of step with it, the file is looked at after all, with one warning.
    cancelled: once it is set, from another thread, reading ends with a VideoError.

    Raises VideoError, with the path and FFmpeg's reason, where no frame can be had.
    """

    _packets: Iterator[Any]

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | BinaryIO,
        *,
        name: str | None = None,
        threads: int = 1,
        layout: VideoLayout | None = None,
        cancelled: threading.Event | None = None,
    ) -> None:
        self._source: Any = os.fspath(source) if isinstance(source, str | os.PathLike) else source
        self.path = name or (self._source if isinstance(self._source, str) else "video")
        self._cancelled = cancelled
        self._threads = threads
        self._fault: str | None = None  # FFmpeg's last complaint about what is inside
        self._reformatter = VideoReformatter()  # kept: a new one for each frame costs 24 to 40% more
        self._open()
        try:
            first, packets = self._scan()
        except BaseException:
            self.close()
            raise
        self._orientation = _orientation_of(first)
        self._index = index_packets(packets)
        height, width = self._shown_size(first)
        self.info = VideoInfo(num_frames=max(self._index.num_frames, 1), fps=self._rate(), height=height, width=width)

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def times(self) -> Sequence[float] | None:
        """Seconds of each frame from the first, ascending; None where the file proves none."""
        numerator, denominator = self.layout.unit
        ticks = self.layout.times
        if not ticks or not numerator:
            return None
        return [(tick - ticks[0]) * numerator / denominator for tick in ticks]

    @property
    def layout(self) -> VideoLayout:
        """What was found out about the file when it was opened; give it to Video to open the same file faster."""
        unit = self._stream.time_base
        starts = [start.frame for start in self._index.starts]
        pair = (unit.numerator, unit.denominator) if unit else (0, 1)
        return VideoLayout(info=self.info, times=self._index.times, unit=pair, starts=starts)

    def close(self) -> None:
        """Let go of the file and of the decoder."""
        self._container.close()
        self._packets = iter(())  # the generator refers to this object, which would wait for the cycle collector

    def frames(self, numbers: Sequence[int], *, size: tuple[int, int] | None = None) -> Tensor:
        """The frames of these numbers as uint8 (T, H, W, C), in the order asked for; a number may come twice.

        size: (height, width) that frames are scaled to while their colours are converted; None keeps the shown size.

        Decoding starts at the last keyframe where that is known to give the same frames, else at the beginning. A
        packet that FFmpeg cannot decode is passed over, as FFmpeg's own program does (and then counts as a frame for
        those found from a later keyframe, which cannot know of it). Where a video thus ends
        before `num_frames`, its last frame stands for those that are missing, and a warning, logged once for each
        file, says how many there were. Raises VideoError for a number outside the video.
        """
        for number in numbers:
            if not 0 <= number < self.info.num_frames:
                raise VideoError(
                    f"{self.path}: frame {number} was asked for, the video has {self.info.num_frames} "
                    f"(0 to {self.info.num_frames - 1})"
                )
        height, width = size or (self.info.height, self.info.width)
        frames = torch.empty(len(numbers), height, width, 3, dtype=torch.uint8)
        try:
            self._fill(frames, numbers)
        except _OutOfStepError:
            self._index = self._index._replace(starts=[Start(0, 0)])
            self._fill(frames, numbers)
        return frames

    def _fill(self, frames: Tensor, numbers: Sequence[int]) -> None:
        """Decode these numbers into `frames` (T, H, W, C)."""
        places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            places.setdefault(number, []).append(place)
        for start, run in plan_runs(sorted(places), self._index.starts):
            wanted = deque(run)
            last, decoded = None, start.frame
            for number, frame in self._decode_from(start):
                last, decoded = frame, number + 1
                if number == wanted[0]:
                    frames[places[wanted.popleft()]] = self._convert(frame, frames.shape[1], frames.shape[2])
                    if not wanted:
                        break
            if not wanted:
                continue
            if last is None:  # the first frame was there when the file was opened
                raise VideoError(f"{self.path}: no frame can be decoded any more ({self._fault or 'the file changed'})")
            image = self._convert(last, frames.shape[1], frames.shape[2])
            for number in wanted:
                frames[places[number]] = image
            _warn_once(
                f"{self.path}: {decoded} frames could be decoded of the {self.info.num_frames} that the file holds "
                f"({self._fault or 'the others give no picture'}); the last one is repeated"
            )

    def _decode_from(self, start: Start) -> Iterator[tuple[int, av.VideoFrame]]:
        """Numbers and frames from a start on; raises _OutOfStepError where they may not be those of the index."""
        frames = self._feed(start.packet)
        if start.packet == 0:
            yield from enumerate(frames)
            return
        times, number = self._index.times, start.frame
        for frame in frames:
            expected = number < len(times) and frame.pts == times[number]
            if not expected or frame.is_corrupt or (number == start.frame and not frame.key_frame):
                raise _OutOfStepError
            yield number, frame
            number += 1
        raise _OutOfStepError  # whoever wanted no more has left the loop above

    def _convert(self, frame: av.VideoFrame, height: int, width: int) -> Tensor:
        """A decoded frame as it is shown: uint8 (height, width, 3)."""
        turn = self._orientation
        size = (width, height) if turn.transposed else (height, width)
        # FFmpeg scales the half frames of interlaced pictures apart, which leaves combs: torch scales the whole
        apart = frame.interlaced_frame and size != (frame.height, frame.width)
        image = self._reformatter.reformat(
            frame,
            height=frame.height if apart else size[0],
            width=frame.width if apart else size[1],
            format="rgb24",
            interpolation="BILINEAR",  # averages over what it leaves out when it makes smaller: no aliasing
        )
        pixels = torch.from_numpy(image.to_ndarray())
        if apart:
            channels_first = pixels.permute(2, 0, 1)[None]
            pixels = F.interpolate(channels_first, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        if turn.transposed:
            pixels = pixels.transpose(0, 1)
        reversed_axes = [axis for axis, reverse in enumerate(turn[1:]) if reverse]
        return pixels.flip(reversed_axes) if reversed_axes else pixels

    def _open(self) -> None:
        """Open the file anew, at its beginning."""
        try:
            # "file:" keeps FFmpeg from taking a colon in a name for a protocol
            source: Any = f"file:{self._source}" if isinstance(self._source, str) else self._source
            if isinstance(source, bytes):
                source = io.BytesIO(source)
            self._container: Any = av.open(source, **OPEN_OPTIONS)
        except av.FFmpegError as error:
            empty = os.path.isfile(self.path) and os.path.getsize(self.path) == 0
            raise VideoError(f"{self.path}: {'the file is empty' if empty else error.strerror}") from error
        self._stream: Any = self._container.streams.best("video")
        if self._stream is None or self._stream.codec_context is None:
            kinds = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            self._container.close()
            reason = (
                f"there is no video in it, only {kinds}" if self._stream is None else "FFmpeg has no decoder for it"
            )
            raise VideoError(f"{self.path}: {reason}")
        self._stream.codec_context.thread_count = self._threads
        self._packets = self._demux()
        self._position = 0  # number of the packet that comes next

    def _demux(self) -> Iterator[Any]:
        """The packets with something in them; an empty one would tell the decoder that the video is over."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    self._position += 1
                    yield packet
        except av.FFmpegError as error:
            self._fault = error.strerror

    def _decode(self, packet: Any) -> Sequence[av.VideoFrame]:
        """What the decoder puts out on being given a packet; None asks for what it still holds back."""
        try:
            return self._stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            self._fault = error.strerror
            return ()

    def _feed(self, start: int) -> Iterator[av.VideoFrame]:
        """The frames that come from packet `start` and those after it, without decoding what is before."""
        if start < self._position:
            self._container.close()
            self._open()
        else:
            self._stream.codec_context.flush_buffers()
        for packet in self._packets:
            if self._position > start:
                yield from self._decode(packet)
        yield from self._decode(None)

    def _scan(self) -> tuple[av.VideoFrame, list[Packet]]:
        """Look at every packet once, and decode until the first frame is there."""
        packets: list[Packet] = []
        first: av.VideoFrame | None = None
        codec = self._stream.codec_context.name
        pictures: list[int] = []
        for packet in self._packets:
            pictures.append(_pictures_in(packet, codec))
            packets.append(Packet(packet.pts, int(not packet.is_discard), packet.is_keyframe, packet.is_corrupt))
            if first is None:
                first = next(iter(self._decode(packet)), None)
        first = first or next(iter(self._decode(None)), None)
        if first is None:
            raise VideoError(f"{self.path}: no frame can be decoded ({self._fault or 'the file holds a header only'})")
        counts = unpack(pictures) if codec == "mpeg4" else pictures
        return first, [packet._replace(frames=packet.frames * n) for packet, n in zip(packets, counts, strict=True)]

    def _shown_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """(height, width) of a frame in square pixels, turned."""
        height, width = frame.height, frame.width
        aspect = _number(self._stream.sample_aspect_ratio) or 1.0
        if 1 < aspect <= LARGEST_PIXEL_ASPECT:
            width = round(width * aspect)
        elif 1 / LARGEST_PIXEL_ASPECT <= aspect < 1:
            height = round(height / aspect)
        return (width, height) if self._orientation.transposed else (height, width)

    def _rate(self) -> float | None:
        """Frames per second by the header, unless the packets' times say something else."""
        header = _number(self._stream.average_rate)
        unit = _number(self._stream.time_base)
        if unit is None or not self._index.span:
            return header
        measured = (self._index.num_frames - 1) / (self._index.span * unit)
        if header is not None and abs(header - measured) <= LARGEST_RATE_ERROR * measured:
            return header
        return measured


def _number(ratio: Any) -> float | None:
    """A ratio of PyAV, Fraction before version 19 and AVRational since, as a number; None for none or 0."""
    if ratio is None or not ratio.numerator or not ratio.denominator:
        return None
    return ratio.numerator / ratio.denominator


def _pictures_in(packet: Any, codec: str) -> int:
    """How many pictures are coded in a packet; one, but for two old codecs."""
    if codec == "mpeg4":
        if packet.size < SMALLEST_CODED_MPEG4_BYTES:
            return 0
        return max(1, memoryview(packet).tobytes().count(MPEG4_PICTURE))
    if codec == "vp8":  # has frames that others refer to but nobody sees: bit 4 of the first byte (RFC 6386, 9.1)
        return memoryview(packet)[0] >> 4 & 1
    return 1


def _orientation_of(frame: av.VideoFrame) -> Orientation:
    # A frame asked for its side data lives until Python next collects cycles; so it is a small copy that is asked.
    small = VideoReformatter().reformat(frame, width=16, height=16, format="rgb24")
    matrix: Any
    try:
        matrix = small.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 does not know all kinds of side data, EXIF for one, and then shows none
        return Orientation()
    if matrix is None:
        return Orientation()
    return read_orientation(torch.frombuffer(bytearray(memoryview(matrix)), dtype=torch.int32).tolist())


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)
