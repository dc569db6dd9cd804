"""fused.py: the fused bottleneck against the plain one in float64: results, gradients and running statistics."""

import copy
import logging
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lightning_csn.models import depthwise, fused
from lightning_csn.models.batchnorm import freeze_norms, sync_norms
from lightning_csn.models.depthwise import depthwise_backend
from lightning_csn.models.network import (
    ARCHITECTURES,
    Bottleneck,
    create_network,
    full,
    interaction_preserved,
    interaction_reduced,
)

pytest.importorskip("triton")
from lightning_csn.models import check_kernels, choices, launch, launch_product, tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHANNELS_LAST = torch.channels_last_3d


@pytest.fixture(autouse=True)
def nan_where_nothing_was_written():
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def strips_that_the_interpreter_can_afford(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(tiles, "default_tile", lambda *_: tiles.Tile(strip=2, planes=2))


@pytest.fixture(params=["library", "own"])
def products(request):
    """Which products a block is made of."""
    with launch_product.form(request.param):
        yield request.param


def make_block(convolution=interaction_reduced, width_in=8, width=2, stride=1, **options):
    torch.manual_seed(0)
    options = {"drop_path": nn.Identity(), **options}
    block = Bottleneck(width_in, width, convolution, norm=nn.BatchNorm3d, stride=stride, **options)
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm3d):
            nn.init.uniform_(layer.weight, -1, 2)
            nn.init.uniform_(layer.bias, -1, 2)
            layer.bias.data[0] = 2.0  # so that a channel is not 0 after the ReLU where it was 0 before the BatchNorm
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return block.double().to(DEVICE)


def run(block, x, grad, way):
    """Result, gradients of the input and of all parameters, and running statistics, of a copy of the block."""
    block, x = copy.deepcopy(block), x.clone().requires_grad_()
    with depthwise_backend(way):
        out = block(x)
        out.backward(grad.to(out.dtype))
    named = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"out": out.detach(), "x": x.grad, **named, **dict(block.named_buffers())}


def inputs(block, width_in=8, sizes=(2, 3, 3, 2)):
    x = torch.randn(sizes[0], width_in, *sizes[1:], dtype=torch.float64, device=DEVICE)
    with torch.no_grad(), depthwise_backend("reference"):
        return x, torch.randn_like(copy.deepcopy(block)(x))


def assert_same(got, wanted, **tolerance):
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


CASES = {
    "ir": {},
    "ir, shortcut": {"width_in": 4},
    "ir, stride": {"width_in": 4, "stride": 2},
    "ip": {"convolution": interaction_preserved},
}


@pytest.fixture
def fused_runs(monkeypatch):
    """How many blocks ran fused."""
    runs = []
    original = fused.bottleneck
    monkeypatch.setattr(
        "lightning_csn.models.network.bottleneck", lambda block, x: runs.append(block) or original(block, x)
    )
    return runs


@pytest.mark.parametrize("mode", ["batch", "frozen", "mixed"])
@pytest.mark.parametrize("case", CASES)
def test_fused_block_trains_as_the_plain_one(case, mode, fused_runs, products):
    block = make_block(**CASES[case])
    if mode != "batch":
        block.eval()
    if mode == "mixed":
        block.expand.train()
    x, grad = inputs(block, CASES[case].get("width_in", 8))
    wanted = run(block, x, grad, "reference")
    assert not fused_runs
    got = run(block, x, grad, "fused")
    assert len(fused_runs) == 1
    assert_same(got, wanted)
    assert got["out"].is_contiguous(memory_format=CHANNELS_LAST)


def test_fused_block_trains_as_the_plain_one_down_to_a_single_place_a_clip(products):
    block = make_block(width_in=4, stride=2)  # a tensor of 1x1x1 is in both layouts at once, its gradient too
    x, grad = inputs(block, 4, sizes=(3, 1, 2, 2))
    assert grad.shape[2:] == (1, 1, 1)
    assert_same(run(block, x, grad, "fused"), run(block, x, grad, "reference"))


@pytest.mark.parametrize("case", ["ir, stride", "ip"])
def test_fused_block_classifies_as_the_plain_one(case, fused_runs, products):
    block = make_block(**CASES[case]).eval()
    x, _ = inputs(block, CASES[case].get("width_in", 8))
    with torch.no_grad():
        with depthwise_backend("reference"):
            wanted = block(x)
        with depthwise_backend("fused"):
            got = block(x)
    assert fused_runs
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_take_part_as_in_batchnorm(momentum, products):
    block = make_block()
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.momentum = momentum
            layer.num_batches_tracked.fill_(3)
    x, grad = inputs(block)
    assert_same(run(block, x, grad, "fused"), run(block, x, grad, "reference"))


@pytest.mark.parametrize("what", ["stats", "all"])
@pytest.mark.parametrize("parts", [None, ["reduce", "expand"], ["convolve", "shortcut"]])
def test_frozen_norms_train_fused_as_in_the_plain_block_and_stay(what, parts, fused_runs, products):
    block = make_block(width_in=4)
    freeze_norms(block, what, parts)
    before = dict(copy.deepcopy(block).named_buffers())
    x, grad = inputs(block, 4)
    wanted = run(block, x, grad, "reference")
    got = run(block, x, grad, "fused")
    assert len(fused_runs) == 1
    assert_same(got, wanted)
    frozen = [name for name in before if parts is None or name.split(".")[0] in parts]
    assert all(torch.equal(got[name], before[name]) for name in frozen)
    assert (got["expand.norm.weight"] is None) == (what == "all" and (parts is None or "expand" in parts))


def test_statistics_are_accurate_far_from_zero():
    # fp32 sums of squares would lose everything: the mean is 1000 standard deviations away
    y = (1000 + torch.randn(2, 3, 4, 5, 6, device=DEVICE)).contiguous(memory_format=CHANNELS_LAST)
    parameters = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE), 1e-3
    with launch_product.form("own"):
        product, of_product = fused.product_statistics(
            y, None, torch.eye(3, device=DEVICE).view(3, 3, 1, 1, 1), *parameters
        )
    assert torch.equal(product, y)
    exact = y.double()
    for norm, rounding in ((fused.batch_norm_of(y, *parameters), 1e-5), (of_product, 1e-3)):  # one program, and two
        torch.testing.assert_close(norm[0].double(), exact.mean((0, 2, 3, 4)), rtol=1e-6, atol=0)
        torch.testing.assert_close(norm[1].double(), exact.var((0, 2, 3, 4)), rtol=rounding, atol=0)


def test_partial_statistics_of_many_programs_are_merged_by_many_programs(monkeypatch):
    partial = torch.rand(3, 11, 5, dtype=torch.float64, device=DEVICE)
    partial[0] += 2
    weight, bias = torch.randn(2, 5, dtype=torch.float64, device=DEVICE)
    wanted = launch.finish(partial, weight, bias, 1e-3)
    total, mean, squares = check_kernels.merged(partial)
    torch.testing.assert_close(wanted[:2], torch.stack((mean, squares / (total - 1))))
    torch.testing.assert_close(wanted[2], (squares / total + 1e-3).rsqrt())
    monkeypatch.setattr(launch, "MOST_PARTIALS", 4)
    rows = []
    kernel = launch.fused_kernels.finish_statistics

    class Kernel:
        arg_names = kernel.arg_names

        def __getitem__(self, grid):
            return lambda *args, **options: rows.append(options["programs"]) or kernel[grid](*args, **options)

    monkeypatch.setattr(launch.fused_kernels, "finish_statistics", Kernel())
    torch.testing.assert_close(launch.finish(partial, weight, bias, 1e-3), wanted)
    assert rows == [4]  # of which every one merged up to three


@pytest.mark.parametrize(("dtype", "distance"), [(torch.float32, 1000.0), (torch.bfloat16, 100.0)])
def test_statistics_gathered_on_store_are_those_of_what_was_stored(dtype, distance):
    y = torch.randn(2, 3, 3, 4, 3, device=DEVICE).to(dtype).contiguous(memory_format=CHANNELS_LAST)
    away = torch.zeros(5, 3, device=DEVICE)
    away[3], away[4] = 1, distance  # in bfloat16 rounding is then a good part of the variance
    weight = torch.zeros(3, 1, 3, 3, 3, dtype=dtype, device=DEVICE)
    weight[:, :, 1, 1, 1] = 1
    ones, zeros = torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE)
    out, norm = fused.norm_depthwise_statistics(y, away, False, weight, [1, 1, 1], ones, zeros, 1e-3)
    exact = out.double()
    torch.testing.assert_close(norm[0].double(), exact.mean((0, 2, 3, 4)), rtol=1e-6, atol=0)
    torch.testing.assert_close(norm[1].double(), exact.var((0, 2, 3, 4)), rtol=1e-4, atol=0)


def assert_as_near_as_the_plain_one(block, x, grad, dtype):
    """Fused and plain in `dtype` against the plain one in float64: results, all gradients and running statistics."""
    exact = run(block, x, grad, "reference")
    block.float()
    errors = {}
    for way in ("reference", "fused"):
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            results = run(block, x.to(dtype), grad, way)
        assert results["out"].dtype == dtype
        assert results["reduce.conv.weight"].dtype == torch.float32
        errors[way] = {name: (results[name].double() - exact[name].double()).norm().item() for name in exact}
    scale = {name: exact[name].double().norm().item() for name in exact}
    for name, error in errors["fused"].items():
        assert error <= 3 * errors["reference"][name] + 4 * torch.finfo(dtype).eps * scale[name], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fused_block_is_as_near_as_the_plain_one(dtype, products):
    block = make_block()
    x, grad = inputs(block)
    assert_as_near_as_the_plain_one(block, x, 0.01 * grad, dtype)  # fp16 overflows above 65504


CSN = [  # of a 32x224x224 clip: channels before, inside, sizes before, stride
    (64, 64, (32, 56, 56), 1),
    (256, 64, (32, 56, 56), 1),
    (256, 128, (32, 56, 56), 2),
    (512, 128, (16, 28, 28), 1),
    (512, 256, (16, 28, 28), 2),
    (1024, 256, (8, 14, 14), 1),
    (1024, 512, (8, 14, 14), 2),
    (2048, 512, (4, 7, 7), 1),
]


@pytest.mark.skipif(DEVICE == "cpu", reason="compiled kernels at full size")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("convolution", [interaction_reduced, interaction_preserved])
@pytest.mark.parametrize(("width_in", "width", "sizes", "stride"), CSN)
def test_fused_block_is_as_near_as_the_plain_one_at_the_shapes_of_csn(
    width_in, width, sizes, stride, convolution, dtype, monkeypatch, fused_runs
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    block = make_block(convolution, width_in, width, stride)
    torch.seed()  # drawn afresh
    x, grad = inputs(block, width_in, (2, *sizes))
    assert_as_near_as_the_plain_one(block, x, 0.01 * grad, dtype)
    assert len(fused_runs) == 1


def test_checkpointed_network_runs_fused_and_counts_each_batch_once(fused_runs):
    network = create_network("ircsn_tiny", num_classes=2, stem_pool=False).double().to(DEVICE)
    stage = network.stage1[0]
    x = torch.randn(1, 16, 2, 3, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    network.stage1 = nn.Sequential(stage)
    network.set_grad_checkpointing()
    results = []
    for way in ("reference", "fused"):
        copied = copy.deepcopy(network)
        with depthwise_backend(way):
            out = copied._run(1, x)
            (grad,) = torch.autograd.grad(out.pow(2).sum(), x)
        results.append((out.detach(), grad, *copied.stage1.buffers()))
    assert len(fused_runs) == 2  # forward, and again on the way back
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_block_is_one_graph_and_gives_the_same(products, training):
    block = make_block().train(training)
    x, grad = inputs(block)
    wanted = run(block, x, grad, "fused")
    copied = copy.deepcopy(block)
    leaf = x.clone().requires_grad_()
    with depthwise_backend("fused"):
        out = torch.compile(copied, backend="aot_eager", fullgraph=True)(leaf)
        out.backward(grad)
    torch.testing.assert_close(out, wanted["out"])
    torch.testing.assert_close(leaf.grad, wanted["x"])
    for name, buffer in copied.named_buffers():
        torch.testing.assert_close(buffer, wanted[name])


def test_operators_keep_the_rules_of_operators():
    torch.use_deterministic_algorithms(False)  # checks fake tensors, which hold nothing to be filled
    y, wide = (torch.randn(1, n, 1, 2, 1, device=DEVICE).contiguous(memory_format=CHANNELS_LAST) for n in (3, 5))
    norm, last = (torch.rand(5, n, device=DEVICE) for n in (3, 5))
    weight, taps = torch.randn(5, 3, 1, 1, 1, device=DEVICE), torch.randn(3, 1, 3, 3, 3, device=DEVICE)
    inner, outer = (norm[0], norm[1], 1e-3), (last[0], last[1], 1e-3)
    steps = (
        (fused.batch_norm_of, (y, *inner)),
        (fused.norm_depthwise, (y, norm, True, taps, [2, 2, 2], norm)),
        (fused.norm_depthwise_statistics, (y, norm, True, taps, [1, 2, 2], *inner)),
        (fused.norm_depthwise_weight_gradient, (y, y, norm, True, [1, 1, 1])),
        (fused.norm_gradient, (y, y, norm, True, True)),
    )
    of_products = (
        (fused.product_statistics, (y, None, weight, *outer)),
        (fused.norm_product, (y, norm, weight)),
        (fused.product_sum, (y, norm, weight, last, wide, last)),
        (fused.product_statistics_sum, (y, norm, weight, *outer, wide, None)),
        (fused.norm_product_gradient, (wide, y, norm, weight, True)),
        (fused.product_sum_gradient, (wide, wide, y, norm, weight, last, True, True)),
    )
    for form, operators in (("library", of_products), ("own", (*of_products, *steps))):
        for operator, arguments in operators:
            with depthwise_backend("fused"), launch_product.form(form):
                torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("case", "whole"), [("ir", 0), ("ir, stride", 1)])
def test_gradients_of_both_branches_meet_without_a_pass_of_their_own(case, whole):
    # neither as a new tensor, nor as zeros around the places of a stride
    block = make_block(**CASES[case])
    x, grad = inputs(block, CASES[case].get("width_in", 8))
    sizes = []

    class Written(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            if function.namespace == "aten":
                given, made = (
                    {each.untyped_storage().data_ptr(): each for each in tree_leaves(some) if torch.is_tensor(each)}
                    for some in ((args, kwargs), out)
                )
                sizes.extend(tensor.numel() for place, tensor in made.items() if place not in given)
            return out

    leaf = x.contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    with depthwise_backend("fused"):
        out = block(leaf)
        grad = grad.contiguous(memory_format=CHANNELS_LAST)
        with Written():
            torch.autograd.grad(out, leaf, grad)
    assert sizes.count(x.numel()) == whole


@pytest.mark.parametrize("case", ["ir, stride", "ip"])
def test_operations_are_counted_as_those_of_the_plain_block(case):
    # with the kernels alone: of depthwise weight gradients PyTorch counts as many as of dense ones
    block = make_block(**CASES[case])
    x, grad = inputs(block, CASES[case].get("width_in", 8))
    counts = []
    for way in ("triton", "fused"):
        with FlopCounterMode(display=False) as counter:
            run(block, x, grad, way)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_products_of_several_tiles_are_those_of_the_plain_block(monkeypatch):
    monkeypatch.setattr(launch_product, "_form", "own")
    monkeypatch.setattr(launch_product, "ROWS", 16)
    monkeypatch.setattr(launch_product, "COLUMNS", 16)
    monkeypatch.setattr(tiles, "processors", lambda device: 20)
    block = make_block(interaction_preserved, width_in=76, width=19)  # 76 channels are two steps of a loop, five tiles
    x, grad = inputs(block, 76, sizes=(2, 3, 4, 3))  # 72 places: five tiles, of which the last is not full
    assert_same(run(block, x, grad, "fused"), run(block, x, grad, "reference"))
    block.eval()
    with torch.no_grad(), depthwise_backend("reference"):
        wanted = block(x)
    with torch.no_grad(), depthwise_backend("fused"):
        torch.testing.assert_close(block(x), wanted)


@pytest.fixture
def switches():
    """PyTorch's old and new switches of fp32 products, which complain of each other; as they were, afterwards."""
    yield torch.backends.cuda.matmul
    if hasattr(torch.backends, "fp32_precision"):  # of torch 2.9
        torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("switch", ["old", "new"])
def test_products_are_rounded_where_pytorch_was_told_so_by_either_switch(switch, switches):
    def precision(dtype):
        y = torch.empty(1, 4, 2, 2, 2, dtype=dtype).contiguous(memory_format=CHANNELS_LAST)
        return launch_product.cut_product(y, torch.empty(4, 4, 1, 1, 1, dtype=dtype))[2]["PRECISION"]

    assert precision(torch.float32) == "ieee"
    if switch == "old":
        torch.set_float32_matmul_precision("high")
    elif hasattr(torch.backends, "fp32_precision"):
        switches.fp32_precision = "tf32"
    else:
        pytest.skip("of torch 2.9")
    assert precision(torch.float32) == "tf32"
    assert precision(torch.bfloat16) == "ieee"


@pytest.mark.parametrize(("version", "limited"), [(None, True), ("6.4", False)])
def test_registers_are_limited_where_the_compiler_knows_how(version, limited, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", version)
    launch_product._cut_product.cache_clear()  # of the other version
    x = torch.empty(1, 4, 2, 2, 2).contiguous(memory_format=CHANNELS_LAST)
    assert ("maxnreg" in launch_product.cut_product(x, torch.empty(4, 4, 1, 1, 1))[2]) == limited


def test_check_of_a_product_allows_for_what_pytorch_allowed(checks, switches, monkeypatch):
    good = launch_product.product

    def rounded(*args, **options):  # to ten bits of mantissa, as by the matrix units
        result = good(*args, **options)
        args[3].mul_(1 + 2**-11)
        return result

    monkeypatch.setattr(launch_product, "product", rounded)
    x = torch.randn(1, 4, 2, 2, 2, device=DEVICE).contiguous(memory_format=CHANNELS_LAST)
    norm, weight = torch.randn(5, 4, device=DEVICE), torch.randn(4, 4, 1, 1, 1, device=DEVICE)
    with launch_product.form("own"):
        with pytest.raises(RuntimeError, match=r"the product is off by 4\.9e-04"):
            fused.norm_product(x, norm, weight)
        switches.allow_tf32 = True
        fused.norm_product(x, norm, weight)
    assert {key[-1] for key, _ in checks if key[0] == "product"} == {"tf32"}


KERNELS = {  # of fused blocks, by the module that launches them: name, and which argument of the launch is the result
    (launch, "statistics"): ("statistics", None),  # None for what it returns
    (launch, "finish"): ("finish", None),
    (launch, "apply"): ("apply", 2),
    (launch, "gradient_sums"): ("gradient_sums", None),
    (launch, "gradient"): ("gradient", 4),
    (launch, "convolve"): ("norm convolve", 2),
    (launch, "weight_gradient"): ("norm weight gradient", None),
}
OWN = {  # where products take in the steps beside them, in place of statistics, apply and gradient_sums ...
    (launch_product, "product"): ("product", 3),
    (launch_product, "product_sum"): ("product sum", 6),
    (launch_product, "sum_gradient"): ("sum gradient", (0, 1, 2)),
    (launch_product, "input_gradient"): ("product input gradient", (0, 1)),
    (launch_product, "weight_gradient"): ("product weight gradient", None),
}
ALWAYS = {"finish", "gradient", "norm convolve", "norm weight gradient", "input gradient"}


@pytest.fixture
def checks(monkeypatch):
    """What was checked."""
    monkeypatch.setattr(check_kernels, "CHECKED_DEVICES", [DEVICE])
    monkeypatch.setattr(check_kernels, "_checked", set())
    monkeypatch.setattr(launch, "_known", {})
    return check_kernels._checked


def test_kernels_about_to_run_are_checked(checks, products):
    block = make_block()
    run(block, *inputs(block), "fused")
    used = OWN if products == "own" else KERNELS
    assert {key[0] for key, _ in checks} == {name for name, _ in used.values()} | ALWAYS | (
        {"apply", "gradient_sums"} if used is OWN else set()
    )


@pytest.mark.parametrize(("module", "function"), [*KERNELS, *OWN])
def test_bad_kernels_are_stopped(module, function, checks, monkeypatch):
    monkeypatch.setattr(launch_product, "_form", "own" if module is launch_product else "library")
    good, (name, place) = getattr(module, function), {**KERNELS, **OWN}[module, function]

    def bad(*args, **options):
        result = good(*args, **options)
        for spoilt in [args[place]] if isinstance(place, int) else result if place else [result]:
            if spoilt is not None:  # statistics alone
                spoilt.mul_(1.01)
        return result

    block = make_block()
    x, grad = inputs(block)
    monkeypatch.setattr(module, function, bad)
    with pytest.raises(RuntimeError, match=f"a kernel disagrees .* the ({name}|masked gradient) is off"):
        run(block, x, grad, "fused")


# When the plain block runs.


def test_dense_networks_and_the_backend_of_kernels_alone_run_plain(fused_runs):
    dense, separated = make_block(full), make_block()
    x, _ = inputs(dense)
    with torch.no_grad():
        with depthwise_backend("fused"):
            dense(x)
        with depthwise_backend("triton"):
            separated(x)
    assert not fused_runs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda block: block.expand.conv.register_forward_hook(lambda *_: None), "hooks"),
        (lambda block: block.expand.conv.register_full_backward_pre_hook(lambda *_: None), "hooks"),
        (lambda block: setattr(block.expand.conv, "bias", nn.Parameter(block.expand.norm.bias.detach() + 1)), "a bias"),
        (lambda block: setattr(block.reduce, "norm", nn.SyncBatchNorm(2).double()), "a layer is a SyncBatchNorm"),
        (sync_norms, "a layer is a SyncBatchNorm3d"),
        (lambda block: setattr(block, "drop_path", nn.Dropout(0.0)), "drop_path"),
    ],
)
def test_block_that_cannot_run_fused_says_why_and_runs_plain(change, words, fused_runs, caplog):
    depthwise._reported.clear()
    block = make_block().eval()
    change(block)
    x, _ = inputs(block)
    with torch.no_grad(), depthwise_backend("fused"), caplog.at_level(logging.WARNING):
        block(x)
    assert not fused_runs
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "run unfused" in caplog.text
    assert words in caplog.text


@pytest.mark.parametrize(
    ("measured", "layout", "training", "runs"),
    [
        ("fused", CHANNELS_LAST, True, 1),
        ("fused", torch.contiguous_format, True, 0),  # which was not measured
        ("fused", CHANNELS_LAST, False, 0),
        ("triton", CHANNELS_LAST, True, 0),
        (None, CHANNELS_LAST, True, 0),
    ],
)
def test_left_to_us_blocks_run_fused_where_that_was_measured_to_be_faster(
    measured, layout, training, runs, fused_runs, monkeypatch, tmp_path
):
    monkeypatch.setenv("LIGHTNING_CSN_CACHE", str(tmp_path))
    monkeypatch.setattr(depthwise, "choose_way", lambda *_: "triton")  # as on a GPU
    choices.forget()
    block = make_block()
    x, _ = inputs(block)
    if measured is not None:
        choices.keep(fused.BLOCKS, fused.blocks_of("ir", x.dtype), x.device, measured)
    with torch.set_grad_enabled(training), depthwise_backend("auto"):
        block(x.contiguous(memory_format=layout))
    choices.forget()
    assert len(fused_runs) == runs


def test_norms_that_learn_do_so_without_gradients_too():
    block = make_block(width_in=4, stride=2).eval()
    for norm in (block.reduce.norm, block.shortcut.norm):  # the two others are folded
        norm.train()
    plain, ours = copy.deepcopy(block), copy.deepcopy(block)
    x, _ = inputs(block, 4)
    with torch.no_grad():
        for each, way in ((plain, "reference"), (ours, "fused")):
            with depthwise_backend(way):
                each(x)
    assert not torch.equal(plain.reduce.norm.running_mean, block.reduce.norm.running_mean)
    assert_same(dict(ours.named_buffers()), dict(plain.named_buffers()))


def test_gradients_of_gradients_are_refused():
    block = make_block().eval()
    x, _ = inputs(block)
    with depthwise_backend("fused"):
        out = block(x.requires_grad_())
        with pytest.raises(NotImplementedError, match="the plain ones do: with depthwise_backend"):
            torch.autograd.grad(out.sum(), x, create_graph=True)


# The counts.


def test_traffic_is_what_was_counted_by_hand():
    assert fused.total(fused.FORWARD) == (54, 31, 17)
    assert fused.total(fused.BACKWARD) == (84, 73, 59)
    assert fused.total(fused.INFERENCE) == (48, 24, 16)
    assert fused.STORED[1:] == (12, 6, 6)


@pytest.fixture
def moved(monkeypatch):
    """Elements of activations that each launch reads and writes, each once, as the interpreter sees it."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    builder, launches = interpreter.InterpreterBuilder, []
    load, store, run = builder.create_masked_load, builder.create_masked_store, interpreter.GridExecutor.__call__
    seen = {"read": set(), "written": set()}

    def note(kind, pointers, mask):
        seen[kind].update(pointers.data[mask.data].tolist())

    def executed(self, *args, **options):
        for places in seen.values():
            places.clear()
        run(self, *args, **options)
        tensors = {each.data_ptr(): each for each in args if torch.is_tensor(each) and each.ndim == 5}
        launches.append(
            sum(
                start <= place < start + tensor.nbytes
                for start, tensor in tensors.items()
                if tensor.shape[2:].numel() not in (1, 27)  # the weights
                for places in seen.values()
                for place in places
            )
        )

    monkeypatch.setattr(builder, "create_masked_load", lambda self, *a: note("read", *a[:2]) or load(self, *a))
    monkeypatch.setattr(builder, "create_masked_store", lambda self, *a: note("written", a[0], a[2]) or store(self, *a))
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", executed)
    return launches


@pytest.mark.skipif(DEVICE != "cpu", reason="counted by the interpreter")
def test_kernels_move_what_was_counted(moved, products):
    block = make_block(width_in=16, width=4)
    x, grad = inputs(block, 16)
    own = products == "own"
    with depthwise_backend("fused"):
        out = block(x.contiguous(memory_format=CHANNELS_LAST).requires_grad_())
        forward, unit = sum(moved), x.numel() // 4  # w P
        out.backward(grad.contiguous(memory_format=CHANNELS_LAST))
        backward = sum(moved) - forward
        with torch.no_grad():
            block.eval()(x)
        inference = sum(moved) - forward - backward
    # the library's products are no launches of ours: reduce and expand; expand again, and the gradients of both
    assert forward / unit == fused.total(fused.FORWARD)[1 + own] - (0 if own else 5 + 5)
    assert backward / unit == fused.total(fused.BACKWARD)[1 + own] - (5 + 9 if own else 5 + 5 + 5 + 5 + 9)
    assert inference / unit == fused.total(fused.INFERENCE)[1 + own] - (5 if own else 5 + 5)


def test_what_is_kept_for_the_way_back_is_what_was_counted():
    block = make_block(width_in=16, width=4)
    x, _ = inputs(block, 16)
    unit = x.numel() // 4 * x.element_size()  # w P
    kept = {}
    for way in ("reference", "fused"):
        storages = {}

        def keep(tensor, storages=storages):
            if tensor.dim() == 5 and tensor.shape[2:] == x.shape[2:]:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with depthwise_backend(way), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = block(x.clone(memory_format=CHANNELS_LAST).requires_grad_())
        assert out is not None
        kept[way] = sum(storages.values()) / unit
    assert kept["fused"] == fused.STORED.own + 4  # and the input, which the block before keeps as its output
    assert kept["reference"] == fused.STORED.eager + 4


def test_every_bottleneck_of_a_csn_can_run_fused():
    for name in ("ircsn_26", "ipcsn_26"):
        network = create_network(name)
        x = torch.empty(1, 64, 4, 8, 8)
        blocks = [block for block in network.modules() if isinstance(block, Bottleneck)]
        assert len(blocks) == sum(ARCHITECTURES[name].blocks)
        assert [fused.unfusable(block, x) for block in blocks] == [None] * len(blocks)


@pytest.mark.parametrize("training", [True, False])
def test_nan_of_the_input_is_not_lost_in_a_relu(training, products):
    block = make_block().train(training)
    x = torch.randn(2, 8, 3, 3, 2, dtype=torch.float64, device=DEVICE)
    x[0, 0, 0, 0, 0] = math.nan
    found = []
    for way in ("reference", "fused"):
        with torch.set_grad_enabled(training), depthwise_backend(way):
            found.append(copy.deepcopy(block)(x).isnan())
    assert found[0].any()
    assert torch.equal(*found)
