"""Folders of numbered pictures: which is which frame, what they look like, and what is wrong with a folder."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import number_image
from PIL import Image

from lightning_csn.data.frame_folder import FrameFolder
from lightning_csn.data.reading import open_video
from lightning_csn.data.video_info import VideoError


def make(folder: Path, names: list[str], size: tuple[int, int] = (32, 64)) -> Path:
    """Picture i, in the order of `names`, shows i."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(number_image(number, *size)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["00001.jpg", "00002.jpg", "00003.jpg"],
        ["0.png", "1.png", "2.png"],
        [f"img_{number:05d}.jpg" for number in range(12)],
        [f"frame{number}.jpeg" for number in range(1, 13)],  # natural order: frame2 before frame10
        ["clip7_0008_rgb.png", "clip7_0009_rgb.png"],
        ["a-17.bmp", "a-18.bmp", "a-19.bmp"],
        ["0000.jpg", "0005.jpg", "0010.jpg"],
        ["only 1.webp"],
    ],
)
def test_frame_n_is_the_nth_picture_however_they_are_numbered(tmp_path, read_number, names):
    video = FrameFolder(make(tmp_path / "v", names))
    assert video.info.num_frames == len(names)
    assert (video.info.height, video.info.width) == (32, 64)
    frames = video.frames(range(len(names)))
    assert frames.shape == (len(names), 32, 64, 3)
    assert frames.dtype == torch.uint8
    assert [read_number(frame) for frame in frames] == list(range(len(names)))


def test_frames_come_in_the_order_asked_for_and_at_the_size_asked_for(tmp_path, read_number):
    with open_video(make(tmp_path / "v", [f"{number}.jpg" for number in range(9)], (64, 128))) as video:
        frames = video.frames([5, 2, 5, 8], size=(20, 40))
    assert frames.shape == (4, 20, 40, 3)
    assert [read_number(frame) for frame in frames] == [5, 2, 5, 8]
    assert video.frames([]).shape == (0, 64, 128, 3)


def test_scaling_averages_over_what_it_leaves_out(tmp_path):
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[::2] = 200
    (tmp_path / "v").mkdir()
    Image.fromarray(stripes).save(tmp_path / "v/1.png")
    frames = FrameFolder(tmp_path / "v").frames([0], size=(16, 16))
    assert (frames[0, 2:-2].float() - 100).abs().max() <= 2


def test_a_rate_is_what_was_given(tmp_path):
    folder = make(tmp_path / "v", ["1.png", "2.png"])
    assert FrameFolder(folder).info.fps is None
    assert FrameFolder(folder).times is None
    assert FrameFolder(folder, fps=12).info.fps == 12


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "I;16"])
def test_pictures_of_every_kind_are_colours_of_8_bits(tmp_path, mode):
    gray = np.full((8, 8), 204, dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(gray).convert("RGB").convert(mode)
    (tmp_path / "v").mkdir()
    picture.save(tmp_path / f"v/1.{'tif' if mode == 'CMYK' else 'png'}")
    frames = FrameFolder(tmp_path / "v").frames([0])
    assert frames.shape == (1, 8, 8, 3)
    assert abs(frames.float().mean().item() - 204) < (60 if mode == "1" else 2)


def test_a_picture_of_a_turned_camera_is_shown_upright(tmp_path):
    (tmp_path / "v").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    left_bright = np.zeros((16, 32, 3), dtype=np.uint8)
    left_bright[:, :16] = 255
    Image.fromarray(left_bright).save(tmp_path / "v/1.jpg", exif=exif)
    video = FrameFolder(tmp_path / "v")
    assert (video.info.height, video.info.width) == (32, 16)
    for size in (None, (16, 8)):
        frame = video.frames([0], size=size)[0].float()
        top, bottom = frame.chunk(2)
        assert top.mean() > 200 > 50 > bottom.mean()


def test_pictures_that_are_called_like_pictures_are_the_video_beside_others(tmp_path, read_number):
    folder = make(tmp_path / "v", ["img_00001.jpg", "img_00002.jpg"])
    make(folder, ["flow_x_00001.jpg", "flow_y_00001.jpg"], (8, 8))
    assert FrameFolder(folder).info.num_frames == 2
    strange = make(tmp_path / "strange", ["left_1.jpg", "right_1.jpg"])
    with pytest.raises(VideoError, match=r"strange: pictures of 2 kinds \(left_N, right_N\), and none is called img"):
        FrameFolder(strange)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.jpg", "2.jpg", "5.jpg", "6.jpg", "8.jpg"], "v: pictures are missing: 3 to 4, 7 of 1 to 8"),
        (["1.jpg", "3.jpg"], "v: pictures are missing: 2 of 1 to 3"),
        (["1.jpg", "01.jpg"], "v: 01.jpg and 1.jpg both have the number 1"),
        (["cover.jpg"], "v: no numbered pictures among its 1 files"),
        ([], "v: the folder is empty"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, names, message):
    with pytest.raises(VideoError, match=message):
        FrameFolder(make(tmp_path / "v", names))


def test_a_folder_that_is_not_there_and_frames_that_are_not_there(tmp_path):
    with pytest.raises(VideoError, match="nowhere: No such file or directory"):
        FrameFolder(tmp_path / "nowhere")
    video = FrameFolder(make(tmp_path / "v", ["1.jpg", "2.jpg"]))
    for number in (2, -1):
        with pytest.raises(VideoError, match=rf"v: frame {number} was asked for, the video has 2 \(0 to 1\)"):
            video.frames([0, number])


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_broken_picture_is_named(tmp_path, ending):
    names = [f"{number}.{ending}" for number in range(3)]
    folder = make(tmp_path / "v", names)
    whole = (folder / names[1]).read_bytes()
    chance = random.Random(0)
    video = FrameFolder(folder)
    for content in (b"", whole[: len(whole) // 2], b"no picture at all", whole[:30] + bytes(len(whole) - 30)):
        (folder / names[1]).write_bytes(content)
        with pytest.raises(VideoError, match=rf"v/1.{ending}: the picture cannot be read"):
            video.frames([0, 1])
    for _ in range(50):  # an answer or an error that names the picture, nothing else
        content = bytearray(whole)
        for _ in range(8):
            content[chance.randrange(len(content))] = chance.randrange(256)
        (folder / names[1]).write_bytes(content)
        try:
            video.frames([1])
        except VideoError as error:
            assert f"v/1.{ending}" in str(error)  # noqa: PT017 - most of them are read


def test_reading_can_be_cut_off(tmp_path):
    cancelled = threading.Event()
    video = FrameFolder(make(tmp_path / "v", ["1.jpg", "2.jpg"]), cancelled=cancelled)
    video.frames([0])
    cancelled.set()
    with pytest.raises(VideoError, match="v: reading was cut off"):
        video.frames([0])
