"""Frame n of a video is the n-th that its decoder puts out, whatever the file; here every frame shows its number."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import threading
from fractions import Fraction

import av
import pytest
import torch
from conftest import decode_all, probe, read_frames, remux

from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError, VideoLayout

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


def test_names_may_hold_what_looks_like_a_protocol_or_a_pattern(make_video, tmp_path, monkeypatch):
    path = make_video(tmp_path / "pipe:1 %03d ü #1.mp4", frames=3)
    monkeypatch.chdir(tmp_path)
    assert probe(path).num_frames == probe(str(path)).num_frames == probe(path.name).num_frames == 3


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


@pytest.mark.parametrize("number", [-1, 20])
def test_a_frame_outside_the_video_is_an_error(number, make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4")
    with pytest.raises(VideoError) as caught:
        read_frames(path, [0, number])
    assert str(caught.value) == f"{path}: frame {number} was asked for, the video has 20 (0 to 19)"
