"""What an examination of a collection found, as plain values: a Report, its problems, and a row for each sample.

examine.py makes it; check_text.py makes a text of it, check_page.py a page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from lightning_csn.clip import ClipSpec
from lightning_csn.data.index import Entry
from lightning_csn.data.samples import Part

UNSAFE, WARNING, NOTE = "unsafe", "warning", "note"  # levels of a problem, the worst first
PREDICT = "predict"  # the split of videos without classes, which predict takes


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was found: a sentence, how bad it is, and where.

    files: each with what is to be said of it alone, maybe "".
    """

    level: str
    kind: str
    text: str
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What the clip does with a video, or a part of one.

    num_frames: after resampling. short: fewer than the clip needs, so that frames are repeated. repeated: how many
    of the clip's frames are then there already. resampled: whether its rate is not the clip's. upscaled: by what its
    short side grows to the clip's, 1 where it does not.
    """

    num_frames: int
    short: bool
    repeated: int
    resampled: bool
    upscaled: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """A sample and what is known of it. error: why it cannot be used; then there is no seconds, num_frames and fate."""

    split: str
    path: str
    classes: tuple[str, ...]
    part: Part | None
    entry: Entry | None
    error: str | None
    missing: bool
    num_frames: int | None
    seconds: float | None
    fate: Fate | None

    @property
    def reason(self) -> str:
        """Why it cannot be used, without its path."""
        return (self.error or "").removeprefix(f"{self.path}: ")


@dataclass(frozen=True)
class Bin:
    """A bar of a histogram: from `start` up to `end`, which is not included; end None is all that is longer."""

    start: float
    end: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found.

    counts: split -> class -> (readable, all). seconds, frames: the least, the median, the most of a sample; seconds is
    None where no video has a rate. lengths: a histogram of seconds, or else of frames. properties: of files, each
    counted once.
    """

    root: str
    layout: str
    classes: tuple[str, ...]
    clip: ClipSpec | None
    decoded: bool
    problems: tuple[Problem, ...]
    rows: tuple[Row, ...]
    counts: dict[str, dict[str, tuple[int, int]]]
    lengths: tuple[Bin, ...]
    seconds: tuple[float, float, float] | None
    frames: tuple[int, int, int] | None
    properties: dict[str, dict[str, int]]

    @property
    def safe(self) -> bool:
        """Whether nothing was found that makes training pointless or its figures wrong."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why it is not safe to train."""
        return [problem.text for problem in self.problems if problem.level == UNSAFE]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values for JSON."""
        return {
            "root": self.root,
            "layout": self.layout,
            "safe": self.safe,
            "reasons": self.reasons,
            "classes": list(self.classes),
            "clip": None if self.clip is None else self.clip.to_dict(),
            "decoded": self.decoded,
            "problems": [
                {
                    "level": problem.level,
                    "kind": problem.kind,
                    "text": problem.text,
                    "files": [{"path": path, "reason": reason} for path, reason in problem.files],
                }
                for problem in self.problems
            ],
            "counts": {
                split: {name: {"readable": readable, "videos": videos} for name, (readable, videos) in counts.items()}
                for split, counts in self.counts.items()
            },
            "seconds": _spread_dict(self.seconds),
            "frames": _spread_dict(self.frames),
            "lengths": [asdict(bar) for bar in self.lengths],
            "properties": self.properties,
            "videos": [_row_dict(row) for row in self.rows],
        }


def _spread_dict(spread: tuple[float, float, float] | None) -> dict[str, float] | None:
    return None if spread is None else dict(zip(("min", "median", "max"), spread, strict=True))


def _row_dict(row: Row) -> dict[str, Any]:
    info = None if row.entry is None else row.entry.info
    return {
        "path": row.path,
        "split": row.split,
        "classes": list(row.classes),
        "part": None if row.part is None else row.part._asdict(),
        "error": row.error,
        "missing": row.missing,
        "num_frames": row.num_frames,
        "seconds": row.seconds,
        "bytes": None if row.entry is None else row.entry.bytes,
        "decoded": None if row.entry is None else row.entry.decoded,
        "damaged": None if row.entry is None else row.entry.damaged,
        "fault": None if row.entry is None else row.entry.fault,
        "file": None if info is None else asdict(info),
        "fate": None if row.fate is None else asdict(row.fate),
    }


def files_of(rows: Iterable[Row]) -> dict[str, Entry]:
    """What is known of each file that is there, by its path; several rows may be parts of one."""
    return {row.path: row.entry for row in rows if row.entry is not None}


def counted(count: int, thing: str) -> str:
    """A number of things, in words.

    >>> counted(1, "video"), counted(2, "video")
    ('1 video', '2 videos')
    """
    return f"{count} {thing}{'s' * (count != 1)}"


def rate_text(fps: float | None) -> str:
    """Frames per second as people write it.

    >>> rate_text(30000 / 1001), rate_text(25.0), rate_text(None)
    ('29.97 fps', '25 fps', 'unknown')
    """
    return "unknown" if fps is None else f"{fps:.2f}".rstrip("0").rstrip(".") + " fps"
