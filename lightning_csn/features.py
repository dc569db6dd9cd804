"""Features of videos: what a network holds of them before it names a class, for a classifier of one's own.

    data = LabelledVideos("my_videos", test_clips=10, test_crops=1)
    extract_features("ircsn_152_ig65m", data, "features.npz")     again after a stop: goes on; devices=8: on 8 GPUs

The videos are those of all splits, each with its label, and each is seen once on any number of processes. The file is
read again by feature_file.py.

Shapes: N videos, B of a batch, V views of each, C channels, T frames, H x W pixels, S steps in time of the network's
last map, D features, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightning_csn import __version__
from lightning_csn.answers import Answers, Counts, Record, make_record, record_key
from lightning_csn.clip import ClipSpec
from lightning_csn.clip_module import ClipModule
from lightning_csn.data.samples import Sample
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.errors import InputError, check_choice
from lightning_csn.feature_file import FORMATS, Rows, Truth, pack
from lightning_csn.fingerprints import hash_trunk
from lightning_csn.many import RecordWriter, VideoBar
from lightning_csn.models import checkpoints
from lightning_csn.models.network import ResNet3D
from lightning_csn.module import LitCSN
from lightning_csn.runner import ExportedNetwork, is_export, versions_of

_log = logging.getLogger(__name__)

PER = ("video", "view", "step")
STEP = 8  # frames from one step to the next: three stages of every network halve their number


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
