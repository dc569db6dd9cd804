"""Exported files: equal to the network before they are there, with all that whoever runs them has to know."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from lightning_csn import export as exporting
from lightning_csn.clip import ClipSpec
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.errors import InputError
from lightning_csn.export import (
    CONVERTERS,
    ENDINGS,
    TOLERANCE,
    Quantisation,
    compare,
    compare_answers,
    export,
    format_of,
    free_sizes,
    made_clips,
    read_quantisation,
)
from lightning_csn.export_model import as_text, export_options, run_export
from lightning_csn.fingerprints import hash_weights
from lightning_csn.models.network import ARCHITECTURES, Architecture, Simple, full
from lightning_csn.module import LitCSN
from lightning_csn.predict import classify
from lightning_csn.runner import ExportedNetwork, load_runner

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15

CLIP = ClipSpec(
    frames=4, step=1, fps=None, short_side=48, crop=32, test_crop=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
LONG = dataclasses.replace(CLIP, frames=10, test_crop=40)
CLASSES = ["clapping", "jumping", "waving"]


def has(to):
    try:
        exporting.need({to: exporting.NEEDED[to]})
    except InputError:
        return False
    return True


FORMATS = [pytest.param(to, marks=pytest.mark.skipif(not has(to), reason=f"{to} is not installed")) for to in ENDINGS]


def make_model(architecture="ircsn_tiny", clip=CLIP, **options):
    torch.manual_seed(0)
    model = LitCSN(architecture, classes=CLASSES, clip=clip.to_dict(), **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):  # as after training: not 0 and 1
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return model.eval()


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def logits_of(model, clips):
    with torch.inference_mode():
        return model.network(model.normalise(clips))


def is_close(found, expected):
    return (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, tmp_path_factory):
    """(model, what export gave) of every format; normalised outside, of fixed length and size."""
    model = make_model()
    path = tmp_path_factory.mktemp("exported") / f"model{ENDINGS[request.param]}"
    return model, export(model, path, real=[pixels(1, 3, 4, 32, 32)])


def runs(exported):
    return next(file for file in exported.files if file.suffix != ".bin")


def test_the_file_gives_the_networks_logits_of_any_number_of_clips(exported):
    model, written = exported
    runner = load_runner(runs(written))
    for count in (0, 1, 2, 5):
        clips = pixels(count, 3, 4, 32, 32)
        assert runner(clips).shape == (count, 3)
        assert count == 0 or is_close(runner(clips), logits_of(model, clips))


def test_the_file_says_how_clips_must_look_and_what_the_classes_are(exported):
    model, written = exported
    runner = load_runner(runs(written), "cpu")
    assert (runner.clip, runner.classes, runner.num_classes) == (CLIP, CLASSES, 3)
    assert not runner.multi_label
    assert runner.record == written.record
    assert runner.record.network == model.network.trunk_options
    assert runner.record.versions["torch"]
    assert runner.record.checked["clips"] == 7
    assert runner.record.checked["real_clips"] == 1
    assert 0 <= runner.record.checked["largest_difference"] <= TOLERANCE


def test_nothing_lies_beside_the_files(exported):
    _, written = exported
    assert sorted(runs(written).parent.iterdir()) == written.files


def test_clips_of_another_size_are_refused_with_what_would_do(exported):
    runner = load_runner(runs(exported[1]))
    with pytest.raises(InputError, match=r"for clips of 3 colours, 4 frames and sides of 32 pixels, got 3 x 5 x 32 x"):
        runner(pixels(1, 3, 5, 32, 32))
    with pytest.raises(InputError, match="--dynamic length --dynamic size"):
        runner(pixels(1, 3, 4, 32, 40))


def test_a_person_is_told_what_is_there(exported):
    _, written = exported
    text = as_text(written)
    assert f"ircsn_tiny, 3 classes, {written.record.precision}" in text
    assert "float32 (any number, 3, 4, 32, 32)" in text
    assert "1 of them real" in text
    assert f"lightning-csn classify VIDEO --model {runs(written)}" in text


@pytest.mark.parametrize("to", FORMATS)
def test_length_size_and_normalisation_can_be_left_to_the_file(to, tmp_path):
    model = make_model(clip=LONG, multi_label=True)
    path = tmp_path / f"open{ENDINGS[to]}"
    written = export(model, path, dynamic=["size", "length"], normalise="inside")
    runner = load_runner(path)
    assert runner.multi_label
    assert runner.record.dynamic == {"length": 9, "size": 33}
    assert written.record.normalised == "inside"
    for shape in ((1, 3, 10, 40, 40), (2, 3, 17, 33, 64), (1, 3, 9, 70, 35)):
        clips = pixels(*shape)
        assert is_close(runner(clips), logits_of(model, clips)), shape
    with pytest.raises(InputError, match="9 or more frames and sides of 33 or more pixels, got 3 x 8 x 40 x 40"):
        runner(pixels(1, 3, 8, 40, 40))
    assert "pixels, uint8 (any number, 3, 9 or more, 33 or more, 33 or more)" in as_text(written)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("ipcsn_tiny", {}),
        ("resnet3d_tiny", {"groups": 4, "norm_eps": 1e-5, "stem_pool": False}),
        ("resnet3d_simple", {}),
        ("ircsn_tiny", {"head_pooling": [1, 2, 2], "head_average": "probabilities", "dropout": 0.5, "drop_path": 0.2}),
    ],
)
def test_other_networks_are_equal_too(architecture, options, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "resnet3d_simple", Architecture(Simple, (1, 1, 1, 1), full, (8, 8, 16, 16)))
    clip = dataclasses.replace(CLIP, short_side=96, test_crop=96)  # 3 x 3 places for the window
    model = make_model(architecture, clip=clip, network=options)
    export(model, tmp_path / "model.pt2")
    clips = pixels(1, 3, 4, 96, 96)
    assert is_close(load_runner(tmp_path / "model.pt2", "cpu")(clips), logits_of(model, clips))


def test_a_window_needs_room_where_sizes_are_free():
    model = make_model(clip=LONG, network={"head_pooling": [1, 2, 2]})
    assert free_sizes(model, ["size"]) == {"size": 33}
    model = make_model(clip=LONG, network={"head_pooling": [3, 2, 2]})
    with pytest.raises(InputError, match="--dynamic length is for clips of a length of 17 or more; here it is 10"):
        free_sizes(model, ["length"])


@pytest.fixture
def broken(monkeypatch):
    """A conversion that makes another network: every logit a little larger."""

    def convert(program, record, int8):
        head = next(value for name, value in program.state_dict.items() if name.endswith("head.bias"))
        head += 1e-2
        return CONVERTERS["torch-export"](program, record, int8)

    monkeypatch.setattr(exporting, "CONVERTERS", {"torch-export": convert})


def test_a_file_that_is_not_the_network_is_not_left(broken, tmp_path):
    with pytest.raises(InputError, match=r"its logits differ by \d.*nothing was saved"):
        export(make_model(), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_there_before_is_left_as_it_was(broken, tmp_path):
    (tmp_path / "model.pt2").write_text("older")
    with pytest.raises(InputError, match="nothing was saved"):
        export(make_model(), tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "older"


def test_real_clips_are_compared_too(tmp_path):
    model = make_model()
    shown = []

    def watched(model, runner, batches):
        shown.append([tuple(batch.shape) for batch in batches])
        return {"clips": 0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "compare", watched)
        export(model, tmp_path / "model.pt2", real=[pixels(2, 3, 4, 32, 32), pixels(4, 3, 4, 32, 32)])
    assert [shape[0] for shape in shown[0]] == [1, 3, 2, 2, 4]


def test_logits_that_are_no_numbers_are_not_equal(monkeypatch):
    model = make_model()
    with pytest.raises(InputError, match="not the same"):
        compare(model, lambda clips: torch.full((len(clips), 3), torch.nan), [pixels(1, 3, 4, 32, 32)])


def test_drawn_clips_are_smooth():
    record = exporting.ExportRecord(architecture="", num_classes=3, clip=LONG.to_dict())
    *noise, drawn = made_clips(record)
    assert {tuple(batch.shape[1:]) for batch in (*noise, drawn)} == {(3, 10, 40, 40)}
    assert drawn.float().diff(dim=2).abs().mean() < 20 < noise[0].float().diff(dim=2).abs().mean()


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("model.bin", None, r"must end in \.onnx \(onnx\), \.xml \(openvino\), \.pt2 \(torch-export\)"),
        ("model.onnx", "openvino", r"must end in \.xml"),
        ("model.onnx", "tflite", "to must be one of onnx, openvino, torch-export"),
    ],
)
def test_the_ending_and_the_format_must_fit(name, to, message, tmp_path):
    with pytest.raises(InputError, match=message):
        format_of(tmp_path / name, to)


@pytest.mark.parametrize(
    ("name", "int8", "missing", "message"),
    [
        (
            "a.onnx",
            True,
            ("onnx", "onnxscript", "onnxruntime", "nncf"),
            "to export to onnx in int8 needs onnx and onnxscript and onnxruntime and nncf, which are not installed: "
            "pip install 'lightning-csn[onnx,int8]'",
        ),
        (
            "a.xml",
            True,
            ("openvino", "nncf", "onnx"),
            "to export to openvino in int8 needs openvino and nncf, which are not installed: "
            "pip install 'lightning-csn[openvino,int8]'",
        ),
        (
            "a.xml",
            False,
            ("openvino", "nncf"),
            "to export to openvino needs openvino, which is not installed: pip install 'lightning-csn[openvino]'",
        ),
    ],
)
def test_all_packages_that_are_missing_are_named_with_one_command(name, int8, missing, message, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else name)
    with pytest.raises(InputError) as raised:
        exporting.check_target(tmp_path / name, None, int8=int8)
    assert str(raised.value) == message


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"model\.pt2 cannot be written: .*nothing was saved"):
        export(make_model(), tmp_path / "file" / "model.pt2")


def test_an_interrupted_export_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupt(*_):
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "compare", interrupt)
    (tmp_path / "model.pt2").write_text("older")
    with pytest.raises(KeyboardInterrupt):
        export(make_model(), tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "older"


def test_a_model_in_training_mode_is_exported_as_it_answers_and_left_as_it_was(tmp_path):
    model = make_model(network={"dropout": 0.5}).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export(model, tmp_path / "model.pt2")
    assert all(module.training for module in model.modules() if isinstance(module, LitCSN | nn.BatchNorm3d))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(not has("openvino"), reason="openvino is not installed")
def test_weights_of_another_export_are_refused(tmp_path):
    for seed, name in enumerate(("one", "two")):
        model = make_model()
        model.network.get_parameter("head.bias").data += seed
        export(model, tmp_path / f"{name}.xml")
    shutil.copy(tmp_path / "two.bin", tmp_path / "one.bin")
    with pytest.raises(InputError, match=r"one\.xml: it or one\.bin beside it is damaged, or they are of two exports"):
        load_runner(tmp_path / "one.xml")


def inside_of_a_weight(file):
    """A place among the weights of a file, which are most of it; of an archive in its largest member."""
    if not zipfile.is_zipfile(file):
        return file.stat().st_size // 2
    with zipfile.ZipFile(file) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
    return member.header_offset + member.file_size // 2  # between members there are names and padding


def test_a_file_is_refused_once_a_bit_of_a_weight_has_changed(exported, tmp_path):
    _, written = exported
    copies = [Path(shutil.copy(file, tmp_path)) for file in written.files]
    path = tmp_path / runs(written).name
    largest = max(copies, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[inside_of_a_weight(largest)] ^= 64
    largest.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: .*(damaged|not whole)"):
        load_runner(path)


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_is_told_and_nothing_is_left(to, tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = make_model()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(InputError, match=r"cannot be written: .*; nothing was saved"):
            export(model, tmp_path / f"model{ENDINGS[to]}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- 8 bits


class Answers:
    """A runner that gives the model's logits, but for the clips of these numbers."""

    def __init__(self, model, wrong):
        self.model, self.wrong, self.number = model, wrong, -1

    def __call__(self, clips):
        self.number += 1
        logits = logits_of(self.model, clips)
        return -logits if self.number in self.wrong else logits


@pytest.mark.parametrize(
    ("labelled", "wrong", "allowed", "expected"),
    [
        (True, [], 0, {"same_answers": 100, "top1_fp32": 75, "top1_int8": 75}),
        (True, [0], 25, {"same_answers": 75, "top1_fp32": 75, "top1_int8": 50}),
        (True, [3], 0, {"same_answers": 75, "top1_fp32": 75}),  # the wrong answer becomes another one
        (False, [0], 25, {"same_answers": 75, "top1_fp32": None, "top1_int8": None}),
        (
            True,
            [0],
            24,
            "int8 loses 25.0 points of top-1 accuracy on 4 videos, where 24 may be lost; nothing was saved",
        ),
        (False, [0, 1], 49, "int8 loses 50.0 percent of the answers"),
    ],
)
def test_what_8_bits_cost_is_counted_and_limited(labelled, wrong, allowed, expected):
    model = make_model()
    clips = [pixels(3, 4, 32, 32) for _ in range(4)]
    right = int(logits_of(model, clips[0][None]).argmax())
    labels = [right, right, right, (right + 1) % 3] if labelled else [None] * 4
    int8 = Quantisation([clips[0]], list(zip(clips, labels, strict=True)), max_drop=allowed)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            compare_answers(model, Answers(model, wrong), int8)
    else:
        found = compare_answers(model, Answers(model, wrong), int8)
        assert {name: found[name] for name in expected} == expected


def test_videos_to_calibrate_on_and_to_judge_by_are_not_the_same(video_folder, split_folder):
    int8 = read_quantisation(str(video_folder), CLIP, CLASSES)
    assert (len(int8.calibration), len(int8.measured)) == (5, 4)  # nine videos without splits
    assert {label for _, label in int8.measured} == {0, 1, 2}
    int8 = read_quantisation(str(split_folder), CLIP, ["other", "classes"])
    assert (len(int8.calibration), len(int8.measured)) == (12, 9)  # train and test
    assert {label for _, label in int8.measured} == {None}


def test_videos_without_a_label_and_unreadable_ones_are_not_counted_as_others(make_video, tmp_path, caplog):
    for name in ("a", "b", "c", "d"):
        make_video(tmp_path / f"{name}.mp4", frames=9)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "train.txt").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "val.txt").write_text("c.mp4 1\nbad.mp4 1\nd.mp4 -1\n")
    with caplog.at_level("WARNING", "lightning_csn"):
        int8 = read_quantisation(str(tmp_path), CLIP, ["0", "1"])
    assert [label for _, label in int8.measured] == [1, None]
    assert "bad.mp4" in caplog.text
    assert "int8 goes without it" in caplog.text
    (tmp_path / "d.mp4").unlink()
    with pytest.raises(InputError, match="of one of the two there is 1, and 2 could not be read"):
        read_quantisation(str(tmp_path), CLIP, ["0", "1"])


def test_calibration_clips_are_as_the_graph_takes_them():
    clip = pixels(3, 4, 32, 32)
    record = exporting.ExportRecord(architecture="", num_classes=3, clip=CLIP.to_dict(), normalised="inside")
    assert (Quantisation([clip], []).inputs(record)[0] == clip[None].numpy()).all()
    outside = Quantisation([clip], []).inputs(dataclasses.replace(record, normalised="outside"))[0]
    assert torch.allclose(torch.from_numpy(outside), make_model().normalise(clip[None]), atol=1e-6)


def test_8_bits_are_not_for_torch_export(tmp_path):
    with pytest.raises(InputError, match="int8 is for onnx and openvino"):
        export(make_model(), tmp_path / "model.pt2", int8=Quantisation([], []))


@pytest.mark.skipif(find_spec("nncf") is None, reason="nncf is not installed")
@pytest.mark.parametrize("to", FORMATS[:2])
def test_a_file_of_8_bits_answers_nearly_the_same(to, tmp_path):
    model, path = make_model(), tmp_path / f"model{ENDINGS[to]}"
    clips = [pixels(3, 4, 32, 32) for _ in range(2)]
    int8 = Quantisation(clips, [(clip, None) for clip in clips])
    written = export(model, path, int8=int8)
    assert written.record.precision == "int8"
    assert written.record.checked["same_answers"] == 100
    found, expected = load_runner(path)(clips[0][None]), logits_of(model, clips[0][None])
    assert TOLERANCE < (found - expected).abs().max() / expected.abs().max() < 0.2  # more than another order of sums


# ---------------------------------------------------------------- in the place of weights


def test_a_file_takes_the_place_of_weights(exported, make_video, tmp_path):
    model, written = exported
    video = make_video(tmp_path / "a.mp4", frames=9)
    mine, its = classify(model, video, clips=2), classify(LitCSN.from_pretrained(runs(written)), video, clips=2)
    assert [name for name, _ in its.top] == [name for name, _ in mine.top]
    assert [share for _, share in its.top] == pytest.approx([share for _, share in mine.top], abs=1e-4)


def test_a_test_gives_the_same_figures(exported, split_folder):
    model, written = exported
    figures = []
    for one in (model, LitCSN.from_pretrained(runs(written))):
        data = VideoDataModule(split_folder, clip=CLIP, num_workers=0, test_clips=2, test_crops=1)
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        figures += trainer.test(one, data, verbose=False)
    assert figures[0] == pytest.approx(figures[1], abs=1e-4)
    assert figures[1]["test_videos"] == 9


def test_a_file_is_not_for_training_nor_for_other_classes(exported, split_folder, tmp_path):
    path = runs(exported[1])
    model = LitCSN.from_pretrained(path)
    with pytest.raises(InputError, match="exported file, which cannot be trained further"):
        model.setup("fit")
    with pytest.raises(InputError, match="is an exported file; copy that"):
        model.save_pretrained(tmp_path / "mine")
    for options in ({"num_classes": 5}, {"classes": ["a", "b", "c"]}):
        with pytest.raises(InputError, match="its 3 classes cannot be changed"):
            LitCSN.from_pretrained(path, **options)
    with pytest.raises(InputError, match=r"its network has no options \(dropout\)"):
        LitCSN.from_pretrained(path, network={"dropout": 0.5})
    with pytest.raises(InputError, match=r"its mean \[0.5, 0.4, 0.3\] cannot be changed"):
        LitCSN.from_pretrained(path, clip={"mean": [0, 0, 0]})
    with pytest.raises(InputError, match="without layers to checkpoint"):
        LitCSN.from_pretrained(path, checkpointing=[1])
    assert LitCSN.from_pretrained(path, clip={"step": 2}).clip.step == 2


def test_a_file_runs_on_the_device_that_was_asked_for(exported):
    network = ExportedNetwork(runs(exported[1]))
    loaded = network.runner
    network.run_on("cpu")
    assert network.runner is loaded  # no second time
    assert network.runner.device == torch.device("cpu")
    if network.runner.path.suffix != ".pt2":
        with pytest.raises(InputError, match=r"on (the cpu, not on )?meta"):
            network.run_on("meta")


def test_a_file_follows_its_clips_to_a_gpu_or_says_that_it_does_not(exported, monkeypatch, caplog):
    network, asked = ExportedNetwork(runs(exported[1])), []

    def run_on(device):
        asked.append(device)
        network.runner.runs_on = torch.device(device)

    monkeypatch.setattr(type(network.runner), "__call__", lambda _, clips: torch.zeros(len(clips), 3))
    monkeypatch.setattr(network, "run_on", run_on)
    for _ in range(2):  # "meta" stands for a GPU
        assert network(torch.zeros(2, 3, 4, 32, 32, dtype=torch.uint8, device="meta")).device.type == "meta"
    follows = network.runner.path.suffix == ".pt2"
    assert asked == ["meta"] * follows
    assert caplog.messages == [f"{runs(exported[1])} runs on the cpu, not on meta"] * (not follows)


def test_files_of_other_weights_are_told_apart(exported, tmp_path):
    _, written = exported
    mine = hash_weights(LitCSN.from_pretrained(runs(written)).network)
    copies = [shutil.copy(file, tmp_path) for file in written.files]
    assert hash_weights(ExportedNetwork(tmp_path / runs(written).name)) == mine
    assert len(copies) == len(written.files)
    other = make_model()
    with torch.no_grad():
        other.network.head.bias += 1
    export(other, tmp_path / runs(written).name)
    assert hash_weights(ExportedNetwork(tmp_path / runs(written).name)) != mine


# ---------------------------------------------------------------- the command


def command(*argv):
    parser = argparse.ArgumentParser()
    export_options(parser)
    return run_export(parser.parse_args([*map(str, argv)]))


def test_the_command_exports_and_tells_as_json(tmp_path, make_video, capsys):
    folder = make_model().save_pretrained(tmp_path / "weights")
    video = make_video(tmp_path / "a.mp4", frames=9)
    out = tmp_path / "model.pt2"
    assert command(folder, "--to", "torch-export", out, "--check", video, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [{"path": str(out), "bytes": out.stat().st_size}]
    assert told["checked"]["real_clips"] == 2
    assert told["classes"] == CLASSES


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["model.txt"], "must end in"),
        (["model.pt2", "--int8", "nowhere"], "int8 is for onnx and openvino"),
        (["model.pt2", "--max-drop", "nan"], "--max-drop must be from 0 to 100 points, got nan"),
        (["folder.pt2"], r"folder\.pt2: this is a folder; name a file in it"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_read(argv, message, tmp_path, monkeypatch):
    (tmp_path / "folder.pt2").mkdir()
    monkeypatch.setattr(LitCSN, "from_pretrained", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(InputError, match=message):
        command("weights", tmp_path / argv[0], *argv[1:])


def test_an_exported_file_cannot_be_exported(tmp_path):
    with pytest.raises(InputError, match="is exported already"):
        command("model.onnx", tmp_path / "model.xml")


@pytest.mark.skipif(not has("openvino"), reason="openvino is not installed")
def test_signals_are_heard_after_two_files_were_let_go(tmp_path):
    """In the order in which they were loaded: OpenVINO leaves a stack for signals that is no more."""
    export(make_model(), tmp_path / "model.xml")
    code = (
        "import gc, os, signal\n"
        "from lightning_csn.runner import load_runner\n"
        f"runners = [load_runner({str(tmp_path / 'model.xml')!r}) for _ in range(2)]\n"
        "while runners:\n"
        "    del runners[0]\n"
        "    gc.collect()\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('heard'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "heard"


def test_a_file_runs_without_the_network(tmp_path):
    export(make_model(), tmp_path / "model.pt2")
    code = (
        "import sys, torch\n"
        "from lightning_csn.runner import load_runner\n"
        f"run = load_runner({str(tmp_path / 'model.pt2')!r}, 'cpu')\n"
        "assert run(torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8)).shape == (1, 3)\n"
        "unwanted = {'lightning_csn.models.network', 'lightning_csn.module', 'lightning', 'av', 'timm'}\n"
        "print(*sorted(unwanted & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
