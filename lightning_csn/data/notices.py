"""What a log says of how videos were found: in which layout, where, what was passed over and what is doubtful."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_csn.data.layouts import LAYOUTS
from lightning_csn.data.list_sources import Source
from lightning_csn.data.list_tables import PlacedTable, Table
from lightning_csn.data.names import folders_in, is_video, list_videos
from lightning_csn.data.places import Place
from lightning_csn.data.samples import Collection

_log = logging.getLogger(__name__)


def layout_sentence(root: Path | None, read: Mapping[str, PlacedTable], fold: int) -> str:
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


def report_places(table: Table, places: Sequence[Place]) -> None:
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


def report_elsewhere(table: Table, places: Sequence[Place], start: Path, official: bool) -> None:
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


def report_passed_over(source: Source, read: Mapping[str, PlacedTable]) -> None:
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


def report_left_out(root: Path, folders: Mapping[str, Path]) -> None:
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


def _relative(path: Path, root: Path | None) -> str:
    if root is not None and path.is_relative_to(root) and path != root:
        return path.relative_to(root).as_posix()
    return path.name
