"""On two processes: class weights and a teacher teach what they teach on one, and averages have precise norms."""

import pytest
import torch

from lightning_csn.models.batchnorm import measure_statistics
from lightning_csn.module import LitCSN

SCRIPT = '''
import os, sys
import lightning as L
import torch
from torch.utils.data import DataLoader
from lightning_csn.ema import EMA
from lightning_csn.module import LitCSN
from lightning_csn.precise_bn import PreciseBatchNorm

folder, devices = sys.argv[1], int(sys.argv[2])
rank = int(os.environ.get("LOCAL_RANK", 0))
torch.set_num_threads(1)
CLIP = dict(frames=2, step=1, fps=None, short_side=16, crop=16, test_crop=16, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
CASES = {  # options of LitCSN, callbacks
    "weights": ({"freeze_bn": "stats", "class_weights": [0.5, 1.0, 2.0, 4.0]}, []),
    "teacher": ({"freeze_bn": "stats", "teacher": f"{folder}/teacher", "distill_weight": 0.7}, []),
    "averages": ({"lr": 0.01}, [EMA(0.5), PreciseBatchNorm()]),
}


class Data(L.LightningDataModule):
    """Four clips a step, of which each process has its share; as many of each class in each share only by chance."""

    classes = [str(label) for label in range(4)]

    def train_dataloader(self):
        return DataLoader([batch(number) for number in range(4)], batch_size=None)

    def val_dataloader(self):
        return DataLoader([batch(9)], batch_size=None)


def batch(number):
    generator = torch.Generator().manual_seed(number)
    clips = torch.randint(256, (4, 1, 3, 2, 16, 16), generator=generator, dtype=torch.uint8)[rank::devices]
    labels = torch.randint(4, (4,), generator=generator)[rank::devices]
    numbers = torch.arange(4)[rank::devices] + 4 * number
    return {"clips": clips, "labels": labels, "videos": numbers, "short": labels < 0, "unreadable": []}


for name, (options, callbacks) in CASES.items():
    torch.manual_seed(0)
    settings = {"classes": Data.classes, "clip": CLIP, "lr": 0.05, "schedule": "constant"} | options
    model = LitCSN("ircsn_tiny", **settings).double()
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="64-true",
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, max_epochs=2,
        use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=folder, callbacks=callbacks,
        sync_batchnorm=devices > 1,
    )
    trainer.fit(model, Data())
    trainer.save_checkpoint(f"{folder}/{name}-{devices}.ckpt")
    torch.save(model.state_dict(), f"{folder}/{name}-{devices}-{rank}.pt")
'''


@pytest.fixture(scope="module")
def folder(run_script, tiny_model, tmp_path_factory):
    """Of the checkpoints of the same training on one and on two processes, and the weights that each process has."""
    folder = tmp_path_factory.mktemp("processes")
    teacher = tiny_model(seed=1, sure=30, classes=[str(label) for label in range(4)])
    teacher.eval().save_pretrained(folder / "teacher")
    for devices in (1, 2):
        run_script(folder, SCRIPT, folder, devices)
    return folder


@pytest.mark.parametrize("name", ["weights", "teacher", "averages"])
def test_two_processes_learn_what_one_learns(folder, name):
    one = torch.load(folder / f"{name}-1.ckpt", weights_only=True)
    two = torch.load(folder / f"{name}-2.ckpt", weights_only=True)
    parts = ["state_dict", "current_model_state"] if name == "averages" else ["state_dict"]
    for part in parts:
        assert one[part].keys() == two[part].keys()
        for key, tensor in one[part].items():
            torch.testing.assert_close(two[part][key], tensor, rtol=1e-6, atol=1e-9, msg=f"{part} {key}")
    for rank in (0, 1):
        held = torch.load(folder / f"{name}-2-{rank}.pt", weights_only=True)
        torch.testing.assert_close(held, one["state_dict"], rtol=1e-6, atol=1e-9)


def test_averages_have_the_precise_statistics_of_all_processes_and_are_what_a_test_sees(folder):
    content = torch.load(folder / "averages-2.ckpt", weights_only=True)
    model = LitCSN.load_from_checkpoint(folder / "averages-2.ckpt").double()
    generators = [torch.Generator().manual_seed(number) for number in range(4)]
    clips = [torch.randint(256, (4, 1, 3, 2, 16, 16), generator=one, dtype=torch.uint8) for one in generators]
    measure_statistics(model.network.train(), [model.normalise(torch.cat(clips)[:, 0])])
    # Over all sixteen clips at once; in training they came by fours, of which each layer saw what fours before give.
    for name, tensor in model.state_dict().items():
        if name.startswith("network.stem") and "running" in name:
            torch.testing.assert_close(content["state_dict"][name], tensor, rtol=1e-3, atol=1e-6, msg=name)
    raw, average = content["current_model_state"], content["state_dict"]
    assert not torch.equal(raw["network.head.weight"], average["network.head.weight"])
    assert not torch.equal(raw["network.stem.norm.running_mean"], average["network.stem.norm.running_mean"])
