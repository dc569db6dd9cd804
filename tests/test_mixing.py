"""A mixed batch shows two videos, and its targets say how much of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_csn.errors import InputError
from lightning_csn.mixing import Mixer


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    """(N, C, T, H, W): every pixel of clip n is n."""
    return torch.arange(shape[0], dtype=torch.float32).view(-1, 1, 1, 1, 1).expand(shape).clone()


def shares_shown(clips: torch.Tensor) -> torch.Tensor:
    """(N, N): row n says what share of the pixels of mixed clip n comes from each of the `numbered` clips."""
    return torch.stack([(clips == k).float().mean((1, 2, 3, 4)) for k in range(len(clips))], 1)


@pytest.mark.parametrize("shape", [(4, 3, 8, 16, 16), (3, 3, 5, 15, 11), (2, 3, 1, 7, 30), (5, 3, 16, 9, 9)])
def test_cutmix_weighs_labels_by_the_pixels_that_it_shows(shape):
    torch.manual_seed(0)
    mixer = Mixer(shape[0], cutmix=1.0)
    weights = []
    for _ in range(40):
        clips, targets = mixer(numbered(shape), torch.eye(shape[0]))
        assert clips.shape == shape
        torch.testing.assert_close(targets, shares_shown(clips), atol=1e-6, rtol=0)
        weights.append(float(targets[0, 0]))
    assert min(weights) < 0.5
    assert max(weights) > 0.8


def test_cutmix_replaces_the_same_box_in_every_frame():
    torch.manual_seed(0)
    mixer = Mixer(3, cutmix=1.0)
    for _ in range(20):
        clips, _ = mixer(numbered((3, 3, 6, 12, 14)), torch.eye(3))
        assert torch.equal(clips, clips[:, :1, :1].expand_as(clips))
        replaced = clips[0, 0, 0] != 0  # (H, W)
        rows, columns = replaced.any(1), replaced.any(0)
        assert torch.equal(replaced, rows[:, None] & columns)  # a box
        assert all((line.int().diff().abs().sum() <= 2) for line in (rows, columns))  # without gaps


def test_timms_cutmix_is_wrong_on_clips():
    """Why it is not used: it takes T x H for H x W, and counts the pixels of a box that is not the one it cuts."""
    from timm.data.mixup import Mixup

    np.random.seed(0)  # which is where timm draws from
    mixup = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=4)
    wrong, moving = 0, 0
    for _ in range(20):
        clips, targets = mixup(numbered((4, 3, 8, 16, 16)), torch.arange(4))
        wrong += not torch.allclose(targets, shares_shown(clips), atol=1e-6)
        moving += not torch.equal(clips, clips[:, :, :1].expand_as(clips))
    assert wrong > 5
    assert moving > 5


def test_mixup_adds_a_clip_and_the_one_before_it_by_the_share_of_the_targets():
    torch.manual_seed(0)
    clips, mixer = torch.randn(3, 3, 4, 7, 9), Mixer(3, mixup=0.8)
    for _ in range(10):
        mixed, targets = mixer(clips, torch.eye(3))
        share = targets[0, 0]
        torch.testing.assert_close(targets, share * torch.eye(3) + (1 - share) * torch.eye(3).roll(1, 0))
        torch.testing.assert_close(mixed, share * clips + (1 - share) * clips.roll(1, 0))


@pytest.mark.parametrize("option", ["mixup", "cutmix"])
def test_targets_of_several_classes_are_mixed_too(option):
    torch.manual_seed(0)
    targets = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    before = targets.clone()
    _, soft = Mixer(4, **{option: 1.0})(torch.randn(3, 3, 2, 8, 8), targets)
    share = 1 - soft[2, 1]  # clip 2 shows no class, the one before it class 1
    torch.testing.assert_close(soft, share * targets + (1 - share) * targets.roll(1, 0))
    assert 0 < share < 1
    assert torch.equal(targets, before)


def test_one_of_the_two_is_drawn_for_each_batch():
    torch.manual_seed(0)
    mixer, clips = Mixer(3, mixup=0.8, cutmix=1.0), numbered((3, 3, 2, 12, 12))
    cut = sum(bool((mixer(clips, torch.eye(3))[0] % 1 == 0).all()) for _ in range(300))
    assert 110 < cut < 190


def test_share_is_how_often_a_batch_is_mixed():
    torch.manual_seed(0)
    clips, targets = torch.randn(2, 3, 2, 8, 8), torch.eye(2)
    mixer = Mixer(2, mixup=0.8, share=0.25)
    left = sum(mixer(clips, targets)[1] is targets for _ in range(400))
    assert 265 < left < 335
    assert all(Mixer(2, mixup=0.8, share=0.0)(clips, targets)[0] is clips for _ in range(20))


@pytest.mark.parametrize("count", [0, 1])
def test_a_clip_alone_is_left_as_it_is(count):
    clips, targets = torch.randn(count, 3, 2, 8, 8), torch.eye(2)[:count]
    mixed, soft = Mixer(2, mixup=0.8, cutmix=1.0)(clips, targets)
    assert torch.equal(mixed, clips)
    assert torch.equal(soft, targets)


@pytest.mark.parametrize("option", ["mixup", "cutmix"])
def test_a_batch_keeps_its_kind_and_its_layout_and_the_one_given_is_not_changed(option):
    torch.manual_seed(0)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        clips = torch.randn(3, 3, 2, 8, 6).contiguous(memory_format=layout)
        before = clips.clone()
        mixed, soft = Mixer(3, **{option: 1.0})(clips, torch.eye(3))
        assert type(mixed) is type(soft) is torch.Tensor
        assert mixed.stride() == clips.stride()
        assert torch.equal(clips, before)


def test_mixing_draws_from_the_seed():
    clips, mixer = torch.randn(4, 3, 2, 8, 8), Mixer(4, mixup=0.8, cutmix=1.0, share=0.8)
    torch.manual_seed(5)
    first = [mixer(clips, torch.eye(4)) for _ in range(6)]
    torch.manual_seed(5)
    again = [mixer(clips, torch.eye(4)) for _ in range(6)]
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], first[1][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": -0.1}, "mixup must be a number of 0 or more, got -0.1"),
        ({"cutmix": float("nan")}, "cutmix must be"),
        ({"mixup": 1.0, "share": 1.5}, "share must be a number from 0 to 1, got 1.5"),
        ({}, "mixup and cutmix are both 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Mixer(3, **options)
