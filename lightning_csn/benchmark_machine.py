"""The machine that `lightning-csn benchmark` runs on: what it is, its rates, its clock and its memory."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_csn import __version__
from lightning_csn.benchmark_settings import PRECISIONS, Settings
from lightning_csn.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def machine(device: torch.device) -> dict[str, Any]:
    """What a number depends on: device and versions."""
    import importlib.metadata
    import importlib.util

    import torch

    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else processor_name(),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if gpu else None,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "lightning_csn": __version__,
    }


def processor_name() -> str:
    """As the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a Linux that does not tell
        return platform.processor() or platform.machine()


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """fp32 means fp32 in every way, without TF32, and cuDNN may choose its fastest algorithm."""
    import torch

    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield


# ---------------------------------------------------------------- rates and times


def measure_rates(settings: Settings, device: torch.device, *, copied: int, side: int) -> dict[str, float]:
    """Bytes/s of a device copy of `copied` bytes, read and written, and FLOP/s of a square product in the precision."""
    import torch

    dtype = getattr(torch, PRECISIONS[settings.precision])
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    target.copy_(source)  # pages are mapped and libraries loaded before anything is timed
    copy = [seconds_of(lambda: target.copy_(source), device, 3) for _ in range(settings.repeats)]
    left, right = torch.randn(2, side, side, device=device).to(dtype).unbind()
    products: list[Callable[[], Tensor]] = [lambda: left @ right]
    if device.type == "cpu" and settings.precision == "fp32":
        products += packed_product(side)
    medians = []
    for product in products:
        product()
        medians.append(statistics.median(seconds_of(product, device, 3) for _ in range(settings.repeats)))
    return {
        "copy_bytes_per_second": 2 * copied / statistics.median(copy),
        "matrix_flops_per_second": 2 * side**3 / min(medians),
    }


def packed_product(side: int) -> list[Callable[[], Tensor]]:
    """The same square product as a 1x1x1 convolution by oneDNN, which on some CPUs is twice as fast; none elsewhere."""
    import torch
    from torch import nn

    from lightning_csn.models.fold import PackedConvolution, cannot_pack

    if cannot_pack("cpu", torch.float32) is not None:
        return []
    form = torch.channels_last_3d
    weight = torch.randn(side, side, 1, 1, 1)
    product = PackedConvolution(weight, torch.zeros(side), nn.Conv3d(side, side, 1), relu=False)
    x = torch.randn(1, side, 1, side, 1).contiguous(memory_format=form)
    return [lambda: product(x)]


def rates_of(settings: Settings, device: torch.device) -> dict[str, float]:
    """`measure_rates` at sizes that fill the device."""
    if device.type == "cuda":
        return measure_rates(settings, device, copied=2**30, side=8192)
    return measure_rates(settings, device, copied=2**27, side=1024)


def seconds_of(function: Callable[[], Any], device: torch.device, steps: int) -> float:
    """Seconds that a call takes, of so many one after the other."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / steps


def kernel_seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median of the seconds that a short function takes on the device.

    On a GPU, 1 GiB is overwritten before each call: nothing is found in caches, and the call is enqueued while the GPU
    is still busy, so that Python's time does not count.
    """
    import torch

    function()  # compiles kernels
    if device.type != "cuda":
        return statistics.median(seconds_of(function, device, 1) for _ in range(repeats))
    cold = torch.empty(2**30, dtype=torch.uint8, device=device)
    pairs = []
    for _ in range(repeats):
        cold.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3


# ---------------------------------------------------------------- memory


def process_memory() -> int | None:
    """The most bytes that this process has had in memory (peak RSS); None where the system does not count them."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def memory_as_input_error() -> Iterator[None]:
    """Where nothing can be told without the memory that is not there, it is the options' fault."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"out of memory: {str(error).splitlines()[0]}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough; torch has a type of its own for that on GPUs alone."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
