"""order.py: an order of its own for each epoch, shared by processes, and the place in it kept by a checkpoint."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections import Counter

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch.utils.data import Dataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from lightning_csn.data.order import Draw, EachVideoOnce, ResumableLoader, TrainOrder, draw_seed, expected_counts

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),  # a callback that only saved
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning 2.6 on torch 2.15
]


def indices(order) -> list[int]:
    return [draw.index for draw in order]


def orders(count, processes, **options) -> list[TrainOrder]:
    return [TrainOrder(count, seed=3, world_size=processes, rank=rank, **options) for rank in range(processes)]


def test_seeds_differ_by_each_of_their_parts():
    seeds = {draw_seed(*parts) for parts in itertools.product(range(12), repeat=3)}
    assert len(seeds) == 12**3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert draw_seed(1, 2, 3) == draw_seed(1, 2, 3)


def test_every_epoch_has_an_order_and_seeds_of_its_own():
    order = TrainOrder(50, seed=1)
    first, again = list(order), list(order)
    order.set_epoch(1)
    second = list(order)
    assert first == again
    assert sorted(draw.index for draw in first) == sorted(draw.index for draw in second) == list(range(50))
    assert indices(first) != indices(second)
    assert not {draw.seed for draw in first} & {draw.seed for draw in second}
    assert indices(TrainOrder(50, seed=2)) != indices(first)
    assert indices(TrainOrder(5, seed=1, shuffle=False)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_processes_share_an_epoch_evenly(count, processes):
    shares = [list(order) for order in orders(count, processes)]
    assert {len(share) for share in shares} == {len(orders(count, processes)[0])} == {-(-count // processes)}
    merged = [draw for step in zip(*shares, strict=True) for draw in step]
    whole = list(TrainOrder(count, seed=3))
    assert merged[:count] == whole  # the same samples with the same seeds as on one process
    assert merged[count:] == list(itertools.islice(itertools.cycle(whole), len(merged) - count))
    assert all(isinstance(order, DistributedSampler) for order in orders(count, processes))  # or Lightning replaces it


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)])
def test_an_epoch_goes_on_on_other_processes(before, after):
    whole = list(TrainOrder(20, seed=3))
    state = orders(20, before)[0].state_dict() | {"position": 8}
    resumed = orders(20, after)
    for order in resumed:
        order.seed = 99  # that of the checkpoint counts
        order.load_state_dict(state)
    shares = [list(order) for order in resumed]
    merged = [draw for step in zip(*shares, strict=True) for draw in step]
    assert merged[:12] == whole[8:]
    resumed[0].set_epoch(0)  # the epoch that it is in already
    assert list(resumed[0]) == shares[0]
    resumed[0].set_epoch(1)
    assert len(list(resumed[0])) == len(resumed[0])


def test_an_epoch_of_other_samples_begins_anew(caplog):
    order = TrainOrder(10, seed=0)
    order.load_state_dict({"seed": 0, "epoch": 2, "position": 4, "num_samples": 8})
    assert "in the middle of an epoch of 8 samples and there are 10 now" in caplog.text
    assert (order.epoch, len(list(order))) == (2, 10)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        order.load_state_dict({"seed": 0, "epoch": 2, "position": 8, "num_samples": 8})
    assert list(order) == []  # that epoch is over
    assert caplog.text == ""


LABELS = [0] * 17 + [1] * 5 + [2] * 2 + [3] * 6


@pytest.mark.parametrize("balance", [0.5, 1.0])
@pytest.mark.parametrize("processes", [1, 2, 7])
def test_a_balanced_epoch_has_of_every_class_what_is_its_due_and_is_shared_evenly(balance, processes):
    sizes = Counter(LABELS)
    shares = {label: size ** (1 - balance) for label, size in sizes.items()}
    seen, neighbours, of_one_class = Counter(), 0, set()
    for epoch in range(20):
        one = TrainOrder(30, seed=3, labels=LABELS, balance=balance)
        one.set_epoch(epoch)
        whole = list(one)
        found = Counter(LABELS[draw.index] for draw in whole)
        for label, share in shares.items():
            assert abs(found[label] - 30 * share / sum(shares.values())) < 1
        assert len(whole) == len({draw.seed for draw in whole}) == 30  # a clip that comes twice is cut twice
        of_one_class.add(found[1])
        rare = Counter(draw.index for draw in whole if LABELS[draw.index] == 2)
        assert max(rare.values()) - min(rare.values()) <= 1
        seen.update(draw.index for draw in whole)
        neighbours += {0, 1} <= {draw.index for draw in whole}
        several = orders(30, processes, labels=LABELS, balance=balance)
        for order in several:
            order.set_epoch(epoch)
        merged = [draw for step in zip(*several, strict=True) for draw in step]
        assert merged[:30] == whole
    assert len(seen) == 30  # of a frequent class others in each epoch
    assert 0 < neighbours < 20  # and not every second one
    assert len(of_one_class) == 2  # its due is no whole number: more in one epoch, fewer in another
    assert indices(one)[:10] != sorted(indices(one)[:10])


def test_a_balanced_epoch_goes_on_on_other_processes():
    whole = list(TrainOrder(30, seed=3, labels=LABELS, balance=1.0))
    resumed = orders(30, 2, labels=LABELS, balance=1.0)
    for order in resumed:
        order.load_state_dict({"seed": 3, "epoch": 0, "position": 12, "num_samples": 30})
    merged = [draw for step in zip(*resumed, strict=True) for draw in step]
    assert merged == whole[12:]


def test_without_a_balance_every_sample_comes_once_in_the_order_of_before():
    assert list(TrainOrder(30, seed=3, labels=LABELS, balance=0.0)) == list(TrainOrder(30, seed=3))


def test_samples_of_several_classes_come_as_the_rarest_of_them():
    labels = [(0,), (0,), (0, 1), (), (0,)]
    expected = expected_counts(labels, 1.0)
    assert expected == pytest.approx([5 / 8, 5 / 8, 20 / 8, 5 / 8, 5 / 8])  # 0 is there four times, 1 once
    assert expected_counts([(), ()], 1.0) == [1.0, 1.0]
    draws = list(TrainOrder(5, seed=0, labels=labels, balance=1.0))
    assert Counter(draw.index for draw in draws)[2] in (2, 3)


class Numbers(Dataset):
    """Gives back what it was asked for."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, draw):
        return torch.tensor([draw.index, draw.seed]) if isinstance(draw, Draw) else torch.tensor([draw, 0])


def loader(count=10, batch_size=2, workers=0, progress=None, **options) -> ResumableLoader:
    return ResumableLoader(
        Numbers(count),
        batch_size=batch_size,
        sampler=TrainOrder(count, seed=3, **options),
        num_workers=workers,
        persistent_workers=workers > 0,
        progress=progress,
    )


def test_what_workers_read_ahead_does_not_count():
    reading = loader(workers=2)
    batches = iter(reading)
    assert reading.state_dict()["position"] == 0
    seen = [next(batches) for _ in range(2)]
    assert reading.state_dict() == {"seed": 3, "epoch": 0, "position": 4, "num_samples": 10}
    resumed = loader(workers=2)
    resumed.load_state_dict(reading.state_dict())
    assert resumed.state_dict()["position"] == 4
    rest = list(resumed)
    assert resumed.state_dict()["position"] == 10
    assert torch.equal(torch.cat(seen + rest), torch.cat(list(loader())))  # and as without workers
    reading.sampler.set_epoch(1)
    assert reading.state_dict()["position"] == 0
    del batches


class Watcher(L.LightningModule):
    """Notes the epoch and the samples of every batch, and stops where it is told to."""

    def __init__(self, stop_at=None, how=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.steps, self.stop_at, self.how = [], 0, stop_at, how

    def training_step(self, batch, batch_idx):
        if self.steps == self.stop_at and self.how == "error":
            raise RuntimeError("stopped")
        if self.steps == self.stop_at and self.how == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)  # as the scheduler of a cluster does; this batch is still finished
        self.seen += [(self.current_epoch, *row) for row in batch.tolist()]
        self.batch_idx = batch_idx
        self.steps += 1
        return self.weight.sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.steps == self.stop_at and self.how == "save":
            self.trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))]


def trainer(epochs=3, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        accelerator="cpu", devices=1, **quiet | {"max_epochs": epochs, "enable_checkpointing": False} | options
    )


@pytest.fixture(scope="module")
def uninterrupted():
    model = Watcher()
    trainer().fit(model, loader())
    assert len(model.seen) == 30
    return model.seen


def fit(model, reading, path=None, counted=True, **options):
    runs = trainer(**options)
    if counted:
        reading.progress = runs.fit_loop.epoch_loop.batch_progress
    runs.fit(model, reading, ckpt_path=path, weights_only=True)
    return runs


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("stop_at", [1, 7, 10])
def test_training_goes_on_where_it_was_saved(tmp_path, uninterrupted, stop_at, counted):
    """Stopped in the middle of an epoch, and after its last batch but before its end."""
    stopped = Watcher(stop_at, "save")
    stopped.path = tmp_path / "last.ckpt"
    with pytest.raises(SystemExit):
        fit(stopped, loader(), counted=counted)
    resumed = Watcher()
    fit(resumed, loader(), stopped.path, counted=counted)
    assert stopped.seen + resumed.seen == uninterrupted
    assert resumed.batch_idx == 4


@pytest.mark.parametrize("counted", [True, False])
def test_training_goes_on_that_was_stopped_twice_in_an_epoch(tmp_path, uninterrupted, counted):
    seen, path = [], None
    for stop_at in (6, 2):  # one batch of the second epoch, and two more
        stopped = Watcher(stop_at, "save")
        stopped.path = tmp_path / f"{stop_at}.ckpt"
        with pytest.raises(SystemExit):
            fit(stopped, loader(), path, counted=counted)
        seen, path = seen + stopped.seen, stopped.path
    resumed = Watcher()
    fit(resumed, loader(), path, counted=counted)
    assert seen + resumed.seen == uninterrupted


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=.*")
def test_the_batch_in_which_training_failed_is_seen_again(tmp_path, uninterrupted):
    stopped = Watcher(7, "error")
    keep = OnExceptionCheckpoint(tmp_path, "failed")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(stopped, loader(workers=1), callbacks=[keep], enable_checkpointing=True)
    resumed = Watcher()
    runs = fit(resumed, loader(workers=1), tmp_path / "failed.ckpt")
    assert stopped.seen + resumed.seen == uninterrupted
    assert runs.lr_scheduler_configs[0].scheduler.get_last_lr() == [
        0.1 / 4
    ]  # no epoch ended without Lightning's notice


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=.*")
def test_training_goes_on_after_sigterm(tmp_path, uninterrupted):
    stopped, resumed = Watcher(6, "terminate"), Watcher()
    keep = OnExceptionCheckpoint(tmp_path, "ended")
    with pytest.raises(SystemExit):
        fit(stopped, loader(workers=2), callbacks=[keep], enable_checkpointing=True)
    assert len(stopped.seen) == 14
    fit(resumed, loader(workers=2), tmp_path / "ended.ckpt")
    assert stopped.seen + resumed.seen == uninterrupted


@pytest.mark.parametrize("options", [{}, {"max_steps": 15, "epochs": -1}])
@pytest.mark.parametrize("every", [4, 5])
def test_checkpoints_of_lightning_hold_the_place(tmp_path, uninterrupted, every, options):
    """Those within an epoch and those of its last batch, with training measured in epochs or in steps."""
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    fit(Watcher(), loader(), callbacks=[keep], enable_checkpointing=True, **options)
    for step in range(every, 15, every):
        resumed = Watcher()
        fit(resumed, loader(), tmp_path / f"step={step}.ckpt", **options)
        assert resumed.seen == uninterrupted[2 * step :]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_lightnings_count_follows_the_size_of_batches(tmp_path, uninterrupted, batch_size):
    """As after a resume on other processes: the epoch ends where its samples do, and the next one is whole."""
    stopped = Watcher(7, "save")
    stopped.path = tmp_path / "last.ckpt"
    with pytest.raises(SystemExit):
        fit(stopped, loader())
    resumed = Watcher()
    runs = fit(resumed, loader(batch_size=batch_size), stopped.path)
    assert stopped.seen + resumed.seen == uninterrupted
    assert resumed.batch_idx == -(-10 // batch_size) - 1
    assert runs.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.1 / 4]


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled")
def test_overfitting_has_lightnings_own_order():
    model, reading = Watcher(), loader()
    trainer(overfit_batches=2).fit(model, reading)
    assert [index for _, index, _ in model.seen] == [0, 1, 2, 3] * 3
    plain = ResumableLoader(Numbers(4), batch_size=2, sampler=SequentialSampler(range(4)))
    assert plain.state_dict() == {}
    plain.load_state_dict({})
    assert len(list(plain)) == 2


def test_trap_torchs_sampler_shows_videos_twice_and_ours_none():
    def seen(sampler, **options):
        return sorted(n for rank in (0, 1) for n in sampler(range(5), num_replicas=2, rank=rank, **options))

    assert seen(DistributedSampler, shuffle=False) == [0, 0, 1, 2, 3, 4]
    assert seen(EachVideoOnce) == [0, 1, 2, 3, 4]
