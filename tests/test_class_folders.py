"""Folders of classes: which folders are classes, which are splits, and which are videos in pictures."""

from conftest import found, touch

from lightning_csn.data.annotations import find_samples


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
