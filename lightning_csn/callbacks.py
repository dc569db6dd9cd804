"""What a run says of its memory, and what becomes of videos that cannot be read."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_csn.errors import SharedError
from lightning_csn.processes import from_all, gather

_log = logging.getLogger(__name__)

BATCHES_BETWEEN_CHECKS = 32  # of several processes, for which each waits for the others
MemoryQuery = Callable[[torch.device], tuple[int, int] | None]


def gpu_memory(device: torch.device) -> tuple[int, int] | None:
    """The most bytes that tensors have had on a GPU so far, and the bytes it has; None for other devices."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory


class PeakMemory(Callback):
    """Prints, after the first epoch of a run and its validation, how much of the GPU's memory was needed.

    What later epochs need is the same. On a CPU nothing is printed: there, the operating system tells. query: gives the
    bytes at the peak and in all, or None where there is nothing to tell.
    """

    def __init__(self, query: MemoryQuery = gpu_memory) -> None:
        self.query = query
        self._told = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print, once a run; of several processes, the first one's."""
        if self._told:
            return
        self._told = True
        found = self.query(pl_module.device)
        if found is not None:
            peak, total = (count / 1e9 for count in found)
            pl_module.print(f"peak memory of the first epoch: {peak:.2f} GB of {total:.1f} GB on {pl_module.device}")


class UnreadableVideos(Callback):
    """Counts the videos that cannot be read, ends the run where they are too many, and lists them at its end.

    VideoDataModule adds one to its Trainer, for its options on_unreadable and unreadable_limit. All processes end
    together: they compare their counts at the end of an epoch and now and then before it (with the policy `raise` as
    often as all of them have batches).

    write_list: whether unreadable.csv, with stage, path and message, is written to the folder of the run at its end,
        if there are any or the folder has one of an earlier run.
    """

    FILE = "unreadable.csv"

    def __init__(self, *, write_list: bool = False) -> None:
        self.write_list = write_list
        self._messages: dict[tuple[str, int], str] = {}  # of (stage, number of the video), of this process
        self._common_batches = 0  # how many batches of this evaluation every process has

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A run begins with none."""
        self._messages = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count; every process has as many batches in training."""
        self._count(trainer, "train", batch, batch_idx, together=True)
        count = sum(stage == "train" for stage, _ in self._messages)
        if count:
            pl_module.log("unreadable", float(count), prog_bar=True, logger=False, on_step=True, on_epoch=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out how many batches every process has."""
        sanity = trainer.sanity_checking
        self._agree(trainer, trainer.num_sanity_val_batches if sanity else trainer.num_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out how many batches every process has."""
        self._agree(trainer, trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out how many batches every process has."""
        self._agree(trainer, trainer.num_predict_batches)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count."""
        self._count(trainer, "val", batch, batch_idx, together=batch_idx < self._common_batches)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count."""
        self._count(trainer, "test", batch, batch_idx, together=batch_idx < self._common_batches)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count."""
        self._count(trainer, "predict", batch, batch_idx, together=batch_idx < self._common_batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run if there were too many."""
        self._check(trainer, "train")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run if there were too many, before anything is said of the others."""
        self._check(trainer, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run if there were too many, before anything is said of the others."""
        self._check(trainer, "test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run if there was one that must not be."""
        self._check(trainer, "predict")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """List them."""
        self._write(trainer, gather(trainer, self._messages))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """List what the first process knows of, or all if this callback itself ended the run."""
        if self._messages:
            self._write(trainer, self._messages)

    def _count(self, trainer: Trainer, stage: str, batch: Any, batch_idx: int, *, together: bool) -> None:
        """Keep the messages of a batch. together: whether every process is at this batch."""
        self._messages |= {(stage, number): message for number, message in batch["unreadable"]}
        each = 1 if trainer.world_size == 1 or _policy(trainer, stage) == "raise" else BATCHES_BETWEEN_CHECKS
        if together and (batch_idx + 1) % each == 0:
            self._check(trainer, stage)

    def _check(self, trainer: Trainer, stage: str) -> None:
        """Raise SharedError, on all processes at once, where a stage has more unreadable videos than it may."""
        found = sum(one == stage for one, _ in self._messages)
        if trainer.world_size > 1:
            found = int(
                trainer.strategy.reduce(torch.tensor(found, device=trainer.strategy.root_device), reduce_op="sum")
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning's data connector
        raises = _policy(trainer, stage) == "raise"
        count = len(data.samples_of(stage))
        allowed = 0 if raises else count if stage == "predict" else data.unreadable_limit * count
        if found <= allowed:
            return
        self._messages = gather(trainer, self._messages)  # a video may be on several processes
        messages = [message for (one, _), message in sorted(self._messages.items()) if one == stage]
        if len(messages) <= allowed:
            return
        if raises:
            raise SharedError(messages[0])
        raise SharedError(
            f"{len(messages)} of the {count} videos of the {stage} split cannot be read, more than the share of "
            f"{data.unreadable_limit:g} that unreadable_limit allows; 'lightning-csn check-data' finds all of them, "
            f"to be mended or taken out; the first: {messages[0]}"
        )

    def _agree(self, trainer: Trainer, batches: list[int | float]) -> None:
        self._common_batches = min(from_all(trainer, int(min(sum(batches), 2**31))))

    def _write(self, trainer: Trainer, messages: dict[tuple[str, int], str]) -> None:
        """Write the list, in the first process."""
        if not self.write_list or not trainer.is_global_zero:
            return
        # Not trainer.log_dir, for which all processes wait for each other.
        folder = Path(getattr(trainer.logger, "log_dir", None) or trainer.default_root_dir)
        path = folder / self.FILE
        if not messages and not path.exists():
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("stage", "path", "message"))
            for (stage, number), message in sorted(messages.items()):
                video = data.samples_of(stage)[number].path
                writer.writerow((stage, video, message.removeprefix(f"{video}: ")))
        if messages:
            shown = os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else path
            print(f"unreadable: {len(messages)} video{'s' * (len(messages) != 1)}, listed in {shown}")


def _policy(trainer: Trainer, stage: str) -> str:
    policy: str = trainer.datamodule.on_unreadable[stage]  # type: ignore[attr-defined]
    return policy


class UnreadableLog:
    """Logs the unreadable videos of each stage, every one once in a run however often it comes."""

    def __init__(self) -> None:
        self._told: set[tuple[str, int]] = set()  # stage and number

    def tell(self, stage: str, unreadable: dict[int, tuple[str, bool]]) -> None:
        """Log those that were not logged before. unreadable: as `read_unreadable` gives them."""
        new = {number: unreadable[number] for number in sorted(unreadable) if (stage, number) not in self._told}
        self._told |= {(stage, number) for number in new}
        for blank, fate in ((False, "left out"), (True, "with gray clips in their place")):
            lines = [f"  video {number}: {message}" for number, (message, is_blank) in new.items() if is_blank is blank]
            if lines:
                _log.warning("unreadable videos of the %s split, %s:\n%s", stage, fate, "\n".join(lines))


def read_unreadable(batch: dict[str, Any]) -> dict[int, tuple[str, bool]]:
    """The unreadable videos of a batch: number, message, and whether a gray clip of the batch stands for it."""
    blank = set(batch["videos"][batch["blank"]].tolist()) if "blank" in batch else set()
    return {number: (message, number in blank) for number, message in batch["unreadable"]}
