"""Which optimiser trains, and how its learning rates go up and down."""

import math

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_csn.errors import InputError
from lightning_csn.module import LitCSN
from lightning_csn.optimizer import rate_factor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning 2.6 on torch 2.15
    # What Lightning says of trainings as small as these.
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
]

SIZE = 16
CLIP = {
    "frames": 2,
    "step": 1,
    "fps": None,
    "short_side": SIZE,
    "crop": SIZE,
    "test_crop": SIZE,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}


def make_model(**options):
    torch.manual_seed(0)
    return LitCSN("ircsn_tiny", **({"num_classes": 4, "clip": CLIP, "schedule": "constant"} | options))


def make_batch(labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(256, (len(labels), 1, 3, 2, SIZE, SIZE), generator=generator)
    return {
        "clips": clips.to(torch.uint8),
        "labels": torch.tensor(labels),
        "videos": torch.arange(len(labels)),
        "short": torch.zeros(len(labels), dtype=torch.bool),
        "unreadable": [],
    }


def loader(*batches):
    return DataLoader(list(batches), batch_size=None)


TRAIN = [make_batch([0, 1, 2, 3]), make_batch([3, 2, 1, 0], seed=1)]


@pytest.fixture
def make_trainer(tmp_path):
    def make(**options):
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        return L.Trainer(**(quiet | options))

    return make


class Rates(L.Callback):
    """The learning rates of each step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


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
def test_learning_rate_at_every_step(make_trainer, options, rates):
    seen = Rates()
    make_trainer(max_epochs=4, callbacks=[seen]).fit(make_model(lr=0.02, **options), loader(*TRAIN))
    assert [rate / 0.02 for rate in seen.rates] == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize("end", [{"max_epochs": 4}, {"max_steps": 4}, {"max_steps": 4, "max_epochs": -1}])
def test_epochs_are_counted_in_steps_of_the_optimiser(make_trainer, end):
    seen = Rates()
    trainer = make_trainer(accumulate_grad_batches=2, callbacks=[seen], **end)
    trainer.fit(make_model(lr=1.0, schedule="steps", milestones=[2]), loader(*TRAIN))
    assert seen.rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1])


def test_cosine_without_an_end_is_refused(make_trainer):
    with pytest.raises(InputError, match="pass max_epochs or max_steps"):
        make_trainer(max_epochs=-1).fit(make_model(schedule="cosine"), loader(*TRAIN))


def test_a_warmup_in_epochs_of_data_without_length_is_refused(make_trainer):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from TRAIN

    endless = DataLoader(Endless(), batch_size=None)
    with pytest.raises(InputError, match="the training data has no length"):
        make_trainer(max_steps=2).fit(make_model(warmup_epochs=1), endless)
    seen = Rates()
    make_trainer(max_steps=2, callbacks=[seen]).fit(make_model(lr=1.0, schedule="cosine"), endless)
    assert seen.rates == pytest.approx([1, 0.5])


def test_a_warmup_longer_than_the_training_never_ends():
    assert rate_factor(2, epochs=2, schedule="cosine", warmup_epochs=4) == pytest.approx(0.55)
    assert rate_factor(4, epochs=2, schedule="cosine", warmup_epochs=4) == 0


def make_optimizer(make_trainer, **options):
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(make_model(**options), loader(TRAIN[0]))
    return trainer.optimizers[0]


def test_sgd_is_that_of_the_published_recipes(make_trainer):
    optimizer = make_optimizer(make_trainer)
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups  # norms and biases decay too
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 1e-4)
    assert len(group["params"]) == len(list(make_model().parameters()))


def test_sgd_takes_further_options(make_trainer):
    assert make_optimizer(make_trainer, optimizer_options={"nesterov": True}).param_groups[0]["nesterov"]


def test_adamw_leaves_norms_and_biases_without_decay_if_asked(make_trainer):
    optimizer = make_optimizer(
        make_trainer, optimizer="adamw", weight_decay=0.05, decay_norms=False, optimizer_options={"betas": (0.8, 0.9)}
    )
    assert type(optimizer) is torch.optim.AdamW
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    decays = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert decays.keys() == {0.05, 0.0}
    assert {parameter.ndim for parameter in decays[0.0]} == {1}
    assert {parameter.ndim for parameter in decays[0.05]} == {2, 5}


def test_an_unknown_optimiser_is_refused_with_what_there_is(make_trainer):
    with pytest.raises(InputError, match=r"no optimiser 'adamv'; there are: .*adamw"):
        make_optimizer(make_trainer, optimizer="adamv")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("sgd", {"foo": 1}, "unexpected keyword argument 'foo'"), ("adamw", {"betas": [2, 3]}, "Invalid beta parameter")],
)
def test_options_that_an_optimiser_does_not_take_are_refused(make_trainer, name, options, message):
    with pytest.raises(InputError, match=rf"optimizer '{name}' cannot be used with .*: .*{message}"):
        make_optimizer(make_trainer, optimizer=name, optimizer_options=options)
