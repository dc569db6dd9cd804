"""The paper's comparison in small: does channel separation regularise?

    python examples/paper_in_small.py [FOLDER] [--train N] [--test N] [--epochs N] [--seeds N] [--plot FILE.png]

Trains ResNet3D, ip-CSN and ir-CSN of equal depth from scratch on the same videos of the motion set, and prints accuracy
in training against accuracy in the test, parameters and multiply-adds; some minutes on two processor cores. The paper
finds that deep channel-separated networks fit the training videos of Kinetics less well than ResNet3D, and the test
videos better. These networks have 14 layers, and these videos are few: what they show is what is printed.

Both accuracies are of the trained network in eval mode, on whole videos, so that all that differs is which videos.
Every seed draws other weights and another order; the spread is that of the seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_csn import LitCSN
from lightning_csn.clip import ClipSpec
from lightning_csn.data.dataset import VideoDataset, collate
from lightning_csn.data.motion import MOTION_CLASSES, make_motion
from lightning_csn.data.samples import Sample
from lightning_csn.models.roofline import layers

NETWORKS = {"resnet3d_tiny": "ResNet3D-14", "ipcsn_tiny": "ip-CSN-14", "ircsn_tiny": "ir-CSN-14"}
CLIP = {
    "frames": 8,
    "step": 2,
    "fps": 12,
    "short_side": 36,
    "crop": 32,
    "test_crop": 32,
    "mean": [0.45] * 3,
    "std": [0.225] * 3,
}
VIEWS = 3  # clips of a video, spread evenly
BATCH = 16


@dataclass
class Run:
    """A network that was trained once. Accuracies are top-1, 0 to 1."""

    architecture: str
    seed: int
    train: float
    test: float
    seconds: float

    @property
    def gap(self) -> float:
        """What it knows of the videos that it was trained on and not of others."""
        return self.train - self.test


class Clips(Dataset[dict[str, Any]]):
    """Videos in memory, with all of their views or a random one."""

    def __init__(self, items: list[dict[str, Any]], generator: torch.Generator | None = None) -> None:
        self.items = items
        self.generator = generator

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        if self.generator is None:
            return item
        view = int(torch.randint(VIEWS, (), generator=self.generator))
        return item | {"clips": item["clips"][view : view + 1]}


def read(folder: Path) -> list[dict[str, Any]]:
    """The videos of a split, each once, so that training waits for no file."""
    files = sorted(folder.glob("*/*.mp4"))
    samples = [Sample(str(file), MOTION_CLASSES.index(file.parent.name), i) for i, file in enumerate(files)]
    dataset = VideoDataset(samples, ClipSpec(**CLIP), train=False, clips=VIEWS)
    return [dataset[i] for i in range(len(dataset))]


def train(architecture: str, seed: int, splits: dict[str, list[dict[str, Any]]], epochs: int) -> Run:
    """Train a network from scratch and test it on the videos that it has seen, and on those that it has not."""
    started = time.process_time()
    L.seed_everything(seed, verbose=False)
    model = LitCSN(
        architecture,
        num_classes=len(MOTION_CLASSES),
        clip=CLIP,
        optimizer="adamw",
        lr=0.005,
        weight_decay=0.05,
        decay_norms=False,
        warmup_epochs=0.1 * epochs,
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # A random view of each video, and no other augmentation: the question is what the network does by itself.
    order = torch.Generator().manual_seed(seed)
    clips = Clips(splits["train"], order)
    trainer.fit(model, DataLoader(clips, BATCH, shuffle=True, generator=order, collate_fn=collate))
    model.eval()
    accuracy = {split: top1(model, items) for split, items in splits.items()}
    return Run(architecture, seed, accuracy["train"], accuracy["test"], time.process_time() - started)


@torch.inference_mode()
def top1(model: LitCSN, items: list[dict[str, Any]]) -> float:
    """Share of the videos that are told, each by the mean over its views."""
    right = 0
    for batch in DataLoader(Clips(items), BATCH, collate_fn=collate):
        right += int((model(batch["clips"]).argmax(-1) == batch["labels"]).sum())
    return right / len(items)


def size_of(architecture: str) -> tuple[float, float]:
    """Parameters and multiply-adds of one clip, both in millions."""
    network = LitCSN(architecture, num_classes=8, clip=CLIP).network
    counted = layers(architecture, (CLIP["frames"], CLIP["crop"], CLIP["crop"]))
    operations = sum(layer.count * layer.multiply_adds for layer in counted)
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6, operations / 1e6


def mean_and_spread(values: list[float]) -> str:
    """Mean and standard deviation in percent."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):5.1f} +- {100 * spread:4.1f}"


def report(runs: list[Run], count: int) -> None:
    """Print the table, and what it says."""
    head = f"{'NETWORK':<12} {'M PARAMETERS':>12} {'M MULT-ADDS':>12}   {'TRAINED ON':>13}   {'TEST':>13}   {'GAP':>13}"
    print(f"\n{head}")
    gaps = {}
    for architecture, name in NETWORKS.items():
        mine = [run for run in runs if run.architecture == architecture]
        columns = (mean_and_spread([getattr(run, what) for run in mine]) for what in ("train", "test", "gap"))
        parameters, operations = size_of(architecture)
        gaps[name] = statistics.mean(run.gap for run in mine)
        print(f"{name:<12} {parameters:>12.2f} {operations:>12.0f}   {'   '.join(columns)}")
    seeds = len(runs) // len(NETWORKS)
    print(
        f"\ntop-1 in percent, mean and standard deviation of {seeds} seeds; {count} training videos, {VIEWS} views each"
    )
    order = sorted(gaps, key=lambda name: gaps[name])
    print("from the smallest gap between training and test to the largest: " + ", ".join(order))


def draw(runs: list[Run], path: Path) -> None:
    """Training against test accuracy, a point for each run; on the diagonal nothing is learned by heart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.add_subplot()
    lowest = min(min(run.train, run.test) for run in runs) - 0.03
    axes.plot([lowest, 1], [lowest, 1], color="0.8", linewidth=1)
    for marker, (architecture, name) in zip("so^", NETWORKS.items(), strict=True):
        mine = [run for run in runs if run.architecture == architecture]
        parameters, operations = size_of(architecture)
        label = f"{name}: {parameters:.2f} M parameters, {operations:.0f} M multiply-adds"
        axes.plot([run.train for run in mine], [run.test for run in mine], marker, label=label, alpha=0.8)
    axes.set(xlabel="top-1 of the videos trained on", ylabel="top-1 of the test videos")
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="ResNet3D, ip-CSN and ir-CSN of equal depth on a few videos.")
    parser.add_argument("folder", nargs="?", type=Path, help="for the videos and results.json; default a temporary one")
    parser.add_argument("--train", type=int, default=80, help="training videos per class; default 80")
    parser.add_argument("--test", type=int, default=24, help="test videos per class; default 24")
    parser.add_argument("--epochs", type=int, default=12, help="default 12")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each network; default 3")
    parser.add_argument("--plot", type=Path, help="a picture of the result, for which matplotlib is needed")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        videos = make_motion(folder / "motion", train=options.train, val=0, test=options.test, seed=3)
        splits = {split: read(videos / split) for split in ("train", "test")}
        runs = []
        for seed in range(options.seeds):
            for architecture in NETWORKS:
                runs.append(train(architecture, seed, splits, options.epochs))
                run = runs[-1]
                print(
                    f"{NETWORKS[architecture]:<12} seed {seed}: {run.train:6.1%} of the videos trained on, "
                    f"{run.test:6.1%} of the test videos, {run.seconds:.0f} s of processor time",
                    flush=True,
                )
        (folder / "results.json").write_text(json.dumps([asdict(run) for run in runs], indent=2))
        report(runs, len(splits["train"]))
        if options.plot:
            draw(runs, options.plot)
            print(f"picture: {options.plot}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")  # advice for longer runs
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    main()
