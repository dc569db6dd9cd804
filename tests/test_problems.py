"""What is wrong with collections: each problem, where it is, and where it is not."""

import dataclasses

import pytest

from lightning_csn.clip import ClipSpec
from lightning_csn.data.report import NOTE, UNSAFE, WARNING
from lightning_csn.data.samples import Part

CLIP = ClipSpec(
    frames=8, step=2, fps=25, short_side=48, crop=32, test_crop=48, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
GOOD = {"train": [("a", 0), ("b", 1)], "val": [("c", 0), ("d", 1)]}


def kinds(report):
    return {problem.kind: (problem.level, *(path for path, _ in problem.files)) for problem in report.problems}


def many(count, label=0, first=0):
    return [(f"v{first + i}", label) for i in range(count)]


@pytest.mark.parametrize(("bad", "safe"), [(1, True), (2, True), (3, False)])
def test_unreadable_and_missing_videos_are_a_warning_up_to_the_limit(bad, safe, report_of, entry_of):
    broken = {f"v{i}": entry_of(f"v{i}", error=f"v{i}: broken") for i in range(bad - 1)} | {"v19": None}
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


def test_a_split_of_which_nothing_can_be_read_is_unsafe(report_of, entry_of):
    report = report_of(GOOD, c=None, d=entry_of("d", error="d: broken"), limit=1.0)
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
def test_the_same_film_in_several_places(given, copies, kind, level, files, report_of):
    report = report_of(given, copies)
    assert kinds(report) == {kind: (level, *files)}
    assert report.safe == (level != UNSAFE)


def test_files_that_cannot_be_read_are_no_copies_of_each_other(report_of, entry_of):
    page = {path: entry_of(path, error=f"{path}: Invalid data") for path in ("a", "c")}
    assert set(kinds(report_of(GOOD, [["a", "c"]], limit=1.0, **page))) == {"unreadable", "empty class"}


def test_parts_of_a_film_in_one_split_are_as_they_should_be(report_of):
    given = {**GOOD, "train": [("e", 0, Part(0, 1)), ("e", 1, Part(1, 2)), ("b", 1)]}
    report = report_of(given)
    assert report.problems == ()
    assert [row.seconds for row in report.rows[:2]] == [1.0, 1.0]
    assert report.properties["size"] == {"64x48": 4}  # files, not samples


def test_a_part_that_the_video_does_not_have_cannot_be_used(report_of):
    report = report_of({**GOOD, "train": [*many(20), ("a", 0, Part(5, 6)), ("b", 1)]})
    (problem,) = [problem for problem in report.problems if problem.kind == "unreadable"]
    assert problem.files[0][0] == "a"
    assert "after 2.00 seconds" in problem.files[0][1]


def test_videos_without_a_label_are_not_for_training(report_of):
    report = report_of({**GOOD, "train": [("a", 0), ("b", 1), ("e", -1)], "test": [("f", -1), ("g", 0), ("h", 1)]})
    assert report.reasons == ["1 video to train on without a label"]
    assert [(problem.level, problem.files) for problem in report.problems if problem.kind == "no label"] == [
        (UNSAFE, (("e", ""),)),
        (WARNING, (("f", ""),)),
    ]
    assert report_of({"train": [("a", (0,)), ("b", (1,)), ("c", ())]}).safe  # of several labels none is an answer


def test_classes_without_videos(report_of):
    assert report_of({**GOOD, "train": [("a", 0)]}).reasons == ["1 class without a video to train on: walk"]
    broken = {**GOOD, "train": [("a", 0), *many(20), ("b", 1)]}
    assert report_of(broken, b=None).reasons == ["1 class without a video to train on: walk"]
    assert kinds(report_of({**GOOD, "val": [("c", 0)]})) == {"empty class": (WARNING,)}


@pytest.mark.parametrize("given", [{}, {"val": [("c", 0), ("d", 1)]}])
def test_nothing_to_train_on_is_unsafe(given, report_of):
    report = report_of(given)
    assert not report.safe
    assert report.reasons[0].startswith("no videos to train on, only")


def test_splits_that_are_not_there(report_of):
    assert kinds(report_of({"all": GOOD["train"]})) == {"no splits": (WARNING,)}
    assert kinds(report_of({"train": GOOD["train"]})) == {"no validation": (NOTE,)}


def test_uneven_classes(report_of):
    (problem,) = report_of({**GOOD, "train": [*many(12), ("b", 1), ("b2", 1)]}).problems
    assert problem.text.startswith("classes are uneven: run has 12 videos to train on, walk has 2;")
    assert report_of({**GOOD, "train": [*many(10), ("b", 1), ("b2", 1)]}).problems == ()


def test_damage_is_told(report_of, entry_of):
    report = report_of(
        GOOD,
        a=entry_of("a", decoded=40, damaged=3, fault="Invalid data"),
        b=entry_of("b", decoded=50, damaged=0),
        c=entry_of("c", promised=120),
        d=entry_of("d", promised=51),
    )
    files = {problem.kind: problem.files for problem in report.problems}
    assert files == {
        "damaged": (("a", "40 of 50 frames can be decoded, 3 of 40 frames are damaged, Invalid data"),),
        "cut short": (("c", "50 frames of the 120 in the header"),),
    }


def test_videos_that_the_lists_name_in_vain_are_told(report_of):
    (problem,) = report_of(GOOD, missing=(("train", "x.mp4"), ("val", "y.mp4"))).problems
    assert (problem.kind, problem.text) == ("not there", "2 videos named by the lists not there, and left out")
    assert problem.files == (("x.mp4", "train"), ("y.mp4", "val"))


def test_what_the_clip_does_is_told(report_of, entry_of):
    changes = {"a": {"num_frames": 4}, "b": {"fps": 10.0}, "c": {"width": 32}}
    report = report_of(GOOD, clip=CLIP, **{path: entry_of(path, change) for path, change in changes.items()})
    assert {problem.kind: problem.text for problem in report.problems} == {
        "too short": "1 video shorter than the 15 frames that a clip needs: the last frame is repeated",
        "resampled": "1 video brought to 25 fps: 1 from 10 fps",
        "enlarged": "1 video smaller than the clip's short side of 48 pixels, and enlarged",
    }
    assert {problem.level for problem in report.problems} == {NOTE}
    (short,) = (problem for problem in report.problems if problem.kind == "too short")
    assert short.files == (("a", "4 frames at 25 fps: the last 6 of a clip's 8 are the same"),)


def test_what_a_clip_of_segments_does_is_told(report_of, entry_of):
    segments = dataclasses.replace(CLIP, sampling="segments", fps=None)
    short, enough = entry_of("a", {"num_frames": 4}), entry_of("b", {"num_frames": 8})
    (problem,) = report_of(GOOD, clip=segments, a=short, b=enough).problems
    assert problem.text == "1 video shorter than the 8 frames that a clip needs: frames are repeated"
    assert problem.files == (("a", "4 frames: 4 of a clip's 8 are there twice"),)


def test_mixed_rates_that_a_clip_takes_as_filmed_are_a_warning(report_of, entry_of):
    as_filmed = ClipSpec.from_dict({"fps": None}, CLIP)
    report = report_of(GOOD, clip=as_filmed, a=entry_of("a", {"fps": 60.0}))
    assert kinds(report) == {"mixed rates": (WARNING,)}


def test_oddities_are_noted(report_of, entry_of):
    report = report_of(
        GOOD,
        a=entry_of("a", {"rotation": 90}),
        b=entry_of("b", {"mirrored": True}),
        c=entry_of("c", {"variable_rate": True}),
        d=entry_of("d", {"num_frames": 1}),
    )
    assert kinds(report) == {
        "one frame": (WARNING, "d"),
        "variable rate": (NOTE, "c"),
        "rotated": (NOTE, "a", "b"),
    }


def test_the_worst_comes_first(report_of, entry_of):
    given = {"train": [("a", 0), ("a2", 0)], "val": [("a", 0), ("d", 1)]}
    still = entry_of("d", {"num_frames": 1})
    report = report_of(given, limit=0.5, a2=None, d=still)  # what is missing is looked for first
    levels = [problem.level for problem in report.problems]
    assert levels == sorted(levels, key=(UNSAFE, WARNING, NOTE).index)
    assert len(report.reasons) == 2
