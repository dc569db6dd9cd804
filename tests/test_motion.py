"""The motion set: labelled by motion alone, whole or not there, the same every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lightning_csn.data import motion
from lightning_csn.data.motion import MOTION_CLASSES, make_motion, random_scene, render
from lightning_csn.errors import InputError

OPPOSITES = {"left": "right", "up": "down", "clockwise": "counter-clockwise", "nearer": "farther"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_motion(tmp_path_factory.mktemp("motion") / "set", train=2, val=0, test=1, seed=3)


def records(folder: Path) -> list[dict]:
    return json.loads((folder / "motion.json").read_text())["videos"]


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def scenes(label: str, count: int, seed: int = 0) -> list[motion.Scene]:
    return [random_scene(label, np.random.default_rng([seed, number])) for number in range(count)]


def mask_moments(scene: motion.Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y of the sprite's middle and its area in pixels, (T,) each, as it stands on the screen."""
    white = torch.cat([torch.ones(3, 96, 96), scene.sprite[3:]])
    bare = replace(scene, sprite=white, background=torch.zeros_like(scene.background))
    opacity = render(bare)[..., 0].double().numpy() / 255
    area = opacity.sum((1, 2))
    rows, columns = np.arange(opacity.shape[1]), np.arange(opacity.shape[2])
    return opacity.sum(1) @ columns / area, opacity.sum(2) @ rows / area, area


@pytest.mark.parametrize(
    ("label", "way"),
    [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))],
)
def test_the_sprite_moves_where_the_class_says(label, way):
    for scene in scenes(label, 10):
        x, y, _ = mask_moments(scene)
        short_side, seconds = min(scene.size), scene.num_frames / scene.rate
        moved = np.array([x[-1] - x[0], y[-1] - y[0]]) / short_side / seconds
        assert moved @ way > 0.1  # less than its speed where it leaves the frame
        assert abs(moved @ way[::-1]) < 0.08


def test_nearer_grows_and_farther_shrinks():
    for near, far in zip(scenes("nearer", 10), scenes("farther", 10), strict=True):
        near_area, far_area = mask_moments(near)[2], mask_moments(far)[2]
        assert near_area[-1] > 1.3 * near_area[0]
        assert far_area[0] > 1.3 * far_area[-1]


@pytest.mark.parametrize(("label", "sign"), [("clockwise", 1), ("counter-clockwise", -1)])
def test_clockwise_turns_as_the_hand_of_a_clock_does_on_the_screen(label, sign):
    for scene in scenes(label, 5):
        poses = np.zeros_like(scene.poses)
        poses[:, 2] = scene.poses[:, 2] - scene.poses[0, 2]  # in the middle, turned from upright
        poses[:, 3] = -1.0
        colours = torch.zeros(4, 96, 96)
        colours[:, :40, 44:52] = 1  # a hand that points up
        hand = replace(scene, poses=poses, sprite=colours, background=torch.zeros_like(scene.background))
        later = round(0.4 * scene.rate)  # a quarter of a turn at most
        columns = np.arange(scene.size[1]) - (scene.size[1] - 1) / 2
        right_of_the_middle = render(hand)[later, ..., 0].double().sum(0).numpy() @ columns
        assert sign * right_of_the_middle > 0


def test_opposite_classes_are_time_reversals_of_each_other():
    for label, opposite in OPPOSITES.items():
        for scene, other in zip(scenes(label, 3), scenes(opposite, 3), strict=True):
            np.testing.assert_allclose(scene.poses, other.poses[::-1], atol=1e-12)
            assert torch.equal(scene.background, other.background)


def test_position_angle_and_size_have_one_distribution_in_every_class():
    quantiles = np.linspace(0.05, 0.95, 10)
    spreads = {}
    for label in MOTION_CLASSES[::2]:
        rng = np.random.default_rng(0)
        poses = []
        for _ in range(400):
            scene = random_scene_without_textures(label, rng)
            poses.append(scene.poses[rng.integers(scene.num_frames, size=20)])
        spreads[label] = np.quantile(np.concatenate(poses), quantiles, axis=0)
    spread = np.stack(list(spreads.values()))  # (class, quantile, x y angle size)
    assert (np.ptp(spread, axis=0) < [0.06, 0.06, 0.6, 0.12]).all()
    assert (np.ptp(spread, axis=1) > [0.3, 0.3, 5, 0.5]).all()


def random_scene_without_textures(label: str, rng: np.random.Generator) -> motion.Scene:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(motion, "_texture", lambda rng, height, width, period: torch.zeros(3, 2, 2))
        patch.setattr(motion, "_shape", lambda rng, side: torch.zeros(2, 2))
        return random_scene(label, rng)


def test_single_frames_do_not_tell_the_class_and_motion_does():
    """Logistic regression on pixels of single frames against differences of two frames, on held-out videos."""
    generator = torch.Generator().manual_seed(0)
    frames, labels = [], []
    for label in ("left", "right", "nearer", "farther"):
        for scene in scenes(label, 60, seed=MOTION_CLASSES.index(label)):
            x, _, area = mask_moments(replace(scene, poses=scene.poses[[0, -1]]))
            moment = int(torch.randint(scene.num_frames, (), generator=generator))
            image = render(replace(scene, poses=scene.poses[[moment]]))  # (1, H, W, C)
            video = torch.nn.functional.adaptive_avg_pool2d(image.permute(0, 3, 1, 2).double(), 12).flatten()
            change = [x[-1] - x[0], np.log(area[-1] / area[0])]
            frames.append((video / 255, torch.tensor(change)))
            labels.append(MOTION_CLASSES.index(label))
    targets = torch.tensor(labels).unique(return_inverse=True)[1]

    def accuracy(features: torch.Tensor) -> float:
        features = (features - features.mean(0)) / features.std(0)
        held_out = torch.arange(len(features)) % 2 == 0
        one_hot = torch.nn.functional.one_hot(targets).double()
        ones = torch.ones(len(features), 1, dtype=torch.double)
        features = torch.cat([features, ones], 1)
        trained = features[~held_out]
        ridge = trained.T @ trained + 10 * torch.eye(trained.shape[1], dtype=torch.double)
        weights = torch.linalg.solve(ridge, trained.T @ one_hot[~held_out])
        return ((features[held_out] @ weights).argmax(1) == targets[held_out]).double().mean().item()

    assert accuracy(torch.stack([frame for frame, _ in frames])) < 0.4  # chance is 0.25, of 120 videos
    assert accuracy(torch.stack([change for _, change in frames])) > 0.8


def test_folders_hold_the_classes_and_the_list_tells_the_truth(folder):
    assert sorted(path.name for path in (folder / "train").iterdir()) == sorted(MOTION_CLASSES)
    assert sorted(path.name for path in folder.iterdir()) == ["README.txt", "motion.json", "test", "train"]
    assert "2 videos per class, 0 in val/ and 1 in test/" in (folder / "README.txt").read_text()
    videos = records(folder)
    assert len(videos) == 24
    assert {video["file"] for video in videos} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4")
    }
    for video in videos[::5]:
        with av.open(str(folder / video["file"])) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert [stream.height, stream.width] == video["size"]
            assert float(stream.average_rate) == video["fps"]
            assert sum(1 for _ in container.decode(video=0)) == video["frames"]


def test_sizes_rates_and_lengths_vary_in_every_class_alike(folder):
    videos = records(folder)
    assert len({tuple(video["size"]) for video in videos}) > 3
    assert any(height > width for height, width in (video["size"] for video in videos))
    assert any(height < width for height, width in (video["size"] for video in videos))
    assert len({video["fps"] for video in videos}) > 3
    assert all(1.1 < video["frames"] / video["fps"] < 2.5 for video in videos)


def test_encoding_keeps_what_was_drawn(folder):
    scene = random_scene("left", np.random.default_rng([3, 0, 0, 1]))
    decoded = decode(folder / "train/left/left_0001.mp4")
    assert decoded.shape == (scene.num_frames, *scene.size, 3)
    assert np.abs(decoded.astype(float) - render(scene).numpy()).mean() < 6


def test_no_texture_occurs_twice(folder):
    firsts = [decode(path)[0].mean((0, 1)) for path in sorted(folder.rglob("*.mp4"))]
    distances = np.abs(np.stack(firsts)[:, None] - np.stack(firsts)[None]).max(-1)
    assert (distances[~np.eye(len(firsts), dtype=bool)] > 0.2).all()


def test_the_same_seed_makes_the_same_files_and_another_seed_others(tmp_path, folder):
    again = make_motion(tmp_path / "again", train=2, val=0, test=1, seed=3, workers=1)
    for path in sorted(folder.rglob("*.*")):
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes(), path
    other = make_motion(tmp_path / "other", train=1, val=0, test=0, seed=4)
    assert (other / "train/left/left_0001.mp4").read_bytes() != (folder / "train/left/left_0001.mp4").read_bytes()


def test_a_folder_with_this_set_is_left_and_any_other_refused(tmp_path, folder):
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_motion(folder, train=2, val=0, test=1, seed=3) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    for other in ({"train": 3, "seed": 3}, {"train": 2, "seed": 4}):
        with pytest.raises(InputError, match="not empty and does not hold this motion set"):
            make_motion(folder, **other, val=0, test=1)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        make_motion(tmp_path, train=1, val=0, test=0)


def test_an_interrupted_set_leaves_nothing(tmp_path, monkeypatch):
    def break_down(path, frames, rate):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(motion, "_encode", break_down)
    with pytest.raises(InputError, match="set: the motion set cannot be written: No space left"):
        make_motion(tmp_path / "set", train=1, val=0, test=0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"file/set: the motion set cannot be written: Not a directory"):
        make_motion(tmp_path / "file" / "set", train=1, val=0, test=0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0, "val": 0, "test": 0}, "motion set without videos"),
        ({"train": -1}, "train must be a whole number of 0 or more, got -1"),
        ({"seed": -1}, "seed must be a whole number of 0 or more, got -1"),
    ],
)
def test_impossible_numbers_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        make_motion(tmp_path / "set", **options)
