"""The ways to run a network that `lightning-csn benchmark` measures: each as a function that runs one step.

Ours as it was trained, its quicker forms for inference, files that `lightning-csn export` writes or has written, and
the plain networks that they are held against. CUDA graphs are not yet run on a GPU.
"""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_csn.benchmark_settings import LAYOUTS, PRECISIONS, Settings, depthwise_layers
from lightning_csn.errors import InputError
from lightning_csn.terminal import out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lightning_csn.models.network import ResNet3D

_log = logging.getLogger(__name__)

WARM_UP = 3  # steps before anything is timed: buffers of the optimiser, choice of algorithms
EXPORTED = {"onnxruntime": "onnx", "openvino": "openvino"}  # the runtime of a form, and its format in export.py
FILE = "file"  # the form of the way that is an exported file
CALIBRATION = 2  # clips of noise, by which ranges of 8 bits are chosen; their speed is that of any others


@dataclass(frozen=True)
class Way:
    """One of the ways to run the same network."""

    name: str
    backend: str
    layout: str
    compile: str | None = None
    cuda_graphs: bool = False
    checkpointing: tuple[int, ...] = ()
    form: str = "trained"

    @property
    def replays(self) -> bool:
        """Whether its steps are CUDA graphs, whose memory is taken while they are recorded."""
        return self.cuda_graphs or self.compile in ("reduce-overhead", "max-autotune")


@dataclass
class Measured:
    """A way and its times, in seconds a step; or why it did not run."""

    way: Way
    path: str
    seconds: list[float] = field(default_factory=list)
    memory_bytes: int | None = None
    error: str | None = None

    @property
    def median(self) -> float:
        """Seconds a step."""
        return statistics.median(self.seconds)


def ways_of(settings: Settings, against: Sequence[str]) -> list[Way]:
    """Ours, its quicker forms, the file that --model names, and the plain ones that are eager."""
    ours = Way(
        "ours", settings.backend, settings.layout, settings.compile, settings.cuda_graphs, settings.checkpointing
    )
    forms = [Way(form, settings.backend, "channels_last", form=form) for form in settings.forms]
    if settings.model is not None and settings.runtime is not None:
        forms.append(Way(Path(settings.model).name, settings.backend, "contiguous", form=FILE))
    return [ours, *forms] + [Way("plain eager", "reference", layout) for layout in LAYOUTS if "eager" in against]


def precision_of(way: Way, settings: Settings) -> str:
    """What a way computes in: the type of its activations, fp32, bf16, fp16 or int8."""
    if way.form == FILE:
        return settings.file_precision
    if way.form == "trained":
        return settings.precision
    return next((name for name in ("bf16", "int8") if way.form.endswith(name)), "fp32")


def path_of(way: Way, settings: Settings, device: torch.device) -> str:
    """What computes the depthwise layers: fused, and by whose products, triton, taps, reference; or that none are."""
    import torch

    from lightning_csn.models.depthwise import choose_way

    if way.form == FILE and settings.runtime is not None:
        return settings.runtime
    if way.form in ("folded", "bf16"):
        from lightning_csn.models.fold import DTYPES, cannot_pack

        packs = cannot_pack(device.type, DTYPES["bf16" if way.form == "bf16" else "fp32"]) is None
        return "oneDNN, packed" if packs else "nn.Conv3d"
    if way.form == "int8":
        return "oneDNN, int8"
    if way.form.partition("-")[0] in EXPORTED:
        return way.form
    if not depthwise_layers(settings.architecture, settings.clip, **settings.network):
        return "no depthwise layers"
    dtype = getattr(torch, PRECISIONS[settings.precision])
    path = choose_way(way.backend, device.type, dtype, 5, (1, 3, 3, 3), (1, 1, 1))
    if path == "taps" and settings.kind == "infer":  # which differs in its gradients
        return "reference"
    if path != "triton" or way.backend == "triton":
        return path
    from lightning_csn.models import fused, roofline

    measured = settings.kind == "train" and way.layout == "channels_last" and way.compile is None
    if way.backend == "fused" or (
        measured and fused.found_faster(roofline.kind_of_blocks(settings.architecture), device, dtype)
    ):
        return f"fused, {products_of(settings, device)}"
    return path


def products_of(settings: Settings, device: torch.device) -> str:
    """Which products of fused blocks are our own: by what `--tune` found here, or by counting.

    In inference the reduce has nothing to take in, and is the library's.
    """
    import torch

    from lightning_csn.models import launch_product, roofline

    def own(product: roofline.Product) -> bool:
        channels_in, channels = product.channels_in, product.channels
        dtype = getattr(torch, PRECISIONS[settings.precision])
        x, weight = (torch.empty(n, channels_in, 1, 1, 1, dtype=dtype, device=device) for n in (1, channels))
        return launch_product.takes_in(x, weight) and (settings.kind == "train" or product.role != "reduce")

    products = roofline.products(settings.architecture, settings.clip, **settings.network)
    stages = roofline.stages_of(products, own)
    return f"own products in stages {stages}" if stages else "products of the library"


def start(way: Way, settings: Settings, device: torch.device) -> tuple[Measured, Callable[[], Tensor] | None]:
    """Make a way ready: warmed up, its memory measured on a GPU. None if it cannot run, and the reason in Measured."""
    import torch

    from lightning_csn.models.depthwise import depthwise_backend

    measured = Measured(way, path_of(way, settings, device))
    gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if gpu else 0
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with expected_failures(measured), depthwise_backend(way.backend):
        step = make_step(way, settings, device)
        for _ in range(WARM_UP if gpu else 1):
            step()
        if gpu:
            if not way.replays:  # the start chooses algorithms, which takes memory that no later step needs
                torch.cuda.reset_peak_memory_stats(device)
            step()
            torch.cuda.synchronize(device)
            if way.form != FILE or settings.counted:
                measured.memory_bytes = torch.cuda.max_memory_allocated(device) - before
        return measured, step
    return measured, None


@contextmanager
def expected_failures(measured: Measured) -> Iterator[None]:
    """What one way cannot do is no reason to lose the others: it is left out, with the reason."""
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        yield
    except failures() as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        if isinstance(error, BackendCompilerFailed):
            measured.error = f"torch.compile failed: {reason}"
        elif out_of_memory(error):
            measured.error = f"out of memory: {reason}"
        elif isinstance(error, InputError):
            measured.error = reason
        else:
            measured.error = f"{type(error).__name__}: {reason}"
            _log.warning("%s, %s: it fails, and is left out", measured.way.name, measured.way.layout, exc_info=error)


def failures() -> tuple[type[Exception], ...]:
    """What is raised by torch, its compilers and exporters, by the runtimes of exported files, and by this package."""
    from lightning_csn.runner import ONNX_ERRORS

    found: list[type[Exception]] = [RuntimeError, MemoryError, OSError, InputError]
    for module, names in (
        ("triton.errors", ("TritonError",)),
        ("onnxruntime.capi.onnxruntime_pybind11_state", ONNX_ERRORS),
    ):
        found += [getattr(sys.modules[module], name) for name in names if module in sys.modules]
    return tuple(found)


# ---------------------------------------------------------------- steps


def make_step(way: Way, settings: Settings, device: torch.device) -> Callable[[], Tensor]:
    """A function that runs one step of a network on fixed clips and gives its loss, or its logits in inference.

    Call it inside `depthwise_backend(way.backend)`.
    """
    import torch
    import torch.nn.functional as F

    if way.form == FILE:
        return opened(settings, device)
    torch.manual_seed(0)
    training = settings.kind == "train"
    form = torch.channels_last_3d if way.layout == "channels_last" else torch.contiguous_format
    network = make_network(settings).to(device).to(memory_format=form)
    network.train(training).set_grad_checkpointing(bool(way.checkpointing), stages=way.checkpointing)
    if way.form != "trained":
        return answering(way.form, network.eval(), settings)
    clips = normalised(pixels(settings)).to(device, memory_format=form)
    labels = torch.randint(settings.num_classes, (settings.batch,)).to(device)
    run: nn.Module = network
    if way.compile is not None:
        run = torch.compile(network, mode=way.compile, dynamic=False)  # type: ignore[assignment]
    cast: Any = nullcontext()
    if settings.precision != "fp32":
        cast = torch.autocast(device.type, getattr(torch, PRECISIONS[settings.precision]))

    if not training:

        def forward() -> Tensor:
            with torch.no_grad(), cast:
                return run(clips)

        return recorded(forward, device) if way.cuda_graphs else forward

    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with cast:
            loss = F.cross_entropy(run(clips), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return recorded(step, device) if way.cuda_graphs else step


def make_network(settings: Settings) -> ResNet3D:
    """With the weights that --model names, or fresh ones; an exported file's cannot be had."""
    from lightning_csn.models.checkpoints import load_network
    from lightning_csn.models.network import create_network

    if settings.model is not None and settings.runtime is None:
        return load_network(settings.model, num_classes=settings.num_classes)
    return create_network(settings.architecture, num_classes=settings.num_classes, **settings.network)


def pixels(settings: Settings, count: int | None = None) -> Tensor:
    """The clips of every way, or so many: noise, uint8 (B, 3, T, H, W)."""
    import torch

    draw = torch.Generator().manual_seed(0)
    shape = (count or settings.batch, 3, *settings.clip)
    return torch.randint(256, shape, dtype=torch.uint8, generator=draw)


def normalised(clips: Tensor) -> Tensor:
    """Pixels as networks take them: noise of mean 0 and deviation 1, float32."""
    return clips.float().sub_(127.5).div_(73.9)


def answering(form: str, network: ResNet3D, settings: Settings) -> Callable[[], Tensor]:
    """A function that runs a pass of one of FORMS, on the CPU."""
    import torch

    from lightning_csn.models.fold import fold

    if form.partition("-")[0] in EXPORTED:
        return exported(form, network, settings)
    clips = normalised(pixels(settings))
    if form == "compiled":
        from torch._inductor import config

        folded = fold(network, layout="channels_last")
        run = torch.compile(folded, dynamic=False)
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
        with config.patch(freezing=True), torch.no_grad():
            run(clips)
    else:
        noise = normalised(pixels(settings, CALIBRATION)) if form == "int8" else None
        run = fold(network, dtype=form if form in ("bf16", "int8") else "fp32", calibration=noise)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(clips)

    return forward


def exported(form: str, network: ResNet3D, settings: Settings) -> Callable[[], Tensor]:
    """A function that runs a pass of the network as an exported file, in its runtime."""
    import tempfile

    from lightning_csn.clip import SCRATCH_CLIP, ClipSpec
    from lightning_csn.export import Quantisation, export
    from lightning_csn.module import LitCSN
    from lightning_csn.runner import load_runner

    frames, side, _ = settings.clip
    clip: ClipSpec = replace(SCRATCH_CLIP, frames=frames, short_side=side, crop=side, test_crop=side)
    model = LitCSN(settings.architecture, num_classes=settings.num_classes, clip=clip.to_dict())
    model.network = network
    with tempfile.TemporaryDirectory() as folder:
        to, int8 = EXPORTED[form.partition("-")[0]], None
        if form.endswith("int8"):
            noise = pixels(settings, CALIBRATION)
            int8 = Quantisation(list(noise), [(noise[0], None)], max_drop=100)
        file = Path(folder) / ("model.onnx" if to == "onnx" else "model.xml")
        written = export(model.eval(), file, to=to, int8=int8)
        runner = load_runner(next(file for file in written.files if file.suffix != ".bin"), "cpu")
    clips = pixels(settings)
    return lambda: runner(clips)


def opened(settings: Settings, device: torch.device) -> Callable[[], Tensor]:
    """A function that runs a pass of the exported file that --model names, as `classify` runs it."""
    from lightning_csn.runner import load_runner

    assert settings.model is not None
    runner = load_runner(settings.model, device)
    clips = pixels(settings).to(runner.device)
    return lambda: runner(clips)


def recorded(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The step as a CUDA graph: what it launches is recorded once, and replayed by one launch. Not yet run on a GPU."""
    import torch

    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # buffers and algorithms are to be there before
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
