"""Frame n of a video is the n-th that its decoder puts out, whatever the file; here every frame shows its number."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import logging
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError, VideoInfo, VideoLayout

X265 = "log-level=none:pools=1:frame-threads=1"
GOP_OF_5 = {"g": "5", "bf": "2"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
KINDS = {
    "h264, one keyframe": ("a.mp4", {}),
    "h264, short GOP, B-frames": ("a.mp4", {"options": {"g": "6", "bf": "3", "preset": "medium"}}),
    "h264, open GOP": ("a.mkv", {"options": {"g": "6", "bf": "2", "preset": "medium", "x264-params": "open-gop=1"}}),
    "h264, keyframes only": ("a.mov", {"options": {"g": "1"}}),
    "h264, intra refresh": ("a.mp4", {"options": {"g": "8", "x264-params": "intra-refresh=1"}}),
    "h264 with sound in ts": ("a.ts", {"options": {"g": "5"}, "audio": True}),
    "h264 with B-frames in avi": ("a.avi", {"options": {"g": "6", "bf": "2", "preset": "medium"}}),
    "h264 in flv": ("a.flv", {}),
    "h264 in fragments": ("a.mp4", {"container_options": FRAGMENTS, "options": {"g": "5"}}),
    "h264, 4:4:4": ("a.mkv", {"pix_fmt": "yuv444p", "options": {"g": "5"}}),
    "hevc": ("a.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1:keyint=6:bframes=3"}}),
    "hevc, 10 bit": ("a.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le"}),
    "mpeg4 in avi, as UCF101": ("a.avi", {"codec": "mpeg4", "options": {"g": "12"}}),
    "mpeg4 with B-frames": ("a.mp4", {"codec": "mpeg4", "options": GOP_OF_5}),
    "mpeg2 in ts": ("a.ts", {"codec": "mpeg2video", "options": GOP_OF_5}),
    "vp8": ("a.webm", {"codec": "libvpx", "options": {"g": "8", "cpu-used": "8"}}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"g": "7", "auto-alt-ref": "1", "cpu-used": "8"}}),
    "vp9 without a rate": ("a.ivf", {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}}),
    "mjpeg": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "gif, palette": ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    "png, alpha": ("a.mov", {"codec": "png", "pix_fmt": "rgba"}),
    "ffv1, gray": ("a.mkv", {"codec": "ffv1", "pix_fmt": "gray"}),
    "odd size": ("a.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p", "size": (45, 61)}),
    "one frame": ("a.mp4", {"frames": 1}),
}


def probe(path):
    with Video(path) as video:
        return video.info


def read_frames(path, numbers, *, size=None):
    with Video(path) as video:
        return video.frames(numbers, size=size)


def decode_all(path: Path) -> torch.Tensor:
    """What Video is measured by: every frame from the first on, uint8 (T, H, W, C)."""
    with av.open(str(path)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(images))


def decoded_packets(video: Video, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times of the packets that are given to the decoder of `video` from now on."""
    decode, times = video._decode, []

    def note(packet):
        if packet is not None:
            times.append(packet.pts)
        return decode(packet)

    monkeypatch.setattr(video, "_decode", note)
    return times


def believe(video: Video, **changes) -> None:
    """Make `video` believe something else of its file than what it found."""
    video._layout = dataclasses.replace(video._layout, **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_found_by_its_number(kind, make_video, read_number, tmp_path):
    name, options = KINDS[kind]
    path = make_video(tmp_path / name, **{"frames": 20, **options})
    truth = decode_all(path)
    numbers = list(range(len(truth)))
    assert [read_number(frame) for frame in truth] == numbers
    with Video(path) as video:
        assert video.info.num_frames == len(truth)
        assert torch.equal(video.frames(numbers), truth)
        for number in random.Random(0).sample(numbers, len(numbers)):
            assert torch.equal(video.frames([number])[0], truth[number]), number


@pytest.mark.parametrize(
    "kind", ["h264, short GOP, B-frames", "h264, open GOP", "hevc", "mpeg4 in avi, as UCF101", "vp9"]
)
def test_only_what_a_frame_needs_is_decoded(kind, make_video, tmp_path, monkeypatch):
    name, options = KINDS[kind]
    path = make_video(tmp_path / name, frames=40, **options)
    with Video(path) as video:
        times = decoded_packets(video, monkeypatch)
        video.frames([38])
        assert len(times) < 20
        times.clear()
        video.frames([0, 1])
        assert len(times) < 10


B_FRAMES = {  # videos of which a part of the frames is referred to by no other
    "h264, pyramid": ("a.mp4", {"options": {"g": "30", "bf": "4", "b-pyramid": "normal", "preset": "medium"}}),
    "h264 in mkv": ("a.mkv", {"options": {"g": "30", "bf": "3", "preset": "medium"}}),
    "h264 in ts": ("a.ts", {"options": {"g": "30", "bf": "3", "preset": "medium"}}),
    "hevc, pyramid": (
        "a.mp4",
        {"codec": "libx265", "options": {"x265-params": X265 + ":keyint=30:bframes=4:b-pyramid=1"}},
    ),
    "mpeg4": ("a.mp4", {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}),
    "mpeg2": ("a.ts", {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}}),
}


def frames_that_come_out(video: Video, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times of the frames that the decoder of `video` puts out from now on."""
    decode, times = video._decode, []

    def note(packet):
        frames = list(decode(packet))
        times.extend(frame.pts for frame in frames)
        return frames

    monkeypatch.setattr(video, "_decode", note)
    return times


@pytest.mark.parametrize("kind", B_FRAMES)
def test_frames_that_nothing_needs_are_left_out_and_change_no_other(kind, make_video, tmp_path, monkeypatch):
    name, options = B_FRAMES[kind]
    path = make_video(tmp_path / name, frames=60, **options)
    truth = decode_all(path)
    assert len(truth) == 60
    draw = random.Random(0)
    with Video(path) as video:
        assert video.layout.skips
        decoded = frames_that_come_out(video, monkeypatch)
        assert torch.equal(video.frames([27]), truth[[27]])
        assert len(set(decoded)) == len(decoded) < 22
        for _ in range(20):
            numbers = sorted(draw.sample(range(60), 6))
            decoded.clear()
            assert torch.equal(video.frames(numbers), truth[numbers]), numbers
            assert len(decoded) < 60
        for number in range(60):
            assert torch.equal(video.frames([number])[0], truth[number]), number


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "auto-alt-ref": "1"}}),  # FFmpeg skips none
        ("a.avi", {"codec": "mpeg4", "options": {"bf": "2"}}),  # times are made up
        ("a.mp4", {"options": {"bf": "0"}}),  # were times made up, it would look like this
        ("a.mp4", {"codec": "libx265", "options": {"x265-params": X265 + ":bframes=4:b-pyramid=1:temporal-layers=3"}}),
    ],
    ids=["vp9", "avi", "no B-frames", "hevc in layers"],
)
def test_nothing_is_left_out_where_it_is_not_certain(name, options, make_video, tmp_path):
    path = make_video(tmp_path / name, frames=30, **options)
    truth = decode_all(path)
    with Video(path) as video:
        assert not video.layout.skips
        assert torch.equal(video.frames([3, 7, 22]), truth[[3, 7, 22]])


def test_frames_left_out_wrongly_are_noticed(make_video, tmp_path):
    """Told of times that are those of other frames, the decoder leaves out what is needed."""
    path = make_video(tmp_path / "a.mp4", frames=30, options=B_FRAMES["h264, pyramid"][1]["options"])
    truth = decode_all(path)
    with Video(path) as video:
        times = list(video.layout.times)
        believe(video, times=[*times[:5], times[5] + 1, *times[6:]])
        assert torch.equal(video.frames([5, 9]), truth[[5, 9]])
        assert not video.layout.skips


def test_repeated_and_unordered_numbers_come_as_asked_for(make_video, read_number, tmp_path):
    frames = read_frames(make_video(tmp_path / "a.mp4"), [7, 0, 7, 19, 3])
    assert frames.dtype == torch.uint8
    assert [read_number(frame) for frame in frames] == [7, 0, 7, 19, 3]


def test_no_numbers_give_no_frames(make_video, tmp_path):
    assert read_frames(make_video(tmp_path / "a.mp4"), []).shape == (0, 48, 64, 3)


@pytest.mark.parametrize(("name", "times"), [("a.mp4", 1), ("a.mkv", 1), ("a.avi", 2)])
def test_a_file_is_opened_anew_only_where_it_cannot_be_searched(name, times, make_video, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(Video, "_open", lambda video, open=Video._open: (opened.append(1), open(video)))
    with Video(make_video(tmp_path / name, frames=40, codec="mpeg4", options={"g": "5"})) as video:
        video.frames([0, 20, 39, 3])
    assert len(opened) == times


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_keyframe_that_is_none_is_not_believed(codec, make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=20, codec=codec, options={"g": "100"})
    truth = decode_all(path)
    with Video(path) as video:
        believe(video, starts=range(20))
        assert torch.equal(video.frames([2, 17]), truth[[2, 17]])
        assert video.layout.starts == ()


def test_frames_out_of_step_with_their_times_are_read_from_the_beginning(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=20, options={"g": "5"})
    truth = decode_all(path)
    with Video(path) as video:
        assert video.layout.starts == (0, 5, 10, 15)
        times = video.layout.times
        believe(video, times=[*times[:12], times[12] + 1, *times[13:]])
        assert torch.equal(video.frames([14]), truth[[14]])
        assert video.layout.starts == ()


def test_after_a_damaged_keyframe_frames_are_read_from_the_beginning(make_video, tmp_path):
    """What the decoder paints over the damage depends on the frames before."""
    path = make_video(tmp_path / "a.mp4", frames=20, options={"g": "5", "qp": "1"})
    with av.open(str(path)) as container:
        keyframe = [packet for packet in container.demux(video=0) if packet.size][10]
        middle, end = keyframe.pos + keyframe.size // 2, keyframe.pos + keyframe.size
    content = bytearray(path.read_bytes())
    content[middle:end] = bytes(reversed(content[middle:end]))
    path.write_bytes(content)
    truth = read_frames(path, range(20))
    with Video(path) as video:
        assert 10 in video.layout.starts
        assert torch.equal(video.frames([10, 12]), truth[[10, 12]])
        assert video.layout.starts == ()


def remux(source: Path, target: Path, change) -> None:
    """Copy packets, of which `change(position, packet)` makes a list of packets."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for i, original in enumerate(packet for packet in before.demux(video=0) if packet.size):
            for packet in change(i, original):
                packet.stream = stream
                after.mux(packet)


def test_frames_that_an_edit_list_hides_do_not_count(make_video, read_number, tmp_path):
    def earlier(i, packet):
        packet.pts, packet.dts = packet.pts - 7 * packet.duration, packet.dts - 7 * packet.duration
        return [packet]

    path = tmp_path / "cut.mp4"
    remux(make_video(tmp_path / "a.mp4", options={"g": "5", "bf": "0"}), path, earlier)
    with Video(path) as video:
        assert video.info.num_frames == 13
        assert [read_number(frame) for frame in video.frames(range(13))] == list(range(7, 20))
        assert [read_number(video.frames([i])[0]) for i in (12, 5, 8)] == [19, 12, 15]


def test_vp8_frames_that_nobody_sees_do_not_count(make_video, read_number, tmp_path):
    def with_hidden(i, packet):
        content = bytes(packet)
        hidden = av.Packet(bytes([content[0] & ~16]) + content[1:])
        hidden.pts = hidden.dts = packet.pts - 1
        hidden.time_base, hidden.is_keyframe = packet.time_base, True
        return [packet] if i % 3 != 1 else [hidden, packet]

    path = tmp_path / "hidden.webm"
    remux(make_video(tmp_path / "a.webm", codec="libvpx", frames=9, options={"g": "1"}), path, with_hidden)
    with av.open(str(path)) as container:
        assert len([packet for packet in container.demux(video=0) if packet.size]) == 12
    with Video(path) as video:
        assert video.info.num_frames == 9
        assert [read_number(frame) for frame in video.frames(range(9))] == list(range(9))
        assert [read_number(video.frames([i])[0]) for i in (8, 4)] == [8, 4]


def test_packed_frames_of_avi_are_counted_and_kept_in_order(make_video, read_number, tmp_path):
    """As in UCF101 and HMDB51: DivX puts a frame and the B-frame shown before it into one packet, then a filler."""
    plain = make_video(tmp_path / "plain.avi", frames=19, codec="mpeg4", options={"bf": "1", "g": "100"})
    path = tmp_path / "packed.avi"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        coded = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        assert len(coded) == 19
        filler = b"\x00\x00\x01\xb6\x50\x00\x40"
        packed = [coded[0].replace(b"\x00\x00\x01\xb6", b"\x00\x00\x01\xb2DivX503b1393p\x00\x00\x01\xb6", 1)]
        packed.append(b"\x7f")  # HMDB51 has one of these after the first keyframe
        for i in range(1, 19, 2):
            packed += [coded[i] + coded[i + 1], filler]
        for i, content in enumerate(packed):
            packet = av.Packet(content)
            packet.stream, packet.dts, packet.pts, packet.is_keyframe = stream, i, i, i == 0
            packet.time_base = Fraction(1, 25)
            target.mux(packet)
    with av.open(str(path)) as container:
        times = [frame.pts for frame in container.decode(video=0)]
    assert times != sorted(times)
    with Video(path) as video:
        assert video.info.num_frames == len(times) == 19
        assert [read_number(frame) for frame in video.frames(range(19))] == list(range(19))


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


def spoil_packets(path: Path, positions: list[int]) -> None:
    """Make packets of an h264 mp4 file undecodable: units longer than the packet."""
    with av.open(str(path)) as container:
        offsets = [packet.pos for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position in positions:
        content[offsets[position] : offsets[position] + 4] = b"\xff" * 4
    path.write_bytes(content)


def test_a_video_that_ends_early_repeats_its_last_frame_and_says_so_once(make_video, read_number, tmp_path, caplog):
    path = make_video(tmp_path / "a.mp4", frames=20)
    spoil_packets(path, [17, 18, 19])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            frames = read_frames(path, [15, 16, 17, 19])
            assert [read_number(frame) for frame in frames] == [15, 16, 16, 16]
    assert caplog.messages == [
        f"{path}: 17 frames could be decoded of the 20 that the file holds (Invalid data found when processing input); "
        "the last one is repeated"
    ]


def test_a_packet_that_cannot_be_decoded_is_passed_over(make_video, read_number, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=20, options={"g": "1"})
    spoil_packets(path, [5])
    with Video(path) as video:
        believe(video, starts=())
        assert [read_number(frame) for frame in video.frames(range(6))] == [0, 1, 2, 3, 4, 6]


def test_a_file_cut_short_gives_the_frames_that_are_there(make_video, read_number, tmp_path):
    path = make_video(tmp_path / "a.mkv", frames=40, codec="mjpeg", pix_fmt="yuvj420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Video(path) as video:
        assert 10 < video.info.num_frames < 30
        numbers = list(range(video.info.num_frames - 1))
        assert [read_number(frame) for frame in video.frames(numbers)] == numbers


def test_a_stream_that_begins_in_mid_file_does_not_end_reading(make_video, read_number, tmp_path, monkeypatch):
    """PyAV raises IndexError for its packets, as in a damaged transport stream."""
    path = make_video(tmp_path / "a.ts")
    with Video(path) as video:
        container, demux = video._container, video._container.demux

        class Surprising:
            raised = False

            def __getattr__(self, name):
                return getattr(container, name)

            def demux(self, stream):
                for i, packet in enumerate(demux(stream)):
                    yield packet
                    if i == 7 and not self.raised:
                        self.raised = True
                        raise IndexError("list index out of range")

        video._reopen()
        container, demux = video._container, video._container.demux
        video._container = Surprising()
        video._packets = video._demux()
        assert [packet.pts for packet in video._packets] == sorted(video.layout.times)


def test_text_that_is_not_utf8_does_not_matter(make_video, tmp_path):
    path = make_video(tmp_path / "a.avi", codec="mpeg4")
    content = path.read_bytes()
    assert content.count(b"Lavf") == 1  # the name of the program that wrote the file
    path.write_bytes(content.replace(b"Lavf", b"\xff\xfe\xe9\xff"))
    assert probe(path).num_frames == 20


def test_names_may_hold_what_looks_like_a_protocol_or_a_pattern(make_video, tmp_path, monkeypatch):
    path = make_video(tmp_path / "pipe:1 %03d ü #1.mp4", frames=3)
    monkeypatch.chdir(tmp_path)
    assert probe(path).num_frames == probe(str(path)).num_frames == probe(path.name).num_frames == 3


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


def test_errors_name_the_file_and_the_reason(make_video, tmp_path):
    empty, text, sound, header = (tmp_path / name for name in ("empty.mp4", "text.mp4", "sound.mp4", "header.mp4"))
    empty.touch()
    text.write_text("not a video " * 100)
    with av.open(str(sound), "w") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        output.mux(stream.encode(silence))
        output.mux(stream.encode(None))
    content = make_video(tmp_path / "whole.mp4", container_options=FRAGMENTS).read_bytes()
    header.write_bytes(content[: content.index(b"moof") - 4])
    for path, reason in {
        tmp_path / "missing.mp4": "No such file or directory",
        tmp_path: "Is a directory",
        empty: "the file is empty",
        text: "Invalid data found when processing input",
        sound: "there is no video in it, only audio",
        header: "no frame can be decoded (the file holds a header only)",
    }.items():
        with pytest.raises(VideoError) as caught:
            probe(path)
        assert str(caught.value) == f"{path}: {reason}"


def test_a_file_in_which_nothing_can_be_decoded_is_an_error(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=5)
    spoil_packets(path, list(range(5)))
    with pytest.raises(VideoError, match=r"no frame can be decoded \(Invalid data found"):
        probe(path)


def test_a_codec_without_a_decoder_is_an_error(make_video, tmp_path):
    path = make_video(tmp_path / "a.mkv", frames=3, codec="ffv1", pix_fmt="yuv420p")
    path.write_bytes(path.read_bytes().replace(b"V_FFV1", b"V_XXXX"))
    with pytest.raises(VideoError, match="FFmpeg has no decoder for it"):
        probe(path)


def bytes_of(path):
    return path.read_bytes()


def file_object_of(path):
    return io.BytesIO(path.read_bytes())


@pytest.mark.parametrize("source", [bytes_of, file_object_of, open], ids=["bytes", "file object", "open file"])
@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.ts"])
def test_bytes_and_file_objects_are_read_as_files_are(source, name, make_video, tmp_path):
    path = make_video(tmp_path / name, options={"g": "5"})
    content = path.open("rb") if source is open else source(path)
    with Video(path) as by_path, Video(content, name="shard/a") as video:
        assert video.info == by_path.info
        assert torch.equal(video.frames([17, 3, 9]), by_path.frames([17, 3, 9]))
        assert torch.equal(video.frames([0]), by_path.frames([0]))
        with pytest.raises(VideoError, match=r"^shard/a: frame 20 was asked for"):
            video.frames([20])
    if not isinstance(content, bytes):
        assert not content.closed
        content.close()


@pytest.mark.parametrize("source", [bytes, io.BytesIO])
def test_errors_of_bytes_carry_the_name(source):
    with pytest.raises(VideoError, match=r"^the 7th: the file is empty$"):
        Video(source(b""), name="the 7th")
    with pytest.raises(VideoError, match=r"^the 8th: Invalid data found"):
        Video(source(b"not a video " * 100), name="the 8th")


def test_a_file_object_that_fails_is_an_error_with_its_reason(make_video, tmp_path):
    class Lost(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 500:
                raise ConnectionResetError("the store went away")
            return super().read(min(size, 400))

    with pytest.raises(VideoError, match=r"^lost: the store went away"):
        Video(Lost(make_video(tmp_path / "a.mkv", frames=60).read_bytes()), name="lost")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
def test_a_path_that_is_no_file_is_an_error_and_no_endless_wait(tmp_path):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(VideoError) as caught:
            Video(path)
        assert str(caught.value) == f"{path}: not a regular file"


def test_reading_ends_soon_after_it_was_cancelled(make_video, tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", frames=40)
    cancelled = threading.Event()
    with Video(path, cancelled=cancelled) as video:
        times = decoded_packets(video, monkeypatch)
        decode = video._decode

        def cancel_after_five(packet):
            if len(times) == 4:
                cancelled.set()
            return decode(packet)

        monkeypatch.setattr(video, "_decode", cancel_after_five)
        with pytest.raises(VideoError) as caught:
            video.frames(range(40))
        assert str(caught.value) == f"{path}: reading was given up"
        assert len(times) == 5
    with pytest.raises(VideoError, match="given up"):
        Video(path, cancelled=cancelled)


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_that_was_kept_saves_looking_at_the_file(kind, make_video, tmp_path, monkeypatch, caplog):
    name, options = KINDS[kind]
    path = make_video(tmp_path / name, **{"frames": 20, **options})
    with Video(path) as video:
        expected, info = video.frames(range(video.info.num_frames)), video.info
        layout = VideoLayout.from_dict(json.loads(json.dumps(video.layout.to_dict())))
        assert layout == video.layout
    monkeypatch.setattr(Video, "_scan", None)
    draw = random.Random(0)
    numbers = list(range(info.num_frames))
    for number in draw.sample(numbers, min(8, len(numbers))):
        with Video(path, layout=layout) as video:
            assert video.info == info
            assert torch.equal(video.frames([number])[0], expected[number])
            assert torch.equal(video.frames(numbers), expected)
            assert torch.equal(video.frames(numbers[:1]), expected[:1])
    assert not caplog.messages


def test_a_layout_at_one_rate_is_small(make_video, tmp_path):
    with Video(make_video(tmp_path / "a.mp4", frames=250)) as video:
        assert len(json.dumps(video.layout.to_dict())) < 400


@pytest.mark.parametrize(
    ("name", "options"),
    [("b.mp4", {"rate": 24}), ("b.mp4", {"codec": "mpeg4"}), ("b.ts", {}), ("b.mp4", {"rate": Fraction(25, 2)})],
)
def test_a_layout_of_another_file_is_noticed_and_said_once(name, options, make_video, read_number, tmp_path, caplog):
    path = make_video(tmp_path / "a.mp4", frames=30, options={"g": "10"})
    with Video(make_video(tmp_path / name, frames=20, **options)) as other:
        layout = other.layout
    for _ in range(2):
        with Video(path, layout=layout) as video:
            assert [read_number(frame) for frame in video.frames([3, 17])] == [3, 17]
            assert video.info.num_frames == 30
            assert [read_number(frame) for frame in video.frames([29])] == [29]
    assert caplog.messages == [
        f"{path}: its frames are not those of the layout that was recorded; it is looked at anew"
    ]


def test_a_layout_of_a_longer_video_ends_in_an_error_that_says_what_there_is(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=10)
    with Video(make_video(tmp_path / "b.mp4", frames=20)) as other:
        layout = other.layout
    with (
        Video(path, layout=layout) as video,
        pytest.raises(VideoError, match=r"frame 15 .* the video has 10 \(0 to 9\)"),
    ):
        video.frames([15])


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


@pytest.mark.parametrize("number", [-1, 20])
def test_a_frame_outside_the_video_is_an_error(number, make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4")
    with pytest.raises(VideoError) as caught:
        read_frames(path, [0, number])
    assert str(caught.value) == f"{path}: frame {number} was asked for, the video has 20 (0 to 19)"


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


@pytest.mark.parametrize("content", [b"", b"not a video " * 100])
def test_a_file_that_cannot_be_read_is_let_go(content, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("open files can be counted on Linux only")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        with pytest.raises(VideoError):
            probe(path)
    assert len(list(descriptors.iterdir())) <= before  # fewer where what a test before has left is let go now


CONTAINERS = {
    "mp4": {"options": {"g": "5", "bf": "2", "preset": "medium"}},
    "mov": {"codec": "png", "pix_fmt": "rgb24"},
    "mkv": {"codec": "libx265"},
    "webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
    "avi": {"codec": "mpeg4", "options": {"bf": "1"}},
    "gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "ts": {"codec": "mpeg2video", "options": GOP_OF_5},
    "3gp": {"codec": "h263", "size": (96, 128), "rate": Fraction(30000, 1001)},
    "flv": {"codec": "flv"},
    "wmv": {"codec": "wmv2", "container": "asf"},
}
READ_THEM = """
import faulthandler, sys, time
from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError
faulthandler.enable()
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        with Video(path) as video:
            last = video.info.num_frames - 1
            answer = f"{len(video.frames([last // 2, 0, last], size=(24, 32)))} frames"
    except VideoError as error:
        answer = str(error).partition(path)[2] and "an error with the path"
    print(answer, time.process_time() - start < 10, sep=", fast: ", flush=True)
"""


def damaged(content: bytes, draw: random.Random) -> bytes:
    """With one byte of a hundred changed."""
    changed = bytearray(content)
    for place in draw.sample(range(len(content)), max(1, len(content) // 100)):
        changed[place] = draw.randrange(256)
    return bytes(changed)


def test_damage_to_a_file_of_any_container_ends_in_frames_or_an_error(make_video, tmp_path):
    """Never in a crash of the interpreter, which is why another one reads them, nor in a long wait."""
    paths = []
    for container, options in CONTAINERS.items():
        whole = make_video(tmp_path / f"whole.{container}", **{"frames": 12, **options})
        content, draw = whole.read_bytes(), random.Random(container)
        kinds = {"half": content[: len(content) // 2], "empty": b""}
        kinds |= {f"damaged_{i}": damaged(content, draw) for i in range(4)}
        for kind, changed in kinds.items():
            (tmp_path / f"{kind}.{container}").write_bytes(changed)
        paths += [whole, *(tmp_path / f"{kind}.{container}" for kind in kinds)]
    reading = subprocess.run([sys.executable, "-c", READ_THEM, *map(str, paths)], capture_output=True, text=True)
    assert reading.returncode == 0, reading.stderr
    answers = dict(zip(paths, reading.stdout.splitlines(), strict=True))
    assert set(answers.values()) <= {"3 frames, fast: True", "an error with the path, fast: True"}
    assert all(answer.startswith("3 frames") for path, answer in answers.items() if path.stem == "whole")
    assert all(answer.startswith("an error") for path, answer in answers.items() if path.stem == "empty")


@pytest.mark.parametrize("container", CONTAINERS)
def test_each_container_is_read_frame_by_frame(container, make_video, read_number, tmp_path):
    path = make_video(tmp_path / f"a.{container}", **{"frames": 12, **CONTAINERS[container]})
    with Video(path) as video:
        assert [read_number(video.frames([n])[0]) for n in (11, 3, 7)] == [11, 3, 7]


def test_memory_and_open_files_do_not_grow_with_what_was_read(make_video, tmp_path):
    status, descriptors = Path("/proc/self/statm"), Path("/proc/self/fd")
    if not status.exists():
        pytest.skip("memory is measured on Linux only")
    paths = [
        make_video(tmp_path / "a.mp4", options={"g": "5", "bf": "2"}),
        make_video(tmp_path / "a.avi", codec="mpeg4"),
    ]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(paths[0].read_bytes()[:900])

    def read_all(times: int) -> tuple[int, int]:
        for i in range(times):
            for source in (paths[0], paths[0].read_bytes(), paths[1]):
                with Video(source) as video:
                    video.frames([i % 20, 3], size=(24, 32))
            with pytest.raises(VideoError):
                Video(broken)
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"), len(list(descriptors.iterdir()))

    bytes_before, open_before = read_all(30)
    bytes_after, open_after = read_all(150)
    assert open_after <= open_before
    assert bytes_after - bytes_before < 8 << 20  # a leaked decoder is 100 kB and more
