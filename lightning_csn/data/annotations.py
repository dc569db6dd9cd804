"""Which videos there are and what they show: folders per class, and "path label" list files.

Nothing here opens a video; a collection of any size is read by its names alone.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_csn.data.samples import Collection, Sample
from lightning_csn.errors import InputError

_log = logging.getLogger(__name__)

_ENDINGS = "3g2|3gp|asf|avi|divx|f4v|flv|gif|m2ts|m4v|mkv|mov|mp4|mpeg|mpg|mts|mxf|ogv|rm|rmvb|ts|vob|webm|wmv"
VIDEO_ENDINGS = frozenset(f".{ending}" for ending in _ENDINGS.split("|"))
SPLITS = ("train", "val", "test")
_SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_AFTER_ENDING = re.compile(rf"(?P<path>.+\.(?:{_ENDINGS}))\"?(?P<between>\s*[,\t]\s*|\s+)(?P<label>.+)", re.IGNORECASE)
_AT_LAST_COMMA_OR_TAB = re.compile(r"(?P<path>.+?)(?P<between>\s*[,\t]\s*)(?P<label>[^,\t]+)")
_AT_LAST_SPACE = re.compile(r"(?P<path>.+?)(?P<between>\s+)(?P<label>\S+)")


def find_samples(
    root: str | os.PathLike[str] | None = None,
    *,
    lists: Mapping[str, str | os.PathLike[str]] | None = None,
    classes: Sequence[str] | str | os.PathLike[str] | None = None,
    layout: str | None = None,
    fold: int = 1,
) -> Collection:
    """The samples of each split, the names of the classes, and how they were found.

    root: a folder per class, or train, val (or validation) and test with a folder per class in each. Without such
        splits all videos are in one split that is called "all". A class is a folder that holds videos, however deep.
    lists: split -> list file, see `read_list`. Then no folder is looked through: `root` is what relative paths start
        at (without it, the folder of the list file).
    classes: the names in their order, when weights have fixed it; a label that is none of them is an error. Without
        it the classes are those found, sorted by name; numbers in list files are named "0" to the largest.
        A path is that of a file with a name in each line.
    layout: the name of a layout; None to find out which one it is.
    fold: which of the official splits, where a layout has several: 1 to 3.

    A split that is not there is not in the result; a root that holds videos but no folder of them gives no split.
    InputError for a folder without videos and for whatever is wrong in a list file.
    """
    if isinstance(classes, str | os.PathLike):
        classes = [line.strip() for line in Path(classes).expanduser().read_text("utf-8-sig").splitlines()]
    if lists:
        return Collection(*_from_lists(root, lists, classes), "list files")
    if root is None:
        raise InputError("no videos: name a folder (root) or a list file")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    found = _videos_by_split(root)
    if not any(found.values()):
        if list_videos(root):
            return Collection({}, list(classes or []), "videos without classes")
        raise InputError(
            f"{root}: no videos in it; looked for {root.name}/CLASS/VIDEO and {root.name}/train|val|test/CLASS/VIDEO "
            f"with the endings {' '.join(sorted(VIDEO_ENDINGS))}"
        )
    names = sorted({name for by_class in found.values() for name in by_class}) if classes is None else list(classes)
    numbers = {name: number for number, name in enumerate(names)}
    samples: dict[str, list[Sample]] = {}
    for split, by_class in found.items():
        for name in by_class:
            if name not in numbers:
                raise InputError(
                    f"{root}: the folder {name!r} is none of the {len(names)} classes{_nearest(name, names)}"
                )
        pairs = [(path, numbers[name]) for name, paths in by_class.items() for path in paths]
        samples[split] = [Sample(path, label, video) for video, (path, label) in enumerate(pairs)]
    return Collection(samples, names, "a folder per class")


def list_videos(source: str | os.PathLike[str]) -> list[str]:
    """The paths of all videos in a folder, however deep, sorted; hidden ones are left out. A video gives itself.

    Folders inside that are links are not followed, so that a circle of links ends.
    """
    source = Path(source).expanduser()
    if not source.is_dir():
        if not source.exists():
            raise InputError(f"{source}: no such file or folder")
        return [str(source)]
    paths = []
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [os.path.join(folder, name) for name in files if _is_video(name)]
    return sorted(paths)


def _is_video(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_ENDINGS


def _name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _videos_by_split(root: Path) -> dict[str, dict[str, list[str]]]:
    """Split -> class -> paths. A folder is a split if it is called like one and holds folders but no videos itself."""
    splits: dict[str, Path] = {}
    others = []
    for folder in _folders(root):
        split = _SPLIT_FOLDERS.get(folder.name)
        if split is None or any(_is_video(path.name) for path in folder.iterdir()):
            others.append(folder)
        elif split in splits:
            raise InputError(
                f"{root}: {splits[split].name} and {folder.name} are both there; which one is to validate?"
            )
        elif _folders(folder):
            splits[split] = folder
    if not splits:
        return {"all": _videos_by_class(root, others)}
    for folder in others:
        if list_videos(folder):
            _log.warning(
                "%s: the videos in %s/ are left out, for they are in none of %s/",
                root,
                folder.name,
                "/, ".join(folder.name for folder in splits.values()),
            )
    return {split: _videos_by_class(splits[split], _folders(splits[split])) for split in SPLITS if split in splits}


def _videos_by_class(folder: Path, folders: Iterable[Path]) -> dict[str, list[str]]:
    by_class = {path.name: list_videos(path) for path in folders}
    empty = [name for name, paths in by_class.items() if not paths]
    if empty and len(empty) < len(by_class):
        _log.warning("%s: no videos in %s", folder, ", ".join(empty))
    if len(empty) < len(by_class):
        loose = sum(1 for path in folder.iterdir() if _is_video(path.name))
        if loose:
            _log.warning("%s: %d videos that are in no class folder are left out", folder, loose)
    return {name: paths for name, paths in by_class.items() if paths}


class Line(NamedTuple):
    """One line of a list file: its number from 1, the path as written, and the label (None where there is none)."""

    number: int
    path: str
    label: str | None


def parse_line(line: str, *, number: int = 1) -> Line:
    """Split "path label": commas, tabs or spaces between them, and spaces inside either.

    The path ends at the last video ending that something follows; a path without one, at the last comma or tab or
    else at the last space. Quotes around path or label are taken off.

    >>> parse_line("my films/a b.mp4 5")
    Line(number=1, path='my films/a b.mp4', label='5')
    >>> parse_line('"one, two.avi",brush hair')
    Line(number=1, path='one, two.avi', label='brush hair')
    >>> parse_line("frames/0001\\t5").label, parse_line("clip.webm").label
    ('5', None)
    """
    text = line.strip()
    match = _AFTER_ENDING.fullmatch(text)
    if match is None and not _is_video(_name(_unquote(text))):
        match = _AT_LAST_COMMA_OR_TAB.fullmatch(text) or _AT_LAST_SPACE.fullmatch(text)
    if match is None:
        return Line(number, _unquote(text), None)
    label = match["label"].strip()
    separator = match["between"].strip(" ")
    columns = [label] if label.startswith('"') else label.split(separator) if separator else label.split()
    if len(columns) > 1 and (separator or all(re.fullmatch(r"-?[\d.]+", column) for column in columns)):
        raise InputError(f"2 columns expected (path, label), got {len(columns) + 1}: {text!r}")
    return Line(number, _unquote(match["path"]), _unquote(label))


def _unquote(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text.removeprefix('"')


def read_list(path: str | os.PathLike[str]) -> list[Line]:
    """The lines of a "path label" file, UTF-8; blank ones and those that start with # are passed over.

    InputError, with file and line, for a line that has no path or more than two columns.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: the list of videos cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a list of videos is text in UTF-8: {error}") from error
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            lines.append(parse_line(line, number=number))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    if not lines:
        raise InputError(f"{path}: no line names a video")
    if (
        not _is_video(_name(lines[0].path))
        and len(lines) > 1
        and all(_is_video(_name(line.path)) for line in lines[1:])
    ):
        raise InputError(
            f"{path}, line {lines[0].number}: {lines[0].path!r} is no video, the other lines name videos; "
            "a heading is to be taken out"
        )
    return lines


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


def _from_lists(
    root: str | os.PathLike[str] | None,
    lists: Mapping[str, str | os.PathLike[str]],
    classes: Sequence[str] | None,
) -> tuple[dict[str, list[Sample]], list[str]]:
    for split in lists:
        if split not in SPLITS:
            raise InputError(f"a list is for train, val or test, got {split!r}")
    read = {split: read_list(lists[split]) for split in SPLITS if split in lists}
    for split, lines in read.items():
        for line in lines:
            if line.label is None:
                raise InputError(
                    f"{lists[split]}, line {line.number}: 2 columns expected (path, label), got 1: {line.path!r}"
                )
    labels = {line.label or "" for lines in read.values() for line in lines}
    are_numbers = all(re.fullmatch(r"-?\d+", label) for label in labels)
    if classes is not None:
        names = list(classes)
    elif are_numbers:
        names = [str(number) for number in range(max(int(label) for label in labels) + 1)]
    else:
        names = sorted(labels)
    numbers = {name: number for number, name in enumerate(names)}
    if are_numbers:
        numbers = {str(number): number for number in range(len(names))} | numbers
    samples: dict[str, list[Sample]] = {}
    for split, lines in read.items():
        samples[split] = []
        for video, (line, path) in enumerate(zip(lines, place_paths(lines, lists[split], root), strict=True)):
            label = line.label or ""
            number = numbers.get(label, numbers.get(str(int(label)))) if are_numbers else numbers.get(label)
            if number is None:
                raise InputError(
                    f"{lists[split]}, line {line.number}: the label {label!r} is none of the {len(names)} classes"
                    + (f", 0 to {len(names) - 1}" if are_numbers else _nearest(label, names))
                )
            samples[split].append(Sample(path, number, video))
    return samples, names


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or list(names[:5])
    return f"; nearest: {', '.join(map(repr, close))}"
