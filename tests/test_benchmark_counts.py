"""What `benchmark` counts, against figures made by hand: times by a clock of the test, rates, shares, totals."""

import json
from types import SimpleNamespace

import pytest
import torch

from lightning_csn import benchmark, benchmark_layers, benchmark_machine, benchmark_report, benchmark_ways
from lightning_csn.benchmark_settings import Settings
from lightning_csn.benchmark_ways import Measured, Way
from lightning_csn.models import fold, roofline

CPU = torch.device("cpu")
RATES = {"copy": 1e9, "fp32": 2e9}


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `pass_time` moves."""
    now = SimpleNamespace(seconds=100.0)

    def pass_time(seconds):
        now.seconds += seconds

    monkeypatch.setattr(benchmark_machine, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return pass_time


def settings_of(kind="train", **changed):
    values = {"architecture": "ircsn_tiny", "clip": (2, 32, 32), "batch": 4, "precision": "fp32", "backend": "auto"}
    values |= {"layout": "channels_last", "compile": None, "cuda_graphs": False, "checkpointing": (), "steps": 5}
    return Settings(**(values | {"kind": kind, "repeats": 3, "device": "cpu"} | changed))


def floor_of(settings, rates):
    return benchmark.floors_of(benchmark.counts_of(settings), rates, [settings.precision])[settings.precision]


def test_seconds_are_those_of_one_call(clock):
    assert benchmark_machine.seconds_of(lambda: clock(2.0), CPU, 5) == pytest.approx(2.0)


def test_seconds_of_a_layer_are_the_median_of_calls_after_the_first(clock):
    taken = iter([50.0, 1.0, 9.0, 2.0])
    assert benchmark_machine.kernel_seconds(lambda: clock(next(taken)), CPU, 3) == pytest.approx(2.0)


def test_a_copy_reads_and_writes_and_a_product_multiplies_and_adds_in_each_type(monkeypatch):
    monkeypatch.setattr(benchmark_machine, "SIZES", {"cpu": (1000, 10)})
    monkeypatch.setattr(benchmark_machine, "seconds_of", lambda function, device, steps: 0.5)
    monkeypatch.setattr(fold, "cannot_quantise", lambda device: "no instructions")
    rates = benchmark_machine.rates_of(settings_of(), CPU, ["fp32", "bf16", "int8"])
    assert rates == {"copy": 4000.0, "fp32": 4000.0, "bf16": 4000.0}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_products_are_in_the_type_that_they_are_said_to_be_in(precision):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}[precision]
    products = benchmark_machine.products_in(precision, 16, CPU)
    if precision == "int8":
        assert len(products) == (fold.cannot_quantise("cpu") is None)
    else:
        assert len(products) == 1 + (fold.cannot_pack("cpu", dtype) is None)
    for product in products:
        out = product()
        assert (out.dtype, out.numel()) == (dtype, 16 * 16)


def test_a_way_is_in_the_type_of_its_activations():
    settings = settings_of("infer", precision="bf16", file_precision="int8")
    forms = ("trained", "folded", "compiled", "bf16", "int8", "onnxruntime", "openvino-int8", "file")
    found = [benchmark_ways.precision_of(Way("", "auto", "contiguous", form=form), settings) for form in forms]
    assert found == ["bf16", "fp32", "fp32", "bf16", "int8", "fp32", "int8", "int8"]


def test_a_row_is_held_against_the_floor_of_its_own_type(monkeypatch):
    """Of 100 elements and 50 multiply-adds a clip; 4 clips. In int8 nothing tells the rate of products."""
    monkeypatch.setattr(roofline, "traffic", lambda *_: roofline.Traffic(0, 0, 0, 100))
    layer = roofline.Layer("dense", 1, 1, (1, 1, 1), (1, 1, 1), (1, 1, 1), 50)
    monkeypatch.setattr(roofline, "layers", lambda *_: [layer])
    ways = [Way(form, "auto", "channels_last", form=form) for form in ("folded", "bf16", "int8")]
    settings = settings_of("infer", forms=("folded", "bf16", "int8"), repeats=1)
    result = benchmark.report(
        settings,
        {},
        {"copy": 100.0, "fp32": 10.0, "bf16": 80.0},
        benchmark.counts_of(settings),
        [Measured(way, "", [80.0]) for way in ways],
    )
    floors = {name: (floor["bytes"], floor["seconds"]) for name, floor in result["floors"].items()}
    assert floors == {
        "fp32": (1600, 40.0),  # 400 operations at 10 a second; 1600 bytes take 16 s
        "bf16": (800, 8.0),  # 800 bytes at 100 a second; 400 operations take 5 s
        "int8": (400, None),
    }
    assert result["floor"] == {"bytes": 1600, "operations": 400, "seconds": 40.0}
    assert result["rates"] == {"copy_bytes_per_second": 100.0, "matrix_flops_per_second": 10.0}
    assert [
        (row["precision"], row["times_floor"], row["share_of_copy"], row["share_of_matrix"]) for row in result["ways"]
    ] == [("fp32", 2.0, 0.2, 0.5), ("bf16", 10.0, 0.1, 0.0625), ("int8", None, 0.05, None)]
    text = benchmark_report.as_text(result | {"machine": benchmark_machine.machine(CPU)})
    assert "floor 40000.00 ms a pass in fp32, 8000.00 ms a pass in bf16, - ms a pass in int8, counted" in text
    [line] = [line for line in text.splitlines() if line.startswith("int8  ")]
    assert line.split()[-5:] == ["-", "-", "5%", "-", "-"]
    assert "no product of that type that is measured" in text


def test_every_figure_of_a_report_is_what_was_counted_by_hand(monkeypatch):
    floor = {"bytes": 5e8, "operations": 4e8, "seconds": 0.5, "matrix_flops_per_second": 2e9}
    monkeypatch.setattr(benchmark, "floors_of", lambda *_: {"fp32": floor})
    result = benchmark.report(
        settings_of(),
        {},
        RATES,
        (0, 0),
        [
            Measured(Way("ours", "auto", "channels_last"), "triton", [1.0, 2.0, 30.0], memory_bytes=300),
            Measured(Way("plain eager", "reference", "contiguous"), "reference", [8.0] * 3, memory_bytes=500),
            Measured(Way("plain eager", "reference", "channels_last"), "reference", [6.0] * 3, memory_bytes=400),
            Measured(Way("plain compiled", "reference", "contiguous"), "reference", error="out of memory: none left"),
        ],
    )
    ours, contiguous, last, compiled = result["ways"]
    expected = {
        "ms_per_step": 2000.0,
        "clips_per_second": 2.0,  # 4 clips in 2 s
        "share_of_copy": 0.25,  # 0.5 GB in 2 s, of 1 GB/s
        "share_of_matrix": 0.1,  # 0.4 G operations in 2 s, of 2 G/s
        "times_floor": 4.0,
        "times_plain": 4.0,  # of the contiguous one
        "peak_memory_bytes": 300,
    }
    assert {name: ours[name] for name in expected} == expected
    assert (contiguous["times_plain"], last["times_plain"]) == (1.0, 8 / 6)
    assert "ms_per_step" not in compiled
    assert result["ratios"] == {
        "plain eager": {"of": "ours", "layout": "channels_last", "speed": 3.0, "memory": 0.75}  # of the faster one
    }


def test_floor_is_the_longer_time_of_bytes_and_operations_and_training_adds_the_way_back():
    clip, batch = (2, 32, 32), 4
    multiply_adds = sum(layer.multiply_adds * layer.count for layer in roofline.layers("ircsn_tiny", clip))
    forward, back = (count("ircsn_tiny", clip).floor for count in (roofline.traffic, roofline.traffic_back))
    infer, train = (floor_of(settings_of(kind), RATES) for kind in ("infer", "train"))
    assert infer["bytes"] == batch * 4 * forward
    assert train["bytes"] == batch * 4 * (forward + back)
    assert infer["operations"] == batch * 2 * multiply_adds
    assert train["operations"] == 3 * infer["operations"]  # the gradients of input and weight
    assert train["seconds"] == max(train["bytes"] / 1e9, train["operations"] / 2e9)
    slow = floor_of(settings_of("train"), {**RATES, "copy": 1e3})
    assert slow["seconds"] == train["bytes"] / 1e3


def test_networks_without_bottlenecks_have_bytes_too():
    assert floor_of(settings_of(architecture="resnet3d_18"), RATES)["bytes"] > 0


def test_shares_and_totals_of_layers_are_what_was_counted_by_hand(monkeypatch):
    seconds = {"triton": (1e-3, 4e-3), "contiguous": (2e-3, 7e-3), "channels_last": (3e-3, 5e-3)}
    monkeypatch.setattr(benchmark_layers, "rates_of", lambda *_: RATES)
    monkeypatch.setattr(
        benchmark_layers,
        "layer_seconds",
        lambda layer, backend, layout, *_: seconds["triton" if backend == "triton" else layout],
    )
    settings = settings_of(architecture="ircsn_26", clip=(2, 32, 32), backend="triton")
    *_, result = benchmark_layers.measure_layers(settings, CPU)
    assert [row["count"] for row in result["layers"]] == [2, 1, 1, 1, 1, 1, 1]
    moved = 4 * 4 * 2 * 64 * 2 * 8 * 8  # 4 clips of 4 bytes; 64 channels of 2 x 8 x 8, read and written
    first = result["layers"][0]
    assert first["bytes_forward"] == moved
    assert first["ours"] == pytest.approx(
        {
            "forward_us": 1000,
            "backward_us": 4000,
            "forward_share_of_copy": moved / 1e-3 / 1e9,
            "backward_share_of_copy": 2 * moved / 4e-3 / 1e9,  # two gradients, each as the forward pass
        }
    )
    # eight layers
    assert result["total_ms"] == pytest.approx({"ours": 8 * 5, "contiguous": 8 * 9, "channels_last": 8 * 8})
    assert result["ratios"]["plain eager"]["speed"] == pytest.approx(8 / 5)
    assert result["not_measured"] == []
    assert "1.60 times as fast" in benchmark_report.as_text(result | {"machine": benchmark_machine.machine(CPU)})


def test_steps_of_products_are_those_of_their_role_and_equal_widths_are_measured_together(monkeypatch):
    pytest.importorskip("triton")
    from lightning_csn.models import launch_product

    ran, measured = [], []
    for name in ("product_statistics", "product_gradient", "statistics_sum", "normalised_sum_gradient"):
        monkeypatch.setattr(launch_product, name, lambda *_, name=name: ran.append(name))

    def tune(steps, x, weight, measure):
        ran.clear()
        steps()
        measured.append((weight.shape[1], weight.shape[0], *ran))
        return {"library": 2.0, "own": 1.0}

    monkeypatch.setattr(launch_product, "tune", tune)
    reduce, interact = ["product_statistics"], ["product_statistics", "product_gradient"]
    expand = ["statistics_sum", "normalised_sum_gradient"]
    rows = benchmark_layers.tune_products(settings_of(), CPU, lambda _: None)
    assert measured[:3] == [(16, 16, *reduce), (16, 64, *expand), (64, 32, *reduce)]
    assert rows[0] == {
        "kernel": "reduce of 16",
        "channels": 16,
        "sizes": [2, 8, 8],
        "default_ms": 2.0,
        "best_ms": 1.0,
        "form": "own",
    }
    measured.clear()
    rows = benchmark_layers.tune_products(settings_of(architecture="ipcsn_tiny"), CPU, lambda _: None)
    assert measured[:4] == [(16, 16, *reduce, *interact), (16, 64, *expand), (64, 32, *reduce), (32, 32, *interact)]
    assert rows[0]["kernel"] == "reduce and interact of 16"


@pytest.mark.parametrize(
    ("architecture", "kind", "said"),
    [
        ("ircsn_26", "train", "own products in stages 1, 2"),
        ("ipcsn_26", "train", "own products in stages 1, 2, 3 (interact)"),
        ("ircsn_26", "infer", "own products in stages 1 (expand), 2 (expand)"),
    ],
)
def test_path_says_which_products_are_our_own(architecture, kind, said, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    from lightning_csn.models import launch_product

    monkeypatch.setenv("LIGHTNING_CSN_CACHE", str(tmp_path))
    settings = settings_of(kind, architecture=architecture, precision="bf16")
    assert benchmark_ways.products_of(settings, CPU) == said
    assert benchmark_ways.products_of(settings_of(kind, architecture=architecture), CPU) == "products of the library"
    with launch_product.form("own"):
        assert "4" in benchmark_ways.products_of(settings, CPU)


def test_settings_are_plain_values_in_every_result():
    plain = settings_of(checkpointing=(1, 3), forms=("folded",)).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["clip"], plain["checkpointing"], plain["forms"]) == ([2, 32, 32], [1, 3], ["folded"])


@pytest.mark.parametrize(
    ("form", "counted", "peak"),
    [("trained", True, 700), ("file", True, 700), ("file", False, None), ("int8", False, 700)],
)
def test_memory_of_a_gpu_is_what_a_step_adds_and_unknown_where_another_runtime_has_it(form, counted, peak, monkeypatch):
    for name, value in (("memory_allocated", 300), ("max_memory_allocated", 1000)):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda _: None)
    monkeypatch.setattr(benchmark_ways, "make_step", lambda *_: lambda: None)
    monkeypatch.setattr(benchmark_ways, "path_of", lambda *_: "")
    way = Way("one", "auto", "contiguous", form=form)
    measured, _ = benchmark_ways.start(way, settings_of("infer", counted=counted), torch.device("cuda"))
    assert measured.memory_bytes == peak
