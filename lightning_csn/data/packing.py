"""Writing packed data sets: videos encoded anew to be decoded fast, or copied, into the shards that shards.py reads.

How they are encoded, and why so, is in encoding.py.

A pack that was stopped goes on: what is done lies in OUT/.packing until the index is written.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import shutil
import tarfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from lightning_csn.data.crew import Failure, run_apart
from lightning_csn.data.encoding import Encoding, encode
from lightning_csn.data.reading import open_video
from lightning_csn.data.samples import Collection, Sample
from lightning_csn.data.shards import FORMAT, INDEX, MOST_NOTE_BYTES, VERSION, is_member, parse_member, read_member
from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError
from lightning_csn.errors import InputError, check_choice, check_count

POLICIES = ("skip", "raise")
WORK = ".packing"  # the folder, inside of OUT, of what is done before the index is written
TAR_RECORD_BYTES = 10_240  # a tar file is a multiple of it, by custom


class Packed(NamedTuple):
    """What came of a pack. bytes_before, bytes_after: of all packed videos, without tar headers.

    videos: number of packed videos. shards: split -> numbers of videos in each shard. left_out: path -> why.
    without_rate: paths of videos that tell no frame rate and got RATE_WITHOUT_TIMES.
    """

    videos: int
    shards: dict[str, list[int]]
    bytes_before: int
    bytes_after: int
    left_out: dict[str, str]
    without_rate: list[str]


class Task(NamedTuple):
    """A video to pack, and where to put it; encoding None copies. frames_fps: of a folder of frames."""

    split: str
    number: int
    path: str
    target: str
    encoding: Encoding | None
    frames_fps: float | None = None


class Outcome(NamedTuple):
    """What came of a video: its frames and bytes, and how it is laid out now; or an error."""

    frames: int = 0
    bytes_before: int = 0
    has_rate: bool = True
    layout: dict[str, Any] | None = None
    error: str | None = None


Step = tuple[Task | None, Outcome]  # without a task: a video that was in a shard before


def pack(
    collection: Collection,
    out: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    encoding: Encoding | None = None,
    shard_bytes: int = 256_000_000,
    workers: int = 1,
    seconds: float = 60.0,
    on_unreadable: str = "skip",
    frames_fps: float | None = None,
    watch: Callable[[Iterator[Step], int], Iterator[Step]] = lambda steps, total: steps,
) -> Packed:
    """Pack the videos of a collection into the folder `out`: for `read_packed`, which gives the collection back.

    root: what the paths of the originals are noted relative to.
    encoding: how videos are encoded anew; None puts their bytes in as they are.
    shard_bytes: a shard ends before the video with which it would be larger.
    seconds: that reading a part of a video may take; more is an unreadable video.
    on_unreadable: "skip" leaves unreadable videos out and lists them, "raise" ends with VideoError at the first.
    frames_fps: pictures per second of folders of frames, which do not say it; None takes RATE_WITHOUT_TIMES.
    watch: sees (steps, number of steps) go by: one step for each video.

    A video that several samples of a split are parts of is packed once. What was packed before in the same way is
    left as it is; InputError where `out` holds something else, or where there is no space left.
    """
    check_choice("on_unreadable", on_unreadable, POLICIES)
    check_count("shard_bytes", shard_bytes)
    out = Path(out).expanduser()
    sources = {split: list(dict.fromkeys(s.path for s in samples)) for split, samples in collection.samples.items()}
    if not any(sources.values()):
        raise InputError("no videos to pack")
    how: dict[str, Any] = {"how": "copied"} if encoding is None else {"how": "h264", **asdict(encoding)}
    if frames_fps is not None:
        if not 0 < frames_fps < math.inf:
            raise InputError(f"frames_fps must be a number of pictures per second above 0, got {frames_fps!r}")
        how["frames_fps"] = frames_fps
    settings = {**how, "shard_bytes": shard_bytes}
    if encoding is None:
        for path in (path for paths in sources.values() for path in paths):
            if os.path.isdir(path):
                raise InputError(f"{path}: a folder of frames cannot be copied into a shard; have it encoded")
    fingerprint = hashlib.sha256(json.dumps([settings, collection], sort_keys=True).encode()).hexdigest()
    done = _finished(out, fingerprint)
    if done is not None:
        return _summary(done)
    try:
        work = _prepare(out, fingerprint)
        with ExitStack() as stack:
            writers = {}
            for split, samples in collection.samples.items():
                writers[split] = _SplitWriter(out, work, split, samples, collection.classes, root, shard_bytes)
                stack.callback(writers[split].abandon)
            tasks = [
                Task(split, number, sources[split][number], str(work / f"{split}-{number:06d}"), encoding, frames_fps)
                for split, writer in writers.items()
                for number in range(len(writer.entries), len(sources[split]))
            ]
            total = sum(map(len, sources.values()))
            steps = stack.enter_context(closing(_outcomes(tasks, workers, seconds, ready=total - len(tasks))))
            for task, outcome in watch(steps, total):
                if task is None:
                    continue
                if outcome.error is not None and on_unreadable == "raise":
                    raise VideoError(outcome.error)
                writers[task.split].take(task, outcome)
            splits = {split: writer.finish() for split, writer in writers.items()}
        index = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": fingerprint,
            "packed": settings,
            "layout": collection.layout,
            "multi_label": collection.multi_label,
            "classes": collection.classes,
            "splits": splits,
        }
        _write(out / INDEX, json.dumps(index, indent=1, ensure_ascii=False).encode())
        shutil.rmtree(work)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{out}: no space left; the same command goes on where it was") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise InputError(f"{out}: cannot be written to: {error.strerror}") from error
        raise
    return _summary(index)


def _finished(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The index of a pack that is done; None where there is none; InputError where something else is there."""
    if not (out / INDEX).exists():
        if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / WORK).is_dir()):
            raise InputError(f"{out}: is there and is no packed data set; name a new or an empty folder")
        return None
    with suppress(ValueError), open(out / INDEX, encoding="utf-8") as file:
        index = json.load(file)
        if isinstance(index, dict) and index.get("fingerprint") == fingerprint:
            return index
    raise InputError(f"{out}: holds another packed data set, of other videos or options; name another folder")


def _prepare(out: Path, fingerprint: str) -> Path:
    """The folder for what is done so far; InputError where that was begun with other videos or options."""
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    note = work / "fingerprint"
    if not note.exists():
        _write(note, fingerprint.encode())
    elif note.read_text() != fingerprint:
        raise InputError(
            f"{out}: a pack of other videos or with other options was stopped here; delete the folder or name another"
        )
    return work


def _outcomes(tasks: list[Task], workers: int, seconds: float, *, ready: int) -> Generator[Step, None, None]:
    """What comes of each task, as they get ready; first a step for each video that is in a shard already."""
    for _ in range(ready):
        yield None, Outcome()
    waiting = []
    for task in tasks:
        try:
            with open(f"{task.target}.json", encoding="utf-8") as file:
                yield task, Outcome(**json.load(file))
        except FileNotFoundError:
            waiting.append(task)
    for task, outcome in run_apart(pack_video, waiting, workers=workers, seconds=seconds):
        if isinstance(outcome, Failure):
            outcome = Outcome(error=f"{task.path}: {outcome.reason}")
        yield task, outcome


def pack_video(task: Task, alive: Callable[[], None]) -> Outcome:
    """Read a video and write it as it is to be packed to `task.target`, with what is known about it beside it."""
    try:
        bytes_before = _bytes_of(task.path)
        with open_video(task.path, frames_fps=task.frames_fps) as video:
            frames, has_rate = video.info.num_frames, video.info.fps is not None
            content = _copied(task.path) if task.encoding is None else encode(video, task.encoding, alive)
        with Video(content, name=f"{task.path}, packed") as packed:
            layout = packed.layout.to_dict()
            if packed.info.num_frames != frames:
                raise VideoError(f"{packed.path}: {packed.info.num_frames} frames; the original has {frames}")
    except VideoError as error:
        return Outcome(error=str(error))
    _write(Path(task.target), content)
    outcome = Outcome(frames, bytes_before, has_rate, layout)
    _write(Path(f"{task.target}.json"), json.dumps(outcome._asdict()).encode())
    return outcome


def _copied(path: str) -> bytes:
    return read_member(path) if is_member(path) else Path(path).read_bytes()


def _bytes_of(path: str) -> int:
    """Bytes of a video file, of a video in a shard, or of all files in a folder of frames; 0 for what is not there."""
    if is_member(path):
        return parse_member(path).bytes
    if os.path.isdir(path):
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    return os.path.getsize(path) if os.path.exists(path) else 0


class _SplitWriter:
    """The shards of a split, written in the order of the videos, whatever the order in which they get ready."""

    def __init__(
        self,
        out: Path,
        work: Path,
        split: str,
        samples: list[Sample],
        classes: list[str],
        root: str | os.PathLike[str] | None,
        shard_bytes: int,
    ) -> None:
        self._out, self._work, self._split = out, work, split
        self._classes, self._root, self._shard_bytes = classes, root, shard_bytes
        self._samples = samples
        self._of_path: dict[str, list[Sample]] = {}
        for sample in samples:
            self._of_path.setdefault(sample.path, []).append(sample)
        self._waiting: dict[int, tuple[Task, Outcome]] = {}
        self.entries: list[dict[str, Any]] = []  # of each video, in order; those left out have an error
        self._shards: list[str] = []
        self._shard: io.BufferedWriter | None = None
        while (record := self._record(len(self._shards))).exists():
            self.entries += json.loads(record.read_bytes())
            self._shards.append(self._name(len(self._shards)))
        self._recorded = len(self.entries)

    def take(self, task: Task, outcome: Outcome) -> None:
        """Note what came of a video, and write all that are next."""
        self._waiting[task.number] = (task, outcome)
        while len(self.entries) in self._waiting:
            self._append(*self._waiting.pop(len(self.entries)))

    def finish(self) -> dict[str, Any]:
        """End the last shard; what the index says of this split."""
        self._close()
        kept = {entry["path"]: number for number, entry in enumerate(e for e in self.entries if "error" not in e)}
        samples = []
        for sample in self._samples:
            if sample.path in kept:
                said: dict[str, Any] = {"video": kept[sample.path], "label": sample.label}
                samples.append(said if sample.part is None else {**said, "part": list(sample.part)})
        hidden = {"path", "error"}
        return {
            "shards": self._shards,
            "videos": [
                {k: v for k, v in entry.items() if k not in hidden} for entry in self.entries if "error" not in entry
            ],
            "samples": samples,
            "left_out": {entry["source"]: entry["error"] for entry in self.entries if "error" in entry},
        }

    def abandon(self) -> None:
        """Let go of a shard that is not whole; it is begun anew when the pack goes on."""
        if self._shard is not None:
            self._shard.close()

    def _append(self, task: Task, outcome: Outcome) -> None:
        entry: dict[str, Any] = {"path": task.path, "source": self._source(task.path)}
        if outcome.error is not None:
            self.entries.append({**entry, "error": outcome.error})
            return
        content = Path(task.target).read_bytes()
        ending = ".mp4" if task.encoding is not None else _ending(task.path)
        note = {"source": entry["source"], "frames": outcome.frames, "samples": self._said(task.path)}
        said = _json({**note, "layout": outcome.layout})
        if len(said) > MOST_NOTE_BYTES:
            said = _json(note)
        if self._shard is not None and self._shard.tell() + len(content) + len(said) > self._shard_bytes:
            self._close()
        if self._shard is None:
            self._shard = open(self._out / f"{self._name(len(self._shards))}.partial", "wb")  # noqa: SIM115 - see _close
        key = f"{task.number:06d}"
        offset = _add_member(self._shard, key + ending, content)
        _add_member(self._shard, f"{key}.json", said)
        entry |= {"shard": len(self._shards), "offset": offset, "bytes": len(content), "name": key + ending}
        entry |= {"frames": outcome.frames, "bytes_before": outcome.bytes_before}
        self.entries.append(entry if outcome.has_rate else {**entry, "without_rate": True})

    def _close(self) -> None:
        """Let a shard be seen under its name once it is whole; then what it was made of can go."""
        if self._shard is None:
            return
        with self._shard:
            self._shard.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar file
            self._shard.write(bytes(-self._shard.tell() % TAR_RECORD_BYTES))
        os.replace(self._shard.name, self._shard.name.removesuffix(".partial"))
        number = len(self._shards)
        _write(self._record(number), json.dumps(self.entries[self._recorded :]).encode())
        for place in range(self._recorded, len(self.entries)):
            for ending in ("", ".json"):
                (self._work / f"{self._split}-{place:06d}{ending}").unlink(missing_ok=True)
        self._recorded = len(self.entries)
        self._shards.append(self._name(number))
        self._shard = None

    def _name(self, number: int) -> str:
        return f"{self._split}-{number:06d}.tar"

    def _record(self, number: int) -> Path:
        return self._work / f"{self._name(number)}.json"

    def _source(self, path: str) -> str:
        """The path of an original, from `root` if it is in there."""
        if self._root is None or is_member(path):
            return path
        root = os.path.abspath(os.path.expanduser(self._root))
        inside = Path(os.path.abspath(path))
        return inside.relative_to(root).as_posix() if inside.is_relative_to(root) else path

    def _said(self, path: str) -> list[dict[str, Any]]:
        """What the samples of a video are, for who reads the shards without our index."""
        said = []
        for sample in self._of_path[path]:
            labels = sample.label if isinstance(sample.label, tuple) else (sample.label,)
            names = [self._classes[label] for label in labels if label >= 0]
            what: dict[str, Any] = {"label": sample.label, "classes": names}
            said.append(what if sample.part is None else {**what, "part": list(sample.part)})
        return said


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def _add_member(file: io.BufferedWriter, name: str, content: bytes) -> int:
    """Add a file to a tar file that is being written, without a date or an owner; the offset of its content."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(content)
    file.write(bytes(-len(content) % tarfile.BLOCKSIZE))
    return offset


def _ending(path: str) -> str:
    """The ending of a copied video's name: what WebDataset tells members of one key apart by.

    >>> _ending("a/b.c/film.AVI"), _ending("a/film")
    ('.avi', '.video')
    """
    ending = os.path.splitext(parse_member(path).name if is_member(path) else path)[1].lower()
    return ending if ending.removeprefix(".").isalnum() and ending.isascii() else ".video"


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _summary(index: Mapping[str, Any]) -> Packed:
    shards: dict[str, list[int]] = {}
    before = after = videos = 0
    left_out: dict[str, str] = {}
    without_rate: list[str] = []
    for split, content in index["splits"].items():
        shards[split] = [0] * len(content["shards"])
        for video in content["videos"]:
            shards[split][video["shard"]] += 1
            before, after, videos = before + video["bytes_before"], after + video["bytes"], videos + 1
            if video.get("without_rate"):
                without_rate.append(video["source"])
        left_out |= content["left_out"]
    return Packed(videos, shards, before, after, left_out, without_rate)
