"""Every layout with files as their makers write them: what is found, what it is called, and what is wrong with it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from lightning_csn.data.annotations import find_samples
from lightning_csn.data.layouts import LAYOUTS, reading_of, split_of
from lightning_csn.data.list_files import Line, parse_line
from lightning_csn.data.samples import Collection, Part
from lightning_csn.errors import InputError


def make(root: Path, *names: str, **texts: str) -> Path:
    """Empty files of these names, and files with texts."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def found(collection: Collection, root: Path, split: str) -> list[tuple[str, object]]:
    """Path and name of the label, or names of several, of each sample; the parts of those that are parts."""
    classes = collection.classes
    answers = []
    for number, sample in enumerate(collection.samples[split]):
        assert sample.video == number
        label = sample.label
        if isinstance(label, tuple):
            name: object = tuple(classes[i] for i in label)
        else:
            name = classes[label] if label >= 0 else None
        path = Path(sample.path).relative_to(root).as_posix()
        answers.append((path, name) if sample.part is None else (path, name, sample.part))
    return answers


# ---------------------------------------------------------------- official files


def make_ucf101(root: Path) -> Path:
    videos = [f"{name}/v_{name}_g{group:02d}_c01.avi" for name in ("Archery", "YoYo") for group in (1, 2, 8)]
    make(root, *(f"UCF-101/{video}" for video in videos))
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


def test_hmdb51(tmp_path):
    names = {"brush_hair": ["a_1.avi", "#20_a.avi", "b c;(x).avi"], "wave": ["d.avi", "e.avi"]}
    make(tmp_path, *(f"hmdb51_org/{name}/{video}" for name, videos in names.items() for video in videos))
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
    make(tmp_path, "train/-3B32lodo2M_000059_000069.mp4", "val/0wR5jVB-WPk_000417_000427.mp4", "train/plain.webm")
    make(tmp_path, "train/passing American football (in game)/-4WRh-5IhP0_000000_000010.mp4", "test/abc.mp4")
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
    make(tmp_path, *(f"20bn-something-something-v2/{number}.webm" for number in (7, 8, 9, 10)))
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
    make(tmp_path, "7.webm")
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
    make(tmp_path, *(f"20bn-jester-v1/{video}/0000{i}.jpg" for video in (24, 25, 26, 27) for i in (1, 2)))
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
    make(tmp_path, "training/boxing/a_1.mp4", "training/clapping/b.mp4", "validation/clapping/c.mp4")
    collection = find_samples(tmp_path)
    assert collection.classes == ["clapping", "boxing"]
    assert found(collection, tmp_path / "training", "train") == [
        ("boxing/a_1.mp4", "boxing"),
        ("clapping/b.mp4", "clapping"),
    ]
    assert found(collection, tmp_path / "validation", "val") == [("clapping/c.mp4", "clapping")]


def test_diving48(tmp_path):
    write(tmp_path / "Diving48_vocab.json", '[["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis"]]')
    record = {"vid_name": "_8Vy3dlHg2w_00000", "label": 1, "start_frame": 0, "end_frame": 96}
    write(tmp_path / "Diving48_V2_train.json", json.dumps([record]))
    write(tmp_path / "Diving48_V2_test.json", json.dumps([record | {"vid_name": "other", "label": 0}]))
    make(tmp_path, "rgb/_8Vy3dlHg2w_00000.mp4", "rgb/other.mp4")
    collection = find_samples(tmp_path)
    assert collection.classes == ["Back 15som 05Twis FREE", "Forward Dive NoTwis"]
    part = Part(0, 96, "frames")
    assert found(collection, tmp_path, "train") == [("rgb/_8Vy3dlHg2w_00000.mp4", "Forward Dive NoTwis", part)]
    assert found(collection, tmp_path, "test")[0][1] == "Back 15som 05Twis FREE"


def test_activitynet(tmp_path, caplog):
    surf = [{"label": "Surfing", "segment": [1.5, 20]}, {"label": "Rock climbing", "segment": [30, 41]}]
    database = {
        "a": {"subset": "training", "annotations": surf},
        "b": {"subset": "validation", "annotations": [*surf[:1], {"label": "Surfing", "segment": [7.5, 7.5]}]},
        "c": {"subset": "testing", "annotations": []},
        "gone": {"subset": "training", "annotations": surf[:1]},
    }
    write(tmp_path / "activity_net.v1-3.min.json", json.dumps({"database": database, "taxonomy": []}))
    make(tmp_path, "videos/v_a.mp4", "videos/b.mkv", "videos/v_c.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [
        ("videos/v_a.mp4", "Surfing", Part(1.5, 20.0)),
        ("videos/v_a.mp4", "Rock climbing", Part(30.0, 41.0)),
    ]
    assert found(collection, tmp_path, "val") == [("videos/b.mkv", "Surfing", Part(1.5, 20.0))]
    assert collection.missing == (("train", "gone"),)
    assert "1 segments of no length are left out, the first of b" in caplog.text


# ---------------------------------------------------------------- records


def test_csv_with_a_heading_and_columns_that_are_passed_over(tmp_path):
    write(tmp_path / "train.csv", "Comment,File Name,FNAME,Label\nx,,a.mp4,brush hair\n,,sub/b.mp4,wave\n")
    make(tmp_path, "a.mp4", "sub/b.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [("a.mp4", "brush hair"), ("sub/b.mp4", "wave")]
    assert collection.layout == f"lists with a heading: train.csv; videos in {tmp_path.name}/"


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_csv_of_all_splits_with_any_delimiter(tmp_path, delimiter):
    lines = [("path", "split", "class"), ("a b.mp4", "train", "run"), ("c.mp4", "validation", "run, fast")]
    lines += [("d.mp4", "test", "")]
    text = "".join(delimiter.join(f'"{cell}"' for cell in line) + "\n" for line in lines)
    write(tmp_path / "metadata.csv", text)
    make(tmp_path, "a b.mp4", "c.mp4", "d.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [("a b.mp4", "run")]
    assert found(collection, tmp_path, "val") == [("c.mp4", "run, fast")]
    assert found(collection, tmp_path, "test") == [("d.mp4", None)]


def test_csv_with_segments_and_with_several_labels(tmp_path):
    write(tmp_path / "train.csv", "video,start,end,label\na.mp4,0,2.5,run\na.mp4,3,4,jump\na.mp4,,,run\n")
    write(tmp_path / "val.csv", "video,labels\na.mp4,run|jump\na.mp4,\n")
    make(tmp_path, "a.mp4")
    collection = find_samples(tmp_path)
    assert collection.multi_label
    assert found(collection, tmp_path, "train") == [
        ("a.mp4", ("run",), Part(0.0, 2.5)),
        ("a.mp4", ("jump",), Part(3.0, 4.0)),
        ("a.mp4", ("run",)),
    ]
    assert found(collection, tmp_path, "val") == [("a.mp4", ("jump", "run")), ("a.mp4", ())]


def test_a_list_of_everything_does_not_count_beside_those_of_splits(tmp_path):
    for name in ("train", "val", "annotations"):
        write(tmp_path / f"{name}.csv", "path,label\na.mp4,run\n")
    make(tmp_path, "a.mp4")
    assert list(find_samples(tmp_path).samples) == ["train", "val"]


def test_names_with_the_ending_of_another_file_are_found_by_their_stem_and_said(tmp_path, caplog):
    write(tmp_path / "lists/train_data.csv", "fname,label,comment\na.npy,run,None\nb.npy,jump,x\n")
    write(tmp_path / "lists/val_data.csv", "fname,label,comment\nc.npy,run,None\n")
    make(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "train/run/c.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path / "train", "train") == [("run/a.mp4", "run"), ("jump/b.mp4", "jump")]
    assert found(collection, tmp_path / "train", "val") == [("run/c.mp4", "run")]
    assert "train_data.csv names .npy files; the .mp4 files called the same are taken" in caplog.text


def test_paths_that_are_found_in_another_folder_are_said_and_those_of_some_are_missing(tmp_path, caplog):
    make(tmp_path, "train/run/1.mp4", "train/run/2.mp4", "val/run/1.mp4")
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


def test_where_official_lists_lie_is_not_worth_a_warning(tmp_path, caplog):
    find_samples(make_ucf101(tmp_path))
    assert caplog.text == ""


def test_metadata_in_the_folders_of_splits(tmp_path):
    for split, name in (("train", "a"), ("validation", "b")):
        write(tmp_path / split / "metadata.csv", f"file_name,label\nsame.mp4,{name}\n")
        make(tmp_path, f"{split}/same.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [("train/same.mp4", "a")]
    assert found(collection, tmp_path, "val") == [("validation/same.mp4", "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.mp4,run,5\n", r"train.csv, line 2: 2 columns expected \(path, label\), got 3"),
        ("path,label\n,run\n", "train.csv, line 2: the path is missing"),
        ("path,path,label\na.mp4,a.mp4,run\n", "train.csv, line 1: two columns are called 'path'"),
        ("path,label,start,end\na.mp4,run,5,2\n", "train.csv, line 2: a part starts at 0 or later and ends after that"),
        ("path,label,start,end\na.mp4,run,5,\n", "train.csv, line 2: a number expected, got ''"),
        ("path,label,split\na.mp4,run,eval\n", "train.csv, line 2: the split 'eval' is none of train, training"),
        ("path,label,split\na.mp4,run,train\na.mp4,run,\n", "train.csv, line 3: the split is missing"),
        ("path,label,start,end\na.mp4,run,0,inf\n", "train.csv, line 2: a number expected, got 'inf'"),
        pytest.param(f"path,label\na.mp4,{'x' * 200_000}\n", "train.csv, line 2: field larger than", id="no csv"),
        ("path,label\n", "train.csv: no line names a video"),
    ],
)
def test_what_is_wrong_in_a_csv(tmp_path, text, message):
    make(tmp_path, "a.mp4")
    with pytest.raises(InputError, match=message):
        find_samples(lists={"train": write(tmp_path / "train.csv", text)})


def test_lines_of_a_csv_end_at_newlines_alone(tmp_path):
    make(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path / "train.csv", 'path,label\na.mp4,run\x0bfast\nb.mp4,"run\n\u2028slow"\n')
    assert find_samples(tmp_path).classes == ["run\n\u2028slow", "run\x0bfast"]


def test_rows_of_another_split_than_their_list_are_left_out_and_said(tmp_path, caplog):
    path = write(tmp_path / "all.csv", "path,label,split\na.mp4,run,train\nb.mp4,run,val\n")
    make(tmp_path, "a.mp4", "b.mp4")
    collection = find_samples(lists={"train": path})
    assert found(collection, tmp_path, "train") == [("a.mp4", "run")]
    assert "1 rows are left out, for they belong to another split than their file" in caplog.text


# ---------------------------------------------------------------- lists without a heading


@pytest.mark.parametrize(
    ("lines", "layout"),
    [
        (["a.mp4 3", "b.mp4 7"], "list"),
        (["a.mp4 run", "b.mp4"], "list"),
        (["a.mp4 3 7", "b.mp4 1"], "multi-label"),
        (["a.mp4 3 7", "b.mp4 1 2"], "multi-label"),
        (["a.mp4,1;5", "b.mp4,7"], "multi-label"),
        (["a.mp4 0 10 3", "a.mp4 10 20 1"], "segments"),
        (["a.mp4 0 10 3", "a.mp4 20 10 1"], "multi-label"),
        (["a.mp4 0 10 3", "b.mp4 4"], "multi-label"),
        (["a.mp4 0.5 10 brush hair"], "segments"),
        (["a.mp4,brush hair,0.5,10"], "segments"),
        (["a.mp4,run,jump"], "list"),
        (["frames/a 17 3", "frames/b 20 1"], "frames"),
        (["frames/a 17 3 5", "frames/b 20 1"], "frames"),
        (["frames/a 1 17 3", "frames/b 1 20 1"], "frame-ranges"),
    ],
)
def test_what_columns_mean(lines, layout):
    assert reading_of([parse_line(line, number=i) for i, line in enumerate(lines, 1)]).layout == layout


@pytest.mark.parametrize(
    ("columns", "pictures", "layout"),
    [
        (("17", "0", "3"), range(1, 18), "frames"),
        (("1", "17", "0"), range(1, 18), "frame-ranges"),
        (("0", "16", "0"), range(17), "frame-ranges"),
        (("1", "17", "0"), range(17), "frame-offsets"),  # 17 is no picture
        (("10", "5", "0"), range(1, 18), "frame-offsets"),
    ],
)
def test_what_columns_mean_is_seen_in_the_folders(columns, pictures, layout):
    assert reading_of([Line(1, "a", columns)], lambda line: list(pictures)).layout == layout


def test_a_heading_that_nobody_knows_is_said(tmp_path, caplog):
    make(tmp_path, "train/run/a.mp4")
    write(tmp_path / "train.csv", "clip_name,state\na.mp4,run\n")
    assert list(find_samples(tmp_path).samples) == ["train"]
    assert "train.csv, line 1: 'clip_name, state' names no video" in caplog.text


def test_segments_and_labels_read_otherwise_if_asked(tmp_path, caplog):
    write(tmp_path / "train.txt", "a.mp4 0 10 3\na.mp4 10 20 1\n")
    make(tmp_path, "a.mp4")
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
    make(tmp_path, "a.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train")[0] == ("a.mp4", "brush hair", Part(0.5, 3.0))


@pytest.mark.parametrize("delimiter", [" ", ",", "\t", ";", "|"])
def test_lists_in_a_root_with_any_delimiter_and_spaces_in_names(tmp_path, delimiter):
    write(tmp_path / "train_list.txt", f"my films/a b.mp4{delimiter}brush hair\nc.mp4{delimiter}run\n")
    write(tmp_path / "val_list.txt", f"c.mp4{delimiter}run\n")
    make(tmp_path, "my films/a b.mp4", "c.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [("my films/a b.mp4", "brush hair"), ("c.mp4", "run")]
    assert collection.layout.startswith("lists: train_list.txt, val_list.txt")


def test_lists_come_before_class_folders_but_not_a_text_that_is_none(tmp_path, caplog):
    make(tmp_path, "run/a.mp4", "jump/b.mp4")
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
    make(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path / "classes.txt", "run\njump\nwave\n")
    collection = find_samples(lists={"train": tmp_path / "train.txt"})
    assert collection.classes == ["run", "jump", "wave"]
    assert found(collection, tmp_path, "train") == [("a.mp4", "jump"), ("b.mp4", "run")]
    own = write(tmp_path / "own.txt", "walk\nstand\n")
    assert find_samples(lists={"train": tmp_path / "train.txt"}, classes=own).classes == ["walk", "stand"]
    write(tmp_path / "train.txt", "a.mp4 3\n")
    with pytest.raises(InputError, match=r"train.txt, line 1: the label '3' is none of the 3 classes of .*classes.txt"):
        find_samples(lists={"train": tmp_path / "train.txt"})


def test_numbers_may_have_gaps_and_no_decimals_and_minus_1_is_not_known(tmp_path):
    make(tmp_path, "a.mp4", "b.mp4", "c.mp4")
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
    make(tmp_path, "a.mp4")
    assert find_samples(lists={"train": path}).classes == ["0", "1", "2"]
    assert "labels go from 1 to 2: there is a class 0 too, of which no video is" in caplog.text


def test_videos_of_a_list_that_are_not_there_stay_and_are_counted(tmp_path, caplog):
    path = write(tmp_path / "train.txt", "a.mp4 run\ngone.mp4 run\n")
    make(tmp_path, "a.mp4")
    collection = find_samples(tmp_path, lists={"train": path})
    assert [Path(sample.path).name for sample in collection.samples["train"]] == ["a.mp4", "gone.mp4"]
    assert "train.txt: 1 of 2 videos are not there, such as" in caplog.text


# ---------------------------------------------------------------- folders of pictures


def make_frames(root: Path, counts: dict[str, int], first: int = 1, name: str = "img_{:05d}.jpg") -> Path:
    return make(root, *(f"{folder}/{name.format(first + i)}" for folder, count in counts.items() for i in range(count)))


def test_rawframe_lists(tmp_path):
    make_frames(tmp_path, {"rawframes/run/a": 5, "rawframes/jump/b c": 7})
    write(tmp_path / "demo_train_list_rawframes.txt", "run/a 5 1\njump/b c 7 0\n")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path / "rawframes", "train") == [("run/a", "1"), ("jump/b c", "0")]
    write(tmp_path / "demo_train_list_rawframes.txt", "run/a 5 1 2\njump/b c 7 0\n")
    collection = find_samples(tmp_path)
    assert [sample.label for sample in collection.samples["train"]] == [(1, 2), (0,)]


@pytest.mark.parametrize("first", [0, 1, 7])
def test_parts_of_frame_folders_are_counted_by_the_names_of_pictures(tmp_path, first):
    make_frames(tmp_path, {"run/0001": 17}, first)
    last = first + 16
    write(tmp_path / "annotations.txt", f"run/0001 {first} {last} 0\nrun/0001 {first + 3} {first + 9} 1\n")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "all") == [("run/0001", "0"), ("run/0001", "1", Part(3, 10, "frames"))]
    write(tmp_path / "annotations.txt", f"run/0001 {first} {last} 0\nrun/0001 {first} {last + 1} 1\n")
    with pytest.raises(InputError, match=rf"annotations.txt, line 2: pictures {first} to {last + 1} were named"):
        find_samples(tmp_path, layout="frame-ranges")


def test_offset_and_count_of_pictures(tmp_path):
    make_frames(tmp_path, {"run/0001": 17})
    write(tmp_path / "annotations.txt", "run/0001 11 5 0\n")
    assert find_samples(tmp_path).samples["all"][0].part == Part(10, 15, "frames")


def test_a_folder_per_class_of_frame_folders(tmp_path):
    make_frames(tmp_path, {"train/run/1": 3, "train/jump/1": 2, "val/run/2": 2})
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [("train/jump/1", "jump"), ("train/run/1", "run")]
    assert collection.layout == "a folder per class in train, val: 3 videos, frames as pictures"


def test_pictures_beside_videos_are_no_videos(tmp_path):
    make(tmp_path, "run/a.mp4", "run/thumbnails/0001.jpg", "jump/b.mp4", "jump/0001.jpg", "posters/0001.jpg")
    assert found(find_samples(tmp_path), tmp_path, "all") == [("jump/b.mp4", "jump"), ("run/a.mp4", "run")]


def test_a_class_may_be_called_like_a_split_with_frame_folders_too(tmp_path):
    make_frames(tmp_path, {"train/a": 2, "bus/b": 2})
    assert find_samples(tmp_path).classes == ["bus", "train"]


def test_class_folders_that_hold_pictures_themselves_are_no_classes(tmp_path):
    make(tmp_path, "run/0001.jpg", "jump/0001.jpg")
    assert find_samples(tmp_path).samples == {}  # two videos without classes


# ---------------------------------------------------------------- the table


def test_every_layout_is_looked_for_by_name_in_the_message_of_none(tmp_path):
    make(tmp_path, "run/a.txt")
    with pytest.raises(InputError) as caught:
        find_samples(tmp_path)
    for name, row in LAYOUTS.items():
        assert (f"\n  {name}: {row.looks_for}" in str(caught.value)) is not row.chosen


def test_a_layout_that_is_named_and_not_there(tmp_path):
    make(tmp_path, "run/a.mp4")
    for name in LAYOUTS:
        if name != "folders":
            with pytest.raises(InputError, match=rf"looked for\n  {name}: "):
                find_samples(tmp_path, layout=name)
    with pytest.raises(InputError, match=r"layout must be one of ucf101, hmdb51, .*got 'ucf'"):
        find_samples(tmp_path, layout="ucf")
    with pytest.raises(InputError, match="fold must be one of 1, 2, 3, got 4"):
        find_samples(tmp_path, fold=4)


def test_a_list_whose_videos_are_elsewhere_is_told_from_no_list(tmp_path, caplog):
    write(tmp_path / "train.csv", "path,label\nnowhere/a.mp4,run\n")
    with pytest.raises(
        InputError, match=r"train.csv, line 2: no such file: .*nowhere/a.mp4, nor any other that is nam"
    ):
        find_samples(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, f"[{'9' * 5000}]"])
def test_json_that_nobody_can_read(tmp_path, text):
    with pytest.raises(InputError, match=r"train.json: no JSON that can be read: "):
        find_samples(lists={"train": write(tmp_path / "train.json", text)})


def test_json_that_is_no_list_of_videos(tmp_path):
    path = write(tmp_path / "train.json", '{"a": 1}')
    with pytest.raises(InputError, match=r"train.json: this is no list of videos in any layout; looked for"):
        find_samples(lists={"train": path})


@pytest.mark.parametrize(
    ("name", "split"),
    [("k400_train_list_videos", "train"), ("sthv2-validation", "val"), ("TestSet", "test"), ("contest", None)],
)
def test_the_split_that_a_name_speaks_of(name, split):
    assert split_of(name) == split
