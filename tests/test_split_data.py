"""The command split-data: lists that training reads again, and what it refuses."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest
from conftest import touch

from lightning_csn.data.annotations import find_samples
from lightning_csn.data.list_files import read_list
from lightning_csn.data.samples import Collection, Part
from lightning_csn.errors import InputError
from lightning_csn.split_data import run_split_data, split_data_options


def split_data(*words: object) -> int:
    parser = ArgumentParser()
    split_data_options(parser)
    return run_split_data(parser.parse_args([str(word) for word in words]))


def read_back(root: Path, out: Path) -> Collection:
    return find_samples(root, lists={path.stem: path for path in out.glob("t*.txt")} | {"val": out / "val.txt"})


def paths_and_labels(collection: Collection) -> dict[str, object]:
    return {f"{sample.path} {sample.part}": sample.label for found in collection.samples.values() for sample in found}


def test_lists_that_training_reads(tmp_path, capsys):
    root = touch(tmp_path / "videos", *(f"{name}/{i}.mp4" for name in ("run", "brush hair") for i in range(10)))
    assert split_data(root, tmp_path / "lists", "--val", 0.2, "--test", 0.1) == 0
    answers = capsys.readouterr().out.splitlines()
    assert answers[0] == f"{tmp_path}/lists/train.txt: 14 samples of 2 classes"
    assert len(read_list(tmp_path / "lists/val.txt")) == 4
    collection = read_back(root, tmp_path / "lists")
    assert {split: len(found) for split, found in collection.samples.items()} == {"train": 14, "val": 4, "test": 2}
    assert collection.classes == ["brush hair", "run"]
    assert paths_and_labels(collection) == paths_and_labels(find_samples(root))


def test_names_that_lists_must_quote(tmp_path):
    names = [
        "10/#20, a.mp4",
        '10/"b" c.mp4',
        "10/d;e.mp4",
        "2/f 3.mp4",
        "2/ g.mp4",
        "2/h|i.mp4",
        "#3/1.mp4",
        "#3/2.mp4",
    ]
    root = touch(tmp_path / "videos", *names)
    split_data(root, tmp_path / "lists", "--val", 0.4)
    collection = read_back(root, tmp_path / "lists")
    assert collection.classes == ["#3", "10", "2"]
    assert paths_and_labels(collection) == paths_and_labels(find_samples(root))


def test_classes_that_are_numbers_keep_their_order(tmp_path):
    root = touch(tmp_path / "videos", *(f"{name}/{i}.mp4" for name in (10, 2) for i in range(4)))
    split_data(root, tmp_path / "lists")
    collection = read_back(root, tmp_path / "lists")
    assert collection.classes == ["10", "2"]  # as folders are sorted, not eleven classes 0 to 10
    assert paths_and_labels(collection) == paths_and_labels(find_samples(root))


def test_parts_and_several_labels_keep_what_they_are(tmp_path):
    root = touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(8)))
    (root / "train.csv").write_text(
        "path,labels,start,end\n"
        + "".join(f"{i}.mp4,run|brush hair,{start},{start + 2.5}\n" for i in range(8) for start in (0, 3))
    )
    split_data(root, tmp_path / "lists", "--val", 0.25)
    collection = read_back(root, tmp_path / "lists")
    assert collection.multi_label
    assert collection.samples["val"][0][1:] == ((0, 1), 0, Part(0.0, 2.5))
    assert paths_and_labels(collection) == paths_and_labels(find_samples(root))


def test_a_folder_with_train_and_test_gets_a_val_out_of_train(tmp_path):
    root = touch(tmp_path / "videos", *(f"train/run/{i}.mp4" for i in range(5)), "test/run/9.mp4")
    split_data(root, tmp_path / "lists")
    collection = read_back(root, tmp_path / "lists")
    assert {split: len(found) for split, found in collection.samples.items()} == {"train": 4, "val": 1, "test": 1}
    with pytest.raises(InputError, match="there is a test already, with 1 videos; give --test 0"):
        split_data(root, tmp_path / "more", "--test", 0.2)


def test_what_is_refused(tmp_path):
    root = touch(tmp_path / "videos", "a.mp4", "b.mp4")
    with pytest.raises(InputError, match="no videos for train to split, only some without classes"):
        split_data(root, tmp_path / "lists")
    touch(root, *(f"run/{i}.mp4" for i in range(5)))
    touch(tmp_path, "lists/train.txt")
    with pytest.raises(InputError, match=r"train.txt: is there already"):
        split_data(root, tmp_path / "lists")
    with pytest.raises(InputError, match=r"lists/train.txt/deeper: the lists cannot be written"):
        split_data(root, tmp_path / "lists/train.txt/deeper")


def test_copies_of_a_file_stay_together_and_are_counted(tmp_path, capsys):
    root = tmp_path / "videos"
    for name in ("run", "walk"):
        (root / name).mkdir(parents=True)
        for i in range(10):
            (root / name / f"{i}.mp4").write_bytes(b"film %d" % (i % 5))  # four of each film, in both classes
    assert split_data(root, tmp_path / "lists", "--val", 0.4) == 0
    assert "20 files are copies of one another, of 5 videos: copies stay together" in capsys.readouterr().err
    films = {
        split: {Path(sample.path).read_bytes() for sample in found}
        for split, found in read_back(root, tmp_path / "lists").samples.items()
    }
    assert all(films.values())
    assert not films["train"] & films["val"]
