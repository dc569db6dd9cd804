"""`lightning-csn features`: what a network holds of each video of a data set, in a file.

`features_options` and `run_features` are the command's row in cli.py; torch and Lightning are imported where it runs.
"""

from __future__ import annotations

import os
import warnings
from argparse import ArgumentParser, Namespace

from lightning_csn.data_source import DEFAULT_MODEL, KINETICS_MODEL, named_classes, source_options, view_options
from lightning_csn.errors import InputError, SharedError
from lightning_csn.terminal import natural, note, positive

ALL_READ, SOME_UNREADABLE = 0, 2


def features_options(parser: ArgumentParser) -> None:
    """Options of `features`."""
    parser.add_argument("root", nargs="?", metavar="ROOT", help="the videos, as --data.root of fit")
    source_options(parser)
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME|FILE|FOLDER|ADDRESS",
        help=f"weights, with or without classes, or a run's .ckpt; default %(default)s, which comes with the package "
        f"and has seen nothing but made-up motion; {KINETICS_MODEL} has seen real videos",
    )
    parser.add_argument(
        "--output",
        default="features.npz",
        metavar="FILE",
        help=".npz, which is in memory as a whole when it is written and read, or .parquet, which is not when it is "
        "written; default %(default)s, here",
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument(
        "--per",
        choices=("video", "view"),
        default="video",
        help="the mean over a video's views, or each view by itself; default video",
    )
    kept.add_argument(
        "--dense",
        dest="per",
        action="store_const",
        const="step",
        help="of each view, the last map's mean over space at each of its steps in time, one for eight frames, with "
        "the seconds of each step",
    )
    view_options(parser)
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, ...; default the GPU where there is one")
    parser.add_argument(
        "--devices",
        type=positive,
        default=1,
        metavar="N",
        help="GPUs, or processes on a CPU, on each machine; default 1",
    )
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="machines, started by torchrun or SLURM")
    parser.add_argument("--precision", default="32-true", help="as --trainer.precision of fit; default %(default)s")
    parser.add_argument(
        "--workers", type=natural, metavar="N", help="processes that read videos, for each device; default one per "
        "processor, 8 at most"
    )  # fmt: skip
    parser.epilog = (
        "All splits go into one file: features, labels, classes, paths, splits, and a manifest of the weights, the\n"
        "clip and the views. A video that cannot be read is listed in it, and the exit code is then 2. The same\n"
        "command goes on with a run that was stopped, on any number of processes.\n\n"
        "examples:\n"
        f"  lightning-csn features my_videos --model {KINETICS_MODEL} --output features.npz\n"
        "  lightning-csn probe features.npz\n"
        "  lightning-csn features my_videos --train-list train.txt --val-list val.txt --model runs/last.ckpt\n"
        "  lightning-csn features my_videos --dense --clips 30 --output dense.parquet --devices 8"
    )


def run_features(args: Namespace) -> int:
    """Extract, and say what there is."""
    if args.root is None and not any((args.train_list, args.val_list, args.test_list)):
        raise InputError("features needs videos: ROOT, or a list file (--train-list FILE)")
    # OpenMP's threads would spin while they wait, on processors that the workers need; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import logging

    from lightning_csn.features import LabelledVideos, extract_features
    from lightning_csn.models.fold import keep_memory
    from lightning_csn.processes import leave

    data = LabelledVideos(
        args.root,
        train_list=args.train_list,
        val_list=args.val_list,
        test_list=args.test_list,
        classes=named_classes(args),
        layout=args.layout,
        fold=args.fold,
        frames_fps=args.frames_fps,
        num_workers=args.workers,
        test_clips=args.clips,
        test_crops=args.crops,
    )
    keep_memory()
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.WARNING)  # not which accelerators there are not
    problem: str | None = None
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 asks torch's trees for their leaves in a way that torch 2.12 calls deprecated.
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            counts = extract_features(
                args.model,
                data,
                args.output,
                per=args.per,
                exact=args.exact,
                progress=True,
                accelerator=args.accelerator,
                devices=args.devices,
                num_nodes=args.nodes,
                precision=args.precision,
            )
    except SharedError as error:
        problem = str(error)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            note("interrupted; the same command goes on with the videos that are left")
        raise
    finally:
        lightning.setLevel(level)
    leave()  # not in the handler: what it handles holds the group
    if problem is not None:
        if int(os.environ.get("LOCAL_RANK", "0")):
            return ALL_READ  # where one process fails, Lightning kills the first, which has this to say
        raise SharedError(problem)
    if counts is None:  # another process has them
        return ALL_READ
    print(f"features: {args.output} ({counts})")
    if counts.short:
        videos = f"{counts.short} videos are" if counts.short != 1 else "1 video is"
        note(f"{videos} shorter than a clip of {args.model}, so frames are repeated")
    return SOME_UNREADABLE if counts.unreadable else ALL_READ
