"""`lightning-csn export`: a network as a file for ONNX Runtime, OpenVINO or torch.export, equal before it is there."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_csn.errors import InputError

if TYPE_CHECKING:
    from lightning_csn.export import Exported

DONE = 0
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "torch-export": "torch.export"}
SIZES = ("length", "size")


def export_options(parser: ArgumentParser) -> None:
    """Options of `export`."""
    parser.add_argument("model", metavar="MODEL", help="weights: a name, file, folder or address, or a run's .ckpt")
    parser.add_argument("out", metavar="OUT", help="a file: .onnx, .xml (OpenVINO; a .bin comes beside it) or .pt2")
    parser.add_argument("--to", choices=tuple(RUNTIMES), help="what for; without it OUT's ending says so")
    parser.add_argument(
        "--dynamic",
        choices=SIZES,
        action="append",
        default=[],
        help="leave open how long or how large clips are; may be given twice. The number of clips is always open",
    )
    parser.add_argument(
        "--normalise",
        choices=("inside", "outside"),
        default="outside",
        help="where mean and std are applied: inside takes pixels, uint8; default outside, in whoever runs the file",
    )
    parser.add_argument(
        "--check",
        metavar="VIDEO",
        action="append",
        default=[],
        help="compare on clips of this video too, besides noise and drawn scenes; may be given several times",
    )
    parser.add_argument(
        "--int8",
        metavar="DATA",
        help="8 bits instead of 32, for onnx and openvino: calibrated on training videos of this data set (a folder, "
        "as for fit) and judged by those of its test or val split, or on one half and by the other",
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        default=5.0,
        metavar="POINTS",
        help="of top-1 accuracy that int8 may lose on DATA, or of equal answers if DATA has other classes; default 5",
    )
    parser.add_argument("--json", action="store_true", help="what was written, as JSON")
    parser.epilog = (
        "The file is put in its place when its runtime gives the network's own logits (to 1e-4 of the largest one);\n"
        "otherwise nothing is left. It holds what else is needed: how clips must look, mean and std, the classes.\n"
        "ONNX needs lightning-csn[onnx], OpenVINO lightning-csn[openvino], --int8 lightning-csn[int8] too.\n"
        "A .pt2 is read by torch.export, which may run code in it: take such files only from whom you trust.\n\n"
        "examples:\n"
        "  lightning-csn export ircsn_tiny_motion model.onnx\n"
        "  lightning-csn classify holiday.mp4 --model model.onnx\n"
        "  lightning-csn export runs/last.ckpt --to openvino model.xml --check holiday.mp4\n"
        "  lightning-csn export ircsn_152_ig65m model.onnx --normalise inside --dynamic length --dynamic size\n"
        "  lightning-csn export runs/last.ckpt small.onnx --int8 my_videos"
    )


def run_export(args: Namespace) -> int:
    """Load, export, say what is there."""
    from lightning_csn.export import check_target, export, read_clips_of, read_quantisation
    from lightning_csn.module import LitCSN
    from lightning_csn.runner import is_export

    if is_export(args.model):
        raise InputError(f"{args.model} is exported already; export the weights that it was made of")
    if not 0 <= args.max_drop <= 100:
        raise InputError(f"--max-drop must be from 0 to 100 points, got {args.max_drop:g}")
    check_target(Path(args.out).expanduser(), args.to, int8=args.int8 is not None)
    model = LitCSN.from_pretrained(args.model)
    real = [read_clips_of(path, model.clip) for path in args.check]
    int8 = None
    if args.int8 is not None:
        tell(f"reading videos of {args.int8}")
        int8 = read_quantisation(args.int8, model.clip, model.classes, args.max_drop)
    options = {"to": args.to, "dynamic": args.dynamic, "normalise": args.normalise}
    exported = export(model, args.out, **options, real=real, int8=int8, tell=tell)
    if args.json:
        from lightning_csn.terminal import print_json

        print_json(as_values(exported))
    else:
        print(as_text(exported))
    return DONE


def tell(step: str) -> None:
    """What is done next, on stderr."""
    print(f"lightning-csn: {step}", file=sys.stderr, flush=True)


def as_values(exported: Exported) -> dict[str, object]:
    """What was written, as plain values."""
    import dataclasses

    files = [{"path": str(file), "bytes": file.stat().st_size} for file in exported.files]
    return {"files": files, **dataclasses.asdict(exported.record)}


def as_text(exported: Exported) -> str:
    """What was written, as a person reads it."""
    record, clip = exported.record, exported.record.clip
    size = sum(file.stat().st_size for file in exported.files) / 1e6
    length = f"{clip['frames']}" if "length" not in record.dynamic else f"{record.dynamic['length']} or more"
    sides = [f"{clip['test_crop']}" if "size" not in record.dynamic else f"{record.dynamic['size']} or more"] * 2
    shape = ", ".join(["any number", "3", length, *sides])
    mean, std = (" ".join(f"{value:g}" for value in clip[name]) for name in ("mean", "std"))
    takes = "pixels, uint8" if record.normalised == "inside" else "normalised clips, float32"
    rows = {
        "takes": f"{takes} ({shape}): clips, colours, frames, height, width",
        "colours": f"mean {mean}, std {std} of pixels / 255, {record.normalised} the file",
        "gives": f"logits, float32 (any number, {record.num_classes})",
        "checked": as_checked(record.checked),
        "made with": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    names = " and ".join(map(str, exported.files))
    head = f"{names}: {record.architecture}, {record.num_classes} classes, {record.precision}, {size:.1f} MB"
    width = max(map(len, rows))
    runs = next(file for file in exported.files if file.suffix != ".bin")
    lines = [head, *(f"  {name:<{width}}  {text}" for name, text in rows.items())]
    return "\n".join([*lines, f"to run it: lightning-csn classify VIDEO --model {runs}"])


def as_checked(checked: dict[str, Any]) -> str:
    """How near the file is to the network.

    >>> as_checked({"clips": 6, "real_clips": 2, "largest_difference": 4.7e-7})
    'on 6 clips, 2 of them real: logits within 5e-07 of the largest one'
    >>> as_checked({"videos": 50, "calibration_videos": 128, "same_answers": 98, "top1_fp32": 90, "top1_int8": 88})
    'on 50 videos: 98% of the answers as in fp32; top-1 88% where fp32 has 90%; calibrated on 128 others'
    """
    if "videos" in checked:
        known = checked["top1_fp32"] is not None
        top1 = f"; top-1 {checked['top1_int8']:g}% where fp32 has {checked['top1_fp32']:g}%" if known else ""
        return (
            f"on {checked['videos']} videos: {checked['same_answers']:g}% of the answers as in fp32{top1}; "
            f"calibrated on {checked['calibration_videos']} others"
        )
    real = f"{checked['real_clips']} of them real" if checked["real_clips"] else "none of them real (see --check)"
    return f"on {checked['clips']} clips, {real}: logits within {checked['largest_difference']:.0e} of the largest one"
