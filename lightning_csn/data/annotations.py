"""Which videos there are and what they show: any folder or list files in one of the ways that layouts.py knows.

Nothing here opens a video; a collection of any size is read by its names alone.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_csn.data import shards
from lightning_csn.data.layouts import LAYOUTS
from lightning_csn.data.list_files import read_classes, without_twins
from lightning_csn.data.list_sources import Source, forget_texts
from lightning_csn.data.list_tables import Row, Table
from lightning_csn.data.names import (
    PICTURE_ENDINGS,
    SPLITS,
    VIDEO_ENDINGS,
    folders_in,
    is_video,
    list_videos,
    picture_numbers,
)
from lightning_csn.data.places import Place, Places, Wanted
from lightning_csn.data.samples import Collection, Label, Part, Sample
from lightning_csn.errors import InputError, check_choice

_log = logging.getLogger(__name__)

FOLDS = (1, 2, 3)  # of UCF101 and HMDB51
_WHOLE = re.compile(r"-?\d+(\.0+)?")  # pandas writes 3.0 where a label of the column is missing
_LARGEST_LABEL = 999_999  # a larger one is something else, such as an id, and would be so many classes


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
        return _with_classes(shards.read_packed(root), names, root)
    folder = None if root is None else Path(root).expanduser()
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
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


class _Read(NamedTuple):
    """The table of a split, the name of its layout, and where its videos are."""

    layout: str
    table: Table
    places: list[Place]

    @property
    def any_there(self) -> bool:
        return any(place.there is not False for place in self.places)

    @property
    def rule_counts(self) -> bool:
        """Whether the table's rule decided anything: one about other names than the usual ones, if there are such."""
        pairs = zip(self.table.rows, self.places, strict=True)
        return bool(self.table.rule) and any(not row.trimmed or _is_called(place, row.other) for row, place in pairs)


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
        read[split] = _Read(name, table, places)
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
            split: _Read(name, table, _place(table, split, source.places, table.source.parent))
            for split, table in tables.items()
            if table.rows
        }
        if any(split.any_there for split in read.values()):
            _report_passed_over(source, read)
            if name == "folders":
                _report_left_out(root, files)
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
        _report_passed_over(source, {})
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


def _collect(root: Path | None, read: Mapping[str, _Read], classes: list[str] | None, fold: int) -> Collection:
    """Samples of what was read: rows to their splits, labels to numbers, parts to frames."""
    tables = [one.table for one in read.values()]
    numbers = _Numbers(tables, classes)
    multi_label = any(table.multi_label for table in tables)
    samples: dict[str, list[Sample]] = {}
    missing: list[tuple[str, str]] = []
    other_splits = 0
    for split, (name, table, places) in read.items():
        _report_places(table, places)
        _report_elsewhere(table, places, root if root is not None else table.source.parent, LAYOUTS[name].official)
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
    layout = _sentence(root, read, fold)
    for source, rule in dict.fromkeys((one.table.source, one.table.rule) for one in read.values() if one.rule_counts):
        _log.info("%s: its lines are read as %s", source, rule)
    return Collection(samples, numbers.names, layout, multi_label, tuple(missing))


class _Numbers:
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


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or list(names[:5])
    return f"; nearest: {', '.join(map(repr, close))}"


def _is_called(place: Place, name: str) -> bool:
    return os.path.splitext(os.path.basename(place.path))[0] == name


def _part(table: Table, row: Row, place: Place) -> Part | None:
    """The part of a row, in frames from the first of the video; None for all of a folder of pictures."""
    part = row.part
    if part is None or (row.trimmed and _is_called(place, row.path)):
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


def _report_places(table: Table, places: Sequence[Place]) -> None:
    """Say which names of a list were found by another ending, and how many of a complete one were not found."""
    if table.entry == "folder":
        return
    endings = {
        (os.path.splitext(row.path)[1], os.path.splitext(place.path)[1])
        for row, place in zip(table.rows, places, strict=True)
        if place.there is not False and not row.trimmed
    }
    for written, found in sorted(endings):
        if written and written != found:
            _log.warning("%s names %s files; the %s files called the same are taken", table.source, written, found)
    lost = [place.path for place in places if place.there is False]
    if lost and table.complete:
        _log.warning("%s: %d of %d videos are not there, such as %s", table.source, len(lost), len(places), lost[0])


def _report_elsewhere(table: Table, places: Sequence[Place], start: Path, official: bool) -> None:
    """Say how many videos were found in another folder than the list writes, and where.

    Official lists never write the folder that all videos are in: of these, only another one than they write is said.
    """
    if table.entry == "folder":
        return
    starts = {os.path.abspath(start), os.path.abspath(table.source.parent)}
    found: list[str] = []
    written: list[str] = []
    for row, place in zip(table.rows, places, strict=True):
        folder, path = os.path.dirname(os.path.abspath(place.path)), row.path.replace("\\", "/")
        as_written = {os.path.normpath(os.path.join(start, os.path.dirname(path))) for start in starts}
        if place.there is False or row.other or folder in as_written:
            continue
        if not official or not f"{folder}/".replace(os.sep, "/").endswith(
            f"/{os.path.dirname(path)}/".replace("//", "/")
        ):
            found.append(folder)
            written.append(os.path.dirname(path))
    if found:
        common = _relative(Path(os.path.commonpath(found)), Path(os.path.abspath(start)))
        instead = (
            f", where {written[0]}/ is written" if written[0] and not f"/{common}/".endswith(f"/{written[0]}/") else ""
        )
        _log.warning(
            "%s: %d of %d paths were found in %s/ by their names%s; none is there as written from %s, so one folder "
            "is taken in place of another for all that name a folder, and names alone are looked for anywhere",
            table.source,
            len(found),
            len(places),
            common,
            instead,
            start,
        )


def _sentence(root: Path | None, read: Mapping[str, _Read], fold: int) -> str:
    """What was found, for a log."""
    names = list(dict.fromkeys(one.layout for one in read.values()))
    title = ", ".join(LAYOUTS[name].title for name in names)
    if LAYOUTS[names[0]].folds:
        title += f" split {fold}"
    if names == ["folders"]:
        videos = sum(len(one.places) for one in read.values())
        splits = "" if list(read) == ["all"] else f" in {', '.join(read)}"
        pictures = ", frames as pictures" if os.path.isdir(next(iter(read.values())).places[0].path) else ""
        return f"{title}{splits}: {videos} videos{pictures}"
    files = [path for one in read.values() for path in (one.table.classes_file, one.table.source) if path is not None]
    listed = ", ".join(dict.fromkeys(_relative(path, root) for path in files))
    parents = {os.path.dirname(place.path) for one in read.values() for place in one.places if place.there is not False}
    common = Path(os.path.commonpath([os.path.abspath(parent) for parent in parents]))
    return f"{title}: {listed}; videos in {_relative(common, root and Path(os.path.abspath(root)))}/"


def _relative(path: Path, root: Path | None) -> str:
    if root is not None and path.is_relative_to(root) and path != root:
        return path.relative_to(root).as_posix()
    return path.name


def _report_passed_over(source: Source, read: Mapping[str, _Read]) -> None:
    """Say which list files of splits were not taken, for nothing that fits, or fits with the others, is in them."""
    listed = {split: one for split, one in read.items() if one.layout != "folders"}
    used = {one.table.source for one in listed.values()} | {one.table.classes_file for one in listed.values()}
    rows = {row.split for one in listed.values() for row in one.table.rows}
    reason = "the other lists are in another layout" if listed else "it is no list of videos that are here"
    if source.chosen and not listed:
        return  # nobody asked for lists
    for split, paths in source.files.items():
        for path in paths if split != "all" else ():
            if path in source.faults:
                _log.warning("%s; it is passed over", source.faults[path])
            elif path not in used and split not in listed and split not in rows:
                _log.warning("%s: passed over, for %s", path, reason)


def _report_left_out(root: Path, folders: Mapping[str, Path]) -> None:
    """Say which videos of a folder are in no class, or in no split."""
    if "all" not in folders:
        for folder in folders_in(root):
            if folder not in folders.values() and list_videos(folder):
                _log.warning(
                    "%s: the videos in %s/ are left out, for they are in none of %s/",
                    root,
                    folder.name,
                    "/, ".join(sorted(path.name for path in folders.values())),
                )
    classes = {path.name for folder in folders.values() for path in folders_in(folder) if list_videos(path)}
    if len(classes) == 1:
        _log.warning("%s: one class only, %s; if that is no class, name the folder above the classes", root, *classes)
    for folder in folders.values():
        empty = [path.name for path in folders_in(folder) if not list_videos(path)]
        if empty:
            _log.warning("%s: no videos in %s", folder, ", ".join(empty))
        loose = sum(1 for path in folder.iterdir() if is_video(path.name))
        if loose:
            _log.warning("%s: %d videos that are in no class folder are left out", folder, loose)


def deep_classes(collection: Collection, root: str | os.PathLike[str]) -> str:
    """A doubt about a folder per class of which all videos lie in folders of the class folders; "" where there is none.

    So it is where each person has a folder, say; or where the root is too high, and its folders are data sets.
    """
    if not collection.layout.startswith(LAYOUTS["folders"].title):
        return ""
    inside: dict[str, set[str]] = {}
    for split, samples in collection.samples.items():
        for sample in samples:
            folders = os.path.relpath(sample.path, root).split(os.sep)[split != "all" : -1]
            if len(folders) < 2:
                return ""
            inside.setdefault(folders[0], set()).add(folders[1])
    name = max(sorted(inside), key=lambda name: len(inside[name]), default="")
    if len(inside.get(name, ())) < 2:
        return ""
    below = ", ".join(sorted(inside[name])[:3])
    instead = f"{os.path.join(root, name)} in place of {os.fspath(root)}" if "all" in collection.samples else ""
    return (
        f"no video lies in its class folder, all lie deeper, those of {name} in {below}; if these folders are the "
        f"classes, or splits, and {name} is none, name {instead or 'the folder above the splits'}"
    )


def _with_classes(packed: Collection, names: list[str] | None, root: str | os.PathLike[str]) -> Collection:
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
