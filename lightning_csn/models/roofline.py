"""What a network moves and computes, counted: the floor, of one cut into passes, that its speed is held against.

`python -m lightning_csn.models.roofline` prints ROOFLINE.md. Counted are elements of activations that are read from and
written to memory; weights are small beside them. An element takes 2 bytes in fp16 and bf16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_csn.models import fused
from lightning_csn.models.depthwise import DepthwiseConv3d, depthwise_backend
from lightning_csn.models.network import Bottleneck, ResNet3D, Simple, create_network

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
    for _, module, x, out in _walk(architecture, clip, nn.Conv3d, options):
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
class Product:
    """A 1x1x1 convolution of a block that can be fused, at the sizes (T, H, W) where it runs."""

    stage: int
    role: str  # reduce, interact or expand
    channels_in: int
    channels: int
    sizes: tuple[int, int, int]


def products(architecture: str, clip: Sequence[int] = CLIP, **options: Any) -> list[Product]:
    """The products of all fused blocks, each kind once, in order. Shortcuts are not among them: the library makes them.

    >>> [(each.stage, each.role, each.channels_in, each.channels) for each in products("ircsn_50")][:3]
    [(1, 'reduce', 64, 64), (1, 'expand', 64, 256), (1, 'reduce', 256, 64)]
    """
    found: dict[Product, None] = {}
    for name, block, x, out in _walk(architecture, clip, Bottleneck, options):
        if isinstance(block.convolve.conv, DepthwiseConv3d):
            for role, sizes in (("reduce", x.shape[2:]), ("interact", x.shape[2:]), ("expand", out.shape[2:])):
                layers = getattr(block, role)
                if not isinstance(layers, nn.Identity):
                    width_in, width = layers.conv.in_channels, layers.conv.out_channels
                    found[Product(int(name[len("stage")]), role, width_in, width, tuple(sizes))] = None
    return list(found)


def kind_of_blocks(architecture: str) -> str:
    """ir or ip, by whether channels interact before the depthwise convolution.

    >>> kind_of_blocks("ircsn_50"), kind_of_blocks("ipcsn_152")
    ('ir', 'ip')
    """
    return "ip" if any(product.role == "interact" for product in products(architecture)) else "ir"


def stages_of(all_products: Sequence[Product], own: Callable[[Product], bool]) -> str:
    """The stages whose products are our own, with their roles where it is not all of them; "" if none is.

    >>> stages_of(products("ipcsn_50"), memory_bound)
    '1, 2, 3 (interact)'
    """
    stages = []
    for stage in sorted({product.stage for product in all_products}):
        roles: dict[str, list[bool]] = {}
        for product in all_products:
            if product.stage == stage:
                roles.setdefault(product.role, []).append(own(product))
        if all(map(all, roles.values())):
            stages.append(str(stage))
        elif any(map(any, roles.values())):
            named = [role if all(each) else f"part of {role}" for role, each in roles.items() if any(each)]
            stages.append(f"{stage} ({' and '.join(named)})")
    return ", ".join(stages)


def memory_bound(product: Product) -> bool:
    """Whether our own kernels make a product at 16 bits, where nothing was measured."""
    return fused.memory_bound(product.channels_in, product.channels, 2)


@dataclass(frozen=True)
class Traffic:
    """Elements that the blocks read and write for one clip in training, with their BatchNorm, ReLU and sums.

    The stem, the pooling and the head are not counted. Where no fused form is (blocks without a depthwise convolution)
    library and own are eager.
    """

    eager: int
    library: int  # fused, with the products of the library
    own: int  # fused, with our own products where memory sets their pace, as `fused.memory_bound` has it at 16 bits
    floor: int  # the floor of this cut into passes: all products our own, forward by running statistics

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.eager + other.eager,
            self.library + other.library,
            self.own + other.own,
            self.floor + other.floor,
        )


def traffic(architecture: str, clip: Sequence[int] = CLIP, **options: Any) -> Traffic:
    """Of the forward pass: what stride 1 costs is in fused.FORWARD, here with strides and projections."""
    walked = _walk(architecture, clip, Bottleneck | Simple, options)
    return sum((forward_traffic(block, x, out) for _, block, x, out in walked), start=NOTHING)


def traffic_back(architecture: str, clip: Sequence[int] = CLIP, **options: Any) -> Traffic:
    """Of the way back: what stride 1 costs is in fused.BACKWARD, here with strides and projections."""
    walked = _walk(architecture, clip, Bottleneck | Simple, options)
    return sum((backward_traffic(block, x, out) for _, block, x, out in walked), start=NOTHING)


NOTHING = Traffic(0, 0, 0, 0)


def _tensors(block: Any, x: Tensor, out: Tensor) -> tuple[int, int, int, int, int]:
    """Elements of a block's input, of its places that a shortcut takes, inside before and after the stride, of out."""
    places, places_out = math.prod(x.shape[2:]), math.prod(out.shape[2:])
    width = out.shape[1] // block.expansion
    return x.shape[1] * places, x.shape[1] * places_out, width * places, width * places_out, out.shape[1] * places_out


def _owns(block: Bottleneck, x: Tensor, out: Tensor) -> tuple[bool, bool, bool]:
    """Whether reduce, interact and expand are our own products."""
    width = out.shape[1] // 4
    reduce, interact, expand = (
        fused.memory_bound(*channels, 2) for channels in ((x.shape[1], width), (width, width), (width, 4 * width))
    )
    return reduce, interact, expand


def forward_traffic(block: Any, x: Tensor, out: Tensor) -> Traffic:
    """Of a block with this input and output, forward."""
    given, taken, before, after, whole = _tensors(block, x, out)
    if isinstance(block, Simple):  # both convolutions; BatchNorm and ReLU of the first; BatchNorm, the sum, the ReLU
        eager = given + after + 5 * after + 2 * after + (3 + 3 + 2) * after
        total = Traffic(eager, eager, eager, given + after + 3 * after)
    else:
        own_reduce, own_interact, own_expand = _owns(block, x, out)
        reduce, depthwise, expand = given + before, before + after, 5 * after
        library_sum = 2 * after + expand + 4 * after + 12 * after  # with the activation before and the statistics
        total = Traffic(
            eager=reduce + 5 * before + depthwise + 5 * after + expand + 32 * after,
            library=reduce + before + depthwise + library_sum,
            own=reduce + (not own_reduce) * before + depthwise + (10 * after if own_expand else library_sum),
            floor=reduce + depthwise + 9 * after,
        )
        if not isinstance(block.interact, nn.Identity):
            passes = 2 * before + 3 * before  # eager without a ReLU after, ours with the activation before
            total += Traffic(passes, passes, 2 * before if own_interact else passes, 2 * before)
    if not isinstance(block.shortcut, nn.Identity):
        projection = taken + whole
        copied = 2 * taken if taken < given else 0  # the places of a stride, side by side
        statistics = projection + copied + whole
        total += Traffic(projection + 3 * whole, statistics, statistics, projection)
    return total if _fuses(block) else Traffic(total.eager, total.eager, total.eager, total.floor)


def backward_traffic(block: Any, x: Tensor, out: Tensor) -> Traffic:
    """Of a block with this input and output, on the way back."""
    given, taken, before, after, whole = _tensors(block, x, out)
    # The gradient of the input is added to the shortcut's: in its last pass, or where the stride took its places.
    added = given if taken == given else 3 * taken
    if isinstance(block, Simple):
        first, second = 2 * (given + after), 4 * after  # both gradients of both convolutions
        eager = (3 + 2 + 3) * after + second + (3 + 2 + 3) * after + first + 3 * given
        total = Traffic(eager, eager, eager, (4 + 3) * after + second + (2 + 3) * after + first + added)
    else:
        _, own_interact, own_expand = _owns(block, x, out)
        depthwise, reduce = 2 * (before + after), 2 * (given + before)  # both gradients of each
        own_sum = (13 + 9 + 11 + 3) * after  # the rows of fused.BACKWARD from the last to the depthwise's ReLU
        library_sum = (7 + 16 + 12 + 10 + 2 + 3) * after
        rest = depthwise + (2 + 3) * before + reduce + added
        total = Traffic(
            eager=(12 + 8 + 12 + 10 + 5 + 3) * after + depthwise + (5 + 3) * before + reduce + 3 * given,
            library=library_sum + rest,
            own=(own_sum if own_expand else library_sum) + rest,
            floor=own_sum + rest,
        )
        if not isinstance(block.interact, nn.Identity):
            own, library = (5 + 3) * before, (2 + 4 + 2 + 3) * before  # as those of expand, with w for 4 w
            total += Traffic((4 + 2 + 3) * before, library, own if own_interact else library, own)
    if not isinstance(block.shortcut, nn.Identity):
        norm, weight = (2 + 3) * whole, whole + taken
        ours = norm + weight + whole + taken
        total += Traffic(norm + weight + whole + given, ours, ours, ours)  # eager with zeros between strides
    return total if _fuses(block) else Traffic(total.eager, total.eager, total.eager, total.floor)


def _fuses(block: Any) -> bool:
    return isinstance(block, Bottleneck) and isinstance(block.convolve.conv, DepthwiseConv3d)


def _walk(
    architecture: str, clip: Sequence[int], kind: type[nn.Module] | UnionType, options: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any, Any]]:
    """Modules of a kind by name, with input and output that they have for one clip, without computing anything."""
    found: list[tuple[str, Any, Any, Any]] = []
    with torch.device("meta"), torch.no_grad(), depthwise_backend("reference"):
        network: ResNet3D = create_network(architecture, **options).eval()
        for name, module in network.named_modules():
            if isinstance(module, kind):
                module.register_forward_hook(
                    lambda module, inputs, out, name=name: found.append((name, module, inputs[0], out))
                )
        network(torch.empty(1, 3, *clip))
    yield from found


def page() -> str:
    """ROOFLINE.md."""
    lines = [
        "# Roofline",
        "",
        "What the networks move and compute for one clip of 32x224x224 at 2 bytes per element (bf16, fp16),",
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
        "All blocks, without stem, pooling and head. Eager: every operation a pass of its own. Library: fused blocks",
        'with the products of the library. Fused: what `depthwise_backend("fused")` runs at 16 bits, with products of',
        f"ours where memory sets their pace (fewer than {fused.BALANCE} multiply-adds a byte): those of the stages",
        " and ".join(f"{stages_of(products(name), memory_bound)} in {kind}" for name, kind in ROWS) + ".",
        "Floor of this cut into passes: with all products ours, and forward without statistics. All times here are",
        "those of the bytes alone, the floor's too; arithmetic may take longer.",
        *_networks("forward pass in training", traffic),
        *_networks("whole training step, forward and backward", lambda name: traffic(name) + traffic_back(name)),
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
        "capability 9.0 in 14 s of one core, as measured once on a virtual AMD EPYC (Triton 3.9, bf16, B = 8; shared",
        "with others it took 38 s there). Each kernel is held against its definition with tensors that need no other",
        "one. Measure it on any machine:",
        "`TRITON_ALWAYS_COMPILE=1 python tests/compile_kernels.py --seconds step`.",
        "",
        "The partial statistics of the depthwise convolution, written and read once, are 0.5 to 6.2% of the bytes of",
        "its input and output at 8 to 256 clips. Up to 128 programs for each 32 channels merge them, and then one.",
        "",
        "## Starting a step",
        "",
        "A GPU waits where the processor takes longer to start kernels than they run. A fused block of ir-CSN,",
        "forward and backward with own products, starts 16 kernels of ours beside PyTorch's, in 0.70 ms of one core:",
        "measured on a virtual AMD EPYC (Zen 5, Triton 3.9), with tiny tensors on the CPU and a driver that launches",
        "nothing. It was 1.16 ms when Triton found by itself what it had compiled (50 us for a depthwise launch, 14",
        "now), and each BatchNorm moved its running statistics alone. 50 blocks are 35 ms; the bytes of 8 clips of",
        "ir-CSN-152 take 17 ms. So a GPU at the floor is kept busy by 17 clips or more, and by fewer in a CUDA graph,",
        "which is one launch: `fit --model.compile reduce-overhead`. Measure it on any machine:",
        "`python tests/host_time.py`.",
        "",
    ]
    return "\n".join(lines)


ROWS = (("ircsn_152", "ir-CSN"), ("ipcsn_152", "ip-CSN"))


def _networks(title: str, count: Callable[[str], Traffic]) -> list[str]:
    columns = ("eager", "library", "fused", "floor")
    names = (*(f"{column} GB" for column in columns), *(f"{column}, memory ms" for column in columns))
    rows = ["", f"| {title} | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for name in ("ircsn_50", "ircsn_101", "ircsn_152", "ipcsn_152"):
        each = count(name)
        elements = (each.eager, each.library, each.own, each.floor)
        sizes = " | ".join(f"{2 * number / 1e9:.2f}" for number in elements)
        times = " | ".join(f"{2 * number / COPY * 1e3:.2f}" for number in elements)
        rows.append(f"| {name} | {sizes} | {times} |")
    return rows


def _passes(name: str, passes: Sequence[fused.Pass]) -> list[str]:
    rows = [f"| {step} | {eager} | {library} | {own} |" for step, eager, library, own in passes]
    sums = "| sum | {} | {} | {} |".format(*fused.total(passes))
    return ["", f"| {name} | eager | library's products | own products |", "|---|---|---|---|", *rows, sums]


if __name__ == "__main__":
    print(page(), end="")
