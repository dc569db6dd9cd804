"""Runners: a network ready to answer, whatever it is kept in: weights, or a file that `lightning-csn export` wrote.

    load_runner("ircsn_152_ig65m")  load_runner("my_weights/")  load_runner("runs/last.ckpt")     PyTorch
    load_runner("model.onnx")       ONNX Runtime, nothing of the network is built or loaded in PyTorch
    load_runner("model.xml")        OpenVINO, with model.bin beside it
    load_runner("model.pt2")        torch.export's program, without the Python code of the network

    runner = load_runner(source, device)
    runner.clip, runner.classes, runner.num_classes, runner.multi_label
    logits = runner(clips)          uint8 (N, C, T, H, W), as decoded, to float32 (N, K); N is free, 0 too

An exported file carries a record, as JSON, of what cannot be seen from its graph: ExportRecord.

Shapes: N clips, C channels, T frames, H x W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lightning_csn.clip import ClipSpec, clip_values
from lightning_csn.errors import InputError, need
from lightning_csn.models.checkpoints import Checkpoint, Loaded
from lightning_csn.models.pixels import colours, lay_out_weights, normalised

if TYPE_CHECKING:
    import openvino

    from lightning_csn.module import LitCSN

_log = logging.getLogger(__name__)

RECORD_KEY = "lightning_csn"  # of the record among an exported file's metadata
RECORD_FILE = "lightning_csn.json"  # of the record inside a .pt2, which is a zip archive
UNSEALED = "0" * 64  # in the place of the hash of a file, in the file itself
INPUT, OUTPUT = "clips", "logits"  # of every exported graph
DYNAMIC = ("length", "size")  # what a file may leave open, apart from the number of clips


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """What an exported file says of itself.

    clip: fields of ClipSpec: how clips must look. With `normalised` "inside" the graph takes the pixels, uint8, and
        subtracts mean and divides by std itself; with "outside" it takes what came of that, float32.
    dynamic: which of "length" and "size" are free, and from which on; the number of clips always is.
    precision: "fp32", or "int8" for weights and activations that were quantised.
    network: options of the network, which its graph has built in.
    versions: of what wrote the file, and of the operator set.
    checked: how far the file's logits were from the trained network's before it was put in place.
    sha256: of the file, with UNSEALED in the place of this, and then of the file beside it that has its weights; see
        `seal`. None in a .pt2, a zip archive, which has checksums of its own.
    """

    architecture: str
    num_classes: int
    clip: dict[str, Any]
    classes: list[str] | None = None
    multi_label: bool = False
    normalised: str = "outside"
    dynamic: dict[str, int] = field(default_factory=dict)
    precision: str = "fp32"
    network: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    checked: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | None, where: str) -> ExportRecord:
        """The record of a file; InputError where there is none, or one of another kind."""
        if not text:
            raise InputError(f"{where}: the file does not say how clips must look; 'lightning-csn export' writes such")
        try:
            values = json.loads(text)
            if odd := set(values) ^ {spec.name for spec in dataclasses.fields(cls)}:
                raise InputError(f"{', '.join(sorted(odd))} missing or unknown")
            ClipSpec.from_dict(values["clip"])
        except (TypeError, ValueError) as error:  # no JSON, no fields, and InputError
            raise InputError(f"{where}: the record inside is of another version or program: {error}") from error
        return cls(**values)


class Runner:
    """A network that answers. Made by `load_runner`.

    source: what it was loaded from. clip: how clips must look. classes: names of the K outputs; None where they have
    none. multi_label: whether an output is a yes or no of its own. device: where the logits lie. form: what runs, for
    a person: "ONNX Runtime 1.32, fp32".
    """

    source: str
    clip: ClipSpec
    classes: list[str] | None
    num_classes: int
    multi_label: bool
    device: torch.device
    form: str

    def __call__(self, clips: Tensor) -> Tensor:
        """Logits, float32 (N, K), of clips, uint8 (N, C, T, H, W) on any device. Raises InputError for others."""
        if clips.dtype != torch.uint8 or clips.ndim != 5:
            kind = str(clips.dtype).removeprefix("torch.")
            raise InputError(f"clips must be uint8 (N, C, T, H, W), got {kind} {tuple(clips.shape)}")
        if len(clips) == 0:
            return torch.empty(0, self.num_classes, device=self.device)
        with torch.inference_mode():
            return self._run(clips).float()

    def _run(self, clips: Tensor) -> Tensor:
        raise NotImplementedError


class NetworkRunner(Runner):
    """A model of PyTorch as it is now, on the device where it is: in its quickest form, or with `exact` as trained."""

    def __init__(self, model: LitCSN, source: str = "model", *, exact: bool = False) -> None:
        self.source = source
        self.clip, self.classes = model.clip, model.classes
        self.num_classes, self.multi_label = model.num_classes, model.multi_label
        self.device = model.device
        self.form = f"PyTorch {torch.__version__}" + (", exact" if exact else "")
        self._model, self._exact = model.eval(), exact
        lay_out_weights(model.network, model.device)

    def _run(self, clips: Tensor) -> Tensor:
        network = self._model.network if self._exact else self._model.inference_network()
        return network(self._model.normalise(clips.to(self.device)))


class ExportRunner(Runner):
    """An exported file. Its kinds say how a prepared batch runs.

    runs_on: the device that does the work; clips and logits may lie elsewhere.
    """

    def __init__(self, path: Path, record: ExportRecord, device: torch.device) -> None:
        self.path, self.source = path, str(path)
        self.record = record
        self.runs_on = device
        self.clip = ClipSpec.from_dict(record.clip)
        self.classes = record.classes
        self.num_classes, self.multi_label = record.num_classes, record.multi_label
        self.device = device
        self._mean, self._std = colours(self.clip, device)

    def _run(self, clips: Tensor) -> Tensor:
        self.check_size(clips.shape[1:])
        clips = clips.to(self.device)
        if self.record.normalised == "outside":
            clips = normalised(clips, self._mean, self._std)
        return self._run_prepared(clips.contiguous())

    def check_size(self, shape: Sequence[int]) -> None:
        """InputError unless the graph takes clips of this shape: C, T, H, W."""
        spec, free, (channels, length, *size) = self.clip, self.record.dynamic, shape
        fits = channels == 3
        fits &= length >= free["length"] if "length" in free else length == spec.frames
        fits &= min(size) >= free["size"] if "size" in free else size == [spec.test_crop, spec.test_crop]
        if not fits:
            frames = f"{free['length']} or more" if "length" in free else f"{spec.frames}"
            sides = f"{free['size']} or more" if "size" in free else f"{spec.test_crop}"
            raise InputError(
                f"{self.source} was exported for clips of 3 colours, {frames} frames and sides of {sides} pixels, got "
                f"{' x '.join(map(str, shape))}; --dynamic length --dynamic size of 'export' leave both open"
            )

    def _run_prepared(self, clips: Tensor) -> Tensor:
        raise NotImplementedError


class OnnxRunner(ExportRunner):
    """model.onnx, by ONNX Runtime."""

    def __init__(self, path: Path, device: torch.device) -> None:
        need({path: packages_of(path)})
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type)
        if provider not in onnxruntime.get_available_providers():
            raise InputError(f"{path}: this ONNX Runtime cannot run on {device.type}; --device cpu does")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; what it thinks of the graph is of no use to whoever runs it
        chosen = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[chosen])
        except tuple(getattr(errors, name) for name in ONNX_ERRORS) as error:
            raise InputError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        record = ExportRecord.from_json(metadata.get(RECORD_KEY), str(path))
        check_seal(path, record)
        super().__init__(path, record, torch.device("cpu"))  # where batches are made; it moves them itself
        self.runs_on = device
        self.form = f"ONNX Runtime {onnxruntime.__version__}, {record.precision}"

    def _run_prepared(self, clips: Tensor) -> Tensor:
        return torch.from_numpy(self._session.run([OUTPUT], {INPUT: clips.numpy()})[0])


@cache
def openvino_core() -> openvino.Core:
    """The one for this process.

    Each Core that runs something on a CPU puts a stack of its own in place for signals, and the former one back at its
    end. Where the first of two ends before the second, what is put back is no more, and the next signal, such as that
    of a child process that has ended, is the end of the process (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


class OpenvinoRunner(ExportRunner):
    """model.xml and model.bin, by OpenVINO on the CPU."""

    def __init__(self, path: Path, device: torch.device) -> None:
        need({path: packages_of(path)})
        import openvino

        if device.type != "cpu":
            raise InputError(f"{path}: OpenVINO runs here on the cpu, not on {device.type}")
        with path.open("rb") as file:
            if not file.read(64).lstrip().startswith(b"<"):  # OpenVINO would try all other formats, and say so
                raise InputError(
                    f"{path}: this is no file of OpenVINO, which is XML; 'lightning-csn export' writes such"
                )
        if not path.with_suffix(".bin").is_file():
            raise InputError(f"{path}: {path.with_suffix('.bin').name} with the weights is not beside it")
        core = openvino_core()
        try:
            model = core.read_model(path)
        except RuntimeError as error:
            raise InputError(
                f"{path}: OpenVINO cannot load it; it or {path.with_suffix('.bin').name} is not whole, or they are of "
                f"two exports: {first_line(error)}"
            ) from error
        text = model.get_rt_info([RECORD_KEY]).astype(str) if model.has_rt_info([RECORD_KEY]) else None
        record = ExportRecord.from_json(text, str(path))
        check_seal(path, record)
        super().__init__(path, record, device)
        self.form = f"OpenVINO {openvino.__version__.split('-')[0]}, {record.precision}"
        options = {
            "INFERENCE_PRECISION_HINT": "f32",  # where the processor has bfloat16 units, OpenVINO would round to that
            "PERFORMANCE_HINT": "LATENCY",  # all threads work on one batch
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._model = core.compile_model(model, "CPU", options)

    def _run_prepared(self, clips: Tensor) -> Tensor:
        return torch.from_numpy(self._model(clips.numpy())[0].copy())


class ProgramRunner(ExportRunner):
    """model.pt2, by torch.export's interpreter on any device."""

    def __init__(self, path: Path, device: torch.device) -> None:
        import torch.export

        super().__init__(path, ExportRecord.from_json(read_inside(path), str(path)), device)
        try:
            program = torch.export.load(path)
        except (RuntimeError, ValueError, OSError, LookupError, TypeError, AssertionError, UnpicklingError) as error:
            raise InputError(  # torch looks at nothing before it uses it
                f"{path}: torch {torch.__version__} cannot load it; it is not whole, or of another version of torch: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        self.form = f"torch.export, PyTorch {torch.__version__}, {self.record.precision}"
        self._module = program.module().to(device)

    def _run_prepared(self, clips: Tensor) -> Tensor:
        return self._module(clips)


class ExportedNetwork(nn.Module):
    """An exported file in the place of a LitCSN's network: pixels, uint8 (N, C, T, H, W), to logits (N, K).

    It has no weights that could be trained. architecture, options and num_classes are those of what was exported.
    """

    sha256: Tensor

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        runner = load_runner(path, "cpu")
        assert isinstance(runner, ExportRunner)
        self.runner = runner
        self._told = False  # where it runs
        self.record = runner.record
        self.architecture, self.num_classes = self.record.architecture, self.record.num_classes
        self.options = {"num_classes": self.num_classes, **self.record.network}
        digest = hash_files(runner.path, self.record.sha256 or UNSEALED)
        # A tensor, so that whatever tells networks apart by their tensors tells files apart.
        self.register_buffer("sha256", torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8))

    def run_on(self, device: str) -> None:
        """Run on this device from now on; "auto" as `load_runner` says. InputError where its runtime cannot."""
        if choose_device(device, self.runner.path) == self.runner.runs_on:
            return
        runner = load_runner(self.runner.path, device)
        assert isinstance(runner, ExportRunner)
        self.runner = runner

    def forward(self, clips: Tensor) -> Tensor:
        """Logits, float32 (N, K), on the device of the clips.

        A .pt2 runs on that device; other files where they were loaded for, which is said where it is another kind.
        """
        if clips.device != self.runner.runs_on and is_program(self.runner.path):
            self.run_on(str(clips.device))
        if clips.device.type != self.runner.runs_on.type and not self._told:
            self._told = True
            _log.warning("%s runs on the %s, not on %s", self.runner.source, self.runner.runs_on.type, clips.device)
        return self.runner(clips).to(clips.device)

    def set_grad_checkpointing(self, stages: Sequence[int] = ()) -> None:
        """For training, which an exported file is not for: InputError for any stages."""
        if stages:
            raise InputError(f"{self.runner.source} is an exported file, without layers to checkpoint")

    @property
    def trunk_options(self) -> dict[str, Any]:
        """As of the network that was exported."""
        return dict(self.record.network)


def load_exported(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    clip: Mapping[str, Any] | ClipSpec | None = None,
    **network_options: Any,
) -> Loaded:
    """An exported file for LitCSN, as checkpoints.load gives weights.

    Raises InputError for what cannot be changed any more: the head, options of the network, mean and std.
    """
    network = ExportedNetwork(path)
    record = network.record
    if num_classes not in (None, record.num_classes) or (classes is not None and list(classes) != record.classes):
        raise InputError(f"{path} is an exported file: its {record.num_classes} classes cannot be changed")
    if network_options:
        raise InputError(f"{path} is an exported file: its network has no options ({', '.join(network_options)})")
    spec = ClipSpec.from_dict(clip_values(clip), base=network.runner.clip)
    for name in ("mean", "std"):
        if getattr(spec, name) != getattr(network.runner.clip, name):
            raise InputError(f"{path} is an exported file: its {name} {record.clip[name]} cannot be changed")
    checkpoint = Checkpoint(
        architecture=record.architecture,
        num_classes=record.num_classes,
        classes=record.classes,
        clip=spec.to_dict(),
        network=record.network,
        multi_label=record.multi_label,
        sources=[str(path)],
    )
    return Loaded(cast(Any, network), checkpoint)


# What ONNX Runtime raises for a file that it cannot run; they have no base of their own.
ONNX_ERRORS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")

KINDS: Mapping[str, type[OnnxRunner | OpenvinoRunner | ProgramRunner]] = {
    ".onnx": OnnxRunner,
    ".xml": OpenvinoRunner,
    ".pt2": ProgramRunner,
}


def refuse_exact(source: object, exact: bool) -> None:
    """InputError where an exported file is to run as it was trained."""
    if exact and is_export(source):
        raise InputError(f"--exact: {source} is an exported file, which has one form only; name the weights instead")


def is_export(source: object) -> bool:
    """Whether a source is a file of an exported network, by its ending.

    >>> is_export("model.onnx"), is_export("model.xml"), is_export("ircsn_152_ig65m")
    (True, True, False)
    """
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in KINDS


def packages_of(source: object) -> tuple[str, ...]:
    """The packages that run a source, if it is an exported file that is there: beside torch, which may be missing."""
    if not is_export(source) or not Path(str(source)).expanduser().is_file():
        return ()
    return {".onnx": ("onnxruntime",), ".xml": ("openvino",)}.get(Path(str(source)).suffix.lower(), ())


def need_to_answer(source: object, output: str | None) -> None:
    """InputError with all that is to be installed where a source and the file of its answers both need packages."""
    packages = packages_of(source)
    if packages and output is not None and output.lower().endswith(".parquet"):
        need({source: packages, output: ("pyarrow",)})


def is_program(source: object) -> bool:
    """Whether a source is a file of torch.export, which runs on any device that PyTorch has.

    >>> is_program("model.PT2"), is_program("model.onnx"), is_program(None)
    (True, False, False)
    """
    return is_export(source) and str(source).lower().endswith(".pt2")


def load_runner(source: str | os.PathLike[str], device: str | torch.device = "auto", *, exact: bool = False) -> Runner:
    """A runner of any source: a name, folder, address or file with weights, or an exported file (.onnx, .xml, .pt2).

    device: "auto" is the first CUDA GPU that the source can use, or else the CPU.
    exact: of weights, run the trained form and not the faster one that gives the same answers. An exported file has one
        form only.

    The threads of every form are torch's (`torch.set_num_threads`, OMP_NUM_THREADS). Raises InputError where the source
    cannot be used, or its runtime is not installed.
    """
    if not is_export(source):
        from lightning_csn.module import LitCSN

        model = LitCSN.from_pretrained(source if isinstance(source, str) else Path(source))
        return NetworkRunner(model.to(choose_device(device)), str(source), exact=exact)
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: {'this is a folder, not a file' if path.is_dir() else 'no such file'}")
    return KINDS[path.suffix.lower()](path, choose_device(device, path))


def choose_device(name: str | torch.device, source: object = None) -> torch.device:
    """The device of this name; "auto" is the first CUDA GPU that `source` can use or else the CPU.

    InputError if it is not there.
    """
    if name == "auto":
        anywhere = not is_export(source) or is_program(source)
        return torch.device("cuda:0" if anywhere and torch.cuda.is_available() else "cpu")  # with the index of clips'
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch that was built without CUDA
        raise InputError(f"device {str(name)!r} cannot be used: {first_line(error)}") from error


def read_inside(path: Path) -> str | None:
    """The record in a .pt2, unread by torch; None where there is none.

    InputError for another kind of file, and for one with wrong checksums, at which torch does not look.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise InputError(f"{path}: it is damaged: {damaged} inside has another checksum")
            names = [name for name in archive.namelist() if name.endswith(f"/{RECORD_FILE}")]
            return archive.read(names[0]).decode() if names else None
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no file of torch.export: {error}") from error


def hash_files(path: Path, sealed: str) -> str:
    """SHA-256 of an exported file with UNSEALED in the place of `sealed`, and then of its .bin, if it is an .xml."""
    digest = hashlib.sha256(path.read_bytes().replace(sealed.encode(), UNSEALED.encode()))
    if path.suffix.lower() == ".xml":
        with path.with_suffix(".bin").open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def seal(path: Path) -> str:
    """Put the hash of a file in the place of UNSEALED in its record, and give it."""
    digest = hash_files(path, UNSEALED)
    path.write_bytes(path.read_bytes().replace(UNSEALED.encode(), digest.encode()))
    return digest


def check_seal(path: Path, record: ExportRecord) -> None:
    """InputError where a file is no longer what was written: no runtime notices that, as long as it can be read."""
    if record.sha256 is None or record.sha256 == hash_files(path, record.sha256):
        return
    what = "it is damaged"
    if path.suffix.lower() == ".xml":
        what = f"it or {path.with_suffix('.bin').name} beside it is damaged, or they are of two exports"
    raise InputError(f"{path}: {what}; its SHA-256 is not the one that 'lightning-csn export' wrote into it")


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Versions of installed packages by name.

    >>> list(versions_of(["torch"]))
    ['torch']
    """
    return {package: version_of(package) for package in packages}


def version_of(package: str) -> str:
    """The version of what `import package` finds, whatever it is called where it is installed from: onnxruntime-gpu."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, ())
        return next(map(importlib.metadata.version, names), "unknown")


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that some add, and without OpenVINO's places in its source."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[0] if lines else type(error).__name__
