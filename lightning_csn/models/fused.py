"""A bottleneck block in fewer passes over memory, with the parameters and the results of the plain one.

At CSN's shapes nearly everything is limited by memory. So BatchNorm and ReLU are applied where the next operation
loads, statistics are gathered where the one before stores, the sum at the end is part of a pass, and the way back
computes again what is cheap: both normalised activations and the widest tensor of the block (before the last
BatchNorm), of which nothing is stored.

The 1x1x1 convolutions are matrix products. Where memory sets their pace too they are made by kernels that take in the
steps beside them; where arithmetic does, the library makes them, and the steps are passes of their own. FORWARD and
BACKWARD count both forms. Not yet measured on a GPU.

Shapes: P places (B T H W) and w channels inside the block, 4 w outside. Layout channels_last_3d, so that a tensor
is a matrix (P, channels). A normalisation is (5, C): see fused_kernels.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_csn.models import choices, depthwise
from lightning_csn.models.batchnorm import FrozenBatchNorm3d, accurate
from lightning_csn.models.fused_operators import (
    batch_norm_of,
    library_product,
    matrix,
    norm_depthwise,
    norm_depthwise_statistics,
    norm_depthwise_weight_gradient,
    norm_gradient,
    norm_product,
    norm_product_gradient,
    product_statistics,
    product_statistics_sum,
    product_sum,
    product_sum_gradient,
)


class Pass(NamedTuple):
    """Memory traffic of one step of a bottleneck at stride 1, reads + writes, in units of w x P elements."""

    step: str
    eager: int  # every operation a pass of its own, and the depthwise kernels perfect
    library: int  # ours, with the products of the library
    own: int  # ours, with products that take in the steps beside them


# In training. With every product computed once, and the steps taken in, the forward pass would be 24 w: expand and sum
# are then 5 w and 12 w. To compute the product twice, once for its statistics alone, costs 1 w and 9 w.
FORWARD = (
    Pass("1x1x1 reduce", 4 + 1, 4 + 1, 4 + 1),
    Pass("its statistics", 1, 1, 0),
    Pass("its BatchNorm and ReLU", 2 + 2, 0, 0),
    Pass("3x3x3 depthwise", 1 + 1, 1 + 1, 1 + 1),
    Pass("its statistics", 1, 0, 0),
    Pass("its BatchNorm and ReLU", 2 + 2, 2, 0),
    Pass("1x1x1 expand", 1 + 4, 1 + 4, 1),
    Pass("its statistics", 4, 4, 0),
    Pass("its BatchNorm, the sum, the ReLU", 8 + 12 + 8, 12, 1 + 8),
)

# The way back stores less and computes more: 6 w kept instead of 12 w.
BACKWARD = (
    Pass("activation and expand, again", 0, 2 + 5, 0),
    Pass("last ReLU", 12, 0, 0),
    Pass("last BatchNorm: sums", 8, 16, 1 + 12),  # ours through the ReLU, whose gradient is written for the shortcut
    Pass("last BatchNorm: gradient", 12, 12, 1 + 8),
    Pass("1x1x1 expand, both gradients", 5 + 5, 5 + 5, 5 + 6),
    Pass("BatchNorm and ReLU of the depthwise: sums", 3 + 2, 2, 0),
    Pass("BatchNorm and ReLU of the depthwise: gradient", 3, 3, 3),
    Pass("3x3x3 depthwise, both gradients", 2 + 2, 2 + 2, 2 + 2),
    Pass("BatchNorm and ReLU of the reduce: sums", 3 + 2, 2, 2),
    Pass("BatchNorm and ReLU of the reduce: gradient", 3, 3, 3),
    Pass("1x1x1 reduce, both gradients, and the shortcut's added", 5 + 5 + 12, 5 + 9, 5 + 9),
)

STORED = Pass("kept for the way back", 2 + 2 + 4 + 4, 1 + 1 + 4, 1 + 1 + 4)  # elements, besides the block's input

# By running statistics, without gradients: BatchNorm and ReLU after the depthwise convolution are folded into its
# store, and the library's products need no activation. What moves at least, in training too.
INFERENCE = (
    Pass("1x1x1 reduce", 4 + 1, 4 + 1, 4 + 1),
    Pass("its BatchNorm and ReLU", 2 + 2, 0, 0),
    Pass("3x3x3 depthwise", 1 + 1, 1 + 1, 1 + 1),
    Pass("its BatchNorm and ReLU", 2 + 2, 0, 0),
    Pass("1x1x1 expand, its BatchNorm, the sum, the ReLU", 5 + 8 + 12 + 8, 5 + 12, 1 + 8),
)

BALANCE = 70  # multiply-adds a byte that an H200 has time for: 300 T/s over 4.3 TB/s, as reported elsewhere


def total(passes: Sequence[Pass]) -> tuple[int, int, int]:
    """Eager, and ours with the library's products and with our own, summed.

    >>> total(FORWARD), total(INFERENCE)
    ((54, 31, 17), (48, 24, 16))
    """
    _, eager, library, own = zip(*passes, strict=True)
    return sum(eager), sum(library), sum(own)


def memory_bound(channels_in: int, channels: int, element_bytes: int) -> bool:
    """Whether memory sets the pace of a 1x1x1 convolution on a GPU, so that kernels of our own make it.

    Of 16 bits only: in fp32 the library's products have the matrix units only where PyTorch was told so.

    >>> [memory_bound(width, 4 * width, 2) for width in (64, 128, 256, 512)]
    [True, True, False, False]
    """
    moved = element_bytes * (channels_in + channels)
    return element_bytes == 2 and channels_in * channels < BALANCE * moved


# The steps of the block, with their gradients. `batch` says that a normalisation is by the batch's own statistics.


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


def mark(ctx: Any, norm: Tensor | None) -> None:
    """A normalisation that was gathered takes no gradient: that of what it is of goes through both."""
    if norm is not None:
        ctx.mark_non_differentiable(norm)


class Fork(torch.autograd.Function):
    """The first product, its normalisation, and x itself for the shortcut, whose gradient joins in the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, following: Norm, gather: bool, steps: Sequence[int]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(product, normalisation, x). The normalisation is the product's own if it is to `gather` one, else None.

        steps: of the shortcut in T, H and W; x comes out with the places that it takes.
        """
        ctx.save_for_backward(x, weight)
        ctx.steps = steps
        y, norm = _product(x, None, weight, following, gather)
        mark(ctx, norm)
        return y, norm, _every(x, steps)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor, _: Tensor, skipped: Tensor) -> tuple[Any, ...]:
        """Gradients of x and weight."""
        x, weight = ctx.saved_tensors
        rows = matrix(dense(grad))
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            if skipped.shape == x.shape:  # into the shortcut's, which nobody else holds; to a new tensor it was copied
                grad_x = dense(skipped)
                torch.addmm(matrix(grad_x), rows, weight.flatten(1), out=matrix(grad_x))
            else:
                grad_x = library_product(dense(grad), weight.transpose(0, 1))
                _every(grad_x, ctx.steps).add_(skipped)
        if ctx.needs_input_grad[1]:
            grad_weight = (rows.t() @ matrix(x)).view_as(weight)
        return grad_x, grad_weight, None, None, None


def _every(x: Tensor, steps: Sequence[int]) -> Tensor:
    step_t, step_h, step_w = steps
    return x[:, :, ::step_t, ::step_h, ::step_w]


def _product(
    x: Tensor, norm: Tensor | None, weight: Tensor, following: Norm, gather: bool
) -> tuple[Tensor, Tensor | None]:
    if gather:
        return product_statistics(x, norm, weight, following.weight, following.bias, following.eps)
    made = library_product(x, weight) if norm is None else norm_product(x, norm, weight)
    return made, None


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
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and its normalisation if it is to `gather` one. scale, bias: parameters of norm."""
        ctx.save_for_backward(y, norm, weight)
        ctx.batch, ctx.relu, ctx.stride, ctx.dtypes = batch, relu, stride, (scale.dtype, bias.dtype)
        if gather:
            out, next_norm = norm_depthwise_statistics(
                y, norm, relu, weight, stride, following.weight, following.bias, following.eps
            )
        else:
            out, next_norm = norm_depthwise(y, norm, relu, weight, stride, None), None
        mark(ctx, next_norm)
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
    """The 1x1x1 convolution of relu(norm(y)), which is computed again on the way back, and its normalisation."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        scale: Tensor,
        bias: Tensor,
        norm: Tensor,
        batch: bool,
        weight: Tensor,
        following: Norm,
        gather: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and its normalisation if it is to `gather` one. scale, bias: parameters of norm."""
        ctx.save_for_backward(y, norm, weight)
        ctx.batch, ctx.dtypes = batch, (scale.dtype, bias.dtype)
        out, next_norm = _product(y, norm, weight, following, gather)
        mark(ctx, next_norm)
        return out, next_norm

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        """Gradients of y, scale, bias and weight."""
        y, norm, weight = ctx.saved_tensors
        grad_y, sums, grad_weight = norm_product_gradient(dense(grad), y, norm, weight, ctx.batch)
        return grad_y, sums[1].to(ctx.dtypes[0]), sums[0].to(ctx.dtypes[1]), None, None, grad_weight, None, None


class NormProductNormSum(torch.autograd.Function):
    """relu(last_norm(product(relu(norm(y)))) + other): all that follows the depthwise convolution.

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
        ctx.batch, ctx.last_batch, ctx.other_batch = batch, last_norm is None, other_batch
        if last_norm is None:
            out, last_norm = product_statistics_sum(y, norm, weight, last_scale, last_bias, eps, other, other_norm)
        else:
            out = product_sum(y, norm, weight, last_norm, other, other_norm)
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
        grad_y, sums, grad_weight, grad_other, last_sums = product_sum_gradient(
            dense(grad), out, y, norm, weight, last_norm, ctx.batch, ctx.last_batch
        )
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


BLOCKS = "blocks.json"  # in the cache folder: "fused" or "triton", as `lightning-csn benchmark train --tune` measured


def runs_fused(block: Any, x: Tensor) -> bool:
    """Whether `bottleneck` is the way for a block and an input; if only the block speaks against it, that is logged."""
    if not isinstance(block.convolve.conv, depthwise.DepthwiseConv3d) or depthwise._backend not in ("auto", "fused"):
        return False
    weight = block.convolve.conv.weight
    kernel, strides = tuple(weight.shape[1:]), block.convolve.conv.stride
    if depthwise.choose_way(depthwise._backend, x.device, x.dtype, x.ndim, kernel, strides) != "triton":
        return False
    asked = depthwise._backend == "fused"
    if not asked and not (measured_here(x) and found_faster(kind_of(block), x.device, x.dtype)):
        return False
    reason = unfusable(block, x)
    if reason is not None:
        level = logging.WARNING if asked else logging.INFO
        depthwise.report(level, f"bottleneck blocks run unfused: {reason}")
        return False
    depthwise.report(logging.INFO, f"bottleneck blocks on {x.device.type}: fused")
    return True


def measured_here(x: Tensor) -> bool:
    """Whether `--tune` measured such a run: eager training in channels_last_3d."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and depthwise.channels_last(x)


def found_faster(kind: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `--tune` found fused blocks faster than plain ones with the depthwise kernels, on this kind of GPU."""
    return bool(choices.chosen(BLOCKS, blocks_of(kind, dtype), device) == "fused")


def kind_of(block: Any) -> str:
    """ir or ip, by whether channels interact before the depthwise convolution."""
    return "ir" if isinstance(block.interact, nn.Identity) else "ip"


def blocks_of(kind: str, dtype: torch.dtype) -> str:
    """What a measured choice holds for.

    >>> blocks_of("ir", torch.bfloat16)
    'ir blocks, torch.bfloat16'
    """
    return f"{kind} blocks, {dtype}"


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


def take_part(norm: Norm, made: Tensor | None, y: Tensor, moved: list[tuple[Norm, Tensor]]) -> Tensor:
    """The normalisation (5, C) of y: `made` of y itself where the norm goes by that, else by running statistics.

    In the first case it joins `moved`, by which the running statistics move: `update_running`.
    """
    if made is None or not by_batch(norm):
        return running_norm(norm, accurate(y))
    moved.append((norm, made))
    return made


@torch.no_grad()
def update_running(moved: Sequence[tuple[Norm, Tensor]]) -> None:
    """Take the batch's mean and (unbiased) variance into the running statistics, as nn.BatchNorm3d does.

    For all of a block at once: each BatchNorm by itself takes four launches, longer than its normalisation does.
    """
    tracked = [(norm, made) for norm, made in moved if norm.training and norm.track_running_stats]
    counters = [norm.num_batches_tracked for norm, _ in tracked if norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    by_momentum: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for norm, made in tracked:
        momentum = norm.momentum
        if momentum is None:  # the average of all batches
            momentum = 0.0 if norm.num_batches_tracked is None else 1.0 / float(norm.num_batches_tracked)
        running, newest = by_momentum.setdefault(momentum, ([], []))
        for old, row in ((norm.running_mean, 0), (norm.running_var, 1)):
            if old is not None:
                running.append(old)
                newest.append(made[row].to(old.dtype))
    for momentum, (running, newest) in by_momentum.items():
        torch._foreach_lerp_(running, newest, momentum)


def bottleneck(block: Any, x: Tensor) -> Tensor:
    """What `Bottleneck.forward` computes, with the kernels: (B, C_in, T, H, W) -> (B, 4 width, T', H', W').

    Ask `depthwise.choose_way` and `unfusable` first. The result is channels_last_3d.
    """
    x, dtype = dense(x), x.dtype  # what autocast makes of the weights, too
    reduce, convolve, expand = block.reduce, block.convolve, block.expand
    stride = convolve.conv.stride
    last, relu = reduce.norm, True
    steps = (1, 1, 1) if isinstance(block.shortcut, nn.Identity) else block.shortcut.conv.stride
    moved: list[tuple[Norm, Tensor]] = []
    y, norm, x = Fork.apply(x, reduce.conv.weight.to(dtype), last, by_batch(last), steps)
    norm = take_part(last, norm, y, moved)
    if not isinstance(block.interact, nn.Identity):
        weight, following = block.interact.conv.weight.to(dtype), block.interact.norm
        y, next_norm = NormProduct.apply(
            y, last.weight, last.bias, norm, by_batch(last), weight, following, by_batch(following)
        )
        last, relu = following, False
        norm = take_part(last, next_norm, y, moved)
    weight, wide = convolve.conv.weight.to(dtype), expand.conv.weight.to(dtype)
    if not torch.is_grad_enabled() and not by_batch(convolve.norm) and not by_batch(expand.norm):
        after = running_norm(convolve.norm, norm.dtype)  # folded into the store
        y = norm_depthwise(y, norm, relu, weight, stride, after)
        other, other_norm = shortcut(block, x, dtype, moved)
        update_running(moved)
        return product_sum(y, None, wide, running_norm(expand.norm, norm.dtype), other, other_norm)
    gather = by_batch(convolve.norm)
    y, next_norm = NormDepthwise.apply(
        y, last.weight, last.bias, norm, by_batch(last), relu, weight, stride, convolve.norm, gather
    )
    next_norm = take_part(convolve.norm, next_norm, y, moved)
    other, other_norm = shortcut(block, x, dtype, moved)
    projection = None if other_norm is None else block.shortcut.norm
    out, last_norm = NormProductNormSum.apply(
        y,
        convolve.norm.weight,
        convolve.norm.bias,
        next_norm,
        gather,
        wide,
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
    if by_batch(expand.norm):
        moved.append((expand.norm, last_norm))
    update_running(moved)
    return out


def shortcut(
    block: Any, x: Tensor, dtype: torch.dtype, moved: list[tuple[Norm, Tensor]]
) -> tuple[Tensor, Tensor | None]:
    """What is added at the end, and its normalisation if it has one. x: the places that the shortcut takes."""
    if isinstance(block.shortcut, nn.Identity):
        return x, None
    norm, other = block.shortcut.norm, library_product(x, block.shortcut.conv.weight.to(dtype))
    made = batch_norm_of(other.detach(), norm.weight.detach(), norm.bias.detach(), norm.eps) if by_batch(norm) else None
    return other, take_part(norm, made, other, moved)
