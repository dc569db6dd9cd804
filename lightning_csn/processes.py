"""What the processes of a run tell each other. All of them make each of these calls, or those that do wait for ever."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_csn.errors import InputError, SharedError

Key = TypeVar("Key")
Value = TypeVar("Value")


def from_all(trainer: Trainer, value: Value) -> list[Value]:
    """A plain value of every process."""
    if trainer.world_size == 1:
        return [value]
    values = [value] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def gather(trainer: Trainer, messages: dict[Key, Value]) -> dict[Key, Value]:
    """What all processes have to say, by what it is about, such as the number of a video."""
    return {about: message for some in from_all(trainer, messages) for about, message in some.items()}


def take_buffers_of_first(module: nn.Module) -> None:
    """Give all processes the buffers of the first: of its batches are the running statistics that checkpoints hold."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def on_first_process(trainer: Trainer, work: Callable[[], Value]) -> Value:
    """What `work` gives on the first process, on all of them. Its InputError is raised on all, or the others would wait
    for one that has ended.
    """
    answer, problem = None, None
    if trainer.is_global_zero:
        try:
            answer = work()
        except InputError as error:
            problem = str(error)
    answer, problem = trainer.strategy.broadcast((answer, problem))
    if problem is not None:
        raise SharedError(problem)
    return answer  # type: ignore[return-value]  # there is one where there is no problem


def leave() -> None:
    """The last call of a program that ends in order, with no more to say to the others. Without it, a thread of gloo's
    that has yet to let go of what was said last finds Python gone and aborts the process, mostly on a busy machine; for
    that, Lightning and torchrun kill the others.

    The threads end with the last that holds the group, as a network in DistributedDataParallel does. Lightning lets go
    of that network, but the frames of an error keep it while the error is handled: call this after an `except` block,
    never in one. Cycles keep it, too, so they are collected first.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()
