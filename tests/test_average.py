"""`lightning-csn average` says what a test said, and what one with another average would have said."""

import argparse
import json
import re

import numpy as np
import pytest

from lightning_csn.average import average_options, numbers, run_average
from lightning_csn.errors import InputError
from lightning_csn.metrics import COUNTS

LOGITS = [  # two videos of 2 clips x 2 crops, three classes
    [[4.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]],  # by logits the first class, else the second
    [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 2.0, 0.0]],
]


@pytest.fixture
def make_file(tmp_path):
    """Writes scores as a test does, of these logits and labels, and returns the path."""

    def make(logits=LOGITS, labels=(0, 2), classes=("run", "walk", "jump"), **about):
        protocol = {"clips": 2, "crops": 2, "frames": 8, "short_side": 36, "test_crop": 32, "head_pooling": "global"}
        about = {
            "network": "ab" * 32,
            "videos": None,
            "protocol": protocol,
            "average": "probabilities",
            "classes": list(classes),
            "multi_label": False,
            "version": 1,
        } | about
        count = len(labels)
        np.savez(
            tmp_path / "scores.npz",
            videos=np.arange(count),
            labels=np.array(labels, dtype=np.float32 if about["multi_label"] else np.int64),
            logits=np.array(logits, dtype=np.float32),
            short=np.zeros(count, dtype=bool),
            blank=np.zeros(count, dtype=bool),
            paths=np.full(count, "a.mp4"),
            unreadable=np.array([7]),
            messages=np.array(["b.mp4: empty"]),
            about=np.array(json.dumps(about)),
        )
        return str(tmp_path / "scores.npz")

    return make


def run(*argv):
    parser = argparse.ArgumentParser()
    average_options(parser)
    return run_average(parser.parse_args(argv))


def test_the_line_of_the_test_comes_again_with_its_classes(make_file, capsys):
    assert run(make_file()) == 0
    line, *table = capsys.readouterr().out.splitlines()
    assert line == (
        "test: top-1 0.5000, top-5 1.0000, macro F1 0.3333, loss 0.8477 of 2 videos (1 unreadable, left out; 0 shorter "
        "than a clip); 2 clips x 2 crops of 8 frames of 32 x 32 pixels, globally pooled, mean of the views' "
        "probabilities"
    )
    assert [row.split() for row in table] == [
        ["CLASS", "VIDEOS", "TOP-1"],
        ["run", "1", "0.0000"],
        ["jump", "1", "1.0000"],
    ]


def test_another_average_gives_another_answer(make_file, capsys):
    run(make_file(), "--average", "logits")
    out = capsys.readouterr().out
    assert out.startswith("test: top-1 1.0000, ")
    assert "mean of the views' logits\n" in out


@pytest.mark.parametrize(
    ("options", "top1", "views"),
    [
        (["--clips", "0"], 1, "clips 0 of 2 x 2 crops of 8 frames"),
        (["--crops", "0", "--clips", "1"], 0.5, "clips 1 of 2 x crops 0 of 2 of 8 frames"),
        (["--clips", "0-1", "--crops", "0"], 1, "2 clips x crops 0 of 2 of 8 frames"),
    ],
)
def test_fewer_views_are_said(make_file, capsys, options, top1, views):
    run(make_file(), *options)
    out = capsys.readouterr().out
    assert out.startswith(f"test: top-1 {top1:.4f}, ")
    assert f"; {views}" in out


def test_json_has_everything(make_file, capsys):
    run(make_file(), "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["scores"].keys() == {"top1", "top5", "macro_f1", "loss", *COUNTS}
    assert found["protocol"].startswith("2 clips x 2 crops of 8 frames")
    assert (found["average"], found["network"], found["multi_label"]) == ("probabilities", "ab" * 32, False)
    assert found["classes"] == [{"class": "run", "videos": 1, "top1": 0.0}, {"class": "jump", "videos": 1, "top1": 1.0}]
    assert found["confusion"] == [
        {"class": "run", "answer": "walk", "videos": 1},
        {"class": "jump", "answer": "jump", "videos": 1},
    ]
    assert found["unreadable"] == [{"video": 7, "error": "b.mp4: empty"}]


def test_several_labels_have_average_precisions(make_file, capsys):
    labels = [[1, 1, 0], [0, 1, 0]]
    path = make_file(labels=labels, multi_label=True)
    run(path)
    line, head, *rows = capsys.readouterr().out.splitlines()
    assert line.startswith("test: mAP 1.0000, loss ")
    assert head.split() == ["CLASS", "VIDEOS", "AVERAGE", "PRECISION"]
    assert [row.split() for row in rows] == [["run", "1", "1.0000"], ["walk", "2", "1.0000"]]
    run(path, "--json")
    confusion = json.loads(capsys.readouterr().out)["confusion"]
    assert confusion[0] == {  # by a mean of sigmoids each class is there in both videos
        "class": "run",
        "true_positives": 1,
        "false_positives": 1,
        "false_negatives": 0,
        "true_negatives": 0,
    }


def test_of_many_classes_the_lowest_are_shown(make_file, capsys):
    classes = [f"class {k}" for k in range(30)]
    logits = np.zeros((30, 4, 30))
    for k in range(30):
        logits[k, :, k if k < 25 else 0] = 5
    run(make_file(logits, range(30), classes))
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [re.split("  +", row)[0] for row in rows[:6]] == [*classes[25:], "class 0"]
    assert rows[20] == "(the lowest 20 of 30 classes; --json has all)"


def test_without_any_readable_video_json_is_still_json(make_file, capsys):
    run(make_file(np.empty((0, 4, 3)), []), "--json")
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["scores"]["top1"], found["classes"], found["confusion"]) == (None, [], [])
    run(make_file(np.empty((0, 4, 3)), []))
    assert capsys.readouterr().out.startswith("test: top-1 nan, ")


def test_labels_that_nobody_knows_are_refused(make_file):
    with pytest.raises(InputError, match="1 of 2 videos have no label among 0 to 2"):
        run(make_file(labels=(0, -1)))


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "2-1", "1.5"])
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="number"):
        numbers(text)
