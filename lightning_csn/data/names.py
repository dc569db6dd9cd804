"""What lies in a folder, by names alone: which files are videos, which folders are videos in pictures, and where the
videos are that a list names. Nothing here opens a video.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
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


def picture_numbers(folder: Path) -> list[int]:
    """The numbers in the names of a folder's pictures, ascending."""
    if not folder.is_dir():
        return []
    return sorted({numbered.number for name in os.listdir(folder) if (numbered := picture_number(name))})


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

    1. Where any path of a list is there as it is written, from `start`, or before that from the folder of the list, all
       are taken so, and what is not there is missing. The ending may be another one, or none, for data sets name videos
       by features that were computed from them.
    2. Paths with a folder are looked for by one rule for the whole list: the same first folders left off, the same
       folders put before. At least the last folder stays as it is written. What that rule does not find is missing.
    3. Names without a folder are looked for anywhere, each by itself; of several, those that lie in a folder called
       like the split are preferred, then those called like the label.

    Where there is a folder called like the split, what lies in one called like another split is found by 1 alone.
    """

    def __init__(self, start: Path, *, search: bool) -> None:
        self.start = start
        self._search = search

    def find(self, wanted: Sequence[Wanted], *, first: Path | None = None, all_of_them: bool = False) -> list[Place]:
        """A place for each name. first: the folder of the list, where it counts. With `all_of_them` no name is taken
        at its word.

        InputError where a name, or all of them, is in several folders and nothing says which one is meant.
        """
        probes = wanted[:: max(1, len(wanted) // _PROBED)]
        if probes and not all_of_them and (join := self._join_for(probes, first)):
            return [Place(join(one.path), None) for one in wanted]
        if self._search:
            return self._look_for(wanted)
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
        if not self._search or any(os.path.exists(_join(self.start, "", False, probe.path)) for probe in probes):
            return None
        found: dict[bool, list[functools.partial[str]]] = {
            True: [],
            False: [],
        }  # by whether it is called like the split
        for folder in self._near:
            inside = folder.relative_to(self.start).parts
            if any(self._of_another_split(inside, probe) for probe in probes):
                continue
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

    def _look_for(self, wanted: Sequence[Wanted]) -> list[Place]:
        """A place for each name, as the docstring of the class says."""
        found = [self._candidates(one) for one in wanted]
        if any(_AS_WRITTEN in moves for moves in found):
            return [self._take(one, moves.get(_AS_WRITTEN, ())) for one, moves in zip(wanted, found, strict=True)]
        moves_of: dict[str, _Move | None] = {}  # split -> what is done to all paths that have a folder
        for split in dict.fromkeys(one.split for one in wanted):
            there = [
                (one, moves)
                for one, moves in zip(wanted, found, strict=True)
                if one.split == split and _has_folder(one)
            ]
            moves_of[split] = self._one_move([pair for pair in there if pair[1]])
        places = []
        for one, moves in zip(wanted, found, strict=True):
            if _has_folder(one):
                move = moves_of[one.split]
                places.append(self._take(one, () if move is None else moves.get(move, ())))
            else:
                places.append(self._take(one, [path for paths in moves.values() for path in paths]))
        return places

    def _candidates(self, wanted: Wanted) -> dict[_Move, list[str]]:
        """What is called so, by what is to be done to the path as it is written to get there."""
        direct = os.path.join(self.start, wanted.path)
        *above, name = _parts(wanted.path) or [""]
        if not name:
            raise InputError(f"{wanted.where}: {wanted.path!r} names no video")
        stem = os.path.splitext(name)[0]
        for key in dict.fromkeys((name, f"{name}.*", f"{stem}.*", stem)):  # the last one for folders of pictures
            paths = self._tree.get(key, [])
            if direct in paths or (key == name and os.path.exists(direct)):  # with any ending
                return {_AS_WRITTEN: [direct]}
            moves: dict[_Move, list[str]] = {}
            for path in paths:
                folders = self._folders(path)
                same = 0
                while same < min(len(above), len(folders)) and above[-1 - same] == folders[-1 - same]:
                    same += 1
                move = _Move(tuple(above[: len(above) - same]), tuple(folders[: len(folders) - same]))
                if (same or not above) and (move == _AS_WRITTEN or not self._of_another_split(move.put, wanted)):
                    moves.setdefault(move, []).append(path)
            if moves:
                return moves
        return {}

    def _one_move(self, there: Sequence[tuple[Wanted, Mapping[_Move, list[str]]]]) -> _Move | None:
        """What finds all paths that anything finds; None where nothing does, or each needs something else.

        InputError where several things do, and not one of them alone leads to a folder that is called like the split.
        """
        if not there:
            return None
        one, moves = there[0]
        good = [move for move in moves if all(move in others for _, others in there)]
        good = [move for move in good if any(_split_called(name) == one.split for name in move.put)] or good
        if len(good) > 1:
            raise _several(one, [moves[move][0] for move in good])
        return good[0] if good else None

    def _take(self, wanted: Wanted, paths: Sequence[str]) -> Place:
        """The one that is meant; InputError where nothing says which one."""
        if not paths:
            return Place(os.path.join(self.start, wanted.path), False)
        left = self._prefer(paths, lambda folder: _split_called(folder) == wanted.split)
        left = self._prefer(left, lambda folder: folder in wanted.labels)
        if len(left) > 1:
            raise _several(wanted, left)
        return Place(left[0], True)

    def _prefer(self, paths: Sequence[str], is_good: Callable[[str], bool]) -> Sequence[str]:
        """Those that lie in a folder that is good; all, where none does."""
        if len(paths) == 1:
            return paths
        return [path for path in paths if any(map(is_good, self._folders(path)))] or paths

    @functools.cached_property
    def _splits(self) -> set[str | None]:
        """The splits that folders are called like."""
        return {_split_called(folder.name) for folder in self._near[1:]}

    def _of_another_split(self, folders: Sequence[str], wanted: Wanted) -> bool:
        """Whether one of the folders is called like another split than the wanted one, which has a folder too; a class
        may be called like a split.
        """
        if wanted.split not in self._splits:
            return False
        return any(_split_called(name) not in (None, wanted.split) and name not in wanted.labels for name in folders)

    def _folders(self, path: str) -> list[str]:
        """The folders between `start` and a path in it."""
        return [part for part in path[len(os.path.join(self.start, "")) :].split(os.sep)[:-1] if part]


class _Move(NamedTuple):
    """What is done to a path as it is written: first folders left off, and others put before the rest."""

    left_off: tuple[str, ...]
    put: tuple[str, ...]


_AS_WRITTEN = _Move((), ())


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..")]


def _has_folder(wanted: Wanted) -> bool:
    return len(_parts(wanted.path)) > 1


def _split_called(folder: str) -> str | None:
    """The split that a folder is called like."""
    return SPLIT_NAMES.get(folder.lower())


def _several(wanted: Wanted, paths: Sequence[str]) -> InputError:
    return InputError(f"{wanted.where}: {wanted.path!r} can be {paths[0]} or {paths[1]}; write more of the path")


def _join(folder: Path, ending: str, in_place: bool, path: str) -> str:
    return os.path.join(folder, (os.path.splitext(path)[0] if in_place else path) + ending)
