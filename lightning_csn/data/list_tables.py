"""What list files and folders of videos say, in one form: tables of rows, each a video or a part of one and its labels.

Every layout reads its files into these; annotations.py makes samples of them. `where` is a file and a line in it, which
messages begin with.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning_csn.data.names import SPLIT_NAMES, split_called
from lightning_csn.data.places import Place
from lightning_csn.data.samples import Part
from lightning_csn.errors import InputError


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


class PlacedTable(NamedTuple):
    """The table of a split, the name of its layout, and where its videos are."""

    layout: str
    table: Table
    places: list[Place]

    @property
    def any_there(self) -> bool:
        """Whether any of the videos is there, as far as anybody looked."""
        return any(place.there is not False for place in self.places)

    @property
    def rule_counts(self) -> bool:
        """Whether the table's rule decided anything: one about other names than the usual ones, if there are such."""
        pairs = zip(self.table.rows, self.places, strict=True)
        return bool(self.table.rule) and any(not row.trimmed or is_called(place, row.other) for row, place in pairs)


def is_called(place: Place, name: str) -> bool:
    """Whether the file or folder has this name, whatever its ending."""
    return os.path.splitext(os.path.basename(place.path))[0] == name


def split_named(where: str, name: Any) -> str | None:
    """The split that a row names; None where it names none."""
    if name is None or name == "":
        return None
    split = split_called(str(name).strip())
    if split is None:
        raise InputError(f"{where}: the split {name!r} is none of {', '.join(SPLIT_NAMES)}")
    return split


def part_of(where: str, start: Any, end: Any, unit: str = "seconds") -> Part:
    """A part as it is written, in "seconds" or "frames"."""
    first, last = _seconds(where, start), _seconds(where, end)
    if not 0 <= first < last:
        raise InputError(f"{where}: a part starts at 0 or later and ends after that, got {start} to {end}")
    return Part(int(first), int(last), unit) if unit == "frames" else Part(first, last, unit)


def _seconds(where: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InputError(f"{where}: a number expected, got {value!r}")
    return seconds
