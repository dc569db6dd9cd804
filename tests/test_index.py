"""The index of videos: what is written is found again, as long as the file is the same."""

import gc
import json
import os

import pytest

from lightning_csn.data.index import Entry, IndexWriter, VideoIndex, absolute, stamp_of
from lightning_csn.data.video import Video
from lightning_csn.errors import InputError


def entry_of(path, **values):
    stamp = stamp_of(path)
    return Entry(path=absolute(path), bytes=stamp.bytes, mtime_ns=stamp.mtime_ns, **values)


def write(index, *entries):
    with IndexWriter(index) as writer:
        for entry in entries:
            writer.add(entry)
    return index


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a.mp4", "späte Übung.mp4", os.fsdecode(b"b\xff.mp4"))]
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * (number + 1))
    return paths


def test_entries_come_back_as_they_were(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", frames=5)
    with Video(path) as video:
        entry = entry_of(path, info=video.info, layout=video.layout.to_dict(), decoded=4, damaged=0, fault="bad")
    index = VideoIndex.read(write(tmp_path / "index.jsonl", entry))
    assert list(index) == [entry]
    assert index.find(path) == entry


def test_names_of_any_bytes_are_found(tmp_path, files):
    index = VideoIndex.read(write(tmp_path / "index.jsonl", *(entry_of(path, error="no") for path in files)))
    assert [index.find(path).bytes for path in files] == [1, 2, 3]


def test_a_path_is_found_from_any_folder(tmp_path, files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = VideoIndex.read(write(tmp_path / "index.jsonl", entry_of("a.mp4", error="no")))
    assert index.find(tmp_path / "a.mp4") == index.find("./a.mp4") == index.find("a.mp4") is not None


@pytest.mark.parametrize("room", [10, 2000])
def test_a_disk_that_is_full_is_told_in_a_sentence(tmp_path, files, room):
    """In the first line, and in an entry; closing tries to write once more."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(InputError, match=r"index\.jsonl: the index cannot be written: File too large"):
            write(tmp_path / "index.jsonl", entry_of(files[0], error=2000 * "no"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()  # a file that is still open would be a warning
    kept = entry_of(files[1], error="no")
    assert list(VideoIndex.read(write(tmp_path / "index.jsonl", kept))) == [kept]


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_a_file_that_changed_is_not_found(tmp_path, files, change):
    index = VideoIndex.read(write(tmp_path / "index.jsonl", entry_of(files[0], error="no")))
    assert index.find(files[0]) is not None
    stamp = stamp_of(files[0])
    if change == "gone":
        files[0].unlink()
    else:
        files[0].write_bytes(b"yy" if change == "size" else b"y")
        os.utime(files[0], ns=(0, stamp.mtime_ns + (change == "time")))
    assert index.find(files[0]) is None


def test_the_later_of_two_entries_holds(tmp_path, files):
    index = tmp_path / "deep" / "index.jsonl"
    write(index, entry_of(files[0], error="first"))
    write(index, entry_of(files[0], error="second"), entry_of(files[1], error="other"))
    read = VideoIndex.read(index)
    assert len(read) == 2
    assert read.find(files[0]).error == "second"
    assert read.find(tmp_path / "unknown.mp4") is None


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_line_cut_off_is_left_out_and_written_over(tmp_path, files, cut):
    index = write(tmp_path / "index.jsonl", entry_of(files[0], error="good"), entry_of(files[1], error="torn" * 30))
    os.truncate(index, index.stat().st_size - cut)
    assert [entry.error for entry in VideoIndex.read(index)] == ["good"]
    write(index, entry_of(files[2], error="new"))
    assert [entry.error for entry in VideoIndex.read(index)] == ["good", "new"]


def test_a_first_line_cut_off_begins_anew(tmp_path, files):
    index = write(tmp_path / "index.jsonl")
    os.truncate(index, 10)
    write(index, entry_of(files[0], error="good"))
    assert len(VideoIndex.read(index)) == 1


@pytest.mark.parametrize("content", [b"\x00\x00\x00 ftypisom", b"a video\nin text", b'{"format": "other"}\n', b"[1]\n"])
def test_another_kind_of_file_is_refused_and_stays_as_it_is(tmp_path, content):
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine: no index of videos; .*check-data"):
        VideoIndex.read(path)
    with pytest.raises(InputError, match="mine: no index of videos"):
        IndexWriter(path)
    assert path.read_bytes() == content


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: the index cannot be read: No such file.*check-data"):
        VideoIndex.read(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="the index cannot be written: Is a directory; name another file"):
        IndexWriter(tmp_path)
    index = write(tmp_path / "index.jsonl")
    index.write_bytes(index.read_bytes() + b'{"path": "/a"}\n{"pa}\n')
    with pytest.raises(InputError, match=r"index\.jsonl, line 3: no entry of an index"):
        VideoIndex.read(index)


@pytest.mark.parametrize("change", [{"version": 0}, {"known": ["num_frames"]}])
def test_an_index_of_another_version_says_what_to_do(tmp_path, change):
    index = write(tmp_path / "index.jsonl")
    index.write_text(json.dumps(json.loads(index.read_text()) | change) + "\n")
    for use in (VideoIndex.read, IndexWriter):
        with pytest.raises(InputError, match=r"an index of another version of this package, .* remove it and run"):
            use(index)


def test_stamps_of_folders_of_frames_and_of_members_of_shards(tmp_path, files):
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "1.jpg").touch()
    assert stamp_of(folder).bytes == 1
    assert stamp_of(f"{files[1]}?512+77#clips/a.mp4") == stamp_of(files[1])
    assert stamp_of(tmp_path / "gone.mp4") is None
    assert absolute("s3://bucket/0.tar?512+77#a.mp4") == "s3://bucket/0.tar?512+77#a.mp4"
