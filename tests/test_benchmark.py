"""benchmark.py and what it is made of: what it measures and says, on a tiny network; never how long anything took."""

import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from lightning_csn import (
    benchmark,
    benchmark_layers,
    benchmark_machine,
    benchmark_report,
    benchmark_settings,
    benchmark_ways,
    runner,
)
from lightning_csn.benchmark import largest
from lightning_csn.benchmark_settings import Settings
from lightning_csn.benchmark_ways import Way
from lightning_csn.cli import main, make_parser
from lightning_csn.errors import InputError
from lightning_csn.export import ENDINGS, NEEDED, export
from lightning_csn.models import checkpoints, depthwise, fold, fused, roofline
from lightning_csn.models.depthwise import onednn
from lightning_csn.models.fold import FoldedNetwork, cannot_pack
from lightning_csn.models.network import create_network
from lightning_csn.module import SCRATCH_CLIP, LitCSN

TINY = ["--device=cpu", "--architecture=ircsn_tiny", "--clip=2x32x32", "--batch=2", "--repeats=2", "--steps=1"]
FEW = ["--device=cpu", "--batch=2", "--repeats=2", "--steps=1"]  # of a network that is named


@pytest.fixture(autouse=True)
def rates_of_a_small_copy(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(benchmark_machine, "SIZES", dict.fromkeys(("cpu", "cuda"), (2**16, 32)))
    yield
    torch.set_num_threads(threads)


def run_json(capsys, *argv):
    if argv[0] == "infer" and "--forms" not in argv:
        argv = (*argv, "--forms")  # none; the default depends on what is installed
    assert main(["benchmark", *argv, *TINY, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def train_settings():
    args = {"architecture": "ircsn_tiny", "clip": (2, 32, 32), "batch": 2, "precision": "fp32", "backend": "auto"}
    args |= {"layout": "contiguous", "compile": None, "cuda_graphs": False, "checkpointing": (), "steps": 1}
    return Settings(kind="train", repeats=1, device="cpu", **args)


def flat(number):
    return isinstance(number, float) and number > 0


@pytest.mark.parametrize("kind", ["train", "infer"])
def test_ours_and_the_plain_network_are_measured_in_one_run(kind, capsys):
    result = run_json(capsys, kind, "--against", "eager", "--layout=contiguous")
    assert result["benchmark"] == kind
    assert result["settings"]["clip"] == [2, 32, 32]
    assert result["machine"]["torch"] == torch.__version__
    assert {"device", "threads", "platform", "python", "triton", "lightning_csn"} <= set(result["machine"])
    assert all(map(flat, result["rates"].values()))
    assert [(way["name"], way["layout"], way["path"]) for way in result["ways"]] == [
        ("ours", "contiguous", "taps" if kind == "train" and onednn() else "reference"),
        ("plain eager", "contiguous", "reference"),
        ("plain eager", "channels_last", "reference"),
    ]
    for way in result["ways"]:
        assert len(way["seconds"]) == 2
        assert way["clips_per_second"] == pytest.approx(2 / (way["ms_per_step"] / 1e3))
        assert way["times_floor"] == pytest.approx(way["ms_per_step"] / 1e3 / result["floor"]["seconds"])
        assert way["precision"] == "fp32"
        # the longer of the two times is the floor's
        assert max(way["share_of_copy"], way["share_of_matrix"]) == pytest.approx(1 / way["times_floor"])
        assert way["error"] is way["peak_memory_bytes"] is None
    ours, *plain = (way["ms_per_step"] for way in result["ways"])
    assert result["ratios"]["plain eager"]["speed"] == pytest.approx(min(plain) / ours)
    assert result["process_peak_memory_bytes"] > 10**8 or sys.platform == "win32"


def test_quicker_forms_of_inference_are_measured_in_the_same_run(capsys):
    result = run_json(capsys, "infer", "--forms", "bf16", "folded", "--against", "eager")
    assert result["settings"]["forms"] == ["folded", "bf16"]
    assert [(way["name"], way["form"]) for way in result["ways"][:3]] == [
        ("ours", "trained"),
        ("folded", "folded"),
        ("bf16", "bf16"),
    ]
    assert [way["precision"] for way in result["ways"]] == ["fp32", "fp32", "bf16", "fp32", "fp32"]
    half, whole = (result["floors"][name] for name in ("bf16", "fp32"))
    assert 2 * half["bytes"] == whole["bytes"]
    assert result["ways"][2]["times_floor"] == pytest.approx(result["ways"][2]["ms_per_step"] / 1e3 / half["seconds"])
    packs = cannot_pack("cpu", torch.float32) is None
    assert result["ways"][1]["path"] == ("oneDNN, packed" if packs else "nn.Conv3d")
    plain = {way["layout"]: way["ms_per_step"] for way in result["ways"][3:]}
    for way in result["ways"]:
        assert way["times_plain"] == pytest.approx(plain["contiguous"] / way["ms_per_step"])
    assert result["ratios"]["plain eager"]["speed"] == pytest.approx(
        min(plain.values()) / result["ways"][1]["ms_per_step"]
    )
    assert main(["benchmark", "infer", *TINY, "--forms", "folded", "--against", "eager"]) == 0
    assert "folded against plain eager (" in capsys.readouterr().out


@pytest.mark.skipif(fold.cannot_quantise("cpu") is not None, reason="not an x86 CPU with VNNI and oneDNN")
def test_form_of_8_bits_is_measured_and_drawn_and_said_to_be_calibrated_on_noise(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = tmp_path / "infer.png"
    options = ["--forms", "int8", "--against", "eager", "--plot", str(drawn)]
    assert main(["benchmark", "infer", *TINY, *options]) == 0
    text = capsys.readouterr().out
    assert "oneDNN, int8" in text
    assert re.search(r"matrix product \S+ TFLOP/s in fp32, \S+ TFLOP/s in int8\n", text)
    assert re.search(r"floor \S+ ms a pass in fp32, \S+ ms a pass in int8, counted", text)
    assert "int8: calibrated on noise, for its speed alone" in text
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("file", "missing", "message"),
    [
        ("infer.png", "matplotlib", "--plot needs matplotlib, which is not installed: pip install"),
        ("infer.docx", None, "the file's name must end in .png, .svg, .pdf"),
        ("nowhere/infer.png", None, "there is no folder"),
    ],
)
def test_drawing_that_cannot_be_is_refused_before_anything_is_measured(file, missing, message, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    monkeypatch.setattr(benchmark, "measure_network", lambda *_, **__: pytest.fail("measured"))
    args = make_parser().parse_args(["benchmark", "infer", *TINY, "--forms", "--plot", str(tmp_path / file)])
    with pytest.raises(InputError, match=message):
        benchmark.run_network(args)


def test_folded_form_is_compiled_with_its_weights_frozen(capsys, monkeypatch):
    frozen = []

    def compiled(network, **options):
        assert isinstance(network, FoldedNetwork)
        return lambda clips: frozen.append(torch._inductor.config.freezing) or network(clips)

    monkeypatch.setattr(torch, "compile", compiled)
    run_json(capsys, "infer", "--forms", "compiled", "--against")
    assert frozen[0]  # where it is compiled, at its first call


@pytest.mark.parametrize("form", ["onnxruntime", "openvino"])
def test_exported_files_are_measured_in_their_runtimes(form, capsys):
    for package in {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}[form]:
        pytest.importorskip(package)
    way = run_json(capsys, "infer", "--forms", form, "--against", "--batch=1")["ways"][1]
    assert (way["name"], way["path"], way["error"]) == (form, form, None)


@pytest.mark.parametrize(
    ("options", "missing", "found"),
    [
        ([], (), list(benchmark_settings.FORMS)),
        ([], ("nncf",), ["folded", "compiled", "bf16", "int8", "onnxruntime", "openvino"]),
        ([], ("onnx", "openvino"), ["folded", "compiled", "bf16", "int8"]),
        (["--clip=2x32x48"], (), ["folded", "compiled", "bf16", "int8"]),
        (
            ["--forms", "folded", "openvino-int8", "onnxruntime", "--plot=a.png"],
            ("nncf", "onnx", "matplotlib"),
            r"--forms openvino-int8 needs nncf; --forms onnxruntime needs onnx; --plot needs matplotlib, which are not "
            r"installed: pip install 'lightning-csn\[int8,onnx,benchmark\]'$",
        ),
        (["--precision=bf16"], (), []),
        (["--forms", "openvino", "--precision=bf16"], ("openvino",), "they are measured on a CPU in fp32"),
        (["--forms", "openvino", "--clip=2x32x48"], (), "--forms openvino: files are exported for square clips"),
        (["--forms", "folded", "--precision=bf16"], (), "--forms folded: they are measured on a CPU in fp32"),
    ],
)
def test_forms_are_those_that_can_run(options, missing, found, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else name)
    monkeypatch.setattr(fold, "cannot_quantise", lambda device: None)
    args = make_parser().parse_args(["benchmark", "infer", *TINY, *options])
    if isinstance(found, str):
        with pytest.raises(InputError, match=found):
            benchmark_settings.check(args)
    else:
        assert list(benchmark_settings.check(args)[0].forms) == found


def make_model(frames=4, side=32):
    """A network with options and classes of its own."""
    torch.manual_seed(1)  # the fresh ones that are measured have 0
    clip = dataclasses.replace(SCRATCH_CLIP, frames=frames, short_side=side, crop=side, test_crop=side)
    options = {"stem_pool": False, "norm_eps": 1e-5}
    return LitCSN("ircsn_tiny", num_classes=3, clip=clip.to_dict(), network=options).eval()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A model and its .pt2, which needs no other runtime."""
    model, path = make_model(), tmp_path_factory.mktemp("exported") / "model.pt2"
    export(model, path)
    return model, path


def settings_of(*argv):
    return benchmark_settings.check(make_parser().parse_args(["benchmark", "infer", *FEW, "--forms", *argv]))[0]


@pytest.mark.parametrize("to", ENDINGS)
def test_exported_file_is_one_more_way_and_its_record_says_which_network_is_beside_it(to, capsys, tmp_path):
    for package in NEEDED[to]:
        pytest.importorskip(package)
    path = tmp_path / f"mine{ENDINGS[to]}"
    export(make_model(), path)
    options = ["--forms", "folded", "--against", "eager", "--model", str(path)]
    assert main(["benchmark", "infer", *FEW, *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    found = result["settings"]
    assert (found["architecture"], found["clip"], found["num_classes"]) == ("ircsn_tiny", [4, 32, 32], 3)
    assert found["network"] == make_model().network.trunk_options
    assert found["counted"] is (to == "torch-export")  # whose memory PyTorch counts
    ways = result["ways"]
    assert [way["name"] for way in ways] == ["ours", "folded", path.name, "plain eager", "plain eager"]
    runtime = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "torch-export": "torch.export"}[to]
    assert ways[2]["path"].startswith(runtime)
    assert ways[2]["path"].endswith(", fp32")
    assert len(ways[2]["seconds"]) == 2
    assert result["ratios"]["plain eager"]["of"] == path.name
    layers = roofline.layers("ircsn_tiny", (4, 32, 32), stem_pool=False)
    assert result["floor"]["operations"] == 2 * 2 * sum(layer.multiply_adds * layer.count for layer in layers)


def test_exported_file_is_held_against_the_floor_of_what_it_computes_in(program, monkeypatch):
    path = str(program[1])
    found = runner.load_runner(path, "cpu")
    found.record = dataclasses.replace(found.record, precision="int8")
    monkeypatch.setattr(runner, "load_runner", lambda *_: found)
    settings = settings_of("--model", path)
    ways = benchmark_ways.ways_of(settings, ())
    assert [benchmark_ways.precision_of(way, settings) for way in ways] == ["fp32", "int8"]


def test_exported_file_stands_in_the_table_and_in_the_drawing(program, capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    drawn, barh = [], Axes.barh
    monkeypatch.setattr(
        Axes, "barh", lambda self, names, *rest, **kw: drawn.extend(names) or barh(self, names, *rest, **kw)
    )
    path = str(program[1])
    options = ["--forms", "--against", "eager", "--model", path, "--plot", str(tmp_path / "a.png")]
    assert main(["benchmark", "infer", *FEW, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ircsn_tiny of {path}, clips 4x32x32, batch 2, fp32, medians of 2"
    assert any(line.startswith("model.pt2    torch.export, PyTorch") for line in lines)
    assert any(line.startswith("model.pt2 against plain eager (") for line in lines)
    assert "model.pt2" in drawn


def test_exported_file_gives_the_logits_of_its_own_weights_on_the_clips_of_all_ways(program):
    model, path = program
    settings = settings_of("--model", str(path))
    clips = benchmark_ways.pixels(settings)
    assert (clips.shape, clips.dtype) == ((2, 3, 4, 32, 32), torch.uint8)
    way = benchmark_ways.ways_of(settings, ())[-1]
    with torch.inference_mode():
        expected = model.network(model.normalise(clips))
    assert torch.allclose(benchmark_ways.make_step(way, settings, torch.device("cpu"))(), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["trained", "folded"])
def test_every_way_has_the_weights_that_are_named(form, tmp_path):
    model = make_model()
    folder = model.save_pretrained(tmp_path / "mine")
    settings = settings_of("--model", str(folder))
    assert (settings.architecture, settings.clip, settings.num_classes) == ("ircsn_tiny", (4, 32, 32), 3)
    assert settings_of("--model", str(folder), "--clip=8x48x48").clip == (8, 48, 48)
    assert [way.name for way in benchmark_ways.ways_of(settings, ())] == ["ours"]
    step = benchmark_ways.make_step(Way("ours", "auto", "contiguous", form=form), settings, torch.device("cpu"))
    with torch.inference_mode():
        expected = model.network(benchmark_ways.normalised(benchmark_ways.pixels(settings)))
    assert torch.allclose(step(), expected, atol=1e-5)


def test_clip_of_another_size_is_for_files_that_leave_it_open(tmp_path):
    path = tmp_path / "open.pt2"
    export(make_model(10, 40), path, dynamic=["length", "size"])
    assert settings_of("--model", str(path)).clip == (10, 40, 40)
    assert settings_of("--model", str(path), "--clip=9x34x48").clip == (9, 34, 48)
    with pytest.raises(InputError, match=r"--clip 8x34x48: .*open\.pt2 was exported for .* 9 or more frames"):
        settings_of("--model", str(path), "--clip=8x34x48")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            "--architecture=ircsn_50",
            r"--architecture ircsn_50: .*model\.pt2 is of ircsn_tiny; leave --architecture out",
        ),
        (
            "--clip=4x32x48",
            r"--clip 4x32x48: .*model\.pt2 was exported for clips of .* 4 frames and sides of 32 pixels",
        ),
        (
            "--precision=bf16",
            r"--precision bf16: .*model\.pt2 computes in fp32, and is measured beside networks in fp32",
        ),
    ],
)
def test_options_that_contradict_the_file_are_refused(option, words, program):
    with pytest.raises(InputError, match=words):
        settings_of("--model", str(program[1]), option)


def test_options_that_agree_with_the_file_may_be_given(program):
    given = ["--architecture=ircsn_tiny", "--clip=4x32x32", "--precision=fp32"]
    assert settings_of("--model", str(program[1]), *given) == settings_of("--model", str(program[1]))


def test_weights_that_cannot_be_measured_as_they_are_say_what_is_missing(tmp_path):
    def save(name, **options):
        network = create_network("ircsn_tiny", num_classes=3, **options)
        checkpoints.save(network, checkpoints.Checkpoint(architecture="ircsn_tiny", num_classes=3), tmp_path / name)
        return str(tmp_path / name)

    mine = save("mine")
    with pytest.raises(InputError, match="mine does not say how clips must look: add --clip 32x224x224"):
        settings_of("--model", mine)
    assert settings_of("--model", mine, "--clip=4x32x32").clip == (4, 32, 32)
    with pytest.raises(InputError, match="flow takes clips of 2 colours; 3 are measured"):
        settings_of("--model", save("flow", in_channels=2), "--clip=4x32x32")
    with pytest.raises(InputError, match=f"--architecture ircsn_50: {mine} is of ircsn_tiny"):
        settings_of("--model", mine, "--clip=4x32x32", "--architecture=ircsn_50")


def test_options_reach_the_network_and_half_the_bytes_are_half_the_floor(capsys, monkeypatch):
    made = []
    original = benchmark_ways.make_step
    monkeypatch.setattr(benchmark_ways, "make_step", lambda way, *rest: made.append(way) or original(way, *rest))
    options = ["--precision=bf16", "--backend=taps", "--checkpointing", "1", "3", "--against", "eager"]
    half = run_json(capsys, "train", *options)
    assert made[0] == Way("ours", "taps", "channels_last", checkpointing=(1, 3))
    assert {way.checkpointing for way in made[1:]} == {()}
    assert half["ways"][0]["path"] == "taps"
    assert 2 * half["floor"]["bytes"] == run_json(capsys, "train", "--against")["floor"]["bytes"]


def test_training_steps_train_and_inference_leaves_the_network_as_it_is():
    args = {"architecture": "ircsn_tiny", "clip": (2, 32, 32), "batch": 2, "precision": "fp32", "backend": "auto"}
    args |= {"layout": "contiguous", "compile": None, "cuda_graphs": False, "checkpointing": (), "steps": 1}
    cpu, way = torch.device("cpu"), Way("ours", "auto", "contiguous")
    step = benchmark_ways.make_step(way, Settings(kind="train", repeats=1, device="cpu", **args), cpu)
    losses = [step().item() for _ in range(4)]
    assert losses[-1] < losses[0]
    forward = benchmark_ways.make_step(way, Settings(kind="infer", repeats=1, device="cpu", **args), cpu)
    first, second = forward(), forward()
    assert not first.requires_grad
    assert torch.equal(first, second)


def test_the_plain_network_is_compiled_in_its_better_layout_and_a_missing_compiler_is_a_reason(capsys, monkeypatch):
    compiled = []

    def fails(network, **options):
        compiled.append(options)

        def run(clips):
            compiled.append(clips.is_contiguous())
            raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler"), None)

        return run

    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(benchmark, "seconds_of", lambda f, *_: {"contiguous": 1.0}.get(getattr(f, "layout", ""), 2.0))
    original = benchmark_ways.make_step

    def labelled(way, *rest):
        step = original(way, *rest)
        step.layout = way.layout
        return step

    monkeypatch.setattr(benchmark_ways, "make_step", labelled)
    result = run_json(capsys, "train")
    way = result["ways"][-1]
    assert (way["name"], way["layout"]) == ("plain compiled", "contiguous")
    assert "torch.compile failed" in way["error"]
    assert compiled == [{"mode": "default", "dynamic": False}, True]
    assert "plain compiled" not in result["ratios"]
    assert main(["benchmark", "train", *TINY]) == 0
    assert "torch.compile failed" in capsys.readouterr().out


def test_table_says_where_what_and_how_fast(capsys):
    assert main(["benchmark", "train", *TINY, "--against", "eager"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "ircsn_tiny, clips 2x32x32, batch 2, fp32, medians of 2"
    assert lines[1].endswith(f"torch {torch.__version__}") or f"torch {torch.__version__}, triton" in lines[1]
    assert lines[2].startswith("measured here: copy ")
    assert lines[3].startswith("floor ")
    assert [line.split("  ")[0] for line in lines[5:9]] == ["WAY", "ours", "plain eager", "plain eager"]
    assert any(line.startswith("ours against plain eager (") for line in lines)
    assert "peak memory of the process" in lines[-1] or sys.platform == "win32"
    assert "lightning-csn: plain eager, channels_last" in said.err


def test_layers_are_measured_alone(capsys):
    result = run_json(capsys, "train", "--layers", "--backend=taps")
    assert result["path"] == "taps"
    assert [layer["channels"] for layer in result["layers"]] == [16, 32, 64, 128]
    for layer in result["layers"]:
        for way in ("ours", "contiguous", "channels_last"):
            assert len(layer[way]) == 4
            assert all(map(flat, layer[way].values()))
    plain = min(result["total_ms"][layout] for layout in ("contiguous", "channels_last"))
    assert result["ratios"]["plain eager"]["speed"] == pytest.approx(plain / result["total_ms"]["ours"])
    assert main(["benchmark", "train", *TINY, "--layers"]) == 0
    out = capsys.readouterr().out
    assert "CONV3D CHANNELS_LAST" in out
    assert "ours against the better layout of nn.Conv3d" in out


@pytest.mark.parametrize("most", [0, 1, 2, 5, 64, 100])
def test_largest_batch_is_found_and_nothing_far_above_it_tried(most):
    tried = []
    assert largest(lambda n: tried.append(n) or n <= most) == most
    assert max(tried) <= max(1, 2 * most)


def test_batches_that_do_not_fit_are_told_apart_from_those_that_do(monkeypatch):
    def too_large(way, settings, device):
        if settings.batch > (6 if way.name == "ours" else 3):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return lambda: None

    monkeypatch.setattr(benchmark_ways, "make_step", too_large)
    args = {"architecture": "ircsn_tiny", "clip": (2, 32, 32), "batch": 2, "precision": "fp32", "backend": "auto"}
    args |= {"layout": "contiguous", "compile": None, "cuda_graphs": False, "checkpointing": (), "steps": 1}
    settings = Settings(kind="train", repeats=1, device="cpu", **args)
    *_, result = benchmark.find_batches(settings, torch.device("cpu"), against=["eager"])
    assert [way["largest_batch"] for way in result["ways"]] == [6, 3, 3]
    assert "LARGEST BATCH" in benchmark_report.as_text(result)


def test_way_that_fails_has_no_largest_batch_and_the_others_do(monkeypatch):
    def fails(way, settings, device):
        if way.name == "ours":
            raise InputError("cannot be")
        if settings.batch > 3:
            raise MemoryError("none left")
        return lambda: None

    monkeypatch.setattr(benchmark_ways, "make_step", fails)
    found = list(benchmark.find_batches(train_settings(), torch.device("cpu"), against=["eager"]))
    assert [(way["largest_batch"], way["error"]) for way in found[-1]["ways"]] == [
        (None, "cannot be"),
        (3, None),
        (3, None),
    ]
    assert found[0]["not_measured"] == ["plain eager, contiguous", "plain eager, channels_last"]
    assert "cannot be" in benchmark_report.as_text(found[-1])


def test_tiles_of_every_kernel_at_every_shape_are_measured_and_kept(capsys, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("--device=cpu needs Triton's interpreter")
    from lightning_csn.models import choices, launch, launch_product, tiles

    launched, turn = [], iter(range(10**6))
    for name in ("convolve", "weight_gradient", "input_gradient"):
        original = getattr(launch, name)

        def once(*args, name=name, original=original, **options):  # one of each is launched, in the smallest tile
            kind = (name, "norm" in options)
            if kind not in launched:
                launched.append(kind)
                original(*args, **{**options, "tile": tiles.Tile(2, planes=2)})

        monkeypatch.setattr(launch, name, once)
    # The last one wins.
    monkeypatch.setattr(benchmark_layers, "kernel_seconds", lambda f, *_: (f(), 1.0 / (1 + next(turn)))[1])
    monkeypatch.setenv("LIGHTNING_CSN_CACHE", str(tmp_path))
    steps = []
    monkeypatch.setattr(
        benchmark_ways, "make_step", lambda way, *_: lambda: steps.append((way.backend, depthwise._backend))
    )
    monkeypatch.setattr(benchmark_layers, "seconds_of", lambda *_: 1.0 / (1 + next(turn)))
    choices.forget()
    result = run_json(capsys, "train", "--tune", "--batch=1")
    first, later = ["convolve", "weight_gradient"], ["norm_convolve", "norm_weight_gradient"]
    strided = [*first, "input_gradient", *later]
    rows = [row for row in result["kernels"] if "tile" in row]
    assert [row["kernel"] for row in rows] == [*first, *later, *strided, *strided, *strided]
    assert len(launched) == 5
    kept = json.loads((tmp_path / "depthwise_tiles.json").read_text())
    assert list(kept.values()) == [row["tile"] for row in rows]
    assert len(kept) == len(rows)
    products = [row for row in result["kernels"] if "form" in row]
    assert [(row["kernel"], row["channels"]) for row in products[:3]] == [
        ("reduce of 16", 16),
        ("expand of 16", 64),
        ("reduce of 64", 32),
    ]
    assert list(json.loads((tmp_path / "products.json").read_text()).values()) == [row["form"] for row in products]
    monkeypatch.setattr(launch_product, "memory_bound", lambda *_: pytest.fail("counted, where it was measured"))
    assert products[0]["form"] == "own"  # not what would be counted for 32 bits
    assert launch_product.takes_in(torch.empty(1, 16, 1, 1, 1), torch.empty(16, 16, 1, 1, 1))
    assert steps == [("triton", "triton"), ("fused", "fused")]
    assert result["kernels"][-1]["backend"] == "fused"
    assert list(json.loads((tmp_path / "blocks.json").read_text()).values()) == ["fused"]
    assert fused.found_faster("ir", torch.device("cpu"), torch.float32)
    assert not fused.found_faster("ip", torch.device("cpu"), torch.float32)
    assert not fused.found_faster("ir", torch.device("cpu"), torch.bfloat16)
    assert all(row["best_ms"] <= row["default_ms"] for row in result["kernels"])
    assert "kept in" in benchmark_report.as_text(result)
    choices.forget()


@pytest.mark.parametrize("fits", [[], ["triton"], ["fused"]])
def test_tuning_keeps_the_step_that_fits_into_memory(fits, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    monkeypatch.setenv("LIGHTNING_CSN_CACHE", str(tmp_path))
    monkeypatch.setattr(
        benchmark_ways, "make_step", lambda way, *_: (lambda: None) if way.backend in fits else cannot_allocate()
    )
    settings, cpu = dataclasses.replace(settings_of(), architecture="ircsn_tiny"), torch.device("cpu")
    if not fits:
        with pytest.raises(InputError, match="--tune: no training step runs: out of memory"):
            benchmark_layers.tune_blocks(settings, cpu, lambda _: None)
        return
    [row] = benchmark_layers.tune_blocks(settings, cpu, lambda _: None)
    assert row["backend"] == fits[0]
    assert (row["default_ms"] is None) == (fits[0] == "fused")
    assert f" {fits[0]}" in benchmark_report.tiles_text({"kernels": [row], "folder": ""})[1]
    assert list(json.loads((tmp_path / "blocks.json").read_text()).values()) == fits


@pytest.mark.parametrize(
    ("backend", "options", "faster", "path"),
    [
        ("auto", {}, True, "fused, products of the library"),
        ("auto", {"layout": "contiguous"}, True, "triton"),
        ("auto", {"compile": "default"}, True, "triton"),
        ("auto", {}, False, "triton"),
        ("triton", {}, True, "triton"),
        ("fused", {"compile": "default"}, False, "fused, products of the library"),
    ],
)
def test_path_of_a_network_left_to_us_is_what_was_measured_to_be_faster(backend, options, faster, path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(  # as on a GPU, but where shapes are counted
        depthwise, "choose_way", lambda _, device, *rest: "reference" if str(device) == "meta" else "triton"
    )
    monkeypatch.setattr(fused, "found_faster", lambda *_: faster)
    way = Way(**{"name": "ours", "backend": backend, "layout": "channels_last", **options})
    settings = dataclasses.replace(settings_of(), kind="train", architecture="ircsn_tiny")
    assert benchmark_ways.path_of(way, settings, torch.device("cpu")) == path
    if backend == "auto":
        assert benchmark_ways.path_of(way, dataclasses.replace(settings, kind="infer"), torch.device("cpu")) == "triton"
    monkeypatch.setattr(depthwise, "choose_way", lambda *_: "reference")  # as where no kernel runs
    assert benchmark_ways.path_of(way, settings, torch.device("cpu")) == "reference"


@pytest.mark.parametrize("backend", ["triton", "fused"])
def test_kernels_where_they_cannot_run_are_refused(backend, capsys, monkeypatch):
    depthwise.unsupported.cache_clear()
    monkeypatch.setattr(depthwise, "interpreted", lambda: False)
    assert main(["benchmark", "train", *TINY, f"--backend={backend}"]) == 2
    depthwise.unsupported.cache_clear()
    assert f"--backend {backend}: Triton" in capsys.readouterr().err


def test_tune_without_triton_is_refused(capsys, monkeypatch):
    depthwise.unsupported.cache_clear()
    monkeypatch.setattr(depthwise, "interpreted", lambda: False)
    assert main(["benchmark", "train", *TINY, "--tune"]) == 2
    depthwise.unsupported.cache_clear()
    assert "--tune: Triton" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--architecture=ircsn_51"], "no network 'ircsn_51'; there are: ipcsn_101"),
        (["--precision=fp16"], "--precision fp16 is for GPUs"),
        (["--find-batch"], "--find-batch needs a GPU"),
        (["--cuda-graphs"], "--cuda-graphs needs a GPU"),
        (["--device=mps:9x"], "device 'mps:9x' cannot be used"),
        (["--device=meta"], "--device meta: only cpu and cuda are measured"),
        (["--checkpointing", "0", "2"], "--checkpointing takes stages 1 to 4, got 0 2"),
        (["--layers", "--architecture=resnet3d_tiny"], "resnet3d_tiny has no depthwise layers"),
        (["--layers", "--compile"], "neither takes --compile"),
        (["--tune", "--checkpointing", "1"], "neither takes --compile"),
        (["--clip=100000x100000x100000"], "2 such clips have more than 1,000,000,000,000 values"),
        (["--batch=999999999999999999999"], "such clips have more than"),
        (["--batch=1"], "BatchNorm needs more than one value per channel"),
        (["--clip=8x112"], "frames x height x width is needed, such as 32x224x224, got '8x112'"),
        (["--clip=0x32x32"], "frames x height x width"),
        (["--batch=0"], "1 or more"),
        (["--layers", "--tune"], "not allowed with"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(options, words, capsys):
    assert main(["benchmark", "train", *TINY, *options]) == 2
    assert words in capsys.readouterr().err


def cannot_allocate(*_, **__):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory\nmore")


class Stop:
    """Measures 1 s a step, and is stopped by `error` at a measurement of its number."""

    def __init__(self, number, error):
        self.number, self.error, self.count = number, error, 0

    def __call__(self, step, device, steps):
        step()
        self.count += 1
        if self.count == self.number:
            self.error()
        return 1.0


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def bug():
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(("stop", "code"), [(interrupt, 130), (terminate, 143), (bug, None)])
def test_a_benchmark_that_is_stopped_prints_what_it_has(stop, code, capsys, monkeypatch):
    """Three ways, two measurements of each: in the third measurement, and after it."""
    argv = ["benchmark", "train", *TINY, "--against", "eager"]

    def run(number, *more):
        monkeypatch.setattr(benchmark, "seconds_of", Stop(number, stop))
        if code is None:
            with pytest.raises(ZeroDivisionError):
                main([*argv, *more])
        else:
            assert main([*argv, *more]) == code
        said = capsys.readouterr()
        assert ("stopped before anything was measured" in said.err) == (number == 1 and code is not None)
        return said.out

    before = signal.getsignal(signal.SIGTERM)
    result = json.loads(run(3, "--json"))
    assert [(way["error"], len(way["seconds"])) for way in result["ways"]] == [
        (None, 1),
        (None, 1),
        ("not measured", 0),
    ]
    assert result["not_measured"] == ["plain eager, channels_last"]
    lines = run(3).splitlines()
    rows = [line for line in lines if line.startswith(("ours  ", "plain eager  "))]
    assert ["1000.00" in row for row in rows] == [True, True, False]
    assert rows[2].endswith("not measured")
    assert lines[-2:] == [
        "stopped; not measured: plain eager, channels_last",
        "stopped: medians are of 1, not of 2 measurements",
    ]
    assert lines[0].endswith(", medians of 1")
    assert run(5).splitlines()[-1] == "stopped: medians are of 1 to 2, not of 2 measurements"
    assert run(1) == ""  # nothing was measured
    assert signal.getsignal(signal.SIGTERM) is before


def test_layers_that_were_measured_are_printed_where_the_rest_is_not(capsys, monkeypatch):
    original, seen = benchmark_layers.layer_seconds, []

    def stops(layer, *rest):
        seen.append(layer.channels)
        if layer.channels == 64:
            raise KeyboardInterrupt
        return original(layer, *rest)

    monkeypatch.setattr(benchmark_layers, "layer_seconds", stops)
    assert main(["benchmark", "train", *TINY, "--layers", "--json"]) == 130
    result = json.loads(capsys.readouterr().out)
    assert [layer["channels"] for layer in result["layers"]] == [16, 32]
    assert [text.split(",")[0] for text in result["not_measured"]] == ["64 channels", "128 channels"]
    assert main(["benchmark", "train", *TINY, "--layers"]) == 130
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped; not measured: 64 channels, (")


@pytest.mark.parametrize(
    ("error", "reason", "told"),
    [
        (InputError("int8 inside PyTorch is for networks of bottlenecks"), "int8 inside PyTorch is for netw", False),
        (RuntimeError("an operator is missing\nmore"), "RuntimeError: an operator is missing", True),
        (MemoryError("Unable to allocate 9 GiB"), "out of memory: Unable to allocate 9 GiB", False),
    ],
)
def test_a_way_that_fails_has_the_reason_in_its_row_and_the_others_go_on(error, reason, told, capsys, monkeypatch):
    original = benchmark_ways.make_step

    def fails(way, *rest):
        if way.form == "bf16":
            raise error
        return original(way, *rest)

    monkeypatch.setattr(benchmark_ways, "make_step", fails)
    options = ["--forms", "folded", "bf16", "--against", "eager"]
    assert main(["benchmark", "infer", *TINY, *options, "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    found = {way["name"]: (way["error"] or "", len(way["seconds"])) for way in result["ways"]}
    assert found.pop("bf16")[0].startswith(reason)
    assert set(found.values()) == {("", 2)}
    assert result["not_measured"] == []
    assert ("Traceback" in said.err) is told


def test_a_way_that_fails_once_is_not_tried_again(capsys, monkeypatch):
    tried = []

    def fails(way, *_):
        def step():
            tried.append(way.layout)
            if way.layout == "contiguous" and tried.count("contiguous") == 3:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

        return step

    monkeypatch.setattr(benchmark_ways, "make_step", fails)
    monkeypatch.setattr(benchmark, "seconds_of", lambda step, *_: step() or 1.0)
    result = run_json(capsys, "train", "--against", "eager")
    assert [bool(way["error"]) for way in result["ways"]] == [False, True, False]
    assert tried.count("contiguous") == 3  # when it was made ready, before it was timed, and then
    assert tried.count("channels_last") == 2 * (1 + 2 * 2)


def test_results_are_printed_before_a_drawing_fails(capsys, monkeypatch):
    pytest.importorskip("matplotlib")

    def fails(*_):
        raise InputError("--plot a.png: it cannot be written")

    monkeypatch.setattr(benchmark, "plot", fails)
    assert main(["benchmark", "infer", *TINY, "--forms", "--against", "--plot", "a.png"]) == 2
    assert "CLIPS/S" in capsys.readouterr().out


def test_too_little_memory_is_a_reason_on_a_cpu_too(capsys, monkeypatch):
    monkeypatch.setattr(benchmark_ways, "make_step", cannot_allocate)
    result = run_json(capsys, "train", "--against")
    assert result["ways"][0]["error"].startswith("out of memory: [enforce fail")
    assert "ms_per_step" not in result["ways"][0]
    monkeypatch.setattr(benchmark_layers, "layer_tensors", cannot_allocate)
    assert main(["benchmark", "train", *TINY, "--layers"]) == 2
    assert "out of memory: [enforce fail" in capsys.readouterr().err


def test_options_of_training_are_not_those_of_inference(capsys):
    assert main(["benchmark", "infer", *TINY, "--checkpointing", "1"]) == 2
    assert main(["benchmark"]) == 2
    assert main(["benchmark", "train", "--help"]) == 0
    assert "lightning-csn benchmark train --architecture" in capsys.readouterr().out


def test_backends_are_those_of_the_networks():
    assert benchmark_settings.BACKENDS == depthwise.BACKENDS


def test_everything_but_the_kernels_works_without_triton():
    script = f"""
import sys
sys.modules["triton"] = None  # every import of it fails
import torch
from lightning_csn.cli import main
from lightning_csn.models import checkpoints, depthwise, fused, network, roofline
from lightning_csn.models.depthwise import depthwise_backend, depthwise_conv3d
from lightning_csn import LitCSN
import lightning_csn.trainer_commands
x = torch.ones(1, 2, 2, 4, 4)
assert depthwise_conv3d(x, torch.ones(2, 1, 3, 3, 3)).shape == x.shape
clip = torch.zeros(2, 3, 2, 32, 32)
LitCSN("ircsn_tiny", num_classes=3).network(clip).sum().backward()
with depthwise_backend("fused"):
    network.create_network("ircsn_tiny")(clip).sum().backward()
assert main(["benchmark", "train", *{TINY!r}, "--against"]) == 0
assert main(["benchmark", "train", *{TINY!r}, "--tune"]) == 2
"""
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Triton is not installed; nn.Conv3d runs instead" in done.stderr
    assert "--tune: Triton is not installed" in done.stderr
