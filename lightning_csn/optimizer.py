"""Optimisers and learning rates of a training: which optimiser, and how its learning rate goes up and down.

The options are those of LitCSN, as plain values; `options` is a mapping with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import nn

from lightning_csn.errors import InputError


def create_optimizer(network: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimiser from timm's list. InputError for a name that is not in it, or options that it does not take."""
    import timm.optim  # takes seconds, and only training needs it

    name = options["optimizer"].lower()
    names = [str(known) for known in timm.optim.list_optimizers()]
    if name.split("_")[-1] not in names:  # what stands before is a wrapper, lookahead_
        raise InputError(f"no optimiser {name!r}; there are: {', '.join(names)}")
    further = dict(options["optimizer_options"])
    if name == "sgd":
        further.setdefault("nesterov", False)  # timm's sgd has it, the published recipes do not
    try:
        return timm.optim.create_optimizer_v2(
            network.parameters() if options["decay_norms"] else network,
            opt=name,
            lr=options["lr"],
            weight_decay=options["weight_decay"],
            momentum=options["momentum"],
            filter_bias_and_bn=True,  # where it is given the network
            **further,
        )
    except (TypeError, ValueError) as error:  # an option that it does not have, or a value out of its range
        raise InputError(f"optimizer {name!r} cannot be used with {options['optimizer_options']}: {error}") from error


def create_schedule(
    optimizer: torch.optim.Optimizer, options: Mapping[str, Any], trainer: L.Trainer
) -> torch.optim.lr_scheduler.LRScheduler:
    """What sets the learning rate after every step of a training.

    Raises InputError where the schedule needs an end, or epochs of a known length, that the training has not.
    """
    trainer.fit_loop.setup_data()  # without it, the next lines know the length of an epoch only sometimes
    steps = trainer.estimated_stepping_batches
    batches = trainer.num_training_batches
    if options["schedule"] == "cosine" and not 0 < steps < math.inf:
        raise InputError("schedule 'cosine' needs an end: pass max_epochs or max_steps to the Trainer")
    if math.isinf(batches) and (options["warmup_epochs"] or options["schedule"] == "steps"):
        raise InputError("the training data has no length, so that epochs of warm-up or milestones mean nothing")
    if math.isinf(batches):
        steps_per_epoch = float(steps if steps > 0 else math.inf)  # one long epoch
    else:
        steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)

    def factor(step: int) -> float:
        return rate_factor(
            step / steps_per_epoch,
            epochs=steps / steps_per_epoch,
            schedule=options["schedule"],
            warmup_epochs=options["warmup_epochs"],
            warmup_start=options["warmup_start"],
            milestones=options["milestones"],
            gamma=options["gamma"],
        )

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def rate_factor(
    epoch: float,
    *,
    epochs: float,
    schedule: str,
    warmup_epochs: float = 0.0,
    warmup_start: float = 0.1,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> float:
    """Share of the highest learning rate at a time `epoch` (0 to `epochs`, fractions too).

    A linear warm-up from `warmup_start`, then half a cosine over what is left, or the steps of `milestones`.

    >>> [rate_factor(epoch, epochs=6, schedule="cosine", warmup_epochs=2) for epoch in (0, 1, 2, 4, 6)]
    [0.1, 0.55, 1.0, 0.5, 0.0]
    >>> [rate_factor(epoch, epochs=6, schedule="steps", milestones=[2, 5], gamma=0.5) for epoch in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    """
    if epoch < warmup_epochs:
        return warmup_start + (1 - warmup_start) * epoch / warmup_epochs
    if schedule == "cosine":
        done = (epoch - warmup_epochs) / (epochs - warmup_epochs) if epochs > warmup_epochs else 1.0
        return (1 + math.cos(math.pi * min(done, 1.0))) / 2
    if schedule == "steps":
        return gamma ** sum(epoch >= milestone for milestone in milestones)
    return 1.0
