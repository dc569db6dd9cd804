"""What is known of a video: how it looks, where its frames lie, and why it cannot be read. No file is opened here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_csn.errors import InputError


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
    starts: numbers of the frames with whose packets decoding can start, ascending; elsewhere it is the beginning.
    skips: whether the decoder can be told by the times to leave out frames that no other refers to.
    """

    info: VideoInfo
    times: Sequence[int]
    unit: tuple[int, int]
    starts: Sequence[int]
    skips: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times at one rate as where they start, stop and step."""
        times: Any = self.times
        times = {"range": [times.start, times.stop, times.step]} if isinstance(times, range) else list(times)
        return {
            "info": asdict(self.info),
            "times": times,
            "unit": list(self.unit),
            "starts": list(self.starts),
            "skips": self.skips,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VideoLayout:
        """The layout that `to_dict` gave these values of; InputError for values that it cannot have given."""
        try:
            times, (numerator, denominator) = values["times"], values["unit"]
            layout = cls(
                info=VideoInfo(**values["info"]),
                times=range(*times["range"]) if isinstance(times, Mapping) else tuple(times),
                unit=(numerator, denominator),
                starts=tuple(values["starts"]),
                skips=values["skips"],
            )
            count, starts = layout.info.num_frames, layout.starts
            listed = () if isinstance(layout.times, range) else layout.times
            whole = all(isinstance(number, int) for number in (count, *listed, *layout.unit, *starts))
            possible = (
                len(layout.times) in (0, count) and denominator > 0 and all(0 <= start < count for start in starts)
            )
        except (KeyError, TypeError, ValueError):
            whole = possible = False
        if not whole or not possible:
            raise InputError("what was kept of the video, in an index or a shard, has been changed since")
        return layout
