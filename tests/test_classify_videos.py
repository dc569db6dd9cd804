"""The command classify: what it prints and writes, and how it goes on."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from lightning_csn.cli import main
from lightning_csn.module import LitCSN

CLASSES = ["clapping", "jumping", "waving"]


def test_classify_names_the_classes_of_each_video(video_folder, weights, capsys):
    paths = [str(video_folder / name / f"{name}_0.mp4") for name in CLASSES[:2]]
    assert main(["classify", *paths, "--model", str(weights), "--clips", "2", "--top", "2", "--every", "0.2"]) == 0
    shown = capsys.readouterr().out
    for path in paths:
        assert f"{path}  ({weights}, 2 clips x 1 crop)" in shown
    assert len(re.findall(r"^ +\d+\.\d%  (clapping|jumping|waving)$", shown, re.MULTILINE)) == 4
    assert (
        len(re.findall(r"^ +0\.\d\d to +0\.\d\d  \w+ \d+%, \w+ \d+%$", shown, re.MULTILINE)) == 6
    )  # 12 frames, 25 fps


def test_classify_says_which_videos_are_shorter_than_a_clip(make_video, weights, tmp_path, capsys):
    paths = [str(make_video(tmp_path / f"{frames}.mp4", frames=frames)) for frames in (3, 4)]
    assert main(["classify", *paths, "--model", str(weights), "--json"]) == 0
    shown = capsys.readouterr()
    assert [video["short"] for video in json.loads(shown.out)["videos"]] == [True, False]
    assert re.findall(r"(\S+): shorter than a clip of .*, so frames are repeated\n", shown.err) == paths[:1]
    assert main(["classify", *paths, "--model", str(weights), "--output", str(tmp_path / "a.csv")]) == 0
    assert "1 video is shorter than a clip of " in capsys.readouterr().err


def test_classify_as_json_reports_the_unreadable_in_its_place(video_folder, weights, tmp_path, capsys):
    good = str(video_folder / "waving" / "waving_0.mp4")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    assert main(["classify", str(bad), good, "nope.mp4", "--model", str(weights), "--json"]) == 2
    shown = capsys.readouterr()
    answers = json.loads(shown.out)
    assert [video["path"] for video in answers["videos"]] == [str(bad), good, "nope.mp4"]
    assert str(bad) in answers["videos"][0]["error"]
    assert sum(row["probability"] for row in answers["videos"][1]["top"]) == pytest.approx(1)
    assert "2 of 3 videos could not be read" in shown.err


def test_classify_checks_answers_and_draws_them(video_folder, weights, tmp_path, capsys):
    paths = [str(video_folder / name / f"{name}_0.mp4") for name in CLASSES]
    options = ["--clips", "1", "--labelled", "--sheet", str(tmp_path / "s.png"), "--json"]
    assert main(["classify", *paths, "--model", str(weights), *options]) == 0
    shown = capsys.readouterr()
    answers = json.loads(shown.out)["videos"]
    right = sum(answer["top"][0]["class"] == name for answer, name in zip(answers, CLASSES, strict=True))
    assert f"{right} of 3 answers are the name of the video's folder" in shown.err
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_classify_takes_folders_whole_and_writes_the_answers_into_a_file(video_folder, weights, tmp_path, capsys):
    alone = shutil.copyfile(video_folder / "waving" / "waving_0.mp4", tmp_path / "alone.mp4")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    out = tmp_path / "answers.jsonl"
    options = ["--model", str(weights), "--clips", "2", "--labelled", "--workers", "0", "--output", str(out)]
    assert main(["classify", str(alone), str(video_folder), str(bad), *options]) == 2
    shown = capsys.readouterr()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    inside = sorted(str(path) for path in video_folder.rglob("*.mp4"))
    assert [record["path"] for record in records] == [str(alone), *inside, str(bad)]
    assert [str(bad) in record.get("error", "") for record in records] == [False] * 10 + [True]
    assert shown.out == f"answers: {out} (11 videos, 1 of them unreadable)\n"
    right = sum(record["top"][0]["class"] == Path(record["path"]).parent.name for record in records[:-1])
    assert f"{right} of 10 answers are the name of the video's folder" in shown.err
    assert re.search(r"11 videos in \d+\.\d s, .* reading \d+% of the time of this process, network \d+%", shown.err)
    assert "1 of 11 videos could not be read" in shown.err


def test_classify_answers_a_video_once_that_is_named_twice(video_folder, weights, tmp_path, capsys):
    paths = sorted(str(path) for path in video_folder.rglob("*.mp4"))
    out = tmp_path / "answers.jsonl"
    options = ["--model", str(weights), "--clips", "1", "--workers", "0", "--output", str(out)]
    assert main(["classify", paths[3], str(video_folder), *options]) == 0
    records = [json.loads(line)["path"] for line in out.read_text().splitlines()]
    assert records == [paths[3], *paths[:3], *paths[4:]]
    assert "1 video is named more than once, and answered once" in capsys.readouterr().err


def test_an_interrupted_classify_goes_on_where_it_was(video_folder, weights, tmp_path, monkeypatch, capsys):
    seen = []

    def forward(self, clips):
        if len(seen) == 4:
            seen.clear()
            raise KeyboardInterrupt
        seen.append(clips)
        return torch.tensor([[0.5, 0.25, 0.25]]).expand(len(clips), -1)

    monkeypatch.setattr(LitCSN, "forward", forward)
    out = tmp_path / "answers.csv"
    command = ["classify", str(video_folder), "--model", str(weights), "--workers", "1", "--output", str(out)]
    monkeypatch.setattr("lightning_csn.datamodule.MOST_TOGETHER", 1)  # a batch for each video
    assert main(command) == 130
    assert "interrupted; the same command goes on with the videos that are left" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--top", "1"]) == 2
    assert "holds answers of another run, which was stopped (there and here): top 5 and 1; " in capsys.readouterr().err
    assert main(command) == 130  # four more
    assert main(command) == 0
    assert len(seen) == 1
    with out.open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == sorted(map(str, video_folder.rglob("*.mp4")))
    assert list(tmp_path.iterdir()) == [out]
