"""`lightning-csn benchmark data`: how fast clips are read here, against decord and torchcodec, on the same files.

Measured in turns in one run, on one thread, at one size of the frames: one clip at a random place of a video that is
opened for it, as in training; several clips spread over a video, as in testing; the same random clip from a packed
copy; and the whole of what a DataLoader's worker does. Every reader's frames are compared with ours, and one whose
frames are others is not compared in speed. Beside the times stands what they are held against: the frames that must be
decoded for the clips, counted, and where our time goes.

Decoders that nobody may have installed are named with what would install them, and left out.

The videos are benchmark_videos.py, the readers benchmark_readers.py; benchmark_reading.py times them in turns,
benchmark_decoding.py says where our time goes, benchmark_workers.py what a DataLoader's workers do, and
benchmark_text.py prints it. `data_options` and `run_benchmark_data` are the row `data` of benchmark.py's KINDS.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from lightning_csn.benchmark_videos import MADE
from lightning_csn.terminal import DONE, note, positive, print_json, show_last

if TYPE_CHECKING:
    from lightning_csn.benchmark_videos import Source

SEED = 0  # of the random places


def data_options(parser: ArgumentParser) -> None:
    """Options of `benchmark data`."""
    parser.add_argument("--videos", nargs="+", metavar="FILE", help=f"to read of; default: one is made, {MADE}")
    parser.add_argument("--clip", type=frames_and_step, default=(32, 2), metavar="TxSTEP", help="default 32x2")
    parser.add_argument("--clips", type=positive, default=10, metavar="N", help="spread over a video; default 10")
    parser.add_argument(
        "--repeats", type=positive, default=21, metavar="N", help="of each reading; default %(default)s"
    )
    parser.add_argument(
        "--packed", metavar="SHARDS", help="what 'lightning-csn pack' made of them; default: they are packed first"
    )
    parser.add_argument(
        "--workers", type=positive, default=16, metavar="N", help="processes that read and cut; default 16"
    )
    parser.add_argument("--json", action="store_true", help="everything that was measured, as JSON")
    parser.epilog = (
        "Times are medians of opening a file, which is in the system's cache, and reading; CPU is processor time,\n"
        "which other programs disturb less. 'layout known': as in training with --data.index. Ratios are medians over\n"
        "the repeats, in each of which all read the same, against the fastest of the peers that give the same frames;\n"
        "they read the file itself, not its packed copy.\n"
        "The peers come with pip install 'lightning-csn[benchmark]'.\n\n"
        "examples:\n"
        "  lightning-csn benchmark data\n"
        "  lightning-csn benchmark data --videos my_videos/*.mp4 --clip 16x4 --json > data.json"
    )


def frames_and_step(text: str) -> tuple[int, int]:
    """Frames of a clip, and the step between them.

    >>> frames_and_step("32x2")
    (32, 2)
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"frames x step is needed, such as 32x2, got {text!r}")
    return int(match[1]), int(match[2])


def run_benchmark_data(args: Namespace) -> int:
    """Measure and print; also what was measured until it was stopped."""
    from lightning_csn.benchmark_text import as_text
    from lightning_csn.benchmark_videos import find_packed, open_source, pack_copies, write_video

    with ExitStack() as stack:
        stack.enter_context(one_thread())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lightning-csn-"))
        paths = args.videos
        if paths is None:
            note(f"a video is made: {MADE}")
            paths = [write_video(os.path.join(folder, "made.mp4"))]
        sources = [open_source(path) for path in dict.fromkeys(paths)]
        if args.packed is not None:
            find_packed(sources, args.packed)
        else:
            note("packing")
            pack_copies(sources, os.path.join(folder, "packed"))
        results = measure(sources, args.clip, clips=args.clips, repeats=args.repeats, workers=args.workers, tell=note)

        def show(result: dict[str, Any]) -> None:
            result = result | {"made": args.videos is None}
            if args.json:
                print_json(result)
            else:
                print(as_text(result))

        show_last(results, show)
    return DONE


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's, which scale and cut frames, as in a DataLoader's worker."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure(
    sources: Sequence[Source],
    clip: tuple[int, int],
    *,
    clips: int,
    repeats: int,
    workers: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Everything, as plain values: after each task all that there is so far. `tell` hears what is going on."""
    from lightning_csn.benchmark_decoding import shares_of
    from lightning_csn.benchmark_readers import find_ways
    from lightning_csn.benchmark_reading import ratios, read_in_turns, row
    from lightning_csn.benchmark_videos import describe
    from lightning_csn.benchmark_workers import measure_dataset, training_clip
    from lightning_csn.data.sampling import clip_at, spread_clips

    length, step = clip
    ways, absent = find_ways()
    places = random.Random(SEED)
    one, spread = [], []
    for source in sources:
        starts = max(1, source.num_frames - (length - 1) * step)
        drawn = [places.randrange(starts) for _ in range(repeats)]
        one.append([sorted(set(clip_at(start, source.num_frames, length=length, step=step))) for start in drawn])
        all_clips = spread_clips(source.num_frames, length=length, step=step, count=clips)
        spread.append([sorted({number for numbers in all_clips for number in numbers})] * repeats)
    spec = training_clip(clip)
    each = max(2, repeats // 4)

    def in_turns(numbers: Sequence[Sequence[Sequence[int]]]) -> dict[str, Any]:
        rows = [row(found) for found in read_in_turns(ways, sources, numbers)]
        return {"ways": rows, "ratios": ratios(rows)}

    def in_workers(paths: Sequence[str]) -> dict[str, Any]:
        return measure_dataset(paths, spec, workers=workers, clips_each=each)

    tasks: dict[tuple[str, ...], tuple[str, Callable[[], Any]]] = {
        ("random_clip",): ("one random clip", lambda: in_turns(one)),
        ("spread_clips",): (f"{clips} clips of one video", lambda: in_turns(spread)),
        ("shares",): ("where our time goes", lambda: shares_of(sources, one)),
        ("dataset", "files"): (
            f"reading and cutting, {workers} processes",
            lambda: in_workers([source.path for source in sources]),
        ),
        ("dataset", "packed"): (
            f"reading and cutting from the packed copy, {workers} processes",
            lambda: in_workers([source.packed for source in sources]),
        ),
    }
    result: dict[str, Any] = {
        "benchmark": "data",
        "settings": {"clip": list(clip), "clips": clips, "repeats": repeats, "workers": workers},
        "machine": versions(),
        "videos": [describe(source) for source in sources],
        "absent": absent,
        "dataset": {},
    }
    left = [title for title, _ in tasks.values()]
    for (*above, name), (title, task) in tasks.items():
        tell(title)
        (result["dataset"] if above else result)[name] = task()
        left.remove(title)
        yield result | {"not_measured": list(left)}


def versions() -> dict[str, Any]:
    """What a number depends on."""
    import importlib.metadata

    import av
    import torch

    from lightning_csn.benchmark_machine import machine
    from lightning_csn.data.crew import usable_processors

    found: dict[str, Any] = {"av": av.__version__, "av_ffmpeg": getattr(av, "ffmpeg_version_info", None)}
    for name in ("decord", "torchcodec"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return machine(torch.device("cpu")) | found | {"cores": usable_processors()}
