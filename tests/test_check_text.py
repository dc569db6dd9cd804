"""What check-data found, as text."""

import os
import re

import pytest

from lightning_csn.check_page import as_html
from lightning_csn.check_text import as_text
from lightning_csn.data.examine import examine
from lightning_csn.data.samples import Collection, Sample


def test_the_text_begins_with_the_verdict_and_the_worst(make_report):
    lines = as_text(make_report()).splitlines()
    assert lines[0] == "NOT SAFE to train, with 2 warnings:"
    assert lines[1] == ("  - 1 video both to train on and to test or validate on: figures on them are too good")
    order = [line for line in lines if line in ("Files that make it unsafe", "Warnings", "Notes", "Videos")]
    assert order == ["Files that make it unsafe", "Warnings", "Notes", "Videos"]


def test_the_text_names_files_below_the_folder_and_counts_classes(make_report):
    text = as_text(make_report())
    assert re.search(r"^    train/001\.mp4  the file is empty$", text, re.MULTILINE)
    assert re.search(r"^    train/002\.mp4$", text, re.MULTILINE)
    assert re.search(r"^    train/003\.mp4  train, and val: val/004\.mp4$", text, re.MULTILINE)
    assert re.search(r"^  walk <b>&amp; +12 of 13 +7$", text, re.MULTILINE)
    assert re.search(r"^  all +38 of 40 +20$", text, re.MULTILINE)
    assert "Length: 1 to 8.8 seconds, median " in text
    assert re.search(r"^Size +64x48: 58$", text, re.MULTILINE)


def test_the_text_of_a_good_collection_is_short(make_report):
    report = make_report(count=1, classes=["run"], sampling=None)
    lines = as_text(report).splitlines()
    assert lines[0] == "Safe to train."
    assert len(lines) < 25
    assert "--model or --clip says" in lines[-1]


@pytest.mark.parametrize(
    ("sampling", "where", "short"),
    [
        ("clip", "one every 5 frames, at 25 fps: 36 frames long", "4 of 58"),
        ("segments", "one in each of 8 equal parts of the video", "0 of 58"),
    ],
)
def test_the_text_says_what_the_clip_does(sampling, where, short, make_report):
    text = as_text(make_report(sampling=sampling))
    assert f"\nClip: 8 frames, {where}; short side 64 pixels\n" in text
    assert re.search(rf"^  too short: frames are repeated +{short}$", text, re.MULTILINE)
    assert re.search(r"^  enlarged: the picture is too small +58 of 58$", text, re.MULTILINE)


def test_the_text_counts_many_classes_together_and_names_files_of_a_kind_up_to_a_number(make_report):
    text = as_text(make_report(count=400, classes=[f"class_{i}" for i in range(50)]))
    assert "50 classes, each" in text
    assert "class_7 " not in text
    assert re.search(r"… and \d+ more: --json and --html have them", text)
    assert max(map(len, text.splitlines())) < 160


def test_names_that_no_terminal_takes_are_written_as_python_would():
    path = os.fsdecode(b"/data/b\xff\x1b[2J.mp4")
    report = examine(Collection({"train": [Sample(path, 0, 0)]}, ["run"], "test"), {path: None}, root="/data")
    text = as_text(report)
    text.encode("utf-8")
    assert r"b\udcff\x1b[2J.mp4" in text
    as_html(report, {}).encode("utf-8")
