"""`lightning-csn benchmark data`: how fast clips are read here, against decord and torchcodec, on the same files.

Measured in turns in one run, on one thread, at one size of the frames: one clip at a random place of a video that is
opened for it, as in training; several clips spread over a video, as in testing; the same random clip from a packed
copy; and the whole of what a DataLoader's worker does. Every reader's frames are compared with ours, and one whose
frames are others is not compared in speed. Beside the times stands what they are held against: the frames that must be
decoded for the clips, counted, and where our time goes.

Decoders that nobody may have installed are named with what would install them, and left out.

`data_options` and `run_benchmark_data` are the row `data` of benchmark.py's KINDS.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import statistics
import tempfile
import time
import warnings
from argparse import ArgumentParser, Namespace
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_csn.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lightning_csn.clip import ClipSpec
    from lightning_csn.data.video import VideoLayout

SECONDS, RATE, HEIGHT, WIDTH = 10, 30, 256, 340  # of the video that is made
MADE = f"{WIDTH}x{HEIGHT}, {SECONDS} s, {RATE} fps, h264 as x264 writes it by default"
CROP, SHORT_SIDE = 224, 256  # of training clips
AGREEMENT = 2.5  # mean difference, of 255, of what are the same frames: 0 as a rule
AGREEMENT_SCALED = 5.0  # 1 to 2 in films: some scale luma and chroma, some red, green and blue
AGREEMENT_PACKED = 12.0  # they were encoded anew
SEED = 0  # of the random places
START_SECONDS = 120.0  # that processes may take to import torch, on a busy machine
OURS, KNOWN, PACKED = "ours", "ours, layout known", "ours, packed"


class Timing(NamedTuple):
    """Seconds by the clock, and of the processor, which other programs disturb less."""

    seconds: float
    cpu_seconds: float


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


@dataclass(frozen=True)
class Way:
    """One of the ways to read the same frames."""

    name: str
    read: Callable[[Source, Sequence[int]], Any]
    peer: bool = False
    agreement: float = AGREEMENT


@dataclass
class Measured:
    """A way and its times; difference: of its frames from ours, the mean over a clip, of the worst video.

    agreement: the largest difference of what are the same frames.
    """

    way: Way
    agreement: float = AGREEMENT
    timings: list[Timing] = field(default_factory=list)
    difference: float | None = None
    error: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether it was measured, and gave the frames that we gave."""
        return self.error is None and self.difference is not None and self.difference <= self.agreement

    @property
    def median(self) -> Timing:
        """Of a reading."""
        return Timing(*(statistics.median(column) for column in zip(*self.timings, strict=True)))


# ---------------------------------------------------------------- options


def data_options(parser: ArgumentParser) -> None:
    """Options of `benchmark data`."""
    from lightning_csn.cli import positive

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
    """Measure and print."""
    from lightning_csn.cli import DONE, note, print_json

    with ExitStack() as stack:
        stack.enter_context(one_thread())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lightning-csn-"))
        paths = args.videos
        if paths is None:
            note(f"a video is made: {MADE}")
            paths = [write_video(os.path.join(folder, "made.mp4"))]
        sources = [open_source(path) for path in dict.fromkeys(paths)]
        if args.packed is not None:
            find_copies(sources, args.packed)
        else:
            note("packing")
            pack_copies(sources, os.path.join(folder, "packed"))
        result = measure(sources, args.clip, clips=args.clips, repeats=args.repeats, workers=args.workers, tell=note)
        result["made"] = args.videos is None
    if args.json:
        print_json(result)
    else:
        print(as_text(result))
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


# ---------------------------------------------------------------- the videos


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


def pack_copies(sources: Sequence[Source], folder: str) -> None:
    """Pack the videos as `lightning-csn pack` does, into a new folder, and note where the copies are."""
    from lightning_csn.data.packing import Encoding, pack
    from lightning_csn.data.samples import Collection, Sample

    samples = [Sample(source.path, 0, number) for number, source in enumerate(sources)]
    pack(
        Collection({"train": samples}, ["any"], "a list", False),
        folder,
        encoding=Encoding(),
        workers=cores(),
        on_unreadable="raise",
    )
    find_copies(sources, folder)


def find_copies(sources: Sequence[Source], root: str) -> None:
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


# ---------------------------------------------------------------- the readers


def read_ours(source: Source, numbers: Sequence[int]) -> Tensor:
    """By the reader that training uses."""
    from lightning_csn.data.reading import open_video

    with open_video(source.path) as video:
        return video.frames(numbers, size=source.size)


def read_known(source: Source, numbers: Sequence[int]) -> Tensor:
    """By the same, told what an index of the videos holds."""
    from lightning_csn.data.reading import open_video

    with open_video(source.path, layout=source.layout) as video:
        return video.frames(numbers, size=source.size)


def read_packed(source: Source, numbers: Sequence[int]) -> Tensor:
    """By the same, from the packed copy."""
    from lightning_csn.data.reading import open_video

    with open_video(source.packed) as video:
        return video.frames(numbers, size=source.size)


def decord_way() -> Way:
    """InputError where decord is missing."""
    try:
        import decord
    except (ImportError, OSError) as error:  # OSError: a library that it needs
        raise InputError("not installed; pip install 'lightning-csn[benchmark]' where it has wheels") from error

    def read(source: Source, numbers: Sequence[int]) -> np.ndarray:
        height, width = source.size if source.scaled else (-1, -1)
        reader = decord.VideoReader(source.path, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
        return reader.get_batch(list(numbers)).asnumpy()

    return Way("decord", read, peer=True)


def torchcodec_way(seek_mode: str) -> Way:
    """exact looks at all packets first, approximate trusts the header. InputError where torchcodec is missing."""
    from lightning_csn.data.torchcodec_video import find_decoder

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
    ways = [Way(OURS, read_ours), Way(KNOWN, read_known), Way(PACKED, read_packed, agreement=AGREEMENT_PACKED)]
    absent = {}
    for name, make in PEERS.items():
        try:
            ways += make()
        except InputError as error:
            absent[name] = str(error)
    return ways, absent


# ---------------------------------------------------------------- measuring


def measure(
    sources: Sequence[Source],
    clip: tuple[int, int],
    *,
    clips: int,
    repeats: int,
    workers: int,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything, as plain values. `tell` hears what is going on."""
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
    tell("one random clip")
    one_rows = [row(each) for each in read_in_turns(ways, sources, one)]
    tell(f"{clips} clips of one video")
    spread_rows = [row(each) for each in read_in_turns(ways, sources, spread)]
    tell(f"reading and cutting, {workers} processes")
    spec = training_clip(clip)
    each = max(2, repeats // 4)
    return {
        "benchmark": "data",
        "settings": {"clip": list(clip), "clips": clips, "repeats": repeats, "workers": workers},
        "machine": versions(),
        "videos": [describe(source) for source in sources],
        "absent": absent,
        "random_clip": {"ways": one_rows, "ratios": ratios(one_rows)},
        "spread_clips": {"ways": spread_rows, "ratios": ratios(spread_rows)},
        "shares": shares_of(sources, one),
        "dataset": {
            "files": measure_dataset([source.path for source in sources], spec, workers=workers, clips_each=each),
            "packed": measure_dataset([source.packed for source in sources], spec, workers=workers, clips_each=each),
        },
    }


def read_in_turns(
    ways: Sequence[Way], sources: Sequence[Source], numbers: Sequence[Sequence[Sequence[int]]]
) -> list[Measured]:
    """Every way reads the same frames: numbers[video][repeat]. The first in turn is another one each time."""
    least = AGREEMENT_SCALED if any(source.scaled for source in sources) else AGREEMENT
    measured = [Measured(way, agreement=max(way.agreement, least)) for way in ways]
    for each in measured:  # libraries are loaded, and the file is in the cache, before anything is timed
        with expected_failures(each):
            differences = [
                difference(each.way.read(source, rounds[0]), read_ours(source, rounds[0]))
                for source, rounds in zip(sources, numbers, strict=True)
            ]
            each.difference = max(differences)
    for repeat in range(len(numbers[0])):
        for source, rounds in zip(sources, numbers, strict=True):
            first = repeat % len(measured)
            for each in measured[first:] + measured[:first]:
                if each.error is None:
                    with expected_failures(each):
                        each.timings.append(timed(each.way.read, source, rounds[repeat]))
    return measured


@contextmanager
def expected_failures(measured: Measured) -> Iterator[None]:
    """What a peer says about a file that it cannot read: it is left out, with the reason."""
    try:
        yield
    except decoder_errors() as error:
        if not measured.way.peer:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        measured.error = lines[0]


def decoder_errors() -> tuple[type[Exception], ...]:
    """What decoders raise; decord has an error of its own, which is no RuntimeError."""
    try:
        from decord import DECORDError
    except (ImportError, OSError):
        return (RuntimeError, ValueError, IndexError, OSError)
    return (RuntimeError, ValueError, IndexError, OSError, DECORDError)


def timed(function: Callable[..., Any], *arguments: Any) -> Timing:
    """What a call takes."""
    start, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return Timing(time.perf_counter() - start, time.process_time() - cpu)


def difference(theirs: Any, ours: Tensor) -> float:
    """Mean absolute difference of frames (T, H, W, C), of 255; all of it where the shapes differ."""
    import torch

    theirs = torch.as_tensor(theirs)
    return 255.0 if theirs.shape != ours.shape else float((theirs.float() - ours.float()).abs().mean())


def row(measured: Measured) -> dict[str, Any]:
    """A way as plain values."""
    way = measured.way
    values: dict[str, Any] = {"name": way.name, "peer": way.peer, "error": measured.error}
    values |= {"difference": measured.difference, "agrees": measured.agrees}
    if measured.error is None:
        median = measured.median
        values |= {"ms": 1e3 * median.seconds, "cpu_ms": 1e3 * median.cpu_seconds}
        values |= {"seconds": [timing.seconds for timing in measured.timings]}
        values |= {"cpu_seconds": [timing.cpu_seconds for timing in measured.timings]}
    return values


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many times as fast each way of ours is as the fastest peer that gives the same frames.

    The medians of what is found in each repeat, in which all read the same: what else the machine does comes and goes.

    >>> rows = [{"name": "ours", "peer": False, "agrees": True, "seconds": [5, 9, 1], "cpu_seconds": [5, 5, 5]},
    ...         {"name": "a", "peer": True, "agrees": True, "seconds": [10, 18, 9], "cpu_seconds": [12, 12, 12]},
    ...         {"name": "b", "peer": True, "agrees": True, "seconds": [11, 19, 9], "cpu_seconds": [11, 11, 11]},
    ...         {"name": "c", "peer": True, "agrees": False, "seconds": [1, 1, 1], "cpu_seconds": [1, 1, 1]}]
    >>> ratios(rows)
    {'ours': {'against': 'a', 'speed': 2.0, 'cpu_against': 'b', 'cpu_speed': 2.2}}
    """
    peers = [each for each in rows if each["peer"] and each["agrees"]]
    if not peers:
        return {}
    best, best_cpu = (
        min(peers, key=lambda each: statistics.median(each[clock])) for clock in ("seconds", "cpu_seconds")
    )

    def speed(ours: dict[str, Any], theirs: dict[str, Any], clock: str) -> float:
        return statistics.median(b / a for a, b in zip(ours[clock], theirs[clock], strict=True))

    return {
        each["name"]: {
            "against": best["name"],
            "speed": speed(each, best, "seconds"),
            "cpu_against": best_cpu["name"],
            "cpu_speed": speed(each, best_cpu, "cpu_seconds"),
        }
        for each in rows
        if not each["peer"] and each["agrees"]
    }


def versions() -> dict[str, Any]:
    """What a number depends on."""
    import importlib.metadata

    import av
    import torch

    from lightning_csn.benchmark_machine import machine

    found: dict[str, Any] = {"av": av.__version__, "av_ffmpeg": getattr(av, "ffmpeg_version_info", None)}
    for name in ("decord", "torchcodec"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return machine(torch.device("cpu")) | found | {"cores": cores()}


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


# ---------------------------------------------------------------- where our time goes


def shares_of(sources: Sequence[Source], numbers: Sequence[Sequence[Sequence[int]]]) -> dict[str, Any]:
    """Milliseconds of a random clip, by what they go into, and how many frames were decoded for it.

    needed: frames that were asked for, and those from the keyframe on that they may refer to.
    from_keyframe: all frames from the keyframe to the last that was asked for, by order of decoding.
    Both are 0 where the times of a video do not tell in which order its frames are decoded.
    """
    clock: defaultdict[str, float] = defaultdict(float)
    needed = through = 0
    orders = [decoding_order(source) for source in sources]
    if not all(orders):
        orders = [[] for _ in sources]  # a mean over the others would be held against what all took
    for source, order, rounds in zip(sources, orders, numbers, strict=True):
        for wanted in rounds:
            start = time.perf_counter()
            with watched_video(source.path, clock) as video:
                opened = time.perf_counter()
                clock["frames to open"] += clock.pop("frames", 0)
                video.frames(wanted, size=source.size)
            clock["frames to read"] += clock.pop("frames", 0)
            clock["open"] += opened - start
            clock["read"] += time.perf_counter() - opened
            counted = count_needed(order, wanted)
            needed, through = needed + counted[0], through + counted[1]
    clips = sum(map(len, numbers))
    return {
        "ms": {
            "opening": 1e3 * clock["open"] / clips,
            "demuxing and decoding": 1e3 * (clock["read"] - clock["convert"]) / clips,
            "converting": 1e3 * clock["convert"] / clips,
        },
        "frames": {
            "asked_for": sum(len(wanted) for rounds in numbers for wanted in rounds) / clips,
            "needed": needed / clips,
            "decoded": clock["frames to read"] / clips,
            "from_keyframe": through / clips,
        },
    }


class Coded(NamedTuple):
    """A frame in the order in which frames lie in the file. number: in the order in which they are shown."""

    number: int
    is_keyframe: bool
    is_reference: bool


def decoding_order(source: Source) -> list[Coded]:
    """The frames of a video as they are decoded; FFmpeg says which of them others refer to, by decoding those alone."""
    import av

    from lightning_csn.data.video import OPEN_OPTIONS

    place = {time: number for number, time in enumerate(source.layout.times)}
    with av.open(f"file:{source.path}", **OPEN_OPTIONS) as container:
        stream: Any = container.streams.best("video")
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size]
    with av.open(f"file:{source.path}", **OPEN_OPTIONS) as container:
        stream = container.streams.best("video")
        stream.codec_context.skip_frame = "NONREF"
        references = {frame.pts for frame in container.decode(stream)}
    return [Coded(place[pts], keyframe, pts in references) for pts, keyframe in packets if pts in place]


def count_needed(order: Sequence[Coded], wanted: Sequence[int]) -> tuple[int, int]:
    """(Frames that must be decoded for these, all frames from the keyframes to them); 0 where the order is unknown.

    >>> order = [Coded(0, True, True), Coded(3, False, True), Coded(1, False, False), Coded(2, False, False)]
    >>> count_needed(order, [2])
    (3, 4)
    """
    places = {frame.number: place for place, frame in enumerate(order)}
    starts = [place for place, frame in enumerate(order) if frame.is_keyframe]
    last: dict[int, int] = {}  # place of a keyframe -> that of the last frame which is wanted after it
    for number in wanted:
        if number in places and starts and places[number] >= starts[0]:
            start = starts[bisect_right(starts, places[number]) - 1]
            last[start] = max(last.get(start, 0), places[number])
    return needed_between(order, last, set(wanted)), sum(end - start + 1 for start, end in last.items())


def needed_between(order: Sequence[Coded], last: dict[int, int], wanted: Set[int]) -> int:
    """How many frames between these places are referred to, or wanted."""
    spans = (order[start : end + 1] for start, end in last.items())
    return sum(frame.is_reference or frame.number in wanted for span in spans for frame in span)


def watched_video(path: str, clock: defaultdict[str, float]) -> Any:
    """A `Video` that adds to `clock` the seconds of its conversions, and the frames that come out of the decoder."""
    from lightning_csn.data.video import Video

    class WatchedVideo(Video):
        def _decode(self, packet: Any) -> Any:
            frames = super()._decode(packet)
            clock["frames"] += len(frames)
            return frames

        def _put(self, *arguments: Any) -> None:
            start = time.perf_counter()
            super()._put(*arguments)
            clock["convert"] += time.perf_counter() - start

    return WatchedVideo(path)


# ---------------------------------------------------------------- what a worker does


def training_clip(clip: tuple[int, int]) -> ClipSpec:
    """How clips are cut in training, by the published weights' crop."""
    from lightning_csn.clip import ClipSpec

    gray = (0.5, 0.5, 0.5)
    return ClipSpec(
        frames=clip[0], step=clip[1], fps=None, short_side=SHORT_SIDE, crop=CROP, test_crop=CROP, mean=gray, std=gray
    )


def measure_dataset(paths: Sequence[str], spec: ClipSpec, *, workers: int, clips_each: int) -> dict[str, Any]:
    """Clips a second that so many workers of a DataLoader read and cut, all at once, per core.

    The clock runs from when all have started, each waiting for the others, to the end of the last clip.
    """
    from torch import multiprocessing
    from torch.utils.data import DataLoader

    from lightning_csn.data.dataset import VideoDataset
    from lightning_csn.data.samples import Sample

    samples = [Sample(path, 0, number) for number, path in enumerate(paths)]
    dataset: Any = Stamped(VideoDataset(samples, spec, train=True), length=workers * clips_each)
    together = partial(wait_for_all, multiprocessing.Barrier(workers))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, on purpose
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=together)
        begins, ends, cpu_seconds = zip(*loader, strict=True)
    in_cores = min(workers, cores())
    rate = len(ends) / (max(ends) - min(begins))
    return {
        "workers": workers,
        "cores": in_cores,
        "crop": spec.crop,
        "clips_per_second": rate,
        "clips_per_second_per_core": rate / in_cores,
        "clips_per_cpu_second": len(ends) / sum(cpu_seconds),
    }


def wait_for_all(barrier: Any, worker: int) -> None:
    """Have a worker wait until all are there."""
    barrier.wait(START_SECONDS)


class Stamped:
    """A dataset over and over, of which only clocks travel back: when a clip was begun and done, what it took."""

    def __init__(self, dataset: Any, length: int) -> None:
        self.dataset = dataset
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        begin, cpu = time.perf_counter(), time.process_time()
        item = self.dataset[index % len(self.dataset)]
        if "error" in item:
            raise InputError(item["error"])
        return begin, time.perf_counter(), time.process_time() - cpu


# ---------------------------------------------------------------- text


def as_text(result: dict[str, Any]) -> str:
    """A result as a person reads it."""
    settings, where, videos = result["settings"], result["machine"], result["videos"]
    names = [f"{name} {where[name]}" for name in ("av", "decord", "torchcodec", "torch") if where[name]]
    clip = "x".join(map(str, settings["clip"]))
    lines = [
        f"clips {clip}, one thread, medians of {settings['repeats'] * len(videos)}",
        f"{where['device']}, {where['cores']} cores, {', '.join(names)}",
        *map(video_text, videos[:3]),
    ]
    if result["made"]:
        lines.append(f"the video was made for this: {MADE}")
    if len(videos) > 3:
        lines.append(f"and {len(videos) - 3} more videos")
    lines += [f"{name}: {reason}" for name, reason in result["absent"].items()]
    for task, title in (
        ("random_clip", "one clip at a random place, opened and read"),
        ("spread_clips", f"{settings['clips']} clips spread over a video, opened and read in one pass"),
    ):
        lines += ["", title, "", *task_text(result[task])]
    lines += ["", *shares_text(result["shares"])]
    lines.append("")
    for name, speed in result["dataset"].items():
        lines.append(
            f"reading and cutting to {speed['crop']}x{speed['crop']}, {name}: "
            f"{speed['clips_per_second_per_core']:.1f} clips/s per core, {speed['workers']} workers' worth "
            f"({speed['clips_per_cpu_second']:.1f} per second of processor time, {speed['cores']} cores)"
        )
    return "\n".join(lines)


def video_text(video: dict[str, Any]) -> str:
    """A video in a line."""
    fps = "" if video["fps"] is None else f" at {video['fps']:.4g} fps"
    frames = f"{video['frames']} frames{fps}, {video['keyframes']} keyframes"
    name = Path(video["path"]).name
    return f"{name}: {video['codec']}, {video['width']}x{video['height']}, {frames}, {video['bytes'] / 1e6:.2f} MB"


def task_text(task: dict[str, Any]) -> list[str]:
    """The table of a task, and its ratios."""
    from lightning_csn.cli import table

    rows = [("WAY", "MS", "CPU MS", "READINGS/S", "DIFFERENCE")]
    for each in task["ways"]:
        if each["error"] is not None:
            rows.append((each["name"], "-", "-", "-", each["error"]))
            continue
        away = f"{each['difference']:.2f}" + ("" if each["agrees"] else ", other frames: not compared")
        rows.append((each["name"], f"{each['ms']:.1f}", f"{each['cpu_ms']:.1f}", f"{1e3 / each['ms']:.1f}", away))
    lines = [table(rows), ""]
    for name, ratio in task["ratios"].items():
        lines.append(
            f"{name}: {ratio['speed']:.2f} times as fast as the fastest of the peers, {ratio['against']}; "
            f"by processor time {ratio['cpu_speed']:.2f} times ({ratio['cpu_against']})"
        )
    return lines if task["ratios"] else [*lines, "no peer gave the same frames: no ratio"]


def shares_text(shares: dict[str, Any]) -> list[str]:
    """Where our time goes."""
    parts, frames = shares["ms"], shares["frames"]
    total = math.fsum(parts.values())
    text = ", ".join(f"{name} {value:.1f} ms ({value / total:.0%})" for name, value in parts.items())
    lines = [f"a random clip of ours: {text}"]
    if frames["needed"]:
        lines.append(
            f"frames a clip: {frames['asked_for']:.0f} asked for, {frames['needed']:.1f} must be decoded "
            f"(these, and what they may refer to), {frames['decoded']:.1f} came out of the decoder, "
            f"{frames['from_keyframe']:.1f} lie between the keyframe and the last"
        )
    return lines
