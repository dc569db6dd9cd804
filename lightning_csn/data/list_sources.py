"""Where lists of videos are looked for: a Source finds and reads the files that may be lists, named or found in a root.

Which of them is in which layout is for the files that read them; what a text holds is kept while all are tried.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_csn.data.csv_records import split_heading
from lightning_csn.data.list_columns import Reading
from lightning_csn.data.list_files import Line, read_classes, read_json, read_text
from lightning_csn.data.names import SPLIT_NAMES, SPLITS, files_in, folders_in, split_called
from lightning_csn.data.places import Places
from lightning_csn.errors import InputError

_LIST_ENDINGS = (".csv", ".json", ".tsv", ".txt")
_WHOLE_LISTS = frozenset(
    ("all", "annotation", "annotations", "data", "dataset", "index", "labels", "list", "metadata", "samples", "videos")
)
_MOST_FOLDERS = 1000  # in a root that are looked into for list files

Files = dict[str, Path]  # split -> file or folder; empty where a layout is not there


class Source:
    """What there is to read: a folder, or list files that somebody named, or both.

    lists: split -> file. fold: which of the official splits. chosen: whether the layout was named, so that its lists
    need not look like it. `files`: split -> list files that may be meant, the named ones or those found in root and in
    the folders in it; "all" where a name says nothing of a split. `places`: finds what lists in root name.
    """

    def __init__(self, root: Path | None, lists: Mapping[str, Path], fold: int, *, chosen: bool = False) -> None:
        self.root = root
        self.lists = dict(lists)
        self.fold = fold
        self.chosen = chosen
        self.lines: dict[Path, list[Line]] = {}  # of the lists without a heading that were tried
        self.readings: dict[Path, Reading] = {}  # of their columns
        self.faults: dict[Path, str] = {}  # of files that nobody named, which cannot be read

    @functools.cached_property
    def places(self) -> Places:
        """Finds the videos in root."""
        assert self.root is not None
        return Places(self.root, search=True)

    @functools.cached_property
    def roots(self) -> list[Path]:
        """Root and the folders in it; none without a root."""
        return [] if self.root is None else [self.root, *folders_in(self.root)[:_MOST_FOLDERS]]

    @functools.cached_property
    def folders(self) -> list[Path]:
        """Where official files lie: root and the folders in it; or the folders of the named lists."""
        return sorted({path.parent for path in self.lists.values()}) if self.lists else self.roots

    @functools.cached_property
    def texts(self) -> list[Path]:
        """All files in these folders that can be lists, by their endings."""
        return [path for folder in self.folders for path in files_in(folder, _LIST_ENDINGS)]

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        """Split -> files that may be its list."""
        if self.lists:
            return {split: [path] for split, path in self.lists.items()}
        files: dict[str, list[Path]] = {}
        for path in self.texts:
            split = split_of(path.stem)
            if split is None and path.stem.lower() in _WHOLE_LISTS:
                split = "all" if path.parent == self.root else split_called(path.parent.name) or "all"
            if split is not None:
                files.setdefault(split, []).append(path)
        return files

    def text(self, path: Path) -> str | None:
        """The text of a file; None where a file that nobody named has none."""
        return self._try(text_of, path)

    def json(self, path: Path) -> Any:
        """The value in a JSON file; None for other files."""
        return self._try(json_of, path) if path.suffix.lower() == ".json" else None

    def _try(self, read: Callable[[Path], Any], path: Path) -> Any:
        try:
            return read(path)
        except InputError as error:
            if self.lists:
                raise
            self.faults[path] = str(error)
            return None

    def first_record(self, path: Path) -> dict[str, Any]:
        """The first object in a JSON list; empty for other files."""
        value = self.json(path)
        return value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}

    def heading(self, path: Path) -> list[str]:
        """The columns that a file's first line names, in lower case; none for JSON."""
        text = self.text(path) if path.suffix.lower() != ".json" else None
        return split_heading(text)[1] if text and text.strip() else []

    def beside(self, files: Iterable[Path], pattern: str) -> Path | None:
        """The file whose name matches, in the folder of one of these files; InputError for two of them in one."""
        for folder in sorted({path.parent for path in files}):
            matching = [path for path in sorted(folder.iterdir()) if re.fullmatch(pattern, path.name, re.IGNORECASE)]
            if len(matching) > 1:
                raise InputError(f"{folder}: {matching[0].name} and {matching[1].name} both name the classes")
            if matching:
                return matching[0]
        return None

    def classes_beside(self, files: Iterable[Path], pattern: str) -> tuple[list[str] | None, Path | None]:
        """The names of classes in the file whose name matches, and that file; None for both where there is none."""
        path = self.beside(files, pattern)
        return (None, None) if path is None else (read_classes(path), path)

    def files_like(self, fits: Callable[[Path], bool]) -> Files:
        """Of each split's files the one that fits. InputError for two, unless one of them has a folder for itself.

        A file for all splits only counts where there are none for single ones.
        """
        files: Files = {}
        for split, paths in self.files.items():
            fitting = [path for path in paths if fits(path)]
            if len(fitting) > 1:
                raise InputError(
                    f"{fitting[0]} and {fitting[1]} can both be the list of {split}; name one of them ({split}_list), "
                    "or take the other one away"
                )
            if fitting:
                files[split] = fitting[0]
        if len(files) > 1:
            files.pop("all", None)
        return {split: files[split] for split in (*SPLITS, "all") if split in files}

    def one_file(self, fits: Callable[[Path], bool]) -> Files:
        """A file of any name that fits: it speaks of the splits itself."""
        if self.lists:
            return {split: path for split, path in self.lists.items() if fits(path)}
        fitting = [path for path in self.texts if fits(path)]
        if len(fitting) > 1:
            raise InputError(f"{fitting[0]} and {fitting[1]} can both be the list of videos; take one of them away")
        return {"all": fitting[0]} if fitting else {}


@functools.lru_cache(maxsize=16)
def text_of(path: Path) -> str:
    """The text of a list file, kept until `forget_texts`."""
    return read_text(path)


@functools.lru_cache(maxsize=8)
def json_of(path: Path) -> Any:
    """The value in a JSON file, kept until `forget_texts`."""
    return read_json(path)


def forget_texts() -> None:
    """Let go of the texts of list files, which are kept while layouts are tried on them."""
    text_of.cache_clear()
    json_of.cache_clear()


def split_of(name: str) -> str | None:
    """The split that the name of a list file speaks of.

    >>> split_of("something-something-v2-validation"), split_of("Diving48_V2_test"), split_of("trainingSet")
    ('val', 'test', 'train')
    >>> split_of("training_notes"), split_of("contest"), split_of("train_val")
    ('train', None, None)
    """
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None
