"""Lists without a heading: lines of a path and columns, which list_columns.py tells the meaning of.

One pair of functions for all of them: `detect_lists` finds the files of each split that are in a layout, `read_lists`
makes tables of them. _ROWS has what the layouts differ in, how a line becomes a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lightning_csn.data.list_columns import Reading, label_last, reading_of
from lightning_csn.data.list_files import PROBED, Line, is_whole, parse_list
from lightning_csn.data.list_sources import Files, Source
from lightning_csn.data.list_tables import Row, Table, part_of
from lightning_csn.data.names import picture_numbers
from lightning_csn.data.places import Wanted
from lightning_csn.data.samples import Part
from lightning_csn.errors import InputError


def detect_lists(source: Source, *, layout: str) -> Files:
    """The files whose columns mean what they do in this layout; all lists, where the layout was named."""

    def fits(path: Path) -> bool:
        return bool(_lines(source, path)) and (source.chosen or _reading(source, path).layout == layout)

    return source.files_like(fits)


def read_lists(source: Source, files: Files, *, layout: str) -> dict[str, Table]:
    """A row for each line, as the layout has them."""
    tables = {}
    for split, path in files.items():
        lines, reading = _lines(source, path), _reading(source, path)
        ordered = label_last(lines) if layout == "segments" else lines
        rows = [_ROWS[layout](f"{path}, line {line.number}", line) for line in ordered]
        tables[split] = Table(
            path,
            rows,
            "line",
            *source.classes_beside([path], r"classes\.txt"),
            multi_label=layout == "multi-label" or any(row.labels is not None and len(row.labels) > 1 for row in rows),
            rule=reading.rule if reading.layout == layout else "",
            labels_needed=True,
        )
    return tables


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
        wanted = [Wanted(line.path, str(path)) for line in lines[:: max(1, len(lines) // PROBED)]]
        places = source.places.find(wanted, first=path.parent)
    except InputError:
        return []
    labelled = any(line.columns for line in lines)
    return lines if labelled and any(place.there is not False for place in places) else []


def _pictures(source: Source, path: Path, line: Line) -> list[int]:
    """The numbers of the pictures in the folder of a line, where it is easy to find: at most one folder down."""
    starts = [path.parent, *source.roots]
    return next((found for start in starts if (found := picture_numbers(start / line.path))), [])


def _reading(source: Source, path: Path) -> Reading:
    """What the columns of a list mean; found once, for every layout of lists asks."""
    if path not in source.readings:
        source.readings[path] = reading_of(_lines(source, path), lambda line: _pictures(source, path, line))
    return source.readings[path]


def _list_row(where: str, line: Line) -> Row:
    if len(line.columns) > 1:
        raise InputError(
            f"{where}: 2 columns expected (path, label), got {len(line.columns) + 1}: "
            f"{', '.join((line.path, *line.columns))!r}; for several labels of a video, layout=multi-label"
        )
    return Row(line.number, line.path, line.columns or None)


def _multi_label_row(where: str, line: Line) -> Row:
    labels = [label.strip() for column in line.columns for label in re.split(r"[,;|]", column)]
    return Row(line.number, line.path, tuple(label for label in labels if label))


def _segment_row(where: str, line: Line) -> Row:
    if len(line.columns) != 3:
        raise InputError(
            f"{where}: 4 columns expected (path, start, end, label), got {len(line.columns) + 1}: "
            f"{', '.join((line.path, *line.columns))!r}"
        )
    start, end, label = line.columns
    return Row(line.number, line.path, (label,), part_of(where, start, end))


def _frames_row(where: str, line: Line) -> Row:
    _check_frames(where, line, "folder, count, label", 2)
    return Row(line.number, line.path, line.columns[1:])


def _frame_range_row(where: str, line: Line) -> Row:
    """First and last picture, by their names, both included."""
    first, last = _check_frames(where, line, "folder, first, last, label", 3)
    if last < first:
        raise InputError(f"{where}: the last picture, {last}, comes before the first, {first}")
    return Row(line.number, line.path, line.columns[2:], Part(first, last + 1, "frames"), part_is_by_name=True)


def _frame_offset_row(where: str, line: Line) -> Row:
    first, count = _check_frames(where, line, "folder, first, count, label", 3)
    return Row(line.number, line.path, line.columns[2:], Part(first, first + count, "frames"), part_is_by_name=True)


def _check_frames(where: str, line: Line, columns: str, least: int) -> tuple[int, int]:
    if len(line.columns) < least or not all(map(is_whole, line.columns[: least - 1])):
        raise InputError(
            f"{where}: {least + 1} columns expected ({columns}), whole numbers before the label; "
            f"got {', '.join((line.path, *line.columns))!r}"
        )
    return int(line.columns[0]), int(line.columns[1]) if is_whole(line.columns[1]) else 0


_ROWS: dict[str, Callable[[str, Line], Row]] = {
    "list": _list_row,
    "multi-label": _multi_label_row,
    "segments": _segment_row,
    "frames": _frames_row,
    "frame-ranges": _frame_range_row,
    "frame-offsets": _frame_offset_row,
}
