"""Runners: the same answers as the network that they run, and a plain word where a source cannot be used."""

from __future__ import annotations

import importlib.util
import zipfile

import pytest
import torch

from lightning_csn import runner
from lightning_csn.clip import ClipSpec
from lightning_csn.errors import InputError
from lightning_csn.module import LitCSN
from lightning_csn.runner import ExportRecord, NetworkRunner, choose_device, is_export, load_runner

CLIP = ClipSpec(
    frames=4, step=1, fps=None, short_side=48, crop=48, test_crop=48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
RECORD = ExportRecord(architecture="ircsn_tiny", num_classes=3, clip=CLIP.to_dict())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LitCSN("ircsn_tiny", classes=["a", "b", "c"], clip=CLIP.to_dict()).eval()


@pytest.mark.parametrize("exact", [False, True])
def test_a_runner_of_a_model_normalises_and_gives_its_logits(model, exact):
    clips = torch.randint(0, 256, (2, 3, 4, 48, 48), dtype=torch.uint8)
    run = NetworkRunner(model, exact=exact)
    with torch.inference_mode():
        expected = model.network(model.normalise(clips))
    assert torch.allclose(run(clips), expected, atol=1e-5)
    assert torch.equal(run(clips), expected) or not exact
    assert (run.clip, run.classes, run.num_classes, run.multi_label) == (CLIP, ["a", "b", "c"], 3, False)


def test_weights_of_any_kind_give_a_runner(model, tmp_path):
    folder = model.save_pretrained(tmp_path / "mine")
    run = load_runner(folder, "cpu")
    assert (run.clip, run.classes, run.source) == (CLIP, ["a", "b", "c"], str(folder))
    clips = torch.randint(0, 256, (1, 3, 4, 48, 48), dtype=torch.uint8)
    assert torch.equal(run(clips), NetworkRunner(model)(clips))


def test_no_clips_give_no_logits(model):
    assert NetworkRunner(model)(torch.empty(0, 3, 4, 48, 48, dtype=torch.uint8)).shape == (0, 3)


@pytest.mark.parametrize("clips", [torch.zeros(1, 3, 4, 48, 48), torch.zeros(3, 4, 48, 48, dtype=torch.uint8)])
def test_clips_of_another_kind_are_refused(model, clips):
    with pytest.raises(InputError, match=r"clips must be uint8 \(N, C, T, H, W\), got"):
        NetworkRunner(model)(clips)


@pytest.mark.parametrize("name", ["a.onnx", "A.ONNX", "b/c.xml", "d.pt2"])
def test_exports_are_told_by_their_ending(name, tmp_path):
    assert is_export(name)
    with pytest.raises(InputError, match="no such file"):
        load_runner(tmp_path / name)


def test_the_gpu_is_chosen_for_what_can_use_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kinds = {source: choose_device("auto", source).type for source in (None, "ircsn_50", "a.PT2", "a.onnx", "a.xml")}
    assert kinds == {None: "cuda", "ircsn_50": "cuda", "a.PT2": "cuda", "a.onnx": "cpu", "a.xml": "cpu"}
    assert choose_device("auto") == torch.device("cuda:0")  # as clips name theirs; "cuda" would be another to a .pt2


@pytest.mark.parametrize(
    ("package", "name", "advice"),
    [("onnxruntime", "a.onnx", r"pip install 'lightning-csn\[onnx\]'"), ("openvino", "a.xml", r"\[openvino\]")],
)
def test_a_missing_runtime_is_named_with_what_to_install(package, name, advice, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"needs {package}, which is not installed: .*{advice}"):
        load_runner(tmp_path / name)


def test_a_file_that_is_no_program_is_refused(tmp_path):
    path = tmp_path / "a.pt2"
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"a\.pt2: no file of torch\.export"):
        load_runner(path)


def test_a_folder_or_text_is_no_export(tmp_path):
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(InputError, match=r"a\.onnx: this is a folder, not a file"):
        load_runner(tmp_path / "a.onnx")
    pytest.importorskip("openvino")
    (tmp_path / "a.xml").write_text("hello")
    with pytest.raises(InputError, match=r"a\.xml: this is no file of OpenVINO, which is XML"):
        load_runner(tmp_path / "a.xml")


@pytest.mark.parametrize("content", [None, "{}", "nonsense"])
def test_a_program_that_is_not_whole_is_refused(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/archive_format", "pt2")
        archive.writestr("a/archive_version", "0")
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/.data/version", "3")
        archive.writestr("a/extra/lightning_csn.json", RECORD.to_json())
        if content is not None:
            archive.writestr("a/models/model.json", content)
            archive.writestr("a/data/weights/model_weights_config.json", '{"config": {}}')
            archive.writestr("a/data/constants/model_constants_config.json", '{"config": {}}')
            archive.writestr("a/data/sample_inputs/model.pt", b"")
    with pytest.raises(InputError, match=r"a\.pt2: torch .* cannot load it; it is not whole, or of another version"):
        load_runner(tmp_path / "a.pt2")


def test_a_package_from_a_distribution_of_another_name_has_a_version():
    # `yaml` comes in the distribution PyYAML, as `onnxruntime` does in onnxruntime-gpu.
    assert runner.versions_of(["yaml", "torch"]).keys() == {"yaml", "torch"}
    assert runner.version_of("yaml")[0].isdigit()


def test_a_program_of_someone_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/archive_format", "pt2")
    with pytest.raises(InputError, match="does not say how clips must look"):
        load_runner(tmp_path / "a.pt2")


def test_a_record_comes_back_as_it_was_written():
    assert ExportRecord.from_json(RECORD.to_json(), "a") == RECORD


@pytest.mark.parametrize("text", ["nonsense", "{}", '{"architecture": "x", "num_classes": 3, "clip": {}, "new": 1}'])
def test_a_record_that_is_not_ours_is_refused(text):
    with pytest.raises(InputError, match=r"^model\.onnx: the record inside is of another"):
        ExportRecord.from_json(text, "model.onnx")
