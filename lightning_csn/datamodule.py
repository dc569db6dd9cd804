"""VideoDataModule: the videos of a folder or of list files, as batches for fit, validate, test and predict.

Shapes: B videos, V views of each, C channels, T frames, H x W pixels. A batch is a dict: clips uint8
(B, V, C, T, H, W), labels int64 (B,) (-1 unknown), videos int64 (B,) (numbers within the split), short bool (B,)
(shorter than a clip), unreadable [(number, message)]. B counts the readable videos and may be 0.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from lightning_csn.clip import ClipSpec
from lightning_csn.data.annotations import find_samples, list_videos, place_paths, read_list
from lightning_csn.data.dataset import Item, VideoDataset, collate
from lightning_csn.data.motion import usable_processors
from lightning_csn.data.order import EachVideoOnce
from lightning_csn.data.samples import Sample
from lightning_csn.data.transforms import CROPS, SCALE
from lightning_csn.errors import InputError, check_choice, check_count, check_number

_log = logging.getLogger(__name__)

_MOST_WORKERS = 8  # more of them wait for the disk, not for the processor
_FEW_CLASSES = 20  # that a report names one by one


class VideoDataModule(L.LightningDataModule):
    """The videos of a folder or of list files.

    The folder holds a folder per class, or train, val (or validation) and test with a folder per class in each. A list
    file has a path and a label in each line, with commas, tabs or spaces between them.

    How clips look is the model's matter (LitCSN.clip): it comes from the model that the Trainer runs. So does the order
    of the classes, where the model has names for them. The names of files are read at once, the files in the workers.

    In validation, test and prediction every video is seen once, on any number of processes; only a process that would
    get none is given one that another has, for VideoScores to drop.

    Args:
        root: Folder of the videos; with list files, where their relative paths start. For predict also one video.
        train_list: List file of the videos to train on; with any list file, folders are not looked through.
        val_list: List file of the videos to validate on.
        test_list: List file of the videos to test on.
        predict_list: List file of the videos to predict, where labels may be left out. Without it predict takes every
            video in root, however deep, or every video of the other lists.
        classes: Names of the classes in their order. Without it they are those of the videos, sorted; labels that are
            numbers are named "0" to the largest.
        clip: How clips must look, all of it or in part. Not needed with a model; one that differs from the model's is
            an error.
        batch_size: Clips of a training batch on each device.
        eval_batch_size: Videos of a batch in validation, test and prediction. Without it as many as make batch_size
            views, but at least one. No figure depends on it.
        num_workers: Processes that read videos, for each device. Without it one per processor, 8 at most.
        val_clips: Clips of a video in validation, spread evenly.
        val_crops: Squares of each of these clips, 1 (the middle) or 3.
        test_clips: Clips of a video in test and prediction, spread evenly.
        test_crops: Squares of each of these clips, 1 (the middle) or 3.
        flip: How often a training clip is mirrored, 0 to 1.
        flip_classes: Pairs of classes that are each other's mirror image, such as [[left, right]].
        scale: Smallest and largest share of a picture's area that a training clip is cut from.
        on_unreadable: What happens at a video that cannot be read while training: skip leaves it out of its batch,
            which is counted and logged; raise ends the run. In validation and test such videos are always counted.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        train_list: str | os.PathLike[str] | None = None,
        val_list: str | os.PathLike[str] | None = None,
        test_list: str | os.PathLike[str] | None = None,
        predict_list: str | os.PathLike[str] | None = None,
        classes: Sequence[str] | None = None,
        clip: ClipSpec | dict[str, Any] | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        val_clips: int = 1,
        val_crops: int = 1,
        test_clips: int = 10,
        test_crops: int = 3,
        flip: float = 0.5,
        flip_classes: Sequence[Sequence[str]] | None = None,
        scale: tuple[float, float] = SCALE,
        on_unreadable: str = "skip",
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("val_clips", val_clips),
            ("test_clips", test_clips),
        ):
            if value is not None:
                check_count(name, value)
        if num_workers is not None:
            check_count("num_workers", num_workers, least=0)
        check_choice("val_crops", val_crops, CROPS)
        check_choice("test_crops", test_crops, CROPS)
        check_number("flip", flip, 0, 1)
        if not (isinstance(scale, Sequence) and len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise InputError(f"scale is two shares of the area, above 0, up to 1, the smaller first; got {scale}")
        check_choice("on_unreadable", on_unreadable, ("skip", "raise"))

        self._root = None if root is None else os.fspath(root)
        given = {"train": train_list, "val": val_list, "test": test_list}
        self._lists = {split: os.fspath(path) for split, path in given.items() if path is not None}
        self._predict_list = None if predict_list is None else os.fspath(predict_list)
        self._given_clip = clip.to_dict() if isinstance(clip, ClipSpec) else dict(clip or {})
        self.clip: ClipSpec | None = None  # known in setup, or when a loader is made
        self.samples, self.classes = self._find(classes)
        self._to_predict: list[Sample] | None = None  # found when asked for
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_clips, self.val_crops = val_clips, val_crops
        self.test_clips, self.test_crops = test_clips, test_crops
        self.predict_clips, self.predict_crops = test_clips, test_crops
        self.flip = flip
        self.flip_classes = [list(pair) for pair in flip_classes or ()]
        self.scale = (scale[0], scale[1])
        self.on_unreadable = on_unreadable
        if self.samples:
            mirror_map(self.flip_classes, self.classes)
        self.save_hyperparameters(
            {
                "root": self._root,
                **{f"{split}_list": self._lists.get(split) for split in given},
                "predict_list": self._predict_list,
                "classes": None if classes is None else list(classes),
                "clip": self._given_clip or None,
                "batch_size": batch_size,
                "eval_batch_size": eval_batch_size,
                "num_workers": num_workers,
                "val_clips": val_clips,
                "val_crops": val_crops,
                "test_clips": test_clips,
                "test_crops": test_crops,
                "flip": flip,
                "flip_classes": self.flip_classes or None,
                "scale": list(scale),
                "on_unreadable": on_unreadable,
            },
            logger=False,
        )

    @property
    def num_classes(self) -> int:
        """How many classes the labels tell apart; 0 where there are only videos to predict."""
        return len(self.classes)

    def has_split(self, split: str) -> bool:
        """Whether there are videos of their own for train, val or test; a folder without splits has them for train."""
        return split in self.samples or (split == "train" and "all" in self.samples)

    def setup(self, stage: str | None = None) -> None:
        """Take clip and classes from the model, and see that there are videos for what the Trainer is about to do.

        Raises InputError where the data was given another clip than the model has, where a label is none of the model's
        classes, or where the videos are missing.
        """
        model: Any = self.trainer.lightning_module if self.trainer is not None else None
        self.clip = self._complete_clip(getattr(model, "clip", None))
        names = getattr(model, "classes", None)
        if names is not None and stage == "predict":
            self.classes = list(names)
        elif names is not None and list(names) != self.classes and (stage != "fit" or len(names) == len(self.classes)):
            try:
                self.samples, self.classes = self._find(names)
            except InputError as error:
                if stage != "fit":
                    raise
                raise InputError(
                    f"{error}; for a new head, pass classes=data.classes where the model is made ('lightning-csn fit "
                    "--model.pretrained' does it by itself)"
                ) from error
        if stage == "predict":
            self._to_predict = None
        elif stage == "fit":
            self._samples_for("train")
            self._report()
        elif stage in ("validate", "test"):
            samples = self._samples_for("val" if stage == "validate" else "test")
            if "all" in self.samples:
                _log.warning(
                    "%s has no train, val and test: these are all of its %d videos, whether trained on or not",
                    self._root,
                    len(samples),
                )

    def train_dataloader(self) -> DataLoader[Item]:
        """Batches of random clips in random order; Lightning shares them out among processes."""
        dataset = VideoDataset(
            self._samples_for("train"),
            self._clip(),
            train=True,
            flip=self.flip,
            scale=self.scale,
            mirrored=mirror_map(self.flip_classes, self.classes),
        )
        return self._loader(dataset, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Item] | list[DataLoader[Item]]:
        """Every validation video once; no loader where training goes without validation."""
        if not self.has_split("val") and self._fitting():
            return []  # Lightning takes that, with a warning that their total length is zero
        return self._evaluation_loader(self._samples_for("val"), self.val_clips, self.val_crops)

    def test_dataloader(self) -> DataLoader[Item]:
        """Every test video once; all videos of a folder without splits."""
        return self._evaluation_loader(self._samples_for("test"), self.test_clips, self.test_crops)

    def predict_dataloader(self) -> DataLoader[Item]:
        """Every video to predict once, with label -1; `predict_samples` has their paths."""
        return self._evaluation_loader(self.predict_samples, self.predict_clips, self.predict_crops)

    @property
    def predict_samples(self) -> list[Sample]:
        """The videos that predict takes; a prediction's video number counts them. Found once for each prediction, for a
        file that came in between would move the numbers of those behind it.
        """
        if self._to_predict is None:
            self._to_predict = self._find_to_predict()
        return self._to_predict

    def _find_to_predict(self) -> list[Sample]:
        if self._predict_list is not None:
            paths = place_paths(read_list(self._predict_list), self._predict_list, self._root)
        elif self._lists:
            paths = [sample.path for samples in self.samples.values() for sample in samples]
        else:
            assert self._root is not None  # find_samples has refused a module without any videos
            paths = list_videos(self._root)
        return [Sample(path, -1, video) for video, path in enumerate(paths)]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """End the run at an unreadable training video, if that was asked for; here, not in a worker, whose error
        would come with the worker's traceback for a message.
        """
        if self.on_unreadable == "raise" and self._training() and batch["unreadable"]:
            raise InputError(batch["unreadable"][0][1])
        return batch

    def _find(self, classes: Sequence[str] | None) -> tuple[dict[str, list[Sample]], list[str]]:
        """The samples of each split, and the classes; nothing of either where there are only videos to predict."""
        only_file = self._root is not None and os.path.isfile(self._root)
        if not self._lists and (only_file or self._predict_list is not None):
            return {}, list(classes or [])
        found = find_samples(self._root, lists=self._lists, classes=classes)
        return found.samples, found.classes

    def _complete_clip(self, model: ClipSpec | None) -> ClipSpec:
        """The model's clip, or the given one without a model; InputError where they differ or one is not whole."""
        given = ClipSpec.from_dict(self._given_clip, model)
        if model is None:
            return given
        if differences := given.differences(model):
            raise InputError(
                f"the data was given another clip than the model takes (data and model): {'; '.join(differences)}; "
                "leave clip out of VideoDataModule, or give it to the model"
            )
        return model

    def _clip(self) -> ClipSpec:
        return self.clip or self._complete_clip(None)

    def _samples_for(self, split: str) -> list[Sample]:
        """The videos of a split, or InputError; a folder without splits has one list for all."""
        for name in (split, "all"):
            if name in self.samples:
                return self.samples[name]
        where = self._root if not self._lists else ", ".join(self._lists.values())
        there = ", ".join(self.samples) or "videos without classes"
        remedy = f"{split}_list" if self._lists else f"a folder {split}/ with a folder per class"
        raise InputError(f"{where}: no videos for {split}, only {there}; it takes {remedy}")

    def _report(self) -> None:
        """Log how many videos of each class there are, once."""
        if self.trainer is not None and not self.trainer.is_global_zero:
            return
        for split, samples in self.samples.items():
            counts = Counter(sample.label for sample in samples)
            _log.info("%s: %d videos; %s", split, len(samples), count_text(counts, self.classes))
        if not self.has_split("val"):
            _log.info("no validation videos: training goes without validation")

    def _fitting(self) -> bool:
        return self.trainer is None or self.trainer.state.fn == "fit"

    def _training(self) -> bool:
        return self.trainer is not None and self.trainer.training

    def _evaluation_loader(self, samples: Sequence[Sample], clips: int, crops: int) -> DataLoader[Item]:
        dataset = VideoDataset(samples, self._clip(), train=False, clips=clips, crops=crops)
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)
        return self._loader(
            dataset,
            batch_size=self.eval_batch_size or max(1, self.batch_size // (clips * crops)),
            sampler=EachVideoOnce(dataset, num_replicas=processes, rank=rank),
        )

    def _loader(self, dataset: VideoDataset, **options: Any) -> DataLoader[Item]:
        workers = self.num_workers
        if workers is None:
            devices = self.trainer.num_devices if self.trainer is not None else 1
            workers = min(_MOST_WORKERS, max(1, usable_processors() // devices))
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
            collate_fn=collate,
            **options,
        )


def mirror_map(pairs: Sequence[Sequence[str]], classes: Sequence[str]) -> dict[int, int]:
    """Number of a class -> number of its mirror image, from pairs of names.

    >>> mirror_map([["left", "right"]], ["down", "left", "right"])
    {1: 2, 2: 1}
    """
    numbers = {name: number for number, name in enumerate(classes)}
    mirrored: dict[int, int] = {}
    for pair in pairs:
        if len(pair) != 2:
            raise InputError(f"flip_classes are pairs of classes, got {list(pair)}")
        for name in pair:
            if name not in numbers:
                raise InputError(f"flip_classes: {name!r} is none of the {len(classes)} classes")
            if numbers[name] in mirrored:
                raise InputError(f"flip_classes: {name!r} is in two pairs")
        first, second = (numbers[name] for name in pair)
        mirrored |= {first: second, second: first}
    return mirrored


def count_text(counts: Counter[Any], classes: Sequence[str]) -> str:
    """How many videos of each class, one by one where the classes are few.

    >>> count_text(Counter([0, 0, 1]), ["run", "walk", "jump"])
    'run 2, walk 1, jump 0'
    """
    if len(classes) <= _FEW_CLASSES:
        return ", ".join(f"{name} {counts[number]}" for number, name in enumerate(classes))
    each = sorted(counts[number] for number in range(len(classes)))
    return f"{len(classes)} classes, {each[0]} to {each[-1]} videos each, {each[len(each) // 2]} in the middle"
