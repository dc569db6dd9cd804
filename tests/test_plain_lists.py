"""Lists without a heading: of videos, of their parts, of several labels, of folders of pictures."""

import logging

import pytest
from conftest import found, touch, write

from lightning_csn.data.annotations import find_samples
from lightning_csn.data.samples import Part
from lightning_csn.errors import InputError


def touch_frames(root, counts, first=1):
    """Folders of so many pictures, which are numbered from `first`."""
    return touch(root, *(f"{folder}/img_{first + i:05d}.jpg" for folder, count in counts.items() for i in range(count)))


def test_a_heading_that_nobody_knows_is_said(tmp_path, caplog):
    touch(tmp_path, "train/run/a.mp4")
    write(tmp_path / "train.csv", "clip_name,state\na.mp4,run\n")
    assert list(find_samples(tmp_path).samples) == ["train"]
    assert "train.csv, line 1: 'clip_name, state' names no video" in caplog.text


def test_segments_and_labels_read_otherwise_if_asked(tmp_path, caplog):
    write(tmp_path / "train.txt", "a.mp4 0 10 3\na.mp4 10 20 1\n")
    touch(tmp_path, "a.mp4")
    with caplog.at_level(logging.INFO):
        collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [
        ("a.mp4", "3", Part(0.0, 10.0)),
        ("a.mp4", "1", Part(10.0, 20.0)),
    ]
    assert (
        "train.txt: its lines are read as path, start, end, label, for two of three numbers rise; layout=multi-l"
        in caplog.text
    )
    labels = find_samples(tmp_path, layout="multi-label")
    assert labels.multi_label
    assert [sample.label for sample in labels.samples["train"]] == [(0, 3, 10), (1, 10, 20)]
    write(tmp_path / "train.txt", "a.mp4 3 7 1\na.mp4 5\n")
    assert find_samples(tmp_path).samples["train"][0].label == (1, 3, 7)
    with pytest.raises(InputError, match=r"train.txt, line 2: 4 columns expected \(path, start, end, label\), got 2"):
        find_samples(tmp_path, layout="segments")


def test_segments_with_the_label_first(tmp_path):
    write(tmp_path / "train.txt", "a.mp4,brush hair,0.5,3\na.mp4,run,3,4\n")
    touch(tmp_path, "a.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train")[0] == ("a.mp4", "brush hair", Part(0.5, 3.0))


@pytest.mark.parametrize("delimiter", [" ", ",", "\t", ";", "|"])
def test_lists_in_a_root_with_any_delimiter_and_spaces_in_names(tmp_path, delimiter):
    write(tmp_path / "train_list.txt", f"my films/a b.mp4{delimiter}brush hair\nc.mp4{delimiter}run\n")
    write(tmp_path / "val_list.txt", f"c.mp4{delimiter}run\n")
    touch(tmp_path, "my films/a b.mp4", "c.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [("my films/a b.mp4", "brush hair"), ("c.mp4", "run")]
    assert collection.layout.startswith("lists: train_list.txt, val_list.txt")


def test_lists_come_before_class_folders_but_not_a_text_that_is_none(tmp_path, caplog):
    touch(tmp_path, "run/a.mp4", "jump/b.mp4")
    write(tmp_path / "train_notes.txt", "we filmed these on a sunny day\nand trained on all 5\n")
    write(tmp_path / "train.log.txt", "epoch 1 loss 5\n")
    assert find_samples(tmp_path).layout == "a folder per class: 2 videos"
    assert "train_notes.txt: passed over, for it is no list of videos that are here" in caplog.text
    caplog.clear()
    write(tmp_path / "val.txt", "nowhere/a.mp4 0\n")
    (tmp_path / "test.txt").write_bytes("run/a.mp4 0\n".encode("utf-16"))
    write(tmp_path / "test.json", "[1,")
    assert find_samples(tmp_path).layout == "a folder per class: 2 videos"
    assert "val.txt: passed over" in caplog.text
    assert caplog.text.count("test.txt: a list of videos is text in UTF-8") == 1
    assert caplog.text.count("test.json, line 1: no JSON") == 1
    caplog.clear()
    find_samples(tmp_path, layout="folders")
    assert "passed over" not in caplog.text
    for name in ("val.txt", "test.txt", "test.json"):
        (tmp_path / name).unlink()
    write(tmp_path / "train.txt", "run/a.mp4 running\n")
    assert find_samples(tmp_path).classes == ["running"]
    assert find_samples(tmp_path, layout="folders").classes == ["jump", "run"]
    write(tmp_path / "train2.txt", "jump/b.mp4 running\n")
    with pytest.raises(InputError, match=r"train.txt and .*train2.txt can both be the list of train; name one"):
        find_samples(tmp_path)


def test_classes_beside_a_list_and_in_a_file_of_ones_own(tmp_path):
    write(tmp_path / "train.txt", "a.mp4 1\nb.mp4 0\n")
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path / "classes.txt", "run\njump\nwave\n")
    collection = find_samples(lists={"train": tmp_path / "train.txt"})
    assert collection.classes == ["run", "jump", "wave"]
    assert found(collection, tmp_path, "train") == [("a.mp4", "jump"), ("b.mp4", "run")]
    own = write(tmp_path / "own.txt", "walk\nstand\n")
    assert find_samples(lists={"train": tmp_path / "train.txt"}, classes=own).classes == ["walk", "stand"]
    write(tmp_path / "train.txt", "a.mp4 3\n")
    with pytest.raises(InputError, match=r"train.txt, line 1: the label '3' is none of the 3 classes of .*classes.txt"):
        find_samples(lists={"train": tmp_path / "train.txt"})


def test_rawframe_lists(tmp_path):
    touch_frames(tmp_path, {"rawframes/run/a": 5, "rawframes/jump/b c": 7})
    write(tmp_path / "demo_train_list_rawframes.txt", "run/a 5 1\njump/b c 7 0\n")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path / "rawframes", "train") == [("run/a", "1"), ("jump/b c", "0")]
    write(tmp_path / "demo_train_list_rawframes.txt", "run/a 5 1 2\njump/b c 7 0\n")
    collection = find_samples(tmp_path)
    assert [sample.label for sample in collection.samples["train"]] == [(1, 2), (0,)]


@pytest.mark.parametrize("first", [0, 1, 7])
def test_parts_of_frame_folders_are_counted_by_the_names_of_pictures(tmp_path, first):
    touch_frames(tmp_path, {"run/0001": 17}, first)
    last = first + 16
    write(tmp_path / "annotations.txt", f"run/0001 {first} {last} 0\nrun/0001 {first + 3} {first + 9} 1\n")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "all") == [("run/0001", "0"), ("run/0001", "1", Part(3, 10, "frames"))]
    write(tmp_path / "annotations.txt", f"run/0001 {first} {last} 0\nrun/0001 {first} {last + 1} 1\n")
    with pytest.raises(InputError, match=rf"annotations.txt, line 2: pictures {first} to {last + 1} were named"):
        find_samples(tmp_path, layout="frame-ranges")


def test_offset_and_count_of_pictures(tmp_path):
    touch_frames(tmp_path, {"run/0001": 17})
    write(tmp_path / "annotations.txt", "run/0001 11 5 0\n")
    assert find_samples(tmp_path).samples["all"][0].part == Part(10, 15, "frames")
