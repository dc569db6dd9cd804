"""Videos as items and batches: the right frames, the right shapes, and every video accounted for."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch

from lightning_csn.clip import ClipSpec
from lightning_csn.data.dataset import VideoDataset, collate, decoded_size
from lightning_csn.data.samples import Sample
from lightning_csn.data.video import Video, VideoInfo

CLIP = ClipSpec(
    frames=4, step=2, fps=None, short_side=48, crop=48, test_crop=48, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
)


def spec(**changes) -> ClipSpec:
    return ClipSpec(**(CLIP.to_dict() | changes))


@pytest.fixture(scope="session")
def square(tmp_path_factory, make_video):
    """20 frames of 48 x 48, so that a clip shows all of each and its numbers can be read."""
    return str(make_video(tmp_path_factory.mktemp("square") / "square.mp4", frames=20, size=(48, 48), rate=20))


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video at all")
    return str(path)


def shown(view: torch.Tensor, read_number) -> list[int]:
    """The numbers that the frames of a view (C, T, H, W) show."""
    return [read_number(frame) for frame in view.permute(1, 2, 3, 0)]


def test_evaluation_takes_clips_spread_over_the_video(square, read_number):
    dataset = VideoDataset([Sample(square, 2, 7)], CLIP, train=False, clips=3)
    item = dataset[0]
    assert (item["video"], item["label"]) == (7, 2)
    assert item["clips"].shape == dataset.shape == (3, 3, 4, 48, 48)
    assert item["clips"].dtype == torch.uint8
    numbers = [shown(view, read_number) for view in item["clips"]]
    assert numbers[0] == [0, 2, 4, 6]
    assert numbers[2] == [13, 15, 17, 19]
    assert numbers[1][0] in (6, 7)


def test_crops_of_a_clip_lie_next_to_each_other(tmp_path, make_video):
    path = str(make_video(tmp_path / "wide.mp4", frames=20, size=(48, 96)))
    clips = VideoDataset([Sample(path, 0, 0)], CLIP, train=False, clips=2, crops=3)[0]["clips"]
    assert clips.shape == (6, 3, 4, 48, 48)
    with Video(path) as video:
        first = video.frames([0, 2, 4, 6]).permute(3, 0, 1, 2)
    for view, left in zip(clips[:3], (0, 24, 48), strict=True):
        assert torch.equal(view, first[..., left : left + 48])


def test_evaluation_gives_the_same_every_time(square):
    dataset = VideoDataset([Sample(square, 0, 0)], CLIP, train=False, clips=5, flip=1.0)
    assert torch.equal(dataset[0]["clips"], dataset[0]["clips"])


def test_a_video_is_brought_to_the_clips_frame_rate(square, read_number):
    for train in (False, True):
        slow = spec(fps=10, step=1)  # the video has 20 per second
        dataset = VideoDataset([Sample(square, 0, 0)], slow, train=train, scale=(1.0, 1.0), flip=0)
        numbers = shown(dataset[0]["clips"][0], read_number)
        assert [later - before for before, later in itertools.pairwise(numbers)] == [2, 2, 2]


def test_a_short_video_repeats_its_last_frame(square, read_number):
    for train in (False, True):
        dataset = VideoDataset([Sample(square, 0, 0)], spec(frames=12), train=train, scale=(1.0, 1.0), flip=0)
        item = dataset[0]
        assert shown(item["clips"][0], read_number) == [*range(0, 20, 2), 19, 19]
        assert item["short"]


@pytest.mark.parametrize(
    ("changes", "short"),
    [({"step": 6}, False), ({"step": 7}, True), ({"fps": 10, "step": 3}, False), ({"fps": 10, "step": 4}, True)],
)
def test_a_video_is_short_if_a_clip_spans_more_of_it_than_there_is(square, changes, short):
    for train in (False, True):
        item = VideoDataset([Sample(square, 0, 0)], spec(**changes), train=train)[0]
        assert item["short"] is short
        batch = collate([item, item])
        assert batch["short"].tolist() == [short, short]


def test_training_takes_one_clip_at_random_times(square, read_number):
    dataset = VideoDataset([Sample(square, 2, 7)], CLIP, train=True, scale=(1.0, 1.0), flip=0)
    torch.manual_seed(0)
    starts = set()
    for _ in range(30):
        item = dataset[0]
        assert (item["video"], item["label"]) == (7, 2)
        assert item["clips"].shape == dataset.shape == (1, 3, 4, 48, 48)
        assert item["clips"].dtype == torch.uint8
        numbers = shown(item["clips"][0], read_number)
        starts.add(numbers[0])
        assert numbers == list(range(numbers[0], numbers[0] + 8, 2))
    assert min(starts) < 4
    assert 9 < max(starts) <= 13


def test_a_seed_decides_what_training_sees(square):
    dataset = VideoDataset([Sample(square, 0, 0)], CLIP, train=True)
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(dataset[0]["clips"])
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_a_mirrored_clip_has_the_mirrored_label(tmp_path, make_video):
    path = str(make_video(tmp_path / "one.mp4", frames=1, size=(48, 48)))  # no motion: only the mirror differs
    samples = [Sample(path, 0, 0), Sample(path, 1, 1), Sample(path, 2, 2)]
    straight = VideoDataset(samples, CLIP, train=True, scale=(1.0, 1.0), flip=0.0, mirrored={0: 1, 1: 0})
    flipped = VideoDataset(samples, CLIP, train=True, scale=(1.0, 1.0), flip=1.0, mirrored={0: 1, 1: 0})
    assert [straight[i]["label"] for i in range(3)] == [0, 1, 2]
    assert [flipped[i]["label"] for i in range(3)] == [1, 0, 2]
    with Video(path) as video:
        one = video.frames([0]).permute(3, 0, 1, 2)[None]
    assert torch.equal(straight[0]["clips"][:, :, :1], one)
    assert torch.equal(flipped[0]["clips"][:, :, :1], one.flip(-1))
    half = VideoDataset(samples, CLIP, train=True, mirrored={0: 1})
    torch.manual_seed(0)
    assert 5 < sum(half[0]["label"] for _ in range(30)) < 25


def test_large_videos_are_decoded_at_the_size_that_is_needed(monkeypatch, tmp_path, make_video):
    path = str(make_video(tmp_path / "large.mp4", frames=8, size=(240, 320)))
    sizes = []
    frames = Video.frames

    def spy(video, numbers, *, size=None):
        sizes.append(size)
        return frames(video, numbers, size=size)

    monkeypatch.setattr(Video, "frames", spy)
    samples = [Sample(path, 0, 0)]
    VideoDataset(samples, CLIP, train=False)[0]
    VideoDataset(samples, CLIP, train=True, scale=(0.25, 1.0))[0]  # a quarter of the area is half of the side
    VideoDataset(samples, CLIP, train=True, scale=(0.01, 1.0))[0]
    assert sizes == [(48, 64), (96, 128), (240, 320)]


def test_sides_are_rounded():
    assert decoded_size(VideoInfo(num_frames=1, fps=None, height=100, width=333), 50) == (50, 166)


@pytest.mark.parametrize("train", [True, False])
def test_an_unreadable_video_is_said_and_not_replaced(square, broken, train):
    dataset = VideoDataset([Sample(square, 0, 0), Sample(broken, 1, 1)], CLIP, train=train)
    item = dataset[1]
    assert item["video"] == 1
    assert item["error"].startswith(broken)
    assert "clips" not in item
    missing = VideoDataset([Sample(broken + "4", 1, 5)], CLIP, train=train)[0]
    assert missing["video"] == 5
    assert "No such file" in missing["error"]
    batch = collate([dataset[1], dataset[0], missing])
    assert batch["clips"].shape == (1, *dataset.shape)
    assert batch["videos"].tolist() == [0]
    assert batch["labels"].tolist() == [0]
    assert batch["unreadable"] == [(1, item["error"]), (5, missing["error"])]


def test_a_batch_without_a_readable_video_keeps_its_shapes(broken):
    dataset = VideoDataset([Sample(broken, 1, 3)], CLIP, train=False, clips=2, crops=3)
    batch = collate([dataset[0]])
    assert batch["clips"].shape == (0, 6, 3, 4, 48, 48)
    assert batch["clips"].dtype == torch.uint8
    assert batch["labels"].shape == batch["videos"].shape == batch["short"].shape == (0,)
    assert batch["labels"].dtype == batch["videos"].dtype == torch.int64
    assert [number for number, _ in batch["unreadable"]] == [3]


def test_batches_are_stacked_in_order(square):
    samples = [Sample(square, 2, 4), Sample(square, -1, 9)]
    dataset = VideoDataset(samples, CLIP, train=False, clips=2)
    batch = collate([dataset[0], dataset[1]])
    assert batch["clips"].shape == (2, 2, 3, 4, 48, 48)
    assert batch["labels"].tolist() == [2, -1]
    assert batch["videos"].tolist() == [4, 9]
    assert batch["labels"].dtype == batch["videos"].dtype == torch.int64
    assert batch["unreadable"] == []


def test_a_dataset_travels_to_spawned_workers(square):
    dataset = VideoDataset([Sample(square, 2, 4)], CLIP, train=True, mirrored={0: 1})
    assert pickle.loads(pickle.dumps(dataset)).mirrored == {0: 1}
    assert pickle.loads(pickle.dumps(collate)) is collate
