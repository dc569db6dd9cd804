"""Which videos there are and what they show: any folder or list files in one of the ways that layouts.py knows.

Nothing here opens a video; a collection of any size is read by its names alone.
"""

from __future__ import annotations

import functools
import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_csn.data import shards
from lightning_csn.data.class_numbers import ClassNumbers, with_classes
from lightning_csn.data.layouts import LAYOUTS
from lightning_csn.data.list_files import read_classes, without_twins
from lightning_csn.data.list_sources import Source, forget_texts
from lightning_csn.data.list_tables import PlacedTable, Row, Table, is_called
from lightning_csn.data.names import (
    PICTURE_ENDINGS,
    SPLITS,
    VIDEO_ENDINGS,
    is_video,
    list_videos,
    picture_numbers,
)
from lightning_csn.data.notices import (
    deep_classes,
    layout_sentence,
    report_elsewhere,
    report_left_out,
    report_passed_over,
    report_places,
)
from lightning_csn.data.places import Place, Places, Wanted
from lightning_csn.data.samples import Collection, Part, Sample
from lightning_csn.errors import InputError, check_choice

_log = logging.getLogger(__name__)

FOLDS = (1, 2, 3)  # of UCF101 and HMDB51


def find_samples(
    root: str | os.PathLike[str] | None = None,
    *,
    lists: Mapping[str, str | os.PathLike[str]] | None = None,
    classes: Sequence[str] | str | os.PathLike[str] | None = None,
    layout: str | None = None,
    fold: int = 1,
) -> Collection:
    """The samples of each split, the names of the classes, and how they were found.

    root: a folder in one of LAYOUTS, such as a folder per class, or a packed one, or its address. Without splits all
        videos are in one split that is called "all". Lists that lie in it come before folders that are called like
        classes, official ones first.
    lists: split -> list file, in any of the layouts that are lists. Then nothing else is looked for in `root`: it is
        what relative paths start at, and is searched for what is not there; without it, paths start at the folder of
        the list file.
    classes: the names in their order, when weights have fixed it, or a file with them; a label that is none of them is
        an error. Without it the classes are those of the data set's own file of classes, else those found, sorted by
        name; numbers in list files are named "0" to the largest.
    layout: the name of a layout, a key of LAYOUTS; None to find out which one it is.
    fold: which of the official splits, where a layout has several: 1 to 3.

    A split that is not there is not in the result; a root that holds videos but no folder of them gives no split.
    Lists are believed: the odd video that is not there is found when it is read. Of data sets that are never whole
    (Kinetics), what is not there is left out, counted in the log and named in `missing`.

    InputError where no layout fits, with all that was looked for, and for whatever is wrong in a list file.
    """
    if layout is not None:
        check_choice("layout", layout, tuple(LAYOUTS))
    check_choice("fold", fold, FOLDS)
    if isinstance(classes, str | os.PathLike):
        names: list[str] | None = read_classes(classes)
    else:
        names = without_twins(list(classes or []), "classes") or None
    if root is None and not lists:
        raise InputError("no videos: name a folder (root) or a list file")
    if root is not None and not lists and shards.is_packed(root):
        return with_classes(shards.read_packed(root), names, root)
    folder = None if root is None else Path(root).expanduser()
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: {'this is a file, not a folder' if os.path.isfile(folder) else 'no such folder'}")
    try:
        if lists:
            for split in lists:
                check_choice("a list is for a split, which", split, SPLITS)
            named = {split: Path(lists[split]).expanduser() for split in SPLITS if split in lists}
            return _from_lists(folder, named, names, layout, fold)
        assert folder is not None
        return _from_root(folder, names, layout, fold)
    finally:
        forget_texts()


def _from_lists(
    root: Path | None, lists: Mapping[str, Path], classes: list[str] | None, layout: str | None, fold: int
) -> Collection:
    chosen = _choose(layout)
    tables: dict[str, tuple[str, Table]] = {}
    together = Source(root, lists, fold, chosen=layout is not None)
    for name in chosen:  # all of them in one layout, for some files are only known by the others
        files = LAYOUTS[name].detect(together)
        if set(files) == set(lists):
            tables = {split: (name, table) for split, table in LAYOUTS[name].read(together, files).items()}
            break
    for split, path in lists.items() if not tables else ():
        alone = Source(root, {split: path}, fold, chosen=layout is not None)
        fitting = [name for name in chosen if LAYOUTS[name].detect(alone)][:1]
        if not fitting:
            raise InputError(f"{path}: this is no list of videos in any layout{_looked_for(chosen)}")
        row = LAYOUTS[fitting[0]]
        tables[split] = fitting[0], row.read(alone, row.detect(alone))[split]
    read = {}
    for split, (name, table) in tables.items():
        if not table.rows:
            raise InputError(f"{table.source}: no {table.entry} names a video")
        start = root if root is not None else table.source.parent
        places = _place(table, split, Places(start, search=root is not None), None)
        read[split] = PlacedTable(name, table, places)
        if not read[split].any_there:
            raise InputError(
                f"{table.where(table.rows[0])}: no such file: {places[0].path}; none of the list's {len(places)} "
                "videos is there, and relative paths start at root"
                + ("" if root else ", without one at the list's folder")
            )
    return _collect(root, read, classes, fold)


def _from_root(root: Path, classes: list[str] | None, layout: str | None, fold: int) -> Collection:
    source = Source(root, {}, fold, chosen=layout is not None)
    nearly: list[str] = []
    for name in _choose(layout):
        row = LAYOUTS[name]
        files = row.detect(source)
        tables = row.read(source, files) if files else {}
        read = {
            split: PlacedTable(name, table, _place(table, split, source.places, table.source.parent))
            for split, table in tables.items()
            if table.rows
        }
        if any(split.any_there for split in read.values()):
            report_passed_over(source, read)
            if name == "folders":
                report_left_out(root, files)
            for message in nearly:
                _log.warning("%s; %s is taken instead", message, LAYOUTS[name].title)
            collection = _collect(root, read, classes, fold)
            if doubt := deep_classes(collection, root):
                _log.warning("%s: %s", root, doubt)
            return collection
        if read:
            one = next(iter(read.values()))
            where = one.table.where(one.table.rows[0])
            nearly.append(f"{where}: no such file: {one.places[0].path}, nor any other that is named")
    if not nearly and layout in (None, "folders") and (videos := list_videos(root)):
        report_passed_over(source, {})
        if os.path.isdir(videos[0]):
            _log.warning(
                "%s: %s%s read as videos, folders of their frames, for the pictures in them are numbered; photos of "
                "things are no videos, and classes of videos lie in CLASS/VIDEO/PICTURES",
                root,
                ", ".join(os.path.relpath(video, root) for video in videos[:3]),
                " is" if len(videos) == 1 else " are" if len(videos) <= 3 else f" and {len(videos) - 3} more are",
            )
        return Collection({}, list(classes or []), "videos without classes")
    raise InputError(f"{root}: {'; '.join(nearly) or 'no videos in it'}{_looked_for(_choose(layout))}")


def _choose(layout: str | None) -> list[str]:
    return [layout] if layout is not None else [name for name, row in LAYOUTS.items() if not row.chosen]


def _looked_for(layouts: Sequence[str]) -> str:
    rows = [f"\n  {name}: {LAYOUTS[name].looks_for}" for name in layouts]
    endings = f"\nvideos end in {' '.join(sorted(VIDEO_ENDINGS))}, pictures in {' '.join(sorted(PICTURE_ENDINGS))}"
    return f"; looked for{''.join(rows)}{endings}"


def _place(table: Table, split: str, places: Places, first: Path | None) -> list[Place]:
    """Where the video of each row is."""
    if table.entry == "folder":
        return [Place(row.path, None) for row in table.rows]
    wanted = [Wanted(row.path, table.where(row), row.split or split, row.labels or ()) for row in table.rows]
    found = places.find(wanted, first=first, all_of_them=not table.complete)
    lost = [i for i, place in enumerate(found) if place.there is False and table.rows[i].other]
    others = places.find([wanted[i]._replace(path=table.rows[i].other) for i in lost], all_of_them=True)
    for i, place in zip(lost, others, strict=True):
        if place.there:
            found[i] = place
    return found


def _collect(root: Path | None, read: Mapping[str, PlacedTable], classes: list[str] | None, fold: int) -> Collection:
    """Samples of what was read: rows to their splits, labels to numbers, parts to frames."""
    tables = [one.table for one in read.values()]
    numbers = ClassNumbers(tables, classes)
    multi_label = any(table.multi_label for table in tables)
    samples: dict[str, list[Sample]] = {}
    missing: list[tuple[str, str]] = []
    other_splits = 0
    for split, (name, table, places) in read.items():
        report_places(table, places)
        report_elsewhere(table, places, root if root is not None else table.source.parent, LAYOUTS[name].official)
        in_rows = any(row.split for row in table.rows)
        for row, place in zip(table.rows, places, strict=True):
            if in_rows and row.split is None:
                raise InputError(f"{table.where(row)}: the split is missing")
            into = row.split or split
            if split != "all" and into != split:
                other_splits += 1
            elif place.there is False and not table.complete:
                missing.append((into, row.path))
            else:
                label = numbers.label(table, row, multi_label)
                samples.setdefault(into, []).append(Sample(place.path, label, -1, _part(table, row, place)))
    if other_splits:
        _log.warning("%d rows are left out, for they belong to another split than their file", other_splits)
    if missing:
        named = sum(len(table.rows) for table in tables)
        _log.warning(
            "%d of %d videos are not there and left out; the first is %s of %s", len(missing), named, *missing[0][::-1]
        )
    for split, found in samples.items():
        samples[split] = [sample._replace(video=number) for number, sample in enumerate(found)]
    samples = {split: samples[split] for split in (*SPLITS, "all") if split in samples}
    layout = layout_sentence(root, read, fold)
    for source, rule in dict.fromkeys((one.table.source, one.table.rule) for one in read.values() if one.rule_counts):
        _log.info("%s: its lines are read as %s", source, rule)
    return Collection(samples, numbers.names, layout, multi_label, tuple(missing))


def _part(table: Table, row: Row, place: Place) -> Part | None:
    """The part of a row, in frames from the first of the video; None for all of a folder of pictures."""
    part = row.part
    if part is None or (row.trimmed and is_called(place, row.path)):
        return None
    if not row.part_is_by_name or is_video(place.path):
        return part
    numbers = _numbers_in(place.path) or range(1, int(part.end))  # of a folder that is not there: as most count
    first, end = bisect_left(numbers, part.start), bisect_right(numbers, part.end - 1)
    if part.start < numbers[0] or part.end - 1 > numbers[-1]:
        raise InputError(
            f"{table.where(row)}: pictures {part.start} to {part.end - 1} were named, {place.path} has {numbers[0]} to "
            f"{numbers[-1]}"
        )
    return None if end - first == len(numbers) else Part(first, end, "frames")


@functools.lru_cache(maxsize=64)  # the parts of one video stand together in most lists
def _numbers_in(folder: str) -> Sequence[int]:
    return picture_numbers(Path(folder))
