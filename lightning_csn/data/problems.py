"""What is wrong with a collection: rows and counts of its samples go in, problems come out, the worst first.

Each function looks for what belongs together, and says nothing where there is nothing; find_problems asks them all.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from lightning_csn.clip import ClipSpec
from lightning_csn.data.notices import deep_classes
from lightning_csn.data.report import NOTE, PREDICT, UNSAFE, WARNING, Problem, Row, counted, files_of, rate_text
from lightning_csn.data.samples import Collection
from lightning_csn.data.splits import UCF101_GROUP

UNREADABLE_LIMIT = 0.1  # of a split, as in VideoDataModule
LARGEST_IMBALANCE = 5  # the largest class by the smallest; beyond it accuracy says little of the small ones
SMALLEST_SHARE_PROMISED = 0.9  # of the frames that a header promises; real ones are off by a few (edit lists, HMDB51)

Counts = Mapping[str, Mapping[str, tuple[int, int]]]  # split -> class -> (readable, all)


def find_problems(
    collection: Collection,
    rows: Sequence[Row],
    counts: Counts,
    copies: Sequence[Sequence[str]],
    *,
    root: str,
    clip: ClipSpec | None,
    limit: float,
) -> list[Problem]:
    """All that is wrong with the samples of a collection, the worst first; the arguments are those of examine."""
    readable = [row for row in rows if row.error is None]  # pages of errors in place of videos are all the same
    problems = [
        *_unusable(rows, limit),
        *_leaks(readable, copies),
        *_empty_classes(counts),
        *_damage(rows),
        *_groups(readable),
        *_splits(collection, counts),
        *_deep(collection, root),
        *_unlabelled(rows),
        *_clip_problems(rows, clip),
        *_oddities(rows),
    ]
    levels = (UNSAFE, WARNING, NOTE)
    return sorted(problems, key=lambda problem: levels.index(problem.level))


def _unusable(rows: Sequence[Row], limit: float) -> Iterator[Problem]:
    """Samples that are missing or unreadable, and splits with too many of them."""
    for split, there in _by_split(rows).items():
        bad = sum(row.error is not None for row in there)
        if bad == len(there):
            yield Problem(level=UNSAFE, kind="empty split", text=f"{split}: no video of {bad} can be read")
        elif bad > limit * len(there) and split != PREDICT:
            yield Problem(
                level=UNSAFE,
                kind="too many unreadable",
                text=f"{split}: {bad} of {counted(len(there), 'video')} cannot be read, {bad / len(there):.1%}, more "
                f"than the limit of {limit:.0%} at which a run ends",
            )
    missing = {row.path: "" for row in rows if row.missing}
    if missing:
        yield _of_files(WARNING, "missing", "{} missing", missing)
    unreadable = {row.path: row.reason for row in rows if row.error is not None and not row.missing}
    if unreadable:
        yield _of_files(WARNING, "unreadable", "{} cannot be read", unreadable)


def _damage(rows: Sequence[Row]) -> Iterator[Problem]:
    """Files that can be read, but not all of them."""
    damaged, cut = {}, {}
    for path, entry in files_of(rows).items():
        if entry.info is None:
            continue
        wrong = []
        if entry.decoded is not None and entry.decoded != entry.info.num_frames:
            wrong.append(f"{entry.decoded} of {counted(entry.info.num_frames, 'frame')} can be decoded")
        if entry.damaged:
            wrong.append(f"{entry.damaged} of {counted(entry.decoded or 0, 'frame')} are damaged")
        if wrong:
            damaged[path] = ", ".join(wrong + ([entry.fault] if entry.fault else []))
        if entry.promised and entry.info.num_frames < SMALLEST_SHARE_PROMISED * entry.promised:
            cut[path] = f"{counted(entry.info.num_frames, 'frame')} of the {entry.promised} in the header"
    if damaged:
        yield _of_files(WARNING, "damaged", "{} damaged: a part of the picture, or the end, is missing", damaged)
    cut = {path: reason for path, reason in cut.items() if path not in damaged} | {
        path: f"{damaged[path]}; {reason}" for path, reason in cut.items() if path in damaged
    }
    if cut:
        yield _of_files(WARNING, "cut short", "{} shorter than the header says: cut off, or trimmed", cut)


def _leaks(rows: Sequence[Row], copies: Sequence[Sequence[str]]) -> Iterator[Problem]:
    """The same film in several splits, or twice in one."""
    content = {path: group[0] for group in copies for path in group}
    films: dict[str, list[Row]] = {}
    for row in rows:
        films.setdefault(content.get(row.path, row.path), []).append(row)
    leaked, tested_twice, parts, labels, twice = {}, {}, {}, {}, {}
    for there in films.values():
        if len(there) == 1:
            continue
        splits = sorted({_role(row.split) for row in there}, key=_order)
        overlap = len(splits) > 1 and any(_role(a.split) != _role(b.split) for a, b in _overlaps(there))
        where = "; ".join(f"{row.split}: {row.path}" for row in there[1:])
        first = f"{there[0].split}, and {where}"
        if len(splits) > 1 and not overlap:
            parts[there[0].path] = f"parts of it are in {', '.join(splits)}"
        elif len(splits) > 1 and splits[0] == "train":
            leaked[there[0].path] = first
        elif len(splits) > 1:
            tested_twice[there[0].path] = first
        elif any(a.classes != b.classes for a, b in _overlaps(there)):
            labels[there[0].path] = "; ".join(f"{' '.join(row.classes)}: {row.path}" for row in there)
        elif any(_overlaps(there)):
            others = ", ".join(dict.fromkeys(row.path for row in there[1:]))
            twice[there[0].path] = f"{there[0].split}: the same as {others}"
    if leaked:
        text = "{} both to train on and to test or validate on: figures on them are too good"
        yield _of_files(UNSAFE, "train and test", text, leaked)
    if labels:
        yield _of_files(WARNING, "two labels", "{} more than once, with different labels", labels)
    if parts:
        yield _of_files(WARNING, "parts in several splits", "{} in several splits, by different parts", parts)
    if tested_twice:
        yield _of_files(WARNING, "val and test", "{} both to validate and to test on", tested_twice)
    if twice:
        yield _of_files(NOTE, "twice", "{} more than once in a split", twice)


def _overlaps(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Pairs of rows of one video whose parts may share a frame: parts in seconds and in frames may."""
    parts = [row.part for row in rows]
    told = len({None if part is None else part.unit for part in parts} - {None}) < 2
    spans = sorted((part[:2] if told and part else (0.0, math.inf), i) for i, part in enumerate(parts))
    for place, ((_, end), i) in enumerate(spans):
        for after in range(place + 1, len(spans)):
            (start, _), j = spans[after]
            if start >= end:
                break
            yield rows[i], rows[j]


def _role(split: str) -> str:
    """What a split is for; a folder without splits is trained on."""
    return "train" if split == "all" else split


def _order(split: str) -> int:
    return ("train", "val", "test", PREDICT).index(split)


def _empty_classes(counts: Counts) -> Iterator[Problem]:
    for split, there in counts.items():
        empty = [name for name, (readable, _) in there.items() if not readable]
        if not empty or len(empty) == len(there) or split == PREDICT:
            continue
        if _role(split) == "train":
            text = f"{_some(empty, 'class', 'classes')} without a video to train on: {_names(empty)}"
            yield Problem(level=UNSAFE, kind="empty class", text=text)
        else:
            text = f"{_some(empty, 'class', 'classes')} without a video in {split}: {_names(empty)}"
            yield Problem(level=WARNING, kind="empty class", text=text)


def _unlabelled(rows: Sequence[Row]) -> Iterator[Problem]:
    """Videos of which nobody says what they show."""
    unlabelled: dict[str, dict[str, str]] = {}
    for row in rows:
        if "?" in row.classes:
            unlabelled.setdefault(_role(row.split), {})[row.path] = ""
    for role, files in unlabelled.items():
        if role == "train":
            yield _of_files(UNSAFE, "no label", "{} to train on without a label", files)
        elif role != PREDICT:
            yield _of_files(WARNING, "no label", f"{{}} without a label in {role}: no figure is to be had", files)


def _deep(collection: Collection, root: str) -> Iterator[Problem]:
    if root and (doubt := deep_classes(collection, root)):
        yield Problem(level=WARNING, kind="deep classes", text=doubt)


def _splits(collection: Collection, counts: Counts) -> Iterator[Problem]:
    """What is to be said of splits as a whole."""
    if collection.missing:  # of data sets that are never whole
        files = tuple((name, split) for split, name in collection.missing)
        text = f"{counted(len(files), 'video')} named by the lists not there, and left out"
        yield Problem(level=WARNING, kind="not there", text=text, files=files)
    train = counts.get("train") or counts.get("all")
    if train is None:
        there = "videos without classes, which predict takes" if PREDICT in counts else ", ".join(counts)
        there = there or "videos without classes"
        yield Problem(level=UNSAFE, kind="nothing to train on", text=f"no videos to train on, only {there}")
        return
    if "all" in counts:
        text = "no train, val and test: all videos are to train on; 'lightning-csn split-data' parts them"
        yield Problem(level=WARNING, kind="no splits", text=text)
    elif "val" not in counts:
        yield Problem(level=NOTE, kind="no validation", text="nothing to validate on: training goes without")
    sizes = {name: readable for name, (readable, _) in train.items() if readable}
    if sizes and max(sizes.values()) > LARGEST_IMBALANCE * min(sizes.values()):
        large, small = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        text = (
            f"classes are uneven: {large} has {sizes[large]} videos to train on, {small} has {sizes[small]}; "
            "go by the mean over classes, not by accuracy"
        )
        yield Problem(level=WARNING, kind="uneven classes", text=text)


def _clip_problems(rows: Sequence[Row], clip: ClipSpec | None) -> Iterator[Problem]:
    if clip is None:
        return
    fates = {row.path: row.fate for row in rows if row.fate is not None}
    if not fates:
        return
    rate = "" if clip.fps is None else f" at {rate_text(clip.fps)}"
    segments = clip.sampling == "segments"
    twice = "{} of a clip's {} are there twice" if segments else "the last {} of a clip's {} are the same"
    short = {
        path: f"{counted(fate.num_frames, 'frame')}{rate}: {twice.format(fate.repeated, clip.frames)}"
        for path, fate in fates.items()
        if fate.short
    }
    if short:
        level = WARNING if 2 * len(short) > len(fates) else NOTE
        which = "frames are" if segments else "the last frame is"
        text = f"{{}} shorter than the {clip.span} frames that a clip needs: {which} repeated"
        yield _of_files(level, "too short", text, short)
    rates = {row.path: row.entry.info.fps for row in rows if row.entry is not None and row.entry.info is not None}
    known = [fps for fps in rates.values() if fps is not None]
    if clip.fps is None and known and max(known) > 1.5 * min(known):
        text = (
            f"rates go from {rate_text(min(known))} to {rate_text(max(known))} and the clip takes frames as filmed: "
            "the same motion is faster in some; clip.fps brings all to one rate"
        )
        yield Problem(level=WARNING, kind="mixed rates", text=text)
    elif clip.fps is not None:
        resampled = Counter(rate_text(rates[path]) for path, fate in fates.items() if fate.resampled)
        if resampled:
            each = ", ".join(f"{count} from {rate}" for rate, count in resampled.most_common(5))
            text = f"{counted(resampled.total(), 'video')} brought to {rate_text(clip.fps)}: {each}"
            yield Problem(level=NOTE, kind="resampled", text=text + (", …" if len(resampled) > 5 else ""))
        if unknown := {path: "" for path in fates if rates[path] is None}:
            yield _of_files(NOTE, "no rate", f"{{}} without a rate, not brought to {rate_text(clip.fps)}", unknown)
    grown = {path: f"by {fate.upscaled:.2f}" for path, fate in fates.items() if fate.upscaled > 1}
    if grown:
        level = WARNING if max(fates[path].upscaled for path in grown) > 2 else NOTE
        text = f"{{}} smaller than the clip's short side of {clip.short_side} pixels, and enlarged"
        yield _of_files(level, "enlarged", text, grown)


def _oddities(rows: Sequence[Row]) -> Iterator[Problem]:
    infos = {path: entry.info for path, entry in files_of(rows).items() if entry.info is not None}
    still = {path: "" for path, info in infos.items() if info.num_frames == 1}
    if still:
        yield _of_files(WARNING, "one frame", "{} of a single frame: nothing moves in them", still)
    varying = {path: f"{rate_text(info.fps)} on average" for path, info in infos.items() if info.variable_rate}
    if varying:
        yield _of_files(NOTE, "variable rate", "{} of variable frame rate: frames are taken by their times", varying)
    turned = {
        path: f"{info.rotation}°" + (" and mirrored" if info.mirrored else "")
        for path, info in infos.items()
        if info.rotation or info.mirrored
    }
    if turned:
        yield _of_files(NOTE, "rotated", "{} filmed turned or mirrored, and shown upright", turned)


def _groups(rows: Sequence[Row]) -> Iterator[Problem]:
    """Clips of one film, by UCF101's names (v_Archery_g01_c03), in several splits."""
    groups: dict[str, dict[str, str]] = {}
    for row in rows:
        match = re.search(UCF101_GROUP, row.path.replace(os.sep, "/"))
        if match:
            groups.setdefault(match[1], {}).setdefault(_role(row.split), row.path)
    shared = {
        next(iter(there.values())): f"{group} is in {', '.join(sorted(there, key=_order))}"
        for group, there in groups.items()
        if len(there) > 1
    }
    if shared:
        text = f"{len(shared)} group{'s' * (len(shared) > 1)} of clips from one film in several splits, by their names"
        yield Problem(level=WARNING, kind="group in several splits", text=text, files=tuple(shared.items()))


def _by_split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(row)
    return splits


def _of_files(level: str, kind: str, text: str, files: Mapping[str, str]) -> Problem:
    text = text.format(counted(len(files), "video"))
    return Problem(level=level, kind=kind, text=text, files=tuple(sorted(files.items())))


def _some(things: Sequence[str], one: str, many: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else many}"


def _names(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f", … and {len(names) - most} more" if len(names) > most else "")
