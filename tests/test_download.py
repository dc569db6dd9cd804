"""Downloads against real servers on this machine: one that misbehaves on purpose, one that behaves like the Hub."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from lightning_csn.errors import InputError
from lightning_csn.models import download
from lightning_csn.models.checkpoints import Checkpoint, save
from lightning_csn.models.download import (
    ChangedFileError,
    DownloadError,
    HubFile,
    UnreachableError,
    WeightsFile,
    fetch,
    fetch_first,
)

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[::-1] + b"more"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Reply:
    """What the server answers. cut: bytes of the body after which the connection breaks."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    tells_length: bool = True


@dataclass
class Server:
    """A server on the loopback; `answer` may be replaced at any time."""

    answer: Callable[[str, dict[str, str]], Reply]
    address: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers
    sent: int = 0  # bytes of bodies

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, _, headers in self.requests]


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    running = []

    def start(answer: Callable[[str, dict[str, str]], Reply]) -> Server:
        server = Server(answer)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = dict(self.headers.items())
                server.requests.append((self.command, self.path, headers))
                reply = server.answer(self.path, headers)
                self.send_response(reply.status)
                length = {"Content-Length": str(len(reply.body))} if reply.tells_length else {"Connection": "close"}
                for name, value in (length | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    body = reply.body[: reply.cut]
                    self.wfile.write(body)
                    server.sent += len(body)
                self.close_connection = reply.cut is not None or self.close_connection

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append((http, thread))
        server.address = f"http://127.0.0.1:{http.server_port}"
        return server

    yield start
    for http, thread in running:
        http.shutdown()
        http.server_close()
        thread.join()


def static(body: bytes, *, etag: str | None = '"one"', cuts: list[int | None] | None = None) -> Callable[..., Reply]:
    """A file served as it should be, Range and If-Range included; `cuts` says where each of the answers breaks off."""
    left = list(cuts or [])

    def answer(path: str, headers: dict[str, str]) -> Reply:
        said = {} if etag is None else {"ETag": etag}
        cut = left.pop(0) if left else None
        if "Range" in headers and headers.get("If-Range") in (None, etag):
            start = int(headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return Reply(status=416, headers={"Content-Range": f"bytes */{len(body)}"})
            said["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return Reply(body[start:], 206, said, cut)
        return Reply(body, 200, said, cut)

    return answer


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """A cache of this test's own, no mirror, no proxy, and no waiting: the seconds are collected instead."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("LIGHTNING_CSN_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    seconds: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


def cached(tmp_path: Path) -> list[str]:
    """Names of the files in the cache, locks left out."""
    return sorted(path.name for path in (tmp_path / "home").rglob("*.*") if path.suffix != ".lock")


def test_a_file_is_downloaded_once(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(static(CONTENT))
    path = fetch(f"{server.address}/some/weights.pth?dl=1", sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert path.name == "weights.pth"
    assert cached(tmp_path) == ["weights.pth", "weights.pth.json"]
    assert fetch(f"{server.address}/some/weights.pth?dl=1#sha256={SHA256.upper()}") == path
    assert len(server.requests) == 1


def test_a_broken_download_goes_on_where_it_stopped(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(static(CONTENT, cuts=[3000, 2000]))
    assert fetch(f"{server.address}/weights.pth").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=3000-", "bytes=5000-"]
    assert [headers.get("If-Range") for _, _, headers in server.requests] == [None, '"one"', '"one"']
    assert server.sent == len(CONTENT)  # no byte twice
    assert cached(tmp_path) == ["weights.pth", "weights.pth.json"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(serve: Callable[..., Server]) -> None:
    server = serve(static(CONTENT, cuts=[3000, *[0] * 100]))
    with pytest.raises(UnreachableError, match="given up after 6 tries: the connection ended at byte 3000 of 10240"):
        fetch(f"{server.address}/weights.pth")
    server.answer, asked = static(CONTENT), len(server.requests)
    assert fetch(f"{server.address}/weights.pth").read_bytes() == CONTENT
    assert server.ranges[asked:] == ["bytes=3000-"]


def test_a_part_that_is_whole_already_is_not_fetched_again(serve: Callable[..., Server]) -> None:
    server = serve(static(CONTENT, cuts=[3000, *[0] * 100]))
    with pytest.raises(UnreachableError):
        fetch(f"{server.address}/weights.pth", sha256=SHA256)
    part = next(Path(huggingface_hub.constants.HF_HOME).rglob("*.part"))
    part.write_bytes(CONTENT)  # as if the process had ended just before the renaming
    sent = server.sent
    assert fetch(f"{server.address}/weights.pth", sha256=SHA256).read_bytes() == CONTENT
    assert server.sent == sent


def test_a_server_that_ignores_ranges_sends_the_whole_file(serve: Callable[..., Server]) -> None:
    cuts = [3000, None]
    server = serve(lambda path, headers: Reply(CONTENT, headers={"ETag": '"one"'}, cut=cuts.pop(0)))
    assert fetch(f"{server.address}/weights.pth").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=3000-"]


def test_a_file_that_changed_meanwhile_is_not_patched_together(serve: Callable[..., Server]) -> None:
    answers = [static(CONTENT, cuts=[3000]), static(OTHER, etag='"two"')]
    server = serve(lambda path, headers: answers.pop(0)(path, headers))
    assert fetch(f"{server.address}/weights.pth").read_bytes() == OTHER


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_tag_or_a_hash_nothing_is_resumed(serve: Callable[..., Server], etag: str | None) -> None:
    server = serve(static(CONTENT, etag=etag, cuts=[3000, *[0] * 100]))
    with pytest.raises(UnreachableError):
        fetch(f"{server.address}/weights.pth")
    server.answer, asked = static(OTHER, etag=etag), len(server.requests)
    assert fetch(f"{server.address}/weights.pth").read_bytes() == OTHER
    assert server.ranges[asked:] == [None]


def test_an_answer_with_the_wrong_range_is_not_taken(serve: Callable[..., Server]) -> None:
    wrong = Reply(CONTENT[2999:], 206, {"Content-Range": f"bytes 2999-{len(CONTENT) - 1}/{len(CONTENT)}"})
    answers = [Reply(CONTENT, headers={"ETag": '"one"'}, cut=3000), wrong, Reply(CONTENT)]
    server = serve(lambda path, headers: answers.pop(0))
    assert fetch(f"{server.address}/weights.pth").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=3000-", None]


def test_a_wrong_hash_is_refused_and_nothing_is_left(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(static(OTHER))
    with pytest.raises(DownloadError, match=f"refused, sha256 {SHA256} expected, got "):
        fetch(f"{server.address}/weights.pth#sha256={SHA256}")
    assert cached(tmp_path) == []


def test_a_published_sha1_is_checked_wherever_the_file_comes_from(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = serve(static(OTHER))
    address = f"{server.address}/w.pth"
    fetch(address)  # somebody took it without knowing of a hash
    file = WeightsFile(address=address, sha1=hashlib.sha1(CONTENT).hexdigest())
    with pytest.raises(
        DownloadError, match=f"refused, sha1 {file.sha1} expected, got {hashlib.sha1(OTHER).hexdigest()}"
    ):
        fetch_first([file])
    server.answer = static(CONTENT)
    path, _ = fetch_first([file])
    assert path.read_bytes() == CONTENT
    note = json.loads(path.with_name("w.pth.json").read_text())
    assert (note["sha256"], note["published"]) == (SHA256, True)
    asked = len(server.requests)
    assert fetch_first([file])[0] == path
    assert len(server.requests) == asked
    (tmp_path / "w.pth").write_bytes(OTHER)
    with pytest.raises(DownloadError, match="refused, sha1"):
        fetch_first([dataclasses.replace(file, address=str(tmp_path / "w.pth"))])


def test_a_wrong_length_is_refused_and_nothing_is_left(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(static(CONTENT))
    with pytest.raises(DownloadError, match="9 bytes expected, the server has 10240"):
        fetch_first([WeightsFile(address=f"{server.address}/weights.pth", bytes=9)])
    assert cached(tmp_path) == []


def test_a_server_that_does_not_tell_the_length(serve: Callable[..., Server], tmp_path: Path) -> None:
    replies = [Reply(CONTENT[:3000], tells_length=False), Reply(CONTENT, tells_length=False)]
    server = serve(lambda path, headers: replies.pop(0))
    file = WeightsFile(address=f"{server.address}/weights.pth", bytes=len(CONTENT))
    assert fetch_first([file])[0].read_bytes() == CONTENT
    replies.append(Reply(OTHER, tells_length=False))
    with pytest.raises(DownloadError, match="10240 bytes expected, got 10244"):
        fetch_first([dataclasses.replace(file, address=f"{server.address}/other.pth")])
    assert cached(tmp_path) == ["weights.pth", "weights.pth.json"]


def test_the_first_hash_is_kept_and_another_file_refused_later(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(static(CONTENT))
    address = f"{server.address}/weights.pth"
    path = fetch(address)
    assert json.loads(path.with_name("weights.pth.json").read_text())["sha256"] == SHA256
    path.unlink()
    server.answer = static(OTHER, etag='"two"')
    with pytest.raises(ChangedFileError, match=r"as at the first download.*If you trust the new file, delete .*\.json"):
        fetch_first([WeightsFile(address=address), WeightsFile(address=address + "2")])
    assert cached(tmp_path) == ["weights.pth.json"]
    server.answer = static(CONTENT)
    assert fetch(address).read_bytes() == CONTENT


def test_a_damaged_file_of_the_cache_is_fetched_again(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(static(CONTENT))
    path = fetch(f"{server.address}/weights.pth")
    path.write_bytes(OTHER)
    assert fetch(f"{server.address}/weights.pth").read_bytes() == CONTENT
    assert "is no longer the file that was downloaded" in caplog.text


def test_addresses_are_tried_in_order(serve: Callable[..., Server], caplog: pytest.LogCaptureFixture) -> None:
    server = serve(lambda path, headers: Reply(CONTENT) if path == "/second.pkl" else Reply(status=404))
    files = [WeightsFile(address=f"{server.address}/{name}") for name in ("first.pth", "second.pkl", "third.pth")]
    path, file = fetch_first(files)
    assert (path.read_bytes(), file) == (CONTENT, files[1])
    assert [path for _, path, _ in server.requests] == ["/first.pth", "/second.pkl"]
    assert "first.pth: status 404" in caplog.text
    assert fetch_first(files)[1] == files[1]  # what is here already comes first
    assert len(server.requests) == 2


def test_all_failures_are_told(serve: Callable[..., Server]) -> None:
    server = serve(lambda path, headers: Reply(status=404 if path == "/a.pth" else 403))
    with pytest.raises(DownloadError, match=r"/a\.pth: status 404 .*\n.*/b\.pth: status 403"):
        fetch_first([WeightsFile(address=f"{server.address}/{name}.pth") for name in "ab"])


def test_a_busy_server_is_asked_again_when_it_says(serve: Callable[..., Server], waits: list[float]) -> None:
    answers = [Reply(status=503, headers={"Retry-After": "7"}), Reply(status=429), Reply(CONTENT)]
    server = serve(lambda path, headers: answers.pop(0))
    assert fetch(f"{server.address}/weights.pth").read_bytes() == CONTENT
    assert waits == [7, 2]


def test_tries_are_bounded(serve: Callable[..., Server], waits: list[float]) -> None:
    server = serve(lambda path, headers: Reply(status=500))
    with pytest.raises(UnreachableError, match=r"given up after 6 tries: status 500"):
        fetch(f"{server.address}/weights.pth")
    assert len(server.requests) == download.RETRIES + 1
    assert waits == [1, 2, 4, 8, 16]


def test_tries_are_bounded_for_a_server_that_drips(serve: Callable[..., Server]) -> None:
    server = serve(static(CONTENT, cuts=[1] * 1000))
    with pytest.raises(UnreachableError, match=r"given up after 100 tries"):
        fetch(f"{server.address}/weights.pth")


def test_offline_tells_the_three_ways_out(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(static(CONTENT))
    here = fetch(f"{server.address}/here.pth")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(f"{server.address}/here.pth") == here
    missing = r"(?s)^HF_HUB_OFFLINE is set and none .*: gone\.pth, gone\.pth\n"
    ways = r"Three ways out:\n  \(1\) .*\(2\) set LIGHTNING_CSN_MIRROR.*gone\.pth;\n  \(3\) .*local file"
    with pytest.raises(UnreachableError, match=missing + ways) as caught:
        fetch_first([WeightsFile(address=f"{server.address}/{folder}/gone.pth") for folder in "ab"])
    assert str(caught.value).count("(1)") == 1
    assert len(server.requests) == 1


def test_no_network_tells_the_three_ways_out() -> None:
    with pytest.raises(UnreachableError, match=r"(?s)weights\.pth: cannot be reached: .*\n.*\(3\) give the path"):
        fetch("http://127.0.0.1:1/weights.pth")


@pytest.mark.parametrize("address", ["http://example.org/weights.pth", "http://localhost.example.org/weights.pth"])
def test_plain_http_is_for_this_machine_only(address: str) -> None:
    with pytest.raises(DownloadError, match="only https is taken from other machines"):
        fetch(address)


def test_nobody_is_redirected_to_plain_http(serve: Callable[..., Server]) -> None:
    server = serve(lambda path, headers: Reply(status=302, headers={"Location": "http://example.org/weights.pth"}))
    with pytest.raises(DownloadError, match=r"http://example\.org/weights\.pth: only https"):
        fetch(f"{server.address}/weights.pth")


def test_redirects_are_followed(serve: Callable[..., Server]) -> None:
    server = serve(
        lambda path, headers: Reply(CONTENT) if path == "/b" else Reply(status=302, headers={"Location": "/b"})
    )
    assert fetch(f"{server.address}/weights.pth").read_bytes() == CONTENT


def test_a_web_page_is_not_weights(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(lambda path, headers: Reply(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"}))
    with pytest.raises(DownloadError, match="sends a web page"):
        fetch(f"{server.address}/weights.pth")
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    ("address", "sha256", "message"),
    [
        ("https://a.org/w.pth#sha256=12345678", None, "a sha256 has 64 hex digits, got '12345678'"),
        ("https://a.org/w.pth#md5=1", None, "only sha256=HEX has a meaning"),
        (f"https://a.org/w.pth#sha256={SHA256}", "0" * 64, "two different hashes"),
        ("https://a.org/", None, "does not end in a file name"),
        ("hf://justone", None, "a Hub address is hf://owner/repo"),
        ("hf://some/one", None, "add /file"),
        ("no/such.pth", None, r"no/such\.pth: no such file"),
        ("package:nothing.safetensors", None, "has no such file"),
        ("package:../clip.py", None, "has no such file"),
    ],
)
def test_addresses_that_make_no_sense(address: str, sha256: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fetch(address, sha256=sha256)


def test_the_mirror_folder_is_asked_first(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = serve(static(OTHER))
    (tmp_path / "mirror" / "owner" / "repo").mkdir(parents=True)
    (tmp_path / "mirror" / "weights.pth").write_bytes(CONTENT)
    (tmp_path / "mirror" / "owner" / "repo" / "w.pth").write_bytes(OTHER)
    monkeypatch.setenv("LIGHTNING_CSN_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(f"{server.address}/x/weights.pth", sha256=SHA256).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="refused"):
        fetch(f"{server.address}/x/weights.pth", sha256="0" * 64)
    assert fetch("hf://owner/repo@v1/w.pth").read_bytes() == OTHER
    assert server.requests == []
    monkeypatch.setenv("LIGHTNING_CSN_MIRROR", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="LIGHTNING_CSN_MIRROR names neither a folder nor an https address"):
        fetch(f"{server.address}/weights.pth")


def test_the_mirror_address_is_asked_first(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    origin = serve(static(CONTENT))
    mirror = serve(lambda path, headers: Reply(CONTENT) if path == "/kept/a.pth" else Reply(status=404))
    monkeypatch.setenv("LIGHTNING_CSN_MIRROR", f"{mirror.address}/kept/")
    assert fetch(f"{origin.address}/x/a.pth", sha256=SHA256).read_bytes() == CONTENT
    assert origin.requests == []
    assert fetch(f"{origin.address}/x/b.pth", sha256=SHA256).read_bytes() == CONTENT
    assert [path for _, path, _ in mirror.requests + origin.requests] == ["/kept/a.pth", "/kept/b.pth", "/x/b.pth"]


def test_a_mirror_without_the_file_costs_no_byte_of_the_origin(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    origin = serve(static(CONTENT, cuts=[3000, *[0] * 100]))
    mirror = serve(lambda path, headers: Reply(status=404))
    monkeypatch.setenv("LIGHTNING_CSN_MIRROR", mirror.address)
    with pytest.raises(DownloadError, match="given up"):
        fetch(f"{origin.address}/w.pth")
    origin.answer, asked = static(CONTENT), len(origin.requests)
    assert fetch(f"{origin.address}/w.pth").read_bytes() == CONTENT
    assert origin.ranges[asked:] == ["bytes=3000-"]
    assert cached(tmp_path) == ["w.pth", "w.pth.json"]


@pytest.mark.parametrize(
    ("body", "message"),
    [(None, r"/w\.pth: status 404 .*; took the next"), (OTHER, r"/w\.pth: refused, sha256 .*; took")],
)
def test_a_mirror_that_fails_is_told_once(
    serve: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    body: bytes | None,
    message: str,
) -> None:
    origin = serve(static(CONTENT))
    mirror = serve(lambda path, headers: Reply(status=404) if body is None else Reply(body))
    monkeypatch.setenv("LIGHTNING_CSN_MIRROR", mirror.address)
    fetch(f"{origin.address}/w.pth", sha256=SHA256)
    (record,) = caplog.records
    assert re.match(mirror.address + message, record.getMessage())


def test_a_mirror_over_plain_http_is_refused_and_told(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LIGHTNING_CSN_MIRROR", "http://mirror.invalid/csn")
    assert fetch(f"{serve(static(CONTENT)).address}/w.pth").read_bytes() == CONTENT
    (record,) = caplog.records
    assert record.getMessage().startswith("http://mirror.invalid/csn/w.pth: only https is taken")


def test_bytes_of_two_addresses_are_not_mixed(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mirror, origin = serve(static(OTHER, cuts=[3000, *[0] * 100])), serve(static(CONTENT))
    monkeypatch.setenv("LIGHTNING_CSN_MIRROR", mirror.address)
    assert fetch(f"{origin.address}/w.pth").read_bytes() == CONTENT
    assert origin.ranges == [None]
    assert cached(tmp_path) == ["w.pth", "w.pth.json"]


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_a_full_disk_is_told_and_nothing_is_left(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str
) -> None:
    server = serve(static(CONTENT))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "before":
        monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    else:
        monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(InputError, match=r"no space left in .* for weights\.pth; free some, or set HF_HOME"):
        fetch(f"{server.address}/weights.pth")
    assert cached(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_told(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"cannot be written .*; set HF_HOME to a folder that can"):
        fetch(f"{serve(static(CONTENT)).address}/weights.pth")


def test_a_file_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "PACKAGE_FOLDER", tmp_path)
    (tmp_path / "bundled.safetensors").write_bytes(CONTENT)
    assert fetch("package:bundled.safetensors", sha256=SHA256) == tmp_path / "bundled.safetensors"
    with pytest.raises(DownloadError, match="refused"):
        fetch("package:bundled.safetensors", sha256="0" * 64)


class Terminal:
    """Something that takes a progress bar."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_a_terminal_sees_a_bar(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server, terminal = serve(static(CONTENT)), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch(f"{server.address}/weights.pth")
    assert "weights.pth: 100%" in terminal.text


# ---------------------------------------------------------------- other processes

ENVIRONMENT_OF_OURS = ("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "LIGHTNING_CSN_MIRROR")


def start_python(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT_OF_OURS}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=kept | {"NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"} | environment,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(script: str, *arguments: str, **environment: str) -> list[str]:
    """The lines that a script prints in a process of its own."""
    process = start_python(script, *arguments, **environment)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output.splitlines()


FETCH = """
import sys
from lightning_csn.errors import InputError
from lightning_csn.models.download import fetch
for address in sys.argv[1:]:
    try:
        print(fetch(address))
    except InputError as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_two_processes_do_not_write_the_same_file(serve: Callable[..., Server], tmp_path: Path) -> None:
    def slowly(path: str, headers: dict[str, str]) -> Reply:
        time.sleep(1.5)
        return static(CONTENT)(path, headers)

    server = serve(slowly)
    processes = [start_python(FETCH, f"{server.address}/w.pth", HF_HOME=str(tmp_path / "home")) for _ in range(2)]
    printed = [process.communicate(timeout=300) for process in processes]
    assert printed[0][0] == printed[1][0]
    assert Path(printed[0][0].strip()).read_bytes() == CONTENT
    assert len(server.requests) == 1


def hub(files: dict[str, bytes]) -> Callable[[str, dict[str, str]], Reply]:
    """Answers as the Hub does, for owner/tiny at revision v1 and one gated repository."""

    def answer(path: str, headers: dict[str, str]) -> Reply:
        def fault(status: int, code: str) -> Reply:
            return Reply(b"{}", status, {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": COMMIT})

        owner, repo, resolve, revision, name = path.lstrip("/").split("/", 4)
        if repo == "gated":
            return fault(403, "GatedRepo")
        if (owner, repo, resolve) != ("owner", "tiny", "resolve"):
            return fault(404, "RepoNotFound")
        if revision not in ("v1", "main", COMMIT):
            return fault(404, "RevisionNotFound")
        if name not in files:
            return fault(404, "EntryNotFound")
        etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
        reply = static(files[name], etag=etag)(path, headers)
        reply.headers["X-Repo-Commit"] = COMMIT
        return reply

    return answer


def test_the_hub_and_its_refusals(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(hub({"weights.pth": CONTENT}))
    environment = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home")}
    good, again, absent, revision, repository, gated = run_python(
        FETCH,
        "hf://owner/tiny@v1/weights.pth",
        f"hf-hub:owner/tiny@{COMMIT}/weights.pth",
        "hf://owner/tiny@v1/other.pth",
        "hf://owner/tiny@v9/weights.pth",
        "hf://owner/nothing/weights.pth",
        "hf://owner/gated/weights.pth",
        **environment,
    )
    assert Path(good).read_bytes() == CONTENT
    assert again == good
    assert COMMIT in good
    assert good.startswith(str(tmp_path / "home" / "hub"))
    assert absent == "DownloadError: owner/tiny@v1 has no file 'other.pth'"
    assert revision == "DownloadError: repository 'owner/tiny' has no revision 'v9'"
    assert repository == f"DownloadError: {server.address} has no repository 'owner/nothing', or not for you"
    assert gated.startswith("DownloadError: owner/gated@main is gated: accept its conditions at ")

    asked = len(server.requests)
    here, *gone = run_python(
        FETCH, "hf://owner/tiny@v1/weights.pth", "hf://owner/tiny@v1/b.pth", **environment, HF_HUB_OFFLINE="1"
    )
    assert here == good
    assert gone[0].endswith("b.pth is not on this machine and HF_HUB_OFFLINE is set")
    assert gone[1] == "Three ways out:"
    assert gone[3] == "  (2) set LIGHTNING_CSN_MIRROR to a folder that has owner/tiny/b.pth;"
    assert len(server.requests) == asked


LOAD = """
import sys, torch
from lightning_csn.models.checkpoints import load
loaded = load(sys.argv[1])
print(loaded.network.architecture, loaded.checkpoint.classes, loaded.checkpoint.clip["frames"])
print(loaded.checkpoint.files[0].address)
print(repr(loaded.network(torch.ones(1, 3, 4, 32, 32)).flatten().tolist()))
"""


def test_a_repository_that_save_filled_loads_from_the_hub(serve: Callable[..., Server], tmp_path: Path) -> None:
    import torch

    from lightning_csn.models.network import create_network

    network = create_network("ircsn_tiny", num_classes=2).eval()
    record = Checkpoint(architecture="ircsn_tiny", num_classes=2, classes=["left", "right"], clip={"frames": 8})
    folder = save(network, record, tmp_path / "saved")
    server = serve(hub({path.name: path.read_bytes() for path in folder.iterdir()}))
    what, address, logits = run_python(
        LOAD, "hf://owner/tiny@v1", HF_ENDPOINT=server.address, HF_HOME=str(tmp_path / "home")
    )
    assert what == "ircsn_tiny ['left', 'right'] 8"
    assert address == f"hf://owner/tiny@{COMMIT}/model.safetensors"
    with torch.inference_mode():
        assert json.loads(logits) == pytest.approx(network(torch.ones(1, 3, 4, 32, 32)).flatten().tolist(), abs=1e-6)
    assert {path.split("/")[4] for _, path, _ in server.requests} == {"v1", COMMIT}


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("hf://a/b", HubFile("a/b", None, None)),
        ("hf-hub:a/b@v1.0", HubFile("a/b", "v1.0", None)),
        ("hf://a/b/sub/w.pth", HubFile("a/b", None, "sub/w.pth")),
        ("hf://a/b@refs/pr/3/w.pth", HubFile("a/b", "refs/pr/3", "w.pth")),
    ],
)
def test_hub_addresses(address: str, parsed: HubFile) -> None:
    assert HubFile.parse(address) == parsed
