"""Ways to read videos, timed in turns on the same frames, and what is made of their times.

Every way's frames are compared with ours, and one whose frames are others is not compared in speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_csn.benchmark_readers import AGREEMENT, Way, decoder_errors, read_ours
from lightning_csn.benchmark_videos import Source

AGREEMENT_SCALED = 5.0  # 1 to 2 in films: some scale luma and chroma, some red, green and blue


class Timing(NamedTuple):
    """Seconds by the clock, and of the processor, which other programs disturb less."""

    seconds: float
    cpu_seconds: float


@dataclass
class Measured:
    """A way and its times; difference: of its frames from ours, the mean over a clip, of the worst video.

    agreement: the largest difference of what are the same frames.
    """

    way: Way
    agreement: float = AGREEMENT
    timings: list[Timing] = field(default_factory=list)
    difference: float | None = None
    error: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether it was measured, and gave the frames that we gave."""
        return self.error is None and self.difference is not None and self.difference <= self.agreement

    @property
    def median(self) -> Timing:
        """Of a reading."""
        return Timing(*(statistics.median(column) for column in zip(*self.timings, strict=True)))


def read_in_turns(
    ways: Sequence[Way], sources: Sequence[Source], numbers: Sequence[Sequence[Sequence[int]]]
) -> list[Measured]:
    """Every way reads the same frames: numbers[video][repeat]. The first in turn is another one each time."""
    least = AGREEMENT_SCALED if any(source.scaled for source in sources) else AGREEMENT
    measured = [Measured(way, agreement=max(way.agreement, least)) for way in ways]
    for each in measured:  # libraries are loaded, and the file is in the cache, before anything is timed
        with expected_failures(each):
            differences = [
                difference(each.way.read(source, rounds[0]), read_ours(source, rounds[0]))
                for source, rounds in zip(sources, numbers, strict=True)
            ]
            each.difference = max(differences)
    for repeat in range(len(numbers[0])):
        for source, rounds in zip(sources, numbers, strict=True):
            first = repeat % len(measured)
            for each in measured[first:] + measured[:first]:
                if each.error is None:
                    with expected_failures(each):
                        each.timings.append(timed(each.way.read, source, rounds[repeat]))
    return measured


@contextmanager
def expected_failures(measured: Measured) -> Iterator[None]:
    """What a peer says about a file that it cannot read: it is left out, with the reason."""
    try:
        yield
    except decoder_errors() as error:
        if not measured.way.peer:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        measured.error = lines[0]


def timed(function: Callable[..., Any], *arguments: Any) -> Timing:
    """What a call takes."""
    start, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return Timing(time.perf_counter() - start, time.process_time() - cpu)


def difference(theirs: Any, ours: Tensor) -> float:
    """Mean absolute difference of frames (T, H, W, C), of 255; all of it where the shapes differ."""
    theirs = torch.as_tensor(theirs)
    return 255.0 if theirs.shape != ours.shape else float((theirs.float() - ours.float()).abs().mean())


def row(measured: Measured) -> dict[str, Any]:
    """A way as plain values."""
    way = measured.way
    values: dict[str, Any] = {"name": way.name, "peer": way.peer, "error": measured.error}
    values |= {"difference": measured.difference, "agrees": measured.agrees}
    if measured.error is None:
        median = measured.median
        values |= {"ms": 1e3 * median.seconds, "cpu_ms": 1e3 * median.cpu_seconds}
        values |= {"seconds": [timing.seconds for timing in measured.timings]}
        values |= {"cpu_seconds": [timing.cpu_seconds for timing in measured.timings]}
    return values


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many times as fast each way of ours is as the fastest peer that gives the same frames.

    The medians of what is found in each repeat, in which all read the same: what else the machine does comes and goes.

    >>> rows = [{"name": "ours", "peer": False, "agrees": True, "seconds": [5, 9, 1], "cpu_seconds": [5, 5, 5]},
    ...         {"name": "a", "peer": True, "agrees": True, "seconds": [10, 18, 9], "cpu_seconds": [12, 12, 12]},
    ...         {"name": "b", "peer": True, "agrees": True, "seconds": [11, 19, 9], "cpu_seconds": [11, 11, 11]},
    ...         {"name": "c", "peer": True, "agrees": False, "seconds": [1, 1, 1], "cpu_seconds": [1, 1, 1]}]
    >>> ratios(rows)
    {'ours': {'against': 'a', 'speed': 2.0, 'cpu_against': 'b', 'cpu_speed': 2.2}}
    """
    peers = [each for each in rows if each["peer"] and each["agrees"]]
    if not peers:
        return {}
    best, best_cpu = (
        min(peers, key=lambda each: statistics.median(each[clock])) for clock in ("seconds", "cpu_seconds")
    )

    def speed(ours: dict[str, Any], theirs: dict[str, Any], clock: str) -> float:
        return statistics.median(b / a for a, b in zip(ours[clock], theirs[clock], strict=True))

    return {
        each["name"]: {
            "against": best["name"],
            "speed": speed(each, best, "seconds"),
            "cpu_against": best_cpu["name"],
            "cpu_speed": speed(each, best_cpu, "cpu_seconds"),
        }
        for each in rows
        if not each["peer"] and each["agrees"]
    }
