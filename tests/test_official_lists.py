"""Lists of published data sets with files as their makers write them: what is found, and what is wrong with it."""

import json
import logging
from pathlib import Path

import pytest
from conftest import found, touch, write

from lightning_csn.data.annotations import find_samples
from lightning_csn.data.samples import Part
from lightning_csn.errors import InputError


def make_ucf101(root: Path) -> Path:
    videos = [f"{name}/v_{name}_g{group:02d}_c01.avi" for name in ("Archery", "YoYo") for group in (1, 2, 8)]
    touch(root, *(f"UCF-101/{video}" for video in videos))
    lists = root / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 Archery\r\n2 YoYo\r\n\r\n")
    for fold, test in (("01", "g01"), ("02", "g02")):
        write(lists / f"testlist{fold}.txt", "".join(f"{v}\n" for v in videos if test in v))
        train = [f"{v} {1 + v.startswith('Y')}\n" for v in videos if test not in v]
        write(lists / f"trainlist{fold}.txt", "".join(train))
    return root


def test_ucf101(tmp_path):
    collection = find_samples(make_ucf101(tmp_path))
    assert collection.layout == (
        "UCF101 split 1: ucfTrainTestlist/classInd.txt, ucfTrainTestlist/trainlist01.txt, "
        "ucfTrainTestlist/testlist01.txt; videos in UCF-101/"
    )
    assert collection.classes == ["Archery", "YoYo"]
    assert found(collection, tmp_path / "UCF-101", "test") == [
        ("Archery/v_Archery_g01_c01.avi", "Archery"),
        ("YoYo/v_YoYo_g01_c01.avi", "YoYo"),
    ]
    assert len(collection.samples["train"]) == 4
    second = find_samples(tmp_path, fold=2)
    assert "split 2" in second.layout
    assert {Path(sample.path).name[-11:] for sample in second.samples["test"]} == {"g02_c01.avi"}


def test_ucf101_lists_may_be_named(tmp_path):
    make_ucf101(tmp_path)
    lists = {split: tmp_path / f"ucfTrainTestlist/{split}list02.txt" for split in ("train", "test")}
    collection = find_samples(tmp_path, lists=lists)
    assert collection.classes == ["Archery", "YoYo"]
    assert [sample.label for sample in collection.samples["test"]] == [0, 1]


def test_ucf101_with_a_number_that_is_not_the_folders(tmp_path):
    make_ucf101(tmp_path)
    write(tmp_path / "ucfTrainTestlist/trainlist01.txt", "Archery/v_Archery_g02_c01.avi 2\n")
    with pytest.raises(InputError, match=r"trainlist01.txt, line 1: Archery is number 1 in classInd.txt, got 2"):
        find_samples(tmp_path)
    write(tmp_path / "ucfTrainTestlist/trainlist01.txt", "\nArcher/v_Archery_g02_c01.avi 1\n")
    with pytest.raises(InputError, match=r"trainlist01.txt, line 2: 'Archer' is none of the 2 classes of classInd.txt"):
        find_samples(tmp_path)


def test_where_official_lists_lie_is_not_worth_a_warning(tmp_path, caplog):
    find_samples(make_ucf101(tmp_path))
    assert caplog.text == ""


def test_hmdb51(tmp_path):
    names = {"brush_hair": ["a_1.avi", "#20_a.avi", "b c;(x).avi"], "wave": ["d.avi", "e.avi"]}
    touch(tmp_path, *(f"hmdb51_org/{name}/{video}" for name, videos in names.items() for video in videos))
    splits = tmp_path / "testTrainMulti_7030_splits"
    write(splits / "brush_hair_test_split1.txt", "a_1.avi 1 \n#20_a.avi 2 \nb c;(x).avi 0 \n")
    write(splits / "brush_hair_test_split3.txt", "b c;(x).avi 1 \n")
    write(splits / "wave_test_split1.txt", "d.avi 2 \ne.avi 1 \n")
    write(splits / "wave_test_split3.txt", "d.avi 1 \n")
    collection = find_samples(tmp_path)
    assert collection.classes == ["brush_hair", "wave"]
    videos = tmp_path / "hmdb51_org"
    assert found(collection, videos, "train") == [("brush_hair/a_1.avi", "brush_hair"), ("wave/e.avi", "wave")]
    assert found(collection, videos, "test") == [("brush_hair/#20_a.avi", "brush_hair"), ("wave/d.avi", "wave")]
    assert collection.layout == "HMDB51 split 1: testTrainMulti_7030_splits/*_test_split1.txt; videos in hmdb51_org/"
    assert found(find_samples(tmp_path, fold=3), videos, "train")[0] == ("brush_hair/b c;(x).avi", "brush_hair")
    write(splits / "wave_test_split1.txt", "d.avi 2\ne.avi 3\n")
    with pytest.raises(InputError, match=r"wave_test_split1.txt, line 2: a video and 0, 1 \(train\) or 2 \(test\)"):
        find_samples(tmp_path)


KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\n"


def test_kinetics(tmp_path, caplog):
    write(
        tmp_path / "annotations/train.csv",
        f"{KINETICS}abseiling,-3B32lodo2M,59,69,train,0\n"
        '"passing American football (in game)",-4WRh-5IhP0,0,10,train,0\n'
        "abseiling,gone,10,20,train,0\nabseiling,plain,3,13,train,0\n",
    )
    write(tmp_path / "annotations/val.csv", f"{KINETICS}abseiling,0wR5jVB-WPk,417,427,validate,0\n")
    write(tmp_path / "annotations/test.csv", "youtube_id,time_start,time_end,split\nabc,1,11,test\n")
    touch(tmp_path, "train/-3B32lodo2M_000059_000069.mp4", "val/0wR5jVB-WPk_000417_000427.mp4", "train/plain.webm")
    touch(tmp_path, "train/passing American football (in game)/-4WRh-5IhP0_000000_000010.mp4", "test/abc.mp4")
    with caplog.at_level(logging.INFO):
        collection = find_samples(tmp_path)
    assert collection.classes == ["abseiling", "passing American football (in game)"]
    assert found(collection, tmp_path, "train") == [
        ("train/-3B32lodo2M_000059_000069.mp4", "abseiling"),
        (
            "train/passing American football (in game)/-4WRh-5IhP0_000000_000010.mp4",
            "passing American football (in game)",
        ),
        ("train/plain.webm", "abseiling"),
    ]
    assert found(collection, tmp_path, "val") == [("val/0wR5jVB-WPk_000417_000427.mp4", "abseiling")]
    assert found(collection, tmp_path, "test") == [("test/abc.mp4", None)]
    assert collection.missing == (("train", "gone_000010_000020"),)
    assert "1 of 6 videos are not there and left out; the first is gone_000010_000020 of train" in caplog.text
    assert "layout=kinetics-untrimmed" in caplog.text  # for plain.webm
    whole = find_samples(tmp_path, layout="kinetics-untrimmed")
    assert found(whole, tmp_path, "train")[2] == ("train/plain.webm", "abseiling", Part(3.0, 13.0))
    assert found(whole, tmp_path, "train")[0] == ("train/-3B32lodo2M_000059_000069.mp4", "abseiling")


def test_kinetics_with_a_time_that_is_none(tmp_path):
    write(tmp_path / "train.csv", f"{KINETICS}abseiling,abc,x,10,train,0\n")
    with pytest.raises(InputError, match=r"train.csv, line 2: a number expected, got 'x'"):
        find_samples(tmp_path)


def test_something_something_v2(tmp_path):
    labels = tmp_path / "labels"
    write(labels / "labels.json", '{"Pushing something off of something": "1", "Holding something": "0"}')
    train = [
        {"id": "7", "label": "holding pen", "template": "Holding [something]", "placeholders": ["pen"]},
        {"id": "8", "label": "x", "template": "Pushing [something] off of [something]", "placeholders": ["a", "b"]},
    ]
    write(labels / "train.json", json.dumps(train))
    write(labels / "validation.json", json.dumps([train[0] | {"id": "9"}]))
    write(labels / "test.json", json.dumps([{"id": "10"}]))
    touch(tmp_path, *(f"20bn-something-something-v2/{number}.webm" for number in (7, 8, 9, 10)))
    collection = find_samples(tmp_path)
    assert collection.classes == ["Holding something", "Pushing something off of something"]
    videos = tmp_path / "20bn-something-something-v2"
    assert found(collection, videos, "train") == [
        ("7.webm", "Holding something"),
        ("8.webm", "Pushing something off of something"),
    ]
    assert found(collection, videos, "val") == [("9.webm", "Holding something")]
    assert found(collection, videos, "test") == [("10.webm", None)]
    assert collection.layout.startswith("Something-Something v2: labels/labels.json, labels/train.json")


def test_a_template_that_is_no_class_and_json_that_is_none(tmp_path):
    write(tmp_path / "sth-labels.json", '{"Holding something": "0"}')
    path = write(tmp_path / "sth-train.json", json.dumps([{"id": "7", "template": "Holding [things]"}]))
    touch(tmp_path, "7.webm")
    with pytest.raises(InputError, match=r"sth-train.json, entry 1: the label 'Holding things' is none of the 1 class"):
        find_samples(tmp_path)
    path.write_text('[{"id": "7",\n "template": }]')
    with pytest.raises(InputError, match=r"sth-train.json, line 2: no JSON"):
        find_samples(tmp_path, lists={"train": path})


def test_jester_and_something_something_v1(tmp_path):
    write(tmp_path / "annotations/jester-v1-labels.csv", "Swiping Left\nDoing other things\nPutting a, b and c\n")
    write(tmp_path / "annotations/jester-v1-train.csv", "24;Doing other things\n25;Putting a, b and c\n")
    write(tmp_path / "annotations/jester-v1-validation.csv", "26;Swiping Left\n")
    write(tmp_path / "annotations/jester-v1-test.csv", "27\n")
    touch(tmp_path, *(f"20bn-jester-v1/{video}/0000{i}.jpg" for video in (24, 25, 26, 27) for i in (1, 2)))
    collection = find_samples(tmp_path)
    assert collection.classes == ["Swiping Left", "Doing other things", "Putting a, b and c"]
    videos = tmp_path / "20bn-jester-v1"
    assert found(collection, videos, "train") == [("24", "Doing other things"), ("25", "Putting a, b and c")]
    assert found(collection, videos, "val") == [("26", "Swiping Left")]
    assert found(collection, videos, "test") == [("27", None)]


def test_moments_in_time(tmp_path):
    write(tmp_path / "moments_categories.txt", "clapping,0\nboxing,1\n")
    write(tmp_path / "trainingSet.csv", "boxing/a_1.mp4,boxing,3,0\nclapping/b.mp4,clapping,2,1\n")
    write(tmp_path / "validationSet.csv", "clapping/c.mp4,clapping,3,0\n")
    touch(tmp_path, "training/boxing/a_1.mp4", "training/clapping/b.mp4", "validation/clapping/c.mp4")
    collection = find_samples(tmp_path)
    assert collection.classes == ["clapping", "boxing"]
    assert found(collection, tmp_path / "training", "train") == [
        ("boxing/a_1.mp4", "boxing"),
        ("clapping/b.mp4", "clapping"),
    ]
    assert found(collection, tmp_path / "validation", "val") == [("clapping/c.mp4", "clapping")]


def test_activitynet(tmp_path, caplog):
    surf = [{"label": "Surfing", "segment": [1.5, 20]}, {"label": "Rock climbing", "segment": [30, 41]}]
    database = {
        "a": {"subset": "training", "annotations": surf},
        "b": {"subset": "validation", "annotations": [*surf[:1], {"label": "Surfing", "segment": [7.5, 7.5]}]},
        "c": {"subset": "testing", "annotations": []},
        "gone": {"subset": "training", "annotations": surf[:1]},
    }
    write(tmp_path / "activity_net.v1-3.min.json", json.dumps({"database": database, "taxonomy": []}))
    touch(tmp_path, "videos/v_a.mp4", "videos/b.mkv", "videos/v_c.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [
        ("videos/v_a.mp4", "Surfing", Part(1.5, 20.0)),
        ("videos/v_a.mp4", "Rock climbing", Part(30.0, 41.0)),
    ]
    assert found(collection, tmp_path, "val") == [("videos/b.mkv", "Surfing", Part(1.5, 20.0))]
    assert collection.missing == (("train", "gone"),)
    assert "1 segments of no length are left out, the first of b" in caplog.text
