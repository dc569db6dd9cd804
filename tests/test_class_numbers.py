"""The classes of a data set and their numbers: by name, by number, and in a given order."""

import pytest
from conftest import found, touch, write

from lightning_csn.data.annotations import find_samples
from lightning_csn.errors import InputError


def test_given_classes_fix_the_order(tmp_path):
    touch(tmp_path, "run/a.mp4", "jump/b.mp4")
    collection = find_samples(tmp_path, classes=["walk", "run", "jump"])
    assert collection.classes == ["walk", "run", "jump"]
    assert found(collection, tmp_path, "all") == [("jump/b.mp4", "jump"), ("run/a.mp4", "run")]
    with pytest.raises(InputError, match="folder 'jump' is none of the 2 classes; nearest: 'jumping'"):
        find_samples(tmp_path, classes=["jumping", "run"])


def test_folders_that_are_called_by_numbers_are_classes_of_these_names(tmp_path, caplog):
    touch(tmp_path, "10/a.mp4", "2/b.mp4")
    assert find_samples(tmp_path).classes == ["10", "2"]
    with pytest.raises(InputError, match="the folder '10' is none of the 11 classes"):
        find_samples(tmp_path, classes=list("abcdefghijk"))
    touch(tmp_path / "one", "videos/a.mp4")
    assert find_samples(tmp_path / "one").classes == ["videos"]
    assert "one class only, videos; if that is no class" in caplog.text


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
