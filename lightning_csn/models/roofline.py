"""What a network must move and compute, counted: the floor that its speed is held against.

`python -m lightning_csn.models.roofline` prints ROOFLINE.md. Counted are elements of activations that are read from and
written to memory; weights are small beside them. An element takes 2 bytes in fp16 and bf16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_csn.models import fused
from lightning_csn.models.depthwise import DepthwiseConv3d, depthwise_backend
from lightning_csn.models.network import Bottleneck, ResNet3D, create_network

CLIP = (32, 224, 224)  # frames, height, width
COPY = 4.3e12  # bytes/s read and written by a device copy on an H200, and
MULTIPLY_ADDS = (
    30e12  # fp32 multiply-adds/s (60 TFLOP/s): both as measured or rated elsewhere, to give the times a scale
)


@dataclass(frozen=True)
class Layer:
    """A convolution, for one clip: `count` such layers in the network."""

    kind: str  # depthwise, 1x1x1 or dense
    channels_in: int
    channels: int
    sizes_in: tuple[int, int, int]
    sizes: tuple[int, int, int]
    stride: tuple[int, int, int]
    multiply_adds: int  # of the forward pass
    count: int = 1

    @property
    def elements(self) -> int:
        """Elements read and written by the forward pass; by the gradient of the input or of the weight as many."""
        return self.channels_in * math.prod(self.sizes_in) + self.channels * math.prod(self.sizes)


def layers(architecture: str, clip: Sequence[int] = CLIP, **options: Any) -> list[Layer]:
    """The convolutions of a network for one clip (frames, height, width), in order; equal ones are counted.

    options: of create_network, here and below.

    >>> [layer.count for layer in layers("ircsn_50") if layer.kind == "depthwise"]
    [3, 1, 3, 1, 5, 1, 2]
    """
    counts: dict[Layer, int] = {}
    for module, x, out in _walk(architecture, clip, nn.Conv3d, options):
        kernel = math.prod(module.kernel_size)
        kind = "depthwise" if isinstance(module, DepthwiseConv3d) else "1x1x1" if kernel == 1 else "dense"
        operations = out.numel() * kernel * module.in_channels // module.groups
        sizes_in, sizes = tuple(x.shape[2:]), tuple(out.shape[2:])
        layer = Layer(kind, x.shape[1], out.shape[1], sizes_in, sizes, module.stride, operations)
        counts[layer] = counts.get(layer, 0) + 1
    return [Layer(**{**vars(layer), "count": count}) for layer, count in counts.items()]


def depthwise_layers(architecture: str, clip: Sequence[int] = CLIP, **options: Any) -> list[Layer]:
    """The depthwise convolutions among `layers`."""
    return [layer for layer in layers(architecture, clip, **options) if layer.kind == "depthwise"]


@dataclass(frozen=True)
class Traffic:
    """Elements that the forward pass in training reads and writes for one clip, with its BatchNorm, ReLU and sums."""

    eager: int
    library: int  # fused, with the products of the library
    own: int  # fused, with our own products where memory sets their pace, as `fused.memory_bound` has it at 16 bits
    floor: int  # what moves at least, by running statistics and with all products our own

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.eager + other.eager,
            self.library + other.library,
            self.own + other.own,
            self.floor + other.floor,
        )


def traffic(architecture: str, clip: Sequence[int] = CLIP, **options: Any) -> Traffic:
    """Of all bottlenecks of a network: what stride 1 costs is in fused.FORWARD, here with strides and projections."""
    total = Traffic(0, 0, 0, 0)
    for block, x, out in _walk(architecture, clip, Bottleneck, options):
        places, places_out = math.prod(x.shape[2:]), math.prod(out.shape[2:])  # P before and Q after the stride
        width = out.shape[1] // 4
        before, after = width * places, width * places_out
        reduce, depthwise, expand = x.shape[1] * places + before, before + after, 5 * after
        own_reduce, own_inside, own_expand = (
            fused.memory_bound(*channels, 2) for channels in ((x.shape[1], width), (width, width), (width, 4 * width))
        )
        library_sum = 2 * after + expand + 4 * after + 12 * after  # with the activation before and the statistics
        total += Traffic(
            eager=reduce + 5 * before + depthwise + 5 * after + expand + 32 * after,
            library=reduce + before + depthwise + library_sum,
            own=reduce + (not own_reduce) * before + depthwise + (10 * after if own_expand else library_sum),
            floor=reduce + depthwise + 9 * after,
        )
        if not isinstance(block.interact, nn.Identity):
            passes = 2 * before + 3 * before  # eager without a ReLU after, ours with the activation before
            total += Traffic(passes, passes, 2 * before if own_inside else passes, 2 * before)
        if not isinstance(block.shortcut, nn.Identity):
            projection = x.shape[1] * places_out + 4 * after
            copied = 2 * x.shape[1] * places_out if places_out < places else 0  # the places of a stride, side by side
            statistics = projection + copied + 4 * after
            total += Traffic(projection + 12 * after, statistics, statistics, projection)
    return total


def _walk(
    architecture: str, clip: Sequence[int], kind: type[nn.Module], options: Mapping[str, Any]
) -> Iterator[tuple[Any, Any, Any]]:
    """Modules of a kind, with the input and the output that they have for one clip, without computing anything."""
    found: list[tuple[Any, Any, Any]] = []
    with torch.device("meta"), torch.no_grad(), depthwise_backend("reference"):
        network: ResNet3D = create_network(architecture, **options).eval()
        for module in network.modules():
            if isinstance(module, kind):
                module.register_forward_hook(lambda module, inputs, out: found.append((module, inputs[0], out)))
        network(torch.empty(1, 3, *clip))
    yield from found


def page() -> str:
    """ROOFLINE.md."""
    lines = [
        "# Roofline",
        "",
        "What the networks must move and compute for one clip of 32x224x224 at 2 bytes per element (bf16, fp16),",
        "counted by `lightning_csn.models.roofline`, which printed this page. **Not yet measured on a GPU:** no time",
        f"of a GPU here is one that anybody measured. The times are bytes over {COPY / 1e12} TB/s and multiply-adds"
        f" over {MULTIPLY_ADDS / 1e12:.0f} T/s, an H200's",
        "rates as reported elsewhere, so that the numbers have a scale.",
        "",
        "## Depthwise layers",
        "",
        "A floor is the longer of the two times; the gradients of input and weight have the same one each.",
        "",
        "| channels | T, H, W | output | layers in ir-CSN-50 / 101 / 152 | MB | M multiply-adds"
        " | memory µs | arithmetic µs | floor µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    networks = [depthwise_layers(name) for name in ("ircsn_50", "ircsn_101", "ircsn_152")]
    for same in zip(*networks, strict=True):
        layer = same[0]
        memory, arithmetic = 2 * layer.elements / COPY, layer.multiply_adds / MULTIPLY_ADDS
        sizes_in, sizes = (", ".join(map(str, three)) for three in (layer.sizes_in, layer.sizes))
        counts = " / ".join(str(each.count) for each in same)
        lines.append(
            f"| {layer.channels} | {sizes_in} | {sizes} | {counts} | {2 * layer.elements / 1e6:.2f}"
            f" | {layer.multiply_adds / 1e6:.1f} | {memory * 1e6:.1f} | {arithmetic * 1e6:.1f}"
            f" | {max(memory, arithmetic) * 1e6:.1f} |"
        )
    totals = " / ".join(f"{sum(2 * layer.elements * layer.count for layer in each) / 1e6:.0f}" for each in networks)
    lines += [
        "",
        f"All depthwise layers of ir-CSN-50 / 101 / 152: {totals} MB forward.",
        "",
        "## Whole networks",
        "",
        "The bottlenecks' forward pass in training. Eager: every operation a pass of its own. Library: fused blocks",
        'with the products of the library. Fused: what `depthwise_backend("fused")` runs at 16 bits, with products of',
        f"ours where memory sets their pace (fewer than {fused.BALANCE} multiply-adds a byte, the first two stages).",
        "Floor: with all products ours, and without statistics.",
        "",
        "| network | eager GB | library GB | fused GB | floor GB | eager ms | library ms | fused ms | floor ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("ircsn_50", "ircsn_101", "ircsn_152", "ipcsn_152"):
        each = traffic(name)
        elements = (each.eager, each.library, each.own, each.floor)
        sizes = " | ".join(f"{2 * number / 1e9:.2f}" for number in elements)
        times = " | ".join(f"{2 * number / COPY * 1e3:.2f}" for number in elements)
        lines.append(f"| {name} | {sizes} | {times} |")
    lines += [
        "",
        "## One bottleneck, pass by pass",
        "",
        "Reads + writes at stride 1, in units of w P elements (w channels inside the block, 4 w outside, P places).",
        "Ours has two forms: with the library's matrix products, or with products that take in the steps beside them.",
        *_passes("forward, training", fused.FORWARD),
        "",
        "If every product were computed once, and took in its steps, forward would be 24 w: it pays to compute the",
        "widest tensor twice, once for its statistics alone, and never to write it.",
        *_passes("backward", fused.BACKWARD),
        "",
        f"Kept for the way back: {fused.STORED.eager} w P eager, {fused.STORED.own} w P in both of ours, besides the"
        " input.",
        *_passes("inference, running statistics", fused.INFERENCE),
        "",
        "## A cold first step",
        "",
        "A fused training step of any depth compiles 28 kernels, since all layers of CSN share them: for compute",
        "capability 9.0 in 18 s of one core, as measured once on a virtual AMD EPYC (Triton 3.9, bf16, B = 8; shared",
        "with others it took 38 s there). Each kernel is held against its definition with tensors that need no other",
        "one. Measure it on any machine:",
        "`TRITON_ALWAYS_COMPILE=1 python tests/compile_kernels.py --seconds step`.",
        "",
        "The partial statistics of the depthwise convolution, written and read once, are 0.5 to 6.2% of the bytes of",
        "its input and output at 8 to 256 clips. Up to 128 programs for each 32 channels merge them, and then one.",
        "",
    ]
    return "\n".join(lines)


def _passes(name: str, passes: Sequence[fused.Pass]) -> list[str]:
    rows = [f"| {step} | {eager} | {library} | {own} |" for step, eager, library, own in passes]
    sums = "| sum | {} | {} | {} |".format(*fused.total(passes))
    return ["", f"| {name} | eager | library's products | own products |", "|---|---|---|---|", *rows, sums]


if __name__ == "__main__":
    print(page(), end="")
