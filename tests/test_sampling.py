"""Clips are lists of frame numbers: inside the video, in order, and where they were asked for."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lightning_csn.data.sampling import clip_at, random_clip, resample, spread_clips


@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 9, 50])
@pytest.mark.parametrize(("length", "step"), [(1, 1), (4, 2), (8, 1), (32, 2)])
def test_every_clip_lies_in_the_video_in_even_steps(num_frames, length, step):
    for clip in [
        random_clip(num_frames, length=length, step=step),
        *spread_clips(num_frames, length=length, step=step, count=5),
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
