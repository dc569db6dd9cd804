"""watchdog.py: a read that hangs is given up, in the main process and in workers, and closes its file in the end."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_csn.data import watchdog
from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError
from lightning_csn.data.watchdog import ReadTimeoutError, Watchdog, WatchedReader

LONG = 300  # seconds; no test waits for it


class Slow(io.BytesIO):
    """A file whose reading blocks until it is let go on."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.go_on, self.waits = threading.Event(), threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self.waits.set()
        self.go_on.wait()
        return super().read(size)


class Reader:
    """A reader that hangs in `frames`, and notes when it is closed."""

    info, times = None, None

    def __init__(self, cancelled: threading.Event) -> None:
        self.cancelled, self.inside, self.closed = cancelled, threading.Event(), threading.Event()

    def frames(self, numbers, *, size=None):
        self.inside.set()
        self.cancelled.wait()
        assert not self.closed.is_set()  # to close a file under a decoder would crash it
        return torch.zeros(len(numbers))

    def close(self) -> None:
        self.closed.set()


def test_results_and_errors_pass_through():
    watched = Watchdog(LONG, "a.mp4")
    assert watched.call(divmod, 7, 2) == (3, 1)
    assert watched.call(sorted, [1, 2], reverse=True) == [2, 1]
    with pytest.raises(ZeroDivisionError):
        watched.call(divmod, 1, 0)
    with pytest.raises(KeyboardInterrupt):
        watched.call(interrupt)
    assert not watched.cancelled.is_set()


def interrupt():
    raise KeyboardInterrupt


def test_without_a_limit_there_is_no_thread():
    assert Watchdog(None, "a.mp4").call(threading.current_thread) is threading.main_thread()
    assert Watchdog(LONG, "a.mp4").call(threading.current_thread).daemon


def test_what_hangs_is_given_up_with_path_and_seconds():
    watched, late = Watchdog(0.05, "folder/a.mp4"), []
    with pytest.raises(VideoError, match=r"^folder/a\.mp4: not read within 0\.05 seconds, so given up$") as error:
        watched.call(watched.cancelled.wait, if_late=late.append)
    assert isinstance(error.value, TimeoutError)
    wait_until(lambda: late == [True])


@pytest.fixture
def clock(monkeypatch):
    """Time that goes on only where a test says so, and is over for a call once `hangs`; left: what each call had."""
    clock = SimpleNamespace(now=100.0, left=[], hangs=lambda: False)

    def wait(call, seconds):
        clock.left.append(seconds)
        while not call._done.wait(0.01):
            if clock.hangs():
                return False
        return True

    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(watchdog._Call, "wait", wait)
    return clock


def test_the_calls_for_one_video_share_its_time(clock):
    def take(seconds):
        clock.now += seconds

    watched = Watchdog(0.3, "a.mp4")
    watched.call(take, 0.2)
    clock.hangs = lambda: True
    with pytest.raises(ReadTimeoutError, match=r"within 0\.3 seconds"):
        watched.call(watched.cancelled.wait)
    assert clock.left == pytest.approx([0.3, 0.1])


def test_an_interruption_leaves_the_thread_behind(monkeypatch):
    watched = Watchdog(LONG, "a.mp4")
    monkeypatch.setattr(watchdog._Call, "wait", lambda call, seconds: interrupt())
    with pytest.raises(KeyboardInterrupt):
        watched.call(watched.cancelled.wait)
    assert watched.cancelled.is_set()


def test_a_reader_that_hangs_is_closed_by_its_own_thread(clock):
    made = []
    clock.hangs = lambda: made and made[0].inside.is_set()

    def open_reader(*, cancelled):
        made.append(Reader(threading.Event()))
        return made[0]

    with pytest.raises(ReadTimeoutError), WatchedReader(open_reader, seconds=0.1, name="a.mp4") as watched:
        watched.frames([0])
    assert not made[0].closed.is_set()
    made[0].cancelled.set()  # what hung goes on
    wait_until(made[0].closed.is_set)


def test_a_file_that_opens_too_late_is_closed():
    made, go_on = [], threading.Event()

    def open_reader(*, cancelled):
        go_on.wait()
        assert cancelled.is_set()
        made.append(Reader(cancelled))
        return made[0]

    with pytest.raises(ReadTimeoutError):
        WatchedReader(open_reader, seconds=0.05, name="a.mp4")
    go_on.set()
    wait_until(lambda: made and made[0].closed.is_set())


def test_a_file_object_that_blocks(tmp_path, make_video, clock):
    slow, threads = Slow(make_video(tmp_path / "a.mp4", frames=20).read_bytes()), set(threading.enumerate())
    clock.hangs = lambda: slow.waits.is_set() and not slow.go_on.is_set()

    def open_slow(*, cancelled):
        return Video(slow, name="slow.mp4", cancelled=cancelled)

    with pytest.raises(ReadTimeoutError, match=r"slow\.mp4: not read within 0\.2 seconds"):
        WatchedReader(open_slow, seconds=0.2, name="slow.mp4")
    slow.go_on.set()
    wait_until(lambda: threads.issuperset(threading.enumerate()))  # it has ended, without having read the file
    slow.seek(0)
    with WatchedReader(open_slow, seconds=LONG, name="slow.mp4") as watched:
        assert (watched.info.num_frames, len(watched.times)) == (20, 20)
        assert watched.frames([3, 4]).shape == (2, 48, 64, 3)


class Fifos(Dataset):
    """Item 1 hangs in the kernel, where no flag is seen: a pipe that nobody writes to."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> str:
        try:
            return Watchdog(0.2 if index == 1 else LONG, self.path).call(self.read, index)
        except ReadTimeoutError as error:
            return str(error)

    def read(self, index: int) -> str:
        if index == 1:
            os.close(os.open(self.path, os.O_RDONLY))
        return f"read {index}"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_pipe_that_hangs_costs_its_own_item_only(tmp_path, workers):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    loader = DataLoader(Fifos(path), batch_size=None, num_workers=workers)
    assert list(loader) == ["read 0", f"{path}: not read within 0.2 seconds, so given up", "read 2"]
    if workers == 0:  # the thread is in this process: let it end
        os.close(os.open(path, os.O_WRONLY))
        wait_until(lambda: not any(thread.name == "read a video" for thread in threading.enumerate()))


def test_a_program_ends_though_a_thread_hangs():
    script = """
        import threading
        from lightning_csn.data.watchdog import ReadTimeoutError, Watchdog
        try:
            Watchdog(0.1, "a.mp4").call(threading.Event().wait)
        except ReadTimeoutError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = os.environ | {"PYTHONPATH": str(Path(watchdog.__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "a.mp4: not read within 0.1 seconds, so given up\n"


def test_a_call_costs_little():
    watched = Watchdog(LONG, "a.mp4")
    costs = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(20):
            watched.call(int)
        costs.append((time.perf_counter() - began) / 20)
    assert min(costs) < 0.002  # 0.07 ms on an idle machine; reading a clip takes 30 ms and more


def wait_until(true) -> None:
    deadline = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
