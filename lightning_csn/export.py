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
import logging
import os
import shutil
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
from lightning_csn.errors import InputError, check_choice
from lightning_csn.models.fold import fold
from lightning_csn.runner import (
    DYNAMIC,
    INPUT,
    OUTPUT,
    RECORD_FILE,
    RECORD_KEY,
    ExportRecord,
    Runner,
    load_runner,
    need,
    versions_of,
)

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from lightning_csn.module import LitCSN

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
TOLERANCE = 1e-4  # of the largest logit: what another order of sums may change
BATCHES = (1, 3)  # clips in the batches that are compared


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
        return self.network((clips.float() / 255 - self.mean) / self.std if self.inside else clips)


def export(
    model: LitCSN,
    out: str | os.PathLike[str],
    *,
    to: str | None = None,
    dynamic: Sequence[str] = (),
    normalise: str = "outside",
    real: Sequence[Tensor] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a model into a file for another runtime, once that gives the model's own logits.

    out: the file, which is replaced if it is there. Its ending is that of `to`, a key of ENDINGS; None is told by it.
    dynamic: what is left open besides the number of clips: "length", "size", or both.
    normalise: "outside": the file takes normalised clips, float32, and says in its record how. "inside": it takes
        pixels, uint8.
    real: batches of real clips, uint8 (N, C, T, H, W), to compare on, besides noise and drawn scenes.
    tell: is called with what is done next.

    The record of the file says how clips must look, the names of the classes, and how far the logits were apart. Raises
    InputError where the file cannot be written, its runtime is not installed, or the logits differ by more than
    TOLERANCE of the largest one; then nothing is left behind, and a file that was there before is as it was.
    """
    out = Path(out).expanduser()
    to = format_of(out, to)
    check_choice("normalise", normalise, ("inside", "outside"))
    for one in dynamic:
        check_choice("each of dynamic", one, DYNAMIC)
    for package in NEEDED[to]:
        need(package, f"to export to {to}")
    record = ExportRecord(
        architecture=model.network.architecture,
        num_classes=model.num_classes,
        classes=model.classes,
        multi_label=model.multi_label,
        clip=model.clip.to_dict(),
        normalised=normalise,
        dynamic=free_sizes(model, dynamic),
        network=model.network.trunk_options,
        versions={"lightning_csn": __version__, **versions_of(["torch"])},
    )
    tell("tracing the network")
    program = trace(model, record)
    with beside(out) as folder:
        tell(f"converting it to {to}")
        versions, save = CONVERTERS[to](program, record)
        record = dataclasses.replace(record, versions=record.versions | versions)
        save(record, folder / out.name)
        tell("comparing its logits with the network's")
        batches = [*made_clips(record), *real]
        checked = compare(model, load_runner(folder / out.name, "cpu"), batches)
        checked["real_clips"] = sum(map(len, real))
        record = dataclasses.replace(record, checked=checked)
        save(record, folder / out.name)
        compare(model, load_runner(folder / out.name, "cpu"), batches[:1])  # the file itself, as it will be there
    files = sorted((out, out.with_suffix(".bin")) if to == "openvino" else (out,))
    return Exported(files, record)


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
        return torch.export.export(Graph(model, inside=inside).eval(), (clips,), dynamic_shapes=(axes,))


# ---------------------------------------------------------------- to a file

Save = Callable[[ExportRecord, Path], None]


def convert_to_onnx(program: ExportedProgram, record: ExportRecord) -> tuple[dict[str, str], Save]:
    """Versions of what converts, and what saves an .onnx file with the record among its metadata."""
    import onnx

    with quiet():
        made = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False, external_data=False
        )
    assert made is not None
    model = made.model_proto
    opset = next(one.version for one in model.opset_import if one.domain == "")

    def save(record: ExportRecord, path: Path) -> None:
        onnx.helper.set_model_props(model, {RECORD_KEY: record.to_json()})
        onnx.save(model, path)

    return versions_of(["onnx", "onnxscript", "onnxruntime"]) | {"opset": str(opset)}, save


def convert_to_openvino(program: ExportedProgram, record: ExportRecord) -> tuple[dict[str, str], Save]:
    """Versions, and what saves an .xml with the record in its runtime information, and its .bin with the weights."""
    import openvino

    with quiet():
        model = openvino.convert_model(program)
    spec = ClipSpec.from_dict(record.clip)
    length = -1 if "length" in record.dynamic else spec.frames
    size = -1 if "size" in record.dynamic else spec.test_crop
    model.reshape([-1, 3, length, size, size])
    model.input(0).set_names({INPUT})
    model.output(0).set_names({OUTPUT})

    def save(record: ExportRecord, path: Path) -> None:
        model.set_rt_info(record.to_json(), [RECORD_KEY])
        openvino.save_model(model, path, compress_to_fp16=False)

    return versions_of(["openvino"]), save


def convert_to_program(program: ExportedProgram, record: ExportRecord) -> tuple[dict[str, str], Save]:
    """No further versions, and what saves a .pt2 file with the record in it."""

    def save(record: ExportRecord, path: Path) -> None:
        with quiet():
            torch.export.save(program, path, extra_files={RECORD_FILE: record.to_json()})

    return {}, save


CONVERTERS: dict[str, Callable[[ExportedProgram, ExportRecord], tuple[dict[str, str], Save]]] = {
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
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "nncf")]
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
        with torch.inference_mode():
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


def read_clips_of(path: str | os.PathLike[str], spec: ClipSpec, *, count: int = 2) -> Tensor:
    """Clips of a video as `classify` looks at them, uint8 (count, 3, T, H, W). VideoError where it cannot be read."""
    from lightning_csn.data.dataset import frame_numbers, read_views
    from lightning_csn.data.reading import open_video
    from lightning_csn.data.samples import Sample
    from lightning_csn.data.sampling import spread_clips

    with open_video(path) as video:
        numbers = frame_numbers(video, Sample(os.fspath(path), -1, 0), spec.fps)
        picks = spread_clips(len(numbers), length=spec.frames, step=spec.step, count=count)
        return read_views(video, [[numbers[i] for i in pick] for pick in picks], spec, crops=1)
