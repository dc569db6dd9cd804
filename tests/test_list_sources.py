"""Which files are lists, and of which split."""

import pytest
from conftest import found, touch, write

from lightning_csn.data.annotations import find_samples
from lightning_csn.data.list_sources import split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [("k400_train_list_videos", "train"), ("sthv2-validation", "val"), ("TestSet", "test"), ("contest", None)],
)
def test_the_split_that_a_name_speaks_of(name, split):
    assert split_of(name) == split


def test_a_list_of_everything_does_not_count_beside_those_of_splits(tmp_path):
    for name in ("train", "val", "annotations"):
        write(tmp_path / f"{name}.csv", "path,label\na.mp4,run\n")
    touch(tmp_path, "a.mp4")
    assert list(find_samples(tmp_path).samples) == ["train", "val"]


def test_metadata_in_the_folders_of_splits(tmp_path):
    for split, name in (("train", "a"), ("validation", "b")):
        write(tmp_path / split / "metadata.csv", f"file_name,label\nsame.mp4,{name}\n")
        touch(tmp_path, f"{split}/same.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [("train/same.mp4", "a")]
    assert found(collection, tmp_path, "val") == [("validation/same.mp4", "b")]
