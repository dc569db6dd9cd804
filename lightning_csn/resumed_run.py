"""What the checkpoint of a run says of that run, for whoever goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_csn.ema import EMA
from lightning_csn.errors import InputError
from lightning_csn.last_checkpoint import LastCheckpoint
from lightning_csn.models.tensors import DAMAGED_PICKLE
from lightning_csn.runner import is_export


def read_checkpoint(path: str) -> dict[str, Any]:
    """What a Lightning checkpoint of LitCSN holds; InputError if the file is none."""
    if not Path(path).is_file():
        lack = "this is a folder, not a file" if Path(path).is_dir() else "there is no such file"
        raise InputError(f"--ckpt_path {path}: {lack}")
    if is_export(path):
        raise InputError(f"--ckpt_path {path}: this is an exported file, which is given as --model.pretrained {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DAMAGED_PICKLE as error:
        if isinstance(error, OSError) and error.strerror:  # such as a lack of permission
            raise InputError(f"--ckpt_path {path}: it cannot be read: {error.strerror}") from error
        raise InputError(f"--ckpt_path {path}: this is no Lightning checkpoint") from error
    if not isinstance(content, dict) or not {"hyper_parameters", "state_dict"} <= set(content):
        raise InputError(
            f"--ckpt_path {path}: this is no Lightning checkpoint (it has no hyper_parameters); weights alone are "
            f"loaded by --model.pretrained {path}"
        )
    if not {"architecture", "clip", "network"} <= set(content["hyper_parameters"]):
        raise InputError(f"--ckpt_path {path}: this is the checkpoint of another LightningModule than LitCSN")
    return content


def folder_of_run(checkpoint: Mapping[str, Any], root: str) -> str | None:
    """Where the run of a checkpoint keeps its checkpoints, if that is still there and below `root`."""
    for name, state in checkpoint.get("callbacks", {}).items():
        if name.startswith(LastCheckpoint.__name__):
            folder = Path(state["dirpath"]).resolve()
            return str(folder) if folder.is_dir() and folder.is_relative_to(Path(root).resolve()) else None
    return None


def averaging_of_run(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of EMA in the run of a checkpoint; None for one that had none."""
    state = checkpoint.get("callbacks", {}).get(EMA.__name__)
    return None if state is None else {name: state[name] for name in EMA().settings}
