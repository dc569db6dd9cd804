"""What there is to know of a collection before training: every file is read, and what is wrong with any is found.

`read_files` reads them, in processes of their own, since a broken file may end or hang its reader; it goes on from an
index. `find_copies` finds files with the same content. `examine` makes a Report of both: arithmetic, no file is opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import torch

from lightning_csn.clip import ClipSpec
from lightning_csn.data import shards
from lightning_csn.data.annotations import deep_classes
from lightning_csn.data.crew import Alive, Failure, run_apart
from lightning_csn.data.index import Entry, IndexWriter, Stamp, VideoIndex, absolute, is_of_another_version, stamp_of
from lightning_csn.data.reading import Reader, open_video
from lightning_csn.data.samples import Collection, Part, Sample
from lightning_csn.data.sampling import part_frames, resample
from lightning_csn.data.splits import UCF101_GROUP
from lightning_csn.data.video import OPEN_OPTIONS, Video, VideoError, VideoInfo, VideoLayout
from lightning_csn.errors import InputError

_log = logging.getLogger(__name__)

UNREADABLE_LIMIT = 0.1  # of a split, as in VideoDataModule
READ_SECONDS = 60.0  # that the packets of a file, or a frame of it, may take
PREDICT = "predict"  # the split of videos without classes, which predict takes
UNSAFE, WARNING, NOTE = "unsafe", "warning", "note"  # levels of a problem, the worst first
LARGEST_IMBALANCE = 5  # the largest class by the smallest; beyond it accuracy says little of the small ones
SMALLEST_SHARE_PROMISED = 0.9  # of the frames that a header promises; real ones are off by a few (edit lists, HMDB51)
BINS = 12  # of the histogram of lengths
PICTURE_WIDTH, PICTURE_FRAMES = 128, 3  # pixels of a frame's longer side in the report's pictures, and how many frames


# ---------------------------------------------------------------- reading


class Look(NamedTuple):
    """A file to look at, and whether to decode all of it."""

    path: str
    decode: bool


def read_files(
    paths: Iterable[str],
    *,
    index: str | os.PathLike[str] | None = None,
    decode: bool = False,
    workers: int = 1,
    seconds: float = READ_SECONDS,
) -> Iterator[tuple[str, Entry | None]]:
    """Each path, in any order, with what was found in its file; None for a file that is not there.

    index: where entries are kept, and taken from where the file has not changed; each is written at once, so that
        whoever stops loses nothing. One of another version of this package is begun anew. Files that could not be read
        are read again, for that may have been the machine's fault or that of an older FFmpeg; and those whose frames
        were not decoded, where `decode` asks for it.
    decode: decode every frame too, and count them.
    seconds: that a file's packets, or each frame of it, may take.
    """
    if index is not None and is_of_another_version(index):
        _log.warning("%s: another version of this package wrote it, which knew other things; it is begun anew", index)
        Path(index).expanduser().unlink()
    known = None if index is None or not _holds_something(index) else VideoIndex.read(index)
    tasks = []
    writer = None if index is None else IndexWriter(index)
    try:
        for path in dict.fromkeys(paths):
            entry = None if known is None else known.find(path)
            if entry is not None and entry.error is None and (entry.decoded is not None or not decode):
                yield path, entry
            elif stamp_of(path) is None:
                yield path, None
            else:
                tasks.append(Look(path, decode))
        for task, outcome in run_apart(look, tasks, workers=workers, seconds=seconds):
            if isinstance(outcome, Failure):  # not kept: training, which has a watchdog, is to see for itself
                yield task.path, _entry(task.path, error=f"{task.path}: {outcome.reason}")
                continue
            if outcome is not None and writer is not None:
                writer.add(outcome)
            yield task.path, outcome
    finally:
        if writer is not None:
            writer.close()


def _holds_something(index: str | os.PathLike[str]) -> bool:
    file = Path(index).expanduser()
    return file.is_file() and file.stat().st_size > 0


def _entry(path: str, **found: Any) -> Entry | None:
    stamp = stamp_of(path)
    return None if stamp is None else Entry(path=absolute(path), bytes=stamp.bytes, mtime_ns=stamp.mtime_ns, **found)


def look(task: Look, alive: Alive) -> Entry | Failure | None:
    """What a file holds; None where it is not there (any more); Failure where the machine is at fault."""
    torch.set_num_threads(1)
    path = task.path
    try:
        with _open(path) as video:
            alive()
            layout = video.layout.to_dict() if isinstance(video, Video) else None
            found = {"info": video.info, "layout": layout, "promised": _promised(video)}
            if task.decode:
                found |= decode_all(video, alive)._asdict()
    except VideoError as error:
        return _entry(path, error=str(error))
    except (OSError, MemoryError) as error:
        return Failure(getattr(error, "strerror", None) or "there is not enough memory for it")
    return _entry(path, **found)


def _open(path: str) -> Reader:
    """A video, whose packets are looked at even where a shard says what they are."""
    return Video(shards.read_member(path), name=path) if shards.is_member(path) else open_video(path)


class Decoded(NamedTuple):
    """decoded: frames that came out. damaged: those of them that the decoder had to make up in part. fault: FFmpeg's
    last complaint, None where there was none.
    """

    decoded: int
    damaged: int
    fault: str | None


def decode_all(video: Reader, alive: Alive) -> Decoded:
    """Decode every frame of an open video and keep none."""
    if not isinstance(video, Video):
        return _read_each(video, alive)
    frames = damaged = 0
    fault: str | None = None
    with _open_again(video) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                fault, packet = error.strerror, None
            if packet is not None and not packet.size:
                continue  # the empty one at the end; what the decoder still holds comes with None
            try:
                for frame in stream.codec_context.decode(packet):
                    frames += 1
                    damaged += bool(frame.is_corrupt)
                    alive()
            except av.FFmpegError as error:
                fault = error.strerror
            if packet is None:
                return Decoded(frames, damaged, fault)


def _read_each(video: Reader, alive: Alive) -> Decoded:
    frames, fault = 0, None
    for number in range(video.info.num_frames):
        try:
            video.frames([number], size=(16, 16))
            frames += 1
        except VideoError as error:
            fault = str(error)
        alive()
    return Decoded(frames, 0, fault)


def _open_again(video: Video) -> Any:
    path = video.path
    source = io.BytesIO(shards.read_member(path)) if shards.is_member(path) else f"file:{path}"
    return av.open(source, **OPEN_OPTIONS)


def _promised(video: Reader) -> int | None:
    """How many frames the header says that there are; None where it does not."""
    if not isinstance(video, Video):
        return None
    with _open_again(video) as container:
        return container.streams.best("video").frames or None


def find_copies(stamps: Mapping[str, Stamp], *, workers: int = 1) -> list[list[str]]:
    """Groups of videos with the same content, two or more each, sorted.

    Those of one size are compared by the SHA-256 of all their bytes; empty ones are left out, as are folders of frames
    and shards at an address. A file and a link to it are copies too.
    """
    by_size: dict[int, list[str]] = {}
    for path, stamp in stamps.items():
        if shards.is_member(path):
            member = shards.parse_member(path)
            if not shards.is_address(member.shard):
                by_size.setdefault(member.bytes, []).append(path)
        elif stamp.bytes and os.path.isfile(path):
            by_size.setdefault(stamp.bytes, []).append(path)
    candidates = [path for paths in by_size.values() if len(paths) > 1 for path in paths]
    by_content: dict[str, list[str]] = {}
    with ThreadPoolExecutor(workers) as threads:  # hashing lets other threads run
        for path, content in zip(candidates, threads.map(_hash, candidates), strict=True):
            if content is not None:
                by_content.setdefault(content, []).append(path)
    return sorted(sorted(paths) for paths in by_content.values() if len(paths) > 1)


def _hash(path: str) -> str | None:
    digest = hashlib.sha256()
    try:
        if shards.is_member(path):
            digest.update(shards.read_member(path))
        else:
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except (OSError, VideoError):  # its entry says so
        return None
    return digest.hexdigest()


def take_picture(path: str, alive: Alive) -> bytes | None:
    """A strip of frames from beginning to end as JPEG; None where there is nothing to show."""
    from PIL import Image

    try:
        with _open(path) as video:
            alive()
            info = video.info
            numbers = [(2 * i + 1) * info.num_frames // (2 * PICTURE_FRAMES) for i in range(PICTURE_FRAMES)]
            frames = video.frames(numbers, size=picture_size(info.height, info.width))  # (T, H, W, C)
    except (VideoError, OSError, MemoryError):
        return None
    strip = torch.cat(list(frames), dim=1).contiguous()
    jpeg = io.BytesIO()
    Image.fromarray(strip.numpy()).save(jpeg, "JPEG", quality=70, optimize=True)
    return jpeg.getvalue()


def picture_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of a frame in a picture: PICTURE_WIDTH wide or high, the other side a quarter of it at least.

    >>> picture_size(1080, 1920), picture_size(1920, 1080), picture_size(2, 300), picture_size(9, 1)
    ((72, 128), (128, 72), (32, 128), (128, 32))
    """
    scale = PICTURE_WIDTH / max(height, width)
    least = PICTURE_WIDTH // 4  # a film of a few pixels in one direction is stretched, to be seen at all
    return max(least, round(height * scale)), max(least, round(width * scale))


def take_pictures(paths: Iterable[str], *, workers: int, seconds: float = READ_SECONDS) -> Iterator[tuple[str, bytes]]:
    """Each path that a picture could be made of, with its strip of frames as JPEG."""
    for path, picture in run_apart(take_picture, dict.fromkeys(paths), workers=workers, seconds=seconds):
        if isinstance(picture, bytes):
            yield path, picture


# ---------------------------------------------------------------- the report


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was found: a sentence, how bad it is, and where.

    files: each with what is to be said of it alone, maybe "".
    """

    level: str
    kind: str
    text: str
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What the clip does with a video, or a part of one.

    num_frames: after resampling. short: fewer than the clip needs, so that frames are repeated. repeated: how many
    of the clip's frames are then there already. resampled: whether its rate is not the clip's. upscaled: by what its
    short side grows to the clip's, 1 where it does not.
    """

    num_frames: int
    short: bool
    repeated: int
    resampled: bool
    upscaled: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """A sample and what is known of it. error: why it cannot be used; then there is no seconds, num_frames and fate."""

    split: str
    path: str
    classes: tuple[str, ...]
    part: Part | None
    entry: Entry | None
    error: str | None
    missing: bool
    num_frames: int | None
    seconds: float | None
    fate: Fate | None


@dataclass(frozen=True)
class Bin:
    """A bar of a histogram: from `start` up to `end`, which is not included; end None is all that is longer."""

    start: float
    end: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found.

    counts: split -> class -> (readable, all). seconds, frames: the least, the median, the most of a sample; seconds is
    None where no video has a rate. lengths: a histogram of seconds, or else of frames. properties: of files, each
    counted once.
    """

    root: str
    layout: str
    classes: tuple[str, ...]
    clip: ClipSpec | None
    decoded: bool
    problems: tuple[Problem, ...]
    rows: tuple[Row, ...]
    counts: dict[str, dict[str, tuple[int, int]]]
    lengths: tuple[Bin, ...]
    seconds: tuple[float, float, float] | None
    frames: tuple[int, int, int] | None
    properties: dict[str, dict[str, int]]

    @property
    def safe(self) -> bool:
        """Whether nothing was found that makes training pointless or its figures wrong."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why it is not safe to train."""
        return [problem.text for problem in self.problems if problem.level == UNSAFE]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        return {
            "root": self.root,
            "layout": self.layout,
            "safe": self.safe,
            "reasons": self.reasons,
            "classes": list(self.classes),
            "clip": None if self.clip is None else self.clip.to_dict(),
            "decoded": self.decoded,
            "problems": [
                {
                    "level": problem.level,
                    "kind": problem.kind,
                    "text": problem.text,
                    "files": [{"path": path, "reason": reason} for path, reason in problem.files],
                }
                for problem in self.problems
            ],
            "counts": {
                split: {name: {"readable": readable, "videos": videos} for name, (readable, videos) in counts.items()}
                for split, counts in self.counts.items()
            },
            "seconds": _spread_dict(self.seconds),
            "frames": _spread_dict(self.frames),
            "lengths": [asdict(bar) for bar in self.lengths],
            "properties": self.properties,
            "videos": [_row_dict(row) for row in self.rows],
        }


def _spread_dict(spread: tuple[float, float, float] | None) -> dict[str, float] | None:
    return None if spread is None else dict(zip(("min", "median", "max"), spread, strict=True))


def _row_dict(row: Row) -> dict[str, Any]:
    info = None if row.entry is None else row.entry.info
    return {
        "path": row.path,
        "split": row.split,
        "classes": list(row.classes),
        "part": None if row.part is None else row.part._asdict(),
        "error": row.error,
        "missing": row.missing,
        "num_frames": row.num_frames,
        "seconds": row.seconds,
        "bytes": None if row.entry is None else row.entry.bytes,
        "decoded": None if row.entry is None else row.entry.decoded,
        "damaged": None if row.entry is None else row.entry.damaged,
        "fault": None if row.entry is None else row.entry.fault,
        "file": None if info is None else asdict(info),
        "fate": None if row.fate is None else asdict(row.fate),
    }


def examine(
    collection: Collection,
    entries: Mapping[str, Entry | None],
    copies: Sequence[Sequence[str]] = (),
    *,
    root: str = "",
    clip: ClipSpec | None = None,
    decoded: bool = False,
    limit: float = UNREADABLE_LIMIT,
    frames_fps: float | None = None,
) -> Report:
    """All that is to be said of a collection.

    entries: of each path, None where there is no file. copies: see find_copies. limit: the share of a split that may
    be unreadable. frames_fps: pictures per second of folders of frames.
    """
    classes = collection.classes
    if frames_fps is not None:
        entries = {path: _with_rate(entry, frames_fps) for path, entry in entries.items()}
    rows = [
        _row(split, sample, classes, entries.get(sample.path), clip)
        for split, samples in collection.samples.items()
        for sample in samples
    ]
    readable = [row for row in rows if row.error is None]  # pages of errors in place of videos are all the same
    counts = {split: _counts([row for row in rows if row.split == split], classes) for split in collection.samples}
    problems = [
        *_unusable(rows, limit),
        *_leaks(readable, copies),
        *_empty_classes(counts),
        *_damage(rows),
        *_groups(readable),
        *_splits(collection, counts),
        *_root(collection, root),
        *_unlabelled(rows),
        *_clip_problems(rows, clip),
        *_oddities(rows),
    ]
    levels = (UNSAFE, WARNING, NOTE)
    problems.sort(key=lambda problem: levels.index(problem.level))
    infos = [entry.info for entry in _files(rows).values() if entry.info is not None]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    frames = [row.num_frames for row in rows if row.num_frames is not None]
    return Report(
        root=root,
        layout=collection.layout,
        classes=tuple(classes),
        clip=clip,
        decoded=decoded,
        problems=tuple(problems),
        rows=tuple(rows),
        counts=counts,
        lengths=tuple(histogram(seconds or frames)),
        seconds=_spread(seconds),
        frames=_spread(frames),
        properties=_properties(infos),
    )


def _with_rate(entry: Entry | None, frames_fps: float) -> Entry | None:
    """What is known of a folder of frames, with its rate; other entries as they are."""
    if entry is None or entry.info is None or entry.layout is not None or entry.info.fps is not None:
        return entry
    return dataclasses.replace(entry, info=dataclasses.replace(entry.info, fps=frames_fps))


def _row(split: str, sample: Sample, classes: Sequence[str], entry: Entry | None, clip: ClipSpec | None) -> Row:
    labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
    num_frames = seconds = fate = None
    error = f"{sample.path}: no such file" if entry is None else entry.error
    if entry is not None and entry.info is not None:
        info, times = entry.info, _times(entry)
        try:
            part = range(info.num_frames)
            if sample.part is not None:
                part = part_frames(sample.part, info.num_frames, info.fps, times)
            num_frames = len(part)
            seconds = None if info.fps is None else num_frames / info.fps
            fate = None if clip is None else fate_of(info, clip, part=part, times=times)
        except InputError as refusal:
            error = f"{sample.path}: {refusal}"
    return Row(
        split=split,
        path=sample.path,
        classes=tuple(classes[label] if 0 <= label < len(classes) else "?" for label in labels),
        part=sample.part,
        entry=entry,
        error=error,
        missing=entry is None,
        num_frames=num_frames,
        seconds=seconds,
        fate=fate,
    )


def _times(entry: Entry) -> list[float] | None:
    """Seconds of each frame from the first, of a video whose rate varies; None of any other."""
    if entry.info is None or not entry.info.variable_rate or entry.layout is None:
        return None
    layout = VideoLayout.from_dict(entry.layout)
    if not layout.times or not layout.unit[0]:
        return None
    unit = layout.unit[0] / layout.unit[1]
    return [(time - layout.times[0]) * unit for time in layout.times]


def fate_of(
    info: VideoInfo, clip: ClipSpec, *, part: range | None = None, times: Sequence[float] | None = None
) -> Fate:
    """What the clip does with a video, or the frames of a part of it.

    >>> info = VideoInfo(num_frames=60, fps=60, height=120, width=160)
    >>> clip = ClipSpec(frames=8, step=5, fps=30, short_side=128, crop=112, test_crop=112,
    ...                 mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> fate_of(info, clip)  # 30 frames of the 36 that a clip spans: frames 0, 5, ... 25, and 29 twice
    Fate(num_frames=30, short=True, repeated=2, resampled=True, upscaled=1.0666666666666667)
    """
    part = range(info.num_frames) if part is None else part
    here = None if times is None else [times[number] for number in part]
    num_frames = len(resample(len(part), info.fps, clip.fps, here))
    return Fate(
        num_frames=num_frames,
        short=num_frames < clip.span,
        repeated=repeated(num_frames, clip),
        resampled=clip.fps is not None and info.fps is not None and abs(info.fps - clip.fps) > 0.001 * clip.fps,
        upscaled=max(1.0, clip.short_side / min(info.height, info.width)),
    )


def repeated(num_frames: int, clip: ClipSpec) -> int:
    """How many frames of a clip out of so many of a video are frames that it has already."""
    if clip.sampling == "segments":
        return max(0, clip.frames - num_frames)
    return sum(i * clip.step >= num_frames for i in range(clip.frames))


def _counts(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, tuple[int, int]]:
    every = Counter(name for row in rows for name in row.classes)
    readable = Counter(name for row in rows if row.error is None for name in row.classes)
    unknown = ["?"] if every["?"] else []
    return {name: (readable[name], every[name]) for name in [*classes, *unknown]}


def _files(rows: Iterable[Row]) -> dict[str, Entry]:
    return {row.path: row.entry for row in rows if row.entry is not None}


def _spread(values: Sequence[Any]) -> Any:
    return (min(values), statistics.median_low(values), max(values)) if values else None


def histogram(values: Sequence[float], bins: int = BINS) -> list[Bin]:
    """At most `bins` bars of equal width, in round numbers; the last takes what is far longer than all others.

    >>> for bar in histogram([0.5, 1.2, 1.4, 2.9, 100.0], bins=4):
    ...     print(bar.start, bar.end, bar.count)
    0.0 1.0 1
    1.0 2.0 2
    2.0 3.0 1
    3.0 None 1
    """
    if not values:
        return []
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    usual = ordered[min(len(ordered) - 1, int(0.98 * (len(ordered) - 1)))]
    exact = max((usual - low) / max(1, bins - 1), usual / 20, 1e-6)  # lengths that are nearly the same are one bar
    scale = 10.0 ** _exponent(exact)
    width = next(step * scale for step in (1, 2, 5, 10) if step * scale >= exact * (1 - 1e-9))
    first = int(low / width)
    count = min(bins, int(high / width) - first + 1)
    heights = [0] * count
    for value in ordered:
        heights[min(count - 1, int(value / width) - first)] += 1
    open_end = int(high / width) - first >= count
    edges = [round((first + i) * width, 9) for i in range(count + 1)]
    return [
        Bin(edges[i], None if open_end and i == count - 1 else edges[i + 1], height) for i, height in enumerate(heights)
    ]


def _exponent(value: float) -> int:
    """The power of ten of the first digit."""
    return int(f"{value:e}".partition("e")[2])


def _properties(infos: Sequence[VideoInfo]) -> dict[str, dict[str, int]]:
    """How many files there are of each size, rate, codec and so on, the most frequent first."""
    columns = {
        "size": [f"{info.width}x{info.height}" for info in infos],
        "rate": [rate_text(info.fps) + (" (varies)" if info.variable_rate else "") for info in infos],
        "codec": [info.codec or "unknown" for info in infos],
        "pixel format": [info.pixel_format or "unknown" for info in infos],
        "rotation": [f"{info.rotation}°" + (" mirrored" if info.mirrored else "") for info in infos],
    }
    return {name: dict(Counter(sorted(values)).most_common()) for name, values in columns.items()}


def rate_text(fps: float | None) -> str:
    """Frames per second as people write it.

    >>> rate_text(30000 / 1001), rate_text(25.0), rate_text(None)
    ('29.97 fps', '25 fps', 'unknown')
    """
    return "unknown" if fps is None else f"{fps:.2f}".rstrip("0").rstrip(".") + " fps"


# ---------------------------------------------------------------- problems


def _unusable(rows: Sequence[Row], limit: float) -> Iterator[Problem]:
    """Samples that are missing or unreadable, and splits with too many of them."""
    for split, there in _by_split(rows).items():
        bad = sum(row.error is not None for row in there)
        if bad == len(there):
            yield Problem(level=UNSAFE, kind="empty split", text=f"{split}: no video of {bad} can be read")
        elif bad > limit * len(there) and split != PREDICT:
            yield Problem(
                level=UNSAFE,
                kind="too many unreadable",
                text=f"{split}: {bad} of {_videos(len(there))} cannot be read, {bad / len(there):.1%}, more than the "
                f"limit of {limit:.0%} at which a run ends",
            )
    missing = {row.path: "" for row in rows if row.missing}
    if missing:
        yield _of_files(WARNING, "missing", "{} missing", missing)
    unreadable = {row.path: reason_of(row) for row in rows if row.error is not None and not row.missing}
    if unreadable:
        yield _of_files(WARNING, "unreadable", "{} cannot be read", unreadable)


def _damage(rows: Sequence[Row]) -> Iterator[Problem]:
    """Files that can be read, but not all of them."""
    damaged, cut = {}, {}
    for path, entry in _files(rows).items():
        if entry.info is None:
            continue
        wrong = []
        if entry.decoded is not None and entry.decoded != entry.info.num_frames:
            wrong.append(f"{entry.decoded} of {_frames(entry.info.num_frames)} can be decoded")
        if entry.damaged:
            wrong.append(f"{entry.damaged} of {_frames(entry.decoded or 0)} are damaged")
        if wrong:
            damaged[path] = ", ".join(wrong + ([entry.fault] if entry.fault else []))
        if entry.promised and entry.info.num_frames < SMALLEST_SHARE_PROMISED * entry.promised:
            cut[path] = f"{_frames(entry.info.num_frames)} of the {entry.promised} in the header"
    if damaged:
        yield _of_files(WARNING, "damaged", "{} damaged: a part of the picture, or the end, is missing", damaged)
    cut = {path: reason for path, reason in cut.items() if path not in damaged} | {
        path: f"{damaged[path]}; {reason}" for path, reason in cut.items() if path in damaged
    }
    if cut:
        yield _of_files(WARNING, "cut short", "{} shorter than the header says: cut off, or trimmed", cut)


def _leaks(rows: Sequence[Row], copies: Sequence[Sequence[str]]) -> Iterator[Problem]:
    """The same film in several splits, or twice in one."""
    content = {path: group[0] for group in copies for path in group}
    films: dict[str, list[Row]] = {}
    for row in rows:
        films.setdefault(content.get(row.path, row.path), []).append(row)
    leaked, tested_twice, parts, labels, twice = {}, {}, {}, {}, {}
    for there in films.values():
        if len(there) == 1:
            continue
        splits = sorted({_role(row.split) for row in there}, key=_order)
        overlap = len(splits) > 1 and any(_role(a.split) != _role(b.split) for a, b in _overlaps(there))
        where = "; ".join(f"{row.split}: {row.path}" for row in there[1:])
        first = f"{there[0].split}, and {where}"
        if len(splits) > 1 and not overlap:
            parts[there[0].path] = f"parts of it are in {', '.join(splits)}"
        elif len(splits) > 1 and splits[0] == "train":
            leaked[there[0].path] = first
        elif len(splits) > 1:
            tested_twice[there[0].path] = first
        elif any(a.classes != b.classes for a, b in _overlaps(there)):
            labels[there[0].path] = "; ".join(f"{' '.join(row.classes)}: {row.path}" for row in there)
        elif any(_overlaps(there)):
            others = ", ".join(dict.fromkeys(row.path for row in there[1:]))
            twice[there[0].path] = f"{there[0].split}: the same as {others}"
    if leaked:
        text = "{} both to train on and to test or validate on: figures on them are too good"
        yield _of_files(UNSAFE, "train and test", text, leaked)
    if labels:
        yield _of_files(WARNING, "two labels", "{} more than once, with different labels", labels)
    if parts:
        yield _of_files(WARNING, "parts in several splits", "{} in several splits, by different parts", parts)
    if tested_twice:
        yield _of_files(WARNING, "val and test", "{} both to validate and to test on", tested_twice)
    if twice:
        yield _of_files(NOTE, "twice", "{} more than once in a split", twice)


def _overlaps(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Pairs of rows of one video whose parts may share a frame: parts in seconds and in frames may."""
    parts = [row.part for row in rows]
    told = len({None if part is None else part.unit for part in parts} - {None}) < 2
    spans = sorted((part[:2] if told and part else (0.0, math.inf), i) for i, part in enumerate(parts))
    for place, ((_, end), i) in enumerate(spans):
        for after in range(place + 1, len(spans)):
            (start, _), j = spans[after]
            if start >= end:
                break
            yield rows[i], rows[j]


def _role(split: str) -> str:
    """What a split is for; a folder without splits is trained on."""
    return "train" if split == "all" else split


def _order(split: str) -> int:
    return ("train", "val", "test", PREDICT).index(split)


def _empty_classes(counts: Mapping[str, Mapping[str, tuple[int, int]]]) -> Iterator[Problem]:
    for split, there in counts.items():
        empty = [name for name, (readable, _) in there.items() if not readable]
        if not empty or len(empty) == len(there) or split == PREDICT:
            continue
        if _role(split) == "train":
            text = f"{_some(empty, 'class', 'classes')} without a video to train on: {_names(empty)}"
            yield Problem(level=UNSAFE, kind="empty class", text=text)
        else:
            text = f"{_some(empty, 'class', 'classes')} without a video in {split}: {_names(empty)}"
            yield Problem(level=WARNING, kind="empty class", text=text)


def _unlabelled(rows: Sequence[Row]) -> Iterator[Problem]:
    """Videos of which nobody says what they show."""
    unlabelled: dict[str, dict[str, str]] = {}
    for row in rows:
        if "?" in row.classes:
            unlabelled.setdefault(_role(row.split), {})[row.path] = ""
    for role, files in unlabelled.items():
        if role == "train":
            yield _of_files(UNSAFE, "no label", "{} to train on without a label", files)
        elif role != PREDICT:
            yield _of_files(WARNING, "no label", f"{{}} without a label in {role}: no figure is to be had", files)


def _root(collection: Collection, root: str) -> Iterator[Problem]:
    if root and (doubt := deep_classes(collection, root)):
        yield Problem(level=WARNING, kind="deep classes", text=doubt)


def _splits(collection: Collection, counts: Mapping[str, Mapping[str, tuple[int, int]]]) -> Iterator[Problem]:
    """What is to be said of splits as a whole."""
    if collection.missing:  # of data sets that are never whole
        files = tuple((name, split) for split, name in collection.missing)
        text = f"{_videos(len(files))} named by the lists not there, and left out"
        yield Problem(level=WARNING, kind="not there", text=text, files=files)
    train = counts.get("train") or counts.get("all")
    if train is None:
        there = "videos without classes, which predict takes" if PREDICT in counts else ", ".join(counts)
        there = there or "videos without classes"
        yield Problem(level=UNSAFE, kind="nothing to train on", text=f"no videos to train on, only {there}")
        return
    if "all" in counts:
        text = "no train, val and test: all videos are to train on; 'lightning-csn split-data' parts them"
        yield Problem(level=WARNING, kind="no splits", text=text)
    elif "val" not in counts:
        yield Problem(level=NOTE, kind="no validation", text="nothing to validate on: training goes without")
    sizes = {name: readable for name, (readable, _) in train.items() if readable}
    if sizes and max(sizes.values()) > LARGEST_IMBALANCE * min(sizes.values()):
        large, small = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        text = (
            f"classes are uneven: {large} has {sizes[large]} videos to train on, {small} has {sizes[small]}; "
            "go by the mean over classes, not by accuracy"
        )
        yield Problem(level=WARNING, kind="uneven classes", text=text)


def _clip_problems(rows: Sequence[Row], clip: ClipSpec | None) -> Iterator[Problem]:
    if clip is None:
        return
    fates = {row.path: row.fate for row in rows if row.fate is not None}
    if not fates:
        return
    rate = "" if clip.fps is None else f" at {rate_text(clip.fps)}"
    segments = clip.sampling == "segments"
    twice = "{} of a clip's {} are there twice" if segments else "the last {} of a clip's {} are the same"
    short = {
        path: f"{_frames(fate.num_frames)}{rate}: {twice.format(fate.repeated, clip.frames)}"
        for path, fate in fates.items()
        if fate.short
    }
    if short:
        level = WARNING if 2 * len(short) > len(fates) else NOTE
        which = "frames are" if segments else "the last frame is"
        text = f"{{}} shorter than the {clip.span} frames that a clip needs: {which} repeated"
        yield _of_files(level, "too short", text, short)
    rates = {row.path: row.entry.info.fps for row in rows if row.entry is not None and row.entry.info is not None}
    known = [fps for fps in rates.values() if fps is not None]
    if clip.fps is None and known and max(known) > 1.5 * min(known):
        text = (
            f"rates go from {rate_text(min(known))} to {rate_text(max(known))} and the clip takes frames as filmed: "
            "the same motion is faster in some; clip.fps brings all to one rate"
        )
        yield Problem(level=WARNING, kind="mixed rates", text=text)
    elif clip.fps is not None:
        resampled = Counter(rate_text(rates[path]) for path, fate in fates.items() if fate.resampled)
        if resampled:
            each = ", ".join(f"{count} from {rate}" for rate, count in resampled.most_common(5))
            text = f"{_videos(resampled.total())} brought to {rate_text(clip.fps)}: {each}"
            yield Problem(level=NOTE, kind="resampled", text=text + (", …" if len(resampled) > 5 else ""))
        if unknown := {path: "" for path in fates if rates[path] is None}:
            yield _of_files(NOTE, "no rate", f"{{}} without a rate, not brought to {rate_text(clip.fps)}", unknown)
    grown = {path: f"by {fate.upscaled:.2f}" for path, fate in fates.items() if fate.upscaled > 1}
    if grown:
        level = WARNING if max(fates[path].upscaled for path in grown) > 2 else NOTE
        text = f"{{}} smaller than the clip's short side of {clip.short_side} pixels, and enlarged"
        yield _of_files(level, "enlarged", text, grown)


def _oddities(rows: Sequence[Row]) -> Iterator[Problem]:
    infos = {path: entry.info for path, entry in _files(rows).items() if entry.info is not None}
    still = {path: "" for path, info in infos.items() if info.num_frames == 1}
    if still:
        yield _of_files(WARNING, "one frame", "{} of a single frame: nothing moves in them", still)
    varying = {path: f"{rate_text(info.fps)} on average" for path, info in infos.items() if info.variable_rate}
    if varying:
        yield _of_files(NOTE, "variable rate", "{} of variable frame rate: frames are taken by their times", varying)
    turned = {
        path: f"{info.rotation}°" + (" and mirrored" if info.mirrored else "")
        for path, info in infos.items()
        if info.rotation or info.mirrored
    }
    if turned:
        yield _of_files(NOTE, "rotated", "{} filmed turned or mirrored, and shown upright", turned)


def _groups(rows: Sequence[Row]) -> Iterator[Problem]:
    """Clips of one film, by UCF101's names (v_Archery_g01_c03), in several splits."""
    groups: dict[str, dict[str, str]] = {}
    for row in rows:
        match = re.search(UCF101_GROUP, row.path.replace(os.sep, "/"))
        if match:
            groups.setdefault(match[1], {}).setdefault(_role(row.split), row.path)
    shared = {
        next(iter(there.values())): f"{group} is in {', '.join(sorted(there, key=_order))}"
        for group, there in groups.items()
        if len(there) > 1
    }
    if shared:
        text = f"{len(shared)} group{'s' * (len(shared) > 1)} of clips from one film in several splits, by their names"
        yield Problem(level=WARNING, kind="group in several splits", text=text, files=tuple(shared.items()))


def _by_split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(row)
    return splits


def _of_files(level: str, kind: str, text: str, files: Mapping[str, str]) -> Problem:
    return Problem(level=level, kind=kind, text=text.format(_videos(len(files))), files=tuple(sorted(files.items())))


def reason_of(row: Row) -> str:
    """Why a sample cannot be used, without its path."""
    return (row.error or "").removeprefix(f"{row.path}: ")


def _videos(count: int) -> str:
    return f"{count} video{'s' * (count != 1)}"


def _frames(count: int) -> str:
    return f"{count} frame{'s' * (count != 1)}"


def _some(things: Sequence[str], one: str, many: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else many}"


def _names(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f", … and {len(names) - most} more" if len(names) > most else "")
