"""What training makes smaller: how far answers are from the labels, and from those of a teacher.

Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", NIPS 2014 workshop, arXiv:1503.02531, for the
second. The options are those of LitCSN, as plain values; `options` is a mapping with all of them.

Shapes: N clips, C channels, T frames, H x W pixels, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_csn.clip import ClipSpec
from lightning_csn.errors import InputError, check_number
from lightning_csn.models.batchnorm import is_synchronised, live_norms

_log = logging.getLogger(__name__)

LABELS = {  # by multi_label
    False: "gives each video one class",
    True: "gives a video any number of classes (multi_label)",
}


def training_loss(
    logits: Tensor, targets: Tensor, taught: Tensor | None, options: Mapping[str, Any], weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss of a step, and the distance from the teacher that is a part of it; 0 without one.

    logits (N, K), targets as for `label_loss`, taught: the teacher's logits (N, K), weights (K,) of the classes.
    """
    multi_label = options["multi_label"]
    loss = label_loss(logits, targets, multi_label=multi_label, smoothing=options["label_smoothing"], weights=weights)
    if taught is None:
        return loss, torch.zeros_like(loss)
    distance = distillation_loss(logits, taught, options["distill_temperature"], multi_label=multi_label)
    return (1 - options["distill_weight"]) * loss + options["distill_weight"] * distance, distance


def label_loss(
    logits: Tensor, targets: Tensor, *, multi_label: bool = False, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Cross entropy of logits (N, K), binary with multi_label: a mean over clips, whoever shares the batch.

    targets: numbers of classes (N,) or their shares (N, K); with multi_label (N, K). smoothing: share of the target
    that is spread over all classes; with multi_label, over yes and no of each. weights: (K,), of the clips of a class;
    with multi_label, of its yes.

    >>> logits, targets = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    >>> weights = torch.tensor([1.0, 3.0])
    >>> [round(label_loss(logits, targets, weights=some).item(), 3) for some in (None, weights)]
    [0.41, 1.103]
    """
    weights = None if weights is None else weights.to(logits)
    if multi_label:
        targets = targets * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    losses = F.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing, reduction="none")
    return losses.mean()  # torch's own mean of weighted losses depends on who shares a batch


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float, *, multi_label: bool) -> Tensor:
    """How far the answers (N, K) are from the teacher's: 0 where they agree.

    The Kullback-Leibler divergence of the softened answers, a mean over clips, times temperature squared, so that
    gradients stay as large; with multi_label, of the yes or no of each class, a mean over classes too.

    >>> same = torch.tensor([[1.0, -2.0, 0.5]])
    >>> [round(distillation_loss(same, same + 1, 2.0, multi_label=several).item(), 3) for several in (False, True)]
    [0.0, 0.111]
    """
    soft, goal = logits.float() / temperature, taught.float() / temperature
    if multi_label:
        share = goal.sigmoid()
        own = F.binary_cross_entropy_with_logits(goal, share)  # what is left when they agree
        loss = F.binary_cross_entropy_with_logits(soft, share) - own
    else:
        loss = F.kl_div(soft.log_softmax(-1), goal.log_softmax(-1), reduction="batchmean", log_target=True)
    return loss * temperature**2


def loss_of_nothing(network: nn.Module, nothing: Tensor, clip: ClipSpec) -> Tensor:
    """A loss of 0, of which every parameter has a gradient of 0, of a batch (0, C, T, H, W) without a readable video.

    Other processes still wait for this one's gradients of all parameters, and each SyncBatchNorm of theirs for this
    one's part in the statistics: in the order in which they come from the network, so that it has to run, if with no
    clips.
    """
    if any(is_synchronised(norm) for norm in live_norms(network)):
        loss: Tensor = network(nothing).sum()
        return loss
    if hasattr(network, "unshard"):  # where it is sharded, they wait for it to run
        training = [module for module in network.modules() if module.training]
        network.eval()  # the statistics of BatchNorm are of videos alone
        gray = torch.zeros((1, 3, clip.frames, clip.crop, clip.crop), device=nothing.device)
        loss = 0 * network(gray).sum()
        for module in training:
            module.training = True
        return loss
    return torch.stack([0 * parameter.sum() for parameter in network.parameters()]).sum()


def check_labels(labels: Tensor, num_classes: int, *, multi_label: bool) -> None:
    """InputError unless the labels of a batch are (N,), or with multi_label (N, K)."""
    expected = (len(labels), num_classes) if multi_label else (len(labels),)
    if tuple(labels.shape) != expected:
        raise InputError(f"the model {LABELS[multi_label]}, so that labels are {expected}, got {tuple(labels.shape)}")


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Numbers of classes (N,) as float (N, K)."""
    return F.one_hot(labels, num_classes).float()


def check_class_weights(weights: Sequence[float] | str | None, num_classes: int) -> None:
    """InputError unless they are None, "balanced", or a number of 0 or more for each class."""
    if weights is None or weights == "balanced":
        return
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise InputError(f"class_weights must be 'balanced' or a list of {num_classes} numbers, got {weights!r}")
    if len(weights) != num_classes:
        raise InputError(f"class_weights has {len(weights)} numbers, and there are {num_classes} classes")
    for weight in weights:
        check_number("each of class_weights", weight, 0)
    if not any(weights):
        raise InputError("class_weights are all 0: nothing would be learned")


def warn_of_balance(balance: float, weights: Sequence[float] | str | None, *, multi_label: bool) -> None:
    """Log that classes of unequal size are made up for twice: by the `balance` of the data, and by class weights.

    "balanced" with multi_label is another remedy: it weighs the yes of a class against its no.
    """
    if not balance or weights is None or (weights == "balanced" and multi_label):
        return
    if weights != "balanced" and len(set(weights)) == 1:
        return
    given = (
        f"--data.balance {balance:g} and --model.class_weights {'balanced' if weights == 'balanced' else '(a list)'}"
    )
    twice = "the list weighs them more again, so that they may count too much"
    once = "the weights, counted in what it shows, " + (
        "are all 1" if balance == 1 else "make up for the rest, as either of them would alone"
    )
    _log.warning(
        "%s are the same remedy for classes of unequal size: balance shows rare ones more often, and %s. Take one of "
        "them: leave out --data.balance, or --model.class_weights",
        given,
        once if weights == "balanced" else twice,
    )


def weights_for(data: Any, num_classes: int, *, multi_label: bool) -> Tensor:
    """Class weights (K,) that balance the training videos of a data module.

    Raises InputError where it does not tell how often each class comes, or has other classes.
    """
    counts = getattr(data, "train_counts", None)
    if counts is None:
        raise InputError(
            "class_weights 'balanced' needs to know how often each class comes, which VideoDataModule tells; give "
            "class_weights as a list"
        )
    if len(counts) != num_classes:
        raise InputError(
            f"class_weights 'balanced': the data counts {len(counts)} classes, the model has {num_classes}"
        )
    return torch.tensor(balanced_weights(counts, len(data.samples_of("train")) if multi_label else None))


def balanced_weights(counts: Sequence[float], videos: int | None = None) -> list[float]:
    """Weights with which every class counts alike, 1 in the mean over the clips; 1 for a class that is not there.

    counts: clips of each class. videos: of all classes, where a video may have several; a class's yes and no then count
    alike.

    >>> balanced_weights([30, 10, 0]), balanced_weights([5, 1], videos=10)
    ([0.6666666666666666, 2.0, 1.0], [1.0, 9.0])
    """
    if videos is not None:
        return [(videos - count) / count if 0 < count < videos else 1.0 for count in counts]
    classes = sum(count > 0 for count in counts)
    return [sum(counts) / (classes * count) if count > 0 else 1.0 for count in counts]
