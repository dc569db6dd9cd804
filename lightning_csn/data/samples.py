"""What a data set consists of: samples, each a video or a part of one with its label. Nothing here opens a file."""

from __future__ import annotations

from typing import NamedTuple

Label = int | tuple[int, ...]  # the number of a class, -1 unknown; or the numbers of several, ascending, maybe none


def numbers_of(label: Label) -> tuple[int, ...]:
    """The numbers of the classes that a label names; none where it is unknown.

    >>> numbers_of(2), numbers_of((0, 3)), numbers_of(-1)
    ((2,), (0, 3), ())
    """
    return tuple(number for number in ((label,) if isinstance(label, int) else label) if number >= 0)


class Part(NamedTuple):
    """A part of a video: from `start` up to `end`, which is not included, counted from the first frame.

    unit: "seconds" or "frames".
    """

    start: float
    end: float
    unit: str = "seconds"


class Sample(NamedTuple):
    """One video of a split, or a part of one: where it is, its label, and its own number in the split.

    path: a video file, a folder of frames, or a video in a shard (see shards.py).
    """

    path: str
    label: Label
    video: int
    part: Part | None = None


class Collection(NamedTuple):
    """The samples of each split, the names of the classes in their order, and how they were found.

    layout: what the folder or the list files turned out to be, as a reader should see it in a log.
    multi_label: whether labels are tuples of class numbers.
    missing: (split, name) of what was left out because it is not there, for data sets that are never whole.
    """

    samples: dict[str, list[Sample]]
    classes: list[str]
    layout: str
    multi_label: bool = False
    missing: tuple[tuple[str, str], ...] = ()
