"""The scores of a test, written while it runs: a test that was stopped goes on with them; scores.py reads them."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_csn.data.samples import Sample
from lightning_csn.errors import InputError
from lightning_csn.fingerprints import describe_videos, hash_weights
from lightning_csn.processes import gather, on_first_process
from lightning_csn.scores import About, merge, pack, parts_folder, read_arrays, write_arrays

_log = logging.getLogger(__name__)


class ScoresWriter(Callback):
    """Writes the scores of each view of a test into `path` (.npz), on any number of processes; see the module.

    While the test runs, each process writes what it has found as parts into the folder `path`.parts, of which the file
    is made at the end. A test that was stopped, by whatever means, and is started again takes them up: VideoDataModule
    leaves out the videos that are there, and all figures are those of a test in one go, on any number of processes
    before and after: to the last digit where a batch is one video, see LitCSN. What could not be read is tried again.
    Scores of another network, of other videos or of another protocol are refused; files of the same names that hold
    something else by now are not noticed.

    videos_per_part, seconds_per_part: a part is written after so many videos or so long, whichever is first.
    """

    takes_up = "test"  # see videos_done

    def __init__(
        self, path: str | os.PathLike[str], *, videos_per_part: int = 64, seconds_per_part: float = 60.0
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".npz" or self.path.is_dir():
            raise InputError(f"{path}: scores are written into one file, whose name ends in .npz")
        self.videos_per_part = videos_per_part
        self.seconds_per_part = seconds_per_part
        self._forget()

    @property
    def folder(self) -> Path:
        """Where the parts of a test lie while it runs."""
        return parts_folder(self.path)

    def _forget(self) -> None:
        self._about: About | None = None  # of the test that is running
        self._paths: dict[int, str] = {}
        self._done: set[int] = set()
        self._found: dict[str, Tensor] | None = None  # of the done ones, on the first process
        self._written: dict[int, bool] = {}  # numbers of the videos that this process wrote
        self._rows: list[dict[str, Tensor]] = []
        self._unreadable: dict[int, str] = {}
        self._run, self._parts = uuid.uuid4().hex[:12], 0
        self._flushed = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is left of a test before."""
        self._forget()

    def videos_done(self, trainer: Trainer, samples: Sequence[Sample] | None) -> set[int]:
        """Take up what was found before, and give the numbers of the videos that need not be seen again.

        All processes call this together, with the weights in place. samples: of the split; None where the data does not
        tell. Raises InputError where the scores that are there are not of this test.
        """
        self._paths = {sample.video: sample.path for sample in samples or ()}

        def take_up() -> tuple[About, set[int]]:
            about, sources = describe_test(trainer, samples), self._sources()
            if not sources:
                return about, set()
            if samples is None:
                raise InputError(
                    f"{sources[0]} holds scores already, and this data does not tell its videos, so that nobody knows "
                    "if they are the same; give another file for the scores, or delete that one"
                )
            stored = merge(sources, about)
            found = {"videos": stored.videos, "labels": stored.labels, "short": stored.short}
            found["probabilities"] = stored.probabilities(about.average)
            self._found = {name: tensor[~stored.blank] for name, tensor in found.items()}
            done = set(self._found["videos"].tolist())
            _log.info("%s: %d of %d videos are scored already", self.path, len(done), len(self._paths))
            return about, done

        self._about, self._done = on_first_process(trainer, take_up)
        return self._done

    def _sources(self) -> list[Path]:
        return ([self.path] if self.path.exists() else []) + sorted(self.folder.glob("*.npz"))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Data that did not ask what is done has everything seen."""
        if self._about is None:
            self.videos_done(trainer, None)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was found before counts as if it were found now."""
        if self._found is not None:
            module: Any = pl_module
            found = {name: tensor.to(pl_module.device) for name, tensor in self._found.items()}
            short = found["videos"][found["short"]].tolist()
            module.test_scores.update(found["videos"], found["labels"], found["probabilities"], short=short)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what test_step gave of a batch, and write a part if it is time."""
        videos = outputs["videos"].cpu()
        row = {name: outputs[name].cpu() for name in ("labels", "logits", "short")}
        row |= {"videos": videos, "blank": outputs.get("blank", torch.zeros_like(videos, dtype=torch.bool)).cpu()}
        new = torch.tensor([number not in self._done for number in videos.tolist()], dtype=torch.bool)
        self._rows.append({name: tensor[new] for name, tensor in row.items()})
        self._unreadable |= dict(outputs["unreadable"])
        count = sum(len(rows["videos"]) for rows in self._rows) + len(self._unreadable)
        if count >= self.videos_per_part or (count and time.monotonic() - self._flushed > self.seconds_per_part):
            self._write_part(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What was found before something went wrong is kept."""
        self._write_part(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the file of the parts of all processes."""
        self._write_part(trainer)
        written = gather(trainer, self._written)
        on_first_process(trainer, lambda: self._finish(written))

    def kept(self) -> str:
        """What a test that was stopped has left, in words."""
        videos = {int(video) for path in self._sources() for video in read_arrays(path, ["videos"])["videos"]}
        if not videos:
            return "no video was scored yet: nothing is kept"
        known = f" of {len(self._paths)}" if self._paths else ""
        where = self.folder if self.folder.is_dir() else self.path
        return f"the scores of {len(videos)}{known} videos are kept in {where}; the same command again goes on with it"

    def _write_part(self, trainer: Trainer) -> None:
        rows, unreadable = self._rows, self._unreadable
        self._rows, self._unreadable, self._flushed = [], {}, time.monotonic()
        if not rows or self._about is None:
            return
        if len(views := {row["logits"].shape[1] for row in rows}) > 1:
            raise InputError(f"scores need as many views of one video as of another, got {sorted(views)}")
        arrays = {name: torch.cat([row[name] for row in rows]).numpy() for name in rows[0]}
        # By process first, so that of a video that two have seen the same one counts as in VideoScores.
        part = self.folder / f"{trainer.global_rank:05d}-{self._run}-{self._parts:06d}.npz"
        write_arrays(part, pack(arrays, unreadable, self._about))
        self._parts += 1
        self._written |= dict.fromkeys(arrays["videos"].tolist(), True)

    def _finish(self, written: Mapping[int, bool]) -> None:
        """One file of what is there."""
        assert self._about is not None
        scores = merge(self._sources(), self._about)
        if missing := sorted(set(written) - set(scores.videos.tolist())):
            raise InputError(
                f"{self.folder}: other processes wrote the scores of {len(missing)} videos, the first of them number "
                f"{missing[0]}, that are not there; put the file where all machines see the same folder"
            )
        names = ("videos", "labels", "logits", "short", "blank")
        arrays = {name: getattr(scores, name).numpy() for name in names}
        paths = [self._paths.get(number, "") for number in scores.videos.tolist()]
        arrays = pack(arrays, scores.unreadable, self._about) | {"paths": np.array(paths, dtype=str)}
        write_arrays(self.path, arrays, self.folder)  # so that nothing is left beside it, whenever the program ends
        try:
            for part in self.folder.iterdir():
                part.unlink()
            self.folder.rmdir()
        except OSError as error:  # the file is there; with the parts beside it, it would be made again
            _log.warning("%s is of no more use and cannot be removed: %s", self.folder, error.strerror)
        count = len(scores.videos)
        _log.info("scores of each view: %s (%d video%s)", self.path, count, "s" * (count != 1))


def videos_done(trainer: Trainer | None, samples: Sequence[Sample]) -> set[int]:
    """Numbers of the videos of a test or prediction that need not be seen again, for a DataModule to leave out.

    Callbacks know, whose `takes_up` is "test" or "predict": a video that one of them wants is seen.
    """
    if trainer is None or not (trainer.testing or trainer.predicting):
        return set()
    stage = "test" if trainer.testing else "predict"
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    writers = [callback for callback in callbacks if getattr(callback, "takes_up", None) == stage]
    done: list[set[int]] = [writer.videos_done(trainer, samples) for writer in writers]
    return set.intersection(*done) if done else set()


def describe_test(trainer: Trainer, samples: Sequence[Sample] | None) -> About:
    """What the test that is about to run is of."""
    module: Any = trainer.lightning_module
    return About(
        network=hash_weights(module.network),
        videos=None if samples is None else describe_videos(samples),
        protocol=module.protocol("test"),
        average=module.hparams["average"],
        classes=module.classes,
        multi_label=module.multi_label,
    )
