"""`lightning-csn`: every command that a shell can give.

A command is one row of COMMANDS: what it does in a line, a function that adds its options to a parser, and a function
that runs it and returns the exit code. The Trainer's commands (fit, validate, test, predict) are `trainer_commands`.

torch, Lightning and av are imported inside the functions that run, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_csn import __version__
from lightning_csn.average import average_options, run_average
from lightning_csn.benchmark import benchmark_options, run_benchmark
from lightning_csn.check_data import check_data_options, run_check_data
from lightning_csn.data_source import view_options
from lightning_csn.errors import InputError
from lightning_csn.export_model import export_options, run_export
from lightning_csn.extract_features import features_options, run_features
from lightning_csn.fit_probe import probe_options, run_probe
from lightning_csn.pack_data import pack_options, run_pack
from lightning_csn.split_data import run_split_data, split_data_options

if TYPE_CHECKING:
    from lightning_csn.answers import Answers
    from lightning_csn.models.checkpoints import Checkpoint
    from lightning_csn.module import LitCSN
    from lightning_csn.predict import Prediction

DEFAULT_MODEL = "ircsn_tiny_motion"  # in the wheel: the only weights that every machine has
KINETICS_MODEL = "ircsn_152_ig65m"

DONE, FAILED, INTERRUPTED = 0, 2, 130  # exit codes; 2 is also what a parser gives for options it does not know


@dataclass(frozen=True)
class Command:
    """A row of the table of commands."""

    summary: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


# ---------------------------------------------------------------- classify


def classify_options(parser: ArgumentParser) -> None:
    """Options of `classify`."""
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO|FOLDER",
        help="a video file of any kind that FFmpeg reads, or a folder: all videos in it, however deep",
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME|FILE|FOLDER|ADDRESS",
        help=f"whose classes; default %(default)s, which comes with the package and knows eight kinds of motion. "
        f"{KINETICS_MODEL} knows the 400 activities of Kinetics; 'lightning-csn checkpoints' lists all. A file is one "
        "that fit wrote (.ckpt), weights of any project, or what 'lightning-csn export' wrote (.onnx, .xml, .pt2)",
    )
    view_options(parser)
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="classes per answer; default 5")
    parser.add_argument("--every", type=seconds, metavar="SECONDS", help="a timeline too: an answer for every so many")
    parser.add_argument("--json", action="store_true", help="answers as JSON")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="the answers for any number of videos, in a file that ends in .jsonl, .csv or .parquet (which needs "
        "lightning-csn[parquet]); the same command goes on with a run that was stopped",
    )
    parser.add_argument("--sheet", metavar="OUT.png", help="a picture too: frames of every video with the answer")
    parser.add_argument(
        "--labelled", action="store_true", help="videos lie in folders that are called like their class: check answers"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; default the GPU where there is one")
    parser.add_argument(
        "--workers", type=natural, metavar="N", help="processes that read videos; default one per processor, 8 at most"
    )
    parser.epilog = (
        "A video that cannot be read is reported, the others are answered, and the exit code is then 2.\n\n"
        "examples:\n"
        f"  lightning-csn classify holiday.mp4 --model {KINETICS_MODEL}\n"
        "  lightning-csn classify *.mp4 --model my_weights/ --every 2\n"
        "  lightning-csn classify *.mp4 --json > answers.json\n"
        "  lightning-csn classify videos/ --output answers.jsonl"
    )


def run_classify(args: Namespace) -> int:
    """Answer for each video; those that cannot be read do not stop the others."""
    for option, value in (("--every", args.every), ("--json", args.json), ("--sheet", args.sheet)):
        if args.output is not None and value:
            raise InputError(f"--output and {option}: one of the two; {option} is for as many videos as one looks at")
    # OpenMP's threads would spin while they wait, on processors that the workers need; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from lightning_csn.answers import Answers
    from lightning_csn.models.fold import keep_memory
    from lightning_csn.module import LitCSN
    from lightning_csn.runner import ExportedNetwork, choose_device, refuse_exact

    refuse_exact(args.model, args.exact)
    device = choose_device(args.device)
    answers = None if args.output is None else Answers(args.output, top=args.top)
    if args.sheet:
        from lightning_csn.visualize import check_picture

        check_picture(args.sheet)
    paths = find_videos(args.videos)
    if args.model == DEFAULT_MODEL:
        note(
            f"{DEFAULT_MODEL} only knows eight kinds of motion; "
            f"for the 400 activities of Kinetics: --model {KINETICS_MODEL}"
        )
    if answers is not None and answers.path.exists():
        note(f"{args.output} is there already, and will be replaced when all videos are answered")
    keep_memory()
    model = LitCSN.from_pretrained(args.model).to(device)
    if isinstance(model.network, ExportedNetwork):
        model.network.run_on(args.device)
    model.exact = args.exact
    return show_answers(args, model, paths) if answers is None else write_answers(args, model, paths, answers)


def find_videos(named: Sequence[str]) -> list[str]:
    """The videos that are named, and all of those in the folders that are, each once.

    InputError for a folder without any, and where nothing of all that is named is there.
    """
    from lightning_csn.data.names import list_videos

    paths: list[str] = []
    for name in named:
        found = list_videos(name) if Path(name).is_dir() else [name]
        if not found:
            raise InputError(f"{name}: no videos in this folder")
        paths += found
    once = list(dict.fromkeys(paths))
    if not any("://" in path or Path(path).exists() for path in once):  # before a network is loaded, or downloaded
        others = f", nor any of the {len(once) - 1} other{'s' if len(once) > 2 else ''}" if len(once) > 1 else ""
        raise InputError(f"{once[0]}: there is no such file{others}")
    if twice := len(paths) - len(once):
        note(f"{twice} video{'s are' if twice != 1 else ' is'} named more than once, and answered once")
    return once


def write_answers(args: Namespace, model: LitCSN, paths: Sequence[str], answers: Answers) -> int:
    """The answers for any number of videos, in a file."""
    from lightning_csn import many

    times = many.Times()
    options = {"clips": args.clips, "crops": args.crops, "workers": args.workers}
    right = 0

    def check(record: dict[str, Any]) -> None:
        nonlocal right
        right += "error" not in record and record["top"][0]["class"] == class_folder(record["path"])

    try:
        counts = many.write_answers(
            model, paths, answers, **options, progress=True, times=times, check=check if args.labelled else None
        )
    except KeyboardInterrupt:
        note("interrupted; the same command goes on with the videos that are left")
        raise
    print(f"answers: {args.output} ({counts})")
    if times.videos:
        note(str(times))
    if counts.short:
        videos = f"{counts.short} videos are" if counts.short != 1 else "1 video is"
        note(f"{videos} shorter than a clip of {args.model}; frames are repeated")
    if args.labelled:
        note(f"{right} of {counts.videos - counts.unreadable} answers are the name of the video's folder")
    if counts.unreadable:
        note(f"{counts.unreadable} of {counts.videos} videos could not be read")
    return FAILED if counts.unreadable else DONE


def show_answers(args: Namespace, model: LitCSN, paths: Sequence[str]) -> int:
    """The answers in the terminal, or as JSON, each as soon as it is there."""
    from lightning_csn.metrics import view_text

    answers: list[Prediction] = []
    failures: dict[str, str] = {}
    videos: list[dict[str, Any]] = []
    for path, answer in find_answers(args, model, paths):
        if isinstance(answer, str):
            failures[path] = answer
            videos.append({"path": path, "error": answer})
            note(answer)
            continue
        answers.append(answer)
        videos.append(as_json(answer))
        if answer.short:
            note(f"{path}: shorter than a clip of {args.model}, so frames are repeated")
        if not args.json:
            print(as_text(answer, f"{args.model}, {view_text(args.clips, args.crops)}"), flush=True)
    if args.json:
        print_json({"model": args.model, "clips": args.clips, "crops": args.crops, "videos": videos})
    if args.sheet and answers:
        from lightning_csn.predict import card
        from lightning_csn.visualize import contact_sheet

        truths = [class_folder(answer.path) if args.labelled else None for answer in answers]
        cards = [card(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
        note(f"contact sheet: {contact_sheet(cards, args.sheet)}")
    if args.labelled and answers:
        right = sum(answer.top[0][0] == class_folder(answer.path) for answer in answers)
        note(f"{right} of {len(answers)} answers are the name of the video's folder")
    if failures:
        note(f"{len(failures)} of {len(paths)} videos could not be read")
    return FAILED if failures else DONE


def find_answers(args: Namespace, model: LitCSN, paths: Sequence[str]) -> Iterator[tuple[str, Prediction | str]]:
    """Each video with its answer, or with why there is none."""
    options = {"clips": args.clips, "crops": args.crops, "top": args.top}
    if args.every is None and len(paths) > 1:
        from lightning_csn.many import Unreadable, classify_many

        for found in classify_many(model, paths, **options, workers=args.workers):
            yield found.path, found.error if isinstance(found, Unreadable) else found
        return
    from lightning_csn.predict import classify

    for path in paths:
        try:
            answer: Prediction | str = classify(model, path, **options, every=args.every)
        except InputError as error:
            answer = str(error)
        yield path, answer


def class_folder(path: str) -> str:
    """Name of the folder that a video lies in."""
    return Path(path).absolute().parent.name


def as_text(answer: Prediction, how: str) -> str:
    """An answer as a person reads it."""
    lines = [f"{answer.path}  ({how})"]
    lines += [f"  {probability:6.1%}  {name}" for name, probability in answer.top]
    if answer.timeline:
        lines.append("  over time, in seconds:")
        for start, end, top in answer.timeline:
            names = ", ".join(f"{name} {probability:.0%}" for name, probability in top[:3])
            lines.append(f"  {start:7.2f} to {end:7.2f}  {names}")
    return "\n".join(lines) + "\n"


def as_json(answer: Prediction) -> dict[str, Any]:
    """An answer as plain values."""

    def classes(top: list[tuple[str, float]]) -> list[dict[str, Any]]:
        return [{"class": name, "probability": probability} for name, probability in top]

    record: dict[str, Any] = {"path": answer.path, "top": classes(answer.top), "short": answer.short}
    if answer.timeline:
        record["timeline"] = [
            {"start_seconds": start, "end_seconds": end, "top": classes(top)} for start, end, top in answer.timeline
        ]
    return record


# ---------------------------------------------------------------- weights


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


# ---------------------------------------------------------------- data


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


# ---------------------------------------------------------------- the Trainer's commands

# The options that most runs need: flag, whose commands, what it is. `--help_all` has the rest.
_ALL = "fit validate test predict"
TRAINER_OPTIONS = (
    ("--data.root FOLDER", _ALL, "videos: a folder per class, with or without train, val and test above"),
    ("--data.train_list FILE", "fit", "lines 'path label' in place of folders; also val_list, test_list"),
    ("--data.batch_size N", "fit", "videos per step"),
    ("--data.test_clips N", "test predict", "clips per video; --data.test_crops N: squares per clip"),
    ("--data.num_workers N", _ALL, "processes that read videos"),
    ("--model.pretrained SOURCE", _ALL, "weights: a name of 'lightning-csn checkpoints', a file, folder or address"),
    ("--model.architecture NAME", "fit", "from scratch: ircsn_50, ipcsn_152, resnet3d_18, ..."),
    ("--model.lr X", "fit", "highest learning rate; also optimizer, schedule, warmup_epochs, weight_decay"),
    ("--model.clip DICT", "fit", "how clips must look, where not as the weights ask: '{frames: 16, step: 4}'"),
    ("--trainer.max_epochs N", "fit", "how long to train"),
    ("--trainer.devices N", _ALL, "GPUs or processes; also accelerator, strategy, precision, num_nodes"),
    ("--trainer.default_root_dir DIR", _ALL, "where runs are kept; default runs"),
    ("--ckpt_path FILE", "fit", "go on with a run: its weights, optimiser and epoch"),
    ("--ckpt_path FILE", "validate test predict", "the network of a run, as DIR/last.ckpt; no --model options needed"),
    ("--exact", "test predict", "run the network as it was trained, and not its quicker form"),
    ("--output FILE", "predict", "where the answers are written, .csv, .jsonl or .parquet; default predictions.csv"),
    ("--seed_everything N", _ALL, "of everything that is drawn; default 0"),
    ("--config FILE", _ALL, "options from a YAML file; what is typed after it wins"),
    ("--print_config", _ALL, "every option with its value, as such a file"),
    ("--help_all", _ALL, "every option with what it means"),
)
TRAINER_COMMANDS = {
    "fit": (
        "train or fine-tune a network on your videos",
        "The last and the best checkpoint of a run, its options and its curves go to a numbered folder below\n"
        "--trainer.default_root_dir; DIR/last.ckpt is the last checkpoint of the newest run.",
        (
            "lightning-csn fit --data.root my_videos --model.pretrained ircsn_152_ig65m",
            "lightning-csn fit --data.root my_videos --model.architecture ircsn_50 --trainer.max_epochs 60",
            "lightning-csn fit --config runs/version_0/config.yaml --ckpt_path runs/last.ckpt",
        ),
    ),
    "validate": (
        "score a network on the validation videos",
        "",
        ("lightning-csn validate --data.root my_videos --ckpt_path runs/last.ckpt",),
    ),
    "test": (
        "score a network on the test videos: 10 clips x 3 crops each, every video once",
        "",
        (
            "lightning-csn test --data.root my_videos --ckpt_path runs/last.ckpt",
            "lightning-csn test --data.root kinetics --model.pretrained ircsn_152_ig65m --trainer.devices 8",
        ),
    ),
    "predict": (
        "write the likeliest classes of every video of a data set into a file",
        "While it runs, the answers lie in FILE.parts; the same command goes on with a prediction\n"
        "that was stopped, on any number of processes.",
        ("lightning-csn predict --data.root my_videos --ckpt_path runs/last.ckpt --output answers.csv",),
    ),
}


def trainer_help(command: str) -> str:
    """A page for one of the Trainer's commands, without importing what it runs."""
    summary, more, examples = TRAINER_COMMANDS[command]
    options = [(flag, text) for flag, commands, text in TRAINER_OPTIONS if command in commands.split()]
    width = max(len(flag) for flag, _ in options)
    return "\n".join(
        [
            f"usage: lightning-csn {command} [--data.OPTION VALUE] [--model.OPTION VALUE] [--trainer.OPTION VALUE] ...",
            "",
            sentence(summary),
            *([more] if more else []),
            "",
            "the options that most runs need:",
            *(f"  {flag:<{width}}  {text}" for flag, text in options),
            "",
            "examples:",
            *(f"  {example}" for example in examples),
        ]
    )


def run_trainer(command: str, argv: list[str]) -> int:
    """fit, validate, test and predict have LightningCLI's parser."""
    if {"-h", "--help"} & set(argv):
        print(trainer_help(command))
        return DONE
    # OpenMP's threads spin while they wait for each other, and take the processor from the workers that read videos:
    # on two cores training was 1.6 to 3 times as fast without. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from lightning_csn import trainer_commands

    summary = sentence(TRAINER_COMMANDS[command][0])
    trainer_commands.run(command, summary, ["--help" if token == "--help_all" else token for token in argv])
    return DONE


# ---------------------------------------------------------------- the door

COMMANDS = {
    "classify": Command("what happens in a video: its likeliest classes", classify_options, run_classify),
    "checkpoints": Command("the weights there are: accuracy, size, licence", checkpoints_options, run_checkpoints),
    "download": Command("fetch weights, for a machine that goes offline", download_options, run_download),
    "convert": Command("weights of other projects to safetensors and config.json", convert_options, run_convert),
    "verify": Command("check weights: whole, complete, as published", verify_options, run_verify),
    "check-data": Command(
        "read every video of a data set: what is there, and what would go wrong", check_data_options, run_check_data
    ),
    "split-data": Command(
        "divide a data set into train, val and test, without leaks", split_data_options, run_split_data
    ),
    "pack": Command("make a data set small and quick to read, in shards for any storage", pack_options, run_pack),
    "features": Command(
        "what a network holds of each video, for a classifier of your own", features_options, run_features
    ),
    "probe": Command(
        "a linear or nearest-neighbour classifier of features: the first figure to have", probe_options, run_probe
    ),
    "average": Command("the figures of a test again, with another mean of its views", average_options, run_average),
    "export": Command(
        "write a network as a file for ONNX Runtime, OpenVINO or torch.export", export_options, run_export
    ),
    "make-motion": Command("make a small labelled video set to try things on", make_motion_options, run_make_motion),
    "benchmark": Command("how fast a network runs here, and how near the floor", benchmark_options, run_benchmark),
}

EPILOG = f"""examples:
  lightning-csn classify holiday.mp4 --model {KINETICS_MODEL}
  lightning-csn fit --data.root my_videos --model.pretrained {KINETICS_MODEL}
  lightning-csn test --data.root my_videos --ckpt_path runs/last.ckpt

'lightning-csn COMMAND --help' says more about one. Exit codes: 0 done; 2 the input or an option
cannot be used, as the message says; 130 interrupted; 1 a bug, with its traceback."""


def make_parser() -> ArgumentParser:
    """The parser of every command; the Trainer's are listed in it and parsed elsewhere."""

    def style(prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=110)

    summaries = {name: summary for name, (summary, _, _) in TRAINER_COMMANDS.items()}
    summaries |= {name: command.summary for name, command in COMMANDS.items()}
    listed = table([(f"  {name}", summary) for name, summary in summaries.items()])
    parser = ArgumentParser(
        "lightning-csn",
        usage="lightning-csn COMMAND ...",
        description=f"Video classification with channel-separated convolutional networks (CSN).\n\ncommands:\n{listed}",
        epilog=EPILOG,
        formatter_class=style,
    )
    parser.add_argument("--version", action="version", version=f"lightning-csn {__version__}")
    parsers = parser.add_subparsers(metavar="COMMAND", required=True, prog="lightning-csn", help=argparse.SUPPRESS)
    for name, command in COMMANDS.items():
        options = parsers.add_parser(name, description=sentence(command.summary), formatter_class=style)
        command.add_options(options)
        options.set_defaults(run=command.run)
    for name in TRAINER_COMMANDS:
        parsers.add_parser(name)  # never parsed here; one of the choices that an unknown command is told
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 with a message on stderr, or 130."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with messages():
            code = run_trainer(argv[0], argv[1:]) if argv[:1] and argv[0] in TRAINER_COMMANDS else run_parsed(argv)
        sys.stdout.flush()
        return code
    except InputError as error:
        note(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `lightning-csn checkpoints | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return DONE
    except SystemExit as stop:  # of a parser; or of the Trainer, which turns an interruption into exit(1)
        if isinstance(stop.__context__, KeyboardInterrupt):
            return INTERRUPTED
        return stop.code if isinstance(stop.code, int) else DONE


def run_parsed(argv: list[str]) -> int:
    """Run a command of COMMANDS."""
    args = make_parser().parse_args(argv or ["--help"])
    code: int = args.run(args)
    return code


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """What the package logs, on stderr, from the first process only."""
    logger = logging.getLogger("lightning_csn")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO if os.environ.get("LOCAL_RANK", "0") == "0" else logging.ERROR)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def note(message: str) -> None:
    """A line on stderr, so that stdout holds answers only."""
    print(f"lightning-csn: {message}", file=sys.stderr, flush=True)


def sentence(summary: str) -> str:
    """A summary with a capital and a full stop."""
    return f"{summary[0].upper()}{summary[1:]}."


def print_json(value: Any) -> None:
    """Plain values, for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, two blanks apart.

    >>> print(table([("NAME", "SIZE"), ("a_longer_name", "1"), ("b", "2")]))
    NAME           SIZE
    a_longer_name  1
    b              2
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a whole number of 1 or more is needed, got {text}")
    return value


def natural(text: str) -> int:
    """A whole number of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"a whole number of 0 or more is needed, got {text}")
    return value


def seconds(text: str) -> float:
    """A length of time above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of seconds above 0 is needed, got {text}")
    return value
