"""By what a network and the videos of a split are known again, wherever they lie: hashes, and what is said of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_csn.data.samples import Sample


def hash_weights(network: nn.Module) -> str:
    """sha256 of the names, types, shapes and bytes of all tensors of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_trunk(network: nn.Module) -> str:
    """sha256 of a network's weights, as `hash_weights`, but for the head, which is no part of its features."""
    return hash_weights(nn.ModuleDict({name: part for name, part in network.named_children() if name != "head"}))


def describe_videos(samples: Sequence[Sample]) -> dict[str, Any]:
    """count, first (a path) and sha256 of paths, labels and parts; paths from the folder on that all of them share.

    >>> videos = [Sample("a/run/1.mp4", 0, 0), Sample("a/walk/2.mp4", 1, 1)]
    >>> describe_videos(videos)["first"]
    'run/1.mp4'
    >>> describe_videos(videos) == describe_videos([s._replace(path=f"/data/{s.path}") for s in videos])
    True
    """
    paths = [sample.path.replace(os.sep, "/") for sample in samples]
    shared = os.path.commonprefix(paths)  # noqa: RUF071 - by letters, up to a slash: commonpath knows no addresses
    names = [path[shared.rfind("/") + 1 :] for path in paths]
    rows = [[name, sample.label, sample.part] for name, sample in zip(names, samples, strict=True)]
    return {"count": len(rows), "first": names[0] if names else "", "sha256": hash_json(rows)}


def hash_json(value: Any) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def video_text(videos: Mapping[str, Any] | None) -> str:
    """What is known of the videos of a split, in words."""
    return "unknown" if videos is None else f"{videos['count']} from {videos['first']} on ({videos['sha256'][:12]})"
