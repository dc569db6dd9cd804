"""What lies in a folder, by names alone: which files are videos, which folders are videos in pictures, and where the
videos are that a list names. Nothing here opens a video.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_csn.errors import InputError

_log = logging.getLogger(__name__)

ENDINGS = "3g2|3gp|asf|avi|divx|f4v|flv|gif|m2ts|m4v|mkv|mov|mp4|mpeg|mpg|mts|mxf|ogv|rm|rmvb|ts|vob|webm|wmv"
VIDEO_ENDINGS = frozenset(f".{ending}" for ending in ENDINGS.split("|"))
PICTURE_ENDINGS = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_PROBED = 20  # names of a list, spread over it, that are looked for before a whole folder is walked through
_MOST_FOLDERS = 200  # to look for a list's videos in before a whole folder is walked through


def is_video(name: str) -> bool:
    """Whether a file of this name is a video: by its ending; hidden files are none."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_ENDINGS


def last_name(path: str) -> str:
    """What follows the last slash or backslash, for lists come from anywhere.

    >>> last_name("run/a.mp4"), last_name("run\\\\a.mp4")
    ('a.mp4', 'a.mp4')
    """
    return re.split(r"[/\\]", path)[-1]


class Numbered(NamedTuple):
    """The name of a picture: what is before and after the last number in it, and the number."""

    before: str
    number: int
    after: str


def picture_number(name: str) -> Numbered | None:
    """The parts of a numbered picture's name; None for other names, hidden ones among them.

    >>> picture_number("img_00012.jpg")
    Numbered(before='img_', number=12, after='')
    >>> picture_number("clip2_7_rgb.png"), picture_number("cover.jpg")
    (Numbered(before='clip2_', number=7, after='_rgb'), None)
    """
    stem, ending = os.path.splitext(name)
    match = re.fullmatch(r"(.*?)(\d+)(\D*)", stem)
    if match is None or name.startswith(".") or ending.lower() not in PICTURE_ENDINGS:
        return None
    return Numbered(match[1], int(match[2]), match[3])


def holds_frames(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a video in pictures: numbered pictures in it, and neither videos nor folders."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return False
    return _are_frames([entry.name for entry in shown], [entry.name for entry in shown if _is_folder(entry)])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder, or a link to one; a link that ends nowhere or in itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _are_frames(files: Sequence[str], folders: Sequence[str]) -> bool:
    if folders or any(is_video(name) for name in files):
        return False
    return any(picture_number(name) for name in files)


class Videos(NamedTuple):
    """The videos in a folder, however deep: files, and folders of pictures; each sorted."""

    files: list[str]
    frame_folders: list[str]


def walk(folder: str | os.PathLike[str]) -> Videos:
    """All videos in a folder and the folders in it, hidden ones left out; the folder itself is none of them.

    Folders inside that are links are not followed, so that a circle of links ends.
    """
    videos = Videos([], [])
    for place, folders, files in os.walk(folder, onerror=_report_locked):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        videos.files.extend(os.path.join(place, name) for name in files if is_video(name))
        if place != os.fspath(folder) and _are_frames(files, folders):
            videos.frame_folders.append(place)
    videos.files.sort()
    videos.frame_folders.sort()
    return videos


def list_videos(source: str | os.PathLike[str]) -> list[str]:
    """The paths of all videos in a folder, however deep, sorted; hidden ones are left out. A video gives itself.

    Where there are no video files, folders of numbered pictures are the videos; a folder of such pictures gives itself.
    """
    source = Path(source).expanduser()
    if not source.is_dir():
        if not source.exists():
            raise InputError(f"{source}: no such file or folder")
        return [str(source)]
    if holds_frames(source):
        return [str(source)]
    videos = walk(source)
    return videos.files or videos.frame_folders


def folders_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:  # says what is a folder without asking for each of a million files
            return sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".") and _is_folder(entry))
    except PermissionError as error:
        _report_locked(error)
        return []


def files_in(folder: str | os.PathLike[str], endings: tuple[str, ...]) -> list[Path]:
    """The files in a folder whose names end so, sorted, without hidden ones."""
    try:
        names = sorted(os.listdir(folder))
    except PermissionError as error:
        _report_locked(error)
        return []
    paths = [Path(folder) / name for name in names if name.lower().endswith(endings) and not name.startswith(".")]
    return [path for path in paths if path.is_file()]


def _report_locked(error: OSError) -> None:
    """Say that a folder is passed over, such as lost+found, which every disk has and few may read."""
    _warn_once(f"{error.filename}: the folder is passed over: {error.strerror}")


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)


class Place(NamedTuple):
    """Where the video of a list's line is, or where it should be: then it is not `there`.

    there: None where nobody looked, for a list whose probed names are all there is taken at its word.
    """

    path: str
    there: bool | None


class Wanted(NamedTuple):
    """A name to look for. split, labels: folders called like these are preferred where there are several of the name.

    where: file and line, for messages.
    """

    path: str
    where: str
    split: str = ""
    labels: tuple[str, ...] = ()


class Places:
    """Finds what lists name. `start`: where relative paths start. With `search`, all of that folder is looked through:

    1. the path as it is written, from `start`, or before that from the folder of the list;
    2. from a folder in `start`, or a folder in one of these, those that are called like the split first; with the
       ending of a video after it, or in place of its own, for data sets name videos without an ending, or by features
       that were computed from them;
    3. the name anywhere in `start`, if the folder that is written before it is called the same.

    Where a name is found in several folders, those that are called like the split, then the label, are preferred.
    """

    def __init__(self, start: Path, *, search: bool) -> None:
        self.start = start
        self._search = search

    def find(self, wanted: Sequence[Wanted], *, first: Path | None = None, all_of_them: bool = False) -> list[Place]:
        """A place for each name. first: the folder of the list, where it counts. With `all_of_them` no name is taken
        at its word.

        InputError where a name is in several folders and nothing says which one is meant.
        """
        probes = wanted[:: max(1, len(wanted) // _PROBED)]
        if probes and not all_of_them and (join := self._join_for(probes, first)):
            return [Place(join(one.path), None) for one in wanted]
        if self._search:
            return [self._find(one) for one in wanted]
        paths = [os.path.join(self.start, one.path) for one in wanted]
        there = [os.path.exists(path) for path in paths]
        if not any(there) and any("\\" in one.path for one in wanted):  # a list from Windows
            return self.find([one._replace(path=one.path.replace("\\", "/")) for one in wanted], first=first)
        return [Place(path, found) for path, found in zip(paths, there, strict=True)]

    def _join_for(self, probes: Sequence[Wanted], first: Path | None) -> functools.partial[str] | None:
        """The way to make paths of names that finds all of these; None where there is none, or more than one folder
        has them all, which `_find` tells apart.
        """

        def fits(join: functools.partial[str]) -> bool:
            return all(os.path.exists(join(probe.path)) for probe in probes)

        for folder in (first, self.start):
            if folder is not None and fits(plain := functools.partial(_join, folder, "", False)):
                return plain
        if not self._search:
            return None
        found: dict[bool, list[functools.partial[str]]] = {
            True: [],
            False: [],
        }  # by whether it is called like the split
        for folder in self._near:
            joins = (
                functools.partial(_join, folder, ending, in_place)
                for ending in ("", *sorted(VIDEO_ENDINGS))
                for in_place in (False, True)
            )
            if join := next(filter(fits, joins), None):
                found[SPLIT_NAMES.get(folder.name.lower()) == probes[0].split].append(join)
        best = found[True] or found[False]
        return best[0] if len(best) == 1 else None

    @functools.cached_property
    def _near(self) -> list[Path]:
        near = [self.start, *folders_in(self.start)[:_MOST_FOLDERS]]
        for folder in near[1:]:
            if len(near) < _MOST_FOLDERS:
                near += folders_in(folder)[: _MOST_FOLDERS - len(near)]
        return near

    @functools.cached_property
    def _tree(self) -> dict[str, list[str]]:
        """Name, and for files name without ending and ".*", -> paths in `start` of videos that are called so."""
        tree: dict[str, list[str]] = {}
        for folder in [self.start, *self._links]:
            videos = walk(folder)
            for path in videos.files + videos.frame_folders:
                tree.setdefault(os.path.basename(path), []).append(path)
            for path in videos.files:
                tree.setdefault(f"{os.path.splitext(os.path.basename(path))[0]}.*", []).append(path)
        return tree

    @property
    def _links(self) -> list[Path]:
        """The links to folders elsewhere, such as a disk of videos: in `start` or one folder down, each target once."""
        links = {folder.resolve(): folder for folder in reversed(self._near[1:]) if folder.is_symlink()}
        start = self.start.resolve()
        return sorted(
            link for target, link in links.items() if not (target in start.parents or target.is_relative_to(start))
        )

    def _find(self, wanted: Wanted) -> Place:
        direct = os.path.join(self.start, wanted.path)
        parts = [part for part in re.split(r"[/\\]", wanted.path) if part not in ("", ".", "..")]
        if not parts:
            raise InputError(f"{wanted.where}: {wanted.path!r} names no video")
        name, above = parts[-1], parts[-2:-1]
        stem = os.path.splitext(name)[0]
        found: list[str] = []
        for key in dict.fromkeys((name, f"{name}.*", f"{stem}.*", stem)):  # the last one for folders of pictures
            found = [path for path in self._tree.get(key, ()) if not above or Path(path).parent.name == above[0]]
            if direct in found or (key == name and os.path.exists(direct)):  # with any ending
                return Place(direct, True)
            if found:
                break
        if not found:
            return Place(direct, False)
        found = self._prefer(found, lambda folder: SPLIT_NAMES.get(folder.lower()) == wanted.split)
        found = self._prefer(found, lambda folder: folder in wanted.labels)
        if len(found) > 1:
            raise InputError(f"{wanted.where}: {wanted.path!r} can be {found[0]} or {found[1]}; write more of the path")
        return Place(found[0], True)

    def _prefer(self, paths: list[str], is_good: Callable[[str], bool]) -> list[str]:
        """Those that lie in a folder that is good; all, where none does."""
        if len(paths) == 1:
            return paths
        folders = [os.path.relpath(path, self.start).split(os.sep)[:-1] for path in paths]
        return [path for path, names in zip(paths, folders, strict=True) if any(map(is_good, names))] or paths


def _join(folder: Path, ending: str, in_place: bool, path: str) -> str:
    return os.path.join(folder, (os.path.splitext(path)[0] if in_place else path) + ending)
