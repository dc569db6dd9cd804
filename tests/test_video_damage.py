"""Files of every container that are damaged, cut short or no videos: frames or an error, never a crash or a leak."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import probe, read_frames

from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError


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
        video._layout = dataclasses.replace(video._layout, starts=())
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
    content = make_video(
        tmp_path / "whole.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}
    ).read_bytes()
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
def test_a_path_that_is_no_file_is_an_error_and_no_endless_wait(tmp_path):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(VideoError) as caught:
            Video(path)
        assert str(caught.value) == f"{path}: not a regular file"


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
    "ts": {"codec": "mpeg2video", "options": {"g": "5", "bf": "2"}},
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
