"""PreciseBatchNorm: running statistics that fit the weights they are saved with; SyncNorms, for processes; and what is
said where the statistics of a training are worth little.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_csn.data.order import TrainOrder
from lightning_csn.ema import EMA
from lightning_csn.errors import InputError, check_count
from lightning_csn.models.batchnorm import (
    FrozenBatchNorm3d,
    frozen_norms,
    is_batch_norm,
    is_fresh,
    is_live,
    is_synchronised,
    live_norms,
    measure_statistics,
    sync_norms,
    unsync_norms,
)
from lightning_csn.sharding import holds_whole_weights

_log = logging.getLogger(__name__)

FEWEST_CLIPS = 8  # over which BatchNorm can count statistics that are worth something


class SyncNorms(LayerSync):
    """What `Trainer(sync_batchnorm=True)` does to LitCSN: SyncBatchNorm in training, on CPUs as well.

    Frozen BatchNorms stay frozen; after training there is plain BatchNorm3d again. Lightning's own plugin leaves a
    class behind that is none of torch's, and its layers refuse to run on a CPU.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise, in place."""
        sync_norms(model)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Back to BatchNorm3d, in place."""
        unsync_norms(model)
        return model


class PreciseBatchNorm(Callback):
    """Counts the running statistics of BatchNorm anew before each validation, and at the end of epochs without one.

    What training leaves in them is an average over weights that were still moving, and over noisy small batches. This
    runs `batches` of the training data, of the order of the epoch, through the network as it is (of the averaged
    weights where there is an EMA) and takes their mean and variance: see `measure_statistics`. All processes take part,
    and all get the same. Training itself is not touched by it: it normalises by its own batches, and meets the same
    videos with the same random choices. MixUp and CutMix have no part in it, for no test has any. Checkpoints that are
    written afterwards hold what was counted.

    What was frozen in training stays as it is: by freeze_bn, by GradualUnfreezing, or in eval mode for another reason.
    For one device and for DDP.

    batches: of each process, and at most an epoch. 200 are what the recipes of PyTorchVideo and PySlowFast take.
    """

    def __init__(self, batches: int = 200) -> None:
        self.batches = check_count("batches", batches)
        self._counted: int | None = None  # steps that had been made by then
        self._live: list[str] = []  # the BatchNorms that normalised the last batch of training by itself

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """InputError for strategies under which the network cannot be run by itself."""
        self._counted = None
        if stage == "fit" and not holds_whole_weights(trainer.strategy):
            raise InputError(
                f"PreciseBatchNorm works on one device and with DDP, not with {type(trainer.strategy).__name__}, under "
                "which a process holds only a part of the weights; leave it out, or take strategy ddp"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is done; InputError for training data that cannot be read a second time."""
        aside(trainer.train_dataloader)
        if not trainer.is_global_zero:
            return
        if all(isinstance(norm, FrozenBatchNorm3d) for norm in pl_module.modules() if is_batch_norm(norm)):
            _log.warning("PreciseBatchNorm has nothing to count: every BatchNorm is frozen (freeze_bn)")
        else:
            batches = f"{self.batches} batch{'es' * (self.batches != 1)}"
            _log.info("statistics of BatchNorm are counted anew before each validation, over up to %s", batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See which BatchNorms are live: in validation all are in eval mode."""
        modules = pl_module.get_submodule("network").named_modules()
        self._live = [name for name, module in modules if module.training and is_live(module)]

    def state_dict(self) -> dict[str, Any]:
        """Which BatchNorms are live, for a run that goes on with a validation."""
        return {"live": self._live}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `state_dict` gave it."""
        self._live = list(state_dict["live"])

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count, if this is a validation during training; an EMA has put its weights in by now."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._count(trainer, pl_module, swapped=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count, unless the weights are still those of the last time; checkpoints are written after this."""
        if self._counted != trainer.global_step:
            self._count(trainer, pl_module, swapped=False)

    def _count(self, trainer: Trainer, pl_module: LightningModule, *, swapped: bool) -> None:
        self._counted = trainer.global_step
        if not self._live:
            return
        with (
            self._network(trainer, pl_module, swapped=swapped) as network,
            isolate_rng(),  # a loader draws a number from torch's
            trainer.precision_plugin.val_step_context(),
        ):
            batches = self._batches(trainer, pl_module, next(network.parameters()).device)
            clips = measure_statistics(network, batches, self._live)
        if clips == 0:
            _log.warning("BatchNorm: no clip to count statistics from; they stay as they were")

    @contextlib.contextmanager
    def _network(self, trainer: Trainer, pl_module: LightningModule, *, swapped: bool) -> Iterator[nn.Module]:
        """The network that is validated and saved: of the averages, where there are some."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
        averaging = next((one for one in callbacks if isinstance(one, WeightAveraging)), None)
        if isinstance(averaging, EMA):
            with averaging.averages_in(pl_module):
                yield pl_module.get_submodule("network")
            return
        average = None if averaging is None else averaging._average_model
        if averaging is not None and swapped and callbacks.index(averaging) < callbacks.index(self):
            average = None  # its hook came first: the model has the averages by now
        yield (pl_module if average is None else average.module).get_submodule("network")

    def _batches(self, trainer: Trainer, pl_module: Any, device: Any) -> Iterator[Tensor]:
        """Normalised clips (N, C, T, H, W) of the training data."""
        count = int(min(self.batches, trainer.num_training_batches))
        for batch in itertools.islice(aside(trainer.train_dataloader), count):
            batch = pl_module._on_before_batch_transfer(batch)
            batch = trainer.strategy.batch_to_device(batch)
            clips = pl_module.normalise(batch["clips"].transpose(0, 1).flatten(0, 1))
            yield clips.to(device)


def aside(loader: Any) -> DataLoader[Any]:
    """A loader of the same batches, which training will not count as used. InputError for what is no DataLoader."""
    if not isinstance(loader, DataLoader):
        raise InputError(f"PreciseBatchNorm needs a torch DataLoader to train from, got {type(loader).__name__}")
    options: dict[str, Any] = {
        "collate_fn": loader.collate_fn,
        "num_workers": loader.num_workers,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "pin_memory": loader.pin_memory,
    }
    if isinstance(loader.dataset, IterableDataset):
        return DataLoader(loader.dataset, batch_size=loader.batch_size, drop_last=loader.drop_last, **options)
    if loader.batch_size is None and loader.batch_sampler is not None:  # given in place of a size
        return DataLoader(loader.dataset, batch_sampler=copy.copy(loader.batch_sampler), **options)
    sampler = copy.copy(loader.sampler)
    if isinstance(sampler, TrainOrder):
        sampler.position = 0  # of a whole epoch, where it was taken up in the middle
    return DataLoader(
        loader.dataset, batch_size=loader.batch_size, sampler=sampler, drop_last=loader.drop_last, **options
    )


def warn_of_norms(network: nn.Module, clips: int, processes: int) -> None:
    """Log what is wrong with the BatchNorms of a network that trains on so many clips at once in each process."""
    norms = live_norms(network)
    alone = any(not is_synchronised(norm) for norm in norms)
    together = clips if alone else clips * processes
    if norms and together < FEWEST_CLIPS:
        remedies = ["--model.freeze_bn stats, which normalises by those of the pretrained weights", "larger batches"]
        if processes > 1 and alone:
            remedies.append("--trainer.sync_batchnorm true, which counts over all processes")
        _log.warning(
            "BatchNorm counts its statistics over %d clip%s at a time, which are too few (below %d): they are mostly "
            "noise, and a test normalises by others than training did. What would do: %s. Batches that are only "
            "accumulated do not count",
            together,
            "s" * (together != 1),
            FEWEST_CLIPS,
            "; or ".join(remedies),
        )
    frozen = frozen_norms(network)
    if frozen and all(is_fresh(norm) for norm in frozen):
        _log.warning(
            "BatchNorm is frozen (freeze_bn) at the statistics of a fresh network, mean 0 and variance 1, which fit no "
            "weights: freeze_bn is for pretrained ones"
        )
