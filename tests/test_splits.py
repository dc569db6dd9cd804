"""Splits of one's own: shares by class, groups in one piece, the same again for the same seed."""

from __future__ import annotations

import logging
import random
from collections import Counter

import pytest

from lightning_csn.data.samples import Part, Sample
from lightning_csn.data.splits import split_samples
from lightning_csn.errors import InputError


def make(counts: dict[int, int]) -> list[Sample]:
    """So many videos of each class."""
    pairs = [(f"{label}/{number}.mp4", label) for label, count in counts.items() for number in range(count)]
    return [Sample(path, label, video) for video, (path, label) in enumerate(pairs)]


def ucf101(classes: int = 4, groups: int = 25) -> list[Sample]:
    """4 to 7 clips of each group, as in UCF101."""
    paths = [
        (f"data/Class{label}/v_Class{label}_g{group:02d}_c{clip:02d}.avi", label)
        for label in range(classes)
        for group in range(1, groups + 1)
        for clip in range(1, 5 + (group + label) % 4)
    ]
    return [Sample(path, label, video) for video, (path, label) in enumerate(paths)]


def counts(samples: list[Sample]) -> Counter:
    return Counter(sample.label for sample in samples)


def test_every_class_is_shared_out_alike_and_every_sample_once():
    samples = make({0: 100, 1: 20, 2: 7})
    splits = split_samples(samples, val=0.2, test=0.1, seed=3)
    assert list(splits) == ["train", "val", "test"]
    assert counts(splits["val"]) == {0: 20, 1: 4, 2: 1}
    assert counts(splits["test"]) == {0: 10, 1: 2, 2: 1}
    paths = [sample.path for found in splits.values() for sample in found]
    assert sorted(paths) == sorted(sample.path for sample in samples)
    assert [sample.video for sample in splits["val"]] == list(range(25))


def test_the_same_seed_gives_the_same_splits_in_whatever_order_files_are_listed():
    samples = ucf101()
    mixed = random.Random(1).sample(samples, len(samples))
    once = split_samples(samples, val=0.2, seed=5)
    assert split_samples(mixed, val=0.2, seed=5) == once
    assert split_samples(samples, val=0.2, seed=6) != once


def test_groups_of_ucf101_are_found_and_kept_together(caplog):
    with caplog.at_level(logging.INFO):
        splits = split_samples(ucf101(), val=0.2, test=0.2)
    assert "these are UCF101's names" in caplog.text
    groups = {split: {sample.path.rsplit("_", 1)[0] for sample in found} for split, found in splits.items()}
    assert not groups["train"] & groups["val"] | groups["train"] & groups["test"] | groups["val"] & groups["test"]
    total = counts(ucf101())
    for split in ("val", "test"):
        for label, count in counts(splits[split]).items():
            assert abs(count - 0.2 * total[label]) <= 3.5  # half a group


def test_groups_by_a_pattern_may_hold_several_classes():
    samples = [Sample(f"{label}/person{person}_{label}.mp4", label, 0) for label in range(5) for person in range(10)]
    splits = split_samples(samples, val=0.3, group=r"person(\d+)_")
    people = {split: {sample.path.split("person")[1][0] for sample in found} for split, found in splits.items()}
    assert (len(people["train"]), len(people["val"])) == (7, 3)
    assert not people["train"] & people["val"]


def test_parts_of_one_video_stay_together():
    samples = [Sample(f"{video}.mp4", part % 2, 0, Part(part, part + 1)) for video in range(20) for part in range(4)]
    splits = split_samples(samples, val=0.25)
    videos = [{sample.path for sample in splits[split]} for split in ("train", "val")]
    assert [len(paths) for paths in videos] == [15, 5]
    assert not videos[0] & videos[1]


def test_several_labels_count_for_each():
    samples = [Sample(f"{video}.mp4", (0, 1) if video % 2 else (2,), 0) for video in range(20)]
    splits = split_samples(samples, val=0.2)
    assert Counter(sample.label for sample in splits["val"]) == {(0, 1): 2, (2,): 2}
    rare = [Sample(f"{video}.mp4", (0, 1) if video < 5 else (0,), 0) for video in range(25)]
    for seed in range(5):  # not only for the first
        splits = split_samples(rare, val=0.2, seed=seed)
        assert Counter(sample.label for sample in splits["val"]) == {(0, 1): 1, (0,): 4}


def test_few_groups_reach_every_split_and_too_few_are_said(caplog):
    two = [Sample(f"v_A_g{group:02d}_c{clip:02d}.avi", 0, 0) for group in (1, 2) for clip in range(5)]
    one = [Sample(f"v_B_g01_c{clip:02d}.avi", 1, 0) for clip in range(5)]
    splits = split_samples(two + one, val=0.2, classes=["A", "B"])
    assert counts(splits["val"]) == {0: 5}
    assert counts(splits["train"]) == {0: 5, 1: 5}
    assert "val has no video of B (1 groups): too few groups" in caplog.text
    assert "train has no" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 0.0}, "shares above 0 and below 1 together, got 0.0 and 0"),
        ({"val": 0.6, "test": 0.4}, "shares above 0 and below 1 together"),
        ({"val": 1.5}, "val must be a number from 0 to 1"),
        ({"val": 0.2, "group": "("}, "group is a regular expression; '\\(' is none"),
        ({"val": 0.2, "group": r"person\d"}, r"is found in none of 10 paths, such as 0/0.mp4"),
        ({"val": 0.2, "seed": -1}, "seed must be"),
        (
            {"val": 0.2, "group": "mp4"},
            "nothing is left for val: 10 samples are in 1 groups that .*; --group 'REGEX' groups otherwise",
        ),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        split_samples(make({0: 10}), **options)
