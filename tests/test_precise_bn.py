"""PreciseBatchNorm: what is validated and saved has the statistics of its own weights, and training does not notice."""

import copy
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch.utils.data import DataLoader

from lightning_csn.data.order import ResumableLoader, TrainOrder
from lightning_csn.ema import EMA
from lightning_csn.errors import InputError
from lightning_csn.models.batchnorm import measure_statistics
from lightning_csn.module import LitCSN
from lightning_csn.precise_bn import PreciseBatchNorm, aside
from lightning_csn.unfreezing import GradualUnfreezing

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15

CLIP = {
    **{"frames": 4, "step": 2, "fps": 10, "short_side": 32, "crop": 32, "test_crop": 32},
    **{"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.5]},
}


def make_video(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randint(40 * (number % 3), 256, (1, 3, 4, 32, 32), generator=generator, dtype=torch.uint8)


def make_batch(numbers):
    return {
        "clips": torch.stack([make_video(number) for number in numbers]),
        "labels": torch.tensor([number % 3 for number in numbers]),
        "videos": torch.tensor(numbers),
        "short": torch.zeros(len(numbers), dtype=torch.bool),
        "unreadable": [],
    }


class Videos(torch.utils.data.Dataset):
    """Eight videos, named by their numbers or by the draws of an order; `seen` are those that were read."""

    def __init__(self):
        self.seen = []

    def __len__(self):
        return 8

    def __getitem__(self, draw):
        self.seen.append(getattr(draw, "index", draw) if isinstance(draw, tuple) else draw)
        return self.seen[-1]


def train_loader():
    return DataLoader(Videos(), batch_size=4, shuffle=True, collate_fn=make_batch)


def val_loader():
    return DataLoader([make_batch([20, 21])], batch_size=None)


def make_model(**options):
    torch.manual_seed(0)
    return LitCSN("ircsn_tiny", num_classes=3, clip=CLIP, schedule="constant", **({"lr": 0.1} | options))


@pytest.fixture
def make_trainer(make_trainer):
    """A Trainer of one epoch with these callbacks."""
    return lambda *callbacks, **options: make_trainer(**({"max_epochs": 1} | options), callbacks=list(callbacks))


def statistics(state):
    return {name: value for name, value in state.items() if "running" in name}


def assert_precise(state):
    """That the statistics of a state dict of LitCSN are those of its weights over all eight videos."""
    model = make_model()
    model.load_state_dict(state)
    found = copy.deepcopy(statistics(model.state_dict()))
    batches = [model.normalise(make_batch(range(8))["clips"][:, 0])]
    measure_statistics(model.network, batches)
    torch.testing.assert_close(found, statistics(model.state_dict()), rtol=1e-3, atol=1e-5)


def one_batch():
    """All eight videos at once, so that their order does not matter."""
    return DataLoader(Videos(), batch_size=8, shuffle=True, collate_fn=make_batch)


class Watch(L.Callback):
    """States of the model in validation."""

    def __init__(self):
        self.states = []

    def on_validation_batch_start(self, trainer, module, *args):
        self.states.append(copy.deepcopy(module.state_dict()))


def test_without_it_what_is_saved_has_statistics_of_other_weights(make_trainer):
    model = make_model()
    make_trainer().fit(model, one_batch())
    with pytest.raises(AssertionError):
        assert_precise(model.state_dict())


@pytest.mark.parametrize("validates", [True, False])
def test_what_is_validated_and_saved_has_the_statistics_of_its_weights(validates, make_trainer, tmp_path):
    watch, model = Watch(), make_model()
    keep = ModelCheckpoint(tmp_path, filename="kept", monitor="val_loss" if validates else None)
    trainer = make_trainer(keep, PreciseBatchNorm(), watch, max_epochs=2)
    trainer.fit(model, one_batch(), val_loader() if validates else None)
    assert len(watch.states) == 2 * validates
    saved = torch.load(keep.best_model_path, weights_only=True)["state_dict"]
    for state in (*watch.states, saved, model.state_dict()):
        assert_precise(state)


def test_steps_after_the_last_validation_are_counted_at_the_end_of_the_epoch(make_trainer):
    model = make_model()
    loader = DataLoader([make_batch(range(8))] * 3, batch_size=None)
    make_trainer(PreciseBatchNorm(batches=1), val_check_interval=2).fit(model, loader, val_loader())
    assert_precise(model.state_dict())


@pytest.mark.parametrize("first", ["average", "precise"])
@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("averaging", [EMA, EMAWeightAveraging])
def test_statistics_are_those_of_the_averaged_weights_where_there_are_some(
    averaging, first, validates, make_trainer, tmp_path
):
    watch, keep = Watch(), ModelCheckpoint(tmp_path, filename="kept", save_top_k=1)
    callbacks = [averaging(decay=0.5), PreciseBatchNorm()][:: 1 if first == "average" else -1]
    trainer = make_trainer(*callbacks, watch, keep, max_epochs=2)
    trainer.fit(make_model(), one_batch(), val_loader() if validates else None)
    content = torch.load(keep.best_model_path, weights_only=True)
    assert_precise(content["state_dict"])
    for state in watch.states:
        assert_precise(state)
    raw, average = content["current_model_state"], content["state_dict"]
    assert not torch.equal(raw["network.head.weight"], average["network.head.weight"])


def test_training_does_not_notice(make_trainer):
    weights, seen = [], []
    for callbacks in ([], [PreciseBatchNorm()]):
        torch.manual_seed(7)
        model = make_model(mixup=0.4, network={"dropout": 0.5, "drop_path": 0.2})
        loader = train_loader()
        torch.manual_seed(1)
        make_trainer(*callbacks, max_epochs=2, val_check_interval=1).fit(model, loader, val_loader())
        weights.append([*model.parameters()])
        seen.append(len(loader.dataset.seen))
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    assert seen == [16, 16 + 2 * 2 * 8]


def test_the_place_in_the_epoch_is_kept(make_trainer):
    """A loader that counts what training used does not count what the statistics used."""

    class Data(L.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.places = []

        def train_dataloader(self):
            order = TrainOrder(8, seed=3)
            progress = self.trainer.fit_loop.epoch_loop.batch_progress
            self.loader = ResumableLoader(
                Videos(), batch_size=2, sampler=order, progress=progress, collate_fn=make_batch
            )
            return self.loader

        def val_dataloader(self):
            return val_loader()

    class Places(L.Callback):
        def on_validation_end(self, trainer, module):
            trainer.datamodule.places.append(trainer.datamodule.loader.state_dict()["position"])

    data = Data()
    make_trainer(PreciseBatchNorm(batches=3), Places(), val_check_interval=2).fit(make_model(), data)
    assert data.places == [4, 8]
    order = [draw.index for draw in TrainOrder(8, seed=3)]
    assert data.loader.dataset.seen == order[:4] + order[:6] + order[4:] + order[:6]


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 4}, {"batch_size": None}, {"batch_size": 3, "drop_last": True}, {"batch_sampler": [[0, 1], [5]]}],
)
def test_a_loader_aside_gives_the_same_batches(options):
    loader = DataLoader(range(8), collate_fn=list if options.get("batch_size", 1) else None, **options)
    assert list(map(str, aside(loader))) == list(map(str, loader))
    assert aside(loader).sampler is not loader.sampler or options.get("batch_sampler")


def test_a_resumed_epoch_is_looked_at_from_its_beginning():
    order = TrainOrder(4, seed=0)
    order.load_state_dict({"seed": 0, "epoch": 1, "position": 3, "num_samples": 4})
    loader = ResumableLoader(range(4), batch_size=1, sampler=order)
    assert len(list(aside(loader).sampler)) == 4
    assert order.position == 3


def test_nothing_is_counted_where_nothing_was_trained(make_trainer):
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    make_trainer(PreciseBatchNorm()).validate(model, val_loader(), verbose=False)
    trainer = make_trainer(PreciseBatchNorm(), num_sanity_val_steps=1, limit_train_batches=0)
    trainer.fit(model, one_batch(), val_loader())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_frozen_statistics_stay(make_trainer):
    model = make_model(freeze_bn="stats", lr=0.01)
    before = statistics(copy.deepcopy(model.state_dict()))
    loader = one_batch()
    make_trainer(PreciseBatchNorm()).fit(model, loader, val_loader())
    assert all(torch.equal(before[name], value) for name, value in statistics(model.state_dict()).items())
    assert len(loader.dataset.seen) == 8  # nothing was read for it


def test_what_another_callback_keeps_in_eval_mode_stays_until_it_is_unfrozen(make_trainer):
    states = []

    class States(L.Callback):
        def on_validation_end(self, trainer, module):
            states.append(statistics(copy.deepcopy(module.network.state_dict())))

    model = make_model()
    before = statistics(copy.deepcopy(model.network.state_dict()))
    unfreezing = GradualUnfreezing({"stage4": 1})
    make_trainer(PreciseBatchNorm(), unfreezing, States(), max_epochs=2).fit(model, train_loader(), val_loader())
    stay = [{name for name in before if torch.equal(before[name], state[name])} for state in states]
    assert stay == [before.keys(), {name for name in before if not name.startswith("stage4.")}]


def test_a_run_that_goes_on_with_a_validation_knows_what_was_live():
    callback = PreciseBatchNorm()
    model = make_model()
    model.network.stage1.eval()
    callback.on_train_batch_end(None, model, None, None, 0)
    again = PreciseBatchNorm()
    again.load_state_dict(callback.state_dict())
    assert len(again._live) == 13
    assert not [name for name in again._live if name.startswith("stage1")]


def test_what_it_cannot_work_with_is_refused():
    with pytest.raises(InputError, match="batches must be a whole number of 1 or more, got 0"):
        PreciseBatchNorm(0)
    with pytest.raises(InputError, match="not with FSDPStrategy, under which a process holds only a part"):
        PreciseBatchNorm().setup(SimpleNamespace(strategy=FSDPStrategy()), None, "fit")
    with pytest.raises(InputError, match="needs a torch DataLoader to train from, got list"):
        PreciseBatchNorm().on_train_start(SimpleNamespace(train_dataloader=[make_batch(range(8))]), None)


def test_it_says_what_it_does_and_that_it_does_nothing(make_trainer, caplog):
    for freeze_bn, level, said in (
        ("none", "INFO", "counted anew before each validation, over up to 1 batch"),
        ("stats", "WARNING", "nothing to count: every BatchNorm is frozen"),
    ):
        caplog.clear()
        with caplog.at_level("INFO", "lightning_csn"):
            make_trainer(PreciseBatchNorm(1), max_steps=1).fit(make_model(freeze_bn=freeze_bn), one_batch())
        assert [one.levelname for one in caplog.records if said in one.message] == [level]
