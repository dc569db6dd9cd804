"""A bottleneck block in fewer passes over memory, with the parameters and the results of the plain one.

Between the 1x1x1 convolutions, which are plain matrix products, everything a bottleneck does is limited by memory.
So BatchNorm and ReLU are applied where the next operation loads, the statistics of the depthwise convolution's output
are gathered where it stores, the sum at the end is one pass, and the way back computes again what is cheap: both
normalised activations and the widest tensor of the block (before the last BatchNorm), of which nothing is stored.
FORWARD and BACKWARD count it. Not yet measured on a GPU.

Shapes: P places (B T H W) and w channels inside the block, 4 w outside. Layout channels_last_3d, so that a tensor
is a matrix (P, channels). A normalisation is (5, C): see fused_kernels.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_csn.models import depthwise
from lightning_csn.models.batchnorm import FrozenBatchNorm3d


class Pass(NamedTuple):
    """Memory traffic of one step of a bottleneck at stride 1, reads + writes, in units of w x P elements."""

    step: str
    eager: int  # every operation a pass of its own, and the depthwise kernels perfect
    ours: int
    floor: int | None = None  # fused throughout, the matrix products as well; None: not counted


# In training. From ours to the floor of the forward pass it is 7 w: what only a matrix product of our own could take
# in, gathering statistics where it stores (1 w and 4 w) and normalising where it loads (2 w).
FORWARD = (
    Pass("1x1x1 reduce", 4 + 1, 4 + 1, 4 + 1),
    Pass("its statistics", 1, 1, 0),
    Pass("its BatchNorm and ReLU", 2 + 2, 0, 0),
    Pass("3x3x3 depthwise", 1 + 1, 1 + 1, 1 + 1),
    Pass("its statistics", 1, 0, 0),
    Pass("its BatchNorm and ReLU", 2 + 2, 2, 0),
    Pass("1x1x1 expand", 1 + 4, 1 + 4, 1 + 4),
    Pass("its statistics", 4, 4, 0),
    Pass("its BatchNorm, the sum, the ReLU", 8 + 12 + 8, 12, 12),
)

# The way back stores less and computes more: 7 w of it are what it computes again, for 6 w kept instead of 12 w.
BACKWARD = (
    Pass("activation and expand, again", 0, 2 + 5),
    Pass("last ReLU", 12, 0),
    Pass("last BatchNorm: sums", 8, 16),  # ours through the ReLU, whose gradient it writes for the shortcut
    Pass("last BatchNorm: gradient", 12, 12),
    Pass("1x1x1 expand, both gradients", 5 + 5, 5 + 5),
    Pass("BatchNorm and ReLU of the depthwise: sums", 3 + 2, 2),
    Pass("BatchNorm and ReLU of the depthwise: gradient", 3, 3),
    Pass("3x3x3 depthwise, both gradients", 2 + 2, 2 + 2),
    Pass("BatchNorm and ReLU of the reduce: sums", 3 + 2, 2),
    Pass("BatchNorm and ReLU of the reduce: gradient", 3, 3),
    Pass("1x1x1 reduce, both gradients, and the shortcut's added", 5 + 5 + 12, 5 + 9),
)

STORED = Pass("kept for the way back", 2 + 2 + 4 + 4, 1 + 1 + 4)  # elements, besides the input of the block


def total(passes: Sequence[Pass]) -> tuple[int, int, int]:
    """Eager, ours and floor, summed.

    >>> total(FORWARD)
    (54, 31, 24)
    """
    eager, ours, floor = zip(*((step.eager, step.ours, step.floor or 0) for step in passes), strict=True)
    return sum(eager), sum(ours), sum(floor)


# What the kernels do, as operators: no gradients of their own (the autograd functions below have them).


def _empty(like: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    shape = like.shape if sizes is None else (*like.shape[:2], *sizes)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


def _accurate(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


@torch.library.custom_op("lightning_csn::batch_norm_of", mutates_args=())
def batch_norm_of(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The normalisation (5, C) of y by its own mean and variance. Reads y once."""
    from lightning_csn.models import launch

    return launch.finish(launch.statistics(y), weight, bias, eps)


@batch_norm_of.register_fake
def _batch_norm_of_fake(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return y.new_empty((5, y.shape[1]), dtype=_accurate(y))


@torch.library.custom_op("lightning_csn::norm_depthwise", mutates_args=())
def norm_depthwise(
    y: Tensor, norm: Tensor, relu: bool, weight: Tensor, stride: Sequence[int], after: Tensor | None
) -> Tensor:
    """depthwise(relu(norm(y))), and relu(after(...)) of that if there is an `after`. Reads y once, writes once."""
    from lightning_csn.models import launch

    out = _norm_depthwise_fake(y, norm, relu, weight, stride, after)
    epilogue = None if after is None else (after[3], after[4])
    launch.convolve(y, weight, out, stride, norm=(norm[3], norm[4], relu), after=epilogue)
    return out


@norm_depthwise.register_fake
def _norm_depthwise_fake(
    y: Tensor, norm: Tensor, relu: bool, weight: Tensor, stride: Sequence[int], after: Tensor | None
) -> Tensor:
    return _empty(y, depthwise.output_sizes(y.shape[2:], stride))


@torch.library.custom_op("lightning_csn::norm_depthwise_statistics", mutates_args=())
def norm_depthwise_statistics(
    y: Tensor,
    norm: Tensor,
    relu: bool,
    weight: Tensor,
    stride: Sequence[int],
    next_weight: Tensor,
    next_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """depthwise(relu(norm(y))) and the normalisation of that by its own mean and variance, in the same pass."""
    from lightning_csn.models import launch

    out = _norm_depthwise_fake(y, norm, relu, weight, stride, None)
    partial = launch.convolve(y, weight, out, stride, norm=(norm[3], norm[4], relu), statistics=True)
    assert partial is not None  # because of statistics=True
    return out, launch.finish(partial, next_weight, next_bias, eps)


@norm_depthwise_statistics.register_fake
def _norm_depthwise_statistics_fake(
    y: Tensor,
    norm: Tensor,
    relu: bool,
    weight: Tensor,
    stride: Sequence[int],
    next_weight: Tensor,
    next_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    out = _norm_depthwise_fake(y, norm, relu, weight, stride, None)
    return out, y.new_empty((5, y.shape[1]), dtype=_accurate(y))


@torch.library.custom_op("lightning_csn::norm_depthwise_weight_gradient", mutates_args=())
def norm_depthwise_weight_gradient(grad: Tensor, y: Tensor, norm: Tensor, relu: bool, stride: Sequence[int]) -> Tensor:
    """Gradient of the depthwise weight; relu(norm(y)) is computed again where y is loaded."""
    from lightning_csn.models import launch

    sums = launch.weight_gradient(grad, y, stride, norm=(norm[3], norm[4], relu))
    return sums.to(y.dtype).view(-1, 1, 3, 3, 3)


@norm_depthwise_weight_gradient.register_fake
def _norm_depthwise_weight_gradient_fake(
    grad: Tensor, y: Tensor, norm: Tensor, relu: bool, stride: Sequence[int]
) -> Tensor:
    return y.new_empty((y.shape[1], 1, 3, 3, 3))


@torch.library.custom_op("lightning_csn::norm_apply", mutates_args=())
def norm_apply(y: Tensor, norm: Tensor, relu: bool, other: Tensor | None, other_norm: Tensor | None) -> Tensor:
    """relu(norm(y) + other), or + other_norm(other), or less of it, in one pass."""
    from lightning_csn.models import launch

    out = _empty(y)
    launch.apply(y, norm, out, relu=relu, other=other, other_norm=other_norm)
    return out


@norm_apply.register_fake
def _norm_apply_fake(y: Tensor, norm: Tensor, relu: bool, other: Tensor | None, other_norm: Tensor | None) -> Tensor:
    return _empty(y)


@torch.library.custom_op("lightning_csn::norm_gradient", mutates_args=())
def norm_gradient(grad: Tensor, y: Tensor, norm: Tensor, relu: bool, batch: bool) -> tuple[Tensor, Tensor]:
    """Gradients of y, and of bias and weight as (2, C), from that of relu(norm(y)). Reads both twice, writes once."""
    from lightning_csn.models import launch

    sums = launch.gradient_sums(grad, y, norm, relu=relu)
    out = _empty(y)
    launch.gradient(grad, y, norm, sums, out, relu=relu, batch=batch)
    return out, sums


@norm_gradient.register_fake
def _norm_gradient_fake(grad: Tensor, y: Tensor, norm: Tensor, relu: bool, batch: bool) -> tuple[Tensor, Tensor]:
    return _empty(y), y.new_empty((2, y.shape[1]), dtype=_accurate(y))


@torch.library.custom_op("lightning_csn::norm_sum_gradient", mutates_args=())
def norm_sum_gradient(grad: Tensor, out: Tensor, y: Tensor, norm: Tensor, batch: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, of bias and weight as (2, C), and of other, from that of out = relu(norm(y) + other)."""
    from lightning_csn.models import launch

    masked, grad_y = _empty(y), _empty(y)
    sums = launch.gradient_sums(grad, y, norm, relu=False, out=out, masked=masked)
    launch.gradient(masked, y, norm, sums, grad_y, relu=False, batch=batch)
    return grad_y, sums, masked


@norm_sum_gradient.register_fake
def _norm_sum_gradient_fake(
    grad: Tensor, out: Tensor, y: Tensor, norm: Tensor, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(y), y.new_empty((2, y.shape[1]), dtype=_accurate(y)), _empty(y)


# The steps of the block, with their gradients. `batch` says that a normalisation is by the batch's own statistics.


def matrix(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (P, C); of channels_last_3d the same memory."""
    return x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])


def product(x: Tensor, weight: Tensor) -> Tensor:
    """The 1x1x1 convolution (B, C, T, H, W) -> (B, C', T, H, W), as a matrix product."""
    return F.linear(x.permute(0, 2, 3, 4, 1), weight.flatten(1)).permute(0, 4, 1, 2, 3)


def dense(grad: Tensor) -> Tensor:
    """A gradient in the layout of everything else here."""
    return grad.contiguous(memory_format=torch.channels_last_3d)


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that refuses to be differentiated itself, instead of being taken for a constant."""

    @wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise NotImplementedError(
                "fused blocks have no gradients of gradients; the plain ones do: with depthwise_backend('triton')"
            )
        return backward(ctx, *grads)

    return checked


class Fork(torch.autograd.Function):
    """The first product and x itself, for the shortcut; the way back adds the shortcut's gradient in the product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """x and weight -> (product, x)."""
        ctx.save_for_backward(x, weight)
        return product(x, weight), x.view_as(x)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor, skipped: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and weight."""
        x, weight = ctx.saved_tensors
        rows = matrix(dense(grad))
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            total = torch.addmm(matrix(dense(skipped)), rows, weight.flatten(1))
            grad_x = total.view(x.shape[0], *x.shape[2:], -1).permute(0, 4, 1, 2, 3)
        if ctx.needs_input_grad[1]:
            grad_weight = (rows.t() @ matrix(x)).view_as(weight)
        return grad_x, grad_weight


class NormDepthwise(torch.autograd.Function):
    """The depthwise convolution of relu(norm(y)), and the normalisation of its output."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        scale: Tensor,
        bias: Tensor,
        norm: Tensor,
        batch: bool,
        relu: bool,
        weight: Tensor,
        stride: Sequence[int],
        following: Norm,
        gather: bool,
    ) -> tuple[Tensor, Tensor]:
        """The output, and its normalisation if it is to `gather` one (else zeros). scale, bias: parameters of norm."""
        ctx.save_for_backward(y, norm, weight)
        ctx.batch, ctx.relu, ctx.stride, ctx.dtypes = batch, relu, stride, (scale.dtype, bias.dtype)
        if gather:
            out, next_norm = norm_depthwise_statistics(
                y, norm, relu, weight, stride, following.weight, following.bias, following.eps
            )
        else:
            out, next_norm = norm_depthwise(y, norm, relu, weight, stride, None), torch.zeros_like(norm)
        ctx.mark_non_differentiable(next_norm)
        return out, next_norm

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        """Gradients of y, scale, bias and weight."""
        y, norm, weight = ctx.saved_tensors
        grad = dense(grad)
        grad_weight = None
        if ctx.needs_input_grad[6]:
            grad_weight = norm_depthwise_weight_gradient(grad, y, norm, ctx.relu, ctx.stride)
        grad_in = torch.ops.lightning_csn.depthwise_conv3d_input_gradient(grad, weight, y.shape[2:], ctx.stride)
        grad_in = dense(grad_in)  # a copy only where grad has one place a channel, and so no layout to pass on
        grad_y, sums = norm_gradient(grad_in, y, norm, ctx.relu, ctx.batch)
        return grad_y, sums[1].to(ctx.dtypes[0]), sums[0].to(ctx.dtypes[1]), *(None,) * 3, grad_weight, *(None,) * 3


class NormProduct(torch.autograd.Function):
    """The 1x1x1 convolution of relu(norm(y)), which is computed again on the way back."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, bias: Tensor, norm: Tensor, batch: bool, weight: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H, W). scale, bias: parameters of norm."""
        ctx.save_for_backward(y, norm, weight)
        ctx.batch, ctx.dtypes = batch, (scale.dtype, bias.dtype)
        return product(norm_apply(y, norm, True, None, None), weight)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of y, scale, bias and weight."""
        y, norm, weight = ctx.saved_tensors
        activation = norm_apply(y, norm, True, None, None)
        grad_y, sums, grad_weight = _product_gradient(dense(grad), activation, y, norm, ctx.batch, weight)
        return grad_y, sums[1].to(ctx.dtypes[0]), sums[0].to(ctx.dtypes[1]), None, None, grad_weight


def _product_gradient(
    grad: Tensor, activation: Tensor, y: Tensor, norm: Tensor, batch: bool, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, of its norm's bias and weight, and of the product's weight."""
    grad_weight = (matrix(grad).t() @ matrix(activation)).view_as(weight)
    grad_in = product(grad, weight.flatten(1).t())
    return *norm_gradient(grad_in, y, norm, True, batch), grad_weight


class NormProductNormSum(torch.autograd.Function):
    """relu(norm(product(relu(norm(y)))) + other): all that follows the depthwise convolution.

    Keeps y, other and the result; the product, four times as wide as y, is computed again on the way back.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        scale: Tensor,
        bias: Tensor,
        norm: Tensor,
        batch: bool,
        weight: Tensor,
        last_scale: Tensor,
        last_bias: Tensor,
        last_norm: Tensor | None,
        eps: float,
        other: Tensor,
        other_scale: Tensor | None,
        other_bias: Tensor | None,
        other_norm: Tensor | None,
        other_batch: bool,
    ) -> tuple[Tensor, Tensor]:
        """The block's output, and the last normalisation. last_norm: None for the batch's own.

        The shortcut is `other`, or other_norm(other).
        """
        wide = product(norm_apply(y, norm, True, None, None), weight)
        ctx.batch, ctx.last_batch, ctx.other_batch = batch, last_norm is None, other_batch
        if last_norm is None:
            last_norm = batch_norm_of(wide, last_scale, last_bias, eps)
        out = norm_apply(wide, last_norm, True, other, other_norm)
        ctx.save_for_backward(y, norm, weight, last_norm, None if other_norm is None else other, other_norm, out)
        ctx.dtypes = [
            None if p is None else p.dtype for p in (scale, bias, last_scale, last_bias, other_scale, other_bias)
        ]
        ctx.mark_non_differentiable(last_norm)
        return out, last_norm

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        """Gradients of y, other, and all parameters."""
        y, norm, weight, last_norm, other, other_norm, out = ctx.saved_tensors
        activation = norm_apply(y, norm, True, None, None)
        wide = product(activation, weight)
        grad_wide, last_sums, grad_other = norm_sum_gradient(dense(grad), out, wide, last_norm, ctx.last_batch)
        grad_y, sums, grad_weight = _product_gradient(grad_wide, activation, y, norm, ctx.batch, weight)
        of_other_scale = of_other_bias = None
        if other_norm is not None:
            grad_other, other_sums = norm_gradient(grad_other, other, other_norm, False, ctx.other_batch)
            of_other_scale, of_other_bias = other_sums[1].to(ctx.dtypes[4]), other_sums[0].to(ctx.dtypes[5])
        of_scale, of_bias = sums[1].to(ctx.dtypes[0]), sums[0].to(ctx.dtypes[1])
        of_last_scale, of_last_bias = last_sums[1].to(ctx.dtypes[2]), last_sums[0].to(ctx.dtypes[3])
        return (
            *(grad_y, of_scale, of_bias, None, None, grad_weight, of_last_scale, of_last_bias, None, None),
            *(grad_other, of_other_scale, of_other_bias, None, None),
        )


# The block.


def runs_fused(block: Any, x: Tensor) -> bool:
    """Whether `bottleneck` is the way for a block and an input; if only the block speaks against it, that is logged."""
    if not isinstance(block.convolve.conv, depthwise.DepthwiseConv3d) or depthwise._backend != "fused":
        return False
    weight = block.convolve.conv.weight
    kernel, strides = tuple(weight.shape[1:]), block.convolve.conv.stride
    if depthwise.choose_way(depthwise._backend, x.device, x.dtype, x.ndim, kernel, strides) != "triton":
        return False
    reason = unfusable(block, x)
    if reason is not None:
        depthwise.report(logging.WARNING, f"bottleneck blocks run unfused: {reason}")
        return False
    depthwise.report(logging.INFO, f"bottleneck blocks on {x.device.type}: fused")
    return True


def unfusable(block: Any, x: Tensor) -> str | None:
    """Why `bottleneck` does not compute what the modules of a block would; None if it does."""
    if type(block.drop_path) is not nn.Identity:
        return "stochastic depth (drop_path)"
    for module in (block.reduce, block.interact, block.convolve, block.expand, block.shortcut):
        for layer in (module, *module.children()):
            if type(layer) not in LAYERS:
                return f"a layer is a {type(layer).__name__}"
            if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
                return "a layer inside of a block has hooks"
            if isinstance(layer, nn.Conv3d) and layer.bias is not None:
                return "a convolution has a bias"
            if isinstance(layer, NORMS) and layer.weight is None:
                return "a BatchNorm has no weight"
    autocast = depthwise.autocast_dtype(x)
    wanted = block.convolve.conv.weight.dtype if autocast is None else autocast
    if x.dtype != wanted:
        return f"the input is {str(x.dtype)[6:]}, the weights are {str(wanted)[6:]}"
    if x.shape[0] * ((x.shape[2] + 1) // 2) * ((x.shape[3] + 1) // 2) * ((x.shape[4] + 1) // 2) < 2:
        return "a single place per channel"
    return None


NORMS = (nn.BatchNorm3d, FrozenBatchNorm3d)
LAYERS = (nn.Sequential, nn.Identity, nn.ReLU, nn.Conv3d, depthwise.DepthwiseConv3d, *NORMS)
Norm = nn.BatchNorm3d | FrozenBatchNorm3d


def by_batch(norm: Norm) -> bool:
    """Whether a BatchNorm normalises by the batch's own statistics."""
    return not isinstance(norm, FrozenBatchNorm3d) and (norm.training or norm.running_mean is None)


def running_norm(norm: Norm, dtype: torch.dtype) -> Tensor:
    """The normalisation (5, C) by running statistics."""
    mean, variance = norm.running_mean.to(dtype), norm.running_var.to(dtype)  # type: ignore[union-attr]
    rstd = (variance + norm.eps).rsqrt()
    scale = norm.weight.detach().to(dtype) * rstd
    return torch.stack((mean, variance, rstd, scale, norm.bias.detach().to(dtype) - mean * scale))


def norm_of(norm: Norm, y: Tensor) -> Tensor:
    """The normalisation (5, C) of y by a BatchNorm, whose running statistics take part."""
    if not by_batch(norm):
        return running_norm(norm, _accurate(y))
    made = batch_norm_of(y.detach(), norm.weight.detach(), norm.bias.detach(), norm.eps)
    update_running(norm, made, y)
    return made


@torch.no_grad()
def update_running(norm: Norm, made: Tensor, y: Tensor) -> None:
    """Take a batch's mean and (unbiased) variance into the running statistics, as nn.BatchNorm3d does."""
    if (
        not (by_batch(norm) and norm.training and norm.track_running_stats)
        or norm.running_mean is None
        or norm.running_var is None
    ):
        return
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    places = y.numel() // y.shape[1]
    norm.running_mean.lerp_(made[0].to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((made[1] * (places / (places - 1))).to(norm.running_var.dtype), momentum)


def bottleneck(block: Any, x: Tensor) -> Tensor:
    """What `Bottleneck.forward` computes, with the kernels: (B, C_in, T, H, W) -> (B, 4 width, T', H', W').

    Ask `depthwise.choose_way` and `unfusable` first. The result is channels_last_3d.
    """
    x, dtype = dense(x), x.dtype  # what autocast makes of the weights, too
    reduce, convolve, expand = block.reduce, block.convolve, block.expand
    stride = convolve.conv.stride
    y, x = Fork.apply(x, reduce.conv.weight.to(dtype))
    last, relu = reduce.norm, True
    norm = norm_of(last, y)
    if not isinstance(block.interact, nn.Identity):
        y = NormProduct.apply(y, last.weight, last.bias, norm, by_batch(last), block.interact.conv.weight.to(dtype))
        last, relu = block.interact.norm, False
        norm = norm_of(last, y)
    weight = convolve.conv.weight.to(dtype)
    if not torch.is_grad_enabled() and not by_batch(convolve.norm) and not by_batch(expand.norm):
        after = running_norm(convolve.norm, norm.dtype)  # folded into the store, and 24 w in all
        wide = product(norm_depthwise(y, norm, relu, weight, stride, after), expand.conv.weight.to(dtype))
        other, other_norm = shortcut(block, x, dtype)
        return norm_apply(wide, running_norm(expand.norm, norm.dtype), True, other, other_norm)
    gather = by_batch(convolve.norm)
    y, next_norm = NormDepthwise.apply(
        y, last.weight, last.bias, norm, by_batch(last), relu, weight, stride, convolve.norm, gather
    )
    if gather:
        update_running(convolve.norm, next_norm, y)
    else:
        next_norm = running_norm(convolve.norm, norm.dtype)
    other, other_norm = shortcut(block, x, dtype)
    projection = None if other_norm is None else block.shortcut.norm
    out, last_norm = NormProductNormSum.apply(
        y,
        convolve.norm.weight,
        convolve.norm.bias,
        next_norm,
        gather,
        expand.conv.weight.to(dtype),
        expand.norm.weight,
        expand.norm.bias,
        None if by_batch(expand.norm) else running_norm(expand.norm, norm.dtype),
        expand.norm.eps,
        other,
        projection and projection.weight,
        projection and projection.bias,
        other_norm,
        projection is not None and by_batch(projection),
    )
    update_running(expand.norm, last_norm, out)
    return out


def shortcut(block: Any, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """What is added at the end, and its normalisation if it has one."""
    if isinstance(block.shortcut, nn.Identity):
        return x, None
    step_t, step_h, step_w = block.shortcut.conv.stride
    other = product(x[:, :, ::step_t, ::step_h, ::step_w], block.shortcut.conv.weight.to(dtype))
    return other, norm_of(block.shortcut.norm, other)
