"""What the kernels of fused blocks do, as operators of PyTorch: no gradients of their own (fused.py has them).

Tensors are (B, C, T, H, W) in channels_last_3d, which is a matrix (P, C) of P places; a normalisation is (5, C): see
fused_kernels.py. The launches are imported where they are called, because they import Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lightning_csn.models import depthwise
from lightning_csn.models.batchnorm import accurate


def empty(like: Tensor, sizes: Sequence[int] | None = None, channels: int | None = None) -> Tensor:
    """A tensor of the dtype, device and sizes of `like`, or other ones, in channels_last_3d; of any values."""
    shape = (like.shape[0], channels or like.shape[1], *(sizes or like.shape[2:]))
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


def matrix(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (P, C); of channels_last_3d the same memory."""
    return x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])


def library_product(x: Tensor, weight: Tensor) -> Tensor:
    """The 1x1x1 convolution (B, C, T, H, W) -> (B, C', T, H, W), as a matrix product of the library."""
    return F.linear(x.permute(0, 2, 3, 4, 1), weight.flatten(1)).permute(0, 4, 1, 2, 3)


@torch.library.custom_op("lightning_csn::batch_norm_of", mutates_args=())
def batch_norm_of(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The normalisation (5, C) of y by its own mean and variance. Reads y once."""
    from lightning_csn.models import launch

    return launch.finish(launch.statistics(y), weight, bias, eps)


@batch_norm_of.register_fake
def _batch_norm_of_fake(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return y.new_empty((5, y.shape[1]), dtype=accurate(y))


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
    return empty(y, depthwise.output_sizes(y.shape[2:], stride))


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
    return out, y.new_empty((5, y.shape[1]), dtype=accurate(y))


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


@torch.library.custom_op("lightning_csn::norm_gradient", mutates_args=())
def norm_gradient(grad: Tensor, y: Tensor, norm: Tensor, relu: bool, batch: bool) -> tuple[Tensor, Tensor]:
    """Gradients of y, and of bias and weight as (2, C), from that of relu(norm(y)). Reads both twice, writes once."""
    from lightning_csn.models import launch

    sums = launch.gradient_sums(grad, y, norm, relu=relu)
    out = empty(y)
    launch.gradient(grad, y, norm, sums, out, relu=relu, batch=batch)
    return out, sums


@norm_gradient.register_fake
def _norm_gradient_fake(grad: Tensor, y: Tensor, norm: Tensor, relu: bool, batch: bool) -> tuple[Tensor, Tensor]:
    return empty(y), y.new_empty((2, y.shape[1]), dtype=accurate(y))


@torch.library.custom_op("lightning_csn::product_statistics", mutates_args=())
def product_statistics(
    x: Tensor, norm: Tensor | None, weight: Tensor, next_weight: Tensor, next_bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The 1x1x1 convolution of relu(norm(x)), or of x, and the normalisation of that by its own mean and variance."""
    from lightning_csn.models import launch, launch_product

    out, partial = launch_product.product_statistics(x, norm, weight)
    return out, launch.finish(partial, next_weight, next_bias, eps)


@product_statistics.register_fake
def _product_statistics_fake(
    x: Tensor, norm: Tensor | None, weight: Tensor, next_weight: Tensor, next_bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return empty(x, channels=weight.shape[0]), x.new_empty((5, weight.shape[0]), dtype=accurate(x))


@torch.library.custom_op("lightning_csn::norm_product", mutates_args=())
def norm_product(x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
    """The 1x1x1 convolution of relu(norm(x))."""
    from lightning_csn.models import launch_product

    return launch_product.norm_product(x, norm, weight)


@norm_product.register_fake
def _norm_product_fake(x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
    return empty(x, channels=weight.shape[0])


@torch.library.custom_op("lightning_csn::product_sum", mutates_args=())
def product_sum(
    x: Tensor, norm: Tensor | None, weight: Tensor, last_norm: Tensor, other: Tensor, other_norm: Tensor | None
) -> Tensor:
    """relu(last_norm(1x1x1 convolution of relu(norm(x)), or of x) + other), or + other_norm(other)."""
    from lightning_csn.models import launch_product

    return launch_product.normalised_sum(x, norm, weight, last_norm, other, other_norm)


@product_sum.register_fake
def _product_sum_fake(
    x: Tensor, norm: Tensor | None, weight: Tensor, last_norm: Tensor, other: Tensor, other_norm: Tensor | None
) -> Tensor:
    return empty(other)


@torch.library.custom_op("lightning_csn::product_statistics_sum", mutates_args=())
def product_statistics_sum(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    last_weight: Tensor,
    last_bias: Tensor,
    eps: float,
    other: Tensor,
    other_norm: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`product_sum` with the normalisation by the product's own mean and variance, and that normalisation."""
    from lightning_csn.models import launch_product

    return launch_product.statistics_sum(x, norm, weight, (last_weight, last_bias, eps), other, other_norm)


@product_statistics_sum.register_fake
def _product_statistics_sum_fake(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    last_weight: Tensor,
    last_bias: Tensor,
    eps: float,
    other: Tensor,
    other_norm: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return empty(other), x.new_empty((5, weight.shape[0]), dtype=accurate(x))


@torch.library.custom_op("lightning_csn::norm_product_gradient", mutates_args=())
def norm_product_gradient(
    grad: Tensor, y: Tensor, norm: Tensor, weight: Tensor, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, of bias and weight as (2, K), and of the product's weight, from that of `norm_product`."""
    from lightning_csn.models import launch_product

    return launch_product.product_gradient(grad, y, norm, weight, batch)


@norm_product_gradient.register_fake
def _norm_product_gradient_fake(
    grad: Tensor, y: Tensor, norm: Tensor, weight: Tensor, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return empty(y), y.new_empty((2, y.shape[1]), dtype=accurate(y)), torch.empty_like(weight)


@torch.library.custom_op("lightning_csn::product_sum_gradient", mutates_args=())
def product_sum_gradient(
    grad: Tensor, out: Tensor, y: Tensor, norm: Tensor, weight: Tensor, last_norm: Tensor, batch: bool, last_batch: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `norm_product_gradient`, from the gradient of out, the sum; and those of other, and of last_norm's (2, N)."""
    from lightning_csn.models import launch_product

    return launch_product.normalised_sum_gradient(grad, out, y, norm, weight, last_norm, batch, last_batch)


@product_sum_gradient.register_fake
def _product_sum_gradient_fake(
    grad: Tensor, out: Tensor, y: Tensor, norm: Tensor, weight: Tensor, last_norm: Tensor, batch: bool, last_batch: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    last_sums = y.new_empty((2, out.shape[1]), dtype=accurate(y))
    return *_norm_product_gradient_fake(grad, y, norm, weight, batch), empty(out), last_sums


# Operations, as the counter counts those of the plain block: what is computed again is not counted again.


def _product_flops(sizes: Any, weight: Any) -> int:
    return 2 * torch.Size(sizes).numel() // sizes[1] * torch.Size(weight[:2]).numel()


@register_flop_formula([torch.ops.lightning_csn.norm_depthwise, torch.ops.lightning_csn.norm_depthwise_statistics])
def _norm_depthwise_flops(
    y: Any, norm: Any, relu: Any, weight: Any, *args: Any, out_shape: Any = None, **_: Any
) -> int:
    out = out_shape[0] if isinstance(out_shape[0], torch.Size | tuple) else out_shape
    return 2 * 27 * torch.Size(out).numel()


@register_flop_formula(torch.ops.lightning_csn.norm_depthwise_weight_gradient)
def _norm_depthwise_weight_gradient_flops(grad: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * 27 * torch.Size(grad).numel()


@register_flop_formula(
    [
        torch.ops.lightning_csn.product_statistics,
        torch.ops.lightning_csn.norm_product,
        torch.ops.lightning_csn.product_sum,
        torch.ops.lightning_csn.product_statistics_sum,
    ]
)
def _products_flops(x: Any, norm: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return _product_flops(x, weight)


@register_flop_formula(torch.ops.lightning_csn.norm_product_gradient)
def _norm_product_gradient_flops(grad: Any, y: Any, norm: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _product_flops(y, weight)


@register_flop_formula(torch.ops.lightning_csn.product_sum_gradient)
def _product_sum_gradient_flops(grad: Any, out: Any, y: Any, norm: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * _product_flops(y, weight)
