"""The readers that others have, as far as they are installed."""

import sys

import pytest

from lightning_csn.benchmark_readers import PEERS, decoder_errors, decord_way
from lightning_csn.benchmark_reading import read_in_turns
from lightning_csn.benchmark_videos import open_source, write_video
from lightning_csn.errors import InputError


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_peers_that_are_installed_agree_with_us(name, tmp_path):
    try:
        ways = PEERS[name]()
    except InputError as error:
        pytest.skip(str(error))
    source = open_source(write_video(str(tmp_path / "a.mp4"), seconds=1, size=(64, 96)))
    half = open_source(source.path)
    half.size, half.scaled = (32, 64), True  # decord fails at sizes whose rows it pads
    for each in read_in_turns(ways, [source, half], [[[3, 5, 7]]] * 2):
        assert each.error is None
        assert each.agrees, each.difference


def test_a_peer_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(InputError, match=r"not installed; pip install 'lightning-csn\[benchmark\]'"):
        decord_way()
    assert RuntimeError in decoder_errors()
