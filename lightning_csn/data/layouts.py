"""How data sets lie on disk and how their list files are written: one row of LAYOUTS for each way.

A layout looks for its files (`detect`), reads them into tables of rows (`read`), and knows nothing of the others; what
rows have in common - where the videos are, which number a label has - is for annotations.py. The next layout is a row.

Which of them a folder or a list is, is decided by its names and its text alone: no video is opened.
"""

from __future__ import annotations

import csv
import functools
import io
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning_csn.data.list_files import (
    DELIMITERS,
    LABEL_COLUMNS,
    PATH_COLUMNS,
    Line,
    is_number,
    is_whole,
    parse_list,
    read_classes,
    read_json,
    read_text,
    split_row,
)
from lightning_csn.data.names import (
    SPLIT_NAMES,
    SPLITS,
    Places,
    Videos,
    Wanted,
    files_in,
    folders_in,
    holds_frames,
    is_video,
    last_name,
    picture_number,
    walk,
)
from lightning_csn.data.samples import Part
from lightning_csn.errors import InputError

_log = logging.getLogger(__name__)

_LIST_ENDINGS = (".csv", ".json", ".tsv", ".txt")
_WHOLE_LISTS = frozenset(
    ("all", "annotation", "annotations", "data", "dataset", "index", "labels", "list", "metadata", "samples", "videos")
)
_MOST_FOLDERS = 1000  # in a root that are looked into for list files
_PROBED = 20  # lines of a list whose folders of pictures are counted, to know what its columns mean
SPLIT_COLUMNS = ("split", "subset", "set", "partition")
START_COLUMNS = ("start", "start_seconds", "start_sec", "start_time", "time_start", "t_start", "begin")
END_COLUMNS = ("end", "end_seconds", "end_sec", "end_time", "time_end", "t_end", "stop")
START_FRAME_COLUMNS = ("start_frame", "first_frame", "frame_start")
END_FRAME_COLUMNS = ("end_frame", "stop_frame", "frame_end")
KINETICS_COLUMNS = {"youtube_id", "time_start", "time_end"}


class Row(NamedTuple):
    """One video, or a part of one, as a list names it.

    number: of the line, or of the entry, from 1. labels: as written; empty where none of the classes is shown, None
    where it is not said. split: where the row says it. part_is_by_name: frames are counted as pictures are numbered.
    other: another name to look for where `path` is not there. trimmed: what `path` names is the part already, so that
    the part is only one of what `other` names.
    """

    number: int
    path: str
    labels: tuple[str, ...] | None
    part: Part | None = None
    split: str | None = None
    part_is_by_name: bool = False
    other: str = ""
    trimmed: bool = False


@dataclass(frozen=True)
class Table:
    """What one list file, or one folder, says.

    source: the file or folder. rows: in its order. entry: what a row is called in messages: "line", "entry", "folder".
    classes: their names in order, where a file fixes them; classes_file: which one.
    multi_label: whether a row can have several labels. complete: whether every video that is named should be there.
    rule: how an ambiguous file was read, and the layout that reads it otherwise; "" where nothing was ambiguous.
    labels_needed: whether a row without a label is an error.
    """

    source: Path
    rows: list[Row]
    entry: str = "line"
    classes: list[str] | None = None
    classes_file: Path | None = None
    multi_label: bool = False
    complete: bool = True
    rule: str = ""
    labels_needed: bool = False

    def where(self, row: Row) -> str:
        """File and line of a row, to begin a message with."""
        return str(self.source) if self.entry == "folder" else f"{self.source}, {self.entry} {row.number}"


class Source:
    """What there is to read: a folder, or list files that somebody named, or both.

    lists: split -> file. fold: which of the official splits. chosen: whether the layout was named, so that its lists
    need not look like it. `files`: split -> list files that may be meant, the named ones or those found in root and in
    the folders in it; "all" where a name says nothing of a split. `places`: finds what lists in root name.
    """

    def __init__(self, root: Path | None, lists: Mapping[str, Path], fold: int, *, chosen: bool = False) -> None:
        self.root = root
        self.lists = dict(lists)
        self.fold = fold
        self.chosen = chosen
        self.lines: dict[Path, list[Line]] = {}  # of the lists without a heading that were tried
        self.readings: dict[Path, Reading] = {}  # of their columns
        self.faults: dict[Path, str] = {}  # of files that nobody named, which cannot be read

    @functools.cached_property
    def places(self) -> Places:
        """Finds the videos in root."""
        assert self.root is not None
        return Places(self.root, search=True)

    @functools.cached_property
    def folders(self) -> list[Path]:
        """Where official files lie: root and the folders in it; or the folders of the named lists."""
        if self.lists or self.root is None:
            return sorted({path.parent for path in self.lists.values()})
        return [self.root, *folders_in(self.root)[:_MOST_FOLDERS]]

    @functools.cached_property
    def texts(self) -> list[Path]:
        """All files in these folders that can be lists, by their endings."""
        return [path for folder in self.folders for path in files_in(folder, _LIST_ENDINGS)]

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        """Split -> files that may be its list."""
        if self.lists:
            return {split: [path] for split, path in self.lists.items()}
        files: dict[str, list[Path]] = {}
        for path in self.texts:
            split = split_of(path.stem)
            if split is None and path.stem.lower() in _WHOLE_LISTS:
                split = "all" if path.parent == self.root else SPLIT_NAMES.get(path.parent.name.lower(), "all")
            if split is not None:
                files.setdefault(split, []).append(path)
        return files

    def text(self, path: Path) -> str | None:
        """The text of a file; None where a file that nobody named has none."""
        try:
            return _text(path)
        except InputError as error:
            if self.lists:
                raise
            self.faults[path] = str(error)
            return None

    def json(self, path: Path) -> Any:
        """The value in a JSON file; None for other files."""
        if path.suffix.lower() != ".json" or self.text(path) is None:
            return None
        try:
            return _json(path)
        except InputError as error:
            if self.lists:
                raise
            self.faults[path] = str(error)
            return None

    def beside(self, files: Iterable[Path], pattern: str) -> Path | None:
        """The file whose name matches, in the folder of one of these files; InputError for two of them in one."""
        for folder in sorted({path.parent for path in files}):
            matching = [path for path in sorted(folder.iterdir()) if re.fullmatch(pattern, path.name, re.IGNORECASE)]
            if len(matching) > 1:
                raise InputError(f"{folder}: {matching[0].name} and {matching[1].name} both name the classes")
            if matching:
                return matching[0]
        return None


@functools.lru_cache(maxsize=16)
def _text(path: Path) -> str:
    return read_text(path)


@functools.lru_cache(maxsize=8)
def _json(path: Path) -> Any:
    return read_json(path)


def forget_texts() -> None:
    """Let go of the texts of list files, which are kept while layouts are tried on them."""
    _text.cache_clear()
    _json.cache_clear()


def split_of(name: str) -> str | None:
    """The split that the name of a list file speaks of.

    >>> split_of("something-something-v2-validation"), split_of("Diving48_V2_test"), split_of("trainingSet")
    ('val', 'test', 'train')
    >>> split_of("training_notes"), split_of("contest"), split_of("train_val")
    ('train', None, None)
    """
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None


Files = dict[str, Path]  # split -> file or folder; empty where a layout is not there


@dataclass(frozen=True)
class Layout:
    """One way that data sets lie on disk.

    title: as a log calls it. looks_for: the files and names that it wants, for whoever has none of them.
    detect: the files of each split; none where this is another layout. read: these files as a table for each split.
    chosen: whether it is only taken by name, for it is another reading of what a layout above it takes.
    folds: whether there are several official splits. official: whether the lists are those of a data set's makers.
    """

    title: str
    looks_for: str
    detect: Callable[[Source], Files]
    read: Callable[[Source, Files], dict[str, Table]]
    chosen: bool = False
    folds: bool = False
    official: bool = False


# ---------------------------------------------------------------- official files


def _detect_ucf101(source: Source) -> Files:
    pattern = rf"(train|test)list0?{source.fold}\.txt"
    if source.lists:
        found = {
            split: path for split, path in source.lists.items() if re.fullmatch(r"(train|test)list\d+\.txt", path.name)
        }
        return found if found and source.beside(found.values(), r"classInd\.txt") else {}
    files: Files = {}
    for path in source.texts:
        if (match := re.fullmatch(pattern, path.name)) and (path.parent / "classInd.txt").is_file():
            files.setdefault(match[1], path)
    return {split: files[split] for split in SPLITS if split in files}


def _read_ucf101(source: Source, files: Files) -> dict[str, Table]:
    classes_file = source.beside(files.values(), r"classInd\.txt")
    assert classes_file is not None
    classes = read_classes(classes_file)
    tables = {}
    for split, path in files.items():
        rows = []
        for line in parse_list(_text(path), path):
            folder = line.path.replace("\\", "/").split("/")[0] if "/" in line.path else ""
            name = folder or line.path.split("_")[1 if line.path.startswith("v_") else 0]
            if name not in classes:
                raise InputError(
                    f"{path}, line {line.number}: {name!r} is none of the {len(classes)} classes of {classes_file.name}"
                )
            if line.columns and line.columns != (str(classes.index(name) + 1),):
                raise InputError(
                    f"{path}, line {line.number}: {name} is number {classes.index(name) + 1} in {classes_file.name}, "
                    f"got {' '.join(line.columns)}"
                )
            rows.append(Row(line.number, line.path, (name,)))
        tables[split] = Table(path, rows, classes=classes, classes_file=classes_file)
    return tables


_HMDB51_SPLITS = {"0": None, "1": "train", "2": "test"}


def _detect_hmdb51(source: Source) -> Files:
    if source.lists:
        return {}
    ending = f"_test_split{source.fold}.txt"
    found = next((path.parent for path in source.texts if path.name.endswith(ending)), None)
    return {} if found is None else {"all": found}


def _read_hmdb51(source: Source, files: Files) -> dict[str, Table]:
    """A file for each class, whose lines are "video 1": 1 for training, 2 for test, 0 for neither."""
    folder = files["all"]
    ending = f"_test_split{source.fold}.txt"
    paths = sorted(folder.glob(f"*{ending}"))
    classes = [path.name.removesuffix(ending) for path in paths]
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for path, name in zip(paths, classes, strict=True):
        for number, line in enumerate(_text(path).split("\n"), start=1):
            words = line.rsplit(None, 1)
            if not words:
                continue
            if len(words) != 2 or words[1] not in _HMDB51_SPLITS:
                raise InputError(f"{path}, line {number}: a video and 0, 1 (train) or 2 (test) expected, got {line!r}")
            split = _HMDB51_SPLITS[words[1]]
            if split is not None:
                rows[split].append(Row(number, words[0], (name,)))
    return {split: Table(folder / f"*{ending}", found, classes=classes) for split, found in rows.items()}


def _detect_kinetics(source: Source) -> Files:
    return _files_like(source, lambda path: set(_heading(source, path)) >= KINETICS_COLUMNS)


def _read_kinetics(source: Source, files: Files, *, trimmed: bool = True) -> dict[str, Table]:
    rule = "videos cut already, those too that are called by their id alone; layout=kinetics-untrimmed cuts these"
    return {
        split: Table(path, list(_kinetics_rows(path, trimmed)), complete=False, rule=rule if trimmed else "")
        for split, path in files.items()
    }


def _kinetics_rows(path: Path, trimmed: bool) -> Iterable[Row]:
    for number, record in _records_of_csv(path):
        video = record.get("youtube_id", "")
        start, end = (_seconds(path, number, record.get(column, "")) for column in ("time_start", "time_end"))
        labels = (record["label"],) if record.get("label") else None
        if not video:
            raise InputError(f"{path}, line {number}: the youtube_id is missing")
        part = _part(path, number, start, end, "seconds", "line")
        split = _split_named(path, number, record.get("split"))
        cut = f"{video}_{int(start):06d}_{int(end):06d}"
        yield Row(number, cut, labels, None if trimmed else part, split, other=video, trimmed=True)


def _detect_something_v2(source: Source) -> Files:
    def fits(path: Path) -> bool:
        first = _first_record(source, path)
        return "id" in first and ("template" in first or set(first) == {"id"})

    files = _files_like(source, fits)
    return files if any("template" in _first_record(source, path) for path in files.values()) else {}


def _read_something_v2(source: Source, files: Files) -> dict[str, Table]:
    """JSON lists of id and template; the class is the template without the brackets around what was done to what."""
    classes_file = source.beside(files.values(), r".*labels\.json")
    classes = read_classes(classes_file) if classes_file else None
    tables = {}
    for split, path in files.items():
        rows = []
        for number, record in enumerate(_json(path), start=1):
            if not isinstance(record, dict) or "id" not in record:
                raise InputError(f"{path}, entry {number}: an object with an id expected, got {record!r:.80}")
            template = record.get("template")
            labels = None if template is None else (re.sub(r"[\[\]]", "", str(template)),)
            rows.append(Row(number, str(record["id"]), labels))
        tables[split] = Table(path, rows, "entry", classes, classes_file)
    return tables


def _detect_20bn(source: Source) -> Files:
    def fits(path: Path) -> bool:
        lines = [line for line in (source.text(path) or "").split("\n", _PROBED)[:_PROBED] if line.strip()]
        return (
            path.suffix.lower() == ".csv"
            and bool(lines)
            and all(re.fullmatch(r"\d+(;.*)?", line.strip()) for line in lines)
        )

    files = _files_like(source, fits)
    return files if any(";" in _text(path) for path in files.values()) else {}


def _read_20bn(source: Source, files: Files) -> dict[str, Table]:
    """Lines of "id;label", ids alone in the test list; labels may have commas in them."""
    classes_file = source.beside(files.values(), r".*labels\.csv")
    classes = read_classes(classes_file) if classes_file else None
    tables = {}
    for split, path in files.items():
        rows = []
        for number, line in enumerate(_text(path).split("\n"), start=1):
            video, _, label = line.partition(";")
            if video.strip():
                rows.append(Row(number, video.strip(), (label.strip(),) if label.strip() else None))
        tables[split] = Table(path, rows, classes=classes, classes_file=classes_file)
    return tables


def _detect_moments(source: Source) -> Files:
    return _files_like(source, lambda path: re.fullmatch(r"(training|validation|test)Set\.csv", path.name) is not None)


def _read_moments(source: Source, files: Files) -> dict[str, Table]:
    """Lines of "path,label" and the counts of those who agreed and who did not, which are passed over."""
    classes_file = source.beside(files.values(), r"moments_categories\.txt")
    classes = read_classes(classes_file) if classes_file else None
    tables = {}
    for split, path in files.items():
        rows = []
        for number, columns in _rows_of_csv(path, _text(path), ","):
            if columns and columns[0].strip():
                labels = (columns[1].strip(),) if len(columns) > 1 and columns[1].strip() else None
                rows.append(Row(number, columns[0].strip(), labels))
        tables[split] = Table(path, rows, classes=classes, classes_file=classes_file)
    return tables


def _detect_activitynet(source: Source) -> Files:
    def fits(path: Path) -> bool:
        value = source.json(path)
        return isinstance(value, dict) and isinstance(value.get("database"), dict)

    return _one_file(source, fits)


def _read_activitynet(source: Source, files: Files) -> dict[str, Table]:
    """A JSON object "database": video -> subset and annotations, each a label and a segment in seconds.

    Segments that end where they begin are left out, and counted in the log.
    """
    tables = {}
    for split, path in files.items():
        rows, empty = [], []
        for number, (video, record) in enumerate(_json(path)["database"].items(), start=1):
            if not isinstance(record, dict):
                raise InputError(f"{path}, entry {number}: an object expected for {video!r}, got {record!r:.80}")
            named = _split_named(path, number, record.get("subset"), "entry")
            for annotation in record.get("annotations") or ():
                segment = annotation.get("segment") if isinstance(annotation, dict) else None
                if not (isinstance(segment, list) and len(segment) == 2 and "label" in annotation):
                    raise InputError(f"{path}, entry {number}: label and segment expected, got {annotation!r:.80}")
                if segment[0] == segment[1]:
                    empty.append(video)
                    continue
                part = _part(path, number, segment[0], segment[1], "seconds", "entry")
                rows.append(Row(number, video, (str(annotation["label"]),), part, named, other=f"v_{video}"))
        if empty:
            _log.warning("%s: %d segments of no length are left out, the first of %s", path, len(empty), empty[0])
        tables[split] = Table(path, rows, "entry", complete=False)
    return tables


# ---------------------------------------------------------------- records: JSON lists and csv with a heading


def _detect_json(source: Source) -> Files:
    return _files_like(source, lambda path: _column(_first_record(source, path), PATH_COLUMNS) is not None)


def _read_json_list(source: Source, files: Files) -> dict[str, Table]:
    classes_file = source.beside(files.values(), r".*(vocab|classes|labels|categories)\.json")
    classes = read_classes(classes_file) if classes_file else None
    tables = {}
    for split, path in files.items():
        records = [(number, record) for number, record in enumerate(_json(path), start=1)]
        for number, record in records:
            if not isinstance(record, dict):
                raise InputError(f"{path}, entry {number}: an object expected, got {record!r:.80}")
        tables[split] = _table_of_records(path, records, "entry", classes, classes_file)
    return tables


def _detect_csv(source: Source) -> Files:
    def fits(path: Path) -> bool:
        heading = _heading(source, path)
        return _column(heading, PATH_COLUMNS) is not None and _column(heading, LABEL_COLUMNS) is not None

    return _files_like(source, fits)


def _read_csv(source: Source, files: Files) -> dict[str, Table]:
    classes_file = source.beside(files.values(), r"classes\.txt")
    classes = read_classes(classes_file) if classes_file else None
    return {
        split: _table_of_records(path, list(_records_of_csv(path)), "line", classes, classes_file)
        for split, path in files.items()
    }


def _table_of_records(
    path: Path,
    records: Sequence[tuple[int, Mapping[str, Any]]],
    entry: str,
    classes: list[str] | None,
    classes_file: Path | None,
) -> Table:
    """Records with columns of known names: path, label, split, start and end; others are passed over."""
    if not records:
        raise InputError(f"{path}: no {entry} names a video")
    columns = list(records[0][1])
    path_column, label_column = _column(columns, PATH_COLUMNS), _column(columns, LABEL_COLUMNS)
    split_column = _column(columns, SPLIT_COLUMNS)
    seconds = _column(columns, START_COLUMNS), _column(columns, END_COLUMNS)
    frames = _column(columns, START_FRAME_COLUMNS), _column(columns, END_FRAME_COLUMNS)
    several = label_column is not None and (
        label_column.lower() == "labels" or any(isinstance(record.get(label_column), list) for _, record in records)
    )
    rows = []
    for number, record in records:
        if path_column is None or record.get(path_column) in (None, ""):
            raise InputError(f"{path}, {entry} {number}: the {path_column or 'path'} is missing")
        value = record.get(label_column) if label_column is not None else None
        if isinstance(value, list):
            labels: tuple[str, ...] | None = tuple(str(label) for label in value)
        elif several:
            labels = _split_labels(str(value or ""))
        else:
            labels = None if value is None or value == "" else (str(value),)
        part = None
        for (start, end), unit in ((seconds, "seconds"), (frames, "frames")):
            if start is not None and end is not None and record.get(start) not in (None, ""):
                part = _part(path, number, record[start], record.get(end), unit, entry)
        split = _split_named(path, number, record.get(split_column), entry) if split_column is not None else None
        rows.append(Row(number, str(record[path_column]), labels, part, split))
    return Table(path, rows, entry, classes, classes_file, multi_label=several)


def _split_labels(text: str) -> tuple[str, ...]:
    """Labels with bars or semicolons between, or numbers with commas; names may have commas in them.

    >>> _split_labels("run|brush, hair"), _split_labels("3,7"), _split_labels("")
    (('run', 'brush, hair'), ('3', '7'), ())
    """
    commas = re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", text) is not None
    return tuple(label.strip() for label in re.split(r"," if commas else r"[|;]", text) if label.strip())


# ---------------------------------------------------------------- lists without a heading


class Reading(NamedTuple):
    """What the columns of a list mean: the name of a layout, and the rule that says so, "" where nothing was open."""

    layout: str
    rule: str = ""


def reading_of(lines: Sequence[Line], pictures: Callable[[Line], Sequence[int]] = lambda line: ()) -> Reading:
    """What the columns after the paths of a list mean. The rules, the first that fits:

    1. One column everywhere: the label ("list"); numbers in it with commas, semicolons or bars between: several labels.
    2. Paths without a video ending and two or more whole numbers: a folder of pictures with their count and a label or
       labels ("frames"), if the folders hold so many; else, with three or more, first and last picture and a label
       or labels ("frame-ranges"); else, if the first folders cannot hold these, first, count and label
       ("frame-offsets").
    3. Three columns everywhere, of which two are numbers that rise in every line: "segments", start, end, label, or
       with a name first label, start, end.
    4. Whole numbers alone: several labels ("multi-label").
    5. What is left is "list", and its first line with two columns an error.

    pictures: the numbers of the pictures in the folder of a line, ascending; none where there is no such folder.

    >>> lines = [Line(1, "a.mp4", ("0", "10", "3")), Line(2, "a.mp4", ("10", "12", "5"))]
    >>> reading_of(lines).layout, reading_of([*lines, Line(3, "b.mp4", ("4",))]).layout
    ('segments', 'multi-label')
    >>> reading_of([Line(1, "a.mp4", ("run",))]).layout, reading_of([Line(1, "frames/a", ("17", "5"))]).layout
    ('list', 'frames')
    """
    most = max(len(line.columns) for line in lines)
    whole = all(is_whole(column) for line in lines for column in line.columns)
    if most <= 1:
        joined = [line for line in lines if line.columns and re.fullmatch(r"\d+([,;|]\d+)+", line.columns[0])]
        if joined and all(re.fullmatch(r"\d+([,;|]\d+)*", line.columns[0]) for line in lines if line.columns):
            return Reading("multi-label")
        return Reading("list")
    if whole and not is_video(last_name(lines[0].path)) and all(len(line.columns) > 1 for line in lines):
        return _reading_of_frames(lines, pictures)
    if all(len(line.columns) == 3 for line in lines) and (order := _segment_columns(lines)):
        rule = f"path, {order}, for two of three numbers rise; layout=multi-label reads them as labels"
        return Reading("segments", rule if whole else "")
    if whole:
        return Reading(
            "multi-label", "path and labels, for whole numbers follow; layout=segments reads start, end, label"
        )
    return Reading("list")


def _reading_of_frames(lines: Sequence[Line], pictures: Callable[[Line], Sequence[int]]) -> Reading:
    probed = [(line, found) for line in lines[:: max(1, len(lines) // _PROBED)] if (found := pictures(line))]
    numbers = [tuple(int(column) for column in line.columns[:2]) for line, _ in probed]
    if min(len(line.columns) for line in lines) < 3:
        return Reading("frames")
    if probed and all(len(found) == first for (_, found), (first, _) in zip(probed, numbers, strict=True)):
        return Reading(
            "frames",
            "folder, count and labels, for the folders hold so many; layout=frame-ranges reads first and last picture",
        )
    if all(found[0] <= first <= last <= found[-1] for (_, found), (first, last) in zip(probed, numbers, strict=True)):
        why = "" if probed else ", though none of the folders was looked into"
        rule = f"folder, first and last picture and labels{why}; layout=frames reads a count and labels, "
        return Reading("frame-ranges", rule + "layout=frame-offsets first picture, count and label")
    rule = "folder, first picture, count and label, for a last picture of that number is not there; "
    return Reading("frame-offsets", rule + "layout=frame-ranges reads first and last picture")


def _segment_columns(lines: Sequence[Line]) -> str:
    """Which columns of three are start, end and label; "" where none can be."""

    def rise(first: int, second: int) -> bool:
        pairs = [(line.columns[first], line.columns[second]) for line in lines]
        return all(is_number(a) and is_number(b) and float(a) < float(b) for a, b in pairs)

    def whole(column: int) -> bool:
        return all(is_whole(line.columns[column]) for line in lines)

    if rise(1, 2) and (not rise(0, 1) or (whole(0) and not whole(2))):
        return "label, start, end"
    return "start, end, label" if rise(0, 1) else ""


def _lines(source: Source, path: Path) -> list[Line]:
    """The lines of a list; none where a file that nobody named has no labels, or names nothing that is there."""
    if path not in source.lines:
        source.lines[path] = _parse(source, path)
    return source.lines[path]


def _parse(source: Source, path: Path) -> list[Line]:
    text = source.text(path) if path.suffix.lower() != ".json" else None
    if text is None:
        return []
    if source.lists:
        return parse_list(text, path)
    try:
        lines = parse_list(text, path)
    except InputError as error:
        source.faults[path] = str(error)
        return []
    try:
        wanted = [Wanted(line.path, str(path)) for line in lines[:: max(1, len(lines) // _PROBED)]]
        places = source.places.find(wanted, first=path.parent)
    except InputError:
        return []
    labelled = any(line.columns for line in lines)
    return lines if labelled and any(place.there is not False for place in places) else []


def _pictures(source: Source, path: Path, line: Line) -> list[int]:
    """The numbers of the pictures in the folder of a line, where it is easy to find: at most one folder down."""
    roots = [] if source.root is None else [source.root, *folders_in(source.root)[:_MOST_FOLDERS]]
    starts = [path.parent, *roots]
    return next((found for start in starts if (found := picture_numbers(start / line.path))), [])


def picture_numbers(folder: Path) -> list[int]:
    """The numbers in the names of a folder's pictures, ascending."""
    if not folder.is_dir():
        return []
    return sorted({numbered.number for name in os.listdir(folder) if (numbered := picture_number(name))})


def _reading(source: Source, path: Path) -> Reading:
    """What the columns of a list mean; found once, for every layout of lists asks."""
    if path not in source.readings:
        source.readings[path] = reading_of(_lines(source, path), lambda line: _pictures(source, path, line))
    return source.readings[path]


def _detect_lists(source: Source, *, layout: str) -> Files:
    def fits(path: Path) -> bool:
        return bool(_lines(source, path)) and (source.chosen or _reading(source, path).layout == layout)

    return _files_like(source, fits)


def _read_lists(source: Source, files: Files, *, layout: str) -> dict[str, Table]:
    tables = {}
    for split, path in files.items():
        classes_file = source.beside([path], r"classes\.txt")
        classes = read_classes(classes_file) if classes_file else None
        lines, reading = _lines(source, path), _reading(source, path)
        rule = reading.rule if reading.layout == layout else ""
        order = _segment_columns(lines) if layout == "segments" and all(len(ln.columns) == 3 for ln in lines) else ""
        rows = [_ROWS[layout](path, line, order) for line in lines]
        several = layout == "multi-label" or any(row.labels is not None and len(row.labels) > 1 for row in rows)
        tables[split] = Table(
            path, rows, "line", classes, classes_file, multi_label=several, rule=rule, labels_needed=True
        )
    return tables


def _list_row(path: Path, line: Line, order: str) -> Row:
    if len(line.columns) > 1:
        raise InputError(
            f"{path}, line {line.number}: 2 columns expected (path, label), got {len(line.columns) + 1}: "
            f"{', '.join((line.path, *line.columns))!r}; for several labels of a video, layout=multi-label"
        )
    return Row(line.number, line.path, line.columns or None)


def _multi_label_row(path: Path, line: Line, order: str) -> Row:
    labels = [label.strip() for column in line.columns for label in re.split(r"[,;|]", column)]
    return Row(line.number, line.path, tuple(label for label in labels if label))


def _segment_row(path: Path, line: Line, order: str) -> Row:
    if len(line.columns) != 3:
        raise InputError(
            f"{path}, line {line.number}: 4 columns expected (path, start, end, label), got {len(line.columns) + 1}: "
            f"{', '.join((line.path, *line.columns))!r}"
        )
    label, start, end = line.columns if order == "label, start, end" else (line.columns[2], *line.columns[:2])
    return Row(line.number, line.path, (label,), _part(path, line.number, start, end, "seconds", "line"))


def _frames_row(path: Path, line: Line, order: str) -> Row:
    _check_frames(path, line, "folder, count, label", 2)
    return Row(line.number, line.path, line.columns[1:])


def _frame_range_row(path: Path, line: Line, order: str) -> Row:
    """First and last picture, by their names, both included."""
    first, last = _check_frames(path, line, "folder, first, last, label", 3)
    if last < first:
        raise InputError(f"{path}, line {line.number}: the last picture, {last}, comes before the first, {first}")
    return Row(line.number, line.path, line.columns[2:], Part(first, last + 1, "frames"), part_is_by_name=True)


def _frame_offset_row(path: Path, line: Line, order: str) -> Row:
    first, count = _check_frames(path, line, "folder, first, count, label", 3)
    return Row(line.number, line.path, line.columns[2:], Part(first, first + count, "frames"), part_is_by_name=True)


def _check_frames(path: Path, line: Line, columns: str, least: int) -> tuple[int, int]:
    if len(line.columns) < least or not all(map(is_whole, line.columns[: least - 1])):
        raise InputError(
            f"{path}, line {line.number}: {least + 1} columns expected ({columns}), whole numbers before the label; "
            f"got {', '.join((line.path, *line.columns))!r}"
        )
    return int(line.columns[0]), int(line.columns[1]) if is_whole(line.columns[1]) else 0


_ROWS: dict[str, Callable[[Path, Line, str], Row]] = {
    "list": _list_row,
    "multi-label": _multi_label_row,
    "segments": _segment_row,
    "frames": _frames_row,
    "frame-ranges": _frame_range_row,
    "frame-offsets": _frame_offset_row,
}


# ---------------------------------------------------------------- folders


def _detect_folders(source: Source) -> Files:
    if source.lists or source.root is None:
        return {}
    return split_folders(source.root)


def split_folders(root: Path) -> Files:
    """Split -> folder of class folders; all of root is "all" where there are no folders for splits.

    A folder is a split if it is called like one and holds folders but no videos itself, be they files or pictures.
    """
    splits: Files = {}
    for folder in folders_in(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None or any(is_video(path.name) for path in folder.iterdir()):
            continue
        inside = folders_in(folder)
        if inside and not all(holds_frames(path) for path in inside):
            if split in splits:
                raise InputError(
                    f"{root}: {splits[split].name} and {folder.name} are both there; which one is to validate?"
                )
            splits[split] = folder
    return {split: splits[split] for split in SPLITS if split in splits} or {"all": root}


def _read_folders(source: Source, files: Files) -> dict[str, Table]:
    assert source.root is not None
    inside = {split: {path.name: walk(path) for path in folders_in(folder)} for split, folder in files.items()}
    any_files = any(videos.files for classes in inside.values() for videos in classes.values())
    tables = {}
    for split, classes in inside.items():
        pick: Callable[[Videos], list[str]] = _files if any_files else _frame_folders
        rows = [Row(0, path, (name,)) for name, videos in classes.items() for path in pick(videos)]
        if rows:
            tables[split] = Table(source.root, rows, entry="folder")
    return tables


def _files(videos: Videos) -> list[str]:
    return videos.files


def _frame_folders(videos: Videos) -> list[str]:
    return videos.frame_folders


# ---------------------------------------------------------------- what several of them need


def _files_like(source: Source, fits: Callable[[Path], bool]) -> Files:
    """Of each split's files the one that fits. InputError for two, unless one of them has a folder for itself.

    A file for all splits only counts where there are none for single ones.
    """
    files: Files = {}
    for split, paths in source.files.items():
        fitting = [path for path in paths if fits(path)]
        if len(fitting) > 1:
            raise InputError(
                f"{fitting[0]} and {fitting[1]} can both be the list of {split}; name one of them ({split}_list), or "
                "take the other one away"
            )
        if fitting:
            files[split] = fitting[0]
    if len(files) > 1:
        files.pop("all", None)
    return {split: files[split] for split in (*SPLITS, "all") if split in files}


def _one_file(source: Source, fits: Callable[[Path], bool]) -> Files:
    """A file of any name that fits: it speaks of the splits itself."""
    if source.lists:
        return {split: path for split, path in source.lists.items() if fits(path)}
    fitting = [path for path in source.texts if fits(path)]
    if len(fitting) > 1:
        raise InputError(f"{fitting[0]} and {fitting[1]} can both be the list of videos; take one of them away")
    return {"all": fitting[0]} if fitting else {}


def _heading(source: Source, path: Path) -> list[str]:
    """The columns of a file's first line, in lower case, if some of them have names that are known here."""
    text = source.text(path) if path.suffix.lower() != ".json" else None
    if not text or not text.strip():
        return []
    return _split_heading(text.partition("\n")[0])[1]


def _split_heading(line: str) -> tuple[str, list[str]]:
    """The delimiter of a heading, and its columns; the one that parts it into most."""
    delimiter = max(DELIMITERS, key=line.count)
    return delimiter, [column.strip().lower() for column in split_row(line, delimiter)]


def _records_of_csv(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """Line number and columns, by their name in lower case, of each line after the heading."""
    text = _text(path)
    delimiter, heading = _split_heading(text.partition("\n")[0])
    twins = [name for name, count in Counter(heading).items() if count > 1 and name]
    if twins:
        raise InputError(f"{path}, line 1: two columns are called {twins[0]!r}")
    for number, columns in _rows_of_csv(path, text, delimiter):
        if number == 1 or not any(column.strip() for column in columns):
            continue
        if len(columns) > len(heading) and any(columns[len(heading) :]):
            raise InputError(
                f"{path}, line {number}: {len(heading)} columns expected ({', '.join(heading)}), got {len(columns)}"
            )
        yield number, {name: column.strip() for name, column in zip(heading, columns, strict=False)}


def _rows_of_csv(path: Path, text: str, delimiter: str) -> Iterable[tuple[int, list[str]]]:
    """Line number and columns of each line; columns in quotes may go on in the next line."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        for columns in reader:
            yield reader.line_num, columns
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error


def _first_record(source: Source, path: Path) -> dict[str, Any]:
    value = source.json(path)
    return value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}


def _column(columns: Iterable[str], known: Sequence[str]) -> str | None:
    """The column whose name comes first among the known ones."""
    by_name = {column.strip().lower(): column for column in columns}
    return next((by_name[name] for name in known if name in by_name), None)


def _split_named(path: Path, number: int, name: Any, entry: str = "line") -> str | None:
    if name is None or name == "":
        return None
    split = SPLIT_NAMES.get(str(name).strip().lower())
    if split is None:
        raise InputError(f"{path}, {entry} {number}: the split {name!r} is none of {', '.join(SPLIT_NAMES)}")
    return split


def _seconds(path: Path, number: int, value: Any, entry: str = "line") -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InputError(f"{path}, {entry} {number}: a number expected, got {value!r}")
    return seconds


def _part(path: Path, number: int, start: Any, end: Any, unit: str, entry: str) -> Part:
    first, last = _seconds(path, number, start, entry), _seconds(path, number, end, entry)
    if not 0 <= first < last:
        raise InputError(
            f"{path}, {entry} {number}: a part starts at 0 or later and ends after that, got {start} to {end}"
        )
    return Part(int(first), int(last), unit) if unit == "frames" else Part(first, last, unit)


def _list_layout(title: str, looks_for: str, layout: str) -> Layout:
    detect = functools.partial(_detect_lists, layout=layout)
    return Layout(title, looks_for, detect, functools.partial(_read_lists, layout=layout))


LAYOUTS: dict[str, Layout] = {
    "ucf101": Layout(
        "UCF101",
        "classInd.txt, trainlist01.txt, testlist01.txt",
        _detect_ucf101,
        _read_ucf101,
        folds=True,
        official=True,
    ),
    "hmdb51": Layout(
        "HMDB51",
        "CLASS_test_split1.txt for every class, with lines of a video and 0, 1 or 2",
        _detect_hmdb51,
        _read_hmdb51,
        folds=True,
        official=True,
    ),
    "kinetics": Layout(
        "Kinetics",
        "train.csv, val.csv, test.csv with label,youtube_id,time_start,time_end,split; videos ID_000010_000020.mp4 or "
        "ID.mp4",
        _detect_kinetics,
        _read_kinetics,
        official=True,
    ),
    "kinetics-untrimmed": Layout(
        "Kinetics, whole films",
        "the same csv files; of a video ID.mp4 the part from time_start to time_end is taken",
        _detect_kinetics,
        functools.partial(_read_kinetics, trimmed=False),
        chosen=True,
        official=True,
    ),
    "something-v2": Layout(
        "Something-Something v2",
        "*train.json, *validation.json with id and template, *labels.json",
        _detect_something_v2,
        _read_something_v2,
        official=True,
    ),
    "20bn": Layout(
        "Jester or Something-Something v1",
        "*-train.csv, *-validation.csv with id;label, *-labels.csv; videos are folders of pictures called by their id",
        _detect_20bn,
        _read_20bn,
        official=True,
    ),
    "moments": Layout(
        "Moments in Time",
        "trainingSet.csv, validationSet.csv with path,label,…; moments_categories.txt",
        _detect_moments,
        _read_moments,
        official=True,
    ),
    "activitynet": Layout(
        "ActivityNet",
        'a .json file with a "database" of videos, their subset and their annotations (label, segment)',
        _detect_activitynet,
        _read_activitynet,
        official=True,
    ),
    "json": Layout(
        "JSON lists",
        "*train.json, *test.json with objects that have vid_name (or path, file, …) and label, maybe start_frame and "
        "end_frame or start and end in seconds; *vocab.json",
        _detect_json,
        _read_json_list,
    ),
    "csv": Layout(
        "lists with a heading",
        "train.csv, val.csv, test.csv, or one file with a column split, whose heading has path (or file, filename, "
        "fname, video) and label (or class), maybe start and end in seconds",
        _detect_csv,
        _read_csv,
    ),
    "frames": _list_layout(
        "lists of frame folders",
        "train.txt, val.txt with lines of folder, number of pictures, label or labels",
        "frames",
    ),
    "frame-ranges": _list_layout(
        "lists of frame folders with first and last picture",
        "lines of folder, first picture, last picture, label or labels",
        "frame-ranges",
    ),
    "frame-offsets": _list_layout(
        "lists of frame folders with first picture and count",
        "lines of folder, first picture, number of pictures, label or labels",
        "frame-offsets",
    ),
    "segments": _list_layout("lists of segments", "lines of path, start and end in seconds, label", "segments"),
    "multi-label": _list_layout("lists with several labels", "lines of path and labels", "multi-label"),
    "list": _list_layout(
        "lists", 'train.txt, val.txt, test.txt (or .csv, .tsv) with lines of "path label", any delimiter', "list"
    ),
    "folders": Layout(
        "a folder per class",
        "CLASS/VIDEO or train|val|test/CLASS/VIDEO, a video being a file or a folder of numbered pictures",
        _detect_folders,
        _read_folders,
    ),
}
