"""What is cut out of a clip is the same in every frame, and comes from where it was asked for."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from lightning_csn.clip import ClipSpec
from lightning_csn.data.transforms import CROPS, TrainTransform, crop_corners, num_views, short_side_size, views
from lightning_csn.errors import InputError

CLIP = ClipSpec(frames=4, step=1, fps=None, short_side=32, crop=24, test_crop=32, mean=(0.5,) * 3, std=(0.2,) * 3)


def ramp(height: int, width: int, frames: int = 4) -> torch.Tensor:
    """uint8 (T, 3, H, W): red grows downwards, green to the right, each from 0 to 255; blue is the frame's number."""
    picture = torch.empty(frames, 3, height, width)
    picture[:, 0] = torch.linspace(0, 255, height)[:, None]
    picture[:, 1] = torch.linspace(0, 255, width)
    picture[:, 2] = torch.arange(frames)[:, None, None].float()
    return picture.round().to(torch.uint8)


def test_a_training_clip_is_cut_alike_from_every_frame():
    torch.manual_seed(0)
    for _ in range(10):
        clip, _ = TrainTransform(CLIP)(ramp(60, 80))
        assert clip.shape == (3, 4, 24, 24)
        assert clip.dtype == torch.uint8
        assert clip.is_contiguous()
        assert torch.equal(clip[:2], clip[:2, :1].expand_as(clip[:2]))
        assert clip[2, :, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_mirrored_clip_is_the_mirror_image_and_says_so():
    torch.manual_seed(0)
    answers = []
    for _ in range(200):
        clip, mirrored = TrainTransform(CLIP, flip=0.3)(ramp(60, 80))
        assert bool(clip[1, 0, 0, 0] > clip[1, 0, 0, -1]) is mirrored
        answers.append(mirrored)
    assert 30 < sum(answers) < 90
    assert not TrainTransform(CLIP, flip=0.0)(ramp(60, 80))[1]
    assert TrainTransform(CLIP, flip=1.0)(ramp(60, 80))[1]


def test_scale_bounds_what_is_cut_out_near_square():
    torch.manual_seed(0)
    transform = TrainTransform(CLIP, flip=0.0, scale=(0.2, 0.4))
    for _ in range(50):
        clip, _ = transform(ramp(100, 100, frames=1))
        high = (int(clip[0].max()) - int(clip[0].min())) / 255
        wide = (int(clip[1].max()) - int(clip[1].min())) / 255
        assert 0.15 < high * wide < 0.42
        assert 0.7 < wide / high < 1.4


def test_the_whole_picture_may_be_taken():
    clip, _ = TrainTransform(CLIP, flip=0.0, scale=(1.0, 1.0))(ramp(48, 48))
    assert clip[0, 0, 0, 0] < 10
    assert clip[0, 0, -1, -1] > 245


def test_training_draws_from_the_seed():
    transform, frames = TrainTransform(CLIP), ramp(60, 80)
    torch.manual_seed(5)
    first = [transform(frames) for _ in range(4)]
    torch.manual_seed(5)
    again = [transform(frames) for _ in range(4)]
    assert all(torch.equal(a, b) and m == n for (a, m), (b, n) in zip(first, again, strict=True))
    assert not all(torch.equal(first[0][0], clip) for clip, _ in first[1:])


@pytest.mark.parametrize("size", [(60, 80), (80, 60)])
def test_short_side_jitter_cuts_squares_of_every_size_anywhere(size):
    """A square of 24 out of a short side of 24 to 48 shows the whole of the short side, down to half of it."""
    torch.manual_seed(0)
    transform = TrainTransform(CLIP, flip=0.0, short_sides=(24, 48))
    seen, tops, lefts = [], [], []
    for _ in range(300):
        clip, _ = transform(ramp(*size, frames=1))
        assert clip.shape == (3, 1, 24, 24)
        red, green = clip[0].float() / 255 * size[0], clip[1].float() / 255 * size[1]  # in pixels of the picture
        high, wide = float(red.max() - red.min()), float(green.max() - green.min())
        assert abs(high - wide) < 4
        seen.append(high)
        tops.append(float(red.min()))
        lefts.append(float(green.min()))
    assert min(seen) == pytest.approx(30, abs=3)
    assert max(seen) == pytest.approx(60, abs=3)
    assert min(tops) < 2
    assert min(lefts) < 2
    assert max(tops) > size[0] - 35
    assert max(lefts) > size[1] - 35


def test_short_side_jitter_is_what_scaling_and_then_cutting_gives():
    torch.manual_seed(0)
    transform = TrainTransform(CLIP, flip=0.0, short_sides=(48, 48))
    frames = F.resize(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8), [96, 128], antialias=True)
    clip, _ = transform(frames)
    scaled = F.resize(frames, [48, 64], antialias=True).transpose(0, 1).float()
    distance = min((scaled[..., y : y + 24, x : x + 24] - clip).abs().mean() for y in range(25) for x in range(41))
    assert distance < 6  # elsewhere it is 60; the place is in whole pixels of the picture that is not scaled yet


def test_short_side_jitter_takes_pictures_of_any_size():
    transform = TrainTransform(CLIP, short_sides=(24, 30))
    for size in [(10, 10), (1, 3), (24, 24), (300, 20)]:
        assert transform(ramp(*size))[0].shape == (3, 4, 24, 24)


@pytest.mark.parametrize("short_sides", [(20, 30), (30, 25), (24, 30.5), (0, 30)])
def test_short_sides_that_do_not_fit_are_refused(short_sides):
    with pytest.raises(InputError, match="short_sides"):
        TrainTransform(CLIP, short_sides=short_sides)


def test_no_larger_picture_brings_more_to_train_on():
    assert TrainTransform(CLIP, short_sides=(24, 30)).largest_side == 30
    assert TrainTransform(CLIP, scale=(0.25, 1.0)).largest_side == 48
    assert TrainTransform(CLIP, scale=(0.3, 1.0)).largest_side == 44


def test_one_view_is_the_centre():
    view = views(ramp(32, 64), CLIP)
    assert view.shape == (1, 3, 4, 32, 32)
    assert view.is_contiguous()
    assert torch.equal(view[0], ramp(32, 64)[..., 16:48].transpose(0, 1))


def test_three_views_are_left_centre_and_right():
    wide = ramp(32, 64)
    assert torch.equal(
        views(wide, CLIP, crops=3), torch.stack([wide[..., x : x + 32].transpose(0, 1) for x in (0, 16, 32)])
    )


def test_three_views_of_an_upright_picture_are_top_centre_and_bottom():
    high = ramp(64, 32)
    expected = torch.stack([high[..., y : y + 32, :].transpose(0, 1) for y in (0, 16, 32)])
    assert torch.equal(views(high, CLIP, crops=3), expected)


def test_ten_views_are_the_corners_the_centre_and_their_mirror_images():
    clip = ClipSpec(**{**CLIP.to_dict(), "test_crop": 24})
    wide = ramp(32, 64)
    found = views(wide, clip, crops=10)
    assert found.shape == (10, 3, 4, 24, 24)
    assert torch.equal(found[:5], torch.stack(F.five_crop(wide, [24, 24])).transpose(1, 2))
    assert torch.equal(found[5:], found[:5].flip(-1))
    assert torch.equal(found[1], wide[..., :24, 40:].transpose(0, 1))  # top right


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (48, 48), (47, 77)])
def test_the_full_view_is_the_whole_picture(size):
    frames = ramp(*size)
    view = views(frames, CLIP, crops="full")
    assert view.shape == (1, 3, 4, *short_side_size(*size, 32))
    assert view.is_contiguous()
    assert torch.equal(view[0].transpose(0, 1), F.resize(frames, list(view.shape[-2:]), antialias=True))


@pytest.mark.parametrize("crops", CROPS)
def test_views_are_as_many_as_they_are_said_to_be(crops):
    assert len(views(ramp(40, 50), CLIP, crops)) == num_views(crops)


def test_a_square_smaller_than_the_short_side_is_cut_from_its_middle():
    clip = ClipSpec(**{**CLIP.to_dict(), "test_crop": 24})
    assert torch.equal(views(ramp(32, 48), clip)[0], ramp(32, 48)[..., 4:28, 12:36].transpose(0, 1))
    assert torch.equal(views(ramp(32, 48), clip, crops=3)[2], ramp(32, 48)[..., 4:28, 24:48].transpose(0, 1))


@pytest.mark.parametrize("size", [(120, 160), (160, 120), (64, 64), (20, 30), (33, 200), (1, 3)])
def test_views_have_one_size_whatever_the_video(size):
    view = views(ramp(*size), CLIP, crops=3)
    assert view.shape == (3, 3, 4, 32, 32)
    assert view.dtype == torch.uint8


def test_scaling_down_averages():
    stripes = torch.zeros(1, 3, 320, 320, dtype=torch.uint8)
    stripes[..., ::3] = 255
    view = views(stripes, CLIP).float()
    assert view[..., 2:-2].std() < 3
    assert view.mean() == pytest.approx(85, abs=3)


@pytest.mark.parametrize(
    ("size", "scaled"), [((240, 320), (32, 43)), ((320, 240), (43, 32)), ((32, 32), (32, 32)), ((500, 501), (32, 32))]
)
def test_the_short_side_is_exact_and_the_long_side_rounded(size, scaled):
    assert short_side_size(*size, 32) == scaled


@pytest.mark.parametrize(
    ("size", "crops", "corners"),
    [
        ((5, 8), 3, [(0, 0), (0, 1), (0, 3)]),
        ((8, 5), 3, [(0, 0), (1, 0), (3, 0)]),
        ((6, 6), 3, [(0, 0), (0, 0), (0, 1)]),
        ((7, 8), 1, [(1, 1)]),
        ((8, 7), 10, [(0, 0), (0, 2), (3, 0), (3, 2), (1, 1)]),
        ((5, 5), 10, [(0, 0)] * 5),
    ],
)
def test_corners_of_crops(size, crops, corners):
    assert crop_corners(*size, 5, crops) == corners
