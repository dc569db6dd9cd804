"""Csv with any delimiter, as records: text goes in, line numbers with columns, or columns by their name, come out.

The path of the file is for messages; nothing is opened here.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lightning_csn.data.list_files import DELIMITERS, split_row
from lightning_csn.errors import InputError


def split_heading(text: str) -> tuple[str, list[str]]:
    """The delimiter of a text's first line, the one that parts it into most, and its columns, in lower case.

    >>> split_heading("Path;Label\\na, b.mp4;run\\n")
    (';', ['path', 'label'])
    """
    line = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=line.count)
    return delimiter, [column.strip().lower() for column in split_row(line, delimiter)]


def records_of_csv(text: str, path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """Line number and columns, by their name in lower case, of each line after the heading."""
    delimiter, heading = split_heading(text)
    twins = [name for name, count in Counter(heading).items() if count > 1 and name]
    if twins:
        raise InputError(f"{path}, line 1: two columns are called {twins[0]!r}")
    for number, columns in rows_of_csv(text, path, delimiter):
        if number == 1 or not any(column.strip() for column in columns):
            continue
        if len(columns) > len(heading) and any(columns[len(heading) :]):
            raise InputError(
                f"{path}, line {number}: {len(heading)} columns expected ({', '.join(heading)}), got {len(columns)}"
            )
        yield number, {name: column.strip() for name, column in zip(heading, columns, strict=False)}


def rows_of_csv(text: str, path: Path, delimiter: str) -> Iterable[tuple[int, list[str]]]:
    """Line number and columns of each line; columns in quotes may go on in the next line."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        for columns in reader:
            yield reader.line_num, columns
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
