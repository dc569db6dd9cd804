"""Lists as the makers of data sets hand them out: how each set's are known, and what their lines say.

For every set `detect_*` finds the files of each split, none where this is another set, and `read_*` makes tables of
them. The next set is such a pair, and a row of LAYOUTS.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from lightning_csn.data.csv_records import records_of_csv, rows_of_csv
from lightning_csn.data.list_files import PROBED, parse_list, read_classes
from lightning_csn.data.list_sources import Files, Source, json_of, text_of
from lightning_csn.data.list_tables import Row, Table, part_of, split_named
from lightning_csn.data.names import SPLITS
from lightning_csn.errors import InputError

_log = logging.getLogger(__name__)


def detect_ucf101(source: Source) -> Files:
    """trainlist01.txt and testlist01.txt beside classInd.txt; named ones may be of any fold."""
    if source.lists:
        found = {
            split: path for split, path in source.lists.items() if re.fullmatch(r"(train|test)list\d+\.txt", path.name)
        }
        return found if found and source.beside(found.values(), r"classInd\.txt") else {}
    files: Files = {}
    pattern = rf"(train|test)list0?{source.fold}\.txt"
    for path in source.texts:
        if (match := re.fullmatch(pattern, path.name)) and (path.parent / "classInd.txt").is_file():
            files.setdefault(match[1], path)
    return {split: files[split] for split in SPLITS if split in files}


def read_ucf101(source: Source, files: Files) -> dict[str, Table]:
    """Lines of a path that begins with the class, in training with the number that classInd.txt gives it."""
    classes_file = source.beside(files.values(), r"classInd\.txt")
    assert classes_file is not None
    classes = read_classes(classes_file)
    tables = {}
    for split, path in files.items():
        rows = []
        for line in parse_list(text_of(path), path):
            folder = line.path.replace("\\", "/").split("/")[0] if "/" in line.path else ""
            name = folder or line.path.split("_")[1 if line.path.startswith("v_") else 0]
            if name not in classes:
                raise InputError(
                    f"{path}, line {line.number}: {name!r} is none of the {len(classes)} classes of {classes_file.name}"
                )
            if line.columns and line.columns != (str(classes.index(name) + 1),):
                raise InputError(
                    f"{path}, line {line.number}: {name} is number {classes.index(name) + 1} in {classes_file.name}, "
                    f"got {' '.join(line.columns)}"
                )
            rows.append(Row(line.number, line.path, (name,)))
        tables[split] = Table(path, rows, classes=classes, classes_file=classes_file)
    return tables


_HMDB51_SPLITS = {"0": None, "1": "train", "2": "test"}


def detect_hmdb51(source: Source) -> Files:
    """The folder of the files of all classes; it can only be found in a root."""
    if source.lists:
        return {}
    ending = f"_test_split{source.fold}.txt"
    found = next((path.parent for path in source.texts if path.name.endswith(ending)), None)
    return {} if found is None else {"all": found}


def read_hmdb51(source: Source, files: Files) -> dict[str, Table]:
    """A file for each class, whose lines are "video 1": 1 for training, 2 for test, 0 for neither."""
    folder = files["all"]
    ending = f"_test_split{source.fold}.txt"
    paths = sorted(folder.glob(f"*{ending}"))
    classes = [path.name.removesuffix(ending) for path in paths]
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for path, name in zip(paths, classes, strict=True):
        for number, line in enumerate(text_of(path).split("\n"), start=1):
            words = line.rsplit(None, 1)
            if not words:
                continue
            if len(words) != 2 or words[1] not in _HMDB51_SPLITS:
                raise InputError(f"{path}, line {number}: a video and 0, 1 (train) or 2 (test) expected, got {line!r}")
            split = _HMDB51_SPLITS[words[1]]
            if split is not None:
                rows[split].append(Row(number, words[0], (name,)))
    return {split: Table(folder / f"*{ending}", found, classes=classes) for split, found in rows.items()}


def detect_kinetics(source: Source) -> Files:
    """Csv whose heading names these columns."""
    return source.files_like(lambda path: {"youtube_id", "time_start", "time_end"} <= set(source.heading(path)))


def read_kinetics(source: Source, files: Files, *, trimmed: bool = True) -> dict[str, Table]:
    """Videos that were cut by their times, ID_000010_000020, or are called by their id alone.

    trimmed: whether those of the id alone were cut too; else their times are the part that is taken.
    """
    rule = "videos cut already, those too that are called by their id alone; layout=kinetics-untrimmed cuts these"
    return {
        split: Table(path, list(_kinetics_rows(path, trimmed)), complete=False, rule=rule if trimmed else "")
        for split, path in files.items()
    }


def _kinetics_rows(path: Path, trimmed: bool) -> Iterable[Row]:
    for number, record in records_of_csv(text_of(path), path):
        where, video = f"{path}, line {number}", record.get("youtube_id")
        if not video:
            raise InputError(f"{where}: the youtube_id is missing")
        part = part_of(where, record.get("time_start", ""), record.get("time_end", ""))
        cut = f"{video}_{int(part.start):06d}_{int(part.end):06d}"
        labels = (record["label"],) if record.get("label") else None
        split = split_named(where, record.get("split"))
        yield Row(number, cut, labels, None if trimmed else part, split, other=video, trimmed=True)


def detect_something_v2(source: Source) -> Files:
    """JSON lists of objects with id and template; of id alone, to test on, beside such lists."""

    def fits(path: Path) -> bool:
        first = source.first_record(path)
        return "id" in first and ("template" in first or set(first) == {"id"})

    files = source.files_like(fits)
    return files if any("template" in source.first_record(path) for path in files.values()) else {}


def read_something_v2(source: Source, files: Files) -> dict[str, Table]:
    """JSON lists of id and template; the class is the template without the brackets around what was done to what."""
    classes = source.classes_beside(files.values(), r".*labels\.json")
    tables = {}
    for split, path in files.items():
        rows = []
        for number, record in enumerate(json_of(path), start=1):
            if not isinstance(record, dict) or "id" not in record:
                raise InputError(f"{path}, entry {number}: an object with an id expected, got {record!r:.80}")
            template = record.get("template")
            labels = None if template is None else (re.sub(r"[\[\]]", "", str(template)),)
            rows.append(Row(number, str(record["id"]), labels))
        tables[split] = Table(path, rows, "entry", *classes)
    return tables


def detect_20bn(source: Source) -> Files:
    """Csv of numbers, with a label behind a semicolon in some."""

    def fits(path: Path) -> bool:
        lines = [line for line in (source.text(path) or "").split("\n", PROBED)[:PROBED] if line.strip()]
        return (
            path.suffix.lower() == ".csv"
            and bool(lines)
            and all(re.fullmatch(r"\d+(;.*)?", line.strip()) for line in lines)
        )

    files = source.files_like(fits)
    return files if any(";" in text_of(path) for path in files.values()) else {}


def read_20bn(source: Source, files: Files) -> dict[str, Table]:
    """Lines of "id;label", ids alone in the test list; labels may have commas in them."""
    classes = source.classes_beside(files.values(), r".*labels\.csv")
    tables = {}
    for split, path in files.items():
        rows = []
        for number, line in enumerate(text_of(path).split("\n"), start=1):
            video, _, label = line.partition(";")
            if video.strip():
                rows.append(Row(number, video.strip(), (label.strip(),) if label.strip() else None))
        tables[split] = Table(path, rows, "line", *classes)
    return tables


def detect_moments(source: Source) -> Files:
    """Csv of these names."""
    return source.files_like(lambda path: re.fullmatch(r"(training|validation|test)Set\.csv", path.name) is not None)


def read_moments(source: Source, files: Files) -> dict[str, Table]:
    """Lines of "path,label" and the counts of those who agreed and who did not, which are passed over."""
    classes = source.classes_beside(files.values(), r"moments_categories\.txt")
    tables = {}
    for split, path in files.items():
        rows = []
        for number, columns in rows_of_csv(text_of(path), path, ","):
            if columns and columns[0].strip():
                labels = (columns[1].strip(),) if len(columns) > 1 and columns[1].strip() else None
                rows.append(Row(number, columns[0].strip(), labels))
        tables[split] = Table(path, rows, "line", *classes)
    return tables


def detect_activitynet(source: Source) -> Files:
    """A JSON object with a "database", of any name."""

    def fits(path: Path) -> bool:
        value = source.json(path)
        return isinstance(value, dict) and isinstance(value.get("database"), dict)

    return source.one_file(fits)


def read_activitynet(source: Source, files: Files) -> dict[str, Table]:
    """A JSON object "database": video -> subset and annotations, each a label and a segment in seconds.

    Segments that end where they begin are left out, and counted in the log.
    """
    tables = {}
    for split, path in files.items():
        rows, empty = [], []
        for number, (video, record) in enumerate(json_of(path)["database"].items(), start=1):
            where = f"{path}, entry {number}"
            if not isinstance(record, dict):
                raise InputError(f"{where}: an object expected for {video!r}, got {record!r:.80}")
            named = split_named(where, record.get("subset"))
            for annotation in record.get("annotations") or ():
                segment = annotation.get("segment") if isinstance(annotation, dict) else None
                if not (isinstance(segment, list) and len(segment) == 2 and "label" in annotation):
                    raise InputError(f"{where}: label and segment expected, got {annotation!r:.80}")
                if segment[0] == segment[1]:
                    empty.append(video)
                    continue
                part = part_of(where, segment[0], segment[1])
                rows.append(Row(number, video, (str(annotation["label"]),), part, named, other=f"v_{video}"))
        if empty:
            _log.warning("%s: %d segments of no length are left out, the first of %s", path, len(empty), empty[0])
        tables[split] = Table(path, rows, "entry", complete=False)
    return tables
