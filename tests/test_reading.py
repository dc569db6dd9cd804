"""Whatever holds a video is opened by one function, and gives the same frames."""

from __future__ import annotations

import threading

import pytest
import torch

from lightning_csn.data import reading, shards
from lightning_csn.data.frame_folder import FrameFolder
from lightning_csn.data.reading import frames_at, open_video
from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError, VideoInfo
from lightning_csn.errors import InputError


@pytest.fixture
def path(make_video, tmp_path):
    return make_video(tmp_path / "a.mp4", frames=10)


def test_a_file_is_a_video(path, read_number):
    with open_video(path) as video:
        assert isinstance(video, Video)
        assert [read_number(frame) for frame in video.frames([3, 7])] == [3, 7]


def test_a_folder_is_its_pictures(path, read_number, tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    with Video(path) as video:
        for i, frame in enumerate(video.frames(range(5)), 1):
            Image.fromarray(frame.numpy()).save(folder / f"img_{i:05}.png")
    with open_video(folder, frames_fps=12.5) as pictures:
        assert isinstance(pictures, FrameFolder)
        assert pictures.info.fps == 12.5
        assert [read_number(frame) for frame in pictures.frames([0, 4])] == [0, 4]


def test_a_video_in_a_shard_is_read_from_its_bytes_by_the_layout_that_was_packed_with_it(
    path, read_number, monkeypatch
):
    member = "shards/train-000000.tar?512+100#000000.mp4"
    with Video(path) as video:
        layout = video.layout
    monkeypatch.setattr(shards, "read_member_and_layout", {member: (path.read_bytes(), layout)}.__getitem__)
    with open_video(member) as video:
        assert video.path == member
        assert video.layout is layout
        assert read_number(video.frames([7])[0]) == 7


def test_the_reader_is_chosen_by_name(path, monkeypatch):
    opened = []
    monkeypatch.setattr(reading, "TorchcodecVideo", lambda *args, **options: opened.append((args, options)))
    cancelled = threading.Event()
    open_video(path, reader="torchcodec", cancelled=cancelled)
    assert opened == [((str(path),), {"layout": None, "cancelled": cancelled})]
    with pytest.raises(InputError, match="reader must be one of av, torchcodec, got 'decord'"):
        open_video(path, reader="decord")


def test_layout_and_cancelling_reach_the_video(path):
    with Video(path) as video:
        layout = video.layout
    cancelled = threading.Event()
    with open_video(path, layout=layout, cancelled=cancelled) as video:
        assert video.layout is layout
        cancelled.set()
        with pytest.raises(VideoError, match="reading was given up"):
            video.frames([9])


class Shown:
    """As much of a video as `frames_at` looks at."""

    path = "shown.mp4"

    def __init__(self, times, fps, num_frames=5):
        self.times = times
        self.info = VideoInfo(num_frames=num_frames, fps=fps, height=2, width=2)


@pytest.mark.parametrize(
    ("times", "fps", "seconds", "numbers"),
    [
        ([0, 0.1, 0.5, 0.6, 1.0], 4.0, [0, 0.05, 0.1, 0.49, 0.5, 0.99, 1.0, 60], [0, 0, 1, 1, 2, 3, 4, 4]),
        ([0, 0.1, 0.5, 0.6, 1.0], None, [-1, 0.7], [0, 3]),
        (None, 10.0, [0, 0.05, 0.1, 0.39, 0.4, 7], [0, 0, 1, 3, 4, 4]),
        (None, 30.0, [n / 30 for n in range(5)], [0, 1, 2, 3, 4]),  # 3 / 30 * 30 is a rounding away from 3
        (None, 30000 / 1001, [n * 1001 / 30000 for n in range(5)], [0, 1, 2, 3, 4]),
        (None, 10.0, [-3], [0]),
        (None, 10.0, [], []),
    ],
)
def test_the_frame_at_a_time_is_the_one_that_is_shown_then(times, fps, seconds, numbers):
    assert frames_at(Shown(times, fps), seconds) == numbers


def test_without_times_and_rate_there_is_no_frame_at_a_time():
    with pytest.raises(VideoError, match=r"^shown\.mp4: it has neither times nor a rate"):
        frames_at(Shown(None, None), [0.5])


def test_frames_are_found_by_time_in_a_file(make_video, tmp_path, read_number):
    with open_video(make_video(tmp_path / "b.mkv", frames=30, rate=30)) as video:
        numbers = frames_at(video, [0.5, 0.99, 0.2])
        assert [read_number(frame) for frame in video.frames(numbers)] == [15, 29, 6]
        assert video.frames(numbers).dtype == torch.uint8
