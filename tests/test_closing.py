"""What a `with` block does with what is open."""

import pytest

from lightning_csn.data.closing import Closing


class Door(Closing):
    def __init__(self):
        self.times_closed = 0

    def close(self):
        self.times_closed += 1


def test_a_with_block_closes_what_it_opened_and_hides_no_error():
    with Door() as door:
        assert door.times_closed == 0
    assert door.times_closed == 1
    with pytest.raises(ZeroDivisionError), door:
        raise ZeroDivisionError
    assert door.times_closed == 2
