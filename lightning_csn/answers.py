"""The answers for many videos in one file, which a run that was stopped goes on with: .jsonl, .csv or .parquet.

A record is an answer as plain values, a line of .jsonl: path, then top [{class, probability}, ...], the likeliest
first, and short (whether the video is shorter than a clip); or path and error, where it could not be read. That of a
part of a video has part [start, end, unit] too. In .csv and .parquet a record is a row: path, class_1, probability_1
and so on, error; .parquet has short as well.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import itertools
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import filelock

from lightning_csn.data.samples import Part, Sample
from lightning_csn.errors import InputError

_log = logging.getLogger(__name__)

Record = dict[str, Any]
Writer = Callable[[Path, Iterable[Record], int], None]  # the file, the records in order, and `top`
Key = tuple[str, Part | None]  # which video, or which part of it; the number of one may be another in the next run

VERSION = 1
ROWS = 10_000  # of a .parquet file that are in memory at once


class Counts(NamedTuple):
    """How many videos have a line, how many of these could not be read, and how many are shorter than a clip."""

    videos: int
    unreadable: int
    short: int

    def __str__(self) -> str:
        """In words.

        >>> str(Counts(1, 0, 0)), str(Counts(9, 2, 1))
        ('1 video', '9 videos, 2 of them unreadable')
        """
        unreadable = f", {self.unreadable} of them unreadable" if self.unreadable else ""
        return f"{self.videos} video{'s' * (self.videos != 1)}{unreadable}"


class Answers:
    """The answers for many videos, on their way into `path`.

    While a run goes on, each process writes every record at once into a file of its own in the folder `path`.parts,
    line by line; `finish` puts them in the order of the videos into `path` and removes the folder. A run that was
    stopped, by whatever means, leaves the folder, and `take_up` says what it has answered: videos are known by their
    paths, so that there may be more or fewer of them by then. What could not be read is to be tried again. Files of the
    same paths that hold something else by now are not noticed. Memory holds a few words for each video.

    From `take_up` to `close` or `finish` no other run can take up the same path.

    top: classes of an answer. writers: what makes the file of the records, by the path's ending; what: they are called.

    Raises InputError for a path that has none of the endings, for .parquet where pyarrow is missing, and where files
    cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        top: int,
        writers: Mapping[str, Writer] | None = None,
        what: str = "answers",
    ) -> None:
        self.path = Path(path)
        self.top = top
        self.what = what
        writers = WRITERS if writers is None else writers
        ending = self.path.suffix.lower()
        if ending not in writers or self.path.is_dir():
            raise InputError(f"{path}: {what} are written into a file, whose name ends in {' or '.join(writers)}")
        if ending == ".parquet" and importlib.util.find_spec("pyarrow") is None:
            others = " and ".join(name for name in writers if name != ".parquet")
            raise InputError(
                f"{path}: .parquet needs pyarrow (pip install 'lightning-csn[parquet]'), which {others} can do without"
            )
        self._write_all = writers[ending]
        self._run = uuid.uuid4().hex[:12]
        self._file: BinaryIO | None = None
        self._lock: filelock.BaseFileLock | None = None

    @property
    def folder(self) -> Path:
        """Where the records lie while a run goes on."""
        return self.path.with_name(f"{self.path.name}.parts")

    def take_up(self, about: Mapping[str, Any]) -> set[Key]:
        """The videos that a stopped run has answered.

        about: plain values that the answers depend on; InputError where those of the stopped run are others, and where
        that run goes on.
        """
        with self._telling():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / "lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout as error:  # an OSError too
                raise InputError(
                    f"{self.path}: another run is writing these {self.what} at this moment; wait for it, or give "
                    "another file"
                ) from error
            except NotImplementedError:
                _log.warning("%s: no locks on this file system; let no other run write these answers", self.folder)
            else:
                self._lock = lock
        try:
            return self._take_up(about)
        except InputError:
            self.close()
            raise

    def _take_up(self, about: Mapping[str, Any]) -> set[Key]:
        wanted = {"version": VERSION, **about}
        for part in self._parts():
            with open(part, "rb") as file:
                found = _read_line(file.readline())
            if found is not None and found != wanted:
                names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
                differences = "; ".join(
                    f"{name} {_short(found.get(name))} and {_short(wanted.get(name))}" for name in names
                )
                raise InputError(
                    f"{self.folder} holds {self.what} of another run, which was stopped (there and here): "
                    f"{differences}; give another file for the {self.what}, or delete that folder"
                )
        return {key for key, (_, _, answered) in self._places().items() if answered}

    def write(self, about: Mapping[str, Any], records: Iterable[Record], rank: int = 0) -> None:
        """Keep some records. about: as for `take_up`. rank: number of the process, of several that write."""
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        with self._telling():
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = open(self.folder / f"{rank:05d}-{self._run}.jsonl", "ab")  # noqa: SIM115 - closed by close
                lines.insert(0, json.dumps({"version": VERSION, **about}))
            self._file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
            self._file.flush()

    def close_part(self) -> None:
        """Let go of the file of this process, whose records are written."""
        file, self._file = self._file, None
        if file is not None:
            with self._telling():
                file.close()  # which writes what a full disk has refused before

    def close(self) -> None:
        """The same, and let other runs take up the path."""
        try:
            self.close_part()
        finally:
            lock, self._lock = self._lock, None
            if lock is not None:
                with contextlib.suppress(OSError):  # Windows removes no open file
                    Path(lock.lock_file).unlink()  # before it is released: nobody takes a lock that is about to go
                lock.release()
                with contextlib.suppress(OSError):
                    self.folder.rmdir()  # unless there are answers in it

    def finish(
        self,
        samples: Sequence[Sample],
        written: Iterable[Key] = (),
        check: Callable[[Record], object] | None = None,
    ) -> Counts:
        """Make the file of what all processes have found, in the order of the samples.

        written: what they say that they have written; InputError where that is not there. check: called with each
        record.
        """
        try:
            return self._finish(samples, written, check)
        finally:
            self.close()

    def _finish(
        self, samples: Sequence[Sample], written: Iterable[Key], check: Callable[[Record], object] | None
    ) -> Counts:
        self.close_part()
        places = self._places()
        if missing := sorted(path for path, _ in set(written) - places.keys()):
            raise InputError(
                f"{self.folder}: other processes wrote the {self.what} for {len(missing)} "
                f"video{'s' * (len(missing) != 1)}, {missing[0]} the first, "
                "that are not there; put the file where all machines see the same folder"
            )
        counts = [0, 0, 0]

        def records() -> Iterator[Record]:
            with contextlib.ExitStack() as stack:
                files = {
                    part: stack.enter_context(open(part, "rb")) for part in {place[0] for place in places.values()}
                }
                for sample in samples:
                    if (place := places.get((sample.path, sample.part))) is None:
                        continue
                    part, start, _ = place
                    files[part].seek(start)
                    record = _read_line(files[part].readline())
                    assert record is not None  # _places has read it
                    for i, counted in enumerate((True, "error" in record, record.get("short", False))):
                        counts[i] += counted
                    if check is not None:
                        check(record)
                    yield record

        beside = self.path.with_name(f"{self.path.name}.tmp")
        try:
            with self._telling():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._write_all(beside, records(), self.top)
                os.replace(beside, self.path)
        except InputError:
            with contextlib.suppress(OSError):  # where not even the folder is there
                beside.unlink()
            raise
        try:
            for part in self._parts():
                part.unlink()
            self.close()
            if self.folder.is_dir():
                self.folder.rmdir()
        except OSError as error:  # the file is there; with the folder beside it, a run would go on with that
            _log.warning("%s is of no more use and cannot be removed: %s", self.folder, error.strerror)
        return Counts(*counts)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def _places(self) -> dict[Key, tuple[Path, int, bool]]:
        """Where the record of each video is: file, first byte, and whether it is an answer; one that is goes before."""
        places: dict[Key, tuple[Path, int, bool]] = {}
        for part in self._parts():
            with open(part, "rb") as file:
                start = len(file.readline())
                for line in file:
                    if (record := _read_line(line)) is not None:
                        place = part, start, "error" not in record
                        if place[2] or record_key(record) not in places:
                            places[record_key(record)] = place
                    start += len(line)
        return places

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path}: the {self.what} cannot be written: {error.strerror}") from error


def make_record(
    sample: Sample, top: Sequence[tuple[str, float]] = (), *, short: bool = False, error: str | None = None
) -> Record:
    """The record of a video.

    >>> make_record(Sample("a.mp4", -1, 0), [("waving", 0.75)])
    {'path': 'a.mp4', 'top': [{'class': 'waving', 'probability': 0.75}], 'short': False}
    >>> make_record(Sample("b.mp4", -1, 1, Part(0, 2)), error="b.mp4: no such file")
    {'path': 'b.mp4', 'part': [0, 2, 'seconds'], 'error': 'b.mp4: no such file'}
    """
    record: Record = {"path": sample.path}
    if sample.part is not None:
        record["part"] = list(sample.part)
    if error is not None:
        return record | {"error": error}
    named = [{"class": name, "probability": probability} for name, probability in top]
    return record | {"top": named, "short": short}


def record_key(record: Record) -> Key:
    """Which video a record is of."""
    return record["path"], Part(*record["part"]) if "part" in record else None


def _read_line(line: bytes) -> Record | None:
    """A record; None of a line that was being written when a run was killed."""
    if not line.endswith(b"\n"):
        return None
    record: Record = json.loads(line.decode("utf-8", "surrogateescape"))
    return record


def _short(value: Any) -> str:
    """A value of `about`, of a hash its beginning."""
    text = str(value)
    return text if len(text) < 64 else text[:12]


# ---------------------------------------------------------------- the kinds of files


def write_lines(path: Path, records: Iterable[Record], top: int) -> None:
    """JSON, one record in each line."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.writelines(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


def write_table(path: Path, records: Iterable[Record], top: int) -> None:
    """CSV, with a line of the columns' names."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", *answer_columns(top), "error"])
        for record in records:
            cells = answer_cells(record, top)
            row = [record["path"], *cells, record.get("error")]
            writer.writerow(["" if cell is None else cell for cell in row])


def write_parquet(path: Path, records: Iterable[Record], top: int) -> None:
    """Parquet, a few thousand rows at a time."""
    import pyarrow
    import pyarrow.parquet

    kinds = [pyarrow.string(), pyarrow.float32()] * top  # probabilities are float32
    fields = [("path", pyarrow.string()), *zip(answer_columns(top), kinds, strict=True)]
    schema = pyarrow.schema([*fields, ("short", pyarrow.bool_()), ("error", pyarrow.string())])
    left = iter(records)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while some := list(itertools.islice(left, ROWS)):
            rows = [
                (readable(record["path"]), *answer_cells(record, top), record.get("short"), record.get("error"))
                for record in some
            ]
            columns = [list(column) for column in zip(*rows, strict=True)]
            writer.write_table(pyarrow.table(columns, schema=schema))


WRITERS: dict[str, Writer] = {
    ".jsonl": write_lines,
    ".csv": write_table,
    ".parquet": write_parquet,
}


def answer_columns(top: int) -> list[str]:
    """Names of the columns of an answer.

    >>> answer_columns(2)
    ['class_1', 'probability_1', 'class_2', 'probability_2']
    """
    return [f"{name}_{k + 1}" for k in range(top) for name in ("class", "probability")]


def answer_cells(record: Record, top: int) -> list[Any]:
    """The cells in these columns; None where there is nothing, as of a video that could not be read."""
    cells = [cell for each in record.get("top", ()) for cell in (each["class"], each["probability"])]
    return cells + [None] * (2 * top - len(cells))


def readable(path: str) -> str:
    """A path as text, with a mark for each byte that is none: .parquet holds UTF-8 alone."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
