"""List files, line by line: "path label" with any delimiter, spaces in names, and more columns where there are any;
and the files beside them that name classes.

What the columns mean is for list_columns.py.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_csn.data.names import ENDINGS, is_video, last_name
from lightning_csn.errors import InputError

PROBED = 20  # lines of a list that are looked at, to know what it is
DELIMITERS = "\t;|,"  # a path without an ending ends at the first of these that its line has; else at a space
PATH_COLUMNS: tuple[str, ...] = ("path", "file", "file_path", "filepath", "file_name", "filename", "fname", "video")
PATH_COLUMNS += ("video_path", "video_name", "vid_name", "video_id", "vid", "clip", "name", "id")
LABEL_COLUMNS: tuple[str, ...] = ("label", "labels", "class", "class_name", "classname", "category", "action")
LABEL_COLUMNS += ("action_label", "target", "label_id", "class_id", "label_idx")
_AFTER_ENDING = re.compile(rf"(?P<path>.+\.(?:{ENDINGS}))(?P<between>\s*[,\t;|]\s*|\s+)(?P<rest>.+)", re.IGNORECASE)
_AFTER_QUOTES = re.compile(r'"(?P<path>(?:[^"]|"")+)"(?P<between>\s*[,\t;|]\s*|\s+|$)(?P<rest>.*)')
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)")
_TWO_NUMBERS_AND_A_NAME = re.compile(rf"({_NUMBER.pattern})\s+({_NUMBER.pattern})\s+(\S.*)")


class Line(NamedTuple):
    """One line of a list file: its number from 1, the path as written, and what follows it, column by column."""

    number: int
    path: str
    columns: tuple[str, ...] = ()

    @property
    def label(self) -> str | None:
        """The first column after the path; None where there is none."""
        return self.columns[0] if self.columns else None


def is_number(text: str) -> bool:
    """Whether a column is a number, decimals allowed."""
    return _NUMBER.fullmatch(text) is not None


def is_whole(text: str) -> bool:
    """Whether a column is a whole number, 0 or more."""
    return text.isascii() and text.isdecimal()


def parse_line(line: str, *, number: int = 1) -> Line:
    """Split a line: commas, tabs, semicolons, bars or spaces between columns, and spaces inside.

    The path ends at its closing quote, or at the last video ending that something follows. A path without either ends
    at the first tab, else semicolon, else bar; else before the whole numbers that end the line; else at the last comma,
    else the last space. Behind the path, spaces part numbers, and two numbers from the name after them.

    >>> parse_line("my films/a b.mp4 5")
    Line(number=1, path='my films/a b.mp4', columns=('5',))
    >>> parse_line('"one, two.avi",brush hair').columns, parse_line("a.mp4 0.5 2 brush hair").columns
    (('brush hair',), ('0.5', '2', 'brush hair'))
    >>> parse_line("frames of a 17 5"), parse_line("clip.webm").label
    (Line(number=1, path='frames of a', columns=('17', '5')), None)
    """
    text = line.strip()
    match = _AFTER_QUOTES.fullmatch(text) or _AFTER_ENDING.fullmatch(text)
    if match is not None:
        path = match["path"].replace('""', '"') if text.startswith('"') else match["path"]
        return Line(number, path, _columns(match["rest"], match["between"].strip(" ")))
    if is_video(last_name(text)):
        return Line(number, text)
    for delimiter in "\t;|":
        if delimiter in text:
            path, _, rest = text.partition(delimiter)
            return Line(number, path.strip(), _columns(rest, delimiter))
    match = re.fullmatch(r"(?P<path>.*\S)(?P<numbers>(?:(?:\s*,\s*|\s+)\d+)+)", text)
    match = match or re.fullmatch(r"(?P<path>.+?)\s*,\s*(?P<numbers>[^,]+)", text)
    match = match or re.fullmatch(r"(?P<path>.+?)\s+(?P<numbers>\S+)", text)
    if match is None:
        return Line(number, text)
    path, rest = match["path"].rstrip(" ,"), match["numbers"]
    numbers = tuple(re.findall(r"\d+", rest)) if re.fullmatch(r"[\d\s,]+", rest) else None
    while numbers and (more := re.fullmatch(r"(?P<path>.*\S)(?:\s*,\s*|\s+)(?P<number>\d+)", path)):
        path, numbers = more["path"].rstrip(" ,"), (more["number"], *numbers)
    return Line(number, path, numbers or (_unquote(rest),))


def _columns(rest: str, delimiter: str) -> tuple[str, ...]:
    rest = rest.strip()
    if delimiter:
        columns = [column.strip() for column in split_row(rest, delimiter)]
        while columns and not columns[-1]:
            columns.pop()
        return tuple(columns)
    words = rest.split()
    if all(map(is_number, words)):
        return tuple(words)
    if match := _TWO_NUMBERS_AND_A_NAME.fullmatch(rest):
        return match[1], match[3], match[5]
    return (_unquote(rest),)


def _unquote(text: str) -> str:
    text = text.strip()
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def split_row(text: str, delimiter: str) -> list[str]:
    """The columns of a line of csv; quotes hold a delimiter.

    >>> split_row('a.mp4, "brush, hair"', ",")
    ['a.mp4', 'brush, hair']
    """
    try:
        return next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error as error:
        raise InputError(f"no columns with {delimiter!r} between them: {error}: {text:.80}") from error


def read_text(path: Path) -> str:
    """The text of a list file, in UTF-8, whose lines end in \\n; InputError where there is none.

    To be split there, not by `splitlines`, which knows ten more ends of a line, and names may have them.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: the list of videos cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a list of videos is text in UTF-8: {error}") from error


def parse_list(text: str, path: Path) -> list[Line]:
    """The lines of a "path label" list; blank ones and those that start with # are passed over.

    InputError for a list without lines, and for a heading that nobody knows.
    """
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                lines.append(parse_line(line, number=number))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from error
    if not lines:
        raise InputError(f"{path}: no line names a video")
    first, *others = lines
    if not is_video(last_name(first.path)) and others and all(is_video(last_name(line.path)) for line in others):
        raise InputError(
            f"{path}, line {first.number}: {', '.join((first.path, *first.columns))!r} names no video, the other lines "
            "do; a heading is to be taken out, or to call a column 'path' and one 'label'; known are also "
            f"{', '.join(PATH_COLUMNS[1:])} and {', '.join(LABEL_COLUMNS[1:])}"
        )
    return lines


def read_list(path: str | os.PathLike[str]) -> list[Line]:
    """The lines of a "path label" file, UTF-8; blank ones and those that start with # are passed over."""
    path = Path(path).expanduser()
    return parse_list(read_text(path), path)


def place_paths(
    lines: Sequence[Line], list_file: str | os.PathLike[str], root: str | os.PathLike[str] | None
) -> list[str]:
    """The paths of a list's lines, relative ones from `root` or from the folder of the list file.

    InputError where not one of them is there; the odd missing video is found when it is read.
    """
    start = Path(list_file).expanduser().parent if root is None else Path(root).expanduser()
    paths = [os.path.join(start, line.path) for line in lines]
    if not any(os.path.exists(path) for path in paths):
        raise InputError(
            f"{list_file}, line {lines[0].number}: no such file: {paths[0]}; none of the list's {len(paths)} videos is "
            "there, and relative paths start at root"
        )
    return paths


def read_json(path: Path) -> Any:
    """The value in a JSON file; InputError, with the line, where it is none."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{path}: no JSON that can be read: {error}") from error


def read_classes(path: str | os.PathLike[str]) -> list[str]:
    """The names of classes from a file: one a line, or numbered ("1 ApplyEyeMakeup", "abseiling,0", id,name csv); or a
    JSON list of names, or JSON names with their numbers. Numbers give the order.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".json":
        return _classes_of_json(read_json(path), path)
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not lines:
        raise InputError(f"{path}: no line names a class")
    pairs = [(int(m[1]), m[2]) for line in lines if (m := re.fullmatch(r"(\d+)(?:\s*[,;\t]\s*|\s+)(.+)", line))]
    if not _is_order(pairs, lines):
        pairs = [(int(m[2]), m[1]) for line in lines if (m := re.fullmatch(r"(.+?)(?:\s*[,;\t]\s*|\s+)(\d+)", line))]
    names = [name for _, name in sorted(pairs)] if _is_order(pairs, lines) else lines
    names = [_unquote(name) for name in names]
    return without_twins(names, path)


def _is_order(pairs: Sequence[tuple[int, str]], lines: Sequence[str]) -> bool:
    """Whether numbers go from 0 or 1 without a gap, one a line; a heading may have none."""
    numbers = sorted(number for number, _ in pairs)
    return len(pairs) >= max(1, len(lines) - 1) and numbers in (
        list(range(len(numbers))),
        list(range(1, len(numbers) + 1)),
    )


def _classes_of_json(value: Any, path: Path) -> list[str]:
    if isinstance(value, list):
        # the vocabulary of Diving48 has a list of words for each class
        return without_twins([" ".join(name) if isinstance(name, list) else str(name) for name in value], path)
    if isinstance(value, dict) and all(str(number).isdecimal() for number in value.values()):
        return without_twins([name for name, _ in sorted(value.items(), key=lambda pair: int(pair[1]))], path)
    if isinstance(value, dict) and all(number.isdecimal() for number in value):
        return without_twins([str(value[number]) for number in sorted(value, key=int)], path)
    raise InputError(f"{path}: names of classes are a JSON list of them, or a JSON object of names and numbers")


def without_twins(names: list[str], where: Path | str) -> list[str]:
    """The names of classes; InputError, which begins with `where`, for one that is there twice."""
    twins = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twins:
        raise InputError(f"{where}: {twins[0]!r} names two classes")
    return names
