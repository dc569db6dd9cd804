"""Reading whole collections: what is found in files, and what happens to those that end or hang their reader."""

import json
import os
import time
from random import Random

import pytest
from PIL import Image

from lightning_csn.data import survey
from lightning_csn.data.index import VideoIndex
from lightning_csn.data.survey import Look, look, read_files


def silent():
    """For `alive`, where nobody listens."""


def half(path):
    """The first half of a file, in its place."""
    os.truncate(path, path.stat().st_size // 2)
    return path


def zeroed(path, start=0.5, share=0.2):
    """A file with zeros from the share `start` on."""
    content = bytearray(path.read_bytes())
    first, length = int(start * len(content)), int(share * len(content))
    content[first : first + length] = bytes(length)
    path.write_bytes(content)
    return path


@pytest.fixture
def files(tmp_path, make_video):
    """Two good videos, one that is none, and one that is not there."""
    good = [make_video(tmp_path / f"{name}.mp4", frames=6) for name in "ab"]
    text = tmp_path / "text.mp4"
    text.write_text("this is no video")
    return [str(path) for path in (*good, text, tmp_path / "gone.mp4")]


def test_files_are_read_and_what_is_wrong_has_a_reason(files, tmp_path):
    index = tmp_path / "index.jsonl"
    found = dict(read_files(files, index=index, workers=2))
    assert list(map(str, sorted(found))) == sorted(files)
    assert found[files[0]].info.num_frames == found[files[1]].info.num_frames == 6
    assert found[files[0]].layout["starts"] == [0]
    assert found[files[0]].decoded is None
    assert found[files[2]].error == f"{files[2]}: Invalid data found when processing input"
    assert found[files[3]] is None
    kept = VideoIndex.read(index)
    assert [kept.find(path) for path in files] == [found[path] for path in files]


def read_anew(monkeypatch, paths, **options):
    """Which of the paths are read, and not taken from the index."""
    tasks = []

    def run(function, given, **_):
        tasks.extend(given)
        return ((task, function(task, silent)) for task in given)

    monkeypatch.setattr(survey, "run_apart", run)
    list(read_files(paths, **options))
    return [task.path for task in tasks]


def test_a_second_run_reads_only_what_changed_or_could_not_be_read(files, tmp_path, monkeypatch, make_video):
    index = tmp_path / "index.jsonl"
    assert read_anew(monkeypatch, files, index=index) == files[:3]
    assert read_anew(monkeypatch, files, index=index) == [files[2]]
    make_video(files[1], frames=7)
    assert read_anew(monkeypatch, files[:2], index=index) == [files[1]]
    assert VideoIndex.read(index).find(files[1]).info.num_frames == 7


def test_an_index_of_another_version_is_begun_anew_and_that_is_said(files, tmp_path, caplog):
    index = tmp_path / "index.jsonl"
    for change in ({"version": 0}, {"known": ["num_frames"]}):
        dict(read_files(files[:1], index=index))
        head, *lines = index.read_text().split("\n")
        index.write_text("\n".join([json.dumps(json.loads(head) | change), *lines]))
        caplog.clear()
        dict(read_files(files[1:2], index=index))
        assert [entry.path for entry in VideoIndex.read(index)] == files[1:2]
        assert "index.jsonl: another version of this package wrote it" in caplog.text
        index.unlink()


def test_files_that_were_not_decoded_are_read_again_to_decode_them(files, tmp_path, monkeypatch):
    index, good = tmp_path / "index.jsonl", files[:2]
    read_anew(monkeypatch, good, index=index)
    assert read_anew(monkeypatch, good, index=index, decode=True) == good
    assert read_anew(monkeypatch, good, index=index, decode=True) == []
    assert read_anew(monkeypatch, good, index=index) == []
    assert VideoIndex.read(index).find(good[0]).decoded == 6


def test_who_stops_keeps_what_was_read(files, tmp_path, monkeypatch):
    index = tmp_path / "index.jsonl"
    reading = read_files(files[:2], index=index)
    path, _ = next(reading)
    reading.close()
    assert read_anew(monkeypatch, files[:2], index=index) == [other for other in files[:2] if other != path]


def misbehave(task, alive):
    """Stands for a decoder that ends or hangs its process."""
    alive()
    name = os.path.basename(task.path)
    if name == "crash.mp4":
        os._exit(3)
    if name == "hang.mp4":
        time.sleep(600)
    return look(task, alive)


def test_a_file_that_ends_or_hangs_its_reader_is_unreadable_and_not_kept(tmp_path, make_video, monkeypatch):
    monkeypatch.setattr(survey, "look", misbehave)
    paths = [str(make_video(tmp_path / f"{name}.mp4", frames=3)) for name in ("a", "crash", "hang", "b", "c")]
    index = tmp_path / "index.jsonl"
    found = dict(read_files(paths, index=index, workers=2, seconds=3))
    assert found[paths[1]].error == f"{paths[1]}: the process that read it died (exit code 3)"
    assert found[paths[2]].error == f"{paths[2]}: reading it took longer than 3 seconds"
    assert [found[path].error for path in (paths[0], *paths[3:])] == [None] * 3
    assert len(VideoIndex.read(index)) == 3


@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "v.mkv"])
def test_decoding_counts_every_frame_of_a_good_file(tmp_path, make_video, name):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = make_video(tmp_path / name, frames=30, codec=codec, options={"preset": "medium"} if codec != "mpeg4" else {})
    entry = look(Look(str(path), decode=True), silent)
    assert (entry.info.num_frames, entry.decoded, entry.damaged, entry.fault) == (30, 30, 0, None)


def test_decoding_finds_damage_that_the_packets_do_not_show(tmp_path, make_video):
    path = zeroed(make_video(tmp_path / "v.mp4", frames=60, size=(96, 128)), start=0.3)
    assert look(Look(str(path), decode=False), silent).error is None
    entry = look(Look(str(path), decode=True), silent)
    assert entry.info.num_frames == 60
    assert entry.decoded < 60 or entry.damaged
    assert entry.fault == "Invalid data found when processing input"


def test_decoding_finds_frames_that_the_decoder_made_up_in_part(tmp_path, make_video):
    content = make_video(tmp_path / "v.mp4", frames=60, size=(96, 128)).read_bytes()
    first, last = content.index(b"mdat") + 1000, content.index(b"moov") - 10  # in the pictures, behind the first
    found = []
    for seed in range(4):
        random = Random(seed)
        flipped = bytearray(content)
        for _ in range(5):
            flipped[random.randrange(first, last)] ^= 1 << random.randrange(8)
        path = tmp_path / f"{seed}.mp4"
        path.write_bytes(flipped)
        found.append(look(Look(str(path), decode=True), silent))
    assert all(entry.damaged or entry.decoded < 60 for entry in found)
    assert any(entry.damaged for entry in found)


@pytest.mark.parametrize(("name", "options"), [("v.avi", {}), ("v.mp4", {"movflags": "faststart"})])
def test_a_file_cut_in_half_has_fewer_frames_than_its_header_says(tmp_path, make_video, name, options):
    path = make_video(tmp_path / name, frames=60, codec="mjpeg", pix_fmt="yuvj420p", container_options=options)
    entry = look(Look(str(half(path)), decode=False), silent)
    assert entry.promised == 60
    assert 15 < entry.info.num_frames < 45


def test_a_file_for_which_memory_is_not_enough_is_the_machines_fault(tmp_path, make_video, monkeypatch):
    def fail(path):
        raise MemoryError

    monkeypatch.setattr(survey, "open_video", fail)
    path = make_video(tmp_path / "v.mp4")
    assert look(Look(str(path), decode=False), silent).reason == "there is not enough memory for it"


def test_videos_in_shards_are_read_like_files(tmp_path, make_video):
    content = make_video(tmp_path / "v.mp4", frames=6).read_bytes()
    size = len(content)
    (tmp_path / "x.tar").write_bytes(bytes(512) + content + bytes(size))
    good, bad = (f"{tmp_path / 'x.tar'}?{512 + i * size}+{size}#{i}.mp4" for i in range(2))
    found = dict(read_files([good, bad], index=tmp_path / "index.jsonl", decode=True))
    assert found[good].decoded == 6
    assert found[bad].error == f"{bad}: Invalid data found when processing input"


def test_folders_of_frames_are_read_too(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 48), (60 * i, 0, 0)).save(folder / f"{i:05}.jpg")
    (folder / "00002.jpg").write_bytes(b"no picture")
    (entry,) = dict(read_files([str(folder)], decode=True)).values()
    assert (entry.info.num_frames, entry.decoded) == (4, 3)
    assert "00002.jpg" in entry.fault
