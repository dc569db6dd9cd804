"""roofline.py: its counts against those made by hand, and the page against the code."""

from pathlib import Path

import pytest

from lightning_csn.models import fused
from lightning_csn.models.roofline import depthwise_layers, layers, page, traffic


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


def test_page_is_what_the_code_counts():
    printed = (Path(__file__).parents[1] / "ROOFLINE.md").read_text()
    assert printed == page(), "print it again: python -m lightning_csn.models.roofline > ROOFLINE.md"
    assert "Not yet measured on a GPU" in printed
