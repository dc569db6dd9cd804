"""Videos as a DataLoader takes them: random clips of each to train on, or the same views of it every time.

Shapes: B videos, V views of each, C channels, T frames, H x W pixels, K classes. Pixels are uint8; normalisation is the
model's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from lightning_csn.clip import ClipSpec
from lightning_csn.data.augment import Augment, apply_to_batch
from lightning_csn.data.index import VideoIndex
from lightning_csn.data.order import Draw, batch_seed
from lightning_csn.data.reading import Reader, open_video
from lightning_csn.data.samples import Label, Sample
from lightning_csn.data.sampling import evaluation_clips, part_frames, random_clips, resample, segment_clips
from lightning_csn.data.transforms import SCALE, TrainTransform, num_views, short_side_size, views
from lightning_csn.data.video_info import VideoError, VideoInfo, VideoLayout
from lightning_csn.data.watchdog import WatchedReader
from lightning_csn.errors import InputError

Item = dict[str, Any]

LARGEST_SEED = 2**62  # int64, with room for one more for each view


class VideoDataset(Dataset[Item]):
    """The videos of a split.

    An item is a dict: video (its number in the split), label, clips, uint8 (V, C, T, H, W), short (whether the
    video is shorter than a clip, so that its last frame is repeated), seed (0 in evaluation), seconds (that reading it
    took) and, in evaluation, times (clips, T), see `frame_times`. A video that cannot be read is a dict of video,
    label, error (the message, with the path), shape (that of its clips) and seconds; it is never replaced by another
    one, and what is to be done about it is for the DataModule.

    samples: item i is samples[i].
    clip: how clips look. A video, or the part of it that a sample is, is first brought to clip.fps; one that is too
        short repeats its last frame.
    train: `clips` clips at random times, decoded in one pass, each cut and scaled at random to crop x crop and mirrored
        with probability `flip`; all of a video's together if that changes its label.
        Otherwise `clips` clips spread evenly, their short side scaled to short_side, and `crops` views of each (see
        `views`): V = clips * num_views(crops), those of one clip next to each other.
    scale, short_sides: of the random cut, see TrainTransform.
    mirrored: number of a class -> number of the class that its mirror image shows, for those that change.
    num_classes: K, for samples with several labels, whose label becomes float32 (K,) of zeros and ones; None for one.
    augment: further changes of training clips, made here; None where there are none or they are made on the device.
    blank: a video that cannot be read has clips all the same, all of the clip's mean colour; and an error.
    reader: what reads the files, see open_video. frames_fps: pictures per second of folders of frames.
    index: what is known of the files: their layout, which saves a scan, and which of them cannot be read.
    read_timeout: seconds that reading a video may take; None for no limit.

    Indexed by a Draw, what is random in an item is a function of its seed. By a number, random numbers come from
    torch's global generator, which a DataLoader seeds in each worker.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        clip: ClipSpec,
        *,
        train: bool,
        clips: int = 1,
        crops: int | str = 1,
        flip: float = 0.5,
        scale: tuple[float, float] = SCALE,
        short_sides: tuple[int, int] | None = None,
        mirrored: Mapping[int, int] | None = None,
        num_classes: int | None = None,
        augment: Augment | None = None,
        blank: bool = False,
        reader: str = "av",
        frames_fps: float | None = None,
        index: VideoIndex | None = None,
        read_timeout: float | None = None,
    ) -> None:
        self.samples = samples
        self.clip = clip
        self.train = train
        self.clips = clips
        self.crops = crops
        self.flip = flip
        self.mirrored = dict(mirrored or {})
        self.num_classes = num_classes
        self.augment = augment
        self.blank = blank
        self.reader = reader
        self.frames_fps = frames_fps
        self.index = index
        self.read_timeout = read_timeout
        self._transform = TrainTransform(clip, flip=0, scale=scale, short_sides=short_sides)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | Draw) -> Item:
        try:
            began = time.perf_counter()
            return self._drawn(index) | {"seconds": time.perf_counter() - began}
        except InputError as error:
            if get_worker_info() is None:
                raise
            return {"refused": str(error)}  # see collate

    def _drawn(self, index: int | Draw) -> Item:
        if not isinstance(index, Draw):
            return self._item(self.samples[index])
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(index.seed)  # not torch.manual_seed, which seeds GPUs as well
            return self._item(self.samples[index.index])

    @property
    def shape(self) -> tuple[int, ...]:
        """(V, C, T, H, W) of every item's clips; of "full" crops, whose size is the video's, those of a square."""
        if self.train:
            return (self.clips, 3, self.clip.frames, self.clip.crop, self.clip.crop)
        side = self.clip.short_side if self.crops == "full" else self.clip.test_crop
        return (self.clips * num_views(self.crops), 3, self.clip.frames, side, side)

    def _item(self, sample: Sample) -> Item:
        seed = int(torch.randint(LARGEST_SEED, ())) if self.train else 0
        label = sample.label
        times: dict[str, Tensor] = {}
        try:
            with self._open(sample.path) as video:
                numbers = frame_numbers(video, sample, self.clip.fps)
                if self.train:
                    clips, mirrored = self._random_clips(video, numbers)
                    label = mirror_label(label, self.mirrored) if mirrored else label
                else:
                    spread = self._spread(numbers)
                    clips = read_views(video, spread, self.clip, self.crops)
                    times["times"] = frame_times(video, spread)
        except VideoError as error:
            item: Item = {"video": sample.video, "label": self._target(label), "error": str(error), "shape": self.shape}
            if self.blank:
                item |= {"clips": self._gray(), "short": False, "seed": seed}
                if not self.train:
                    item["times"] = torch.full((self.clips, self.clip.frames), torch.nan)
            return item
        if self.augment is not None and self.train:
            clips = apply_to_batch(self.augment, clips[None], torch.tensor([seed]))[0]
        short = len(numbers) < self.clip.span
        target = self._target(label)
        return {"video": sample.video, "label": target, "clips": clips, "short": short, "seed": seed, **times}

    def _open(self, path: str) -> WatchedReader:
        def open_known(*, cancelled: threading.Event) -> Reader:
            entry = None if self.index is None else self.index.find(path)
            if entry is not None and entry.error is not None:
                raise VideoError(entry.error)
            layout = None
            if entry is not None and entry.layout is not None:
                try:
                    layout = VideoLayout.from_dict(entry.layout)
                except InputError as error:
                    remedy = "remove the index and run 'lightning-csn check-data' again"
                    raise InputError(f"{path}: {error}; {remedy}") from error
            return open_video(path, reader=self.reader, layout=layout, frames_fps=self.frames_fps, cancelled=cancelled)

        return WatchedReader(open_known, seconds=self.read_timeout, name=path)

    def _target(self, label: Label) -> int | Tensor:
        """A label as a batch has it: a number, or ones at the numbers of several and zeros elsewhere, (K,)."""
        if self.num_classes is None:
            assert isinstance(label, int)
            return label
        target = torch.zeros(self.num_classes)
        target[[number for number in ([label] if isinstance(label, int) else label) if number >= 0]] = 1
        return target

    def _gray(self) -> Tensor:
        colour = torch.tensor([round(255 * mean) for mean in self.clip.mean], dtype=torch.uint8)
        return colour[None, :, None, None, None].expand(self.shape).contiguous()

    def _random_clips(self, video: WatchedReader, numbers: Sequence[int]) -> tuple[Tensor, bool]:
        """Clips, (V, C, T, H, W), and whether the first of them is mirrored."""
        options = {"length": self.clip.frames, "count": self.clips}
        if self.clip.sampling == "segments":
            chosen = segment_clips(len(numbers), jitter=True, **options)
        else:
            chosen = random_clips(len(numbers), step=self.clip.step, **options)
        size = decoded_size(video.info, self._transform.largest_side)
        frames = read_clips(video, [[numbers[i] for i in clip] for clip in chosen], size)
        clips = torch.stack([self._transform(clip)[0] for clip in frames])
        mirrored = torch.rand(self.clips) < self.flip
        if self.mirrored:  # a video has one label
            mirrored = mirrored[:1].expand(self.clips)
        clips[mirrored] = clips[mirrored].flip(-1)
        return clips, bool(mirrored[0])

    def _spread(self, numbers: Sequence[int]) -> list[list[int]]:
        """Frame numbers of the clips of an evaluation."""
        return [[numbers[i] for i in clip] for clip in evaluation_clips(len(numbers), self.clip, self.clips)]


def frame_numbers(video: Reader | WatchedReader, sample: Sample, fps: float | None) -> list[int]:
    """Numbers of the frames that a sample has at `fps` (None: as filmed): of its part of the video, if it is one.

    Raises VideoError for a part that the video does not have.
    """
    info = video.info
    times = video.times if info.variable_rate else None
    part = range(info.num_frames)
    if sample.part is not None:
        try:
            part = part_frames(sample.part, info.num_frames, info.fps, times)
        except InputError as error:
            raise VideoError(f"{sample.path}: {error}") from error
    if times is not None:
        times = times[part.start : part.stop]
    return [part[number] for number in resample(len(part), info.fps, fps, times)]


def frame_times(video: Reader | WatchedReader, clips: Sequence[Sequence[int]]) -> Tensor:
    """Seconds from the first frame at which those of the clips are shown, (clips, T); nan where the video has no times.

    clips: the frame numbers of each.
    """
    numbers = torch.tensor(clips)
    if video.info.variable_rate and video.times is not None:
        return torch.tensor(video.times)[numbers]
    return numbers / (torch.nan if video.info.fps is None else video.info.fps)


def mirror_label(label: Label, mirrored: Mapping[int, int]) -> Label:
    """The label of the mirror image: mirrored has the number of every class that becomes another.

    >>> mirror_label(3, {3: 4, 4: 3}), mirror_label((0, 3), {3: 4, 4: 3})
    (4, (0, 4))
    """
    if isinstance(label, int):
        return mirrored.get(label, label)
    return tuple(sorted(mirrored.get(number, number) for number in label))


def read_clips(video: Reader | WatchedReader, clips: Sequence[Sequence[int]], size: tuple[int, int]) -> list[Tensor]:
    """The frames of each clip, uint8 (T, C, *size), decoded in one pass.

    clips: the frame numbers of each. A frame that several of them share is decoded once.
    """
    wanted = sorted({number for numbers in clips for number in numbers})
    place = {number: row for row, number in enumerate(wanted)}
    frames = video.frames(wanted, size=size).permute(0, 3, 1, 2)  # (T, C, H, W)
    return [frames[[place[number] for number in numbers]] for numbers in clips]


def read_views(
    video: Reader | WatchedReader, clips: Sequence[Sequence[int]], clip: ClipSpec, crops: int | str
) -> Tensor:
    """The views of an open video, uint8 (V, C, T, H, W): `crops` of each clip, one clip after another.

    clips: the frame numbers of each.
    """
    frames = read_clips(video, clips, decoded_size(video.info, clip.short_side))
    return torch.cat([views(one, clip, crops) for one in frames])


def decoded_size(info: VideoInfo, short_side: int) -> tuple[int, int]:
    """(height, width) to decode a video at: its own, or smaller so that the short side is `short_side` pixels.

    >>> decoded_size(VideoInfo(num_frames=1, fps=30, height=1080, width=1920), 256)
    (256, 455)
    >>> decoded_size(VideoInfo(num_frames=1, fps=30, height=320, width=240), 256)
    (320, 240)
    """
    if min(info.height, info.width) <= short_side:
        return info.height, info.width
    return short_side_size(info.height, info.width, short_side)


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """A batch of items: clips uint8 (B, V, C, T, H, W), labels int64 (B,) or float32 (B, K), videos and seeds int64
    (B,), short and blank bool (B,), seed (one for what is random in a training step), unreadable [(video, message)],
    seconds (that reading all of them took) and times (B, clips, T), which are empty in training.

    B counts the items with clips and may be 0; blank are those of them that could not be read. Where clips differ in
    size, or nothing can be read as things are, there is no batch but a dict of error, the message: raised in a worker
    it would come with its traceback.
    """
    refused = next((item["refused"] for item in items if "refused" in item), None)
    if refused is not None:
        return {"error": refused}
    shown = [item for item in items if "clips" in item]
    sizes = {tuple(item["clips"].shape[-2:]) for item in shown}
    if len(sizes) > 1:
        listed = ", ".join(f"{height} x {width}" for height, width in sorted(sizes))
        return {"error": f"whole pictures of different sizes ({listed}) cannot share a batch; set eval_batch_size to 1"}
    if shown:
        clips = default_collate([item["clips"] for item in shown])  # in a worker, straight into shared memory
    else:
        clips = torch.empty((0, *items[0]["shape"]), dtype=torch.uint8)
    times = [item["times"] for item in shown if "times" in item]
    labels = torch.stack([torch.as_tensor(item["label"]) for item in items])
    return {
        "clips": clips,
        "labels": labels[["clips" in item for item in items]],
        "videos": torch.tensor([item["video"] for item in shown], dtype=torch.int64),
        "short": torch.tensor([item["short"] for item in shown], dtype=torch.bool),
        "times": torch.stack(times) if times else torch.empty(0),
        "seeds": torch.tensor([item["seed"] for item in shown], dtype=torch.int64),
        "seed": batch_seed(item["seed"] for item in shown),
        "blank": torch.tensor(["error" in item for item in shown], dtype=torch.bool),
        "unreadable": [(item["video"], item["error"]) for item in items if "error" in item],
        "seconds": sum(item["seconds"] for item in items),
    }
