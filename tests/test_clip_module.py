"""clip_module.py: answers come from the folded form where they are the same, and never from one of other weights."""

import logging

import pytest
import torch

from lightning_csn.models import fold as fold_module
from lightning_csn.models.fold import cannot_pack, fold

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning 2.6 on torch 2.15
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
]


@pytest.fixture
def forms(monkeypatch):
    """The folded forms that were made, in order."""
    made = []

    def folding(network):
        made.append(fold(network, layout="channels_last"))
        return made[-1]

    monkeypatch.setattr(fold_module, "fold", folding)
    monkeypatch.setattr(fold_module, "cannot_pack", lambda device, dtype: None)
    return made


@torch.no_grad()
def test_answers_come_from_the_folded_form_and_exact_ones_from_the_network_itself(tiny_model, tiny_batch, forms):
    model, clips = tiny_model().eval(), tiny_batch([0, 1], views=3)["clips"]
    answers = model(clips)
    assert model.inference_network() is forms[0]
    assert len(forms) == 1
    model.exact = True
    assert model.inference_network() is model.network
    torch.testing.assert_close(model(clips), answers)
    assert set(model.state_dict()) == set(tiny_model().state_dict())


@pytest.mark.parametrize(
    "change",
    [
        lambda model, make: model.network.head.bias.add_(1),
        lambda model, make: model.network.stem.norm.running_mean.add_(1),
        lambda model, make: model.load_state_dict(make(network={"zero_init_last": True}).state_dict()),
        lambda model, make: setattr(model.network.stem.conv, "weight", torch.nn.Parameter(torch.ones(16, 3, 3, 7, 7))),
        lambda model, make: setattr(model.network.head.weight, "data", torch.ones(4, 512)),
        lambda model, make: (model.network.reset_classifier(3), model.eval()),
        lambda model, make: model.network.options.update(head_pooling=[1, 1, 1]),
        lambda model, make: setattr(model, "network", make(network={"norm_eps": 0.1}).network.eval()),
    ],
)
@torch.no_grad()
def test_the_folded_form_is_never_of_other_weights(tiny_model, tiny_batch, forms, change):
    model, clips = tiny_model().eval(), tiny_batch([0, 1], views=3)["clips"]
    first = model(clips)
    change(model, tiny_model)
    second = model(clips)
    assert len(forms) == 2
    model.exact = True
    torch.testing.assert_close(second, model(clips))
    assert (
        not (second.shape == first.shape and torch.equal(second, first))
        or model.network.options["head_pooling"] != "global"
    )


def test_what_needs_the_network_itself_has_it(tiny_model, forms, monkeypatch):
    model = tiny_model().eval()
    assert model.inference_network() is model.network  # gradients are counted
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert model.inference_network() is model.network
        model.network.stage1.train()
        assert model.inference_network() is model.network
        hook = model.eval().network.stage1.register_forward_hook(lambda *_: None)
        assert model.inference_network() is model.network
        hook.remove()
        assert model.double().inference_network() is model.network
        monkeypatch.setattr(fold_module, "cannot_pack", lambda device, dtype: "elsewhere")
        assert model.float().inference_network() is model.network
    assert not forms


@torch.no_grad()
def test_an_exchanged_layer_runs_as_it_was_trained_and_that_is_said_once(tiny_model, tiny_batch, caplog):
    model, clips = tiny_model().eval(), tiny_batch([0])["clips"]
    model.network.stage1[0].expand.norm = torch.nn.GroupNorm(4, 64).eval()
    with caplog.at_level(logging.INFO, "lightning_csn"):
        model(clips)
        model(clips)
    said = [line for line in caplog.messages if "runs as it was trained" in line]
    assert len(said) == (cannot_pack("cpu", torch.float32) is None)


def test_training_and_validation_run_the_network_itself_and_a_test_the_folded_form(
    forms, make_trainer, tiny_model, tiny_loader
):
    model, trainer = tiny_model(lr=0.05), make_trainer(max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(model, tiny_loader(), tiny_loader())
    trainer.validate(model, tiny_loader(), verbose=False)
    assert not forms
    tested = trainer.test(model, tiny_loader(), verbose=False)
    assert len(forms) == 1
    model.network.head.bias.data[0] += 3  # leaves no trace
    changed = trainer.test(model, tiny_loader(), verbose=False)
    assert len(forms) == 2
    model.exact = True
    exact = trainer.test(model, tiny_loader(), verbose=False)
    assert changed[0]["test_loss"] == pytest.approx(exact[0]["test_loss"], rel=1e-4)
    assert changed[0]["test_loss"] != pytest.approx(tested[0]["test_loss"], rel=1e-4)
