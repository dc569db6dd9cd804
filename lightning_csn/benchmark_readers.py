"""The ways to read the same frames of a video: ours, and those of decord and torchcodec where they are installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_csn.benchmark_videos import Source
from lightning_csn.data.reading import open_video
from lightning_csn.data.torchcodec_video import find_decoder
from lightning_csn.errors import InputError

AGREEMENT = 2.5  # mean difference, of 255, of what are the same frames: 0 as a rule
AGREEMENT_PACKED = 12.0  # they were encoded anew


@dataclass(frozen=True)
class Way:
    """One of the ways to read the same frames."""

    name: str
    read: Callable[[Source, Sequence[int]], Any]
    peer: bool = False
    agreement: float = AGREEMENT


def read_ours(source: Source, numbers: Sequence[int]) -> Tensor:
    """By the reader that training uses."""
    with open_video(source.path) as video:
        return video.frames(numbers, size=source.size)


def read_known(source: Source, numbers: Sequence[int]) -> Tensor:
    """By the same, told what an index of the videos holds."""
    with open_video(source.path, layout=source.layout) as video:
        return video.frames(numbers, size=source.size)


def read_packed(source: Source, numbers: Sequence[int]) -> Tensor:
    """By the same, from the packed copy."""
    with open_video(source.packed) as video:
        return video.frames(numbers, size=source.size)


def decord_way() -> Way:
    """InputError where decord is missing."""
    try:
        import decord
    except (ImportError, OSError) as error:  # OSError: a library that it needs
        raise InputError("not installed; pip install 'lightning-csn[benchmark]' where it has wheels") from error

    def read(source: Source, numbers: Sequence[int]) -> Any:
        height, width = source.size if source.scaled else (-1, -1)
        reader = decord.VideoReader(source.path, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
        return reader.get_batch(list(numbers)).asnumpy()

    return Way("decord", read, peer=True)


def torchcodec_way(seek_mode: str) -> Way:
    """exact looks at all packets first, approximate trusts the header. InputError where torchcodec is missing."""
    decoder = find_decoder()

    def read(source: Source, numbers: Sequence[int]) -> Tensor:
        options = {}
        if source.scaled:
            from torchcodec.transforms import Resize

            options["transforms"] = [Resize(source.size)]
        video = decoder(
            source.path,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode=seek_mode,
            device="cpu",
            **options,
        )
        return video.get_frames_at(list(numbers)).data

    return Way("torchcodec" + (", approximate" if seek_mode == "approximate" else ""), read, peer=True)


PEERS: dict[str, Callable[[], list[Way]]] = {
    "decord": lambda: [decord_way()],
    "torchcodec": lambda: [torchcodec_way("exact"), torchcodec_way("approximate")],
}


def find_ways() -> tuple[list[Way], dict[str, str]]:
    """Ours and the peers that are there; and why the others are not."""
    ways = [
        Way("ours", read_ours),
        Way("ours, layout known", read_known),
        Way("ours, packed", read_packed, agreement=AGREEMENT_PACKED),
    ]
    absent = {}
    for name, make in PEERS.items():
        try:
            ways += make()
        except InputError as error:
            absent[name] = str(error)
    return ways, absent


def decoder_errors() -> tuple[type[Exception], ...]:
    """What decoders raise; decord has an error of its own, which is no RuntimeError."""
    try:
        from decord import DECORDError
    except (ImportError, OSError):
        return (RuntimeError, ValueError, IndexError, OSError)
    return (RuntimeError, ValueError, IndexError, OSError, DECORDError)
