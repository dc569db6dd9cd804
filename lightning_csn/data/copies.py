"""Which videos are copies of one another: stamps of paths go in, groups of paths with the same content come out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from lightning_csn.data import shards
from lightning_csn.data.index import Stamp
from lightning_csn.data.video_info import VideoError


def find_copies(stamps: Mapping[str, Stamp], *, workers: int = 1) -> list[list[str]]:
    """Groups of videos with the same content, two or more each, sorted.

    Those of one size are compared by the SHA-256 of all their bytes; empty ones are left out, as are folders of frames
    and shards at an address. A file and a link to it are copies too.
    """
    by_size: dict[int, list[str]] = {}
    for path, stamp in stamps.items():
        if shards.is_member(path):
            member = shards.parse_member(path)
            if not shards.is_address(member.shard):
                by_size.setdefault(member.bytes, []).append(path)
        elif stamp.bytes and os.path.isfile(path):
            by_size.setdefault(stamp.bytes, []).append(path)
    candidates = [path for paths in by_size.values() if len(paths) > 1 for path in paths]
    by_content: dict[str, list[str]] = {}
    with ThreadPoolExecutor(workers) as threads:  # hashing lets other threads run
        for path, content in zip(candidates, threads.map(_hash, candidates), strict=True):
            if content is not None:
                by_content.setdefault(content, []).append(path)
    return sorted(sorted(paths) for paths in by_content.values() if len(paths) > 1)


def _hash(path: str) -> str | None:
    digest = hashlib.sha256()
    try:
        if shards.is_member(path):
            digest.update(shards.read_member(path))
        else:
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except (OSError, VideoError):  # its entry says so
        return None
    return digest.hexdigest()
