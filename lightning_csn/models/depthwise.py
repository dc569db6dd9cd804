"""The depthwise 3x3x3 convolution: one function, its definition, a fast way on GPUs, and fast gradients on CPUs.

`depthwise_conv3d` runs its definition, `reference`, except on CUDA devices, where it runs the Triton kernels of
depthwise_kernels.py, and in training on x86 CPUs, where both gradients are made of what oneDNN is quick at. All that is
registered with PyTorch as operators of their own (`lightning_csn::depthwise_conv3d` and its two gradients), so that
torch.compile, torch.export, autocast, activation checkpointing and the FLOP counter see one operator instead of a
kernel. Not yet measured on a GPU.

Shapes: x (B, C, T, H, W), weight (C, 1, 3, 3, 3), out (B, C, T', H', W') with T' = ceil(T / stride in time) and so on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from lightning_csn.errors import InputError

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "taps", "triton", "fused")
ONEDNN_DTYPES = (torch.float32, torch.bfloat16)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # fp64 for tests; sums are fp32 else

_backend = os.environ.get("LIGHTNING_CSN_DEPTHWISE", "auto")
_reported: set[str] = set()


def reference(x: Tensor, weight: Tensor, stride: int | Sequence[int] = 1) -> Tensor:
    """The definition of `depthwise_conv3d`."""
    return F.conv3d(x, weight, None, _triple(stride), 1, 1, weight.shape[0])


def input_gradient(grad: Tensor, weight: Tensor, sizes: Sequence[int], stride: int | Sequence[int] = 1) -> Tensor:
    """The gradient of x, of sizes (T, H, W), from that of the output: a convolution too, with the kernel turned round.

    With a stride, zeros stand between the places of the gradient. A CPU is many times quicker at it than at what
    PyTorch takes for the gradient: `weight_gradient` has the figures.
    """
    step_t, step_h, step_w = strides = _triple(stride)
    last = channels_last(grad)
    if strides != (1, 1, 1):
        spread = _empty(grad, sizes, last).zero_()
        spread[:, :, ::step_t, ::step_h, ::step_w] = grad
        grad = spread
    return reference(grad, weight.flip(2, 3, 4)).contiguous(memory_format=memory_format(last))


def weight_gradient(grad: Tensor, x: Tensor, stride: int | Sequence[int] = 1) -> Tensor:
    """The gradient of the weight, one tap in time after the other: each is that of a Conv2d over frames.

    A CPU has a good gradient of depthwise Conv2d and a poor one of Conv3d. The 16 depthwise layers of ir-CSN-50, two
    clips of 16x112x112, fp32, milliseconds of processor time on a busy AMD EPYC (Zen 5), medians of 7, against what
    PyTorch does: the weights' gradients 23 against 121 contiguous and 68 in channels_last_3d, the inputs' 10 against
    145 and 70.
    """
    step_t, step_h, step_w = _triple(stride)
    channels = x.shape[1]
    x, grad = (tensor.permute(0, 2, 3, 4, 1) for tensor in (x, grad))  # (B, T, H, W, C)
    taps = []
    for k in range(3):  # the tap that sees frame step_t * t + k - 1 at frame t of the output
        first, end = int(k == 0), min((x.shape[1] - k) // step_t + 1, grad.shape[1])
        if end <= first:  # it sees nothing but padding
            taps.append(x.new_zeros(channels, 1, 3, 3))
            continue
        start = step_t * first + k - 1
        seen = x[:, start : start + step_t * (end - first - 1) + 1 : step_t]
        frames, grads = (
            tensor.flatten(0, 1).contiguous().permute(0, 3, 1, 2) for tensor in (seen, grad[:, first:end])
        )  # (B T, C, H, W), channels last
        shape = x.new_empty(channels, 1, 3, 3)
        taps.append(
            torch.ops.aten.convolution_backward(
                *(grads, frames, shape, None, (step_h, step_w), (1, 1), (1, 1), False, (0, 0), channels),
                (False, True, False),
            )[1]
        )
    return torch.stack(taps, 2)


def depthwise_conv3d(x: Tensor, weight: Tensor, stride: int | Sequence[int] = 1) -> Tensor:
    """Each channel convolved with its own 3x3x3 kernel, padding 1: (B, C, T, H, W) -> (B, C, T', H', W').

    stride: 1 or 2, or three numbers for T, H and W. T' = ceil(T / stride), and so on.

    The result has the layout of x: channels_last_3d stays so. The gradient of the weight is a sum of partial sums in a
    fixed order, never of atomic additions, so it is the same to the bit each time (on one kind of GPU; the number of
    multiprocessors decides how many partial sums there are). Gradients of gradients are there too.

    Runs the Triton kernels on CUDA devices and `reference` elsewhere, on x86 CPUs with gradients of its own
    (`input_gradient`, `weight_gradient`); `depthwise_backend` chooses otherwise. The way is reported once through
    logging, and so is each reason for which the kernels could not be used.

    >>> x = torch.ones(1, 2, 4, 4, 4)
    >>> depthwise_conv3d(x, torch.ones(2, 1, 3, 3, 3))[0, 0, 1, 1]  # inner places see 27 ones, at the border fewer
    tensor([18., 27., 27., 18.])
    >>> depthwise_conv3d(x, torch.ones(2, 1, 3, 3, 3), stride=(1, 2, 2)).shape
    torch.Size([1, 2, 4, 2, 2])
    """
    strides = _triple(stride)
    way = choose_way(_backend, x.device, x.dtype, x.ndim, tuple(weight.shape[1:]), strides)
    if way == "reference" or (way == "taps" and not learns(x, weight)):
        return reference(x, weight, strides)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight = x.to(dtype), weight.to(dtype)
    return torch.ops.lightning_csn.depthwise_conv3d(x, weight, strides)


@contextmanager
def depthwise_backend(name: str) -> Iterator[None]:
    """Choose the way inside a `with` block.

    "reference": nn.Conv3d. "taps": nn.Conv3d with the gradients of `input_gradient` and `weight_gradient`, for training
    on a CPU. "triton": the kernels. "fused": the kernels, and whole bottleneck blocks made of them as well (fused.py).
    "auto": "triton" on CUDA devices, "taps" on x86 CPUs, "reference" elsewhere; and "fused" in eager training in
    channels_last_3d where `lightning-csn benchmark train --tune` found that faster, with the same kind of GPU, of
    blocks and of numbers. Fused blocks have no gradients of gradients. Outside of any block "auto" holds, or what the
    environment variable LIGHTNING_CSN_DEPTHWISE says.

    The kernels run on the CPU in Triton's interpreter only: TRITON_INTERPRET=1 before Triton is imported. A choice
    holds for the whole process, threads included, because the backward pass runs in other threads. With activation
    checkpointing, which computes the forward pass again, the backward pass belongs into the block too.
    """
    global _backend
    if name not in BACKENDS:
        raise InputError(f"no backend {name!r}; there are: {', '.join(BACKENDS)}")
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


class DepthwiseConv3d(nn.Conv3d):
    """nn.Conv3d with one 3x3x3 kernel per channel, padding 1 and no bias; computed by `depthwise_conv3d`."""

    def __init__(self, width: int, stride: int | tuple[int, int, int] = 1) -> None:
        super().__init__(width, width, 3, stride, 1, groups=width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, T', H', W')."""
        return depthwise_conv3d(x, self.weight, self.stride)


@torch.compiler.assume_constant_result  # a compiled function logs while it is traced, and is not broken by it
def choose_way(
    backend: str,
    where: torch.device | str,
    dtype: torch.dtype,
    ndim: int,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
) -> str:
    """'reference', 'taps' or 'triton', reported once; `reference` with a reason where Triton was to be expected."""
    device = torch.device(where).type
    if backend not in BACKENDS:
        raise InputError(f"no backend {backend!r} (LIGHTNING_CSN_DEPTHWISE); there are: {', '.join(BACKENDS)}")
    quick = device == "cpu" and dtype in ONEDNN_DTYPES and onednn() and ndim == 5 and kernel == (1, 3, 3, 3)
    if backend == "taps" or (backend == "auto" and quick):
        level = logging.INFO if backend == "taps" else logging.DEBUG
        report(level, f"depthwise convolution on {device}: nn.Conv3d, gradients by taps")
        return "taps"
    if backend == "reference" or (backend == "auto" and device != "cuda"):
        report(logging.DEBUG, f"depthwise convolution on {device}: nn.Conv3d")
        return "reference"
    reason = unsupported(where, dtype, ndim, kernel, strides)
    if reason is not None:
        report(logging.WARNING, f"depthwise convolution: {reason}; nn.Conv3d runs instead")
        return "reference"
    report(logging.INFO, f"depthwise convolution on {device}: Triton kernels")
    return "triton"


@cache
def onednn() -> bool:
    """Whether PyTorch convolves with oneDNN on an x86 CPU, on which the gradients by taps were measured."""
    return torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")


def learns(x: Tensor, weight: Tensor) -> bool:
    """Whether gradients may be asked for; never of a program that is traced to be kept, and may run elsewhere."""
    kept = torch.jit.is_tracing() or getattr(torch.compiler, "is_exporting", lambda: False)()  # of torch 2.7
    return not kept and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


@cache
def unsupported(
    where: torch.device | str, dtype: torch.dtype, ndim: int, kernel: tuple[int, ...], strides: tuple[int, ...]
) -> str | None:
    """Why the Triton kernels cannot run; None if they can. where: "cuda" is the current GPU."""
    device = torch.device(where).type
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < (3, 3):
        return f"Triton {version} knows no tuples, 3.3 does (it comes with torch 2.7)"
    if device != "cuda" and not (device == "cpu" and interpreted()):
        return f"Triton kernels run on cuda, not on {device} (on the CPU: with TRITON_INTERPRET=1, for tests)"
    if device == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(where) < (8, 0):
        return "Triton kernels need a GPU of compute capability 8.0 or more"
    if dtype not in DTYPES:
        return f"Triton kernels take {', '.join(str(known)[6:] for known in DTYPES)}, not {str(dtype)[6:]}"
    if ndim != 5 or tuple(kernel) != (1, 3, 3, 3):
        return f"Triton kernels take 5 dimensions and kernels (1, 3, 3, 3), not {ndim} and {tuple(kernel)}"
    if not all(stride in (1, 2) for stride in strides) or strides[1] != strides[2]:
        return f"Triton kernels take strides of 1 or 2, the same for H and W, not {tuple(strides)}"
    return None


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would cast a convolution's input to; None outside of autocast."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(x.device.type)


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU."""
    from lightning_csn.models import launch

    return launch.INTERPRETED


@torch.compiler.assume_constant_result
def report(level: int, message: str) -> None:
    """Log a message, once."""
    if message not in _reported:
        _reported.add(message)
        logger.log(level, message)


def _triple(stride: int | Sequence[int]) -> tuple[int, int, int]:
    if isinstance(stride, int):
        return (stride, stride, stride)
    first, second, third = stride
    return (first, second, third)


# The operators. Each gradient is made of the same three, so gradients of gradients need nothing more. They run the
# kernels where those were chosen, and else the functions above.


def by_kernels(x: Tensor, stride: Sequence[int]) -> bool:
    """Whether an operator runs the Triton kernels."""
    return choose_way(_backend, x.device, x.dtype, x.ndim, (1, 3, 3, 3), tuple(stride)) == "triton"


def channels_last(x: Tensor) -> bool:
    """Whether the channels of x lie side by side in memory."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def memory_format(last: bool) -> torch.memory_format:
    """The layout by its name in PyTorch."""
    return torch.channels_last_3d if last else torch.contiguous_format


def output_sizes(sizes: Sequence[int], strides: Sequence[int]) -> list[int]:
    """(T', H', W') of (T, H, W).

    >>> output_sizes((5, 8, 7), (1, 2, 2))
    [5, 4, 4]
    """
    return [(size - 1) // stride + 1 for size, stride in zip(sizes, strides, strict=True)]


def _empty(like: Tensor, sizes: Sequence[int], last: bool) -> Tensor:
    return torch.empty(
        (like.shape[0], like.shape[1], *sizes), dtype=like.dtype, device=like.device, memory_format=memory_format(last)
    )


@torch.library.custom_op("lightning_csn::depthwise_conv3d", mutates_args=())
def _forward(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    if not by_kernels(x, stride):
        return reference(x, weight, stride).contiguous(memory_format=memory_format(channels_last(x)))
    from lightning_csn.models import launch

    out = _forward_fake(x, weight, stride)
    launch.convolve(x, weight, out, stride)
    return out


@_forward.register_fake
def _forward_fake(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    if x.shape[1] != weight.shape[0] or x.dtype != weight.dtype or x.device != weight.device:
        raise ValueError(
            f"x ({tuple(x.shape)}, {x.dtype}, {x.device}) and weight ({tuple(weight.shape)}, {weight.dtype},"
            f" {weight.device}) must have the same channels, dtype and device"
        )
    return _empty(x, output_sizes(x.shape[2:], stride), channels_last(x))


@torch.library.custom_op("lightning_csn::depthwise_conv3d_input_gradient", mutates_args=())
def _input_gradient(grad: Tensor, weight: Tensor, sizes: Sequence[int], stride: Sequence[int]) -> Tensor:
    if not by_kernels(grad, stride):
        return input_gradient(grad, weight, sizes, stride)
    from lightning_csn.models import launch

    out = _input_gradient_fake(grad, weight, sizes, stride)
    launch.input_gradient(grad, weight, out, stride)
    return out


@_input_gradient.register_fake
def _input_gradient_fake(grad: Tensor, weight: Tensor, sizes: Sequence[int], stride: Sequence[int]) -> Tensor:
    return _empty(grad, sizes, channels_last(grad))


@torch.library.custom_op("lightning_csn::depthwise_conv3d_weight_gradient", mutates_args=())
def _weight_gradient(grad: Tensor, x: Tensor, stride: Sequence[int]) -> Tensor:
    if not by_kernels(x, stride):
        return weight_gradient(grad, x, stride)
    from lightning_csn.models import launch

    return launch.weight_gradient(grad, x, stride).to(x.dtype).view(-1, 1, 3, 3, 3)


@_weight_gradient.register_fake
def _weight_gradient_fake(grad: Tensor, x: Tensor, stride: Sequence[int]) -> Tensor:
    return x.new_empty((x.shape[1], 1, 3, 3, 3))


def _forward_context(ctx: Any, inputs: tuple[Tensor, Tensor, Sequence[int]], output: Tensor) -> None:
    x, weight, ctx.stride = inputs
    ctx.sizes, ctx.last = list(x.shape[2:]), channels_last(x)
    ctx.save_for_backward(x if weight.requires_grad else None, weight if x.requires_grad else None)


def _forward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    grad = grad.contiguous(memory_format=memory_format(ctx.last))  # vectors run along the same axis as those of x
    ops = torch.ops.lightning_csn
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = ops.depthwise_conv3d_input_gradient(grad, weight, ctx.sizes, ctx.stride)
    if ctx.needs_input_grad[1]:
        grad_weight = ops.depthwise_conv3d_weight_gradient(grad, x, ctx.stride)
    return grad_x, grad_weight, None


def _input_gradient_context(ctx: Any, inputs: tuple[Tensor, Tensor, Any, Any], output: Tensor) -> None:
    grad, weight, _, ctx.stride = inputs
    ctx.last = channels_last(grad)
    ctx.save_for_backward(grad, weight)


def _input_gradient_backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    grad, weight = ctx.saved_tensors
    slope = slope.contiguous(memory_format=memory_format(ctx.last))
    ops = torch.ops.lightning_csn
    of_grad = of_weight = None
    if ctx.needs_input_grad[0]:
        of_grad = ops.depthwise_conv3d(slope, weight, ctx.stride)
    if ctx.needs_input_grad[1]:
        of_weight = ops.depthwise_conv3d_weight_gradient(grad, slope, ctx.stride)
    return of_grad, of_weight, None, None


def _weight_gradient_context(ctx: Any, inputs: tuple[Tensor, Tensor, Sequence[int]], output: Tensor) -> None:
    grad, x, ctx.stride = inputs
    ctx.save_for_backward(grad, x)


def _weight_gradient_backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    grad, x = ctx.saved_tensors
    ops = torch.ops.lightning_csn
    of_grad = of_x = None
    if ctx.needs_input_grad[0]:
        of_grad = ops.depthwise_conv3d(x, slope, ctx.stride)
    if ctx.needs_input_grad[1]:
        of_x = ops.depthwise_conv3d_input_gradient(grad, slope, list(x.shape[2:]), ctx.stride)
    return of_grad, of_x, None


_forward.register_autograd(_forward_backward, setup_context=_forward_context)
_input_gradient.register_autograd(_input_gradient_backward, setup_context=_input_gradient_context)
_weight_gradient.register_autograd(_weight_gradient_backward, setup_context=_weight_gradient_context)


# Operations as the counter counts a convolution's: two per multiply-add, the padding's included.


@register_flop_formula(torch.ops.lightning_csn.depthwise_conv3d)
def _forward_flops(x: Any, weight: Any, stride: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * 27 * torch.Size(out_shape).numel()


@register_flop_formula(torch.ops.lightning_csn.depthwise_conv3d_input_gradient)
def _input_gradient_flops(grad: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * 27 * torch.Size(grad).numel()


@register_flop_formula(torch.ops.lightning_csn.depthwise_conv3d_weight_gradient)
def _weight_gradient_flops(grad: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * 27 * torch.Size(grad).numel()
