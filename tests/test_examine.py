"""Figures of collections: counts, lengths, and what the clip does with each video."""

import dataclasses
from types import SimpleNamespace

import pytest

from lightning_csn.clip import ClipSpec
from lightning_csn.data.dataset import frame_numbers
from lightning_csn.data.examine import fate_of, histogram
from lightning_csn.data.report import Fate
from lightning_csn.data.samples import Part, Sample
from lightning_csn.data.video_info import VideoInfo, VideoLayout

CLIP = ClipSpec(
    frames=8, step=2, fps=25, short_side=48, crop=32, test_crop=48, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


def info(num_frames=50, **values):
    return VideoInfo(**{"num_frames": num_frames, "fps": 25.0, "height": 48, "width": 64, "codec": "h264"} | values)


def test_a_good_collection_is_safe_and_nothing_is_said_of_it(report_of):
    report = report_of({"train": [("a", 0), ("b", 1)], "val": [("c", 0), ("d", 1)]}, clip=CLIP)
    assert report.safe
    assert report.problems == ()
    assert report.counts == {"train": {"run": (1, 1), "walk": (1, 1)}, "val": {"run": (1, 1), "walk": (1, 1)}}
    assert (report.seconds, report.frames) == ((2.0, 2.0, 2.0), (50, 50, 50))
    assert report.properties["size"] == {"64x48": 4}
    assert report.properties["rate"] == {"25 fps": 4}


def test_a_video_of_several_classes_counts_for_each(report_of):
    report = report_of({"train": [("a", (0, 1)), ("b", ())], "val": [("c", (0,)), ("d", (1,))]})
    assert report.counts["train"] == {"run": (1, 1), "walk": (1, 1)}
    assert report.safe


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
def test_a_fate_counts_the_frames_that_training_takes(fps, part, varies, report_of, entry_of):
    times = [n * 40 + 300 * (n > 5) for n in range(30)]
    found = entry_of("a", {"num_frames": 30, "fps": 24.0, "variable_rate": varies})
    layout = VideoLayout(info=found.info, times=times, unit=(1, 1000), starts=[0], skips=False).to_dict()
    found = dataclasses.replace(found, layout=layout)
    report = report_of({"train": [("a", 0, part)]}, clip=ClipSpec.from_dict({"fps": fps}, CLIP), a=found)
    reader = SimpleNamespace(info=found.info, times=[time / 1000 for time in times])
    assert report.rows[0].fate.num_frames == len(frame_numbers(reader, Sample("a", 0, 0, part), fps))


def test_folders_of_frames_have_no_length_in_seconds_but_by_a_rate_that_is_given(report_of, entry_of):
    folder = entry_of("folder", {"num_frames": 4, "fps": None})
    report = report_of({"train": [("folder", 0)]}, folder=folder)
    assert (report.seconds, report.frames) == (None, (4, 4, 4))
    assert sum(bar.count for bar in report.lengths) == 1
    given = {"train": [("folder", 0, Part(1.0, 2.0)), ("film", 0)]}
    row, other = report_of(given, folder=folder, frames_fps=2.0).rows
    assert (row.error, row.num_frames, row.seconds) == (None, 2, 1.0)
    assert other.seconds == 2.0  # a file has a rate of its own
    assert "frames_fps" in report_of(given, folder=folder).rows[0].error


@pytest.mark.parametrize("values", [[0.04], [1, 2, 3], [10.0] * 50, list(range(1000)), [0.001, 5000.0], [7.5, 7.6]])
def test_a_histogram_counts_every_video_once(values):
    bins = histogram(values)
    assert 1 <= len(bins) <= 12
    assert sum(bar.count for bar in bins) == len(values)
    for bar in bins:
        assert bar.count == sum(bar.start <= value and (bar.end is None or value < bar.end) for value in values)
