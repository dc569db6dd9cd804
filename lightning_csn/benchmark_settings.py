"""What `lightning-csn benchmark train` and `infer` are asked for: their options, and the settings that these make.

torch is imported where something is checked, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightning_csn.errors import InputError, need

if TYPE_CHECKING:
    import torch

    from lightning_csn.models.roofline import Layer

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}  # of an activation
LAYOUTS = ("contiguous", "channels_last")
BACKENDS = ("auto", "reference", "taps", "triton", "fused")  # of depthwise.py, which imports torch
MODES = ("default", "reduce-overhead", "max-autotune")
ARCHITECTURE, CLIP, NUM_CLASSES = "ircsn_152", (32, 224, 224), 400  # of the network, where nothing is said
MOST_ELEMENTS = 10**12  # of a batch; more fits nowhere
FORMS = (  # of a network that only answers
    *("folded", "compiled", "bf16", "int8", "onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8"),
)
# What the forms need that are files of another runtime.
NEEDED = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
NEEDED |= {f"{name}-int8": (*packages, "nncf") for name, packages in NEEDED.items()}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    clip: frames, height, width. model: what --model names: weights, which all ways then have, or an exported file,
    which is one more way. runtime: of such a file, "ONNX Runtime 1.32, fp32". file_precision: what it computes in.
    counted: whether PyTorch runs such a file, and counts its memory. network: options of create_network.
    """

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
    model: str | None = None
    runtime: str | None = None
    file_precision: str = "fp32"
    counted: bool = True
    num_classes: int = NUM_CLASSES
    network: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, which JSON gives back as they are."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def element_bytes(self) -> int:
        """Of an activation."""
        return ELEMENT_BYTES[self.precision]


# ---------------------------------------------------------------- options


def train_options(parser: ArgumentParser) -> None:
    """Options of `benchmark train`."""
    common_options(parser)
    training_options(parser)
    parser.epilog = EPILOGS["train"]


def infer_options(parser: ArgumentParser) -> None:
    """Options of `benchmark infer`."""
    common_options(parser)
    parser.add_argument(
        "--model",
        metavar="NAME|FILE|FOLDER|ADDRESS",
        help="a file that 'lightning-csn export' wrote (.onnx, .xml, .pt2), to measure beside the network that it was "
        "made of; or weights, for all ways to have. It decides --architecture and, where not given, --clip",
    )
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
    from lightning_csn.terminal import positive

    parser.add_argument("--architecture", metavar="NAME", help=f"default {ARCHITECTURE}")
    parser.add_argument("--clip", type=sizes, metavar="TxHxW", help=f"default {shape_text(CLIP)}")
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
    parser.set_defaults(checkpointing=[], layers=False, find_batch=False, tune=False, plot=None, model=None)


def training_options(parser: ArgumentParser) -> None:
    """Options of training alone."""
    parser.add_argument(
        "--checkpointing", nargs="*", type=int, default=[], metavar="STAGE", help="stages 1 to 4 of our network"
    )
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--layers", action="store_true", help="instead: every depthwise layer alone")
    others.add_argument("--find-batch", action="store_true", help="instead: the largest batch that fits on the GPU")
    others.add_argument(
        "--tune",
        action="store_true",
        help="instead: choose and keep the kernels' tiles for these shapes, and whether blocks are fused",
    )


EPILOGS = {
    "train": (
        "The floor is what a step moves and computes when all its blocks are fused, as roofline.py counts it, at the\n"
        "rates of a copy and of a matrix product, measured in the same run: bytes of all blocks, forward and back\n"
        "(stem, pooling and head not counted), and three times the operations of all convolutions. OF COPY and OF\n"
        "MATRIX are those over the step's time, as shares of the rates. Memory: of tensors, on a GPU (with CUDA\n"
        "graphs their recording too); on a CPU of the process. X PLAIN: how many times as fast as the contiguous\n"
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
        "A file of --model takes the same clips as pixels, and runs as classify runs it. The networks beside it have\n"
        "its architecture, in fp32, and weights of their own: its are in the file alone.\n"
        "X PLAIN: how many times as fast as the contiguous plain network. X FLOOR, OF COPY and OF MATRIX are of the\n"
        "row's own type: the bytes of its elements, and the rate of products in that type; - where none is measured.\n"
        "On a CPU such a product is PyTorch's or oneDNN's, whichever is faster; our forms keep memory from pass to\n"
        "pass, as the commands do, and the plain networks give it back, as programs do that do not ask for more.\n\n"
        "examples:\n"
        "  lightning-csn benchmark infer --architecture ircsn_50 --batch 1 --device cpu --clip 16x112x112 --repeats 3\n"
        "  lightning-csn benchmark infer --model model.onnx --batch 1 --forms folded --against eager\n"
        "  lightning-csn benchmark infer --model runs/last.ckpt --forms folded openvino int8"
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


def shape_text(clip: Sequence[int]) -> str:
    """As `sizes` takes it.

    >>> shape_text((32, 224, 224))
    '32x224x224'
    """
    return "x".join(map(str, clip))


# ---------------------------------------------------------------- settings


def check(args: Namespace) -> tuple[Settings, torch.device]:
    """The settings and the device, or an InputError that says why they make no sense."""
    import torch

    from lightning_csn.models.depthwise import unsupported
    from lightning_csn.models.network import ARCHITECTURES, list_networks
    from lightning_csn.runner import choose_device

    device = choose_device(args.device, args.model)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {args.device}: only cpu and cuda are measured")
    need_packages(args, device)
    if args.architecture not in (None, *ARCHITECTURES):
        raise InputError(f"no network {args.architecture!r}; there are: {', '.join(list_networks())}")
    named = Named(ARCHITECTURE, CLIP) if args.model is None else read_model(args, device)
    architecture, clip = args.architecture or named.architecture, args.clip or named.clip
    gpu = device.type == "cuda"
    precision = args.precision or ("bf16" if gpu and named.runtime is None else "fp32")
    if precision == "fp16" and not gpu:
        raise InputError("--precision fp16 is for GPUs; a CPU is measured in fp32 or bf16")
    if args.find_batch and not gpu:
        raise InputError("--find-batch needs a GPU: a CPU that runs out of memory takes other programs with it")
    if args.cuda_graphs and not gpu:
        raise InputError("--cuda-graphs needs a GPU")
    if args.backend in ("triton", "fused"):  # asked for by name: what would run in its place is not what is measured
        dtype = getattr(torch, PRECISIONS[precision])
        reason = unsupported(device.type, dtype, 5, (1, 3, 3, 3), (1, 1, 1))
        if reason is not None:
            raise InputError(f"--backend {args.backend}: {reason}; without it the quickest way on this machine runs")
    if args.cuda_graphs and (args.compile or precision == "fp16"):
        raise InputError(
            "--cuda-graphs records eager steps in bf16 or fp32 (the loss scaling of fp16 waits for the GPU); "
            "with torch.compile: --compile reduce-overhead"
        )
    if 3 * math.prod(clip) * args.batch > MOST_ELEMENTS:
        raise InputError(f"--clip and --batch: {args.batch} such clips have more than {MOST_ELEMENTS:,} values")
    if not set(args.checkpointing) <= {1, 2, 3, 4}:
        raise InputError(f"--checkpointing takes stages 1 to 4, got {' '.join(map(str, args.checkpointing))}")
    if (args.layers or args.tune) and (args.compile or args.cuda_graphs or args.checkpointing):
        raise InputError(
            "--layers and --tune run layers and eager steps: neither takes --compile, --cuda-graphs or --checkpointing"
        )
    if (args.layers or args.tune) and not depthwise_layers(architecture, clip):
        raise InputError(f"{architecture} has no depthwise layers; the ircsn and ipcsn networks do")
    if args.kind == "train" and not args.layers:
        from lightning_csn.models import roofline

        places = min(math.prod(layer.sizes) for layer in roofline.layers(architecture, clip))
        if places * (1 if args.find_batch else args.batch) < 2:
            raise InputError("--clip and --batch: BatchNorm needs more than one value per channel; take a larger clip")
    settings = Settings(
        kind=args.kind,
        architecture=architecture,
        clip=clip,
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
        forms=forms_of(args, clip, device, precision) if args.kind == "infer" else (),
        model=args.model,
        runtime=named.runtime,
        file_precision=named.precision,
        counted=named.counted,
        num_classes=named.num_classes,
        network=named.network,
    )
    return settings, device


def need_packages(args: Namespace, device: torch.device) -> None:
    """InputError with all that is to be installed for a benchmark, of what can run on this device."""
    from lightning_csn.runner import packages_of

    wanted: dict[str, tuple[str, ...]] = {} if args.model is None else {args.model: packages_of(args.model)}
    if args.kind == "infer" and device.type == "cpu" and args.precision in (None, "fp32"):
        wanted |= {f"--forms {name}": NEEDED.get(name, ()) for name in args.forms or ()}
    if args.plot is not None:
        wanted["--plot"] = ("matplotlib",)
    need(wanted)


@dataclass(frozen=True)
class Named:
    """What --model says of the settings, by their names."""

    architecture: str
    clip: tuple[int, int, int]
    num_classes: int = NUM_CLASSES
    network: dict[str, Any] = field(default_factory=dict)
    runtime: str | None = None
    precision: str = "fp32"
    counted: bool = True


def read_model(args: Namespace, device: torch.device) -> Named:
    """What --model says of itself; InputError where other options say something else."""
    from lightning_csn.models import checkpoints
    from lightning_csn.runner import ExportRunner, ProgramRunner, is_export, load_runner

    if is_export(args.model):
        runner = load_runner(args.model, device)  # once more where it is measured, and not kept until then
        assert isinstance(runner, ExportRunner)
        record, own = runner.record, (runner.clip.frames, runner.clip.test_crop, runner.clip.test_crop)
        found = Named(record.architecture, own, record.num_classes, record.network, runner.form, record.precision)
        found = replace(found, counted=isinstance(runner, ProgramRunner))
        if args.clip is not None:
            try:
                runner.check_size((3, *args.clip))
            except InputError as error:
                raise InputError(f"--clip {shape_text(args.clip)}: {error}") from error
        if args.precision not in (None, "fp32"):
            raise InputError(
                f"--precision {args.precision}: {args.model} computes in {record.precision}, and is measured beside "
                "networks in fp32; leave --precision out"
            )
    else:
        loaded = checkpoints.load(args.model)
        network, clip = loaded.network, args.clip
        if network.options["in_channels"] != 3:
            raise InputError(f"{args.model} takes clips of {network.options['in_channels']} colours; 3 are measured")
        if clip is None:
            frames, side = (loaded.checkpoint.clip.get(name) for name in ("frames", "test_crop"))
            if frames is None or side is None:
                raise InputError(
                    f"{args.model} does not say how clips must look: add --clip {shape_text(CLIP)}, or other"
                )
            clip = (frames, side, side)
        found = Named(network.architecture, clip, network.num_classes or NUM_CLASSES, network.trunk_options)
    if args.architecture not in (None, found.architecture):
        raise InputError(
            f"--architecture {args.architecture}: {args.model} is of {found.architecture}; leave --architecture out"
        )
    return found


def forms_of(args: Namespace, clip: Sequence[int], device: torch.device, precision: str) -> tuple[str, ...]:
    """The quicker forms to measure; InputError for one that cannot be."""
    from importlib.util import find_spec

    from lightning_csn.models.fold import cannot_quantise

    suits = device.type == "cpu" and precision == "fp32"
    reasons: dict[str, str | None] = dict.fromkeys(FORMS, None if suits else "they are measured on a CPU in fp32")
    if suits:
        reasons["int8"] = cannot_quantise("cpu")
        if clip[1] != clip[2]:
            reasons |= dict.fromkeys(NEEDED, "files are exported for square clips")
    if args.forms is None:
        installed = [name for name in FORMS if all(map(find_spec, NEEDED.get(name, ())))]
        return tuple(name for name in installed if reasons[name] is None)
    for name in args.forms:
        if reasons[name] is not None:
            raise InputError(f"--forms {name}: {reasons[name]}")
    return tuple(name for name in FORMS if name in args.forms)


def depthwise_layers(architecture: str, clip: Sequence[int], **network: Any) -> list[Layer]:
    """roofline's, without importing it for the parser."""
    from lightning_csn.models import roofline

    return roofline.depthwise_layers(architecture, clip, **network)
