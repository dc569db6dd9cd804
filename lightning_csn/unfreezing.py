"""GradualUnfreezing: a training that begins with the head, and takes in the network part by part.

Howard and Ruder: "Universal Language Model Fine-tuning for Text Classification", ACL 2018, arXiv:1801.06146, unfreeze
from the last layer to the first, one an epoch. The parts are those of optimizer.PARTS.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_csn.errors import InputError, check_number
from lightning_csn.optimizer import PARTS, part_of
from lightning_csn.sharding import holds_whole_weights

_log = logging.getLogger(__name__)


class GradualUnfreezing(Callback):
    """Trains the head alone at first, then stage4 too, then stage3, and so on to the stem.

    What is frozen is as in eval mode throughout: its weights have no gradient, no decay and no momentum, the statistics
    of its BatchNorms stay, and its dropout is off; it costs no memory and no time on the way back. Once unfrozen, it
    learns at the rate that LitCSN's options (lr, layer_decay, ...) and their schedule give it at that time, and its
    BatchNorms are what freeze_bn makes of them. The optimiser has its groups from the start, so that a run is resumed
    as any other. What was frozen by others, such as `requires_grad_(False)` before training, stays so.

    It works on one device and under DDP, which is made anew for the parameters that join, as it averages the gradients
    of those alone that it began with.

    epochs: After how many epochs each part is unfrozen: a number, for one part after another, or a mapping such as
        {"stage4": 2, "stage3": 5}, for which what it does not name stays frozen throughout.

    >>> GradualUnfreezing(2).epochs
    {'stage4': 2, 'stage3': 4, 'stage2': 6, 'stage1': 8, 'stem': 10}
    """

    def __init__(self, epochs: float | dict[str, float] = 1) -> None:
        stages = PARTS[-2::-1]  # from the head to the pixels
        if isinstance(epochs, Mapping):
            for part, epoch in epochs.items():
                if part not in stages:
                    instead = ", which learns from the start" if part == "head" else ""
                    raise InputError(f"epochs has no {part!r}{instead}; there are: {', '.join(stages)}")
                check_number(f"epochs of {part}", epoch, 0)
            self.epochs = {part: epochs[part] for part in stages if part in epochs}
        else:
            check_number("epochs", epochs, 0)
            self.epochs = {part: epochs * (i + 1) for i, part in enumerate(stages)}
        self._frozen: dict[str, list[nn.Parameter]] = {}  # part, and those of its parameters that are frozen by this
        self._modes: dict[str, list[str]] = {}  # ... and the names of its modules that are to be in train mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze all but the head, before DDP looks for what there is to average."""
        if stage != "fit":
            return
        if not holds_whole_weights(trainer.strategy):
            raise InputError(
                f"GradualUnfreezing works on one device and under DDP; {type(trainer.strategy).__name__} puts "
                "parameters together that are frozen at different times; use stage_lrs of LitCSN with 0 for parts that "
                "shall not learn"
            )
        network = network_of(pl_module)
        self._restore(network)
        for part in PARTS[:-1]:
            mine = [p for name, p in network.named_parameters() if part_of(name) == part and p.requires_grad]
            self._frozen[part] = mine
            for parameter in mine:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            self._restore(network)
            raise InputError("GradualUnfreezing begins with the head, but all of its parameters are frozen")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Unfreeze what a run that goes on had unfrozen; and say what comes when."""
        network = network_of(pl_module)
        for part in self._frozen:
            modules = network.get_submodule(part).named_modules(prefix=part)
            self._modes[part] = [name for name, module in modules if module.training]
        if trainer.is_global_zero:
            plan = [f"{part} after epoch {epoch:g}" for part, epoch in self.epochs.items()]
            plan += [f"{part} never" for part in PARTS[-2::-1] if part not in self.epochs]
            _log.info("unfreezing: %s", ", ".join(plan))
            most = trainer.max_epochs
            late = [part for part, epoch in self.epochs.items() if most not in (None, -1) and epoch >= most]
            if late:
                _log.warning("frozen to the end, as training ends after epoch %d: %s", most, ", ".join(late))
        self._unfreeze(trainer, network)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Unfreeze what it is time for."""
        self._unfreeze(trainer, network_of(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """See that what is frozen is so, whoever has put the network into train mode."""
        self._hold(network_of(pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing stays frozen after training."""
        self._restore(network_of(pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Nothing stays frozen after training."""
        self._restore(network_of(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """What is unfrozen when, so that Lightning misses this callback where a run goes on without it."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See that the run goes on as it began; what is unfrozen follows from the epoch."""
        if state_dict["epochs"] != self.epochs:
            raise InputError(
                f"GradualUnfreezing with epochs {self.epochs}: the run to go on with has {state_dict['epochs']}; to "
                "train its weights otherwise start a new run, with pretrained"
            )

    def _unfreeze(self, trainer: Trainer, network: nn.Module) -> None:
        due = [part for part in self._frozen if trainer.current_epoch >= self.epochs.get(part, float("inf"))]
        learns = False
        for part in due:
            for parameter in self._frozen[part]:
                parameter.requires_grad_(True)
                learns = True
            self._set_modes(network, part)
            del self._frozen[part]
        self._hold(network)
        if due and trainer.is_global_zero:
            _log.info("unfrozen: %s", ", ".join(due))
        if learns and isinstance(trainer.strategy, DDPStrategy):
            average_anew(trainer.strategy)

    def _hold(self, network: nn.Module) -> None:
        for part in self._frozen:
            module = network.get_submodule(part)
            if any(one.training for one in module.modules()):
                module.eval()

    def _set_modes(self, network: nn.Module, part: str) -> None:
        for name in self._modes.pop(part, []):  # not the modules, which may have been exchanged (SyncBatchNorm)
            network.get_submodule(name).training = True

    def _restore(self, network: nn.Module) -> None:
        for part, parameters in self._frozen.items():
            for parameter in parameters:
                parameter.requires_grad_(True)
            self._set_modes(network, part)
        self._frozen = {}


def network_of(model: LightningModule) -> nn.Module:
    """LitCSN's network; InputError for a model that has none with these parts."""
    network = getattr(model, "network", None)
    if not isinstance(network, nn.Module) or not all(isinstance(getattr(network, p, None), nn.Module) for p in PARTS):
        raise InputError(f"GradualUnfreezing needs a LitCSN, whose network has {', '.join(PARTS)}")
    return network


def average_anew(strategy: DDPStrategy) -> None:
    """Let DDP average the gradients of all parameters that have some by now."""
    if not isinstance(strategy.model, DistributedDataParallel):
        return
    strategy.model = strategy.lightning_module
    gc.collect()  # with the old one go its hooks on the parameters
    strategy.configure_ddp()
