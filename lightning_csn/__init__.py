"""lightning_csn: video classification with channel-separated convolutional networks, on PyTorch Lightning.

The names below are loaded when they are first used, so that importing the package costs nothing and the networks
work where no video library is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightning_csn.clip import ClipSpec
    from lightning_csn.datamodule import VideoDataModule
    from lightning_csn.ema import EMA
    from lightning_csn.errors import InputError
    from lightning_csn.models.checkpoints import list_checkpoints, load_network
    from lightning_csn.models.network import create_network, list_networks
    from lightning_csn.module import LitCSN
    from lightning_csn.precise_bn import PreciseBatchNorm
    from lightning_csn.predict import classify
    from lightning_csn.unfreezing import GradualUnfreezing

_HOME = {
    "EMA": "ema",
    "ClipSpec": "clip",
    "GradualUnfreezing": "unfreezing",
    "InputError": "errors",
    "LitCSN": "module",
    "PreciseBatchNorm": "precise_bn",
    "VideoDataModule": "datamodule",
    "classify": "predict",
    "create_network": "models.network",
    "list_checkpoints": "models.checkpoints",
    "list_networks": "models.network",
    "load_network": "models.checkpoints",
}

__all__ = [
    "EMA",
    "ClipSpec",
    "GradualUnfreezing",
    "InputError",
    "LitCSN",
    "PreciseBatchNorm",
    "VideoDataModule",
    "classify",
    "create_network",
    "list_checkpoints",
    "list_networks",
    "load_network",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lightning_csn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lightning_csn.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
