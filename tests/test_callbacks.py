"""callbacks.py: what a run says of its memory."""

from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_csn import trainer_commands
from lightning_csn.callbacks import PeakMemory, gpu_memory
from lightning_csn.cli import main
from lightning_csn.module import LitCSN

# Of Lightning, about runs as short as these; and what torch 2.12 deprecates in it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


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
    clip = "{frames: 4, step: 1, fps: null, short_side: 32, crop: 32, test_crop: 32, mean: [0, 0, 0], std: [1, 1, 1]}"
    options = ["--model.architecture=ircsn_tiny", f"--model.clip={clip}", "--data.num_workers=0"]
    options += ["--model.checkpointing=[1,3]", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    options += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
    options += [f"--data.root={split_folder}", f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]
    assert main(["fit", *options, "--trainer.enable_model_summary=false"]) == 0
    assert "peak memory of the first epoch: 1.50 GB of 2.0 GB on cpu\n" in capsys.readouterr().out
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert held["checkpointing"] == [1, 3]
    assert LitCSN(**held).network.checkpointed_stages == (1, 3)
