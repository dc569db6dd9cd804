"""network.py: the table of architectures, its arithmetic, and timm's methods."""

import math

import huggingface_hub
import pytest
import timm
import torch
from timm.models import resnet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_csn.errors import InputError
from lightning_csn.models.network import ARCHITECTURES, check_options, create_network, list_networks

TINY = list_networks("*_tiny")


def count(name, shape, **options):
    """Parameters, and multiply-adds of convolutions and head, of one clip of a shape."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = create_network(name, **options).eval()
        network(torch.empty(1, 3, *shape))
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() / 2


# Parameters, and G multiply-adds at 8x224x224 and 32x256x256, as published or recounted: the 26- to 152-layer rows of
# VMZ's model zoo (29.551744 M without BatchNorm), mmaction2 and PyTorchVideo (both with it), and the paper.
PUBLISHED = {
    "resnet3d_18": (33_371_472, 22.473, 117.407),
    "resnet3d_34": (63_681_104, 39.813, 208.004),
    "resnet3d_26": (27_318_352, 18.22, 95.19),
    "resnet3d_50": (46_980_944, 29.461, 153.915),
    "resnet3d_101": (86_027_088, 44.747, 233.775),
    "resnet3d_152": (118_185_808, 63.629, 332.425),
    "ircsn_26": (8_569_552, 7.93, 41.44),
    "ircsn_50": (13_131_152, 10.578, 55.260),
    "ircsn_101": (22_213_776, 14.118, 73.754),
    "ircsn_152": (29_703_568, 18.512, 96.713),
    "ipcsn_26": (9_269_712, 8.95, 46.74),
    "ipcsn_50": (14_396_176, 11.914, 62.239),
    "ipcsn_101": (24_601_616, 15.890, 83.015),
    "ipcsn_152": (33_016_592, 20.824, 108.793),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    parameters, small, large = PUBLISHED[name]
    assert count(name, (8, 224, 224)) == (parameters, pytest.approx(small * 1e9, abs=0.006e9))
    assert count(name, (32, 256, 256))[1] == pytest.approx(large * 1e9, abs=0.006e9)


def test_every_full_size_architecture_has_a_published_count():
    assert set(PUBLISHED) == set(ARCHITECTURES) - set(TINY)


def test_windowed_head_costs_what_vmz_printed():
    # VMZ's test log of ir-CSN-152: "FLOPs: 96.715669504", four windows at a 256 pixel crop; the tools count the head
    # once per window, as it runs
    assert count("ircsn_152", (32, 256, 256), head_pooling=[4, 7, 7])[1] == 96_715_669_504


@pytest.mark.parametrize(
    ("groups", "weights", "multiply_adds"),
    [
        (2, 29.95, 79.69),
        (4, 21.46, 60.62),
        (8, 17.22, 51.08),
        (16, 15.10, 46.31),
        (32, 14.04, 43.93),
        (64, 13.51, 42.73),
    ],
)
def test_grouped_networks_of_the_papers_study(groups, weights, multiply_adds):
    parameters, operations = count("resnet3d_50", (32, 224, 224), groups=groups)
    assert parameters == pytest.approx((weights + 0.054) * 1e6, abs=0.006e6)  # 0.0535 M of BatchNorm and bias
    assert operations == pytest.approx(multiply_adds * 1e9, abs=0.006e9)


def test_as_many_groups_as_channels_is_ircsn():
    grouped, ir = (
        create_network(name, groups=groups) for name, groups in (("resnet3d_tiny", 16), ("ircsn_tiny", None))
    )
    assert grouped.stage1[0].convolve.conv.weight.shape == ir.stage1[0].convolve.conv.weight.shape


@pytest.mark.parametrize(("name", "groups"), [("ircsn_tiny", 2), ("ipcsn_tiny", 2), ("resnet3d_tiny", 5)])
def test_groups_that_make_no_sense_are_refused(name, groups):
    with pytest.raises(InputError, match="groups"):
        create_network(name, groups=groups)


def test_unknown_network_names_the_nearest():
    with pytest.raises(InputError, match=r"no network 'ircsn_512'; there are: (?=.*ircsn_152)(\w+, ){1,4}\w+$"):
        create_network("ircsn_512")


@pytest.mark.parametrize(
    "options",
    [
        {"head_average": "mean"},
        {"head_pooling": [7, 7]},
        {"head_pooling": "average"},
        {"dropout": 1.0},
        {"dropout": "0.1"},
        {"drop_path": -1},
        {"head_pooling": None},
        {"head_pooling": 7},
        {"in_channels": 0},
        {"groups": 0},
        {"groups": 2.0},
        {"norm_eps": 0},
        {"norm_eps": math.nan},
        {"norm_momentum": 1.5},
        {"norm_momentum": None},
        {"num_classes": "8"},
        {"num_classes": 8.5},
        {"num_classes": None},
        {"num_classes": -1},
        {"stem_pool": "false"},
        {"zero_init_last": 1},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))} must be .*, got "):
        create_network("ircsn_tiny", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"droput": 0.1}, "no option 'droput' of a network; did you mean dropout\\? there are: in_channels, groups, "),
        ({"num_classes": 8}, "no option 'num_classes' of a network; "),
        ({3: 4}, "no option 3 of a network; there are: "),
        ([1], "network must be options by name, .*, got \\[1\\]"),
    ],
)
def test_options_from_outside_that_do_not_exist_are_named(options, message):
    with pytest.raises(InputError, match=message):
        check_options(options)


def test_options_of_a_network_are_options_from_outside():
    network = create_network("ircsn_tiny", num_classes=3, dropout=0.5)
    assert check_options(network.trunk_options) | {"num_classes": 3} == network.options


@pytest.mark.parametrize("name", [*TINY, "resnet3d_18"])
@pytest.mark.parametrize("shape", [(8, 64, 64), (9, 70, 54), (1, 32, 32)])
def test_shapes_of_features_logits_and_intermediates(name, shape):
    network = create_network(name, num_classes=5, in_channels=2).eval()
    clip = torch.randn(2, 2, *shape)
    sizes = [[math.ceil(size / by) for size, by in zip(shape, (1, 4, 4), strict=True)]]
    sizes += [[math.ceil(size / by) for size, by in zip(shape, (r / 4, r, r), strict=True)] for r in (4, 8, 16, 32)]
    with torch.inference_mode():
        last, maps = network.forward_intermediates(clip)
        assert [list(m.shape[2:]) for m in maps] == sizes
        assert [m.shape[1] for m in maps] == [info["num_chs"] for info in network.feature_info]
        assert last.equal(network.forward_features(clip))
        assert network(clip).equal(network.forward_head(last))
        assert network(clip).shape == (2, 5)
        assert network.forward_head(last, pre_logits=True).shape == (2, network.num_features)


def test_intermediates_asked_for_are_given_and_nothing_after_them_runs():
    network = create_network("ircsn_tiny").eval()
    network.stage4.register_forward_hook(lambda *_: pytest.fail("stage 4 ran"))
    maps = network.forward_intermediates(
        torch.randn(1, 3, 4, 32, 32), [2, -2, 0], stop_early=True, intermediates_only=True
    )
    assert [m.shape[1] for m in maps] == [128, 256, 16]
    with pytest.raises(InputError, match="0 to 4"):
        network.forward_intermediates(torch.randn(1, 3, 4, 32, 32), [5])


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_windowed_head_averages_each_window_once(average):
    network = create_network("ircsn_tiny", num_classes=3, head_pooling=[2, 1, 2], head_average=average).eval()
    x = torch.randn(2, 512, 3, 2, 3)
    windows = [
        network.head(x[:, :, t : t + 2, h : h + 1, w : w + 2].mean((2, 3, 4)))
        for t in range(2)
        for h in range(2)
        for w in range(2)
    ]
    if average == "logits":
        torch.testing.assert_close(network.forward_head(x), torch.stack(windows).mean(0))
    else:
        mean = torch.stack([logits.softmax(-1) for logits in windows]).mean(0)
        torch.testing.assert_close(network.forward_head(x), mean.log())
    small = torch.randn(1, 512, 1, 1, 1)  # smaller than the window: one window, and then no average to speak of
    torch.testing.assert_close(network.forward_head(small), network.head(small.flatten(1)))


def test_reset_classifier_changes_the_head_alone():
    network = create_network("ipcsn_tiny", num_classes=4)
    trunk = {name: tensor.clone() for name, tensor in network.state_dict().items() if not name.startswith("head")}
    network.reset_classifier(7, head_pooling=[1, 2, 2])
    assert network.get_classifier().weight.shape == (7, 512)
    assert network.options["num_classes"] == network.num_classes == 7
    assert network.options["head_pooling"] == [1, 2, 2]
    assert all(network.state_dict()[name].equal(tensor) for name, tensor in trunk.items())
    network.reset_classifier(0)
    assert isinstance(network.get_classifier(), nn.Identity)
    assert network.eval()(torch.randn(2, 3, 4, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize("name", [*TINY, "resnet3d_18"])
def test_options_make_the_same_network_again(name):
    options = {"dropout": 0.5, "drop_path": 0.1, "zero_init_last": True, "stem_pool": False}
    network = create_network(name, num_classes=3, **options)
    assert network.dropout.p == 0.5
    assert options.items() <= network.options.items()
    again = create_network(network.architecture, **network.options)
    again.load_state_dict(network.state_dict())
    assert repr(again) == repr(network)


def test_eps_momentum_and_zero_init_reach_every_norm_they_mean():
    network = create_network("ipcsn_tiny", norm_eps=1e-4, norm_momentum=0.2, zero_init_last=True)
    norms = {name: m for name, m in network.named_modules() if isinstance(m, nn.BatchNorm3d)}
    assert {(m.eps, m.momentum) for m in norms.values()} == {(1e-4, 0.2)}
    assert {name for name, m in norms.items() if not m.weight.any()} == {
        f"stage{s}.0.expand.norm" for s in (1, 2, 3, 4)
    }


def test_drop_path_grows_with_depth_and_leaves_branches_out_in_training_only():
    network = create_network("ircsn_26", num_classes=2, drop_path=0.7)
    rates = [getattr(block.drop_path, "drop_prob", 0) for s in range(1, 5) for block in getattr(network, f"stage{s}")]
    assert rates == pytest.approx([0.1 * n for n in range(8)])
    block = create_network("ircsn_tiny", drop_path=0.99).stage4[0].eval()
    x = torch.randn(8, 256, 2, 4, 4)
    whole = block(x)
    block.drop_path.train()
    left_out = [sample.equal(short.relu()) for sample, short in zip(block(x), block.shortcut(x), strict=True)]
    assert sum(left_out) >= 6
    assert not any(sample.equal(short.relu()) for sample, short in zip(whole, block.shortcut(x), strict=True))


def test_the_interact_convolution_of_ipcsn_has_no_relu():
    block = create_network("ipcsn_tiny").stage1[0].eval()
    assert block.interact(torch.randn(1, 16, 2, 8, 8)).min() < 0


@pytest.mark.parametrize("stages", [(1, 2, 3, 4), (1, 3)])
def test_checkpointing_changes_neither_gradients_nor_running_statistics(stages):
    networks, runs = [], []
    for enable in (False, True):
        torch.manual_seed(0)
        network = create_network("ipcsn_tiny", num_classes=3).double().train()
        network.set_grad_checkpointing(enable, stages=stages)
        for number in (1, 2, 3, 4):
            block = getattr(network, f"stage{number}")[0]
            block.register_forward_pre_hook(lambda *_, number=number, enable=enable: runs.append((enable, number)))
        network(torch.randn(2, 3, 4, 32, 32).double()).square().sum().backward()
        networks.append(network)
    again = [number for number in (1, 2, 3, 4) if runs.count((True, number)) == 2]
    assert again == list(stages)
    assert all(runs.count((False, number)) == 1 for number in (1, 2, 3, 4))
    plain, checkpointed = networks
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_stages_that_do_not_exist_cannot_be_checkpointed():
    with pytest.raises(InputError, match=r"some of 1 to 4, got \[0\]"):
        create_network("ircsn_tiny").set_grad_checkpointing(stages=[0])


def test_group_matcher_sorts_every_parameter_by_depth():
    from timm.models import group_parameters

    network = create_network("ircsn_26")
    fine = group_parameters(network, network.group_matcher())
    coarse = group_parameters(network, network.group_matcher(coarse=True))
    assert len(fine) == 1 + 8 + 1  # stem, blocks, head
    assert len(coarse) == 1 + 4 + 1
    assert sum(len(names) for names in fine.values()) == len(list(network.parameters()))
    assert network.no_weight_decay() == set()


@pytest.mark.parametrize("name", TINY)
def test_torch_export_gives_the_same_logits(name):
    network = create_network(name, num_classes=3).eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    exported = torch.export.export(network, (clip,))
    torch.testing.assert_close(exported.module()(clip), network(clip))


def image_network(block, layers=(1, 1, 1, 1)):
    """A 2D ResNet whose BatchNorms are not trivial."""
    torch.manual_seed(0)
    network = resnet.ResNet(block, layers, num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.double().eval()


@pytest.mark.parametrize(
    ("name", "block", "layers", "frames"),
    # Enough frames that the zero padding in time does not reach the middle of the last map
    [("resnet3d_18", resnet.BasicBlock, (2, 2, 2, 2), 128), ("resnet3d_26", resnet.Bottleneck, (2, 2, 2, 2), 64)],
)
def test_a_still_clip_gives_an_inflated_network_the_2d_features(name, block, layers, frames):
    still = image_network(block, layers)
    network = create_network(name, inflate=still, num_classes=0).double().eval()
    picture = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    clip = picture[:, :, None].expand(-1, -1, frames, -1, -1)
    with torch.inference_mode():
        features = network.forward_features(clip)
        torch.testing.assert_close(  # the inflated weights are rounded to float32
            features[:, :, frames // 16], still.forward_features(picture), rtol=1e-4, atol=1e-5
        )
    assert network.options["norm_eps"] == 1e-5


@pytest.mark.parametrize("name", ["ircsn_26", "ipcsn_26"])
def test_inflated_csn_takes_over_the_1x1x1_layers_and_starts_the_rest_afresh(name):
    still = image_network(resnet.Bottleneck, (2, 2, 2, 2))
    torch.manual_seed(1)
    fresh = create_network(name).state_dict()
    torch.manual_seed(1)
    inflated = create_network(name, inflate=still).state_dict()
    weight = still.layer2[0].downsample[0].weight.float()
    assert inflated["stage2.0.shortcut.conv.weight"].equal(weight[:, :, None])
    assert inflated["stem.norm.running_var"].equal(still.bn1.running_var.float())
    for key in fresh:
        if not key.endswith(("num_batches_tracked", "norm.bias")):  # equal in both
            taken = not {"interact", "convolve", "head"} & set(key.split("."))
            assert inflated[key].equal(fresh[key]) != taken, key


def test_a_2d_network_of_another_shape_is_refused_by_tensor_name():
    with pytest.raises(InputError, match=r"have no place \(layer1\.2\.bn1\.bias, .*\), 0 are missing"):
        create_network("resnet3d_26", inflate=image_network(resnet.Bottleneck, (3, 2, 2, 2)))
    with pytest.raises(InputError, match=r"0 of its tensors .* are missing \(stage4\.1\.convolve"):
        create_network("resnet3d_26", inflate=image_network(resnet.Bottleneck, (2, 2, 2, 1)))


@pytest.mark.parametrize(
    ("inflate", "message"),
    [
        ("resnet999", r"timm has no model 'resnet999'; there are: resnet"),
        ("nothing", r"timm has no model 'nothing'; there are: resnet50"),
        ("resnet18.nothing", r"timm cannot make 'resnet18\.nothing' with weights: Invalid pretrained tag"),
        (3, r"the name of a timm ResNet, or one itself, got 3"),
        (
            "resnet18",
            r"resnet18 are not on this machine and HF_HUB_OFFLINE is set .*\(2\) in Python, give the model itself",
        ),
        ("hf-hub:timm/nothing", r"hf-hub:timm/nothing are not on this machine and HF_HUB_OFFLINE is set"),
    ],
)
def test_a_2d_network_that_cannot_be_had_is_told(inflate, message, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=message):
        create_network("resnet3d_18", inflate=inflate)


def test_a_hub_that_is_not_reached_is_told(monkeypatch):
    def unreachable(*args, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no line")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(InputError, match=r"https?://\S+ did not give them \(LocalEntryNotFoundError\)\. Two ways out"):
        create_network("resnet3d_18", inflate="resnet18")
