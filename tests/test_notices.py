"""What a log says of how videos were found."""

import logging
from pathlib import Path

import pytest
from conftest import found, touch, write

from lightning_csn.data.annotations import find_samples


def test_videos_left_out_and_empty_folders_are_said(tmp_path, caplog):
    touch(tmp_path, "train/run/a.mp4", "train/empty/a.txt", "train/loose.mp4", "extra/run/b.mp4")
    # a video beside the class folders makes train a class itself
    with caplog.at_level(logging.WARNING):
        assert find_samples(tmp_path).classes == ["extra", "train"]
    (tmp_path / "train/loose.mp4").unlink()
    touch(tmp_path, "val/run/c.mp4")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert find_samples(tmp_path).classes == ["run"]
    assert "the videos in extra/ are left out, for they are in none of train/, val/" in caplog.text
    assert "no videos in empty" in caplog.text
    touch(tmp_path / "flat", "run/a.mp4", "loose.mp4")
    find_samples(tmp_path / "flat")
    assert "1 videos that are in no class folder are left out" in caplog.text


@pytest.mark.parametrize(
    ("splits", "instead"), [(("",), "{0}/one in place of {0}"), (("train/", "val/"), "the folder above the splits")]
)
def test_a_root_that_is_too_high_is_doubted(tmp_path, caplog, splits, instead):
    for split in splits:
        touch(tmp_path, f"{split}one/run/1.mp4", f"{split}one/walk/1.mp4", f"{split}two/lists/jump/1.mp4")
    assert find_samples(tmp_path).classes == ["one", "two"]
    said = "those of one in run, walk; if these folders are the classes, or splits, and one is none, name "
    assert said + instead.format(tmp_path) in caplog.text


@pytest.mark.parametrize("names", [["a/p1/1.mp4", "a/p2/1.mp4", "b/1.mp4"], ["a/x/1.mp4", "b/x/1.mp4"]])
def test_a_root_that_may_be_right_is_not(tmp_path, caplog, names):
    touch(tmp_path, *names)
    find_samples(tmp_path)
    assert caplog.text == ""


def test_names_with_the_ending_of_another_file_are_found_by_their_stem_and_said(tmp_path, caplog):
    write(tmp_path / "lists/train_data.csv", "fname,label,comment\na.npy,run,None\nb.npy,jump,x\n")
    write(tmp_path / "lists/val_data.csv", "fname,label,comment\nc.npy,run,None\n")
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "train/run/c.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path / "train", "train") == [("run/a.mp4", "run"), ("jump/b.mp4", "jump")]
    assert found(collection, tmp_path / "train", "val") == [("run/c.mp4", "run")]
    assert "train_data.csv names .npy files; the .mp4 files called the same are taken" in caplog.text


def test_paths_that_are_found_in_another_folder_are_said_and_those_of_some_are_missing(tmp_path, caplog):
    touch(tmp_path, "train/run/1.mp4", "train/run/2.mp4", "val/run/1.mp4")
    write(tmp_path / "mistyped.txt", "trian/run/1.mp4 run\ntrian/run/2.mp4 run\n")
    collection = find_samples(tmp_path, lists={"train": tmp_path / "mistyped.txt"})
    assert found(collection, tmp_path / "train/run", "train") == [("1.mp4", "run"), ("2.mp4", "run")]
    said = "mistyped.txt: 2 of 2 paths were found in train/run/ by their names, where trian/run/ is written"
    assert said in caplog.text
    caplog.clear()
    write(tmp_path / "v.txt", "val/run/1.mp4 run\nval/run/2.mp4 run\n")
    collection = find_samples(tmp_path, lists={"val": tmp_path / "v.txt"})
    assert found(collection, tmp_path / "val/run", "val") == [("1.mp4", "run"), ("2.mp4", "run")]  # no video of train
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/v.txt: 1 of 2 videos are not there, such as {tmp_path}/val/run/2.mp4"
    ]


def test_videos_of_a_list_that_are_not_there_stay_and_are_counted(tmp_path, caplog):
    path = write(tmp_path / "train.txt", "a.mp4 run\ngone.mp4 run\n")
    touch(tmp_path, "a.mp4")
    collection = find_samples(tmp_path, lists={"train": path})
    assert [Path(sample.path).name for sample in collection.samples["train"]] == ["a.mp4", "gone.mp4"]
    assert "train.txt: 1 of 2 videos are not there, such as" in caplog.text
