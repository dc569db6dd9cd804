"""Videos as a DataLoader takes them: one random clip of each to train on, or the same views of it every time.

Shapes: B videos, V views of each, C channels, T frames, H x W pixels. Pixels are uint8; normalisation is the model's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lightning_csn.clip import ClipSpec
from lightning_csn.data.samples import Sample
from lightning_csn.data.sampling import random_clip, resample, spread_clips
from lightning_csn.data.transforms import SCALE, TrainTransform, short_side_size, views
from lightning_csn.data.video import Video, VideoError, VideoInfo

Item = dict[str, Any]


class VideoDataset(Dataset[Item]):
    """The videos of a split.

    An item is a dict: video (its number in the split), label, clips, uint8 (V, C, T, H, W), and short (whether the
    video is shorter than a clip, so that its last frame is repeated). A video that cannot be
    read is a dict of video, error (the message, with the path) and shape (that of its clips); it is never replaced by
    another one, and what is to be done about it is for the DataModule.

    samples: item i is samples[i].
    clip: how clips look. A video is first brought to clip.fps; one that is too short repeats its last frame.
    train: one clip at a random time, cut and scaled at random to crop x crop, mirrored with probability `flip`.
        Otherwise `clips` clips spread evenly, their short side scaled to short_side, and `crops` squares of
        test_crop x test_crop in each: V = clips * crops, the crops of one clip next to each other.
    scale: smallest and largest share of the picture's area that a random cut takes.
    mirrored: number of a class -> number of the class that its mirror image shows, for those that change.

    Random numbers come from torch's global generator, which a DataLoader seeds in each worker.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        clip: ClipSpec,
        *,
        train: bool,
        clips: int = 1,
        crops: int = 1,
        flip: float = 0.5,
        scale: tuple[float, float] = SCALE,
        mirrored: Mapping[int, int] | None = None,
    ) -> None:
        self.samples = samples
        self.clip = clip
        self.train = train
        self.clips = clips
        self.crops = crops
        self.mirrored = dict(mirrored or {})
        self._transform = TrainTransform(clip, flip=flip, scale=scale)
        # The smallest cut of a larger picture would be made smaller still: the picture is decoded at this size at once.
        self._largest_side = math.ceil(clip.crop / math.sqrt(scale[0]))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        path, label, number, _ = self.samples[index]
        assert isinstance(label, int)
        try:
            with Video(path) as video:
                numbers = resample(video.info.num_frames, video.info.fps, self.clip.fps)
                if self.train:
                    clips, mirrored = self._random_clip(video, numbers)
                else:
                    clips, mirrored = self._spread_clips(video, numbers), False
        except VideoError as error:
            return {"video": number, "error": str(error), "shape": self.shape}
        label = self.mirrored.get(label, label) if mirrored else label
        return {"video": number, "label": label, "clips": clips, "short": len(numbers) < self.clip.span}

    @property
    def shape(self) -> tuple[int, ...]:
        """(V, C, T, H, W) of every item's clips."""
        side = self.clip.crop if self.train else self.clip.test_crop
        return (1 if self.train else self.clips * self.crops, 3, self.clip.frames, side, side)

    def _random_clip(self, video: Video, numbers: Sequence[int]) -> tuple[Tensor, bool]:
        """One clip, (1, C, T, H, W), and whether it is mirrored."""
        chosen = random_clip(len(numbers), length=self.clip.frames, step=self.clip.step)
        size = decoded_size(video.info, self._largest_side)
        frames = video.frames([numbers[i] for i in chosen], size=size)  # (T, H, W, C)
        view, mirrored = self._transform(frames.permute(0, 3, 1, 2))
        return view[None], mirrored

    def _spread_clips(self, video: Video, numbers: Sequence[int]) -> Tensor:
        clips = spread_clips(len(numbers), length=self.clip.frames, step=self.clip.step, count=self.clips)
        return read_views(video, [[numbers[i] for i in chosen] for chosen in clips], self.clip, self.crops)


def read_views(video: Video, clips: Sequence[Sequence[int]], clip: ClipSpec, crops: int) -> Tensor:
    """The views of an open video, uint8 (V, C, T, H, W): `crops` squares of each clip, one clip after another.

    clips: the frame numbers of each. A frame that several of them share is decoded once.
    """
    wanted = sorted({number for numbers in clips for number in numbers})
    place = {number: row for row, number in enumerate(wanted)}
    frames = video.frames(wanted, size=decoded_size(video.info, clip.short_side)).permute(0, 3, 1, 2)  # (T, C, H, W)
    return torch.cat([views(frames[[place[number] for number in numbers]], clip, crops) for numbers in clips])


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
    """A batch of items: clips uint8 (B, V, C, T, H, W), labels and videos int64 (B,), short bool (B,), and
    unreadable [(video, message)].

    B counts the readable videos alone and may be 0.
    """
    readable = [item for item in items if "error" not in item]
    unreadable = [(item["video"], item["error"]) for item in items if "error" in item]
    if readable:
        clips = default_collate([item["clips"] for item in readable])  # in a worker, straight into shared memory
    else:
        clips = torch.empty((0, *items[0]["shape"]), dtype=torch.uint8)
    return {
        "clips": clips,
        "labels": torch.tensor([item["label"] for item in readable], dtype=torch.int64),
        "videos": torch.tensor([item["video"] for item in readable], dtype=torch.int64),
        "short": torch.tensor([item["short"] for item in readable], dtype=torch.bool),
        "unreadable": unreadable,
    }
