"""A network that is unfrozen part by part learns as it should, and what is frozen does not move."""

import copy
import logging

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from lightning_csn.errors import InputError
from lightning_csn.module import LitCSN
from lightning_csn.optimizer import PARTS, part_of
from lightning_csn.unfreezing import GradualUnfreezing

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15


class Moved(L.Callback):
    """Which parts have changed in each epoch, their weights and the statistics of their BatchNorms."""

    def __init__(self):
        self.weights, self.statistics, self.rates = [], [], []

    def on_train_epoch_start(self, trainer, module):
        self.before = copy.deepcopy(module.network)

    def on_train_batch_start(self, trainer, module, *args):
        self.rates.append(trainer.optimizers[0].param_groups[-1]["lr"])

    def on_train_epoch_end(self, trainer, module):
        for found, kind in ((self.weights, "named_parameters"), (self.statistics, "named_buffers")):
            pairs = zip(getattr(self.before, kind)(), getattr(module.network, kind)(), strict=True)
            moved = {part_of(name) for (name, old), (_, new) in pairs if not torch.equal(old, new)}
            found.append([part for part in PARTS if part in moved])


OPTIMISERS = [{"weight_decay": 0.1}, {"optimizer": "adamw", "lr": 0.01, "decay_norms": False, "layer_decay": 0.5}]


@pytest.mark.parametrize("options", OPTIMISERS)
def test_the_head_learns_first_and_then_part_after_part(make_trainer, tiny_model, tiny_loader, caplog, options):
    caplog.set_level(logging.INFO, "lightning_csn")
    moved, model = Moved(), tiny_model(**options)
    trainer = make_trainer(max_epochs=4, callbacks=[GradualUnfreezing({"stem": 3, "stage4": 1, "stage2": 1}), moved])
    trainer.fit(model, tiny_loader())
    assert moved.weights == [["head"], *[["stage2", "stage4", "head"]] * 2, ["stem", "stage2", "stage4", "head"]]
    assert moved.statistics == [[], *[["stage2", "stage4"]] * 2, ["stem", "stage2", "stage4"]]
    plan = "unfreezing: stage4 after epoch 1, stage2 after epoch 1, stem after epoch 3, stage3 never, stage1 never"
    assert plan in caplog.text
    assert "unfrozen: stage2, stage4" in caplog.text
    assert all(parameter.requires_grad for parameter in model.parameters())  # for whatever comes next
    assert all(module.training for module in model.network.modules())


def test_validation_and_others_that_switch_the_network_to_train_mode_move_nothing(
    make_trainer, tiny_model, tiny_loader
):
    class Train(L.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            module.train()

    moved, model = Moved(), tiny_model(network={"dropout": 0.5})
    trainer = make_trainer(max_epochs=2, callbacks=[Train(), GradualUnfreezing({"stage4": 1}), moved])
    trainer.fit(model, tiny_loader(), tiny_loader())
    assert moved.statistics == [[], ["stage4"]]


@pytest.mark.parametrize("freeze_bn", ["stats", "all"])
def test_norms_of_what_is_unfrozen_are_what_freeze_bn_makes_of_them(make_trainer, tiny_model, tiny_loader, freeze_bn):
    class Norms(L.Callback):
        """Parts with a BatchNorm whose weight, or anything else of which, has changed since the beginning."""

        def __init__(self):
            self.affine, self.others = [], []

        def on_train_start(self, trainer, module):
            self.before = copy.deepcopy(module.network.state_dict())

        def on_train_epoch_end(self, trainer, module):
            now = module.network.state_dict()
            moved = [name for name, old in self.before.items() if not torch.equal(old, now[name])]
            norms = {name for name, one in module.network.named_modules() if "Norm" in type(one).__name__}
            affine = {part_of(name) for name in moved if name.rpartition(".")[0] in norms}
            self.affine.append([part for part in PARTS if part in affine])
            others = {part_of(name) for name in moved if name.rpartition(".")[0] not in norms}
            self.others.append([part for part in PARTS if part in others])

    norms, moved, model = Norms(), Moved(), tiny_model(freeze_bn=freeze_bn, weight_decay=0.1)
    callbacks = [GradualUnfreezing({"stage4": 1, "stage2": 2}), norms, moved]
    make_trainer(max_epochs=3, callbacks=callbacks).fit(model, tiny_loader(), tiny_loader())
    learnt = [["head"], ["stage4", "head"], ["stage2", "stage4", "head"]]
    assert norms.others == learnt
    assert norms.affine == [[part for part in parts if part != "head" and freeze_bn == "stats"] for parts in learnt]
    assert moved.statistics == [[], [], []]
    frozen = [parameter for parameter in model.network.parameters() if not parameter.requires_grad]
    count = sum("Norm" in type(one).__name__ for one in model.network.modules())
    assert len(frozen) == (2 * count if freeze_bn == "all" else 0)


def test_nothing_stays_frozen_where_modules_were_exchanged_in_training(make_trainer, tiny_model, tiny_loader):
    class Exchange(L.Callback):  # as the conversion of SyncBatchNorm, and back
        def on_train_end(self, trainer, module):
            module.network.stem.norm = copy.copy(module.network.stem.norm)

    model = tiny_model()
    make_trainer(max_epochs=1, callbacks=[Exchange(), GradualUnfreezing()]).fit(model, tiny_loader())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_frozen_gets_no_gradient_and_no_graph(tiny_model):
    callback, model = GradualUnfreezing(), tiny_model()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    callback.setup(trainer, model, "fit")
    maps = model.network.forward_features(torch.zeros(2, 3, 2, 16, 16))
    assert maps.grad_fn is None
    assert model.network.head.weight.requires_grad


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_that_goes_on_has_unfrozen_what_the_whole_run_has(make_trainer, tiny_model, tiny_loader, tmp_path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (1, 0):
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    options = {"optimizer": "adamw", "lr": 0.01, "warmup_epochs": 1, "layer_decay": 0.5}
    whole, moved = tiny_model(**options), Moved()
    callbacks = [GradualUnfreezing({"stage4": 1, "stage3": 2}), moved, Save()]
    make_trainer(max_epochs=3, callbacks=callbacks).fit(whole, tiny_loader())
    resumed, again = tiny_model(**options), Moved()
    again.before = LitCSN.load_from_checkpoint(tmp_path / "middle.ckpt").network  # where no epoch begins
    trainer = make_trainer(max_epochs=3, callbacks=[GradualUnfreezing({"stage4": 1, "stage3": 2}), again])
    trainer.fit(resumed, tiny_loader(), ckpt_path=tmp_path / "middle.ckpt")
    assert again.weights == [["stage4", "head"], ["stage3", "stage4", "head"]]
    assert again.rates[-3:] == moved.rates[-3:]


def test_a_run_that_goes_on_with_other_epochs_is_refused(make_trainer, tiny_model, tiny_loader, tmp_path):
    trainer = make_trainer(max_epochs=1, callbacks=[GradualUnfreezing()])
    trainer.fit(tiny_model(), tiny_loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer = make_trainer(max_epochs=2, callbacks=[GradualUnfreezing(2)])
    with pytest.raises(InputError, match=r"the run to go on with has \{'stage4': 1, 'stage3': 2"):
        trainer.fit(tiny_model(), tiny_loader(), ckpt_path=tmp_path / "last.ckpt")


def test_what_others_have_frozen_stays_frozen(make_trainer, tiny_model, tiny_loader):
    model, moved = tiny_model(), Moved()
    model.network.stage4.requires_grad_(False)
    norm = next(module for module in model.network.stage3.modules() if isinstance(module, nn.BatchNorm3d))
    norm.requires_grad_(False)
    make_trainer(max_epochs=2, callbacks=[GradualUnfreezing({"stage4": 1, "stage3": 1}), moved]).fit(
        model, tiny_loader()
    )
    assert moved.weights[1] == ["stage3", "head"]
    assert not any(parameter.requires_grad for parameter in (*model.network.stage4.parameters(), *norm.parameters()))


def test_parts_that_training_is_too_short_for_are_told(make_trainer, tiny_model, tiny_loader, caplog):
    make_trainer(max_epochs=1, callbacks=[GradualUnfreezing({"stage4": 0.5, "stem": 3})]).fit(
        tiny_model(), tiny_loader()
    )
    assert "frozen to the end, as training ends after epoch 1: stem" in caplog.text


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ({"stage5": 1}, "epochs has no 'stage5'; there are: stage4, stage3, stage2, stage1, stem"),
        ({"head": 1}, "epochs has no 'head', which learns from the start; there are"),
        ({"stem": -1}, "epochs of stem must be a number of 0 or more, got -1"),
        (-1, "epochs must be a number of 0 or more, got -1"),
    ],
)
def test_epochs_that_make_no_sense_are_refused(epochs, message):
    with pytest.raises(InputError, match=message):
        GradualUnfreezing(epochs)


def test_a_head_that_is_frozen_and_strategies_that_shard_are_refused(make_trainer, tiny_model, tiny_loader):
    model = tiny_model()
    model.network.head.requires_grad_(False)
    with pytest.raises(InputError, match="begins with the head, but all of its parameters are frozen"):
        make_trainer(fast_dev_run=True, callbacks=[GradualUnfreezing()]).fit(model, tiny_loader())
    assert model.network.stem.conv.weight.requires_grad
    trainer = L.Trainer(accelerator="cpu", strategy=L.pytorch.strategies.ModelParallelStrategy(), logger=False)
    with pytest.raises(InputError, match="ModelParallelStrategy puts parameters together"):
        GradualUnfreezing().setup(trainer, tiny_model(), "fit")


# Lightning's own BackboneFinetuning


class Naive(LitCSN):
    """With what BackboneFinetuning needs, and an optimiser as its examples have it."""

    @property
    def backbone(self):
        return nn.ModuleList(self.network.get_submodule(part) for part in PARTS[:-1])

    def configure_callbacks(self):
        return []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)]


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_lightnings_finetuning_moves_what_it_freezes_and_ends_in_an_error_and_is_therefore_refused(
    make_trainer, tiny_model, tiny_loader
):
    torch.manual_seed(0)
    naive, moved = tiny_model(Naive), Moved()
    trainer = make_trainer(max_epochs=2, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1), moved])
    with pytest.raises(ValueError, match="zip"):
        trainer.fit(naive, tiny_loader())
    assert moved.weights[0] == moved.statistics[0] + ["head"] == list(PARTS)
    trainer = make_trainer(max_epochs=2, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=1)])
    with pytest.raises(
        InputError, match=r"BackboneFinetuning does not work with this model: .*; use GradualUnfreezing"
    ):
        trainer.fit(tiny_model(), tiny_loader())


# Several processes

SCRIPT = '''
import os, sys, weakref
import lightning as L
import torch
from torch.utils.data import DataLoader
from lightning_csn import unfreezing
from lightning_csn.module import LitCSN

folder, devices = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
CLIP = dict(frames=2, step=1, fps=None, short_side=16, crop=16, test_crop=16, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
average_anew = unfreezing.average_anew
old = []


def watched(strategy):
    old.append(weakref.ref(strategy.model))
    average_anew(strategy)


class Still(L.Callback):
    """BatchNorm normalises with what it has: the clips of the other process make no difference."""

    def on_train_start(self, trainer, module):
        module.network.eval()


def make_item(number):
    generator = torch.Generator().manual_seed(number)
    clips = torch.randint(256, (1, 3, 2, 16, 16), generator=generator, dtype=torch.uint8)
    return {"clips": clips, "labels": number % 4, "videos": number, "short": False}


def collate(items):
    return torch.utils.data.default_collate(items) | {"unreadable": []}


for name, way in (("ours", watched), ("naive", lambda strategy: None)):
    unfreezing.average_anew = way
    torch.manual_seed(0)
    model = LitCSN("ircsn_tiny", num_classes=4, clip=CLIP, lr=0.05, layer_decay=0.5).double()
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="64-true",
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, max_epochs=3,
        use_distributed_sampler=False,  # Lightning's shuffles
        callbacks=[Still(), unfreezing.GradualUnfreezing({"stage4": 1, "stage2": 1, "stem": 2})],
        default_root_dir=folder,
    )
    items = [make_item(n) for n in range(int(os.environ.get("LOCAL_RANK", 0)), 8, devices)]
    trainer.fit(model, DataLoader(items, batch_size=4 // devices, collate_fn=collate))
    torch.save(model.network.state_dict(), f"{folder}/{name}-{devices}-{trainer.global_rank}.pt")
if devices > 1:
    assert len(old) == 2 and all(ref() is None for ref in old), "an old DistributedDataParallel goes on averaging"
'''


@pytest.fixture(scope="module")
def trained(run_script, tmp_path_factory):
    """The network's tensors after the same training on one and on two processes, as it is and with DDP left alone."""
    folder = tmp_path_factory.mktemp("processes")
    for devices in (1, 2):
        run_script(folder, SCRIPT, folder, devices)
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


def test_two_processes_unfreeze_as_one(trained):
    for rank in (0, 1):
        for name, tensor in trained["ours-1-0"].items():
            torch.testing.assert_close(trained[f"ours-2-{rank}"][name], tensor, rtol=1e-9, atol=1e-12, msg=name)


def test_parameters_that_join_would_be_averaged_over_no_processes_otherwise(trained):
    apart = [
        name for name, tensor in trained["naive-2-0"].items() if not torch.equal(trained["naive-2-1"][name], tensor)
    ]
    assert {part_of(name) for name in apart} >= {"stage4", "stage2", "stem"}
