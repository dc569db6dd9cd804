"""Compiles every kernel as a launch at CSN's shapes would, for compute capability 9.0, on any machine.

Prints, for each kernel, its name, registers per thread, bytes of stack and local memory (spilled registers), how many
of its loads and stores move 2 bytes or less a thread, and bytes of shared memory per program; with --seconds what
compiling took as well; with --count only their number. Run by test_depthwise.py in a process of its own, since the
interpreter and the compiler exclude each other. What a cold first step compiles:
`TRITON_ALWAYS_COMPILE=1 python tests/compile_kernels.py --seconds step`.
"""

import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import torch
import triton
from torch import nn
from torch._library.custom_ops import OPDEFS
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lightning_csn.models import (
    choices,
    depthwise,
    depthwise_kernels,
    fused_kernels,
    launch,
    launch_product,
    product_kernels,
    tiles,
)
from lightning_csn.models.network import create_network

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Compiler:
    """Stands in for a kernel: a launch compiles it, once for each variant."""

    seen: ClassVar[set[str]] = set()

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *args, num_warps=4, maxnreg=None, **kwargs):
        options = {"num_warps": num_warps, "maxnreg": maxnreg}
        arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value = arguments[parameter.name]
            assert parameter.is_constexpr or not isinstance(value, float), f"{parameter.name} would be rounded to fp32"
            one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or one:
                signature[parameter.name], constants[(i,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name], attributes[(i,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "i64" if abs(value) >= 2**31 else "i32"
                if value % 16 == 0 and not parameter.do_not_specialize:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        variant = str((self.kernel.__name__, signature, constants, attributes, options))
        if variant not in self.seen and "--count" not in sys.argv:
            started, used = time.perf_counter(), cpu_seconds()
            source = ASTSource(self.kernel, signature=signature, constexprs=constants, attrs=attributes)
            compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            seconds = f"{time.perf_counter() - started:.2f} s, of a CPU {cpu_seconds() - used:.2f} s"
            print(self.kernel.__name__, *usage(compiled), *([seconds] if "--seconds" in sys.argv else []), flush=True)
        self.seen.add(variant)


def usage(compiled):
    """Registers, bytes of stack and of local memory, narrow accesses and shared memory of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    narrow = re.findall(r"(?:ld|st)\.global(?:\.(?!v\d)\w+)*\.b(?:8|16)\b", compiled.asm["ptx"])
    return [int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")] + [
        len(narrow),
        compiled.metadata.shared,
    ]


def cpu_seconds():
    """Of this process and of the assemblers that it started."""
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in each)


def tensor(*shape, dtype=torch.bfloat16, last=True):
    memory_format = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def layer(B, C, T, H, W, strides=(1, 1, 1), dtype=torch.bfloat16, last=True, fused=False, only=None):
    x = tensor(B, C, T, H, W, dtype=dtype, last=last)
    sizes = [(size - 1) // stride + 1 for size, stride in zip((T, H, W), strides, strict=True)]
    out = tensor(B, C, *sizes, dtype=dtype, last=last)
    weight = torch.empty(C, 1, 3, 3, 3, dtype=dtype, device="meta")
    vector = torch.empty(C, device="meta")
    norm = (vector, vector, True) if fused else None
    if only in (None, "convolve"):
        launch.convolve(x, weight, out, strides, norm=norm, statistics=fused)
    if only in (None, "input_gradient") and strides != (1, 1, 1):
        launch.input_gradient(out, weight, x, strides)
    if only in (None, "weight_gradient"):
        launch.weight_gradient(out, x, strides, norm=norm)


def rest(dtype=torch.bfloat16):
    y = tensor(8, 256, 32, 56, 56, dtype=dtype)
    vector, norm, sums = (torch.empty(*size, device="meta") for size in ((256,), (5, 256), (2, 256)))
    launch.finish(launch.statistics(y), vector, vector, 1e-3)
    launch.apply(y, norm, y, relu=True, other=y, other_norm=norm)
    launch.gradient_sums(y, y, norm, relu=True)
    launch.gradient_sums(y, y, norm, relu=False, out=y, masked=y)
    launch.gradient(y, y, norm, sums, y, relu=True, batch=True)


def step(way):
    """A training step of a whole network: all depths have the same shapes."""
    depthwise.choose_way = lambda *_: "triton"
    depthwise.autocast_dtype = lambda x: None
    for name, operator in OPDEFS.items():
        if name.startswith("lightning_csn"):  # on the meta device, launch instead of only making the result
            operator._abstract_fn = operator._init_fn
    with torch.device("meta"):
        network = create_network("ircsn_26").bfloat16()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):  # as under autocast
            module.float()
    x = tensor(8, 64, 32, 56, 56).requires_grad_()
    with depthwise.depthwise_backend(way):
        for stage in (network.stage1, network.stage2, network.stage3, network.stage4):
            x = stage(x)
        x.float().sum().backward()


def products(B, width, T, H, W):
    """The matrix products of a block with the steps beside them, whatever sets their pace."""
    y, out = tensor(B, width, T, H, W), tensor(B, 4 * width, T, H, W)
    reduce, expand = (
        torch.empty(*size, 1, 1, 1, dtype=y.dtype, device="meta") for size in ((width, 4 * width), (4 * width, width))
    )
    norm, last = torch.empty(5, width, device="meta"), torch.empty(5, 4 * width, device="meta")
    parameters = (torch.empty(4 * width, device="meta"), torch.empty(4 * width, device="meta"), 1e-3)
    with launch_product.form("own"):
        launch_product.product_statistics(out, None, reduce)
        launch_product.product_statistics(y, norm, reduce[:, :width].clone())
        launch_product.norm_product(y, norm, reduce[:, :width].clone())
        launch_product.statistics_sum(y, norm, expand, parameters, out, last)
        launch_product.normalised_sum(y, None, expand, last, out, None)
        launch_product.normalised_sum_gradient(out, out, y, norm, expand, last, True, True)


def product_fp32():
    y, weight = tensor(8, 64, 32, 56, 56, dtype=torch.float32), torch.empty(256, 64, 1, 1, 1, device="meta")
    with launch_product.form("own"):
        launch_product.norm_product(y, torch.empty(5, 64, device="meta"), weight)


KERNELS = {
    depthwise_kernels: ("convolve", "input_gradient", "weight_gradient"),
    fused_kernels: ("statistics", "shrink_statistics", "finish_statistics", "apply", "gradient_sums", "gradient"),
    product_kernels: (
        *("product", "product_sum", "sum_gradient_sums", "sum_gradient"),
        *("product_input_gradient", "product_weight_gradient"),
    ),
}
CASES = {
    "stage1": lambda: layer(8, 64, 32, 56, 56, fused=True),
    "stage1_plain": lambda: layer(8, 64, 32, 56, 56),
    "stage2_first": lambda: layer(8, 128, 32, 56, 56, strides=(2, 2, 2), fused=True),
    "stage4": lambda: layer(8, 512, 4, 7, 7, fused=True),
    "stage1_256_pixels": lambda: layer(8, 64, 32, 64, 64),
    "contiguous": lambda: layer(8, 64, 32, 56, 56, last=False),
    "contiguous_stage2_first": lambda: layer(8, 128, 32, 56, 56, strides=(2, 2, 2), last=False),
    "space_only": lambda: layer(8, 128, 32, 56, 56, strides=(1, 2, 2)),
    "fp32": lambda: layer(8, 64, 32, 56, 56, dtype=torch.float32, fused=True),
    "fp16": lambda: layer(8, 64, 32, 56, 56, dtype=torch.float16),
    "rest": rest,
    "products_stage1": lambda: products(8, 64, 32, 56, 56),
    "products_stage2": lambda: products(8, 128, 16, 28, 28),
    "product_fp32": product_fp32,
    "step": lambda: step("fused"),
}

if __name__ == "__main__":
    tiles.processors = lambda device: 132
    tiles.chosen = choices.chosen = lambda *_: None
    for module, names in KERNELS.items():
        for name in names:
            setattr(module, name, Compiler(getattr(module, name)))
    for case in [argument for argument in sys.argv[1:] if argument[0] != "-"] or CASES:
        Compiler.seen.clear()
        print(f"# {case}")
        CASES[case]()
        print(f"# {len(Compiler.seen)} kernels")
