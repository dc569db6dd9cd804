"""`lightning-csn classify`: what happens in videos, in the terminal, as JSON, in a file or as a picture.

`classify_options` and `run_classify` are the command's row in cli.py; torch and av are imported where it runs.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_csn.data_source import DEFAULT_MODEL, KINETICS_MODEL, view_options
from lightning_csn.errors import InputError
from lightning_csn.terminal import DONE, FAILED, natural, note, positive, print_json, seconds

if TYPE_CHECKING:
    from lightning_csn.answers import Answers
    from lightning_csn.module import LitCSN
    from lightning_csn.predict import Prediction


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
    from lightning_csn.runner import ExportedNetwork, choose_device, need_to_answer, refuse_exact

    refuse_exact(args.model, args.exact)
    need_to_answer(args.model, args.output)
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
