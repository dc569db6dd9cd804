"""Which videos there are: folders per class, list files, and what is said about those that do not fit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from conftest import found, touch, write

from lightning_csn.data.annotations import find_samples
from lightning_csn.data.samples import Sample
from lightning_csn.errors import InputError


def named(samples: list[Sample], root: Path) -> list[tuple[str, int, int]]:
    return [(Path(path).relative_to(root).as_posix(), label, video) for path, label, video, _ in samples]


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
    samples, classes, *_ = find_samples(tmp_path)
    assert classes == ["jump", "run"]
    assert list(samples) == ["all"]
    assert named(samples["all"], tmp_path) == [("jump/c.mkv", 0, 0), ("run/b.MP4", 1, 1), ("run/deep/a.avi", 1, 2)]


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
    samples, classes, *_ = find_samples(tmp_path)
    assert classes == ["jump", "run", "walk"]  # of all splits, so that each has the same numbers
    assert list(samples) == ["train", "val", "test"]
    assert named(samples["test"], tmp_path) == [(f"{test}/walk/d.mp4", 2, 0)]


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


def test_given_classes_fix_the_order(tmp_path):
    touch(tmp_path, "run/a.mp4", "jump/b.mp4")
    samples, classes, *_ = find_samples(tmp_path, classes=["walk", "run", "jump"])
    assert classes == ["walk", "run", "jump"]
    assert named(samples["all"], tmp_path) == [("jump/b.mp4", 2, 0), ("run/a.mp4", 1, 1)]
    with pytest.raises(InputError, match="folder 'jump' is none of the 2 classes; nearest: 'jumping'"):
        find_samples(tmp_path, classes=["jumping", "run"])


def test_no_class_is_named_twice(tmp_path):
    with pytest.raises(InputError, match="classes: 'run' names two classes"):
        find_samples(touch(tmp_path, "run/a.mp4"), classes=["run", "jump", "run"])


def test_folders_that_are_called_by_numbers_are_classes_of_these_names(tmp_path, caplog):
    touch(tmp_path, "10/a.mp4", "2/b.mp4")
    assert find_samples(tmp_path).classes == ["10", "2"]
    with pytest.raises(InputError, match="the folder '10' is none of the 11 classes"):
        find_samples(tmp_path, classes=list("abcdefghijk"))
    touch(tmp_path / "one", "videos/a.mp4")
    assert find_samples(tmp_path / "one").classes == ["videos"]
    assert "one class only, videos; if that is no class" in caplog.text


def test_a_folder_without_videos_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "run/a.txt")
    with pytest.raises(InputError, match=r"(?s)no videos in it; looked for.*CLASS/VIDEO.*\.mp4"):
        find_samples(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_samples(tmp_path / "nowhere")
    with pytest.raises(InputError, match="name a folder"):
        find_samples()


def test_videos_without_classes_have_no_split(tmp_path):
    touch(tmp_path, "b.mp4", "a.webm", "c.txt")
    assert find_samples(tmp_path) == ({}, [], "videos without classes", False, ())


def test_folders_of_photos_are_told_from_videos_without_classes(tmp_path, caplog):
    touch(tmp_path, "cat/IMG_1.jpg", "dog/IMG_1.jpg", "dog/IMG_2.jpg")
    assert find_samples(tmp_path).samples == {}
    assert f"{tmp_path}: cat, dog are read as videos, folders of their frames" in caplog.text


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


def test_lists_with_names(tmp_path):
    touch(tmp_path, "videos/a.mp4", "videos/b.mp4")
    (tmp_path / "train.txt").write_text("\ufeff# a remark\n\nb.mp4 run\na.mp4 jump\n", encoding="utf-8")
    (tmp_path / "val.csv").write_text(f"{tmp_path}/videos/a.mp4,walk\r\n")
    lists = {"train": tmp_path / "train.txt", "val": tmp_path / "val.csv"}
    samples, classes, *_ = find_samples(tmp_path / "videos", lists=lists)
    assert classes == ["jump", "run", "walk"]
    assert named(samples["train"], tmp_path) == [("videos/b.mp4", 1, 0), ("videos/a.mp4", 0, 1)]
    assert named(samples["val"], tmp_path) == [("videos/a.mp4", 2, 0)]
    assert "test" not in samples


def test_lists_with_numbers(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "train.txt").write_text("a.mp4 11\nb.mp4 02\n")
    samples, classes, *_ = find_samples(lists={"train": tmp_path / "train.txt"})  # relative to the list's own folder
    assert classes == [str(number) for number in range(12)]
    assert [sample.label for sample in samples["train"]] == [11, 2]
    samples, classes, *_ = find_samples(lists={"train": tmp_path / "train.txt"}, classes=list("abcdefghijkl"))
    assert classes[11] == "l"
    assert [sample.label for sample in samples["train"]] == [11, 2]


def test_classes_that_are_called_like_numbers_go_by_name(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "train.txt").write_text("a.mp4 1\n")
    samples, *_ = find_samples(lists={"train": tmp_path / "train.txt"}, classes=["1", "0"])
    assert samples["train"][0].label == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 run\nb.mp4\n", r"val.csv, line 2: 2 columns expected \(path, label\), got 1: 'b.mp4'"),
        ("a.mp4,run,5\n", r"val.csv, line 1: 2 columns expected \(path, label\), got 3: 'a.mp4, run, 5'"),
        ("a.mp4 run\n\nb.mp4 rum\n", "val.csv, line 3: the label 'rum' is none of the 2 classes; nearest: 'run'"),
        ("a.mp4 0\nb.mp4 2\n", "val.csv, line 2: the label '2' is none of the 2 classes, 0 to 1"),
        ("a.mp4 0\nb.mp4 -2\n", "val.csv, line 2: the label '-2' is none of the 2 classes, 0 to 1"),
        (
            "what,state\na.mp4,run\n",
            "val.csv, line 1: 'what, state' names no video, .* call a column 'path' and one 'la",
        ),
        ("what,state\na.mp4,run\n", "known are also file, .*filename, .* and labels, class, "),
        ("x.mp4 run\ny.mp4 run", "val.csv, line 1: no such file: .*x.mp4; none of the list's 2 videos is there"),
        ("# nothing\n", "val.csv: no line names a video"),
    ],
)
def test_what_is_wrong_in_a_list_is_said_with_file_and_line(tmp_path, text, message):
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "val.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        find_samples(tmp_path, lists={"val": tmp_path / "val.csv"}, classes=["run", "jump"])


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


def test_rows_of_another_split_than_their_list_are_left_out_and_said(tmp_path, caplog):
    path = write(tmp_path / "all.csv", "path,label,split\na.mp4,run,train\nb.mp4,run,val\n")
    touch(tmp_path, "a.mp4", "b.mp4")
    collection = find_samples(lists={"train": path})
    assert found(collection, tmp_path, "train") == [("a.mp4", "run")]
    assert "1 rows are left out, for they belong to another split than their file" in caplog.text


def test_numbers_may_have_gaps_and_no_decimals_and_minus_1_is_not_known(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    write(tmp_path / "train.txt", "a.mp4 0.0\nb.mp4 10.0\nc.mp4 2\n")
    write(tmp_path / "test.txt", "a.mp4 -1\nb.mp4 -1\n")
    collection = find_samples(tmp_path)
    assert collection.classes == [str(number) for number in range(11)]
    assert [sample.label for sample in collection.samples["train"]] == [0, 10, 2]
    assert [sample.label for sample in collection.samples["test"]] == [-1, -1]
    write(tmp_path / "test.txt", "a.mp4 -2\n")
    with pytest.raises(InputError, match=r"test.txt, line 1: the label '-2' is none of the 11 classes, 0 to 10"):
        find_samples(tmp_path)
    (tmp_path / "test.txt").unlink()
    write(tmp_path / "train.txt", "a.mp4 20261122131500\n")
    with pytest.raises(InputError, match="20261122131500 is a label, and too large for the number of a class"):
        find_samples(tmp_path)


def test_numbers_from_1_are_said(tmp_path, caplog):
    path = write(tmp_path / "train.txt", "a.mp4 1\na.mp4 2\n")
    touch(tmp_path, "a.mp4")
    assert find_samples(lists={"train": path}).classes == ["0", "1", "2"]
    assert "labels go from 1 to 2: there is a class 0 too, of which no video is" in caplog.text


def test_videos_of_a_list_that_are_not_there_stay_and_are_counted(tmp_path, caplog):
    path = write(tmp_path / "train.txt", "a.mp4 run\ngone.mp4 run\n")
    touch(tmp_path, "a.mp4")
    collection = find_samples(tmp_path, lists={"train": path})
    assert [Path(sample.path).name for sample in collection.samples["train"]] == ["a.mp4", "gone.mp4"]
    assert "train.txt: 1 of 2 videos are not there, such as" in caplog.text


def test_a_list_whose_videos_are_elsewhere_is_told_from_no_list(tmp_path, caplog):
    write(tmp_path / "train.csv", "path,label\nnowhere/a.mp4,run\n")
    with pytest.raises(
        InputError, match=r"train.csv, line 2: no such file: .*nowhere/a.mp4, nor any other that is nam"
    ):
        find_samples(tmp_path)
