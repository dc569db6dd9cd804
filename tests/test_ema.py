"""ema.py: averages that are validated, kept and gone on with, and that never take the place of what was learned."""

import logging
import os
import signal

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy

from lightning_csn.cli import main
from lightning_csn.ema import EMA
from lightning_csn.errors import InputError
from lightning_csn.module import LitCSN

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15


@pytest.fixture
def make_model(tiny_model):
    """A model of two classes that learns fast."""
    return lambda: tiny_model(num_classes=2, lr=0.1)


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def distance(one, other):
    """Of parameters, in the whole."""
    return sum((one[name] - other[name]).square().sum() for name in one if "norm" not in name).sqrt().item()


class Spy(L.Callback):
    """The weights after each step and in each validation, and what was kept of them in there."""

    def __init__(self, path=None):
        self.steps, self.validations, self.path = [], [], path

    def on_train_batch_end(self, trainer, module, *args):
        self.steps.append(weights_of(module))

    def on_validation_batch_end(self, trainer, module, *args):
        self.validations.append(weights_of(module))
        if self.path is not None:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def loader(tiny_batch, tiny_loader):
    """Of so many batches, each of its own seed."""
    return lambda count=4, first=0: tiny_loader(*(tiny_batch([0, 1], seed=first + n) for n in range(count)))


@pytest.fixture
def fit(make_trainer, make_model, loader):
    """Train for some steps; gives the trainer, the model and what Spy saw."""

    def run(callback, *callbacks, ckpt_path=None, spy_path=None, model=None, **options):
        spy = Spy(spy_path)
        model = model or make_model()
        trainer = make_trainer(**({"max_epochs": 1} | options), callbacks=[callback, spy, *callbacks])
        trainer.fit(model, loader(), loader(1, first=10), ckpt_path=ckpt_path, weights_only=True)
        return trainer, model, spy

    return run


def expected_average(steps, decay):
    """The definition, in float64."""
    average = {name: tensor.double() for name, tensor in steps[0].items()}
    for n, weights in enumerate(steps[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        average = {name: d * tensor + (1 - d) * weights[name] for name, tensor in average.items()}
    return average


def test_the_average_is_what_its_definition_says_and_what_is_validated(fit):
    _, model, spy = fit(EMA(0.3))
    average = expected_average(spy.steps, 0.3)
    for found in (spy.validations[-1], weights_of(model)):
        for name, tensor in found.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor.double(), average[name], rtol=1e-5, atol=1e-6)
            else:
                assert tensor == spy.steps[-1][name]  # of batches that BatchNorm counted
    assert distance(weights_of(model), spy.steps[-1]) > 0.01


def test_training_itself_goes_on_with_the_weights(states_equal, fit):
    _, _, plain = fit(L.Callback(), max_epochs=2)
    _, _, averaged = fit(EMA(0.9), max_epochs=2)
    assert all(states_equal(one, other) for one, other in zip(plain.steps, averaged.steps, strict=True))


def test_accumulated_batches_are_one_step(fit):
    ema = EMA(0.9)
    _, _, spy = fit(ema, accumulate_grad_batches=2)
    assert ema.updates == 2
    average = expected_average(spy.steps[1::2], 0.9)
    torch.testing.assert_close(spy.validations[-1]["network.head.weight"].double(), average["network.head.weight"])


# ---------------------------------------------------------------- Lightning's callback, and what it loses


def test_a_start_that_is_not_reached_leaves_what_was_learned(make_model, states_equal, fit, caplog):
    naive = EMAWeightAveraging(update_starting_at_step=100)
    _, model, spy = fit(naive)
    assert states_equal(weights_of(model), weights_of(make_model()))  # nothing is left of four steps of training
    assert not states_equal(weights_of(model), spy.steps[-1])
    with pytest.raises(InputError, match="begins at step 100, but training has only 4 steps; lower start_step"):
        fit(EMA(start_step=100))

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop |= trainer.global_step == 2

    trainer, model, spy = fit(EMA(start_step=3), Stop(), min_epochs=0)
    assert len(spy.steps) == 2
    assert states_equal(weights_of(model), spy.steps[-1])
    assert states_equal(spy.validations[-1], spy.steps[-1])
    assert "ended after 2 steps, before step 3 at which averaging begins: nothing was averaged" in caplog.text
    checkpoint = trainer._checkpoint_connector.dump_checkpoint()
    assert states_equal(checkpoint["state_dict"], spy.steps[-1])


def test_averages_of_a_short_run_are_not_those_of_its_first_steps(fit):
    def share_learned(callback):
        _, model, spy = fit(callback, max_epochs=8)
        start = spy.steps[0]
        return distance(weights_of(model), start) / distance(spy.steps[-1], start)

    assert share_learned(EMAWeightAveraging(decay=0.999)) < 0.05
    assert share_learned(EMA(0.999)) > 0.5
    assert share_learned(EMA(0.999, warm_up=False)) < 0.05


def test_a_test_after_training_is_of_the_averages_that_were_validated(loader, states_equal, fit):
    def tested(callback):
        seen = Spy()
        seen.on_test_batch_end = lambda trainer, module, *args: seen.validations.append(weights_of(module))
        best = ModelCheckpoint(monitor="val_loss")
        trainer, model, spy = fit(callback, seen, best)
        trainer.test(model, loader(1), ckpt_path=best.best_model_path, verbose=False, weights_only=True)
        return seen.validations[-1], spy

    found, spy = tested(EMAWeightAveraging(decay=0.9))
    assert states_equal(found, spy.steps[-1])  # the weights, of which no validation was
    found, spy = tested(EMA(0.9))
    assert states_equal(found, spy.validations[-1])


def test_a_file_of_weights_alone_holds_the_averages(states_equal, fit):
    def kept(callback):
        only = ModelCheckpoint(monitor="val_loss", save_weights_only=True)
        _, _, spy = fit(callback, only)
        return torch.load(only.best_model_path, weights_only=True), spy

    checkpoint, spy = kept(EMAWeightAveraging(decay=0.9))
    assert states_equal(checkpoint["state_dict"], spy.steps[-1])
    checkpoint, spy = kept(EMA(0.9))
    assert states_equal(checkpoint["state_dict"], spy.validations[-1])
    assert checkpoint["ema"] == {"decay": 0.9, "updates": 4}


def test_what_is_saved_amid_a_validation_is_not_exchanged(states_equal, fit, tmp_path):
    def saved(callback):
        _, _, spy = fit(callback, spy_path=tmp_path / "amid.ckpt")
        checkpoint = torch.load(tmp_path / "amid.ckpt", weights_only=True)
        return checkpoint["state_dict"], checkpoint["current_model_state"], spy

    averages, weights, spy = saved(EMAWeightAveraging(decay=0.9))
    assert states_equal(averages, spy.steps[-1])
    assert states_equal(weights, spy.validations[-1])
    averages, weights, spy = saved(EMA(0.9))
    assert states_equal(averages, spy.validations[-1])
    assert states_equal(weights, spy.steps[-1])


# ---------------------------------------------------------------- going on


def test_training_goes_on_from_its_end(states_equal, fit, tmp_path):
    _, _, whole = fit(EMA(0.9), max_epochs=2)

    def halves(kind):
        trainer, *_ = fit(kind)
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        return fit(kind, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)[2]

    second = halves(EMA(0.9))
    assert states_equal(second.steps[-1], whole.steps[-1])
    assert states_equal(second.validations[-1], whole.validations[-1])
    assert not states_equal(halves(EMAWeightAveraging(decay=0.9)).steps[-1], whole.steps[-1])


def test_averaging_may_begin_in_a_run_that_goes_on(states_equal, fit, tmp_path):
    _, _, plain = fit(L.Callback(), max_epochs=2)
    trainer, *_ = fit(L.Callback())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    ema = EMA(0.9)
    _, _, spy = fit(ema, ckpt_path=tmp_path / "half.ckpt", max_epochs=2)
    assert states_equal(spy.steps[-1], plain.steps[-1])
    assert ema.updates == 4


def test_averages_are_not_trained_on_as_if_they_were_the_weights(fit, tmp_path):
    trainer, *_ = fit(EMA(0.9))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(InputError, match=r"averages of the weights over 4 steps .*give the Trainer EMA\(\)"):
        fit(L.Callback(), ckpt_path=tmp_path / "half.ckpt", max_epochs=2)


def test_a_validation_that_fails_leaves_the_weights(make_model, states_equal, fit):
    class Fail(L.Callback):
        def on_validation_batch_end(self, *args):
            raise InputError("no more")

    model = make_model()
    with pytest.raises(InputError, match="no more"):
        fit(EMA(0.9), Fail(), model=model)
    _, _, spy = fit(EMA(0.9))
    assert states_equal(weights_of(model), spy.steps[-1])


def test_the_averages_have_what_is_done_to_their_statistics(states_equal, fit):
    class Measure(L.Callback):  # as PreciseBatchNorm
        def on_validation_epoch_start(self, trainer, module):
            with trainer.callbacks[0].averages_in(module):  # they are there already, and stay
                module.network.stem.norm.running_mean.fill_(3)

        def on_train_batch_end(self, trainer, module, *args):
            weights, average = weights_of(module), trainer.callbacks[0]._average_model.module
            with trainer.callbacks[0].averages_in(module):
                assert states_equal(weights_of(module), weights_of(average))
            assert states_equal(weights_of(module), weights)

        def on_train_end(self, trainer, module):
            module.network.stem.norm.running_mean.fill_(4)

        def on_train_start(self, trainer, module):
            with trainer.callbacks[0].averages_in(module):  # nothing was averaged, and nothing happens
                module.network.stem.norm.running_var.fill_(2)
            assert module.network.stem.norm.running_var[0] == 2

    name = "network.stem.norm.running_mean"
    trainer, _, spy = fit(EMA(0.9), Measure())
    assert (spy.validations[-1][name] == 3).all()
    average = trainer.callbacks[0]._average_model.module
    assert (weights_of(average)[name] == 3).all()
    checkpoint = trainer._checkpoint_connector.dump_checkpoint()
    assert (checkpoint["state_dict"][name] == 4).all()
    assert states_equal(checkpoint["current_model_state"], spy.steps[-1])


def test_a_model_that_has_answered_before_is_averaged_too(make_model, fit):
    model = make_model().eval()
    with torch.no_grad():
        model(torch.zeros(1, 1, 3, 2, 16, 16, dtype=torch.uint8))
    ema = EMA(0.9)
    fit(ema, model=model.train())
    assert ema.updates == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1}, "decay must be below 1"),
        ({"decay": 1.5}, "decay must be a number from 0 to 1, got 1.5"),
        ({"start_step": -1}, "start_step must be a whole number of 0 or more"),
        ({"every_steps": 0}, "every_steps must be a whole number of 1 or more"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        EMA(**options)


def test_weights_that_are_cut_into_pieces_are_refused(make_model, tmp_path, monkeypatch):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    monkeypatch.setattr(type(trainer), "strategy", FSDPStrategy())
    with pytest.raises(InputError, match="which FSDPStrategy cuts into pieces; train with"):
        EMA().setup(trainer, make_model(), "fit")


def test_averages_of_coarse_numbers_are_fine(make_model, fit):
    """bf16 has 8 bits: a thousandth of a step towards the weights would be no step at all."""
    ema = EMA(0.999, warm_up=False)
    model = make_model()
    fit(ema, model=model, precision="bf16-true")
    average = ema._average_model.module.network.head.weight
    assert average.dtype == torch.float32
    assert model.network.head.weight.dtype == torch.bfloat16
    assert not torch.equal(average, average.bfloat16().float())


# ---------------------------------------------------------------- the command

YAML_CLIP = "{frames: 4, step: 1, fps: null, short_side: 32, crop: 32, test_crop: 32, mean: [0, 0, 0], std: [1, 1, 1]}"
QUIET = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
QUIET += ["--trainer.enable_model_summary=false", "--data.num_workers=0", "--data.batch_size=4"]
FIT = [*QUIET, "--trainer.num_sanity_val_steps=0", "--trainer.max_epochs=2", "--data.eval_batch_size=2"]
FIT += ["--model.lr=0.1"]
NEW = ["--model.architecture=ircsn_tiny", f"--model.clip={YAML_CLIP}"]


def command(name, *options):
    return main([name, *(FIT if name == "fit" else QUIET), *options])


@pytest.fixture(scope="module")
def whole_run(split_folder, tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole")
    options = [f"--data.root={split_folder}", f"--trainer.default_root_dir={runs}", "--ema=0.9"]
    assert command("fit", *NEW, *options) == 0
    return runs


@pytest.mark.parametrize("at", [("training_step", 2), ("validation_step", 2), ("training_step", 5)])
def test_a_run_that_is_stopped_goes_on_with_its_averages(
    states_equal, split_folder, tmp_path, whole_run, monkeypatch, at
):
    """Two epochs of three batches; stopped in an epoch, and in the validation of averages."""
    name, number = at
    step, count = getattr(LitCSN, name), 0

    def stop(self, batch, batch_idx):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    options = [f"--data.root={split_folder}", f"--trainer.default_root_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(LitCSN, name, stop)
        assert command("fit", *NEW, *options, "--ema=0.9") == 143
    assert command("fit", *options, f"--ckpt_path={tmp_path / 'last.ckpt'}") == 0  # without --ema
    held, whole = (torch.load(runs / "last.ckpt", weights_only=True) for runs in (tmp_path, whole_run))
    assert held["global_step"] == whole["global_step"] == 6
    assert held["ema"] == whole["ema"] == {"decay": 0.9, "updates": 6}
    assert states_equal(held["state_dict"], whole["state_dict"])
    assert states_equal(held["current_model_state"], whole["current_model_state"])
    assert not states_equal(held["state_dict"], held["current_model_state"])


def test_test_and_from_pretrained_use_the_averages_and_say_so(
    states_equal, split_folder, tmp_path, whole_run, capsys, caplog
):
    last = whole_run / "last.ckpt"
    said = "averages of the weights over 6 steps of training (EMA, decay 0.9)"
    options = [f"--data.root={split_folder}", f"--trainer.default_root_dir={tmp_path}", "--data.test_clips=1"]
    assert command("test", *options, "--data.test_crops=1", f"--ckpt_path={last}", "--trainer.logger=false") == 0
    assert f"the weights are {said}" in capsys.readouterr().err
    averages = torch.load(last, weights_only=True)["state_dict"]
    model = LitCSN.from_pretrained(last)
    assert states_equal(model.state_dict(), averages)
    model.save_pretrained(tmp_path / "saved")
    assert f"The weights are {said}." in (tmp_path / "saved" / "README.md").read_text()
    caplog.set_level(logging.INFO)
    assert states_equal(LitCSN.load_from_checkpoint(last, weights_only=True).state_dict(), averages)
    assert said in caplog.text


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of ModelCheckpoint, in another folder
def test_an_average_by_hand_wins_over_that_of_the_run(split_folder, tmp_path, whole_run, capsys):
    options = [f"--data.root={split_folder}", f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=3"]
    assert command("fit", *options, f"--ckpt_path={whole_run / 'last.ckpt'}", "--ema=0.5") == 0
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["ema"] == {"decay": 0.5, "updates": 9}
    assert command("fit", *options, f"--ckpt_path={whole_run / 'last.ckpt'}", "--ema=null") == 2
    said = "--ema null: the run to go on with averages its weights (decay 0.9), and goes on so"
    assert said in capsys.readouterr().err
    twice = ["--trainer.callbacks=lightning_csn.EMA", "--ema=0.5"]
    assert command("fit", *options, *NEW, *twice) == 2
    assert "--ema 0.5: one of --trainer.callbacks averages the weights already" in capsys.readouterr().err
    assert command("fit", *options, *NEW, "--ema=1") == 2
    assert "decay must be below 1" in capsys.readouterr().err
