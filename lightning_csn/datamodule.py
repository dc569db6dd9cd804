"""VideoDataModule: the videos of a folder or of list files, as batches for fit, validate, test and predict.

Shapes: B videos, V views of each, C channels, T frames, H x W pixels. A batch is a dict: clips uint8
(B, V, C, T, H, W), labels int64 (B,) (-1 unknown) or, where a video may have several, float32 (B, K) of zeros and ones,
videos int64 (B,) (numbers within the split), short bool (B,) (shorter than a clip), seeds int64 (B,) (of what is random
in training; 0 in evaluation), seed (a number, of what is random in a training step), times float32 (B, clips, T) (of
evaluation's frames, in seconds from the video's first), unreadable [(number, message)], and blank bool (B,), which
marks those of the unreadable that have a gray clip in the batch. The others have none: B may be 0.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from lightning_csn.callbacks import UnreadableVideos
from lightning_csn.clip import ClipSpec, clip_values
from lightning_csn.data.annotations import find_samples
from lightning_csn.data.augment import Augment, apply_to_batch
from lightning_csn.data.crew import usable_processors
from lightning_csn.data.dataset import Item, VideoDataset, collate
from lightning_csn.data.index import VideoIndex
from lightning_csn.data.list_files import place_paths, read_list
from lightning_csn.data.names import list_videos
from lightning_csn.data.order import EachVideoOnce, ResumableLoader, TrainOrder, expected_counts
from lightning_csn.data.reading import READERS
from lightning_csn.data.samples import (
    FEW_CLASSES,
    Collection,
    Sample,
    classes_without,
    count_text,
    mirror_map,
    numbers_of,
)
from lightning_csn.data.shards import is_packed
from lightning_csn.data.torchcodec_video import find_decoder
from lightning_csn.data.transforms import CROPS, SCALE, check_cut, num_views
from lightning_csn.errors import InputError, check_choice, check_count, check_number
from lightning_csn.scores_writer import videos_done

_log = logging.getLogger(__name__)

MOST_WORKERS = 8  # more of them wait for the disk, not for the processor
STAGES = ("train", "val", "test", "predict")
MOST_TOGETHER = 2**27  # bytes of a batch to predict, where a video is not larger by itself
POLICIES = ("skip", "blank", "raise")  # for videos that cannot be read
AUGMENT_ON = ("auto", "workers", "device")


class VideoDataModule(L.LightningDataModule):
    """The videos of a folder or of list files.

    The folder holds a folder per class, or train, val (or validation) and test with a folder per class in each, or what
    a published data set is handed out as, or what `lightning-csn pack` wrote. A list file has a path and a label in
    each line, with commas, tabs or spaces between them. What was found is logged when training starts.

    How clips look is the model's matter (LitCSN.clip): it comes from the model that the Trainer runs. So does the order
    of the classes, where the model has names for them. The names of files are read at once, the files in the workers.

    In validation, test and prediction every video is seen once, on any number of processes; only a process that would
    get none is given one that another has, for VideoScores to drop.

    What is random in training is a function of the run's seed (that of seed_everything, or one that is drawn), the
    epoch and the video: not of the number of workers. A checkpoint holds the place within the epoch, so that a run that
    was stopped in the middle of one goes on with the videos that are left, on any number of processes.

    Args:
        root: Folder of the videos, or address of packed ones; with list files, where their relative paths start. For
            predict also one video.
        train_list: List file of the videos to train on; with any list file, folders are not looked through.
        val_list: List file of the videos to validate on.
        test_list: List file of the videos to test on.
        predict_list: List file of the videos to predict, where labels may be left out. Without it predict takes every
            video in root, however deep, or every video of the other lists.
        predict_videos: Paths of the videos to predict, in place of root and lists.
        classes: Names of the classes in their order, or a file with one in each line. Without it they are those of the
            videos, sorted; labels that are numbers are named "0" to the largest.
        layout: Name of the folder's or the lists' layout, where it is not to be found out.
        fold: Which of the official splits to take, where a data set has several.
        index: File that lightning-csn check-data wrote: videos are opened faster, and those known to be unreadable not
            at all.
        reader: What reads video files, av or torchcodec. The frames are the same.
        frames_fps: Pictures per second of folders of pictures, which do not say it: for parts in seconds and for clips
            with a frame rate. Without it such clips take the pictures as filmed.
        clip: How clips must look, all of it or in part. Not needed with a model; one that differs from the model's is
            an error.
        batch_size: Clips of a training batch on each device.
        eval_batch_size: Videos of a batch in validation, test and prediction. Without it as many as make batch_size
            views, but at least one; in prediction a few more, so that nearly all passes of the network are of
            batch_size views. No figure depends on it.
        num_workers: Processes that read videos, for each device. Without it one per processor, 8 at most.
        val_clips: Clips of a video in validation, spread evenly.
        val_crops: Views of each of these clips, 1 (the square in the middle), 3 (along the longer side), 10 (corners,
            middle and their mirror images), or full (the whole picture; videos of one batch must be of one size).
        test_clips: Clips of a video in test and prediction, spread evenly.
        test_crops: Views of each of these clips, as val_crops.
        train_clips: Clips of a training video in its batch, all decoded at once; batch_size counts videos.
        balance: How far the classes are brought to the same number of training clips, 0 to 1: 0 takes each video once
            in an epoch; 1 takes every class as often, the videos of a rare one several times with other random changes,
            and of a frequent one others in each epoch. 0.5 is between, a class of n videos comes as the root of n. An
            epoch stays as long. A video of several classes comes as the rarest of them does.
        flip: How often a training clip is mirrored, 0 to 1.
        flip_classes: Pairs of classes that are each other's mirror image, such as [[left, right]].
        scale: Smallest and largest share of a picture's area that a training clip is cut from.
        short_sides: Smallest and largest short side in pixels that a training picture is scaled to before a square is
            cut out; in place of scale.
        augment: Changes of a training clip's colours and shape: none, randaugment or trivialaugment.
        color_jitter: How much brightness, contrast and saturation of a training clip change, 0 to 1.
        erasing: How often a part of a training clip is made black, 0 to 1.
        augment_on: Where these are made: workers, device, or auto: on the device if it is a GPU. The result is the
            same.
        on_unreadable: What happens at a video that cannot be read: skip leaves it out of its batch; blank puts a gray
            clip into its place, for networks that need full batches; raise ends the run. For all stages, or by stage,
            as in {train: skip, test: raise}. Such videos are always counted and listed, and never replaced by others.
        unreadable_limit: Share of the videos of a split; if more of them cannot be read, the run ends. 1 is no limit.
            A prediction lists those that cannot be read in its answers and has no limit.
        read_timeout: Seconds after which a video counts as unreadable that is still being read; null is no limit.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        train_list: str | Path | None = None,
        val_list: str | Path | None = None,
        test_list: str | Path | None = None,
        predict_list: str | Path | None = None,
        predict_videos: Sequence[str | Path] | None = None,
        classes: Sequence[str] | str | Path | None = None,
        layout: str | None = None,
        fold: int = 1,
        index: str | Path | None = None,
        reader: str = "av",
        frames_fps: float | None = None,
        clip: ClipSpec | dict[str, Any] | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        val_clips: int = 1,
        val_crops: int | str = 1,
        test_clips: int = 10,
        test_crops: int | str = 3,
        train_clips: int = 1,
        balance: float = 0.0,
        flip: float = 0.5,
        flip_classes: Sequence[Sequence[str]] | None = None,
        scale: tuple[float, float] = SCALE,
        short_sides: tuple[int, int] | None = None,
        augment: str = "none",
        color_jitter: float = 0.0,
        erasing: float = 0.0,
        augment_on: str = "auto",
        on_unreadable: dict[str, str] | str = "skip",
        unreadable_limit: float = 0.1,
        read_timeout: float | None = 60.0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
            ("val_clips", val_clips),
            ("test_clips", test_clips),
            ("train_clips", train_clips),
            ("fold", fold),
        ):
            if value is not None:
                check_count(name, value)
        if num_workers is not None:
            check_count("num_workers", num_workers, least=0)
        check_choice("val_crops", val_crops, CROPS)
        check_choice("test_crops", test_crops, CROPS)
        check_number("balance", balance, 0, 1)
        check_number("flip", flip, 0, 1)
        check_cut(scale, short_sides)
        check_choice("reader", reader, READERS)
        if reader == "torchcodec":
            find_decoder()  # here, and not in every worker
        check_choice("augment_on", augment_on, AUGMENT_ON)
        check_number("unreadable_limit", unreadable_limit, 0, 1)
        for name, number, unit in (
            ("frames_fps", frames_fps, "pictures per second"),
            ("read_timeout", read_timeout, "seconds"),
        ):
            if number is not None:
                check_number(name, number, 0)
                if number == 0:
                    raise InputError(f"{name} must be a number of {unit} above 0, or null; got 0")
        if flip_classes and 10 in (val_crops, test_crops):
            raise InputError(
                "ten crops hold mirror images, which show other classes here (flip_classes); 3 or full do not"
            )

        self._root = None if root is None else os.fspath(root)
        given = {"train": train_list, "val": val_list, "test": test_list}
        self._lists = {split: os.fspath(path) for split, path in given.items() if path is not None}
        self._predict_list = None if predict_list is None else os.fspath(predict_list)
        if predict_videos is not None and not predict_videos:
            raise InputError("predict_videos must name videos, got none")
        self._predict_videos = None if predict_videos is None else [os.fspath(path) for path in predict_videos]
        self._given_clip = clip_values(clip)
        self.clip: ClipSpec | None = None  # known in setup, or when a loader is made
        self._layout, self._fold = layout, fold
        self._index_path = None if index is None else os.fspath(index)
        self._index: VideoIndex | None = None  # read when a loader is made
        self._take(self._find(classes))
        self._to_predict: list[Sample] | None = None  # found when asked for
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_clips, self.val_crops = val_clips, val_crops
        self.test_clips, self.test_crops = test_clips, test_crops
        self.predict_clips, self.predict_crops = test_clips, test_crops
        self.reader, self.frames_fps = reader, frames_fps
        self.train_clips = train_clips
        self.balance = balance
        self.flip = flip
        self.flip_classes = [list(pair) for pair in flip_classes or ()]
        self.scale = (scale[0], scale[1])
        self.short_sides = None if short_sides is None else (short_sides[0], short_sides[1])
        self.augment = Augment(augment, color_jitter=color_jitter, erasing=erasing)
        self.augment_on = augment_on
        self._augment_here = False  # in on_after_batch_transfer; known when the training loader is made
        self.on_unreadable = policies(on_unreadable)
        self.unreadable_limit = unreadable_limit
        self.read_timeout = read_timeout
        self._train_loader: ResumableLoader | None = None
        self._place: dict[str, int] = {}  # in an epoch, from a checkpoint; taken up by the next training loader
        if self.samples:
            mirror_map(self.flip_classes, self.classes)
        class_names = os.fspath(classes) if isinstance(classes, str | os.PathLike) else classes and list(classes)
        self.save_hyperparameters(
            {
                "root": self._root,
                **{f"{split}_list": self._lists.get(split) for split in given},
                "predict_list": self._predict_list,
                "predict_videos": self._predict_videos,
                "classes": class_names,
                "layout": layout,
                "fold": fold,
                "index": self._index_path,
                "reader": reader,
                "frames_fps": frames_fps,
                "clip": self._given_clip or None,
                "batch_size": batch_size,
                "eval_batch_size": eval_batch_size,
                "num_workers": num_workers,
                "val_clips": val_clips,
                "val_crops": val_crops,
                "test_clips": test_clips,
                "test_crops": test_crops,
                "train_clips": train_clips,
                "balance": balance,
                "flip": flip,
                "flip_classes": self.flip_classes or None,
                "scale": list(scale),
                "short_sides": None if short_sides is None else list(short_sides),
                "augment": augment,
                "color_jitter": color_jitter,
                "erasing": erasing,
                "augment_on": augment_on,
                "on_unreadable": on_unreadable if isinstance(on_unreadable, str) else dict(on_unreadable),
                "unreadable_limit": unreadable_limit,
                "read_timeout": read_timeout,
            },
            logger=False,
        )

    @property
    def num_classes(self) -> int:
        """How many classes the labels tell apart; 0 where there are only videos to predict."""
        return len(self.classes)

    @property
    def train_counts(self) -> list[float]:
        """How many training videos of each class an epoch has, in the mean where `balance` draws them."""
        samples = self._samples_for("train")
        counts = [0.0] * self.num_classes
        for sample, count in zip(
            samples, expected_counts([sample.label for sample in samples], self.balance), strict=True
        ):
            for number in numbers_of(sample.label):
                counts[number] += count
        return counts

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
                self._take(self._find(names))
            except InputError as error:
                if stage != "fit":
                    raise
                raise InputError(
                    f"{error}; for a new head, pass classes=data.classes where the model is made ('lightning-csn fit "
                    "--model.pretrained' does it by itself)"
                ) from error
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        if not any(isinstance(callback, UnreadableVideos) for callback in callbacks):
            callbacks.append(UnreadableVideos())  # for on_unreadable and unreadable_limit
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
        """Batches of random clips in random order, each video on one of the processes."""
        on_gpu = self._on_gpu()
        self._augment_here = self.augment_on == "device" or (self.augment_on == "auto" and on_gpu)
        dataset = self._dataset(
            "train",
            clips=self.train_clips,
            flip=self.flip,
            scale=self.scale,
            short_sides=self.short_sides,
            mirrored=mirror_map(self.flip_classes, self.classes),
            augment=None if self._augment_here or self.augment.nothing else self.augment,
        )
        processes, rank = self._processes()
        loader = ResumableLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=TrainOrder(
                len(dataset),
                seed=self._base_seed(),
                world_size=processes,
                rank=rank,
                labels=[sample.label for sample in dataset.samples],
                balance=self.balance,
            ),
            progress=self.trainer.fit_loop.epoch_loop.batch_progress if self.trainer is not None else None,
            **self._loading(),
        )
        loader.load_state_dict(self._place)
        self._place, self._train_loader = {}, loader
        return loader

    def val_dataloader(self) -> DataLoader[Item] | list[DataLoader[Item]]:
        """Every validation video once; no loader where training goes without validation."""
        if not self.has_split("val") and self._fitting():
            return []  # Lightning takes that, with a warning that their total length is zero
        return self._evaluation_loader("val", self.val_clips, self.val_crops)

    def test_dataloader(self) -> DataLoader[Item]:
        """Every test video once; all videos of a folder without splits."""
        return self._evaluation_loader("test", self.test_clips, self.test_crops)

    def predict_dataloader(self) -> DataLoader[Item]:
        """Every video to predict once, with label -1; `predict_samples` has their paths."""
        return self._evaluation_loader("predict", self.predict_clips, self.predict_crops)

    def samples_of(self, stage: str) -> list[Sample]:
        """The videos of train, val, test or predict; InputError where there are none."""
        return self.predict_samples if stage == "predict" else self._samples_for(stage)

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch of training; also in the loader's own state, where Lightning may not look in time:
        it restores that when it makes the loader, and LitCSN needs the loader before the checkpoint is read.
        """
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with training from such a place."""
        if self._fitting():
            self._place = state_dict.get("train", {})

    @property
    def predict_samples(self) -> list[Sample]:
        """The videos that predict takes; a prediction's video number counts them. Found once for each prediction, for a
        file that came in between would move the numbers of those behind it.
        """
        if self._to_predict is None:
            self._to_predict = self._find_to_predict()
        return self._to_predict

    def _find_to_predict(self) -> list[Sample]:
        if self._predict_videos is not None:
            paths = self._predict_videos
        elif self._predict_list is not None:
            paths = place_paths(read_list(self._predict_list), self._predict_list, self._root)
        elif self._lists or (self._root is not None and is_packed(self._root)):
            found = [sample for samples in self.samples.values() for sample in samples]
            return [sample._replace(label=-1, video=video) for video, sample in enumerate(found)]
        else:
            assert self._root is not None  # find_samples has refused a module without any videos
            paths = list_videos(self._root)
        return [Sample(path, -1, video) for video, path in enumerate(paths)]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """End the run at a batch that could not be put together."""
        if "error" in batch:
            raise InputError(batch["error"])
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change training clips where they are now, if workers did not; a gray clip stays as it is."""
        if self._augment_here and self._training() and not self.augment.nothing:
            shown = ~batch["blank"]
            changed = apply_to_batch(self.augment, batch["clips"][shown], batch["seeds"][shown])
            batch["clips"] = batch["clips"].index_put((shown,), changed)
        return batch

    def _find(self, classes: Sequence[str] | str | Path | None) -> Collection:
        """The samples of each split, and the classes; no samples where there are only videos to predict."""
        only_file = self._root is not None and os.path.isfile(self._root)
        only_to_predict = only_file or self._predict_list is not None or self._predict_videos is not None
        if not self._lists and only_to_predict:
            return Collection(
                {}, [] if classes is None or isinstance(classes, str | os.PathLike) else list(classes), ""
            )
        return find_samples(self._root, lists=self._lists, classes=classes, layout=self._layout, fold=self._fold)

    def _take(self, found: Collection) -> None:
        self.samples, self.classes = found.samples, found.classes
        self.multi_label, self._found_as = found.multi_label, found.layout

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
        _log.info("videos found as: %s", self._found_as)
        for split, samples in self.samples.items():
            counts = Counter(number for sample in samples for number in numbers_of(sample.label))
            _log.info("%s: %d videos; %s", split, len(samples), count_text(counts, self.classes))
        if without := classes_without(self.samples, self.classes):
            _log.warning(
                "val has no video of %d of the classes that train has, so that its figures say nothing of them: %s",
                len(without),
                ", ".join(without[:FEW_CLASSES]) + (", ..." if len(without) > FEW_CLASSES else ""),
            )
        if self.balance:
            counts = Counter({number: round(count) for number, count in enumerate(self.train_counts)})
            _log.info("balance %g: an epoch has about %s", self.balance, count_text(counts, self.classes))
        if not self.has_split("val"):
            _log.info("no validation videos: training goes without validation")

    def _report_index(self, stage: str, samples: Sequence[Sample]) -> None:
        """Log how many of a split's videos the index knows, where it does not know all."""
        if self._index is None or (self.trainer is not None and not self.trainer.is_global_zero):
            return
        known = sum(sample.path in self._index for sample in samples)
        if known < len(samples):
            _log.log(
                logging.INFO if known else logging.WARNING,
                "%s: %d of the %d videos of %s are in %s; the others are scanned when they are opened",
                "index" if known else "index of other videos",
                known,
                len(samples),
                stage,
                self._index_path,
            )

    def _fitting(self) -> bool:
        return self.trainer is None or self.trainer.state.fn == "fit"

    def _training(self) -> bool:
        return self.trainer is not None and self.trainer.training

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _processes(self) -> tuple[int, int]:
        """How many processes there are, and the number of this one."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _base_seed(self) -> int:
        """The seed of the order and of everything random in training: that of seed_everything, or one for the run."""
        given = os.environ.get("PL_GLOBAL_SEED")
        if given is not None:
            return int(given)
        seed = int(torch.randint(2**31, ()))
        return seed if self.trainer is None else int(self.trainer.strategy.broadcast(seed))

    def _dataset(self, stage: str, **options: Any) -> VideoDataset:
        if self._index_path is not None and self._index is None:
            self._index = VideoIndex.read(self._index_path)
        samples = self.samples_of(stage)
        self._report_index(stage, samples)
        without = next((sample.path for sample in samples if sample.label == -1 and stage != "predict"), None)
        if without is not None:
            raise InputError(f"{without}: no label for it in {stage}; only predict takes such videos")
        return VideoDataset(
            samples,
            self._clip(),
            train=stage == "train",
            num_classes=self.num_classes if self.multi_label else None,
            blank=self.on_unreadable[stage] == "blank",
            reader=self.reader,
            frames_fps=self.frames_fps,
            index=self._index,
            read_timeout=self.read_timeout,
            **options,
        )

    def _evaluation_loader(self, stage: str, clips: int, crops: int | str) -> DataLoader[Item]:
        dataset = self._dataset(stage, clips=clips, crops=crops)
        done = videos_done(self.trainer, dataset.samples) if stage in ("test", "predict") else ()
        processes, rank = self._processes()
        loading = self._loading()
        views = clips * num_views(crops)
        fitting = 1 if crops == "full" else max(1, self.batch_size // views)
        if stage == "predict" and crops != "full":
            share = (len(dataset) - len(done)) // (processes * max(1, loading["num_workers"]))
            fitting = videos_together(views, self.batch_size, video_bytes=math.prod(dataset.shape), most=share // 4)
        return DataLoader(
            dataset,
            batch_size=self.eval_batch_size or fitting,
            sampler=EachVideoOnce(dataset, num_replicas=processes, rank=rank, without=done),
            **loading,
        )

    def _loading(self) -> dict[str, Any]:
        """The options that all loaders share."""
        workers = self.num_workers
        if workers is None:
            devices = self.trainer.num_devices if self.trainer is not None else 1
            workers = min(MOST_WORKERS, max(1, usable_processors() // devices))
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self._on_gpu(),
            "collate_fn": collate,
        }


def videos_together(views: int, per_pass: int, *, video_bytes: int, most: int) -> int:
    """How many videos make a batch whose `views` each fill passes of `per_pass` views best; the fewest that do.

    most: videos, so that every worker has several batches to read. 1 at least, and as many as MOST_TOGETHER bytes hold.

    >>> [videos_together(views, 8, video_bytes=2**20, most=50) for views in (1, 3, 8, 10, 30)]
    [8, 8, 1, 4, 4]
    >>> videos_together(10, 8, video_bytes=2**26, most=50), videos_together(1, 8, video_bytes=2**20, most=2)
    (2, 2)
    """
    largest = max(1, min(per_pass, most, MOST_TOGETHER // max(1, video_bytes)))

    def empty(count: int) -> float:
        """Share of the places in the passes that stay empty."""
        return 1 - count * views / (-(-count * views // per_pass) * per_pass)

    return min(range(1, largest + 1), key=empty)


def policies(on_unreadable: Mapping[str, str] | str) -> dict[str, str]:
    """What happens at an unreadable video in each stage, from one word for all or from some of them by stage.

    >>> policies("blank")
    {'train': 'blank', 'val': 'blank', 'test': 'blank', 'predict': 'blank'}
    >>> policies({"train": "skip", "val": "raise"})
    {'train': 'skip', 'val': 'raise', 'test': 'skip', 'predict': 'skip'}
    """
    if not isinstance(on_unreadable, str | Mapping):
        raise InputError(f"on_unreadable must be one of {', '.join(POLICIES)}, or one by stage, got {on_unreadable!r}")
    given = dict.fromkeys(STAGES, on_unreadable) if isinstance(on_unreadable, str) else dict(on_unreadable)
    for stage, policy in given.items():
        check_choice("a stage of on_unreadable", stage, STAGES)
        check_choice("on_unreadable", policy, POLICIES)
    return {stage: given.get(stage, "skip") for stage in STAGES}
