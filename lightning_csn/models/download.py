"""From an address to a file on this machine: resumed where it broke off, checked, and only then put in its place.

An address is one of
    hf://owner/repo[@revision]/file     a file of a Hugging Face Hub repository (also hf-hub:...)
    https://...                         any other server; http:// for this machine only
    package:file                        a file that is part of this package
    anything else                       a path

Hub files are huggingface_hub's business. For plain addresses this file keeps the same promises: a partial file beside
the target, continued after a break; size and published hashes checked; then renamed into place; one process at a time.
Where nobody published a hash, the SHA-256 of the first download is written beside the file, and a later difference is
an error.

HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_DOWNLOAD_TIMEOUT mean what they mean elsewhere. LIGHTNING_CSN_MIRROR
names a folder or an address that is asked first: <mirror>/<last part of the address>. A mirror folder may also hold
owner/repo/file of the Hub; another server for these is what HF_ENDPOINT is for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import ipaddress
import json
import logging
import os
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lightning_csn import __version__
from lightning_csn.errors import InputError

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "LIGHTNING_CSN_MIRROR"
PACKAGE_FOLDER = Path(__file__).parent
CHUNK_BYTES = 1 << 20
RETRIES = 5  # failures in a row that bring no new byte; as many as huggingface_hub allows
MOST_TRIES = 100  # in all, however slowly a file grows
LONGEST_WAIT_SECONDS = 30.0
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}  # the server may answer otherwise in a moment
HUB_ADDRESS = re.compile(
    r"(?:hf://|hf-hub:)(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[\w.-]+))?"
    r"(?:/(?P<file>.+))?"
)


class DownloadError(InputError):
    """An address that did not give the file; another address may."""


class UnreachableError(DownloadError):
    """No answer, or none that is one."""


class ChangedFileError(InputError):
    """An address gives another file than it once gave; nobody should go on without looking."""


class _BrokenOffError(Exception):
    """A transfer that ended early or was refused for the moment: worth another try."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class HubFile:
    """A file of a Hub repository; without `revision` the newest, without `file` the repository itself."""

    repo: str
    revision: str | None
    file: str | None

    @classmethod
    def parse(cls, address: str) -> HubFile:
        """Read `hf://owner/repo[@revision][/file]`; raises InputError for anything else.

        >>> HubFile.parse("hf://someone/ircsn@v1/model.safetensors")
        HubFile(repo='someone/ircsn', revision='v1', file='model.safetensors')
        """
        match = HUB_ADDRESS.fullmatch(address)
        if match is None:
            raise InputError(f"a Hub address is hf://owner/repo, hf://owner/repo@revision or .../file, got {address!r}")
        return cls(match["repo"], match["revision"], match["file"])


def is_hub_address(address: str) -> bool:
    """Whether an address is meant for the Hugging Face Hub."""
    return address.startswith(("hf://", "hf-hub:"))


def is_web_address(address: str) -> bool:
    """Whether an address is meant for a plain web server."""
    return address.lower().startswith(("https://", "http://"))


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """SHA-256 of a file, as 64 hex digits, or its SHA-1, as 40."""
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != "sha1")
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(value: str) -> str:
    """The 64 hex digits in lower case; InputError for anything else (eight digits of a file name prove nothing).

    >>> check_sha256("AB" * 32)[:6]
    'ababab'
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise InputError(f"a sha256 has 64 hex digits, got {value!r}")
    return value.lower()


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """One place where weights lie: its address, and what is known of the file there (None: nobody said).

    sha1 is for a publisher who gives nothing better: it finds accidents, and is checked beside the SHA-256.
    """

    address: str
    format: str | None = None
    sha256: str | None = None
    sha1: str | None = None
    bytes: int | None = None

    def wrong_hash(self, path: Path) -> str | None:
        """What speaks against a file being this one; None if it has every hash that was published."""
        for algorithm, expected in (("sha256", self.sha256), ("sha1", self.sha1)):
            if expected is not None and (found := hash_file(path, algorithm)) != expected:
                return f"{algorithm} {expected} expected, got {found}"
        return None

    @classmethod
    def parse(cls, address: str | Path, sha256: str | None = None) -> WeightsFile:
        """Read an address that may carry its own hash, as `https://...#sha256=HEX`."""
        address = str(address)
        if is_web_address(address):
            address, _, fragment = address.partition("#")
            if fragment:
                if not fragment.startswith("sha256="):
                    raise InputError(f"after the # of an address only sha256=HEX has a meaning, got {fragment!r}")
                said = check_sha256(fragment.removeprefix("sha256="))
                if sha256 is not None and check_sha256(sha256) != said:
                    raise InputError(f"two different hashes for {address}: {said} in the address, {sha256} given")
                sha256 = said
        return cls(address=address, sha256=None if sha256 is None else check_sha256(sha256))


def fetch(address: str | Path, *, sha256: str | None = None) -> Path:
    """The file behind an address, on this machine; downloaded where it is not here yet.

    sha256: what the file must have, as 64 hex digits; `https://...#sha256=HEX` says the same.

    The path may lie in a cache that others read: do not write to it. Raises InputError with what was tried and what
    would do (DownloadError where another address might do); nothing half stays in the file's place.
    """
    return fetch_first([WeightsFile.parse(address, sha256)])[0]


def fetch_first(files: Sequence[WeightsFile]) -> tuple[Path, WeightsFile]:
    """The first of several files that can be had, and which one it is; see `fetch`.

    One that is here already (in the mirror folder or the cache) comes before one that would have to be downloaded.
    """
    for file in files:
        if is_web_address(file.address) and (path := _find_here(file)) is not None:
            return path, file
    failures: list[DownloadError] = []
    for file in files:
        try:
            path = _fetch(file)
        except DownloadError as error:
            failures.append(error)
            continue
        for failure in failures:
            logger.warning("%s; took the next address", failure)
        return path, file
    message = "\n".join(dict.fromkeys(str(failure) for failure in failures))
    if all(isinstance(failure, UnreachableError) for failure in failures):
        if len(files) > 1 and _is_offline():
            names = ", ".join(_file_name(file.address) for file in files)
            message = f"HF_HUB_OFFLINE is set and none of these is on this machine: {names}"
        raise UnreachableError(f"{message}\n{ways_out(files[0].address)}")
    raise DownloadError(message)


def _fetch(file: WeightsFile) -> Path:
    if is_hub_address(file.address):
        return _checked(_fetch_hub(HubFile.parse(file.address), file.address), file)
    if is_web_address(file.address):
        return _fetch_web(file)
    if file.address.startswith("package:"):
        path = PACKAGE_FOLDER / file.address.removeprefix("package:")
        if not path.is_file() or PACKAGE_FOLDER not in path.parents or ".." in path.parts:
            raise InputError(f"{file.address}: this installation of lightning_csn has no such file")
        return _checked(path, file)
    path = Path(file.address).expanduser()
    if not path.is_file():
        raise InputError(f"{file.address}: no such file")
    return _checked(path, file)


def ways_out(address: str) -> str:
    """What a person can do on a machine that does not reach an address, as the end of a message."""
    if is_hub_address(address):
        wanted = HubFile.parse(address)
        mirror = f"a folder that has {wanted.repo}/{wanted.file}"
    else:
        mirror = f"a folder or an address that has {_file_name(address)}"
    return (
        "Three ways out:\n"
        f"  (1) go online once, with HF_HUB_OFFLINE unset, and it is kept in {_cache_folder().parent};\n"
        f"  (2) set {MIRROR_VARIABLE} to {mirror};\n"
        "  (3) give the path of a local file or folder instead"
    )


def _checked(path: Path, file: WeightsFile) -> Path:
    """The path, if it holds what was said; DownloadError otherwise."""
    if file.bytes is not None and path.stat().st_size != file.bytes:
        raise DownloadError(f"{file.address}: {file.bytes} bytes expected, got {path.stat().st_size} ({path})")
    if (fault := file.wrong_hash(path)) is not None:
        raise DownloadError(f"{file.address}: refused, {fault} ({path})")
    return path


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "lightning_csn"


def _mirror() -> str | None:
    return os.environ.get(MIRROR_VARIABLE) or None


def _mirrored(name: str) -> Path | None:
    """The file of that name in the mirror folder, if there is a mirror folder and it has one."""
    mirror = _mirror()
    if mirror is None or is_web_address(mirror):
        return None
    folder = Path(mirror).expanduser()
    if not folder.is_dir():
        raise InputError(f"{MIRROR_VARIABLE} names neither a folder nor an https address: {mirror!r}")
    return folder / name if (folder / name).is_file() else None


# ---------------------------------------------------------------- the Hub


def _fetch_hub(wanted: HubFile, address: str) -> Path:
    """A file of the Hub, in huggingface_hub's own cache."""
    if wanted.file is None:
        raise InputError(f"{address} names a repository; add /file for one of its files")
    if (mirrored := _mirrored(f"{wanted.repo}/{wanted.file}")) is not None:
        return mirrored

    from huggingface_hub import constants, errors, hf_hub_download

    where = f"{wanted.repo}@{wanted.revision or 'main'}"
    try:
        path = Path(
            hf_hub_download(
                wanted.repo,
                wanted.file,
                revision=wanted.revision,
                library_name="lightning_csn",
                library_version=__version__,
            )
        )
    # The order matters: a gated repository is also one that is not found, a missing local file also a missing entry.
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{where} is gated: accept its conditions at {constants.ENDPOINT}/{wanted.repo} and log in (hf auth login)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(f"{constants.ENDPOINT} has no repository {wanted.repo!r}, or not for you") from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"repository {wanted.repo!r} has no revision {wanted.revision!r}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        reason = "HF_HUB_OFFLINE is set" if _is_offline() else f"{constants.ENDPOINT} cannot be reached"
        raise UnreachableError(f"{where}: {wanted.file} is not on this machine and {reason}") from error
    except errors.EntryNotFoundError as error:
        raise DownloadError(f"{where} has no file {wanted.file!r}") from error
    except errors.HFValidationError as error:
        raise InputError(f"{address}: {error}") from error
    except (errors.HTTPError, OSError) as error:  # what the client of the day raises for a broken line, a full disk
        raise DownloadError(f"{where}: {wanted.file} could not be fetched: {error}") from error
    if wanted.revision is None:
        logger.info("%s is at revision %s; name it to get the same file again", wanted.repo, hub_revision(path))
    return path


def hub_revision(path: Path) -> str | None:
    """The commit that a file in huggingface_hub's cache belongs to; None for a path elsewhere.

    >>> hub_revision(Path("models--a--b/snapshots/0123456789abcdef0123456789abcdef01234567/config.json"))
    '0123456789abcdef0123456789abcdef01234567'
    """
    for parent in path.parents:
        if parent.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", parent.name):
            return parent.name
    return None


# ---------------------------------------------------------------- plain addresses


def _fetch_web(file: WeightsFile) -> Path:
    if (path := _mirrored(_file_name(file.address))) is not None:
        return _checked(path, file)
    mirror = _mirror()
    mirrors = (
        [] if mirror is None or not is_web_address(mirror) else [f"{mirror.rstrip('/')}/{_file_name(file.address)}"]
    )
    return _download_to_cache([*mirrors, file.address], file)


def _find_here(file: WeightsFile) -> Path | None:
    """The file in the mirror folder or the cache, if it is there and whole."""
    if (path := _mirrored(_file_name(file.address))) is not None:
        return _checked(path, file)
    target = _target(file.address)
    recorded = dataclasses.replace(file, sha256=file.sha256 or _read_json(_note(target)).get("sha256"))
    try:
        return target if recorded.sha256 and target.is_file() and recorded.wrong_hash(target) is None else None
    except OSError:  # not ours to read: the same as not there
        return None


def _target(address: str) -> Path:
    """Where the cache keeps what an address gives."""
    return _cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16] / _file_name(address)


def _file_name(address: str) -> str:
    name = unquote(urlsplit(address).path).rsplit("/", 1)[-1].strip()
    if not name or name.startswith("."):
        raise InputError(f"{address}: the address does not end in a file name")
    return re.sub(r"[^\w.+-]", "_", name)[-150:]


def _check_scheme(address: str) -> None:
    """Refuse what could be changed on the way: everything but https, except on this machine."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    with contextlib.suppress(ValueError):
        host = "localhost" if ipaddress.ip_address(host).is_loopback else host
    if parts.scheme != "https" and not (parts.scheme == "http" and host == "localhost"):
        raise DownloadError(f"{address}: only https is taken from other machines")


def _download_to_cache(addresses: list[str], file: WeightsFile) -> Path:
    """The file, from the first of `addresses` that gives it, in its place in the cache."""
    import filelock

    target = _target(file.address)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.with_name(target.name + ".lock"))
        try:
            lock.acquire(timeout=1)
        except filelock.Timeout:
            logger.warning("%s is being downloaded by another process; waiting for it", target.name)
            lock.acquire()
        with contextlib.ExitStack() as stack:
            stack.callback(lock.release)
            return _download_locked(addresses, target, file)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(
                f"no space left in {target.parent} for {target.name}; free some, or set HF_HOME to another disk"
            ) from error
        raise InputError(f"{target.parent} cannot be written ({error}); set HF_HOME to a folder that can") from error


def _part(target: Path, address: str) -> Path:
    """Where the bytes of one address gather: a mirror without the file leaves alone what the origin has sent."""
    return target.with_name(f"{target.name}.{hashlib.sha256(address.encode()).hexdigest()[:8]}.part")


def _note(path: Path) -> Path:
    """Where the facts about a file stand: address and SHA-256 of a whole one, the ETag of a part."""
    return path.with_name(path.name + ".json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or cut off when the machine went down: as if never written
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    aside = path.with_name(path.name + ".new")
    aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _download_locked(addresses: list[str], target: Path, file: WeightsFile) -> Path:
    if (here := _find_here(file)) is not None:  # another process was faster
        return here
    note = _note(target)
    recorded = _read_json(note).get("sha256")
    if target.is_file():
        logger.warning("%s is no longer the file that was downloaded; fetching it again", target)
    if _is_offline():
        raise UnreachableError(f"{file.address} is not on this machine and HF_HUB_OFFLINE is set")

    is_published = file.sha256 is not None or file.sha1 is not None
    failures: list[DownloadError] = []
    for address in addresses:
        part = _part(target, address)
        try:
            _check_scheme(address)  # of a mirror too
            _transfer(address, part, num_bytes=file.bytes, resumable_without_tag=is_published)
        except DownloadError as error:
            failures.append(error)
            continue
        fault = file.wrong_hash(part)
        found = hash_file(part)
        if fault is None and (is_published or recorded in (None, found)):
            size = part.stat().st_size
            _write_json(note, {"address": address, "sha256": found, "bytes": size, "published": is_published})
            os.replace(part, target)
            for other in addresses:
                _drop(_part(target, other))
            for failure in failures:
                logger.warning("%s; took the next address", failure)
            return target
        _drop(part)
        if fault is None:
            raise ChangedFileError(
                f"{address}: refused, sha256 {recorded} expected, as at the first download, got {found}. "
                f"If you trust the new file, delete {note}"
            )
        failures.append(DownloadError(f"{address}: refused, {fault}"))
    kind = UnreachableError if all(isinstance(failure, UnreachableError) for failure in failures) else DownloadError
    raise kind("; ".join(map(str, failures)))


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _transfer(address: str, part: Path, *, num_bytes: int | None, resumable_without_tag: bool) -> None:
    """Fill the partial file of an address, going on where it stopped; DownloadError when the tries are spent."""
    failures = 0
    for tries in range(1, MOST_TRIES + 1):
        if not (_read_json(_note(part)).get("tag") or resumable_without_tag):
            _drop(part)  # nothing says that it is still the same file
        before = part.stat().st_size if part.is_file() else 0
        try:
            _transfer_once(address, part, num_bytes)
            return
        except OSError as error:
            if error.errno == errno.ENOSPC:
                _drop(part)  # the disk is needed for something else
            raise
        except _BrokenOffError as error:
            grown = part.is_file() and part.stat().st_size > before
            failures = 1 if grown else failures + 1
            if failures > RETRIES or tries == MOST_TRIES:
                raise UnreachableError(f"{address}: given up after {tries} tries: {error}") from error
            wait = (
                min(2.0 ** (failures - 1), LONGEST_WAIT_SECONDS) if error.wait_seconds is None else error.wait_seconds
            )
            logger.info("%s: %s; trying again in %.0f seconds", address, error, wait)
            time.sleep(wait)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow only where an address itself could have pointed."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            _check_scheme(newurl)
        except DownloadError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _transfer_once(address: str, part: Path, num_bytes: int | None) -> None:
    """One request. Leaves the partial file longer or whole; raises _BrokenOffError if it is worth another one."""
    from huggingface_hub import constants

    facts = _read_json(_note(part))
    start = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": f"lightning_csn/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if facts.get("tag"):
            headers["If-Range"] = facts["tag"]
    request = urllib.request.Request(address, headers=headers)
    try:
        answer = urllib.request.build_opener(_Redirects).open(request, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing after what we have: whole, or another file by now
            if start and error.headers.get("Content-Range") == f"bytes */{start}":
                return
            _drop(part)
            raise _BrokenOffError("the server has no more bytes than are here") from error
        if error.code in RETRIED_STATUS:
            raise _BrokenOffError(f"status {error.code} ({error.reason})", _retry_after(error.headers)) from error
        raise DownloadError(f"{address}: status {error.code} ({error.reason})") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror | ssl.SSLCertVerificationError | ConnectionRefusedError):
            raise UnreachableError(f"{address}: cannot be reached: {error.reason}") from error
        raise _BrokenOffError(str(error.reason)) from error
    except (http.client.HTTPException, OSError) as error:
        raise _BrokenOffError(f"{type(error).__name__}: {error}") from error
    with answer:
        _receive(answer, address, part, start, num_bytes)


def _receive(answer: Any, address: str, part: Path, start: int, num_bytes: int | None) -> None:
    """Write an answer's bytes to the partial file, after the `start` bytes that it has."""
    headers = answer.headers
    if "html" in headers.get("Content-Type", ""):
        raise DownloadError(f"{address}: sends a web page, not a file")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{address}: sends the file in the encoding {headers['Content-Encoding']!r}")
    if answer.status == 206 and start:
        said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if said is None or int(said[1]) != start:
            _drop(part)
            raise _BrokenOffError(f"answered with the wrong range {headers.get('Content-Range')!r}")
        total = None if said[2] == "*" else int(said[2])
    else:  # the whole file: the first request, or a server that ignores ranges, or a file that changed meanwhile
        start = 0
        total = int(headers["Content-Length"]) if (headers.get("Content-Length") or "").isdecimal() else None
    if num_bytes is not None and total is not None and total != num_bytes:
        _drop(part)
        raise DownloadError(f"{address}: {num_bytes} bytes expected, the server has {total}")
    if total is not None and shutil.disk_usage(part.parent).free < total - start:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))

    tag = headers.get("ETag", "")
    tag = headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag  # If-Range wants a strong one
    _write_json(_note(part), {"address": address, "tag": tag})
    with part.open("ab" if start else "wb") as file, _progress(part.name.rsplit(".", 2)[0], start, total) as bar:
        while True:
            try:
                chunk = answer.read1(CHUNK_BYTES)
            except (http.client.HTTPException, OSError) as error:  # of the socket; what the disk raises goes on up
                raise _BrokenOffError(f"{type(error).__name__}: {error}") from error
            if not chunk:
                break
            file.write(chunk)
            start += len(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    expected = num_bytes if total is None else total
    if expected is not None and start < expected:
        raise _BrokenOffError(f"the connection ended at byte {start} of {expected}")
    if expected is not None and start > expected:
        _drop(part)
        raise DownloadError(f"{address}: {expected} bytes expected, got {start}")


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks for, within reason; None where it does not say."""
    said = (headers.get("Retry-After") or "").strip()
    return min(float(said), LONGEST_WAIT_SECONDS) if said.isdecimal() else None


@contextlib.contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere."""
    from huggingface_hub import constants
    from tqdm import tqdm  # type: ignore[import-untyped]

    quiet = bool(constants.HF_HUB_DISABLE_PROGRESS_BARS) or not sys.stderr.isatty()
    with tqdm(total=total, initial=start, desc=name[-40:], unit="B", unit_scale=True, disable=quiet) as bar:
        yield bar
