import http.server
import io
import json
import sys
import tarfile
import threading
import types
from pathlib import Path

import fsspec
import pytest
import torch

from lightning_csn.clip import ClipSpec
from lightning_csn.data import shards
from lightning_csn.data.annotations import find_samples
from lightning_csn.data.dataset import VideoDataset, collate
from lightning_csn.data.packing import pack
from lightning_csn.data.reading import open_video
from lightning_csn.data.shards import (
    is_member,
    is_packed,
    parse_member,
    read_member,
    read_member_and_layout,
    read_packed,
)
from lightning_csn.data.video import Video
from lightning_csn.data.video_info import VideoError
from lightning_csn.errors import InputError

CLIP = ClipSpec(frames=4, step=2, fps=None, short_side=32, crop=32, test_crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def packed(tmp_path_factory, split_folder):
    """The videos of `split_folder`, copied into shards of few videos."""
    out = tmp_path_factory.mktemp("packed") / "data"
    pack(find_samples(split_folder), out, root=split_folder, shard_bytes=20_000)
    return out


@pytest.fixture(scope="module")
def in_memory(packed):
    """The same, as an address of fsspec."""
    files = fsspec.filesystem("memory")
    for path in packed.iterdir():
        files.pipe_file(f"/packed/{path.name}", path.read_bytes())
    yield "memory://packed"
    files.rm("/packed", recursive=True)


class Server(http.server.ThreadingHTTPServer):
    """Serves the files of a folder. mode: "ranges", "whole" (heeds no Range), "flaky" (drops two of three connections),
    "down" (always 503), "forbidden" (always 403)."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.mode, self.requests = folder, "ranges", 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests += 1
        mode = self.server.mode
        if mode == "flaky" and self.server.requests % 3:
            self.close_connection = True
            return
        if mode in ("down", "forbidden"):
            self.send_error(503 if mode == "down" else 403)
            return
        path = Path(self.server.folder, self.path.lstrip("/"))
        if not path.exists():
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = self.headers.get("Range")
        if asked and mode != "whole":
            start, end = asked.removeprefix("bytes=").split("-")
            content = content[int(start) : int(end) + 1]
        self.send_response(206 if asked and mode != "whole" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(packed, monkeypatch):
    monkeypatch.setattr(shards, "PAUSES_SECONDS", (0.01, 0.01))
    with Server(packed) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield server
        server.shutdown()
        thread.join()


def items_of(collection, split, train=False):
    return VideoDataset(collection.samples[split], CLIP, train=train)


def assert_same(item, other):
    assert item.keys() == other.keys()
    for key in item.keys() - {"seconds"}:
        mine, its = item[key], other[key]
        assert torch.equal(mine, its) if isinstance(mine, torch.Tensor) else mine == its, key


@pytest.mark.parametrize(
    ("path", "member"),
    [
        ("/data/train-000000.tar?512+900#000000.mp4", True),
        ("s3://bucket/a b/train-000012.tar?0+1#000000.webm", True),
        ("https://host/x/val-000000.tar?512+900#000000.mp4", True),
        ("/data/train-000000.tar", False),
        ("/data/a.mp4", False),
        ("/data/a.tar?512+900#sub/000000.mp4", False),
    ],
)
def test_a_member_is_told_by_its_path(path, member):
    assert is_member(path) == member


def test_the_path_of_a_member_comes_apart_and_together():
    path = "s3://bucket/what? 1+1#2/train-000012.tar?1024+77#000003.mp4"
    member = parse_member(path)
    assert member == ("s3://bucket/what? 1+1#2/train-000012.tar", 1024, 77, "000003.mp4")
    assert str(member) == path
    with pytest.raises(InputError, match="not a video in a shard"):
        parse_member("a.mp4")


def test_a_packed_folder_is_the_collection_that_was_packed(packed, split_folder):
    found, files = read_packed(packed), find_samples(split_folder)
    assert is_packed(packed)
    assert not is_packed(split_folder)
    assert found.classes == files.classes
    assert found.layout == "packed (copied)"
    for split, samples in files.samples.items():
        assert [sample.label for sample in found.samples[split]] == [sample.label for sample in samples]
        assert [sample.video for sample in found.samples[split]] == list(range(len(samples)))
        for sample, file in zip(found.samples[split], samples, strict=True):
            assert read_member(sample.path) == Path(file.path).read_bytes()


def test_find_samples_finds_what_is_packed(packed):
    assert find_samples(packed) == read_packed(packed)


@pytest.mark.parametrize("train", [True, False])
def test_a_dataset_reads_shards_as_it_reads_files(packed, split_folder, train):
    from lightning_csn.data.order import Draw

    files = items_of(find_samples(split_folder), "train", train)
    packed_files = items_of(read_packed(packed), "train", train)
    for number in range(len(files)):
        asked = Draw(number, seed=number) if train else number
        assert_same(packed_files[asked], files[asked])


def test_frames_of_a_member_show_their_numbers(packed, read_number):
    sample = read_packed(packed).samples["val"][1]
    with open_video(sample.path) as video:
        assert [read_number(frame) for frame in video.frames([3, 0, 11])] == [3, 0, 11]


def test_the_layout_comes_with_the_video_and_is_that_of_a_scan(packed):
    for sample in read_packed(packed).samples["train"]:
        content, layout = read_member_and_layout(sample.path)
        assert content == read_member(sample.path)
        with Video(content) as video:
            assert layout.to_dict() == video.layout.to_dict()


def test_without_a_note_or_with_another_one_the_video_is_scanned(tmp_path, packed):
    path = parse_member(read_packed(packed).samples["train"][0].path)
    content, layout = read_member_and_layout(str(path))
    another = json.dumps({"layout": layout.to_dict()}).encode()
    for name, note in (
        ("000000.json", b'{"layout": {"other": 1}}'),
        ("000001.json", another),
        ("000000.json", b"\xff"),
    ):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for member, data in (("000000.mp4", content), (name, note)):
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        member = shards.Member(str(tmp_path / "a.tar"), 512, len(content), "000000.mp4")
        assert read_member_and_layout(str(member)) == (content, None)


def test_a_member_of_an_address_is_read_by_its_range(in_memory, packed):
    assert is_packed(in_memory)
    near, far = read_packed(packed).samples["test"], read_packed(in_memory).samples["test"]
    assert far[0].path.startswith("memory://packed/test-000000.tar?512+")
    assert [read_member(sample.path) for sample in far] == [read_member(sample.path) for sample in near]


def test_a_web_server_is_asked_for_the_bytes_of_a_video_alone(server, packed, split_folder):
    files, far = items_of(find_samples(split_folder), "test"), items_of(find_samples(server.address), "test")
    server.requests = 0
    for number in range(len(files)):
        assert_same(far[number], files[number])
    assert server.requests == len(files)


def test_forked_workers_read_addresses_by_connections_of_their_own(server):
    data = items_of(read_packed(server.address), "train")
    expected = [data[number]["clips"] for number in range(4)]  # the event loop of this process runs by now
    loader = torch.utils.data.DataLoader(
        data, batch_size=2, num_workers=2, collate_fn=collate, multiprocessing_context="fork"
    )
    batches = [batch["clips"] for batch, _ in zip(loader, range(2), strict=False)]
    assert torch.equal(torch.cat(batches), torch.stack(expected))


def test_a_dropped_connection_is_tried_again(server):
    sample = read_packed(server.address).samples["val"][0]
    server.mode, server.requests = "flaky", 0
    with open_video(sample.path) as video:
        assert video.info.num_frames == 12
    assert server.requests == 3  # aiohttp tries once more by itself, at most


@pytest.mark.parametrize(
    ("mode", "message", "requests"),
    [("down", r"503.*\(3 times tried\)", 3), ("forbidden", "403", 1), ("whole", "does not heed the Range", 1)],
)
def test_what_cannot_be_read_is_an_error_with_the_address(server, mode, message, requests):
    path = read_packed(server.address).samples["val"][0].path
    server.mode, server.requests = mode, 0
    with pytest.raises(VideoError, match=f"http://127.0.0.1.*val-000000.tar.*: .*{message}"):
        open_video(path)
    assert server.requests == requests


def test_all_of_a_small_shard_is_not_taken_for_a_video(server, monkeypatch):
    path = read_packed(server.address).samples["val"][0].path
    server.mode = "whole"
    monkeypatch.setattr(shards, "MOST_NOTE_BYTES", 100_000)  # more than all of the shard
    with pytest.raises(VideoError, match="does not heed the Range"):
        open_video(path)


@pytest.mark.parametrize("place", ["512+999999999999999", f"{10**25}+5", f"512+{10**25}"])
def test_a_member_beyond_the_end_of_a_shard_is_an_error(place, packed):
    """However far beyond: a damaged index costs no memory."""
    with pytest.raises(VideoError, match="the shard ends before"):
        read_member(f"{packed}/train-000000.tar?{place}#000000.mp4")


def test_what_the_library_of_s3_raises_is_an_error_with_the_address(monkeypatch):
    """Its errors are no OSError: without credentials, every worker would end with a traceback."""

    class BotoCoreError(Exception):
        pass

    class Store:
        def cat_file(self, path, start=None, end=None, **options):
            raise BotoCoreError("Unable to locate credentials")

    monkeypatch.setitem(sys.modules, "botocore", types.ModuleType("botocore"))
    monkeypatch.setitem(sys.modules, "botocore.exceptions", types.SimpleNamespace(BotoCoreError=BotoCoreError))
    monkeypatch.setattr(shards, "PAUSES_SECONDS", (0.01,))
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda address: (Store(), address))
    with pytest.raises(VideoError, match=r"s3://bucket/a.tar.*Unable to locate credentials"):
        read_member("s3://bucket/a.tar?512+4#000000.mp4")


def test_a_server_that_is_gone_is_an_error_with_the_address(monkeypatch):
    monkeypatch.setattr(shards, "PAUSES_SECONDS", (0.01,))
    with pytest.raises(VideoError, match=r"http://127.0.0.1:9/a.tar.*2 times tried"):
        read_member("http://127.0.0.1:9/a.tar?512+4#000000.mp4")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://nowhere", "index.json cannot be read: no such file"),
        ("nosuch://bucket/data", "Protocol not known: nosuch"),
        ("/nowhere", "index.json cannot be read: No such file"),
    ],
)
def test_where_no_index_is_read_packed_says_so(address, message):
    with pytest.raises(InputError, match=f"{address}: not a packed data set: .*{message}"):
        read_packed(address)


def test_what_reads_an_address_and_is_missing_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"Install s3fs to access S3: pip install 'lightning-csn\[stream\]'"):
        read_packed("s3://bucket/data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2, this version of lightning-csn reads 1"),
        ({"format": "other"}, "not the index of a packed data set"),
        ({"splits": {"train": {}}}, "damaged: KeyError"),
        ({"splits": {"train": {"shards": [], "videos": [{"shard": 0}], "samples": []}}}, "damaged: IndexError"),
    ],
)
def test_an_index_that_cannot_be_used_is_an_error(tmp_path, packed, change, message):
    index = json.loads((packed / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(InputError, match=f"index.json: {message}"):
        read_packed(tmp_path)


def test_an_index_that_is_no_json_is_an_error(tmp_path):
    (tmp_path / "index.json").write_text('{"format": "lightning-csn shards", ')
    assert is_packed(tmp_path)
    with pytest.raises(InputError, match="damaged"):
        read_packed(tmp_path)


def test_a_folder_with_another_index_json_is_not_packed(tmp_path):
    (tmp_path / "index.json").write_bytes(b"\xff\xfe")
    assert not is_packed(tmp_path)


def test_a_shard_that_was_cut_is_an_error_with_its_path(tmp_path, packed):
    shard = tmp_path / "train-000000.tar"
    shard.write_bytes((packed / shard.name).read_bytes()[:600])
    (tmp_path / "index.json").write_bytes((packed / "index.json").read_bytes())
    samples = read_packed(tmp_path).samples["train"]
    with pytest.raises(VideoError, match=r"train-000000.tar\?512.*the shard ends before"):
        open_video(samples[0].path)
    with pytest.raises(VideoError, match=r"train-000002.tar.*No such file"):
        open_video(samples[-1].path)
    assert "the shard ends before" in items_of(read_packed(tmp_path), "train")[0]["error"]
