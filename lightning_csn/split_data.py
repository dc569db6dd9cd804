"""`lightning-csn split-data`: list files for training, validation and test out of a folder that has no such splits.

`split_data_options` and `run_split_data` are the command's row in cli.py.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_csn.data.samples import Sample
from lightning_csn.data_source import layout_options
from lightning_csn.errors import InputError
from lightning_csn.terminal import note

CLASSES_FILE = "classes.txt"


def split_data_options(parser: ArgumentParser) -> None:
    """Options of `split-data`."""
    parser.add_argument("root", metavar="ROOT", help="a folder of videos in any layout that training takes")
    parser.add_argument("out", metavar="OUT", help="folder for train.txt, val.txt, test.txt and classes.txt")
    parser.add_argument("--val", type=float, default=0.2, metavar="SHARE", help="of each class; default %(default)s")
    parser.add_argument("--test", type=float, default=0.0, metavar="SHARE", help="of each class; default none")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the order in which groups are taken; default %(default)s"
    )
    parser.add_argument(
        "--group",
        metavar="REGEX",
        help="videos whose paths have the same match, or the same first group in brackets, stay together, such as "
        "'person(\\d+)_'; UCF101's groups are found without it",
    )
    layout_options(parser)
    parser.epilog = (
        "Every class gets about the same shares; what belongs together stays together: parts of one video,\n"
        "files with the same bytes, groups.\n"
        "A ROOT with videos for train but none for val has its train videos split, and the others are kept.\n\n"
        "examples:\n"
        "  lightning-csn split-data my_videos lists --val 0.2\n"
        "  lightning-csn split-data my_videos lists --val 0.1 --test 0.1 --seed 7 --group 'person(\\d+)_'\n"
        "  lightning-csn fit --data.root my_videos --data.train_list lists/train.txt --data.val_list lists/val.txt"
    )


def run_split_data(args: Namespace) -> int:
    """Write the lists; paths in them start at ROOT."""
    from lightning_csn.data import shards
    from lightning_csn.data.annotations import find_samples
    from lightning_csn.data.copies import find_copies
    from lightning_csn.data.crew import usable_processors
    from lightning_csn.data.index import stamp_of
    from lightning_csn.data.names import SPLITS
    from lightning_csn.data.splits import split_samples

    root, out = Path(args.root).expanduser(), Path(args.out).expanduser()
    if shards.is_packed(args.root):
        raise InputError(f"{args.root}: this is packed; split the folder that it was packed from, then pack the lists")
    for name in (*(f"{split}.txt" for split in SPLITS), CLASSES_FILE):
        if (out / name).exists():
            raise InputError(f"{out / name}: is there already; name another folder, or take it away")
    found = find_samples(root, layout=args.layout, fold=args.fold)
    note(found.layout)
    samples = dict(found.samples)
    source = next((split for split in ("all", "train") if split in samples), None)
    if source is None:
        raise InputError(f"{root}: no videos for train to split, only {', '.join(samples) or 'some without classes'}")
    shares = {"val": args.val, "test": args.test}
    for split, share in shares.items():
        if share > 0 and split in samples:
            raise InputError(f"{root}: there is a {split} already, with {len(samples[split])} videos; give --{split} 0")
    there = samples.pop(source)
    stamps = {sample.path: stamp for sample in there if (stamp := stamp_of(sample.path)) is not None}
    copies = find_copies(stamps, workers=usable_processors())
    if copies:
        note(f"{sum(map(len, copies))} files are copies of one another, of {len(copies)} videos: copies stay together")
    samples |= split_samples(there, **shares, seed=args.seed, group=args.group, classes=found.classes, copies=copies)
    texts = {split: _list_text(samples[split], found.classes, root) for split in SPLITS if split in samples}
    _write(out, {**{f"{split}.txt": text for split, text in texts.items()}, CLASSES_FILE: _lines(found.classes)})
    for split in texts:
        print(f"{out / f'{split}.txt'}: {len(samples[split])} samples of {_classes_in(samples[split])} classes")
    lists = " ".join(f"--data.{split}_list {out / f'{split}.txt'}" for split in texts)
    print(f"to use them: --data.root {root} {lists}", file=sys.stderr)
    return 0


def _classes_in(samples: Sequence[Sample]) -> int:
    labels = [(sample.label,) if isinstance(sample.label, int) else sample.label for sample in samples]
    return len({label for several in labels for label in several})


def _list_text(samples: Sequence[Sample], classes: Sequence[str], root: Path) -> str:
    """Lines of path and label with a tab between; with a heading where samples are parts or have several labels."""
    several = any(isinstance(sample.label, tuple) for sample in samples)
    units = {sample.part.unit for sample in samples if sample.part is not None}
    if len(units) > 1:
        raise InputError(f"{root}: parts in seconds and in frames together have no list file")
    headings = {"seconds": ["start", "end"], "frames": ["start_frame", "end_frame"]}
    columns = ["path", "labels" if several else "label", *(heading for unit in units for heading in headings[unit])]
    lines = ["\t".join(columns)] if len(columns) > 2 or several else []
    for sample in samples:
        numbers = (sample.label,) if isinstance(sample.label, int) else sample.label
        cells = [os.path.relpath(sample.path, root), "|".join(classes[number] for number in numbers if number >= 0)]
        if units:
            cells += [f"{sample.part.start}", f"{sample.part.end}"] if sample.part is not None else ["", ""]
        lines.append("\t".join(_quoted(cell, root) for cell in cells))
    return _lines(lines)


def _quoted(text: str, root: Path) -> str:
    if any(sign in text for sign in "\t\n\r"):
        raise InputError(f"{root}: no list file can hold the name {text!r}")
    quoted = '"' in text or text[:1] == "#" or text != text.strip()
    return '"' + text.replace('"', '""') + '"' if quoted else text


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _write(out: Path, texts: dict[str, str]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: the lists cannot be written: {error.strerror}") from error
