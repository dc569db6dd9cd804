"""Callbacks that `lightning-csn fit` adds to a run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

MemoryQuery = Callable[[torch.device], tuple[int, int] | None]


def gpu_memory(device: torch.device) -> tuple[int, int] | None:
    """The most bytes that tensors have had on a GPU so far, and the bytes it has; None for other devices."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory


class PeakMemory(Callback):
    """Prints, after the first epoch of a run and its validation, how much of the GPU's memory was needed.

    What later epochs need is the same. On a CPU nothing is printed: there, the operating system tells. query: gives the
    bytes at the peak and in all, or None where there is nothing to tell.
    """

    def __init__(self, query: MemoryQuery = gpu_memory) -> None:
        self.query = query
        self._told = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print, once a run; of several processes, the first one's."""
        if self._told:
            return
        self._told = True
        found = self.query(pl_module.device)
        if found is not None:
            peak, total = (count / 1e9 for count in found)
            pl_module.print(f"peak memory of the first epoch: {peak:.2f} GB of {total:.1f} GB on {pl_module.device}")
