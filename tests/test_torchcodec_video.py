"""torchcodec_video.py: the same frames as Video's, and Video's own wherever torchcodec would give others."""

import re
import struct
import sys
import threading
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from lightning_csn.data import torchcodec_video
from lightning_csn.data.reading import open_video
from lightning_csn.data.torchcodec_video import LARGEST_DIFFERENCE, TorchcodecVideo, find_decoder
from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError
from lightning_csn.errors import InputError

try:
    find_decoder()
    MISSING = ""
except InputError as error:
    MISSING = str(error)
needs_torchcodec = pytest.mark.skipif(bool(MISSING), reason=MISSING)

SHORT_GOP = {"g": "6", "bf": "3", "preset": "medium", "sc_threshold": "0"}
TEAL = (0.1, 0.9, 0.7)
# what, and the largest mean difference of a frame from Video's, of 255
KINDS = {
    "h264, B-frames": ("a.mp4", {"options": SHORT_GOP}, 0),
    "h264, one keyframe": ("a.mkv", {}, 0),
    "h264, full range": ("a.mp4", {"pix_fmt": "yuvj420p"}, 0),
    "h264 in fragments": ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}, 0),
    "h264, 4:4:4": ("a.mkv", {"pix_fmt": "yuv444p", "options": {"g": "5"}}, 0),
    "hevc": ("a.mp4", {"codec": "libx265"}, 0),
    "hevc, 10 bit": ("a.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le"}, 0),
    "mpeg4 in avi": ("a.avi", {"codec": "mpeg4", "options": {"g": "5"}}, 0),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"g": "7", "cpu-used": "8"}}, 0),
    "mjpeg": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, 0),
    "ffv1, gray": ("a.mkv", {"codec": "ffv1", "pix_fmt": "gray"}, 0),
    "odd size": ("a.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p", "size": (45, 61)}, 0),
    "pixels that are not square": ("a.mp4", {"pixel_aspect": Fraction(4, 3)}, 3),
}


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch):
    monkeypatch.setattr(torchcodec_video, "_told", set())


def both(path, numbers, **options):
    """Frames by torchcodec, which must have read them, and by Video."""
    with TorchcodecVideo(path) as theirs, Video(path) as ours:
        found = theirs.frames(numbers, **options)
        assert theirs.reader == "torchcodec"
        return found, ours.frames(numbers, **options)


def away(theirs, ours):
    """The mean difference of the worst frame."""
    assert theirs.shape == ours.shape
    assert theirs.dtype == ours.dtype == torch.uint8
    return float((theirs.float() - ours.float()).abs().mean((1, 2, 3)).max())


@needs_torchcodec
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_video(kind, make_video, read_number, tmp_path):
    name, options, bound = KINDS[kind]
    path = make_video(tmp_path / name, frames=20, colour=TEAL, **options)
    numbers = [13, 2, 3, 19, 2, 0]
    theirs, ours = both(path, numbers)
    assert away(theirs, ours) <= bound
    assert [read_number(frame) for frame in theirs] == numbers


@needs_torchcodec
@pytest.mark.parametrize("size", [(24, 32), (20, 46), (96, 128)])
def test_scaled_frames_are_about_those_of_video(size, make_video, read_number, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=40, colour=TEAL, options=SHORT_GOP)
    numbers = list(range(0, 40, 2))  # more than are scaled at once
    theirs, ours = both(path, numbers, size=size)
    assert away(theirs, ours) < 6  # edges are all that there is in these pictures
    assert [read_number(frame) for frame in theirs] == numbers


def set_display_matrix(path, matrix):
    """Put a, b, c, d into the track header of an mp4 file, in place of the identity."""
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    track = content.index(identity, content.index(b"tkhd"))
    a, b, c, d = (65536 * value for value in matrix)
    new = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:track] + new + content[track + len(identity) :])


@needs_torchcodec
@pytest.mark.parametrize(
    ("matrix", "reader"),
    [
        ((0, 1, -1, 0), "torchcodec"),
        ((0, -1, 1, 0), "torchcodec"),
        ((-1, 0, 0, -1), "torchcodec"),
        ((-1, 0, 0, 1), "av"),  # mirrored
        ((1, 1, -1, 1), "av"),  # by 45 degrees, which Video leaves out
    ],
)
def test_frames_are_turned_as_by_video(matrix, reader, make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=6, colour=TEAL)
    set_display_matrix(path, matrix)
    with TorchcodecVideo(path) as theirs, Video(path) as ours:
        assert torch.equal(theirs.frames([5, 1, 2]), ours.frames([5, 1, 2]))
        assert theirs.reader == reader


@needs_torchcodec
def test_what_is_known_of_a_video_is_what_video_knows(make_video, tmp_path):
    path = make_video(tmp_path / "a: b.mp4", options=SHORT_GOP)
    with TorchcodecVideo(path) as theirs, Video(path) as ours:
        assert theirs.info == ours.info
        assert theirs.times == ours.times
        assert theirs.layout == ours.layout
        layout = ours.layout
    with open_video(path, reader="torchcodec", layout=layout) as again:
        assert isinstance(again, TorchcodecVideo)
        assert again.frames([7, 8]).shape == (2, 48, 64, 3)
        assert again.reader == "torchcodec"


@needs_torchcodec
def test_a_number_outside_and_a_read_that_was_given_up_are_errors(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4")
    cancelled = threading.Event()
    with TorchcodecVideo(path, cancelled=cancelled) as video:
        for number in (20, -1):
            with pytest.raises(VideoError, match=f"frame {number} was asked for, the video has 20"):
                video.frames([0, number])
        cancelled.set()
        with pytest.raises(VideoError, match="reading was given up"):
            video.frames([0, 1])


@needs_torchcodec
def test_files_that_torchcodec_cannot_follow_are_read_by_video(make_video, tmp_path, caplog):
    small = make_video(tmp_path / "small.ts", frames=4, size=(48, 64), options={"bf": "0"})
    large = make_video(tmp_path / "large.ts", frames=4, size=(96, 96), options={"bf": "0"})
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    raw = make_video(tmp_path / "raw.h264", container="h264")
    for path in (tmp_path / "both.ts", raw):
        with TorchcodecVideo(path) as theirs, Video(path) as ours:
            numbers = range(ours.info.num_frames)
            assert torch.equal(theirs.frames(numbers), ours.frames(numbers))
            assert theirs.reader == "av"
    assert len(caplog.messages) == 1  # for the one reason


class Faulty:
    """A decoder that reads as Video does, but for one fault."""

    fault = ""

    def __init__(self, address, **options):
        if self.fault == "open":
            raise ValueError("no such codec")
        self.path = address.removeprefix("file:")
        with Video(self.path) as video:
            self.times = video.times
        self.metadata = SimpleNamespace(begin_stream_seconds=7.0, rotation=90.0 if self.fault == "turn" else None)

    def __len__(self):
        return len(self.times) + (self.fault == "count")

    def get_frames_at(self, numbers):
        if self.fault == "read":
            raise RuntimeError("decode, /src/Decoder.cpp:12, Could not push packet: Invalid data")
        with Video(self.path) as video:
            pictures = video.frames(numbers)
        if self.fault == "picture":
            pictures = 128 + pictures // 2
        seconds = torch.tensor([7.0 + self.times[number] for number in numbers], dtype=torch.float64)
        return SimpleNamespace(data=pictures, pts_seconds=seconds + (0.04 if self.fault == "time" else 0))


FAULTS = {
    "": "",
    "open": r"torchcodec fails \(no such codec\)",
    "read": r"torchcodec fails \(Could not push packet: Invalid data\)",
    "count": r"they count different numbers of frames \(torchcodec counts 21, PyAV 20\)",
    "turn": "torchcodec would not turn it",
    "time": r"torchcodec gives its frames other times \(frame 6 is at 0.24 s, torchcodec's at 0.28 s\)",
    "picture": "a keyframe looks different .* at frame 6",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_wrong_with_torchcodec_video_reads_and_says_so_once(
    fault, make_video, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(torchcodec_video, "find_decoder", lambda: Faulty)
    monkeypatch.setattr(Faulty, "fault", fault)
    paths = [make_video(tmp_path / name, options=SHORT_GOP) for name in ("a.mp4", "b.mp4")]
    for path in paths:
        with TorchcodecVideo(path) as theirs, Video(path) as ours:
            assert torch.equal(theirs.frames([8, 7]), ours.frames([8, 7]))
            assert theirs.reader == ("av" if fault else "torchcodec")
    assert len(caplog.messages) == bool(fault)
    for message in caplog.messages:
        assert re.match(re.escape(f"{paths[0]}: PyAV reads it, not torchcodec: ") + FAULTS[fault], message)


def test_a_keyframe_is_compared_once(make_video, tmp_path, monkeypatch):
    asked = []
    read = Faulty.get_frames_at
    monkeypatch.setattr(torchcodec_video, "find_decoder", lambda: Faulty)
    monkeypatch.setattr(
        Faulty, "get_frames_at", lambda self, numbers: asked.append(list(numbers)) or read(self, numbers)
    )
    with TorchcodecVideo(make_video(tmp_path / "a.mp4", options=SHORT_GOP)) as video:
        video.frames([8, 7])
        video.frames([9, 13])
    assert asked == [[6], [7, 8], [12], [9, 13]]


def test_a_wrong_picture_is_farther_away_than_two_versions_of_ffmpeg(make_video, tmp_path):
    with Video(make_video(tmp_path / "a.mp4")) as video:
        frames = video.frames(range(20)).float()
    assert (frames[1:] - frames[:-1]).abs().mean((1, 2, 3)).min() > 2 * LARGEST_DIFFERENCE > 2 * 3


def test_torchcodec_that_is_missing_is_named_with_what_would_install_it(make_video, tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(InputError, match=r"pip install 'lightning-csn\[torchcodec\]' and FFmpeg's shared libraries"):
        TorchcodecVideo(path)


@pytest.mark.parametrize("way", ["new", "old"])
def test_torchcodec_without_ffmpeg_is_named_with_what_would_install_it(way, monkeypatch):
    class Unloadable:
        @property
        def VideoDecoder(self):
            raise RuntimeError("Could not load libtorchcodec")

    decoders = Unloadable() if way == "old" else SimpleNamespace(VideoDecoder=object)
    package = SimpleNamespace(ffmpeg_major_version=None, decoders=decoders)
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    with pytest.raises(InputError, match=r"needs the shared libraries of FFmpeg.*apt-get install ffmpeg"):
        find_decoder()
