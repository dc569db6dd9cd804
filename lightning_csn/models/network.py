"""ResNet3D and channel-separated networks (CSN): the whole architecture, in this one file.

Tran, Wang, Torresani, Feiszli: "Video Classification with Channel-Separated Convolutional Networks",
ICCV 2019, arXiv:1904.02811. Every network here is one row of ARCHITECTURES; the rows of one depth differ
only in the function that makes the 3x3x3 convolution:

    full                    3x3x3 over all channels (or `groups` of them)     ResNet3D
    interaction_preserved   1x1x1, then 3x3x3 depthwise                       ip-CSN
    interaction_reduced     3x3x3 depthwise alone                             ir-CSN

Where the paper's figures and the released code differ, this file follows the code, because the published
weights belong to it: no ReLU stands between the 1x1x1 and the depthwise convolution of ip-CSN
(facebookresearch/VMZ, block type "0.3d"), the stem pools, and the stride sits on the 3x3x3 convolution.

Shapes: B clips, C channels, T frames, H x W pixels, K classes. A clip is (B, C, T, H, W).
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import math
import numbers
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_csn.errors import InputError, check_count
from lightning_csn.models.batchnorm import without_statistics
from lightning_csn.models.depthwise import DepthwiseConv3d
from lightning_csn.models.fused import bottleneck, runs_fused

Norm = Callable[[int], nn.Module]


Layers = OrderedDict[str, nn.Module]


def conv_norm(
    width_in: int,
    width: int,
    kernel: tuple[int, int, int],
    *,
    norm: Norm,
    stride: int | tuple[int, int, int] = 1,
    groups: int = 1,
) -> Layers:
    """A convolution that keeps the size (but for its stride), without bias, and the BatchNorm after it."""
    if kernel == (3, 3, 3) and groups == width == width_in:
        return OrderedDict(conv=DepthwiseConv3d(width, stride), norm=norm(width))
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    conv = nn.Conv3d(width_in, width, kernel, stride, padding, groups=groups, bias=False)
    return OrderedDict(conv=conv, norm=norm(width))


def with_relu(layers: Layers) -> nn.Sequential:
    """The layers, and a ReLU after them."""
    return nn.Sequential(OrderedDict(**layers, relu=nn.ReLU(inplace=True)))


# The three ways to convolve in space and time. Each gives (interact, convolve): what lets the channels meet
# beforehand, if anything, and the 3x3x3 convolution, which carries the stride.
Convolution = Callable[..., tuple[nn.Module, Layers]]


def full(width_in: int, width: int, *, norm: Norm, stride: int, groups: int = 1) -> tuple[nn.Module, Layers]:
    """3x3x3 over the channels of each of `groups` groups: ResNet3D, and the paper's "-G" networks."""
    return nn.Identity(), conv_norm(width_in, width, (3, 3, 3), norm=norm, stride=stride, groups=groups)


def interaction_reduced(width_in: int, width: int, *, norm: Norm, stride: int) -> tuple[nn.Module, Layers]:
    """3x3x3 depthwise alone: the channels meet only in the 1x1x1 convolutions around it. ir-CSN."""
    return full(width_in, width, norm=norm, stride=stride, groups=width)


def interaction_preserved(width_in: int, width: int, *, norm: Norm, stride: int) -> tuple[nn.Module, Layers]:
    """1x1x1 and then 3x3x3 depthwise: every channel still meets every other. ip-CSN."""
    interact = nn.Sequential(conv_norm(width_in, width, (1, 1, 1), norm=norm))  # no ReLU: see the top of this file
    return interact, full(width, width, norm=norm, stride=stride, groups=width)[1]


def make_shortcut(width_in: int, width: int, *, norm: Norm, stride: int) -> nn.Module:
    """The identity, or a 1x1x1 projection where the width or the size changes."""
    if width_in == width and stride == 1:
        return nn.Identity()
    return nn.Sequential(conv_norm(width_in, width, (1, 1, 1), norm=norm, stride=stride))


class Simple(nn.Module):
    """Two 3x3x3 convolutions around which the input is added (the paper's "simple" block)."""

    expansion = 1

    def __init__(
        self, width_in: int, width: int, convolution: Convolution, *, norm: Norm, stride: int, drop_path: nn.Module
    ) -> None:
        super().__init__()
        self.convolve1 = with_relu(convolution(width_in, width, norm=norm, stride=stride)[1])
        self.convolve2 = nn.Sequential(convolution(width, width, norm=norm, stride=1)[1])
        self.shortcut = make_shortcut(width_in, width, norm=norm, stride=stride)
        self.drop_path = drop_path
        self.relu = nn.ReLU(inplace=True)

    def zero_last_norm(self) -> None:
        """Make the block the identity, to begin with."""
        nn.init.zeros_(self.convolve2.get_parameter("norm.weight"))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T, H, W) -> (B, width, T / stride, H / stride, W / stride)."""
        y = self.convolve1(x)
        y = self.convolve2(y)
        return self.relu(self.drop_path(y) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1x1 to fewer channels, 3x3x3 there, 1x1x1 to four times as many; the input is added (Figure 2 of the paper)."""

    expansion = 4

    def __init__(
        self, width_in: int, width: int, convolution: Convolution, *, norm: Norm, stride: int, drop_path: nn.Module
    ) -> None:
        super().__init__()
        width_out = width * self.expansion
        self.reduce = with_relu(conv_norm(width_in, width, (1, 1, 1), norm=norm))
        self.interact, convolve = convolution(width, width, norm=norm, stride=stride)
        self.convolve = with_relu(convolve)
        self.expand = nn.Sequential(conv_norm(width, width_out, (1, 1, 1), norm=norm))
        self.shortcut = make_shortcut(width_in, width_out, norm=norm, stride=stride)
        self.drop_path = drop_path
        self.relu = nn.ReLU(inplace=True)

    def zero_last_norm(self) -> None:
        """Make the block the identity, to begin with."""
        nn.init.zeros_(self.expand.get_parameter("norm.weight"))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T, H, W) -> (B, 4 width, T / stride, H / stride, W / stride)."""
        if runs_fused(self, x):  # the same in fewer passes over memory, on GPUs
            return bottleneck(self, x)
        y = self.reduce(x)  # (B, width, T, H, W)
        y = self.interact(y)
        y = self.convolve(y)  # (B, width, T / stride, H / stride, W / stride)
        y = self.expand(y)  # (B, 4 width, ...)
        return self.relu(self.drop_path(y) + self.shortcut(x))


@dataclass(frozen=True)
class Architecture:
    """One row of the table: which block, how many in each stage, which 3x3x3 convolution, how wide."""

    block: type[Simple] | type[Bottleneck]
    blocks: tuple[int, int, int, int]
    convolution: Convolution
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)  # of the 3x3x3 convolutions; the stem has the first


TINY = (16, 32, 64, 128)
STAGES = (1, 2, 3, 4)

ARCHITECTURES = {
    "resnet3d_18": Architecture(Simple, (2, 2, 2, 2), full),
    "resnet3d_34": Architecture(Simple, (3, 4, 6, 3), full),
    "resnet3d_26": Architecture(Bottleneck, (2, 2, 2, 2), full),
    "resnet3d_50": Architecture(Bottleneck, (3, 4, 6, 3), full),
    "resnet3d_101": Architecture(Bottleneck, (3, 4, 23, 3), full),
    "resnet3d_152": Architecture(Bottleneck, (3, 8, 36, 3), full),
    "resnet3d_tiny": Architecture(Bottleneck, (1, 1, 1, 1), full, TINY),
    "ipcsn_26": Architecture(Bottleneck, (2, 2, 2, 2), interaction_preserved),
    "ipcsn_50": Architecture(Bottleneck, (3, 4, 6, 3), interaction_preserved),
    "ipcsn_101": Architecture(Bottleneck, (3, 4, 23, 3), interaction_preserved),
    "ipcsn_152": Architecture(Bottleneck, (3, 8, 36, 3), interaction_preserved),
    "ipcsn_tiny": Architecture(Bottleneck, (1, 1, 1, 1), interaction_preserved, TINY),
    "ircsn_26": Architecture(Bottleneck, (2, 2, 2, 2), interaction_reduced),
    "ircsn_50": Architecture(Bottleneck, (3, 4, 6, 3), interaction_reduced),
    "ircsn_101": Architecture(Bottleneck, (3, 4, 23, 3), interaction_reduced),
    "ircsn_152": Architecture(Bottleneck, (3, 8, 36, 3), interaction_reduced),
    "ircsn_tiny": Architecture(Bottleneck, (1, 1, 1, 1), interaction_reduced, TINY),
}


class ResNet3D(nn.Module):
    """A network of ARCHITECTURES: normalised clips (B, C, T, H, W) to logits (B, K). Made by `create_network`.

    `architecture` and `options` are plain values, and `create_network(architecture, **options)` makes the same
    network again. The methods are named and behave as timm's.
    """

    stem: nn.Sequential
    stage1: nn.Sequential
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(self, name: str, architecture: Architecture, **options: Any) -> None:
        super().__init__()
        self.architecture = name
        self.options = options
        norm: Norm = partial(nn.BatchNorm3d, eps=options["norm_eps"], momentum=options["norm_momentum"])
        convolution = architecture.convolution
        if options["groups"] is not None:
            if convolution is not full:
                raise InputError(f"groups is for the resnet3d networks; {name!r} already has a group per channel")
            if any(width % options["groups"] for width in architecture.widths):
                raise InputError(f"groups must divide the widths {architecture.widths}, got {options['groups']}")
            convolution = partial(full, groups=options["groups"])
        depth = sum(architecture.blocks)
        rates = (options["drop_path"] * block / max(depth - 1, 1) for block in range(depth))

        width = architecture.widths[0]
        stem = conv_norm(options["in_channels"], width, (3, 7, 7), norm=norm, stride=(1, 2, 2))
        self.stem = with_relu(stem)
        if options["stem_pool"]:
            self.stem.add_module("pool", nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        reduction = 4 if options["stem_pool"] else 2  # of height and width
        self.feature_info: list[dict[str, Any]] = [{"num_chs": width, "reduction": reduction, "module": "stem"}]
        for stage, (stage_width, count) in enumerate(zip(architecture.widths, architecture.blocks, strict=True), 1):
            blocks = []
            for block in range(count):
                stride = 2 if block == 0 and stage > 1 else 1
                drop_path = make_drop_path(next(rates))
                blocks.append(
                    architecture.block(width, stage_width, convolution, norm=norm, stride=stride, drop_path=drop_path)
                )
                width = stage_width * architecture.block.expansion
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
            reduction *= 1 if stage == 1 else 2
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stage{stage}"})
        self.num_features = self.head_hidden_size = width
        self.dropout = nn.Dropout(options["dropout"])
        self.head: nn.Module = nn.Identity()
        self.checkpointed_stages: tuple[int, ...] = ()
        self._initialise()
        self.reset_classifier(options["num_classes"])

    @property
    def trunk_options(self) -> dict[str, Any]:
        """The options without num_classes, which records, checkpoints and callers keep apart."""
        return {name: value for name, value in self.options.items() if name != "num_classes"}

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                # MSRA, as in all released code. fan_out counts all channels, for depthwise kernels too, so these
                # start small; the BatchNorm after them makes up for it.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Simple | Bottleneck) and self.options["zero_init_last"]:
                module.zero_last_norm()

    def forward(self, clip: Tensor) -> Tensor:
        """Logits (B, K) of normalised clips (B, C, T, H, W); features (B, num_features) if there are no classes."""
        return self.forward_head(self.forward_features(clip))

    def forward_features(self, clip: Tensor) -> Tensor:
        """The last stage's map (B, num_features, T/8, H/32, W/32), sizes rounded up."""
        x = self.stem(clip)  # (B, 64, T, H/4, W/4)
        x = self._run(1, x)  # (B, 256, T, H/4, W/4)
        x = self._run(2, x)  # (B, 512, T/2, H/8, W/8)
        x = self._run(3, x)  # (B, 1024, T/4, H/16, W/16)
        return self._run(4, x)  # (B, 2048, T/8, H/32, W/32)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K) of a last map (B, num_features, T, H, W); with `pre_logits` the pooled (B, num_features)."""
        classify = None if pre_logits or self.num_classes == 0 else self._classify
        return pool_and_classify(x, classify, self.options["head_pooling"], self.options["head_average"])

    def _classify(self, pooled: Tensor) -> Tensor:
        return self.head(self.dropout(pooled))

    def forward_intermediates(
        self,
        clip: Tensor,
        indices: int | Sequence[int] | None = None,
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """The last map and a list of maps on the way, as in timm; only the list with `intermediates_only`.

        indices: which of 0 (stem) and 1 to 4 (stages), negative ones from the end; a number n means the last n;
        None means all five. With `stop_early` nothing after the last one asked for is run.
        """
        count = len(self.feature_info)
        wanted = list(range(count)) if indices is None else indices
        wanted = list(range(count - wanted, count)) if isinstance(wanted, int) else list(wanted)
        if not wanted or not all(-count <= index < count for index in wanted):
            raise InputError(f"indices must lie in 0 to {count - 1} (0 is the stem), got {indices!r}")
        wanted = [index % count for index in wanted]
        x, maps = clip, {}
        for index in range(count):
            if stop_early and index > max(wanted):
                break
            x = self._run(index, x) if index else self.stem(x)
            maps[index] = x
        intermediates = [maps[index] for index in wanted]
        return intermediates if intermediates_only else (x, intermediates)

    def _run(self, number: int, x: Tensor) -> Tensor:
        stage: nn.Module = getattr(self, f"stage{number}")
        if number not in self.checkpointed_stages or not torch.is_grad_enabled():
            return stage(x)
        for block in stage.children():
            if torch.compiler.is_compiling():  # a compiled second run computes what is missing, and no statistics
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = checkpoint(block, x, use_reentrant=False, context_fn=partial(recomputation_contexts, block))
        return x

    def get_classifier(self) -> nn.Module:
        """The head: a Linear layer, or Identity where there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, head_pooling: str | Sequence[int] | None = None) -> None:
        """Put a new head in place: normal weights of standard deviation 0.01, no bias, as the released code starts.

        num_classes: 0 for none, and the network gives pooled features.
        """
        num_classes = check_count("num_classes", num_classes, least=0)
        self.num_classes = num_classes
        self.options["num_classes"] = num_classes
        if head_pooling is not None:
            self.options["head_pooling"] = check_pooling(head_pooling)
        if num_classes == 0:
            self.head = nn.Identity()
            return
        weight = self.stem.get_parameter("conv.weight")
        self.head = nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] = STAGES) -> None:
        """Keep only the input of each block in training and compute the rest again on the way back.

        stages: which of 1 to 4 do so. Counted, the first holds two fifths of what the blocks of ir-CSN-152 keep for the
        way back, the second and the third a good quarter each.
        """
        if not set(stages) <= set(STAGES):
            raise InputError(f"stages must be some of 1 to 4, got {list(stages)}")
        self.checkpointed_stages = tuple(stages) if enable else ()

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns that sort parameters into layers, for timm's layer-wise learning rates; `coarse` means stages."""
        return {"stem": r"^stem\.", "blocks": r"^stage(\d+)" if coarse else r"^stage(\d+)\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        """Names that never get weight decay: none (norms and biases are the optimiser's to leave out)."""
        return set()


def pool_and_classify(
    x: Tensor, classify: Callable[[Tensor], Tensor] | None, pooling: str | Sequence[int], average: str
) -> Tensor:
    """Logits (B, K) of a map (B, C, T, H, W); the pooled (B, C) if there is nothing to `classify` with.

    pooling and average: head_pooling and head_average of `create_network`.
    """
    if isinstance(pooling, str):  # "global"
        x = x.mean((2, 3, 4)).unsqueeze(1)  # (B, places = 1, C)
    else:
        window = [min(pair) for pair in zip(pooling, x.shape[2:], strict=True)]
        x = F.avg_pool3d(x, window, stride=1)  # (B, C, places in T, H, W)
        x = x.flatten(2).transpose(1, 2)  # (B, places, C)
    if classify is None:
        return x.mean(1)
    logits = classify(x)  # (B, places, K)
    places = logits.shape[1]
    if average == "probabilities" and places > 1:
        return logits.log_softmax(-1).logsumexp(1) - math.log(places)  # softmax of this is the places' mean
    return logits.mean(1)


def recomputation_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the first run and of the second, which would otherwise count every batch twice."""
    return nullcontext(), without_statistics(block)


def make_drop_path(rate: float) -> nn.Module:
    """Leaves the whole branch out for a share `rate` of the clips while training (stochastic depth)."""
    if rate == 0:
        return nn.Identity()
    from timm.layers import DropPath  # timm takes seconds to import, and few networks need it

    return DropPath(rate)


def check_pooling(pooling: str | Sequence[int]) -> str | list[int]:
    """'global', or a window as three positive whole numbers."""
    if isinstance(pooling, str) and pooling == "global":
        return "global"
    if isinstance(pooling, Sequence) and not isinstance(pooling, str):
        window = list(pooling)
        if len(window) == 3 and all(isinstance(size, int) and size > 0 for size in window):
            return window
    raise InputError(f"head_pooling must be 'global' or three sizes (T, H, W) such as [4, 7, 7], got {pooling!r}")


def check_fits(option: str, value: object, fits: Callable[[float], bool], wanted: str) -> float:
    """A number that `fits`; `wanted` says in words which ones do."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not fits(float(value)):
        raise InputError(f"{option} must be {wanted}, got {value!r}")
    return float(value)


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `create_network` that come from outside (a file, the command line), as keyword arguments.

    Raises InputError for a name that is not one of them, with the nearest. num_classes is not one: callers have it
    apart.

    >>> check_options({"dropout": 0.5})
    {'dropout': 0.5}
    """
    if not isinstance(options, Mapping):
        raise InputError(f"network must be options by name, such as {{dropout: 0.5}}, got {options!r}")
    known = [name for name in inspect.signature(create_network).parameters if name not in ("name", "num_classes")]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"no option {name!r} of a network; {hint}there are: {', '.join(known)}")
    return dict(options)


def create_network(
    name: str,
    *,
    num_classes: int = 400,
    in_channels: int = 3,
    groups: int | None = None,
    norm_eps: float = 1e-3,
    norm_momentum: float = 0.1,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    zero_init_last: bool = False,
    stem_pool: bool = True,
    head_pooling: str | Sequence[int] = "global",
    head_average: str = "logits",
    inflate: str | nn.Module | None = None,
) -> ResNet3D:
    """A network of ARCHITECTURES with fresh weights (or inflated ones, see `inflate`).

    num_classes: K; 0 for a network that gives pooled features.
    in_channels: C of the clips; 3 for colour.
    groups: of every 3x3x3 convolution of a resnet3d network: the paper's study between ResNet3D (1) and ir-CSN.
    norm_eps: of every BatchNorm. 1e-3 is what all CSN weights but PyTorchVideo's (1e-5) were trained with.
    norm_momentum: share of the newest batch in the running statistics, in PyTorch's sense.
    dropout: before the head. drop_path: stochastic depth, from 0 at the first block to this at the last.
    zero_init_last: start each block as the identity (the last BatchNorm's scale is 0).
    stem_pool: max pooling after the stem; torchvision's r3d_18 has none.
    head_pooling: "global", or a window [T, H, W] that is averaged at every place (stride 1) before the head, as VMZ
        and PyTorchVideo test at 256 pixels: [4, 7, 7]. On a smaller map the window is the whole map.
    head_average: over windows, of "logits" (PyTorchVideo's hub) or of "probabilities" (VMZ, PySlowFast).
    inflate: start from a 2D timm ResNet: its name ("resnet50", with ImageNet weights, downloaded by timm) or the
        model itself. A resnet3d network of the same depth takes over all of it, every 2D kernel repeated in time and
        divided by the number of repeats (Carreira and Zisserman, arXiv:1705.07750), so that a still clip gives the 2D
        network's features, except near the clip's ends, where the zero padding in time shows. An ircsn or ipcsn
        network takes over the stem and the 1x1x1 layers; what has no 2D counterpart starts afresh: the depthwise
        3x3x3 layers, the BatchNorm after them, and the extra 1x1x1 of ip-CSN. Comes with the 2D network's BatchNorm
        eps; the head is always new.

    Raises InputError for an unknown name (with the nearest ones) and for values that make no sense.

    >>> network = create_network("ircsn_tiny", num_classes=8).eval()
    >>> clip = torch.zeros(1, 3, 8, 64, 64)
    >>> network(clip).shape, network.forward_features(clip).shape
    (torch.Size([1, 8]), torch.Size([1, 512, 1, 2, 2]))
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=5, cutoff=0.4)
        raise InputError(f"no network {name!r}; there are: {', '.join(near or ARCHITECTURES)}")
    if head_average not in ("logits", "probabilities"):
        raise InputError(f"head_average must be 'logits' or 'probabilities', got {head_average!r}")
    for option, share in (("dropout", dropout), ("drop_path", drop_path)):
        check_fits(option, share, lambda rate: 0 <= rate < 1, "0 or more and below 1")
    for option, switch in (("zero_init_last", zero_init_last), ("stem_pool", stem_pool)):
        if not isinstance(switch, bool):
            raise InputError(f"{option} must be true or false, got {switch!r}")
    network = ResNet3D(
        name,
        ARCHITECTURES[name],
        num_classes=num_classes,
        in_channels=check_count("in_channels", in_channels, least=1),
        groups=None if groups is None else check_count("groups", groups, least=1),
        norm_eps=check_fits("norm_eps", norm_eps, lambda eps: 0 < eps < math.inf, "a number above 0"),
        norm_momentum=check_fits("norm_momentum", norm_momentum, lambda share: 0 <= share <= 1, "from 0 to 1"),
        dropout=dropout,
        drop_path=drop_path,
        zero_init_last=zero_init_last,
        stem_pool=stem_pool,
        head_pooling=check_pooling(head_pooling),
        head_average=head_average,
    )
    if inflate is not None:
        inflate_network(network, inflate)
    return network


def list_networks(filter: str = "*") -> list[str]:
    """Names of the networks that match a pattern.

    >>> list_networks("ipcsn_*")
    ['ipcsn_101', 'ipcsn_152', 'ipcsn_26', 'ipcsn_50', 'ipcsn_tiny']
    """
    return sorted(fnmatch.filter(ARCHITECTURES, filter))


def inflate_network(network: ResNet3D, image_network: str | nn.Module) -> None:
    """Copy a 2D timm ResNet into `network`; see `create_network`. Raises InputError where the two do not fit."""
    if isinstance(image_network, str):
        image_network = load_image_network(image_network)
    if not isinstance(image_network, nn.Module):
        raise InputError(f"inflate must be the name of a timm ResNet, or one itself, got {image_network!r}")
    fresh = {"interact", "convolve"} if ARCHITECTURES[network.architecture].convolution is not full else set()
    tensors = network.state_dict()
    used, filled = set(), {}
    for name, value in image_network.state_dict().items():
        target = _inflated_name(name, ARCHITECTURES[network.architecture].block)
        if target is None:
            used.add(name)  # the classifier over ImageNet's classes
            continue
        if fresh & set(target.split(".")):
            used.add(name)
            continue
        if target not in tensors:
            continue
        shape = tensors[target].shape
        inflated = value if value.ndim != 4 else value[:, :, None].expand(-1, -1, shape[2], -1, -1) / shape[2]
        if inflated.shape == shape:
            used.add(name)
            filled[target] = inflated
    surplus = sorted(set(image_network.state_dict()) - used)
    empty = sorted(
        name for name in set(tensors) - set(filled) if not name.startswith("head.") and not fresh & set(name.split("."))
    )
    if surplus or empty:
        raise InputError(
            f"the 2D network does not fit {network.architecture!r}: {len(surplus)} of its tensors have no place"
            f" ({', '.join(surplus[:5])}), {len(empty)} are missing ({', '.join(empty[:5])}); take a plain ResNet"
            f" of the same depth, such as timm's resnet50 for resnet3d_50"
        )
    network.load_state_dict(filled, strict=False)  # every other tensor was accounted for above
    eps = next(module.eps for module in image_network.modules() if isinstance(module, nn.BatchNorm2d))
    network.options["norm_eps"] = eps
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = eps


def load_image_network(name: str) -> nn.Module:
    """A 2D network of timm with its weights; InputError where timm has none of that name or cannot download them."""
    import timm
    from huggingface_hub import constants, errors

    if ":" not in name and not timm.is_model(name):  # with a colon it is not in timm's list: hf-hub:owner/repo
        near = difflib.get_close_matches(name, timm.list_models("resnet*"), n=5)
        raise InputError(
            f"inflate: timm has no model {name!r}; there are: {', '.join(near) or 'resnet50, resnet18, …'}"
        )
    try:
        return timm.create_model(name, pretrained=True)
    except (OSError, errors.HTTPError) as error:  # what the Hub's client raises, without a network among it
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} did not give them"
        raise InputError(
            f"inflate: the weights of timm's {name} are not on this machine and {reason} ({type(error).__name__}). Two"
            f" ways out: (1) go online once, with HF_HUB_OFFLINE unset, and they are kept in {constants.HF_HUB_CACHE};"
            f" (2) in Python, give the model itself: inflate=timm.create_model({name!r}, checkpoint_path=...)"
        ) from error
    except (RuntimeError, ValueError) as error:  # no such tag, no weights, no such repository's name
        raise InputError(f"inflate: timm cannot make {name!r} with weights: {error}") from error


def _inflated_name(name: str, block: type[Simple] | type[Bottleneck]) -> str | None:
    """The name here of a tensor of timm's ResNet; None for its classifier."""
    steps = {Simple: ("convolve1", "convolve2"), Bottleneck: ("reduce", "convolve", "expand")}[block]
    parts = name.split(".")
    if parts[0] == "fc":
        return None
    if parts[0] in ("conv1", "bn1"):
        return f"stem.{'conv' if parts[0] == 'conv1' else 'norm'}.{parts[1]}"
    if not parts[0].startswith("layer"):
        return name  # has no place here, and is reported under its own name
    stage, number, layer, rest = f"stage{parts[0][5:]}", parts[1], parts[2], parts[-1]
    if layer == "downsample":
        return f"{stage}.{number}.shortcut.{'conv' if parts[3] == '0' else 'norm'}.{rest}"
    kind = {"conv": "conv", "bn": "norm"}.get(layer[:-1])
    if kind is None or not layer[-1].isdigit() or int(layer[-1]) > len(steps):
        return name
    return f"{stage}.{number}.{steps[int(layer[-1]) - 1]}.{kind}.{rest}"
