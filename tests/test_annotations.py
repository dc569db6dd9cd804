"""Which videos there are and what they show, and what is said where nothing fits."""

import pytest
from conftest import found, touch, write

from lightning_csn.data.annotations import find_samples
from lightning_csn.errors import InputError


def test_no_class_is_named_twice(tmp_path):
    with pytest.raises(InputError, match="classes: 'run' names two classes"):
        find_samples(touch(tmp_path, "run/a.mp4"), classes=["run", "jump", "run"])


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


def test_lists_with_names(tmp_path):
    touch(tmp_path, "videos/a.mp4", "videos/b.mp4")
    (tmp_path / "train.txt").write_text("\ufeff# a remark\n\nb.mp4 run\na.mp4 jump\n", encoding="utf-8")
    (tmp_path / "val.csv").write_text(f"{tmp_path}/videos/a.mp4,walk\r\n")
    lists = {"train": tmp_path / "train.txt", "val": tmp_path / "val.csv"}
    collection = find_samples(tmp_path / "videos", lists=lists)
    assert collection.classes == ["jump", "run", "walk"]
    assert found(collection, tmp_path, "train") == [("videos/b.mp4", "run"), ("videos/a.mp4", "jump")]
    assert found(collection, tmp_path, "val") == [("videos/a.mp4", "walk")]
    assert "test" not in collection.samples


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


def test_rows_of_another_split_than_their_list_are_left_out_and_said(tmp_path, caplog):
    path = write(tmp_path / "all.csv", "path,label,split\na.mp4,run,train\nb.mp4,run,val\n")
    touch(tmp_path, "a.mp4", "b.mp4")
    collection = find_samples(lists={"train": path})
    assert found(collection, tmp_path, "train") == [("a.mp4", "run")]
    assert "1 rows are left out, for they belong to another split than their file" in caplog.text


def test_a_list_whose_videos_are_elsewhere_is_told_from_no_list(tmp_path, caplog):
    write(tmp_path / "train.csv", "path,label\nnowhere/a.mp4,run\n")
    with pytest.raises(
        InputError, match=r"train.csv, line 2: no such file: .*nowhere/a.mp4, nor any other that is nam"
    ):
        find_samples(tmp_path)
