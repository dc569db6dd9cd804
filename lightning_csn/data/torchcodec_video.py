"""Video files read by torchcodec, with the same frame under the same number as `Video`, or not at all.

torchcodec numbers frames by their times and trusts what a file says of itself: in AVI files of HMDB51 it gives one
frame more, in another order; where a keyframe is none, it shows what its decoder made of the missing ones, without an
error. So nothing is taken on trust. `Video` counts the packets, which takes a few milliseconds (or none, with a
layout), and what torchcodec gives is used as long as

* every frame has a time of its own, both count the same number of frames, and both turn them the same way;
* the time that torchcodec says of each frame is that of the frame asked for;
* the keyframe from which it is decoded looks the same as `Video` shows it; each is compared once.

Otherwise `Video` reads the file, and a warning, one for each of these reasons, says so.

Pixels are those of `Video` to the last bit where frames keep their size, with FFmpeg 5 under torchcodec and FFmpeg 8
under PyAV. Scaled frames, those with pixels that are not square among them, differ by 1 to 3 of 255 in the mean, since
here red, green and blue are scaled, there luma and chroma.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_csn.data.closing import Closing
from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError, VideoLayout
from lightning_csn.errors import InputError

_log = logging.getLogger(__name__)
_told: set[str] = set()  # reasons for which a file was named in a warning

TIME_ERROR = 1e-5  # seconds: both compute times from the same whole numbers
LARGEST_DIFFERENCE = 8.0  # mean over a keyframe, of 255; the same frame, scaled, has 3, a wrong one seldom below 20
FRAMES_AT_ONCE = 16  # are there at full size before they are scaled: 100 MB of 1080p

NOT_INSTALLED = (
    "torchcodec is not installed; pip install 'lightning-csn[torchcodec]' and FFmpeg's shared libraries "
    "(apt-get install ffmpeg, brew install ffmpeg, or conda install ffmpeg), or read with PyAV, the default"
)
NOT_LOADED = (
    "torchcodec is installed, but cannot be loaded: it needs the shared libraries of FFmpeg 4 or newer "
    "(apt-get install ffmpeg, brew install ffmpeg, or conda install ffmpeg) and the release that belongs to "
    "torch {version}"
)


class _UnfitError(Exception):
    """torchcodec does not read this file as `Video` does. reason: one of a few, for the warning; found: what was."""

    def __init__(self, reason: str, found: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.found = found


class TorchcodecVideo(Closing):
    """An open video file, read by torchcodec where it gives the frames of `Video`, see above; close it.

    threads, layout, cancelled: as for `Video`.

    Raises InputError where torchcodec or its FFmpeg is missing, VideoError where `Video` does.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 1,
        layout: VideoLayout | None = None,
        cancelled: threading.Event | None = None,
    ) -> None:
        decoder = find_decoder()
        self._video = Video(path, threads=threads, layout=layout, cancelled=cancelled)
        self.path = self._video.path
        self.info = self._video.info
        self._cancelled = cancelled
        self._decoder: Any = None
        self._same_keyframes: set[int] = set()
        try:
            self._times = self._open(decoder, threads)
        except _UnfitError as unfit:
            self._hand_over(unfit)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file and of the decoders."""
        self._decoder = None
        self._video.close()

    @property
    def reader(self) -> str:
        """What reads the frames now: "torchcodec", or "av" where it is `Video`."""
        return "av" if self._decoder is None else "torchcodec"

    @property
    def times(self) -> Sequence[float] | None:
        """Seconds of each frame from the first, ascending; None where the file proves none."""
        return self._video.times

    @property
    def layout(self) -> VideoLayout:
        """What was found out about the file when it was opened; give it to a reader to open the same file faster."""
        return self._video.layout

    def frames(self, numbers: Sequence[int], *, size: tuple[int, int] | None = None) -> Tensor:
        """The frames of these numbers as uint8 (T, H, W, C), see `Video.frames`."""
        if self._decoder is not None and all(0 <= number < self.info.num_frames for number in numbers):
            try:
                return self._read(numbers, size or (self.info.height, self.info.width))
            except _UnfitError as unfit:
                self._hand_over(unfit)
        return self._video.frames(numbers, size=size)

    def _open(self, decoder: Any, threads: int) -> Sequence[float]:
        """Open the file in torchcodec; times of its frames, in seconds from the first."""
        times = self._video.times
        if times is None:
            raise _UnfitError("its times do not tell frames apart", "or not all frames have one")
        with torchcodec_failures():
            # "file:" keeps FFmpeg from taking a colon in a name for a protocol
            self._decoder = decoder(
                f"file:{self.path}", dimension_order="NHWC", num_ffmpeg_threads=threads, device="cpu"
            )
        if len(self._decoder) != self.info.num_frames:
            found = f"torchcodec counts {len(self._decoder)}, PyAV {self.info.num_frames}"
            raise _UnfitError("they count different numbers of frames", found)
        turned = getattr(self._decoder.metadata, "rotation", None) or 0.0  # counter-clockwise; none before it turned
        if self.info.mirrored or -turned % 360 != self.info.rotation:
            found = f"it is turned by {self.info.rotation} degrees{', mirrored' * self.info.mirrored}"
            raise _UnfitError("torchcodec would not turn it as a player does", found)
        return times

    def _read(self, numbers: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Frames scaled to size (height, width)."""
        frames = torch.empty(len(numbers), *size, 3, dtype=torch.uint8)
        wanted = sorted(set(numbers))
        row = {number: i for i, number in enumerate(wanted)}
        rows = torch.tensor([row[number] for number in numbers])
        read = frames if len(wanted) == len(numbers) else torch.empty(len(wanted), *size, 3, dtype=torch.uint8)
        self._compare_keyframes(wanted)
        for first in range(0, len(wanted), FRAMES_AT_ONCE):
            if self._cancelled is not None and self._cancelled.is_set():
                raise VideoError(f"{self.path}: reading was given up")
            part = wanted[first : first + FRAMES_AT_ONCE]
            read[first : first + len(part)] = scaled(self._decode(part), size)
        return read[rows] if list(numbers) != wanted else read

    def _compare_keyframes(self, wanted: Sequence[int]) -> None:
        """Look at the keyframes from which these frames are decoded, once at each."""
        starts = [0, *self._video.layout.starts]  # where none is known, decoding starts at the beginning
        needed = {starts[bisect_right(starts, number) - 1] for number in wanted}
        for number in sorted(needed - self._same_keyframes):
            theirs = self._decode([number])
            ours = self._video.frames([number], size=(theirs.shape[1], theirs.shape[2]))
            difference = float((theirs.float() - ours.float()).abs().mean())
            if difference > LARGEST_DIFFERENCE:
                found = f"they differ by {difference:.0f} of 255 in the mean at frame {number}"
                raise _UnfitError("a keyframe looks different", found)
            self._same_keyframes.add(number)

    def _decode(self, numbers: list[int]) -> Tensor:
        """Frames at full size, (T, H, W, C)."""
        with torchcodec_failures():
            batch = self._decoder.get_frames_at(numbers)
        begin = self._decoder.metadata.begin_stream_seconds
        for number, seconds in zip(numbers, batch.pts_seconds.tolist(), strict=True):
            if abs(seconds - begin - self._times[number]) > TIME_ERROR:
                found = f"frame {number} is at {self._times[number]:.6g} s, torchcodec's at {seconds - begin:.6g} s"
                raise _UnfitError("torchcodec gives its frames other times", found)
        return batch.data

    def _hand_over(self, unfit: _UnfitError) -> None:
        """Let `Video` read from here on."""
        self._decoder = None
        _warn_once(unfit.reason, f"{self.path}: PyAV reads it, not torchcodec: {unfit.reason} ({unfit.found})")


def find_decoder() -> Any:
    """torchcodec's VideoDecoder; InputError, which says what to install, where it or its FFmpeg is missing."""
    try:
        import torchcodec
        from torchcodec.decoders import VideoDecoder
    except ModuleNotFoundError as error:
        raise InputError(NOT_INSTALLED) from error
    except (ImportError, OSError, RuntimeError) as error:  # the older ones load FFmpeg when they are imported
        raise InputError(NOT_LOADED.format(version=torch.__version__)) from error
    if getattr(torchcodec, "ffmpeg_major_version", 0) is None:
        raise InputError(NOT_LOADED.format(version=torch.__version__))
    return VideoDecoder


@contextmanager
def torchcodec_failures() -> Iterator[None]:
    """What torchcodec raises for files that it cannot read, without the place in its source."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise _UnfitError("torchcodec fails", re.sub(r".*\.cpp:\d+, ", "", lines[-1])) from error


def scaled(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames (T, H, W, C) at size (height, width)."""
    if tuple(frames.shape[1:3]) == size:
        return frames
    channels_first = frames.permute(0, 3, 1, 2)
    return F.interpolate(channels_first, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def _warn_once(reason: str, message: str) -> None:
    """Log a message unless another was logged for the same reason."""
    if reason not in _told:
        _told.add(reason)
        _log.warning("%s; other such files are not named", message)
