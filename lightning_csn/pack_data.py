"""`lightning-csn pack`: videos made small and quick to decode, in few large files that are read from anywhere.

`pack_options` and `run_pack` are the command's row in cli.py; torch and av are imported where it runs.
"""

from __future__ import annotations

import argparse
import re
import time
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from lightning_csn.data_source import find_source, source_options
from lightning_csn.errors import InputError
from lightning_csn.terminal import note, positive, progress, seconds

if TYPE_CHECKING:
    from lightning_csn.data.packing import Packed

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
LISTED = 20  # unreadable videos in the summary; all are in the index
ALL_PACKED, SOME_LEFT_OUT = 0, 2


def pack_options(parser: ArgumentParser) -> None:
    """Options of `pack`."""
    parser.add_argument("root", metavar="ROOT", help="the videos, as --data.root of fit")
    parser.add_argument("out", metavar="OUT", help="a new folder for the shards and their index")
    source_options(parser, frames_fps="the rate of folders of pictures, once packed; default 25")
    parser.add_argument(
        "--short-side", type=positive, metavar="PIXELS", help="of larger videos, once packed; default 256"
    )
    parser.add_argument("--gop", type=positive, metavar="FRAMES", help="most between keyframes; default 32")
    parser.add_argument("--crf", type=float, metavar="N", help="of x264: lower is better and larger; default 23")
    parser.add_argument("--copy", action="store_true", help="put the files in as they are; nothing is encoded")
    parser.add_argument(
        "--shard-size", type=size_bytes, default=256_000_000, metavar="SIZE", help="at most; default 256MB"
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="processes; default one per processor")
    parser.add_argument(
        "--on-unreadable",
        choices=("skip", "raise"),
        default="skip",
        help="leave unreadable videos out and list them, or end at the first; default skip",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="for some hundred frames of a video; default 60",
    )
    parser.epilog = (
        "A packed video has the frames of its original, number for number and with the same times, turned as a player\n"
        "shows them, as h264 without sound. OUT is read wherever a folder of videos is; so is a copy of it on a web\n"
        "server or in object storage (s3:// needs lightning-csn[stream]). Others read the shards as WebDataset.\n"
        "A stopped pack goes on with the same command.\n\n"
        "The exit code is 0 when all videos were packed and 2 when unreadable ones were left out.\n\n"
        "examples:\n"
        "  lightning-csn pack my_videos my_videos_packed\n"
        "  lightning-csn pack videos packed --train-list train.txt --val-list val.txt --short-side 320\n"
        "  lightning-csn fit --data.root packed\n"
        "  lightning-csn fit --data.root s3://bucket/packed"
    )


def size_bytes(text: str) -> int:
    """A number of bytes, as in 256MB or 1GiB.

    >>> size_bytes("256MB"), size_bytes("1.5 GiB"), size_bytes("4096")
    (256000000, 1610612736, 4096)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    if match is None or match[2] not in UNITS or float(match[1]) * UNITS[match[2]] < 1:
        raise argparse.ArgumentTypeError(f"a size such as 256MB is needed, got {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def run_pack(args: Namespace) -> int:
    """Find, pack, sum up."""
    from lightning_csn.data.crew import usable_processors
    from lightning_csn.data.encoding import Encoding
    from lightning_csn.data.packing import pack

    encoded = {
        name: value for name in ("short_side", "gop", "crf", "frames_fps") if (value := getattr(args, name)) is not None
    }
    if args.copy and encoded:
        raise InputError(f"--copy puts files in as they are; --{next(iter(encoded)).replace('_', '-')} is for encoding")
    encoded.pop("frames_fps", None)
    collection = find_source(args)
    note(collection.layout)
    start = time.monotonic()
    try:
        packed = pack(
            collection,
            args.out,
            root=args.root,
            encoding=None if args.copy else Encoding(**encoded),
            shard_bytes=args.shard_size,
            workers=args.workers or usable_processors(),
            seconds=args.timeout,
            on_unreadable=args.on_unreadable,
            frames_fps=args.frames_fps,
            watch=lambda steps, total: progress(steps, total, "packing"),
        )
    except KeyboardInterrupt:
        note("stopped; the same command goes on from there")
        raise
    note(f"in {time.monotonic() - start:.0f} seconds")
    print(as_text(packed, args.out))
    return SOME_LEFT_OUT if packed.left_out else ALL_PACKED


def as_text(packed: Packed, out: str) -> str:
    """The summary.

    >>> from lightning_csn.data.packing import Packed
    >>> packed = Packed(3, {"train": [2, 1]}, 4_000_000, 1_000_000, {"b.mp4": "b.mp4: the file is empty"}, [])
    >>> print(as_text(packed, "x"))
    x: 3 videos, 1.0 MB where there were 4.0 MB
      train: 3 videos in 2 shards (2 1)
    1 video could not be read and was left out:
      b.mp4: the file is empty
    """
    lines = [f"{out}: {_count(packed.videos)}, {_mb(packed.bytes_after)} where there were {_mb(packed.bytes_before)}"]
    for split, shards in packed.shards.items():
        each = " ".join(map(str, shards)) if len(shards) <= 8 else f"{min(shards)} to {max(shards)} each"
        lines.append(
            f"  {split}: {_count(sum(shards))} in {len(shards)} shard{'s' * (len(shards) != 1)} ({each})"
            if shards
            else f"  {split}: no videos"
        )
    if packed.bytes_after > packed.bytes_before:
        lines.append(
            "larger than the originals, for it is made to be decoded fast: --copy keeps files as they are, --crf 28 or "
            "a smaller --short-side makes them smaller"
        )
    if packed.without_rate:
        names = ", ".join(packed.without_rate[:LISTED]) + (", ..." if len(packed.without_rate) > LISTED else "")
        many = _count(len(packed.without_rate))
        lines.append(f"{many} without a frame rate, taken as 25 frames per second: {names}")
        lines.append("  --frames-fps N gives folders of pictures another")
    if packed.left_out:
        were = "was" if len(packed.left_out) == 1 else "were"
        lines.append(f"{_count(len(packed.left_out))} could not be read and {were} left out:")
        lines += [f"  {error}" for error in list(packed.left_out.values())[:LISTED]]
        if len(packed.left_out) > LISTED:
            lines.append(f"  and {len(packed.left_out) - LISTED} more: see left_out in {out}/index.json")
    return "\n".join(lines)


def _count(videos: int) -> str:
    return f"{videos} video{'s' * (videos != 1)}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
