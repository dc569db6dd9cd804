"""Ways that are timed in turns, and what is made of their times."""

import pytest
import torch

from lightning_csn import benchmark_reading
from lightning_csn.benchmark_readers import Way, read_ours
from lightning_csn.benchmark_reading import Measured, Timing, difference, ratios, read_in_turns, row
from lightning_csn.benchmark_videos import Source


def test_ways_take_turns_at_being_first():
    order = []

    def way(name):
        return Way(name, lambda source, numbers: order.append((name, numbers[0])) or torch.zeros(1, 1, 1, 3), peer=True)

    source = Source("a.mp4", 3, (1, 1), None, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_reading, "read_ours", lambda source, numbers: torch.zeros(1, 1, 1, 3))
        read_in_turns([way("a"), way("b")], [source], [[[0], [1], [2]]])
    assert order == [("a", 0), ("b", 0), *[("a", 0), ("b", 0)], *[("b", 1), ("a", 1)], *[("a", 2), ("b", 2)]]


def test_an_error_of_ours_is_not_hidden():
    def read_nothing(source, numbers):
        raise RuntimeError("moov atom not found")

    source = Source("a.mp4", 3, (1, 1), None, False)
    with pytest.raises(RuntimeError, match="moov"):
        read_in_turns([Way("ours", read_nothing)], [source], [[[0]]])


def test_medians_are_of_each_clock_alone():
    measured = Measured(Way("a", read_ours), timings=[Timing(3, 1), Timing(1, 2), Timing(2, 9)], difference=0.0)
    assert measured.median == (2, 2)
    assert row(measured) == {
        "name": "a",
        "peer": False,
        "error": None,
        "difference": 0.0,
        "agrees": True,
        "ms": 2000,
        "cpu_ms": 2000,
        "seconds": [3, 1, 2],
        "cpu_seconds": [1, 2, 9],
    }


def timed_row(name, seconds, *, peer=True, agrees=True):
    median = sorted(seconds)[len(seconds) // 2]
    values = {"name": name, "peer": peer, "agrees": agrees, "error": None, "difference": 0.0 if agrees else 9.0}
    return values | {"seconds": seconds, "cpu_seconds": [2 * t for t in seconds], "ms": median, "cpu_ms": median}


def test_ratios_are_of_readings_side_by_side_against_the_fastest_that_agrees():
    rows = [
        timed_row("ours", [1.0, 5.0, 2.0], peer=False),
        timed_row("ours, packed", [0.5, 0.5, 0.5], peer=False),
        timed_row("slow", [9.0, 9.0, 9.0]),
        timed_row("fast", [1.5, 5.0, 4.0]),
        timed_row("wrong", [0.1, 0.1, 0.1], agrees=False),
    ]
    found = ratios(rows)
    assert found["ours"] == {"against": "fast", "speed": 1.5, "cpu_against": "fast", "cpu_speed": 1.5}
    assert found["ours, packed"]["speed"] == 8
    assert list(found) == ["ours", "ours, packed"]


def test_without_a_peer_that_agrees_there_is_no_ratio():
    assert ratios([timed_row("ours", [1.0], peer=False), timed_row("a", [5.0], agrees=False)]) == {}


def test_frames_of_other_shapes_are_as_different_as_can_be():
    black, white = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.full((2, 4, 4, 3), 255, dtype=torch.uint8)
    assert difference(black, black) == 0
    assert difference(white, black) == 255
    assert difference(black[:1], black) == 255
