"""Folders of classes: which folders are classes, which are splits, and which are videos in pictures."""

import pytest
from conftest import found, touch

from lightning_csn.data.annotations import find_samples
from lightning_csn.errors import InputError


def test_a_folder_per_class(tmp_path):
    touch(
        tmp_path,
        "run/b.MP4",
        "run/deep/a.avi",
        "jump/c.mkv",
        "jump/.hidden.mp4",
        "jump/notes.txt",
        ".x/d.mp4",
        "run/.x/e.mp4",
    )
    collection = find_samples(tmp_path)
    assert collection.classes == ["jump", "run"]
    assert list(collection.samples) == ["all"]
    assert found(collection, tmp_path, "all") == [
        ("jump/c.mkv", "jump"),
        ("run/b.MP4", "run"),
        ("run/deep/a.avi", "run"),
    ]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("train", "validation", "test"),
        ("Train", "Valid", "TEST"),
        ("training", "val", "testing"),
    ],
)
def test_splits_above_the_classes(tmp_path, train, val, test):
    touch(tmp_path, f"{train}/run/a.mp4", f"{train}/jump/b.mp4", f"{val}/run/c.mp4", f"{test}/walk/d.mp4", "about.txt")
    collection = find_samples(tmp_path)
    assert collection.classes == ["jump", "run", "walk"]  # of all splits, so that each has the same numbers
    assert list(collection.samples) == ["train", "val", "test"]
    assert found(collection, tmp_path, "test") == [(f"{test}/walk/d.mp4", "walk")]


def test_a_split_that_is_not_there_is_not_in_the_result(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "test/run/c.mp4")
    assert list(find_samples(tmp_path).samples) == ["train", "test"]


def test_a_class_may_be_called_like_a_split(tmp_path):
    touch(tmp_path, "train/a.mp4", "bus/b.mp4")  # vehicles
    samples, classes, *_ = find_samples(tmp_path)
    assert classes == ["bus", "train"]
    assert list(samples) == ["all"]


def test_two_folders_for_one_split_are_refused(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "val/run/a.mp4", "validation/run/a.mp4")
    with pytest.raises(InputError, match="val and validation are both there"):
        find_samples(tmp_path)


def touch_frames(root, counts, first=1):
    """Folders of so many pictures, which are numbered from `first`."""
    return touch(root, *(f"{folder}/img_{first + i:05d}.jpg" for folder, count in counts.items() for i in range(count)))


def test_a_folder_per_class_of_frame_folders(tmp_path):
    touch_frames(tmp_path, {"train/run/1": 3, "train/jump/1": 2, "val/run/2": 2})
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [("train/jump/1", "jump"), ("train/run/1", "run")]
    assert collection.layout == "a folder per class in train, val: 3 videos, frames as pictures"


def test_pictures_beside_videos_are_no_videos(tmp_path):
    touch(tmp_path, "run/a.mp4", "run/thumbnails/0001.jpg", "jump/b.mp4", "jump/0001.jpg", "posters/0001.jpg")
    assert found(find_samples(tmp_path), tmp_path, "all") == [("jump/b.mp4", "jump"), ("run/a.mp4", "run")]


def test_a_class_may_be_called_like_a_split_with_frame_folders_too(tmp_path):
    touch_frames(tmp_path, {"train/a": 2, "bus/b": 2})
    assert find_samples(tmp_path).classes == ["bus", "train"]


def test_class_folders_that_hold_pictures_themselves_are_no_classes(tmp_path):
    touch(tmp_path, "run/0001.jpg", "jump/0001.jpg")
    assert find_samples(tmp_path).samples == {}  # two videos without classes
