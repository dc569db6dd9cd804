"""Every file of a collection read, in processes of their own, since a broken file may end or hang its reader.

Paths go in, and out comes an index's entry for each: what is in the file, or why it cannot be read. What is known goes
into an index at once, from which a later survey goes on. What the entries mean together is for examine.py.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import torch

from lightning_csn.data import shards
from lightning_csn.data.crew import Alive, Failure, run_apart
from lightning_csn.data.index import Entry, IndexWriter, VideoIndex, absolute, is_of_another_version, stamp_of
from lightning_csn.data.reading import Reader, open_video
from lightning_csn.data.video import OPEN_OPTIONS, Video
from lightning_csn.data.video_info import VideoError

_log = logging.getLogger(__name__)

READ_SECONDS = 60.0  # that the packets of a file, or a frame of it, may take


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
