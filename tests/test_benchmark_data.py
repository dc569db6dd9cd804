"""benchmark data, from its options to its answer, on tiny videos; never how long anything took."""

import argparse
import json
import os
import signal

import pytest

from lightning_csn import benchmark_decoding, benchmark_readers, benchmark_videos
from lightning_csn.benchmark_data import data_options
from lightning_csn.benchmark_readers import Way
from lightning_csn.cli import main
from lightning_csn.data.video import Video
from lightning_csn.errors import InputError

OURS = ["ours", "ours, layout known", "ours, packed"]
FEW = ["--clip=4x2", "--clips=2", "--repeats=2", "--workers=1"]


def read_plainly(source, numbers):
    """As a peer would that gives the same frames."""
    with Video(source.path) as video:
        return video.frames(numbers, size=source.size).numpy()


def read_the_next(source, numbers):
    """As a peer would that counts from 1."""
    return read_plainly(source, [min(number + 1, source.num_frames - 1) for number in numbers])


def read_nothing(source, numbers):
    raise RuntimeError("moov atom not found\nand more")


@pytest.fixture
def peers(monkeypatch):
    """Three made-up peers, and one that is not installed."""

    def absent():
        raise InputError("not installed; pip install it")

    found = {
        "same": lambda: [Way("same", read_plainly, peer=True)],
        "next": lambda: [Way("next", read_the_next, peer=True)],
        "broken": lambda: [Way("broken", read_nothing, peer=True)],
        "absent": absent,
    }
    monkeypatch.setattr(benchmark_readers, "PEERS", found)


def test_options_have_defaults_and_are_checked(capsys):
    parser = argparse.ArgumentParser()
    data_options(parser)
    args = parser.parse_args([])
    assert (args.videos, args.clip, args.clips, args.packed, args.workers, args.json) == (
        None,
        (32, 2),
        10,
        None,
        16,
        False,
    )
    assert parser.parse_args(["--clip", "8x4"]).clip == (8, 4)
    for wrong in ("8", "0x2", "8x4x2", "8x-1", "٣x2"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--clip={wrong}"])
        assert "frames x step is needed, such as 32x2" in capsys.readouterr().err


def test_every_way_reads_the_same_clips_and_the_answer_says_what_was_found(peers, make_video, tmp_path, capsys):
    path = str(make_video(tmp_path / "a.mp4", frames=30, options={"g": "10", "bf": "2", "preset": "medium"}))
    assert main(["benchmark", "data", "--videos", path, *FEW, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "packing" in captured.err
    assert result["benchmark"] == "data"
    assert result["made"] is False
    assert result["settings"] == {"clip": [4, 2], "clips": 2, "repeats": 2, "workers": 1}
    assert {"av", "decord", "torchcodec", "torch", "python", "device", "cores"} <= set(result["machine"])
    (video,) = result["videos"]
    assert (video["frames"], video["height"], video["width"], video["codec"]) == (30, 48, 64, "h264")
    assert result["absent"] == {"absent": "not installed; pip install it"}
    for task in ("random_clip", "spread_clips"):
        ways = {way["name"]: way for way in result[task]["ways"]}
        assert list(ways) == [*OURS, "same", "next", "broken"]
        assert [name for name, way in ways.items() if way["agrees"]] == [*OURS, "same"]
        assert ways["same"]["difference"] == 0
        assert ways["next"]["difference"] > 10
        assert ways["broken"]["error"] == "moov atom not found"
        assert all(len(ways[name]["seconds"]) == 2 for name in (*OURS, "same", "next"))
        assert list(result[task]["ratios"]) == OURS
        assert {ratio["against"] for ratio in result[task]["ratios"].values()} == {"same"}
    assert list(result["shares"]["ms"]) == ["opening", "demuxing and decoding", "converting"]
    assert list(result["dataset"]) == ["files", "packed"]
    assert result["dataset"]["files"]["clips_per_second_per_core"] > 0


def test_without_videos_one_is_made_and_the_text_says_so(peers, capsys, monkeypatch):
    write = benchmark_videos.write_video
    monkeypatch.setattr(benchmark_videos, "write_video", lambda path: write(path, seconds=0.5, size=(32, 48)))
    assert main(["benchmark", "data", *FEW]) == 0
    out, err = capsys.readouterr()
    assert "a video is made: 340x256, 10 s, 30 fps, h264 as x264 writes it by default" in err
    assert "made.mp4: h264, 48x32, 15 frames at 30 fps, 1 keyframes" in out
    assert "absent: not installed; pip install it" in out
    assert "other frames: not compared" in out
    assert "moov atom not found" in out
    assert "1 workers' worth" in out
    assert "came out of the decoder" in out


def test_what_was_measured_until_it_was_stopped_is_printed(peers, make_video, tmp_path, monkeypatch, capsys):
    def stops(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(benchmark_decoding, "shares_of", stops)
    path = str(make_video(tmp_path / "a.mp4", frames=30))
    assert main(["benchmark", "data", "--videos", path, *FEW, "--json"]) == 143
    result = json.loads(capsys.readouterr().out)
    left = ["where our time goes", "reading and cutting, 1 processes"]
    left.append("reading and cutting from the packed copy, 1 processes")
    assert result["not_measured"] == left
    assert [way["name"] for way in result["spread_clips"]["ways"]] == [*OURS, "same", "next", "broken"]
    assert result["dataset"] == {}
    assert main(["benchmark", "data", "--videos", path, *FEW]) == 143
    out = capsys.readouterr().out
    assert "2 clips spread over a video" in out
    assert out.endswith(f"stopped; not measured: {'; '.join(left)}\n")


def test_a_video_that_cannot_be_read_is_the_callers_error(tmp_path, capsys):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"")
    assert main(["benchmark", "data", "--videos", str(path), *FEW]) == 2
    assert "a.mp4: the file is empty" in capsys.readouterr().err
