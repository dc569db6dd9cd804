"""Reading whole collections, and what is said of them."""

import dataclasses
import json
import os
import time
from random import Random
from types import SimpleNamespace

import pytest

from lightning_csn.clip import ClipSpec
from lightning_csn.data import check
from lightning_csn.data.check import (
    NOTE,
    UNSAFE,
    WARNING,
    Fate,
    Look,
    examine,
    fate_of,
    find_copies,
    histogram,
    look,
    read_files,
    take_pictures,
)
from lightning_csn.data.index import Entry, VideoIndex, stamp_of
from lightning_csn.data.samples import Collection, Part, Sample
from lightning_csn.data.video import VideoInfo, VideoLayout

CLIP = ClipSpec(
    frames=8, step=2, fps=25, short_side=48, crop=32, test_crop=48, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


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


# ---------------------------------------------------------------- reading


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

    monkeypatch.setattr(check, "run_apart", run)
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
    monkeypatch.setattr(check, "look", misbehave)
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

    monkeypatch.setattr(check, "open_video", fail)
    path = make_video(tmp_path / "v.mp4")
    assert look(Look(str(path), decode=False), silent).reason == "there is not enough memory for it"


def test_copies_are_files_of_the_same_bytes(tmp_path):
    content = {"a": b"xyz", "b": b"xyy", "c": b"xyz", "d": b"xyzz", "empty": b"", "void": b""}
    for name, value in content.items():
        (tmp_path / name).write_bytes(value)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    stamps = {str(path): stamp_of(path) for path in tmp_path.iterdir()} | {str(tmp_path): stamp_of(tmp_path)}
    groups = find_copies(stamps, workers=2)
    assert [[os.path.basename(path) for path in group] for group in groups] == [["a", "c"], ["d", "link"]]


def test_videos_in_shards_are_read_and_compared_like_files(tmp_path, make_video):
    content = make_video(tmp_path / "v.mp4", frames=6).read_bytes()
    bad = bytes(len(content))
    (tmp_path / "x.tar").write_bytes(bytes(512) + content + content + bad)
    size = len(content)
    paths = [f"{tmp_path / 'x.tar'}?{512 + i * size}+{size}#{i}.mp4" for i in range(3)]
    found = dict(read_files(paths, index=tmp_path / "index.jsonl", decode=True))
    assert [found[path].decoded for path in paths] == [6, 6, None]
    assert found[paths[2]].error == f"{paths[2]}: Invalid data found when processing input"
    assert find_copies({path: stamp_of(path) for path in paths}) == [sorted(paths[:2])]


def test_folders_of_frames_are_read_too(tmp_path):
    from PIL import Image

    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 48), (60 * i, 0, 0)).save(folder / f"{i:05}.jpg")
    (folder / "00002.jpg").write_bytes(b"no picture")
    (entry,) = dict(read_files([str(folder)], decode=True)).values()
    assert (entry.info.num_frames, entry.decoded) == (4, 3)
    assert "00002.jpg" in entry.fault
    report = report_of({"train": [(str(folder), 0)]}, classes=["run"], **{str(folder): entry})
    assert (report.seconds, report.frames) == (None, (4, 4, 4))
    there = collection(["run"], train=[(str(folder), 0, Part(1.0, 2.0)), ("film.mp4", 0)])
    film = Entry(path="film.mp4", bytes=1, mtime_ns=1, info=info())
    row, other = examine(there, {str(folder): entry, "film.mp4": film}, frames_fps=2.0).rows
    assert (row.error, row.num_frames, row.seconds) == (None, 2, 1.0)
    assert other.seconds == 2.0  # a file has a rate of its own
    assert "frames_fps" in examine(there, {str(folder): entry}).rows[0].error
    assert sum(bar.count for bar in report.lengths) == 1


def test_pictures_are_strips_of_three_frames(files):
    pictures = dict(take_pictures(files, workers=1))
    assert set(pictures) == set(files[:2])
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(pictures[files[0]])) as image:
        assert (image.format, image.size) == ("JPEG", (3 * 128, 96))


# ---------------------------------------------------------------- the report


def info(num_frames=50, **values):
    return VideoInfo(**{"num_frames": num_frames, "fps": 25.0, "height": 48, "width": 64, "codec": "h264"} | values)


def entry(path, of=None, **values):
    return Entry(path=path, bytes=1, mtime_ns=1, **({"info": of or info()} if "error" not in values else {}), **values)


def collection(classes=("run", "walk"), **splits):
    """split -> (path, label) or (path, label, part) of each sample."""
    samples = {
        split: [Sample(path, label, video, *part) for video, (path, label, *part) in enumerate(given)]
        for split, given in splits.items()
    }
    return Collection(
        samples, list(classes), "test", any(isinstance(s.label, tuple) for x in samples.values() for s in x)
    )


GOOD = {"train": [("a", 0), ("b", 1)], "val": [("c", 0), ("d", 1)]}


def report_of(given, copies=(), clip=None, limit=0.1, classes=("run", "walk"), **entries):
    there = collection(classes, **given)
    found = {sample.path: entry(sample.path) for samples in there.samples.values() for sample in samples}
    return examine(there, found | entries, copies, clip=clip, limit=limit)


def kinds(report):
    return {problem.kind: (problem.level, *(path for path, _ in problem.files)) for problem in report.problems}


def test_a_good_collection_is_safe_and_nothing_is_said_of_it():
    report = report_of(GOOD, clip=CLIP)
    assert report.safe
    assert report.problems == ()
    assert report.counts == {"train": {"run": (1, 1), "walk": (1, 1)}, "val": {"run": (1, 1), "walk": (1, 1)}}
    assert (report.seconds, report.frames) == ((2.0, 2.0, 2.0), (50, 50, 50))
    assert report.properties["size"] == {"64x48": 4}
    assert report.properties["rate"] == {"25 fps": 4}


def many(count, label=0, first=0):
    return [(f"v{first + i}", label) for i in range(count)]


@pytest.mark.parametrize(("bad", "safe"), [(1, True), (2, True), (3, False)])
def test_unreadable_and_missing_videos_are_a_warning_up_to_the_limit(bad, safe):
    broken = {f"v{i}": entry(f"v{i}", error=f"v{i}: broken") for i in range(bad - 1)} | {"v19": None}
    report = report_of({"train": many(20), "val": [("c", 0)]}, classes=["run"], limit=0.1, **broken)
    assert report.safe == safe
    assert kinds(report)["missing"] == (WARNING, "v19")
    assert kinds(report).get("unreadable", (WARNING,)) == (WARNING, *sorted(broken)[: bad - 1])
    if not safe:
        assert report.reasons == [
            "train: 3 of 20 videos cannot be read, 15.0%, more than the limit of 10% at which a run ends"
        ]
    else:
        assert ("too many unreadable" in kinds(report)) is False


def test_a_split_of_which_nothing_can_be_read_is_unsafe():
    report = report_of(GOOD, c=None, d=entry("d", error="d: broken"), limit=1.0)
    assert report.reasons == ["val: no video of 2 can be read"]


@pytest.mark.parametrize(
    ("given", "copies", "kind", "level", "files"),
    [
        ({**GOOD, "test": [("a", 0), ("f", 1)]}, [], "train and test", UNSAFE, ("a",)),
        (GOOD, [["a", "c"]], "train and test", UNSAFE, ("a",)),
        ({**GOOD, "test": [("e", 0), ("f", 1)]}, [["d", "f"]], "val and test", WARNING, ("d",)),
        (GOOD, [["a", "b"]], "two labels", WARNING, ("a",)),
        ({**GOOD, "train": [("a", 0), ("e", 0), ("b", 1)]}, [["a", "e"]], "twice", NOTE, ("a",)),
        (
            {**GOOD, "test": [("e", 0, Part(0, 1)), ("f", 1)], "train": [("e", 0, Part(1, 2)), ("b", 1)]},
            [],
            "parts in several splits",
            WARNING,
            ("e",),
        ),
        (
            {**GOOD, "test": [("e", 0, Part(0, 1)), ("f", 1)], "train": [("e", 0, Part(0.5, 2)), ("b", 1)]},
            [],
            "train and test",
            UNSAFE,
            ("e",),
        ),
        (  # frame 30 may be at second 1.2
            {**GOOD, "test": [("e", 0, Part(0, 1)), ("f", 1)], "train": [("e", 0, Part(30, 40, "frames")), ("b", 1)]},
            [],
            "train and test",
            UNSAFE,
            ("e",),
        ),
        (
            {"train": [("v_Run_g01_c01.avi", 0), ("b", 1)], "val": [("v_Run_g01_c02.avi", 0), ("d", 1)]},
            [],
            "group in several splits",
            WARNING,
            ("v_Run_g01_c01.avi",),
        ),
    ],
)
def test_the_same_film_in_several_places(given, copies, kind, level, files):
    report = report_of(given, copies)
    assert kinds(report) == {kind: (level, *files)}
    assert report.safe == (level != UNSAFE)


def test_files_that_cannot_be_read_are_no_copies_of_each_other():
    page = {path: entry(path, error=f"{path}: Invalid data") for path in ("a", "c")}
    assert set(kinds(report_of(GOOD, [["a", "c"]], limit=1.0, **page))) == {"unreadable", "empty class"}


def test_parts_of_a_film_in_one_split_are_as_they_should_be():
    given = {**GOOD, "train": [("e", 0, Part(0, 1)), ("e", 1, Part(1, 2)), ("b", 1)]}
    report = report_of(given)
    assert report.problems == ()
    assert [row.seconds for row in report.rows[:2]] == [1.0, 1.0]
    assert report.properties["size"] == {"64x48": 4}  # files, not samples


def test_a_part_that_the_video_does_not_have_cannot_be_used():
    report = report_of({**GOOD, "train": [*many(20), ("a", 0, Part(5, 6)), ("b", 1)]})
    (problem,) = [problem for problem in report.problems if problem.kind == "unreadable"]
    assert problem.files[0][0] == "a"
    assert "after 2.00 seconds" in problem.files[0][1]


def test_videos_without_a_label_are_not_for_training():
    report = report_of({**GOOD, "train": [("a", 0), ("b", 1), ("e", -1)], "test": [("f", -1), ("g", 0), ("h", 1)]})
    assert report.reasons == ["1 video to train on without a label"]
    assert [(problem.level, problem.files) for problem in report.problems if problem.kind == "no label"] == [
        (UNSAFE, (("e", ""),)),
        (WARNING, (("f", ""),)),
    ]
    none = collection(train=[("a", (0,)), ("b", (1,)), ("c", ())])  # of several labels none is an answer
    assert examine(none, {path: entry(path) for path in "abc"}).safe


def test_classes_without_videos():
    assert report_of({**GOOD, "train": [("a", 0)]}).reasons == ["1 class without a video to train on: walk"]
    broken = {**GOOD, "train": [("a", 0), *many(20), ("b", 1)]}
    assert report_of(broken, b=None).reasons == ["1 class without a video to train on: walk"]
    assert kinds(report_of({**GOOD, "val": [("c", 0)]})) == {"empty class": (WARNING,)}


@pytest.mark.parametrize("given", [{}, {"val": [("c", 0), ("d", 1)]}])
def test_nothing_to_train_on_is_unsafe(given):
    report = report_of(given)
    assert not report.safe
    assert report.reasons[0].startswith("no videos to train on, only")


def test_splits_that_are_not_there():
    assert kinds(report_of({"all": GOOD["train"]})) == {"no splits": (WARNING,)}
    assert kinds(report_of({"train": GOOD["train"]})) == {"no validation": (NOTE,)}


def test_uneven_classes():
    (problem,) = report_of({**GOOD, "train": [*many(12), ("b", 1), ("b2", 1)]}).problems
    assert problem.text.startswith("classes are uneven: run has 12 videos to train on, walk has 2;")
    assert report_of({**GOOD, "train": [*many(10), ("b", 1), ("b2", 1)]}).problems == ()


def test_a_video_of_several_classes_counts_for_each():
    report = report_of({"train": [("a", (0, 1)), ("b", ())], "val": [("c", (0,)), ("d", (1,))]})
    assert report.counts["train"] == {"run": (1, 1), "walk": (1, 1)}
    assert report.safe


def test_damage_is_told():
    report = report_of(
        GOOD,
        a=entry("a", decoded=40, damaged=3, fault="Invalid data"),
        b=entry("b", decoded=50, damaged=0),
        c=entry("c", promised=120),
        d=entry("d", promised=51),
    )
    files = {problem.kind: problem.files for problem in report.problems}
    assert files == {
        "damaged": (("a", "40 of 50 frames can be decoded, 3 of 40 frames are damaged, Invalid data"),),
        "cut short": (("c", "50 frames of the 120 in the header"),),
    }


@pytest.mark.parametrize(
    ("of", "fate"),
    [
        (info(15), Fate(num_frames=15, short=False, repeated=0, resampled=False, upscaled=1.0)),
        (info(14), Fate(num_frames=14, short=True, repeated=1, resampled=False, upscaled=1.0)),
        (info(1), Fate(num_frames=1, short=True, repeated=7, resampled=False, upscaled=1.0)),
        (info(60, fps=50.0), Fate(num_frames=30, short=False, repeated=0, resampled=True, upscaled=1.0)),
        (info(60, fps=None), Fate(num_frames=60, short=False, repeated=0, resampled=False, upscaled=1.0)),
        (info(60, height=120, width=24), Fate(num_frames=60, short=False, repeated=0, resampled=False, upscaled=2.0)),
    ],
)
def test_what_the_clip_does_with_a_video(of, fate):
    assert fate_of(of, CLIP) == fate


def test_steps_are_no_matter_to_a_clip_of_segments():
    fates = [fate_of(info(frames), dataclasses.replace(CLIP, sampling="segments")) for frames in (8, 5)]
    assert [(fate.short, fate.repeated) for fate in fates] == [(False, 0), (True, 3)]


@pytest.mark.parametrize("fps", [None, 10.0, 25.0, 50.0])
@pytest.mark.parametrize("part", [None, Part(0.5, 1.3), Part(3, 9, "frames")])
@pytest.mark.parametrize("varies", [False, True])
def test_a_fate_counts_the_frames_that_training_takes(fps, part, varies):
    from lightning_csn.data.dataset import frame_numbers  # here, for each process that reads imports this file

    times = [n * 40 + 300 * (n > 5) for n in range(30)]
    of = info(30, fps=24.0, variable_rate=varies)
    layout = VideoLayout(info=of, times=times, unit=(1, 1000), starts=[0], skips=False).to_dict()
    sample = Sample("a", 0, 0, part)
    clip = ClipSpec.from_dict({"fps": fps}, CLIP)
    report = examine(Collection({"train": [sample]}, ["run"], "test"), {"a": entry("a", of, layout=layout)}, clip=clip)
    reader = SimpleNamespace(info=of, times=[time / 1000 for time in times])
    assert report.rows[0].fate.num_frames == len(frame_numbers(reader, sample, fps))


def test_videos_that_the_lists_name_in_vain_are_told():
    there = collection(**GOOD)._replace(missing=(("train", "x.mp4"), ("val", "y.mp4")))
    found = {sample.path: entry(sample.path) for samples in there.samples.values() for sample in samples}
    (problem,) = examine(there, found).problems
    assert (problem.kind, problem.text) == ("not there", "2 videos named by the lists not there, and left out")
    assert problem.files == (("x.mp4", "train"), ("y.mp4", "val"))


def test_what_the_clip_does_is_told():
    report = report_of(
        GOOD, clip=CLIP, a=entry("a", info(4)), b=entry("b", info(fps=10.0)), c=entry("c", info(width=32))
    )
    assert {problem.kind: problem.text for problem in report.problems} == {
        "too short": "1 video shorter than the 15 frames that a clip needs: the last frame is repeated",
        "resampled": "1 video brought to 25 fps: 1 from 10 fps",
        "enlarged": "1 video smaller than the clip's short side of 48 pixels, and enlarged",
    }
    assert {problem.level for problem in report.problems} == {NOTE}
    (short,) = (problem for problem in report.problems if problem.kind == "too short")
    assert short.files == (("a", "4 frames at 25 fps: the last 6 of a clip's 8 are the same"),)


def test_what_a_clip_of_segments_does_is_told():
    segments = dataclasses.replace(CLIP, sampling="segments", fps=None)
    (problem,) = report_of(GOOD, clip=segments, a=entry("a", info(4)), b=entry("b", info(8))).problems
    assert problem.text == "1 video shorter than the 8 frames that a clip needs: frames are repeated"
    assert problem.files == (("a", "4 frames: 4 of a clip's 8 are there twice"),)


def test_mixed_rates_that_a_clip_takes_as_filmed_are_a_warning():
    as_filmed = ClipSpec.from_dict({"fps": None}, CLIP)
    report = report_of(GOOD, clip=as_filmed, a=entry("a", info(fps=60.0)))
    assert kinds(report) == {"mixed rates": (WARNING,)}


def test_oddities_are_noted():
    report = report_of(
        GOOD,
        a=entry("a", info(rotation=90)),
        b=entry("b", info(mirrored=True)),
        c=entry("c", info(variable_rate=True)),
        d=entry("d", info(1)),
    )
    assert kinds(report) == {
        "one frame": (WARNING, "d"),
        "variable rate": (NOTE, "c"),
        "rotated": (NOTE, "a", "b"),
    }


def test_the_worst_comes_first():
    given = {"train": [("a", 0), ("a2", 0)], "val": [("a", 0), ("d", 1)]}
    report = report_of(given, limit=0.5, a2=None, d=entry("d", info(1)))  # what is missing is looked for first
    levels = [problem.level for problem in report.problems]
    assert levels == sorted(levels, key=(UNSAFE, WARNING, NOTE).index)
    assert len(report.reasons) == 2


@pytest.mark.parametrize("values", [[0.04], [1, 2, 3], [10.0] * 50, list(range(1000)), [0.001, 5000.0], [7.5, 7.6]])
def test_a_histogram_counts_every_video_once(values):
    bins = histogram(values)
    assert 1 <= len(bins) <= 12
    assert sum(bar.count for bar in bins) == len(values)
    for bar in bins:
        assert bar.count == sum(bar.start <= value and (bar.end is None or value < bar.end) for value in values)


def test_the_report_is_plain_values():
    import json

    report = report_of(GOOD, clip=CLIP, a=None, b=entry("b", error="b: broken"))
    values = json.loads(json.dumps(report.to_dict()))
    assert values["safe"] is False
    assert [video["missing"] for video in values["videos"]] == [True, False, False, False]
    assert values["videos"][2]["fate"]["num_frames"] == 50
    assert values["videos"][1]["error"] == "b: broken"
