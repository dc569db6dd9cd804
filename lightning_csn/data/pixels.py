"""Decoded frames in red, green and blue, as the `ffmpeg` program shows them, at any size."""

from __future__ import annotations

from typing import Any

import av
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

PLAIN = ("yuv420p", "yuvj420p")  # for which FFmpeg has a converter of its own that takes each colour as it lies


class Converter:
    """Converts the frames of a video one by one; what FFmpeg sets up for one serves the next, and is most of the cost.

    Colours become red, green and blue as in the program with `-pix_fmt rgb24`: by the matrix (BT.601, 709 or 2020) and
    the range (limited or full) that the frame names, BT.601 and limited where it names none. More bits are rounded to
    8; the curve of HDR stays as it is, none is brought to that of SDR.

    FFmpeg's scaling function, which is the faster way, does so for frames of even sizes in 8 bits of 4:2:0, nearly all
    that there are. In others it takes colours to lie at the left of their two pixels where h264 and hevc say so, and
    it treats the half frames of interlaced pictures apart. The program does neither, so those take its own way, a
    filter. Frames in 8 bits of 4:2:0 are scaled by the function all the same, with colours where they say.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._graph: Any = None
        self._graph_is_for: tuple[object, ...] = ()

    def convert(self, frame: av.VideoFrame, size: tuple[int, int]) -> Tensor:
        """The frame at size (height, width) as uint8 (H, W, 3), in memory that is not to be written to.

        Raises av.FFmpegError for colours that no standard knows, as in damaged files.
        """
        height, width = size
        even = frame.height % 2 == frame.width % 2 == 0
        if frame.format.name in PLAIN and even and not frame.interlaced_frame:
            # bilinear averages over what it leaves out when it makes smaller: no aliasing
            image = self._reformatter.reformat(
                frame, width, height, format="rgb24", interpolation="BILINEAR", threads=1
            )
        else:
            image = self._filter(frame, size)
        plane = image.planes[0]
        rows = torch.frombuffer(plane, dtype=torch.uint8).view(-1, plane.line_size)  # lines may end in a few bytes more
        return rows[:height, : 3 * width].unflatten(1, (width, 3))

    def _filter(self, frame: av.VideoFrame, size: tuple[int, int]) -> av.VideoFrame:
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self._graph_is_for != (kind, size):
            self._graph, self._graph_is_for = _scaling(*kind, size), (kind, size)
        self._graph.push(frame)
        return self._graph.pull()


def _scaling(
    width: int, height: int, pixel_format: str, colorspace: int, color_range: int, size: tuple[int, int]
) -> av.filter.Graph:
    """FFmpeg's filter that scales and converts, set up for frames of one kind, as the program does it."""
    graph = av.filter.Graph()
    graph.threads = 1
    interpolation = "bicubic" if size == (height, width) else "bilinear"  # the former spreads colours: its default
    filters = [
        graph.add(
            "buffer",
            f"video_size={width}x{height}:pix_fmt={pixel_format}:time_base=1/1"
            f":colorspace={colorspace}:range={color_range}",
        ),
        graph.add("scale", f"{size[1]}:{size[0]}:flags={interpolation}"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*filters).configure()
    return graph
