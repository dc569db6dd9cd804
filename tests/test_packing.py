import gc
import io
import json
import os
import shutil
import tarfile
import warnings
from fractions import Fraction
from itertools import pairwise

import av
import pytest

from lightning_csn.data import encoding, packing
from lightning_csn.data.annotations import find_samples
from lightning_csn.data.encoding import Encoding, packed_size
from lightning_csn.data.packing import pack
from lightning_csn.data.reading import frames_at, open_video
from lightning_csn.data.samples import Collection, Part, Sample
from lightning_csn.data.shards import parse_member, read_index, read_member, read_packed
from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError
from lightning_csn.errors import InputError


def collect(*paths, labels=None):
    labels = labels or [0] * len(paths)
    samples = [Sample(str(path), label, n) for n, (path, label) in enumerate(zip(paths, labels, strict=True))]
    return Collection({"train": samples}, ["a", "b", "c"], "by hand")


def packed_path(collection, out, **options):
    """The path of the only packed video."""
    pack(collection, out, **{"encoding": Encoding(), **options})
    (sample,) = read_packed(out).samples["train"]
    return sample.path


def write_at(path, ticks, *, unit=Fraction(1, 1000), size=(48, 64), codec="libx264"):
    """A video whose frame n shows n at `ticks[n]`."""
    from conftest import number_image

    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = unit
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(number_image(number, *size), format="rgb24")
            frame.pts, frame.time_base = tick, unit
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


KINDS = {
    "long groups, B-frames": {"frames": 90, "options": {"g": "60", "bf": "3", "preset": "medium"}},
    "one frame": {"frames": 1},
    "two frames": {"frames": 2},
    "29.97": {"rate": Fraction(30000, 1001)},
    "23.976 in mkv": {"rate": Fraction(24000, 1001), "suffix": ".mkv"},
    "mpeg4 in avi": {"codec": "mpeg4", "suffix": ".avi", "options": {"bf": "2"}, "rate": Fraction(30000, 1001)},
    "sound": {"audio": True},
    "odd size": {"size": (49, 65), "pix_fmt": "yuv444p"},
    "wide pixels": {"pixel_aspect": Fraction(2)},
    "large": {"size": (96, 128)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_frame_n_of_a_packed_video_is_frame_n_of_the_original(tmp_path, make_video, read_number, kind):
    options = dict(KINDS[kind])
    path = make_video(tmp_path / f"a{options.pop('suffix', '.mp4')}", **options)
    with (
        open_video(path) as original,
        open_video(packed_path(collect(path), tmp_path / "out", encoding=Encoding(short_side=64))) as packed,
    ):
        before, after = original.info, packed.info
        assert after.num_frames == before.num_frames
        assert after.fps == pytest.approx(before.fps, rel=1e-9)
        assert not after.variable_rate
        assert (after.codec, after.pixel_format) == ("h264", "yuv420p")
        assert (after.height, after.width) == packed_size(before.height, before.width, 64)
        assert after.width / after.height == pytest.approx(before.width / before.height, rel=0.04)
        numbers = range(after.num_frames)
        assert [read_number(frame) for frame in packed.frames(numbers)] == list(numbers)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_times_of_a_varying_rate_are_kept(tmp_path, read_number, suffix):
    ticks = [0, 40, 50, 90, 200, 201, 260, 500, 1000, 1020]
    path = write_at(tmp_path / f"a{suffix}", ticks)
    with open_video(path) as original, open_video(packed_path(collect(path), tmp_path / "out")) as packed:
        assert original.info.variable_rate
        assert packed.info.variable_rate
        assert packed.times == pytest.approx(list(original.times), abs=1e-9)
        assert packed.info.fps == pytest.approx(original.info.fps, rel=1e-6)
        assert frames_at(packed, [0.2, 0.2009, 0.999]) == frames_at(original, [0.2, 0.2009, 0.999]) == [4, 4, 7]
        assert [read_number(frame) for frame in packed.frames(range(10))] == list(range(10))


def test_a_turned_video_is_packed_as_it_is_shown(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", size=(48, 64))
    turn(path)
    with open_video(path) as original, open_video(packed_path(collect(path), tmp_path / "out")) as packed:
        assert original.info.rotation == 90
        assert (packed.info.rotation, packed.info.height, packed.info.width) == (0, 64, 48)
        difference = packed.frames([5]).float() - original.frames([5]).float()
        assert difference.abs().mean() < 4


def turn(path):
    """Have an mp4 shown a quarter turn clockwise: the matrix of its track header says so."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version 0: times, id, duration; layer, group, volume
    content[matrix : matrix + 36] = b"".join(
        number.to_bytes(4, "big", signed=True) for number in (0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    )
    path.unlink()
    path.write_bytes(content)


def test_colours_are_kept(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", colour=(1, 0.5, 0.2), size=(64, 64))
    with open_video(path) as original, open_video(packed_path(collect(path), tmp_path / "out")) as packed:
        difference = packed.frames([0, 9]).float() - original.frames([0, 9]).float()
        assert difference.mean((0, 1, 2)).abs().max() < 2.5


def test_sources_are_noted_from_the_root_or_as_they_are(tmp_path, make_video, monkeypatch):
    """On Windows there is no relative path from one drive to another: it is not asked for."""
    inside = make_video(tmp_path / "root" / "..a.mp4", frames=2)
    outside = make_video(tmp_path / "b.mp4", frames=2)
    monkeypatch.delattr(os.path, "relpath")
    pack(collect(inside, outside), tmp_path / "out", root=tmp_path / "root")
    assert [video["source"] for video in read_index(tmp_path / "out")["splits"]["train"]["videos"]] == [
        "..a.mp4",
        str(outside),
    ]


def test_long_videos_are_read_in_blocks(tmp_path, make_video, read_number, monkeypatch):
    path = make_video(tmp_path / "a.mp4", frames=40, options={"g": "12", "preset": "medium"})
    task = packing.Task("train", 0, str(path), str(tmp_path / "packed"), Encoding())
    monkeypatch.setattr(encoding, "BLOCK_BYTES", 7 * 48 * 64 * 3)
    alive = []
    assert packing.pack_video(task, lambda: alive.append(1)).frames == 40
    assert len(alive) == 2 * 6
    with Video((tmp_path / "packed").read_bytes()) as video:
        assert [read_number(frame) for frame in video.frames(range(40))] == list(range(40))


def test_no_frame_of_a_packed_video_is_far_from_a_keyframe_or_refers_to_a_b_frame(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=100, options={"g": "100"})
    content = read_member(packed_path(collect(path), tmp_path / "out", encoding=Encoding(gop=20)))
    with av.open(io.BytesIO(content)) as container:
        assert not container.streams.audio
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert max(later - earlier for earlier, later in pairwise(keyframes(packets))) <= 20
    kinds = {skip: kinds_of_frames(content, skip) for skip in ("DEFAULT", "NONREF")}
    assert kinds["DEFAULT"].count("B") > 40
    assert kinds["NONREF"] == kinds["DEFAULT"].replace("B", "")


def keyframes(packets):
    times = sorted(packet.pts for packet in packets)
    return sorted(times.index(packet.pts) for packet in packets if packet.is_keyframe)


def kinds_of_frames(content, skip):
    """The frames that are decoded when these are skipped, as in IBBP."""
    with av.open(io.BytesIO(content)) as container:
        container.streams.video[0].codec_context.skip_frame = skip
        return "".join(av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0))


def test_copies_are_the_files_themselves(tmp_path, make_video):
    paths = [make_video(tmp_path / "a.mp4"), make_video(tmp_path / "b.avi", codec="mpeg4")]
    pack(collect(*paths), tmp_path / "out")
    samples = read_packed(tmp_path / "out").samples["train"]
    assert [read_member(sample.path) for sample in samples] == [path.read_bytes() for path in paths]
    assert [parse_member(sample.path).name for sample in samples] == ["000000.mp4", "000001.avi"]


def test_webdataset_reads_the_shards(tmp_path, video_folder):
    webdataset = pytest.importorskip("webdataset")
    out = tmp_path / "out"
    pack(find_samples(video_folder), out, root=video_folder, shard_bytes=15_000)
    urls = sorted(map(str, out.glob("*.tar")))
    assert len(urls) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset 1.0.2 leaves files open
        read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
        gc.collect()
    packed = read_packed(out)
    assert [sample["__key__"] for sample in read] == [f"{n:06d}" for n in range(9)]
    assert [sample["mp4"] for sample in read] == [read_member(sample.path) for sample in packed.samples["all"]]
    assert [s["json"]["samples"][0]["label"] for s in read] == [s.label for s in packed.samples["all"]]
    assert read[4]["json"]["source"] == "jumping/jumping_1.mp4"
    assert read[4]["json"]["samples"] == [{"label": 1, "classes": ["jumping"]}]


def test_shards_are_tar_files_of_no_more_than_their_size_in_the_order_of_the_samples(tmp_path, video_folder):
    out = tmp_path / "out"
    packed = pack(find_samples(video_folder), out, shard_bytes=10_000)
    names = []
    for path in sorted(out.glob("all-*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert sum(member.size for member in members) <= 10_000
        assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
        names += [member.name for member in members]
    assert names == [f"{n:06d}.{ending}" for n in range(9) for ending in ("mp4", "json")]
    assert packed.videos == sum(packed.shards["all"]) == 9
    assert len(packed.shards["all"]) == len(list(out.glob("*.tar"))) > 1
    assert {path.name for path in out.iterdir()} == {"index.json", *(path.name for path in out.glob("*.tar"))}


def test_parts_of_a_video_share_its_bytes(tmp_path, make_video):
    path = str(make_video(tmp_path / "a.mp4"))
    samples = [
        Sample(path, 0, 0, Part(0.1, 0.5)),
        Sample(str(make_video(tmp_path / "b.mp4", frames=8)), 1, 1),
        Sample(path, 2, 2, Part(3, 9, "frames")),
    ]
    pack(Collection({"train": samples}, ["a", "b", "c"], "by hand"), tmp_path / "out")
    first, second, third = read_packed(tmp_path / "out").samples["train"]
    assert first.path == third.path != second.path
    assert [(s.label, s.video, s.part) for s in (first, second, third)] == [(s.label, s.video, s.part) for s in samples]
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        note = json.load(tar.extractfile("000000.json"))
    assert [said["part"] for said in note["samples"]] == [[0.1, 0.5, "seconds"], [3, 9, "frames"]]


def test_several_labels_and_none_are_kept(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4")
    samples = {
        "train": [Sample(str(path), (0, 2), 0)],
        "val": [Sample(str(path), (), 0)],
    }
    collection = Collection(samples, ["a", "b", "c"], "by hand", multi_label=True)
    pack(collection, tmp_path / "many")
    packed = read_packed(tmp_path / "many")
    assert packed.multi_label
    assert [packed.samples[split][0].label for split in ("train", "val")] == [(0, 2), ()]
    pack(collect(path, labels=[-1]), tmp_path / "unknown")
    assert read_packed(tmp_path / "unknown").samples["train"][0].label == -1


@pytest.mark.parametrize("encoding", [None, Encoding()])
def test_unreadable_videos_are_left_out_and_listed(tmp_path, make_video, encoding):
    paths = [make_video(tmp_path / "a.mp4"), tmp_path / "empty.mp4", tmp_path / "gone.mp4", tmp_path / "b.mp4"]
    paths[1].touch()
    make_video(paths[3], frames=8)
    packed = pack(collect(*paths, labels=[0, 1, 1, 2]), tmp_path / "out", root=tmp_path, encoding=encoding)
    assert list(packed.left_out) == ["empty.mp4", "gone.mp4"]
    assert packed.left_out["empty.mp4"] == f"{paths[1]}: the file is empty"
    assert packed.videos == 2
    samples = read_packed(tmp_path / "out").samples["train"]
    assert [(sample.label, sample.video) for sample in samples] == [(0, 0), (2, 1)]
    with open_video(samples[1].path) as video:
        assert video.info.num_frames == 8


def test_an_unreadable_video_ends_a_pack_that_is_to_raise(tmp_path, make_video):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoError, match=r"a\.mp4: the file is empty"):
        pack(collect(tmp_path / "a.mp4"), tmp_path / "out", on_unreadable="raise")
    make_video(tmp_path / "a.mp4")
    assert pack(collect(tmp_path / "a.mp4"), tmp_path / "out", on_unreadable="raise").videos == 1


def test_packing_twice_gives_the_same_bytes(tmp_path, video_folder):
    found = find_samples(video_folder)
    for name, workers in (("one", 1), ("two", 2)):
        pack(found, tmp_path / name, encoding=Encoding(), shard_bytes=20_000, workers=workers)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 4, 8])
def test_a_stopped_pack_goes_on(tmp_path, video_folder, after, monkeypatch):
    found, out = find_samples(video_folder), tmp_path / "out"

    def stop(steps, total):
        for number, step in enumerate(steps):
            if number == after:
                raise Stopped
            yield step

    with pytest.raises(Stopped):
        pack(found, out, shard_bytes=10_000, watch=stop)
    assert not (out / "index.json").exists()
    with pytest.raises(InputError, match="a pack of other videos or with other options was stopped here"):
        pack(found, out, shard_bytes=20_000)
    complete = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    packed = []
    original = packing.run_apart
    monkeypatch.setattr(packing, "run_apart", lambda f, tasks, **k: original(f, packed.extend(tasks) or tasks, **k))
    pack(found, out, shard_bytes=10_000)
    assert len(packed) <= 9 - after
    assert {name: (out / name).stat().st_mtime_ns for name in complete} == complete
    pack(found, tmp_path / "at once", shard_bytes=10_000)
    assert read_index(out) == read_index(tmp_path / "at once")
    for path in (tmp_path / "at once").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_what_is_packed_already_is_left_as_it_is(tmp_path, video_folder):
    found, out = find_samples(video_folder), tmp_path / "out"
    first = pack(found, out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert pack(found, out) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    with pytest.raises(InputError, match="holds another packed data set"):
        pack(found, out, encoding=Encoding())


def test_a_folder_of_other_things_is_not_packed_into(tmp_path, video_folder):
    shutil.copy(next(video_folder.rglob("*.mp4")), tmp_path)
    with pytest.raises(InputError, match="is there and is no packed data set"):
        pack(find_samples(video_folder), tmp_path)


def test_no_videos_are_an_error(tmp_path):
    with pytest.raises(InputError, match="no videos to pack"):
        pack(Collection({"train": []}, [], "by hand"), tmp_path / "out")


def test_a_folder_of_frames_is_encoded_but_not_copied(tmp_path, read_number):
    from conftest import number_image

    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(5):
        frame = av.VideoFrame.from_ndarray(number_image(number, 48, 64), format="rgb24")
        frame.to_image().save(folder / f"{number + 1:05d}.png")
    with pytest.raises(InputError, match="a folder of frames cannot be copied"):
        pack(collect(folder), tmp_path / "out")
    packed = pack(collect(folder), tmp_path / "out", root=tmp_path, encoding=Encoding())
    assert packed.without_rate == ["frames"]
    with open_video(read_packed(tmp_path / "out").samples["train"][0].path) as video:
        assert video.info.fps == 25
        assert [read_number(frame) for frame in video.frames(range(5))] == list(range(5))
    packed = pack(collect(folder), tmp_path / "at 12", encoding=Encoding(), frames_fps=12)
    assert packed.without_rate == []
    with open_video(read_packed(tmp_path / "at 12").samples["train"][0].path) as video:
        assert (video.info.num_frames, video.info.fps) == (5, 12)
    with pytest.raises(InputError, match="holds another packed data set"):
        pack(collect(folder), tmp_path / "at 12", encoding=Encoding(), frames_fps=24)
    with pytest.raises(InputError, match="frames_fps must be a number of pictures per second above 0, got 0"):
        pack(collect(folder), tmp_path / "at 0", encoding=Encoding(), frames_fps=0)


def test_a_packed_data_set_can_be_packed_anew(tmp_path, video_folder):
    pack(find_samples(video_folder), tmp_path / "one")
    found = read_packed(tmp_path / "one")
    pack(found, tmp_path / "two", shard_bytes=10_000)
    again = read_packed(tmp_path / "two")
    for sample, other in zip(found.samples["all"], again.samples["all"], strict=True):
        assert read_member(sample.path) == read_member(other.path)


@pytest.mark.parametrize(
    ("values", "message"), [({"short_side": 1}, "short_side"), ({"gop": 0}, "gop"), ({"crf": 52}, "crf")]
)
def test_an_encoding_that_cannot_be_is_an_error(values, message):
    with pytest.raises(InputError, match=message):
        Encoding(**values)


def test_a_full_disk_is_said_and_the_pack_goes_on(tmp_path, video_folder, monkeypatch):
    original = packing._add_member

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_add_member", full)
    with pytest.raises(InputError, match="no space left; the same command goes on"):
        pack(find_samples(video_folder), tmp_path / "out")
    monkeypatch.setattr(packing, "_add_member", original)
    assert pack(find_samples(video_folder), tmp_path / "out").videos == 9
