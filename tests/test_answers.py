"""The file of many answers: each kind of it, what a stopped run leaves, and what is refused."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from lightning_csn import answers
from lightning_csn.answers import Answers, make_record
from lightning_csn.data.samples import Part, Sample
from lightning_csn.errors import InputError

SAMPLES = [Sample(name, -1, number) for number, name in enumerate(("a.mp4", "b, c.mp4", "c.mp4"))]
TOP = [("waving", 0.75), ("jumping", 0.25)]
RECORDS = [
    make_record(SAMPLES[0], TOP),
    make_record(SAMPLES[1], TOP[::-1], short=True),
    make_record(SAMPLES[2], error="c.mp4: no such file"),
]
ABOUT = {"network": "ab" * 32, "clips": 10}


def written(path, records, samples=SAMPLES):
    answers = Answers(path, top=2)
    for record in records:
        answers.write(ABOUT, [record])
    return answers.finish(samples)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_lines_are_in_the_order_of_the_videos(tmp_path, order):
    counts = written(tmp_path / "new" / "a.jsonl", [RECORDS[i] for i in order])
    assert read(tmp_path / "new" / "a.jsonl") == RECORDS
    assert counts == (3, 1, 1)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.jsonl"]


def test_a_table_has_a_row_for_each_video(tmp_path):
    written(tmp_path / "a.csv", RECORDS)
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert rows[1] == ["a.mp4", "waving", "0.75", "jumping", "0.25", ""]
    assert rows[3] == ["c.mp4", "", "", "", "", "c.mp4: no such file"]


@pytest.mark.parametrize("rows", [2, 10])
def test_parquet_has_a_row_for_each_video(tmp_path, monkeypatch, rows):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(answers, "ROWS", rows)
    written(tmp_path / "a.parquet", RECORDS)
    found = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert found == {
        "path": ["a.mp4", "b, c.mp4", "c.mp4"],
        "class_1": ["waving", "jumping", None],
        "probability_1": [0.75, 0.25, None],
        "class_2": ["jumping", "waving", None],
        "probability_2": [0.25, 0.75, None],
        "short": [False, True, None],
        "error": [None, None, "c.mp4: no such file"],
    }


def test_parquet_without_pyarrow_says_what_would_do(tmp_path, monkeypatch):
    monkeypatch.setattr(answers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"a\.parquet: \.parquet needs pyarrow \(pip install"):
        Answers(tmp_path / "a.parquet", top=2)


def test_other_endings_and_folders_are_refused(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name in ("a.txt", "a", "folder.csv"):
        with pytest.raises(InputError, match=r"whose name ends in \.jsonl or \.csv or \.parquet"):
            Answers(tmp_path / name, top=2)


def test_a_stopped_run_leaves_what_it_found_but_errors_are_tried_again(tmp_path):
    stopped = Answers(tmp_path / "a.jsonl", top=2)
    stopped.write(ABOUT, [RECORDS[2], RECORDS[1]], rank=1)
    stopped.close()
    again = Answers(tmp_path / "a.jsonl", top=2)
    assert again.take_up(ABOUT) == {("b, c.mp4", None)}
    again.write(ABOUT, [RECORDS[0], make_record(SAMPLES[2], TOP)])
    assert again.finish(SAMPLES) == (3, 0, 1)
    lines = read(tmp_path / "a.jsonl")
    assert lines == [*RECORDS[:2], make_record(SAMPLES[2], TOP)]  # it could be read the second time


def test_an_answer_stays_where_the_video_cannot_be_read_any_more(tmp_path):
    for rank, record in enumerate((make_record(SAMPLES[2], TOP), RECORDS[2])):
        for shift in (0, 2):  # whichever file comes first
            part = Answers(tmp_path / "a.jsonl", top=2)
            part.write(ABOUT, [record], rank=rank + shift * (1 - rank))
            part.close()
    Answers(tmp_path / "a.jsonl", top=2).finish(SAMPLES)
    assert read(tmp_path / "a.jsonl") == [make_record(SAMPLES[2], TOP)]


def test_half_a_line_of_a_killed_run_is_as_if_it_were_not_there(tmp_path):
    killed = Answers(tmp_path / "a.jsonl", top=2)
    killed.write(ABOUT, RECORDS[:2])
    killed.close()
    [part] = killed.folder.iterdir()
    whole = part.read_bytes()
    for end in range(len(whole)):
        part.write_bytes(whole[:end])
        answered = Answers(tmp_path / "a.jsonl", top=2).take_up(ABOUT)
        assert len(answered) == max(0, whole[:end].count(b"\n") - 1)


def test_videos_may_come_and_go_between_the_runs(tmp_path):
    stopped = Answers(tmp_path / "a.jsonl", top=2)
    stopped.write(ABOUT, RECORDS[:2])
    stopped.close()
    samples = [Sample("0.mp4", -1, 0), Sample("b, c.mp4", -1, 1)]
    again = Answers(tmp_path / "a.jsonl", top=2)
    again.write(ABOUT, [make_record(samples[0], TOP)])
    assert again.finish(samples).videos == 2
    assert [record["path"] for record in read(tmp_path / "a.jsonl")] == ["0.mp4", "b, c.mp4"]


def test_parts_of_one_video_are_kept_apart(tmp_path):
    parts = [Sample("a.mp4", -1, i, Part(i, i + 1)) for i in range(2)]
    written(tmp_path / "a.jsonl", [make_record(parts[1], TOP[:1]), make_record(parts[0], TOP)], parts)
    lines = read(tmp_path / "a.jsonl")
    assert [(line["part"], len(line["top"])) for line in lines] == [([0, 1, "seconds"], 2), ([1, 2, "seconds"], 1)]


def test_answers_of_another_network_are_refused(tmp_path):
    stopped = Answers(tmp_path / "a.jsonl", top=2)
    stopped.write(ABOUT, RECORDS[:1])
    stopped.close()
    with pytest.raises(InputError, match=r"network abababababab and cdcdcdcdcdcd; clips 10 and 3; give another file"):
        Answers(tmp_path / "a.jsonl", top=2).take_up({"network": "cd" * 32, "clips": 3})


def test_one_run_at_a_time_writes_the_answers(tmp_path):
    first = Answers(tmp_path / "a.jsonl", top=2)
    first.take_up(ABOUT)
    for _ in range(2):
        with pytest.raises(InputError, match=r"a\.jsonl: another run is writing these answers at this moment; wait"):
            Answers(tmp_path / "a.jsonl", top=2).take_up(ABOUT)
    first.write(ABOUT, RECORDS[:1])
    first.close()
    second = Answers(tmp_path / "a.jsonl", top=2)
    assert second.take_up(ABOUT) == {("a.mp4", None)}
    second.finish(SAMPLES)
    assert Answers(tmp_path / "a.jsonl", top=2).take_up(ABOUT) == set()


def test_a_run_without_answers_leaves_nothing(tmp_path):
    found = Answers(tmp_path / "a.jsonl", top=2)
    found.take_up(ABOUT)
    found.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_refused_lets_others_in(tmp_path):
    stopped = Answers(tmp_path / "a.jsonl", top=2)
    stopped.write(ABOUT, RECORDS[:1])
    stopped.close()
    refused = Answers(tmp_path / "a.jsonl", top=2)  # held, for a lock that nobody holds is let go
    with pytest.raises(InputError, match="answers of another run"):
        refused.take_up({})
    assert Answers(tmp_path / "a.jsonl", top=2).take_up(ABOUT) == {("a.mp4", None)}


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a\.jsonl: the answers cannot be written: Not a directory"):
        Answers(tmp_path / "file" / "a.jsonl", top=2).take_up(ABOUT)


def test_a_disk_that_is_full_is_told_in_a_sentence(tmp_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("a device that is always full is Linux's")
    found = Answers(tmp_path / "a.jsonl", top=2)
    found._file = full.open("wb")
    for step in (lambda: found.write(ABOUT, RECORDS), found.close):  # closing tries to write once more
        with pytest.raises(InputError, match=r"a\.jsonl: the answers cannot be written: No space left on device"):
            step()


def test_answers_that_other_machines_keep_to_themselves_are_missed(tmp_path):
    with pytest.raises(InputError, match=r"the answers for 1 video, b\.mp4 the first, that are not there"):
        Answers(tmp_path / "a.jsonl", top=2).finish(SAMPLES, {("b.mp4", None)})


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize("broken", ["open", "replace"])
def test_answers_that_cannot_be_written_leave_what_was_found(tmp_path, monkeypatch, broken, name):
    def fail(path, *args, **options):
        if not str(path).endswith(".tmp"):
            return whole(path, *args, **options)
        Path(path).touch()  # what a full disk leaves
        raise OSError(28, "No space left on device")

    found = Answers(tmp_path / name, top=2)
    found.write(ABOUT, RECORDS)
    if broken == "open":
        whole = open
        monkeypatch.setattr(answers, "open", fail, raising=False)
    else:
        monkeypatch.setattr(answers.os, "replace", fail)
    with pytest.raises(InputError, match=rf"{name}: the answers cannot be written: No space left on device"):
        found.finish(SAMPLES)
    assert list(tmp_path.iterdir()) == [found.folder]
    monkeypatch.undo()
    assert Answers(tmp_path / name, top=2).finish(SAMPLES).videos == 3


def test_a_path_that_is_no_utf8_gets_through(tmp_path):
    strange = Sample(os.fsdecode(b"\xff.mp4"), -1, 0)
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow")
        assert written(tmp_path / name, [make_record(strange, TOP)], [strange]).videos == 1
    assert b"\xff.mp4" in (tmp_path / "a.jsonl").read_bytes()
    assert b"\xff.mp4" in (tmp_path / "a.csv").read_bytes()
