"""Frames of every kind in red, green and blue; test_video_pixels.py compares them with those of the ffmpeg program."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lightning_csn.data.pixels import Converter


def gray_frame(level: int, pixel_format: str, height: int = 32, width: int = 48) -> av.VideoFrame:
    # Of a width that 16 divides: FFmpeg leaves some of the last columns of narrower pictures of 10 bits as they were.
    image = np.full((height, width, 3), level, dtype=np.uint8)
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixel_format)


def test_frames_and_sizes_may_change_from_one_to_the_next():
    """As in streams that change in the middle: each frame is gray, in whatever way it is kept."""
    converter = Converter()
    kinds = [("yuv420p", 32, 48), ("yuv420p10le", 32, 48), ("yuv444p", 32, 48), ("yuv420p10le", 20, 32), ("gray", 9, 7)]
    for size in [(32, 48), (16, 20), (50, 61)]:
        for level, kind in enumerate(kinds, start=5):
            pixels = converter.convert(gray_frame(20 * level, *kind), size)
            assert pixels.shape == (*size, 3)
            assert (pixels.float() - 20 * level).abs().max() <= 4


def test_one_thread_converts(tmp_path):
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("threads that are not Python's can be counted on Linux only")
    before = set(os.listdir(tasks))  # some may end meanwhile, of what ran before
    converter = Converter()
    for pixel_format in ("yuv420p", "yuv420p10le"):
        converter.convert(gray_frame(50, pixel_format), (16, 16))
    assert set(os.listdir(tasks)) <= before


def test_colours_that_are_between_those_of_half_as_many_are_spread_evenly():
    """Not drawn to the left, as FFmpeg's function does it for 10 bits: what is mirrored first stays mirrored."""
    x = np.tile(np.linspace(0, 255, 16).astype(np.uint8)[None, :, None], (16, 1, 3))
    x[..., 1] = 255 - x[..., 1]
    there, back = (
        Converter().convert(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p10le"), (16, 16))
        for image in (x, np.ascontiguousarray(x[:, ::-1]))
    )
    assert (there.float() - back.flip(1).float()).abs().mean() < 1
    assert torch.equal(there[0], there[-1])
