"""What names on disk say: which files are videos, which folders are videos in pictures, what lies in a folder, and
which split one is called like. Nothing here opens a file.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_csn.data.once import warn_once
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


def split_called(name: str) -> str | None:
    """The split that a folder is called like, or that a list names so.

    >>> split_called("Training"), split_called("trained")
    ('train', None)
    """
    return SPLIT_NAMES.get(name.lower())


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
    warn_once(_log, f"{error.filename}: the folder is passed over: {error.strerror}")
