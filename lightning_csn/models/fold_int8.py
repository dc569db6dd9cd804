"""The folded form in 8 bits: weights by channel, activations by ranges that given clips have, uint8 between layers.

Made by `fold(network, dtype="int8", calibration=clips)`. Every convolution is one of oneDNN's quantised ones
(`torch.ops.onednn`), which takes uint8, sums in int32 and gives uint8; that ends at 0 where a ReLU would. The last of a
block adds the shortcut in the same call. What 8 bits cost in accuracy depends on the weights, and has to be measured.

Where it pays, one thread of a busy AMD EPYC (Zen 5) with VNNI, milliseconds of processor time, medians of 5, against
the packed fp32 layer: 1x1x1 from 256 to 64 channels at 16x28x28 0.84 to 3.16, the stem 0.68 to 1.91; depthwise layers
take as long in both. Whole networks, medians of 4: ir-CSN-50, a clip of 16x112x112, 27 to 70; ir-CSN-101, 32x224x224,
224 to 657.

Shapes: B clips, C channels, T frames, H x W pixels, K classes. A clip is (B, C, T, H, W).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_csn.errors import InputError
from lightning_csn.models.network import pool_and_classify

if TYPE_CHECKING:
    from lightning_csn.models.fold import FoldedBlock, FoldedConvolution, FoldedNetwork

SAMPLES = 2**14  # values of a layer and a clip by which its range is chosen
SHARES = torch.linspace(0.3, 1, 15)  # of the largest value, where a range may end


class Range(NamedTuple):
    """What a byte q stands for: scale (q - zero)."""

    scale: float
    zero: int


def choose_range(values: Tensor) -> Range:
    """The range in which a byte is nearest to the values, in the mean of squares. It holds 0, at a byte of its own.

    >>> choose_range(torch.linspace(0, 255, 1000))
    Range(scale=1.0, zero=0)
    """
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    found: list[tuple[float, Range]] = []
    for share in SHARES.tolist():
        scale = max(share * (high - low) / 255, 1e-12)
        zero = round(-share * low / scale)
        error = (torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255) - values).square().mean()
        found.append((float(error), Range(scale, zero)))
    return min(found)[1]


class Int8Convolution(nn.Module):
    """A FoldedConvolution from bytes to bytes; to `other`, bytes of the range `added`, it adds its result in place.

    other is for 1x1x1 convolutions without stride, which are the last of every bottleneck.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor
    zeros: Tensor
    _packed: tuple[torch.Size, Tensor] | None = None  # the input's shape, and the weights for it

    def __init__(self, layer: FoldedConvolution, taken: Range, given: Range) -> None:
        super().__init__()
        scales = layer.weight.abs().amax((1, 2, 3, 4)).clamp(min=1e-12) / 127
        self.register_buffer("weight", (layer.weight / scales.view(-1, 1, 1, 1, 1)).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int32))
        self.register_buffer("bias", layer.bias.detach().clone())  # type: ignore[union-attr]
        self.stride, self.padding, self.dilation = list(layer.stride), list(layer.padding), list(layer.dilation)
        self.groups, self.taken, self.given = layer.groups, taken, given

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weights, which cannot be copied; they are packed again."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def forward(self, x: Tensor, other: Tensor | None = None, added: Range | None = None) -> Tensor:
        """uint8 (1, C, T, H, W) -> uint8 (1, C', T', H', W')."""
        if other is None or added is None:
            pack, sizes = self._pack(x, 3), (self.stride, self.padding, self.dilation, self.groups)
            return torch.ops.onednn.qconv3d_pointwise(
                *(x, *self.taken, pack, self.scales, self.zeros, self.bias, *sizes),
                *(*self.given, torch.uint8, "none", [], ""),
            )
        flat, sums = (tensor[0].transpose(0, 1) for tensor in (x, other))  # (T, C, H, W), of which there is a sum
        torch.ops.onednn.qconv2d_pointwise.binary(
            *(flat, *self.taken, self._pack(flat, 2), self.scales, self.zeros, sums, self.bias),
            *([1, 1], [0, 0], [1, 1], 1, *self.given, torch.uint8, *added, "sum", 1.0, "relu", [], ""),
        )
        return other

    def _pack(self, x: Tensor, axes: int) -> Tensor:
        if self._packed is None or self._packed[0] != x.shape:
            weight = self.weight if axes == 3 else self.weight[:, :, 0]
            sizes = (self.stride[-axes:], self.padding[-axes:], self.dilation[-axes:], self.groups)
            packed = torch.ops.onednn.qconv_prepack(weight, self.scales, *self.taken, *sizes, list(x.shape))
            self._packed = (x.shape, packed)
        return self._packed[1]


class Int8Block(nn.Module):
    """A FoldedBlock from bytes to bytes."""

    def __init__(self, block: FoldedBlock, taken: Range, given: dict[nn.Module, Range]) -> None:
        super().__init__()
        layers: list[Any] = list(block.convolutions)
        if tuple(layers[-1].weight.shape[2:]) != (1, 1, 1):
            raise InputError(
                "int8 inside PyTorch is for networks of bottlenecks: oneDNN adds the shortcut to 1x1x1 convolutions "
                "alone; 'lightning-csn export --int8' does this one in 8 bits"
            )
        self.taken = taken
        shortcut: Any = block.shortcut
        self.shortcut = None if shortcut is None else Int8Convolution(shortcut, taken, given[shortcut])
        ranges = [taken, *(given[layer] for layer in layers)]
        self.convolutions = nn.ModuleList(map(Int8Convolution, layers, ranges, ranges[1:]))
        self.given = ranges[-1]

    def forward(self, x: Tensor) -> Tensor:
        """uint8 (1, C, T, H, W) -> uint8 (1, C', T', H', W'). Overwrites x."""
        y = x
        for convolution in self.convolutions[:-1]:
            y = convolution(y)
        other, added = (x, self.taken) if self.shortcut is None else (self.shortcut(x), self.shortcut.given)
        return self.convolutions[-1](y, other, added)


class Int8Network(nn.Module):
    """What `fold` gives with dtype int8: normalised clips (B, C, T, H, W) to logits (B, K), without gradients.

    architecture, options and num_classes are those of the network that it was made of. The head counts in float32.
    """

    dtype, layout = torch.uint8, "packed"

    def __init__(self, folded: FoldedNetwork, calibration: Iterable[Tensor]) -> None:
        super().__init__()
        self.architecture, self.options = folded.architecture, copy.deepcopy(folded.options)
        self.num_classes = folded.num_classes
        self.taken, given = find_ranges(folded, calibration)
        self.stem = Int8Convolution(folded.stem, self.taken, given[folded.stem])
        self.pools = folded.pool is not None
        taken, blocks = given[folded.stem], []
        for block in folded.blocks:
            blocks.append(Int8Block(block, taken, given))  # type: ignore[arg-type]
            taken = blocks[-1].given
        self.blocks = nn.Sequential(*blocks)
        self.given = taken
        self.head = copy.deepcopy(folded.head)
        self.eval()

    def forward(self, clip: Tensor) -> Tensor:
        """Logits, float32 (B, K), of normalised clips (B, C, T, H, W); features (B, num_features) without classes."""
        return self.forward_head(self.forward_features(clip))

    def forward_features(self, clip: Tensor) -> Tensor:
        """The last stage's map, float32 (B, num_features, T/8, H/32, W/32), sizes rounded up."""
        return torch.cat([self._features(one) for one in clip.split(1)])

    def _features(self, clip: Tensor) -> Tensor:
        x = (clip / self.taken.scale).add_(self.taken.zero).round_().clamp_(0, 255).to(torch.uint8)
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d))
        if self.pools:
            x = max_pool(max_pool(x, 3), 4)
        return (self.blocks(x).float() - self.given.zero) * self.given.scale

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K) of a last map (B, num_features, T, H, W); with `pre_logits` the pooled (B, num_features)."""
        classify = None if pre_logits or self.num_classes == 0 else self.head
        return pool_and_classify(x, classify, self.options["head_pooling"], self.options["head_average"])


def max_pool(x: Tensor, axis: int) -> Tensor:
    """Max pooling over 3 along an axis, stride 2, padding 1, of bytes. For them PyTorch's own takes 20 times as long.

    >>> max_pool(torch.tensor([1, 2, 9, 4, 5]), 0)
    tensor([2, 9, 5])
    """
    even, odd = (x[(slice(None),) * axis + (slice(start, None, 2),)] for start in (0, 1))
    count = odd.shape[axis]
    out = even.clone()
    left = out.narrow(axis, 0, count)  # whose neighbour to the right is odd
    torch.maximum(left, odd, out=left)
    count = even.shape[axis] - 1
    right = out.narrow(axis, 1, count)
    torch.maximum(right, odd.narrow(axis, 0, count), out=right)
    return out


@torch.no_grad()
def find_ranges(folded: FoldedNetwork, calibration: Iterable[Tensor]) -> tuple[Range, dict[nn.Module, Range]]:
    """Ranges of the clips and of each convolution's result, as calibration clips (B, C, T, H, W) have them."""
    seen: dict[nn.Module, list[Tensor]] = {}
    hooks = []

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        values = output.detach().flatten()
        some = values[:: -(-len(values) // SAMPLES)]
        seen.setdefault(layer, []).append(torch.cat([some, values.min()[None], values.max()[None]]))

    for layer in folded.modules():
        if isinstance(layer, nn.Conv3d):
            hooks.append(layer.register_forward_hook(keep))
    try:
        for batch in calibration:
            for clip in batch.split(1):
                keep(folded, None, clip)
                folded(clip)
    finally:
        for hook in hooks:
            hook.remove()
    if folded not in seen:
        raise InputError("fold: int8 needs calibration clips, (N, C, T, H, W) and normalised, got none")
    ranges = {layer: choose_range(torch.cat(values)) for layer, values in seen.items()}
    return ranges.pop(folded), ranges
