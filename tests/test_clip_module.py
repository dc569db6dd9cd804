"""clip_module.py: answers come from the folded form where they are the same, and never from one of other weights; clips
and weights lie in memory as is quick on their device.
"""

import logging

import pytest
import torch

from lightning_csn import clip_module
from lightning_csn.distillation import Teacher
from lightning_csn.ema import EMA
from lightning_csn.models import fold as fold_module
from lightning_csn.models import pixels
from lightning_csn.models.fold import cannot_pack, fold
from lightning_csn.module import LitCSN
from lightning_csn.runner import NetworkRunner

CHANNELS_LAST = torch.channels_last_3d

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15


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


def last(tensor):
    """Whether a 5-D tensor has its channels last in memory, and no other order would do as well."""
    assert not tensor.is_contiguous() or not tensor.is_contiguous(memory_format=CHANNELS_LAST)
    return tensor.is_contiguous(memory_format=CHANNELS_LAST)


@pytest.fixture
def lay_out_as_on(monkeypatch):
    """Has this CPU's clips and weights lie in memory as they do on another kind of device."""
    known = pixels.layouts
    return lambda kind: monkeypatch.setattr(pixels, "layouts", lambda _: known(kind))


class Layout:
    """Notes of every pass of a network whether clips and weights have their channels last."""

    def __init__(self, network):
        self.seen = []
        network.register_forward_pre_hook(lambda _, inputs: self.note(network, inputs[0]))

    def note(self, network, clips):
        self.seen.append((last(clips), last(network.stem.conv.weight)))


@pytest.mark.parametrize(
    ("kind", "clips", "weights"), [("cpu", True, False), ("cuda", True, True), ("mps", False, False)]
)
def test_training_and_answers_have_the_layout_that_is_quick_on_their_device(
    make_trainer, tiny_model, tiny_batch, tiny_loader, lay_out_as_on, kind, clips, weights
):
    lay_out_as_on(kind)
    for run in ("fit", "validate", "test", "call", "runner", "teacher"):
        model = tiny_model()
        layout = Layout(model.network)
        if run == "fit":
            make_trainer(max_epochs=1).fit(model, tiny_loader())
        elif run == "call":
            with torch.inference_mode():
                model.eval()(tiny_batch()["clips"])
            assert not model.network.stem.conv.weight.is_inference()  # which could never be trained
        elif run == "runner":
            NetworkRunner(model, exact=True)(tiny_batch()["clips"][:, 0])
        elif run == "teacher":
            teacher = Teacher.__new__(Teacher)
            teacher.network, teacher._order = model.network, None
            teacher._scale = teacher._shift = torch.ones(3, 1, 1, 1)
            teacher.to(torch.device("cpu"))
            teacher.logits(model.normalise(tiny_batch()["clips"][:, 0]))
        else:
            getattr(make_trainer(), run)(model, tiny_loader(), verbose=False)
        assert set(layout.seen) == {(clips, weights)}, run


def test_the_layout_shows_in_no_checkpoint_and_the_optimiser_and_averages_share_it(
    make_trainer, tiny_model, tiny_loader, states_equal, lay_out_as_on, tmp_path
):
    lay_out_as_on("cuda")
    average = EMA(0.5)
    model, trainer = tiny_model(), make_trainer(max_epochs=1, callbacks=[average])
    trainer.fit(model, tiny_loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    held = torch.load(tmp_path / "last.ckpt", weights_only=True)
    kept = [state["momentum_buffer"] for state in held["optimizer_states"][0]["state"].values()]
    named = [*held["state_dict"].values(), *held["current_model_state"].values()]
    assert all(tensor.is_contiguous() for tensor in kept + named)  # as any strategy loads them
    weight = model.network.stem.conv.weight
    assert last(weight)
    assert last(trainer.optimizers[0].state[weight]["momentum_buffer"])
    assert last(average._average_model.module.network.stem.conv.weight)
    lay_out_as_on("cpu")
    loaded = LitCSN.load_from_checkpoint(tmp_path / "last.ckpt")
    saved = LitCSN.from_pretrained(model.save_pretrained(tmp_path / "saved"))
    for other in (loaded, saved):
        assert not last(other.network.stem.conv.weight)
        assert states_equal(other.state_dict(), model.state_dict())
    make_trainer(max_epochs=2, callbacks=[EMA(0.5)]).fit(loaded, tiny_loader(), ckpt_path=tmp_path / "last.ckpt")
    lay_out_as_on("cuda")
    trainer = make_trainer(max_epochs=2, callbacks=[EMA(0.5)])
    trainer.fit(model, tiny_loader(), ckpt_path=tmp_path / "last.ckpt")
    assert last(trainer.optimizers[0].state[weight]["momentum_buffer"])
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_weights_to_be_cut_into_pieces_stay_contiguous(make_trainer, tiny_model, lay_out_as_on, monkeypatch):
    lay_out_as_on("cuda")
    model = tiny_model()
    model.trainer = make_trainer()
    model.setup("fit")
    assert last(model.network.stem.conv.weight)
    monkeypatch.setattr(clip_module, "holds_whole_weights", lambda strategy: False)
    model.setup("fit")
    assert model.network.stem.conv.weight.is_contiguous()
