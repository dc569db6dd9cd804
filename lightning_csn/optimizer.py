"""Optimisers and learning rates of a training: which parameters learn how fast, and how that changes over the epochs.

The options are those of LitCSN, as plain values; `options` is a mapping with all of them. A network has the parts of
PARTS: its stem, four stages and its head.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning, BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lightning_csn.errors import InputError, check_choice, check_count, check_number
from lightning_csn.models.batchnorm import frozen_norms, live_norms

_log = logging.getLogger(__name__)

PARTS = ("stem", "stage1", "stage2", "stage3", "stage4", "head")  # from the pixels to the classes
SCHEDULES = ("cosine", "steps", "constant")
INTERVALS = ("step", "epoch")


def check_rates(options: Mapping[str, Any]) -> None:
    """Raise InputError for options of optimiser and learning rates that make no sense."""
    schedule = options["schedule"]
    check_choice("schedule", schedule, SCHEDULES)
    check_choice("schedule_interval", options["schedule_interval"], INTERVALS)
    if schedule == "steps" and not options["milestones"]:
        raise InputError("schedule 'steps' needs milestones: the epochs after which lr is multiplied by gamma")
    for name in ("lr", "head_lr", "weight_decay", "warmup_epochs", "gamma"):
        check_number(name, options[name], 0)
    for milestone in options["milestones"]:
        check_number("each of milestones", milestone, 0)
    for name in ("momentum", "warmup_start", "layer_decay", "lr_end"):
        check_number(name, options[name], 0, 1)
    if options["lr_end"] and schedule != "cosine":
        raise InputError(f"lr_end is where schedule 'cosine' ends, and schedule {schedule!r} has no such place")
    if options["lr_batch"] is not None:
        check_count("lr_batch", options["lr_batch"])
    stages = PARTS[:-1]
    for part, multiplier in options["stage_lrs"].items():
        if part not in stages:
            instead = "; that of the head is head_lr" if part == "head" else ""
            raise InputError(f"stage_lrs has no {part!r}{instead}; there are: {', '.join(stages)}")
        check_number(f"stage_lrs of {part}", multiplier, 0)


def rate_multipliers(
    layer_decay: float = 1.0, head_lr: float = 1.0, stage_lrs: Mapping[str, float] | None = None
) -> dict[str, float]:
    """By which number each part of the network multiplies the learning rate.

    layer_decay: from each part to the one before it, beginning at 1 after stage4. stage_lrs: other numbers.

    >>> rate_multipliers(layer_decay=0.5, head_lr=10)
    {'stem': 0.03125, 'stage1': 0.0625, 'stage2': 0.125, 'stage3': 0.25, 'stage4': 0.5, 'head': 10}
    >>> rate_multipliers(stage_lrs={"stem": 0.0})
    {'stem': 0.0, 'stage1': 1.0, 'stage2': 1.0, 'stage3': 1.0, 'stage4': 1.0, 'head': 1.0}
    """
    stages = PARTS[:-1]
    multipliers = {part: layer_decay ** (len(stages) - i) for i, part in enumerate(stages)}
    return multipliers | dict(stage_lrs or {}) | {"head": head_lr}


def part_of(parameter: str) -> str:
    """The part of the network that the parameter of a name is in; what is in none of them learns as the head does.

    >>> part_of("stage2.0.conv.weight"), part_of("head.bias"), part_of("adapter.weight")
    ('stage2', 'head', 'head')
    """
    part = parameter.partition(".")[0]
    return part if part in PARTS else "head"


def parameter_groups(network: nn.Module, options: Mapping[str, Any], lr: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: of each part's parameters, apart with and without weight decay if these are to differ.

    Each has its learning rate, lr times the part's multiplier, as its own `lr`, which every scheduler of torch
    respects, and a `name` for LearningRateMonitor. Where all parts learn alike there are no parts. All parameters are
    in, those that are frozen too: what is unfrozen later needs no other groups. But for BatchNorm of which all
    stays as it was (freeze_bn).
    """
    multipliers = rate_multipliers(options["layer_decay"], options["head_lr"], options["stage_lrs"])
    alike = set(multipliers.values()) == {1.0}
    found: dict[tuple[str, str], list[nn.Parameter]] = {}
    norms = (*live_norms(network), *frozen_norms(network)) if options.get("freeze_bn") == "all" else ()
    left_out = {id(parameter) for norm in norms for parameter in norm.parameters()}
    for name, parameter in network.named_parameters():
        if id(parameter) in left_out:
            continue
        decays = options["decay_norms"] or not (parameter.ndim <= 1 or name.endswith(".bias"))
        decay = "" if options["decay_norms"] else "decay" if decays else "no_decay"
        found.setdefault(("" if alike else part_of(name), decay), []).append(parameter)
    groups = []
    for part, decay in sorted(found, key=lambda key: (key[0] and PARTS.index(key[0]), key[1] == "decay")):
        group: dict[str, Any] = {"params": found[part, decay], "lr": lr * (1.0 if alike else multipliers[part])}
        if decay == "no_decay":
            group["weight_decay"] = 0.0
        if part or decay:
            group["name"] = "/".join(word for word in (part, decay) if word)
        groups.append(group)
    return groups


def create_optimizer(network: nn.Module, options: Mapping[str, Any], scale: float = 1.0) -> torch.optim.Optimizer:
    """The optimiser from timm's list, with `scale` times the learning rates of the options.

    Raises InputError for a name that is not in the list, or options that the optimiser does not take.
    """
    import timm.optim  # takes seconds, and only training needs it

    name = options["optimizer"].lower()
    names = [str(known) for known in timm.optim.list_optimizers()]
    if name.split("_")[-1] not in names:  # what stands before is a wrapper, lookahead_
        raise InputError(f"no optimiser {name!r}; there are: {', '.join(names)}")
    further = dict(options["optimizer_options"])
    if name == "sgd":
        further.setdefault("nesterov", False)  # timm's sgd has it, the published recipes do not
    lr = options["lr"] * scale
    try:
        return timm.optim.create_optimizer_v2(
            parameter_groups(network, options, lr),
            opt=name,
            lr=lr,
            weight_decay=options["weight_decay"],
            momentum=options["momentum"],
            **further,
        )
    except (TypeError, ValueError) as error:  # an option that it does not have, or a value out of its range
        raise InputError(f"optimizer {name!r} cannot be used with {options['optimizer_options']}: {error}") from error


def clips_per_step(trainer: L.Trainer) -> int:
    """How many clips a step of the optimiser learns from, on all devices together.

    Raises InputError where neither the data module nor the loader says how many are in a batch.
    """
    data: Any = getattr(trainer, "datamodule", None)
    batch_size = getattr(data, "batch_size", None) or getattr(trainer.train_dataloader, "batch_size", None)
    if batch_size is None:
        raise InputError(
            "lr_batch: the training data does not say how many clips a batch has (batch_size); leave lr_batch out and "
            "give the lr for your batches"
        )
    # Not world_size: processes that share a model work on the same clips.
    replicas = getattr(trainer.strategy, "distributed_sampler_kwargs", {}).get("num_replicas", 1)
    return int(batch_size * getattr(data, "train_clips", 1) * replicas * trainer.accumulate_grad_batches)


def batch_scale(options: Mapping[str, Any], trainer: L.Trainer) -> float:
    """By how much the learning rates are multiplied for the clips of a step; 1 without lr_batch."""
    return 1.0 if options["lr_batch"] is None else clips_per_step(trainer) / options["lr_batch"]


def configure(
    network: nn.Module, options: Mapping[str, Any], trainer: L.Trainer
) -> tuple[torch.optim.Optimizer, RateSchedule]:
    """The optimiser of a training, and what sets its learning rates; the log says those that are not `lr`.

    Raises InputError where the schedule needs an end, or epochs of a known length, that the training has not, and where
    a search for lr or batch size is to begin in a run that goes on.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    for callback in callbacks:
        if trainer.ckpt_path is not None and isinstance(callback, LearningRateFinder | BatchSizeFinder):
            name = type(callback).__name__  # it loads a checkpoint of its own, and then nothing else is loaded
            raise InputError(f"{name} would lose the state of the run that is to go on; leave it out of a resumed run")
    trainer.fit_loop.setup_data()  # without it, the length of an epoch is known only sometimes
    scale = batch_scale(options, trainer)
    optimizer = create_optimizer(network, options, scale)
    if trainer.is_global_zero:
        lr = options["lr"] * scale
        if options["lr_batch"] is not None:
            clips, batch = clips_per_step(trainer), options["lr_batch"]
            _log.info("learning rate: %g = %g x %d clips a step / %d", lr, options["lr"], clips, batch)
        multipliers = rate_multipliers(options["layer_decay"], options["head_lr"], options["stage_lrs"])
        if set(multipliers.values()) != {1.0}:
            _log.info("learning rates: %s", ", ".join(f"{part} {lr * by:g}" for part, by in multipliers.items()))
    return optimizer, RateSchedule(optimizer, options, trainer)


def length_of_epoch(trainer: L.Trainer, options: Mapping[str, Any]) -> float:
    """How many steps of the optimiser an epoch has; InputError where the schedule needs an end that there is not."""
    steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if options["schedule"] == "cosine" and not 0 < steps < math.inf:
        raise InputError("schedule 'cosine' needs an end: pass max_epochs or max_steps to the Trainer")
    if not math.isinf(batches):
        return math.ceil(batches / trainer.accumulate_grad_batches)
    if options["warmup_epochs"] or options["schedule"] == "steps":
        raise InputError("the training data has no length, so that epochs of warm-up or milestones mean nothing")
    if options["schedule_interval"] == "epoch":
        raise InputError("the training data has no length, so that its one epoch needs schedule_interval 'step'")
    return float(steps if steps > 0 else math.inf)  # one long epoch


class RateSchedule(LRScheduler):
    """Learning rates by the time in epochs, whatever number of steps an epoch has.

    A checkpoint holds the time, so that a run goes on at the same place of its schedule if its epochs have another
    number of steps from then on, as on another number of devices. (Schedules of torch count steps.)

    options: those of LitCSN. Raises InputError where they need an end, or epochs of a known length, that the training
    has not.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, options: Mapping[str, Any], trainer: L.Trainer) -> None:
        self._options, self._lr = options, options["lr"]
        self.scale = batch_scale(options, trainer)
        self.steps_per_epoch = length_of_epoch(trainer, options)
        self._start = (0, 0.0)  # a step, and its time, since which an epoch has had as many steps as it has
        self.epochs = self._end(trainer, 0.0)
        super().__init__(optimizer)

    @property
    def interval(self) -> str:
        """When it is to be stepped: after every step of the optimiser, or every epoch."""
        return str(self._options["schedule_interval"])

    @property
    def time(self) -> float:
        """Epochs since the start of training."""
        if self.interval == "epoch":
            return float(self.last_epoch)
        step, time = self._start
        return time + (self.last_epoch - step) / self.steps_per_epoch

    def get_lr(self) -> list[Any]:
        """The learning rate of each group now."""
        names = ("schedule", "warmup_epochs", "warmup_start", "milestones", "gamma", "lr_end")
        factor = rate_factor(self.time, epochs=self.epochs, **{name: self._options[name] for name in names})
        return [base * factor for base in self.base_lrs]

    def follow(self, trainer: L.Trainer) -> None:
        """Go on with what the training is now: epochs of another length, batches of another size, or another lr.

        These change between the making of the schedule and the start of training where a run is resumed on other
        devices, and where BatchSizeFinder or LearningRateFinder have been at work.
        """
        steps, scale, lr = length_of_epoch(trainer, self._options), batch_scale(self._options, trainer), self._lr
        if steps != self.steps_per_epoch:
            self._start, self.steps_per_epoch = (self.last_epoch, self.time), steps
        self.epochs = self._end(trainer, self.time)
        self._lr = self._options["lr"]
        ratio = scale / self.scale * (self._lr / lr if lr else 1.0)
        self.scale = scale
        if ratio != 1 and trainer.is_global_zero:
            _log.info("learning rate: %g, %g times what it was", self._lr * scale, ratio)
        self.base_lrs = [base * ratio for base in self.base_lrs]
        self._last_lr = self.get_lr()
        for group, base, rate in zip(self.optimizer.param_groups, self.base_lrs, self._last_lr, strict=True):
            group["initial_lr"], group["lr"] = base, rate

    def _end(self, trainer: L.Trainer, time: float) -> float:
        """When the training ends that is at `time` now."""
        ends = [] if trainer.max_epochs in (None, -1) else [float(trainer.max_epochs)]
        if trainer.max_steps != -1:
            ends.append(time + (trainer.max_steps - trainer.global_step) / self.steps_per_epoch)
        return min(ends, default=math.inf)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the time, and what the learning rates are made of."""
        own = ("_options", "_lr", "epochs")  # are the model's and the Trainer's
        return {name: value for name, value in super().state_dict().items() if name not in own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, or a LambdaLR, which checkpoints of version 0.1 have."""
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "lr_lambdas"})


def check_callbacks(trainer: L.Trainer, options: Mapping[str, Any]) -> None:
    """Raise InputError for callbacks of Lightning that would not do what they say with this model and its options."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
    alike = set(rate_multipliers(options["layer_decay"], options["head_lr"], options["stage_lrs"]).values()) == {1.0}
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, BaseFinetuning):
            raise InputError(
                f"{name} does not work with this model: the BatchNorms of what it freezes go on learning, and the "
                "schedule of the learning rate knows nothing of parameters that it adds later; use GradualUnfreezing "
                "of lightning_csn, or stage_lrs with 0 for what shall not learn"
            )
        if trainer.state.fn != TrainerFn.FITTING or not isinstance(callback, LearningRateFinder):
            continue
        if not alike:
            raise InputError(
                f"{name} tries one rate for the whole network, which layer_decay, head_lr and stage_lrs tell apart; "
                "find lr without these options, then train with them"
            )
        if options["lr_batch"] is not None:
            raise InputError(f"{name} finds the lr for the batches as they are; leave lr_batch out")


def rate_factor(
    epoch: float,
    *,
    epochs: float,
    schedule: str,
    warmup_epochs: float = 0.0,
    warmup_start: float = 0.1,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    lr_end: float = 0.0,
) -> float:
    """Share of the highest learning rate at a time `epoch` (0 to `epochs`, fractions too).

    A linear warm-up from `warmup_start`, then half a cosine over what is left, down to `lr_end`, or the steps of
    `milestones`.

    >>> [rate_factor(epoch, epochs=6, schedule="cosine", warmup_epochs=2) for epoch in (0, 1, 2, 4, 6)]
    [0.1, 0.55, 1.0, 0.5, 0.0]
    >>> [rate_factor(epoch, epochs=6, schedule="steps", milestones=[2, 5], gamma=0.5) for epoch in range(6)]
    [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    """
    if epoch < warmup_epochs:
        return warmup_start + (1 - warmup_start) * epoch / warmup_epochs
    if schedule == "cosine":
        done = (epoch - warmup_epochs) / (epochs - warmup_epochs) if epochs > warmup_epochs else 1.0
        return lr_end + (1 - lr_end) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    if schedule == "steps":
        return gamma ** sum(epoch >= milestone for milestone in milestones)
    return 1.0
