"""clip.py: a ClipSpec checks itself, travels as plain values, and says how it differs."""

import dataclasses
import json

import pytest

from lightning_csn import ClipSpec, InputError

VMZ = {
    "frames": 32,
    "step": 2,
    "fps": 30,
    "short_side": 256,
    "crop": 224,
    "test_crop": 256,
    "mean": [0.43216, 0.394666, 0.37645],
    "std": [0.22803, 0.22145, 0.216989],
}


@pytest.mark.parametrize("changed", [{}, {"fps": None}, {"sampling": "segments"}])
def test_a_spec_survives_json(changed):
    spec = ClipSpec(**VMZ | changed)
    assert ClipSpec(**json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(ClipSpec(**VMZ | changed))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("frames", 0, "1 or more, got 0"),
        ("frames", True, "whole number"),
        ("step", 1.5, "whole number .*1.5"),
        ("fps", 0, "above 0"),
        ("fps", "30", "above 0"),
        ("test_crop", 257, "257 does not fit .* 256"),
        ("mean", [110.2, 100.6, 96.0], "divide by 255"),
        ("mean", [0.5, 0.5], "three numbers"),
        ("mean", 0.45, "three numbers"),
        ("std", [0.2, 0.0, 0.2], "above 0"),
        ("sampling", "dense", "clip, segments, got 'dense'"),
    ],
)
def test_values_that_make_no_sense_are_refused(name, value, said):
    with pytest.raises(InputError, match=rf"clip\.{name} .*{said}"):
        ClipSpec(**{**VMZ, name: value})


def test_a_clip_of_segments_needs_a_frame_in_each():
    assert ClipSpec(**VMZ).sampling == "clip"  # of records that say nothing of it
    assert ClipSpec(**VMZ, sampling="segments").span == VMZ["frames"] < ClipSpec(**VMZ).span


def test_values_left_out_are_those_of_the_base():
    spec = ClipSpec(**VMZ)
    assert ClipSpec.from_dict({"step": 1, "fps": None}, spec) == dataclasses.replace(spec, step=1, fps=None)
    assert ClipSpec.from_dict(VMZ) == spec


def test_names_that_a_spec_lacks_and_names_that_are_missing_are_refused():
    with pytest.raises(InputError, match="clip has no length; there are: frames, step"):
        ClipSpec.from_dict(VMZ | {"length": 3})
    with pytest.raises(InputError, match="clip needs fps, crop too: no weights"):
        ClipSpec.from_dict({name: value for name, value in VMZ.items() if name not in ("fps", "crop")})


def test_differences_name_each_value_of_both():
    spec = ClipSpec(**VMZ)
    other = dataclasses.replace(spec, fps=None, mean=(0.5, 0.5, 0.5))
    assert spec.differences(other) == [
        "fps 30 and None",
        "mean [0.43216, 0.394666, 0.37645] and [0.5, 0.5, 0.5]",
    ]
    assert spec.differences(ClipSpec(**VMZ)) == []
