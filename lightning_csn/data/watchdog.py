"""A limit on how long a video may take to be read: a network drive or a broken file can hang for ever.

No signals, which only the main thread of a program gets and not all systems have: the reading is done by a thread of
its own, which is left behind when its time is over. Python cannot end it, but it is a daemon, so that the program does
not wait for it at its end either, and as soon as it gets on it finds itself cancelled, lets go of the file and ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from lightning_csn.data.closing import Closing
from lightning_csn.data.reading import Reader
from lightning_csn.data.video_info import VideoError, VideoInfo

T = TypeVar("T")


class ReadTimeoutError(VideoError, TimeoutError):
    """A video that took longer to read than it may."""


class Watchdog:
    """Runs functions that together may take `seconds`; without a number as long as they like, without a thread.

    name: what the message calls the thing, such as the path of a video.
    cancelled: set when the time is over, for the function to look at now and then.

    >>> Watchdog(10, "a.mp4").call(max, 1, 2)
    2
    >>> Watchdog(0.01, "a.mp4").call(time.sleep, 1)
    Traceback (most recent call last):
        ...
    lightning_csn.data.watchdog.ReadTimeoutError: a.mp4: not read within 0.01 seconds, so given up
    """

    def __init__(self, seconds: float | None, name: str) -> None:
        self.seconds = seconds
        self.name = name
        self.cancelled = threading.Event()
        self._left = seconds

    def call(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        if_late: Callable[[T | None], object] | None = None,
        **options: Any,
    ) -> T:
        """What function(*args, **options) returns or raises; ReadTimeoutError where the time is over first.

        if_late: called in the thread that was given up, if it comes to an end after all, with what the function
            returned (None where it raised): to let go of what it holds. Nobody else may meanwhile.
        """
        if self._left is None:
            return function(*args, **options)
        began = time.monotonic()
        call = _Call(function, args, options, if_late)
        try:
            in_time = call.wait(self._left)
        except BaseException:  # Ctrl-C: nobody waits for the thread any more
            self.cancelled.set()
            call.give_up()
            raise
        self._left = max(0.0, self._left - (time.monotonic() - began))
        if not in_time:
            self.cancelled.set()
            if call.give_up():
                raise ReadTimeoutError(f"{self.name}: not read within {self.seconds:g} seconds, so given up")
        if call.error is not None:
            raise call.error
        return call.result


class _Call:
    """One function in a thread of its own, which ends either waited for or given up, never both."""

    result: Any
    error: BaseException | None

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        options: dict[str, Any],
        if_late: Callable[[Any], object] | None,
    ) -> None:
        self.result, self.error = None, None
        self._function, self._args, self._options, self._if_late = function, args, options, if_late
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._given_up = False
        threading.Thread(target=self._run, name="read a video", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether the function came to an end in time."""
        return self._done.wait(seconds)

    def give_up(self) -> bool:
        """Leave the function alone; False if it has just come to an end."""
        with self._lock:
            self._given_up = not self._done.is_set()
            return self._given_up

    def _run(self) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = self._function(*self._args, **self._options)
        except BaseException as raised:  # noqa: BLE001 - for the thread that waits to raise
            error = raised
        with self._lock:
            self.result, self.error = result, error
            self._done.set()
            late = self._given_up
        if late and self._if_late is not None:
            self._if_late(result)
        del self._function, self._args, self._options, self._if_late  # the thread may outlive whoever called


class WatchedReader(Closing):
    """A video that is opened, and whose frames are read, within so many seconds altogether.

    open_reader: called with cancelled=Event, which it hands on to what it opens. Where time is over, ReadTimeoutError
    is raised and the video is closed by the thread that hangs in it: to close a file under a decoder would crash it.
    """

    def __init__(self, open_reader: Callable[..., Reader], *, seconds: float | None, name: str) -> None:
        self._watchdog = Watchdog(seconds, name)
        self._reader = self._watchdog.call(open_reader, cancelled=self._watchdog.cancelled, if_late=_close)

    @property
    def info(self) -> VideoInfo:
        """What is known about the video."""
        return self._reader.info

    @property
    def times(self) -> Sequence[float] | None:
        """Seconds of each frame from the first; None where the file proves none."""
        return self._reader.times

    def frames(self, numbers: Sequence[int], *, size: tuple[int, int] | None = None) -> Tensor:
        """The frames of these numbers, uint8 (T, H, W, C)."""
        reader = self._reader
        return self._watchdog.call(reader.frames, numbers, size=size, if_late=lambda _: reader.close())

    def close(self) -> None:
        """Let go of the file, unless a thread hangs in it, which will."""
        if not self._watchdog.cancelled.is_set():
            self._reader.close()


def _close(reader: Reader | None) -> None:
    if reader is not None:
        reader.close()
