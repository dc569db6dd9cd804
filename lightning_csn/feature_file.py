"""The file of features, .npz or .parquet: what features.py finds goes in, Features come out.

    features = read_features("features.npz")
    features.features, features.labels, features.classes

Shapes: N videos, V views of each, S steps in time, D features, K classes.
"""

from __future__ import annotations

import base64
import itertools
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightning_csn.answers import Record, readable
from lightning_csn.data.samples import Label, Part, Sample, numbers_of
from lightning_csn.errors import InputError, need

ROWS = 1000  # of a .parquet file that are in memory at once
MANIFEST_KEY = b"lightning_csn"  # of the manifest among a .parquet file's metadata
LABELS_KEY = b"lightning_csn_labels"  # ... and of what labels mean


@dataclass(frozen=True)
class Features:
    """Features of videos, and what is known of the videos.

    features: float32 (N, D), the mean over a video's views; (N, V, D) of each view; or (N, V, S, D) of each step in
        time of each view.
    labels: int64 (N,), -1 unknown; or float32 (N, K) of zeros and ones, where a video may have several.
    classes: names of the K classes. paths, splits: of each video; the split of a folder without splits is "all", and
        that of videos without classes "".
    times: float32 (N, V, 2) of each view, (N, V, S, 2) of each step: seconds from the video's first frame at which the
        first and the last of its frames are shown, nan where the file has no times; None of means over views. What a
        step has seen reaches further, over much of the clip.
    parts: which part of the video it is; None for all of it. short: bool (N,), shorter than a clip.
    unreadable: path, split and what is wrong, of the videos that could not be read, which are in nothing else.
    manifest: what the features depend on (weights, clip, views), and which versions made them, as plain values.
    """

    features: np.ndarray
    labels: np.ndarray
    classes: list[str]
    paths: list[str]
    splits: list[str]
    parts: list[Part | None]
    short: np.ndarray
    unreadable: list[tuple[str, str, str]]
    manifest: dict[str, Any]
    times: np.ndarray | None = None

    def pooled(self) -> np.ndarray:
        """One row for each video, (N, D): the mean over its views and steps."""
        return self.features.mean(axis=tuple(range(1, self.features.ndim - 1)), dtype=np.float32)


def read_features(path: str | Path) -> Features:
    """What `extract_features` wrote, .npz or .parquet; InputError for another kind of file."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: no such file; 'lightning-csn features' writes features")
    if path.suffix.lower() == ".parquet":
        need({path: ("pyarrow",)})
    try:
        return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_npz(path)
    except (KeyError, ValueError, OSError) as error:  # pyarrow's errors are among them, and so is InputError
        raise InputError(f"{path}: this is no file of features: {error}") from error


def _read_npz(path: Path) -> Features:
    if not zipfile.is_zipfile(path):  # of others NumPy would say how to read them unsafely
        raise InputError("an .npz is a zip archive, and this is none")
    with np.load(path, allow_pickle=False) as stored:
        texts = {name: stored[name].tolist() for name in ("classes", "paths", "splits", "parts")}
        return Features(
            stored["features"],
            stored["labels"],
            texts["classes"],
            texts["paths"],
            texts["splits"],
            [Part(*json.loads(text)) if text else None for text in texts["parts"]],
            stored["short"],
            [(path, split, error) for path, split, error in stored["unreadable"].tolist()],
            json.loads(str(stored["manifest"])),
            stored["times"] if "times" in stored.files else None,
        )


def _read_parquet(path: Path) -> Features:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    manifest, meaning = (json.loads(table.schema.metadata[key]) for key in (MANIFEST_KEY, LABELS_KEY))
    rows = table.filter(table["error"].is_null())
    classes, shape = meaning["classes"], meaning["shape"]
    labels: Any = rows["label"].to_pylist()
    if meaning["multi_label"]:
        known = np.zeros((len(labels), len(classes)), dtype=np.float32)
        for row, numbers in zip(known, labels, strict=True):
            row[numbers] = 1
    else:
        known = np.array(labels, dtype=np.int64)
    values = rows["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    times = None
    if len(shape) > 1:
        flat = rows["times"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        times = flat.reshape(len(labels), *shape[:-1], 2)
    broken = table.filter(table["error"].is_valid())
    return Features(
        values.reshape(len(labels), *shape),
        known,
        classes,
        rows["path"].to_pylist(),
        rows["split"].to_pylist(),
        [Part(*json.loads(text)) if text else None for text in rows["part"].to_pylist()],
        rows["short"].to_numpy(),
        list(zip(*(broken[name].to_pylist() for name in ("path", "split", "error")), strict=True)),
        manifest,
        times,
    )


@dataclass(frozen=True)
class Truth:
    """Of a video: its split ("" without one) and its label (-1 unknown)."""

    split: str
    label: Label


Rows = Iterator[tuple[Record, Truth]]


def write_npz(path: Path, rows: Rows, *, classes: Sequence[str], multi_label: bool, manifest: dict[str, Any]) -> None:
    """The arrays of Features by name, with the manifest as JSON. All of them are in memory at once."""
    found, unreadable = [], []
    for record, truth in rows:
        if "error" in record:
            unreadable.append((record["path"], truth.split, record["error"]))
        else:
            part = json.dumps(record["part"]) if "part" in record else ""
            times = record.get("times")
            found.append((unpack(record), truth.label, record["path"], truth.split, part, record["short"], times))
    columns = map(list, zip(*found, strict=True)) if found else [[]] * 7
    features, labels, paths, splits, parts, short, every_time = columns
    timed: dict[str, Any] = (
        {"times": np.array(every_time, np.float32)} if every_time and every_time[0] is not None else {}
    )
    known = np.array(labels, dtype=np.int64) if not multi_label else np.zeros((len(found), len(classes)), np.float32)
    for row, label in zip(known, labels, strict=True) if multi_label else ():
        row[list(numbers_of(label))] = 1
    with path.open("wb") as file:  # np.savez would add an ending to the name
        np.savez(
            file,
            features=np.stack(features) if found else np.empty((0, 0), np.float32),
            labels=known,
            classes=np.array(classes, dtype=np.str_),
            paths=np.array(paths, dtype=np.str_),
            splits=np.array(splits, dtype=np.str_),
            parts=np.array(parts, dtype=np.str_),
            short=np.array(short, dtype=np.bool_),
            **timed,
            unreadable=np.array(unreadable, dtype=np.str_).reshape(-1, 3),
            manifest=np.array(json.dumps(manifest, ensure_ascii=False)),
        )


def write_parquet(
    path: Path, rows: Rows, *, classes: Sequence[str], multi_label: bool, manifest: dict[str, Any]
) -> None:
    """A row for each video, also for those that cannot be read; the manifest is in the file's metadata.

    features are flat, (D), (V * D) or (V * S * D) numbers, and the metadata has their shape; so are times. label is a
    number, or a list of numbers where a video may have several. A thousand rows are in memory at once.
    """
    import pyarrow
    import pyarrow.parquet

    ahead = []  # up to the first that could be read
    for record, truth in rows:
        ahead.append((record, truth))
        if "shape" in record:
            break
    rows = itertools.chain(ahead, rows)
    shape = ahead[-1][0].get("shape", [0]) if ahead else [0]
    meaning = {"classes": list(classes), "multi_label": multi_label, "shape": shape}
    schema = pyarrow.schema(
        [
            ("path", pyarrow.string()),
            ("part", pyarrow.string()),
            ("split", pyarrow.string()),
            ("label", pyarrow.list_(pyarrow.int64()) if multi_label else pyarrow.int64()),
            ("features", pyarrow.list_(pyarrow.float32())),
            ("times", pyarrow.list_(pyarrow.float32())),
            ("short", pyarrow.bool_()),
            ("error", pyarrow.string()),
        ],
        metadata={MANIFEST_KEY: json.dumps(manifest), LABELS_KEY: json.dumps(meaning)},
    )
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while some := list(itertools.islice(rows, ROWS)):
            cells = [
                {
                    "path": readable(record["path"]),
                    "part": json.dumps(record["part"]) if "part" in record else None,
                    "split": truth.split,
                    "label": list(numbers_of(truth.label)) if multi_label else truth.label,
                    "features": None if "error" in record else unpack(record).ravel(),
                    "times": np.ravel(record["times"]) if "times" in record else None,
                    "short": record.get("short"),
                    "error": record.get("error"),
                }
                for record, truth in some
            ]
            writer.write_table(pyarrow.Table.from_pylist(cells, schema=schema))


FORMATS: dict[str, Callable[..., None]] = {".npz": write_npz, ".parquet": write_parquet}


def pack(sample: Sample, features: Tensor, *, short: bool, times: Tensor | None = None) -> Record:
    """The record of a video. times: see Features.

    >>> record = pack(Sample("a.mp4", -1, 0), Tensor([1.0, -2.0]), short=False)
    >>> record, unpack(record)
    ({'path': 'a.mp4', 'features': 'AACAPwAAAMA=', 'shape': [2], 'short': False}, array([ 1., -2.], dtype=float32))
    """
    record: Record = {"path": sample.path}
    if sample.part is not None:
        record["part"] = list(sample.part)
    values = features.float().cpu().numpy().astype("<f4")
    text = base64.b64encode(values.tobytes()).decode("ascii")
    timed = {} if times is None else {"times": times.tolist()}
    return record | {"features": text, "shape": list(values.shape), "short": short} | timed


def unpack(record: Record) -> np.ndarray:
    """The features of a record."""
    values = np.frombuffer(base64.b64decode(record["features"]), dtype="<f4")
    return values.reshape(record["shape"]).astype(np.float32)
