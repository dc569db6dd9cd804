"""depthwise.py: every way against the definition in float64, forwards and backwards, and what PyTorch does with it.

Without a GPU the kernels run in Triton's interpreter (see conftest.py) on small tensors; with one they run compiled, on
the same cases and on CSN's own shapes. Memory that nobody wrote to is NaN, so a forgotten place shows.
"""

import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lightning_csn.errors import InputError
from lightning_csn.models import depthwise
from lightning_csn.models.depthwise import DepthwiseConv3d, depthwise_backend, depthwise_conv3d, reference
from lightning_csn.models.network import create_network

triton = pytest.importorskip("triton")
from lightning_csn.models import check_kernels, choices, launch, tiles  # noqa: E402 - imports Triton
from lightning_csn.models.tiles import Problem, Tile, default_tile  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="compiled kernels at full size")
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def nan_where_nothing_was_written():
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def strips_that_the_interpreter_can_afford(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(tiles, "default_tile", lambda *given: default_tile(*given)._replace(strip=2))


def make(shape, dtype=F64, last=False):
    x = torch.randn(shape, dtype=F64, device=DEVICE).to(dtype)
    weight = torch.randn((shape[1], 1, 3, 3, 3), dtype=F64, device=DEVICE).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
    return x.requires_grad_(), weight.requires_grad_()


def assert_close(got, wanted, terms):
    """Equal to the rounding of the result, and of a sum of `terms` products in fp32."""
    assert got.isfinite().all()
    size = wanted.abs().max().item() + math.sqrt(terms)
    step = {F64: 1e-14, F32: 1e-6, F16: 2**-10, BF16: 2**-7}[got.dtype]
    torch.testing.assert_close(got.to(F64), wanted, rtol=step, atol=step * size)


def compare(shape, stride, dtype, last, way="triton"):
    x, weight = make(shape, dtype, last)
    exact_x, exact_weight = (tensor.detach().to(F64).requires_grad_() for tensor in (x, weight))
    wanted = reference(exact_x, exact_weight, stride)
    grad = torch.randn_like(wanted).to(dtype)
    with depthwise_backend(way):
        out = depthwise_conv3d(x, weight, stride)
        got = torch.autograd.grad(out, (x, weight), grad)
    assert out.dtype == dtype
    if x.numel() > shape[1] > 1:
        assert out.is_contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
    assert_close(out, wanted, 27)
    wanted = torch.autograd.grad(wanted, (exact_x, exact_weight), grad.to(F64))
    assert_close(got[0], wanted[0], 27)
    assert_close(got[1], wanted[1], grad.numel() / shape[1])


CASES = [  # shape, stride, dtype
    ((2, 5, 4, 6, 7), 1, F64),
    ((1, 3, 5, 7, 8), 2, F64),
    ((1, 3, 3, 6, 5), (1, 2, 2), F64),
    ((1, 2, 4, 3, 5), (2, 1, 1), F64),
    ((2, 3, 1, 1, 1), 1, F64),
    ((2, 3, 1, 1, 1), 2, F64),
    ((1, 1, 2, 9, 1), 1, F32),
    ((1, 70, 2, 2, 3), 1, F32),
    ((1, 2, 3, 5, 70), 2, F32),
    ((1, 6, 3, 4, 5), 1, F16),
    ((1, 6, 3, 4, 5), 2, F16),
    ((1, 6, 3, 4, 5), 1, BF16),
    ((1, 6, 3, 4, 5), (1, 2, 2), BF16),
]


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "stride", "dtype"), CASES)
def test_kernels_agree_with_the_definition(shape, stride, dtype, last):
    compare(shape, stride, dtype, last)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "stride", "dtype"),
    [case for case in CASES if case[2] != F16] + [((2, 32, 5, 6, 7), 1, F32), ((3, 16, 4, 5, 6), (1, 2, 2), F32)],
)
def test_taps_agree_with_the_definition(shape, stride, dtype, last):
    compare(shape, stride, dtype, last, "taps")


@pytest.mark.parametrize("stride", [1, (2, 1, 2)])
def test_taps_have_gradients_of_gradients(stride):
    with depthwise_backend("taps"):
        assert gradgradcheck(lambda x, weight: depthwise_conv3d(x, weight, stride), make((2, 2, 3, 3, 2)))


@pytest.mark.skipif(not depthwise.onednn(), reason="oneDNN on an x86 CPU")
@pytest.mark.parametrize(("dtype", "quick"), [(F32, True), (BF16, True), (F64, False)])
def test_a_cpu_learns_by_taps_and_answers_by_the_definition(dtype, quick):
    x, weight = (tensor.detach().cpu() for tensor in make((1, 2, 2, 3, 3), dtype))
    assert depthwise_conv3d(x, weight.requires_grad_()).grad_fn.name().startswith("Generated") == quick
    with torch.no_grad():
        assert not ran_operator(lambda: depthwise_conv3d(x, weight))
    assert not ran_operator(lambda: depthwise_conv3d(x, weight.detach()))


def ran_operator(function):
    with torch.profiler.profile() as profile:
        function()
    return any(event.name.startswith("lightning_csn") for event in profile.events())


CSN = [  # of a 32x224x224 clip
    (64, (32, 56, 56), 1),
    (128, (32, 56, 56), 2),
    (128, (16, 28, 28), 1),
    (256, (16, 28, 28), 2),
    (256, (8, 14, 14), 1),
    (512, (8, 14, 14), 2),
    (512, (4, 7, 7), 1),
]


@needs_cuda
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(("channels", "sizes", "stride"), CSN)
def test_kernels_agree_at_the_shapes_of_csn(channels, sizes, stride, dtype, last):
    torch.seed()  # drawn afresh
    compare((2, channels, *sizes), stride, dtype, last)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_work_cut_into_many_programs_gives_the_same(last, stride):
    # chunks in time of which the last is not full, several blocks of rows, clips in turn; strips as CSN gets them
    (x, weight), strides = make((3, 2, 3 * stride, 5, 4), last=last), (stride,) * 3
    wanted = reference(x, weight, stride)
    grad = torch.randn_like(wanted)
    grad = grad.contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
    wanted_x, wanted_weight = torch.autograd.grad(wanted, (x, weight), grad)
    tile = Tile(strip=4, elements=16 if last else 32, planes=2, clips=2)
    out, of_x = torch.empty_like(grad), torch.empty_like(x)
    with torch.no_grad():
        launch.convolve(x, weight, out, strides, tile=tile)
        launch.input_gradient(grad, weight, of_x, strides, tile=tile)
        of_weight = launch.weight_gradient(grad, x, strides, tile=tile)
    assert_close(out, wanted, 27)
    assert_close(of_x, wanted_x, 27)
    assert_close(of_weight.view_as(weight), wanted_weight, grad.numel())


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_any_strides_of_the_input_and_of_the_gradient_will_do(last):
    x, weight = make((2, 4, 3, 8, 5), last=last)
    with depthwise_backend("triton"):
        out = depthwise_conv3d(x[:, ::2, :, 1:7:2], weight[::2])
        torch.testing.assert_close(out, reference(x[:, ::2, :, 1:7:2], weight[::2]))
        got = torch.autograd.grad(depthwise_conv3d(x, weight).sum(), (x, weight))  # a gradient of stride 0
    wanted = torch.autograd.grad(reference(x, weight).sum(), (x, weight))
    torch.testing.assert_close(got, wanted)


def test_places_beyond_32_bits_are_found():
    step = 2**30 + 64  # of the clips: their number times this overflows, not this
    extent = 2 * step + 24
    if DEVICE == "cpu":  # 4 GiB that are never touched, but for a few pages
        torch.use_deterministic_algorithms(False)
    whole = torch.empty(extent, dtype=F16, device=DEVICE)
    x = whole.as_strided((3, 3, 2, 2, 2), (step, 1, 12, 6, 3))
    x.copy_(torch.randn(x.shape, device=DEVICE).to(F16))
    weight = torch.randn((3, 1, 3, 3, 3), device=DEVICE).to(F16)
    with depthwise_backend("triton"):
        assert_close(depthwise_conv3d(x, weight), reference(x.to(F64), weight.to(F64)), 27)


@pytest.mark.parametrize("axis", [3, 4], ids=["along the strips", "across them"])
def test_steps_that_overflow_32_bits_when_taken_twice(axis):
    if DEVICE == "cpu":
        torch.use_deterministic_algorithms(False)
    steps = [36, 18, 9, 3, 3]
    steps[axis], steps[7 - axis] = 2**30 + 64, 3

    def far(shape):
        places = torch.empty(2 * steps[axis] + 512, dtype=F16, device=DEVICE).as_strided(shape, steps)
        return places.copy_(torch.randn(shape, device=DEVICE).to(F16))

    for stride in (1, 2):
        x, strides, weight = far((1, 2, 2, 3, 3)), (stride,) * 3, make((1, 2), F16)[1].detach()
        wanted = reference(x.to(F64), weight.to(F64), stride)
        out = torch.empty(wanted.shape, dtype=F16, device=DEVICE)
        launch.convolve(x, weight, out, strides)
        assert_close(out, wanted, 27)
        exact = weight.to(F64).requires_grad_()
        (of_weight,) = torch.autograd.grad(reference(x.to(F64), exact, stride).sum(), exact)
        assert_close(launch.weight_gradient(torch.ones_like(out), x, strides).view_as(weight), of_weight, out.numel())
        exact = x.to(F64).requires_grad_()
        (of_x,) = torch.autograd.grad(reference(exact, weight.to(F64), stride), exact, out.to(F64))
        launch.input_gradient(out, weight, x, strides)
        assert_close(x, of_x, 27)
        del x


@pytest.mark.parametrize("stride", [1, 2])
def test_results_beyond_32_bits_are_written_where_they_belong(stride):
    step, strides = 2**30 + 64, (stride,) * 3
    if DEVICE == "cpu":
        torch.use_deterministic_algorithms(False)

    def far(shape):
        places = torch.empty(2 * step + math.prod(shape[1:]), dtype=F16, device=DEVICE)
        _, c, _, h, w = shape
        return places.as_strided(shape, (step, 1, h * w * c, w * c, c))

    x, weight = make((3, 3, 3, 2, 2), F16, last=True)
    wanted = reference(x.to(F64), weight.to(F64), stride)
    grad = torch.randn_like(wanted).to(F16)
    (wanted_x,) = torch.autograd.grad(wanted, x, grad.to(F64))
    out = far(wanted.shape)
    launch.convolve(x.detach(), weight.detach(), out, strides)
    assert_close(out, wanted.detach(), 27)
    del out
    of_x = far(x.shape)
    launch.input_gradient(grad, weight.detach(), of_x, strides)
    assert_close(of_x, wanted_x.to(F64), 27)


def test_an_empty_batch_passes():
    x, weight = make((0, 3, 2, 4, 4))
    with depthwise_backend("triton"):
        out = depthwise_conv3d(x, weight, 2)
        of_x, of_weight = torch.autograd.grad(out.sum(), (x, weight))
    assert out.shape == (0, 3, 1, 2, 2)
    assert of_x.shape == x.shape
    assert not of_weight.any()


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_gradients(stride):
    x, weight = make((1, 2, 3, 2, 3), last=stride == 2)
    grad = torch.randn_like(reference(x, weight, stride)).requires_grad_()
    results = []
    for way in ("triton", "reference"):
        with depthwise_backend(way):
            first = torch.autograd.grad(depthwise_conv3d(x, weight, stride), (x, weight), grad, create_graph=True)
            results.append(torch.autograd.grad(sum(each.pow(2).sum() for each in first), (x, weight, grad)))
    torch.testing.assert_close(*results)


@needs_cuda
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_pass_the_numerical_check(stride):
    x, weight = make((1, 2, 3, 2, 3), last=stride == 2)
    with depthwise_backend("triton"):
        assert gradcheck(depthwise_conv3d, (x, weight, stride))
        assert gradgradcheck(depthwise_conv3d, (x, weight, stride))


def test_only_the_gradients_that_are_wanted_are_computed():
    x, weight = make((1, 2, 2, 3, 3))
    with depthwise_backend("triton"):
        frozen = depthwise_conv3d(x, weight.detach())
        first = depthwise_conv3d(x.detach(), weight)
    assert [tensor is None for tensor in frozen.grad_fn.saved_tensors] == [True, False]
    assert [tensor is None for tensor in first.grad_fn.saved_tensors] == [False, True]
    frozen.sum().backward()
    first.sum().backward()
    assert x.grad is not None
    assert weight.grad is not None


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_weight_gradient_is_the_same_to_the_bit(last):
    x, weight = make((2, 3, 4, 5, 6), F32, last)
    with depthwise_backend("triton"):
        out = depthwise_conv3d(x, weight)
        grad = torch.randn_like(out)
        first, second = (torch.autograd.grad(out, weight, grad, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


# What PyTorch does with an operator.


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_operators_keep_the_rules_of_operators():
    torch.use_deterministic_algorithms(False)  # checks fake tensors, which hold nothing to be filled
    x, weight = make((1, 3, 2, 3, 4), F32, last=True)
    grad = torch.randn_like(x).requires_grad_()
    ops = torch.ops.lightning_csn
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.depthwise_conv3d, (x, weight, [1, 1, 1]))
    torch.library.opcheck(ops.depthwise_conv3d_input_gradient, (grad, weight, [2, 3, 4], [1, 1, 1]), test_utils=checks)
    torch.library.opcheck(ops.depthwise_conv3d_weight_gradient, (grad, x, [1, 1, 1]), test_utils=checks)


@pytest.mark.parametrize("way", ["triton", "reference"])
def test_compiled_function_is_one_graph_and_gives_the_same(way):
    x, weight = make((1, 3, 2, 4, 4), F32, last=True)
    with depthwise_backend(way):
        compiled = torch.compile(
            lambda x, weight: depthwise_conv3d(x, weight, 2).relu(), backend="aot_eager", fullgraph=True
        )
        got = torch.autograd.grad(compiled(x, weight).sum(), (x, weight))
        wanted = torch.autograd.grad(depthwise_conv3d(x, weight, 2).relu().sum(), (x, weight))
    torch.testing.assert_close(got, wanted)


def test_compiled_function_follows_the_backend():
    ran = []

    def record(graph, _):
        ran.append("lightning_csn" in graph.code)
        return graph

    x, weight = make((1, 3, 2, 4, 4), F32)
    compiled = torch.compile(depthwise_conv3d, backend=record)
    for way in ("triton", "reference"):
        with depthwise_backend(way), torch.no_grad():
            compiled(x, weight)
    assert ran == [True, False]


@pytest.mark.parametrize(("way", "ours"), [("triton", True), ("reference", False), ("auto", DEVICE != "cpu")])
def test_exported_network_holds_the_operator_or_the_definition(way, ours):
    network = create_network("ircsn_tiny", num_classes=2).to(DEVICE).eval()
    clip = torch.randn(1, 3, 2, 32, 32, device=DEVICE)
    with depthwise_backend(way):
        program = torch.export.export(network, (clip,), strict=False)
    names = {str(node.target) for node in program.graph.nodes}
    assert ("lightning_csn.depthwise_conv3d.default" in names) == ours
    assert "aten.conv3d.default" in names  # the stem, at least


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_autocast_does_what_it_does_to_a_convolution(dtype):
    layer = DepthwiseConv3d(3).to(DEVICE)
    x = torch.randn(1, 3, 2, 4, 4, device=DEVICE)
    results = []
    for way in ("triton", "reference"):
        layer.zero_grad()
        with depthwise_backend(way):
            with torch.autocast(DEVICE, dtype):
                out = layer(x)
            out.sum().backward()
        results.append((out, layer.weight.grad))
    (out, grad), (wanted, wanted_grad) = results
    assert (out.dtype, grad.dtype) == (wanted.dtype, wanted_grad.dtype) == (dtype, F32)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(grad, wanted_grad, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same(reentrant):
    x, weight = make((1, 3, 2, 4, 4))
    with depthwise_backend("triton"):
        wanted = torch.autograd.grad(depthwise_conv3d(x, weight).pow(2).sum(), (x, weight))
        checkpoint(depthwise_conv3d, x, weight, use_reentrant=reentrant).pow(2).sum().backward()
    torch.testing.assert_close((x.grad, weight.grad), wanted)


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_are_counted_as_those_of_the_definition(stride):
    x, weight = make((2, 3, 2, 4, 4))
    counts = {}
    for way in ("triton", "reference"):
        with depthwise_backend(way), FlopCounterMode(display=False) as counter:
            out = depthwise_conv3d(x, weight, stride)
            counts[way] = counter.get_total_flops()
            if way == "triton":  # PyTorch counts the weight gradient of a depthwise convolution as that of a dense one
                out.sum().backward()
                assert counter.get_total_flops() == 3 * counts[way]
    assert counts["triton"] == counts["reference"] == 2 * 27 * out.numel()


# The choice of the way.


def test_numbers_without_a_gpu_are_those_of_nn_conv3d():
    layer, plain = DepthwiseConv3d(5, (1, 2, 2)), torch.nn.Conv3d(5, 5, 3, (1, 2, 2), 1, groups=5, bias=False)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 4, 8, 8)
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize(
    ("dtype", "stride", "kernel", "words"),
    [
        (torch.complex64, 1, 3, "float32, float64, not complex64"),
        (F32, 3, 3, r"strides of 1 or 2, the same for H and W, not \(3, 3, 3\)"),
        (F32, (1, 2, 1), 3, r"not \(1, 2, 1\)"),
    ],
)
def test_what_the_kernels_cannot_do_is_said_and_the_definition_runs(dtype, stride, kernel, words, caplog):
    depthwise._reported.clear()
    x, weight = torch.randn(1, 2, 5, 5, 5, device=DEVICE).to(dtype), torch.randn(2, 1, 3, 3, 3, device=DEVICE).to(dtype)
    with depthwise_backend("triton"), caplog.at_level(logging.INFO):
        for _ in range(2):
            assert torch.equal(depthwise_conv3d(x, weight, stride), reference(x, weight, stride))
    (record,) = caplog.records  # once
    assert record.levelname == "WARNING"
    assert caplog.text.strip().endswith("nn.Conv3d runs instead")
    assert re.search(words, record.message)


def test_way_is_reported_once(caplog):
    depthwise._reported.clear()
    x, weight = make((1, 2, 2, 3, 3), F32)
    with depthwise_backend("triton"), caplog.at_level(logging.INFO):
        depthwise_conv3d(x, weight)
        depthwise_conv3d(x, weight)
    assert [record.message for record in caplog.records] == [f"depthwise convolution on {DEVICE}: Triton kernels"]


def test_backend_holds_inside_its_block_only():
    with (
        pytest.raises(InputError, match="no backend 'cudnn'; there are: auto, reference, taps, triton, fused"),
        depthwise_backend("cudnn"),
    ):
        pass
    with depthwise_backend("reference"):
        with depthwise_backend("triton"):
            assert depthwise._backend == "triton"
        assert depthwise._backend == "reference"
    assert depthwise._backend == "auto"


def test_wrong_channels_are_an_error():
    with depthwise_backend("triton"), pytest.raises(ValueError, match="must have the same channels"):
        depthwise_conv3d(torch.zeros(1, 4, 2, 2, 2, device=DEVICE), torch.zeros(3, 1, 3, 3, 3, device=DEVICE))


# Tiles, and what the compiler makes of them.


def test_every_layer_of_csn_gets_enough_programs_and_no_needless_ones():
    for channels, sizes, stride in CSN:
        out = [(size - 1) // stride + 1 for size in sizes]
        for kernel in ("convolve", "norm_convolve", "input_gradient", "weight_gradient"):
            for last in (False, True):
                problem = Problem(kernel, 8, channels, *out, (stride, stride), "torch.bfloat16", last)
                tile = default_tile(problem, 132)
                along = problem.W if last else problem.H
                programs = math.prod(problem.blocks(tile)) * tile.clips * math.ceil(problem.T / tile.planes)
                assert programs >= 132 or tile.planes <= 4  # the smallest layer is smaller than the GPU
                assert math.ceil(along / tile.strip) * tile.strip <= along * 8 / 7
                if kernel == "weight_gradient":
                    assert programs <= 12 * 132  # each leaves 27 partial sums per channel


def test_measured_tiles_are_kept_and_used(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_CSN_CACHE", str(tmp_path / "new"))
    x, weight = make((1, 4, 4, 4, 4), F32, last=True)
    out, device = torch.empty_like(x), torch.device(DEVICE)
    problem = tiles.problem_of("convolve", out, (1, 1, 1), True)
    default = tiles.tile_for(problem, device)
    milliseconds = {}

    def measure(run):
        run()
        milliseconds[len(milliseconds)] = None
        return 10.0 - len(milliseconds)  # the last one is the fastest

    times = tiles.tune(
        lambda tile: launch.convolve(x.detach(), weight.detach(), out, (1, 1, 1), tile=tile), problem, device, measure
    )
    best = min(times, key=times.get)
    assert best != default
    assert tiles.tile_for(problem, device) == best
    choices.forget()  # as in another process
    assert tiles.tile_for(problem, device) == best
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["depthwise_tiles.json"]


SHARED = (
    99 * 1024
)  # bytes a program can have of compute capability 8.6, 8.9 and 12.0; of 9.0 it is more than twice that


def compile_for_a_gpu(*arguments):
    """What compile_kernels.py prints: the interpreter forgives what the compiler does not, which needs no GPU."""
    script = Path(__file__).parent / "compile_kernels.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(depthwise.__file__).parents[2])
    command = [sys.executable, "-W", "ignore", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_kernels_compile_for_a_gpu_without_spilling_registers_and_with_wide_accesses():
    lines = compile_for_a_gpu("stage1", "stage2_first", "contiguous", "rest", "products_stage1", "product_fp32")
    kernels = [line.split() for line in lines if not line.startswith("#")]
    assert len(kernels) == 28
    for i, (name, registers, stack, local, narrow, shared) in enumerate(kernels):
        assert int(shared) <= SHARED, name
        if i == 27:  # in fp32 a product spills a few registers: it is the library's there, unless measured to be slower
            continue
        assert (name, stack, local) == (name, "0", "0")
        assert int(registers) <= 255
        if i not in (5, 6):  # of the contiguous layout; else single elements are loaded of the 27 weights only
            assert int(narrow) <= (2 * 27 if name in ("convolve", "input_gradient") else 0), name


def test_the_first_step_of_a_network_compiles_few_kernels():
    assert compile_for_a_gpu("--count", "step") == ["# step", "# 28 kernels"]


@pytest.mark.parametrize("stride", [1, 2])
def test_kernels_about_to_run_are_checked_and_bad_ones_are_stopped(stride, monkeypatch):
    monkeypatch.setattr(check_kernels, "CHECKED_DEVICES", [DEVICE])
    monkeypatch.setattr(check_kernels, "_checked", set())
    monkeypatch.setattr(launch, "_known", {})
    x, weight = make((1, 3, 3, 3, 4), F32, last=True)
    with depthwise_backend("triton"):
        out = depthwise_conv3d(x, weight, stride)
        torch.autograd.grad(out.sum(), (x, weight), retain_graph=True)
        checked = {key[:7] for key, _ in check_kernels._checked}
        layer = (F32, 3, 3, 3, 4, (stride,) * 3)
        assert checked == {(kernel, *layer) for kernel in ("convolve", "input gradient", "weight gradient")}
        check_kernels._checked.clear()
        launch._known.clear()
        good = launch.weight_gradient
        monkeypatch.setattr(launch, "weight_gradient", lambda *args, **options: good(*args, **options) * 1.001)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"weight gradient is off by 1\.0e-03 .*DEPTHWISE=reference"):
                torch.autograd.grad(out.sum(), weight, retain_graph=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_more_clips_than_a_grid_has_run_in_turns(stride, monkeypatch):
    monkeypatch.setattr(launch, "MOST_CLIPS", 2)
    compare((5, 2, 2, 2, 3), stride, F32, last=True)


def test_no_grid_is_larger_than_a_gpu_takes(monkeypatch):
    grids = []

    class Kernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **options: None

    for name in ("convolve", "input_gradient", "weight_gradient"):
        monkeypatch.setattr(launch.depthwise_kernels, name, Kernel())
    x, weight = torch.empty((70000, 2, 1, 2, 2), device="meta"), torch.empty((2, 1, 3, 3, 3), device="meta")
    for strides in ((1, 1, 1), (1, 2, 2)):
        out = torch.empty((70000, 2, 1, 2 // strides[1], 2 // strides[2]), device="meta")
        launch.convolve(x, weight, out, strides)
        launch.input_gradient(out, weight, x, strides)
        launch.weight_gradient(out, x, strides)
    assert len(grids) == 2 * (2 + 2 + 1)
    assert max(size for grid in grids for size in grid[1:]) <= 65535


def test_the_gpu_that_holds_the_tensor_decides(monkeypatch):
    old = torch.device("cuda:1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5) if device == old else (9, 0))
    layer = (F32, 5, (1, 3, 3, 3), (1, 1, 1))
    assert depthwise.unsupported.__wrapped__("cuda", *layer) is None
    assert "8.0 or more" in depthwise.unsupported.__wrapped__(old, *layer)
    assert depthwise.choose_way("triton", old, *layer) == "reference"


@pytest.mark.parametrize("shape", [(0, 4, 3, 5, 6), (2, 4, 3, 5, 0)])
def test_nothing_in_gives_nothing_out(shape):
    x, weight = torch.empty(shape), torch.randn(4, 1, 3, 3, 3)
    with depthwise_backend("triton"):
        out = depthwise_conv3d(x, weight)
    assert out.shape == shape
