"""`lightning-csn check-data`, from its options to its exit code."""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lightning_csn.check_data import NOT_SAFE, SAFE, check_data_options, choose_clip, run_check_data
from lightning_csn.data import survey
from lightning_csn.data.index import VideoIndex
from lightning_csn.data.survey import look
from lightning_csn.data.video import Video
from lightning_csn.errors import InputError

CLIP = {
    "frames": 8,
    "step": 2,
    "fps": None,
    "short_side": 64,
    "crop": 48,
    "test_crop": 64,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
MAIN = """
import argparse, sys
from lightning_csn.check_data import check_data_options, run_check_data
from lightning_csn.data import survey
from test_check_data import look_for_long
if __name__ == "__main__":
    survey.look = look_for_long
    parser = argparse.ArgumentParser()
    check_data_options(parser)
    try:
        sys.exit(run_check_data(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def look_for_long(task, alive):
    """Stands for a decoder that never ends with one of the files."""
    if os.path.basename(task.path) == "endless.mp4":
        time.sleep(600)
    return look(task, alive)


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    check_data_options(parser)

    def run(*options):
        code = run_check_data(parser.parse_args([*map(str, options), "--workers", "2"]))
        return code, *capsys.readouterr()

    return run


def test_a_good_folder_is_safe_and_its_index_saves_the_next_reader_a_scan(check, tmp_path, make_video):
    folder = tmp_path / "data"
    for frames, (split, name) in enumerate(itertools.product(("train", "val"), ("run", "walk")), start=15):
        make_video(folder / split / name / f"{frames}.mp4", frames=frames)
    code, text, notes = check(folder, "--clip", json.dumps(CLIP))
    assert code == SAFE
    assert text.startswith("Safe to train.\n")
    assert "index: lightning_csn_index.jsonl; training reads it with --data.index lightning_csn_index.jsonl" in notes
    index = VideoIndex.read(tmp_path / "lightning_csn_index.jsonl")
    assert len(index) == 4
    path = folder / "val" / "run" / "17.mp4"
    with Video(path) as video:
        assert index.find(path).info == video.info
        assert index.find(path).layout == video.layout.to_dict()
    assert sorted(os.listdir(folder)) == ["train", "val"]  # nothing is written among the videos


def test_what_is_wrong_is_named_and_the_exit_code_says_so(check, tmp_path, make_video):
    for split, count in (("train", 8), ("val", 2)):
        for i in range(count):
            make_video(
                tmp_path / "data" / split / "jump" / f"{split}_{i}.mp4", frames=10 + i if split == "train" else 9
            )
    (tmp_path / "data/train/jump/train_3.mp4").write_bytes(b"")
    code, text, _ = check("data", "--decode")
    assert code == NOT_SAFE
    assert "  - train: 1 of 8 videos cannot be read, 12.5%, more than the limit of 10% at which a run ends" in text
    assert "    train/jump/train_3.mp4  the file is empty" in text
    assert "val: the same as" in text
    assert check("data", "--unreadable-limit", "0.2")[0] == SAFE


def test_a_line_for_every_file(check, tmp_path, make_video):
    make_video(tmp_path / "data/run/a.mp4", frames=15, rate=30)
    (tmp_path / "data/run/b.mp4").write_bytes(b"")
    _, text, _ = check("data", "--files", "--decode")
    head, first, second = (line.split() for line in text.split("\n\n")[-1].splitlines())
    assert dict(zip(head, first[:4] + first[5:], strict=False)) == {
        "FILE": "run/a.mp4",
        "FRAMES": "15",
        "DECODED": "15",
        "RATE": "30",
        "SIZE": "64x48",
        "TURNED": "0°",
        "CODEC": "h264",
        "PIXELS": "yuv420p",
    }
    assert second == ["run/b.mp4", *"-------", "the", "file", "is", "empty"]


def test_json_has_everything_and_nothing_else_is_on_stdout(check, video_folder):
    code, text, _ = check(video_folder, "--json", "--clip", json.dumps(CLIP))
    report = json.loads(text)
    assert code == SAFE
    assert report["safe"] is True
    assert report["clip"]["frames"] == 8
    assert len(report["videos"]) == 9
    assert {video["file"]["codec"] for video in report["videos"]} == {"h264"}
    assert {video["num_frames"]: video["fate"]["short"] for video in report["videos"]} == {
        12: True,
        16: False,
        20: False,
    }
    assert report["counts"]["all"]["clapping"] == {"readable": 3, "videos": 3}


def test_a_page_is_written_with_pictures(check, video_folder, tmp_path):
    _, _, notes = check(video_folder, "--html", "new/report.html")
    assert "page: new/report.html" in notes
    page = (tmp_path / "new/report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 9
    assert os.listdir(tmp_path / "new") == ["report.html"]
    with pytest.raises(InputError, match="--html new: a folder is there; name a file"):
        check(video_folder, "--html", "new")


def test_lists_are_read_as_training_reads_them(check, video_folder, tmp_path):
    lines = [f"{path.relative_to(video_folder)} {path.parent.name}" for path in sorted(video_folder.rglob("*.mp4"))]
    (tmp_path / "train.txt").write_text("\n".join([*lines[:8], "gone/away.mp4 waving"]))
    (tmp_path / "val.txt").write_text(f"{lines[8]}\n{lines[0]}")
    code, text, _ = check(video_folder, "--train-list", "train.txt", "--val-list", "val.txt", "--json")
    report = json.loads(text)
    assert code == NOT_SAFE
    found = {problem["kind"]: [file["path"] for file in problem["files"]] for problem in report["problems"]}
    assert found["missing"] == [str(video_folder / "gone/away.mp4")]
    assert found["train and test"] == [str(video_folder / lines[0].split()[0])]


def test_videos_without_classes_are_read_and_not_safe_to_train_on(check, tmp_path, make_video):
    make_video(tmp_path / "data/a.mp4", frames=15)
    make_video(tmp_path / "data/b.mp4", frames=20)
    (tmp_path / "data/c.mp4").write_bytes(b"no video")
    code, out, _ = check(tmp_path / "data", "--json")
    report = json.loads(out)
    assert (code, report["safe"]) == (NOT_SAFE, False)
    assert report["reasons"] == ["no videos to train on, only videos without classes, which predict takes"]
    assert [(video["split"], video["num_frames"]) for video in report["videos"]] == [
        ("predict", 15),
        ("predict", 20),
        ("predict", None),
    ]
    assert {problem["kind"] for problem in report["problems"]} >= {"unreadable", "nothing to train on"}
    code, out, _ = check(tmp_path / "data", "--html", tmp_path / "page.html")
    assert "predict" in out


def test_a_root_that_is_too_high_is_a_warning(check, tmp_path, make_video):
    for name in ("one/run/1", "one/walk/1", "two/jump/1"):
        make_video(tmp_path / f"data/{name}.mp4", frames=5)
    _, out, _ = check(tmp_path / "data", "--json")
    assert "deep classes" in {problem["kind"] for problem in json.loads(out)["problems"]}


def test_a_file_in_place_of_a_folder_is_told_from_nothing(check, tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 run\n")
    with pytest.raises(InputError, match=r"list.txt: this is a file, and ROOT is a folder; a list .* --train-list"):
        check(tmp_path / "list.txt")


def test_folders_of_pictures_have_the_rate_that_is_given(check, tmp_path):
    from PIL import Image

    (tmp_path / "v" / "run" / "a").mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (64, 64)).save(tmp_path / "v" / "run" / "a" / f"{number}.png")
    for options, seconds in (((), None), (("--frames-fps", "3"), 2.0)):
        _, out, _ = check("v", "--json", *options)
        assert [video["seconds"] for video in json.loads(out)["videos"]] == [seconds]


def test_a_file_that_never_ends_does_not_hold_up_the_others(check, tmp_path, make_video, monkeypatch):
    monkeypatch.setattr(survey, "look", look_for_long)
    for name in ("good", "endless"):
        make_video(tmp_path / "data" / "a" / f"{name}.mp4", frames=3)
    code, text, _ = check("data", "--timeout", "3")
    assert code == NOT_SAFE
    assert "a/endless.mp4  reading it took longer than 3 seconds" in text


def test_an_interrupted_check_goes_on_where_it_was(tmp_path, make_video):
    for name in ("a", "b", "c", "endless"):
        make_video(tmp_path / "data" / "x" / f"{name}.mp4", frames=3)
    (tmp_path / "main.py").write_text(MAIN)
    index = tmp_path / "lightning_csn_index.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])}
    command = [sys.executable, "main.py", "data", "--workers", "2", "--timeout", "600"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:  # a session of its own: what Ctrl-C in a terminal reaches is the command and all its processes
        for _ in range(6000):  # five minutes, to start two processes on a busy machine
            if index.exists() and index.read_bytes().count(b"\n") == 4:
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, notes = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "stopped at 3 of 4 videos; the same command goes on from there" in notes
    assert "Traceback" not in notes
    assert len(VideoIndex.read(index)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        ([".", "--clip", "{frames: 8}"], "--clip: JSON such as"),
        ([".", "--clip", "[8]"], "--clip: JSON such as"),
        ([".", "--clip", '{"frames": 8}'], "clip needs step, fps"),
        ([".", "--model", "ircsn_152_ig65"], "no checkpoint 'ircsn_152_ig65'"),
    ],
)
def test_options_that_make_no_sense_say_what_would(check, options, message):
    with pytest.raises(InputError) as caught:
        check(*options)
    assert message in str(caught.value)


def test_another_file_is_not_taken_for_an_index(check, video_folder, tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"holiday\.mp4: no index of videos"):
        check(video_folder, "--index", "holiday.mp4")
    assert (tmp_path / "holiday.mp4").read_bytes() == b"precious"


def test_the_clip_is_that_of_the_weights_with_given_values_over_it():
    clip = choose_clip("ircsn_152_ig65m", '{"step": 3}')
    assert (clip.frames, clip.step) == (32, 3)
    assert choose_clip(None, json.dumps(CLIP)).frames == 8
    assert choose_clip(None, None) is None


@pytest.mark.parametrize("limit", ["-0.1", "1.5", "x"])
def test_a_limit_is_a_share(limit, capsys):
    parser = argparse.ArgumentParser()
    check_data_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([".", "--unreadable-limit", limit])
    assert "--unreadable-limit" in capsys.readouterr().err
