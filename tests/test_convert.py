"""Conversion of published checkpoints, against logits that the publishing projects' own code gave.

`reference_logits.json.gz` holds, for 19 networks of six projects: the names and shapes of all tensors, and the logits
of made-up clips with made-up weights. Recipe "csn-golden-v1", by which anyone can make both again:

Every array is seeded by the CRC-32 of its name in UTF-8 (NumPy's PCG64 through Generator.standard_normal, in C order)
and made of those normal numbers n, depending on how the name ends:

    num_batches_tracked    0             running_mean, _rm    0.1 n
    .bias, _b              0.1 n         running_var, _riv    1 + 0.1 |n|
    else, one axis         1 + 0.1 n     else, several axes   n sqrt(1 / product of all axes but the first)

and rounded to float32. The clips are plain n, by the names "input:A" (regular, a batch of two), "input:B" (odd sizes)
and "input:full" (32x224x224), also rounded. Everything runs in evaluation mode in float64. There, equal networks
differ by less than 1e-13, and the smallest of the likely mistakes (eps of the last BatchNorm) makes 2e-4.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_csn.errors import InputError
from lightning_csn.models.convert import SOURCES, convert
from lightning_csn.models.network import ARCHITECTURES, create_network

REFERENCE = json.loads(gzip.decompress((Path(__file__).parent / "reference_logits.json.gz").read_bytes()))


def normal_numbers(name, shape):
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)


def make_tensor(name, shape):
    """The made-up weights of one name, as the recipe above says."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    n = normal_numbers(name, shape)
    if name.endswith(("running_mean", "_rm", ".bias", "_b")):
        values = 0.1 * n
    elif name.endswith(("running_var", "_riv")):
        values = 1 + 0.1 * abs(n)
    elif len(shape) == 1:
        values = 1 + 0.1 * n
    else:
        values = n * math.sqrt(1 / math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture
def one_thread():
    """Layers this small gain nothing from a second thread, and lose much to whoever shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def make_clip(name, shape):
    return torch.from_numpy(normal_numbers(f"input:{name}", shape).astype(np.float32)).double()


def blank(reference):
    """The tensors of a reference network with nothing in them: right names, shapes and types, and no memory."""
    return {
        name: torch.zeros((), dtype=torch.int64 if name.endswith("tracked") else torch.float32).expand(shape)
        for name, shape in REFERENCE[reference]["tensors"].items()
    }


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", REFERENCE)
def test_a_converted_network_gives_the_logits_of_the_projects_own_code(name):
    reference = REFERENCE[name]
    weights = {tensor: make_tensor(tensor, shape) for tensor, shape in reference["tensors"].items()}
    total = sum(tensor.abs().sum(dtype=torch.float64).item() for tensor in weights.values())
    assert total == pytest.approx(reference["weights_sum_abs"], rel=1e-12), "NumPy's normal numbers have changed"

    source = name.split("_")[0]
    converted = convert(weights, source="vmz" if name == "vmz_r3d_18" else None)
    assert (converted.source, converted.architecture) == (source, reference["architecture"])
    assert converted.options["norm_eps"] == reference["norm_eps"]
    with torch.device("meta"):
        network = create_network(converted.architecture, num_classes=converted.num_classes, **converted.options)
    network.load_state_dict(converted.tensors, assign=True)
    network.double().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == reference["num_parameters"]

    for clip_name, expected in reference["inputs"].items():
        clip = make_clip(clip_name, tuple(expected["shape"]))
        assert clip.flatten()[:4].tolist() == expected["first4"]
        if source == "pytorchvideo" and clip_name == "B":
            network.options["head_pooling"] = [1, 2, 2]  # several windows, where the hub's 4x7x7 would be one
        with torch.no_grad():
            logits = network(clip)
        torch.testing.assert_close(logits, torch.tensor(expected["logits"], dtype=torch.float64), rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------ what is read off the tensors


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_our_own_names_give_kind_and_depth(architecture):
    with torch.device("meta"):
        tensors = create_network(architecture, num_classes=11).state_dict()
    converted = convert(tensors)
    assert (converted.source, converted.architecture, converted.num_classes) == ("lightning_csn", architecture, 11)
    assert list(converted.tensors) == list(tensors)
    assert all(converted.tensors[name] is tensor for name, tensor in tensors.items())  # passed on, not copied


@pytest.mark.parametrize("options", [{"groups": 4}, {"in_channels": 5}, {"groups": 16, "in_channels": 1}])
def test_groups_and_channels_are_read_off_the_shapes(options):
    network = create_network("resnet3d_tiny", num_classes=2, **options)
    converted = convert(network.state_dict())
    assert converted.architecture == "resnet3d_tiny"
    assert converted.options == {"groups": None, "in_channels": 3} | options


def rename(tensors, pattern, replacement):
    return {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}


def test_other_numbers_of_classes():
    tensors = blank("vmz_ip_csn_50")
    tensors |= {"fc.weight": torch.zeros(359, 2048), "fc.bias": torch.zeros(359)}
    assert convert(tensors).num_classes == 359
    blobs = rename(blank("caffe2_ir_csn_50"), "L400", "L487")
    blobs |= {"last_out_L487_w": torch.zeros(487, 2048), "last_out_L487_b": torch.zeros(487)}
    assert convert(blobs).num_classes == 487


HEADS = {
    "vmz_ir_csn_50": "fc.",
    "caffe2_ir_csn_50": "last_out_",
    "mmaction2_ir_csn_50": "cls_head.",
    "pytorchvideo_csn_r50": "blocks.5.",
    "gluoncv_ir_csn_152": "out_fc.",
    "torchvision_r3d_18": "fc.",
}


@pytest.mark.parametrize(("reference", "head"), HEADS.items())
def test_a_checkpoint_without_a_head_has_no_classes(reference, head):
    tensors = {name: tensor for name, tensor in blank(reference).items() if not name.startswith(head)}
    assert len(tensors) == len(blank(reference)) - 2
    converted = convert(tensors)
    assert converted.num_classes == 0
    assert not any(name.startswith("head.") for name in converted.tensors)


@pytest.mark.parametrize("reference", ["mmaction2_ir_csn_50", "mmaction2_ip_csn_152"])
def test_an_initialiser_of_mmaction2_is_a_bare_trunk(reference):
    trunk = {name: tensor for name, tensor in blank(reference).items() if name.startswith("backbone.")}
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in trunk.items()}
    converted = convert(tensors)
    assert (converted.source, converted.num_classes) == ("mmaction2", 0)
    assert converted.architecture == REFERENCE[reference]["architecture"]


@pytest.mark.parametrize("prefix", ["network.", "module.", "module.network.", "network._orig_mod."])
@pytest.mark.parametrize("reference", ["vmz_ip_csn_50", "pytorchvideo_csn_r50"])
def test_wrappers_around_a_network_are_taken_off(prefix, reference):
    wrapped = convert({prefix + name: tensor for name, tensor in blank(reference).items()})
    assert list(wrapped.tensors) == list(convert(blank(reference)).tensors)


def test_pyslowfast_keeps_a_pytorchvideo_network_below_model():
    converted = convert({f"model.{name}": tensor for name, tensor in blank("pytorchvideo_csn_r50").items()})
    assert (converted.source, converted.architecture) == ("pyslowfast", "ircsn_50")
    assert converted.options["head_average"] == "probabilities"
    assert convert(blank("pytorchvideo_csn_r50")).options["head_average"] == "logits"


def test_caffe2_networks_without_separated_channels_count_their_convolutions_from_one():
    running, blobs = {}, {}
    for reference in ("vmz_r3d_18", "vmz_r3d_50"):
        blobs[reference] = {}
        for name, tensor in blank(reference).items():
            if name.endswith("tracked"):
                continue
            if found := re.match(r"layer(\d)\.(\d+)\.", name):
                block = running.setdefault((reference, found[1], found[2]), sum(key[0] == reference for key in running))
                name = name[found.end() :]
                name = re.sub(r"conv(\d)\.0\.weight", rf"comp_{block}_conv_\1_w", name)
                name = re.sub(r"conv(\d)\.1\.", rf"comp_{block}_spatbn_\1.", name)
                name = name.replace("downsample.0.weight", f"shortcut_projection_{block}_w")
                name = name.replace("downsample.1", f"shortcut_projection_{block}_spatbn")
            name = name.replace("stem.0.weight", "conv1_w").replace("stem.1", "conv1_spatbn_relu")
            name = name.replace("fc.weight", "last_out_L400_w").replace("fc.bias", "last_out_L400_b")
            for ending, blob in {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}.items():
                name = name.replace(f".{ending}", f"_{blob}")
            blobs[reference][name] = tensor
    for reference, architecture in (("vmz_r3d_18", "resnet3d_18"), ("vmz_r3d_50", "resnet3d_50")):
        converted = convert(blobs[reference])
        assert (converted.source, converted.architecture) == ("caffe2", architecture)
        assert converted.options["stem_pool"] is False


def test_an_r3d_18_is_torchvisions_unless_the_caller_says_vmz():
    tensors = blank("torchvision_r3d_18")
    assert blank("vmz_r3d_18").keys() == tensors.keys()
    ours, theirs = convert(tensors), convert(tensors, source="vmz")
    assert (ours.source, ours.options["norm_eps"], ours.options["stem_pool"]) == ("torchvision", 1e-5, False)
    assert (theirs.source, theirs.options["norm_eps"], theirs.options["stem_pool"]) == ("vmz", 1e-3, True)
    assert ours.clip["frames"] == 16


def test_what_a_source_fixes_cannot_be_changed_through_a_result():
    convert(blank("caffe2_ir_csn_50")).options["head_pooling"].append(9)
    converted = convert(blank("caffe2_ir_csn_50"))
    assert converted.options["head_pooling"] == [4, 7, 7]
    assert converted.options["head_average"] == "probabilities"
    assert converted.clip["mean"] == (0.43216, 0.394666, 0.37645)


def test_mean_and_std_are_not_guessed_where_a_source_has_two():
    assert convert(blank("mmaction2_ir_csn_50")).clip.keys() & {"mean", "std"} == set()


# ------------------------------------------------------------------------------------------------ what is refused

A_CONVOLUTION = {  # the 3x3x3 one of the second block, which every layout names
    "vmz_ir_csn_50": "layer1.1.conv2.0.weight",
    "vmz_ip_csn_50": "layer1.1.conv2.0.2.weight",
    "caffe2_ir_csn_50": "comp_1_conv_3_w",
    "mmaction2_ir_csn_50": "backbone.layer1.1.conv2.0.conv.weight",
    "mmaction2_ip_csn_101": "backbone.layer1.1.conv2.1.conv.weight",
    "pytorchvideo_csn_r50": "blocks.1.res_blocks.1.branch2.conv_b.weight",
    "gluoncv_ir_csn_152": "layer1.1.conv3.weight",
    "torchvision_r3d_18": "layer1.1.conv2.0.weight",
}


@pytest.mark.parametrize(("reference", "name"), A_CONVOLUTION.items())
def test_a_missing_tensor_is_named(reference, name):
    tensors = blank(reference)
    del tensors[name]
    with pytest.raises(InputError, match=f"1 missing: '{re.escape(name)}'$"):
        convert(tensors)


@pytest.mark.parametrize(("reference", "name"), A_CONVOLUTION.items())
def test_a_surplus_tensor_is_named(reference, name):
    surplus = name.replace("1.1", "1.9").replace("1.res_blocks.1", "1.res_blocks.9").replace("comp_1", "comp_99")
    with pytest.raises(InputError, match=f"1 without a place: '{re.escape(surplus)}'$"):
        convert(blank(reference) | {surplus: torch.zeros(1)})


@pytest.mark.parametrize(("reference", "name"), A_CONVOLUTION.items())
def test_a_tensor_that_comes_twice_is_named(reference, name):
    double = f"module.{name}"
    with pytest.raises(InputError, match=f"1 without a place: '{re.escape(double)}'$"):
        convert(blank(reference) | {double: blank(reference)[name]})


@pytest.mark.parametrize(("reference", "name"), A_CONVOLUTION.items())
def test_a_tensor_of_another_shape_is_named_with_both_shapes(reference, name):
    message = (
        rf"1 of the wrong shape or type: '{re.escape(name)}' is \(64, 1, 3, 3\) float32, not \(64, \d+, 3, 3, 3\)$"
    )
    with pytest.raises(InputError, match=message):
        convert(blank(reference) | {name: torch.zeros(64, 1, 3, 3)})


def test_whole_numbers_are_no_weights():
    tensors = blank("vmz_ir_csn_50")
    tensors["stem.1.bias"] = tensors["stem.1.bias"].long()
    with pytest.raises(InputError, match=r"'stem\.1\.bias' is \(64,\) int64"):
        convert(tensors)


def test_two_heads_are_not_chosen_between():
    blobs = blank("caffe2_ir_csn_50") | {"last_out_L7_w": torch.zeros(7, 2048), "last_out_L7_b": torch.zeros(7)}
    with pytest.raises(InputError, match=r"2 without a place: 'last_out_L7_w', 'last_out_L7_b'$"):
        convert(blobs)


def test_half_a_head_is_named():
    tensors = blank("vmz_ir_csn_50")
    del tensors["fc.weight"]
    with pytest.raises(InputError, match=r"1 without a place: 'fc\.bias'"):
        convert(tensors)


def test_an_ip_network_that_lost_its_extra_convolutions_does_not_pass_for_an_ir_one():
    tensors = {name: tensor for name, tensor in blank("vmz_ip_csn_50").items() if ".conv2.0.0." not in name}
    with pytest.raises(InputError, match=r"ipcsn_50, but 16 missing: 'layer1\.0\.conv2\.0\.0\.weight'"):
        convert(tensors)


def test_ten_names_are_listed_and_the_rest_counted():
    tensors = {name: tensor for name, tensor in blank("vmz_ir_csn_50").items() if not name.startswith("layer4.")}
    with pytest.raises(InputError) as caught:
        convert(tensors)
    assert str(caught.value).count("'layer4.") == 10
    assert "ircsn_50" in str(caught.value)
    assert str(caught.value).endswith(" and 40 more")  # 10 convolutions and 10 norms of four, less the ten


def test_absent_counters_of_batches_are_zero():
    tensors = {name: tensor for name, tensor in blank("vmz_ir_csn_50").items() if not name.endswith("tracked")}
    counter = convert(tensors).tensors["stem.norm.num_batches_tracked"]
    assert (counter.dtype, counter.shape, counter.item()) == (torch.int64, (), 0)


def test_what_training_left_in_a_caffe2_file_is_ignored_and_listed():
    leftovers = ("conv1_w_momentum", "comp_0_spatbn_1_s_momentum", "lr", "model_iter", "SgdOptimizer_0_lr_gpu0")
    converted = convert(blank("caffe2_ir_csn_50") | {name: torch.zeros(1) for name in leftovers})
    assert converted.ignored == leftovers
    with pytest.raises(InputError, match="3 without a place: 'learning', 'comp_0_conv_1_w_2', 'fc_w'"):
        convert(blank("caffe2_ir_csn_50") | dict.fromkeys(("learning", "comp_0_conv_1_w_2", "fc_w"), torch.zeros(1)))


def test_mean_and_std_in_an_mmaction2_file_are_ignored_and_listed():
    colours = {f"data_preprocessor.{name}": torch.zeros(3, 1, 1, 1) for name in ("mean", "std")}
    assert convert(blank("mmaction2_ir_csn_50") | colours).ignored == tuple(colours)


@pytest.mark.parametrize("tensors", [{}, {"transformer.query.weight": torch.zeros(4)}, blank("vmz_ir_csn_50")])
def test_names_of_no_known_project(tensors):
    with pytest.raises(InputError, match=r"not those of gluoncv: ('transformer\.query\.weight'|there are none|'stem)"):
        convert(tensors, source="gluoncv")


def test_an_unknown_source_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match=f"no source 'keras'; there are: {', '.join(SOURCES)}"):
        convert(blank("vmz_ir_csn_50"), source="keras")
