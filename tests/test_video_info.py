"""What is known of a video: its rate, its times, its codec and what is kept of them."""

from __future__ import annotations

import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import pytest
from conftest import probe, remux

from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoInfo


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("a.mp4", Fraction(30000, 1001)),
        ("a.mkv", 25),
        ("a.avi", 15),
        ("a.ts", 30),
        ("a.flv", 24),
        ("a.ivf", 30),
    ],
)
def test_the_rate_is_that_of_the_frames(name, rate, make_video, tmp_path):
    codec = {"a.ivf": "libvpx-vp9", "a.avi": "mpeg4"}.get(name, "libx264")
    info = probe(make_video(tmp_path / name, rate=rate, codec=codec))
    assert info.fps == pytest.approx(float(rate), rel=0.01)
    assert info.seconds == pytest.approx(20 / float(rate), rel=0.01)
    assert type(info.fps) is float  # neither Fraction nor AVRational


def test_a_rate_that_the_times_deny_is_not_believed(make_video, tmp_path):
    path = make_video(tmp_path / "a.flv")
    content = path.read_bytes()
    rate = content.index(b"framerate") + len(b"framerate") + 1
    path.write_bytes(content[:rate] + struct.pack(">d", 1000.0) + content[rate + 8 :])
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 1000
    assert probe(path).fps == pytest.approx(25)


def test_a_video_without_a_rate_has_no_seconds():
    assert VideoInfo(num_frames=1, fps=None, height=2, width=2).seconds is None


@pytest.mark.parametrize(
    ("name", "options", "codec", "pixel_format"),
    [
        ("a.mp4", {}, "h264", "yuv420p"),
        ("a.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le"}, "hevc", "yuv420p10le"),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}}, "vp9", "yuv420p"),
        ("a.mp4", {"codec": "libsvtav1", "frames": 3, "size": (64, 64), "options": {"preset": "12"}}, "av1", "yuv420p"),
        ("a.avi", {"codec": "mpeg4"}, "mpeg4", "yuv420p"),
    ],
)
def test_the_codec_and_the_format_of_pixels_are_known(name, options, codec, pixel_format, make_video, tmp_path):
    info = probe(make_video(tmp_path / name, **options))
    assert (info.codec, info.pixel_format) == (codec, pixel_format)


def retime(source: Path, target: Path, ticks: list[int]) -> None:
    """Copy a video without B-frames, whose frame i is shown at `ticks[i]`."""

    def later(i, packet):
        packet.pts = packet.dts = ticks[i]
        return [packet]

    remux(source, target, later)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_times_are_those_of_the_frames(container, make_video, tmp_path, read_number):
    seconds = [0.5, 0.6, 1.0, 1.1, 2.5, 2.6]
    source = make_video(tmp_path / f"a.{container}", frames=6, options={"bf": "0", "g": "2"})
    with av.open(str(source)) as file:
        unit = file.streams.video[0].time_base
    path = tmp_path / f"varying.{container}"
    retime(source, path, [round(second * unit.denominator / unit.numerator) for second in seconds])
    with Video(path) as video:
        assert video.times == pytest.approx([0, 0.1, 0.5, 0.6, 2.0, 2.1])
        assert video.info.variable_rate
        assert video.info.fps == pytest.approx(5 / 2.1)
        assert [read_number(video.frames([i])[0]) for i in (5, 2, 4, 0)] == [5, 2, 4, 0]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.flv"])
def test_times_at_one_rate_are_even(name, make_video, tmp_path):
    with Video(make_video(tmp_path / name, rate=30)) as video:
        assert video.times == pytest.approx([n / 30 for n in range(20)], abs=0.001)
        assert not video.info.variable_rate


def test_there_are_no_times_where_packets_follow_in_another_order_than_frames(make_video, tmp_path):
    with Video(make_video(tmp_path / "a.avi", codec="mpeg4", options={"bf": "2"})) as video:
        assert video.times is None
        assert video.info.fps == 25


def test_a_layout_at_one_rate_is_small(make_video, tmp_path):
    with Video(make_video(tmp_path / "a.mp4", frames=250)) as video:
        assert len(json.dumps(video.layout.to_dict())) < 400
