"""fold.py: every network answers the same in both forms, whatever its options, and the folded one is its own copy."""

import copy
import json
import pickle
import platform
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_csn.cli import main
from lightning_csn.errors import InputError
from lightning_csn.models import fold as fold_module
from lightning_csn.models.fold import LAYOUTS, fold
from lightning_csn.models.network import ARCHITECTURES, create_network
from lightning_csn.module import LitCSN
from lightning_csn.trainer_commands import TrainerCommand

needs_packing = pytest.mark.skipif(
    fold_module.cannot_pack("cpu", torch.float32) is not None, reason="not an x86 CPU with oneDNN"
)
FORMS = [form if form != "packed" else pytest.param(form, marks=needs_packing) for form in ("auto", *LAYOUTS)]


def trained(name, **options):
    """A network in eval mode whose BatchNorms are not those of a fresh one."""
    torch.manual_seed(0)
    network = create_network(name, num_classes=options.pop("num_classes", 7), **options).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm3d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    with torch.no_grad():  # so that a deep network neither fades nor explodes
        clip = torch.randn(1, network.options["in_channels"], 4, 32, 32)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm3d):
                norm.register_forward_pre_hook(count_statistics)
        network(clip)
        for norm in network.modules():
            norm._forward_pre_hooks.clear()
    return network


def count_statistics(norm, inputs):
    (x,) = inputs
    norm.running_var.mul_(x.var() + 1e-3)


@torch.no_grad()
def assert_same(network, clip, **options):
    expected = network(clip)
    found = fold(network, **options)(clip)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_the_same_logits(name):
    assert_same(trained(name), torch.randn(2, 3, 4, 32, 32))


@pytest.mark.parametrize("layout", FORMS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ircsn_tiny", {"norm_eps": 1e-5}),
        ("ipcsn_tiny", {"norm_eps": 0.1}),
        ("resnet3d_tiny", {"groups": 4}),
        ("ircsn_tiny", {"stem_pool": False, "in_channels": 2}),
        ("ircsn_tiny", {"dropout": 0.5, "drop_path": 0.5}),
        ("ipcsn_tiny", {"head_pooling": [1, 2, 2], "head_average": "probabilities"}),
        ("ircsn_tiny", {"head_pooling": [1, 2, 1], "head_average": "logits"}),
        ("ircsn_tiny", {"num_classes": 0}),
        ("ipcsn_tiny", {"zero_init_last": True}),
    ],
)
def test_options_of_the_network_are_kept(name, options, layout):
    network = trained(name, **options)
    assert_same(network, torch.randn(2, options.get("in_channels", 3), 5, 70, 70), layout=layout)


def test_depthwise_layers_give_the_same_by_the_function_that_has_kernels_for_gpus(monkeypatch):
    form, clip = fold(trained("ipcsn_tiny"), layout="contiguous"), torch.randn(1, 3, 4, 32, 32)
    expected, ran = form(clip), []
    for layer in form.modules():
        if getattr(layer, "depthwise", False):
            ran.append(layer)
            monkeypatch.setattr(layer, "_convolve", layer._convolve_depthwise)
    torch.testing.assert_close(form(clip), expected)
    assert len(ran) == 4


def test_features_and_what_the_head_makes_of_them():
    network = trained("ircsn_tiny")
    form, clip = fold(network), torch.randn(2, 3, 8, 64, 64)
    with torch.no_grad():
        features = network.forward_features(clip)
        torch.testing.assert_close(form.forward_features(clip), features, rtol=1e-4, atol=1e-4)
        pooled = network.forward_head(features, pre_logits=True)
        torch.testing.assert_close(form.forward_head(features, pre_logits=True), pooled)


def test_clip_is_left_as_it_is_and_may_have_any_layout():
    form = fold(trained("ircsn_tiny"))
    clip = torch.randn(2, 3, 4, 32, 32)
    before, other = clip.clone(), clip.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(form(clip), form(other))
    assert torch.equal(clip, before)
    assert torch.equal(other, before)


def test_training_on_changes_the_network_and_not_the_form():
    network = trained("ircsn_tiny", dropout=0.5, drop_path=0.5)
    form, clip = fold(network.train()), torch.randn(2, 3, 4, 32, 32)
    assert all(module.training for module in network.modules())
    before = form(clip)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    network(clip)
    assert torch.equal(form(clip), before)
    assert not any(parameter.requires_grad for parameter in form.parameters())


def test_half_precision_gives_nearly_the_same_logits():
    network, clip = trained("ircsn_tiny"), torch.randn(2, 3, 4, 32, 32)
    form = fold(network, dtype="bf16")
    with torch.no_grad():
        found, expected = form(clip), network(clip)
    assert found.dtype == torch.float32
    assert 1e-4 < (found - expected).abs().max() / expected.abs().max() < 0.05  # of eight bits


@needs_packing
def test_packed_weights_follow_the_size_of_the_clip_and_travel_in_copies():
    network = trained("ircsn_tiny")
    form = fold(network, layout="packed")
    large, small = torch.randn(1, 3, 8, 64, 64), torch.randn(3, 3, 5, 31, 45)
    with torch.no_grad():
        expected = network(large), network(small)
        form(large)  # which packs: packed weights cannot be copied
        for other in (form, copy.deepcopy(form), pickle.loads(pickle.dumps(form))):
            torch.testing.assert_close(other(large), expected[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(other(small), expected[1], rtol=1e-4, atol=1e-4)
            assert other.stem._packed[0] == (1, 3, 5, 31, 45)
            torch.testing.assert_close(other(large), expected[0], rtol=1e-4, atol=1e-4)


@needs_packing
def test_what_else_is_in_a_batch_changes_no_bit_of_a_packed_answer():
    form, clips = fold(trained("ipcsn_tiny"), layout="packed"), torch.randn(3, 3, 4, 48, 48)
    alone, together = torch.cat([form.forward_features(clip) for clip in clips.split(1)]), []
    form.stem.register_forward_pre_hook(lambda _, inputs: together.append(len(inputs[0])))
    assert torch.equal(form.forward_features(clips), alone)
    assert together == [1, 1, 1]  # on some processors more at once give the same bits too


def test_without_onednn_auto_is_channels_last_and_packed_is_refused(monkeypatch):
    monkeypatch.setattr(fold_module, "cannot_pack", lambda device, dtype: "no oneDNN")
    network, clip = trained("ircsn_tiny"), torch.randn(2, 3, 4, 32, 32)
    assert fold(network).layout == "channels_last"
    assert_same(network, clip)
    with pytest.raises(InputError, match="layout packed: no oneDNN; take auto"):
        fold(network, layout="packed")


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [("cuda", torch.float32, "for x86 CPUs, not for cuda"), ("mps", torch.bfloat16, "not for mps")],
)
def test_packing_is_for_x86_processors(device, dtype, words):
    assert words in fold_module.cannot_pack(device, dtype)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_of_large_tensors_is_used_again():
    script = """
import resource, torch
from lightning_csn.models.fold import fold, keep_memory
from lightning_csn.models.network import create_network
assert keep_memory()
form, clip = fold(create_network("ircsn_tiny")), torch.zeros(1, 3, 32, 256, 320)  # maps of 42 MB
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with torch.inference_mode():
        form(clip)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(5)])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(done.stdout)
    assert min(others) < 100 < first  # each of them thousands, if maps are given back


def test_what_cannot_be_folded_is_refused():
    network = trained("ircsn_tiny")
    with pytest.raises(InputError, match="dtype must be one of fp32, bf16, int8, got 'int4'"):
        fold(network, dtype="int4")
    with pytest.raises(InputError, match="layout must be one of auto, contiguous, channels_last, packed, got 'last'"):
        fold(network, layout="last")
    with pytest.raises(InputError, match="only networks of create_network can be folded, got Linear"):
        fold(nn.Linear(1, 1))
    network.stage2[0].convolve.norm = nn.GroupNorm(4, 32)
    with pytest.raises(InputError, match="got DepthwiseConv3d and GroupNorm"):
        fold(network)
    network.stage2[0].convolve.norm = nn.BatchNorm3d(32, track_running_stats=False)
    with pytest.raises(InputError, match="without running statistics"):
        fold(network)


def test_classify_answers_with_the_folded_form_and_exactly_where_asked(monkeypatch, capsys, make_video, tmp_path):
    path, asked = str(make_video(tmp_path / "a.mp4", frames=9)), []
    original = LitCSN.inference_network
    monkeypatch.setattr(LitCSN, "inference_network", lambda self: asked.append(self.exact) or original(self))
    answers = []
    for options in ([], ["--exact"]):
        assert main(["classify", path, "--clips=2", "--json", "--device=cpu", *options]) == 0
        (video,) = json.loads(capsys.readouterr().out)["videos"]
        answers.append({one["class"]: one["probability"] for one in video["top"]})
    assert set(asked) == {False, True}
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)


@pytest.mark.parametrize("command", ["test", "predict"])
def test_trainer_commands_take_exact(command, monkeypatch, make_video, tmp_path):
    for name in ("left", "right"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        make_video(tmp_path / "videos" / name / "a.mp4", frames=4)
    ran = []
    monkeypatch.setattr(Trainer, command, lambda trainer, model, **rest: ran.append(model.exact))
    monkeypatch.setattr(TrainerCommand, "report_answers", lambda self: None, raising=False)
    weights = ["--model.pretrained=ircsn_tiny_motion", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    for options in ([], ["--exact"]):
        assert main([command, f"--data.root={tmp_path / 'videos'}", *weights, *options]) == 0
    assert ran == [False, True]
