"""LitCSN trains, is scored at video level, and comes back from its files as it was."""

import logging
import math
import pickle
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_csn.clip import ClipSpec
from lightning_csn.errors import InputError
from lightning_csn.loss import label_loss
from lightning_csn.models import checkpoints
from lightning_csn.module import LitCSN

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15

CLASSES = ["down", "left", "right", "up"]
CLIP = {
    "frames": 4,
    "step": 2,
    "fps": 10,
    "short_side": 36,
    "crop": 32,
    "test_crop": 32,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.2, 0.5],
}


def make_model(**options):
    torch.manual_seed(0)
    return LitCSN("ircsn_tiny", **({"classes": CLASSES, "clip": CLIP, "schedule": "constant"} | options))


def make_batch(labels, *, views=1, unreadable=(), short=False, first=0):
    """Every label has a colour of its own, under noise, so that it can be learnt."""
    generator = torch.Generator().manual_seed(first)
    clips = torch.randint(100, (len(labels), views, 3, 4, 32, 32), generator=generator)
    for clip, label in zip(clips, labels, strict=True):
        clip[:, label % 3] += 50 + 50 * (label // 3)
    numbers = torch.arange(first, first + len(labels))
    return {
        "clips": clips.to(torch.uint8),
        "labels": torch.tensor(labels, dtype=torch.long),
        "videos": numbers,
        "short": torch.full((len(labels),), short),
        "unreadable": list(unreadable),
    }


def loader(*batches):
    return DataLoader(list(batches), batch_size=None)


TRAIN = [make_batch([0, 1, 2, 3]), make_batch([3, 2, 1, 0], first=4)]
EVAL = [make_batch([i % 4], views=5, first=i) for i in range(6)]


class Data(L.LightningDataModule):
    def __init__(self, classes, test_clips=5, test_crops=1):
        super().__init__()
        self.classes, self.test_clips, self.test_crops = classes, test_clips, test_crops

    def train_dataloader(self):
        return loader(*TRAIN)

    def val_dataloader(self):
        return loader(*EVAL)

    test_dataloader = val_dataloader


# Learning


def test_eight_clips_are_learnt_by_heart(make_trainer):
    model = make_model(lr=0.05, schedule="cosine", warmup_epochs=1)
    trainer = make_trainer(max_epochs=15)
    trainer.fit(model, loader(*TRAIN))
    assert trainer.callback_metrics["train_top1"] == 1
    assert trainer.callback_metrics["train_loss_epoch"] < 0.3
    assert trainer.callback_metrics["train_unreadable"] == 0


def loss_of(model, batch, make_trainer, data=None):
    """The loss of a first step, and the logits that it is of."""
    fresh = make_model(multi_label=model.multi_label)
    logits = fresh.network(fresh.normalise(batch["clips"].flatten(0, 1))).detach()
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(model, loader(batch) if data is None else data)
    return trainer.callback_metrics["train_loss"].item(), logits


def test_class_weights_weigh_every_clip_by_its_class_whoever_shares_its_batch(make_trainer):
    batch = make_batch([1, 3, 3])
    loss, logits = loss_of(make_model(class_weights=[1, 0.5, 7, 3]), batch, make_trainer)
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    assert loss == pytest.approx(float(losses @ torch.tensor([0.5, 3, 3])) / 3)
    weighted = torch.nn.functional.cross_entropy(logits, batch["labels"], weight=torch.tensor([1, 0.5, 7, 3]))
    assert loss != pytest.approx(weighted.item(), rel=0.1)  # torch's own: a batch of one class would be unweighted
    shares = label_loss(logits, torch.eye(4)[batch["labels"]], weights=torch.tensor([1, 0.5, 7, 3]))
    assert shares.item() == pytest.approx(loss)  # as MixUp and CutMix give them


def test_class_weights_weigh_the_yes_of_a_class_that_comes_with_others(make_trainer):
    batch = make_batch([1, 3])
    batch["labels"] = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0]])
    loss, logits = loss_of(make_model(multi_label=True, class_weights=[4, 1, 1, 2]), batch, make_trainer)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none")
    each[0, 0] *= 4
    each[0, 3] *= 2
    assert loss == pytest.approx(each.mean().item())


class Counted(Data):
    """Of the classes, some come more often than others."""

    train_counts = (6.0, 2.0, 0.0, 4.0)

    def train_dataloader(self):
        return loader(make_batch([1, 3, 3]))

    def samples_of(self, stage):
        return range(12)


def test_balanced_class_weights_are_those_of_the_training_data(make_trainer, caplog):
    caplog.set_level(logging.INFO)
    model = make_model(class_weights="balanced")
    loss, logits = loss_of(model, make_batch([1, 3, 3]), make_trainer, Counted(CLASSES))
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 3, 3]), reduction="none")
    assert loss == pytest.approx(float(losses @ torch.tensor([2.0, 1.0, 1.0])) / 3)
    assert model.hparams["class_weights"] == "balanced"  # of other data they are others
    assert "class weights of the loss: 0.667 to 2" in caplog.text
    with pytest.raises(InputError, match="'balanced' needs to know how often each class comes"):
        make_trainer(fast_dev_run=True).fit(make_model(class_weights="balanced"), loader(*TRAIN))


def test_balance_beside_class_weights_is_warned_of_once_in_a_training_and_not_in_a_test(make_trainer, caplog):
    model, data = make_model(class_weights=[1, 1, 2, 4]), Data(CLASSES)
    data.balance = 0.5
    trainer = make_trainer(max_epochs=2)
    trainer.fit(model, data)
    trainer.test(model, data)
    assert caplog.text.count("--data.balance 0.5 and --model.class_weights (a list) are the same remedy") == 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("equal", "class_weights must be 'balanced' or a list of 4 numbers, got 'equal'"),
        (2.0, "class_weights must be 'balanced' or a list of 4 numbers, got 2.0"),
        ([1, 2], "class_weights has 2 numbers, and there are 4 classes"),
        ([1, 1, 1, -1], "each of class_weights must be a number of 0 or more, got -1"),
        ([0, 0, 0, 0], "class_weights are all 0"),
    ],
)
def test_class_weights_that_cannot_be_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        make_model(class_weights=weights)


def test_training_takes_every_view_as_a_clip_of_the_same_label(make_trainer):
    model = make_model()
    batch = make_batch([1, 3], views=2)
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(model, loader(batch))
    fresh = make_model()
    logits = fresh.network(fresh.normalise(batch["clips"].flatten(0, 1)))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 1, 3, 3]))
    assert trainer.callback_metrics["train_loss"] == pytest.approx(expected.item())


def test_label_smoothing_spreads_its_share_over_all_classes(make_trainer):
    model = make_model(label_smoothing=0.2)
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(model, loader(TRAIN[0]))
    fresh = make_model()
    logs = fresh.network(fresh.normalise(TRAIN[0]["clips"].flatten(0, 1))).log_softmax(-1)
    target = 0.8 * torch.eye(4)[TRAIN[0]["labels"]] + 0.2 / 4
    assert trainer.callback_metrics["train_loss"] == pytest.approx(-(target * logs).sum(-1).mean().item())


def test_a_batch_without_a_readable_video_gives_every_parameter_a_gradient_of_zero(make_trainer, states_equal, caplog):
    model = make_model(weight_decay=0.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = []
    model.on_before_optimizer_step = lambda _: gradients.extend(p.grad for p in model.parameters())
    trainer = make_trainer(fast_dev_run=1)
    trainer.fit(model, loader(make_batch([], unreadable=[(3, "a.mp4: no such file")])))
    assert len(gradients) == len(list(model.parameters()))
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert states_equal(before, model.state_dict())
    assert trainer.callback_metrics["train_unreadable"] == 1
    assert "video 3: a.mp4: no such file" in caplog.text


def test_a_clip_alone_that_is_too_small_for_batchnorm_says_what_would_do(make_trainer):
    with pytest.raises(InputError, match=r"a batch of 1 clip of 4 x 32 x 32 .* no batch of one, or freeze_bn"):
        make_trainer(fast_dev_run=True).fit(make_model(), loader(make_batch([0])))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains_and_scores(make_trainer, precision):
    model, trainer = make_model(), make_trainer(max_epochs=1, precision=precision)
    trainer.fit(model, loader(*TRAIN), loader(*EVAL))
    assert trainer.callback_metrics["val_loss"] < 2
    assert trainer.callback_metrics["val_videos"] == 6


@pytest.mark.parametrize(("several", "main"), [(False, "val_top1"), (True, "val_map")])
def test_the_bar_shows_the_main_figures_of_the_last_validation_while_the_next_epoch_is_trained(
    several, main, make_trainer
):
    shown, measured = [], []

    class Bar(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            shown.append({name: x for name, x in trainer.progress_bar_metrics.items() if name.startswith("val_")})

        def on_validation_end(self, trainer, *_):
            measured.append({name: trainer.callback_metrics[name].item() for name in (main, "val_loss")})

    train, val = make_batch([0, 1, 2, 3]), make_batch([0, 1, 2, 3], views=2)
    if several:
        train["labels"], val["labels"] = torch.eye(4), torch.eye(4)
    make_trainer(max_epochs=2, callbacks=[Bar()]).fit(make_model(multi_label=several), loader(train), loader(val))
    assert shown == [{}, measured[0]]


def test_a_model_from_pretrained_is_in_eval_mode_and_trains_in_train_mode(tmp_path, make_trainer):
    make_model().save_pretrained(tmp_path / "weights")
    model = LitCSN.from_pretrained(tmp_path / "weights")
    assert not any(module.training for module in model.modules())
    modes = []

    class Summary(L.Callback):  # Lightning's own comes as early
        def on_fit_start(self, trainer, pl_module):
            modes.append(all(module.training for module in pl_module.modules()))

    model.on_train_batch_start = lambda *_: modes.append(all(module.training for module in model.modules()))
    make_trainer(fast_dev_run=True, callbacks=[Summary()]).fit(model, loader(TRAIN[0]))
    assert modes == [True, True]


def test_parts_that_were_frozen_on_purpose_stay_in_eval_mode(make_trainer):
    model = make_model()
    model.network.stem.eval()
    with pytest.warns(UserWarning, match="in eval mode at the start of training"):
        make_trainer(fast_dev_run=True).fit(model, loader(TRAIN[0]))
    assert not model.network.stem.training


class Mixed:
    """Stands for the mixing: notes what it gets, and gives clips of zeros with fixed shares."""

    def __init__(self, shares):
        self.shares, self.got = torch.tensor(shares), []

    def __call__(self, clips, targets):
        self.got.append((clips, targets))
        return torch.zeros_like(clips), self.shares


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_normalised_clips_and_their_labels_are_mixed(make_trainer, smoothing):
    model, batch = make_model(mixup=0.2, label_smoothing=smoothing), make_batch([1, 3])
    mixed = model._mix = Mixed([[0.0, 0.7, 0.0, 0.3], [0.0, 0.4, 0.0, 0.6]])
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(model, loader(batch))
    ((clips, targets),) = mixed.got
    fresh = make_model()
    torch.testing.assert_close(clips, fresh.normalise(batch["clips"].flatten(0, 1)))
    assert targets.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    logits = fresh.network(torch.zeros_like(clips))
    shares = (1 - smoothing) * mixed.shares + smoothing / 4
    expected = -(shares * logits.log_softmax(-1)).sum(-1).mean()
    assert trainer.callback_metrics["train_loss"] == pytest.approx(expected.item())
    heavier = (logits.argmax(-1) == torch.tensor([1, 3])).float().mean()
    assert trainer.callback_metrics["train_top1"] == heavier


def test_a_clip_is_mixed_with_one_of_another_video(make_trainer):
    model, batch = make_model(mixup=0.2), make_batch([1, 3], views=2)
    mixed = model._mix = Mixed([[0.0, 1.0, 0.0, 0.0]] * 4)
    make_trainer(fast_dev_run=True).fit(model, loader(batch))
    ((clips, targets),) = mixed.got
    assert targets.argmax(-1).tolist() == [1, 3, 1, 3]  # neighbours, which are mixed, are of different videos
    torch.testing.assert_close(clips[2], make_model().normalise(batch["clips"][0, 1:])[0])


@pytest.mark.parametrize(
    "options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0, "multi_label": True}]
)
def test_mixed_clips_are_learnt_from(make_trainer, options):
    batch = make_batch([0, 1, 2, 3])
    if "multi_label" in options:
        batch["labels"] = torch.eye(4)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(make_model(**options), loader(batch))
    assert 0 < trainer.callback_metrics["train_loss"] < 5


def test_nothing_is_mixed_in_validation(make_trainer):
    model = make_model(mixup=0.2)
    model._mix = Mixed([[0.0]])
    make_trainer().validate(model, loader(*EVAL), verbose=False)
    assert model._mix.got == []


# Several labels


def make_labelled(labels, **options):
    """A batch whose labels are rows of 0 and 1."""
    return make_batch([0] * len(labels), **options) | {"labels": torch.tensor(labels, dtype=torch.float32)}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_each_of_several_labels_is_learnt_by_itself(make_trainer, smoothing):
    model = make_model(multi_label=True, label_smoothing=smoothing)
    batch = make_labelled([[1, 1, 0, 0], [0, 0, 0, 0]], views=2)
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(model, loader(batch))
    fresh = make_model()
    likely = fresh.network(fresh.normalise(batch["clips"].flatten(0, 1))).sigmoid()
    targets = batch["labels"].repeat_interleave(2, 0) * (1 - smoothing) + smoothing / 2
    expected = -(targets * likely.log() + (1 - targets) * (1 - likely).log()).mean()
    assert trainer.callback_metrics["train_loss"] == pytest.approx(expected.item())
    assert "train_top1" not in trainer.callback_metrics


def test_videos_of_several_labels_are_scored_by_average_precision(make_trainer, capsys):
    model = make_model(multi_label=True)
    batches = [make_labelled([[1, 1, 0, 0]], views=2), make_labelled([[0, 1, 0, 0]], views=2, first=1)]
    batches.append(make_labelled([], views=2, first=2, unreadable=[(2, "a.mp4: empty")]))
    batches[-1]["labels"] = torch.empty(0)  # as of a batch that has no row to know the classes from
    trainer = make_trainer()
    trainer.test(model, loader(*batches), verbose=False)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert found.keys() == {f"test_{n}" for n in ("map", "loss", "videos", "unreadable", "blank", "short")}
    assert 0.5 <= found["test_map"] <= 1  # one of two classes has both videos
    assert capsys.readouterr().out.startswith(f"test: mAP {found['test_map']:.4f}, loss {found['test_loss']:.4f} of 2 ")


def test_weights_know_whether_they_give_several_labels(tmp_path, make_trainer):
    model, trainer = make_model(multi_label=True), make_trainer(fast_dev_run=True)
    model.save_pretrained(tmp_path / "weights")
    trainer.fit(model, loader(make_labelled([[1, 0, 1, 0], [0, 0, 0, 0]])))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    model.save_pretrained(tmp_path / "trained")
    for source in ("weights", "trained", "last.ckpt"):
        assert LitCSN.from_pretrained(tmp_path / source).multi_label, source
        assert not LitCSN.from_pretrained(tmp_path / source, num_classes=3).multi_label, source  # a new head
        assert not LitCSN.from_pretrained(tmp_path / source, multi_label=False).multi_label, source
    assert LitCSN.load_from_checkpoint(tmp_path / "last.ckpt").multi_label


def test_probabilities_of_several_labels_are_sigmoids():
    model, batch = make_model(multi_label=True).eval(), make_batch([0, 1], views=3)
    with torch.no_grad():
        logits = model.view_logits(batch["clips"])
        torch.testing.assert_close(model(batch["clips"]), logits.sigmoid().mean(1))


def test_the_best_checkpoint_is_that_of_the_figure_that_is_logged(make_trainer):
    for model, rows in ((make_model(), EVAL), (make_model(multi_label=True), [make_labelled([[1, 0, 0, 1]])])):
        trainer = make_trainer()
        trainer.validate(model, loader(*rows), verbose=False)
        assert model.monitor in trainer.callback_metrics


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_of_the_other_kind_are_refused(make_trainer, multi_label):
    model, data = make_model(multi_label=multi_label), Data(CLASSES)
    data.multi_label = not multi_label
    remedy = f"make the model with multi_label={not multi_label}"
    with pytest.raises(InputError, match=remedy):
        make_trainer(fast_dev_run=True).fit(model, data)
    batch = make_batch([0]) if multi_label else make_labelled([[1, 0, 0, 0]])
    for method in ("fit", "validate"):
        with pytest.raises(InputError, match=r"so that labels are \(1,.*, got \(1,"):
            getattr(make_trainer(fast_dev_run=True), method)(model, loader(batch))


# Scores


def test_the_views_of_a_video_are_averaged_as_by_hand():
    batch = make_batch([0, 1, 2], views=5)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(-1, 1, 1, 1), torch.tensor([0.25, 0.2, 0.5]).view(-1, 1, 1, 1)
    normalised = (batch["clips"] / 255 - mean) / std
    model, by_logits = make_model(views_per_pass=4).eval(), make_model(average="logits").eval()
    with torch.no_grad():
        for each in (model, by_logits):
            each.network.head.weight *= 100  # so sure of themselves that it matters what is averaged
        logits = torch.stack([torch.stack([model.network(view[None])[0] for view in video]) for video in normalised])
        torch.testing.assert_close(model(batch["clips"]), logits.softmax(-1).mean(1))
        torch.testing.assert_close(model(normalised), logits.softmax(-1).mean(1))
        torch.testing.assert_close(by_logits(batch["clips"]), logits.mean(1).softmax(-1))


def test_no_more_views_than_asked_for_go_through_the_network_at_once():
    model = make_model(views_per_pass=4).eval()
    sizes = []
    model.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with torch.no_grad():
        model(make_batch([0, 1], views=5)["clips"])
    assert sizes == [4, 4, 2]


def test_clips_without_views_are_refused():
    with pytest.raises(InputError, match=r"clips must be \(B, V, C, T, H, W\), got \(1, 3, 4, 32, 32\)"):
        make_model()(torch.zeros(1, 3, 4, 32, 32))


@pytest.mark.parametrize(
    ("network", "pooling"),
    [
        ({}, "globally pooled"),
        (
            {"head_pooling": [1, 1, 1], "head_average": "probabilities"},
            "pooled in windows of 1 x 1 x 1 whose probabilities are averaged",
        ),
    ],
)
def test_a_test_is_printed_with_how_it_was_measured(make_trainer, capsys, caplog, network, pooling):
    model = make_model(network=network)
    batches = [
        *EVAL[:-1],
        make_batch([1], views=5, short=True, first=5),
        make_batch([], first=7, unreadable=[(6, "b.mp4: moov atom not found")]),
    ]
    data = Data(CLASSES)
    data.test_dataloader = lambda: loader(*batches)
    trainer = make_trainer()
    trainer.test(model, data, verbose=False)
    expected = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert expected.keys() == {
        f"test_{n}" for n in ("top1", "top5", "macro_f1", "loss", "videos", "unreadable", "blank", "short")
    }
    assert (expected["test_videos"], expected["test_unreadable"]) == (6, 1)
    assert capsys.readouterr().out == (
        f"test: top-1 {expected['test_top1']:.4f}, top-5 1.0000, macro F1 {expected['test_macro_f1']:.4f}, "
        f"loss {expected['test_loss']:.4f} of 6 videos (1 unreadable, left out; 1 shorter than a clip); "
        f"5 clips x 1 crop of 4 frames of 32 x 32 pixels, {pooling}, mean of the views' probabilities\n"
    )
    assert "unreadable videos of the test split, left out:\n  video 6: b.mp4: moov atom not found" in caplog.text


def test_gray_clips_that_stand_for_unreadable_videos_are_scored_and_said(make_trainer, capsys, caplog):
    gray = make_batch([1, 2], first=6, unreadable=[(7, "b.mp4: moov atom not found"), (8, "c.mp4: empty")])
    gray["blank"] = torch.tensor([False, True])
    trainer = make_trainer()
    trainer.test(make_model(), loader(*EVAL, gray), verbose=False)
    counts = {name: trainer.callback_metrics[f"test_{name}"].item() for name in ("videos", "unreadable", "blank")}
    assert counts == {"videos": 8, "unreadable": 2, "blank": 1}
    assert (
        "of 8 videos (1 of these unreadable: gray clips; 1 more left out; 0 shorter than a clip)"
        in capsys.readouterr().out
    )
    assert "left out:\n  video 8: c.mp4: empty" in caplog.text
    assert "with gray clips in their place:\n  video 7: b.mp4: moov atom not found" in caplog.text


def test_nothing_of_an_interrupted_test_is_in_the_next(make_trainer):
    class Stop(L.Callback):
        def on_test_batch_end(self, *args):
            raise RuntimeError("stopped")

    model = make_model()
    with pytest.raises(RuntimeError, match="stopped"):
        make_trainer(callbacks=[Stop()]).test(model, loader(EVAL[5]), verbose=False)
    assert make_trainer().test(model, loader(*EVAL[:2]), verbose=False)[0]["test_videos"] == 2


def test_a_test_step_gives_the_logits_of_each_view(make_trainer):
    class See(L.Callback):
        def on_test_batch_end(self, trainer, module, outputs, *args):
            seen.append(outputs)

    seen, model = [], make_model()
    make_trainer(callbacks=[See()]).test(model, loader(EVAL[1], EVAL[2]), verbose=False)
    with torch.no_grad():
        assert torch.equal(seen[0]["logits"], model.eval().view_logits(EVAL[1]["clips"]))
    assert [outputs["videos"].tolist() for outputs in seen] == [[1], [2]]


def test_a_validation_is_printed_where_it_is_not_part_of_training(make_trainer, capsys):
    model = make_model()
    make_trainer(max_epochs=1).fit(model, loader(*TRAIN), loader(*EVAL))
    assert "val: " not in capsys.readouterr().out
    make_trainer().validate(model, loader(*EVAL), verbose=False)
    assert re.fullmatch(r"val: top-1 .* of 6 videos .*; 5 views of 4 frames .*\n", capsys.readouterr().out)


def test_short_videos_are_counted_in_training(make_trainer):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(make_model(), loader(TRAIN[0], make_batch([1, 2], short=True, first=4)))
    assert trainer.callback_metrics["train_short"] == 2


def test_scores_of_one_test_are_gone_in_the_next(make_trainer):
    model, trainer = make_model(), make_trainer()
    first = trainer.test(model, loader(*EVAL), verbose=False)
    assert trainer.test(model, loader(*EVAL), verbose=False) == first
    assert trainer.test(model, loader(EVAL[0]), verbose=False)[0]["test_videos"] == 1


def test_validation_and_test_of_the_same_videos_agree(make_trainer):
    model, trainer = make_model(), make_trainer()
    tested = trainer.test(model, loader(*EVAL), verbose=False)[0]
    validated = trainer.validate(model, loader(*EVAL), verbose=False)[0]
    assert {name.removeprefix("val_"): value for name, value in validated.items()} == {
        name.removeprefix("test_"): value for name, value in tested.items()
    }


def test_unreadable_videos_are_told_once_in_a_training(make_trainer, caplog):
    broken = make_batch([], first=9, unreadable=[(9, "c.mp4: truncated")])
    with caplog.at_level(logging.WARNING, logger="lightning_csn"):
        make_trainer(max_epochs=3).fit(make_model(), loader(*TRAIN), loader(*EVAL, broken))
    assert caplog.text.count("c.mp4: truncated") == 1


def test_what_is_unreadable_in_one_split_is_not_told_of_another(make_trainer, caplog):
    model, trainer = make_model(), make_trainer()
    trainer.validate(model, loader(*EVAL, make_batch([], first=9, unreadable=[(9, "c.mp4: truncated")])), verbose=False)
    caplog.clear()
    trainer.test(model, loader(*EVAL), verbose=False)
    assert "c.mp4" not in caplog.text


def test_predict_gives_numbers_and_probabilities(make_trainer):
    model = make_model()
    unreadable = [(8, "d.mp4: empty")]
    batches = [*EVAL, make_batch([], first=8, unreadable=unreadable)]
    answers = make_trainer().predict(model, loader(*batches))
    assert torch.equal(torch.cat([answer["videos"] for answer in answers]), torch.arange(6))
    with torch.no_grad():
        expected = torch.cat([model.eval()(batch["clips"]) for batch in EVAL])
    torch.testing.assert_close(torch.cat([answer["probabilities"] for answer in answers]), expected)
    assert [tuple(entry) for entry in answers[-1]["unreadable"]] == unreadable


# Classes


def test_the_names_of_the_data_become_those_of_a_model_without(make_trainer):
    model = make_model(classes=None, num_classes=4)
    make_trainer(fast_dev_run=True).fit(model, Data(CLASSES))
    assert model.classes == model.hparams["classes"] == CLASSES


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["left", "down", "right", "up"], "label 0 is 'left' in the data and 'down' in the model"),
        (["a", "b", "c"], r"the data has 3 classes and the model 4; .* pass num_classes=3"),
        (["a", "b", "c", "d", "e"], r"the data has 5 classes and the model 4; .* pass num_classes=5"),
    ],
)
def test_data_whose_labels_mean_something_else_are_refused(make_trainer, classes, message):
    with pytest.raises(InputError, match=message):
        make_trainer(fast_dev_run=True).fit(make_model(), Data(classes))


def test_a_test_may_have_fewer_classes_or_other_spellings(make_trainer):
    make_trainer(fast_dev_run=True).test(make_model(), Data(["0", "1", "2"]), verbose=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3}, "num_classes is 3, but classes has 4 names"),
        ({"classes": ["a", "b", "a"]}, "'a' is there twice"),
        ({"classes": []}, r"a classifier needs two classes or more, got \[\]"),
        ({"classes": ["a"]}, r"a classifier needs two classes or more, got \['a'\]"),
        ({"classes": None}, "how many classes"),
        ({"classes": None, "num_classes": 1}, "num_classes must be a whole number of 2 or more, got 1"),
        ({"schedule": "cosin"}, "schedule must be one of cosine, steps, constant, got 'cosin'"),
        ({"schedule": "steps"}, "needs milestones"),
        ({"average": "votes"}, "average must be one of probabilities, logits"),
        ({"views_per_pass": 0}, "views_per_pass must be a whole number of 1 or more"),
        ({"lr": -1}, "lr must be a number of 0 or more, got -1"),
        ({"lr": math.nan}, "lr must be a number of 0 or more, got nan"),
        ({"lr": math.inf}, "lr must be a number of 0 or more, got inf"),
        ({"weight_decay": "no"}, "weight_decay must be a number of 0 or more, got 'no'"),
        ({"mixup": -0.1}, "mixup must be a number of 0 or more, got -0.1"),
        ({"cutmix": "1"}, "cutmix must be a number of 0 or more, got '1'"),
        ({"mixup": None}, "mixup must be a number of 0 or more, got None"),  # which is not 0
        ({"cutmix": False}, "cutmix must be a number of 0 or more, got False"),
        ({"label_smoothing": 2}, "label_smoothing must be a number from 0 to 1, got 2"),
        ({"warmup_epochs": -3}, "warmup_epochs must be a number of 0 or more, got -3"),
        ({"milestones": [-1]}, "each of milestones must be a number of 0 or more, got -1"),
        ({"classes": None, "num_classes": "8"}, "num_classes must be a whole number of 2 or more, got '8'"),
        ({"clip": {"frames": 8}}, "clip needs step, .*std too"),
        ({"clip": CLIP | {"length": 8}}, "clip has no length; there are: frames"),
        ({"network": {"num_classes": 3}}, "no option 'num_classes' of a network"),
        ({"network": {"droput": 0.5}}, "no option 'droput' of a network; did you mean dropout"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make_model(**options)


def test_unknown_arguments_are_type_errors():
    with pytest.raises(TypeError, match="learning_rate"):
        make_model(learning_rate=1)


# Files


def is_plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return type(value) in (str, int, float, bool, type(None))


def test_a_lightning_checkpoint_is_plain_and_comes_back_without_the_loader(
    tmp_path, make_trainer, states_equal, monkeypatch
):
    make_model().save_pretrained(tmp_path / "weights")
    model = LitCSN.from_pretrained(
        tmp_path / "weights",
        classes=["a", "b"],
        clip={"step": 3},
        network={"dropout": 0.5, "drop_path": 0.1},
        optimizer_options={"nesterov": True},
        schedule="cosine",
    )
    trainer = make_trainer(max_epochs=1)
    batches = [make_batch([0, 1], first=4)]
    trainer.fit(model, loader(*batches))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    hparams = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert type(hparams) is dict
    assert is_plain(hparams)
    assert hparams["pretrained"] is None
    assert hparams["architecture"] == "ircsn_tiny"
    assert hparams["classes"] == ["a", "b"]
    assert hparams["network"]["dropout"] == 0.5
    assert hparams["clip"] == CLIP | {"step": 3, "sampling": "clip"}

    def load(*args, **kwargs):
        raise AssertionError("a reload must not ask for the pretrained weights")

    monkeypatch.setattr(checkpoints, "load", load)
    back = LitCSN.load_from_checkpoint(tmp_path / "last.ckpt")
    assert states_equal(back.state_dict(), model.state_dict())
    assert (back.clip, back.classes, dict(back.hparams)) == (model.clip, model.classes, dict(model.hparams))
    make_trainer(max_epochs=2).fit(back, loader(*batches), ckpt_path=tmp_path / "last.ckpt")


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path, make_trainer):
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(make_model(), loader(TRAIN[0]))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del content["state_dict"]["network.head.bias"]
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(RuntimeError, match=r"Missing key.*network\.head\.bias"):
        LitCSN.load_from_checkpoint(tmp_path / "last.ckpt")


def test_trap_a_path_in_hyper_parameters_makes_a_checkpoint_that_does_not_open(tmp_path, make_trainer):
    class Naive(L.LightningModule):
        def __init__(self, teacher):
            super().__init__()
            self.save_hyperparameters()

    for model in (Naive(tmp_path / "weights"), make_model(teacher=tmp_path / "weights")):
        trainer = make_trainer()
        trainer.strategy.connect(model)
        model.trainer = trainer
        trainer.save_checkpoint(tmp_path / f"{type(model).__name__}.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        Naive.load_from_checkpoint(tmp_path / "Naive.ckpt", weights_only=True)
    model = LitCSN.load_from_checkpoint(tmp_path / "LitCSN.ckpt", weights_only=True)
    assert model.hparams["teacher"] == str(tmp_path / "weights")


def test_trap_weights_answer_otherwise_in_other_colours_than_their_own(tmp_path):
    make_model().save_pretrained(tmp_path / "weights")
    model = LitCSN.from_pretrained(tmp_path / "weights")
    clips = EVAL[0]["clips"]  # (1, 5, C, T, H, W)
    shares = clips[0] / 255
    mean, std = (torch.tensor(CLIP[name]).view(3, 1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        logits = model.view_logits(clips)[0]
        torch.testing.assert_close(logits, model.network((shares - mean) / std))
        assert (logits - model.network(shares)).abs().max() > 0.1 * logits.std()


def test_hyper_parameters_that_are_not_plain_are_refused():
    with pytest.raises(TypeError, match="not JSON serializable"):
        make_model(optimizer_options={"betas": torch.zeros(2)})


@pytest.mark.parametrize("schedule", [{"schedule": "cosine", "warmup_epochs": 1.5}, {"optimizer": "adamw"}])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, make_trainer, watch_rates, states_equal, schedule):
    class SaveFirstEpoch(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    whole, seen = make_model(**schedule), watch_rates()
    make_trainer(max_epochs=3, callbacks=[SaveFirstEpoch(), seen]).fit(whole, loader(*TRAIN))
    resumed, seen_again = make_model(**schedule), watch_rates()
    trainer = make_trainer(max_epochs=3, callbacks=[seen_again])
    trainer.fit(resumed, loader(*TRAIN), ckpt_path=tmp_path / "first.ckpt")
    assert seen_again.rates == seen.rates[2:]
    assert states_equal(whole.state_dict(), resumed.state_dict())


def test_save_pretrained_gives_back_the_same_model(tmp_path):
    model = make_model().eval()
    model.save_pretrained(tmp_path / "weights")
    back = LitCSN.from_pretrained(tmp_path / "weights")
    clips = make_batch([0, 1], views=2)["clips"]
    with torch.no_grad():
        assert torch.equal(back(clips), model(clips))
    assert (back.clip, back.classes) == (model.clip, model.classes) == (ClipSpec(**CLIP), CLASSES)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, True),
        ({"num_classes": 4}, True),
        ({"classes": CLASSES}, True),
        ({"classes": CLASSES[::-1]}, False),
        ({"classes": ["a", "b", "c", "d"]}, False),
        ({"num_classes": 5}, False),
    ],
)
def test_the_head_stays_only_if_it_was_made_for_the_same_classes(tmp_path, options, kept):
    model = make_model()
    model.save_pretrained(tmp_path / "weights")
    loaded = LitCSN.from_pretrained(tmp_path / "weights", **options)
    trunk, head = loaded.state_dict(), model.network.head.weight
    assert torch.equal(trunk["network.stem.conv.weight"], model.network.stem.conv.weight)
    assert torch.equal(loaded.network.head.weight, head) is kept if loaded.num_classes == 4 else not kept
    expected = CLASSES if kept else options.get("classes")
    assert loaded.classes == loaded.hparams["classes"] == expected


def test_another_architecture_than_that_of_the_weights_is_refused(tmp_path):
    make_model().save_pretrained(tmp_path / "weights")
    with pytest.raises(InputError, match="of architecture ircsn_tiny, not ircsn_50"):
        LitCSN("ircsn_50", pretrained=str(tmp_path / "weights"))


def test_a_path_is_a_path_even_if_it_reads_like_a_name(tmp_path, monkeypatch):
    make_model().save_pretrained(tmp_path / "ircsn_152_ig65m")
    monkeypatch.chdir(tmp_path)
    assert LitCSN.from_pretrained(Path("ircsn_152_ig65m")).classes == CLASSES


def test_a_lightning_checkpoint_is_a_source_of_weights_too(tmp_path, make_trainer, states_equal):
    model = make_model(network={"norm_eps": 1e-5})
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(model, loader(TRAIN[0]))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    back = LitCSN.from_pretrained(tmp_path / "last.ckpt", lr=0.5)
    assert states_equal(back.state_dict(), model.state_dict())
    assert (back.clip, back.classes, back.hparams["lr"]) == (model.clip, CLASSES, 0.5)
    assert back.hparams["network"] == model.hparams["network"]


def test_what_is_known_of_weights_stays_true_when_they_are_trained_further(tmp_path, make_trainer):
    record = checkpoints.Checkpoint(
        architecture="ircsn_tiny",
        num_classes=4,
        classes=CLASSES,
        clip=CLIP,
        trained_on="Motion",
        licence="Apache-2.0",
        measured={"top1": 90.0, "protocol": "10 clips x 1 crop"},
    )
    checkpoints.save(make_model().network, record, tmp_path / "weights")
    model = LitCSN.from_pretrained(tmp_path / "weights", clip={"step": 1})
    model.save_pretrained(tmp_path / "copy")
    copy = checkpoints.load(tmp_path / "copy").checkpoint
    assert copy.measured == record.measured
    assert copy.clip == CLIP | {"step": 1, "sampling": "clip"}
    make_trainer(fast_dev_run=True).fit(model, loader(TRAIN[0]))
    model.save_pretrained(tmp_path / "trained")
    trained = checkpoints.load(tmp_path / "trained").checkpoint
    assert (trained.measured, trained.trained_on, trained.pretrained_on) == (None, None, "Motion")
    assert trained.licence == "Apache-2.0"
