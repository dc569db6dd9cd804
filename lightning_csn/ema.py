"""EMA: training whose result is a running average of its weights.

After every step of the optimiser the average moves a little towards the weights: a = d a + (1 - d) w. The average is
what is validated, kept in checkpoints, and left in the model at the end; training goes on with the weights themselves.
Polyak, Juditsky: "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 30 (1992).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from lightning_csn.errors import InputError, check_count, check_number
from lightning_csn.models.checkpoints import AVERAGING_KEY
from lightning_csn.processes import take_buffers_of_first
from lightning_csn.sharding import holds_whole_weights

_log = logging.getLogger(__name__)


class EMA(EMAWeightAveraging):
    """Lightning's EMAWeightAveraging, which cannot lose a run.

    Validation, checkpoints and the trained model have the averages, of the running statistics too. A checkpoint holds
    the weights beside them (it is larger by one copy), and a run that was stopped goes on as if it had not been. What
    is different from Lightning's:

    * As long as nothing was averaged the weights themselves are validated, saved and left in the model; Lightning's
      has those that training began with. A `start_step` that training does not reach is refused, and one that it did
      not reach after all (it was stopped early) is told.
    * The average forgets its first steps (`warm_up`). With a decay of 0.999 alone, those of a run of a hundred steps
      would be nine tenths of its result.
    * A test of a checkpoint after training, with the same Trainer, is of the averages, as its validation was; and a
      ModelCheckpoint with save_weights_only keeps the averages.
    * A checkpoint that is saved in the middle of a validation, or at the end of training, holds each in its place.
    * All processes have the same averages of running statistics, and all are kept in 32 bits, on the device.

    decay: how much of the average stays at a step, 0 to 1 (not included).
    warm_up: whether that is at most (1 + n) / (10 + n) after n averaged steps, as in TensorFlow.
    start_step: of the optimiser, before which nothing is averaged.
    every_steps: of the optimiser, after which the average moves.
    device: where it is kept, such as cpu; default is where the model is.

    >>> import lightning as L
    >>> trainer = L.Trainer(callbacks=[EMA(0.999)], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        warm_up: bool = True,
        start_step: int = 0,
        every_steps: int = 1,
        device: str | None = None,
    ) -> None:
        check_number("decay", decay, 0, 1)
        if decay == 1:
            raise InputError("decay must be below 1, where nothing would ever be learned")
        check_count("start_step", start_step, least=0)
        check_count("every_steps", every_steps)
        super().__init__(
            device, decay=decay, update_every_n_steps=every_steps, update_starting_at_step=start_step or None
        )
        self.settings = {"decay": decay, "warm_up": warm_up, "start_step": start_step, "every_steps": every_steps}
        self._kept: dict[str, Tensor] = {}  # the weights, while the model has the averages

    @property
    def updates(self) -> int:
        """How many steps are in the average."""
        return 0 if self._average_model is None else int(self._average_model.n_averaged)

    def decay_at(self, updates: int) -> float:
        """How much of an average of so many steps stays at the next.

        >>> [round(EMA(0.999).decay_at(updates), 3) for updates in (0, 8, 98, 100_000)]
        [0.1, 0.5, 0.917, 0.999]
        """
        decay: float = self.settings["decay"]
        return min(decay, (1 + updates) / (10 + updates)) if self.settings["warm_up"] else decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make room for the average where training begins; what another run left is forgotten.

        Raises InputError for a strategy that cuts the weights into pieces.
        """
        self._average_model, self._kept = None, {}
        if stage != "fit":
            return
        if not holds_whole_weights(trainer.strategy):
            raise InputError(
                f"EMA needs whole weights on every device, which {type(trainer.strategy).__name__} cuts into pieces; "
                "train with --trainer.strategy ddp, or without EMA"
            )
        self._latest_update_step = 0
        own = self._device
        self._device = own or trainer.strategy.root_device  # the model itself is not there yet
        super().setup(trainer, pl_module, stage)
        self._device = own

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is done; InputError if training ends before it begins."""
        start, steps = self.settings["start_step"], trainer.estimated_stepping_batches
        if start >= steps and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning
            raise InputError(f"EMA begins at step {start}, but training has only {steps} steps; lower start_step")
        for _, average, current in self._pairs(pl_module):
            if average.stride() != current.stride():  # laid out since `setup`; one kernel moves those that are alike
                average.data = torch.empty_like(current, dtype=average.dtype, device=average.device).copy_(average)
        if trainer.is_global_zero:
            _log.info("EMA: averages of the weights are validated and kept (decay %g)", self.settings["decay"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average after a step of the optimiser."""
        step = trainer.global_step
        if step > self._latest_update_step and self.should_update(step_idx=step - 1):
            self._move(pl_module)
            self._latest_update_step = step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._lend(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train the weights."""
        self._take_back(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model; say so where there is none."""
        self._lend(pl_module)
        if not self.updates and trainer.is_global_zero:
            _log.warning(
                "EMA: training ended after %d steps, before step %d at which averaging begins: nothing was averaged, "
                "and the weights are those of the last step",
                trainer.global_step,
                self.settings["start_step"],
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A validation that fails leaves the weights in the model, as a training that fails does."""
        if self._average_model is not None:
            self._take_back(pl_module)

    @contextlib.contextmanager
    def averages_in(self, pl_module: LightningModule) -> Iterator[None]:
        """In here the model has the averages, if there are any. What happens to its buffers happens to theirs."""
        lent = bool(self._kept)
        self._lend(pl_module)
        try:
            yield
        finally:
            if not lent:
                self._take_back(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """With the settings, for `lightning-csn fit --ckpt_path` to go on with."""
        return super().state_dict() | self.settings

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The averages in place of the weights, and those beside them."""
        self.put_averages(checkpoint)

    def put_averages(self, checkpoint: dict[str, Any], *, weights_too: bool = True) -> None:
        """Exchange the weights of a checkpoint for their averages, if there are any. weights_too: keep both."""
        if not self.updates:
            return
        average = self._average_model
        assert average is not None
        weights = checkpoint["state_dict"]
        if weights_too:
            # Lightning's layout. While the model has the averages, state_dict has what was changed in them since.
            checkpoint["current_model_state"] = {name: self._kept.get(name, value) for name, value in weights.items()}
            checkpoint["averaging_state"] = {"n_averaged": average.n_averaged}
        if not self._kept:
            checkpoint["state_dict"] = average.module.state_dict()
        checkpoint[AVERAGING_KEY] = {"decay": self.settings["decay"], "updates": self.updates}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with both in training; all else has the averages, which are the weights of the checkpoint."""
        average = self._average_model
        if average is None or "current_model_state" not in checkpoint:
            return  # averaging begins with the next step
        average.module.load_state_dict(checkpoint["state_dict"])
        average.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
        pl_module.load_state_dict(checkpoint["current_model_state"])

    def _move(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        updates = self.updates
        averages, weights = [], []
        with torch.no_grad():
            for _, average, current in self._pairs(pl_module):
                if updates == 0 or not average.is_floating_point():
                    average.copy_(current)
                else:
                    averages.append(average)
                    weights.append(current.to(average))
            if averages:
                torch._foreach_lerp_(averages, weights, 1 - self.decay_at(updates))
        self._average_model.n_averaged += 1

    def _lend(self, pl_module: LightningModule) -> None:
        """Give the model the averages, if there are any and it has them not."""
        if not self.updates or self._kept:
            return
        assert self._average_model is not None
        # Every process has averaged the running statistics of its own batches.
        take_buffers_of_first(self._average_model.module)
        with torch.no_grad():
            for name, average, current in self._pairs(pl_module):
                self._kept[name] = current.detach().clone()
                current.copy_(average)

    def _take_back(self, pl_module: LightningModule) -> None:
        """Give the model the weights again, and the averages what was done to the buffers meanwhile."""
        if not self._kept:
            return
        buffers = {name for name, _ in pl_module.named_buffers()}
        with torch.no_grad():
            for name, average, current in self._pairs(pl_module):
                if name in buffers and not torch.equal(current, average.to(current)):
                    average.copy_(current)
                current.copy_(self._kept[name])
        self._kept = {}

    def _pairs(self, pl_module: LightningModule) -> list[tuple[str, Tensor, Tensor]]:
        """Name, average and weight of all that is averaged. By name: layers may be exchanged after `setup`."""
        assert self._average_model is not None
        averages, weights = (m.state_dict(keep_vars=True) for m in (self._average_model.module, pl_module))
        if averages.keys() != weights.keys():
            other = sorted(averages.keys() ^ weights.keys())
            raise InputError(f"EMA: the model has other tensors than when training was set up: {', '.join(other[:5])}")
        return [(name, average, weights[name]) for name, average in averages.items()]
