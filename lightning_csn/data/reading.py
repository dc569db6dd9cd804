"""One way to open whatever holds a video: a file, a folder of frames, or a member of a shard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from torch import Tensor

from lightning_csn.data.video import Video, VideoInfo


class Reader(Protocol):
    """An open video, as `open_video` gives it; see `Video` for what the methods do."""

    info: VideoInfo

    def frames(self, numbers: Sequence[int], *, size: tuple[int, int] | None = None) -> Tensor:
        """The frames of these numbers, uint8 (T, H, W, C)."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...

    def __enter__(self) -> Reader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_video(path: str | os.PathLike[str]) -> Reader:
    """The video at this path, open; to be closed, or used in a `with` block."""
    return Video(path)
