"""Kills `lightning-csn fit` with SIGKILL again and again, resumes it each time, and compares with a run left alone.

    python tests/kill_and_resume.py FOLDER --kills 50

Final weights, their averages, the optimiser's and the scheduler's state and the curves have to be equal to the last
bit. Training has all that is random in it: order, balanced classes, clips, mirror images, RandAugment, erasing, MixUp
and CutMix, dropout and drop path; and parts to be unfrozen and precise statistics. The moments are drawn: while the
program starts, while it trains or validates, and while it writes a checkpoint, which is done after every step and
copied from another file system where there is one, so that it takes a while.

test_kill_and_resume.py does it with few kills.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

CLIP = "{frames: 4, step: 2, fps: 12, short_side: 36, crop: 32, test_crop: 32, mean: [0, 0, 0], std: [1, 1, 1]}"
NETWORK = "{dropout: 0.2, drop_path: 0.1}"
OPTIONS = [
    "--model.architecture=ircsn_tiny",
    f"--model.clip={CLIP}",
    f"--model.network={NETWORK}",
    "--model.mixup=0.4",
    "--model.cutmix=1.0",
    "--model.lr=0.05",
    "--model.layer_decay=0.75",
    "--model.class_weights=balanced",
    "--model.warmup_epochs=0.5",
    "--ema=0.9",
    "--data.balance=0.5",
    "--data.batch_size=4",
    "--data.augment=randaugment",
    "--data.erasing=0.25",
    "--data.num_workers=2",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.callbacks+=lightning_csn.GradualUnfreezing",
    "--trainer.callbacks.epochs=1",
    "--trainer.callbacks+=lightning_csn.PreciseBatchNorm",
    "--trainer.callbacks.batches=1",
    "--save_minutes=0",
]
MOMENTS = ("start", "training", "writing")


def fit(root: Path, runs: Path, epochs: int, temporary: Path) -> subprocess.Popen[bytes]:
    """The command, started; it goes on with DIR/last.ckpt if there is one."""
    command = [sys.executable, "-m", "lightning_csn", "fit", *OPTIONS, f"--data.root={root}"]
    command += [f"--trainer.default_root_dir={runs}", f"--trainer.max_epochs={epochs}"]
    if (runs / "last.ckpt").exists():
        command.append(f"--ckpt_path={runs / 'last.ckpt'}")
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with open(runs.with_name(f"{runs.name}.log"), "ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def written(runs: Path) -> float:
    """When DIR/last.ckpt was written."""
    return (runs / "last.ckpt").stat().st_mtime if (runs / "last.ckpt").exists() else 0.0


def kill(run: subprocess.Popen[bytes], runs: Path, temporary: Path, moment: str, draw: random.Random) -> bool:
    """Kill a run in a moment of a kind; whether it was not over before."""
    before = written(runs)
    if moment == "start":
        wait_until(run, time.monotonic() + draw.uniform(0, 12), lambda: False)
    else:
        for _ in range(draw.randint(1, 6)):
            wait_until(run, None, lambda before=before: written(runs) > before)
            before = written(runs)
        wait_until(run, time.monotonic() + draw.uniform(0, 1), lambda: False)
    if moment == "writing":
        folders = [temporary, *runs.glob("version_*/checkpoints")]
        wait_until(run, None, lambda: any(entry.name.endswith(".part") for entry in entries(folders)))
    if run.poll() is not None:
        return False
    run.send_signal(signal.SIGKILL)
    run.wait()
    return True


def entries(folders: list[Path]) -> list[os.DirEntry[str]]:
    """What lies in some folders."""
    return [entry for folder in folders for entry in os.scandir(folder)]


def wait_until(run: subprocess.Popen[bytes], end: float | None, happened: Any) -> None:
    """Wait for the end of the run, a time, or something to happen."""
    while run.poll() is None and (end is None or time.monotonic() < end) and not happened():
        time.sleep(0.0002)


def curves(runs: Path) -> dict[tuple[str, str], set[str]]:
    """(step, figure) -> its values in all parts of a run."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in runs.glob("version_*/metrics.csv"):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in ("epoch", "step"):
                        found.setdefault((row["step"], name), set()).add(value)
    return found


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of what is not equal to the last bit, in whatever a checkpoint holds."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{name}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    return [] if one == other else [f"{name}: {one} and {other}"]


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs between two runs."""
    one, other = (torch.load(runs / "last.ckpt", weights_only=True) for runs in (whole, killed))
    parts = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    parts += ("global_step", "epoch")
    found = [difference for part in parts for difference in differences(one[part], other[part], part)]
    best, best_killed = (next(iter(runs.glob("version_*/checkpoints/epoch*"))).name for runs in (whole, killed))
    if best != best_killed:
        found.append(f"best checkpoints {best} and {best_killed}")
    expected, curve = curves(whole), curves(killed)
    for key in sorted(expected.keys() | curve.keys()):
        if curve.get(key) != expected.get(key):
            found.append(f"curve {key}: {expected.get(key)} and {curve.get(key)}")
    left = [path.name for path in killed.rglob("*") if path.name.endswith(".part")]
    kept = [path.name for path in killed.rglob("*.ckpt")]
    if left or sorted(kept) != sorted(path.name for path in whole.rglob("*.ckpt")):
        found.append(f"files: {left + kept}")
    return found


def kill_and_resume(root: Path, folder: Path, *, kills: int, epochs: int, seed: int = 0) -> dict[str, Any]:
    """Both runs; what differs between them, how often which moment was met, and the steps of the run.

    root: a data set. folder: for both runs.
    """
    draw = random.Random(seed)
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        temporary = Path(name)
        whole, killed = folder / "whole", folder / "killed"
        run = fit(root, whole, epochs, temporary)
        assert run.wait() == 0, (folder / "whole.log").read_text()
        met: Counter[str] = Counter()
        lost = 0
        while met.total() < kills:
            moment = draw.choices(MOMENTS, (1, 4, 5))[0]
            run = fit(root, killed, epochs, temporary)
            if not kill(run, killed, temporary, moment, draw):
                assert run.returncode == 0, (folder / "killed.log").read_text()
                break
            met[moment] += 1
            part = list(killed.rglob("*.part"))
            lost += bool(part)
            print(f"{met.total()} kills; {moment}; step {step(killed)}; left: {part}", flush=True)
        else:
            run = fit(root, killed, epochs, temporary)
            assert run.wait() == 0, (folder / "killed.log").read_text()
    return {
        "differences": compare(whole, killed),
        "kills": dict(met),
        "amid a file": lost,
        "steps": step(whole),
    }


def step(runs: Path) -> int:
    """How far DIR/last.ckpt is."""
    path = runs / "last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    root = options.folder / "motion"
    making = [sys.executable, "-m", "lightning_csn", "make-motion", str(root), "--train=3", "--val=1", "--test=1"]
    subprocess.run(making, check=True)
    found = kill_and_resume(root, options.folder, kills=options.kills, epochs=options.epochs, seed=options.seed)
    print(json.dumps(found, indent=2))
    sys.exit(bool(found["differences"]))


if __name__ == "__main__":
    main()
