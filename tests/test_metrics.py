"""Scores of videos: each counts once, in whatever order and company it came."""

import functools
import math

import pytest
import torch
from torchmetrics.functional.classification import multilabel_average_precision

from lightning_csn.errors import InputError
from lightning_csn.metrics import EpochSums, VideoScores, mean_of_views, mean_to_score, protocol_text

K = 7


def make_videos(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (count,), generator=generator)
    return torch.arange(count), labels, torch.randn(count, K, generator=generator).softmax(-1)


def score(videos, labels, probabilities, *, batches, unreadable=(), short=()):
    scores = VideoScores(num_classes=probabilities.shape[1])
    for numbers in batches:
        scores.update(videos[numbers], labels[numbers], probabilities[numbers])
    scores.update(videos[:0], labels[:0], probabilities[:0], unreadable=unreadable, short=short)
    return {name: value.item() for name, value in scores.compute().items()}


def macro_f1_by_hand(labels, answers):
    each = []
    for k in range(K):
        right = sum(label == k == answer for label, answer in zip(labels, answers, strict=True))
        total = labels.count(k) + answers.count(k)
        if total:
            each.append(2 * right / total)
    return sum(each) / len(each)


def test_scores_are_those_counted_by_hand():
    videos, labels, probabilities = make_videos(40)
    found = score(videos, labels, probabilities, batches=[list(range(40))])
    answers = probabilities.argmax(-1).tolist()
    ranks = [
        sorted(row, reverse=True).index(row[label])
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)
    ]
    losses = [-math.log(row[label]) for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)]
    assert found["top1"] == pytest.approx(sum(rank == 0 for rank in ranks) / 40)
    assert found["top5"] == pytest.approx(sum(rank < 5 for rank in ranks) / 40)
    assert found["macro_f1"] == pytest.approx(macro_f1_by_hand(labels.tolist(), answers))
    assert found["loss"] == pytest.approx(sum(losses) / 40)
    assert (found["videos"], found["unreadable"]) == (40, 0)


def test_order_and_batches_do_not_change_a_digit():
    videos = make_videos(501)
    shuffled = torch.randperm(501, generator=torch.Generator().manual_seed(1)).tolist()
    assert score(*videos, batches=[list(range(501))]) == score(*videos, batches=[shuffled[:7], shuffled[7:], []])


def test_a_repeated_video_counts_once():
    videos = make_videos(5)
    assert score(*videos, batches=[range(5), [0, 0, 3]]) == score(*videos, batches=[range(5)])


def test_unreadable_videos_are_counted_once_and_apart():
    videos = make_videos(5)
    found = score(*videos, batches=[[0, 1, 3]], unreadable=[2, 4, 2, 3])  # 3 could be read elsewhere
    assert found == score(*videos, batches=[[0, 1, 3]]) | {"unreadable": 2}


def test_short_videos_are_counted_once():
    videos = make_videos(5)
    assert score(*videos, batches=[range(5)], short=[1, 4, 1]) == score(*videos, batches=[range(5)]) | {"short": 2}


def test_macro_f1_leaves_out_classes_that_nobody_asked_for_or_gave():
    videos, labels = torch.arange(4), torch.tensor([0, 0, 1, 1])
    probabilities = torch.eye(K)[[0, 0, 1, 0]]
    assert score(videos, labels, probabilities, batches=[range(4)])["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_top5_of_three_classes_is_top3():
    probabilities = torch.tensor([[0.6, 0.3, 0.1]])
    found = score(torch.tensor([0]), torch.tensor([2]), probabilities, batches=[[0]])
    assert (found["top1"], found["top5"]) == (0, 1)


def test_a_probability_of_zero_costs_much_but_not_everything():
    found = score(torch.tensor([0]), torch.tensor([1]), torch.tensor([[1.0, 0.0]]), batches=[[0]])
    assert 80 < found["loss"] < 90


def test_without_a_readable_video_the_scores_are_nan_and_say_so():
    found = score(*make_videos(2), batches=[], unreadable=[0, 1])
    assert all(math.isnan(found[name]) for name in ("top1", "top5", "macro_f1", "loss"))
    assert (found["videos"], found["unreadable"]) == (0, 2)


@pytest.mark.parametrize("label", [-1, K])
def test_a_label_outside_the_classes_is_refused_with_the_video(label):
    videos, labels, probabilities = make_videos(3)
    labels[2] = label
    with pytest.raises(InputError, match=r"1 of 3 videos have no label among 0 to 6 .* video number 2"):
        score(videos, labels, probabilities, batches=[range(3)])


def test_one_class_is_no_classification():
    with pytest.raises(InputError, match="2 classes or more, got 1"):
        VideoScores(num_classes=1)


def test_probabilities_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 7\) expected, got \(2,\), \(2,\) and \(2, 8\)"):
        VideoScores(num_classes=K).update(torch.arange(2), torch.arange(2), torch.ones(2, 8))


def test_scores_are_kept_in_single_precision_whatever_the_network_computes_in():
    scores = VideoScores(num_classes=2)
    scores.update(torch.tensor([0]), torch.tensor([0]), torch.tensor([[0.75, 0.25]], dtype=torch.bfloat16))
    assert scores.probabilities[0].dtype == torch.float32


def test_gray_clips_count_as_unreadable_and_are_scored():
    videos = make_videos(5)
    scores = VideoScores(num_classes=K)
    scores.update(*videos, unreadable=[1, 7], blank=[1, 3])  # 7 was left out
    found = {name: value.item() for name, value in scores.compute().items()}
    assert (found["videos"], found["unreadable"], found["blank"]) == (5, 3, 2)
    assert found == score(*videos, batches=[range(5)]) | {"unreadable": 3, "blank": 2}


# Several labels


def score_several(labels, probabilities, videos=None):
    scores = VideoScores(num_classes=labels.shape[1], multi_label=True)
    scores.update(torch.arange(len(labels)) if videos is None else videos, labels, probabilities)
    return {name: value.item() for name, value in scores.compute().items()}


def average_precision_by_hand(labels, probabilities):
    """Mean, over the videos that have the class, of the share of such videos among those ranked as high."""
    ranked = [label for _, label in sorted(zip(probabilities, labels, strict=True), reverse=True)]
    places = [place for place, label in enumerate(ranked, 1) if label]
    return sum(found / place for found, place in enumerate(places, 1)) / len(places)


def test_map_is_the_mean_over_the_classes_that_occur():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(30, K, generator=generator) < 0.3).float()
    labels[:, 2] = 0  # a class that no video has
    probabilities = torch.rand(30, K, generator=generator)
    found = score_several(labels, probabilities)
    each = [average_precision_by_hand(labels[:, k].tolist(), probabilities[:, k].tolist()) for k in range(K) if k != 2]
    assert found["map"] == pytest.approx(sum(each) / len(each))
    likely = torch.where(labels == 1, probabilities, 1 - probabilities)
    assert found["loss"] == pytest.approx(-likely.log().mean().item())
    assert found.keys() == {"map", "loss", "videos", "unreadable", "blank", "short"}


def test_map_is_that_of_torchmetrics_where_every_class_occurs():
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(40, K, generator=generator) < 0.5).float()
    probabilities = torch.rand(40, K, generator=generator).mul(8).round().div(8)  # with ties
    expected = multilabel_average_precision(probabilities, labels.int(), K, average="macro").item()
    assert score_several(labels, probabilities)["map"] == pytest.approx(expected)


def test_order_changes_no_digit_of_several_labels_and_a_repeated_video_counts_once():
    generator = torch.Generator().manual_seed(2)
    labels, probabilities = (
        (torch.rand(50, K, generator=generator) < 0.3).float(),
        torch.rand(50, K, generator=generator),
    )
    shuffled = torch.cat([torch.randperm(50, generator=generator), torch.tensor([3, 8])])
    found = score_several(labels[shuffled], probabilities[shuffled], shuffled)
    assert found == score_several(labels, probabilities)
    assert found["videos"] == 50


def test_a_process_without_a_video_of_several_labels_has_something_to_send():
    scores = VideoScores(num_classes=K, multi_label=True)
    scores.update(*scores._nothing())
    assert math.isnan(scores.compute()["map"])


@pytest.mark.parametrize("label", [-1.0, 0.5, 2.0, math.nan])
def test_labels_other_than_yes_and_no_are_refused_with_the_video(label):
    labels = torch.zeros(3, K)
    labels[1, 4] = label
    with pytest.raises(InputError, match=r"1 of 3 videos have labels that are not 0 or 1 .* video number 1"):
        score_several(labels, torch.full((3, K), 0.5))


def test_one_label_is_not_several():
    with pytest.raises(ValueError, match=r"\(B,\), \(B, K\) and \(B, 7\) expected, got \(2,\), \(2,\) and \(2, 7\)"):
        VideoScores(num_classes=K, multi_label=True).update(torch.arange(2), torch.arange(2), torch.ones(2, K))


# Views


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_company_of_a_video_changes_no_digit_of_its_mean(average, multi_label):
    logits = torch.randn(9, 30, 400, generator=torch.Generator().manual_seed(0)) * 10
    together = mean_to_score(logits, average, multi_label=multi_label)
    alone = [mean_to_score(video[None], average, multi_label=multi_label) for video in logits.flip(0)]
    assert torch.equal(together, torch.cat(alone).flip(0))
    assert torch.equal(together, mean_of_views(logits.double(), average, multi_label=multi_label).float())
    likely = torch.sigmoid if multi_label else functools.partial(torch.softmax, dim=-1)
    expected = likely(logits.mean(1)) if average == "logits" else likely(logits).mean(1)
    torch.testing.assert_close(together, expected)


def test_the_mean_of_no_videos_is_empty():
    assert mean_to_score(torch.empty(0, 3, K), "logits").shape == (0, K)


@pytest.mark.parametrize(
    ("crops", "pooling", "text"),
    [
        (3, "global", "V of 8 frames of 32 x 32 pixels, globally pooled, mean of the views' logits"),
        ("full", "global", "V of 8 frames of 36 pixels short side, globally pooled, mean of the views' logits"),
    ],
)
def test_a_protocol_says_what_the_network_saw(crops, pooling, text):
    protocol = {"frames": 8, "short_side": 36, "test_crop": 32, "crops": crops, "head_pooling": pooling}
    assert protocol_text(protocol, "logits", "V") == text


def test_sums_of_an_epoch_come_back_from_checkpoints_and_from_those_of_before_there_was_a_teacher():
    sums = EpochSums([4.0, 1.0, 2.0, 6.0, 3.0])  # clips, unreadable, short, loss, right
    sums.add(clips=4, unreadable=0, short=torch.tensor(1), loss=torch.tensor(2.0), right=1, distance=12.0)
    assert EpochSums(sums.to_list()).figures(multi_label=False, taught=True) == {
        "train_loss_epoch": 1.0,
        "train_unreadable": 1.0,
        "train_short": 3.0,
        "train_top1": 0.5,
        "train_distill": 1.5,
    }
    assert EpochSums().figures(multi_label=True, taught=False)["train_loss_epoch"] == 0


def test_numbers_of_a_step_are_made_on_the_device_that_counts(monkeypatch):
    """On a GPU a copy of a number would wait for everything that has been asked of it."""

    def copy(value, **options):
        raise AssertionError(f"{value} is copied")

    for name in ("as_tensor", "tensor"):
        monkeypatch.setattr(torch, name, copy)
    sums = EpochSums.__new__(EpochSums)
    sums._sums = torch.zeros(6)
    number = torch.ones((), dtype=torch.int64)
    for _ in range(2):
        sums.add(torch.device("cpu"), clips=4, unreadable=1, short=number, loss=6.0, right=number, distance=0.0)
    assert sums.to_list() == [8.0, 2.0, 2.0, 12.0, 2.0, 0.0]
