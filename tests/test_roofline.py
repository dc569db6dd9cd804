"""roofline.py: its counts against those made by hand, and the page against the code."""

from pathlib import Path

import pytest
import torch

from lightning_csn.models import fused
from lightning_csn.models.network import create_network
from lightning_csn.models.roofline import (
    Traffic,
    backward_traffic,
    depthwise_layers,
    forward_traffic,
    layers,
    page,
    products,
    traffic,
    traffic_back,
)


@pytest.mark.parametrize(
    ("name", "counts", "megabytes", "giga"),
    [
        ("ircsn_50", [3, 1, 3, 1, 5, 1, 2], 143, 42.31),
        ("ircsn_101", [3, 1, 3, 1, 22, 1, 2], 170, 56.47),
        ("ircsn_152", [3, 1, 7, 1, 35, 1, 2], 217, 74.05),
    ],
)
def test_layers_are_those_that_were_counted_by_hand(name, counts, megabytes, giga):
    depthwise = depthwise_layers(name)
    shapes = [(layer.channels, *layer.sizes_in, *layer.sizes) for layer in depthwise]
    assert shapes == [
        (64, 32, 56, 56, 32, 56, 56),
        (128, 32, 56, 56, 16, 28, 28),
        (128, 16, 28, 28, 16, 28, 28),
        (256, 16, 28, 28, 8, 14, 14),
        (256, 8, 14, 14, 8, 14, 14),
        (512, 8, 14, 14, 4, 7, 7),
        (512, 4, 7, 7, 4, 7, 7),
    ]
    assert [layer.count for layer in depthwise] == counts
    assert sum(2 * layer.elements * layer.count for layer in depthwise) == pytest.approx(megabytes * 1e6, abs=0.5e6)
    multiply_adds = sum(layer.multiply_adds * layer.count for layer in layers(name)) + 2048 * 400
    assert multiply_adds == pytest.approx(giga * 1e9, abs=0.006e9)


def test_traffic_of_the_networks_is_what_was_counted_by_hand():
    # 3.96, 4.70 and 5.96 GB eager with the stem: clip and conv, BatchNorm and ReLU, and pooling
    stem = 3 * 32 * 224**2 + 64 * 32 * 112**2 * (1 + 5 + 1) + 64 * 32 * 56**2
    for name, gigabytes in (("ircsn_50", 3.96), ("ircsn_101", 4.70), ("ircsn_152", 5.96)):
        assert 2 * (traffic(name).eager + stem) == pytest.approx(gigabytes * 1e9, abs=0.006e9)


def test_blocks_of_stride_1_follow_the_table_of_passes():
    long, short = traffic("ircsn_152", (8, 64, 64)), traffic("ircsn_101", (8, 64, 64))
    narrow, wide = 128 * 4 * 8 * 8 * 4, 256 * 2 * 4 * 4 * 13  # w P of the four and thirteen blocks between the two
    eager, library, own = fused.total(fused.FORWARD)
    assert long.eager - short.eager == eager * (narrow + wide)
    assert long.library - short.library == library * (narrow + wide)
    assert long.own - short.own == own * narrow + library * wide  # of 256 and 1024 channels arithmetic sets the pace
    assert long.floor - short.floor == fused.total(fused.INFERENCE)[2] * (narrow + wide)
    long, short = traffic_back("ircsn_152", (8, 64, 64)), traffic_back("ircsn_101", (8, 64, 64))
    eager, library, own = fused.total(fused.BACKWARD)
    assert long.eager - short.eager == eager * (narrow + wide)
    assert long.library - short.library == library * (narrow + wide)
    assert long.own - short.own == own * narrow + library * wide
    assert long.floor - short.floor == own * (narrow + wide)


@pytest.mark.parametrize(
    ("network", "block", "unit", "forward", "back"),
    [
        # Units: w elements of a place after the stride. At stride 2, of T too, there are 8 as many before, of which the
        # shortcut takes one: 8 and 1 inside, 16 of the input (2 w channels), 2 taken, 4 of the output.
        (
            "ircsn_26",
            "stage2.0",
            128,
            # reduce; its norm; depthwise; its norm; expand; its norm, the sum; projection
            Traffic(
                eager=(16 + 8) + 5 * 8 + (8 + 1) + 5 + (1 + 4) + 32 + (2 + 4 + 12),
                library=(16 + 8) + 8 + (8 + 1) + 2 + (1 + 4) + (4 + 12) + (2 * 2 + 2 + 4 + 4),
                own=(16 + 8) + (8 + 1) + 1 + 9 + (2 * 2 + 2 + 4 + 4),
                floor=(16 + 8) + (8 + 1) + 9 + (2 + 4),
            ),
            # from the last ReLU to the depthwise's; depthwise; norm of the reduce; reduce; the sum; projection
            Traffic(
                eager=50 + 2 * 9 + 8 * 8 + 2 * 24 + 3 * 16 + (20 + (4 + 2) + (4 + 16)),
                library=50 + 2 * 9 + 5 * 8 + 2 * 24 + 3 * 2 + (20 + (4 + 2) + (4 + 2)),
                own=36 + 2 * 9 + 5 * 8 + 2 * 24 + 3 * 2 + (20 + (4 + 2) + (4 + 2)),
                floor=36 + 2 * 9 + 5 * 8 + 2 * 24 + 3 * 2 + (20 + (4 + 2) + (4 + 2)),
            ),
        ),
        # the same, where arithmetic sets the pace of both products
        ("ircsn_26", "stage4.0", 512, Traffic(133, 78, 78, 48), Traffic(274, 194, 194, 180)),
        # a projection without a stride: 1 of the input, all taken
        (
            "ircsn_26",
            "stage1.0",
            64,
            Traffic(2 + 5 + 2 + 5 + 5 + 32 + 17, 2 + 1 + 2 + 23 + (5 + 4), 2 + 2 + 10 + (5 + 4), 2 + 2 + 9 + 5),
            Traffic(50 + 4 + 8 + 4 + 3 + 30, 50 + 4 + 5 + 4 + 1 + 30, *[36 + 4 + 5 + 4 + 1 + 30] * 2),
        ),
        # ip-CSN, of which memory sets the pace of the interaction alone: (product, statistics, norm) or (product), and
        # back: both gradients and the norm without a ReLU; the activation again, both, the norm's sums and gradient
        (
            "ipcsn_26",
            "stage3.1",
            256,
            Traffic(54 + (2 + 1 + 2), 31 + (2 + 2 + 1), 31 + 2, 16 + 2),
            Traffic(84 + (4 + 2 + 3), 73 + (2 + 4 + 2 + 3), 73 + (2 + 3 + 3), 59 + (2 + 3 + 3)),
        ),
        # dense blocks have no fused form
        ("resnet3d_26", "stage2.1", 128, Traffic(54, 54, 54, 16), Traffic(84, 84, 84, 59)),
        # two dense convolutions, BatchNorm and ReLU (1 + 2 + 2), BatchNorm (1 + 2), the sum and its ReLU
        ("resnet3d_18", "stage1.1", 64, Traffic(17, 17, 17, 2 + 3), Traffic(27, 27, 27, 7 + 4 + 5 + 4 + 1)),
        # the same from 64 to 128 channels, in units of 64: 8 of the input, 1 taken, 2 of the output
        (
            "resnet3d_18",
            "stage2.0",
            64,
            Traffic(*[8 + 2 * 16 + (1 + 2 + 6)] * 3, 8 + 2 * 4 + 3),
            Traffic(*[2 * 16 + 8 + 20 + 24 + (10 + 3 + 10)] * 3, 14 + 8 + 10 + 20 + 3 + (10 + 3 + 3)),
        ),
    ],
)
def test_traffic_of_a_block_is_what_was_counted_by_hand(network, block, unit, forward, back):
    with torch.device("meta"):
        module = create_network(network).eval().get_submodule(block)
        width_in = next(module.parameters()).shape[1]  # of the first convolution
        x = torch.empty(1, width_in, 4, 8, 8)
        out = module(x)
    places = out[0, 0].numel()
    for counted, by_hand in ((forward_traffic(module, x, out), forward), (backward_traffic(module, x, out), back)):
        assert {name: count / unit / places for name, count in vars(counted).items()} == vars(by_hand)


@pytest.mark.parametrize("name", ["resnet3d_18", "resnet3d_tiny", "ipcsn_tiny", "ircsn_26"])
def test_traffic_of_a_network_is_that_of_all_its_blocks(name):
    for count in (traffic(name, (8, 64, 64)), traffic_back(name, (8, 64, 64))):
        assert 0 < count.floor <= count.own <= count.library <= count.eager


def test_products_have_the_roles_of_their_blocks():
    first = [(each.stage, each.role, each.channels_in, each.channels) for each in products("ipcsn_tiny", (4, 32, 32))]
    assert first[:5] == [
        (1, "reduce", 16, 16),
        (1, "interact", 16, 16),
        (1, "expand", 16, 64),
        (2, "reduce", 64, 32),
        (2, "interact", 32, 32),
    ]
    sizes = {each.role: each.sizes for each in products("ipcsn_tiny", (4, 32, 32)) if each.stage == 2}
    assert sizes == {"reduce": (4, 8, 8), "interact": (4, 8, 8), "expand": (2, 4, 4)}
    assert products("resnet3d_26") == []


def test_page_is_what_the_code_counts():
    printed = (Path(__file__).parents[1] / "ROOFLINE.md").read_text()
    assert printed == page(), "print it again: python -m lightning_csn.models.roofline > ROOFLINE.md"
    assert "Not yet measured on a GPU" in printed
