"""Splits of one's own: stratified by class, groups kept together, the same for the same seed.

Clips of one film in both training and validation make a network look better than it is: in UCF101 a random split reads
several points too high. So what belongs together goes into one split.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from lightning_csn.data.names import SPLITS
from lightning_csn.data.samples import Sample
from lightning_csn.errors import InputError, check_count, check_number

_log = logging.getLogger(__name__)

UCF101_GROUP = r"(v_[^/]+_g\d+)_c\d+\.\w+"  # 25 groups a class; the clips of a group are from one film
_MOST_NAMED = 10  # classes that a warning names


def split_samples(
    samples: Sequence[Sample],
    *,
    val: float,
    test: float = 0.0,
    seed: int = 0,
    group: str | None = None,
    classes: Sequence[str] | None = None,
    copies: Sequence[Sequence[str]] = (),
) -> dict[str, list[Sample]]:
    """Samples shared out to train, val and test; a split whose share is 0 is not there.

    val, test: shares of each class, 0 to 1. A class gets as close to them as its groups allow, and at least one group
    into each split if it has that many.
    group: a regular expression that is looked for in each path (with / between folders); paths with the same match, or
        the same first group in brackets, stay together. Without it, UCF101's groups are found by themselves; parts of
        one video always stay together.
    classes: names for messages.
    copies: groups of paths of the same content (see copies.py), which stay together too, whatever their label.

    Neither the order of `samples` nor the machine matters, only paths, labels and the seed. Each split is sorted by
    path and numbered anew. InputError where a split would get nothing, or where nothing matches `group`.

    >>> samples = [Sample(f"run/{number}.mp4", 0, number) for number in range(10)]
    >>> {split: len(found) for split, found in split_samples(samples, val=0.2, test=0.1).items()}
    {'train': 7, 'val': 2, 'test': 1}
    """
    check_number("val", val, 0, 1)
    check_number("test", test, 0, 1)
    check_count("seed", seed, least=0)
    if val + test <= 0 or val + test >= 1:
        raise InputError(f"val and test are shares above 0 and below 1 together, got {val} and {test}")
    shares = {"train": 1 - val - test, "val": val, "test": test}
    splits = [split for split in SPLITS if shares[split] > 0]
    ordered = sorted(samples, key=_order)
    groups = _with_copies(_groups(ordered, group), copies)
    counts = {key: Counter(label for sample in found for label in _labels(sample)) for key, found in groups.items()}
    totals = Counter(label for sample in ordered for label in _labels(sample))
    groups_of = Counter(label for count in counts.values() for label in count)
    wanted = {label: _places(totals[label], groups_of[label], shares, splits) for label in totals}
    places = {label: dict(by_split) for label, by_split in wanted.items()}  # what is still free

    keys = list(groups)
    random.Random(seed).shuffle(keys)
    # what would fill a split by itself goes first, while there is room; the order of the others is by chance
    limit = {label: max(1, min(wanted[label][split] for split in splits)) for label in totals}
    keys.sort(key=lambda key: -max(count // limit[label] for label, count in counts[key].items()))
    taken: dict[str, list[Sample]] = {split: [] for split in splits}
    for key in keys:
        need = {
            split: sum(_need(places[label][split], wanted[label][split], n) * n for label, n in counts[key].items())
            for split in splits
        }
        split = max(splits, key=lambda name: need[name])  # train before val before test where they are equal
        taken[split] += groups[key]
        for label, count in counts[key].items():
            places[label][split] -= count
    for split, found in taken.items():
        if not found:
            raise InputError(
                f"nothing is left for {split}: {len(samples)} samples are in {len(groups)} groups that stay together, "
                f"and no class has {len(splits)} of them; --group 'REGEX' groups otherwise, '.+' each video "
                "by itself"
            )
    _report(taken, groups_of, classes)
    return {
        split: [sample._replace(video=number) for number, sample in enumerate(sorted(found, key=_order))]
        for split, found in taken.items()
    }


def _order(sample: Sample) -> tuple[str, float, float, str]:
    part = sample.part
    return (*((sample.path, part.start, part.end) if part else (sample.path, -1.0, -1.0)), str(sample.label))


def _labels(sample: Sample) -> Sequence[int]:
    """The labels that a sample counts for; -1 where it has none."""
    return (sample.label,) if isinstance(sample.label, int) else sample.label or (-1,)


def _groups(samples: Sequence[Sample], pattern: str | None) -> dict[str, list[Sample]]:
    """What must stay together, by the text that it has in common."""
    try:
        search = re.compile(pattern or UCF101_GROUP).search
    except re.error as error:
        raise InputError(f"group is a regular expression; {pattern!r} is none: {error}") from error
    matches = {sample.path: search(sample.path.replace(os.sep, "/")) for sample in samples}
    matched = sum(match is not None for match in matches.values())
    if pattern is not None and samples and not matched:
        raise InputError(f"group: {pattern!r} is found in none of {len(matches)} paths, such as {samples[0].path}")
    if pattern is None and matched < len(matches):
        matches = dict.fromkeys(matches)
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        match = matches[sample.path]
        key = f"path {sample.path}" if match is None else f"group {match[1] if match.re.groups else match[0]}"
        groups.setdefault(key, []).append(sample)
    if pattern is None and matched == len(matches) > 0:
        _log.info("these are UCF101's names: clips of one group (g01, g02, ...) stay together, %d groups", len(groups))
    elif pattern is not None:
        _log.info("%d groups; %d of %d videos are in none", len(groups), len(matches) - matched, len(matches))
    return groups


def _with_copies(groups: dict[str, list[Sample]], copies: Sequence[Sequence[str]]) -> dict[str, list[Sample]]:
    """Groups, with those made one that hold copies of a file."""
    key_of = {sample.path: key for key, found in groups.items() for sample in found}
    into = {key: key for key in groups}

    def root(key: str) -> str:
        while into[key] != key:
            key = into[key]
        return key

    for paths in copies:
        first, *others = sorted({root(key_of[path]) for path in paths if path in key_of}) or [""]
        into.update(dict.fromkeys(others, first))
    merged: dict[str, list[Sample]] = {}
    for key, found in groups.items():
        merged.setdefault(root(key), []).extend(found)
    return merged


def _places(count: int, groups: int, shares: Mapping[str, float], splits: Sequence[str]) -> dict[str, int]:
    """How many videos of a class each split should get: whole numbers, at least one where there are enough groups.

    >>> _places(10, 10, {"train": 0.75, "val": 0.25}, ["train", "val"])
    {'train': 8, 'val': 2}
    >>> _places(3, 3, {"train": 0.8, "val": 0.1, "test": 0.1}, ["train", "val", "test"])
    {'train': 1, 'val': 1, 'test': 1}
    """
    others = {split: round(count * shares[split]) for split in splits[1:]}
    if groups >= len(splits):
        others = {split: max(1, number) for split, number in others.items()}
    while sum(others.values()) >= count and max(others.values()) > 0:  # nothing left to train on
        largest = max(others, key=lambda split: others[split])
        others[largest] -= 1
    return {splits[0]: count - sum(others.values()), **others}


def _need(free: int, wanted: int, count: int) -> float:
    """How much a split lacks `count` more of a class, as a share of what it should get; one that has none is first.

    Half of `count` is taken off, so that a group goes where it overshoots by less than it would fall short.
    """
    return (free if free == wanted else free - count / 2) / max(1, wanted)


def _report(taken: Mapping[str, Sequence[Sample]], groups_of: Mapping[int, int], classes: Sequence[str] | None) -> None:
    """Name the classes that a split has nothing of, for they have too few groups."""

    def name(label: int) -> str:
        return "(no label)" if label < 0 else classes[label] if classes is not None else f"class {label}"

    for split, found in taken.items():
        there = {label for sample in found for label in _labels(sample)}
        absent = [f"{name(label)} ({groups_of[label]} groups)" for label in sorted(groups_of) if label not in there]
        if absent:
            more = f" and {len(absent) - _MOST_NAMED} more" if len(absent) > _MOST_NAMED else ""
            _log.warning("%s has no video of %s%s: too few groups", split, ", ".join(absent[:_MOST_NAMED]), more)
