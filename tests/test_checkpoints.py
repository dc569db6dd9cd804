from __future__ import annotations

import dataclasses
import errno
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lightning_csn.clip import ClipSpec
from lightning_csn.errors import InputError
from lightning_csn.models import checkpoints, download
from lightning_csn.models.checkpoints import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    load,
    load_network,
    save,
    verify,
)
from lightning_csn.models.download import DownloadError, WeightsFile, hash_file
from lightning_csn.models.network import ARCHITECTURES, ResNet3D, create_network

TABLE = json.loads((Path(__file__).parents[1] / "checkpoints.json").read_text(encoding="utf-8"))
RECORDS = pytest.mark.parametrize(("name", "record"), TABLE.items(), ids=list(TABLE))

CLIP = ClipSpec(
    frames=8, step=2, fps=15, short_side=64, crop=56, test_crop=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)
)
CLASSES = ["left", "right", "up"]
INPUT = torch.linspace(-1, 1, 3 * 4 * 32 * 32).sin().view(1, 3, 4, 32, 32)


@pytest.fixture
def network() -> ResNet3D:
    torch.manual_seed(0)
    network = create_network("ircsn_tiny", num_classes=3, dropout=0.2).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand_like(tensor)  # so that no BatchNorm is the identity
    return network


@pytest.fixture
def record() -> Checkpoint:
    return Checkpoint(
        architecture="ircsn_tiny",
        num_classes=3,
        classes=CLASSES,
        name="a_name",
        pretrained_on="IG-65M",
        trained_on="motion",
        clip=CLIP.to_dict(),
        accuracy={"top1": 80.0, "top5": None, "protocol": "10 clips x 3 crops", "source": "a paper"},
        measured={"top1": 79.0, "protocol": "1 clip x 1 crop"},
        licence="Apache-2.0",
        paper="arXiv:1904.02811",
        sources=["somebody/somewhere@abc"],
        notes=["something to know"],
    )


@pytest.fixture
def folder(network: ResNet3D, record: Checkpoint, tmp_path: Path) -> Path:
    return save(network, record, tmp_path / "saved")


@torch.inference_mode()
def logits(network: torch.nn.Module) -> Tensor:
    return network(INPUT)


# ---------------------------------------------------------------- the table

NAME = re.compile(
    r"(?P<architecture>(ir|ip)csn_\d+|resnet3d_\d+|ircsn_tiny)_(?P<data>ig65m|sports1m|kinetics400|motion)"
    r"(?P<trainer>_(mmaction2|gluoncv|vmz|torchvision)(_[a-z0-9]+)*?)?(?P<trunk>_pretrain)?"
)
FORMATS = {"vmz", "caffe2", "mmaction2", "pytorchvideo", "pyslowfast", "gluoncv", "torchvision", "lightning_csn"}
DATA = {"ig65m": "IG-65M", "sports1m": "Sports-1M", "kinetics400": "Kinetics-400"}


def test_the_table_has_every_checkpoint_of_the_design() -> None:
    expected = {f"{kind}_152_{data}" for kind in ("ircsn", "ipcsn") for data in ("ig65m", "sports1m", "kinetics400")}
    expected |= {"ircsn_50_ig65m", "ircsn_50_kinetics400", "ircsn_101_kinetics400", "resnet3d_18_kinetics400"}
    expected |= {f"{kind}_152_{data}_pretrain" for kind in ("ircsn", "ipcsn") for data in ("ig65m", "sports1m")}
    expected |= {"ircsn_50_ig65m_pretrain", "ircsn_152_ig65m_mmaction2"}
    assert expected <= set(TABLE)
    assert list(TABLE) == sorted(TABLE)


def test_no_address_stands_for_two_checkpoints() -> None:
    addresses = [file["address"] for record in TABLE.values() for file in record["files"]]
    assert len(addresses) == len(set(addresses))


@RECORDS
def test_a_record_has_every_field(name: str, record: dict[str, Any]) -> None:
    fields = {spec.name for spec in dataclasses.fields(Checkpoint)}
    assert set(record) == fields - {"name", "multi_label"}  # no public checkpoint gives several labels
    assert set(record["clip"]) == {spec.name for spec in dataclasses.fields(ClipSpec)} - {"sampling"}  # all are clips
    assert set(record["network"]) >= {"norm_eps", "stem_pool", "head_pooling", "head_average"}
    for file in record["files"]:
        assert set(file) - {"sha1"} == {"address", "format", "sha256", "bytes"}
    for accuracy in (record["accuracy"], record["measured"]):
        assert accuracy is None or {"top1", "protocol"} <= set(accuracy)
    assert record["files"]
    assert record["sources"]
    assert record["licence"] in ("Apache-2.0", "BSD-3-Clause")
    assert record["paper"] in ("arXiv:1904.02811", "arXiv:1711.11248")


@RECORDS
def test_a_name_says_what_it_is(name: str, record: dict[str, Any]) -> None:
    parts = NAME.fullmatch(name)
    assert parts is not None
    assert record["architecture"] == parts["architecture"]
    assert record["architecture"] in ARCHITECTURES
    if parts["data"] in DATA:
        data = DATA[parts["data"]]
        assert data == (record["trained_on"] if parts["trunk"] or data == "Kinetics-400" else record["pretrained_on"])
    if parts["trunk"]:
        assert record["classes"] is None  # outputs without names are never presented as classes
        assert record["accuracy"] is None
    elif parts["data"] in DATA:
        assert (record["classes"], record["num_classes"]) == ("kinetics400", 400)
        assert record["trained_on"] == "Kinetics-400"
        assert record["accuracy"]["protocol"]
        assert record["accuracy"]["source"]


@RECORDS
def test_addresses_are_safe(name: str, record: dict[str, Any]) -> None:
    for file in record["files"]:
        assert file["address"].startswith(("https://", "package:"))
        assert "dl=0" not in file["address"]  # with 0, Dropbox sends a web page
        assert file["sha256"] is None or re.fullmatch("[0-9a-f]{64}", file["sha256"])
        assert "sha1" not in file or re.fullmatch("[0-9a-f]{40}", file["sha1"])
        assert file["format"] in FORMATS


@RECORDS
def test_conventions_are_possible(name: str, record: dict[str, Any]) -> None:
    clip = record["clip"]
    assert all(0 < value < 1 for value in clip["mean"] + clip["std"])
    filled = {field: value if value is not None else 1000 for field, value in clip.items()}
    ClipSpec(**filled | {"test_crop": clip["test_crop"] or 1})  # raises if not
    assert record["network"]["norm_eps"] in (1e-3, 1e-5)
    with torch.device("meta"):
        create_network(record["architecture"], num_classes=record["num_classes"] or 0, **record["network"])


def test_the_facts_that_are_easily_mixed_up() -> None:
    """Mean, eps, head and stem that differ between sources (VMZ, mmaction2, PyTorchVideo, torchvision)."""
    vmz, mmaction2 = TABLE["ircsn_152_ig65m"], TABLE["ircsn_152_ig65m_mmaction2"]
    pytorchvideo, torchvision = TABLE["ircsn_101_kinetics400"], TABLE["resnet3d_18_kinetics400"]
    assert vmz["clip"]["mean"] == [0.43216, 0.394666, 0.37645]
    assert mmaction2["clip"]["mean"] == [0.485, 0.456, 0.406]
    assert pytorchvideo["clip"]["mean"] == [0.45, 0.45, 0.45]
    assert [r["network"]["norm_eps"] for r in (vmz, mmaction2, pytorchvideo, torchvision)] == [1e-3, 1e-3, 1e-5, 1e-5]
    assert vmz["network"]["head_pooling"] == pytorchvideo["network"]["head_pooling"] == [4, 7, 7]
    assert mmaction2["network"]["head_pooling"] == "global"
    assert {n for n, r in TABLE.items() if not r["network"]["stem_pool"]} == set(list_checkpoints("resnet3d_18_*"))
    assert (vmz["accuracy"]["top1"], mmaction2["accuracy"]["top1"]) == (82.6, 82.87)
    assert find_checkpoint("ircsn_152_ig65m_gluoncv").files[0].sha1 == "82855d2c85a888e96477130253b90a4892bdc649"


def test_the_names_of_kinetics() -> None:
    names = checkpoints.class_names("kinetics400")
    assert (len(names), len(set(names)), names[0], names[-1]) == (400, 400, "abseiling", "zumba")
    assert names[115] == "eating ice cream"
    assert names[290] == "sharpening knives"
    with pytest.raises(InputError, match="no class names 'kinetics700'; there are: kinetics400"):
        checkpoints.class_names("kinetics700")


def test_names_are_found_by_pattern_and_nearness() -> None:
    assert list_checkpoints() == sorted(TABLE)
    assert list_checkpoints("resnet3d*_vmz*") == ["resnet3d_18_kinetics400_vmz", "resnet3d_18_kinetics400_vmz_8frames"]
    with pytest.raises(InputError, match=r"no checkpoint 'ircsn_152_ig65n', .* the nearest are .*ircsn_152_ig65m"):
        load("ircsn_152_ig65n")


def test_a_record_survives_as_plain_values() -> None:
    checkpoint = find_checkpoint("ircsn_152_ig65m")
    assert checkpoint.classes is not None
    assert checkpoint.classes[0] == "abseiling"
    plain = checkpoint.to_dict()
    assert plain["classes"] == "kinetics400"
    assert Checkpoint.from_dict(json.loads(json.dumps(plain))) == checkpoint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 50}, "fields that a checkpoint does not have: depth"),
        ({"classes": ["one"]}, "3 classes, but 1 names"),
        ({"classes": [1, 2, 3]}, r"classes of a checkpoint must be list\[str\] \| None, got \[1, 2, 3\]"),
        ({"clip": [1]}, r"clip of a checkpoint must be dict\[str, Any\], got \[1\]"),
        ({"clip": {"frame": 8}}, "clip has no frame; there are: frames"),
        ({"network": [1]}, r"network of a checkpoint must be dict\[str, Any\], got \[1\]"),
        ({"files": 5}, "files must be a list, got 5"),
        ({"files": [5]}, "one of files must be fields by name, got 5"),
        ({"files": [{}]}, "one of files needs address"),
        ({"files": [{"address": 5}]}, "address of one of files must be str, got 5"),
        ({"files": [{"address": "a", "md5": "b"}]}, "fields that one of files does not have: md5"),
        ({"num_classes": True}, r"num_classes of a checkpoint must be int \| None, got True"),
        ({"notes": "one"}, r"notes of a checkpoint must be list\[str\], got 'one'"),
    ],
)
def test_a_record_with_faults(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Checkpoint.from_dict({"architecture": "ircsn_tiny", "num_classes": 3} | change)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], r"a checkpoint must be fields by name, got \[1\]"),
        ({"name": "a"}, "a checkpoint needs architecture and num_classes"),
    ],
)
def test_what_is_no_record(record: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Checkpoint.from_dict(record)


def test_null_in_a_record_is_nothing_known() -> None:
    plain = {"architecture": "ircsn_tiny", "num_classes": None, "clip": None, "network": None, "files": None}
    checkpoint = Checkpoint.from_dict(plain)
    assert (set(checkpoint.clip.values()), checkpoint.network, checkpoint.files) == ({None, "clip"}, {}, [])


def test_reading_the_table_needs_no_torch() -> None:
    script = "import sys; from lightning_csn.models import checkpoints as c; c.list_checkpoints(); print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    ).stdout.split()
    assert not {"torch", "numpy", "huggingface_hub", "safetensors"} & set(modules)


# ---------------------------------------------------------------- clips


def test_an_unknown_convention_must_be_given() -> None:
    checkpoint = find_checkpoint("ircsn_152_ig65m_pretrain")
    with pytest.raises(
        InputError, match=r"for ircsn_152_ig65m_pretrain must look: step, short_side, test_crop unknown"
    ):
        checkpoint.clip_spec()
    spec = checkpoint.clip_spec({"step": 2, "short_side": 256, "test_crop": 256})
    assert (spec.frames, spec.step, spec.fps) == (32, 2, None)


def test_given_conventions_win() -> None:
    checkpoint = find_checkpoint("ircsn_152_ig65m")
    assert checkpoint.clip_spec({"frames": 16, "fps": None}).to_dict() == checkpoint.clip | {"frames": 16, "fps": None}
    assert checkpoint.clip_spec(CLIP) == CLIP
    with pytest.raises(InputError, match="clip has no rate; there are: frames, step, fps"):
        checkpoint.clip_spec({"rate": 3})


# ---------------------------------------------------------------- saving and loading


def test_what_was_saved_is_loaded(folder: Path, network: ResNet3D, record: Checkpoint) -> None:
    loaded = load(folder)
    assert torch.equal(logits(loaded.network), logits(network))
    assert not loaded.network.training
    assert loaded.network.options == network.options
    assert loaded.checkpoint.classes == CLASSES
    assert loaded.checkpoint.clip_spec() == CLIP
    told = {"name", "pretrained_on", "trained_on", "accuracy", "measured", "licence", "paper", "sources", "notes"}
    assert all(getattr(loaded.checkpoint, field) == getattr(record, field) for field in told)


def test_the_weights_file_alone_is_enough(folder: Path, network: ResNet3D, tmp_path: Path) -> None:
    alone = tmp_path / "anything.bin"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    loaded = load(alone)
    assert torch.equal(logits(loaded.network), logits(network))
    assert loaded.checkpoint.clip_spec() == CLIP
    assert torch.equal(logits(load_network(str(alone), sha256=hash_file(alone))), logits(network))


def test_a_bare_file_is_told_by_its_names(network: ResNet3D, tmp_path: Path) -> None:
    torch.save({f"{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "w.pth")
    loaded = load(tmp_path / "w.pth", clip={"frames": 8})
    assert torch.equal(logits(loaded.network), logits(network))
    assert (loaded.checkpoint.classes, loaded.checkpoint.clip["frames"]) == (None, 8)
    with pytest.raises(InputError, match="mean, std unknown"):
        loaded.checkpoint.clip_spec()


def test_a_lightning_checkpoint_is_a_source(network: ResNet3D, record: Checkpoint, tmp_path: Path) -> None:
    hyper_parameters = {
        "architecture": "ircsn_tiny",
        "num_classes": 3,
        "classes": CLASSES,
        "clip": CLIP.to_dict(),
        "network": network.trunk_options | {"norm_eps": 1e-2},
        "origin": record.to_dict(),
    }
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": tensors, "hyper_parameters": hyper_parameters}, tmp_path / "last.ckpt")
    loaded = load(tmp_path / "last.ckpt")
    assert loaded.network.options["norm_eps"] == 1e-2
    assert not torch.equal(logits(loaded.network), logits(network))  # its eps is another
    assert loaded.checkpoint.classes == CLASSES
    assert loaded.checkpoint.clip_spec() == CLIP
    assert (loaded.checkpoint.licence, loaded.checkpoint.accuracy) == ("Apache-2.0", None)
    assert "Started from a_name." in loaded.checkpoint.notes


@pytest.mark.parametrize("fault", [{"clip": [1]}, {"origin": 5}, {"num_classes": "three"}])
def test_a_lightning_checkpoint_of_others_is_refused(network: ResNet3D, tmp_path: Path, fault: dict[str, Any]) -> None:
    mine = {"architecture": "ircsn_tiny", "num_classes": 3, "clip": CLIP.to_dict(), "network": {}, "origin": None}
    torch.save({"state_dict": network.state_dict(), "hyper_parameters": mine | fault}, tmp_path / "last.ckpt")
    with pytest.raises(
        InputError, match=r"last\.ckpt: the hyper-parameters inside were not written by .*must be .*, got"
    ):
        load(tmp_path / "last.ckpt")


def test_weights_trained_twice_started_once(record: Checkpoint) -> None:
    once = record.retrained(num_classes=2, classes=None)
    assert once.notes == ["Started from a_name."]
    assert once.retrained(num_classes=5, classes=None).notes == once.notes
    nameless = dataclasses.replace(record, name=None)
    assert nameless.retrained(num_classes=2, classes=None).notes == []


def test_figures_are_those_of_weights_before_they_were_trained_further(record: Checkpoint) -> None:
    told = dataclasses.replace(record, accuracy={"top1": 82.6}, measured={"top1": 82.0}, trained_by="somebody")
    once = told.retrained(num_classes=2, classes=None)
    assert (once.accuracy, once.measured, once.trained_by, once.trained_on, once.files) == (None, None, None, None, [])


def test_another_number_of_classes_is_a_new_head(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(folder, num_classes=400)
    head = loaded.network.head
    assert isinstance(head, torch.nn.Linear)
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert head.bias.abs().max() == 0
    assert caplog.text.count("a new head for 400 classes; the 3 outputs of the weights are left out") == 1
    trunk = load(folder).network.state_dict()
    assert all(torch.equal(tensor, trunk[n]) for n, tensor in loaded.network.state_dict().items() if "head" not in n)
    new = loaded.checkpoint
    assert (new.num_classes, new.classes, new.accuracy, new.measured) == (400, None, None, None)
    assert (new.pretrained_on, new.trained_on, new.clip) == ("IG-65M, motion", None, CLIP.to_dict())


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 3}, {"classes": CLASSES}])
def test_the_same_classes_keep_the_head(folder: Path, network: ResNet3D, arguments: dict[str, Any]) -> None:
    assert torch.equal(logits(load(folder, **arguments).network), logits(network))


def test_other_names_are_a_new_head(folder: Path, network: ResNet3D) -> None:
    loaded = load(folder, classes=["right", "left", "up"])
    assert loaded.checkpoint.classes == ["right", "left", "up"]
    assert not torch.equal(logits(loaded.network), logits(network))
    with pytest.raises(InputError, match="num_classes is 3, but classes has 2 names"):
        load(folder, num_classes=3, classes=["a", "b"])


def test_names_may_be_given_to_outputs_without(network: ResNet3D, record: Checkpoint, tmp_path: Path) -> None:
    save(network, dataclasses.replace(record, classes=None), tmp_path / "saved")
    assert load(tmp_path / "saved").checkpoint.classes is None
    named = load(tmp_path / "saved", classes=CLASSES)
    assert named.checkpoint.classes == CLASSES
    assert torch.equal(logits(named.network), logits(network))


def test_no_classes_are_features(folder: Path, network: ResNet3D) -> None:
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(INPUT), pre_logits=True)
    assert torch.equal(logits(load(folder, num_classes=0).network), expected)


def test_options_go_over_the_record(folder: Path) -> None:
    assert load_network(folder, dropout=0.7, head_pooling=[1, 1, 1]).options["dropout"] == 0.7
    with pytest.raises(
        InputError, match=r"the tensors do not fit ircsn_tiny; 1 of another shape: 'stem\.conv\.weight'"
    ):
        load(folder, in_channels=1)
    with pytest.raises(InputError, match="no option 'droput' of a network; did you mean dropout"):
        load(folder, droput=0.1)
    with pytest.raises(InputError, match="inflate starts a network from 2D weights"):
        load(folder, inflate="resnet50")


def test_options_of_a_config_are_known_ones(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["network"]["droput"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"^{folder}: no option 'droput' of a network; did you mean dropout"):
        load(folder)


VMZ = (  # here -> there
    ("reduce.", "conv1."),
    ("convolve.", "conv2."),
    ("expand.", "conv3."),
    ("shortcut.", "downsample."),
    ("conv.", "0."),
    ("norm.", "1."),
    ("stage", "layer"),
    ("head.", "fc."),
)


def test_a_name_is_loaded_as_its_record_says(
    network: ResNet3D, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As for the table's own rows, with a file of VMZ's naming that is part of the package."""
    monkeypatch.setattr(download, "PACKAGE_FOLDER", tmp_path)
    tensors = {}
    for name, tensor in network.state_dict().items():
        for here, there in VMZ:
            name = name.replace(here, there)
        tensors[name] = tensor
    safetensors.torch.save_file(tensors, tmp_path / "bundled.safetensors")
    record = {
        "architecture": "ircsn_tiny",
        "num_classes": 3,
        "classes": CLASSES,
        "clip": CLIP.to_dict(),
        "network": {"norm_eps": 0.5},  # VMZ's code says 1e-3
        "files": [{"address": "package:bundled.safetensors", "sha256": hash_file(tmp_path / "bundled.safetensors")}],
    }
    table = {"bundled": Checkpoint.from_dict(record, name="bundled")}
    monkeypatch.setattr(checkpoints, "_table", lambda: table)
    loaded = load("bundled")
    assert (loaded.checkpoint.name, loaded.network.options["norm_eps"]) == ("bundled", 0.5)
    assert torch.equal(logits(load_network("bundled", norm_eps=1e-3)), logits(network))
    assert checkpoints.fetch_weights("bundled") == tmp_path / "bundled.safetensors"
    assert verify("bundled").ok
    with pytest.raises(InputError, match="bundled is a name, whose hashes are in the table"):
        load("bundled", sha256="0" * 64)
    for field, value in (("architecture", "ipcsn_tiny"), ("num_classes", 4)):
        changed = dataclasses.replace(table["bundled"], **{field: value}, classes=None)
        monkeypatch.setattr(checkpoints, "_table", lambda changed=changed: {"bundled": changed})
        with pytest.raises(InputError, match=f"bundled: {field} should be {value}, the tensors have"):
            load("bundled")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing/here.pth", r"nothing/here\.pth: no such file or folder"),
        ("someone/ircsn", "no such file or folder; for a repository of the Hub, write hf://someone/ircsn"),
        (Path("ircsn_152_ig65m"), "ircsn_152_ig65m: no such file or folder"),
        (".", "a folder with weights has a config.json"),
        ("http://example.org/w.pth", "only https is taken"),
    ],
)
def test_sources_that_cannot_be_had(
    source: str | Path, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load(source)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda tensors: tensors.pop("head.bias"), "head.bias"),
        (lambda tensors: tensors.pop("stage2.0.expand.norm.running_var"), "stage2.0.expand.norm.running_var"),
        (lambda tensors: tensors.update({"extra.weight": torch.zeros(1)}), "extra.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(network: ResNet3D, tmp_path: Path, fault: Any, message: str) -> None:
    tensors = dict(network.state_dict())
    fault(tensors)
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(InputError, match=re.escape(message)):
        load(tmp_path / "w.pth")


def test_a_config_cannot_point_elsewhere(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["files"][0]["address"] = "../other.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="may only name files beside it"):
        load(folder)


def test_a_config_of_another_network_than_the_weights_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "ipcsn_tiny"}))
    with pytest.raises(InputError, match="architecture should be ipcsn_tiny, the tensors have ircsn_tiny"):
        load(folder)


@pytest.mark.parametrize(
    "text", ["not json", "[]", '{"model_type": "bert"}', '{"architecture": "a", "num_classes": 1, "files": [3]}']
)
def test_a_config_of_others_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json was not written by lightning_csn"):
        load(folder)


# ---------------------------------------------------------------- what is written


def test_the_folder_has_all_that_is_needed(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["classes"] == CLASSES
    assert config["clip"] == CLIP.to_dict()
    weights = folder / "model.safetensors"
    assert config["files"] == [
        {
            "address": "model.safetensors",
            "format": "lightning_csn",
            "sha256": hash_file(weights),
            "sha1": None,
            "bytes": weights.stat().st_size,
        }
    ]


def test_kinetics_is_spelt_out_in_a_config(network: ResNet3D, tmp_path: Path) -> None:
    network.reset_classifier(400)
    record = Checkpoint(architecture="ircsn_tiny", num_classes=400, classes=checkpoints.class_names("kinetics400"))
    config = json.loads((save(network, record, tmp_path / "k") / "config.json").read_text())
    assert config["classes"][399] == "zumba"


def test_the_card_keeps_reported_and_measured_apart(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for line in ('library_name: "lightning_csn"', 'license: "apache-2.0"', 'pipeline_tag: "video-classification"'):
        assert f"\n{line}\n" in card.split("---")[1]
    reported, measured = card.index("as others report it"), card.index("as measured with lightning_csn")
    assert reported < card.index("* top1: 80.0\n* protocol: 10 clips x 3 crops\n* source: a paper") < measured
    assert card.index("* top1: 79.0\n* protocol: 1 clip x 1 crop") > measured
    assert 'LitCSN.from_pretrained("hf://OWNER/saved")' in card


def test_saving_again_replaces_an_earlier_save_only(network: ResNet3D, record: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder = save(network, record, tmp_path / "empty")
    save(network, dataclasses.replace(record, notes=["new"]), folder)
    assert load(folder).checkpoint.notes == ["new"]
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other things \(thesis\.tex\)"):
        save(network, record, folder)
    with pytest.raises(InputError, match="is a file"):
        save(network, record, folder / "thesis.tex")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_full_disk_leaves_the_earlier_save_alone(
    folder: Path, network: ResNet3D, record: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = load(folder).checkpoint
    monkeypatch.setattr(Path, "write_text", full)  # the weights are written by then
    with pytest.raises(InputError, match="cannot be written: No space left on device; nothing was saved"):
        save(network, dataclasses.replace(record, notes=["new"]), folder)
    assert load(folder).checkpoint == before
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "ipcsn_tiny"}, "architecture of the record is 'ipcsn_tiny', the network's is 'ircsn_tiny'"),
        ({"num_classes": 4}, "num_classes of the record is 4, the network's is 3"),
        ({"classes": ["one"]}, "1 class names for 3 outputs"),
    ],
)
def test_a_record_of_another_network_is_refused(
    network: ResNet3D, record: Checkpoint, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        save(network, dataclasses.replace(record, **change), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# ---------------------------------------------------------------- verify


def test_verify_tells_what_it_found(folder: Path) -> None:
    found = verify(folder)
    assert found.ok
    assert found.sha256 == found.published_sha256 == hash_file(folder / "model.safetensors")
    assert (found.architecture, found.num_classes) == ("ircsn_tiny", 3)
    assert found.parameters == sum(parameter.numel() for parameter in load_network(folder).parameters())
    assert verify(folder).logits == found.logits
    assert len(found.logits) == 3
    assert not dataclasses.replace(found, published_sha256="0" * 64).ok


def test_verify_sees_a_changed_file(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DownloadError, match=r"model\.safetensors: refused, sha256 .* expected, got"):
        verify(folder)


def test_verify_sees_numbers_that_are_none(network: ResNet3D, tmp_path: Path) -> None:
    network.state_dict()["stem.norm.bias"][0] = math.nan
    torch.save(network.state_dict(), tmp_path / "w.pth")
    found = verify(tmp_path / "w.pth")
    assert not found.finite
    assert not found.ok


def test_a_file_of_the_table_is_parsed_as_one() -> None:
    assert find_checkpoint("ipcsn_152_ig65m").files[1] == WeightsFile(
        address="https://download.openmmlab.com/mmaction/recognition/csn/vmz/"
        "vmz_ipcsn_ig65m_pretrained_r152_32x2x1_58e_kinetics400_rgb_20210617-c3be9793.pth",
        format="mmaction2",
        bytes=133_006_791,
    )


def test_a_record_that_does_not_say_how_frames_are_sampled_means_clips():
    record = find_checkpoint("ircsn_tiny_motion").to_dict()
    record["clip"].pop("sampling", None)
    assert Checkpoint.from_dict(record).clip_spec().sampling == "clip"
    record["clip"]["sampling"] = "segments"
    assert Checkpoint.from_dict(record).clip_spec().sampling == "segments"
