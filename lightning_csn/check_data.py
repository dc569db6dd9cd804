"""`lightning-csn check-data`: every file of a collection is read before training, and a verdict given.

`check_data_options` and `run_check_data` are the command's row in cli.py; torch and av are imported where it runs.
"""

from __future__ import annotations

import argparse
import json
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_csn.data_source import find_source, source_options
from lightning_csn.errors import InputError
from lightning_csn.terminal import note, positive, progress, seconds

if TYPE_CHECKING:
    from lightning_csn.clip import ClipSpec
    from lightning_csn.data.index import Entry
    from lightning_csn.data.report import Report

INDEX = "lightning_csn_index.jsonl"  # in the folder where the command runs: the videos' own is not ours to write to
CLIP_EXAMPLE = """JSON such as '{"frames": 32, "step": 2}'"""
SAFE, NOT_SAFE = 0, 2


def check_data_options(parser: ArgumentParser) -> None:
    """Options of `check-data`."""
    parser.add_argument("root", nargs="?", metavar="ROOT", help="the videos, as --data.root of fit")
    source_options(parser)
    parser.add_argument(
        "--model", metavar="NAME|FILE|FOLDER|ADDRESS", help="say what the clip of these weights does with the videos"
    )
    parser.add_argument("--clip", metavar="JSON", help="the same for this clip; with --model, in place of its values")
    parser.add_argument("--decode", action="store_true", help="decode every frame too, which finds damage inside files")
    parser.add_argument(
        "--index",
        default=INDEX,
        metavar="FILE",
        help="where it is kept what was found, to go on after a stop and for '--data.index FILE' of fit; one file may "
        "hold many collections; default %(default)s, here",
    )
    parser.add_argument(
        "--unreadable-limit", type=share, metavar="SHARE", help="as --data.unreadable_limit of fit; default 0.1"
    )
    parser.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="for a file's packets, or a frame of it; default 60"
    )
    parser.add_argument("--files", action="store_true", help="a line for every file too")
    parser.add_argument("--json", action="store_true", help="the report as JSON: everything, of every video")
    parser.add_argument("--html", metavar="OUT.html", help="a page too, in one file: with bars and pictures")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes; default one per processor")
    parser.epilog = (
        "The exit code is 0 where it is safe to train and 2 where it is not:\n"
        "  no videos to train on, or none of a split that can be read;\n"
        "  more missing and unreadable videos in a split than --unreadable-limit, at which a run would end;\n"
        "  a class without a video to train on, or a video to train on without a label;\n"
        "  the same video (the same bytes) both to train on and to validate or test on.\n"
        "All else is a warning or a note. Files of one size are compared by the SHA-256 of all their bytes;\n"
        "folders of frames are not compared.\n\n"
        "examples:\n"
        "  lightning-csn check-data my_videos --model ircsn_152_ig65m --html report.html\n"
        "  lightning-csn check-data my_videos --train-list train.txt --val-list val.txt --decode\n"
        "  lightning-csn fit --data.root my_videos --data.index lightning_csn_index.jsonl"
    )


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a share from 0 to 1 is needed, got {text}")
    return value


def run_check_data(args: Namespace) -> int:
    """Read, report, judge."""
    from lightning_csn.check_text import as_text, files_text, shown

    clip = choose_clip(args.model, args.clip)
    if args.html is not None:
        check_place(args.html)
    report = check(args, clip)
    if args.html is not None:
        write_page(args, report)
        note(f"page: {shown(args.html)}")
    print(json.dumps(report.to_dict(), indent=2) if args.json else as_text(report), end="\n" if args.json else "")
    if args.files and not args.json:  # which names them all
        print(f"\n{files_text(report)}", end="")
    note(f"index: {shown(args.index)}; training reads it with --data.index {shown(args.index)}")
    return SAFE if report.safe else NOT_SAFE


def check(args: Namespace, clip: ClipSpec | None) -> Report:
    """The report on what the options name."""
    from lightning_csn.data.copies import find_copies
    from lightning_csn.data.crew import usable_processors
    from lightning_csn.data.examine import examine
    from lightning_csn.data.index import Stamp
    from lightning_csn.data.names import list_videos
    from lightning_csn.data.problems import UNREADABLE_LIMIT
    from lightning_csn.data.report import PREDICT
    from lightning_csn.data.samples import Sample
    from lightning_csn.data.survey import READ_SECONDS, read_files

    if args.root is not None and Path(args.root).expanduser().is_file():
        raise InputError(
            f"{args.root}: this is a file, and ROOT is a folder; a list of videos is for --train-list, --val-list or "
            "--test-list"
        )
    collection = find_source(args)
    if args.root is not None and not collection.samples:  # without classes
        videos = [Sample(path, -1, number) for number, path in enumerate(list_videos(args.root))]
        collection = collection._replace(samples={PREDICT: videos})
    note(collection.layout)
    workers = args.workers or usable_processors()
    paths = list(dict.fromkeys(sample.path for samples in collection.samples.values() for sample in samples))
    found: dict[str, Entry | None] = {}
    files = read_files(
        paths, index=args.index, decode=args.decode, workers=workers, seconds=args.timeout or READ_SECONDS
    )
    try:
        for path, entry in progress(files, len(paths), "decoding" if args.decode else "reading"):
            found[path] = entry
    except KeyboardInterrupt:
        note(f"stopped at {len(found)} of {len(paths)} videos; the same command goes on from there")
        raise
    stamps = {path: Stamp(entry.bytes, entry.mtime_ns) for path, entry in found.items() if entry is not None}
    return examine(
        collection,
        found,
        find_copies(stamps, workers=workers),
        root="" if args.root is None else str(Path(args.root).expanduser()),
        clip=clip,
        decoded=args.decode,
        limit=UNREADABLE_LIMIT if args.unreadable_limit is None else args.unreadable_limit,
        frames_fps=args.frames_fps,
    )


def choose_clip(model: str | None, values: str | None) -> ClipSpec | None:
    """The clip of weights, of given values, or of both; None without either."""
    from lightning_csn.clip import ClipSpec

    given: Any = {}
    if values is not None:
        try:
            given = json.loads(values)
        except ValueError as error:
            raise InputError(f"--clip: {CLIP_EXAMPLE} is expected, got {values!r}: {error}") from error
        if not isinstance(given, dict):
            raise InputError(f"--clip: {CLIP_EXAMPLE} is expected, got {values!r}")
    if model is not None:
        from lightning_csn.models import checkpoints

        named = model in checkpoints.list_checkpoints()
        record = checkpoints.find_checkpoint(model) if named else checkpoints.load(model).checkpoint
        return record.clip_spec(given)
    return ClipSpec.from_dict(given) if given else None


def check_place(page: str) -> None:
    """Raise InputError where a page cannot be written, before all videos are read for it."""
    file = Path(page).expanduser()
    if file.is_dir():
        raise InputError(f"--html {page}: a folder is there; name a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--html {page}: it cannot be written there: {error.strerror}") from error


def write_page(args: Namespace, report: Report) -> None:
    """The page, with pictures, whole or not at all."""
    from lightning_csn.check_page import as_html, pictured
    from lightning_csn.data.crew import usable_processors
    from lightning_csn.data.filmstrip import take_strips
    from lightning_csn.data.survey import READ_SECONDS

    paths = pictured(report)
    taken = take_strips(paths, workers=args.workers or usable_processors(), seconds=args.timeout or READ_SECONDS)
    pictures = dict(progress(taken, len(paths), "pictures"))
    page = as_html(report, pictures, when=time.strftime("%Y-%m-%d %H:%M"))
    file = Path(args.html).expanduser()
    partial = file.with_name(file.name + ".partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"--html {args.html}: the page cannot be written: {error.strerror}") from error
