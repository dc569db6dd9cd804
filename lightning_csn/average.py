"""`lightning-csn average`: the figures of a test with another average, or of fewer views, without a second run."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from lightning_csn.terminal import DONE, print_json, table

if TYPE_CHECKING:
    from lightning_csn.scores import Scores

_MOST_CLASSES = 20  # that the text names


def average_options(parser: argparse.ArgumentParser) -> None:
    """Options of `average`."""
    parser.add_argument("file", metavar="FILE.npz", help="what 'lightning-csn test --scores FILE.npz' wrote")
    parser.add_argument(
        "--average",
        choices=("probabilities", "logits"),
        help="what the mean over the views is of; default as in the test",
    )
    parser.add_argument("--clips", type=numbers, metavar="LIST", help="only these clips, such as 0,5 or 2-4; from 0 on")
    parser.add_argument("--crops", type=numbers, metavar="LIST", help="only these crops, such as 1; from 0 on")
    parser.add_argument(
        "--json",
        action="store_true",
        help="everything: each class, what was taken for what, and all that could not be read",
    )
    parser.epilog = (
        "With the test's own average and all views, every figure is that of the test, to the last digit; with another\n"
        "average, that of a test with it. Half of the clips are not those that a test with half as many would see.\n"
        "Of three crops, 0 is left or top, 1 the middle, and 2 right or bottom.\n\n"
        "examples:\n"
        "  lightning-csn average scores.npz --average logits\n"
        "  lightning-csn average scores.npz --crops 1          the middle alone\n"
        "  lightning-csn average scores.npz --json > scores.json"
    )


def run_average(args: argparse.Namespace) -> int:
    """Print the figures of a file of scores."""
    from lightning_csn.scores import read_scores

    scores = read_scores(args.file).select(args.clips, args.crops)
    if args.json:
        print_json(as_json(scores, args.average))
    else:
        print(as_text(scores, args.average))
    return DONE


def as_text(scores: Scores, average: str | None) -> str:
    """The line that the test printed, and the classes; if they are many, those that are recognised worst."""
    from lightning_csn.metrics import score_text

    lines = [f"{score_text('test', scores.compute(average))}; {scores.protocol(average)}"]
    classes = scores.per_class(average)
    if classes:
        *_, figure = classes[0]
        shown = classes
        if len(classes) > _MOST_CLASSES:
            shown = sorted(classes, key=lambda row: row[figure])[:_MOST_CLASSES]
        head = ("CLASS", "VIDEOS", {"top1": "TOP-1", "average_precision": "AVERAGE PRECISION"}[figure])
        lines.append(table([head, *((row["class"], str(row["videos"]), f"{row[figure]:.4f}") for row in shown)]))
        if len(shown) < len(classes):
            lines.append(f"(the lowest {len(shown)} of {len(classes)} classes; --json has all)")
    return "\n".join(lines)


def as_json(scores: Scores, average: str | None) -> dict[str, Any]:
    """Everything as plain values; a figure that there is not, as without any video, is null."""
    figures = {name: None if math.isnan(value) else value for name, value in scores.compute(average).items()}
    return {
        "scores": figures,
        "protocol": scores.protocol(average),
        "average": average or scores.about.average,
        "network": scores.about.network,
        "multi_label": scores.about.multi_label,
        "classes": scores.per_class(average),
        "confusion": scores.confusion(average),
        "unreadable": [{"video": video, "error": message} for video, message in scores.unreadable.items()],
    }


def numbers(text: str) -> list[int]:
    """Numbers and ranges of them.

    >>> numbers("0,4-6")
    [0, 4, 5, 6]
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
            raise argparse.ArgumentTypeError(f"numbers are needed, such as 0,2 or 3-5, got {text!r}")
        found += range(int(first), int(last if dash else first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names no number: the smaller one comes first, as in 3-5")
    return found
