"""What every command of `lightning-csn` does alike: exit codes, notes, tables, bars, and numbers that options take."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

DONE, FAILED, INTERRUPTED = 0, 2, 130  # exit codes; 2 is also what a parser gives for options it does not know


def note(message: str) -> None:
    """A line on stderr, so that stdout holds answers only."""
    print(f"lightning-csn: {message}", file=sys.stderr, flush=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough; torch has a type of its own for that on GPUs alone."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def show_last(results: Iterable[T], show: Callable[[T], None]) -> None:
    """Show the last of results each of which holds what is there so far: where an error or a signal is the end, too.

    SIGTERM ends with 143 then, as a shell says it, and Ctrl-C with 130. Where there is nothing yet, that is noted.
    """
    found: list[T] = []
    with stopped_by_sigterm():
        try:
            for result in results:
                found[:] = [result]
        except (KeyboardInterrupt, SystemExit):
            if not found:
                note("stopped before anything was measured")
            raise
        finally:
            for result in found:
                show(result)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit, in place of ending the process where it stands."""

    def stop(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)

    ignored = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # as of what a shell runs in the background
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_json(value: Any) -> None:
    """Plain values, for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, two blanks apart.

    >>> print(table([("NAME", "SIZE"), ("a_longer_name", "1"), ("b", "2")]))
    NAME           SIZE
    a_longer_name  1
    b              2
    """
    return "\n".join(columns(rows))


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """The lines of a table, whose cells may hold what a line does not; columns numbered in `right` end at one place.

    >>> columns([("a", "7"), ("b", "12")], right=[1])
    ['a   7', 'b  12']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:>{width}}" if number in right else f"{cell:<{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def progress(steps: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The steps, with a bar on stderr where that is a terminal."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    return iter(tqdm(steps, total=total, desc=what, unit="video", file=sys.stderr, disable=None, leave=False))


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a whole number of 1 or more is needed, got {text}")
    return value


def natural(text: str) -> int:
    """A whole number of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"a whole number of 0 or more is needed, got {text}")
    return value


def seconds(text: str) -> float:
    """A length of time above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of seconds above 0 is needed, got {text}")
    return value
