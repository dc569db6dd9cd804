"""What is made of the views of videos: their mean, the scores of a test to the last digit, and how both are told; and
what is counted of an epoch of training.

Shapes: B videos in a batch, N videos in all, V views of each, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision, multiclass_accuracy, multiclass_f1_score
from torchmetrics.utilities import dim_zero_cat

from lightning_csn.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

AVERAGES = ("probabilities", "logits")  # what may be averaged over views
COUNTS = ("videos", "unreadable", "blank", "short")  # of VideoScores


class EpochSums:
    """What is summed over the steps of an epoch of training, by this process: a number for each of NAMES.

    Of clips, how many were trained on, their losses, how many were answered right, and their distances from a teacher;
    of videos, how many were unreadable or short.

    >>> sums = EpochSums()
    >>> sums.add(clips=4, unreadable=1, short=0, loss=6.0, right=3, distance=0.0)
    >>> sums.figures(multi_label=False, taught=False)
    {'train_loss_epoch': 1.5, 'train_unreadable': 1.0, 'train_short': 0.0, 'train_top1': 0.75}
    """

    NAMES = ("clips", "unreadable", "short", "loss", "right", "distance")

    def __init__(self, sums: Sequence[float] = ()) -> None:
        """Begin with these sums, in the order of NAMES; 0 where they are too few, as in older checkpoints."""
        self._sums = torch.tensor(([*sums] + [0.0] * len(self.NAMES))[: len(self.NAMES)])

    def add(self, device: torch.device | None = None, **numbers: float | Tensor) -> None:
        """Add what a step has counted, by name; from then on the sums lie on this device."""
        counted = [
            value.to(device, torch.float32)
            if isinstance(value := numbers[name], Tensor)
            # Made there: a copy of a number would wait for all that the GPU has still to do.
            else torch.full((), value, dtype=torch.float32, device=device)
            for name in self.NAMES
        ]
        self._sums = self._sums.to(device) + torch.stack(counted)

    def of_all(self, trainer: Trainer | None, device: torch.device) -> EpochSums:
        """The sums of all processes, which call this together."""
        sums = self._sums.to(device)
        return EpochSums((sums if trainer is None else trainer.strategy.reduce(sums, reduce_op="sum")).tolist())

    def to_list(self) -> list[float]:
        """In the order of NAMES, for a checkpoint."""
        return self._sums.tolist()

    def figures(self, *, multi_label: bool, taught: bool) -> dict[str, float]:
        """What is logged of an epoch: means over its clips, and numbers of videos."""
        sums = dict(zip(self.NAMES, self.to_list(), strict=True))
        clips = max(sums["clips"], 1)
        means = {"train_loss_epoch": sums["loss"] / clips}
        counts = {"train_unreadable": sums["unreadable"], "train_short": sums["short"]}
        right = {} if multi_label else {"train_top1": sums["right"] / clips}
        return means | counts | right | ({"train_distill": sums["distance"] / clips} if taught else {})


class VideoScores(Metric):
    """Top-1, top-5, macro F1 and loss over videos, each counted once; mAP and loss where a video has several labels.

    Every video comes with its number within the split. `compute` brings the videos of all processes together,
    drops the repeats that samplers add to give every process something to do, and puts the rest in the order of
    their numbers: the result does not depend on who saw which video, or when.

    `compute` gives a dict of tensors on the CPU, where the sums are the same everywhere:

    - top1, top5: share of the videos whose label is the likeliest class, or one of the five (of all K, if fewer).
    - macro_f1: mean of the F1 of each class that is the label or the answer of any video.
    - map: in place of these three with `multi_label`: mean of the average precision (the exact one, without bins) of
      each class that any video has.
    - loss: mean of -log(probability of the label), natural logarithm; with `multi_label` the mean over videos and
      classes of -log(probability of what is true of the class: that the video has it, or has not).
    - videos: how many were scored. Without any, the numbers above are nan.
    - unreadable: how many could not be read. They are in none of the other numbers, but for those in `blank`.
    - blank: how many unreadable ones were scored all the same, by gray clips in their place.
    - short: how many of the scored ones are shorter than a clip, so that their last frame was repeated.

    num_classes: K, 2 or more. Raises InputError in `compute` where a label is none of 0 to K-1 (multi_label: 0 or 1).

    >>> scores = VideoScores(num_classes=3)
    >>> scores.update(torch.tensor([7, 2]), torch.tensor([0, 1]), torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]))
    >>> scores.update(torch.tensor([7]), torch.tensor([0]), torch.tensor([[0.5, 0.25, 0.25]]), unreadable=[4])
    >>> {name: round(value.item(), 4) for name, value in scores.compute().items()}
    {'top1': 0.5, 'top5': 1.0, 'macro_f1': 0.3333, 'loss': 1.4979, 'videos': 2, 'unreadable': 1, 'blank': 0, 'short': 0}
    """

    full_state_update = False
    videos: list[Tensor]
    labels: list[Tensor]
    probabilities: list[Tensor]
    unreadable: list[Tensor]
    blank: list[Tensor]
    short: list[Tensor]

    def __init__(self, num_classes: int, *, multi_label: bool = False) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"scores need 2 classes or more, got {num_classes}")
        self.num_classes = num_classes
        self.multi_label = multi_label
        for name in ("labels", "probabilities", *COUNTS):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        videos: Tensor,
        labels: Tensor,
        probabilities: Tensor,
        unreadable: Sequence[int] = (),
        short: Sequence[int] = (),
        blank: Sequence[int] = (),
    ) -> None:
        """Add a batch: numbers (B,), labels (B,), probabilities (B, K), and the numbers of unreadable and short videos.

        labels: with `multi_label` (B, K), 1 where the video has the class and 0 where not. blank: which of the B videos
        are unreadable ones that gray clips stand for; they need not be named as unreadable. B may be 0.
        """
        b, k = len(videos), self.num_classes
        expected = (b, k) if self.multi_label else (b,)
        if probabilities.shape != (b, k) or labels.shape != expected:
            raise ValueError(
                f"(B,), {'(B, K)' if self.multi_label else '(B,)'} and (B, {k}) expected, "
                f"got {tuple(videos.shape)}, {tuple(labels.shape)} and {tuple(probabilities.shape)}"
            )
        self.videos.append(videos.long())
        self.labels.append(labels.float() if self.multi_label else labels.long())
        self.probabilities.append(probabilities.detach().float())
        for state, numbers in ((self.unreadable, unreadable), (self.blank, blank), (self.short, short)):
            state.append(torch.tensor(list(numbers), dtype=torch.long, device=videos.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Bring the videos of all processes together, as torchmetrics does."""
        # A process without any video would send torchmetrics' default, an empty float vector, to others that wait
        # for whole numbers and for rows of K.
        self.update(*self._nothing())
        super().sync(*args, **kwargs)

    def _nothing(self) -> tuple[Tensor, Tensor, Tensor]:
        numbers = torch.empty(0, dtype=torch.long, device=self.device)
        rows = torch.empty(0, self.num_classes, device=self.device)
        return numbers, rows if self.multi_label else numbers, rows

    def compute(self) -> dict[str, Tensor]:
        """The scores of all videos of all processes; see the class."""
        videos, labels, probabilities, unreadable, blank, short = (
            dim_zero_cat(state).cpu()
            for state in (self.videos, self.labels, self.probabilities, self.unreadable, self.blank, self.short)
        )
        first = first_of_each(videos)
        videos, labels, probabilities = videos[first], labels[first], probabilities[first]
        unreadable = torch.cat([unreadable[~torch.isin(unreadable, videos)], blank])
        numbers = dict(zip(COUNTS, (videos, unreadable, blank, short), strict=True))
        counts = {name: torch.tensor(len(some.unique())) for name, some in numbers.items()}
        if len(videos) == 0:
            names = ("map", "loss") if self.multi_label else ("top1", "top5", "macro_f1", "loss")
            return dict.fromkeys(names, torch.tensor(torch.nan)) | counts
        self._check(videos, labels)
        score = score_several if self.multi_label else score_one
        return score(labels, probabilities) | counts

    def _check(self, videos: Tensor, labels: Tensor) -> None:
        """InputError where videos have no label that could be right or wrong."""
        if self.multi_label:
            wrong, what = ~((labels == 0) | (labels == 1)).all(-1), "labels that are not 0 or 1 for each class"
        else:
            wrong = (labels < 0) | (labels >= self.num_classes)
            what = f"no label among 0 to {self.num_classes - 1}"
        if outside := videos[wrong].tolist():
            raise InputError(
                f"{len(outside)} of {len(videos)} videos have {what} and cannot be scored, "
                f"the first is video number {outside[0]} of its split"
            )


def score_one(labels: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
    """Figures of videos with one label each: labels (N,), probabilities (N, K)."""
    k = probabilities.shape[1]
    return {
        "top1": multiclass_accuracy(probabilities, labels, k, average="micro", top_k=1),
        "top5": multiclass_accuracy(probabilities, labels, k, average="micro", top_k=min(5, k)),
        "macro_f1": multiclass_f1_score(probabilities, labels, k, average="macro"),
        "loss": F.nll_loss(_log(probabilities.double()), labels).float(),
    }


def score_several(labels: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
    """Figures of videos with any number of labels: labels (N, K) of 0 and 1, probabilities (N, K)."""
    precisions = average_precisions(labels, probabilities)
    likely = probabilities.double()
    loss = -(labels * _log(likely) + (1 - labels) * _log(1 - likely)).mean()
    return {"map": precisions[~precisions.isnan()].mean(), "loss": loss.float()}


def average_precisions(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Average precision (K,) of each class over the videos; nan for a class that none has. Both arguments (N, K)."""
    each = [
        binary_average_precision(probabilities[:, k], labels[:, k].int())
        if labels[:, k].any()
        else torch.tensor(torch.nan)
        for k in range(labels.shape[1])
    ]
    return torch.stack(each)


def _log(probabilities: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float32).tiny  # a probability that has run down to 0 costs 87, not infinity
    return probabilities.clamp_min(tiny).log()


def count_right(logits: Tensor, targets: Tensor) -> Tensor:
    """How many clips have their class as the likeliest: logits (N, K), numbers of classes (N,) or their shares (N, K),
    of which the largest counts.
    """
    heavier = targets.argmax(-1) if targets.ndim == 2 else targets
    return (logits.argmax(-1) == heavier).sum()


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


def mean_of_views(logits: Tensor, average: str, *, multi_label: bool = False) -> Tensor:
    """Probabilities (B, K) of videos from the logits (B, V, K) of their views.

    average: probabilities or logits, whichever the mean is taken of. multi_label: each class by itself (sigmoid), not
    one of all (softmax).

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 9.0]]])
    >>> mean_of_views(logits, "probabilities"), mean_of_views(logits, "logits")
    (tensor([[0.2501, 0.7499]]), tensor([[0.0110, 0.9890]]))
    """
    if average == "logits":
        logits = logits.mean(1)
        return logits.sigmoid() if multi_label else logits.softmax(-1)
    return (logits.sigmoid() if multi_label else logits.softmax(-1)).mean(1)


def mean_to_score(logits: Tensor, average: str, *, multi_label: bool = False) -> Tensor:
    """What `mean_of_views` gives, but on the CPU, video by video, and with a double's digits until it is rounded: no
    digit depends on which videos shared a batch, or on whether the logits (B, V, K) came from a network or a file.
    """
    each = [mean_of_views(video[None].double(), average, multi_label=multi_label) for video in logits.detach().cpu()]
    return torch.cat([*each, torch.empty(0, logits.shape[-1], dtype=torch.float64)]).float()


def score_text(stage: str, values: Mapping[str, float]) -> str:
    """The figures of VideoScores in a line.

    >>> score_text("val", {"map": 0.5, "loss": 0.25, "videos": 9, "unreadable": 3, "blank": 2, "short": 0})
    'val: mAP 0.5000, loss 0.2500 of 9 videos (2 of these unreadable: gray clips; 1 more left out; 0 shorter than a clip)'
    """  # noqa: E501
    names = {"top1": "top-1", "top5": "top-5", "macro_f1": "macro F1", "map": "mAP", "loss": "loss"}
    figures = ", ".join(f"{text} {values[name]:.4f}" for name, text in names.items() if name in values)
    videos, unreadable, blank, short = (int(values[name]) for name in COUNTS)
    left_out = unreadable - blank
    fate = f"{left_out} unreadable, left out" if left_out else "none unreadable"
    if blank:
        fate = f"{blank} of these unreadable: gray clips; {f'{left_out} more' if left_out else 'none'} left out"
    return f"{stage}: {figures} of {videos} videos ({fate}; {short} shorter than a clip)"


def view_text(clips: int, crops: int | str) -> str:
    """How a video is seen, in words.

    >>> view_text(10, 3), view_text(1, 1), view_text(2, "full")
    ('10 clips x 3 crops', '1 clip x 1 crop', '2 clips x the full frame')
    """
    cut = "the full frame" if crops == "full" else f"{crops} crop{'s' * (crops != 1)}"
    return f"{clips} clip{'s' * (clips != 1)} x {cut}"


def seen_text(protocol: Mapping[str, Any], views: int) -> str:
    """How videos were seen, in words. protocol: as LitCSN.protocol gives it; views: of each, where the data tells no
    more.

    >>> seen_text({"clips": 10, "crops": 3}, 30), seen_text({"clips": None, "crops": None}, 5)
    ('10 clips x 3 crops', '5 views')
    """
    clips, crops = protocol["clips"], protocol["crops"]
    return view_text(clips, crops) if clips and crops else f"{views} view{'s' * (views != 1)}"


def protocol_text(protocol: Mapping[str, Any], average: str, views: str) -> str:
    """How a number was measured, in words. protocol: as LitCSN.protocol gives it; views: which of them, in words."""
    side = protocol["test_crop"]
    size = f"{side} x {side} pixels" if protocol["crops"] != "full" else f"{protocol['short_side']} pixels short side"
    windows = protocol["head_pooling"]
    pooling = "globally pooled"
    if windows != "global":
        pooling = f"pooled in windows of {' x '.join(map(str, windows))} whose {protocol['head_average']} are averaged"
    over = " over the whole video" if protocol.get("sampling") == "segments" else ""
    return f"{views} of {protocol['frames']} frames{over} of {size}, {pooling}, mean of the views' {average}"
