"""What a network says of many videos: worker processes read them while the network looks at those before.

    for answer in classify_many(model, paths):      in the order of the paths, as soon as they are known
    Trainer(callbacks=[PredictionWriter("answers.csv")]).predict(model, data)          on any number of processes

Both take their batches from VideoDataModule.predict_dataloader, in which several videos share a pass of the network.

Shapes: B videos, V views of each, C channels, T frames, H x W pixels, K classes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ProgressBar
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from lightning_csn.answers import Answers, Counts, Record, make_record
from lightning_csn.clip import ClipSpec
from lightning_csn.data.crew import usable_processors
from lightning_csn.data.samples import Sample
from lightning_csn.datamodule import MOST_WORKERS, VideoDataModule
from lightning_csn.fingerprints import hash_weights
from lightning_csn.predict import Prediction, evaluating, likeliest
from lightning_csn.processes import gather, on_first_process

_log = logging.getLogger(__name__)

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} videos [{elapsed}<{remaining}, {rate_noinv_fmt}]"  # for tqdm; never "s/video"


class Model(Protocol):
    """What answers: LitCSN, or whatever else has these.

    clip: how clips must look. classes: names of the outputs; None where they have none.
    """

    clip: ClipSpec
    classes: list[str] | None

    @property
    def device(self) -> torch.device:
        """Where clips are to be."""
        ...

    def __call__(self, clips: Tensor) -> Tensor:
        """Probabilities (B, K) of uint8 clips (B, V, C, T, H, W)."""
        ...


@dataclass(frozen=True)
class Unreadable:
    """A video that could not be read, and why."""

    path: str
    error: str


class Times:
    """Where the time of a prediction goes: `began`, then `asks`, `got` and `answered` for each batch.

    The shares are of the time from the first call of `began`: of `workers` processes reading, of this one running the
    network (with what comes with it, such as moving clips there) and waiting for videos.
    """

    def __init__(self) -> None:
        self.workers = 0
        self.videos = 0
        self.reading = self.network = self.waiting = 0.0  # seconds
        self._start = self._mark = self._end = time.perf_counter()

    def began(self, workers: int) -> None:
        """Now the processes start; 0 where this one reads for itself."""
        self.workers = workers
        self._start = self._mark = time.perf_counter()

    def asks(self) -> None:
        """Now this process wants the next batch."""
        self._mark = time.perf_counter()

    def got(self, batch: dict[str, Any]) -> None:
        """Now a batch is there."""
        self.waiting += self._passed()
        self.reading += batch.get("seconds", 0.0)

    def answered(self, videos: int) -> None:
        """Now so many videos of it are answered."""
        self.network += self._passed()
        self.videos += videos
        self._end = self._mark

    @property
    def seconds(self) -> float:
        """From the start to the last answer."""
        return self._end - self._start

    def __str__(self) -> str:
        total = self.seconds
        if not self.videos or total <= 0:
            return "no videos"
        readers = f"{self.workers} process{'es' * (self.workers != 1)}" if self.workers else "this process"
        return (
            f"{self.videos} video{'s' * (self.videos != 1)} in {total:.1f} s, {self.videos / total:.3g} a second; "
            f"reading {self.reading / total / max(1, self.workers):.0%} of the time of {readers}, network "
            f"{self.network / total:.0%}, waiting for videos {self.waiting / total:.0%}"
        )

    def _passed(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before


def classify_many(
    model: Model,
    paths: Sequence[str | os.PathLike[str]],
    *,
    clips: int = 10,
    crops: int | str = 1,
    top: int = 5,
    workers: int | None = None,
    views_per_pass: int = 8,
    read_timeout: float | None = 60.0,
    times: Times | None = None,
) -> Iterator[Prediction | Unreadable]:
    """The likeliest classes of many videos, in their order, each as soon as it is known; those of `classify`.

    Which views share a pass through the network can change the last digits of a probability, nothing else.

    clips, crops, top: as for `classify`.
    workers: processes that read videos; None is one for each processor, 8 at most, and 0 is none but this one.
    views_per_pass: about how many views a batch has at least, where the videos are many.
    read_timeout: seconds that reading a video may take; None is no limit.
    times: told where the time goes.

    A video that cannot be read is Unreadable in its place. Memory does not grow with the number of videos.
    """
    if not paths:
        return
    if workers is None:
        workers = min(MOST_WORKERS, usable_processors())
    data = VideoDataModule(
        predict_videos=[os.fspath(path) for path in paths],
        clip=model.clip,
        batch_size=views_per_pass,
        num_workers=0 if len(paths) == 1 else min(workers, len(paths)),
        test_clips=clips,
        test_crops=crops,
        read_timeout=read_timeout,
    )
    samples = data.predict_samples
    times = times or Times()
    loader = data.predict_dataloader()
    times.began(loader.num_workers)
    for batch in loader:
        times.got(batch)
        data.on_before_batch_transfer(batch, 0)
        probabilities = torch.empty(0)
        if len(batch["videos"]):
            with evaluating(model) if isinstance(model, nn.Module) else torch.inference_mode():
                probabilities = model(batch["clips"].to(model.device)).cpu()
        records = make_records(batch, probabilities, samples, model.classes, top)
        del batch  # its memory is of use to the workers
        times.answered(len(records))
        for number in sorted(records):
            record = records[number]
            yield (
                Unreadable(record["path"], record["error"])
                if "error" in record
                else Prediction(record["path"], pairs(record), [], record["short"])
            )
        times.asks()


def make_records(
    batch: dict[str, Any], probabilities: Tensor, samples: Sequence[Sample], classes: Sequence[str] | None, top: int
) -> dict[int, Record]:
    """The records of the videos of a batch by their numbers; probabilities (B, K) of those that could be read."""
    records = {}
    rows = zip(batch["videos"].tolist(), probabilities, batch["short"].tolist(), strict=True)
    for video, row, short in rows:
        records[video] = make_record(samples[video], likeliest(row, classes, top), short=short)
    for video, message in batch["unreadable"]:
        records[video] = make_record(samples[video], error=message)
    return records


def pairs(record: Record) -> list[tuple[str, float]]:
    """The classes of a record and their probabilities."""
    return [(each["class"], each["probability"]) for each in record["top"]]


def describe_answers(
    model: Any,
    *,
    clips: int | None,
    crops: int | str | None,
    top: int,
    precision: str = "32-true",
) -> dict[str, Any]:
    """What the answers for a video depend on, but for the video, as plain values."""
    return {
        "network": hash_weights(model.network),
        "exact": bool(model.exact),
        "average": model.hparams["average"],
        **{name: model.network.options[name] for name in ("head_pooling", "head_average")},
        "classes": model.classes,
        "clips": clips,
        "crops": crops,
        **model.clip.to_dict(),
        "precision": precision,
        "top": top,
    }


def write_answers(
    model: Any,
    paths: Sequence[str | os.PathLike[str]],
    answers: Answers,
    *,
    clips: int = 10,
    crops: int | str = 1,
    progress: bool = False,
    times: Times | None = None,
    check: Callable[[Record], object] | None = None,
    **options: Any,
) -> Counts:
    """Put what `classify_many` gives into a file, and go on with a run that was stopped; see Answers.

    progress: a bar on stderr, where that is a terminal. check: called with each record of the file, also with those of
    the run before. options: of `classify_many`.
    """
    samples = [Sample(os.fspath(path), -1, video) for video, path in enumerate(paths)]
    about = describe_answers(model, clips=clips, crops=crops, top=answers.top)
    done = answers.take_up(about)
    left = [sample.path for sample in samples if (sample.path, None) not in done]
    found = classify_many(model, left, clips=clips, crops=crops, top=answers.top, times=times, **options)
    try:
        with video_bar(len(samples), len(samples) - len(left), shown=progress) as bar:
            for answer in found:
                answers.write(about, [record_of(answer)])
                bar.update()
        return answers.finish(samples, check=check)
    finally:
        answers.close()


def record_of(answer: Prediction | Unreadable) -> Record:
    """An answer of `classify_many` as a record."""
    sample = Sample(answer.path, -1, -1)
    if isinstance(answer, Unreadable):
        return make_record(sample, error=answer.error)
    return make_record(sample, answer.top, short=answer.short)


def video_bar(total: int, done: int, *, shown: bool) -> Any:
    """A bar of videos, with their number in a second and the time that is left; `done` are from a run before."""
    return tqdm(
        total=total, initial=done, unit=" videos", bar_format=BAR, disable=None if shown else True, smoothing=0.1
    )


class RecordWriter(BasePredictionWriter):
    """Writes what `Trainer.predict` finds in each video into a file, on any number of processes.

    A prediction that was stopped, by whatever means, and is started again does what is left: VideoDataModule leaves
    out the videos that are there, on any number of processes before and after. What could not be read is tried again.

    What a record is and what it depends on say `records_of` and `describe`.
    """

    takes_up = "predict"

    def __init__(self, answers: Answers) -> None:
        super().__init__("batch")
        self.answers = answers
        self.counts: Counts | None = None  # of the prediction that is over, on the first process
        self.times = Times()  # of this process
        self._forget()

    def records_of(self, module: Any, prediction: dict[str, Any], batch: dict[str, Any]) -> dict[int, Record]:
        """The records of a batch's videos by their numbers, out of what the module's predict_step gave."""
        raise NotImplementedError

    def describe(self, trainer: Trainer) -> dict[str, Any]:
        """What records depend on, but for the video, as plain values."""
        raise NotImplementedError

    def _forget(self) -> None:
        self._about: dict[str, Any] | None = None
        self._samples: Sequence[Sample] = ()
        self._done: set[int] = set()
        self._written: dict[int, bool] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is left of a prediction before."""
        self._forget()
        self.counts, self.times = None, Times()

    def videos_done(self, trainer: Trainer, samples: Sequence[Sample]) -> set[int]:
        """Take up what was answered before, and give the numbers of the videos that need not be seen again.

        All processes call this together, with the weights in place. Raises InputError where the answers that are there
        are those of another network, or of other views.
        """
        self._samples = samples
        self._about = self.describe(trainer)

        def take_up() -> set[int]:
            assert self._about is not None
            done = self.answers.take_up(self._about)
            numbers = {sample.video for sample in samples if (sample.path, sample.part) in done}
            if numbers:
                _log.info("%s: %d of %d videos are answered already", self.answers.path, len(numbers), len(samples))
            return numbers

        self._done = on_first_process(trainer, take_up)
        return self._done

    @property
    def done(self) -> int:
        """How many videos a prediction before has answered."""
        return len(self._done)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Data that did not ask what is done has everything seen; the processes that read have started."""
        if self._about is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning's data connector
            self.videos_done(trainer, data.predict_samples)
        loaders: Any = trainer.predict_dataloaders
        self.times.began(getattr(loaders, "num_workers", 0))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch is there."""
        self.times.got(batch)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: dict[str, Any],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the records of a batch."""
        assert self._about is not None  # VideoDataModule has asked what is done
        records = self.records_of(pl_module, prediction, batch)
        new = {number: record for number, record in records.items() if number not in self._done}
        self.answers.write(self._about, new.values(), trainer.global_rank)
        self._written |= dict.fromkeys(new, True)
        self.times.answered(len(records))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What was found before something went wrong is kept."""
        self.answers.close()

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the file of what all processes have found."""
        self.answers.close_part()
        written = gather(trainer, self._written)
        keys = {(self._samples[number].path, self._samples[number].part) for number in written}
        self.counts = on_first_process(trainer, lambda: self.answers.finish(self._samples, keys))


class PredictionWriter(RecordWriter):
    """Writes the likeliest classes of each video; see Answers for the file."""

    def __init__(self, path: str | os.PathLike[str], *, top: int = 5) -> None:
        super().__init__(Answers(path, top=top))

    def records_of(self, module: Any, prediction: dict[str, Any], batch: dict[str, Any]) -> dict[int, Record]:
        """The records of a batch's videos by their numbers."""
        found = prediction | {"short": batch["short"]}
        return make_records(found, prediction["probabilities"].cpu(), self._samples, module.classes, self.answers.top)

    def describe(self, trainer: Trainer) -> dict[str, Any]:
        """What the answers depend on, but for the video, as plain values."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning's data connector
        return describe_answers(
            trainer.lightning_module,
            clips=getattr(data, "predict_clips", None),
            crops=getattr(data, "predict_crops", None),
            top=self.answers.top,
            precision=str(trainer.precision),
        )


class VideoBar(ProgressBar):
    """The progress of a prediction in videos, as far as the first process can tell."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = True

    def enable(self) -> None:
        """Show it, as from the beginning, on the first process alone."""
        self._shown = True

    def disable(self) -> None:
        """Show nothing."""
        self._shown = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with what a prediction before has answered."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning's data connector
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        self._total = len(data.predict_samples)
        done = max((one.done for one in callbacks if isinstance(one, RecordWriter)), default=0)
        self._bar = video_bar(self._total, done, shown=self._shown and trainer.is_global_zero)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """So many more on this process, and about as many on each of the others."""
        count = (len(batch["videos"]) + len(batch["unreadable"])) * trainer.world_size
        self._bar.update(min(count, self._total - self._bar.n))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It stays on the screen."""
        self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As far as it came."""
        if hasattr(self, "_bar"):
            self._bar.close()
