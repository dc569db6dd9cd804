"""Which optimiser trains, and how its learning rates go up and down."""

import logging
import math
from typing import ClassVar

import lightning as L
import pytest
import timm.optim
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_csn.errors import InputError
from lightning_csn.module import LitCSN
from lightning_csn.optimizer import clips_per_step, create_optimizer, parameter_groups, rate_factor

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup_epochs": 1}, [0.1, 0.55, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup_epochs": 0.5, "warmup_start": 0.5}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "steps", "milestones": [1, 3], "gamma": 0.2}, [1, 1, 0.2, 0.2, 0.2, 0.2, 0.04, 0.04]),
        ({"schedule": "steps", "milestones": [2.5]}, [1, 1, 1, 1, 1, 0.1, 0.1, 0.1]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]),
        ({"schedule": "cosine", "warmup_epochs": 2}, [0.1, 0.325, 0.55, 0.775, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_learning_rate_at_every_step(make_trainer, tiny_model, tiny_loader, watch_rates, options, rates):
    seen = watch_rates()
    make_trainer(max_epochs=4, callbacks=[seen]).fit(tiny_model(lr=0.02, **options), tiny_loader())
    assert [rate / 0.02 for rate in seen.rates] == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize("end", [{"max_epochs": 4}, {"max_steps": 4}, {"max_steps": 4, "max_epochs": -1}])
def test_epochs_are_counted_in_steps_of_the_optimiser(make_trainer, tiny_model, tiny_loader, watch_rates, end):
    seen = watch_rates()
    trainer = make_trainer(accumulate_grad_batches=2, callbacks=[seen], **end)
    trainer.fit(tiny_model(lr=1.0, schedule="steps", milestones=[2]), tiny_loader())
    assert seen.rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1])


def test_cosine_without_an_end_is_refused(make_trainer, tiny_model, tiny_loader):
    with pytest.raises(InputError, match="pass max_epochs or max_steps"):
        make_trainer(max_epochs=-1).fit(tiny_model(schedule="cosine"), tiny_loader())


def test_a_warmup_in_epochs_of_data_without_length_is_refused(make_trainer, tiny_model, tiny_loader, watch_rates):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from tiny_loader()

    endless = DataLoader(Endless(), batch_size=None)
    with pytest.raises(InputError, match="the training data has no length"):
        make_trainer(max_steps=2).fit(tiny_model(warmup_epochs=1), endless)
    seen = watch_rates()
    make_trainer(max_steps=2, callbacks=[seen]).fit(tiny_model(lr=1.0, schedule="cosine"), endless)
    assert seen.rates == pytest.approx([1, 0.5])


def test_a_warmup_longer_than_the_training_never_ends():
    assert rate_factor(2, epochs=2, schedule="cosine", warmup_epochs=4) == pytest.approx(0.55)
    assert rate_factor(4, epochs=2, schedule="cosine", warmup_epochs=4) == 0


@pytest.fixture
def make_optimizer(make_trainer, tiny_model, tiny_loader):
    """The optimiser of a training with these options."""

    def make(**options):
        trainer = make_trainer(fast_dev_run=True)
        trainer.fit(tiny_model(**options), tiny_loader())
        return trainer.optimizers[0]

    return make


def test_sgd_is_that_of_the_published_recipes(tiny_model, make_optimizer):
    optimizer = make_optimizer()
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups  # norms and biases decay too
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 1e-4)
    assert len(group["params"]) == len(list(tiny_model().parameters()))


def test_sgd_takes_further_options(make_optimizer):
    assert make_optimizer(optimizer_options={"nesterov": True}).param_groups[0]["nesterov"]


def test_adamw_leaves_norms_and_biases_without_decay_if_asked(make_optimizer):
    optimizer = make_optimizer(
        optimizer="adamw", weight_decay=0.05, decay_norms=False, optimizer_options={"betas": (0.8, 0.9)}
    )
    assert type(optimizer) is torch.optim.AdamW
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    decays = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert decays.keys() == {0.05, 0.0}
    assert {parameter.ndim for parameter in decays[0.0]} == {1}
    assert {parameter.ndim for parameter in decays[0.05]} == {2, 5}


def test_an_unknown_optimiser_is_refused_with_what_there_is(make_optimizer):
    with pytest.raises(InputError, match=r"no optimiser 'adamv'; there are: .*adamw"):
        make_optimizer(optimizer="adamv")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("sgd", {"foo": 1}, "unexpected keyword argument 'foo'"), ("adamw", {"betas": [2, 3]}, "Invalid beta parameter")],
)
def test_options_that_an_optimiser_does_not_take_are_refused(make_optimizer, name, options, message):
    with pytest.raises(InputError, match=rf"optimizer '{name}' cannot be used with .*: .*{message}"):
        make_optimizer(optimizer=name, optimizer_options=options)


def test_one_group_where_all_parts_learn_alike_so_that_runs_of_before_go_on(tiny_model):
    groups = parameter_groups(tiny_model().network, tiny_model().hparams, 0.1)
    assert [len(group["params"]) for group in groups] == [len(list(tiny_model().parameters()))]
    groups = parameter_groups(tiny_model().network, tiny_model(decay_norms=False).hparams, 0.1)
    assert [group["name"] for group in groups] == ["no_decay", "decay"]  # the order of timm


# Parts that learn differently

PARTED = {"layer_decay": 0.5, "head_lr": 10, "stage_lrs": {"stem": 0.0, "stage4": 2.0}, "decay_norms": False}
MULTIPLIERS = {"stem": 0, "stage1": 0.0625, "stage2": 0.125, "stage3": 0.25, "stage4": 2, "head": 10}


def test_each_part_has_its_learning_rate_and_only_weights_decay(tiny_model):
    model = tiny_model(**PARTED, weight_decay=0.01)
    groups = parameter_groups(model.network, model.hparams, 0.1)
    assert {group["name"]: group["lr"] for group in groups} == {
        f"{part}/{decay}": pytest.approx(0.1 * by)
        for part, by in MULTIPLIERS.items()
        for decay in ("no_decay", "decay")
    }
    names = {id(parameter): name for name, parameter in model.network.named_parameters()}
    for group in groups:
        part, decay = group["name"].split("/")
        assert all(names[id(parameter)].startswith(f"{part}.") for parameter in group["params"])
        assert {parameter.ndim for parameter in group["params"]} <= ({1} if decay == "no_decay" else {2, 5})
        assert group.get("weight_decay") == (0.0 if decay == "no_decay" else None)


def test_every_parameter_is_in_one_group_even_where_others_have_the_same_values(tiny_model):
    network = tiny_model().network  # the BatchNorms are fresh: 1 and 0 throughout
    network.stem.requires_grad_(False)  # may be unfrozen later
    for options in ({}, {"decay_norms": False}, PARTED):
        groups = parameter_groups(network, tiny_model(**options).hparams, 0.1)
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(grouped) == sorted(map(id, network.parameters()))


def test_a_part_with_rate_0_stays_and_the_others_learn(make_trainer, tiny_model, tiny_batch, tiny_loader):
    before, model = tiny_model().network, tiny_model(stage_lrs={"stem": 0, "stage2": 0}, lr=0.1)
    make_trainer(fast_dev_run=True).fit(model, tiny_loader(tiny_batch()))
    learnt = {
        name.partition(".")[0]
        for (name, old), new in zip(before.named_parameters(), model.network.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert learnt == {"stage1", "stage3", "stage4", "head"}


SCHEDULERS = {
    "CosineAnnealingLR": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "StepLR": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
    "OneCycleLR": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=10
    ),
    "SequentialLR": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8),
        ],
        milestones=[2],
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # torch's own use of its own
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_of_torch_keeps_the_parts_apart_and_those_of_timms_groups_does_not(tiny_model, scheduler):
    network = tiny_model().network
    ours = create_optimizer(network, tiny_model(layer_decay=0.5, decay_norms=False).hparams)
    naive = timm.optim.create_optimizer_v2(network, opt="sgd", lr=0.01, weight_decay=1e-4, layer_decay=0.5)
    ratios = []
    for optimizer in (ours, naive):
        schedule = SCHEDULERS[scheduler](optimizer)
        for _ in range(4):
            optimizer.step()
            schedule.step()
        rates = [group["lr"] for group in optimizer.param_groups]
        ratios.append(sorted({round(rate / max(rates), 4) for rate in rates}))
    assert ratios == [[0.0312, 0.0625, 0.125, 0.25, 0.5, 1.0], [1.0]]


def test_the_log_and_the_monitor_show_the_rate_of_each_part(make_trainer, tiny_model, tiny_loader, caplog, tmp_path):
    caplog.set_level(logging.INFO, "lightning_csn")
    monitor, logger = LearningRateMonitor(), CSVLogger(tmp_path)
    trainer = make_trainer(max_epochs=1, log_every_n_steps=1, callbacks=[monitor], logger=logger)
    trainer.fit(tiny_model(layer_decay=0.5, lr=0.32), tiny_loader())
    rates = {"stem": 0.01, "stage1": 0.02, "stage2": 0.04, "stage3": 0.08, "stage4": 0.16, "head": 0.32}
    assert "learning rates: stem 0.01, stage1 0.02, stage2 0.04, stage3 0.08, stage4 0.16, head 0.32" in caplog.text
    assert {name: seen[-1] for name, seen in monitor.lrs.items()} == {
        f"lr-SGD/{part}": pytest.approx(rate) for part, rate in rates.items()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 1.5}, "layer_decay must be a number from 0 to 1, got 1.5"),
        ({"head_lr": -1}, "head_lr must be a number of 0 or more, got -1"),
        ({"stage_lrs": {"stage5": 0}}, "stage_lrs has no 'stage5'; there are: stem, stage1, stage2, stage3, stage4"),
        ({"stage_lrs": {"head": 5}}, "stage_lrs has no 'head'; that of the head is head_lr; there are: stem"),
        ({"stage_lrs": {"stem": "no"}}, "stage_lrs of stem must be a number of 0 or more, got 'no'"),
        ({"lr_batch": 0}, "lr_batch must be a whole number of 1 or more, got 0"),
        ({"lr_end": 2, "schedule": "cosine"}, "lr_end must be a number from 0 to 1, got 2"),
        ({"lr_end": 0.1}, "lr_end is where schedule 'cosine' ends, and schedule 'constant' has no such place"),
        ({"schedule_interval": "batch"}, "schedule_interval must be one of step, epoch, got 'batch'"),
    ],
)
def test_rates_that_make_no_sense_are_refused(tiny_model, options, message):
    with pytest.raises(InputError, match=message):
        tiny_model(**options)


# Batches of another size


@pytest.fixture
def make_data(tiny_batch, tiny_loader):
    """A data module that says of its batches that they have two clips of each video."""

    class Data(L.LightningDataModule):
        train_clips = 2

        def __init__(self, batch_size=2):
            super().__init__()
            self.batch_size = batch_size

        def train_dataloader(self):
            labels = [0, 1, 2, 3] * 2
            starts = range(0, len(labels), self.batch_size)
            return tiny_loader(*(tiny_batch(labels[start : start + self.batch_size]) for start in starts))

    return Data


def test_the_rate_grows_with_the_clips_of_a_step_and_the_log_says_so(make_trainer, tiny_model, make_data, caplog):
    caplog.set_level(logging.INFO, "lightning_csn")
    trainer = make_trainer(max_epochs=1, accumulate_grad_batches=3)
    trainer.fit(tiny_model(lr=0.01, lr_batch=4, head_lr=2), make_data())
    assert "learning rate: 0.03 = 0.01 x 12 clips a step / 4" in caplog.text
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([0.03] * 5 + [0.06])


def test_every_device_counts_for_the_clips_of_a_step(make_data):
    class Trainer:  # of 2 nodes with 4 devices each, two of which share a model
        datamodule = make_data()
        accumulate_grad_batches = 3

        class strategy:
            distributed_sampler_kwargs: ClassVar = {"num_replicas": 4, "rank": 0}

    assert clips_per_step(Trainer()) == 2 * 2 * 4 * 3


def test_batches_of_unknown_size_are_refused_where_the_rate_is_to_grow_with_them(
    make_trainer, tiny_model, tiny_batch, tiny_loader
):
    with pytest.raises(InputError, match="lr_batch: the training data does not say how many clips a batch has"):
        make_trainer(max_epochs=1).fit(tiny_model(lr_batch=4), tiny_loader())
    videos = [{name: value[0] for name, value in tiny_batch([0, 1]).items() if name != "unreadable"}] * 4
    collate = lambda items: torch.utils.data.default_collate(items) | {"unreadable": []}  # noqa: E731
    trainer = make_trainer(max_epochs=1)
    trainer.fit(tiny_model(lr=0.01, lr_batch=4), DataLoader(videos, batch_size=2, collate_fn=collate))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005)


# Schedules


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "cosine", "lr_end": 0.2}, [1, 1, 0.882843, 0.882843, 0.6, 0.6, 0.317157, 0.317157]),
        ({"schedule": "steps", "milestones": [1.5]}, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "constant", "warmup_epochs": 2, "warmup_start": 0.5}, [0.5, 0.5, 0.75, 0.75, 1, 1, 1, 1]),
    ],
)
def test_rates_that_change_once_an_epoch(make_trainer, tiny_model, tiny_loader, watch_rates, options, rates):
    seen = watch_rates()
    model = tiny_model(lr=0.02, schedule_interval="epoch", **options)
    make_trainer(max_epochs=4, callbacks=[seen]).fit(model, tiny_loader())
    assert [rate / 0.02 for rate in seen.rates] == pytest.approx(rates, abs=1e-6)


def test_warmup_and_cosine_are_those_of_torch(make_trainer, tiny_model, tiny_loader, watch_rates):
    seen = watch_rates()
    options = {"schedule": "cosine", "warmup_epochs": 1, "warmup_start": 0.25, "lr_end": 0.1}
    make_trainer(max_epochs=4, callbacks=[seen]).fit(tiny_model(lr=0.5, **options), tiny_loader())
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, total_iters=2)
    down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6, eta_min=0.05)
    expected = []
    for step in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        (up if step < 2 else down).step()
    assert seen.rates == pytest.approx(expected)


@pytest.fixture
def fit_half(make_trainer, tiny_model, tmp_path):
    """Train 2 of 4 epochs; gives the checkpoint."""
    path = tmp_path / "half.ckpt"

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(path)
                trainer.should_stop = True

    def fit(data, **options):
        make_trainer(max_epochs=4, callbacks=[Stop()]).fit(tiny_model(**options), data)
        return path

    return fit


@pytest.mark.parametrize("end", [{"max_epochs": 4}, {"max_steps": 12}])
def test_a_run_goes_on_with_its_schedule_where_epochs_have_fewer_steps(
    make_trainer, tiny_model, watch_rates, make_data, fit_half, end
):
    options = {"lr": 1e-4, "schedule": "cosine", "layer_decay": 0.5}
    half = fit_half(make_data(batch_size=2), **options)  # 4 steps an epoch
    seen = watch_rates()
    trainer = make_trainer(**end, callbacks=[seen])
    trainer.fit(tiny_model(**options), make_data(batch_size=4), ckpt_path=half)  # 2 steps
    # A LambdaLR would take step 8 for the end of epoch 4, and go on with rates of 0.
    expected = [(1 + math.cos(math.pi * time / 4)) / 2 * 1e-4 / 32 for time in (2, 2.5, 3, 3.5)]
    assert seen.rates == pytest.approx(expected)


def test_a_run_goes_on_with_the_rate_for_the_batches_that_it_has_now(make_trainer, tiny_model, make_data, fit_half):
    options = {"lr": 1e-4, "schedule": "constant", "lr_batch": 4, "layer_decay": 0.5}
    half = fit_half(make_data(batch_size=2), **options)
    trainer = make_trainer(max_epochs=3)
    trainer.fit(tiny_model(**options), make_data(batch_size=4), ckpt_path=half)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([2e-4 * 0.5**power for power in (5, 4, 3, 2, 1, 0)])


def test_a_run_of_version_0_1_goes_on(make_trainer, watch_rates, make_data, fit_half):
    options = {"lr": 1e-4, "schedule": "cosine"}
    half = fit_half(make_data(), **options)
    content = torch.load(half, weights_only=True)
    (schedule,) = content["lr_schedulers"]
    for name in ("scale", "steps_per_epoch", "_start"):
        del schedule[name]
    schedule["lr_lambdas"] = [None]  # LambdaLR's
    for name in ("layer_decay", "head_lr", "stage_lrs", "lr_batch", "schedule_interval", "lr_end"):
        del content["hyper_parameters"][name]
    torch.save(content, half)
    seen = watch_rates()
    model = LitCSN.load_from_checkpoint(half)
    make_trainer(max_epochs=4, callbacks=[seen]).fit(model, make_data(), ckpt_path=half)
    expected = [(1 + math.cos(math.pi * step / 16)) / 2 * 1e-4 for step in range(8, 16)]
    assert seen.rates == pytest.approx(expected)


# Gradients


class Still(L.Callback):
    """BatchNorm normalises with what it has, so that no clip depends on the others of its batch."""

    def on_train_start(self, trainer, module):
        module.network.eval()


def test_two_batches_of_4_give_the_step_of_8(make_trainer, tiny_model, tiny_batch, tiny_loader):
    half = [tiny_batch([0, 1, 2, 3]), tiny_batch([3, 1, 0, 2], seed=1)]
    whole = {name: [] if name == "unreadable" else torch.cat([one[name] for one in half]) for name in half[0]}
    networks = []
    for batches in (half, [whole]):
        model = tiny_model(lr=0.1, layer_decay=0.9).double()
        trainer = make_trainer(
            max_epochs=1, accumulate_grad_batches=len(batches), callbacks=[Still()], precision="64-true"
        )
        trainer.fit(model, tiny_loader(*batches))
        networks.append(model.network.state_dict())
    for name, tensor in networks[0].items():
        torch.testing.assert_close(tensor, networks[1][name], msg=name)


def test_gradients_are_clipped_as_one_over_all_groups(make_trainer, tiny_model, tiny_batch, tiny_loader):
    before, model = tiny_model().network, tiny_model(lr=1.0, momentum=0.0, weight_decay=0.0, decay_norms=False)
    make_trainer(fast_dev_run=True, gradient_clip_val=0.01).fit(model, tiny_loader(tiny_batch()))
    assert len(parameter_groups(model.network, model.hparams, 1.0)) == 2
    pairs = zip(before.parameters(), model.network.parameters(), strict=True)
    norms = [(new - old).detach().norm().item() for old, new in pairs]
    assert math.hypot(*norms) == pytest.approx(0.01, rel=1e-3)
