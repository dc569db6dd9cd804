"""models/batchnorm.py and LitCSN(freeze_bn=...): what is frozen stays, and several processes are one.

For each known trap there is a test that first shows the trap, in what is usually done, and then that ours is not in it.
"""

import copy
import json

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.plugins import TorchSyncBatchNorm
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader
from torchvision.ops import FrozenBatchNorm2d

from lightning_csn.errors import InputError
from lightning_csn.export import export
from lightning_csn.merge_options import merge_settings
from lightning_csn.models import checkpoints
from lightning_csn.models.batchnorm import (
    FrozenBatchNorm3d,
    SyncBatchNorm3d,
    freeze_norms,
    frozen_norms,
    live_norms,
    measure_statistics,
    sync_norms,
    unfreeze_norms,
    unsync_norms,
)
from lightning_csn.models.fold import fold
from lightning_csn.models.network import create_network
from lightning_csn.module import LitCSN
from lightning_csn.runner import load_runner

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15

CLIP = {
    **{"frames": 4, "step": 2, "fps": 10, "short_side": 36, "crop": 32, "test_crop": 32},
    **{"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.5]},
}


def make_network(**options):
    """A network whose BatchNorms are those of a trained one."""
    torch.manual_seed(0)
    network = create_network("ircsn_tiny", num_classes=3, **options)
    for norm in live_norms(network):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return network


def make_clips(count=2):
    return torch.randn(count, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def statistics(network):
    return {name: value.clone() for name, value in network.named_buffers()}


def same(before, after, names=None):
    """Names of `names` (else all) that are the same in both."""
    return {name for name in (names or before) if torch.equal(before[name], after[name])}


@pytest.fixture
def make_trainer(make_trainer):
    """A Trainer of two steps."""
    return lambda **options: make_trainer(**({"max_steps": 2} | options))


def make_model(**options):
    torch.manual_seed(0)
    model = LitCSN("ircsn_tiny", num_classes=3, clip=CLIP, schedule="constant", lr=0.1, **options)
    model.network.load_state_dict(make_network().state_dict())
    return model


def make_batches(size=2, count=2):
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "clips": torch.randint(256, (size, 1, 3, 4, 32, 32), generator=generator, dtype=torch.uint8),
            "labels": torch.arange(size) % 3,
            "videos": torch.arange(size),
            "short": torch.zeros(size, dtype=torch.bool),
            "unreadable": [],
        }
        for _ in range(count)
    ]


def loader(batches):
    return DataLoader(batches, batch_size=None)


# ---------------------------------------------------------------- frozen


@pytest.mark.parametrize("what", ["stats", "all"])
def test_frozen_network_is_in_train_mode_what_the_other_is_in_eval_mode(what):
    network = make_network()
    expected = copy.deepcopy(network).eval()(make_clips())
    freeze_norms(network, what)
    before = statistics(network)
    network.train()
    found = network(make_clips())
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    assert same(before, statistics(network)) == before.keys()
    assert all(norm.training for norm in frozen_norms(network))
    for norm in frozen_norms(network):
        learns = what == "stats"
        assert (norm.weight.grad is not None, norm.bias.grad is not None) == (learns, learns)
        assert norm.weight.requires_grad is norm.bias.requires_grad is learns


def test_freezing_keeps_tensors_names_eps_and_momentum_and_is_undone_by_unfreezing():
    network = make_network(norm_eps=0.02, norm_momentum=0.3)
    plain, held = repr(network), dict(network.state_dict(keep_vars=True))
    parameters = list(network.parameters())
    for what in ("all", "stats", "all"):
        freeze_norms(network, what)
        found = network.state_dict(keep_vars=True)
        assert found.keys() == held.keys()
        assert all(found[name] is tensor for name, tensor in held.items())
        assert [*map(id, network.parameters())] == [*map(id, parameters)]  # in order: averages of weights zip them
        assert {norm.frozen for norm in frozen_norms(network)} == {what}
    unfreeze_norms(network)
    assert repr(network) == plain
    assert all(parameter.requires_grad for parameter in parameters)
    assert {(norm.eps, norm.momentum) for norm in live_norms(network)} == {(0.02, 0.3)}
    before = statistics(network)
    network(make_clips())
    assert not same(before, statistics(network))


def test_parts_of_a_network_are_frozen_and_unfrozen_by_name():
    network = make_network()
    freeze_norms(network, "all", ["stem", "stage1"])
    before = statistics(network)
    network(make_clips())
    frozen = {name for name in before if name.startswith(("stem.", "stage1."))}
    assert same(before, statistics(network)) == frozen
    freeze_norms(network, "stats", ["stage1"])
    assert network.stem.norm.frozen == "all"
    assert network.stage1[0].expand.norm.weight.requires_grad
    unfreeze_norms(network, ["stage1"])
    assert frozen_norms(network) == [network.stem.norm]
    with pytest.raises(InputError, match=r"stages must be some of stem, stage1, .*, got \['stage5'\]"):
        freeze_norms(network, "all", ["stage5"])
    with pytest.raises(InputError, match=r"stages must be some of .*, got 'stem'"):
        freeze_norms(network, "all", "stem")
    with pytest.raises(InputError, match="what must be one of none, stats, all, got 'yes'"):
        freeze_norms(network, "yes")


def test_a_frozen_norm_has_no_gradient_left_that_an_optimiser_would_go_on_with():
    network = make_network()
    network(make_clips()).sum().backward()
    freeze_norms(network, "all")
    assert all(norm.weight.grad is norm.bias.grad is None for norm in frozen_norms(network))


def test_a_norm_without_statistics_cannot_be_frozen():
    network = make_network()
    network.stem.norm = nn.BatchNorm3d(16, track_running_stats=False)
    with pytest.raises(InputError, match="without running statistics has nothing to keep"):
        freeze_norms(network, "stats")


def test_weights_saved_frozen_load_into_a_network_that_is_not_and_back(tmp_path):
    model = make_model(freeze_bn="all")
    folder = model.save_pretrained(tmp_path / "saved")
    assert not frozen_norms(checkpoints.load(str(folder)).network)
    again = LitCSN.from_pretrained(folder, freeze_bn="stats")
    assert {norm.frozen for norm in frozen_norms(again.network)} == {"stats"}
    clips = make_clips()
    torch.testing.assert_close(again.network(clips), model.network.eval()(clips))


def test_frozen_norms_load_state_dicts_from_before_batches_were_counted():
    norm = FrozenBatchNorm3d(2)
    norm.load_state_dict({name: torch.ones(2) for name in ("weight", "bias", "running_mean", "running_var")})
    assert norm.num_batches_tracked == 0


# ---------------------------------------------------------------- traps of freezing


def test_trap_eval_mode_does_not_survive_train_mode():
    network = make_network()
    naive = copy.deepcopy(network)
    for norm in live_norms(naive):
        norm.eval()
    before = statistics(naive)
    naive.train()(make_clips())  # Lightning calls train() after validation, and a model of from_pretrained needs it
    assert not same(before, statistics(naive))
    freeze_norms(network, "stats")
    network.train()(make_clips())
    assert same(before, statistics(network)) == before.keys()


def test_trap_lightnings_backbone_finetuning_freezes_no_batchnorm():
    network = make_network()
    clips = make_clips()
    expected = copy.deepcopy(network).eval()(clips)
    trained = copy.deepcopy(network)
    before = statistics(trained)
    BackboneFinetuning.freeze(trained, train_bn=True)  # its default
    trained(clips)
    assert not same(before, statistics(trained))
    assert trained.stem.norm.weight.requires_grad
    stopped = copy.deepcopy(network)
    BackboneFinetuning.freeze(stopped, train_bn=False)
    assert (stopped(clips) - expected).abs().max() > 0.1  # it learns from batches what it is not asked in a test
    freeze_norms(network, "all")
    torch.testing.assert_close(network(clips), expected)


def test_trap_frozen_norms_of_timm_and_torchvision_are_for_images():
    network = make_network()
    assert len(live_norms(freeze_batch_norm_2d(network))) == 17  # all of them, as if nothing had been asked
    clips = torch.randn(2, 2, 3, 4, 5)
    image_norm = FrozenBatchNorm2d(2)
    image_norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="size"):
        image_norm(torch.randn(3, 2, 7, 4, 5)) - image_norm(torch.randn(3, 7, 2, 4, 5))
    norm = FrozenBatchNorm3d(2)
    norm.running_mean.copy_(image_norm.running_mean)
    torch.testing.assert_close(norm(clips)[:, 1], (clips[:, 1] - 2) * (1 + 1e-5) ** -0.5)


def test_trap_update_bn_wipes_the_statistics_of_norms_in_eval_mode():
    network = make_network()
    naive = copy.deepcopy(network).eval()
    before = statistics(network)
    update_bn([make_clips(4)], naive)
    assert not same(before, statistics(naive))
    freeze_norms(network, "stats", ["stem"])
    update_bn([make_clips(4)], network)
    assert same(before, statistics(network)) == {name for name in before if name.startswith("stem.")}


def test_trap_synchronising_makes_frozen_norms_live():
    network = make_network()
    naive = copy.deepcopy(network).eval()
    naive = nn.SyncBatchNorm.convert_sync_batchnorm(naive).train()
    before = statistics(naive)
    naive(make_clips())
    assert not same(before, statistics(naive))
    freeze_norms(network, "stats", ["stem", "stage1"])
    for convert in (nn.SyncBatchNorm.convert_sync_batchnorm, TorchSyncBatchNorm().apply):
        converted = convert(copy.deepcopy(network))
        assert [*map(type, frozen_norms(converted))] == [FrozenBatchNorm3d] * 5
        converted.train()(make_clips())
        frozen = {name for name in before if name.startswith(("stem.", "stage1."))}
        assert same(before, statistics(converted)) == frozen


def test_trap_vmz_momentum_wrecks_the_statistics_of_a_fine_tuning(tmp_path):
    """VMZ's PyTorch port carries Caffe2's 0.9 over, which means the opposite in PyTorch: nine tenths of a new batch."""
    network = make_network()
    naive = copy.deepcopy(network)
    for norm in live_norms(naive):
        norm.momentum = 0.9
    folder = LitCSN.save_pretrained(make_model(), tmp_path / "weights")
    ours = LitCSN.from_pretrained(folder).network
    before = network.stem.norm.running_mean.clone()
    odd = 5 + make_clips()  # one batch unlike the others
    moved = [(one.train()(odd), float((one.stem.norm.running_mean - before).norm()))[1] for one in (naive, ours)]
    assert moved[0] == pytest.approx(9 * moved[1], rel=1e-3)


def test_eps_and_momentum_are_those_of_the_checkpoint_in_every_form(tmp_path):
    made = LitCSN("ircsn_tiny", num_classes=3, clip=CLIP, network={"norm_eps": 0.5, "norm_momentum": 0.03})
    folder = made.save_pretrained(tmp_path / "weights")
    for freeze_bn in ("none", "stats", "all"):
        model = LitCSN.from_pretrained(folder, freeze_bn=freeze_bn)
        sync_norms(model)
        unsync_norms(model)
        unfreeze_norms(model.network)
        assert {(norm.eps, norm.momentum) for norm in live_norms(model)} == {(0.5, 0.03)}
        freeze_norms(model.network, "stats")
        assert {norm.eps for norm in frozen_norms(model)} == {0.5}


# ---------------------------------------------------------------- in training


@pytest.mark.parametrize("freeze_bn", ["none", "stats", "all"])
def test_freeze_bn_in_a_training(freeze_bn, make_trainer, tmp_path):
    model = make_model(freeze_bn=freeze_bn, weight_decay=0.1)
    before = copy.deepcopy(model.network.state_dict())
    trainer = make_trainer(max_epochs=1, max_steps=-1)
    trainer.fit(model, loader(make_batches()), loader(make_batches(count=1)))  # a warning would be an error here
    after = model.network.state_dict()
    kinds = {kind: [name for name in before if f"norm.{kind}" in name] for kind in ("running", "weight", "bias")}
    stay = {"none": [], "stats": ["running"], "all": ["running", "weight", "bias"]}[freeze_bn]
    for kind, names in kinds.items():
        assert same(before, after, names) == (set(names) if kind in stay else set()), kind
    learned = {id(parameter) for group in trainer.optimizers[0].param_groups for parameter in group["params"]}
    assert (id(model.network.stem.norm.weight) in learned) == (freeze_bn != "all")
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = LitCSN.load_from_checkpoint(tmp_path / "run.ckpt")
    assert again.hparams["freeze_bn"] == freeze_bn
    assert {norm.frozen for norm in frozen_norms(again.network)} == ({freeze_bn} - {"none"})
    assert same(after, again.network.state_dict()) == after.keys()


def test_freeze_bn_is_one_of_three_and_none_for_checkpoints_from_before(make_trainer, tmp_path):
    with pytest.raises(InputError, match="freeze_bn must be one of none, stats, all, got True"):
        LitCSN("ircsn_tiny", num_classes=3, freeze_bn=True)
    trainer, model = make_trainer(max_steps=1), make_model()
    trainer.fit(model, loader(make_batches()))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    del content["hyper_parameters"]["freeze_bn"]
    torch.save(content, tmp_path / "old.ckpt")
    assert LitCSN.load_from_checkpoint(tmp_path / "old.ckpt").hparams["freeze_bn"] == "none"
    options = {"typed": {"freeze_bn"}, "defaults": {"freeze_bn": "none"}, "resume": True}
    with pytest.raises(InputError, match="the run to go on with has freeze_bn none"):
        merge_settings({"num_classes": 3}, {"freeze_bn": "all"}, **options)


@pytest.mark.parametrize(
    ("size", "freeze_bn", "words"),
    [(7, "none", "over 7 clips at a time"), (8, "none", None), (2, "stats", None), (1, "all", None)],
)
def test_batches_that_are_too_small_for_live_statistics_are_announced_once(
    size, freeze_bn, words, make_trainer, caplog
):
    make_trainer().fit(make_model(freeze_bn=freeze_bn), loader(make_batches(size)))
    found = [record.getMessage() for record in caplog.records if "BatchNorm" in record.getMessage()]
    assert len(found) == (words is not None)
    if words is not None:
        assert words in found[0]
        assert "--model.freeze_bn stats" in found[0]
        assert "sync_batchnorm" not in found[0]  # of no use to one process


def test_unreadable_videos_count_as_part_of_the_batch_size(make_trainer, caplog):
    batches = make_batches(6)
    for batch in batches:
        batch["unreadable"] = [(6, "6.mp4: no such file"), (7, "7.mp4: no such file")]
    make_trainer().fit(make_model(), loader(batches))
    assert not [record for record in caplog.records if "BatchNorm counts" in record.getMessage()]


def test_freezing_the_statistics_of_a_fresh_network_is_announced(make_trainer, caplog):
    model = LitCSN("ircsn_tiny", num_classes=3, clip=CLIP, freeze_bn="stats", schedule="constant")
    make_trainer(max_steps=1).fit(model, loader(make_batches()))
    assert "at the statistics of a fresh network, mean 0 and variance 1" in caplog.text


# ---------------------------------------------------------------- other forms of the network


@pytest.mark.parametrize("what", ["stats", "all"])
def test_folded_form_knows_frozen_norms(what):
    network = make_network()
    clips = make_clips()
    expected = copy.deepcopy(network).eval()(clips)
    freeze_norms(network, what, ["stem", "stage2"])
    with torch.no_grad():
        torch.testing.assert_close(fold(network.eval())(clips), expected, rtol=1e-4, atol=1e-5)


def test_frozen_networks_are_exported(tmp_path):
    model = make_model(freeze_bn="all").eval()
    export(model, tmp_path / "model.pt2")  # compares the logits
    assert load_runner(tmp_path / "model.pt2", "cpu")(make_batches()[0]["clips"][:, 0]).shape == (2, 3)


def test_trap_what_lightning_leaves_of_synchronised_norms_can_be_folded_and_made_whole_again():
    network = make_network()
    clips = make_clips()
    expected = copy.deepcopy(network).eval()(clips)
    plugin = TorchSyncBatchNorm()
    left = plugin.revert(plugin.apply(network)).eval()
    assert not isinstance(left.stem.norm, nn.BatchNorm3d)  # what code that asks for BatchNorm3d stumbles over
    with torch.no_grad():
        torch.testing.assert_close(fold(left)(clips), expected, rtol=1e-4, atol=1e-5)
    unsync_norms(left)
    assert {type(norm) for norm in live_norms(left)} == {nn.BatchNorm3d}
    torch.testing.assert_close(left.eval()(clips), expected)


def test_a_batchnorm_that_computes_something_else_is_not_folded():
    class Doubled(nn.BatchNorm3d):
        def forward(self, x):
            return 2 * super().forward(x)

    network = make_network()
    network.stem.norm = Doubled(16)
    with pytest.raises(InputError, match="got Conv3d and Doubled"):
        fold(network)


# ---------------------------------------------------------------- synchronised


def test_synchronising_keeps_tensors_and_comes_back_and_leaves_frozen_norms():
    network = make_network()
    plain, held = repr(network), dict(network.state_dict(keep_vars=True))
    freeze_norms(network, "stats", ["stage1"])
    sync_norms(network)
    assert {type(norm) for norm in live_norms(network)} == {SyncBatchNorm3d}
    assert len(frozen_norms(network)) == 4
    assert all(network.state_dict(keep_vars=True)[name] is tensor for name, tensor in held.items())
    unfreeze_norms(network, ["stage1"])
    assert {type(norm) for norm in live_norms(network)} == {SyncBatchNorm3d}  # as all the others are by now
    freeze_norms(network, "all", ["stage2"])
    unsync_norms(network)
    unfreeze_norms(network)
    assert repr(network) == plain


def test_trap_recomputed_blocks_count_a_batch_of_synchronised_norms_twice():
    plain, clips = make_network(), make_clips()
    recomputed = copy.deepcopy(plain)
    sync_norms(recomputed)
    recomputed.set_grad_checkpointing()
    for network in (plain, recomputed):
        network(clips).sum().backward()
    torch.testing.assert_close(statistics(recomputed), statistics(plain))


def test_trap_torchs_synchronised_norm_refuses_a_cpu():
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        x = torch.randn(2, 3, 4, 5, 6)
        with pytest.raises(ValueError, match="expected input tensor to be on GPU"):
            nn.SyncBatchNorm(3)(x)
        torch.testing.assert_close(SyncBatchNorm3d(3)(x), nn.BatchNorm3d(3)(x))
    finally:
        torch.distributed.destroy_process_group()


SCRIPT = '''
import json, sys
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader
from lightning_csn.models.batchnorm import freeze_norms, live_norms, unfreeze_norms
from lightning_csn.module import LitCSN
from lightning_csn.precise_bn import PreciseBatchNorm

folder, devices = sys.argv[1], int(sys.argv[2])
CLIP = dict(frames=4, step=2, fps=None, short_side=32, crop=32, test_crop=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
results = {}


def make_batch(numbers, unreadable=()):
    clips = [
        torch.randint(256, (1, 3, 4, 32, 32), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
        for n in numbers
    ]
    return {
        "clips": torch.stack(clips) if clips else torch.empty(0, 1, 3, 4, 32, 32, dtype=torch.uint8),
        "labels": torch.tensor([n % 4 for n in numbers], dtype=torch.long),
        "videos": torch.tensor(list(numbers), dtype=torch.long),
        "short": torch.zeros(len(numbers), dtype=torch.bool),
        "unreadable": [(n, f"{n}.mp4: no such file") for n in unreadable],
    }


class Data(L.LightningDataModule):
    """Batches of four videos, of which each process has its part."""

    def __init__(self, batches, one_by_one=False):
        super().__init__()
        self.batches, self.one_by_one = batches, one_by_one

    def train_dataloader(self):
        rank, batches = self.trainer.global_rank, self.batches
        if self.one_by_one:  # one process after the other: what two do at once
            parts = [batch[half : half + 2] for batch in batches for half in (0, 2)]
            parts = parts[rank :: devices]
        else:
            share = 4 // devices
            parts = [batch[rank * share : (rank + 1) * share] for batch in batches]
        return DataLoader([part if isinstance(part, dict) else make_batch(part) for part in parts], batch_size=None)

    def val_dataloader(self):
        return DataLoader([make_batch([50 + self.trainer.global_rank])], batch_size=None)


class Curve(L.Callback):
    def __init__(self, unfreeze_at=None):
        self.losses, self.unfreeze_at = [], unfreeze_at

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == self.unfreeze_at:
            unfreeze_norms(module.network, ["stage1"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(trainer.strategy.reduce(outputs["loss"].clone()).item())


def make_model(**options):
    torch.manual_seed(0)
    model = LitCSN("ircsn_tiny", num_classes=4, clip=CLIP, schedule="constant", **({"lr": 0.05} | options))
    for norm in live_norms(model.network):
        nn.init.normal_(norm.running_mean, std=0.1)
    return model


def fit(name, model, data, *callbacks, epochs=1, **options):
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False, max_epochs=epochs,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        default_root_dir=folder, use_distributed_sampler=False, precision="64-true", callbacks=list(callbacks),
        **options,
    )
    trainer.fit(model, data)
    results[name] = {"state": {key: value.double().flatten().tolist()[:6] + [value.double().sum().item()]
                               for key, value in model.network.state_dict().items()},
                     "types": sorted({type(norm).__name__ for norm in live_norms(model.network)}),
                     "losses": next((one.losses for one in callbacks if isinstance(one, Curve)), [])}


BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
SYNC = {"sync_batchnorm": True, "limit_val_batches": 0}
fit("all live", make_model(), Data(BATCHES), Curve(), **SYNC)
fit("recomputed", make_model(checkpointing=[1, 2]), Data(BATCHES), Curve(), **SYNC)
partly = make_model()
freeze_norms(partly.network, "stats", ["stem", "stage1"])
fit("partly frozen, unfrozen on the way", partly, Data(BATCHES), Curve(unfreeze_at=1), **SYNC)
partly = make_model()
freeze_norms(partly.network, "all", ["stem", "stage1", "stage2", "stage4"])
fit("mostly frozen", partly, Data(BATCHES), Curve(), **SYNC)
fit("not synchronised", make_model(), Data(BATCHES), Curve(), limit_val_batches=0)
# Learning nothing, so that one process has the weights of two, which learn from twice as many at once.
fit("precise", make_model(lr=0.0), Data(BATCHES, one_by_one=True), PreciseBatchNorm())
if devices == 2:  # the other process has nothing to learn from
    class Half(Data):
        def train_dataloader(self):
            return DataLoader([make_batch([0, 1, 2, 3]) if self.trainer.global_rank == 0 else make_batch([], [9])],
                              batch_size=None)

    fit("nothing readable", make_model(lr=0.0), Half([]), **SYNC)
else:
    fit("nothing readable", make_model(lr=0.0), Data([[0, 1, 2, 3]]), **SYNC)
rank = int(torch.distributed.get_rank()) if torch.distributed.is_initialized() else 0
with open(f"{folder}/{devices}-{rank}.json", "w") as file:
    json.dump(results, file)
'''


@pytest.fixture(scope="module")
def runs(run_script, tmp_path_factory):
    """Results of process 0 and of process 1 of two, and of one by itself, and what the two had to say."""
    folder = tmp_path_factory.mktemp("synchronised")
    said = [run_script(folder, SCRIPT, folder, devices) for devices in (2, 1)]
    return *(json.loads((folder / f"{name}.json").read_text()) for name in ("2-0", "2-1", "1-0")), said[0]


def furthest(one, other):
    """The largest difference of two state dicts of the script."""
    assert one.keys() == other.keys()
    return max(abs(a - b) for name in one for a, b in zip(one[name], other[name], strict=True))


@pytest.mark.parametrize("case", ["all live", "recomputed", "partly frozen, unfrozen on the way", "mostly frozen"])
def test_two_processes_that_synchronise_are_one_with_the_same_clips(runs, case):
    first, second, single, _ = runs
    assert first[case]["losses"] == pytest.approx(single[case]["losses"], abs=1e-9)
    assert furthest(first[case]["state"], single[case]["state"]) < 1e-8
    assert furthest(first[case]["state"], second[case]["state"]) == 0
    apart = furthest(runs[0]["not synchronised"]["state"], single["not synchronised"]["state"])
    assert apart > 1e-3  # what makes the test worth having


def test_after_training_there_is_plain_batchnorm_again(runs):
    assert [run["all live"]["types"] for run in runs[:3]] == [["BatchNorm3d"]] * 3


def test_trap_a_process_without_readable_videos_does_not_keep_synchronised_ones_waiting(runs):
    first, second, single, _ = runs
    assert furthest(first["nothing readable"]["state"], single["nothing readable"]["state"]) < 1e-8
    assert furthest(first["nothing readable"]["state"], second["nothing readable"]["state"]) == 0


def test_precise_statistics_of_two_processes_are_those_of_one(runs):
    first, second, single, _ = runs
    state = {name: value for name, value in first["precise"]["state"].items() if "num_batches" not in name}
    assert furthest(state, {name: single["precise"]["state"][name] for name in state}) < 1e-9
    assert furthest(first["precise"]["state"], second["precise"]["state"]) == 0


def test_small_batches_of_several_processes_are_announced_with_what_helps(runs):
    said = runs[-1]
    assert said.count("over 2 clips at a time") == 2  # "not synchronised" and "precise", the first process only
    assert "--trainer.sync_batchnorm true" in said
    assert said.count("over 4 clips at a time") >= 4


# ---------------------------------------------------------------- counted


def test_measured_statistics_are_those_of_all_places_of_all_batches():
    network = make_network()
    batches = [make_clips(3), 2 + make_clips(2)]
    before = statistics(network)
    modes = [module.training for module in network.eval().modules()]
    assert measure_statistics(network, batches) == 5
    with torch.no_grad():
        found = torch.cat([network.stem.conv(batch) for batch in batches]).double()
    norm = network.stem.norm
    torch.testing.assert_close(norm.running_mean.double(), found.mean((0, 2, 3, 4)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), found.var((0, 2, 3, 4)), rtol=1e-4, atol=1e-6)
    assert same(before, statistics(network)) == {name for name in before if "num_batches" in name}
    assert [module.training for module in network.modules()] == modes
    assert {norm.momentum for norm in live_norms(network)} == {0.1}
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_measured_statistics_leave_frozen_norms_and_those_that_no_clip_reached():
    network = make_network()
    freeze_norms(network, "stats", ["stem", "stage1"])
    before = statistics(network)
    assert measure_statistics(network, []) == measure_statistics(network, [make_clips(0)]) == 0
    assert same(before, statistics(network)) == before.keys()
    measure_statistics(network, [make_clips()])
    frozen = {name for name in before if name.startswith(("stem.", "stage1.")) or "num_batches" in name}
    assert same(before, statistics(network)) == frozen


def test_measured_statistics_know_no_drop_path_and_are_those_of_a_compiled_network():
    plain, dropping = make_network(), make_network(drop_path=0.9)
    dropping.load_state_dict(plain.state_dict())
    dropping.stem.compile(backend="eager")
    dropping.train()(make_clips())
    dropping.load_state_dict(plain.state_dict())
    for network in (plain, dropping):
        for scale in (2, 1):  # what was compiled in the first round would be run again in the second
            measure_statistics(network.train(), [scale * make_clips()])
    torch.testing.assert_close(statistics(dropping), statistics(plain))


def test_a_test_is_better_with_the_statistics_of_the_weights_as_they_are():
    """After a step that changes the scale of what reaches a BatchNorm, running statistics lag behind."""
    network, clips = make_network(), make_clips(8)
    with torch.no_grad():
        network.stem.conv.weight.mul_(3)
        network.train()(clips)  # moves them a tenth of the way
        wanted = network(clips)
    stale = (network.eval()(clips) - wanted).abs().mean()
    measure_statistics(network, [clips])
    assert (network.eval()(clips) - wanted).abs().mean() < 0.2 * stale
