"""Videos as items and batches: the right frames, the right shapes, and every video accounted for."""

from __future__ import annotations

import itertools
import json
import pickle

import pytest
import torch

from lightning_csn.clip import ClipSpec
from lightning_csn.data import dataset as module
from lightning_csn.data.augment import Augment
from lightning_csn.data.dataset import VideoDataset, collate, decoded_size
from lightning_csn.data.index import Entry, VideoIndex, stamp_of
from lightning_csn.data.order import Draw
from lightning_csn.data.samples import Part, Sample
from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoInfo

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


def test_a_folder_of_frames_has_the_rate_that_is_given(tmp_path, square, read_number):
    from PIL import Image

    folder = tmp_path / "frames"
    folder.mkdir()
    with Video(square) as video:
        for number, frame in enumerate(video.frames(range(20)), start=1):
            Image.fromarray(frame.numpy()).save(folder / f"{number:05}.png")
    samples = [Sample(str(folder), 0, 0, Part(0.5, 1.0))]
    dataset = VideoDataset(samples, spec(fps=10, step=1), train=False, frames_fps=20)
    assert shown(dataset[0]["clips"][0], read_number) == [10, 12, 14, 16]
    without = VideoDataset(samples, spec(fps=10, step=1), train=False)
    assert (
        "it has no times: name parts in frames, or give folders of pictures a rate (frames_fps)" in without[0]["error"]
    )


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


def test_an_item_is_a_function_of_its_draw(square):
    dataset = VideoDataset([Sample(square, 0, 0)] * 2, CLIP, train=True, clips=2, augment=Augment("trivialaugment"))
    items = []
    for seed in (1, 1, 2):
        torch.rand(3)
        state = torch.get_rng_state()
        items.append(dataset[Draw(1, seed)])
        assert torch.equal(torch.get_rng_state(), state)  # nothing else is drawn from it
    assert torch.equal(items[0]["clips"], items[1]["clips"])
    assert items[0]["seed"] == items[1]["seed"] != items[2]["seed"]
    assert not torch.equal(items[0]["clips"], items[2]["clips"])
    assert VideoDataset([Sample(square, 0, 0)], CLIP, train=False)[Draw(0, 5)]["seed"] == 0


def test_augmentation_is_of_the_items_seed(square):
    samples, augment = [Sample(square, 0, 0)], Augment("randaugment", color_jitter=0.4)
    plain = VideoDataset(samples, CLIP, train=True, clips=2)[Draw(0, 3)]
    changed = VideoDataset(samples, CLIP, train=True, clips=2, augment=augment)[Draw(0, 3)]
    assert changed["seed"] == plain["seed"]
    later = module.apply_to_batch(augment, plain["clips"][None], torch.tensor([plain["seed"]]))[0]
    assert torch.equal(changed["clips"], later)
    assert not torch.equal(changed["clips"], plain["clips"])
    alone = VideoDataset(samples, CLIP, train=False, augment=augment)[0]["clips"]
    assert torch.equal(alone, VideoDataset(samples, CLIP, train=False)[0]["clips"])  # never in evaluation


@pytest.fixture
def reads(monkeypatch):
    """The frame numbers of every call of Video.frames."""
    numbers, frames = [], Video.frames

    def spy(video, wanted, *, size=None):
        numbers.append(list(wanted))
        return frames(video, wanted, size=size)

    monkeypatch.setattr(Video, "frames", spy)
    return numbers


def test_several_clips_of_a_video_are_decoded_in_one_pass(square, reads, read_number):
    dataset = VideoDataset([Sample(square, 2, 7)], CLIP, train=True, clips=5, scale=(1.0, 1.0), flip=0)
    item = dataset[Draw(0, 1)]
    assert item["clips"].shape == dataset.shape == (5, 3, 4, 48, 48)
    shown_numbers = [shown(view, read_number) for view in item["clips"]]
    assert len({tuple(numbers) for numbers in shown_numbers}) > 1
    assert reads == [sorted({number for numbers in shown_numbers for number in numbers})]


def test_clips_of_a_video_are_mirrored_together_if_its_label_changes(square):
    def flips(mirrored, seed):
        """Whether each clip is mirrored, and the label."""
        samples, options = [Sample(square, 0, 0)], {"train": True, "clips": 8, "scale": (1.0, 1.0)}
        item = VideoDataset(samples, CLIP, mirrored=mirrored, flip=0.5, **options)[Draw(0, seed)]
        straight = VideoDataset(samples, CLIP, flip=0, **options)[Draw(0, seed)]["clips"]
        return [not torch.equal(*pair) for pair in zip(item["clips"], straight, strict=True)], item["label"]

    assert any(len(set(flips({}, seed)[0])) == 2 for seed in range(3))
    together = [flips({0: 1, 1: 0}, seed) for seed in range(6)]
    assert all(set(mirrored) == {bool(label)} for mirrored, label in together)
    assert {label for _, label in together} == {0, 1}


def test_segments_take_a_frame_of_each(square, reads, read_number):
    samples = [Sample(square, 0, 0)]
    segments = spec(sampling="segments")
    item = VideoDataset(samples, segments, train=False, clips=2)[0]
    assert [shown(view, read_number) for view in item["clips"]] == [[1, 6, 11, 16], [3, 8, 13, 18]]
    dataset = VideoDataset(samples, segments, train=True, clips=3, scale=(1.0, 1.0), flip=0)
    seen = [shown(view, read_number) for seed in range(9) for view in dataset[Draw(0, seed)]["clips"]]
    for segment in range(4):
        assert {numbers[segment] for numbers in seen} == set(range(5 * segment, 5 * segment + 5))
    assert len(reads) == 10
    for frames, short in ((20, False), (21, True)):  # steps are no matter
        assert VideoDataset(samples, spec(frames=frames, sampling="segments"), train=False)[0]["short"] is short


@pytest.mark.parametrize(
    ("part", "fps", "expected"),
    [
        (Part(5, 14, "frames"), None, [6, 8, 10, 12]),  # the middle of 5 to 13
        (Part(0.25, 0.6), None, [5, 7, 9, 11]),
        (Part(0.25, 0.8), 10, [5, 9, 13, 15]),  # at 10 frames a second 5, 7, ... 15: six of them, with a step of 2
        (Part(0.5, 9), None, [11, 13, 15, 17]),  # ends with the video
        (Part(3, 5, "frames"), None, [3, 4, 4, 4]),
    ],
)
def test_a_part_of_a_video_is_a_video(square, read_number, part, fps, expected):
    samples = [Sample(square, 0, 0, part)]
    item = VideoDataset(samples, spec(fps=fps), train=False)[0]
    assert shown(item["clips"][0], read_number) == expected
    assert item["short"] is (expected[-1] == expected[-2] or fps == 10)
    dataset = VideoDataset(samples, spec(fps=fps, step=1), train=True, scale=(1.0, 1.0), flip=0)
    numbers = {number for seed in range(20) for number in shown(dataset[Draw(0, seed)]["clips"][0], read_number)}
    rate = 20
    start, end = (part.start, part.end) if part.unit == "frames" else (part.start * rate, part.end * rate)
    assert numbers <= set(range(int(start), int(min(end, 20))))
    assert min(numbers) == start


def test_a_part_that_the_video_does_not_have_is_unreadable(square):
    item = VideoDataset([Sample(square, 0, 4, Part(2, 3))], CLIP, train=False)[0]
    assert item["video"] == 4
    assert item["error"].startswith(f"{square}: 2 to 3 seconds of the video were asked for")


def test_a_varying_rate_is_read_by_its_times(monkeypatch, square, read_number):
    """Of 20 frames the last ten are shown for twice as long."""
    times = [0.05 * number if number < 10 else 0.1 * number - 0.5 for number in range(20)]

    class Varying(Video):
        def __init__(self, path, **options):
            super().__init__(path)
            self.info = VideoInfo(**vars(self.info) | {"fps": 20 / 1.5, "variable_rate": True})

        @property
        def times(self):
            return times

    monkeypatch.setattr(module, "open_video", lambda path, **options: Varying(path))
    slow = spec(fps=20, step=1, frames=6)
    for part, expected in ((Part(0, 0.3), [0, 1, 2, 3, 4, 5]), (Part(0.5, 0.8), [10, 10, 11, 11, 12, 12])):
        item = VideoDataset([Sample(square, 0, 0, part)], slow, train=False)[0]
        assert shown(item["clips"][0], read_number) == expected


def test_several_labels_become_zeros_and_ones(square, broken):
    labels = [(), (0, 2), (1,)]
    samples = [Sample(square, label, i) for i, label in enumerate(labels)] + [Sample(broken, (0,), 3)]
    dataset = VideoDataset(samples, CLIP, train=True, num_classes=3, flip=1.0, mirrored={0: 1, 1: 0})
    batch = collate([dataset[Draw(i, 1)] for i in range(4)])
    assert batch["labels"].tolist() == [[0, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert batch["labels"].dtype == torch.float32
    assert collate([dataset[3]])["labels"].shape == (0, 3)


def test_a_gray_clip_may_stand_for_an_unreadable_video(square, broken):
    clip = spec(mean=(0.2, 0.4, 0.6))
    samples = [Sample(square, 0, 0), Sample(broken, 1, 1)]
    for options in ({"train": True, "clips": 2}, {"train": False, "clips": 2, "crops": 10}):
        dataset = VideoDataset(samples, clip, blank=True, augment=Augment("none", erasing=1.0), **options)
        batch = collate([dataset[Draw(1, 3)], dataset[Draw(0, 4)]])
        assert batch["clips"].shape == (2, *dataset.shape)
        assert batch["videos"].tolist() == batch["labels"].tolist() == [1, 0]
        assert batch["blank"].tolist() == [True, False]
        assert batch["short"].tolist() == [False, False]
        assert [video for video, _ in batch["unreadable"]] == [1]
        assert all((batch["clips"][0, :, channel] == colour).all() for channel, colour in enumerate((51, 102, 153)))
        assert len(batch["seeds"]) == 2


def test_ten_crops_and_whole_pictures(tmp_path, make_video):
    path = str(make_video(tmp_path / "wide.mp4", frames=20, size=(48, 96)))
    narrow = str(make_video(tmp_path / "narrow.mp4", frames=20, size=(60, 48)))
    for crops, shape in ((10, (20, 3, 4, 48, 48)), ("full", (2, 3, 4, 48, 96))):
        dataset = VideoDataset([Sample(path, 0, 0)], CLIP, train=False, clips=2, crops=crops)
        assert dataset[0]["clips"].shape == shape
        if crops == 10:
            assert dataset.shape == shape
    dataset = VideoDataset([Sample(path, 0, 0), Sample(narrow, 0, 0)], CLIP, train=False, crops="full")
    batch = collate([dataset[0], dataset[1]])
    assert batch == {
        "error": "whole pictures of different sizes (48 x 96, 60 x 48) cannot share a batch; set eval_batch_size to 1"
    }


def test_a_known_file_is_not_scanned_again_and_a_bad_one_not_opened(square, broken, monkeypatch):
    opened, open_video = [], module.open_video

    def spy(path, **options):
        opened.append((path, options["layout"]))
        return open_video(path, **options)

    monkeypatch.setattr(module, "open_video", spy)
    with Video(square) as video:
        layout = video.layout
    lines = {}
    for path, known in ((square, {"layout": layout.to_dict()}), (broken, {"error": f"{broken}: found to be bad"})):
        stamp = stamp_of(path)
        entry = Entry(path=path, bytes=stamp.bytes, mtime_ns=stamp.mtime_ns, **known)
        lines[path] = json.dumps(entry.to_dict()).encode()
    samples = [Sample(square, 0, 0), Sample(broken, 1, 1)]
    known, unknown = (VideoDataset(samples, CLIP, train=False, index=index) for index in (VideoIndex(lines), None))
    assert torch.equal(known[0]["clips"], unknown[0]["clips"])
    assert known[1]["error"] == f"{broken}: found to be bad"
    assert [path for path, _ in opened] == [square, square]
    assert (opened[0][1].info, opened[1][1]) == (layout.info, None)
    with open(broken, "ab") as file:  # it is another file now
        file.write(b"more")
    assert known[1]["error"] != f"{broken}: found to be bad"
