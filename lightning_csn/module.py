"""LitCSN: how a batch of videos becomes a loss, a prediction or a score. The rest is in the network and the data.

Shapes: B videos, V views of each, K classes; a view is a clip (C, T, H, W), and clips are (B, V, C, T, H, W).
A batch is a dict: clips uint8 (B, V, C, T, H, W), labels int64 (B,), or float (B, K) of 0 and 1 where a video has
several, videos int64 (B,) (numbers within the split), short bool (B,) (shorter than a clip), unreadable list of
(number, message). It holds B readable videos; B may be 0. If there is a blank bool (B,), it marks unreadable ones that
are in the batch all the same, as gray clips. If there is a seed, a number, it is that of what is random in a training
step: MixUp, CutMix, dropout and drop path then do not hang on what was drawn before, and a run that was stopped goes on
as it would have done.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import TorchSyncBatchNorm
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_csn.callbacks import UnreadableLog, read_unreadable
from lightning_csn.clip import SCRATCH_CLIP, ClipSpec, clip_values
from lightning_csn.clip_module import ClipModule
from lightning_csn.distillation import Teacher
from lightning_csn.ema import EMA
from lightning_csn.errors import InputError, check_choice, check_count, check_number
from lightning_csn.loss import (
    LABELS,
    check_class_weights,
    check_labels,
    loss_of_nothing,
    one_hot,
    training_loss,
    warn_of_balance,
    weights_for,
)
from lightning_csn.metrics import (
    AVERAGES,
    EpochSums,
    VideoScores,
    count_right,
    mean_of_views,
    mean_to_score,
    protocol_text,
    score_text,
    seen_text,
)
from lightning_csn.mixing import make_mixer
from lightning_csn.models import checkpoints
from lightning_csn.models.batchnorm import FREEZE, freeze_norms
from lightning_csn.models.network import check_options, create_network
from lightning_csn.models.pixels import contiguous, lay_out_state
from lightning_csn.models.upload import upload
from lightning_csn.optimizer import RateSchedule, check_callbacks, check_rates, configure
from lightning_csn.precise_bn import SyncNorms, warn_of_norms
from lightning_csn.processes import gather, take_buffers_of_first
from lightning_csn.runner import ExportedNetwork, is_export, load_exported

if TYPE_CHECKING:
    from typing_extensions import Self


_log = logging.getLogger(__name__)

Batch = dict[str, Any]

MODES = ("default", "reduce-overhead", "max-autotune")  # of torch.compile with inductor


class LitCSN(ClipModule):
    """A channel-separated network that trains, is tested at video level, and predicts.

    Training works on one clip of each video. Validation, test and prediction average the views that the data brings
    (10 clips x 3 crops, for example), score every video once on any number of processes, and count what could not be
    read: see VideoScores for the figures, which are logged as val_top1, val_top5, val_macro_f1 (multi_label: val_map),
    val_loss, val_videos, val_unreadable, val_blank, val_short, and the same with test_. Which views share a pass
    through the network can change the last bits of their logits; with one video in a batch, as for the usual 10 clips
    x 3 crops, no number of processes changes that. `test_step` gives the logits of every view, which
    scores.ScoresWriter writes into a file.

    All hyper-parameters are plain values, the whole network is described in them, and a Lightning checkpoint therefore
    opens without this package, and reloads without a download.

    Args:
        architecture: Name of a network (see list_networks). Left out, it is that of `pretrained`, or ircsn_50.
        num_classes: Number of classes. Not needed with `classes` or where `pretrained` brings its own.
        classes: Names of the classes, in the order of the labels.
        pretrained: Weights to start from: name (see list_checkpoints), hf://owner/repo, https address, file or folder.
            To answer only, not to train: a file that 'lightning-csn export' wrote (.onnx, .xml, .pt2).
            Its head stays if it was made for the classes asked for, otherwise a new one takes its place.
        clip: How clips must look: frames, step, fps, short_side, crop, test_crop, mean, std. With `pretrained`, only
            what shall differ from what the weights ask for. From scratch: all or nothing, which means the paper's.
        network: Further options of the network, such as dropout or drop_path (see create_network).
        optimizer: Name in timm's list of optimisers. sgd is without Nesterov momentum, as in the published recipes.
        lr: Highest learning rate.
        layer_decay: What lr is multiplied by from each part of the network to the one before it: with 0.5, stage4
            learns with half of lr, stage3 with a quarter, and the stem with 1/32. BatchNorm's statistics are no
            matter of learning rates.
        head_lr: What lr is multiplied by for the head, such as 10 for a new one.
        stage_lrs: What lr is multiplied by for some of stem, stage1 to stage4, in place of layer_decay, such as
            {stem: 0} for a stem that stays as it is.
        lr_batch: Clips of an optimiser step that lr is for. With it, lr is multiplied by the clips that a step has
            (batch_size x train_clips x devices x accumulated batches) over these, and the log says so. Without it, lr
            is taken as it is.
        momentum: For the optimisers that have one.
        weight_decay: L2 penalty (sgd) or decoupled decay (adamw).
        decay_norms: Whether BatchNorm and biases decay too, as in the recipes of VMZ, mmaction2 and PyTorchVideo.
        optimizer_options: Further options of the optimiser, such as betas.
        schedule: cosine (to lr_end at the end), steps (times gamma at each of milestones) or constant.
        schedule_interval: When the learning rate changes: after each step, or each epoch.
        warmup_epochs: Length of the linear warm-up; fractions are fine.
        warmup_start: Share of lr that the warm-up begins with.
        lr_end: Share of lr that schedule cosine ends with.
        milestones: Epochs, counted from the start of training, after which steps multiplies by gamma.
        gamma: Factor of schedule steps.
        label_smoothing: Share of the target that is spread over all classes; with multi_label, over yes and no of
            each.
        class_weights: Weights of the classes in the loss of training: of a clip by its class; with multi_label, of a
            class's yes against its no. "balanced" gives each class (with multi_label, yes and no) the same weight in
            an epoch in all, counted in the training data as it is sampled: with its option balance at 1 all are 1. The
            loss is a mean over clips, not over weights, so that it does not depend on who shares a batch.
        mixup: Alpha of MixUp in training, such as 0.2: two clips are laid over each other, and so are their labels. 0
            is without. train_top1 then counts the clips whose likeliest class is the heavier one of their two.
        cutmix: Alpha of CutMix in training, such as 1.0: a box of one clip is set into another. 0 is without; with
            mixup too, each batch has one of them.
        teacher: Trained network to learn from as well: name, address, file or folder, as `pretrained`. It sees the same
            clips, mixed or not, in its own colours; its classes are matched by name. It is read when training begins,
            and is not in checkpoints.
        distill_weight: Share of the loss, 0 to 1, that is the distance from the teacher's answers; the rest is of the
            labels.
        distill_temperature: What the logits of both are divided by before; more than 1 tells more of what the teacher
            holds likely beside its first answer.
        multi_label: Whether a video may have several labels or none. Each class is then judged by itself: sigmoid for
            softmax, binary cross entropy, and the mean average precision for top-1, top-5 and F1; there is no
            train_top1. None is what the head of `pretrained` was trained for, and else one label.
        views_per_pass: Views that go through the network at once in validation, test and prediction, for memory.
        average: What is averaged over the views: probabilities or logits.
        checkpointing: Stages (1 to 4) that keep only the input of each block in training and compute the rest again on
            the way back, for memory. 1 and 2 hold most of it.
        freeze_bn: What of BatchNorm stays as the weights brought it: none; stats, so that training normalises by the
            running mean and variance, which no longer move, and weight and bias learn; all, so that these stay, too.
            For fine-tuning with fewer than 8 clips in a batch. Saved weights are the same in each case.
        compile: Whether torch.compile makes one program of the network for training: true, one of its modes
            (reduce-overhead replays the network as CUDA graphs on a GPU, max-autotune measures kernels first, default
            is what true means) with backend inductor, or the name of another backend. The first step then waits for
            it, and so do the first after another size of batch and after GradualUnfreezing. Everything but training,
            and what is saved, is as without it: a run may go on with it or without.
        origin: Where the weights come from; filled in from `pretrained`.
    """

    classes: list[str] | None

    def __init__(
        self,
        architecture: str | None = None,
        *,
        num_classes: int | None = None,
        classes: list[str] | None = None,
        pretrained: str | None = None,
        clip: dict[str, Any] | ClipSpec | None = None,
        network: dict[str, Any] | None = None,
        optimizer: str = "sgd",
        lr: float = 0.01,
        layer_decay: float = 1.0,
        head_lr: float = 1.0,
        stage_lrs: dict[str, float] | None = None,
        lr_batch: int | None = None,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        decay_norms: bool = True,
        optimizer_options: dict[str, Any] | None = None,
        schedule: str = "cosine",
        schedule_interval: str = "step",
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.1,
        lr_end: float = 0.0,
        milestones: Sequence[float] = (),
        gamma: float = 0.1,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | str | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        teacher: str | None = None,
        distill_weight: float = 0.5,
        distill_temperature: float = 2.0,
        multi_label: bool | None = None,
        views_per_pass: int = 8,
        average: str = "probabilities",
        checkpointing: Sequence[int] = (),
        freeze_bn: str = "none",
        compile: bool | str = False,
        origin: dict[str, Any] | None = None,
    ) -> None:
        check_choice("average", average, AVERAGES)
        check_choice("freeze_bn", freeze_bn, FREEZE)
        check_count("views_per_pass", views_per_pass)
        check_number("mixup", mixup, 0)
        check_number("cutmix", cutmix, 0)
        check_number("label_smoothing", label_smoothing, 0, 1)
        check_number("distill_weight", distill_weight, 0, 1)
        check_number("distill_temperature", distill_temperature, 0)
        if distill_temperature == 0:
            raise InputError("distill_temperature must be above 0, such as 2")
        if isinstance(teacher, Path):
            teacher = str(teacher.expanduser().absolute())  # "weights" would be a name
        training: dict[str, Any] = {
            "optimizer": optimizer,
            "lr": lr,
            "layer_decay": layer_decay,
            "head_lr": head_lr,
            "stage_lrs": dict(stage_lrs or {}),
            "lr_batch": lr_batch,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decay_norms": decay_norms,
            "optimizer_options": optimizer_options or {},
            "schedule": schedule,
            "schedule_interval": schedule_interval,
            "warmup_epochs": warmup_epochs,
            "warmup_start": warmup_start,
            "lr_end": lr_end,
            "milestones": list(milestones),
            "gamma": gamma,
        }
        check_rates(training)
        if num_classes is not None:
            check_count("num_classes", num_classes, least=2)
        num_classes = checkpoints.count_classes(num_classes, classes)
        options = check_options(network or {})

        if pretrained is None:
            if num_classes is None:
                raise InputError("how many classes? Pass num_classes or classes, or pretrained weights that have some")
            built = create_network(architecture or "ircsn_50", num_classes=num_classes, **options)
            spec = SCRATCH_CLIP if clip is None else ClipSpec.from_dict(clip_values(clip))
        else:
            load = load_exported if is_export(pretrained) else checkpoints.load
            loaded = load(pretrained, num_classes=num_classes, classes=classes, clip=clip, **options)
            built, spec = loaded.network.train(), loaded.checkpoint.clip_spec()
            if architecture not in (None, built.architecture):
                raise InputError(f"{pretrained} is of architecture {built.architecture}, not {architecture}")
            if built.num_classes == 0:
                raise InputError(f"{pretrained} has no classes of its own; pass num_classes or classes")
            classes = loaded.checkpoint.classes
            origin = loaded.checkpoint.to_dict()
            multi_label = loaded.checkpoint.multi_label if multi_label is None else multi_label
        super().__init__(built, spec)
        self.classes = classes
        multi_label = bool(multi_label)
        self.network.set_grad_checkpointing(stages=checkpointing)
        freeze_norms(self.network, freeze_bn)
        self._as_loaded = pretrained is not None  # until training changes the weights
        self.val_scores = VideoScores(self.num_classes, multi_label=multi_label)
        self.test_scores = VideoScores(self.num_classes, multi_label=multi_label)
        check_class_weights(class_weights, self.num_classes)
        # "balanced" is known when training begins.
        self._class_weights = None if isinstance(class_weights, str | None) else torch.tensor(list(class_weights))
        if not isinstance(compile, bool | str):
            raise InputError(
                f"compile must be true, false, or the name of a mode ({', '.join(MODES)}) or of a backend of "
                f"torch.compile, got {compile!r}"
            )
        self._teacher: Teacher | None = None  # while training lasts
        self._compiled: Callable[[Tensor], Tensor] | None = None  # the network, while training lasts
        self._mix = make_mixer(self.num_classes, mixup, cutmix)
        # Of the evaluation that is going on: number, message, and whether a gray clip stands for the video.
        self._unreadable: dict[int, tuple[str, bool]] = {}
        self._told = UnreadableLog()
        self._norms_judged = False  # whether this run was warned of BatchNorm that cannot work
        self._views = 0
        self._sums = EpochSums()  # of this epoch of training
        self.save_hyperparameters(
            plain(
                architecture=self.network.architecture,
                num_classes=self.num_classes,
                classes=self.classes,
                pretrained=None,  # the weights are in the checkpoint that these travel with
                clip=self.clip.to_dict(),
                network={name: value for name, value in self.network.options.items() if name != "num_classes"},
                **training,
                label_smoothing=label_smoothing,
                class_weights=class_weights if isinstance(class_weights, str | None) else list(class_weights),
                mixup=mixup,
                cutmix=cutmix,
                teacher=teacher,
                distill_weight=distill_weight,
                distill_temperature=distill_temperature,
                multi_label=multi_label,
                views_per_pass=views_per_pass,
                average=average,
                checkpointing=list(checkpointing),
                freeze_bn=freeze_bn,
                compile=compile,
                origin=origin,
            )
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, num_classes: int | None = None, **options: Any) -> Self:
        """A model with the weights of `source`, in eval mode; `Trainer.fit` puts it into train mode.

        source: name (see list_checkpoints), hf://owner/repo, https address, file or folder.
        num_classes: for a new head, if it is not the number that the weights have.
        options: what LitCSN takes. Raises InputError where the source cannot be used, with what would do.
        """
        if isinstance(source, Path):
            source = str(source.expanduser().absolute())  # "weights" would be a name
        return cls(pretrained=source, num_classes=num_classes, **options).eval()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write model.safetensors, config.json and a model card, from which `from_pretrained` makes this model again.

        What is known of the weights comes along: all of it if they are as they were loaded, and where they come from
        if they were trained. Raises InputError where the folder holds other things or cannot be written.
        """
        if isinstance(self.network, ExportedNetwork):
            raise InputError(f"{self.network.runner.source} is an exported file; copy that, its weights are in it")
        known = self.hparams["origin"]
        k, names = self.num_classes, self.classes
        if known is None:
            record = checkpoints.Checkpoint(architecture=self.network.architecture, num_classes=k, classes=names)
        elif self._as_loaded:
            record = checkpoints.Checkpoint.from_dict(known)
        else:
            record = checkpoints.Checkpoint.from_dict(known).retrained(num_classes=k, classes=names)
        record = dataclasses.replace(record, clip=self.clip.to_dict(), multi_label=self.multi_label)
        return checkpoints.save(self.network, record, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Upload weights with lightning_csn",
    ) -> str:
        """Make the Hub repository `repo_id` (owner/name) if need be, and put there what `save_pretrained` writes.

        Then `from_pretrained("hf://owner/name")` makes this model again, anywhere. Gives the address of the commit.
        token: of a Hub account; None takes that of `hf auth login`. Raises InputError with the Hub's reason if it
        refuses.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.save_pretrained(Path(temporary) / repo_id.rpartition("/")[2])
            return upload(
                folder, repo_id, private=private, revision=revision, token=token, commit_message=commit_message
            )

    @property
    def num_classes(self) -> int:
        """How many classes the network tells apart; its outputs."""
        return int(self.network.num_classes)

    @property
    def multi_label(self) -> bool:
        """Whether a video may have several labels or none, so that its probabilities do not sum to 1."""
        return bool(self.hparams["multi_label"])

    @property
    def monitor(self) -> str:
        """The figure of validation by which the best checkpoint is chosen; more is better."""
        return "val_map" if self.multi_label else "val_top1"

    def forward(self, clips: Tensor) -> Tensor:
        """Class probabilities (B, K) of videos (B, V, C, T, H, W): the mean over their views.

        clips: as for `view_logits`. With multi_label each class has its own probability, and they do not sum to 1.
        """
        return mean_of_views(self.view_logits(clips), self.hparams["average"], multi_label=self.multi_label)

    def view_logits(self, clips: Tensor) -> Tensor:
        """Logits, float32 (B, V, K), of each view of videos (B, V, C, T, H, W).

        clips: uint8, or float that is normalised already. The views go through the network `views_per_pass` at a time.
        """
        if clips.ndim != 6:
            raise InputError(f"clips must be (B, V, C, T, H, W), got {tuple(clips.shape)}")
        views = clips.flatten(0, 1).split(self.hparams["views_per_pass"])
        network = self.inference_network()
        logits = torch.cat([network(self.normalise(some)) for some in views])  # (B*V, K)
        return logits.float().unflatten(0, clips.shape[:2])  # (B, V, K)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Warn, at the first batch of a run, of statistics of BatchNorm that are worth little."""
        if self._norms_judged:
            return
        self._norms_judged = True
        clips = (len(batch["labels"]) + len(batch["unreadable"])) * batch["clips"].shape[1]
        if self.trainer.is_global_zero:
            warn_of_norms(self.network, clips, self.trainer.world_size)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch (loss.py); every view is a clip of its own."""
        clips, labels = batch["clips"], batch["labels"]
        if "seed" in batch:
            torch.manual_seed(batch["seed"])
        self._told.tell("train", read_unreadable(batch))
        # View by view: neighbours, which MixUp and CutMix mix, are of different videos.
        targets = torch.cat([labels] * clips.shape[1])  # (V*B,) or (V*B, K)
        count = len(targets)
        right = distance = torch.zeros((), device=self.device)
        inputs = self.normalise(clips.transpose(0, 1).flatten(0, 1))  # (V*B, C, T, H, W)
        if count == 0:
            loss = loss_of_nothing(self.network, inputs, self.clip)
        else:
            check_labels(labels, self.num_classes, multi_label=self.multi_label)
            if self._mix is not None:
                inputs, targets = self._mix(inputs, targets if self.multi_label else one_hot(targets, self.num_classes))
            try:
                logits = (self._compiled or self.network)(inputs)  # (V*B, K)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise InputError(
                    f"BatchNorm needs more than one value of each channel, and a batch of {count} clip of "
                    f"{' x '.join(map(str, inputs.shape[2:]))} (frames, height, width) leaves one at its end: "
                    "larger clips would do, a batch_size that leaves no batch of one, or freeze_bn"
                ) from error
            taught = None if self._teacher is None else self._teacher.logits(inputs)
            loss, distance = training_loss(logits, targets, taught, self.hparams, self._class_weights)
            if not self.multi_label:
                right = count_right(logits, targets)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=count)
        self._sums.add(
            self.device,
            clips=count,
            unreadable=len(batch["unreadable"]),
            short=batch["short"].sum(),
            loss=loss.detach().float() * count,
            right=right,
            distance=distance.detach() * count,
        )
        return loss

    def on_train_epoch_start(self) -> None:
        """An epoch begins with nothing counted; one that is resumed in its middle goes on counting."""
        self._sums = EpochSums()

    def on_train_epoch_end(self) -> None:
        """Log the figures of an epoch, over all processes and what was trained of it before a resume."""
        sums, self._sums = self._sums.of_all(self.trainer, self.device), EpochSums()
        figures = sums.figures(multi_label=self.multi_label, taught=self._teacher is not None)
        self.log_dict(figures, reduce_fx="max", sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What was counted of the epoch goes along: Lightning forgets the figures of an epoch in its middle.

        A file of weights alone has their averages, if there are any: callbacks are not asked for it.
        """
        checkpoint["train_counted"] = self._sums.of_all(self._trainer, self.device).to_list()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning's connector
            if isinstance(callback, EMA) and "callbacks" not in checkpoint:
                callback.put_averages(checkpoint, weights_too=False)
        # Pieces of a tensor that is laid out otherwise would be taken for others where it is spread over processes.
        for name in ("state_dict", "current_model_state"):
            checkpoint.get(name, {}).update(contiguous(dict(checkpoint.get(name, {}))))
        if "optimizer_states" in checkpoint:
            checkpoint["optimizer_states"] = contiguous(checkpoint["optimizer_states"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The first process goes on with what all had counted. If the weights are averages, say so.

        Raises InputError where training would take averages for the weights that it left.
        """
        trainer = self._trainer
        if trainer is None or trainer.is_global_zero:
            self._sums = EpochSums(checkpoint.get("train_counted", ()))
        averages = checkpoints.averaging_text(checkpoint)
        if averages is None:
            return
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            _log.info("the weights are %s", averages)
        elif not any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise InputError(
                f"the checkpoint's weights are {averages}, with which its optimiser cannot go on: give the Trainer "
                "EMA() as a callback; to train the averages further start a new run, from them as pretrained"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the videos of a batch by the mean over their views."""
        self._score(batch, self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """As in validation, with scores of its own. Gives the videos, labels, short, blank, unreadable of the batch and
        the logits of the views, float32 (B, V, K) on the CPU.
        """
        logits = self._score(batch, self.test_scores)
        kept = ("videos", "labels", "short", "blank", "unreadable")
        return {name: batch[name] for name in kept if name in batch} | {"logits": logits}

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Numbers (B,), probabilities (B, K) and the unreadable ones of a batch of videos."""
        none = len(batch["videos"]) == 0
        probabilities = torch.empty(0, self.num_classes, device=self.device) if none else self(batch["clips"])
        return {"videos": batch["videos"], "probabilities": probabilities, "unreadable": batch["unreadable"]}

    def _score(self, batch: Batch, scores: VideoScores) -> Tensor:
        """Add a batch to the scores; gives the logits of its views."""
        videos, labels = batch["videos"], batch["labels"]
        self._unreadable |= read_unreadable(batch)
        if len(videos) == 0:
            logits = torch.empty(0, batch["clips"].shape[1], self.num_classes)
            labels = torch.empty(0, self.num_classes, device=self.device) if self.multi_label else labels
        else:
            check_labels(labels, self.num_classes, multi_label=self.multi_label)
            self._views = batch["clips"].shape[1]
            logits = self.view_logits(batch["clips"]).cpu()
        probabilities = mean_to_score(logits, self.hparams["average"], multi_label=self.multi_label)
        numbers = {name: videos[batch[name]].tolist() for name in ("short", "blank") if name in batch}
        unreadable = [number for number, _ in batch["unreadable"]]
        scores.update(videos, labels, probabilities.to(videos.device), unreadable, **numbers)
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log the validation's scores, and print them where they were asked for by themselves."""
        line = self._finish("val", self.val_scores)
        if self.trainer.state.fn != "fit":
            self.print(line)

    def on_test_epoch_end(self) -> None:
        """Log the test's scores, and print them with how they were measured."""
        line = self._finish("test", self.test_scores)
        self.print(line)

    def _finish(self, stage: str, scores: VideoScores) -> str:
        values = {name: value.item() for name, value in scores.compute().items()}
        scores.reset()
        # Every process has the same values. The maximum of them is exact, a mean over three processes need not be.
        for name, value in values.items():
            figure = f"{stage}_{name}"
            main = figure in (self.monitor, "val_loss")  # the bar has room for these
            self.log(figure, float(value), prog_bar=main, reduce_fx="max", sync_dist=True)
        unreadable = gather(self.trainer, self._unreadable)
        if self.trainer.is_global_zero:
            self._told.tell(stage, unreadable)
        protocol, average = self.protocol(stage), self.hparams["average"]
        return f"{score_text(stage, values)}; {protocol_text(protocol, average, seen_text(protocol, self._views))}"

    def protocol(self, stage: str) -> dict[str, Any]:
        """How videos are looked at in stage val or test, as plain values: all that their logits depend on, but for the
        weights and the videos. clips and crops are None where the data does not tell.
        """
        data = getattr(self.trainer, "datamodule", None)
        head = self.network.options
        return plain(
            clips=getattr(data, f"{stage}_clips", None),
            crops=getattr(data, f"{stage}_crops", None),
            **self.clip.to_dict(),
            head_pooling=head["head_pooling"],
            head_average=head["head_average"],
            precision=self.trainer.precision,
        )

    def setup(self, stage: str) -> None:
        """See that the classes of the data are those of the model, whose class names become the data's if it has none;
        and lay out the weights for their device.

        For fit a model that is in eval mode as a whole, as `from_pretrained` leaves it, goes into train mode: here and
        not later, so that Lightning's summary of it is right.

        Raises InputError where labels would mean something else in the data than in the model.
        """
        if stage == "fit" and isinstance(self.network, ExportedNetwork):
            raise InputError(f"{self.network.runner.source} is an exported file, which cannot be trained further")
        super().setup(stage)
        if stage == "fit" and not any(module.training for module in self.modules()):
            self.train()
        strategy: Any = self.trainer.strategy
        if isinstance(getattr(strategy, "_layer_sync", None), TorchSyncBatchNorm):
            strategy._layer_sync = SyncNorms()  # Lightning applies it after this
        data = getattr(self.trainer, "datamodule", None)
        self._compare_classes(data, stage)
        if stage == "fit" and self.trainer.is_global_zero:
            balance = getattr(data, "balance", 0.0)
            warn_of_balance(balance, self.hparams["class_weights"], multi_label=self.multi_label)
        if stage == "fit" and self.hparams["class_weights"] == "balanced":
            weights = self._class_weights = weights_for(data, self.num_classes, multi_label=self.multi_label)
            if self.trainer.is_global_zero:
                _log.info("class weights of the loss: %.3g to %.3g", weights.min(), weights.max())
        self._compiled = None  # of a training that failed
        if stage == "fit":
            self._find_teacher()
            if self.hparams["compile"]:
                self._compile()

    def _compare_classes(self, data: Any, stage: str) -> None:
        several = getattr(data, "multi_label", None)
        if several is not None and stage != "predict" and several != self.multi_label:
            found = "any number of them" if several else "one each"
            raise InputError(
                f"the model {LABELS[self.multi_label]}, but the videos of the data have {found}; "
                f"make the model with multi_label={several}"
            )
        names: list[str] | None = getattr(data, "classes", None)
        if names is None:
            return
        if len(names) > self.num_classes or (stage == "fit" and len(names) != self.num_classes):
            raise InputError(
                f"the data has {len(names)} classes and the model {self.num_classes}; "
                f"for a new head, pass num_classes={len(names)} where the model is made"
            )
        if self.classes is None and stage == "fit":
            self.classes = self.hparams["classes"] = list(names)
        if self.classes is not None and self.classes != names and sorted(self.classes) == sorted(names):
            label = next(i for i, (mine, theirs) in enumerate(zip(self.classes, names, strict=True)) if mine != theirs)
            raise InputError(
                f"the data has the model's classes in another order: label {label} is {names[label]!r} in the data "
                f"and {self.classes[label]!r} in the model"
            )

    def _find_teacher(self) -> None:
        source = self.hparams["teacher"]
        self._teacher = None
        if source is not None and self.hparams["distill_weight"]:
            self._teacher = Teacher(
                source,
                clip=self.clip,
                classes=self.classes,
                num_classes=self.num_classes,
                multi_label=self.multi_label,
            )

    def _compile(self) -> None:
        asked = self.hparams["compile"]
        mode = "default" if asked is True else asked if asked in MODES else None
        backend = "inductor" if mode else asked
        # Not where the model is made: a checkpoint opens without the backend that it was trained with.
        if backend not in torch.compiler.list_backends(exclude_tags=()):  # those for debugging are not told of
            usual = ", ".join(torch.compiler.list_backends())
            raise InputError(
                f"torch.compile has no mode or backend {backend!r}; modes: {', '.join(MODES)}; backends: {usual}"
            )
        if isinstance(getattr(self.trainer.strategy, "_layer_sync", None), SyncNorms):
            raise InputError(
                "a compiled network cannot wait for other processes within its BatchNorms: leave out compile, or "
                "sync_batchnorm"
            )
        # Of the call, with its hooks, and not of the module, whose compiled form would name every tensor anew.
        self._compiled = torch.compile(self.network.__call__, backend=backend, mode=mode)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: a compiled program runs the network that it was made of."""
        return super().__getstate__() | {"_compiled": None}

    def teardown(self, stage: str) -> None:
        """The teacher has nothing to say after training, and nothing compiled is run."""
        self._teacher = self._compiled = None

    def on_train_start(self) -> None:
        """From here on the weights are no longer those that were loaded, and a form of them is memory for nothing.

        The learning rates begin, or go on, as the training is now.
        """
        self._as_loaded = False
        self._quick.forget()
        for optimizer in self.trainer.optimizers:
            lay_out_state(optimizer)
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, RateSchedule):
                config.scheduler.follow(self.trainer)
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(self.device)
        if self._teacher is not None:
            self._teacher.to(self.device)
        self._norms_judged = False

    def on_test_start(self) -> None:
        """Nothing is left of a test that was interrupted, nor of weights that are no more."""
        super().on_test_start()
        self.test_scores.reset()
        self._unreadable = {}

    def on_validation_start(self) -> None:
        """The same network on all processes: that of process 0, which checkpoints hold; and nothing is left of a
        validation that was interrupted.
        """
        self.val_scores.reset()
        self._unreadable = {}
        # In training every process counts its own batches into the running statistics of BatchNorm. DDP levels them
        # only at the next optimiser step, FSDP never; before a test or a prediction, Lightning does.
        take_buffers_of_first(self.network)

    def configure_callbacks(self) -> list[Callback]:
        """None of its own; InputError for callbacks of the Trainer that would not work with this model."""
        check_callbacks(self.trainer, self.hparams)
        return []

    def configure_optimizers(self) -> Any:
        """The optimiser from timm's list, and what sets its learning rates (optimizer.py)."""
        optimizer, schedule = configure(self.network, self.hparams, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": schedule.interval}}


def plain(**values: Any) -> dict[str, Any]:
    """The same values as JSON knows them, so that a checkpoint opens without this package. TypeError if it cannot."""
    return json.loads(json.dumps(values))
