"""A display matrix of nine numbers becomes quarter turns and mirrors."""

from lightning_csn.data.orientation import ORIENTATIONS, read_orientation


def test_an_orientation_may_be_rounded():
    assert read_orientation([3, 65530, 0, -65540, -2, 0, 0, 0, 1 << 30]).transposed


def test_each_orientation_has_one_name():
    assert len(set(ORIENTATIONS.values())) == len(ORIENTATIONS) == 8
