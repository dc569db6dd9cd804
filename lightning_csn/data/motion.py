"""A small labelled set of videos that only motion can tell apart, made on the spot.

A textured sprite moves over a textured background in one of eight ways (MOTION_CLASSES). Two classes that are each
other's opposite are time reversals of each other, and in every class the position, angle and size of the sprite have
the same distribution over the frames: what a class does not move, it draws with the spread that the others give it.
So no single frame says anything about the class, and neither does the background, which drifts in any direction.

Lengths are in short sides of the frame, from its centre, x to the right and y down; times in seconds.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.codec.codec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_csn.data.crew import usable_processors
from lightning_csn.errors import InputError, check_count

_log = logging.getLogger(__name__)

MOTION_CLASSES = ("left", "right", "up", "down", "clockwise", "counter-clockwise", "nearer", "farther")

_MOVES = {  # class -> which of x, y, angle and log size it changes, and whether that grows
    "left": ("x", -1),
    "right": ("x", 1),
    "up": ("y", -1),
    "down": ("y", 1),
    "clockwise": ("angle", 1),  # y points down: a growing angle turns clockwise on the screen
    "counter-clockwise": ("angle", -1),
    "nearer": ("log_size", 1),
    "farther": ("log_size", -1),
}
_SPEEDS = {"x": (0.22, 0.34), "y": (0.22, 0.34), "angle": (1.4, 2.4), "log_size": (0.32, 0.48)}  # per second
_MIDDLES = {"x": (-0.04, 0.04), "y": (-0.04, 0.04), "angle": (-math.pi, math.pi), "log_size": (-1.50, -1.25)}
_SECONDS = (1.2, 2.4)
_RATES = (12, 15, 20, 24, 25, 30)
_SIZES = ((96, 128), (128, 96), (112, 112), (120, 160), (160, 120), (104, 144), (144, 104), (128, 128))  # height, width
_DRIFT = (0.04, 0.16)  # short sides per second, of the background
_SPLITS = ("train", "val", "test")
_RECIPE = 1  # raised whenever the same seed would no longer make the same videos


def make_motion(
    folder: str | os.PathLike[str],
    *,
    train: int = 60,
    val: int = 15,
    test: int = 25,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Write the motion set into `folder`: train/left/left_0001.mp4 and so on, a README.txt and motion.json.

    train, val, test: videos per class. Every video draws its own textures, so no two splits share one.
    workers: threads that draw and encode; None takes one per processor. The files do not depend on it.

    The videos are h264, 96 to 160 pixels a side, 12 to 30 frames per second and 1.2 to 2.4 seconds long. The set is
    written beside `folder` and renamed into place when it is whole. A folder that holds this very set already is left
    as it is; InputError for one that holds anything else or cannot be written, and where av lacks the libx264 encoder.
    """
    target = Path(folder)
    counts = {"train": train, "val": val, "test": test}
    for name, number in (*counts.items(), ("seed", seed)):
        check_count(name, number, least=0)
    if not any(counts.values()):
        raise InputError("a motion set without videos: train, val and test are all 0")
    recipe = {"recipe": _RECIPE, "seed": seed, **counts}
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if _recipe_of(target) == recipe and all((target / file).is_file() for *_, file in _files(counts)):
            _log.info("%s holds this motion set already", target)
            return target
        raise InputError(
            f"{target} is not empty and does not hold this motion set; name another folder or empty this one"
        )
    try:
        av.codec.Codec("libx264", "w")
    except av.codec.codec.UnknownCodecError as error:
        raise InputError(
            "the motion set is h264 and this av cannot encode it (no libx264); av's wheels from PyPI can"
        ) from error

    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        _write(partial, counts, seed, workers or usable_processors(), recipe)
        if target.exists():
            target.rmdir()  # it is empty; Windows renames onto nothing that exists
        partial.rename(target)
    except OSError as error:
        raise InputError(f"{target}: the motion set cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # it is there if not all was written
    _log.info("%s: %d videos of %d classes", target, sum(counts.values()) * len(MOTION_CLASSES), len(MOTION_CLASSES))
    return target


def _files(counts: dict[str, int]) -> Iterator[tuple[str, str, int, str]]:
    """Split, class, number and path within the set, of every video."""
    for split, count in counts.items():
        for label in MOTION_CLASSES:
            for number in range(1, count + 1):
                yield split, label, number, f"{split}/{label}/{label}_{number:04d}.mp4"


def _recipe_of(folder: Path) -> dict[str, Any] | None:
    try:
        written = json.loads((folder / "motion.json").read_text(encoding="utf-8"))
        return written["made_with"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no motion set


def _write(folder: Path, counts: dict[str, int], seed: int, workers: int, recipe: dict[str, Any]) -> None:
    def make(video: tuple[str, str, int, str]) -> dict[str, Any]:
        split, label, number, file = video
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        place = [seed, _SPLITS.index(split), MOTION_CLASSES.index(label), number]
        scene = random_scene(label, np.random.default_rng(place))
        _encode(path, render(scene), scene.rate)
        height, width = scene.size
        return {"file": file, "label": label, "frames": scene.num_frames, "fps": scene.rate, "size": [height, width]}

    with ThreadPoolExecutor(workers) as pool:  # grid_sample and the encoder run outside the interpreter's lock
        videos = list(pool.map(make, _files(counts)))
    lines = [json.dumps(video) for video in videos]
    (folder / "motion.json").write_text(
        '{"made_with": ' + json.dumps(recipe) + ',\n"videos": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8"
    )
    (folder / "README.txt").write_text(_README.format(**counts, seed=seed), encoding="utf-8")


_README = """The motion set of lightning_csn: made-up videos in eight classes that no single frame tells apart.

A textured sprite moves over a background that drifts in any direction. The class is what the sprite does on the screen:
  left, right, up, down           it moves there; the background does not matter
  clockwise, counter-clockwise    it turns
  nearer, farther                 it grows, it shrinks

train/CLASS/CLASS_0001.mp4 and so on, {train} videos per class, {val} in val/ and {test} in test/; no texture
occurs twice.
motion.json lists the videos with their size, rate and length.
Made again with: lightning-csn make-motion FOLDER --train {train} --val {val} --test {test} --seed {seed}
Anybody may do anything with these videos.
"""


@dataclass(frozen=True)
class Scene:
    """One video before it is drawn.

    size: height and width in pixels. rate: frames per second. poses: float64 (T, 4), the sprite's x, y, angle in
    radians and log size (its radius in short sides) in each frame. drift: x and y of the background per second.
    sprite: float32 (4, S, S), its colours and its opacity, 0 to 1. background: float32 (3, H', W'), larger than the
    frame by what it drifts.
    """

    size: tuple[int, int]
    rate: int
    poses: np.ndarray
    drift: tuple[float, float]
    sprite: Tensor
    background: Tensor

    @property
    def num_frames(self) -> int:
        """How many frames the video has."""
        return len(self.poses)


def random_scene(label: str, rng: np.random.Generator) -> Scene:
    """Draw a scene of a class; everything but the motion comes from the same distribution in every class."""
    height, width = _SIZES[rng.integers(len(_SIZES))]
    rate = _RATES[rng.integers(len(_RATES))]
    num_frames = round(rng.uniform(*_SECONDS) * rate)
    moment = (np.arange(num_frames) + 0.5) / num_frames - 0.5  # -1/2 to 1/2 over the video
    poses = np.empty((num_frames, 4))
    moving, sign = _MOVES[label]
    for column, (name, (slowest, fastest)) in enumerate(_SPEEDS.items()):
        way = rng.uniform(slowest, fastest) * num_frames / rate
        still = rng.uniform(-0.5, 0.5)  # a moment of that way: what does not move is where a moving one would be
        middle = rng.uniform(*_MIDDLES[name])
        poses[:, column] = middle + way * (sign * moment if name == moving else still)
    direction, speed = rng.uniform(-math.pi, math.pi), rng.uniform(*_DRIFT)
    drift = (speed * math.cos(direction), speed * math.sin(direction))

    short_side = min(height, width)
    margin = math.ceil(speed * num_frames / rate * short_side) + 2
    background = _texture(rng, height + margin, width + margin, period=rng.uniform(0.25, 0.5) * short_side)
    background = background.mean((1, 2), keepdim=True).lerp(background, 0.5)  # fainter than the sprite
    side = 96
    sprite = _texture(rng, side, side, period=rng.uniform(0.3, 0.5) * side)
    return Scene((height, width), rate, poses, drift, torch.cat([sprite, _shape(rng, side)[None]]), background)


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Tensor:
    """Smooth noise (H, W) between 0 and 1, whose blots are about `cell` pixels."""
    coarse = torch.from_numpy(rng.normal(size=(1, 1, round(height / cell) + 3, round(width / cell) + 3)))
    fine = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0, 0]
    return (2 * fine).sigmoid()


def _texture(rng: np.random.Generator, height: int, width: int, *, period: float) -> Tensor:
    """Noise, stripes or checks in three colours, (3, H, W) between 0 and 1, `period` in pixels.

    Stripes and checks look the same after half or a quarter of a turn; the blots of a third colour tell the way.
    """
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    angle, start = rng.uniform(-math.pi, math.pi), rng.uniform(-math.pi, math.pi, 2)
    along = (2 * math.pi / period * (math.cos(angle) * x + math.sin(angle) * y) + start[0]).sin()
    across = (2 * math.pi / period * (math.cos(angle) * y - math.sin(angle) * x) + start[1]).sin()
    noise = _noise(rng, height, width, period / 2)
    pattern = (noise, (4 * along).sigmoid(), (6 * along * across).sigmoid())[rng.integers(3)]
    first = second = blot = rng.uniform(0, 1, 3)
    while np.linalg.norm(first - second) < 0.7:  # a pattern that cannot be seen cannot be seen moving
        first, second = rng.uniform(0, 1, 3), rng.uniform(0, 1, 3)
    while min(np.linalg.norm(first - blot), np.linalg.norm(second - blot)) < 0.5:
        blot = rng.uniform(0, 1, 3)
    first_colour, second_colour, blot_colour = (torch.from_numpy(c)[:, None, None] for c in (first, second, blot))
    image = first_colour.lerp(second_colour, pattern)
    weight = ((_noise(rng, height, width, period) - 0.6) * 12).sigmoid()
    return image.lerp(blot_colour, weight).float()


def _shape(rng: np.random.Generator, side: int) -> Tensor:
    """Opacity (S, S) of a round, three- to six-cornered or dented shape that fills most of the square."""
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    angle, radius = torch.atan2(y, x) + rng.uniform(-math.pi, math.pi), torch.hypot(x, y)
    corners = int(rng.integers(3, 7))
    edge = (
        torch.full_like(angle, 0.85),
        0.9 * math.cos(math.pi / corners) / (angle.remainder(2 * math.pi / corners) - math.pi / corners).cos(),
        0.75 + 0.15 * (corners * angle).cos(),
    )[rng.integers(3)]
    return ((edge - radius) * side / 4).sigmoid().float()


def render(scene: Scene) -> Tensor:
    """The frames of a scene, uint8 (T, H, W, C)."""
    height, width = scene.size
    short_side = min(height, width)
    poses = torch.from_numpy(scene.poses)
    x, y, angle, log_size = poses.float()[:, :, None, None].unbind(1)  # each (T, 1, 1)
    rows = (torch.arange(height) + 0.5 - height / 2)[None, :, None] / short_side
    columns = (torch.arange(width) + 0.5 - width / 2)[None, None, :] / short_side
    dx, dy = columns - x, rows - y
    size = log_size.exp()
    turned = torch.stack(
        [(angle.cos() * dx + angle.sin() * dy) / size, (angle.cos() * dy - angle.sin() * dx) / size], dim=-1
    )  # (T, H, W, 2)
    sprite = F.grid_sample(scene.sprite.expand(len(poses), -1, -1, -1), turned, align_corners=False)  # (T, 4, H, W)

    full_height, full_width = scene.background.shape[1:]
    seconds = (torch.arange(len(poses)) - (len(poses) - 1) / 2)[:, None, None] / scene.rate
    from_centre = torch.stack(
        torch.broadcast_tensors(columns - scene.drift[0] * seconds, rows - scene.drift[1] * seconds), -1
    )
    grid = from_centre * torch.tensor([2 * short_side / full_width, 2 * short_side / full_height])
    background = F.grid_sample(
        scene.background.expand(len(poses), -1, -1, -1), grid, align_corners=False
    )  # (T, 3, H, W)

    frames = background.lerp(sprite[:, :3], sprite[:, 3:])
    return (frames * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _encode(path: Path, frames: Tensor, rate: int) -> None:
    """Write uint8 (T, H, W, C) as h264, the same bytes every time."""
    # x264's macroblock tree does not give the same bytes twice on frames as small as these, not even in one thread
    options = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, rate)
        stream.codec_context.thread_count = 1
        for image in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
