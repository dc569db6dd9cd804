"""`lightning-csn benchmark`: how fast a network runs here, against the plain one and against what the machine can do.

A speed means nothing by itself, so every run measures, in turns, our network and the plain one (the same modules with
nn.Conv3d, eager in both layouts and under torch.compile), the machine's own rates (a copy, a matrix product), and gives
the floor that roofline.py counts. Speeds are medians; ratios are within one run. Not yet run on a GPU.

How fast videos are read is measured by benchmark_data.py. `benchmark_options` and `run_benchmark` are the command's row
in cli.py; torch is imported where something runs.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightning_csn import __version__
from lightning_csn.benchmark_data import data_options, run_benchmark_data
from lightning_csn.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lightning_csn.models.network import ResNet3D
    from lightning_csn.models.roofline import Layer

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LAYOUTS = ("contiguous", "channels_last")
BACKENDS = ("auto", "reference", "taps", "triton", "fused")  # of depthwise.py, which imports torch
MODES = ("default", "reduce-overhead", "max-autotune")
NUM_CLASSES = 400
MOST_ELEMENTS = 10**12  # of a batch; more fits nowhere
WARM_UP = 3  # steps before anything is timed: buffers of the optimiser, choice of algorithms
FORMS = (  # of a network that only answers
    *("folded", "compiled", "bf16", "int8", "onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8"),
)
EXPORTED = {"onnxruntime": "onnx", "openvino": "openvino"}  # the runtime of a form, and its format in export.py
PLOTS = (".png", ".svg", ".pdf")
CALIBRATION = 2  # clips of noise, by which ranges of 8 bits are chosen; their speed is that of any others
BACKWARD = 2  # the way back costs about twice the forward pass, in bytes and in operations


@dataclass(frozen=True)
class Settings:
    """What is measured. clip: frames, height, width."""

    kind: str
    architecture: str
    clip: tuple[int, int, int]
    batch: int
    precision: str
    backend: str
    layout: str
    compile: str | None
    cuda_graphs: bool
    checkpointing: tuple[int, ...]
    steps: int
    repeats: int
    device: str
    forms: tuple[str, ...] = ()

    @property
    def element_bytes(self) -> int:
        """Of an activation."""
        return 4 if self.precision == "fp32" else 2


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


# ---------------------------------------------------------------- options


def benchmark_options(parser: ArgumentParser) -> None:
    """Options of `benchmark`."""
    kinds = parser.add_subparsers(dest="kind", metavar="|".join(KINDS), required=True)
    for name, kind in KINDS.items():
        options = kinds.add_parser(
            name, description=f"Measure {kind.summary}.", help=kind.summary, formatter_class=parser.formatter_class
        )
        kind.add_options(options)


def train_options(parser: ArgumentParser) -> None:
    """Options of `benchmark train`."""
    common_options(parser)
    training_options(parser)
    parser.epilog = EPILOGS["train"]


def infer_options(parser: ArgumentParser) -> None:
    """Options of `benchmark infer`."""
    common_options(parser)
    parser.add_argument(
        "--forms",
        nargs="*",
        choices=FORMS,
        metavar="FORM",
        help="quicker forms to measure in the same run; default all that are installed, on a CPU in fp32: "
        + ", ".join(FORMS),
    )
    parser.add_argument("--plot", metavar="FILE.png", help="also draw the table: milliseconds a clip, and the floor")
    parser.epilog = EPILOGS["infer"]


def common_options(parser: ArgumentParser) -> None:
    """Options of training and inference."""
    from lightning_csn.cli import positive

    parser.add_argument("--architecture", default="ircsn_152", metavar="NAME", help="default %(default)s")
    parser.add_argument("--clip", type=sizes, default=(32, 224, 224), metavar="TxHxW", help="default 32x224x224")
    parser.add_argument("--batch", type=positive, default=8, metavar="B", help="clips a step; default %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, help="default bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="of the depthwise layers of our network")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="channels_last", help="of our network; default %(default)s"
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        choices=MODES,
        const="default",
        help="our network under torch.compile, in this mode; reduce-overhead means with CUDA graphs",
    )
    parser.add_argument("--cuda-graphs", action="store_true", help="our step recorded once and replayed, on a GPU")
    parser.add_argument(
        "--against",
        nargs="*",
        choices=("eager", "compiled"),
        default=["eager", "compiled"],
        help="the plain networks to measure in the same run; default both",
    )
    parser.add_argument("--steps", type=positive, default=5, metavar="N", help="a measurement; default %(default)s")
    parser.add_argument("--repeats", type=positive, default=7, metavar="N", help="measurements; default %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; default the GPU where there is one")
    parser.add_argument("--json", action="store_true", help="everything that was measured, as JSON")
    parser.set_defaults(checkpointing=[], layers=False, find_batch=False, tune=False, plot=None)


def training_options(parser: ArgumentParser) -> None:
    """Options of training alone."""
    parser.add_argument(
        "--checkpointing", nargs="*", type=int, default=[], metavar="STAGE", help="stages 1 to 4 of our network"
    )
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--layers", action="store_true", help="instead: every depthwise layer alone")
    others.add_argument("--find-batch", action="store_true", help="instead: the largest batch that fits on the GPU")
    others.add_argument(
        "--tune", action="store_true", help="instead: choose and keep the kernels' tiles for these shapes"
    )


EPILOGS = {
    "train": (
        "The floor is what a step must move and compute: three times what roofline.py counts for the forward pass, at\n"
        "the rates of a copy and of a matrix product, measured in the same run. OF COPY and OF MATRIX are those bytes\n"
        "and operations over the step's time, as shares of the rates. Memory: of tensors, on a GPU (with CUDA graphs,\n"
        "their recording included); on a CPU of the whole process. X PLAIN: how many times as fast as the contiguous\n"
        "plain network. On a CPU ours keeps memory from step to step, as fit does, and the plain networks give it\n"
        "back, as programs do that do not ask for more; each runs a step before it is timed.\n\n"
        "examples:\n"
        "  lightning-csn benchmark train --architecture ircsn_152 --batch 8 --precision bf16\n"
        "  lightning-csn benchmark train --layers --json > layers.json\n"
        "  lightning-csn benchmark train --device cpu --architecture ircsn_50 --clip 16x112x112 --batch 2"
    ),
    "infer": (
        "Ours is the network as it was trained; folded is what classify, test and predict run on a CPU, compiled the\n"
        "same under torch.compile with its weights frozen, bf16 and int8 the same in 16 and 8 bits. ONNX Runtime and\n"
        "OpenVINO run what 'lightning-csn export' writes; they take pixels, and to normalise them (a small part) is\n"
        "in their time. int8 is calibrated on noise here: its speed is right, its answers are not.\n"
        "X PLAIN: how many times as fast as the contiguous plain network. On a CPU the floor's matrix product is\n"
        "PyTorch's or oneDNN's, whichever is faster; our forms keep memory from pass to pass, as the commands do, and\n"
        "the plain networks give it back, as programs do that do not ask for more.\n\n"
        "examples:\n"
        "  lightning-csn benchmark infer --architecture ircsn_50 --batch 1 --device cpu --clip 16x112x112 --repeats 3"
    ),
}


def sizes(text: str) -> tuple[int, int, int]:
    """Frames, height and width.

    >>> sizes("32x224x224")
    (32, 224, 224)
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"frames x height x width is needed, such as 32x224x224, got {text!r}")
    return (int(parts[0]), int(parts[1]), int(parts[2]))


def check(args: Namespace) -> tuple[Settings, torch.device]:
    """The settings and the device, or an InputError that says why they make no sense."""
    from lightning_csn.models.network import ARCHITECTURES, list_networks
    from lightning_csn.runner import choose_device

    device = choose_device(args.device)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {args.device}: only cpu and cuda are measured")
    gpu = device.type == "cuda"
    precision = args.precision or ("bf16" if gpu else "fp32")
    if args.architecture not in ARCHITECTURES:
        raise InputError(f"no network {args.architecture!r}; there are: {', '.join(list_networks())}")
    if precision == "fp16" and not gpu:
        raise InputError("--precision fp16 is for GPUs; a CPU is measured in fp32 or bf16")
    if args.find_batch and not gpu:
        raise InputError("--find-batch needs a GPU: a CPU that runs out of memory takes other programs with it")
    if args.cuda_graphs and not gpu:
        raise InputError("--cuda-graphs needs a GPU")
    if args.cuda_graphs and (args.compile or precision == "fp16"):
        raise InputError(
            "--cuda-graphs records eager steps in bf16 or fp32 (the loss scaling of fp16 waits for the GPU); "
            "with torch.compile: --compile reduce-overhead"
        )
    if 3 * math.prod(args.clip) * args.batch > MOST_ELEMENTS:
        raise InputError(f"--clip and --batch: {args.batch} such clips have more than {MOST_ELEMENTS:,} values")
    if not set(args.checkpointing) <= {1, 2, 3, 4}:
        raise InputError(f"--checkpointing takes stages 1 to 4, got {' '.join(map(str, args.checkpointing))}")
    if (args.layers or args.tune) and (args.compile or args.cuda_graphs or args.checkpointing):
        raise InputError(
            "--layers and --tune run single layers, and take neither --compile nor --cuda-graphs nor --checkpointing"
        )
    if (args.layers or args.tune) and not depthwise_layers(args.architecture, args.clip):
        raise InputError(f"{args.architecture} has no depthwise layers; the ircsn and ipcsn networks do")
    if args.kind == "train" and not (args.layers or args.tune):
        from lightning_csn.models import roofline

        places = min(math.prod(layer.sizes) for layer in roofline.layers(args.architecture, args.clip))
        if places * (1 if args.find_batch else args.batch) < 2:
            raise InputError("--clip and --batch: BatchNorm needs more than one value per channel; take a larger clip")
    settings = Settings(
        kind=args.kind,
        architecture=args.architecture,
        clip=args.clip,
        batch=args.batch,
        precision=precision,
        backend=args.backend,
        layout=args.layout,
        compile=args.compile,
        cuda_graphs=args.cuda_graphs,
        checkpointing=tuple(sorted(set(args.checkpointing))),
        steps=args.steps,
        repeats=args.repeats,
        device=str(device),
        forms=forms_of(args, device, precision) if args.kind == "infer" else (),
    )
    return settings, device


def forms_of(args: Namespace, device: torch.device, precision: str) -> tuple[str, ...]:
    """The quicker forms to measure; InputError for one that cannot be."""
    from importlib.util import find_spec

    from lightning_csn.models.fold import cannot_quantise

    needs: dict[str, tuple[str, ...]] = {
        "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
        "openvino": ("openvino",),
    }
    needs |= {f"{name}-int8": (*packages, "nncf") for name, packages in needs.items()}
    suits = device.type == "cpu" and precision == "fp32"
    square = args.clip[1] == args.clip[2]
    reasons: dict[str, str | None] = dict.fromkeys(FORMS, None if suits else "they are measured on a CPU in fp32")
    if suits:
        reasons["int8"] = cannot_quantise("cpu")
    for name, packages in needs.items():
        missing = [package for package in packages if not find_spec(package)]
        if suits and (missing or not square):
            reasons[name] = (
                f"{', '.join(missing)} is not installed" if missing else "files are exported for square clips"
            )
    if args.forms is None:
        return tuple(name for name in FORMS if reasons[name] is None)
    for name in args.forms:
        if reasons[name] is not None:
            raise InputError(f"--forms {name}: {reasons[name]}")
    return tuple(name for name in FORMS if name in args.forms)


def run_benchmark(args: Namespace) -> int:
    """Measure what was asked for."""
    return KINDS[args.kind].run(args)


def run_network(args: Namespace) -> int:
    """Measure a network and print."""
    from lightning_csn.cli import DONE, note, print_json

    settings, device = check(args)
    if args.plot is not None:
        check_plot(args.plot)
    with plain_arithmetic(device), memory_as_input_error():
        if args.tune:
            result = tune(settings, device, tell=note)
        elif args.find_batch:
            result = find_batches(settings, device, against=args.against)
        elif args.layers:
            result = measure_layers(settings, device, tell=note)
        else:
            result = measure_network(settings, device, against=args.against, tell=note)
    if args.plot is not None:
        plot(result, args.plot)
    if args.json:
        print_json(result)
    else:
        print(as_text(result))
    return DONE


def check_plot(file: str) -> None:
    """InputError where the table could not be drawn into a file."""
    from importlib.util import find_spec
    from pathlib import Path

    if find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib, which is not installed: pip install 'lightning-csn[benchmark]'")
    if Path(file).suffix.lower() not in PLOTS:
        raise InputError(f"--plot {file}: the file's name must end in {', '.join(PLOTS)}")
    if not Path(file).expanduser().absolute().parent.is_dir():
        raise InputError(f"--plot {file}: there is no folder {Path(file).parent}")


def plot(result: dict[str, Any], file: str) -> None:
    """Bars of the milliseconds that a clip takes in each way, and a line where the floor is."""
    from pathlib import Path

    from matplotlib.figure import Figure

    settings, ways = result["settings"], [way for way in result["ways"] if way["error"] is None]
    names = [f"{way['name']}\n({way['layout']})" if way["form"] == "trained" else way["name"] for way in ways]
    times = [way["ms_per_step"] / settings["batch"] for way in ways]
    figure = Figure(figsize=(8, 1.5 + 0.45 * len(ways)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(names, times, color=["tab:gray" if name.startswith("plain") else "tab:blue" for name in names])
    axes.bar_label(bars, [f"{time:.3g}" for time in times], padding=3)
    floor = 1e3 * result["floor"]["seconds"] / settings["batch"]
    axes.axvline(floor, color="tab:red", linestyle="--", label=f"floor, {settings['precision']}: {floor:.3g}")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds a clip (median)")
    clip = "x".join(map(str, settings["clip"]))
    axes.set_title(f"{settings['architecture']}, clips {clip}, {result['machine']['threads']} threads")
    axes.legend(loc="lower right")
    try:
        figure.savefig(Path(file).expanduser(), dpi=150)
    except OSError as error:
        raise InputError(f"--plot {file}: it cannot be written: {error.strerror or error}") from error


@dataclass(frozen=True)
class Kind:
    """A row of the table of what can be measured."""

    summary: str
    add_options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


KINDS = {
    "train": Kind("training steps: forward, backward, SGD", train_options, run_network),
    "infer": Kind("forward passes in eval mode", infer_options, run_network),
    "data": Kind("reading clips of videos, against decord and torchcodec", data_options, run_benchmark_data),
}


@contextmanager
def memory_as_input_error() -> Iterator[None]:
    """Where nothing can be told without the memory that is not there, it is the options' fault."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"out of memory: {str(error).splitlines()[0]}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough; torch has a type of its own for that on GPUs alone."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


# ---------------------------------------------------------------- the machine


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """fp32 means fp32 in every way, without TF32, and cuDNN may choose its fastest algorithm."""
    import torch

    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield


def machine(device: torch.device) -> dict[str, Any]:
    """What a number depends on: device and versions."""
    import importlib.metadata
    import importlib.util

    import torch

    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else processor_name(),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if gpu else None,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "cuda": torch.version.cuda if gpu else None,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "lightning_csn": __version__,
    }


def processor_name() -> str:
    """As the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a Linux that does not tell
        return platform.processor() or platform.machine()


def measure_rates(settings: Settings, device: torch.device, *, copied: int, side: int) -> dict[str, float]:
    """Bytes/s of a device copy of `copied` bytes, read and written, and FLOP/s of a square product in the precision."""
    import torch

    dtype = getattr(torch, PRECISIONS[settings.precision])
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    target.copy_(source)  # pages are mapped and libraries loaded before anything is timed
    copy = [seconds_of(lambda: target.copy_(source), device, 3) for _ in range(settings.repeats)]
    left, right = torch.randn(2, side, side, device=device).to(dtype).unbind()
    products: list[Callable[[], Tensor]] = [lambda: left @ right]
    if device.type == "cpu" and settings.precision == "fp32":
        products += packed_product(side)
    medians = []
    for product in products:
        product()
        medians.append(statistics.median(seconds_of(product, device, 3) for _ in range(settings.repeats)))
    return {
        "copy_bytes_per_second": 2 * copied / statistics.median(copy),
        "matrix_flops_per_second": 2 * side**3 / min(medians),
    }


def packed_product(side: int) -> list[Callable[[], Tensor]]:
    """The same square product as a 1x1x1 convolution by oneDNN, which on some CPUs is twice as fast; none elsewhere."""
    import torch
    from torch import nn

    from lightning_csn.models.fold import PackedConvolution, cannot_pack

    if cannot_pack("cpu", torch.float32) is not None:
        return []
    form = torch.channels_last_3d
    weight = torch.randn(side, side, 1, 1, 1)
    product = PackedConvolution(weight, torch.zeros(side), nn.Conv3d(side, side, 1), relu=False)
    x = torch.randn(1, side, 1, side, 1).contiguous(memory_format=form)
    return [lambda: product(x)]


def rates_of(settings: Settings, device: torch.device) -> dict[str, float]:
    """`measure_rates` at sizes that fill the device."""
    if device.type == "cuda":
        return measure_rates(settings, device, copied=2**30, side=8192)
    return measure_rates(settings, device, copied=2**27, side=1024)


def seconds_of(function: Callable[[], Any], device: torch.device, steps: int) -> float:
    """Seconds that a call takes, of so many one after the other."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / steps


def kernel_seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median of the seconds that a short function takes on the device.

    On a GPU, 1 GiB is overwritten before each call: nothing is found in caches, and the call is enqueued while the GPU
    is still busy, so that Python's time does not count.
    """
    import torch

    function()  # compiles kernels
    if device.type != "cuda":
        return statistics.median(seconds_of(function, device, 1) for _ in range(repeats))
    cold = torch.empty(2**30, dtype=torch.uint8, device=device)
    pairs = []
    for _ in range(repeats):
        cold.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3


def process_memory() -> int | None:
    """The most bytes that this process has had in memory (peak RSS); None where the system does not count them."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---------------------------------------------------------------- one way of running the network


def path_of(way: Way, settings: Settings, device: torch.device) -> str:
    """What computes the depthwise layers: fused, triton, taps, reference; or that there are none."""
    import torch

    from lightning_csn.models.depthwise import choose_way

    if way.form in ("folded", "bf16"):
        from lightning_csn.models.fold import DTYPES, cannot_pack

        packs = cannot_pack(device.type, DTYPES["bf16" if way.form == "bf16" else "fp32"]) is None
        return "oneDNN, packed" if packs else "nn.Conv3d"
    if way.form == "int8":
        return "oneDNN, int8"
    if way.form.partition("-")[0] in EXPORTED:
        return way.form
    if not depthwise_layers(settings.architecture, settings.clip):
        return "no depthwise layers"
    dtype = getattr(torch, PRECISIONS[settings.precision])
    path = choose_way(way.backend, device.type, dtype, 5, (1, 3, 3, 3), (1, 1, 1))
    if path == "taps" and settings.kind == "infer":  # which differs in its gradients
        return "reference"
    return "fused" if path == "triton" and way.backend == "fused" else path


def depthwise_layers(architecture: str, clip: Sequence[int]) -> list[Layer]:
    """roofline's, without importing it for the parser."""
    from lightning_csn.models import roofline

    return roofline.depthwise_layers(architecture, clip)


def make_step(way: Way, settings: Settings, device: torch.device) -> Callable[[], Tensor]:
    """A function that runs one step of a fresh network on fixed clips and gives its loss, or its logits in inference.

    Call it inside `depthwise_backend(way.backend)`.
    """
    import torch
    import torch.nn.functional as F

    from lightning_csn.models.network import create_network

    torch.manual_seed(0)
    training = settings.kind == "train"
    form = torch.channels_last_3d if way.layout == "channels_last" else torch.contiguous_format
    network = create_network(settings.architecture, num_classes=NUM_CLASSES).to(device).to(memory_format=form)
    network.train(training).set_grad_checkpointing(bool(way.checkpointing), stages=way.checkpointing)
    if way.form != "trained":
        return answering(way.form, network.eval(), settings)
    clips = torch.randn(settings.batch, 3, *settings.clip).to(device, memory_format=form)
    labels = torch.randint(NUM_CLASSES, (settings.batch,)).to(device)
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


def answering(form: str, network: ResNet3D, settings: Settings) -> Callable[[], Tensor]:
    """A function that runs a pass of one of FORMS, on the CPU."""
    import torch

    from lightning_csn.models.fold import fold

    clips = torch.randn(settings.batch, 3, *settings.clip)
    if form.partition("-")[0] in EXPORTED:
        return exported(form, network, settings)
    if form == "compiled":
        from torch._inductor import config

        folded = fold(network, layout="channels_last")
        run = torch.compile(folded, dynamic=False)
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
        with config.patch(freezing=True), torch.no_grad():
            run(clips)
    else:
        noise = torch.randn(CALIBRATION, 3, *settings.clip) if form == "int8" else None
        run = fold(network, dtype=form if form in ("bf16", "int8") else "fp32", calibration=noise)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(clips)

    return forward


def exported(form: str, network: ResNet3D, settings: Settings) -> Callable[[], Tensor]:
    """A function that runs a pass of an exported file in its runtime."""
    import tempfile
    from pathlib import Path

    import torch

    from lightning_csn.clip import ClipSpec
    from lightning_csn.export import Quantisation, export
    from lightning_csn.module import SCRATCH_CLIP, LitCSN
    from lightning_csn.runner import load_runner

    frames, side, _ = settings.clip
    clip: ClipSpec = replace(SCRATCH_CLIP, frames=frames, short_side=side, crop=side, test_crop=side)
    model = LitCSN(settings.architecture, num_classes=NUM_CLASSES, clip=clip.to_dict())
    model.network = network
    with tempfile.TemporaryDirectory() as folder:
        to, int8 = EXPORTED[form.partition("-")[0]], None
        if form.endswith("int8"):
            noise = torch.randint(256, (CALIBRATION, 3, *settings.clip)).to(torch.uint8)
            int8 = Quantisation(list(noise), [(noise[0], None)], max_drop=100)
        file = Path(folder) / ("model.onnx" if to == "onnx" else "model.xml")
        written = export(model.eval(), file, to=to, int8=int8)
        runner = load_runner(next(file for file in written.files if file.suffix != ".bin"), "cpu")
    pixels = torch.randint(256, (settings.batch, 3, *settings.clip)).to(torch.uint8)
    return lambda: runner(pixels)


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


@contextmanager
def expected_failures(measured: Measured) -> Iterator[None]:
    """Not enough memory, or no compiler: the way is left out, with the reason."""
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        yield
    except BackendCompilerFailed as error:
        measured.error = f"torch.compile failed: {str(error).splitlines()[0]}"
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        measured.error = f"out of memory: {str(error).splitlines()[0]}"


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
            measured.memory_bytes = torch.cuda.max_memory_allocated(device) - before
        return measured, step
    return measured, None


def ways_of(settings: Settings, against: Sequence[str]) -> list[Way]:
    """Ours, and the plain ones that are eager."""
    ours = Way(
        "ours", settings.backend, settings.layout, settings.compile, settings.cuda_graphs, settings.checkpointing
    )
    forms = [Way(form, settings.backend, "channels_last", form=form) for form in settings.forms]
    return [ours, *forms] + [Way("plain eager", "reference", layout) for layout in LAYOUTS if "eager" in against]


def measure_network(
    settings: Settings, device: torch.device, *, against: Sequence[str], tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Every way in turns. `tell` hears what is going on."""
    import torch

    from lightning_csn.models.depthwise import depthwise_backend
    from lightning_csn.models.fold import keep_memory

    torch.compiler.reset()
    ready = []
    for way in ways_of(settings, against):
        tell(f"{way.name}, {way.layout}")
        ready.append(start(way, settings, device))
    if "compiled" in against:
        layout = settings.layout
        times = {}
        for measured, step in ready[1:]:
            if step is not None and measured.way.name == "plain eager":
                with depthwise_backend("reference"):
                    times[measured.way.layout] = seconds_of(step, device, 1)
        if times:
            layout = min(times, key=lambda name: times[name])
        way = Way("plain compiled", "reference", layout, settings.compile or "default")
        tell(f"{way.name}, {way.layout}")
        ready.append(start(way, settings, device))
    rates: dict[str, float] = {}
    for _ in range(settings.repeats):
        # In turns with the rest, as the machine may have been busy; the best is what it can do.
        found = rates_of(settings, device)
        rates = {name: max(rate, rates.get(name, 0.0)) for name, rate in found.items()}
        for measured, step in ready:
            if step is not None:
                with expected_failures(measured), depthwise_backend(measured.way.backend):
                    if device.type == "cpu":
                        keep_memory(not measured.way.name.startswith("plain"))
                        step()
                    measured.seconds.append(seconds_of(step, device, settings.steps))
    return report(settings, machine(device), rates, [measured for measured, _ in ready])


def floor_of(settings: Settings, rates: dict[str, float]) -> dict[str, float]:
    """What a step must move and compute at least, and the longer of the two times at the machine's rates.

    Forward: the floor of roofline.traffic, and the convolutions' multiply-adds; a training step is three times that.
    """
    from lightning_csn.models import roofline

    passes = settings.batch * (1 + BACKWARD if settings.kind == "train" else 1)
    moved = passes * roofline.traffic(settings.architecture, settings.clip).floor * settings.element_bytes
    layers = roofline.layers(settings.architecture, settings.clip)
    operations = passes * 2 * sum(layer.multiply_adds * layer.count for layer in layers)
    return {
        "bytes": moved,
        "operations": operations,
        "seconds": max(moved / rates["copy_bytes_per_second"], operations / rates["matrix_flops_per_second"]),
    }


def report(
    settings: Settings, where: dict[str, Any], rates: dict[str, float], ways: Sequence[Measured]
) -> dict[str, Any]:
    """Everything as plain values."""
    floor = floor_of(settings, rates)
    rows: list[dict[str, Any]] = []
    contiguous = [each for each in ways if each.way.name == "plain eager" and each.way.layout == "contiguous"]
    plain_seconds = contiguous[0].median if contiguous and contiguous[0].error is None else None
    for each in ways:
        row = {**asdict(each.way), "checkpointing": list(each.way.checkpointing), "path": each.path}
        row |= {"error": each.error, "peak_memory_bytes": each.memory_bytes, "seconds": each.seconds}
        if each.error is None:
            row |= {
                "ms_per_step": 1e3 * each.median,
                "clips_per_second": settings.batch / each.median,
                "share_of_copy": floor["bytes"] / each.median / rates["copy_bytes_per_second"],
                "share_of_matrix": floor["operations"] / each.median / rates["matrix_flops_per_second"],
                "times_floor": each.median / floor["seconds"],
                "times_plain": None if plain_seconds is None else plain_seconds / each.median,
            }
        rows.append(row)
    ours, ratios = next((each for each in ways if each.way.form == "folded"), ways[0]), {}
    for name in ("plain eager", "plain compiled"):
        plain = [each for each in ways if each.way.name == name and each.error is None]
        if plain and ours.error is None:
            best = min(plain, key=lambda each: each.median)
            memory = None
            if ours.memory_bytes is not None and best.memory_bytes is not None:
                memory = ours.memory_bytes / best.memory_bytes
            ratios[name] = {"layout": best.way.layout, "speed": best.median / ours.median, "memory": memory}
    return {
        "benchmark": settings.kind,
        "settings": {**asdict(settings), "clip": list(settings.clip), "checkpointing": list(settings.checkpointing)}
        | {"forms": list(settings.forms)},
        "machine": where,
        "rates": rates,
        "floor": floor,
        "ways": rows,
        "ratios": ratios,
        "process_peak_memory_bytes": None if settings.device.startswith("cuda") else process_memory(),
    }


# ---------------------------------------------------------------- every depthwise layer alone


def measure_layers(
    settings: Settings, device: torch.device, *, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Forward and backward of each kind of depthwise layer: ours, and nn.Conv3d in both layouts.

    Bytes: input and output once for the forward pass, and as many for each of the two gradients.
    """
    rates = rates_of(settings, device)
    rows = []
    totals: dict[str, float] = {"ours": 0.0, **dict.fromkeys(LAYOUTS, 0.0)}
    for layer in depthwise_layers(settings.architecture, settings.clip):
        tell(f"{layer.channels} channels, {layer.sizes_in} to {layer.sizes}")
        moved = layer.elements * settings.batch * settings.element_bytes
        ways = {"ours": (settings.backend, settings.layout), **{layout: ("reference", layout) for layout in LAYOUTS}}
        row: dict[str, Any] = {
            "channels": layer.channels,
            "sizes_in": list(layer.sizes_in),
            "sizes": list(layer.sizes),
            "count": layer.count,
            "bytes_forward": moved,
        }
        for name, (backend, layout) in ways.items():
            forward, backward = layer_seconds(layer, backend, layout, settings, device)
            totals[name] += layer.count * (forward + backward)
            row[name] = {
                "forward_us": 1e6 * forward,
                "backward_us": 1e6 * backward,
                "forward_share_of_copy": moved / forward / rates["copy_bytes_per_second"],
                "backward_share_of_copy": 2 * moved / backward / rates["copy_bytes_per_second"],
            }
        rows.append(row)
    return {
        "benchmark": "layers",
        "settings": {**asdict(settings), "clip": list(settings.clip), "checkpointing": []},
        "path": path_of(replace(ways_of(settings, ())[0], backend=unfused(settings.backend)), settings, device),
        "machine": machine(device),
        "rates": rates,
        "layers": rows,
        "total_ms": {name: 1e3 * seconds for name, seconds in totals.items()},
        "ratios": {"plain eager": {"speed": min(totals[layout] for layout in LAYOUTS) / totals["ours"]}},
    }


def unfused(backend: str) -> str:
    """A layer alone has no block around it that it could be fused with."""
    return "triton" if backend == "fused" else backend


def layer_seconds(
    layer: Layer, backend: str, layout: str, settings: Settings, device: torch.device
) -> tuple[float, float]:
    """Seconds of a layer's forward pass, and of both gradients together."""
    import torch

    from lightning_csn.models.depthwise import depthwise_backend, depthwise_conv3d

    x, weight, grad = layer_tensors(layer, layout, settings, device)
    x.requires_grad_()
    weight.requires_grad_()

    def forward() -> Tensor:
        with torch.no_grad():
            return depthwise_conv3d(x, weight, layer.stride)

    with depthwise_backend(backend):
        out = depthwise_conv3d(x, weight, layer.stride)
        return (
            kernel_seconds(forward, device, settings.repeats),
            kernel_seconds(
                lambda: torch.autograd.grad(out, (x, weight), grad, retain_graph=True), device, settings.repeats
            ),
        )


def layer_tensors(layer: Layer, layout: str, settings: Settings, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and a gradient of the output."""
    import torch

    dtype = getattr(torch, PRECISIONS[settings.precision])
    form = torch.channels_last_3d if layout == "channels_last" else torch.contiguous_format
    x, grad = (
        torch.randn(settings.batch, layer.channels, *shape, device=device).to(dtype).contiguous(memory_format=form)
        for shape in (layer.sizes_in, layer.sizes)
    )
    weight = torch.randn(layer.channels, 1, 3, 3, 3, device=device).to(dtype)
    return x, weight, grad


# ---------------------------------------------------------------- largest batch, tiles


def find_batches(settings: Settings, device: torch.device, *, against: Sequence[str]) -> dict[str, Any]:
    """The largest batch of which a step fits into the GPU's memory, for ours and for the plain eager ones."""
    import gc

    import torch

    rows = []
    for way in ways_of(settings, against):

        def fits(batch: int, way: Way = way) -> bool:
            torch.compiler.reset()  # after a few shapes torch.compile gives up and runs eagerly
            measured, step = start(way, replace(settings, batch=batch), device)
            done = step is not None
            del step
            gc.collect()
            torch.cuda.empty_cache()
            if measured.error is not None and not measured.error.startswith("out of memory"):
                raise InputError(f"{way.name}, {way.layout}: {measured.error}")
            return done

        rows.append({"name": way.name, "layout": way.layout, "largest_batch": largest(fits)})
    where = machine(device)
    return {"benchmark": "find-batch", "settings": asdict(settings), "machine": where, "ways": rows}


def largest(fits: Callable[[int], bool]) -> int:
    """The largest whole number that fits: doubled until one does not, then bisected. 0 if not even 1 does.

    >>> largest(lambda n: n <= 37)
    37
    """
    good, bad = 0, 1
    while fits(bad):
        good, bad = bad, 2 * bad
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def tune(settings: Settings, device: torch.device, *, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure the tiles of every kernel at every depthwise shape and keep the fastest, for all later runs."""
    from lightning_csn.models.depthwise import unsupported

    layers = depthwise_layers(settings.architecture, settings.clip)
    x, weight, _ = layer_tensors(layers[0], settings.layout, replace(settings, batch=1), device)
    reason = unsupported(device.type, x.dtype, 5, tuple(weight.shape[1:]), layers[0].stride)
    if reason is not None:
        raise InputError(f"--tune: {reason}")
    from lightning_csn.models import launch

    rows = []
    for layer in layers:
        for problem, function in launches(layer, settings, device):
            tell(f"{problem.kernel}, {layer.channels} channels, {layer.sizes_in} to {layer.sizes}")
            times = launch.tune(function, problem, device, lambda f: 1e3 * kernel_seconds(f, device, settings.repeats))
            default, best = next(iter(times)), min(times, key=lambda tile: times[tile])
            rows.append(
                {
                    "kernel": problem.kernel,
                    "channels": layer.channels,
                    "sizes": list(layer.sizes),
                    "default_ms": times[default],
                    "best_ms": times[best],
                    "tile": asdict(best),
                }
            )
    where, path = machine(device), str(launch.cache_path())
    return {"benchmark": "tune", "settings": asdict(settings), "machine": where, "file": path, "kernels": rows}


def launches(layer: Layer, settings: Settings, device: torch.device) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """The kernels that a layer runs in training, each as a function of the tile."""
    import torch

    from lightning_csn.models import launch

    x, weight, grad = layer_tensors(layer, settings.layout, settings, device)
    out, of_x = torch.empty_like(grad), torch.empty_like(x)
    strides, last = layer.stride, settings.layout == "channels_last"
    ones = torch.ones(layer.channels, device=device)
    norm = (ones, ones, True)

    kernels: dict[str, Callable[..., Any]] = {
        "convolve": lambda tile: launch.convolve(x, weight, out, strides, tile=tile),
        "weight_gradient": lambda tile: launch.weight_gradient(grad, x, strides, tile=tile),
    }
    if tuple(strides) != (1, 1, 1):  # else it is a convolution
        kernels["input_gradient"] = lambda tile: launch.input_gradient(grad, weight, of_x, strides, tile=tile)
    if last:  # fused blocks know no other layout
        kernels["norm_convolve"] = lambda tile: launch.convolve(
            x, weight, out, strides, norm=norm, statistics=True, tile=tile
        )
        kernels["norm_weight_gradient"] = lambda tile: launch.weight_gradient(grad, x, strides, norm=norm, tile=tile)
    for name, function in kernels.items():
        yield launch.problem_of(name, grad, strides, last), function


# ---------------------------------------------------------------- text


def as_text(result: dict[str, Any]) -> str:
    """A result as a person reads it."""
    settings, where = result["settings"], result["machine"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("torch", "triton", "cuda") if where[name])
    clip = "x".join(map(str, settings["clip"]))
    head = [
        f"{settings['architecture']}, clips {clip}, batch {settings['batch']}, {settings['precision']}, "
        f"medians of {settings['repeats']}",
        f"{where['device']} ({settings['device']}, {where['threads']} threads), {versions}",
    ]
    if "rates" in result:
        rates = result["rates"]
        head.append(
            f"measured here: copy {rates['copy_bytes_per_second'] / 1e9:.1f} GB/s, "
            f"matrix product {rates['matrix_flops_per_second'] / 1e12:.3f} TFLOP/s"
        )
    body = {"layers": layers_text, "find-batch": batches_text, "tune": tiles_text}.get(result["benchmark"], ways_text)
    return "\n".join([*head, *body(result)])


def ways_text(result: dict[str, Any]) -> list[str]:
    """The table of `measure_network`."""
    from lightning_csn.cli import table

    settings, floor, unit = result["settings"], result["floor"], "step" if result["benchmark"] == "train" else "pass"
    rows = [
        (
            "WAY",
            "PATH",
            "LAYOUT",
            "CLIPS/S",
            f"MS/{unit.upper()}",
            "X PLAIN",
            "X FLOOR",
            "OF COPY",
            "OF MATRIX",
            "PEAK MEMORY",
        )
    ]
    for way in result["ways"]:
        name = way["name"] + (", CUDA graph" if way["cuda_graphs"] else "")
        name += f", compiled ({way['compile']})" if way["compile"] and way["name"] == "ours" else ""
        path = "nn.Conv3d" if way["path"] == "reference" else way["path"]
        if way["error"] is not None:
            rows.append((name, path, way["layout"], "-", "-", "-", "-", "-", "-", way["error"]))
            continue
        numbers = (
            f"{way['clips_per_second']:.2f}",
            f"{way['ms_per_step']:.2f}",
            "-" if way["times_plain"] is None else f"{way['times_plain']:.2f}",
            f"{way['times_floor']:.2f}",
            f"{way['share_of_copy']:.0%}",
            f"{way['share_of_matrix']:.0%}",
            gigabytes(way["peak_memory_bytes"]),
        )
        rows.append((name, path, way["layout"], *numbers))
    lines = [f"floor {1e3 * floor['seconds']:.2f} ms a {unit}, counted, at these rates", "", table(rows), ""]
    for name, ratio in result["ratios"].items():
        memory = "" if ratio["memory"] is None else f", {ratio['memory']:.2f} of its peak memory"
        ours = "folded" if "folded" in settings["forms"] else "ours"
        lines.append(f"{ours} against {name} ({ratio['layout']}): {ratio['speed']:.2f} times the clips/s{memory}")
    if any("int8" in form for form in settings["forms"]):
        lines.append(
            "int8: calibrated on noise, for its speed alone; what it costs in accuracy 'export --int8' measures"
        )
    if result["process_peak_memory_bytes"] is not None:
        lines.append(f"peak memory of the process, all ways together: {gigabytes(result['process_peak_memory_bytes'])}")
    return lines


def layers_text(result: dict[str, Any]) -> list[str]:
    """The table of `measure_layers`."""
    from lightning_csn.cli import table

    names = {"ours": f"OURS ({result['path']})", **{layout: f"CONV3D {layout.upper()}" for layout in LAYOUTS}}
    rows = [("CHANNELS", "T, H, W", "OUTPUT", "LAYERS", *(f"{name}: FORWARD, BACKWARD" for name in names.values()))]
    for row in result["layers"]:
        cells = [
            f"{row[name]['forward_us']:.1f} us {row[name]['forward_share_of_copy']:.0%}, "
            f"{row[name]['backward_us']:.1f} us {row[name]['backward_share_of_copy']:.0%}"
            for name in names
        ]
        shapes = (", ".join(map(str, row[name])) for name in ("sizes_in", "sizes"))
        rows.append((str(row["channels"]), *shapes, str(row["count"]), *cells))
    totals = ", ".join(f"{name} {value:.2f} ms" for name, value in result["total_ms"].items())
    return [
        "shares are of the copy's rate",
        "",
        table(rows),
        "",
        f"all depthwise layers, forward and backward: {totals}",
        f"ours against the better layout of nn.Conv3d: {result['ratios']['plain eager']['speed']:.2f} times as fast",
    ]


def batches_text(result: dict[str, Any]) -> list[str]:
    """The table of `find_batches`."""
    from lightning_csn.cli import table

    rows = [(way["name"], way["layout"], str(way["largest_batch"])) for way in result["ways"]]
    return ["", table([("WAY", "LAYOUT", "LARGEST BATCH"), *rows])]


def tiles_text(result: dict[str, Any]) -> list[str]:
    """The table of `tune`."""
    from lightning_csn.cli import table

    rows = [("KERNEL", "CHANNELS", "OUTPUT", "DEFAULT", "BEST", "TILE")]
    for row in result["kernels"]:
        tile = ", ".join(f"{name} {value}" for name, value in row["tile"].items())
        size = ", ".join(map(str, row["sizes"]))
        times = (f"{row[name]:.4f} ms" for name in ("default_ms", "best_ms"))
        rows.append((row["kernel"], str(row["channels"]), size, *times, tile))
    return ["", table(rows), "", f"kept in {result['file']}"]


def gigabytes(count: int | None) -> str:
    """10^9 bytes, or a dash.

    >>> gigabytes(12_340_000_000)
    '12.34 GB'
    """
    return "-" if count is None else f"{count / 1e9:.2f} GB"
