"""Distillation: a network learns from the answers of another, larger one, as well as from labels.

Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", NIPS 2014 workshop, arXiv:1503.02531. Both see
the same clip, mixed if it is mixed. Logits are divided by a temperature, which brings out what the teacher holds likely
beside its first answer: see `distillation_loss` in loss.py.

Shapes: N clips, C channels, T frames, H x W pixels, K classes.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from lightning_csn.clip import ClipSpec
from lightning_csn.errors import InputError
from lightning_csn.loss import LABELS
from lightning_csn.models import checkpoints
from lightning_csn.models.pixels import colours, lay_out_weights
from lightning_csn.runner import is_export

_log = logging.getLogger(__name__)


class Teacher:
    """A network that answers and never learns. It is no part of the module that has it, nor of its checkpoints.

    source: name, hf://owner/repo, address, file or folder (see checkpoints.load). clip, classes, multi_label: of the
    network that learns, to which the answers are brought: classes by their names, colours by mean and std.

    Raises InputError where the two do not answer the same question.
    """

    def __init__(self, source: str, *, clip: ClipSpec, classes: list[str] | None, num_classes: int, multi_label: bool):
        if is_export(source):
            raise InputError(f"teacher {source}: an exported file; give the weights that it was made of")
        loaded = checkpoints.load(source)
        record, own = loaded.checkpoint, loaded.checkpoint.clip_spec()
        if record.multi_label != multi_label:
            raise InputError(
                f"teacher {source}: it {LABELS[record.multi_label]}, and the model {LABELS[multi_label]}; take another"
            )
        self._order = order_of_classes(source, record.classes, classes, loaded.network.num_classes, num_classes)
        self.network = loaded.network.requires_grad_(requires_grad=False)
        # What was normalised for the one network, (p - mean) / std, as the other takes it.
        (mean, std), (own_mean, own_std) = colours(clip), colours(own)
        self._scale, self._shift = std / own_std, (mean - own_mean) / own_std
        _log.info("teacher: %s, %s, of the same %d classes", source, loaded.network.architecture, num_classes)
        other = [line for line in own.differences(clip) if line.split()[0] not in ("mean", "std")]
        if other:
            _log.warning("the teacher sees clips of the model, which are not as its own (%s)", "; ".join(other))

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        """A copy of who learns has the same teacher."""
        return self

    def to(self, device: torch.device) -> None:
        """Go where the clips are."""
        self.network.to(device)
        lay_out_weights(self.network, device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        if self._order is not None:
            self._order = self._order.to(device)

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        """Logits (N, K), in the order of the model's classes, of clips (N, C, T, H, W) normalised for the model."""
        own = inputs * self._scale.to(inputs) + self._shift.to(inputs)
        logits: Tensor = self.network(own.to(next(self.network.parameters()).dtype))
        return logits if self._order is None else logits[:, self._order]


def order_of_classes(
    source: str, theirs: list[str] | None, ours: list[str] | None, their_count: int, our_count: int
) -> Tensor | None:
    """Where each of our classes is among the teacher's; None where they are in the same order, or neither has names.

    >>> order_of_classes("a.ckpt", ["up", "down"], ["down", "up"], 2, 2)
    tensor([1, 0])
    """
    if theirs is None and ours is None and their_count == our_count:
        return None
    if theirs is None or ours is None:
        raise InputError(
            f"teacher {source}: {their_count} outputs {'without' if theirs is None else 'with'} names, and the model "
            f"has {our_count} {'without' if ours is None else 'with'} names; classes are matched by name: give classes "
            "to LitCSN.from_pretrained or to the model, and save_pretrained"
        )
    if sorted(theirs) != sorted(ours):
        lacking, more = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        found = [f"{what} {', '.join(names[:5])}" for what, names in (("lacks", lacking), ("has", more)) if names]
        raise InputError(
            f"teacher {source}: its classes are not the model's, it {' and '.join(found)}; fine-tune it on these "
            "videos first"
        )
    return None if theirs == ours else torch.tensor([theirs.index(name) for name in ours])
