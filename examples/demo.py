"""The whole line in a few minutes on a CPU, offline: videos, fine-tuning, a test, an answer and a picture.

    python examples/demo.py [FOLDER] [--train N] [--test N] [--epochs N]

Makes a small video set that only motion can tell apart, fine-tunes the bundled checkpoint on it, tests it at video
level before and after, classifies a video that it has not seen, and draws a contact sheet. Every step is a command
that could be typed, and is printed before it runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

WEIGHTS = "ircsn_tiny_motion"
VIEWS = ["--data.test_clips", "3", "--data.test_crops", "1"]


def run(*arguments: object, capture: bool = False) -> str:
    """Run `lightning-csn` with arguments; its output is shown, or returned with `capture`."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ lightning-csn {shlex.join(words)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "lightning_csn", *words], stdout=subprocess.PIPE if capture else None, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def tested(output: str) -> float:
    """Print what a test printed, and give its top-1."""
    print(output.strip(), flush=True)
    match = re.search(r"^test: top-1 ([0-9.]+)", output, re.MULTILINE)
    if match is None:
        sys.exit("the test printed no top-1")
    return float(match[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="From videos to a tested network, in a few minutes on a CPU.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo"))
    parser.add_argument("--train", type=int, default=120, help="training videos per class; default 120")
    parser.add_argument("--test", type=int, default=25, help="test videos per class; default 25")
    parser.add_argument("--epochs", type=int, default=10, help="default 10")
    options = parser.parse_args()
    folder = options.folder
    config = Path(__file__).with_name("finetune_motion.yaml")
    videos, runs, sheet = folder / "motion", folder / "runs", folder / "answers.png"
    started = time.monotonic()

    # Another seed than the bundled weights were trained with: other textures, sizes and speeds
    counts = ("--train", options.train, "--val", max(1, options.train // 4), "--test", options.test)
    run("make-motion", videos, *counts, "--seed", 1)
    quiet = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    before = tested(run("test", "--data.root", videos, "--model.pretrained", WEIGHTS, *VIEWS, *quiet, capture=True))
    length = ("--trainer.max_epochs", options.epochs)
    run("fit", "--config", config, "--data.root", videos, "--trainer.default_root_dir", runs, *length)
    checkpoint = runs / "last.ckpt"
    after = tested(run("test", "--data.root", videos, "--ckpt_path", checkpoint, *VIEWS, *quiet, capture=True))

    unseen = sorted((videos / "test").glob("*/*_0001.mp4"))
    answers = json.loads(
        run("classify", *unseen, "--model", checkpoint, "--labelled", "--sheet", sheet, "--json", capture=True)
    )
    predictions = folder / "predictions.csv"
    run("predict", "--data.root", videos / "test", "--ckpt_path", checkpoint, "--output", predictions, *VIEWS, *quiet)
    with predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))

    print("\n--- summary " + "-" * 68)
    for answer in answers["videos"]:
        best = answer["top"][0]
        truth = Path(answer["path"]).parent.name
        verdict = "correct" if best["class"] == truth else f"wrong, it is {truth}"
        print(f"{Path(answer['path']).name:<28} {best['class']:<18} {best['probability']:6.1%}   {verdict}")
    print(f"\ntop-1 on the {len(rows)} test videos: {before:.3f} as shipped, {after:.3f} after fine-tuning")
    print(f"answers as a picture: {sheet}")
    print(f"answers as a table:   {predictions}")
    print(f"fine-tuned weights:   {checkpoint}")
    print(f"time: {(time.monotonic() - started) / 60:.1f} minutes")
    if after < 0.9:
        sys.exit(f"top-1 {after:.3f} is below 0.9: something is wrong")


if __name__ == "__main__":
    main()
