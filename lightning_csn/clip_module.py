"""ClipModule: a network and the clips that it takes, as LitCSN and the extractor of features run it.

Shapes: N clips, C channels, T frames, H x W pixels.
"""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import Tensor

from lightning_csn.clip import ClipSpec
from lightning_csn.models.fold import FoldedNetwork, QuickForm
from lightning_csn.models.network import ResNet3D
from lightning_csn.models.pixels import colours, lay_out_clips, lay_out_weights, normalised
from lightning_csn.runner import ExportedNetwork
from lightning_csn.sharding import holds_whole_weights


class ClipModule(L.LightningModule):
    """A LightningModule whose network sees normalised clips, and answers in the quickest form that it has.

    network: as it was trained, or an exported file in its place. clip: how clips must look.
    """

    network: ResNet3D
    exact = False  # whether answers come from the network as it was trained, and never from its quicker form
    mean: Tensor
    std: Tensor

    def __init__(self, network: ResNet3D, clip: ClipSpec) -> None:
        super().__init__()
        self.network, self.clip = network, clip
        self._quick = QuickForm()
        mean, std = colours(clip)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def normalise(self, clips: Tensor) -> Tensor:
        """uint8 clips (N, C, T, H, W) as the network takes them; float clips are taken to be so already."""
        if clips.dtype != torch.uint8 or isinstance(self.network, ExportedNetwork):  # which does it itself
            return clips
        return lay_out_clips(normalised(clips, self.mean, self.std))

    def setup(self, stage: str) -> None:
        """Lay out the weights for the device that the Trainer is going to move them to."""
        strategy = self.trainer.strategy
        lay_out_weights(self.network, strategy.root_device, whole=holds_whole_weights(strategy))

    def inference_network(self) -> ResNet3D | FoldedNetwork:
        """What answers: the folded form of the network (models/fold.py) where that is known to be quicker and gives the
        same logits but for rounding, and else the network itself.

        The folded form is for eval mode without gradients on an x86 CPU in fp32, in test, prediction and calls of the
        model. Validation has the network itself, and so has everything if `exact` is set, under autocast, where hooks
        wait for what is inside, and where the weights lie on several devices. The form is made again once the weights
        have changed; a change through `.data`, which leaves no trace, is seen at the beginning of the next test or
        prediction.
        """
        if not self._runs():
            lay_out_weights(self.network, self.device)
        form = None if self.exact or not self._answers_alone() else self._quick.of(self.network)
        return form or self.network

    def _answers_alone(self) -> bool:
        """Whether the weights are all here, and stay as they are until the next test or prediction begins."""
        if not self._runs():
            return True
        trainer = self.trainer
        return trainer.state.fn in (TrainerFn.TESTING, TrainerFn.PREDICTING) and holds_whole_weights(trainer.strategy)

    def _runs(self) -> bool:
        """Whether this is part of a Trainer's run, and no call by itself."""
        return self._trainer is not None and self._trainer.state.status == TrainerStatus.RUNNING

    def on_test_start(self) -> None:
        """Nothing is left of weights that are no more."""
        self._quick.forget()

    def on_predict_start(self) -> None:
        """Nothing is left of weights that are no more."""
        self._quick.forget()
