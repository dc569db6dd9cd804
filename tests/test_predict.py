"""What a network says of a video: the views it is shown, the windows of a timeline, and the mode it is left in."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from lightning_csn import predict
from lightning_csn.clip import ClipSpec
from lightning_csn.data.video_info import VideoError
from lightning_csn.errors import InputError
from lightning_csn.many import classify_many
from lightning_csn.module import LitCSN
from lightning_csn.predict import classify, evaluating, likeliest, plan_timeline, widen
from lightning_csn.runner import choose_device

CLIP = ClipSpec(
    frames=4, step=1, fps=None, short_side=48, crop=48, test_crop=48, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LitCSN("ircsn_tiny", classes=["clapping", "jumping", "waving"], clip=CLIP.to_dict()).eval()


@pytest.fixture
def shown(model, monkeypatch, read_number):
    """The frame numbers of every clip that the network is shown, in the order of the calls."""
    calls = []

    def forward(clips):
        assert clips.dtype == torch.uint8
        calls.append([[read_number(frame) for frame in clip.permute(1, 2, 3, 0)] for clip in clips[0]])
        return torch.tensor([[0.25, 0.5, 0.25]])

    monkeypatch.setattr(model, "forward", forward)
    return calls


def test_the_answer_is_the_mean_over_the_clips(model, make_video, tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", frames=9)
    clips = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x: clips.append(x) or forward(x))
    answer = classify(model, path, clips=3, crops=3, top=3)
    assert tuple(clips[0].shape) == (1, 9, 3, 4, 48, 48)
    with torch.inference_mode():
        logits = model.network(model.normalise(clips[0][0]))
    expected = dict(zip(model.classes, logits.softmax(-1).mean(0).tolist(), strict=True))
    assert dict(answer.top) == pytest.approx(expected, abs=1e-6)
    assert [name for name, _ in answer.top] == sorted(expected, key=expected.get, reverse=True)


def test_clips_lie_in_the_video_as_the_weights_say(model, shown, make_video, tmp_path):
    """A network that was trained on a frame of each part of a video is shown the same, in windows too."""
    model.clip = dataclasses.replace(CLIP, sampling="segments")
    video = make_video(tmp_path / "a.mp4", frames=16, rate=8)
    answer = classify(model, video, clips=2, every=1)
    assert shown[0] == [[1, 5, 9, 13], [3, 7, 11, 15]]
    assert shown[1:] == [[[0, 2, 4, 6], [1, 3, 5, 7]], [[8, 10, 12, 14], [9, 11, 13, 15]]]
    assert not answer.short
    [many] = classify_many(model, [video], clips=2, workers=0)
    assert shown[-1] == shown[0]
    assert many.top == answer.top


def test_clips_are_spread_over_the_video(model, shown, make_video, tmp_path):
    answer = classify(model, make_video(tmp_path / "a.mp4", frames=10), clips=3, top=2)
    assert shown == [[[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]]
    assert answer.top == [("jumping", 0.5), ("clapping", 0.25)] or answer.top == [("jumping", 0.5), ("waving", 0.25)]
    assert answer.timeline == []


def test_a_short_video_repeats_its_last_frame(model, shown, make_video, tmp_path):
    classify(model, make_video(tmp_path / "a.mp4", frames=2), clips=1)
    assert shown == [[[0, 1, 1, 1]]]


def test_videos_are_brought_to_the_rate_that_the_weights_ask_for(model, shown, make_video, tmp_path):
    model.clip = dataclasses.replace(CLIP, fps=10)
    classify(model, make_video(tmp_path / "a.mp4", frames=20, rate=20), clips=1)
    assert shown == [[[6, 8, 10, 12]]]


def test_a_timeline_covers_the_video(model, shown, make_video, tmp_path):
    answer = classify(model, make_video(tmp_path / "a.mp4", frames=18, rate=10), clips=1, every=0.8)
    assert [(start, end) for start, end, _ in answer.timeline] == [(0, 0.8), (0.8, 1.6), (1.6, 1.8)]
    assert shown[1:] == [[[2, 3, 4, 5]], [[10, 11, 12, 13]], [[14, 15, 16, 17]]]  # the last one with what is before it


def test_a_long_window_is_judged_by_as_many_clips_as_fill_it(model, shown, make_video, tmp_path):
    classify(model, make_video(tmp_path / "a.mp4", frames=20, rate=10), clips=10, every=1)
    assert [len(clips) for clips in shown] == [10, 3, 3]
    assert shown[2] == [[10, 11, 12, 13], [13, 14, 15, 16], [16, 17, 18, 19]]


@pytest.mark.parametrize(
    ("num_frames", "fps", "every"), [(1, 30, 5), (100, 29.97, 0.1), (7, 3, 1.1), (300, 30, 10), (301, 30, 10)]
)
def test_windows_follow_each_other_without_gaps(num_frames, fps, every):
    windows = plan_timeline(num_frames, fps=fps, every=every)
    assert windows[0][0] == windows[0][2] == 0
    assert windows[-1][3] == num_frames
    assert windows[-1][1] == pytest.approx(num_frames / fps)
    for (_, end_seconds, _, end), (start_seconds, _, first, _) in itertools.pairwise(windows):
        assert (start_seconds, first) == (end_seconds, end)
    assert all(first < end for _, _, first, end in windows)


@pytest.mark.parametrize("first", range(0, 20, 3))
@pytest.mark.parametrize("length", [1, 4, 9])
@pytest.mark.parametrize("span", [1, 6, 40])
def test_a_window_is_widened_within_the_video(first, length, span):
    end = min(first + length, 20)
    start, stop = widen(first, end, span=span, num_frames=20)
    assert 0 <= start <= first < end <= stop <= 20
    assert stop - start == max(end - first, min(span, 20))


def test_a_window_shorter_than_a_frame_is_refused(model, make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", rate=10)
    with pytest.raises(InputError, match=r"a window of 0.05 s is shorter than a frame, of 0.1 s"):
        classify(model, path, clips=1, every=0.05)


def test_two_crops_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="crops must be one of 1, 3, 10, full, got 2"):
        classify(model, tmp_path / "a.mp4", crops=2)


def test_an_unreadable_video_is_an_error_with_its_path(model, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        classify(model, tmp_path / "bad.mp4")


def test_outputs_without_names_are_never_presented_as_classes():
    assert likeliest(torch.tensor([0.1, 0.7, 0.2]), None, 2) == [
        ("output 1", pytest.approx(0.7)),
        ("output 2", pytest.approx(0.2)),
    ]


@pytest.mark.parametrize("training", [True, False])
def test_every_module_is_left_in_its_mode(model, make_video, tmp_path, training):
    model.train(training)
    model.network.stem.train(not training)  # as a frozen BatchNorm is
    modes = {name: module.training for name, module in model.named_modules()}
    path = make_video(tmp_path / "a.mp4")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classify(model, path, clips=1)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_mode_is_restored_after_an_error_too(model):
    model.train()
    with pytest.raises(RuntimeError, match="stop"), evaluating(model):
        raise RuntimeError("stop" if not any(module.training for module in model.modules()) else "still training")
    assert all(module.training for module in model.modules())


def test_devices_that_are_not_there_are_refused():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("abacus", "cuda:77"):
        with pytest.raises(InputError, match=f"device '{name}' cannot be used"):
            choose_device(name)


def test_a_card_shows_the_video_from_its_first_frame_to_its_last(model, make_video, tmp_path, read_number):
    answer = classify(model, make_video(tmp_path / "a.mp4", frames=10), clips=1)
    card = predict.card(answer, truth="waving")
    assert [read_number(frame) for frame in card.frames] == [0, 3, 6, 9]
    assert (card.top, card.truth) == (answer.top, "waving")
