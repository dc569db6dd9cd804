"""Scores of videos: each counts once, in whatever order and company it came."""

import math

import pytest
import torch

from lightning_csn.errors import InputError
from lightning_csn.metrics import VideoScores

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
