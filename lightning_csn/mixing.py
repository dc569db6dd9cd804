"""MixUp and CutMix on batches of clips: each clip is mixed with the one before it, and so is its label.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412. Yun et al., "CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019, arXiv:1905.04899.

Shapes: N clips, C channels, T frames, H x W pixels, K classes. A batch is (N, C, T, H, W), its targets are (N, K).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_csn.errors import InputError, check_count, check_number

if TYPE_CHECKING:
    from torchvision.transforms import v2


def make_mixer(num_classes: int, mixup: float, cutmix: float) -> Mixer | None:
    """A Mixer of all batches; None where nothing is to be mixed."""
    return Mixer(num_classes, mixup=mixup, cutmix=cutmix) if mixup or cutmix else None


class Mixer:
    """MixUp, CutMix or, drawn for each batch, one of the two.

    num_classes: K.
    mixup, cutmix: alpha of the Beta(alpha, alpha) that the shares are drawn from; 0 for none of it.
    share: how probably a batch is mixed at all.

    Raises InputError where a number makes no sense, or where there is nothing to mix by. Random numbers come from
    torch's global generator.
    """

    def __init__(self, num_classes: int, *, mixup: float = 0.0, cutmix: float = 0.0, share: float = 1.0) -> None:
        from torchvision.transforms import v2  # takes a second, which a model that mixes nothing does without

        check_count("num_classes", num_classes)
        check_number("mixup", mixup, 0)
        check_number("cutmix", cutmix, 0)
        check_number("share", share, 0, 1)
        if mixup == cutmix == 0:
            raise InputError("mixup and cutmix are both 0: nothing would be mixed")
        self.num_classes = num_classes
        self.share = share
        self._ways: list[v2.Transform] = []
        if mixup:
            self._ways.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
        if cutmix:
            self._ways.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))

    def __call__(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed clips, float (N, C, T, H, W), and targets, float (N, K), with the shares of both labels.

        CutMix replaces the same box in every frame, and its share is that of the pixels. Targets may be one-hot,
        smoothed, or say several classes at once. A single clip has none to be mixed with and is left as it is. Of
        several clips of one video, each is mixed with the one before it, so those of other videos belong in between.

        >>> clips, targets = torch.randn(4, 3, 8, 16, 16), torch.eye(5)[:4]
        >>> mixed, soft = Mixer(5, mixup=0.8, cutmix=1.0)(clips, targets)
        >>> tuple(mixed.shape), tuple(soft.shape), soft.sum(1).round(decimals=4).tolist()
        ((4, 3, 8, 16, 16), (4, 5), [1.0, 1.0, 1.0, 1.0])
        """
        if len(clips) < 2 or torch.rand(()) >= self.share:
            return clips, targets
        from torchvision import tv_tensors

        way = self._ways[int(torch.randint(len(self._ways), ()))]
        # As a Video, (N, T, C, H, W): torchvision takes a plain tensor of five axes for no batch of pictures.
        mixed, soft = way(tv_tensors.Video(clips.transpose(1, 2)), targets)
        kept = torch.empty_like(clips)  # with the channels last in memory, if they were
        return kept.copy_(mixed.as_subclass(Tensor).transpose(1, 2)), soft
