"""The index: what is known of each video file, kept in a file of JSON lines, so that nobody has to look again.

`lightning-csn check-data` writes it and goes on with it after a stop; a VideoDataset given one opens videos without
counting their packets again. The first line names the format, every other is an Entry; of two with the same path the
later one holds. Paths are absolute, so that one file may hold any number of collections and works from any folder. An
entry is good for as long as the file's size and time of change are those that it was made with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lightning_csn.data.closing import Closing
from lightning_csn.data.video_info import VideoInfo, VideoLayout
from lightning_csn.errors import InputError

FORMAT, VERSION = "lightning_csn index of videos", 1  # the version counts up where older lines mean something else
_MEMBER = re.compile(r"\?\d+\+\d+#")  # between the path of a shard and the name of a video in it: see shards.py


class Stamp(NamedTuple):
    """Size in bytes and time of change in nanoseconds: a file that has kept both is taken to be the same."""

    bytes: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What was found when a file was read.

    path: absolute. bytes, mtime_ns: its Stamp at that time.
    info: None where it cannot be read; then `error` says why, with the path.
    layout: VideoLayout.to_dict(), which saves the next reader a scan; None where its reader has none.
    promised: how many frames the header of the file names; None where it does not.
    decoded: how many frames came out when all were decoded; None where that was not done. damaged: those of them that
        the decoder had to make up in part. fault: FFmpeg's last complaint then.
    """

    path: str
    bytes: int
    mtime_ns: int
    info: VideoInfo | None = None
    layout: dict[str, Any] | None = None
    error: str | None = None
    promised: int | None = None
    decoded: int | None = None
    damaged: int | None = None
    fault: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without those that are None."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["info"] = None if self.info is None else dataclasses.asdict(self.info)
        if self.layout is not None and self.layout.get("info") == values["info"]:  # once is enough
            values["layout"] = {name: value for name, value in self.layout.items() if name != "info"}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Entry:
        """The entry of these values."""
        info, layout = values.get("info"), values.get("layout")
        return cls(
            **values
            | {
                "info": None if info is None else VideoInfo(**info),
                "layout": None if layout is None else {"info": info} | layout,
            }
        )


def stamp_of(path: str | os.PathLike[str]) -> Stamp | None:
    """The stamp of a video as it is now; None where there is no such file.

    A folder of frames has the time of its newest change of names and their number; a video in a shard, the shard's.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        path = _MEMBER.split(path)[0]
    try:
        found = os.stat(path)
        size = len(os.listdir(path)) if os.path.isdir(path) else found.st_size
    except OSError:
        return None
    return Stamp(size, found.st_mtime_ns)


def absolute(path: str | os.PathLike[str]) -> str:
    """The path that entries go by; links are not followed, and an address with :// is left as it is."""
    path = os.fspath(path)
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


class VideoIndex:
    """The entries of an index file, by path.

    Lines are kept as they are and parsed when asked for: a million of them open in seconds, and workers share them.
    """

    def __init__(self, lines: dict[str, bytes]) -> None:
        self._lines = lines

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> VideoIndex:
        """The index in a file; InputError where there is none or it is something else.

        A last line that was cut off while it was written is left out.
        """
        file = Path(path).expanduser()
        try:
            head, *lines = file.read_bytes().split(b"\n")[:-1] or [b""]
        except OSError as error:
            raise InputError(
                f"{path}: the index cannot be read: {error.strerror}; 'lightning-csn check-data' writes one"
            ) from error
        _check_head(path, head)
        kept: dict[str, bytes] = {}
        for number, line in enumerate(lines, start=2):
            try:
                kept[json.loads(line)["path"]] = line
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}, line {number}: no entry of an index: {line[:80]!r}") from error
        return cls(kept)

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Entry]:
        """All entries, whether their files are still the same or not."""
        return (Entry.from_dict(json.loads(line)) for line in self._lines.values())

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is an entry of a video, of its file as it is or as it was."""
        return absolute(path) in self._lines

    def find(self, path: str | os.PathLike[str]) -> Entry | None:
        """The entry of a video; None where there is none, or the file's size or time of change are others by now.

        Raises InputError for an entry that is not as check-data writes them.
        """
        line = self._lines.get(absolute(path))
        if line is None:
            return None
        try:
            entry = Entry.from_dict(json.loads(line))
        except TypeError as error:
            raise InputError(f"{path}: its entry in the index is none of check-data: {line[:80]!r}") from error
        return entry if stamp_of(entry.path) == (entry.bytes, entry.mtime_ns) else None


class IndexWriter(Closing):
    """Adds entries to the end of an index file, new or old, in a `with` block; each is in the file when `add` returns.

    Raises InputError where the file is something else or cannot be written; an index keeps what it holds.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(self.path, "a+b")  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise InputError(f"{path}: the index cannot be written: {error.strerror}; name another file") from error
        self._file.seek(0)
        head = self._file.readline()
        if head.endswith(b"\n"):
            try:
                _check_head(path, head)
            except BaseException:
                self._file.close()
                raise
            self._cut_torn_line()
        elif not head or _head_line().startswith(head):  # new, or stopped before its first line was whole
            self._file.truncate(0)
            try:
                self._write(_head_line())
            except InputError:
                with contextlib.suppress(InputError):
                    self.close()
                raise
        else:
            self._file.close()
            _check_head(path, head)

    def close(self) -> None:
        """Let go of the file."""
        with self._telling():
            self._file.close()  # which writes what a full disk has refused before

    def add(self, entry: Entry) -> None:
        """Write an entry; it replaces an earlier one of the same path."""
        self._write(json.dumps(entry.to_dict(), separators=(",", ":")).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        with self._telling():
            self._file.write(line)
            self._file.flush()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # the disk is full
            raise InputError(f"{self.path}: the index cannot be written: {error.strerror}") from error

    def _cut_torn_line(self) -> None:
        """Take off a last line that was never finished."""
        end = self._file.seek(0, os.SEEK_END)
        keep = end
        while keep:
            start = max(0, keep - (1 << 16))
            self._file.seek(start)
            found = self._file.read(keep - start).rfind(b"\n")
            if found >= 0:
                keep = start + found + 1
                break
            keep = start
        if keep < end:
            self._file.truncate(keep)


def _head() -> dict[str, Any]:
    """What the first line says: the format, and what is known of a video by this version of the package."""
    known = [field.name for kept in (VideoInfo, VideoLayout) for field in dataclasses.fields(kept)]
    return {"format": FORMAT, "version": VERSION, "known": known}


def _head_line() -> bytes:
    return json.dumps(_head()).encode() + b"\n"


def is_of_another_version(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an index that an older or newer version of this package wrote."""
    try:
        with open(Path(path).expanduser(), "rb") as file:
            head = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(head, dict) and head.get("format") == FORMAT and head != _head()


def _check_head(path: str | os.PathLike[str], line: bytes) -> None:
    """Raise InputError where the first line is not that of an index of this version."""
    try:
        head = json.loads(line)
    except ValueError:
        head = None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise InputError(f"{path}: no index of videos; 'lightning-csn check-data' writes one, to another file")
    if head != _head():
        raise InputError(
            f"{path}: an index of another version of this package, which knew other things of a video; remove it and "
            "run 'lightning-csn check-data' again"
        )
