"""callbacks.py: what a run says of its memory, and of the videos that it could not read."""

import csv
import shutil
from functools import partial

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from lightning_csn import trainer_commands
from lightning_csn.callbacks import PeakMemory, gpu_memory
from lightning_csn.cli import main
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.module import LitCSN

# Of Lightning, about runs as short as these; and what torch 2.12 deprecates in it.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15

CLIP = "{frames: 4, step: 1, fps: null, short_side: 48, crop: 48, test_crop: 48, mean: [0, 0, 0], std: [1, 1, 1]}"
SMALL = ["--model.architecture=ircsn_tiny", f"--model.clip={CLIP}", "--data.num_workers=0", "--trainer.max_epochs=1"]
SMALL += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
SMALL += ["--trainer.enable_model_summary=false"]


class Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callback, epochs=2):
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, callbacks=[callback], enable_checkpointing=False, **options
    )
    trainer.fit(Line(), DataLoader(torch.ones(2, 2), batch_size=2))


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ((12_340_000_000, 80_000_000_000), ["peak memory of the first epoch: 12.34 GB of 80.0 GB on cpu"]),
        (None, []),
    ],
)
def test_peak_memory_is_told_once_and_after_the_first_epoch(found, lines, capsys):
    asked = []

    def query(device):
        asked.append(device)
        return found

    fit(PeakMemory(query))
    assert asked == [torch.device("cpu")]
    assert capsys.readouterr().out.splitlines() == lines


def test_a_cpu_has_nothing_to_tell():
    assert gpu_memory(torch.device("cpu")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory of a GPU")
def test_a_gpu_tells_its_peak():
    torch.cuda.reset_peak_memory_stats()
    torch.empty(2**20, device="cuda")
    peak, total = gpu_memory(torch.device("cuda"))
    assert 2**22 <= peak <= total


def test_fit_tells_it(split_folder, tmp_path, monkeypatch, capsys):
    stub = partial(PeakMemory, lambda device: (1_500_000_000, 2_000_000_000))
    monkeypatch.setattr(trainer_commands, "PeakMemory", stub)
    options = ["--model.checkpointing=[1,3]", "--trainer.limit_train_batches=1", "--trainer.logger=false"]
    assert main(["fit", *SMALL, *options, f"--data.root={split_folder}", f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert "peak memory of the first epoch: 1.50 GB of 2.0 GB on cpu\n" in capsys.readouterr().out
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert held["checkpointing"] == [1, 3]
    assert LitCSN(**held).network.checkpointed_stages == (1, 3)


@pytest.fixture
def damaged(split_folder, tmp_path):
    """12, 6 and 9 videos, of which two, one and none cannot be read; and their paths, by split."""
    root = tmp_path / "videos"
    shutil.copytree(split_folder, root)
    broken = {
        "train": [str(root / "train/jumping/train_jumping_1.mp4"), str(root / "train/waving/train_waving_3.mp4")],
        "val": [str(root / "val/clapping/val_clapping_0.mp4")],
    }
    for paths in broken.values():
        for path in paths:
            with open(path, "w") as file:
                file.write("no video")
    return root, broken


def listed(folder):
    with open(folder / "unreadable.csv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["stage", "path", "message"]
    assert not any(path in message for _, path, message in rows)
    assert all("Invalid data found" in message for *_, message in rows)
    return [(stage, path) for stage, path, _ in rows]


def test_a_run_lists_the_videos_that_it_could_not_read(damaged, tmp_path, capsys):
    root, broken = damaged
    runs = tmp_path / "runs"
    options = [*SMALL, f"--data.root={root}", f"--trainer.default_root_dir={runs}"]
    assert main(["fit", *options, "--data.unreadable_limit=0.17"]) == 0  # a sixth in both splits
    everything = [(split, path) for split, paths in broken.items() for path in paths]
    assert listed(runs / "version_0") == everything
    assert f"unreadable: 3 videos, listed in {runs / 'version_0' / 'unreadable.csv'}\n" in capsys.readouterr().out

    options = [option for option in options if "architecture" not in option and "clip=" not in option]
    options.append(f"--ckpt_path={runs / 'last.ckpt'}")
    assert main(["validate", *options, "--data.unreadable_limit=1"]) == 0
    assert listed(runs) == everything[2:]
    capsys.readouterr()
    assert main(["test", *options]) == 0
    assert listed(runs) == []  # not those of the run before
    assert "unreadable:" not in capsys.readouterr().out
    assert main(["predict", *options, f"--output={tmp_path / 'answers.csv'}"]) == 0
    assert listed(runs) == [("predict", path) for _, path in everything]
    assert "unreadable: 3 videos, listed in" in capsys.readouterr().out


def test_no_list_is_begun_where_all_can_be_read(split_folder, tmp_path, capsys):
    assert main(["fit", *SMALL, f"--data.root={split_folder}", f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert not (tmp_path / "version_0" / "unreadable.csv").exists()
    assert "unreadable:" not in capsys.readouterr().out


def test_too_many_unreadable_videos_are_an_error_of_the_command_and_listed(damaged, tmp_path, capsys):
    root, broken = damaged
    options = [*SMALL, f"--data.root={root}", f"--trainer.default_root_dir={tmp_path}", "--data.unreadable_limit=0.16"]
    assert main(["fit", *options, "--trainer.num_sanity_val_steps=0"]) == 2
    message = "lightning-csn: error: 2 of the 12 videos of the train split cannot be read, more than the share of 0.16"
    assert message in capsys.readouterr().err
    assert listed(tmp_path / "version_0") == [("train", path) for path in broken["train"]]


@pytest.mark.parametrize("first", [True, False])
def test_of_several_processes_the_first_one_says_what_all_found(damaged, first, tmp_path, monkeypatch, capsys):
    root, _ = damaged
    monkeypatch.setattr(L.Trainer, "is_global_zero", first)
    options = [*SMALL, f"--data.root={root}", f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]
    options += ["--trainer.enable_checkpointing=false", "--data.on_unreadable=raise"]
    assert main(["fit", *options]) == (2 if first else 0)
    assert ("error: " in capsys.readouterr().err) == first


def test_the_progress_bar_shows_how_many_once_there_are_some(damaged, monkeypatch):
    root, _ = damaged
    shown = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            shown.append(trainer.progress_bar_metrics.get("unreadable", 0))

    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # with which the first video is no broken one
    data = VideoDataModule(root, num_workers=0, batch_size=1, unreadable_limit=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}
    model = LitCSN(architecture="ircsn_tiny", clip=yaml.safe_load(CLIP), num_classes=3)
    L.Trainer(accelerator="cpu", max_epochs=1, enable_progress_bar=False, callbacks=[Look()], **quiet).fit(model, data)
    assert shown == sorted(shown)
    assert set(shown) == {0, 1, 2}
