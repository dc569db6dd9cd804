"""An augmented clip is changed alike in every frame, and by nothing but the seed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lightning_csn.data.augment import (
    OPERATIONS,
    Augment,
    apply_to_batch,
    erase,
    jitter_colours,
    rotate,
    sharpen,
    strengths,
)
from lightning_csn.errors import InputError

EVERYTHING = [
    Augment("randaugment"),
    Augment("randaugment", magnitude=30, num_ops=4),
    Augment("trivialaugment"),
    Augment("none", color_jitter=0.4),
    Augment("none", erasing=1.0),
    Augment("trivialaugment", color_jitter=0.4, erasing=0.5),
]
AMOUNTS = {"Posterize": 3.0, "Solarize": 0.4, "Rotate": 20.0, "TranslateX": 5.0, "TranslateY": -4.0}  # 0.25 the others


def noise(shape: tuple[int, ...] = (3, 4, 20, 24), seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def scene(frames: int = 1, height: int = 48, width: int = 64) -> torch.Tensor:
    """uint8 (3, T, H, W), smooth, every frame the same, values 40 to 215."""
    small = 40 + noise((1, 3, 3, 4)).float() * 175 / 255
    picture = F.resize(small, [height, width]).round().to(torch.uint8)
    return picture.transpose(0, 1).repeat(1, frames, 1, 1)


@pytest.mark.parametrize("augment", EVERYTHING)
def test_a_clip_of_equal_frames_stays_one_and_is_changed(augment):
    clip, changed = scene(frames=4), 0
    for seed in range(30):
        found = augment(clip, seed)
        assert found.shape == clip.shape
        assert found.dtype == torch.uint8
        assert torch.equal(found, found[:, :1].expand_as(found))
        changed += not torch.equal(found, clip)
    assert changed > 15


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"Identity"}))
def test_an_operation_treats_a_pixel_alike_whatever_else_its_frame_shows(name):
    """A clip that grows dark still does so: frame 1 is the upper half of frame 0, its lower half is black.

    Torchvision's AutoContrast, Equalize and Contrast, frame by frame, would brighten it.
    """
    clip = scene(frames=2)
    clip[:, 1, 24:] = 0
    found = OPERATIONS[name](clip, AMOUNTS.get(name, 0.25))
    assert not torch.equal(found, clip)
    whole, dark = found[:, 0, :16, :], found[:, 1, :16, :]  # 16 of 24: what is sharpened, moved or turned stays inside
    came_up = (
        (dark == 0).all(0) if name in ("Rotate", "TranslateY", "ShearY") else torch.zeros(16, 64, dtype=torch.bool)
    )
    assert torch.equal(whole[:, ~came_up], dark[:, ~came_up])
    assert came_up.float().mean() < 0.5


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_one_frame_is_changed_as_torchvision_changes_it(policy):
    """The same numbers are drawn and the same is done; where a pixel lies half way between two, either may be taken."""
    frame, seen = scene(), Counter()
    for seed in range(250):
        magnitude = seed % 31
        peer = v2.TrivialAugmentWide() if policy == "trivialaugment" else v2.RandAugment(num_ops=2, magnitude=magnitude)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = peer(frame.transpose(0, 1)).transpose(0, 1)
        found = Augment(policy, num_ops=2, magnitude=magnitude)(frame, seed)
        apart = (found.int() - expected.int()).abs()
        seen[int(apart.amax() > 0)] += 1
        assert (apart > 12).float().mean() < 0.03, seed
    assert seen[0] > 150


@pytest.mark.parametrize("degrees", [-130.0, -20.0, 7.0, 90.0])
def test_turning_is_torchvisions(degrees):
    clip = noise((3, 2, 20, 30))
    expected = F.rotate(clip.transpose(0, 1), degrees).transpose(0, 1)
    assert (rotate(clip, degrees) != expected).float().mean() < 0.01


@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 1.9])
@pytest.mark.parametrize("size", [(20, 24), (3, 3), (2, 9), (1, 1)])
def test_sharpening_is_torchvisions(factor, size):
    clip = noise((3, 2, *size))
    expected = F.adjust_sharpness(clip.transpose(0, 1), factor).transpose(0, 1)
    assert (sharpen(clip, factor).int() - expected.int()).abs().max() <= 1
    assert (sharpen(clip, factor) != expected).float().mean() < 0.02


def test_every_operation_is_drawn_and_goes_both_ways():
    frame = scene()
    kinds = {
        bytes(Augment("randaugment", num_ops=1, magnitude=20)(frame, seed).numpy().tobytes()) for seed in range(600)
    }
    both_ways = sum(ends[0] == 0 for ends in strengths("randaugment", 48, 64).values())
    assert len(kinds) == len(OPERATIONS) + both_ways


@pytest.mark.parametrize("augment", EVERYTHING)
def test_a_clip_and_a_seed_make_a_clip_and_leave_torchs_numbers_alone(augment):
    clip = noise()
    before = clip.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = [augment(clip, seed) for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(clip, before)
    torch.rand(7)
    again = [augment(clip, seed) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.numpy().tobytes() for a in first}) > 10


@pytest.mark.parametrize("augment", EVERYTHING)
def test_the_layout_of_a_clip_does_not_matter(augment):
    clip = noise((4, 20, 24, 3)).permute(3, 0, 1, 2)
    for seed in range(10):
        assert torch.equal(augment(clip, seed), augment(clip.contiguous(), seed))


def test_views_of_a_batch_are_changed_each_in_its_way():
    augment, clips = Augment("trivialaugment", color_jitter=0.4, erasing=0.5), noise((3, 2, 3, 4, 16, 16))
    seeds = torch.tensor([2**62, 5, -9])
    found = apply_to_batch(augment, clips, seeds)
    assert found.shape == clips.shape
    for b in range(3):
        for v in range(2):
            assert torch.equal(found[b, v], augment(clips[b, v], int(seeds[b]) + v))
    assert apply_to_batch(augment, clips[:0], seeds[:0]).shape == (0, 2, 3, 4, 16, 16)


@pytest.mark.parametrize(
    ("augment", "nothing"),
    [(Augment("none"), True), (Augment("randaugment", num_ops=0), True), *((augment, False) for augment in EVERYTHING)],
)
def test_nothing_says_whether_clips_stay_as_they_are(augment, nothing):
    assert augment.nothing is nothing
    if nothing:
        clips = noise((1, 1, 3, 4, 16, 16))
        assert torch.equal(augment(clips[0, 0], 3), clips[0, 0])
        assert apply_to_batch(augment, clips, torch.tensor([3])) is clips


def test_jitter_changes_the_brightness_by_up_to_its_strength():
    gray = torch.full((3, 2, 8, 8), 100, dtype=torch.uint8)  # which has no contrast and no colour
    levels = [int(jitter_colours(gray, 0.4, torch.Generator().manual_seed(seed)).max()) for seed in range(200)]
    assert 56 <= min(levels) < 66
    assert 134 < max(levels) <= 141


def test_a_rectangle_is_erased_from_every_frame_alike():
    clip = torch.full((3, 4, 60, 80), 255, dtype=torch.uint8)
    shares = []
    for seed in range(100):
        black = (erase(clip, torch.Generator().manual_seed(seed)) == 0)[0, 0]
        rows, columns = black.any(1), black.any(0)
        assert torch.equal(black, rows[:, None] & columns)
        shares.append(float(black.float().mean()))
    assert 0.015 < min(shares) < 0.06
    assert 0.28 < max(shares) < 0.34
    assert sum(torch.equal(Augment("none", erasing=0.3)(clip, seed), clip) for seed in range(300)) in range(180, 240)


def test_a_picture_too_small_to_erase_from_stays():
    clip = torch.full((3, 2, 1, 1), 7, dtype=torch.uint8)
    for augment in EVERYTHING:
        for seed in range(30):
            assert augment(clip, seed).shape == clip.shape
    assert torch.equal(erase(clip, torch.Generator().manual_seed(0)), clip)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", EVERYTHING)
def test_a_gpu_makes_the_same_clips(augment):
    clip = noise((3, 8, 40, 60))
    torch.set_float32_matmul_precision("medium")  # which would move pixels, were they moved by a product of matrices
    try:
        for seed in range(60):
            apart = (augment(clip.cuda(), seed).cpu().int() - augment(clip, seed).int()).abs()
            assert (apart > 1).float().mean() < 0.001  # a value between two levels may be rounded otherwise
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("rand", {}, "augment must be one of none, randaugment, trivialaugment, got 'rand'"),
        ("randaugment", {"magnitude": 31}, "magnitude must be a number from 0 to 30, got 31"),
        ("randaugment", {"magnitude": 2.5}, "magnitude must be a whole number"),
        ("randaugment", {"num_ops": -1}, "num_ops must be a whole number of 0 or more"),
        ("none", {"color_jitter": 1.5}, "color_jitter must be a number from 0 to 1, got 1.5"),
        ("none", {"erasing": -0.1}, "erasing must be a number from 0 to 1, got -0.1"),
    ],
)
def test_names_and_strengths_that_make_no_sense_are_refused(policy, options, message):
    with pytest.raises(InputError, match=message):
        Augment(policy, **options)
