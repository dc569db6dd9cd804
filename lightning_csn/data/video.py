"""Video files as frames: how many there are, how they look, and any of them by number.

Frame n is the n-th frame that the decoder puts out, counted from 0, in every file. Time stamps do not number frames:
in the AVI files of UCF101 and HMDB51 they are out of order, and picking frames by them scrambles the motion.

Frames come as a player shows them: turned and mirrored by the display matrix (a broken matrix is left out), stretched
to square pixels where the file says that its pixels are not square (the smaller side grows; no pixel is thrown away),
and 8 bits of red, green and blue, whatever the file holds. The size of the first frame holds for the whole video.

Nothing here chooses frames; that is sampling.py.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import mmap
import os
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, BinaryIO

import av
import torch
from torch import Tensor

from lightning_csn.data.closing import Closing
from lightning_csn.data.once import warn_once
from lightning_csn.data.orientation import ORIENTATIONS, Orientation, read_orientation
from lightning_csn.data.packets import (
    Index,
    Packet,
    count_pictures,
    index_packets,
    plan_runs,
    temporal_layer,
    unpack,
    varies,
)
from lightning_csn.data.pixels import Converter
from lightning_csn.data.video_info import VideoError, VideoInfo, VideoLayout

_log = logging.getLogger(__name__)

LARGEST_PIXEL_ASPECT = 4  # a film of 2.39:1 in a square picture has 2.39; more is a broken header, not a lens
LARGEST_RATE_ERROR = 0.05  # FLV headers say 1000 frames per second; rounding of time stamps is below this share
# PyAV 18 wants to be told that titles need not be UTF-8, as one in HMDB51 is not; PyAV 19 does not mind
OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
# Codecs, of which frames that no other refers to can be left out: FFmpeg does as it is told from packet to packet
SKIPPING_CODECS = ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4")
# Containers, by FFmpeg's names, that hold the times at which frames are shown; in AVI they are made up
TRUE_TIMES = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv", "mpegts", "mpeg")
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # that find a keyframe without reading all that is before
LARGEST_KEPT_BYTES = 1 << 25  # glibc's DEFAULT_MMAP_THRESHOLD_MAX: larger blocks go back to the system when freed
OTHER_LAYOUT = "its frames are not those of the layout that was recorded; it is looked at anew"
UNEVEN = ("mpeg4", "vp8")  # codecs of which a packet may give no frame, or two


class _OutOfStepError(Exception):
    """What comes out of the decoder is not what the packets promised: only counting from the beginning is exact."""


class Video(Closing):
    """An open video file; close it, or use it in a `with` block, since open ones leak memory.

    source: a path, the bytes of a file, or an open binary file that can seek, which stays open.
    name: what messages call the video; None takes the path.
    threads: that decode; 1 is right in the workers of a DataLoader, which are many already.
    layout: what `layout` said of the same file before: then neither its packets nor its first frame are looked at in
        advance. Where a frame is out of step with it, the file is looked at after all, with one warning.
    cancelled: once it is set, from another thread, reading ends with a VideoError.

    Raises VideoError, with the path and FFmpeg's reason, where no frame can be had.
    """

    info: VideoInfo
    _packets: Iterator[Any]
    _layout: VideoLayout

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
        self._threads = threads
        self._cancelled = cancelled
        self._fault: str | None = None  # FFmpeg's last complaint about what is inside
        self._converter = Converter()
        self._open()
        try:
            self._given = layout is not None and self._fits(layout)
            self._heed(layout if layout is not None and self._given else self._scan())
        except BaseException:
            self.close()
            raise

    @property
    def layout(self) -> VideoLayout:
        """What was found out about the file when it was opened; give it to Video to open the same file faster."""
        return self._layout

    @property
    def times(self) -> Sequence[float] | None:
        """Seconds of each frame from the first, ascending; None where the file proves none."""
        ticks, (numerator, denominator) = self._layout.times, self._layout.unit
        if not ticks or not numerator:
            return None
        return [(tick - ticks[0]) * numerator / denominator for tick in ticks]

    def close(self) -> None:
        """Let go of the file and of the decoder."""
        self._container.close()
        self._packets = iter(())  # the generator refers to this object, which would wait for the cycle collector

    def frames(self, numbers: Sequence[int], *, size: tuple[int, int] | None = None) -> Tensor:
        """The frames of these numbers as uint8 (T, H, W, C), in the order asked for; a number may come twice.

        size: (height, width) that frames are scaled to while their colours are converted; None keeps the shown size.

        Decoding starts at the last keyframe where that is known to give the same frames, else at the beginning; and
        frames that are not asked for and that no other refers to are left out where the packets' times tell them.

        A packet that FFmpeg cannot decode is passed over, as FFmpeg's own program does (and then counts as a frame for
        those found by their times, since nobody looked at it). Where a video thus ends before `num_frames`, its last
        frame stands for those that are missing, and a warning, logged once for each file, says how many there were.
        Raises VideoError for a number outside the video.
        """
        self._check(numbers)
        height, width = size or (self.info.height, self.info.width)
        frames = _empty(len(numbers), height, width, 3)
        while True:
            try:
                self._fill(frames, numbers)
                return frames
            except _OutOfStepError:
                if any(self._layout.starts):  # some keyframes are none, in files that renew pictures bit by bit
                    self._layout = replace(self._layout, starts=())
                elif self._given:
                    return self._frames_of_another_layout(numbers, size)
                else:
                    self._layout = replace(self._layout, times=(), starts=(), skips=False)

    def _check(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if not 0 <= number < self.info.num_frames:
                raise VideoError(
                    f"{self.path}: frame {number} was asked for, the video has {self.info.num_frames} "
                    f"(0 to {self.info.num_frames - 1})"
                )

    def _frames_of_another_layout(self, numbers: Sequence[int], size: tuple[int, int] | None) -> Tensor:
        """The same as `frames`, after the file was found not to be as the layout that was given says."""
        warn_once(_log, f"{self.path}: {OTHER_LAYOUT}")
        size = size or (self.info.height, self.info.width)
        self._reopen()
        self._given = False
        self._heed(self._scan())
        return self.frames(numbers, size=size)

    def _fits(self, layout: VideoLayout) -> bool:
        """Whether a layout may be of this file, as far as its header tells."""
        if (layout.unit, layout.info.codec) == (self._unit(), self._stream.codec_context.codec.canonical_name):
            return True
        warn_once(_log, f"{self.path}: {OTHER_LAYOUT}")
        return False

    def _unit(self) -> tuple[int, int]:
        """Seconds of a tick of the stream, as numerator and denominator; (0, 1) where it is not known."""
        unit = self._stream.time_base
        return (unit.numerator, unit.denominator) if unit else (0, 1)

    def _heed(self, layout: VideoLayout) -> None:
        self._layout = layout
        self.info = layout.info
        self._orientation = ORIENTATIONS[layout.info.rotation, layout.info.mirrored]

    def _fill(self, frames: Tensor, numbers: Sequence[int]) -> None:
        """Decode these numbers into `frames` (T, H, W, C)."""
        places: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            places.setdefault(number, []).append(place)
        for start, run in plan_runs(sorted(places), self._layout.starts):
            wanted = deque(run)
            last, decoded = None, 0
            for number, frame in self._decode_from(start, run):
                last, decoded = frame, number + 1
                if number == wanted[0]:
                    self._put(frame, frames, places[wanted.popleft()])
                    if not wanted:
                        break
            if not wanted:
                continue
            if last is None:  # the first frame was there when the file was opened
                raise VideoError(f"{self.path}: no frame can be decoded any more ({self._fault or 'the file changed'})")
            for number in wanted:
                self._put(last, frames, places[number])
            warn_once(
                _log,
                f"{self.path}: {decoded} frames could be decoded of the {self.info.num_frames} that the file holds "
                f"({self._fault or 'the others give no picture'}); the last one is repeated",
            )

    def _decode_from(self, start: int | None, wanted: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Numbers and frames from a start on, all those that are wanted and others; None is the beginning.

        Where times tell which frame a packet gives, no frame may come out before an earlier one that the decoder was
        asked for; else _OutOfStepError is raised, as it is where not all that are wanted come.
        """
        times = self._layout.times
        self._go_to(start)
        if not times:
            yield from enumerate(self._feed())
            return
        self._fault = None
        asked: set[int] = set()
        number = start or 0
        for frame in self._feed({times[n] for n in wanted}, asked):
            while number < len(times) and times[number] not in asked and frame.pts != times[number]:
                number += 1
            expected = number < len(times) and frame.pts == times[number]
            no_keyframe = start and number == start and not frame.key_frame
            # what the decoder paints over damage may depend on frames that were left out
            damaged = self._fault or (frame.is_corrupt and (start or self._layout.skips))
            if not expected or no_keyframe or damaged:
                raise _OutOfStepError
            yield number, frame
            number += 1
        raise _OutOfStepError  # whoever wanted no more has left the loop above

    def _put(self, frame: av.VideoFrame, frames: Tensor, places: Sequence[int]) -> None:
        """Put a decoded frame, as it is shown, into these places of `frames` (T, H, W, C)."""
        turn = self._orientation
        height, width = frames.shape[1:3]
        with self._conversion():
            pixels = self._converter.convert(frame, (width, height) if turn.transposed else (height, width))
        if turn.transposed:
            pixels = pixels.transpose(0, 1)
        reversed_axes = [axis for axis, reverse in enumerate(turn[1:]) if reverse]
        if reversed_axes:
            pixels = pixels.flip(reversed_axes)
        for place in places:
            frames[place].copy_(pixels)

    @contextlib.contextmanager
    def _conversion(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:  # matrices that no standard knows, in damaged files
            raise VideoError(f"{self.path}: a frame's colours cannot be converted ({error.strerror})") from error

    def _open(self) -> None:
        """Open the file anew, at its beginning."""
        source = self._source
        if isinstance(source, str):
            source = f"file:{source}"  # keeps FFmpeg from taking a colon in a name for a protocol
            if os.path.exists(self._source) and not os.path.isfile(self._source) and not os.path.isdir(self._source):
                raise VideoError(f"{self.path}: not a regular file")  # reading from a pipe might never end
        elif isinstance(source, bytes):
            source = io.BytesIO(source)
        else:
            source.seek(0)
        try:
            self._container: Any = av.open(source, **OPEN_OPTIONS)
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: {'the file is empty' if self._is_empty() else error.strerror}") from error
        except OSError as error:  # of a file object
            raise VideoError(f"{self.path}: {error}") from error
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
        self._latest: int | None = None  # the highest time of a packet that was read; None where none was

    def _is_empty(self) -> bool:
        if isinstance(self._source, str):
            return os.path.isfile(self._source) and os.path.getsize(self._source) == 0
        return self._source == b"" if isinstance(self._source, bytes) else self._source.seek(0, os.SEEK_END) == 0

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _demux(self) -> Iterator[Any]:
        """The packets with something in them; an empty one would tell the decoder that the video is over."""
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    if self._cancelled is not None and self._cancelled.is_set():
                        raise VideoError(f"{self.path}: reading was given up")
                    if packet.size:
                        self._latest = max(self._latest or 0, packet.pts or 0)
                        yield packet
                return
            except IndexError:  # a packet of a stream that began in mid-file, of which PyAV knows nothing: read on
                continue
            except av.FFmpegError as error:
                self._fault = error.strerror
                return
            except OSError as error:  # of a file object; FFmpeg's own are caught above
                raise VideoError(f"{self.path}: {error}") from error

    def _decode(self, packet: Any) -> Sequence[av.VideoFrame]:
        """What the decoder puts out on being given a packet; None asks for what it still holds back."""
        try:
            return self._stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            self._fault = error.strerror
            return ()

    def _go_to(self, start: int | None) -> None:
        """Make the packet of this frame, a keyframe, the next; None is the beginning of the file."""
        if start is None:
            if self._latest is not None:
                self._reopen()
            return
        time = self._layout.times[start]
        if self._container.format.name in SEEKABLE:
            try:
                self._container.seek(time, stream=self._stream)
            except av.FFmpegError as error:
                raise _OutOfStepError from error
            self._packets = self._demux()
        elif self._latest is not None and time <= self._latest:
            self._reopen()
        if self._stream.codec_context.is_open:
            self._stream.codec_context.flush_buffers()
        for packet in self._packets:
            if packet.is_keyframe and packet.pts is not None and packet.pts >= time and not packet.is_discard:
                if packet.pts > time:
                    break
                self._packets = chain([packet], self._packets)
                return
        raise _OutOfStepError

    def _feed(self, wanted: Collection[int] = (), asked: set[int] | None = None) -> Iterator[av.VideoFrame]:
        """The frames of the next packets, up to the end; or, where frames may be left out, to the last that is wanted.

        wanted: times of frames. asked: gets the times of the packets that were decoded for the sake of their frames.
        """
        codec = self._stream.codec_context
        codec.skip_frame, skipping = "DEFAULT", False
        missing = set(wanted) if self._layout.skips else None
        for packet in self._packets:
            if missing is not None and skipping == (packet.pts in wanted):
                skipping = not skipping
                codec.skip_frame = "NONREF" if skipping else "DEFAULT"
            if asked is not None and not skipping:
                asked.add(packet.pts)
            yield from self._decode(packet)
            if missing is not None and not packet.is_discard:
                missing.discard(packet.pts)
                if not missing:
                    break
        yield from self._decode(None)

    def _scan(self) -> VideoLayout:
        """Look at every packet once, and decode until the first frame is there."""
        codec = self._stream.codec_context.codec.canonical_name
        packets: list[Packet] = []
        pictures: list[int] = []
        layers = False
        first: av.VideoFrame | None = None
        for packet in self._packets:
            packets.append(Packet(packet.pts, int(not packet.is_discard), packet.is_keyframe, packet.is_corrupt))
            if codec in UNEVEN:
                pictures.append(count_pictures(memoryview(packet), codec))
            elif codec == "hevc":
                layers |= temporal_layer(bytes(packet), self._unit_size_bytes()) > 0
            if first is None:
                first = self._first_of(packet) if len(packets) == 1 else next(iter(self._decode(packet)), None)
        first = first or next(iter(self._decode(None)), None)
        if first is None:
            raise VideoError(f"{self.path}: no frame can be decoded ({self._fault or 'the file holds a header only'})")
        if pictures:
            counts = unpack(pictures) if codec == "mpeg4" else pictures
            packets = [packet._replace(frames=packet.frames * n) for packet, n in zip(packets, counts, strict=True)]
        index = index_packets(packets)
        true_times = self._container.format.name in TRUE_TIMES
        packed = max(pictures, default=1) > 1
        if packed or (not true_times and self._stream.codec_context.has_b_frames):
            index = Index(index.num_frames, index.span)  # times are those of packets, not of the frames that come out
        with self._conversion():  # a frame asked for its side data lives until Python next collects cycles
            small = first.reformat(16, 16, "rgb24", interpolation="POINT", threads=1)
        orientation = _orientation_of(small)
        rotation, mirrored = next(shown for shown, how in ORIENTATIONS.items() if how == orientation)
        height, width = self._shown_size(first, orientation)
        info = VideoInfo(
            num_frames=max(index.num_frames, 1),
            fps=self._rate(index),
            height=height,
            width=width,
            codec=codec,
            pixel_format=first.format.name,
            rotation=rotation,
            mirrored=mirrored,
            variable_rate=varies(index.times),
        )
        return VideoLayout(
            info=info,
            times=index.times if isinstance(index.times, range) else tuple(index.times),
            unit=self._unit(),
            starts=tuple(index.starts),
            skips=true_times and index.reordered and codec in SKIPPING_CODECS and not layers,
        )

    def _first_of(self, packet: Any) -> av.VideoFrame | None:
        """The frame of the first packet, at once: the decoder would wait for a few packets more."""
        codec = self._stream.codec_context
        alone = [*self._decode(packet), *self._decode(None)]
        codec.flush_buffers()
        return alone[0] if alone else next(iter(self._decode(packet)), None)

    def _unit_size_bytes(self) -> int:
        """How many bytes before each unit of an HEVC packet say its size; 0 where units begin with a start code."""
        header = self._stream.codec_context.extradata or b""
        return (header[21] & 3) + 1 if len(header) > 21 and header[0] == 1 else 0  # hvcC (ISO 14496-15, 8.3.3.1)

    def _shown_size(self, frame: av.VideoFrame, orientation: Orientation) -> tuple[int, int]:
        """(height, width) of a frame in square pixels, turned."""
        height, width = frame.height, frame.width
        aspect = _number(self._stream.sample_aspect_ratio) or 1.0
        if 1 < aspect <= LARGEST_PIXEL_ASPECT:
            width = round(width * aspect)
        elif 1 / LARGEST_PIXEL_ASPECT <= aspect < 1:
            height = round(height / aspect)
        return (width, height) if orientation.transposed else (height, width)

    def _rate(self, index: Index) -> float | None:
        """Frames per second by the header, unless the packets' times say something else."""
        header = _number(self._stream.average_rate)
        unit = _number(self._stream.time_base)
        if unit is None or not index.span:
            return header
        measured = (index.num_frames - 1) / (index.span * unit)
        if header is not None and abs(header - measured) <= LARGEST_RATE_ERROR * measured:
            return header
        return measured


def _number(ratio: Any) -> float | None:
    """A ratio of PyAV, Fraction before version 19 and AVRational since, as a number; None for none or 0."""
    if ratio is None or not ratio.numerator or not ratio.denominator:
        return None
    return ratio.numerator / ratio.denominator


def _orientation_of(frame: av.VideoFrame) -> Orientation:
    matrix: Any
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 does not know all kinds of side data, EXIF for one, and then shows none
        return Orientation()
    if matrix is None:
        return Orientation()
    return read_orientation(torch.frombuffer(bytearray(memoryview(matrix)), dtype=torch.int32).tolist())


def _empty(*shape: int) -> Tensor:
    """An uint8 tensor of any content; a large one in pages of 2 MiB, where the system has them.

    The C library gives such memory back each time, and to get it anew in pages of 4 KiB takes as long as the conversion
    of its frames.
    """
    size_bytes = math.prod(shape)
    if size_bytes <= LARGEST_KEPT_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=torch.uint8)
    room = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=torch.uint8).view(shape)
