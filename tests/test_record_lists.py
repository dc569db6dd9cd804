"""JSON lists and csv with a heading: which columns count, and what is wrong with them."""

import json

import pytest
from conftest import found, touch, write

from lightning_csn.data.annotations import find_samples
from lightning_csn.data.samples import Part
from lightning_csn.errors import InputError


def test_diving48(tmp_path):
    write(tmp_path / "Diving48_vocab.json", '[["Back", "15som", "05Twis", "FREE"], ["Forward", "Dive", "NoTwis"]]')
    record = {"vid_name": "_8Vy3dlHg2w_00000", "label": 1, "start_frame": 0, "end_frame": 96}
    write(tmp_path / "Diving48_V2_train.json", json.dumps([record]))
    write(tmp_path / "Diving48_V2_test.json", json.dumps([record | {"vid_name": "other", "label": 0}]))
    touch(tmp_path, "rgb/_8Vy3dlHg2w_00000.mp4", "rgb/other.mp4")
    collection = find_samples(tmp_path)
    assert collection.classes == ["Back 15som 05Twis FREE", "Forward Dive NoTwis"]
    part = Part(0, 96, "frames")
    assert found(collection, tmp_path, "train") == [("rgb/_8Vy3dlHg2w_00000.mp4", "Forward Dive NoTwis", part)]
    assert found(collection, tmp_path, "test")[0][1] == "Back 15som 05Twis FREE"


def test_csv_with_a_heading_and_columns_that_are_passed_over(tmp_path):
    write(tmp_path / "train.csv", "Comment,File Name,FNAME,Label\nx,,a.mp4,brush hair\n,,sub/b.mp4,wave\n")
    touch(tmp_path, "a.mp4", "sub/b.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [("a.mp4", "brush hair"), ("sub/b.mp4", "wave")]
    assert collection.layout == f"lists with a heading: train.csv; videos in {tmp_path.name}/"


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_csv_of_all_splits_with_any_delimiter(tmp_path, delimiter):
    lines = [("path", "split", "class"), ("a b.mp4", "train", "run"), ("c.mp4", "validation", "run, fast")]
    lines += [("d.mp4", "test", "")]
    text = "".join(delimiter.join(f'"{cell}"' for cell in line) + "\n" for line in lines)
    write(tmp_path / "metadata.csv", text)
    touch(tmp_path, "a b.mp4", "c.mp4", "d.mp4")
    collection = find_samples(tmp_path)
    assert found(collection, tmp_path, "train") == [("a b.mp4", "run")]
    assert found(collection, tmp_path, "val") == [("c.mp4", "run, fast")]
    assert found(collection, tmp_path, "test") == [("d.mp4", None)]


def test_csv_with_segments_and_with_several_labels(tmp_path):
    write(tmp_path / "train.csv", "video,start,end,label\na.mp4,0,2.5,run\na.mp4,3,4,jump\na.mp4,,,run\n")
    write(tmp_path / "val.csv", "video,labels\na.mp4,run|jump\na.mp4,\n")
    touch(tmp_path, "a.mp4")
    collection = find_samples(tmp_path)
    assert collection.multi_label
    assert found(collection, tmp_path, "train") == [
        ("a.mp4", ("run",), Part(0.0, 2.5)),
        ("a.mp4", ("jump",), Part(3.0, 4.0)),
        ("a.mp4", ("run",)),
    ]
    assert found(collection, tmp_path, "val") == [("a.mp4", ("jump", "run")), ("a.mp4", ())]


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
    touch(tmp_path, "a.mp4")
    with pytest.raises(InputError, match=message):
        find_samples(lists={"train": write(tmp_path / "train.csv", text)})


def test_lines_of_a_csv_end_at_newlines_alone(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    write(tmp_path / "train.csv", 'path,label\na.mp4,run\x0bfast\nb.mp4,"run\n\u2028slow"\n')
    assert find_samples(tmp_path).classes == ["run\n\u2028slow", "run\x0bfast"]


@pytest.mark.parametrize("text", ["[" * 100_000, f"[{'9' * 5000}]"])
def test_json_that_nobody_can_read(tmp_path, text):
    with pytest.raises(InputError, match=r"train.json: no JSON that can be read: "):
        find_samples(lists={"train": write(tmp_path / "train.json", text)})


def test_json_that_is_no_list_of_videos(tmp_path):
    path = write(tmp_path / "train.json", '{"a": 1}')
    with pytest.raises(InputError, match=r"train.json: this is no list of videos in any layout; looked for"):
        find_samples(lists={"train": path})
