"""ClipSpec: how the clips must look that a network is fed with. It travels with every set of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_csn.errors import InputError, check_choice, check_count

SAMPLINGS = ("clip", "segments")


def clip_values(given: Mapping[str, Any] | ClipSpec | None) -> dict[str, Any]:
    """The fields of a spec as plain values, or those of them that were given."""
    return given.to_dict() if isinstance(given, ClipSpec) else dict(given or {})


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """What weights ask of data: how many frames, how far apart, how large, and with which colours.

    frames: frames in one clip.
    step: frames from one to the next, counted after the video was brought to `fps`.
    fps: frames per second that a video is brought to first; None leaves it as filmed.
    short_side: pixels of the shorter side that frames are scaled to for validation, test and prediction.
    crop: side in pixels of the square that is cut out in training.
    test_crop: side in pixels of the square that is cut out for validation, test and prediction.
    mean, std: of red, green and blue on the scale 0 to 1; a network sees (pixel / 255 - mean) / std.
    sampling: where the frames of a clip lie: clip, `step` apart; segments, one in each of as many equal parts of the
        whole video, of whatever length.

    Lists are taken for tuples, so that a spec read from JSON is the same spec. Raises InputError where a value
    makes no sense.

    >>> spec = ClipSpec(frames=32, step=2, fps=30, short_side=256, crop=224, test_crop=256,
    ...                 mean=(0.432, 0.395, 0.376), std=(0.228, 0.221, 0.217))
    >>> spec.span  # frames of video that one clip covers
    63
    >>> spec == ClipSpec(**spec.to_dict())
    True
    """

    frames: int
    step: int
    fps: float | None
    short_side: int
    crop: int
    test_crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sampling: str = "clip"

    def __post_init__(self) -> None:
        for name in ("frames", "step", "short_side", "crop", "test_crop"):
            check_count(f"clip.{name}", getattr(self, name))
        check_choice("clip.sampling", self.sampling, SAMPLINGS)
        if self.fps is not None and not (isinstance(self.fps, int | float) and 0 < self.fps < float("inf")):
            raise InputError(f"clip.fps must be a number above 0, or null for 'as filmed', got {self.fps!r}")
        if self.test_crop > self.short_side:
            raise InputError(
                f"clip.test_crop {self.test_crop} does not fit into frames whose short_side is {self.short_side}"
            )
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._colours(name, getattr(self, name)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], base: ClipSpec | None = None) -> ClipSpec:
        """A spec of these values, and those of `base` where they are left out.

        Raises InputError for names that a spec does not have, and without a base for those that are missing.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        names = list(defaults)
        if unknown := [name for name in values if name not in names]:
            raise InputError(f"clip has no {', '.join(unknown)}; there are: {', '.join(names)}")
        known = {} if base is None else base.to_dict()
        needed = [name for name in names if defaults[name] is dataclasses.MISSING]
        if missing := [name for name in needed if name not in values and name not in known]:
            raise InputError(f"clip needs {', '.join(missing)} too: no weights and no model are here to take them from")
        return cls(**known | dict(values))

    @staticmethod
    def _colours(name: str, values: Sequence[float]) -> tuple[float, ...]:
        numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        if not numbers or len(values) != 3:
            raise InputError(f"clip.{name} must be three numbers (red, green, blue), got {values!r}")
        if name == "std" and min(values) <= 0:
            raise InputError(f"clip.std must be above 0, got {values!r}")
        if max(values) > 1:
            raise InputError(f"clip.{name} is on the scale 0 to 1, got {values!r}; divide by 255")
        return tuple(float(value) for value in values)

    @property
    def span(self) -> int:
        """Frames of video, at `fps`, that a clip takes without a frame twice: from its first to its last, both counted;
        of segments at least one in each.
        """
        return self.frames if self.sampling == "segments" else (self.frames - 1) * self.step + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, hyper-parameters and configs."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    def differences(self, other: ClipSpec) -> list[str]:
        """One line per value in which two specs differ.

        >>> spec = ClipSpec(frames=8, step=1, fps=None, short_side=64, crop=56, test_crop=64,
        ...                 mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
        >>> spec.differences(dataclasses.replace(spec, step=2))
        ['step 1 and 2']
        """
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{name} {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]]


SCRATCH_CLIP = ClipSpec(  # of networks that begin without weights: paper, section 4.1; colours of facebookresearch/VMZ
    frames=32,
    step=2,
    fps=30,
    short_side=256,
    crop=224,
    test_crop=256,
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
)
