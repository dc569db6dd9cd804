"""The commands checkpoints, download, convert and verify."""

import json
import re
from pathlib import Path

import pytest
import torch

from lightning_csn.cli import main
from lightning_csn.models import checkpoints
from lightning_csn.models.network import create_network


def test_checkpoints_lists_names_accuracy_and_licence(capsys):
    assert main(["checkpoints", "ircsn_152*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == checkpoints.list_checkpoints("ircsn_152*")
    assert re.split("  +", lines[0])[:4] == ["NAME", "TRAINED ON", "CLASSES", "CLIP"]
    row = next(line for line in lines if line.startswith("ircsn_152_ig65m "))
    for part in ("IG-65M, Kinetics-400", "400", "32x2", "82.6", "95.3", "Apache-2.0"):
        assert part in row


def test_checkpoints_as_json_are_the_whole_records(capsys):
    assert main(["checkpoints", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert {record["name"] for record in records} == set(checkpoints.list_checkpoints())
    assert all(record["sources"] for record in records)


def test_convert_then_verify(tmp_path, capsys):
    network = create_network("ipcsn_tiny", num_classes=5)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    assert main(["convert", str(tmp_path / "mine.pth"), str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "ipcsn_tiny, 5 classes" in shown.out
    assert "does not say how clips must look" in shown.err
    like = ["--like", "ircsn_152_ig65m", "--num-classes", "7"]
    assert main(["convert", str(tmp_path / "mine.pth"), str(tmp_path / "out"), *like]) == 0
    shown = capsys.readouterr()
    assert "ipcsn_tiny, 7 classes" in shown.out
    assert "clips must look" not in shown.err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["clip"]["frames"] == 32
    assert main(["verify", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for part in ("good", "as its config.json says", "ipcsn_tiny, 7 outputs"):
        assert part in shown


@pytest.mark.parametrize(
    ("sha256", "sha1", "said"),
    [
        ("ab", None, "ab, as published"),
        ("cd", None, "ab, published: cd"),
        (None, "ef", "ab, its SHA-1 is as published"),
        (None, None, "ab, nobody published one to compare with"),
    ],
)
def test_verify_says_what_the_hash_was_compared_with(sha256, sha1, said, monkeypatch, capsys):
    file = {"path": Path("x"), "bytes": 1, "sha256": "ab", "published_sha256": sha256, "published_sha1": sha1}
    network = {"architecture": "ircsn_tiny", "num_classes": 2, "parameters": 3, "finite": True, "logits": [0.0]}
    found = checkpoints.Verification(source="x", **file, **network)
    monkeypatch.setattr(checkpoints, "verify", lambda source: found)
    main(["verify", "x"])
    assert re.search(rf"sha256 +{said}$", capsys.readouterr().out, re.MULTILINE)


def test_verify_fails_on_weights_that_are_not_finite(tmp_path, capsys):
    network = create_network("ircsn_tiny", num_classes=2)
    network.get_parameter("head.bias").data.fill_(float("nan"))
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    assert main(["verify", str(tmp_path / "mine.pth")]) == 2
    assert "NOT good" in capsys.readouterr().out


def test_download_says_where_the_file_is(weights, capsys):
    assert main(["download", str(weights / "model.safetensors")]) == 0
    assert str(weights / "model.safetensors") in capsys.readouterr().out
