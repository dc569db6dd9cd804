"""How frames look: turned, scaled, stretched, and in the colours that the ffmpeg program gives them."""

from __future__ import annotations

import gc
import shutil
import struct
import subprocess
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import decode_all, read_frames, remux

from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Put a, b, c, d in 1/65536 into the track header of an mp4 file, in place of the identity."""
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    track = content.index(identity, content.index(b"tkhd"))
    a, b, c, d = matrix
    new = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:track] + new + content[track + len(identity) :])


ONE = 65536
TURNS = {  # the matrix, what it does to frames, and what VideoInfo says: degrees clockwise, and if mirrored before
    "not at all": ((ONE, 0, 0, ONE), lambda x: x, (0, False)),
    "clockwise": ((0, ONE, -ONE, 0), lambda x: x.rot90(-1, (1, 2)), (90, False)),
    "counter-clockwise": ((0, -ONE, ONE, 0), lambda x: x.rot90(1, (1, 2)), (270, False)),
    "upside down": ((-ONE, 0, 0, -ONE), lambda x: x.rot90(2, (1, 2)), (180, False)),
    "mirrored": ((-ONE, 0, 0, ONE), lambda x: x.flip(2), (0, True)),
    "mirrored, then clockwise": ((0, -ONE, -ONE, 0), lambda x: x.flip(2).rot90(-1, (1, 2)), (90, True)),
    "mirrored, then upside down": ((ONE, 0, 0, -ONE), lambda x: x.flip(1), (180, True)),
    "mirrored, then counter-clockwise": ((0, ONE, ONE, 0), lambda x: x.flip(2).rot90(1, (1, 2)), (270, True)),
    "broken": ((0, 0, 0, 0), lambda x: x, (0, False)),
    "by 45 degrees": ((ONE, ONE, -ONE, ONE), lambda x: x, (0, False)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_turned_as_a_player_turns_them(turn, make_video, tmp_path):
    matrix, turned, said = TURNS[turn]
    path = make_video(tmp_path / "a.mp4", frames=6)
    expected = turned(decode_all(path))
    set_display_matrix(path, matrix)
    with Video(path) as video:
        assert (video.info.height, video.info.width) == tuple(expected.shape[1:3])
        assert (video.info.rotation, video.info.mirrored) == said
        assert torch.equal(video.frames(range(6)), expected)


def test_size_is_that_of_the_turned_frame(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=4)
    set_display_matrix(path, TURNS["clockwise"][0])
    assert read_frames(path, [0, 3], size=(32, 20)).shape == (2, 32, 20, 3)


def test_a_closed_video_is_gone_at_once(make_video, tmp_path):
    """Without waiting for the cycle collector, which comes too late when every video holds a decoder."""
    path = make_video(tmp_path / "a.mp4", options={"g": "5"})
    set_display_matrix(path, TURNS["clockwise"][0])
    gc.collect()
    gc.disable()
    try:
        with Video(path) as video:
            video.frames([3, 17])
        gone = weakref.ref(video)
        del video
        assert gone() is None
    finally:
        gc.enable()


def test_frames_are_scaled_while_they_are_converted(make_video, read_number, tmp_path):
    path = make_video(tmp_path / "a.mp4", size=(96, 128))
    frames = read_frames(path, [5, 9], size=(24, 40))
    assert frames.shape == (2, 24, 40, 3)
    assert [read_number(frame) for frame in frames] == [5, 9]


def test_interlaced_frames_are_made_smaller_as_a_whole(tmp_path):
    """Every other line black and white: half as high, that is gray; by fields it would stay striped."""
    path = tmp_path / "a.mkv"
    lines = np.zeros((64, 64, 3), dtype=np.uint8)
    lines[::2] = 255
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"x264-params": "tff=1", "qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv444p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(lines, format="rgb24")))
        output.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    small = read_frames(path, [0], size=(32, 64)).float()
    assert small[:, 4:-4].std() < 3  # the outermost lines have fewer neighbours
    assert small.mean() == pytest.approx(127, abs=4)


def decode_by_program(path: Path, height: int, width: int) -> torch.Tensor:
    """Every frame as the `ffmpeg` program decodes it, uint8 (T, H, W, C)."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("there is no ffmpeg program to compare with")
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = subprocess.run(command, capture_output=True, check=True).stdout
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, height, width, 3)


X265 = "log-level=none:pools=1:frame-threads=1"
BT709, BT2020, FULL_RANGE, PQ = 1, 9, 2, 16  # as in ISO 23091-2; the range as FFmpeg counts
LOSSLESS = {"preset": "ultrafast", "qp": "0"}
HDR = {"colorspace": BT2020, "color_primaries": BT2020, "color_trc": PQ}
PIXELS = {
    "bt.601": ("a.mp4", "libx264", "yuv420p", LOSSLESS, {}),
    "bt.709": ("a.mp4", "libx264", "yuv420p", LOSSLESS, {"colorspace": BT709}),
    "full range": ("a.mp4", "libx264", "yuv420p", LOSSLESS, {"color_range": FULL_RANGE}),
    "bt.709, full range": ("a.mkv", "libx264", "yuv420p", LOSSLESS, {"colorspace": BT709, "color_range": FULL_RANGE}),
    "10 bit": ("a.mp4", "libx265", "yuv420p10le", {"x265-params": X265 + ":lossless=1"}, {}),
    "hdr": ("a.mp4", "libx265", "yuv420p10le", {"x265-params": X265 + ":lossless=1"}, HDR),
    "10 bit, full range": ("a.mkv", "libx265", "yuv420p10le", {"x265-params": X265}, {"color_range": FULL_RANGE}),
    "12 bit, 4:4:4": ("a.mkv", "ffv1", "yuv444p12le", {}, {"colorspace": BT709}),
    "4:2:2": ("a.mp4", "libx264", "yuv422p", LOSSLESS, {}),
    "4:4:4": ("a.mp4", "libx264", "yuv444p", LOSSLESS, {"colorspace": BT709}),
    "gray": ("a.mkv", "ffv1", "gray", {}, {}),
    "gray, 16 bit": ("a.mkv", "ffv1", "gray16le", {}, {}),
    "alpha": ("a.mov", "png", "rgba", {}, {}),
    "yuv and alpha": ("a.mkv", "ffv1", "yuva420p", {}, {}),
    "palette": ("a.gif", "gif", "rgb8", {}, {}),
    "rgb": ("a.mkv", "ffv1", "bgr0", {}, {}),
    "interlaced": ("a.mkv", "libx264", "yuv420p", {**LOSSLESS, "x264-params": "tff=1"}, {}),
    "mpeg2": ("a.mkv", "mpeg2video", "yuv420p", {"qmax": "2"}, {}),
}


def write_gradients(
    path: Path,
    codec: str,
    pixel_format: str,
    options: dict[str, str],
    tags: dict[str, int],
    size: tuple[int, int] = (48, 64),
) -> None:
    """Three frames of colours that change slowly over the picture and from frame to frame."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / 64
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for i in range(3):
            image = (np.stack([x, y, 1 - x], -1) * (200 + 20 * i)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixel_format)
            frame.color_range = tags.get("color_range", frame.color_range)
            frame.colorspace = tags.get("colorspace", frame.colorspace)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("kind", "size"),
    [(kind, (48, 64)) for kind in PIXELS]
    # x264 and x265 write no frames of odd sizes.
    + [(kind, (45, 61)) for kind, (_, codec, *_) in PIXELS.items() if not codec.startswith("libx26")],
)
def test_pixels_are_those_of_the_ffmpeg_program(kind, size, tmp_path):
    name, codec, pixel_format, options, tags = PIXELS[kind]
    path = tmp_path / name
    write_gradients(path, codec, pixel_format, options, tags, size)
    frames = read_frames(path, range(3))
    expected = decode_by_program(path, *size)
    assert torch.equal(frames, expected)


@pytest.mark.parametrize(
    ("codec", "pixel_format", "options", "tag"),
    [
        ("libx264", "yuv420p", LOSSLESS, {"colorspace": BT709}),
        ("libx264", "yuv420p", LOSSLESS, {"color_range": FULL_RANGE}),
        ("libx265", "yuv420p10le", {"x265-params": X265}, {"colorspace": BT2020}),
        ("libx265", "yuv420p10le", {"x265-params": X265}, {"color_range": FULL_RANGE}),
    ],
)
def test_colours_are_read_by_what_the_file_says_of_them(codec, pixel_format, options, tag, tmp_path):
    """The same numbers in the file, with and without a word on what they mean."""
    y, x = np.mgrid[0:48, 0:64] / 64
    image = (np.stack([x, y, 1 - x], -1) * 200).astype(np.uint8)
    coded = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixel_format)
    read = []
    for tags in ({}, tag):
        with av.open(str(tmp_path / "a.mp4"), "w") as output:
            stream = output.add_stream(codec, rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = 48, 64, pixel_format
            for name, value in tags.items():
                setattr(stream.codec_context, name, value)
                setattr(coded, name, value)
            output.mux(stream.encode(coded))
            output.mux(stream.encode(None))
        read.append(read_frames(tmp_path / "a.mp4", [0]).float())
    assert (read[0] - read[1]).abs().mean() > 2.5


def test_colours_that_cannot_be_converted_are_an_error(make_video, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise av.error.OSError(95, "Operation not supported")

    path = make_video(tmp_path / "a.mp4", frames=3)
    with Video(path) as video:
        monkeypatch.setattr(video._converter, "convert", fail)
        with pytest.raises(VideoError) as caught:
            video.frames([1])
    assert str(caught.value) == f"{path}: a frame's colours cannot be converted (Operation not supported)"


@pytest.mark.parametrize("ticks", [-3, 7], ids=["negative times", "times that start late"])
def test_frames_are_the_same_whatever_their_first_time(ticks, make_video, tmp_path):
    def shifted(i, packet):
        packet.pts, packet.dts = packet.pts + ticks * packet.duration, packet.dts + ticks * packet.duration
        return [packet]

    path = tmp_path / "shifted.mkv"
    source = make_video(tmp_path / "a.mkv", options={"g": "5", "bf": "0"})
    remux(source, path, shifted)
    with Video(path) as video, Video(source) as before:
        assert video.info == before.info
        assert torch.equal(video.frames([0, 13, 19]), before.frames([0, 13, 19]))
        assert torch.equal(video.frames(range(20)), decode_by_program(path, 48, 64))


@pytest.mark.parametrize(
    ("aspect", "shown"), [(Fraction(4, 3), (48, 85)), (Fraction(1, 2), (96, 64)), (Fraction(1, 8), (48, 64))]
)
def test_pixels_that_are_not_square_are_stretched(aspect, shown, make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=3, pixel_aspect=aspect)
    with Video(path) as video:
        assert (video.info.height, video.info.width) == shown
        assert video.frames([0]).shape[1:3] == shown


def test_a_size_that_changes_in_mid_stream_becomes_the_first(make_video, read_number, tmp_path):
    small = make_video(tmp_path / "small.ts", frames=4, size=(48, 64), options={"bf": "0"})
    large = make_video(tmp_path / "large.ts", frames=4, size=(96, 96), options={"bf": "0"})
    path = tmp_path / "a.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with Video(path) as video:
        assert video.info.num_frames == 8
        assert [read_number(frame) for frame in video.frames(range(8))] == [0, 1, 2, 3, 0, 1, 2, 3]
        assert video.frames([6]).shape == (1, 48, 64, 3)
