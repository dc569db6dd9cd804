"""The machine that `lightning-csn benchmark` runs on: what it is, its rates, its clock and its memory."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_csn import __version__
from lightning_csn.benchmark_settings import PRECISIONS, Settings
from lightning_csn.errors import InputError
from lightning_csn.terminal import out_of_memory

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


SIZES = {"cuda": (2**30, 8192), "cpu": (2**27, 1024)}  # bytes of a copy and side of a product that fill a device


def rates_of(settings: Settings, device: torch.device, precisions: Sequence[str]) -> dict[str, float]:
    """Bytes/s of a device copy, read and written, as "copy"; FLOP/s of a square product in each precision, by its name.

    One of which no product is known on this device has none.
    """
    import torch

    copied, side = SIZES["cuda" if device.type == "cuda" else "cpu"]
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    target.copy_(source)  # pages are mapped and libraries loaded before anything is timed
    rates = {"copy": 2 * copied / median_of(lambda: target.copy_(source), settings, device)}
    for precision in precisions:
        medians = []
        for product in products_in(precision, side, device):
            product()
            medians.append(median_of(product, settings, device))
        if medians:
            rates[precision] = 2 * side**3 / min(medians)
    return rates


def named_rates(rates: dict[str, float], settings: Settings) -> dict[str, float]:
    """Those of the settings' precision, as results have them."""
    return {"copy_bytes_per_second": rates["copy"], "matrix_flops_per_second": rates[settings.precision]}


def median_of(function: Callable[[], Any], settings: Settings, device: torch.device) -> float:
    """Seconds that a call takes, of three one after the other."""
    return statistics.median(seconds_of(function, device, 3) for _ in range(settings.repeats))


def products_in(precision: str, side: int, device: torch.device) -> list[Callable[[], Tensor]]:
    """Square products in a precision: torch's, and on some CPUs as a 1x1x1 convolution by oneDNN, which in fp32 is
    twice as fast. In int8 the latter alone, bytes to bytes as in fold_int8.py.
    """
    import torch
    from torch import nn

    from lightning_csn.models.fold import FoldedConvolution, PackedConvolution, cannot_pack, cannot_quantise

    last, plain = torch.channels_last_3d, nn.Conv3d(side, side, 1)
    left, right = torch.randn(2, side, side, device=device).unbind()
    x, weight = left.reshape(1, side, 1, side, 1), right.reshape(side, side, 1, 1, 1)
    if precision == "int8":
        if cannot_quantise(device.type) is not None:
            return []
        from lightning_csn.models.fold_int8 import Int8Convolution, Range

        layer = FoldedConvolution(weight, torch.zeros(side), plain, relu=False)
        quantised = Int8Convolution(layer, Range(1 / 32, 128), Range(8.0, 128))
        pixels = (32 * x + 128).clamp(0, 255).to(torch.uint8).contiguous(memory_format=last)
        return [lambda: quantised(pixels)]
    dtype = getattr(torch, PRECISIONS[precision])
    one, other = left.to(dtype), right.to(dtype)
    products: list[Callable[[], Tensor]] = [lambda: one @ other]
    if precision != "fp16" and cannot_pack(device.type, dtype) is None:
        packed = PackedConvolution(weight, torch.zeros(side), plain, relu=False).to(dtype)
        values = x.to(dtype).contiguous(memory_format=last)
        products.append(lambda: packed(values))
    return products


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
