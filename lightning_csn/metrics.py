"""VideoScores: what a test of videos says, to the last digit, on any number of processes.

Shapes: B videos in a batch, N videos in all, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score
from torchmetrics.utilities import dim_zero_cat

from lightning_csn.errors import InputError


class VideoScores(Metric):
    """Top-1, top-5, macro F1 and loss over videos, each counted once.

    Every video comes with its number within the split. `compute` brings the videos of all processes together,
    drops the repeats that samplers add to give every process something to do, and puts the rest in the order of
    their numbers: the result does not depend on who saw which video, or when.

    `compute` gives a dict of tensors on the CPU, where the sums are the same everywhere:

    - top1, top5: share of the videos whose label is the likeliest class, or one of the five (of all K, if fewer).
    - macro_f1: mean of the F1 of each class that is the label or the answer of any video.
    - loss: mean of -log(probability of the label), natural logarithm.
    - videos: how many were scored. Without any, the four above are nan.
    - unreadable: how many could not be read; they are in none of the other numbers.
    - short: how many of the scored ones are shorter than a clip, so that their last frame was repeated.

    num_classes: K, 2 or more. Raises InputError in `compute` where a label is none of 0 to K-1.

    >>> scores = VideoScores(num_classes=3)
    >>> scores.update(torch.tensor([7, 2]), torch.tensor([0, 1]), torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]))
    >>> scores.update(torch.tensor([7]), torch.tensor([0]), torch.tensor([[0.5, 0.25, 0.25]]), unreadable=[4])
    >>> {name: round(value.item(), 4) for name, value in scores.compute().items()}
    {'top1': 0.5, 'top5': 1.0, 'macro_f1': 0.3333, 'loss': 1.4979, 'videos': 2, 'unreadable': 1, 'short': 0}
    """

    full_state_update = False
    videos: list[Tensor]
    labels: list[Tensor]
    probabilities: list[Tensor]
    unreadable: list[Tensor]
    short: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"scores need 2 classes or more, got {num_classes}")
        self.num_classes = num_classes
        for name in ("videos", "labels", "probabilities", "unreadable", "short"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        videos: Tensor,
        labels: Tensor,
        probabilities: Tensor,
        unreadable: Sequence[int] = (),
        short: Sequence[int] = (),
    ) -> None:
        """Add a batch: numbers (B,), labels (B,), probabilities (B, K), and the numbers of unreadable and short videos.

        B may be 0.
        """
        if probabilities.shape != (len(videos), self.num_classes) or len(labels) != len(videos):
            raise ValueError(
                f"(B,), (B,) and (B, {self.num_classes}) expected, "
                f"got {tuple(videos.shape)}, {tuple(labels.shape)} and {tuple(probabilities.shape)}"
            )
        self.videos.append(videos.long())
        self.labels.append(labels.long())
        self.probabilities.append(probabilities.detach().float())
        self.unreadable.append(torch.tensor(list(unreadable), dtype=torch.long, device=videos.device))
        self.short.append(torch.tensor(list(short), dtype=torch.long, device=videos.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Bring the videos of all processes together, as torchmetrics does."""
        # A process without any video would send torchmetrics' default, an empty float vector, to others that wait
        # for whole numbers and for rows of K.
        self.update(*self._nothing())
        super().sync(*args, **kwargs)

    def _nothing(self) -> tuple[Tensor, Tensor, Tensor]:
        numbers = torch.empty(0, dtype=torch.long, device=self.device)
        return numbers, numbers, torch.empty(0, self.num_classes, device=self.device)

    def compute(self) -> dict[str, Tensor]:
        """The scores of all videos of all processes; see the class."""
        videos, labels, probabilities, unreadable, short = (
            dim_zero_cat(state).cpu()
            for state in (self.videos, self.labels, self.probabilities, self.unreadable, self.short)
        )
        first = first_of_each(videos)
        videos, labels, probabilities = videos[first], labels[first], probabilities[first]
        unreadable = unreadable[~torch.isin(unreadable, videos)]
        counted = {"videos": videos, "unreadable": unreadable, "short": short}
        counts = {name: torch.tensor(len(numbers.unique())) for name, numbers in counted.items()}
        if len(videos) == 0:
            return dict.fromkeys(("top1", "top5", "macro_f1", "loss"), torch.tensor(torch.nan)) | counts
        outside = videos[(labels < 0) | (labels >= self.num_classes)]
        if len(outside):
            raise InputError(
                f"{len(outside)} of {len(videos)} videos have no label among 0 to {self.num_classes - 1} and cannot be "
                f"scored, the first is video number {outside[0].item()} of its split"
            )
        k = self.num_classes
        tiny = torch.finfo(torch.float32).tiny  # a probability that has run down to 0 costs 87, not infinity
        return {
            "top1": multiclass_accuracy(probabilities, labels, k, average="micro", top_k=1),
            "top5": multiclass_accuracy(probabilities, labels, k, average="micro", top_k=min(5, k)),
            "macro_f1": multiclass_f1_score(probabilities, labels, k, average="macro"),
            "loss": F.nll_loss(probabilities.double().clamp_min(tiny).log(), labels).float(),
        } | counts


def first_of_each(numbers: Tensor) -> Tensor:
    """Where each number of a vector stands first, in the order of the numbers.

    >>> first_of_each(torch.tensor([5, 3, 5, 1]))
    tensor([3, 1, 0])
    """
    order = numbers.argsort(stable=True)
    ordered = numbers[order]
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return order[is_first]
