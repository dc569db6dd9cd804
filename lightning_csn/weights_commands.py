"""`lightning-csn checkpoints`, `download`, `convert` and `verify`: which weights there are, and what is in files.

Each has its options and its run here, which are its row in cli.py; torch is imported where they run.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_csn.errors import InputError, check_count
from lightning_csn.terminal import DONE, FAILED, note, positive, print_json, table

if TYPE_CHECKING:
    from lightning_csn.models.checkpoints import Checkpoint


def checkpoints_options(parser: ArgumentParser) -> None:
    """Options of `checkpoints`."""
    parser.add_argument("filter", nargs="?", default="*", metavar="FILTER", help="a pattern of names, as 'ircsn_152*'")
    parser.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    parser.epilog = (
        "classes: - where the outputs have no names. clip: frames x step.\n"
        "reported: by others; measured: by us; in percent; --json has protocols and sources.\n"
        "size: of the download; ? where the address does not tell.\n\n"
        "examples:\n  lightning-csn checkpoints\n  lightning-csn checkpoints 'ircsn*' --json"
    )


def run_checkpoints(args: Namespace) -> int:
    """List the weights that have names."""
    from lightning_csn.models import checkpoints

    records = [checkpoints.find_checkpoint(name) for name in checkpoints.list_checkpoints(args.filter)]
    if not records:
        raise InputError(f"no checkpoint's name matches {args.filter!r}; without a pattern all are listed")
    if args.json:
        print_json([record.to_dict() for record in records])
        return DONE
    head = (
        "NAME",
        "TRAINED ON",
        "CLASSES",
        "CLIP",
        "REPORTED TOP-1",
        "TOP-5",
        "MEASURED TOP-1",
        "SIZE",
        "LICENCE",
    )
    print(table([head, *map(checkpoint_row, records)]))
    return DONE


def checkpoint_row(record: Checkpoint) -> tuple[str, ...]:
    """A record of checkpoints.json as one line of the table."""
    reported, measured = record.accuracy or {}, record.measured or {}
    sizes = [file.bytes for file in record.files if file.bytes]
    frames, step = (record.clip.get(name) or "?" for name in ("frames", "step"))
    return (
        record.name or "",
        ", ".join(name for name in (record.pretrained_on, record.trained_on) if name) or "?",
        str(record.num_classes) if record.classes else "-",
        f"{frames}x{step}",
        percent(reported.get("top1")),
        percent(reported.get("top5")),
        percent(measured.get("top1")),
        f"{sizes[0] / 1e6:.1f} MB" if sizes else "?",
        record.licence or "?",
    )


def percent(value: float | None) -> str:
    """82.5 as 82.5, None as a dash."""
    return "-" if value is None else f"{value:.1f}"


def download_options(parser: ArgumentParser) -> None:
    """Options of `download`."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="of a checkpoint, or hf://owner/repo, or an address")
    parser.epilog = "examples:\n  lightning-csn download ircsn_152_ig65m ircsn_50_ig65m"


def run_download(args: Namespace) -> int:
    """Fetch weights, resuming and checking their hashes."""
    from lightning_csn.models import checkpoints

    for name in args.names:
        path = checkpoints.fetch_weights(name)
        print(f"{name}: {path} ({path.stat().st_size / 1e6:.1f} MB)", flush=True)
    return DONE


def convert_options(parser: ArgumentParser) -> None:
    """Options of `convert`."""
    parser.add_argument("source", metavar="SOURCE", help="a file (.pth .pyth .pkl .safetensors .ckpt), name or address")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="a folder for model.safetensors, config.json and README.md")
    parser.add_argument("--like", metavar="NAME", help="the checkpoint whose clip (length, size, colours) this one has")
    parser.add_argument("--num-classes", type=positive, metavar="K", help="a new head, for K classes")
    parser.epilog = (
        "Architecture and classes are read off the tensors; how clips must look is not in them (--like).\n\n"
        "examples:\n"
        "  lightning-csn convert CSN_32x8_R101.pyth csn_r101/\n"
        "  lightning-csn convert mine.pth mine/ --like ircsn_152_ig65m"
    )


def run_convert(args: Namespace) -> int:
    """Any source to a folder of ours."""
    from lightning_csn.models import checkpoints

    if args.num_classes is not None:
        check_count("--num-classes", args.num_classes, least=2)
    known = checkpoints.find_checkpoint(args.like).clip if args.like else {}
    clip = {name: value for name, value in known.items() if value is not None}
    loaded = checkpoints.load(args.source, num_classes=args.num_classes, clip=clip)
    folder = checkpoints.save(loaded.network, loaded.checkpoint, args.out_dir)
    print(f"{folder}: {loaded.network.architecture}, {loaded.network.num_classes} classes")
    unknown = [name for name in checkpoints.CLIP_FIELDS if name != "fps" and loaded.checkpoint.clip.get(name) is None]
    if unknown:
        note(f"the file does not say how clips must look ({', '.join(unknown)}): see --like, or edit config.json")
    return DONE


def verify_options(parser: ArgumentParser) -> None:
    """Options of `verify`."""
    parser.add_argument("source", metavar="SOURCE", help="a name, file, folder or address")
    parser.epilog = "examples:\n  lightning-csn verify my_weights/"


def run_verify(args: Namespace) -> int:
    """Load weights strictly, check their hash, and run them once."""
    from lightning_csn.models import checkpoints

    found = checkpoints.verify(args.source)
    if found.published_sha256 is not None:
        right = "as its config.json says" if Path(args.source).is_dir() else "as published"
        origin = right if found.published_sha256 == found.sha256 else f"published: {found.published_sha256}"
    elif found.published_sha1 is not None:
        origin = "its SHA-1 is as published"
    else:
        origin = "nobody published one to compare with"
    rows = [
        ("file", f"{found.path} ({found.bytes:,} bytes)"),
        ("sha256", f"{found.sha256}, {origin}"),
        ("network", f"{found.architecture}, {found.num_classes} outputs, {found.parameters:,} parameters"),
        ("tensors", "every one has its place, every place its tensor"),
        ("logits", "finite on a fixed clip" if found.finite else "not finite on a fixed clip"),
    ]
    print(f"{args.source}: {'good' if found.ok else 'NOT good'}")
    print(table([(f"  {name}", text) for name, text in rows]))
    return DONE if found.ok else FAILED
