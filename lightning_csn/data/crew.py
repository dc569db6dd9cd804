"""A function run for many tasks in processes of their own, of which any may crash or hang without ending the rest.

A video file can do both to a decoder; ProcessPoolExecutor would give up all tasks with the first that kills a process.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NamedTuple, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Alive = Callable[[], None]

START_SECONDS = 120.0  # that a process may take to import torch, on a busy machine
_ALIVE, _DONE = 0, 1


def usable_processors() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS and Windows


class Failure(NamedTuple):
    """Why a task has no result, as in "the process that read it died (signal 11)"."""

    reason: str


def run_apart(
    function: Callable[[Task, Alive], Result], tasks: Iterable[Task], *, workers: int, seconds: float
) -> Iterator[tuple[Task, Result | Failure]]:
    """Each task with function(task, alive), as they get ready, from as many processes as `workers`.

    seconds: that a task may take; each call of `alive`, which the function is given, starts them anew. A process that
    takes longer is ended, and another takes its place. One that dies by itself is replaced too, and its task tried
    once more, for it may have died of the task before or for want of memory. The function must be importable by name.
    """
    waiting = deque((task, 1) for task in tasks)
    crew = [_Worker(function) for _ in range(min(workers, len(waiting)))]
    try:
        for worker in crew:
            worker.give(*waiting.popleft(), seconds)
        while crew:
            ready = wait(
                [worker.connection for worker in crew],
                timeout=max(0.0, min(worker.deadline for worker in crew) - time.monotonic()),
            )
            for place, worker in enumerate(crew):
                task, tries = worker.task
                answers: list[Result | Failure] = []
                if worker.connection in ready:
                    try:
                        answers += worker.hear()
                    except (EOFError, OSError):
                        reason = worker.stop(grace_seconds=5.0)
                        if not worker.started:
                            raise RuntimeError(
                                f"the processes that read files cannot start: {reason}; a script that "
                                "reads videos needs `if __name__ == '__main__':` around what it does"
                            ) from None
                        if tries > 1:
                            answers.append(Failure(f"the process that read it died ({reason})"))
                        else:
                            waiting.appendleft((task, tries + 1))
                    else:
                        if not answers:
                            continue
                elif time.monotonic() >= worker.deadline and not worker.connection.poll():
                    worker.stop()
                    answers.append(Failure(f"reading it took longer than {seconds:g} seconds"))
                else:
                    continue
                if waiting:
                    if worker.stopped:
                        worker = crew[place] = _Worker(function)
                    worker.give(*waiting.popleft(), seconds)
                elif not worker.stopped:
                    worker.stop()
                yield from ((task, answer) for answer in answers)
            crew = [worker for worker in crew if not worker.stopped]
    finally:
        for worker in crew:
            if not worker.stopped:
                worker.stop()


class _Worker(Generic[Task, Result]):
    """A process, what it is at, and until when."""

    task: tuple[Task, int]

    def __init__(self, function: Callable[[Task, Alive], Result]) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self._process = _context().Process(target=_work, args=(function, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is closed when the process is gone
        self.started = self.stopped = False

    def give(self, task: Task, tries: int, seconds: float) -> None:
        """Have it start on a task."""
        self.task, self._seconds = (task, tries), seconds
        self.deadline = time.monotonic() + (seconds if self.started else max(seconds, START_SECONDS))
        with contextlib.suppress(OSError):  # it is gone, which is told by its next word
            self.connection.send(task)

    def hear(self) -> list[Result]:
        """What it says: a result, or nothing but that it is alive. Raises EOFError or OSError where it is gone."""
        kind, result = self.connection.recv()
        self.started = True
        self.deadline = time.monotonic() + self._seconds
        return [result] if kind == _DONE else []

    def stop(self, grace_seconds: float = 0.0) -> str:
        """End it, and say how it ended; one that is ending by itself is given time for it."""
        self.stopped = True
        self._process.join(grace_seconds)
        self._process.kill()
        self._process.join()
        self.connection.close()
        code = self._process.exitcode or 0
        self._process.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _context() -> Any:
    """How processes start: never as copies of this one, whose threads would be missing in them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning_csn.data.survey"])  # imported once, not in each process
    return context


def _work(function: Callable[[Any, Alive], Any], connection: Connection) -> None:
    """What a process does: tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that waits for it
    logging.getLogger("lightning_csn").addHandler(logging.NullHandler())  # what is found is told once, in the report

    def alive() -> None:
        connection.send((_ALIVE, None))

    try:
        alive()
        while True:
            connection.send((_DONE, function(connection.recv(), alive)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody listens any more
