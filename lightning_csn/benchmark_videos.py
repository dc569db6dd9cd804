"""The videos that `lightning-csn benchmark data` reads: those given, or one that is made, and their packed copies.

Paths go in, a Source for each comes out. av, numpy and torch are imported where they are needed, for the options' help
says what is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_csn.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from lightning_csn.data.video_info import VideoLayout

SECONDS, RATE, HEIGHT, WIDTH = 10, 30, 256, 340  # of the video that is made
MADE = f"{WIDTH}x{HEIGHT}, {SECONDS} s, {RATE} fps, h264 as x264 writes it by default"
SEED = 0  # of the texture


@dataclass
class Source:
    """A video that clips are read of. size: (height, width) of the frames that every reader is to give.

    scaled: whether frames lie in the file at another size. packed: where its packed copy is.
    """

    path: str
    num_frames: int
    size: tuple[int, int]
    layout: VideoLayout
    scaled: bool
    packed: str = ""


def open_source(path: str) -> Source:
    """Look at a video."""
    import av

    from lightning_csn.data.video import OPEN_OPTIONS, Video

    with Video(path) as video:
        info, layout = video.info, video.layout
    with av.open(f"file:{path}", **OPEN_OPTIONS) as container:
        coded = container.streams.best("video")
        sides = {coded.codec_context.height, coded.codec_context.width}
    return Source(path, info.num_frames, (info.height, info.width), layout, sides != {info.height, info.width})


def describe(source: Source) -> dict[str, Any]:
    """A video as plain values."""
    info = source.layout.info
    return {
        "path": source.path,
        "packed": source.packed,
        "bytes": os.path.getsize(source.path),
        "frames": info.num_frames,
        "fps": info.fps,
        "height": info.height,
        "width": info.width,
        "codec": info.codec,
        "keyframes": len(source.layout.starts),
    }


def pack_copies(sources: Sequence[Source], folder: str) -> None:
    """Pack the videos as `lightning-csn pack` does, into a new folder, and note where the copies are."""
    from lightning_csn.data.crew import usable_processors
    from lightning_csn.data.encoding import Encoding
    from lightning_csn.data.packing import pack
    from lightning_csn.data.samples import Collection, Sample

    samples = [Sample(source.path, 0, number) for number, source in enumerate(sources)]
    pack(
        Collection({"train": samples}, ["any"], "a list", False),
        folder,
        encoding=Encoding(),
        workers=usable_processors(),
        on_unreadable="raise",
    )
    find_packed(sources, folder)


def find_packed(sources: Sequence[Source], root: str) -> None:
    """Note where the packed copies of these videos are: those of which the index says that they were made of them."""
    from lightning_csn.data import shards
    from lightning_csn.data.reading import open_video

    index, packed = shards.read_index(root), shards.read_packed(root)
    made_of = {}
    for split, content in index["splits"].items():
        for entry, sample in zip(content["samples"], packed.samples[split], strict=True):
            made_of[content["videos"][entry["video"]]["source"]] = sample.path
    for source in sources:
        path = Path(source.path).absolute()
        endings = ("/".join(path.parts[first:]) for first in range(len(path.parts)))
        found = next((made_of[name] for name in (source.path, str(path), *endings) if name in made_of), None)
        if found is None:
            raise InputError(f"--packed {root}: it holds no copy of {source.path}")
        with open_video(found) as video:
            frames = video.info.num_frames
        if frames != source.num_frames:
            raise InputError(f"--packed {root}: {found} has {frames} frames, {source.path} {source.num_frames}")
        source.packed = found


def write_video(
    path: str, *, seconds: float = SECONDS, rate: int = RATE, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> str:
    """A video in h264 as x264 writes it by default: what a film of something natural costs to decode.

    size: (height, width). A texture with as much of each scale as natural pictures have moves behind another one, with
    a little grain: x264 takes 0.5 Mbit/s for it at 340x256 and makes 6 of 10 frames ones that others refer to, as it
    does for a film of arm wrestling of that size.
    """
    import av

    with av.open(path, "w") as output:
        stream: Any = output.add_stream("libx264", rate=rate, options={"preset": "medium", "crf": "23"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # else the bits depend on the machine
        for image in moving_texture(round(seconds * rate), *size):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def moving_texture(frames: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Frames uint8 (H, W, 3), always the same ones."""
    import numpy as np

    draw = np.random.default_rng(SEED)
    mix = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])  # colours of natural pictures go together
    far = (118 + 42 * np.stack([texture(draw, 2 * height, 2 * width) for _ in range(3)], -1) @ mix).astype(np.float32)
    near = (130 + 50 * np.stack([texture(draw, height, width) for _ in range(3)], -1)).astype(np.float32)
    rows, columns = np.mgrid[:height, :width]
    for turn in np.arange(frames) * 2 * np.pi / frames:
        y, x = height / 2 * (1 + 0.8 * np.sin(turn)), width / 2 * (1 + 0.8 * np.sin(2 * turn))
        top, left, below, right = int(y), int(x), y % 1, x % 1
        seen = far[top : top + height + 1, left : left + width + 1]
        seen = (1 - below) * seen[:-1] + below * seen[1:]  # motion is by less than a pixel, as a camera's
        image = (1 - right) * seen[:, :-1] + right * seen[:, 1:]
        y, x = height * (0.5 + 0.3 * np.cos(3 * turn)), width * (0.5 + 0.3 * np.sin(5 * turn))
        inside = np.hypot(rows - y, columns - x) < height / 5
        image = np.where(inside[..., None], np.roll(near, (int(y), int(x)), (0, 1)), image)
        yield np.clip(image + draw.normal(0, 1, (height, width, 1)), 0, 255).astype(np.uint8)


def texture(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W) of mean 0 and variance 1, with amplitudes that fall about as 1 / frequency."""
    import numpy as np

    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    image = np.fft.irfft2(np.fft.rfft2(draw.standard_normal((height, width))) / frequency**1.1, (height, width))
    return image / image.std()
