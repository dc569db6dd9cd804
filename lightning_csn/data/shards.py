"""Packed data sets: WebDataset tar shards with an index, read from a folder or from object storage.

A packed data set is a folder, or an address that fsspec knows, with

* `train-000000.tar`, `train-000001.tar`, ... for each split: tar files as WebDataset wants them, uncompressed, for each
  video a member `key.mp4` and a member `key.json` (labels, class names, where it came from), in the order of the data;
* `index.json`: the classes, and for each video its shard, the offset and the number of its bytes, and its samples.

With the offsets, a video is one ranged read. So shards are read like files, in any order: what is shuffled, how
processes share an epoch, what is resumed and what happens to an unreadable video is the same for both, to the sample.
A video of a shard has a path like that of a file: `data/train-000000.tar?2048+91234#000001.mp4`, made of the shard,
the offset, the number of bytes, and the name.

Why WebDataset's format and not litdata's: a shard is a tar file, which tar, webdataset and libraries of many languages
read; chunks of litdata 0.2.76 are read by litdata alone, which brings boto3, obstore, requests and tifffile. What it
does beyond, reading at random and resuming, follows here from the offsets. What is not used is webdataset's reading:
version 1.0.2 hands out a stream that keeps no place to go on from, and gives each process shards of its own, so that
those with fewer samples end an epoch early and the others wait (webdataset issue 188, Lightning issue 20404).

fsspec comes with Lightning, and with it memory:, http: and https:. The extra `stream` adds s3fs, since most stores
speak S3; another protocol needs the package that fsspec names in its error (gcsfs for gs:, adlfs for az:).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import tarfile
import time
from typing import Any, NamedTuple

from lightning_csn.data.samples import Collection, Label, Part, Sample
from lightning_csn.data.video_info import VideoError, VideoLayout
from lightning_csn.errors import InputError

_log = logging.getLogger(__name__)

FORMAT = "lightning-csn shards"
VERSION = 1
INDEX = "index.json"
MOST_NOTE_BYTES = 4096  # of the JSON after a video, if it is to come with the video in one read
PAUSES_SECONDS = (0.2, 1.0, 4.0)  # before an address is tried again
_MEMBER = re.compile(r"(?P<shard>.+\.tar)\?(?P<offset>\d+)\+(?P<bytes>\d+)#(?P<name>[\w.-]+)", re.ASCII | re.DOTALL)
REFUSED = frozenset(range(400, 500)) - {408, 429}  # of HTTP; those two mean "later"
_FOR_GOOD = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)  # trying again is of no use


class Member(NamedTuple):
    """Where a video lies: `bytes` bytes of the shard from `offset` on. name: of the member of the tar file."""

    shard: str
    offset: int
    bytes: int
    name: str

    def __str__(self) -> str:
        return f"{self.shard}?{self.offset}+{self.bytes}#{self.name}"


def is_member(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a video in a shard; nothing is opened.

    >>> is_member("s3://bucket/data/train-000000.tar?2048+91234#000001.mp4"), is_member("data/train/a.mp4")
    (True, False)
    """
    return _MEMBER.fullmatch(os.fspath(path)) is not None


def parse_member(path: str | os.PathLike[str]) -> Member:
    """The parts of the path of a video in a shard; InputError where it is not one.

    >>> parse_member("data/val-000000.tar?512+900#000000.mp4")
    Member(shard='data/val-000000.tar', offset=512, bytes=900, name='000000.mp4')
    """
    match = _MEMBER.fullmatch(os.fspath(path))
    if match is None:
        raise InputError(f"{path}: not a video in a shard; that looks like 'data/train-000000.tar?512+900#000000.mp4'")
    return Member(match["shard"], int(match["offset"]), int(match["bytes"]), match["name"])


def read_member(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a video in a shard, with one read of just these.

    From an address, a read that fails is tried again after each of PAUSES_SECONDS, unless the answer is that there is
    no such file or that it may not be read. VideoError, which begins with the path, where the bytes cannot be had.
    """
    member = parse_member(path)
    return _read(member, member.bytes)


def read_member_and_layout(path: str | os.PathLike[str]) -> tuple[bytes, VideoLayout | None]:
    """The bytes of a video in a shard, and what was found out about it when it was packed, as `Video` takes it.

    That is in the member after the video, and comes with the same read. It is None where it was too long to be noted
    (as of a long video of varying rate), or was noted by a version that knew other things of a video; then `Video`
    looks for itself. Errors are those of `read_member`.
    """
    member = parse_member(path)
    padding = -member.bytes % tarfile.BLOCKSIZE
    content = _read(member, member.bytes + padding + tarfile.BLOCKSIZE + MOST_NOTE_BYTES)
    video, rest = content[: member.bytes], content[member.bytes + padding :]
    try:
        header = tarfile.TarInfo.frombuf(rest[: tarfile.BLOCKSIZE], "utf-8", "strict")
        note = rest[tarfile.BLOCKSIZE : tarfile.BLOCKSIZE + header.size]
        if header.name != f"{os.path.splitext(member.name)[0]}.json" or len(note) < header.size:
            return video, None
        return video, VideoLayout.from_dict(json.loads(note)["layout"])
    except (tarfile.HeaderError, UnicodeDecodeError, ValueError, KeyError, TypeError):
        return video, None


def _read(member: Member, most: int) -> bytes:
    """Up to `most` bytes from where a video begins, at least all of the video; VideoError where these are not there."""
    try:
        if is_address(member.shard):
            content = _fetch(member.shard, member.offset, member.offset + most)
        else:
            with open(member.shard, "rb") as shard:
                end = os.fstat(shard.fileno()).st_size  # room is made for all that is asked for
                shard.seek(min(member.offset, end))
                content = shard.read(min(most, end))
    except _ReadError as error:
        raise VideoError(f"{member}: {error}") from error
    except OSError as error:
        raise VideoError(f"{member}: {error.strerror or error}") from error
    if len(content) > most or _begins_a_tar_file(content):
        raise VideoError(f"{member}: {most} bytes were asked for; the server does not heed the Range of a request")
    if len(content) < member.bytes:
        raise VideoError(
            f"{member}: {member.bytes} bytes were asked for, {len(content)} came: the shard ends before; was it copied "
            "whole?"
        )
    return content


def _begins_a_tar_file(content: bytes) -> bool:
    """Whether these are the first bytes of a shard, which are no video's."""
    try:
        tarfile.TarInfo.frombuf(content[: tarfile.BLOCKSIZE], "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        return False
    return True


def is_packed(root: str | os.PathLike[str]) -> bool:
    """Whether a folder, or an address, is to be read as a packed data set.

    A folder is one by its index; an address always, since nothing else is read from there.
    """
    root = os.fspath(root)
    if is_address(root):
        return True
    try:
        with open(os.path.join(os.path.expanduser(root), INDEX), encoding="utf-8") as file:
            return f'"{FORMAT}"' in file.read(200)
    except (OSError, UnicodeDecodeError):
        return False


def read_packed(root: str | os.PathLike[str]) -> Collection:
    """The samples and classes of a packed data set, from its index alone.

    Several samples may be parts of one video. InputError where there is no index, or not one that this version reads.
    """
    root = os.fspath(root)
    index = read_index(root)
    base = root.rstrip("/") if is_address(root) else os.path.expanduser(root)
    samples: dict[str, list[Sample]] = {}
    try:
        for split, content in index["splits"].items():
            shards = [f"{base}/{name}" if is_address(base) else os.path.join(base, name) for name in content["shards"]]
            paths = [
                str(Member(shards[video["shard"]], video["offset"], video["bytes"], video["name"]))
                for video in content["videos"]
            ]
            samples[split] = [
                Sample(paths[sample["video"]], _label(sample["label"]), number, _part(sample.get("part")))
                for number, sample in enumerate(content["samples"])
            ]
        return Collection(samples, list(index["classes"]), f"packed ({index['packed']['how']})", index["multi_label"])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{base}/{INDEX}: damaged: {error!r}; pack the data set again") from error


def read_index(root: str | os.PathLike[str]) -> dict[str, Any]:
    """What `index.json` of a packed data set says; InputError where it is missing or cannot be used."""
    root = os.fspath(root)
    address = f"{root.rstrip('/')}/{INDEX}" if is_address(root) else os.path.join(os.path.expanduser(root), INDEX)
    try:
        if is_address(address):
            content = _fetch(address)
        else:
            with open(address, "rb") as file:
                content = file.read()
    except _ReadError as error:
        raise InputError(
            f"{root}: not a packed data set: {INDEX} cannot be read: {error}; 'lightning-csn pack' writes it"
        ) from error
    except OSError as error:
        raise InputError(
            f"{root}: not a packed data set: {INDEX} cannot be read: {error.strerror}; 'lightning-csn pack' writes it"
        ) from error
    try:
        index = json.loads(content)
    except ValueError as error:  # of JSON, or of UTF-8
        raise InputError(f"{address}: damaged: {error}; pack the data set again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f"{address}: not the index of a packed data set; 'lightning-csn pack' writes one")
    if index.get("version") != VERSION:
        raise InputError(
            f"{address}: version {index.get('version')!r}, this version of lightning-csn reads {VERSION}; "
            "pack the data set again, or use the version that packed it"
        )
    return index


def is_address(path: str) -> bool:
    """Whether a path is one for fsspec, such as s3://bucket/data, and not of a file.

    >>> is_address("https://host/data"), is_address("C:/data"), is_address("data:/x")
    (True, False, False)
    """
    return re.match(r"[A-Za-z][\w+.-]+://", path, re.ASCII) is not None


def _label(label: Any) -> Label:
    return tuple(label) if isinstance(label, list) else label


def _part(part: Any) -> Part | None:
    return None if part is None else Part(*part)


class _ReadError(Exception):
    """Why an address could not be read, for a person."""


def _fetch(address: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of an address, from `start` up to `end`; _ReadError where they cannot be had.

    fsspec keeps one file system for each process: a worker, forked or not, makes its own at its first read, since the
    event loop of the one that it inherits runs in a thread of the parent.
    """
    import aiohttp  # what fsspec reads http with; here, since most data sets are folders
    from fsspec.core import url_to_fs

    failures: tuple[type[Exception], ...] = (OSError, aiohttp.ClientError, asyncio.TimeoutError, *_errors_of_s3())
    for pause in (*PAUSES_SECONDS, None):
        try:
            files, path = url_to_fs(address)
            return files.cat_file(path, start=start, end=end)
        except ImportError as error:  # no package for this protocol
            extra = ": pip install 'lightning-csn[stream]'" if "s3fs" in str(error) else ""
            raise _ReadError(f"{error}{extra}") from error
        except ValueError as error:  # no such protocol
            raise _ReadError(str(error)) from error
        except _FOR_GOOD as error:
            raise _ReadError(_reason(error)) from error
        except failures as error:
            refused = isinstance(error, aiohttp.ClientResponseError) and error.status in REFUSED
            if pause is None or refused:
                tries = "" if refused else f" ({len(PAUSES_SECONDS) + 1} times tried)"
                raise _ReadError(_reason(error) + tries) from error
            _log.info("%s: %s; tried again in %g seconds", address, _reason(error), pause)
            time.sleep(pause)
    raise AssertionError("the last round returns or raises")


def _errors_of_s3() -> tuple[type[Exception], ...]:
    """What s3fs lets through of the library below, such as that there are no credentials, which is no OSError."""
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return ()
    return (BotoCoreError,)


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
