"""How fast the workers of a DataLoader read clips and cut them for training, all at once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset

from lightning_csn.clip import ClipSpec
from lightning_csn.data.crew import usable_processors
from lightning_csn.data.dataset import VideoDataset
from lightning_csn.data.samples import Sample
from lightning_csn.errors import InputError

CROP, SHORT_SIDE = 224, 256  # of training clips
START_SECONDS = 120.0  # that processes may take to import torch, on a busy machine


def training_clip(clip: tuple[int, int]) -> ClipSpec:
    """How clips are cut in training, by the published weights' crop."""
    gray = (0.5, 0.5, 0.5)
    return ClipSpec(
        frames=clip[0], step=clip[1], fps=None, short_side=SHORT_SIDE, crop=CROP, test_crop=CROP, mean=gray, std=gray
    )


def measure_dataset(paths: Sequence[str], spec: ClipSpec, *, workers: int, clips_each: int) -> dict[str, Any]:
    """Clips a second that so many workers of a DataLoader read and cut, all at once, per core.

    The clock runs from when all have started, each waiting for the others, to the end of the last clip.
    """
    samples = [Sample(path, 0, number) for number, path in enumerate(paths)]
    dataset = Stamped(VideoDataset(samples, spec, train=True), length=workers * clips_each)
    together = partial(wait_for_all, multiprocessing.Barrier(workers))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores, on purpose
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=together)
        begins, ends, cpu_seconds = zip(*loader, strict=True)
    in_cores = min(workers, usable_processors())
    rate = len(ends) / (max(ends) - min(begins))
    return {
        "workers": workers,
        "cores": in_cores,
        "crop": spec.crop,
        "clips_per_second": rate,
        "clips_per_second_per_core": rate / in_cores,
        "clips_per_cpu_second": len(ends) / sum(cpu_seconds),
    }


def wait_for_all(barrier: Any, worker: int) -> None:
    """Have a worker wait until all are there."""
    barrier.wait(START_SECONDS)


class Stamped(Dataset[tuple[float, float, float]]):
    """A dataset over and over, of which only clocks travel back: when a clip was begun and done, what it took."""

    def __init__(self, dataset: VideoDataset, length: int) -> None:
        self.dataset = dataset
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[float, float, float]:
        begin, cpu = time.perf_counter(), time.process_time()
        item = self.dataset[index % len(self.dataset)]
        if "error" in item:
            raise InputError(item["error"])
        return begin, time.perf_counter(), time.process_time() - cpu
