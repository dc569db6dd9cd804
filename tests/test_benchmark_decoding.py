"""How many frames a clip needs, by the order in which they are decoded."""

import pytest

from lightning_csn.benchmark_decoding import Coded, count_needed, decoding_order, shares_of
from lightning_csn.benchmark_videos import open_source, write_video

# as x264 writes them: I0 P3 b1 b2 P6 b4 b5, then a new keyframe with its own
ORDER = [Coded(n, n in (0, 7), n in (0, 3, 6, 7, 10)) for n in (0, 3, 1, 2, 6, 4, 5, 7, 10, 8, 9)]


@pytest.mark.parametrize(
    ("wanted", "needed"),
    [
        ([0], (1, 1)),
        ([1], (3, 3)),  # I0 P3 b1
        ([5], (4, 7)),  # I0 P3 P6 b5
        ([2, 3], (3, 4)),  # P3 comes before b2
        ([3, 5], (4, 7)),
        ([1, 2, 4, 5], (7, 7)),
        ([9], (3, 4)),  # from the second keyframe alone
        ([1, 9], (6, 7)),
        ([], (0, 0)),
    ],
)
def test_the_floor_counts_what_is_wanted_and_what_it_may_refer_to(wanted, needed):
    assert count_needed(ORDER, wanted) == needed


def test_frames_that_others_refer_to_are_told_by_the_decoder(tmp_path):
    source = open_source(write_video(str(tmp_path / "a.mp4"), seconds=1, size=(64, 96)))
    order = decoding_order(source)
    assert sorted(frame.number for frame in order) == list(range(30))
    assert [frame.number for frame in order] != list(range(30))
    assert order[0].is_keyframe
    assert order[0].is_reference
    assert 5 < sum(frame.is_reference for frame in order) < 25
    shares = shares_of([source], [[[4, 6, 8], [20, 22]]])["frames"]
    assert shares["asked_for"] == 2.5
    assert shares["asked_for"] < shares["needed"] <= shares["decoded"] <= shares["from_keyframe"]


def test_there_is_no_floor_where_one_of_the_videos_has_none(make_video, tmp_path):
    paths = [make_video(tmp_path / "a.mp4"), make_video(tmp_path / "a.avi", codec="mpeg4", options={"bf": "2"})]
    frames = shares_of([open_source(str(path)) for path in paths], [[[3]], [[3]]])["frames"]
    assert (frames["asked_for"], frames["needed"], frames["from_keyframe"]) == (1, 0, 0)
    assert frames["decoded"] > 0
