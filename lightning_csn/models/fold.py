"""The form of a network that only answers: BatchNorm inside the convolutions, and nothing that training needs.

A BatchNorm that no longer counts is a scale and a shift of every channel, and so is part of the convolution before it:
what is left are convolutions with a bias, sums and ReLUs. `fold` makes that form of any network of this package. It
takes the weights as they are at that moment: a network that is trained further has to be folded again.

On x86 processors a convolution, the sum and the ReLU after it are one call of oneDNN, which PyTorch has for what
torch.compile makes (`torch.ops.mkldnn`), on weights in the order that oneDNN likes best. ir-CSN-101, a clip of
32x224x224, fp32, two threads of an AMD EPYC (Zen 5), torch 2.15, milliseconds, medians of 5: 1392 as it was trained
(contiguous), 292 folded and packed, where memory is kept (`keep_memory`); 222 would be its multiply-adds at the
measured rate of matrix products.

Shapes: B clips, C channels, T frames, H x W pixels, K classes. A clip is (B, C, T, H, W).
"""

from __future__ import annotations

import copy
import ctypes
import logging
import platform
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_csn.errors import InputError, check_choice
from lightning_csn.models.batchnorm import is_batch_norm
from lightning_csn.models.depthwise import DepthwiseConv3d, depthwise_conv3d
from lightning_csn.models.network import Bottleneck, ResNet3D, Simple, pool_and_classify

if TYPE_CHECKING:
    from lightning_csn.models.fold_int8 import Int8Network

_log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last_3d,
    "packed": torch.channels_last_3d,  # and the weights in an order of oneDNN's own
}
KEPT_BYTES = 2**30  # freed blocks of up to this size stay with the process, and so much free memory at its end


class FoldedConvolution(nn.Conv3d):
    """A convolution with a bias; then `other` is added, if there is one, and then ReLU, if `relu`."""

    def __init__(self, weight: Tensor, bias: Tensor, like: nn.Conv3d, *, relu: bool) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
        self.stride, self.padding, self.dilation, self.groups = like.stride, like.padding, like.dilation, like.groups
        self.depthwise = isinstance(like, DepthwiseConv3d)
        self.relu = relu

    def extra_repr(self) -> str:
        """What stands between the brackets when it is printed."""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, groups={self.groups}, relu={self.relu}"

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W'); `other` has the result's shape and may be overwritten."""
        y = self._convolve_depthwise(x) if self.depthwise and x.is_cuda else self._convolve(x)
        if other is not None:
            y = y.add_(other)
        return y.relu_() if self.relu else y

    def _convolve(self, x: Tensor) -> Tensor:
        return F.conv3d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def _convolve_depthwise(self, x: Tensor) -> Tensor:
        """By the kernels of depthwise.py, for GPUs. Not yet run on one."""
        return depthwise_conv3d(x, self.weight, self.stride).add_(self.bias.view(-1, 1, 1, 1))  # type: ignore[union-attr]


class PackedConvolution(FoldedConvolution):
    """The same in one call of oneDNN, with its weights packed for the size of the first clip; no gradients."""

    _packed: tuple[torch.Size, Tensor] | None = None  # the input's shape, and the weights for it

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weights, which cannot be copied; they are packed again."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W'); `other` has the result's shape and is overwritten with it."""
        sizes = (self.padding, self.stride, self.dilation, self.groups)
        packed = self._packed
        if packed is None or packed[0] != x.shape:
            weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *sizes, list(x.shape))
            self._packed = packed = (x.shape, weight)
        if other is None:
            after = "relu" if self.relu else "none"
            return torch.ops.mkldnn._convolution_pointwise(x, packed[1], self.bias, *sizes, after, [], "")
        then = "relu" if self.relu else None
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, packed[1], self.bias, *sizes, "add", 1.0, then, [], ""
        )


class FoldedBlock(nn.Module):
    """A Simple or a Bottleneck: its convolutions one after the other, the last of which adds the shortcut."""

    def __init__(self, convolutions: Sequence[nn.Module], shortcut: nn.Module | None) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T', H', W'). May overwrite x."""
        y = x
        for convolution in self.convolutions[:-1]:
            y = convolution(y)
        return self.convolutions[-1](y, x if self.shortcut is None else self.shortcut(x))


class FoldedNetwork(nn.Module):
    """What `fold` gives: normalised clips (B, C, T, H, W) to logits (B, K), without gradients.

    architecture, options and num_classes are those of the network that it was made of. dtype is that of the
    convolutions; the head counts in float32.
    """

    def __init__(self, network: ResNet3D, *, dtype: torch.dtype, layout: str) -> None:
        super().__init__()
        self.architecture = network.architecture
        self.options = copy.deepcopy(network.options)
        self.num_classes = network.num_classes
        self.dtype, self.layout = dtype, layout
        self.stem = folded(network.stem, dtype, layout, relu=True)
        self.pool = copy.deepcopy(getattr(network.stem, "pool", None))  # not the network's own: it may be training
        blocks = (block for stage in range(1, 5) for block in getattr(network, f"stage{stage}"))
        self.blocks = nn.Sequential(*(fold_block(block, dtype, layout) for block in blocks))
        self.head = copy.deepcopy(network.head).float().requires_grad_(False)
        self.eval()

    def forward(self, clip: Tensor) -> Tensor:
        """Logits, float32 (B, K), of normalised clips (B, C, T, H, W); features (B, num_features) without classes."""
        return self.forward_head(self.forward_features(clip))

    def forward_features(self, clip: Tensor) -> Tensor:
        """The last stage's map (B, num_features, T/8, H/32, W/32), sizes rounded up."""
        if self.layout == "packed" and len(clip) > 1:  # one clip fills the caches; and none changes another's result
            return torch.cat([self.forward_features(one) for one in clip.split(1)])
        x = self.stem(clip.to(self.dtype, memory_format=LAYOUTS[self.layout]))
        if self.pool is not None:
            x = self.pool(x)
        return self.blocks(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K) of a last map (B, num_features, T, H, W); with `pre_logits` the pooled (B, num_features)."""
        classify = None if pre_logits or self.num_classes == 0 else self.head
        return pool_and_classify(x.float(), classify, self.options["head_pooling"], self.options["head_average"])


@overload
def fold(network: ResNet3D, *, dtype: Literal["fp32", "bf16"] = ..., layout: str = ...) -> FoldedNetwork: ...
@overload
def fold(
    network: ResNet3D, *, dtype: str, layout: str = ..., calibration: Iterable[Tensor] | None = ...
) -> FoldedNetwork | Int8Network: ...
def fold(
    network: ResNet3D, *, dtype: str = "fp32", layout: str = "auto", calibration: Iterable[Tensor] | None = None
) -> FoldedNetwork | Int8Network:
    """The network as it answers in eval mode, in a form that is quicker at it, on the device where the network is.

    The weights are copied: the network itself stays as it is, and what it learns later does not reach this form.

    dtype: of the convolutions, fp32, bf16 or int8. In fp32 the logits are those of the trained form but for rounding;
        int8 (models/fold_int8.py) is for bottleneck networks on x86 CPUs with VNNI, and gives other logits.
    layout: of activations and weights in memory: contiguous, channels_last, packed (one call of oneDNN for each
        convolution with what follows it; on an x86 CPU, and not for torch.export), or auto: packed where that is
        possible and channels_last elsewhere. int8 has a layout of its own.
    calibration: for int8, batches of normalised clips (B, C, T, H, W), or one, whose activations give the ranges. Real
        clips, as the network will meet them; some dozens are enough.

    Raises InputError for another dtype or layout, for packed or int8 where they are not possible, for int8 without
    clips, and for a network whose layers are not those of this package.

    >>> from lightning_csn.models.network import create_network
    >>> network = create_network("ircsn_tiny", num_classes=8).eval()
    >>> clip = torch.randn(1, 3, 8, 64, 64)
    >>> torch.allclose(fold(network)(clip), network(clip), atol=1e-5)
    True
    """
    check_choice("dtype", dtype, (*DTYPES, "int8"))
    check_choice("layout", layout, ("auto", *LAYOUTS))
    if type(network) is not ResNet3D:
        raise InputError(f"only networks of create_network can be folded, got {type(network).__name__}")
    device = network.stem.get_parameter("conv.weight").device.type
    if dtype == "int8":
        return fold_to_int8(network, device, layout, calibration)
    if calibration is not None:
        raise InputError(f"calibration clips are for dtype int8, not for {dtype}")
    reason = cannot_pack(device, DTYPES[dtype])
    if layout == "packed" and reason is not None:
        raise InputError(f"layout packed: {reason}; take auto")
    if layout == "auto":
        layout = "packed" if reason is None else "channels_last"
    return FoldedNetwork(network, dtype=DTYPES[dtype], layout=layout)


def fold_to_int8(network: ResNet3D, device: str, layout: str, calibration: Iterable[Tensor] | None) -> Int8Network:
    """`fold` with dtype int8."""
    from lightning_csn.models.fold_int8 import Int8Network

    reason = cannot_quantise(device)
    if reason is not None:
        raise InputError(
            f"dtype int8: {reason}; 'lightning-csn export --int8' writes files for OpenVINO and ONNX Runtime"
        )
    if layout != "auto":
        raise InputError(f"dtype int8 has a layout of its own, not {layout}; take auto")
    folded = FoldedNetwork(network, dtype=torch.float32, layout="channels_last")
    return Int8Network(folded, [calibration] if isinstance(calibration, Tensor) else calibration or ())


@cache
def cannot_quantise(device: str) -> str | None:
    """Why convolutions of 8 bits cannot run on a device; None if they can."""
    reason = cannot_pack(device, torch.float32)
    if reason is not None:
        return reason
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise") or not hasattr(torch.ops.onednn, "qconv3d_pointwise"):
        return "this PyTorch has no quantised convolutions of oneDNN"
    if not has_vnni():  # without it sums of two products overflow
        return "this CPU has no instructions for sums of bytes (VNNI)"
    return None


def has_vnni() -> bool:
    """Whether the CPU multiplies bytes and sums them in 32 bits."""
    names = ("_is_vnni_supported", "_is_avx512_vnni_supported")  # since torch 2.6 the second; before it the first
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


@cache
def cannot_pack(device: str, dtype: torch.dtype) -> str | None:
    """Why convolutions cannot be packed on a device; None if they can."""
    if device != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return f"weights are packed for x86 CPUs, not for {device} on {platform.machine()}"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise_"):
        return "this PyTorch was built without oneDNN"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this CPU has no instructions for bf16"
    return None


def keep_memory(keep: bool = True) -> bool:
    """Let this process keep the memory of large tensors for the next ones; whether that could be done.

    The C library (glibc) gives blocks of more than 32 MB back to the system at once, and the system clears them each
    time they are asked for: a third of the time of a 32x224x224 clip. For programs that do little else; what was once
    needed stays with the process until it ends, or until `keep` is false.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    if mallopt is None:
        return False
    block = KEPT_BYTES if keep else 2**25  # where glibc's own limit ends that grows with what is freed
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    return bool(mallopt(mmap_threshold, block)) and bool(mallopt(trim_threshold, KEPT_BYTES if keep else 2 * block))


def fold_block(block: nn.Module, dtype: torch.dtype, layout: str) -> FoldedBlock:
    """A block of a network without its BatchNorms and without drop path."""
    relu_between: Iterable[tuple[nn.Module, bool]]
    if isinstance(block, Bottleneck):
        relu_between = ((block.reduce, True), (block.interact, False), (block.convolve, True), (block.expand, True))
    elif isinstance(block, Simple):
        relu_between = ((block.convolve1, True), (block.convolve2, True))
    else:
        raise InputError(f"a block can be folded if it is a Simple or a Bottleneck, got {type(block).__name__}")
    convolutions = [
        folded(layers, dtype, layout, relu=relu)  # the last ReLU comes after the sum
        for layers, relu in relu_between
        if not isinstance(layers, nn.Identity)
    ]
    projects = not isinstance(block.shortcut, nn.Identity)
    return FoldedBlock(convolutions, folded(block.shortcut, dtype, layout, relu=False) if projects else None)


def folded(layers: nn.Module, dtype: torch.dtype, layout: str, *, relu: bool) -> FoldedConvolution:
    """The `conv` and `norm` of some layers as one convolution with a bias. Counted in float64."""
    conv: Any = layers.get_submodule("conv")
    norm: Any = layers.get_submodule("norm")
    if type(conv) not in (nn.Conv3d, DepthwiseConv3d) or not is_batch_norm(norm):
        raise InputError(
            f"a Conv3d and the BatchNorm after it can be folded, got {type(conv).__name__} and {type(norm).__name__}"
        )
    if norm.running_mean is None or norm.running_var is None:
        raise InputError("a BatchNorm without running statistics depends on the batch, and cannot be folded")
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        if conv.bias is not None:
            shift = shift + conv.bias.double() * scale
        weight = (conv.weight.double() * scale.view(-1, 1, 1, 1, 1)).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        kind = PackedConvolution if layout == "packed" else FoldedConvolution
        return kind(weight, shift.to(dtype), conv, relu=relu)


# ---------------------------------------------------------------- a form that follows its network


class QuickForm:
    """The folded form of a network for as long as the network stays as it is, and a new one once it has changed.

    A change through `.data` leaves no trace, so that whoever may have made one has to `forget`.
    """

    def __init__(self) -> None:
        self._made_of: list[Any] | None = None
        self._form: FoldedNetwork | None = None  # None too where a layer was exchanged for one that cannot be folded

    def of(self, network: nn.Module) -> FoldedNetwork | None:
        """The form of a network as it is now, where that is known to be quicker, and gives the same answers.

        None where gradients are counted, under autocast, elsewhere than on an x86 CPU, and for what
        `weights_and_versions` does not know.
        """
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return None
        made_of = weights_and_versions(network)
        if made_of is None or cannot_pack(next(network.parameters()).device.type, torch.float32) is not None:
            return None
        if made_of != self._made_of:
            form = None
            try:
                with torch.inference_mode(False):
                    form = fold(cast(ResNet3D, network))
            except InputError as error:  # a layer was exchanged for another
                _log.info("the network runs as it was trained: %s", error)
            self._made_of, self._form = made_of, form
        return self._form

    def forget(self) -> None:
        """Make the form anew when it is asked for, and keep no memory for it until then."""
        self._made_of = self._form = None


class Same:
    """Equal to another one if both hold the same thing."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        """By identity."""
        return isinstance(other, Same) and other.thing is self.thing

    __hash__ = None  # type: ignore[assignment]


def weights_and_versions(network: nn.Module) -> list[Any] | None:
    """What changes if the answers of a network do, compared by identity; None unless it is a ResNet3D in eval mode and
    fp32 through and through, without hooks that wait for what is inside, and not compiled.
    """
    if type(network) is not ResNet3D:
        return None
    made_of: list[Any] = [dict(network.options)]
    for module in network.modules():
        if module.training or module._forward_hooks or module._forward_pre_hooks or module._compiled_call_impl:
            return None
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None:
                continue
            if tensor.is_inference() or tensor.dtype not in (torch.float32, torch.int64):
                return None
            made_of.append((Same(tensor), tensor.data_ptr(), tensor._version))
    return made_of
