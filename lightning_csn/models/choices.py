"""What was measured to be fastest on a kind of GPU, and kept in files for all later runs: tiles, products, blocks.

A choice holds for one kind of GPU, and for the versions that it was measured with.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

from lightning_csn import __version__


@lru_cache(4096)  # each launch asks
def chosen(file: str, problem: Any, device: torch.device) -> Any:
    """What `keep` wrote to a file for a problem on this kind of GPU; None for nothing."""
    return _measured(cache_path(file)).get(_key(problem, device))


def keep(file: str, problem: Any, device: torch.device, choice: Any) -> None:
    """Add a choice to a file."""
    path = cache_path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({**_measured(path), _key(problem, device): choice}, indent=1))
    partial.replace(path)  # another process never reads half a file
    forget()


def forget() -> None:
    """Read the files anew at the next question, as another process would, and where LIGHTNING_CSN_CACHE says now."""
    _measured.cache_clear()
    chosen.cache_clear()


def cache_path(file: str) -> Path:
    """Where choices are kept: LIGHTNING_CSN_CACHE, or lightning_csn in the user's cache folder."""
    folder = os.environ.get("LIGHTNING_CSN_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(folder) if folder else Path(caches) / "lightning_csn") / file


def _key(problem: Any, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    versions = f"triton {importlib.metadata.version('triton')}, torch {torch.__version__}, lightning-csn {__version__}"
    return f"{name}, {versions}, {problem}"


@cache
def _measured(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
