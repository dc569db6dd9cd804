"""What a data set consists of: samples, each a video or a part of one with its label, and its classes. Nothing here
opens a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_csn.errors import InputError

FEW_CLASSES = 20  # that a report names one by one

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


def mirror_map(pairs: Sequence[Sequence[str]], classes: Sequence[str]) -> dict[int, int]:
    """Number of a class -> number of its mirror image, from pairs of names.

    >>> mirror_map([["left", "right"]], ["down", "left", "right"])
    {1: 2, 2: 1}
    """
    numbers = {name: number for number, name in enumerate(classes)}
    mirrored: dict[int, int] = {}
    for pair in pairs:
        if len(pair) != 2:
            raise InputError(f"flip_classes are pairs of classes, got {list(pair)}")
        for name in pair:
            if name not in numbers:
                raise InputError(f"flip_classes: {name!r} is none of the {len(classes)} classes")
            if numbers[name] in mirrored:
                raise InputError(f"flip_classes: {name!r} is in two pairs")
        first, second = (numbers[name] for name in pair)
        mirrored |= {first: second, second: first}
    return mirrored


def classes_without(samples: Mapping[str, Sequence[Sample]], classes: Sequence[str]) -> list[str]:
    """Classes that have a video to train on and none to validate on; none where there is no validation.

    >>> samples = {"train": [Sample("a.mp4", 0, 0), Sample("b.mp4", 1, 1)], "val": [Sample("c.mp4", 1, 0)]}
    >>> classes_without(samples, ["run", "walk", "jump"])
    ['run']
    """
    if "train" not in samples or "val" not in samples:
        return []
    train, val = (
        {number for sample in samples[split] for number in numbers_of(sample.label)} for split in ("train", "val")
    )
    return [name for number, name in enumerate(classes) if number in train - val]


def count_text(counts: Counter[Any], classes: Sequence[str]) -> str:
    """How many videos of each class, one by one where the classes are few.

    >>> count_text(Counter([0, 0, 1]), ["run", "walk", "jump"])
    'run 2, walk 1, jump 0'
    """
    if len(classes) <= FEW_CLASSES:
        return ", ".join(f"{name} {counts[number]}" for number, name in enumerate(classes))
    each = sorted(counts[number] for number in range(len(classes)))
    return f"{len(classes)} classes, {each[0]} to {each[-1]} videos each, {each[len(each) // 2]} in the middle"
