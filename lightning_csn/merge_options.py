"""Which option of LitCSN wins: what a checkpoint holds and what was given by hand go in, and one set of options out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_csn.errors import InputError

# Options of LitCSN that are facts about the weights: another value needs other weights.
WEIGHTS = ("architecture", "num_classes", "classes", "network", "origin")
# ... but these options of `network` may change from run to run.
FREE_NETWORK_OPTIONS = ("dropout", "drop_path", "norm_momentum", "head_pooling", "head_average")
# Options of LitCSN of which null means none, and how LitCSN holds that; of the others it means: as the weights are.
NONE_OF_IT: dict[str, Any] = {
    "class_weights": None,
    "lr_batch": None,
    "optimizer_options": {},
    "stage_lrs": {},
    "teacher": None,
}
# Options whose values live on in the optimiser's and the scheduler's state, so that resuming would ignore new ones.
OPTIMISER = (
    "optimizer",
    "lr",
    "layer_decay",
    "head_lr",
    "stage_lrs",
    "lr_batch",
    "momentum",
    "weight_decay",
    "decay_norms",
    "optimizer_options",
    "schedule",
    "schedule_interval",
    "warmup_epochs",
    "warmup_start",
    "lr_end",
    "milestones",
    "gamma",
    "freeze_bn",
)


def merge_settings(
    held: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    typed: set[str],
    defaults: Mapping[str, Any],
    resume: bool,
) -> dict[str, Any]:
    """Options of LitCSN from a checkpoint (`held`) and by hand (`given`, of which `typed` on the command line).

    What was given by hand wins. Where it cannot, InputError names both values: the weights decide WEIGHTS, and when a
    run is resumed its optimiser goes on as it was. A config file that fit saved names every option, so that there a
    null (but for NONE_OF_IT), or the default for one of WEIGHTS, counts as not said. `clip` and `network` may be given
    in part.

    >>> merge_settings({"lr": 0.1, "num_classes": 4}, {"lr": 0.2}, typed={"lr"}, defaults={}, resume=False)
    {'lr': 0.2, 'num_classes': 4, 'pretrained': None}
    """
    merged = dict(held)
    for name, value in given.items():
        if name == "pretrained" or (value is None and name not in NONE_OF_IT):
            continue
        if name in WEIGHTS and name not in typed and value == defaults.get(name):
            continue
        before = held.get(name, defaults.get(name) if name in OPTIMISER else None)
        if name in NONE_OF_IT:
            value, before = (NONE_OF_IT[name] if one is None else one for one in (value, before))
        if name == "network":
            before = before or {}
            for option, new in value.items():
                if option not in FREE_NETWORK_OPTIONS and option in before and before[option] != new:
                    raise contradiction(f"network.{option}", new, before[option])
            merged[name] = {**before, **value}
        elif name == "clip":
            merged[name] = {**(before or {}), **value}
        elif name in WEIGHTS and name in held and value != before:
            raise contradiction(name, value, before)
        elif resume and name in OPTIMISER and listed(value) != listed(before):
            raise InputError(
                f"--model.{name} {value}: the run to go on with has {name} {before}, and its optimiser goes on as it "
                "was; for others start a new run, in another --trainer.default_root_dir or without --resume, and "
                "with --model.pretrained in place of --ckpt_path for its weights"
            )
        else:
            merged[name] = value
    merged["pretrained"] = None  # the weights come from the checkpoint
    return merged


def contradiction(name: str, given: Any, held: Any) -> InputError:
    """The message for an option that only other weights could have."""
    return InputError(f"--model.{name} {given}: the weights of the checkpoint were made with {name} {held}")


def listed(value: Any) -> Any:
    """Tuples as the lists that a checkpoint or a config makes of them."""
    return list(value) if isinstance(value, tuple) else value
