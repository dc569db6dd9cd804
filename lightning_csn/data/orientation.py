"""How a decoded picture is turned to be shown, by the display matrix that a file may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Orientation(NamedTuple):
    """How a decoded picture is turned to be shown: first rows and columns change places, then the order of each."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False


ORIENTATIONS = {  # by degrees clockwise, and whether the picture is mirrored left to right before it is turned
    (0, False): Orientation(),
    (90, False): Orientation(transposed=True, columns_reversed=True),
    (180, False): Orientation(rows_reversed=True, columns_reversed=True),
    (270, False): Orientation(transposed=True, rows_reversed=True),
    (0, True): Orientation(columns_reversed=True),
    (90, True): Orientation(transposed=True, rows_reversed=True, columns_reversed=True),
    (180, True): Orientation(rows_reversed=True),
    (270, True): Orientation(transposed=True),
}


def read_orientation(matrix: Sequence[int]) -> Orientation:
    """The orientation that a display matrix asks for: nine numbers, row by row, of which the first four of 2 x 2 count.

    A picture's column x and row y are shown at column a*x + c*y and row b*x + d*y. A matrix that is not a quarter turn
    or a mirror, such as the one of zeros that broken headers hold, changes nothing.

    >>> read_orientation([0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30])  # a phone held upright
    Orientation(transposed=True, rows_reversed=False, columns_reversed=True)
    >>> read_orientation([0] * 9)
    Orientation(transposed=False, rows_reversed=False, columns_reversed=False)
    """
    a, b, _, c, d = matrix[:5]
    straight, turned = min(abs(a), abs(d)), min(abs(b), abs(c))
    if straight > 100 * max(abs(b), abs(c)):  # a degree off is a quarter turn, rounded
        return Orientation(transposed=False, rows_reversed=d < 0, columns_reversed=a < 0)
    if turned > 100 * max(abs(a), abs(d)):
        return Orientation(transposed=True, rows_reversed=b < 0, columns_reversed=c < 0)
    return Orientation()
