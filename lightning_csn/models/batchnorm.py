"""BatchNorm beside the ordinary one: frozen, synchronised over processes, and counted over many batches.

BatchNorm has four tensors: weight and bias, which learn, and the running mean and variance, by which a network
normalises when it answers. In training it normalises by the batch and moves the running statistics. Where a batch holds
few clips that is noise, and the pretrained statistics are better kept: `freeze_norms`. Where several processes have few
clips each, all of them together may be enough: `sync_norms`. And where running statistics, an average over weights that
were still moving, do not fit the weights they end up with: `measure_statistics`.

All of it exchanges modules in place and keeps their tensors: names in the state dict, optimisers and averages of
weights stay right, before training and in the middle of it.

Shapes: B clips, C channels, T frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lightning_csn.errors import InputError, check_choice
from lightning_csn.models import depthwise
from lightning_csn.models.depthwise import depthwise_backend

FREEZE = ("none", "stats", "all")


class FrozenBatchNorm3d(_NormBase):
    """BatchNorm by its running statistics, which stay as they are, in train mode as in eval mode.

    frozen: "stats" if weight and bias learn, "all" if they stay, too. synchronised: whether it becomes a
    SyncBatchNorm3d when it is unfrozen.

    To torch it is no BatchNorm (`_BatchNorm`), so that neither `convert_sync_batchnorm` nor `update_bn` touch it. Its
    mode is that of the network around it: Lightning warns of modules that are in eval mode when training begins.

    >>> norm = FrozenBatchNorm3d(2).train()
    >>> bool((norm(torch.ones(1, 2, 1, 1, 1)) == (1 + norm.eps) ** -0.5).all()), norm.running_mean
    (True, tensor([0., 0.]))
    """

    frozen = "stats"
    synchronised = False

    def extra_repr(self) -> str:
        """What stands between the brackets when it is printed."""
        return f"{self.num_features}, eps={self.eps}, frozen={self.frozen!r}"

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same shape."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class SyncBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm by the batches of all processes: torch's SyncBatchNorm on GPUs, and the same on CPUs.

    A process may have an empty batch, but has to take part: the others wait for it. No nn.SyncBatchNorm, for DDP
    refuses any network with one of those on a CPU. process_group: which processes; None for all.
    """

    process_group: Any = None
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, T, H, W) -> the same shape."""
        if input.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]
        group = self.process_group
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if alone or not self.training or torch.distributed.get_world_size(group) == 1:
            return _BatchNorm.forward(self, input)
        self._check_input_dim(input)
        x = input.to(accurate(input))
        count = x.new_tensor([x.numel() // x.shape[1]])
        total: Tensor = SumOverProcesses.apply(torch.cat((count, x.sum((0, 2, 3, 4)))), group)
        places = total[0].detach()
        if places < 2:
            raise ValueError("BatchNorm needs more than one value per channel in training, all processes have one")
        mean = total[1:] / places
        x = x - mean.view(-1, 1, 1, 1)
        variance: Tensor = SumOverProcesses.apply(x.square().sum((0, 2, 3, 4)), group) / places
        self._update(mean.detach(), variance.detach() * (places / (places - 1)))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        x = x * scale.view(-1, 1, 1, 1)
        return (x if self.bias is None else x + self.bias.view(-1, 1, 1, 1)).to(input.dtype)

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if momentum is None else momentum
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum or 0.0)
            self.running_var.lerp_(variance.to(self.running_var.dtype), momentum or 0.0)


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes, on each of them; so is the way back."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Any) -> Tensor:
        """The sum; `own` stays as it is."""
        ctx.group = group
        total = own.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """What the losses of all processes ask of this one's part."""
        total = grad.clone()
        torch.distributed.all_reduce(total, group=ctx.group)
        return total, None


def accurate(x: Tensor) -> torch.dtype:
    """The type in which x is summed up."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm3d.forward, FrozenBatchNorm3d.forward)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module does in eval mode what BatchNorm3d does: live, synchronised or frozen.

    Not a subclass with a forward of its own; but what Lightning makes of a SyncBatchNorm after training.
    """
    return isinstance(module, _BatchNorm | FrozenBatchNorm3d) and type(module).forward in FORWARDS


def is_synchronised(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm that waits for the other processes."""
    return isinstance(module, nn.SyncBatchNorm | SyncBatchNorm3d)


def is_live(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm for clips that normalises by the batch in train mode."""
    return isinstance(module, _BatchNorm) and not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)


def live_norms(network: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms of a network that normalise by the batch in train mode."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and is_live(module)]


def frozen_norms(network: nn.Module) -> list[FrozenBatchNorm3d]:
    """The BatchNorms of a network that are frozen."""
    return [module for module in network.modules() if isinstance(module, FrozenBatchNorm3d)]


def is_fresh(norm: _NormBase) -> bool:
    """Whether the running statistics are those that a network begins with: mean 0, variance 1."""
    mean, variance = norm.running_mean, norm.running_var
    return mean is None or variance is None or not bool(mean.any() or (variance != 1).any())


# ---------------------------------------------------------------- freezing


def freeze_norms(network: nn.Module, what: str, stages: Sequence[str] | None = None) -> None:
    """Let the BatchNorms of a network normalise by their running statistics, in train mode too, and keep those.

    what: "stats": weight and bias go on learning. "all": they stay as well; their requires_grad is False. "none" is
        `unfreeze_norms`.
    stages: names of the parts to do it in, of stem and stage1 to stage4; None for all of the network.

    Raises InputError for another value, a part that is not there, and a BatchNorm without running statistics.

    >>> from lightning_csn.models.network import create_network
    >>> network = create_network("ircsn_tiny")
    >>> freeze_norms(network, "all", ["stem", "stage1"])
    >>> len(frozen_norms(network)), len(live_norms(network)), network.stem.norm.weight.requires_grad
    (5, 12, False)
    """
    check_choice("what", what, FREEZE)
    for parent, name, norm in places_of_norms(network, stages):
        if isinstance(norm, FrozenBatchNorm3d):
            new: _NormBase = norm if what != "none" else thawed(norm)
        elif what == "none":
            continue
        else:
            if norm.running_mean is None:
                raise InputError("a BatchNorm without running statistics has nothing to keep, and cannot be frozen")
            new = exchanged(norm, FrozenBatchNorm3d)
        if isinstance(new, FrozenBatchNorm3d):
            new.synchronised = new.synchronised or is_synchronised(norm)
        was_all = isinstance(norm, FrozenBatchNorm3d) and norm.frozen == "all"
        for parameter in (norm.weight, norm.bias):
            if parameter is not None and (what == "all" or was_all):
                parameter.requires_grad_(what != "all")
                parameter.grad = None  # or an optimiser would go on with it
        if isinstance(new, FrozenBatchNorm3d):
            new.frozen = what
        setattr(parent, name, new)


def unfreeze_norms(network: nn.Module, stages: Sequence[str] | None = None) -> None:
    """Let frozen BatchNorms normalise by the batch again, move their statistics and learn, as they did before."""
    freeze_norms(network, "none", stages)


def thawed(norm: FrozenBatchNorm3d) -> _BatchNorm:
    """The BatchNorm that a frozen one was."""
    return exchanged(norm, SyncBatchNorm3d if norm.synchronised else nn.BatchNorm3d)


# ---------------------------------------------------------------- synchronising


def sync_norms(network: nn.Module) -> None:
    """Let BatchNorms normalise by the batches of all processes; frozen ones stay frozen, and do so once unfrozen."""
    for parent, name, norm in places_of_norms(network):
        if isinstance(norm, FrozenBatchNorm3d):
            norm.synchronised = True
        elif type(norm) is not SyncBatchNorm3d:
            setattr(parent, name, exchanged(norm, SyncBatchNorm3d))


def unsync_norms(network: nn.Module) -> None:
    """Make plain BatchNorm3d of every SyncBatchNorm again, and of what Lightning leaves behind in their place."""
    for parent, name, norm in places_of_norms(network):
        if isinstance(norm, FrozenBatchNorm3d):
            norm.synchronised = False
        elif type(norm) is not nn.BatchNorm3d and is_batch_norm(norm):
            setattr(parent, name, exchanged(norm, nn.BatchNorm3d))


def places_of_norms(
    network: nn.Module, stages: Sequence[str] | None = None
) -> list[tuple[nn.Module, str, _BatchNorm | FrozenBatchNorm3d]]:
    """Every live or frozen BatchNorm of some parts of a network: the module it is in, its name there, and itself."""
    parts = dict(network.named_children())
    if stages is None:
        roots = [network]
    elif isinstance(stages, str) or not set(stages) <= parts.keys():
        raise InputError(f"stages must be some of {', '.join(parts)}, got {stages!r}")
    else:
        roots = [parts[stage] for stage in stages]
    return [
        (parent, name, child)
        for root in roots
        for parent in root.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm | FrozenBatchNorm3d) and (is_live(child) or not isinstance(child, _BatchNorm))
    ]


def exchanged(norm: _NormBase, kind: type[Any]) -> Any:
    """A BatchNorm of another kind with the very tensors of `norm`, and in its mode."""
    new = kind(
        norm.num_features,
        norm.eps,
        norm.momentum,
        affine=norm.weight is not None,
        track_running_stats=norm.track_running_stats,
        device="meta",
    )
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked", "training"):
        setattr(new, name, getattr(norm, name))
    if isinstance(new, SyncBatchNorm3d) and isinstance(norm, nn.SyncBatchNorm):
        new.process_group = norm.process_group
    return new


# ---------------------------------------------------------------- statistics


@contextmanager
def without_statistics(network: nn.Module) -> Iterator[None]:
    """BatchNorm still normalises by the batch, but leaves its running statistics as they are."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        count = norm.num_batches_tracked
        # SyncBatchNorm asks for a count, the other does not. Without running_mean, recomputation would save less.
        throwaway = count.clone() if count is not None and is_synchronised(norm) else None
        norm.momentum, norm.num_batches_tracked = 0.0, throwaway
    try:
        yield
    finally:
        for norm, momentum, num_batches_tracked in before:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked


@torch.no_grad()
def measure_statistics(network: nn.Module, batches: Iterable[Tensor], names: Collection[str] | None = None) -> int:
    """Make the running statistics of live BatchNorms those of `batches` under the weights as they are.

    Mean and variance over all places of all batches, of all processes where there are several: the variance within the
    batches and between them (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", arXiv:2105.07576, section 3;
    `torch.optim.swa_utils.update_bn` leaves out the part between). In the meantime these BatchNorms normalise by each
    batch, and everything else is in eval mode: no clip is left out by drop path. Modes, momentum and counts of batches
    stay as they are, and so do the statistics if there is not a single clip.

    batches: normalised clips (B, C, T, H, W); empty ones are left out, but where processes wait for each other.
    names: of the BatchNorms that are to have new ones, while the others answer by those they have; None for all.

    Gives the number of clips. Raises InputError if a BatchNorm was not run.
    """
    norms = [
        module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and is_live(module) and module.running_mean is not None
        if names is None or name in names
    ]
    sums = {norm: torch.zeros(1 + 2 * norm.num_features, dtype=torch.float64) for norm in norms}
    together = any(is_synchronised(norm) for norm in norms)

    def add(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].to(accurate(inputs[0]))
        places = x.numel() // x.shape[1]
        if places:
            variance, mean = torch.var_mean(x, (0, 2, 3, 4), correction=0)
            variance, mean = variance.cpu().double(), mean.cpu().double()  # not every device has float64
            sums[norm] += places * torch.cat((mean.new_ones(1), mean, variance + mean.square()))  # type: ignore[index]

    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    for norm in norms:
        norm.train()
    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    # A compiled network would be compiled anew for these hooks, and a fused block would say that it cannot run fused.
    eager = torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()
    plain = "triton" if depthwise._backend == "fused" else depthwise._backend
    clips = 0
    try:
        with without_statistics(network), eager, depthwise_backend(plain):
            for batch in batches:
                if len(batch) or together:
                    network(batch)
                clips += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    totals = sum_over_processes(torch.cat([*sums.values(), torch.tensor([clips], dtype=torch.float64)]), network)
    clips = int(totals[-1])
    for norm, total in zip(norms, totals[:-1].split([len(each) for each in sums.values()]), strict=True):
        places, mean, square = total.split((1, norm.num_features, norm.num_features))
        if clips == 0:
            break
        if places == 0:
            raise InputError("a BatchNorm of the network was not run, and so has no statistics of these clips")
        mean, square = mean / places, square / places
        variance = (square - mean.square()).clamp(min=0) * (places / (places - 1).clamp(min=1))
        for buffer, value in ((norm.running_mean, mean), (norm.running_var, variance)):
            assert buffer is not None  # of those in `norms`
            buffer.copy_(value)
    return clips


def sum_over_processes(values: Tensor, network: nn.Module) -> Tensor:
    """The sum of some float64 values over all processes, on the CPU."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    on_device = values.to(next(network.parameters()).device)  # where processes can talk to each other
    torch.distributed.all_reduce(on_device)
    return on_device.cpu()
