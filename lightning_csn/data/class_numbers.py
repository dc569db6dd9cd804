"""The classes of a data set and their numbers: labels as lists write them go in, numbers come out."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Sequence

from lightning_csn.data.list_tables import Row, Table
from lightning_csn.data.samples import Collection, Label
from lightning_csn.errors import InputError

_log = logging.getLogger(__name__)

_WHOLE = re.compile(r"-?\d+(\.0+)?")  # pandas writes 3.0 where a label of the column is missing
_LARGEST_LABEL = 999_999  # a larger one is something else, such as an id, and would be so many classes


class ClassNumbers:
    """The number of each label of some tables. Labels are names, or numbers themselves if all in the lists are."""

    def __init__(self, tables: Sequence[Table], classes: list[str] | None) -> None:
        labels = {label for table in tables for row in table.rows for label in row.labels or ()}
        own = next((table for table in tables if table.classes is not None), None)
        self._file = own.classes_file if own is not None and classes is None else None
        are_names = any(table.entry == "folder" for table in tables)  # a folder "7" is a class of that name
        self.are_numbers = bool(labels) and not are_names and all(map(_WHOLE.fullmatch, labels))
        if classes is not None:
            self.names = list(classes)
        elif own is not None and own.classes is not None:
            self.names = list(own.classes)
        elif self.are_numbers:
            numbers = [int(float(label)) for label in labels]
            largest = max(numbers)
            if largest > _LARGEST_LABEL:
                raise InputError(f"{tables[0].source}: {largest} is a label, and too large for the number of a class")
            self.names = [str(number) for number in range(largest + 1)]
            if min(numbers) == 1:
                _log.warning("labels go from 1 to %d: there is a class 0 too, of which no video is", largest)
        else:
            self.names = sorted(labels)
        self._numbers = {name: number for number, name in enumerate(self.names)}
        if self.are_numbers:
            self._numbers = {str(number): number for number in range(len(self.names))} | self._numbers

    def label(self, table: Table, row: Row, multi_label: bool) -> Label:
        """The label of a row: one number, -1 where it is not known, or the ascending numbers of several."""
        if row.labels is None and table.labels_needed:
            raise InputError(f"{table.where(row)}: 2 columns expected (path, label), got 1: {row.path!r}")
        found = {self._number(table, row, label) for label in row.labels or ()} - {-1}
        if multi_label:
            return tuple(sorted(found))
        return found.pop() if found else -1

    def _number(self, table: Table, row: Row, label: str) -> int:
        number = self._numbers.get(label)
        if number is None and self.are_numbers:
            number = -1 if float(label) == -1 else self._numbers.get(str(int(float(label))))
        if number is not None:
            return number
        what = "folder" if table.entry == "folder" else "label"
        which = f"the {len(self.names)} classes" + (f" of {self._file}" if self._file is not None else "")
        nearest = _nearest(label, self.names) if not self.are_numbers else ""
        if self.are_numbers and self.names:
            nearest = f", 0 to {len(self.names) - 1}"
        raise InputError(f"{table.where(row)}: the {what} {label!r} is none of {which}{nearest}")


def with_classes(packed: Collection, names: list[str] | None, root: str | os.PathLike[str]) -> Collection:
    """A packed collection with its labels numbered as `names` are."""
    if names is None or names == packed.classes:
        return packed
    numbers = {name: number for number, name in enumerate(names)}
    for name in packed.classes:
        if name not in numbers:
            raise InputError(f"{root}: its class {name!r} is none of the {len(names)} classes{_nearest(name, names)}")
    new = [numbers[name] for name in packed.classes]

    def renumber(label: Label) -> Label:
        if isinstance(label, tuple):
            return tuple(sorted(new[number] for number in label))
        return label if label < 0 else new[label]

    samples = {
        split: [sample._replace(label=renumber(sample.label)) for sample in found]
        for split, found in packed.samples.items()
    }
    return packed._replace(samples=samples, classes=names)


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or list(names[:5])
    return f"; nearest: {', '.join(map(repr, close))}"
