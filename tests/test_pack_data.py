import json
import re
from argparse import ArgumentParser, ArgumentTypeError

import pytest

from lightning_csn import pack_data
from lightning_csn.data.reading import open_video
from lightning_csn.data.shards import read_index, read_packed
from lightning_csn.errors import InputError


def run(*args):
    parser = ArgumentParser()
    pack_data.pack_options(parser)
    return pack_data.run_pack(parser.parse_args([*map(str, args), "--workers", "1"]))


def test_a_folder_is_packed_and_summed_up(tmp_path, video_folder, capsys):
    out = tmp_path / "out"
    assert run(video_folder, out, "--short-side", 32, "--gop", 8, "--crf", 30, "--shard-size", "10kB") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{out}: 9 videos, 0.0 MB where there were 0.0 MB")
    assert lines[1].startswith("  all: 9 videos in ")
    assert len(lines) == 2
    assert re.search(r"in \d+ seconds", said.err)
    packed = read_packed(out)
    assert packed.classes == ["clapping", "jumping", "waving"]
    with open_video(packed.samples["all"][0].path) as video:
        assert (video.info.height, video.info.width) == (32, 42)
    index = read_index(out)
    assert index["packed"] == {"how": "h264", "short_side": 32, "gop": 8, "crf": 30.0, "shard_bytes": 10_000}
    assert index["splits"]["all"]["videos"][0]["source"] == "clapping/clapping_0.mp4"


def test_a_pack_that_is_larger_than_its_originals_says_what_would_do(tmp_path, make_video, capsys):
    make_video(tmp_path / "videos/a/1.mp4", frames=30, options={"crf": "51", "preset": "medium"})
    assert run(tmp_path / "videos", tmp_path / "out", "--crf", 10) == 0
    assert "larger than the originals, for it is made" in capsys.readouterr().out
    assert run(tmp_path / "videos", tmp_path / "copied", "--copy") == 0
    assert "larger than" not in capsys.readouterr().out


def test_folders_of_pictures_get_the_rate_that_is_given(tmp_path, capsys):
    from PIL import Image

    for number in range(3):
        (tmp_path / "videos/run/a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / f"videos/run/a/{number}.png")
    assert run(tmp_path / "videos", tmp_path / "out", "--frames-fps", 12.5) == 0
    with open_video(read_packed(tmp_path / "out").samples["all"][0].path) as video:
        assert video.info.fps == 12.5
    assert "without a frame rate" not in capsys.readouterr().out
    assert run(tmp_path / "videos", tmp_path / "without") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "1 video without a frame rate, taken as 25 frames per second: run/a",
        "  --frames-fps N gives folders of pictures another",
    ]
    with pytest.raises(InputError, match="--copy puts files in as they are; --frames-fps is for encoding"):
        run(tmp_path / "videos", tmp_path / "copied", "--frames-fps", 12.5, "--copy")


def test_lists_are_packed(tmp_path, video_folder):
    (tmp_path / "train.txt").write_text("waving/waving_1.mp4 1\nclapping/clapping_0.mp4 0\n")
    (tmp_path / "val.txt").write_text("waving/waving_2.mp4 1\n")
    lists = ("--train-list", tmp_path / "train.txt", "--val-list", tmp_path / "val.txt")
    assert run(video_folder, tmp_path / "out", *lists, "--classes", "clap", "wave", "--copy") == 0
    packed = read_packed(tmp_path / "out")
    assert packed.classes == ["clap", "wave"]
    assert {split: [s.label for s in samples] for split, samples in packed.samples.items()} == {
        "train": [1, 0],
        "val": [1],
    }


def test_unreadable_videos_are_listed_and_the_exit_code_says_so(tmp_path, make_video, capsys):
    root = tmp_path / "videos"
    make_video(root / "a" / "good.mp4")
    (root / "a" / "bad.mp4").write_bytes(b"no video")
    assert run(root, tmp_path / "out") == 2
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "1 video could not be read and was left out:",
        f"  {root / 'a' / 'bad.mp4'}: Invalid data found when processing input",
    ]
    assert list(json.loads((tmp_path / "out" / "index.json").read_text())["splits"]["all"]["left_out"]) == ["a/bad.mp4"]
    assert run(root, tmp_path / "out") == 2  # and so it does where nothing is left to do
    with pytest.raises(InputError, match=r"bad\.mp4: Invalid data"):
        run(root, tmp_path / "other", "--on-unreadable", "raise")


def test_options_of_encoding_are_refused_with_copies(tmp_path, video_folder):
    with pytest.raises(InputError, match="--copy puts files in as they are; --short-side is for encoding"):
        run(video_folder, tmp_path / "out", "--copy", "--short-side", 128)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "MB", "12 apples", "-1MB", "0", "1TB"])
def test_a_size_that_is_none_is_an_error(text):
    with pytest.raises(ArgumentTypeError, match="a size such as 256MB is needed"):
        pack_data.size_bytes(text)
