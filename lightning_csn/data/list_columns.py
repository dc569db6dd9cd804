"""What the columns of a list without a heading mean: its lines go in, the name of a layout and the rule come out.

Arithmetic on what is written; which pictures a folder holds is told by a function that is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lightning_csn.data.list_files import PROBED, Line, is_number, is_whole
from lightning_csn.data.names import is_video, last_name


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
    probed = [(line, found) for line in lines[:: max(1, len(lines) // PROBED)] if (found := pictures(line))]
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


def label_last(lines: Sequence[Line]) -> Sequence[Line]:
    """Segments as they are written most, start, end, label: those of label, start, end are turned around.

    >>> label_last([Line(1, "a.mp4", ("run", "0.5", "3"))])
    [Line(number=1, path='a.mp4', columns=('0.5', '3', 'run'))]
    """
    if any(len(line.columns) != 3 for line in lines) or _segment_columns(lines) != "label, start, end":
        return lines
    return [line._replace(columns=(*line.columns[1:], line.columns[0])) for line in lines]


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
