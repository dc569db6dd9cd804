"""Write a network into a file that runs without it: ONNX, OpenVINO, or a program of torch.export.

    model --fold--> Graph --torch.export--> program --one of WRITERS--> file beside its place
                                                                          | loaded by its runtime and compared
                                                                          '-> put in its place, or gone

What is compared are the logits of the trained network in PyTorch with those of the file as its runtime gives them, on
noise, on drawn scenes and on the real clips that the caller has. A file of int8 cannot be equal: what it costs is
measured on labelled videos, and written into the file and the answer.

Shapes: N clips, C channels, T frames, H x W pixels, V views, K classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_csn import __version__
from lightning_csn.clip import ClipSpec
from lightning_csn.errors import InputError, check_choice, need
from lightning_csn.models.fold import fold
from lightning_csn.models.pixels import colours, normalised
from lightning_csn.predict import evaluating
from lightning_csn.runner import (
    DYNAMIC,
    INPUT,
    OUTPUT,
    RECORD_FILE,
    RECORD_KEY,
    UNSEALED,
    ExportRecord,
    Runner,
    first_line,
    load_runner,
    seal,
    versions_of,
)

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from lightning_csn.data.samples import Part, Sample
    from lightning_csn.module import LitCSN

_log = logging.getLogger(__name__)

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # of the largest logit: what another order of sums may change
BATCHES = (1, 3)  # clips in the batches that are compared


@dataclass(frozen=True)
class Quantisation:
    """By what a network is brought to 8 bits, and by what that is judged. `read_quantisation` reads it from a data set.

    calibration: clips, uint8 (3, T, H, W), whose activations give the ranges.
    measured: of each video, a clip and the number of its class, or None where that is not known.
    max_drop: how many points of top-1 accuracy may be lost on `measured`; where no classes are known, how many percent
        of the answers may be others.
    """

    calibration: Sequence[Tensor]
    measured: Sequence[tuple[Tensor, int | None]]
    max_drop: float = 5.0

    def inputs(self, record: ExportRecord) -> list[np.ndarray]:
        """The calibration clips as the graph takes them, one at a time."""
        mean, std = colours(ClipSpec.from_dict(record.clip))
        inside = record.normalised == "inside"
        return [(clip if inside else normalised(clip, mean, std))[None].numpy() for clip in self.calibration]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: the files, and the record inside."""

    files: list[Path]
    record: ExportRecord


class Graph(nn.Module):
    """What is exported: the folded network, with the normalisation before it if that belongs inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: LitCSN, *, inside: bool) -> None:
        super().__init__()
        self.network = fold(model.network, layout="contiguous")
        self.inside = inside
        self.register_buffer("mean", model.mean.detach().clone().cpu())
        self.register_buffer("std", model.std.detach().clone().cpu())

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (N, K) of clips (N, C, T, H, W): pixels, uint8, if the normalisation is inside; else normalised."""
        return self.network(normalised(clips, self.mean, self.std) if self.inside else clips)


def export(
    model: LitCSN,
    out: str | os.PathLike[str],
    *,
    to: str | None = None,
    dynamic: Sequence[str] = (),
    normalise: str = "outside",
    real: Sequence[Tensor] = (),
    int8: Quantisation | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a model into a file for another runtime, once that gives the model's own logits.

    out: the file, which is replaced if it is there. Its ending is that of `to`, a key of ENDINGS; None is told by it.
    dynamic: what is left open besides the number of clips: "length", "size", or both.
    normalise: "outside": the file takes normalised clips, float32, and says in its record how. "inside": it takes
        pixels, uint8.
    real: batches of real clips, uint8 (N, C, T, H, W), to compare on, besides noise and drawn scenes.
    int8: videos by which weights and activations are brought to 8 bits, and by which that is judged.
    tell: is called with what is done next.

    The record of the file says how clips must look, the names of the classes, and how far the logits were apart. Raises
    InputError where the file cannot be written, its runtime is not installed, or the logits differ by more than
    TOLERANCE of the largest one (int8: where more is lost than may be); then nothing is left behind, and a file that
    was there before is as it was.
    """
    out = Path(out).expanduser()
    to = check_target(out, to, int8=int8 is not None)
    check_choice("normalise", normalise, ("inside", "outside"))
    for one in dynamic:
        check_choice("each of dynamic", one, DYNAMIC)
    record = ExportRecord(
        architecture=model.network.architecture,
        num_classes=model.num_classes,
        classes=model.classes,
        multi_label=model.multi_label,
        clip=model.clip.to_dict(),
        normalised=normalise,
        precision="fp32" if int8 is None else "int8",
        dynamic=free_sizes(model, dynamic),
        network=model.network.trunk_options,
        versions={"lightning_csn": __version__, **versions_of(["torch"])},
    )
    with beside(out) as folder:
        tell("tracing the network")
        program = trace(model, record)
        tell(f"converting it to {to}")
        versions, save = CONVERTERS[to](program, record, int8)
        record = dataclasses.replace(record, versions=record.versions | versions)
        record = save_sealed(save, record, folder / out.name)
        runner = load_runner(folder / out.name, "cpu")
        batches = [*made_clips(record), *real]
        if int8 is None:
            tell("comparing its logits with the network's")
            checked = compare(model, runner, batches) | {"real_clips": sum(map(len, real))}
        else:
            tell(f"comparing its answers with the network's on {len(int8.measured)} videos")
            checked = compare_answers(model, runner, int8)
        before = runner(batches[0])
        record = dataclasses.replace(record, checked=checked)
        record = save_sealed(save, record, folder / out.name)  # and how it did; loaded once more, as it will be there
        if not torch.equal(load_runner(folder / out.name, "cpu")(batches[0]), before):
            raise InputError(f"{out}: saved twice, the file gives two answers; nothing was saved")
    files = sorted((out, out.with_suffix(".bin")) if to == "openvino" else (out,))
    return Exported(files, record)


def check_target(out: Path, to: str | None, *, int8: bool) -> str:
    """The format to export to; InputError where that cannot be: before any video is read or a network traced."""
    to = format_of(out, to)
    if out.is_dir():
        raise InputError(f"{out}: this is a folder; name a file in it")
    if int8 and to == "torch-export":
        raise InputError("int8 is for onnx and openvino, not for torch-export")
    need({f"to export to {to}{' in int8' * int8}": (*NEEDED[to], *["nncf"] * int8)})
    return to


def format_of(out: Path, to: str | None) -> str:
    """The format that a file's ending tells; InputError where it tells none, or another than `to`.

    >>> format_of(Path("model.onnx"), None)
    'onnx'
    """
    if to is not None:
        check_choice("to", to, tuple(ENDINGS))
    told = next((name for name, ending in ENDINGS.items() if out.suffix == ending), None)
    if told is None or to not in (None, told):
        wanted = ENDINGS[to] if to is not None else ", ".join(f"{end} ({name})" for name, end in ENDINGS.items())
        raise InputError(f"{out}: the file's name must end in {wanted}")
    return told


# ---------------------------------------------------------------- to a program


def free_sizes(model: LitCSN, dynamic: Sequence[str]) -> dict[str, int]:
    """The least length and size of clips, of those of "length" and "size" that are free.

    torch.export takes a size of 1 for another case than all above it, so the last map has 2 places or more; and a
    window of the head has to be all in it. Raises InputError where the model's own clips are below that.
    """
    window = model.network.options["head_pooling"]
    places = (2, 2, 2) if window == "global" else [max(2, size) for size in window]
    reduction = model.network.feature_info[-1]["reduction"]
    least = {"length": 8 * (places[0] - 1) + 1, "size": reduction * (max(places[1:]) - 1) + 1}
    own = {"length": model.clip.frames, "size": model.clip.test_crop}
    for one in dynamic:
        if own[one] < least[one]:
            raise InputError(f"--dynamic {one} is for clips of a {one} of {least[one]} or more; here it is {own[one]}")
    return {one: least[one] for one in DYNAMIC if one in dynamic}


def trace(model: LitCSN, record: ExportRecord) -> ExportedProgram:
    """The graph of a model as torch.export has it, for any number of clips."""
    spec, inside = model.clip, record.normalised == "inside"
    axes: dict[int, Any] = {0: torch.export.Dim("clips", min=1)}
    if "length" in record.dynamic:
        axes[2] = torch.export.Dim("frames", min=record.dynamic["length"])
    if "size" in record.dynamic:
        axes[3] = torch.export.Dim("height", min=record.dynamic["size"])
        axes[4] = torch.export.Dim("width", min=record.dynamic["size"])
    shape = (2, 3, spec.frames, spec.test_crop, spec.test_crop)
    clips = torch.zeros(shape, dtype=torch.uint8 if inside else torch.float32)
    with quiet():
        return torch.export.export(Graph(model, inside=inside).eval().cpu(), (clips,), dynamic_shapes=(axes,))


# ---------------------------------------------------------------- to a file

Save = Callable[[ExportRecord, Path], None]


def convert_to_onnx(
    program: ExportedProgram, record: ExportRecord, int8: Quantisation | None
) -> tuple[dict[str, str], Save]:
    """Versions of what converts, and what saves an .onnx file with the record among its metadata."""
    import onnx

    with quiet():
        made = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False, external_data=False
        )
    assert made is not None
    model = (
        made.model_proto
        if int8 is None
        else quantise(made.model_proto, [{INPUT: x} for x in int8.inputs(record)], by_channel=False)
    )
    opset = next(one.version for one in model.opset_import if one.domain == "")

    def save(record: ExportRecord, path: Path) -> None:
        onnx.helper.set_model_props(model, {RECORD_KEY: record.to_json()})
        onnx.save(model, path)

    packages = ["onnx", "onnxscript", "onnxruntime"] + ["nncf"] * (int8 is not None)
    return versions_of(packages) | {"opset": str(opset)}, save


def convert_to_openvino(
    program: ExportedProgram, record: ExportRecord, int8: Quantisation | None
) -> tuple[dict[str, str], Save]:
    """Versions, and what saves an .xml with the record in its runtime information, and its .bin with the weights."""
    import openvino

    with quiet():
        model = openvino.convert_model(program)
    spec = ClipSpec.from_dict(record.clip)
    length = -1 if "length" in record.dynamic else spec.frames
    size = -1 if "size" in record.dynamic else spec.test_crop
    model.reshape([-1, 3, length, size, size])
    if int8 is not None:
        model = quantise(model, int8.inputs(record))
    model.input(0).set_names({INPUT})
    model.output(0).set_names({OUTPUT})

    def save(record: ExportRecord, path: Path) -> None:
        model.set_rt_info(record.to_json(), [RECORD_KEY])
        try:
            openvino.save_model(model, path, compress_to_fp16=False)
        except RuntimeError as error:  # it does not say why
            raise OSError(f"OpenVINO says {first_line(error)!r}, as on a full disk") from error

    return versions_of(["openvino"] + ["nncf"] * (int8 is not None)), save


def convert_to_program(
    program: ExportedProgram, record: ExportRecord, int8: Quantisation | None
) -> tuple[dict[str, str], Save]:
    """No further versions, and what saves a .pt2 file with the record in it."""

    def save(record: ExportRecord, path: Path) -> None:
        content = io.BytesIO()  # torch ends the process where the disk is full
        with quiet():
            torch.export.save(program, content, extra_files={RECORD_FILE: record.to_json()})
        path.write_bytes(content.getbuffer())

    return {}, save


def save_sealed(save: Save, record: ExportRecord, path: Path) -> ExportRecord:
    """Save a file with its hash in it, but for a .pt2; the record that it has."""
    if path.suffix == ENDINGS["torch-export"]:
        save(record, path)
        return record
    save(dataclasses.replace(record, sha256=UNSEALED), path)
    return dataclasses.replace(record, sha256=seal(path))


def quantise(model: Any, inputs: Sequence[Any], *, by_channel: bool = True) -> Any:
    """A model of OpenVINO or ONNX with weights and activations of 8 bits, whose ranges are those that `inputs` give.

    by_channel: whether activations before depthwise layers have a range for each channel, which ONNX Runtime refuses.
    """
    with quiet(), contextlib.redirect_stdout(sys.stderr):  # its progress bars; stdout is for answers
        import nncf
        from nncf.quantization.advanced_parameters import QuantizationParameters

        nncf.set_log_level(logging.ERROR)
        advanced = nncf.AdvancedQuantizationParameters(
            activations_quantization_params=None if by_channel else QuantizationParameters(per_channel=False)
        )
        return nncf.quantize(
            model,
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            target_device=nncf.TargetDevice.CPU,
            advanced_parameters=advanced,
        )


Convert = Callable[["ExportedProgram", ExportRecord, "Quantisation | None"], tuple[dict[str, str], Save]]
CONVERTERS: dict[str, Convert] = {
    "onnx": convert_to_onnx,
    "openvino": convert_to_openvino,
    "torch-export": convert_to_program,
}
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch-export": ()}


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, whose files are moved there at the end; none of them after an error."""
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        yield folder
        for file in sorted(folder.iterdir(), key=lambda file: file.name == out.name):  # .xml after the .bin it needs
            file.replace(out.with_name(file.name))
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}; nothing was saved") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters say of their own inside, to whoever cannot change it."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch.utils")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ---------------------------------------------------------------- is it the same?


def made_clips(record: ExportRecord) -> Iterator[Tensor]:
    """Batches of clips, uint8, to compare on: noise and drawn scenes; of another length and size too, if it is free."""
    noise = torch.Generator().manual_seed(0)
    spec = ClipSpec.from_dict(record.clip)
    sizes = [(spec.frames, spec.test_crop, spec.test_crop)]
    if record.dynamic:
        size = (spec.test_crop + 9, spec.test_crop + 34) if "size" in record.dynamic else sizes[0][1:]
        sizes.append((spec.frames + 3 * ("length" in record.dynamic), *size))
    for one in sizes:
        for count in BATCHES:
            yield torch.randint(0, 256, (count, 3, *one), generator=noise, dtype=torch.uint8)
    yield drawn_clips(*sizes[0])


def drawn_clips(length: int, height: int, width: int) -> Tensor:
    """Two clips of a moving thing, uint8 (2, 3, T, H, W), as videos are: smooth, and much alike from frame to frame."""
    from lightning_csn.data.motion import MOTION_CLASSES, random_scene, render

    clips = []
    for seed, label in enumerate(MOTION_CLASSES[:2]):
        frames = render(random_scene(label, np.random.default_rng(seed))).permute(3, 0, 1, 2)[None].float()
        clips.append(F.interpolate(frames, (length, height, width), mode="trilinear", align_corners=False))
    return torch.cat(clips).round().clamp(0, 255).to(torch.uint8)


def compare(model: LitCSN, runner: Runner, batches: Iterable[Tensor]) -> dict[str, Any]:
    """How far the logits of a runner are from a model's trained form, as part of the largest logit.

    Raises InputError where that is more than TOLERANCE, or a logit is not finite.
    """
    clips, largest = 0, 0.0
    for batch in batches:
        with evaluating(model):
            expected = model.network(model.normalise(batch.to(model.device))).float().cpu()
        found = runner(batch).cpu()
        difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        if not difference <= TOLERANCE:  # NaN too
            raise InputError(
                f"the exported network is not the same: its logits differ by {float(difference):.2g} of the largest "
                f"one on clips {tuple(batch.shape)}, where {TOLERANCE:g} would be rounding; nothing was saved"
            )
        clips, largest = clips + len(batch), max(largest, float(difference))
    return {"clips": clips, "largest_difference": largest, "tolerance": TOLERANCE}


def compare_answers(model: LitCSN, runner: Runner, int8: Quantisation) -> dict[str, Any]:
    """What 8 bits cost: in percent of videos, the top-1 accuracy of both, and how many answers are the same.

    Raises InputError where that is more than int8.max_drop.
    """
    answers = []
    for clip, label in int8.measured:
        with evaluating(model):
            logits = model.network(model.normalise(clip[None].to(model.device)))[0]
        answers.append((int(logits.argmax()), int(runner(clip[None])[0].argmax()), label))
    known = [(mine, its, label) for mine, its, label in answers if label is not None]

    def share(right: Sequence[bool]) -> float | None:
        return round(100 * sum(right) / len(right), 2) if right else None

    checked: dict[str, Any] = {
        "videos": len(answers),
        "calibration_videos": len(int8.calibration),
        "same_answers": share([mine == its for mine, its, _ in answers]),
        "top1_fp32": share([mine == label for mine, _, label in known]),
        "top1_int8": share([its == label for _, its, label in known]),
    }
    drop = checked["top1_fp32"] - checked["top1_int8"] if known else 100 - checked["same_answers"]
    if not drop <= int8.max_drop:
        what = "points of top-1 accuracy" if known else "percent of the answers"
        raise InputError(
            f"int8 loses {drop:.1f} {what} on {len(answers)} videos, where {int8.max_drop:g} may be lost; nothing was "
            "saved. More videos to calibrate on may help"
        )
    return checked


CALIBRATION, MEASURED = 128, 200  # videos at most


def read_quantisation(root: str, spec: ClipSpec, classes: Sequence[str] | None, max_drop: float = 5.0) -> Quantisation:
    """Clips of a data set: those of "train" to calibrate on, those of "test" or "val" to judge by; else half and half.

    The middle clip of each video, of CALIBRATION and MEASURED videos spread over the split. Videos that cannot be read
    are left out. Labels are known if all classes of the data set are of `classes`. InputError for fewer than two videos
    in either part.
    """
    from lightning_csn.data.annotations import find_samples
    from lightning_csn.data.video_info import VideoError

    found = find_samples(root)
    first = found.samples.get("train") or found.samples.get("all", [])
    second = found.samples.get("test") or found.samples.get("val") or []
    if not second:
        first, second = first[::2], first[1::2]
    numbers = {name: number for number, name in enumerate(classes or [])}
    known = not found.multi_label and all(name in numbers for name in found.classes)

    def read(samples: Sequence[Sample], most: int) -> list[tuple[Tensor, int | None]]:
        clips: list[tuple[Tensor, int | None]] = []
        unreadable = 0
        for sample in samples[:: -(-len(samples) // most) or 1]:
            has_label = known and isinstance(sample.label, int) and sample.label >= 0  # -1 is unknown
            label = numbers[found.classes[sample.label]] if has_label else None  # type: ignore[index]
            try:
                clips.append((read_clips_of(sample.path, spec, count=1, part=sample.part)[0], label))
            except VideoError as error:
                unreadable += 1
                _log.warning("%s; int8 goes without it", error)
        if len(clips) < 2:
            bad = f", and {unreadable} could not be read" if unreadable else ""
            raise InputError(
                f"{root}: int8 needs two videos or more to calibrate on, and two to be judged by; of one of the two "
                f"there {'is' if len(clips) == 1 else 'are'} {len(clips)}{bad}"
            )
        return clips

    return Quantisation([clip for clip, _ in read(first, CALIBRATION)], read(second, MEASURED), max_drop)


def read_clips_of(path: str | os.PathLike[str], spec: ClipSpec, *, count: int = 2, part: Part | None = None) -> Tensor:
    """Clips of a video as `classify` looks at them, uint8 (count, 3, T, H, W). VideoError where it cannot be read."""
    from lightning_csn.data.dataset import frame_numbers, read_views
    from lightning_csn.data.reading import open_video
    from lightning_csn.data.samples import Sample
    from lightning_csn.data.sampling import evaluation_clips

    with open_video(path) as video:
        numbers = frame_numbers(video, Sample(os.fspath(path), -1, 0, part), spec.fps)
        picks = evaluation_clips(len(numbers), spec, count)
        return read_views(video, [[numbers[i] for i in pick] for pick in picks], spec, crops=1)
