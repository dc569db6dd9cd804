"""Lists whose columns have names: JSON lists of objects, and csv with a heading.

`detect_*` finds the files of each split, `read_*` makes tables of them, by the columns that are called path, label,
split, start and end, or by one of their other names. Other columns are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_csn.data.csv_records import records_of_csv
from lightning_csn.data.list_files import LABEL_COLUMNS, PATH_COLUMNS
from lightning_csn.data.list_sources import Files, Source, json_of, text_of
from lightning_csn.data.list_tables import Row, Table, part_of, split_named
from lightning_csn.errors import InputError

SPLIT_COLUMNS = ("split", "subset", "set", "partition")
START_COLUMNS = ("start", "start_seconds", "start_sec", "start_time", "time_start", "t_start", "begin")
END_COLUMNS = ("end", "end_seconds", "end_sec", "end_time", "time_end", "t_end", "stop")
START_FRAME_COLUMNS = ("start_frame", "first_frame", "frame_start")
END_FRAME_COLUMNS = ("end_frame", "stop_frame", "frame_end")


def detect_json(source: Source) -> Files:
    """JSON lists whose first object says where a video is."""
    return source.files_like(lambda path: _column(source.first_record(path), PATH_COLUMNS) is not None)


def read_json_list(source: Source, files: Files) -> dict[str, Table]:
    """An object for each row; labels may be lists."""
    classes = source.classes_beside(files.values(), r".*(vocab|classes|labels|categories)\.json")
    tables = {}
    for split, path in files.items():
        records = list(enumerate(json_of(path), start=1))
        for number, record in records:
            if not isinstance(record, dict):
                raise InputError(f"{path}, entry {number}: an object expected, got {record!r:.80}")
        tables[split] = _table(path, records, "entry", *classes)
    return tables


def detect_csv(source: Source) -> Files:
    """Csv whose heading says where the path and the label are."""

    def fits(path: Path) -> bool:
        heading = source.heading(path)
        return _column(heading, PATH_COLUMNS) is not None and _column(heading, LABEL_COLUMNS) is not None

    return source.files_like(fits)


def read_csv(source: Source, files: Files) -> dict[str, Table]:
    """A line for each row."""
    classes = source.classes_beside(files.values(), r"classes\.txt")
    return {
        split: _table(path, list(records_of_csv(text_of(path), path)), "line", *classes)
        for split, path in files.items()
    }


def _table(
    path: Path,
    records: Sequence[tuple[int, Mapping[str, Any]]],
    entry: str,
    classes: list[str] | None,
    classes_file: Path | None,
) -> Table:
    """A row for each record, by the columns that the first one has."""
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
        where = f"{path}, {entry} {number}"
        if path_column is None or record.get(path_column) in (None, ""):
            raise InputError(f"{where}: the {path_column or 'path'} is missing")
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
                part = part_of(where, record[start], record.get(end), unit)
        split = split_named(where, record.get(split_column)) if split_column is not None else None
        rows.append(Row(number, str(record[path_column]), labels, part, split))
    return Table(path, rows, entry, classes, classes_file, multi_label=several)


def _split_labels(text: str) -> tuple[str, ...]:
    """Labels with bars or semicolons between, or numbers with commas; names may have commas in them.

    >>> _split_labels("run|brush, hair"), _split_labels("3,7"), _split_labels("")
    (('run', 'brush, hair'), ('3', '7'), ())
    """
    commas = re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", text) is not None
    return tuple(label.strip() for label in re.split(r"," if commas else r"[|;]", text) if label.strip())


def _column(columns: Iterable[str], known: Sequence[str]) -> str | None:
    """The column whose name comes first among the known ones."""
    by_name = {column.strip().lower(): column for column in columns}
    return next((by_name[name] for name in known if name in by_name), None)
