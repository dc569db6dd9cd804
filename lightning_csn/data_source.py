"""Options that several commands have: by which they name a data set, and say how often a network looks at a video.

And what is found by the former, and the weights that are taken where none are named.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_csn.terminal import positive, seconds

if TYPE_CHECKING:
    from lightning_csn.data.samples import Collection

DEFAULT_MODEL = "ircsn_tiny_motion"  # in the wheel: the only weights that every machine has
KINETICS_MODEL = "ircsn_152_ig65m"


def source_options(parser: ArgumentParser, frames_fps: str = "for folders of pictures") -> None:
    """Options of VideoDataModule that say which videos; ROOT is the command's own.

    frames_fps: what --frames-fps is to the command.
    """
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}-list", metavar="FILE", help=f"as --data.{split}_list of fit")
    layout_options(parser)
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="in their order; or one file, with one in a line")
    parser.add_argument("--frames-fps", type=seconds, metavar="N", help=f"as --data.frames_fps of fit, {frames_fps}")


def layout_options(parser: ArgumentParser) -> None:
    """How the videos of ROOT lie."""
    parser.add_argument("--layout", metavar="NAME", help="how the videos are laid out; default: found out")
    parser.add_argument(
        "--fold", type=positive, default=1, metavar="N", help="which official split, where there are several; default 1"
    )


def view_options(parser: ArgumentParser) -> None:
    """How often a network looks at a video, and in which of its forms."""
    parser.add_argument("--clips", type=positive, default=10, metavar="N", help="clips per video; default 10")
    parser.add_argument(
        "--crops",
        type=lambda text: int(text) if text.isdecimal() else text,
        choices=(1, 3, 10, "full"),
        default=1,
        help="squares per clip, or full for whole pictures; default 1, the middle",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="run the network layer by layer as it was trained, and not its folded form, which is quicker and equal "
        "but for rounding",
    )


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
