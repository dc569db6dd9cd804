"""How long a processor takes to start the kernels of a training step, measured on any machine.

A driver that launches nothing stands in for that of a GPU (compute capability 9.0), behind Triton as it is: the kernels
are compiled, and found again at each launch. Tensors lie on the CPU and are tiny, so that PyTorch's own part is little.
Prints launches of ours and microseconds of processor time, least of several: of each launch, and of a whole block,
forward and backward. With --again it prints whether launches are handed the same when they are repeated.
"""

import sys
import time

import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from lightning_csn.models import depthwise, launch, launch_product, tiles
from lightning_csn.models.depthwise import depthwise_backend
from lightning_csn.models.network import Bottleneck, interaction_reduced

TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])


class Driver:
    """Keeps what would be launched: the grid, and the arguments with tensors by their types."""

    def __init__(self):
        self.utils, self.launched = self, []

    def launcher_cls(self, source, metadata):
        def run(*given):
            grid, arguments = given[:3], given[9:]  # between: the stream, the kernel, hooks
            self.launched.append(
                (source.fn.__name__, grid, [str(getattr(value, "dtype", value)) for value in arguments])
            )

        return run

    def load_binary(self, name, kernel, shared, device):
        loaded = (1, 1, 32, 0, 1024)  # module, kernel, registers, spilled registers, most threads
        return loaded if TRITON >= (3, 4) else loaded[:4]

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def unload_module(self, module):
        pass

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def tensor(*shape):
    made = torch.ones(shape, dtype=torch.bfloat16)
    return made.contiguous(memory_format=torch.channels_last_3d) if len(shape) == 5 else made


def launches():
    """Each launch by its name, as a function."""
    y, wide, norm = tensor(2, 16, 2, 4, 4), tensor(2, 64, 2, 4, 4), torch.ones(5, 16)
    out, weight, reduce = torch.empty_like(y), tensor(16, 1, 3, 3, 3), tensor(16, 64).view(16, 64, 1, 1, 1)
    applied, partial, scale = (norm[3], norm[4], True), torch.ones(3, 2, 16), torch.ones(16)
    return {
        "depthwise": lambda: launch.convolve(y, weight, out, (1, 1, 1), norm=applied, statistics=True),
        "its weight gradient": lambda: launch.weight_gradient(y, y, (1, 1, 1), norm=applied),
        "product": lambda: launch_product.product(wide, None, reduce, out, statistics=True),
        "statistics": lambda: launch.finish(partial, scale, scale, 1e-3),
        "gradient": lambda: launch.gradient(y, y, norm, norm[:2], out, relu=True, batch=True),
    }


def training_step(products="own", width_in=64, stride=1):
    """A block's forward and backward pass, fused."""
    identity, width = nn.Identity(), 16
    block = Bottleneck(width_in, width, interaction_reduced, norm=nn.BatchNorm3d, stride=stride, drop_path=identity)
    block = block.bfloat16()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm3d):  # as under autocast
            module.float()
    x = tensor(2, width_in, 2, 4, 4).requires_grad_()

    def step():
        with depthwise_backend("fused"), launch_product.form(products):
            block(x).sum().backward()

    return step


def microseconds(function, times=200, rounds=20):
    found = []
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(times):
            function()
        found.append((time.process_time() - started) / times)
    return 1e6 * min(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    recorder = Driver()
    driver.set_active(recorder)
    depthwise.unsupported = lambda *_: None
    tiles.processors = lambda device: 132
    again = "--again" in sys.argv
    steps = {"a block, own products": training_step()}
    if again:
        steps["a block of stride 2, library's products"] = training_step("library", width_in=32, stride=2)
    for name, function in (launches() | steps).items():
        kept = []
        for _ in range(2):
            recorder.launched.clear()
            function()
            kept.append(list(recorder.launched))
        first, second = kept
        if again:
            print(f"{name}: {len(first)} launched, {'the same' if first == second else f'{second} after {first}'}")
        else:
            print(f"{name}: {len(first)} launched, {microseconds(function):.1f} us")
