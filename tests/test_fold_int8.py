"""fold_int8.py: the folded form in 8 bits is near the trained one, and its parts do what they say."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from lightning_csn.errors import InputError
from lightning_csn.models import fold as fold_module
from lightning_csn.models.fold import cannot_quantise, fold
from lightning_csn.models.fold_int8 import Int8Convolution, Range, choose_range, max_pool
from lightning_csn.models.network import create_network

CLIP = torch.zeros(1, 3, 8, 32, 32)
needs_int8 = pytest.mark.skipif(cannot_quantise("cpu") is not None, reason="not an x86 CPU with VNNI and oneDNN")


def trained(name, **options):
    """A network in eval mode whose running statistics are those of noise."""
    torch.manual_seed(0)
    network = create_network(name, num_classes=16, **options)
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm3d):
            norm.momentum = None
            torch.nn.init.normal_(norm.bias, std=0.2)
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(3, 3, 8, 64, 64))
    return network.eval()


@needs_int8
@pytest.mark.parametrize("name", ["ircsn_tiny", "ipcsn_tiny", "resnet3d_tiny", "ircsn_26"])
def test_logits_are_near_those_of_the_trained_form_for_clips_of_any_size(name):
    network, clips = trained(name), torch.randn(4, 3, 8, 64, 64)
    form = fold(network, dtype="int8", calibration=clips[:2])
    with torch.no_grad():
        for some in (clips[2:], clips[3:, :, :5, :49, :50], clips):
            expected, found = network(some), form(some)
            assert found.dtype == torch.float32
            assert found.shape == expected.shape
            assert (found - expected).norm() < 0.25 * expected.norm()
            assert (found - expected).norm() > 0


@needs_int8
@pytest.mark.parametrize(("stride", "zero"), [(1, 0), (2, 0), (1, 100)])
def test_a_layer_counts_in_whole_numbers_what_the_definition_counts(stride, zero):
    layer = torch.nn.Conv3d(16, 16, 3, stride, 1, groups=16)
    taken, given = Range(0.02, 120), Range(0.01, zero)
    x = torch.randint(256, (1, 16, 4, 6, 6)).to(torch.uint8).contiguous(memory_format=torch.channels_last_3d)
    found = Int8Convolution(layer, taken, given)(x)
    with torch.no_grad():
        y = layer((x.float() - taken.zero) * taken.scale)
    expected = (y / given.scale + zero).clamp(0, 255)  # with zero 0 a ReLU
    assert found.dtype == torch.uint8
    assert (found.float() - expected).abs().max() < 4


@needs_int8
def test_a_sum_has_ranges_of_its_own_and_overwrites_what_is_added():
    layer = torch.nn.Conv3d(16, 32, 1)
    taken, added, given = Range(0.02, 0), Range(0.05, 90), Range(0.03, 0)
    x, other = (
        torch.randint(256, (1, channels, 2, 5, 5)).to(torch.uint8).contiguous(memory_format=torch.channels_last_3d)
        for channels in (16, 32)
    )
    with torch.no_grad():
        y = layer(x.float() * taken.scale) + (other.float() - added.zero) * added.scale
    found = Int8Convolution(layer, taken, given)(x, other, added)
    assert found is other
    assert (found.float() - (y / given.scale).clamp(0, 255)).abs().max() < 3


@needs_int8
def test_form_is_copied_and_pickled_and_is_of_its_own_weights():
    network, clip = (
        trained("ircsn_tiny", head_pooling=[1, 2, 2], head_average="probabilities"),
        torch.randn(1, 3, 8, 64, 64),
    )
    form = fold(network, dtype="int8", calibration=iter([clip]))
    expected = form(clip)
    for parameter in network.parameters():
        parameter.data.zero_()
    assert torch.equal(copy.deepcopy(form)(clip), expected)
    assert torch.equal(pickle.loads(pickle.dumps(form))(clip), expected)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_pooling_of_bytes_is_that_of_the_stem(size):
    x = torch.randint(256, (1, 2, 3, size, 7)).to(torch.uint8)
    expected = F.max_pool3d(x.float(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    assert torch.equal(max_pool(max_pool(x, 3), 4).float(), expected)


def test_range_leaves_out_what_is_rare_and_holds_nought():
    values = torch.cat([torch.rand(100_000), torch.tensor([2.0])])
    assert 1 / 255 < choose_range(values).scale < 1.9 / 255
    signed = choose_range(torch.linspace(-1, 3, 1000))
    assert signed == Range(pytest.approx(4 / 255), 64)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ircsn_tiny", {"dtype": "int8"}, "needs calibration clips"),
        ("ircsn_tiny", {"dtype": "int8", "layout": "packed"}, "layout of its own"),
        (
            "ircsn_tiny",
            {"calibration": CLIP},
            "calibration clips are for dtype int8, not for fp32",
        ),
        (
            "resnet3d_18",
            {"dtype": "int8", "calibration": CLIP},
            "is for networks of bottlenecks",
        ),
    ],
)
def test_what_cannot_be_is_refused(name, options, message, monkeypatch):
    monkeypatch.setattr(fold_module, "cannot_quantise", lambda device: None)
    with pytest.raises(InputError, match=message):
        fold(create_network(name, num_classes=2).eval(), **options)


def test_a_cpu_without_vnni_is_told_what_to_run_instead(monkeypatch):
    monkeypatch.setattr(fold_module, "has_vnni", lambda: False)
    cannot_quantise.cache_clear()
    try:
        with pytest.raises(InputError, match="lightning-csn export --int8"):
            fold(create_network("ircsn_tiny", num_classes=2), dtype="int8", calibration=CLIP)
    finally:
        cannot_quantise.cache_clear()
