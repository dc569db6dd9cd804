"""Videos encoded anew, to be decoded fast: an open video goes in, the bytes of an mp4 file come out.

A packed video has the frames of its original, number for number, as `Video` shows them: turned, in square pixels, with
the same times; their colours lose one level of 255, for FFmpeg rounds down where it makes RGB. It is h264 of a smaller
short side, without sound, and made for training, which reads a few frames here and there. The choice was made by random
clips of 32 frames, every second one, from five videos of 340x256 or so, each at one PSNR, read as `Video` does, which
leaves out frames that nobody needs:

* x264's defaults take 1.8 to 3.7 times as long as what is chosen here, and 0.6 to 0.7 times the bytes;
* tune fastdecode (no CABAC, no deblocking filter, no weighted prediction) takes off a third of the time or more and
  adds a tenth to a quarter of the bytes;
* B-frames that no other frame refers to (no pyramid), which need not be decoded, take off another tenth;
* keyframes every 8 or 16 frames, not 32, are no faster and add 10 to 80% of the bytes; 48 saves 2 to 8%;
* pixels that are not square (320x240, shown as 427x240), packed as they lie and not as they are shown, save an eighth
  of the bytes; at the size shown they take twice as long, for each frame is stretched when it is read;
* keyframes alone, also as MJPEG, are slower and 5 to 10 times larger; MPEG-4 part 2 takes 0.7 times as long and two to
  three times the bytes, all of which are read from a disk or through a network.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from lightning_csn.data.reading import Reader
from lightning_csn.data.video import Video
from lightning_csn.errors import InputError, check_count

RATE_WITHOUT_TIMES = Fraction(25)  # frames per second of a file that tells none: h264 in mp4 must have one
LARGEST_TIMESCALE = 10**9  # ticks per second; mp4 and x264 have 32 bits for it
LARGEST_DENOMINATOR = 100_000  # of a rate, as in sampling.py
BLOCK_BYTES = 128 << 20  # of frames in memory at once; for each block, decoding starts anew at a keyframe


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How videos are encoded anew.

    short_side: pixels of the shorter side; a smaller video keeps its size (an odd one loses a row or a column).
    gop: most frames from one keyframe to the next.
    crf: x264's constant rate factor; 6 more is half the bytes.
    """

    short_side: int = 256
    gop: int = 32
    crf: float = 23.0

    def __post_init__(self) -> None:
        check_count("short_side", self.short_side, least=2)
        check_count("gop", self.gop)
        if not 0 <= self.crf <= 51:
            raise InputError(f"crf must be a number from 0 to 51, got {self.crf!r}")

    @property
    def options(self) -> dict[str, str]:
        """Of x264."""
        return {
            "preset": "medium",
            "tune": "fastdecode",
            "crf": f"{self.crf:g}",
            "g": str(self.gop),
            "x264-params": "b-pyramid=none:threads=1",  # one thread: the same bytes on every machine
        }


def encode(video: Reader, encoding: Encoding, alive: Callable[[], None]) -> bytes:
    """All frames of a video as h264 in mp4, shown at the times of the original."""
    height, width = packed_size(video.info.height, video.info.width, encoding.short_side)
    rate, unit, times = _times_of(video)
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=rate, options=encoding.options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.thread_count = 1
        stream.codec_context.time_base = unit
        held: Any = None
        start = 0
        for packet in _packets_of(video, stream, (height, width), times, unit, alive):
            if held is None:
                start = packet.dts
            else:
                output.mux(held)
            held = packet
        # how long the last frame is shown decides on the rate that readers compute
        held.duration = max(1, round(len(times) / rate / unit) - (held.dts - start))
        output.mux(held)
    return content.getvalue()


def packed_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width), both even as h264 wants them, of a video whose short side may be `short_side` at most.

    >>> packed_size(1080, 1920, 256), packed_size(120, 161, 256), packed_size(1, 9, 256)
    ((256, 456), (120, 160), (2, 8))
    """
    scale = min(1.0, short_side / min(height, width))
    if scale == 1.0:
        return max(2, height // 2 * 2), max(2, width // 2 * 2)
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))


def _packets_of(
    video: Reader,
    stream: Any,
    size: tuple[int, int],
    times: Sequence[int],
    unit: Fraction,
    alive: Callable[[], None],
) -> Iterator[Any]:
    """All frames of a video, encoded: the packets of an output stream. `alive` is called now and then."""
    reformatter = VideoReformatter()
    block = max(1, BLOCK_BYTES // (size[0] * size[1] * 3))
    for first in range(0, video.info.num_frames, block):
        numbers = range(first, min(first + block, video.info.num_frames))
        frames = video.frames(numbers, size=size)  # (T, H, W, C)
        alive()
        for number, pixels in zip(numbers, frames, strict=True):
            frame: Any = av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24")
            frame = reformatter.reformat(frame, format="yuv420p")
            frame.pts, frame.time_base = times[number], unit
            yield from stream.encode(frame)
        alive()
    yield from stream.encode(None)


def _times_of(video: Reader) -> tuple[Fraction, Fraction, Sequence[int]]:
    """(rate, unit, times): frames per second, and the time of each frame from the first, in units of seconds."""
    rate = RATE_WITHOUT_TIMES
    if video.info.fps is not None:
        rate = Fraction(video.info.fps).limit_denominator(LARGEST_DENOMINATOR)
    if isinstance(video, Video) and video.layout.times and video.layout.unit[0]:
        numerator, denominator = video.layout.unit  # the times of the file itself, without rounding
        finer = math.lcm(denominator, rate.numerator) // denominator  # so that the whole lasts as long to the tick
        if finer * denominator > LARGEST_TIMESCALE:
            finer = 1
        ticks = video.layout.times
        return rate, Fraction(1, finer * denominator), [(tick - ticks[0]) * numerator * finer for tick in ticks]
    return rate, 1 / rate, range(video.info.num_frames)
