"""What check-data found, as text for a terminal; and the words that check_page.py says it in too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from lightning_csn.data.report import NOTE, UNSAFE, WARNING, Bin, Problem, Report, counted, rate_text
from lightning_csn.terminal import columns

MOST_NAMED, MOST_FAULTY = 5, 50  # files of a problem in the text: those that are at fault are to be found there
FAULTS = ("missing", "unreadable", "damaged", "cut short", "train and test", "two labels")
MOST_CLASSES = 30  # that the text counts one by one
BAR = 30  # characters of the longest bar


def as_text(report: Report) -> str:
    """The report for a terminal, the worst things first."""
    lines = [verdict(report) + ("" if report.safe else ":")]
    lines += [f"  - {reason}" for reason in report.reasons]
    for level, title in ((UNSAFE, "Files that make it unsafe"), (WARNING, "Warnings"), (NOTE, "Notes")):
        there = [
            problem for problem in report.problems if problem.level == level and (level != UNSAFE or problem.files)
        ]
        if there:
            lines += ["", title, *(line for problem in there for line in _problem_lines(report, problem))]
    lines += ["", "Videos", *_indent(columns(_count_rows(report)))]
    if report.lengths:
        lines += ["", f"Length: {lengths_text(report)}", *_indent(_bars(report))]
    properties = [(name.capitalize(), _most_frequent(counts)) for name, counts in report.properties.items() if counts]
    lines += ["", *columns(properties)] if properties else []
    lines += ["", *_clip_lines(report)]
    return "\n".join(shown(line) for line in lines) + "\n"


def files_text(report: Report) -> str:
    """A line for every file: what is in it, or why it cannot be read."""
    lines = [("FILE", "FRAMES", "DECODED", "RATE", "SIZE", "TURNED", "CODEC", "PIXELS", "REMARKS")]
    for path, row in sorted({row.path: row for row in report.rows}.items()):
        name, entry = short_path(report, path), row.entry
        if entry is None or entry.info is None:
            lines.append((name, *("-",) * 7, "not there" if row.missing else row.reason))
            continue
        info = entry.info
        remarks = ["rate varies"] * info.variable_rate + ["mirrored"] * info.mirrored
        remarks += [f"{entry.damaged} frames are damaged"] if entry.damaged else []
        lines.append(
            (
                name,
                str(info.num_frames),
                "-" if entry.decoded is None else str(entry.decoded),
                "-" if info.fps is None else rate_text(info.fps),
                f"{info.width}x{info.height}",
                f"{info.rotation}°",
                info.codec,
                info.pixel_format,
                ", ".join([*remarks, *([entry.fault] if entry.fault else [])]),
            )
        )
    return "\n".join(shown(line) for line in columns(lines)) + "\n"


def verdict(report: Report) -> str:
    """Whether it is safe to train, in a line."""
    warnings = sum(problem.level == WARNING for problem in report.problems)
    extra = f", with {counted(warnings, 'warning')}" if warnings else ""
    return f"{'Safe' if report.safe else 'NOT SAFE'} to train{extra}" + ("." if report.safe else "")


def _problem_lines(report: Report, problem: Problem) -> Iterator[str]:
    yield f"  {problem.text}"
    if not names_some(report, problem):
        return
    most = MOST_FAULTY if problem.kind in FAULTS else MOST_NAMED
    rows = [(short_path(report, path), short_path(report, reason)) for path, reason in problem.files[:most]]
    yield from (f"    {line}" for line in columns(rows))
    if len(problem.files) > most:
        yield f"    … and {len(problem.files) - most} more: --json and --html have them"


def names_some(report: Report, problem: Problem) -> bool:
    """Whether its files are worth a list: what is noted of every video is said in a sentence."""
    readable = {row.path for row in report.rows if row.error is None}
    return problem.level != NOTE or len(problem.files) < len(readable)


def _count_rows(report: Report) -> list[tuple[str, ...]]:
    """A row per class, or one for all of very many, and the sums."""
    splits = list(report.counts)
    rows: list[tuple[str, ...]] = [("", *splits)]
    names = list(next(iter(report.counts.values()), {}))
    if len(names) <= MOST_CLASSES:
        rows += [(name, *(share_text(*report.counts[split].get(name, (0, 0))) for split in splits)) for name in names]
    else:
        middle = []
        for split in splits:
            each = sorted(report.counts[split].items(), key=lambda item: item[1])
            (few, (least, _)), (_, (most, _)) = each[0], each[-1]
            middle.append(f"{least} ({few}) to {most}")
        rows.append((f"{len(names)} classes, each", *middle))
    sums = []
    for split in splits:
        there = [row for row in report.rows if row.split == split]
        sums.append(share_text(sum(row.error is None for row in there), len(there)))
    return [*rows, ("all", *sums)]


def share_text(readable: int, every: int) -> str:
    """How many there are, and where not all can be read, how many of them can."""
    return str(every) if readable == every else f"{readable} of {every}"


def _most_frequent(counts: Mapping[str, int], most: int = 6) -> str:
    each = ", ".join(f"{text}: {count}" for text, count in list(counts.items())[:most])
    return each + (f", and {len(counts) - most} more" if len(counts) > most else "")


def unit(report: Report) -> str:
    """What the bars of lengths count in."""
    return "frames" if report.seconds is None else "seconds"


def lengths_text(report: Report) -> str:
    """The shortest, the longest and the usual length."""
    assert report.frames is not None
    few, usual, many = report.frames
    frames = f"{few} to {many} frames, median {usual}"
    if report.seconds is None:
        return frames
    low, middle, high = (f"{value:.3g}" for value in report.seconds)
    return f"{low} to {high} seconds, median {middle}; {frames}"


def _bars(report: Report) -> list[str]:
    most = max(bar.count for bar in report.lengths)
    rows = []
    for bar in report.lengths:
        length = -(-BAR * bar.count // most)  # rounded up: one video can be seen
        rows.append((f"{bin_text(bar)} {unit(report)}", str(bar.count), "█" * length))
    return columns(rows, right=(0, 1))


def bin_text(bar: Bin) -> str:
    """What lengths a bar counts.

    >>> bin_text(Bin(2.0, 4.0, 7)), bin_text(Bin(60.0, None, 1))
    ('2 to 4', '60 or more')
    """
    return f"{bar.start:g} or more" if bar.end is None else f"{bar.start:g} to {bar.end:g}"


def _clip_lines(report: Report) -> list[str]:
    if report.clip is None:
        return ["Clip: none given; --model or --clip says what would become of these videos"]
    return [f"Clip: {clip_text(report)}", *_indent(columns(fate_rows(report)))]


def clip_text(report: Report) -> str:
    """How the clip is taken, in a line."""
    clip = report.clip
    assert clip is not None
    rate = "as filmed" if clip.fps is None else f"at {rate_text(clip.fps)}"
    step = "every frame" if clip.step == 1 else f"every {clip.step} frames"
    where = f"one {step}, {rate}: {clip.span} frames long"
    if clip.sampling == "segments":
        where = f"one in each of {clip.frames} equal parts of the video"
    return f"{clip.frames} frames, {where}; short side {clip.short_side} pixels"


def fate_rows(report: Report) -> list[tuple[str, str]]:
    """What the clip does with the videos, and with how many of them."""
    fates = [row.fate for row in report.rows if row.fate is not None]
    every = len(fates)
    short = [fate for fate in fates if fate.short]
    rows = [
        ("long enough", every - len(short)),
        ("too short: frames are repeated", len(short)),
        ("brought to another rate", sum(fate.resampled for fate in fates)),
        ("enlarged: the picture is too small", sum(fate.upscaled > 1 for fate in fates)),
    ]
    return [(text, f"{count} of {every}") for text, count in rows]


def short_path(report: Report, text: str) -> str:
    """A text with the collection's folder taken off the paths in it."""
    return text.replace(report.root.rstrip("/\\") + os.sep, "") if report.root else text


def shown(text: str) -> str:
    """A text that any terminal or file takes: what cannot be printed is written as Python would.

    >>> print(shown("a\\x1b[2J.mp4"), shown("b\\udcff.mp4"))
    a\\x1b[2J.mp4 b\\udcff.mp4
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
