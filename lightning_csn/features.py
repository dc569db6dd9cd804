"""Features of videos: what a network holds of them before it names a class, for a classifier of one's own.

    data = LabelledVideos("my_videos", test_clips=10, test_crops=1)
    extract_features("ircsn_152_ig65m", data, "features.npz")     again after a stop: goes on; devices=8: on 8 GPUs
    features = read_features("features.npz")                      .parquet as well

The videos are those of all splits, each with its label, and each is seen once on any number of processes.

Shapes: N videos, B of a batch, V views of each, C channels, T frames, H x W pixels, S steps in time of the network's
last map, D features, K classes.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from lightning_csn import __version__
from lightning_csn.answers import Answers, Counts, Record, make_record, readable, record_key
from lightning_csn.clip import ClipSpec
from lightning_csn.clip_module import ClipModule
from lightning_csn.data.samples import Label, Part, Sample, numbers_of
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.errors import InputError, check_choice
from lightning_csn.fingerprints import hash_weights
from lightning_csn.many import RecordWriter, VideoBar
from lightning_csn.models import checkpoints
from lightning_csn.models.network import ResNet3D
from lightning_csn.module import LitCSN
from lightning_csn.runner import ExportedNetwork, is_export, versions_of

_log = logging.getLogger(__name__)

PER = ("video", "view", "step")
STEP = 8  # frames from one step to the next: three stages of every network halve their number
ROWS = 1000  # of a .parquet file that are in memory at once
MANIFEST_KEY = b"lightning_csn"  # of the manifest among a .parquet file's metadata
LABELS_KEY = b"lightning_csn_labels"  # ... and of what labels mean


# ---------------------------------------------------------------- the file


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
    try:
        return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_npz(path)
    except (KeyError, ValueError, OSError) as error:  # pyarrow's errors are among them, and so is InputError
        raise InputError(f"{path}: this is no file of features: {error}") from error


def _read_npz(path: Path) -> Features:
    stored = np.load(path, allow_pickle=False)
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise InputError("an array alone")
    with stored:
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

    >>> record = pack(Sample("a.mp4", -1, 0), torch.tensor([1.0, -2.0]), short=False)
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


# ---------------------------------------------------------------- the videos and the network


class LabelledVideos(VideoDataModule):
    """VideoDataModule, whose predict takes the videos of all splits, one split after the other.

    Where the folder has videos without classes, it takes those, with labels unknown. Options are VideoDataModule's;
    test_clips and test_crops say which views of a video are seen.
    """

    def truths(self) -> list[Truth]:
        """Split and label of each of `predict_samples`."""
        found = [Truth(split, sample.label) for split, samples in self.samples.items() for sample in samples]
        return found or [Truth("", -1)] * len(self.predict_samples)

    def _find_to_predict(self) -> list[Sample]:
        found = [sample for samples in self.samples.values() for sample in samples]
        if not found:
            return super()._find_to_predict()
        return [sample._replace(label=-1, video=video) for video, sample in enumerate(found)]


class FeatureExtractor(ClipModule):
    """A network whose predict_step gives features.

    per: "video", features (B, D) that are the mean over its views; "view", (B, V, D); or "step", (B, V, S, D), the last
        map's mean over space at each of its steps in time.
    exact: run the network as it was trained, and not its quicker form (models/fold.py).
    views_per_pass: views that go through the network at once.
    """

    classes = None  # those of the data are the labels'

    def __init__(
        self,
        network: ResNet3D,
        clip: ClipSpec,
        *,
        per: str = "video",
        exact: bool = False,
        views_per_pass: int = 8,
        source: str = "",
    ) -> None:
        check_choice("per", per, PER)
        if isinstance(network, ExportedNetwork):
            raise InputError(
                f"{network.runner.source} is an exported file, which gives logits and no features; name the weights "
                "that it was made of"
            )
        super().__init__(network, clip)
        self.per, self.exact, self.views_per_pass, self.source = per, exact, views_per_pass, source

    @classmethod
    def of(cls, model: LitCSN | str | Path, **options: Any) -> FeatureExtractor:
        """Of a model, or of weights: a name, file, folder or address, with or without classes."""
        if isinstance(model, LitCSN):
            return cls(model.network, model.clip, **options)
        if is_export(model):
            raise InputError(
                f"{model} is an exported file, which gives logits and no features; name the weights that it was made of"
            )
        loaded = checkpoints.load(model)
        return cls(loaded.network, loaded.checkpoint.clip_spec(), source=str(model), **options)

    def forward(self, clips: Tensor) -> Tensor:
        """Features, float32, of clips, uint8 (B, V, C, T, H, W)."""
        network = self.inference_network()
        found = []
        for some in clips.flatten(0, 1).split(self.views_per_pass):
            last = network.forward_features(self.normalise(some))  # (N, D, S, H, W)
            if self.per == "step":
                found.append(last.float().mean((3, 4)).transpose(1, 2))  # (N, S, D)
            else:
                found.append(network.forward_head(last, pre_logits=True).float())  # (N, D)
        features = torch.cat(found).unflatten(0, clips.shape[:2])
        return features.mean(1) if self.per == "video" else features

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Numbers (B,), features and the unreadable ones of a batch of videos."""
        features = self(batch["clips"]) if len(batch["videos"]) else torch.empty(0)
        return {"videos": batch["videos"], "features": features, "unreadable": batch["unreadable"]}

    def describe(self) -> dict[str, Any]:
        """What the features depend on, but for the videos and their views, as plain values."""
        return {
            "weights": hash_trunk(self.network),
            "exact": self.exact,
            "per": self.per,
            "head_pooling": self.network.options["head_pooling"],
            **self.clip.to_dict(),
        }


def hash_trunk(network: ResNet3D) -> str:
    """sha256 of a network's weights, as `hash_weights`, but for the head, which is no part of its features."""
    return hash_weights(nn.ModuleDict({name: part for name, part in network.named_children() if name != "head"}))


def spans(times: Tensor, shape: Sequence[int]) -> Tensor:
    """When views, or their steps, begin and end: (B, V, 2) or (B, V, S, 2) of clips whose frames have `times`.

    times: (B, clips, T). shape: (V,) or (V, S); a clip's views are next to each other. The end is the time of the last
    of the frames.

    >>> spans(torch.arange(9.0)[None, None], (2, 2))
    tensor([[[[0., 7.],
              [8., 8.]],
    <BLANKLINE>
             [[0., 7.],
              [8., 8.]]]])
    """
    times = times.repeat_interleave(shape[0] // times.shape[1], 1)  # (B, V, T)
    if len(shape) == 1:
        return times[..., [0, -1]]
    last = [min(first + STEP, times.shape[-1]) - 1 for first in range(0, times.shape[-1], STEP)]
    return torch.stack((times[..., ::STEP], times[..., last]), -1)


class FeatureWriter(RecordWriter):
    """Writes what FeatureExtractor finds in LabelledVideos into a file, .npz or .parquet; see RecordWriter."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(
            Answers(path, top=0, writers=dict.fromkeys(FORMATS, self._write), what="features")  # top is of classes
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keep whose features they are."""
        super().setup(trainer, pl_module, stage)
        self._data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning's data connector
        self._module: Any = pl_module

    def records_of(self, module: Any, prediction: dict[str, Any], batch: dict[str, Any]) -> dict[int, Record]:
        """The records of a batch's videos by their numbers."""
        found = prediction["features"]
        times: Any = [None] * len(found)
        if module.per != "video" and len(found):
            times = spans(batch["times"].cpu(), found.shape[1:-1])
        rows = zip(batch["videos"].tolist(), found, batch["short"].tolist(), times, strict=True)
        records = {video: pack(self._samples[video], row, short=short, times=span) for video, row, short, span in rows}
        for video, message in batch["unreadable"]:
            records[video] = make_record(self._samples[video], error=message)
        return records

    def describe(self, trainer: L.Trainer) -> dict[str, Any]:
        """What the features depend on, but for the videos, as plain values."""
        data = self._data
        views = {"clips": data.predict_clips, "crops": data.predict_crops}
        return {**self._module.describe(), **views, "precision": str(trainer.precision)}

    def _write(self, path: Path, records: Iterable[Record], top: int) -> None:
        samples = zip(self._samples, self._data.truths(), strict=True)

        def rows() -> Rows:
            for record in records:  # in the order of the samples
                truth = next(truth for sample, truth in samples if (sample.path, sample.part) == record_key(record))
                yield record, truth

        assert self._about is not None
        FORMATS[self.answers.path.suffix.lower()](
            path,
            rows(),
            classes=self._data.classes,
            multi_label=self._data.multi_label,
            manifest={
                "model": self._module.source,
                "architecture": self._module.network.architecture,
                **self._about,
                "versions": {"lightning-csn": __version__, **versions_of(["torch", "lightning", "av", "numpy"])},
            },
        )


def extract_features(
    model: LitCSN | str | Path,
    data: LabelledVideos,
    path: str | Path,
    *,
    per: str = "video",
    exact: bool = False,
    progress: bool = False,
    **trainer_options: Any,
) -> Counts | None:
    """Write the features of all videos of the data into a file, .npz or .parquet, which `read_features` reads.

    model: a LitCSN, or weights: a name, file, folder or address. per, exact: as for FeatureExtractor.
    progress: a bar of videos on stderr, where that is a terminal.
    trainer_options: of Lightning's Trainer: accelerator, devices, strategy, precision and so on.

    While it runs, what was found lies in the folder `path`.parts; the same call goes on with a run that was stopped, on
    any number of processes. Gives how many videos there are, on the first process. Raises InputError for weights
    without a clip, an exported file, which has no features, and a folder of another run.
    """
    writer = FeatureWriter(path)
    extractor = FeatureExtractor.of(model, per=per, exact=exact)
    callbacks = [*trainer_options.pop("callbacks", ()), writer, *([VideoBar()] if progress else [])]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(**{**quiet, "enable_progress_bar": progress, **trainer_options}, callbacks=callbacks)
    trainer.predict(extractor, datamodule=data, return_predictions=False)
    if writer.times.videos:
        _log.info("%s%s", writer.times, "" if trainer.world_size == 1 else " (the first process)")
    return writer.counts
