"""Clips are lists of frame numbers: inside the video, in order, and where they were asked for."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import pytest
import torch

from lightning_csn.data.samples import Part
from lightning_csn.data.sampling import (
    clip_at,
    dense_clips,
    part_frames,
    random_clip,
    random_clips,
    resample,
    segment_clips,
    spread_clips,
)
from lightning_csn.errors import InputError


@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 9, 50])
@pytest.mark.parametrize(("length", "step"), [(1, 1), (4, 2), (8, 1), (32, 2)])
def test_every_clip_lies_in_the_video_in_even_steps(num_frames, length, step):
    for clip in [
        random_clip(num_frames, length=length, step=step),
        *random_clips(num_frames, length=length, step=step, count=3),
        *spread_clips(num_frames, length=length, step=step, count=5),
        *dense_clips(num_frames, length=length, step=step, stride=3),
    ]:
        assert len(clip) == length
        assert 0 <= min(clip) <= max(clip) < num_frames
        assert clip == [min(clip[0] + i * step, num_frames - 1) for i in range(length)]
        if num_frames >= (length - 1) * step + 1:
            assert clip == list(range(clip[0], clip[0] + length * step, step))


def test_every_start_that_fits_is_drawn_equally_often():
    torch.manual_seed(0)
    starts = Counter(random_clip(12, length=4, step=2)[0] for _ in range(3000))
    assert sorted(starts) == [0, 1, 2, 3, 4, 5]
    assert min(starts.values()) > 400


def test_a_random_clip_is_repeatable():
    torch.manual_seed(3)
    first = random_clip(1000, length=4, step=2)
    torch.manual_seed(3)
    assert random_clip(1000, length=4, step=2) == first


@pytest.mark.parametrize(
    ("num_frames", "count", "starts"),
    [
        (20, 1, [8]),  # the middle of 0 to 16
        (21, 1, [8]),
        (20, 2, [0, 16]),
        (20, 5, [0, 4, 8, 12, 16]),
        (20, 4, [0, 5, 10, 16]),
        (5, 3, [0, 0, 1]),
        (3, 3, [0, 0, 0]),
    ],
)
def test_spread_clips_reach_from_the_first_frame_to_the_last(num_frames, count, starts):
    clips = spread_clips(num_frames, length=4, step=1, count=count)
    assert [clip[0] for clip in clips] == starts
    if count > 1:
        assert clips[-1][-1] == num_frames - 1


def test_a_short_video_repeats_its_last_frame():
    assert clip_at(0, 3, length=5, step=1) == [0, 1, 2, 2, 2]
    assert spread_clips(3, length=3, step=2, count=2) == [[0, 2, 2], [0, 2, 2]]
    assert random_clip(1, length=3, step=2) == [0, 0, 0]


@pytest.mark.parametrize("num_frames", [1, 2, 7, 100])
def test_the_same_rate_leaves_every_frame(num_frames):
    assert resample(num_frames, 30000 / 1001, 30000 / 1001) == list(range(num_frames))
    assert resample(num_frames, 25, None) == list(range(num_frames))
    assert resample(num_frames, None, 25) == list(range(num_frames))


@pytest.mark.parametrize(
    ("num_frames", "source", "target", "expected"),
    [
        (10, 50, 25, [0, 2, 4, 6, 8]),
        (9, 50, 25, [0, 2, 4, 6, 8]),  # 0.18 s are 4.5 frames
        (5, 12.5, 25, [0, 1, 1, 2, 2, 3, 3, 4, 4, 4]),
        (6, 30, 25, [0, 1, 2, 4, 5]),
        (6, 25, 30, [0, 1, 2, 3, 3, 4, 5]),
        (1, 60, 1, [0]),  # never none
        (3, 1, 4, [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_a_rate_is_brought_to_another_by_the_nearest_frames(num_frames, source, target, expected):
    assert resample(num_frames, source, target) == expected


@pytest.mark.parametrize("source", [15, 23.976023976, 29.97, 60, 120, 7.3])
@pytest.mark.parametrize("target", [12.5, 25, 30])
def test_resampling_keeps_time(source, target):
    numbers = resample(300, source, target)
    assert numbers == sorted(numbers)
    assert len(numbers) / target == pytest.approx(300 / source, abs=1 / target)
    for i, number in enumerate(numbers[:-2]):
        assert abs(number / source - i / target) <= 0.5 / source + 1e-6


def test_a_rate_read_from_a_file_is_taken_as_the_ratio_that_it_was():
    """Frames half way between two go to the later one, all of them."""
    assert resample(4, 29.97002997, 60000 / 1001) == resample(4, 30000 / 1001, 60000 / 1001) == [0, 1, 1, 2, 2, 3, 3, 3]
    assert resample(108_000, 60000 / 1001, 30000 / 1001) == list(range(0, 108_000, 2))


def test_several_random_clips_are_drawn_one_by_one():
    torch.manual_seed(0)
    drawn = [random_clips(12, length=4, step=2, count=2) for _ in range(1500)]
    pairs = Counter((first[0], second[0]) for first, second in drawn)
    assert len(pairs) == 36  # each of 6 starts with each of 6
    assert min(pairs.values()) > 15

    torch.manual_seed(3)
    one_by_one = [random_clip(50, length=4, step=2) for _ in range(3)]
    torch.manual_seed(3)
    assert random_clips(50, length=4, step=2, count=3) == one_by_one


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_dense_clips_start_every_stride_frames_and_end_with_the_video(step, stride):
    for num_frames in range(1, 30):
        for length in (1, 2, 4):
            starts = [clip[0] for clip in dense_clips(num_frames, length=length, step=step, stride=stride)]
            fitting = [k for k in range(num_frames) if k + (length - 1) * step < num_frames] or [0]
            assert starts[:-1] == [k for k in fitting if k % stride == 0 and k < fitting[-1]]
            assert starts[-1] == fitting[-1]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7])
def test_segments_are_equal_and_hold_every_frame_once(length):
    """What a jittered clip can show at place i is segment i; drawn often enough, it shows all of it."""
    torch.manual_seed(0)
    for num_frames in range(length, 3 * length + 1):
        clips = segment_clips(num_frames, length=length, jitter=True, count=60)
        segments = [sorted(set(place)) for place in zip(*clips, strict=True)]
        assert list(itertools.chain(*segments)) == list(range(num_frames))
        assert max(map(len, segments)) - min(map(len, segments)) <= 1


def test_every_frame_of_a_segment_is_drawn_equally_often():
    torch.manual_seed(0)
    clips = segment_clips(10, length=2, jitter=True, count=3000)
    for place, frames in enumerate((range(5), range(5, 10))):
        counts = Counter(clip[place] for clip in clips)
        assert sorted(counts) == list(frames)
        assert min(counts.values()) > 500


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_segment_clips_without_jitter_lie_evenly_in_their_segments(count):
    for num_frames in range(1, 40):
        for length in (1, 2, 4, 8):
            clips = segment_clips(num_frames, length=length, jitter=False, count=count)
            assert len(clips) == count
            for i in range(length):
                start, end = i * num_frames // length, (i + 1) * num_frames // length
                # the segment is cut into `count` equal pieces; the frame is the one that the middle of a piece lies in
                middles = [start + Fraction(2 * k + 1, 2 * count) * max(1, end - start) for k in range(count)]
                assert [clip[i] for clip in clips] == [middle // 1 for middle in middles]
                assert all(0 <= clip[i] < num_frames for clip in clips)


@pytest.mark.parametrize("jitter", [True, False])
def test_a_video_of_fewer_frames_than_segments_repeats_them_evenly(jitter):
    assert segment_clips(3, length=8, jitter=jitter, count=2) == [[0, 0, 0, 1, 1, 1, 2, 2]] * 2
    assert segment_clips(1, length=3, jitter=jitter) == [[0, 0, 0]]


@pytest.mark.parametrize("rates", [(30, 30), (30000 / 1001, 30000 / 1001), (60, 30), (60000 / 1001, 25), (50, 30)])
def test_times_of_a_steady_rate_give_what_the_rate_gives(rates):
    source, target = rates
    times = [7.5 + k / source for k in range(200)]
    expected = resample(200, source, target)
    assert resample(200, source, target, times) == expected
    assert resample(200, None, target, times) == expected


@pytest.mark.parametrize("rate", [24, 25, 30000 / 1001, 30, 60000 / 1001])
def test_times_in_milliseconds_make_no_frame_come_twice(rate):
    times = [round(k / rate, 3) for k in range(200)]
    assert resample(200, rate, rate, times) == list(range(200))
    assert resample(200, rate, rate / 2, times) == list(range(0, 200, 2))


def test_a_varying_rate_is_resampled_by_what_is_on_screen():
    torch.manual_seed(0)
    for _ in range(20):
        gaps = torch.randint(1, 200, (40,)).div(1000).tolist()
        times = [sum(gaps[:k]) for k in range(40)]
        for target in (5, 30, 60):
            numbers = resample(40, 1 / gaps[-1], target, times)
            half = min(1 / target, sum(gaps) / 40) / 2
            expected = [max(k for k in range(40) if times[k] <= i / target + half + 1e-6) for i in range(len(numbers))]
            assert numbers == expected
            assert len(numbers) == pytest.approx(sum(gaps) * target, abs=0.51)


def test_a_still_in_a_video_lasts_as_long_as_it_is_shown():
    times = [0.0, 0.1, 0.2, 1.2, 1.3]
    assert resample(5, 10, 10, times) == [0, 1, *[2] * 10, 3, 4]
    assert resample(5, 10, 5, times) == [1, 2, 2, 2, 2, 2, 4]  # in the middle of each fifth of a second
    assert resample(1, None, 25, [3.0]) == [0]
    assert resample(5, 10, None, times) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fps", [10, 25, Fraction(30000, 1001), 12.5])
@pytest.mark.parametrize("with_times", [False, True])
def test_a_part_holds_the_frames_that_begin_in_it(fps, with_times):
    """The slow definition, in fractions; one frame where none begins."""
    exact = [k / Fraction(fps) for k in range(12)]
    times = [float(time) + 4 for time in exact] if with_times else None
    tenths = [Fraction(n, 10) for n in range(20)]
    for start in tenths:
        for end in tenths:
            if not start < end or start >= 12 / Fraction(fps):
                continue
            begin_in_it = [k for k in range(12) if start <= exact[k] < end]
            on_screen = max(k for k in range(12) if exact[k] <= start)
            found = part_frames(Part(float(start), float(end)), 12, float(fps), times)
            assert list(found) == (begin_in_it or [on_screen])


def test_a_part_begins_with_a_frame_of_the_same_time_however_that_was_rounded():
    times = [round(k / 30, 6) for k in range(10)]
    assert part_frames(Part(1 / 30, 4 / 30), 10, 30, times) == range(1, 4)
    assert part_frames(Part(1 / 30, 4 / 30), 10, 30) == range(1, 4)


def test_parts_side_by_side_share_no_frame_and_miss_none():
    fps, cuts = 29.97002997, [0, 0.7, 1.4, 2.35, 3.3367]
    parts = [part_frames(Part(a, b), 100, fps) for a, b in itertools.pairwise(cuts)]
    assert [k for part in parts for k in part] == list(range(100))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Part(0, 12, "frames"), range(12)),
        (Part(3, 5, "frames"), range(3, 5)),
        (Part(11, 99, "frames"), range(11, 12)),
        (Part(0, 99), range(12)),
        (Part(1.05, 1.08), range(10, 11)),
        (Part(0.0, 0.001), range(1)),
        (Part(1.19, 5), range(11, 12)),  # the last frame is on screen until 1.2
    ],
)
def test_parts_in_frames_and_parts_that_go_on_beyond_the_end(part, expected):
    assert part_frames(part, 12, 10) == expected
    assert part_frames(part, 12, 10, [k / 10 for k in range(12)]) == expected


@pytest.mark.parametrize(
    ("part", "fps", "times", "message"),
    [
        (Part(12, 14, "frames"), 10, None, "12 to 14 frames of the video were asked for, which ends after 12 frames"),
        (Part(1.2, 3), 10, None, "1.2 to 3 seconds of the video were asked for, which ends after 1.20 seconds"),
        (Part(1.2, 3), 10, [k / 10 for k in range(12)], "which ends after 1.20 seconds"),
        (Part(1.2, 3), None, [k / 10 for k in range(12)], "which ends after 1.20 seconds"),
        (Part(2, 2), 10, None, "2 to 2 seconds .* starts at 0 or later, and ends after that"),
        (Part(-1, 2), 10, None, "-1 to 2 seconds"),
        (Part(float("nan"), 2), 10, None, "nan to 2 seconds"),
        (Part(0, 1), None, None, "no times: name parts in frames, or give folders"),
    ],
)
def test_a_part_that_is_not_there_says_what_is(part, fps, times, message):
    with pytest.raises(InputError, match=message):
        part_frames(part, 12, fps, times)


def test_a_part_of_a_single_picture_is_that_picture():
    assert part_frames(Part(0, 3), 1, None, [0.0]) == range(1)
    assert part_frames(Part(0, 3, "frames"), 1) == range(1)
