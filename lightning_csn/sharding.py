"""ShardedStrategy: weights, gradients and the optimiser's state spread over the processes (FSDP, the second of torch).

Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023, arXiv:2304.11277;
torch.distributed.fsdp.fully_shard. A CSN has few weights: most of the memory of its training are activations, for which
there is LitCSN(checkpointing=...).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer

from lightning_csn.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lightning_csn.models.network import ResNet3D


class ShardedStrategy(ModelParallelStrategy):
    """LitCSN on several processes, each of which keeps a part of every weight: Trainer(strategy=ShardedStrategy()).

    Batches, numbers and checkpoints are those of ddp: a checkpoint is one file, from which training goes on with any
    strategy on any number of processes. Unlike Lightning's strategy fsdp, it works on CPUs, too. Some of the weights
    may be frozen. A block's weights are brought together while it runs. The network stays sharded after a run: whole
    weights are in the checkpoint.

    Raises InputError for another module than LitCSN, and before torch 2.6.
    """

    NAME = "fsdp2"  # as an option of the command line; see register_strategies

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta | None = None) -> None:
        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            **options,
        )

    def setup_environment(self) -> None:
        """All processes of all machines share the weights."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Shard the network before Lightning takes it."""
        module: Any = self.lightning_module
        if not hasattr(module, "network"):
            raise InputError(f"strategy {self.NAME} shards the network of a LitCSN; {type(module).__name__} has none")
        if trainer.state.fn == TrainerFn.FITTING and self._layer_sync is not None:  # Lightning has it for ddp alone
            self._layer_sync.apply(module.network)
        shard(module.network, self.device_mesh["data_parallel"])
        module.configure_model = lambda: None  # Lightning insists on a module with a way of its own to be sharded
        super().setup(trainer)
        del module.configure_model

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state of an optimiser, on the first process, with weights numbered as the optimiser has them.

        Lightning 2.6 numbers them as the module has them, which is another order where there are several groups.
        """
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: Any = get_optimizer_state_dict(self._whole_module(), plain, options=options)
        if not state:  # another process
            return {}
        numbers = {name: number for number, name in enumerate(self._names(plain))}
        groups = [group | {"params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
        return {"state": {numbers[name]: kept for name, kept in state["state"].items()}, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and the optimisers' states from one file that any strategy wrote."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        optimizers, self.optimizers = self.optimizers, []
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only=weights_only)
        self.optimizers = optimizers
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        for optimizer, state in zip(optimizers, checkpoint.get("optimizer_states", []), strict=False):
            names = self._names(optimizer)
            groups = [
                group | {"params": [names[number] for number in group["params"]]} for group in state["param_groups"]
            ]
            named: Any = {
                "state": {names[number]: kept for number, kept in state["state"].items()},
                "param_groups": groups,
            }
            set_optimizer_state_dict(self._whole_module(), optimizer, named, options=options)
        return checkpoint

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Of an optimiser's weights, in its order."""
        names = {parameter: name for name, parameter in self._whole_module().named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

    def _whole_module(self) -> nn.Module:
        assert self.model is not None
        return self.model


def holds_whole_weights(strategy: object) -> bool:
    """Whether every process has all weights for itself: on one device, and under DDP.

    >>> from lightning.pytorch.strategies import DDPStrategy
    >>> holds_whole_weights(DDPStrategy()), holds_whole_weights(ShardedStrategy())
    (True, False)
    """
    # DeepSpeed's is a DDPStrategy, but spreads what it trains.
    return isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)


def shard(network: ResNet3D, mesh: DeviceMesh) -> None:
    """Spread the weights of a network over the processes of a mesh, block by block, in place."""
    try:
        from torch.distributed.fsdp import FSDPModule, fully_shard
    except ImportError as error:
        raise InputError(f"strategy {ShardedStrategy.NAME} needs torch 2.6 or newer; ddp does not") from error

    if isinstance(network, FSDPModule):  # of a run before
        return
    for stage in (network.stage1, network.stage2, network.stage3, network.stage4):
        for block in stage:
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def register_strategies() -> None:
    """Have the Trainer know ShardedStrategy by its name."""
    if ShardedStrategy.NAME not in StrategyRegistry:
        StrategyRegistry.register(ShardedStrategy.NAME, ShardedStrategy, description="LitCSN sharded by FSDP2")
