"""A folder for each class, or folders for splits with the classes in them: what a root without lists says by names."""

from __future__ import annotations

from pathlib import Path

from lightning_csn.data.list_sources import Files, Source
from lightning_csn.data.list_tables import Row, Table
from lightning_csn.data.names import SPLITS, folders_in, holds_frames, is_video, split_called, walk
from lightning_csn.errors import InputError


def detect_folders(source: Source) -> Files:
    """The folders of a root, whatever they hold; none where there are lists."""
    return {} if source.lists or source.root is None else _split_folders(source.root)


def _split_folders(root: Path) -> Files:
    """Split -> folder of class folders; all of root is "all" where there are no folders for splits.

    A folder is a split if it is called like one and holds folders but no videos itself, be they files or pictures.
    """
    splits: Files = {}
    for folder in folders_in(root):
        split = split_called(folder.name)
        if split is None or any(is_video(path.name) for path in folder.iterdir()):
            continue
        inside = folders_in(folder)
        if inside and not all(holds_frames(path) for path in inside):
            if split in splits:
                raise InputError(
                    f"{root}: {splits[split].name} and {folder.name} are both there; which one is to validate?"
                )
            splits[split] = folder
    return {split: splits[split] for split in SPLITS if split in splits} or {"all": root}


def read_folders(source: Source, files: Files) -> dict[str, Table]:
    """A row for each video in a class's folder, however deep: files, or folders of pictures where no class has any."""
    assert source.root is not None
    inside = {split: {path.name: walk(path) for path in folders_in(folder)} for split, folder in files.items()}
    any_files = any(videos.files for classes in inside.values() for videos in classes.values())
    tables = {}
    for split, classes in inside.items():
        found = {name: videos.files if any_files else videos.frame_folders for name, videos in classes.items()}
        rows = [Row(0, path, (name,)) for name, paths in found.items() for path in paths]
        if rows:
            tables[split] = Table(source.root, rows, entry="folder")
    return tables
