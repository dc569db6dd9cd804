"""One way to open whatever holds a video: a file, a folder of frames, or a member of a shard."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from lightning_csn.data import shards
from lightning_csn.data.frame_folder import FrameFolder
from lightning_csn.data.torchcodec_video import TorchcodecVideo
from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError, VideoInfo, VideoLayout
from lightning_csn.errors import check_choice

READERS = ("av", "torchcodec")
TIME_ERROR = 1e-6  # seconds: a time computed as number / rate may come out a rounding below the frame's own


class Reader(Protocol):
    """An open video, as `open_video` gives it; see `Video` for what the methods do."""

    path: str
    info: VideoInfo

    @property
    def times(self) -> Sequence[float] | None:
        """Seconds of each frame from the first, ascending; None where the file proves none."""
        ...

    def frames(self, numbers: Sequence[int], *, size: tuple[int, int] | None = None) -> Tensor:
        """The frames of these numbers, uint8 (T, H, W, C)."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...

    def __enter__(self) -> Reader: ...

    def __exit__(self, *error: object) -> None: ...


def open_video(
    path: str | os.PathLike[str],
    *,
    reader: str = "av",
    layout: VideoLayout | None = None,
    frames_fps: float | None = None,
    cancelled: threading.Event | None = None,
) -> Reader:
    """The video at this path, open; to be closed, or used in a `with` block.

    path: a video file, a folder of frames, or a video in a shard.
    reader: one of READERS; what reads video files. Frame n is the same frame with each.
    layout: what `Video.layout` said of this file before; saves looking for its frames anew.
    frames_fps: pictures per second of a folder of frames, which does not say it.
    cancelled: once it is set, from another thread, reading ends with a VideoError.
    """
    check_choice("reader", reader, READERS)
    path = os.fspath(path)
    if shards.is_member(path):
        content, found = shards.read_member_and_layout(path)
        return Video(content, name=path, layout=layout or found, cancelled=cancelled)
    if os.path.isdir(path):
        return FrameFolder(path, fps=frames_fps, cancelled=cancelled)
    if reader == "torchcodec":
        return TorchcodecVideo(path, layout=layout, cancelled=cancelled)
    return Video(path, layout=layout, cancelled=cancelled)


def frames_at(reader: Reader, seconds: Sequence[float]) -> list[int]:
    """Numbers of the frames that are shown at these times, counted from the first frame.

    A frame is shown from its time until that of the next; the first also before, the last also after. In a file that
    proves no times, they follow at its rate. Raises VideoError for a video that has neither.
    """
    last = reader.info.num_frames - 1
    times, fps = reader.times, reader.info.fps
    if times is not None:
        return [max(0, bisect_right(times, second + TIME_ERROR) - 1) for second in seconds]
    if fps is None:
        raise VideoError(f"{reader.path}: it has neither times nor a rate; name frames by number")
    return [min(last, max(0, int((second + TIME_ERROR) * fps))) for second in seconds]
