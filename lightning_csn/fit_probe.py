"""`lightning-csn probe`: what features tell of the classes, before any training.

`probe_options` and `run_probe` are the command's row in cli.py; torch and scikit-learn are imported where it runs.
"""

from __future__ import annotations

import re
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_csn.errors import InputError
from lightning_csn.terminal import natural, note, print_json, table

if TYPE_CHECKING:
    from lightning_csn.feature_file import Features
    from lightning_csn.probe import ClassScore, Held, Report, Score

DONE = 0
MOST_CLASSES = 20  # that the text names
COLUMNS = {"top1": "TOP-1", "macro_f1": "MACRO F1", "map": "MAP"}
NAMES = {"linear": "linear probe", "knn": "nearest neighbours"}


def probe_options(parser: ArgumentParser) -> None:
    """Options of `probe`."""
    parser.add_argument("features", metavar="FEATURES", help="what 'lightning-csn features' wrote, .npz or .parquet")
    parser.add_argument(
        "--val", metavar="FEATURES", help="another file, to judge by; default: the splits of the first but train"
    )
    parser.add_argument(
        "--kind",
        choices=tuple(NAMES),
        default="linear",
        help="a logistic regression on standardised features, or the vote of the nearest neighbours; default linear",
    )
    parser.add_argument(
        "--folds",
        type=natural,
        default=5,
        metavar="N",
        help="of cross-validation on train, where classes have so many videos; default 5, 0 is without",
    )
    parser.add_argument(
        "--group",
        metavar="REGEX",
        help="videos whose paths have the same match, or the same first group in brackets, lie in one fold, such as "
        "'person(\\d+)_'",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of the folds; default %(default)s")
    parser.add_argument(
        "--save", metavar="DIR", help="the network with a linear probe as its head, to test or to fine-tune"
    )
    parser.add_argument(
        "--model", metavar="FILE|FOLDER", help="with --save: the weights, where they are not where they were any more"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON: all classes and the confusion")
    parser.epilog = (
        "Fitted on split train, or on all videos where there are no splits. The penalty (C) or the number of\n"
        "neighbours (k) is chosen in three folds of what is fitted on, also within each fold of the\n"
        "cross-validation. +- is the standard deviation over the folds. Where videos may have several labels, each\n"
        "class is told by itself, and the figure is mAP.\n\n"
        "examples:\n"
        "  lightning-csn features my_videos --model ircsn_152_ig65m\n"
        "  lightning-csn probe features.npz\n"
        "  lightning-csn probe features.npz --kind knn --group '(v_\\w+_g\\d+)_c'\n"
        "  lightning-csn probe features.npz --save my_head\n"
        "  lightning-csn test --data.root my_videos --model.pretrained my_head --model.average logits"
    )


def run_probe(args: Namespace) -> int:
    """Fit, report, save."""
    if args.save is not None and args.kind != "linear":
        raise InputError(f"--save is for --kind linear; {NAMES[args.kind]} are videos, which no head holds")
    if args.model is not None and args.save is None:
        raise InputError("--model is for --save; the features are there already")
    from lightning_csn.feature_file import read_features
    from lightning_csn.probe import fit_probe, save_probe

    features = read_features(args.features)
    held = None if args.val is None else read_features(args.val)
    groups = None if args.group is None else groups_of(features, args.group)
    report, probe = fit_probe(features, held, kind=args.kind, folds=args.folds, groups=groups, seed=args.seed)
    for each, path in ((features, args.features), *([(held, args.val)] if held is not None else [])):
        if each.unreadable:
            note(f"{path}: {len(each.unreadable)} videos could not be read and are in no figure")
    if args.json:
        print_json(report.to_dict())
    else:
        print(as_text(report, features))
    if args.save is not None:
        note(f"network with this head: {save_probe(probe, args.save, source=args.model)}")
    return DONE


def groups_of(features: Features, pattern: str) -> list[str]:
    """What the paths have in common, for each video; InputError where it is in none.

    A path without it is a group of its own.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise InputError(f"--group is a regular expression; {pattern!r} is none: {error}") from error
    matches = [search(path.replace("\\", "/")) for path in features.paths]
    if not any(matches):
        raise InputError(f"--group: {pattern!r} is found in none of {len(matches)} paths, such as {features.paths[0]}")
    return [
        path if match is None else match[1] if match.re.groups and match[1] is not None else match[0]
        for path, match in zip(features.paths, matches, strict=True)
    ]


def as_text(report: Report, features: Features) -> str:
    """The figures, and the classes; if they are many, those that are told worst."""
    from lightning_csn.metrics import view_text

    about = features.manifest
    views = view_text(about["clips"], about["crops"])
    chosen = ", ".join(f"{name} {value:g}" for name, value in report.chosen.items()).replace("n_neighbors", "k")
    lines = [
        f"{report.videos} videos of {len(report.class_names)} classes ({report.fitted_on}), {report.features} features "
        f"of {about['model'] or about['architecture']}, {views}"
    ]
    name = f"{NAMES[report.kind]} ({chosen})"
    judged = next(iter(report.held.values()))
    rows = [("", "", *(COLUMNS[name] for name in judged.score.figures()))]
    baseline = "majority class" if judged.score.map is None else "shares of classes"
    if report.folds:
        where = f"{len(report.folds)} folds of {report.fitted_on}{' (groups kept)' if report.grouped else ''}"
        rows.append((baseline, where, *spreads(report.majority_folds)))
        rows.append((NAMES[report.kind], where, *spreads(report.folds)))
    for split, held in report.held.items():
        if split != "folds":
            where = f"{held.videos} videos of {split or 'the other file'}"
            for what, score in ((baseline, held.majority), (name, held.score)):
                rows.append((what, where, *(f"{value:.4f}" for value in score.figures().values())))
    lines.append(table(rows))
    for split, held in report.held.items():
        lines += ["", class_text(held, split)]
    return "\n".join(lines)


def spreads(scores: Sequence[Score]) -> list[str]:
    """Mean and standard deviation over the folds, of each figure."""
    columns = zip(*(score.figures().values() for score in scores), strict=True)
    return [f"{statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}" for values in columns]


def class_text(held: Held, split: str) -> str:
    """How each class is told, and what it is taken for."""
    numbers = list(range(len(held.classes)))
    few = len(numbers) <= MOST_CLASSES
    if not few:
        numbers = sorted((n for n in numbers if held.classes[n].videos), key=lambda n: worth(held.classes[n]))
        numbers = numbers[:MOST_CLASSES]
    more = [] if few else [f"(the lowest {MOST_CLASSES} of {len(held.classes)} classes; --json has all)"]
    rows: list[tuple[str, ...]]
    if not held.confusion:
        rows = [("", f"CLASS ({split})", "VIDEOS", "AVERAGE PRECISION", "PRECISION", "RECALL", "F1")]
        for number in numbers:
            one = held.classes[number]
            average = "-" if one.average_precision is None else f"{one.average_precision:.4f}"
            figures = (f"{value:.4f}" for value in (one.precision, one.recall, one.f1))
            rows.append((str(number), one.name, str(one.videos), average, *figures))
        return "\n".join([table(rows), *more])
    taken = [f"as {number}" for number in numbers] if few else ["MOSTLY TAKEN FOR"]
    rows = [("", f"CLASS ({split})", "VIDEOS", "PRECISION", "RECALL", "F1", *taken)]
    for number in numbers:
        one, counts = held.classes[number], held.confusion[number]
        wrong = max((n for n in range(len(counts)) if n != number), key=lambda n: counts[n])
        last = [str(count) for count in counts] if few else [f"{held.classes[wrong].name} ({counts[wrong]})"]
        rows.append(
            (str(number), one.name, str(one.videos), *(f"{v:.4f}" for v in (one.precision, one.recall, one.f1)), *last)
        )
    return "\n".join([table(rows), *more])


def worth(one: ClassScore) -> float:
    """By which classes are ordered."""
    return one.f1 if one.average_precision is None else one.average_precision
