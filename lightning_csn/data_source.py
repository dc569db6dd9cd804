"""The options by which check-data, pack and features name a data set, what is found by them, and the bar of how far."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lightning_csn.data.samples import Collection

T = TypeVar("T")


def source_options(parser: ArgumentParser) -> None:
    """Options of VideoDataModule that say which videos; ROOT is the command's own."""
    from lightning_csn.cli import positive

    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}-list", metavar="FILE", help=f"as --data.{split}_list of fit")
    parser.add_argument("--layout", metavar="NAME", help="how the videos are laid out; default: found out")
    parser.add_argument("--fold", type=positive, default=1, metavar="N", help="of official splits; default 1")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="in their order; or one file, with one in a line")


def find_source(args: Namespace) -> Collection:
    """What ROOT and these options name. Raises InputError as `find_samples`."""
    from lightning_csn.data.annotations import find_samples

    given = {"train": args.train_list, "val": args.val_list, "test": args.test_list}
    return find_samples(
        args.root,
        lists={split: path for split, path in given.items() if path is not None},
        classes=named_classes(args),
        layout=args.layout,
        fold=args.fold,
    )


def named_classes(args: Namespace) -> list[str] | str | None:
    """The classes of --classes, or the file that it names."""
    classes: list[str] | None = args.classes
    return classes[0] if classes is not None and len(classes) == 1 and Path(classes[0]).is_file() else classes


def progress(steps: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The steps, with a bar on stderr where that is a terminal."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    return iter(tqdm(steps, total=total, desc=what, unit="video", file=sys.stderr, disable=None, leave=False))
