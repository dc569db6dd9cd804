"""What `lightning-csn benchmark` found, as a person reads it: tables, and bars."""

from __future__ import annotations

from typing import Any

from lightning_csn.benchmark_settings import LAYOUTS
from lightning_csn.errors import InputError

PLOTS = (".png", ".svg", ".pdf")


def as_text(result: dict[str, Any]) -> str:
    """A result as a person reads it."""
    settings, where = result["settings"], result["machine"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("torch", "triton", "cuda") if where[name])
    clip = "x".join(map(str, settings["clip"]))
    source = f" of {settings['model']}" if settings["model"] is not None else ""
    head = [
        f"{settings['architecture']}{source}, clips {clip}, batch {settings['batch']}, {settings['precision']}, "
        f"medians of {measurements(result)}",
        f"{where['device']} ({settings['device']}, {where['threads']} threads), {versions}",
    ]
    if "rates" in result:
        rates = result["rates"]
        by_type = {settings["precision"]: {"matrix_flops_per_second": rates["matrix_flops_per_second"]}}
        products = [
            f"{floor['matrix_flops_per_second'] / 1e12:.3f} TFLOP/s in {name}"
            for name, floor in result.get("floors", by_type).items()
            if floor["matrix_flops_per_second"] is not None
        ]
        head.append(
            f"measured here: copy {rates['copy_bytes_per_second'] / 1e9:.1f} GB/s, matrix product {', '.join(products)}"
        )
    body = {"layers": layers_text, "find-batch": batches_text, "tune": tiles_text}.get(result["benchmark"], ways_text)
    return "\n".join([*head, *body(result), *left_text(result)])


def left_text(result: dict[str, Any]) -> list[str]:
    """What a benchmark that was stopped has not measured, or not as often as it was to."""
    lines = [f"stopped; not measured: {'; '.join(result['not_measured'])}"] if result["not_measured"] else []
    if result["benchmark"] in ("train", "infer"):
        repeats = result["settings"]["repeats"]
        if measurements(result) != str(repeats):
            lines.append(f"stopped: medians are of {measurements(result)}, not of {repeats} measurements")
    return lines


def measurements(result: dict[str, Any]) -> str:
    """How many times each way was measured: fewer than asked for where the benchmark was stopped."""
    counts = [len(way["seconds"]) for way in result.get("ways", []) if way.get("error") is None and "seconds" in way]
    if not counts:
        return str(result["settings"]["repeats"])
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{min(counts)}"


def ways_text(result: dict[str, Any]) -> list[str]:
    """The table of `measure_network`."""
    from lightning_csn.terminal import table

    settings, unit = result["settings"], "step" if result["benchmark"] == "train" else "pass"
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
            "-" if way["times_floor"] is None else f"{way['times_floor']:.2f}",
            f"{way['share_of_copy']:.0%}",
            "-" if way["share_of_matrix"] is None else f"{way['share_of_matrix']:.0%}",
            gigabytes(way["peak_memory_bytes"]),
        )
        rows.append((name, path, way["layout"], *numbers))
    counted = (
        "counted at these rates: bytes of all blocks without stem, pooling and head, operations of all convolutions"
    )
    floors = [
        f"{'-' if floor['seconds'] is None else format(1e3 * floor['seconds'], '.2f')} ms a {unit} in {name}"
        for name, floor in result["floors"].items()
    ]
    lines = [f"floor {', '.join(floors)}, {counted}", "", table(rows), ""]
    if any(floor["seconds"] is None for floor in result["floors"].values()):
        lines.append("-: this machine has no product of that type that is measured, and a row in it no floor")
    for name, ratio in result["ratios"].items():
        memory = "" if ratio["memory"] is None else f", {ratio['memory']:.2f} of its peak memory"
        lines.append(
            f"{ratio['of']} against {name} ({ratio['layout']}): {ratio['speed']:.2f} times the clips/s{memory}"
        )
    if any("int8" in form for form in settings["forms"]):
        lines.append(
            "int8: calibrated on noise, for its speed alone; what it costs in accuracy 'export --int8' measures"
        )
    if result["process_peak_memory_bytes"] is not None:
        lines.append(f"peak memory of the process, all ways together: {gigabytes(result['process_peak_memory_bytes'])}")
    return lines


def layers_text(result: dict[str, Any]) -> list[str]:
    """The table of `measure_layers`."""
    from lightning_csn.terminal import table

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
    from lightning_csn.terminal import table

    rows = [(way["name"], way["layout"], way["error"] or str(way["largest_batch"])) for way in result["ways"]]
    return ["", table([("WAY", "LAYOUT", "LARGEST BATCH"), *rows])]


def tiles_text(result: dict[str, Any]) -> list[str]:
    """The table of `tune`."""
    from lightning_csn.terminal import table

    rows = [("KERNEL", "CHANNELS", "OUTPUT", "DEFAULT", "BEST", "CHOICE")]
    for row in result["kernels"]:
        tile = ", ".join(f"{name} {value}" for name, value in row.get("tile", {}).items())
        choice = tile or row.get("form") or row["backend"]
        size = ", ".join(map(str, row["sizes"]))
        times = ("-" if row[name] is None else f"{row[name]:.4f} ms" for name in ("default_ms", "best_ms"))
        rows.append((row["kernel"], str(row["channels"]), size, *times, choice))
    return ["", table(rows), "", f"kept in {result['folder']}"]


def gigabytes(count: int | None) -> str:
    """10^9 bytes, or a dash.

    >>> gigabytes(12_340_000_000)
    '12.34 GB'
    """
    return "-" if count is None else f"{count / 1e9:.2f} GB"


# ---------------------------------------------------------------- bars


def check_plot(file: str) -> None:
    """InputError where the table could not be drawn into a file."""
    from pathlib import Path

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
    for (name, floor), style in zip(result["floors"].items(), ("--", "-.", ":"), strict=False):
        if floor["seconds"] is not None:
            time = 1e3 * floor["seconds"] / settings["batch"]
            axes.axvline(time, color="tab:red", linestyle=style, label=f"floor, {name}: {time:.3g}")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds a clip (median)")
    clip = "x".join(map(str, settings["clip"]))
    axes.set_title(f"{settings['architecture']}, clips {clip}, {result['machine']['threads']} threads")
    if axes.lines:  # matplotlib warns of a legend of nothing
        axes.legend(loc="lower right")
    try:
        figure.savefig(Path(file).expanduser(), dpi=150)
    except OSError as error:
        raise InputError(f"--plot {file}: it cannot be written: {error.strerror or error}") from error
