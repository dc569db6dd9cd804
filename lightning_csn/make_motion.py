"""`lightning-csn make-motion`: a small labelled video set, as data/motion.py makes it.

`make_motion_options` and `run_make_motion` are the command's row in cli.py; torch and av are imported where it runs.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from lightning_csn.terminal import DONE, positive


def make_motion_options(parser: ArgumentParser) -> None:
    """Options of `make-motion`."""
    parser.add_argument("folder", metavar="DIR", help="a new folder, or one that this command has made")
    for split, count in (("train", 60), ("val", 15), ("test", 25)):
        parser.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"videos per class; default {count}"
        )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything that is drawn; default 0")
    parser.add_argument("--workers", type=positive, metavar="N", help="threads; default one per processor")
    parser.epilog = (
        "Eight classes (left, right, up, down, clockwise, counter-clockwise, nearer, farther) that no single frame "
        "tells apart.\n\nexamples:\n  lightning-csn make-motion motion/\n"
        "  lightning-csn fit --data.root motion --model.architecture ircsn_tiny"
    )


def run_make_motion(args: Namespace) -> int:
    """Write the motion set."""
    from lightning_csn.data.motion import MOTION_CLASSES, make_motion

    counts = {"train": args.train, "val": args.val, "test": args.test}
    folder = make_motion(args.folder, **counts, seed=args.seed, workers=args.workers)
    splits = ", ".join(f"{count * len(MOTION_CLASSES)} {split}" for split, count in counts.items())
    print(f"{folder}: {len(MOTION_CLASSES)} classes, videos: {splits}")
    return DONE
