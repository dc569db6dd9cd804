"""Where the videos are that a list names: names go in, a Place for each comes out. Nothing here opens a video."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_csn.data.names import VIDEO_ENDINGS, folders_in, split_called, walk
from lightning_csn.errors import InputError

_PROBED = 20  # names of a list, spread over it, that are looked for before a whole folder is walked through
_MOST_FOLDERS = 200  # to look for a list's videos in before a whole folder is walked through


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
        has them all, which `_look_for` tells apart.
        """

        def fits(join: functools.partial[str]) -> bool:
            return all(os.path.exists(join(probe.path)) for probe in probes)

        for folder in (first, self.start):
            if folder is not None and fits(plain := functools.partial(_join, folder, "", False)):
                return plain
        if not self._search or any(os.path.exists(_join(self.start, "", False, probe.path)) for probe in probes):
            return None
        found: dict[bool, list[functools.partial[str]]] = {True: [], False: []}  # by whether called like the split
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
                found[split_called(folder.name) == probes[0].split].append(join)
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
        good = [move for move in good if any(split_called(name) == one.split for name in move.put)] or good
        if len(good) > 1:
            raise _several(one, [moves[move][0] for move in good])
        return good[0] if good else None

    def _take(self, wanted: Wanted, paths: Sequence[str]) -> Place:
        """The one that is meant; InputError where nothing says which one."""
        if not paths:
            return Place(os.path.join(self.start, wanted.path), False)
        left = self._prefer(paths, lambda folder: split_called(folder) == wanted.split)
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
        return {split_called(folder.name) for folder in self._near[1:]}

    def _of_another_split(self, folders: Sequence[str], wanted: Wanted) -> bool:
        """Whether one of the folders is called like another split than the wanted one, which has a folder too; a class
        may be called like a split.
        """
        if wanted.split not in self._splits:
            return False
        return any(split_called(name) not in (None, wanted.split) and name not in wanted.labels for name in folders)

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


def _several(wanted: Wanted, paths: Sequence[str]) -> InputError:
    return InputError(f"{wanted.where}: {wanted.path!r} can be {paths[0]} or {paths[1]}; write more of the path")


def _join(folder: Path, ending: str, in_place: bool, path: str) -> str:
    return os.path.join(folder, (os.path.splitext(path)[0] if in_place else path) + ending)
