"""Whole networks with the kernels: compiled in one graph, learning what the plain network learns, on two processes too.

Without a GPU the kernels run in Triton's interpreter (see conftest.py).
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_csn.models.depthwise import depthwise_backend
from lightning_csn.models.network import Bottleneck, create_network, interaction_reduced

pytest.importorskip("triton")
from lightning_csn.models import tiles
from lightning_csn.models.tiles import default_tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs")
CHANNELS_LAST = torch.channels_last_3d
# On CPUs nn.Conv3d gets the depthwise weight gradient of few channels wrong, in bf16 and channels_last_3d (torch 2.15).
PLAIN_BF16 = "taps" if DEVICE == "cpu" else "reference"


def make(name="ircsn_tiny", dtype=torch.float32, classes=3):
    torch.manual_seed(0)
    if name == "block":
        block = Bottleneck(16, 4, interaction_reduced, norm=nn.BatchNorm3d, stride=1, drop_path=nn.Identity())
        return nn.Sequential(block, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, classes)).to(DEVICE, dtype)
    return create_network(name, num_classes=classes).to(DEVICE, dtype, memory_format=CHANNELS_LAST)


def clips(shape=(2, 3, 2, 32, 32), dtype=torch.float32, seed=1):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(DEVICE, dtype).contiguous(memory_format=CHANNELS_LAST)


@pytest.fixture(autouse=True)
def strips_that_the_interpreter_can_afford(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(tiles, "default_tile", lambda *given: default_tile(*given)._replace(strip=2))


@pytest.mark.parametrize(
    ("name", "way"),
    [("ircsn_tiny", "reference"), ("ircsn_tiny", "triton"), ("ipcsn_tiny", "fused")],
)
def test_training_compiles_to_one_graph_with_the_gradients_of_the_plain_network(name, way):
    torch.compiler.reset()
    network, x = make(name, torch.float64), clips(dtype=torch.float64)
    compiled = torch.compile(copy.deepcopy(network), backend="aot_eager", fullgraph=True)
    found = []
    for forward, chosen in ((network, "reference"), (compiled, way)):
        with depthwise_backend(chosen):
            logits = forward(x)
            gradients = torch.autograd.grad(logits.square().sum(), list(forward.parameters()))
        found.append((logits.detach(), *gradients, *(buffer.clone() for buffer in forward.buffers())))
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_checkpointed_stages_compile_with_gradients_and_statistics_of_the_plain_network():
    torch.compiler.reset()
    network, x = make("ircsn_tiny", torch.float64), clips(dtype=torch.float64)
    checkpointed = copy.deepcopy(network)
    checkpointed.set_grad_checkpointing(stages=(1, 3))
    with depthwise_backend("reference"):
        network(x).square().sum().backward()
        torch.compile(checkpointed, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    for plain, ours in zip(network.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad)
    for plain, ours in zip(network.buffers(), checkpointed.buffers(), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(
    ("name", "way"), [("ircsn_tiny", "fused"), ("ipcsn_tiny", "reference"), ("ipcsn_tiny", "fused")]
)
def test_inference_compiles_to_one_graph_with_the_logits_of_the_plain_network(name, way):
    torch.compiler.reset()
    network, x = make(name, torch.float64).eval(), clips((1, 3, 2, 32, 32), torch.float64)
    with torch.no_grad():
        with depthwise_backend("reference"):
            plain = network(x)
        with depthwise_backend(way):
            ours = torch.compile(network, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(ours, plain)


def losses(way, steps, clip, name="ircsn_tiny", *, bf16=False, rounding=0, lr=0.01):
    """Losses of steps of SGD on the same few clips (B, C, T, H, W), under autocast if in bf16.

    rounding: seed of the order of the clips in the batch, on which nothing depends but the rounding.
    """
    network, x = make(name), clips(clip, torch.bfloat16 if bf16 else torch.float32)
    order = torch.randperm(clip[0], generator=torch.Generator().manual_seed(rounding))
    labels = (torch.arange(clip[0]) % 3)[order].to(DEVICE)
    x = x[order.to(DEVICE)].contiguous(memory_format=CHANNELS_LAST)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    found = []
    with depthwise_backend(way):
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
                logits = network(x)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


def test_the_losses_of_training_are_those_of_the_plain_network():
    # Two steps: BatchNorm over the last stage's three places makes rounding grow a hundredfold with each.
    plain, fused = (losses(way, 2, (3, 3, 2, 32, 32)) for way in ("reference", "fused"))
    assert plain[1] < 0.9 * plain[0]
    assert fused == pytest.approx(plain, rel=1e-5)


@needs_cuda
def test_200_steps_on_a_gpu_lose_what_the_plain_network_loses():
    # Rounding grows from step to step, so that only the first steps can be compared by number.
    plain, fused = (losses(way, 200, (4, 3, 8, 64, 64)) for way in ("reference", "fused"))
    assert fused[:10] == pytest.approx(plain[:10], rel=1e-4)
    assert sum(fused[-20:]) == pytest.approx(sum(plain[-20:]), abs=0.2)


@pytest.mark.parametrize(
    ("name", "clip", "lr", "steps", "window"),
    [
        pytest.param("ircsn_50", (8, 3, 16, 112, 112), 0.01, 200, 10, marks=needs_cuda),
        pytest.param("block", (6, 16, 2, 3, 3), 0.1, 3, 1, id="in miniature"),
    ],
)
def test_losses_in_bf16_are_within_the_spread_of_two_plain_runs(name, clip, lr, steps, window):
    options = {"bf16": True, "lr": lr}
    plain, other = (losses(PLAIN_BF16, steps, clip, name, rounding=seed, **options) for seed in (1, 2))
    fused = losses("fused", steps, clip, name, **options)
    curves = [torch.tensor(run).view(-1, window).mean(1) for run in (plain, other, fused)]
    spread = (curves[0] - curves[1]).abs().max() + 2**-7  # and what bf16 can tell apart of losses near 1
    assert spread < 0.5
    assert ((curves[2] - curves[0]).abs().minimum((curves[2] - curves[1]).abs()) <= spread).all(), curves
    assert curves[2][-1] < curves[2][0] - 0.05


@needs_cuda
def test_a_step_in_a_cuda_graph_learns_what_the_eager_one_learns():
    from lightning_csn.benchmark_settings import Settings
    from lightning_csn.benchmark_ways import WARM_UP, Way, make_step

    settings = Settings(
        kind="train",
        architecture="ircsn_tiny",
        clip=(4, 32, 32),
        batch=4,
        precision="fp32",
        backend="fused",
        layout="channels_last",
        compile=None,
        cuda_graphs=True,
        checkpointing=(),
        steps=1,
        repeats=1,
        device="cuda",
    )
    found = []
    for graphs in (False, True):
        way = Way("ours", "fused", "channels_last", cuda_graphs=graphs)
        with depthwise_backend("fused"):
            step = make_step(way, settings, torch.device("cuda"))
            if not graphs:
                for _ in range(WARM_UP):
                    step()
            found.append([step().item() for _ in range(5)])
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(found[0]), rtol=1e-3, atol=1e-4)


SCRIPT = """
import gc
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from lightning_csn.models import fused, network
from lightning_csn.models.depthwise import depthwise_backend
from lightning_csn.models.network import Bottleneck, interaction_reduced

fused_runs = []
network.bottleneck = lambda block, x: fused_runs.append(block) or fused.bottleneck(block, x)
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
results = []
for way in ("reference", "fused"):
    torch.manual_seed(0)
    block = Bottleneck(8, 2, interaction_reduced, norm=nn.BatchNorm3d, stride=1, drop_path=nn.Identity()).double()
    parallel = nn.parallel.DistributedDataParallel(block)
    x = torch.randn(2, 8, 2, 3, 3, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    with depthwise_backend(way):
        parallel(x).square().sum().backward()
    results.append({name: p.grad for name, p in block.named_parameters()})
for name, plain in results[0].items():
    torch.testing.assert_close(results[1][name], plain, msg=name)
    other = plain.clone()
    dist.broadcast(other, 0)
    torch.testing.assert_close(other, plain, msg=name)  # the mean of both processes
# Sharded: each process has half of every weight, and of its gradient.
sharded = Bottleneck(8, 2, interaction_reduced, norm=nn.BatchNorm3d, stride=1, drop_path=nn.Identity()).double()
sharded.load_state_dict({name: tensor for name, tensor in block.state_dict().items()})
for norm in sharded.modules():
    if isinstance(norm, nn.BatchNorm3d):
        norm.reset_running_stats()
fully_shard(sharded)
with depthwise_backend("fused"):
    sharded(x).square().sum().backward()
for name, parameter in sharded.named_parameters():
    torch.testing.assert_close(parameter.grad.full_tensor(), results[0][name], msg=name)
for (name, ours), theirs in zip(sharded.named_buffers(), block.buffers(), strict=True):
    torch.testing.assert_close(ours, theirs, msg=name)
assert len(fused_runs) == 2
del sharded, parameter
del parallel  # holds the group, whose threads abort a process that ends before them
gc.collect()
dist.destroy_process_group()
"""


@pytest.mark.skipif(DEVICE == "cuda" or sys.platform == "win32", reason="two processes in the interpreter, over gloo")
def test_two_processes_share_the_gradients_of_the_kernels_and_the_weights_too(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, str(tmp_path / "script.py")]
    runs = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [run.communicate(timeout=600)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
