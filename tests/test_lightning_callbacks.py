"""Lightning's own callbacks do what they say with LitCSN and VideoDataModule, or are refused with the reason."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    ThroughputMonitor,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner

from lightning_csn.datamodule import VideoDataModule
from lightning_csn.errors import InputError
from lightning_csn.module import LitCSN

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15


@pytest.fixture
def make_model(tiny_model):
    """A model of the classes of `data`."""
    return lambda kind=LitCSN, **options: tiny_model(
        kind, **({"num_classes": 3, "lr": 1e-3, "schedule": "cosine"} | options)
    )


@pytest.fixture
def data(split_folder):
    return VideoDataModule(split_folder, batch_size=4, num_workers=0)  # 12 videos to train on


@pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`, you need to define a `flops_per_batch`")
def test_checkpoints_early_stopping_and_throughput(make_trainer, make_model, data, tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", monitor="val_loss", save_top_k=1)
    stop = EarlyStopping("val_loss", patience=1, min_delta=100.0)  # nothing is that much better
    speed = ThroughputMonitor(batch_size_fn=lambda batch: len(batch["videos"]), window_size=4)
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(
        max_epochs=9, callbacks=[keep, stop, speed], enable_checkpointing=True, logger=logger, log_every_n_steps=1
    )
    trainer.fit(make_model(), data)
    assert trainer.current_epoch == stop.stopped_epoch + 1 == 2
    assert keep.best_model_score == min(score for score in keep.best_k_models.values())
    back = LitCSN.load_from_checkpoint(keep.best_model_path)
    trainer = make_trainer()
    trainer.validate(back, data, verbose=False)
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(keep.best_model_score.item(), rel=1e-5)
    logged = logger.experiment.metrics_keys
    assert "train/device/samples_per_sec" in logged


class LambdaLitCSN(LitCSN):
    """With a schedule of torch, for a rate that is constant."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_the_rate_that_was_found_is_that_of_the_whole_training(make_trainer, watch_rates, make_model, data):
    rates = {}
    for kind in (LitCSN, LambdaLitCSN):
        seen, model = watch_rates(), make_model(kind, schedule="constant")
        finder = LearningRateFinder(min_lr=1e-5, max_lr=0.1, num_training_steps=14, early_stop_threshold=None)
        make_trainer(max_epochs=5, callbacks=[finder, seen]).fit(model, data)
        found = model.hparams["lr"]
        assert found == finder.optimal_lr.suggestion() != 1e-3
        rates[kind] = [rate / found for rate in seen.rates]
    assert rates[LitCSN] == pytest.approx([1] * 15)
    assert rates[LambdaLitCSN] != pytest.approx([1] * 15)  # as before from the second step on


def test_the_schedule_and_the_rate_are_for_the_batches_that_were_found(make_trainer, watch_rates, make_model, data):
    seen, model = watch_rates(), make_model(lr_batch=8)
    finder = BatchSizeFinder(init_val=3, max_trials=2, steps_per_trial=1)
    make_trainer(max_epochs=2, callbacks=[finder, seen]).fit(model, data)
    assert data.batch_size == finder.optimal_batch_size == 6
    expected = [(1 + math.cos(math.pi * step / 4)) / 2 * 1e-3 * 6 / 8 for step in range(4)]
    assert seen.rates == pytest.approx(expected)


def test_the_tuner_finds_before_training(make_trainer, watch_rates, make_model, data):
    model, trainer = make_model(layer_decay=1.0), make_trainer(max_epochs=1)
    assert Tuner(trainer).scale_batch_size(model, datamodule=data, init_val=3, max_trials=2, steps_per_trial=1) == 6
    seen = watch_rates()
    make_trainer(max_epochs=1, callbacks=[seen]).fit(model, data)
    assert seen.rates == pytest.approx([1e-3, 5e-4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.5}, "LearningRateFinder tries one rate for the whole network, which layer_decay, head_lr"),
        ({"head_lr": 10}, "find lr without these options, then train with them"),
        ({"lr_batch": 8}, "LearningRateFinder finds the lr for the batches as they are; leave lr_batch out"),
    ],
)
def test_a_search_whose_result_would_mean_something_else_is_refused(make_trainer, make_model, data, options, message):
    with pytest.raises(InputError, match=message):
        make_trainer(max_epochs=1, callbacks=[LearningRateFinder()]).fit(make_model(**options), data)


def test_a_search_in_a_run_that_goes_on_is_refused(make_trainer, make_model, data, tmp_path):
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(make_model(), data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for finder in (LearningRateFinder, BatchSizeFinder):
        with pytest.raises(InputError, match=f"{finder.__name__} would lose the state of the run that is to go on"):
            make_trainer(max_epochs=2, callbacks=[finder()]).fit(make_model(), data, ckpt_path=tmp_path / "last.ckpt")
