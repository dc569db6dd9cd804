"""`lightning-csn benchmark`: how fast a network runs here, against the plain one and against what the machine can do.

A speed means nothing by itself, so every run measures, in turns, our network and the plain one (the same modules with
nn.Conv3d, eager in both layouts and under torch.compile), the machine's own rates (a copy, a matrix product), and gives
the floor that roofline.py counts. Speeds are medians; ratios are within one run. Not yet run on a GPU.

    benchmark_report     tables and bars                             |
    benchmark_layers     depthwise layers alone, tiles of kernels    | each imports what is below it
    benchmark_ways       the ways to run a network                   |
    benchmark_machine    rates, clock, memory                        |
    benchmark_settings   options, and the settings that they make    v

How fast videos are read is measured by benchmark_data.py. `benchmark_options` and `run_benchmark` are the command's row
in cli.py; torch is imported where something runs.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lightning_csn.benchmark_data import data_options, run_benchmark_data
from lightning_csn.benchmark_layers import measure_layers, tune
from lightning_csn.benchmark_machine import (
    machine,
    memory_as_input_error,
    named_rates,
    plain_arithmetic,
    process_memory,
    rates_of,
    seconds_of,
)
from lightning_csn.benchmark_report import as_text, check_plot, plot
from lightning_csn.benchmark_settings import ELEMENT_BYTES, Settings, check, infer_options, train_options
from lightning_csn.benchmark_ways import FILE, Measured, Way, expected_failures, path_of, precision_of, start, ways_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NOT_MEASURED = "not measured"
BACKWARD = 2  # times the operations of the forward pass: the gradients of input and weight; bytes are counted apart


def benchmark_options(parser: ArgumentParser) -> None:
    """Options of `benchmark`."""
    kinds = parser.add_subparsers(dest="kind", metavar="|".join(KINDS), required=True)
    for name, kind in KINDS.items():
        options = kinds.add_parser(
            name, description=f"Measure {kind.summary}.", help=kind.summary, formatter_class=parser.formatter_class
        )
        kind.add_options(options)


def run_benchmark(args: Namespace) -> int:
    """Measure what was asked for."""
    return KINDS[args.kind].run(args)


def run_network(args: Namespace) -> int:
    """Measure a network and print; also what was measured until it was stopped."""
    from lightning_csn.terminal import DONE, note, print_json, show_last

    settings, device = check(args)
    if args.plot is not None:
        check_plot(args.plot)
    if args.tune:
        results = tune(settings, device, tell=note)
    elif args.find_batch:
        results = find_batches(settings, device, against=args.against)
    elif args.layers:
        results = measure_layers(settings, device, tell=note)
    else:
        results = measure_network(settings, device, against=args.against, tell=note)

    def show(result: dict[str, Any]) -> None:
        if args.json:
            print_json(result)
        else:
            print(as_text(result))
        if args.plot is not None:
            plot(result, args.plot)

    with plain_arithmetic(device), memory_as_input_error():
        show_last(results, show)
    return DONE


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


# ---------------------------------------------------------------- all ways, in turns


def measure_network(
    settings: Settings, device: torch.device, *, against: Sequence[str], tell: Callable[[str], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """Every way in turns: after each measurement all that there is so far. `tell` hears what is going on."""
    import torch

    from lightning_csn.models.depthwise import depthwise_backend
    from lightning_csn.models.fold import keep_memory

    torch.compiler.reset()
    ways = ways_of(settings, against)
    if "compiled" in against:
        ways.append(Way("plain compiled", "reference", settings.layout, settings.compile or "default"))
    ready: list[tuple[Measured, Callable[[], Tensor] | None]] = []
    precisions = list(dict.fromkeys(precision_of(way, settings) for way in ways))
    where, counts, rates = machine(device), counts_of(settings), dict[str, float]()
    for turn in range(settings.repeats):
        # In turns with the rest, as the machine may have been busy; the best is what it can do.
        found = rates_of(settings, device, precisions)
        rates = {name: max(rate, rates.get(name, 0.0)) for name, rate in found.items()}
        for number, way in enumerate(ways):
            if turn == 0:  # a way is measured as soon as it can run: to make the others ready may take long
                if way.name == "plain compiled":
                    way = replace(way, layout=better_layout([each for each, _ in ready]) or way.layout)
                tell(f"{way.name}, {way.layout}")
                ready.append(start(way, settings, device))
            measured, step = ready[number]
            if step is not None and measured.error is None:
                with expected_failures(measured), depthwise_backend(way.backend):
                    if device.type == "cpu":
                        keep_memory(not way.name.startswith("plain"))
                        step()
                    measured.seconds.append(seconds_of(step, device, settings.steps))
            left = [Measured(each, path_of(each, settings, device)) for each in ways[len(ready) :]]
            yield report(settings, where, rates, counts, [each for each, _ in ready] + left)


def better_layout(ways: Sequence[Measured]) -> str | None:
    """That of the plain eager network which took less time; None where none was measured."""
    plain = [each for each in ways if each.way.name == "plain eager" and each.error is None]
    return min(plain, key=lambda each: each.median).way.layout if plain else None


def counts_of(settings: Settings) -> tuple[int, int]:
    """Elements that a step moves in roofline.py's floor, and operations: of all blocks, forward and in training back,
    without stem, pooling and head; and of all convolutions.
    """
    from lightning_csn.models import roofline

    of, trains = (settings.architecture, settings.clip), settings.kind == "train"
    elements = roofline.traffic(*of, **settings.network).floor
    if trains:
        elements += roofline.traffic_back(*of, **settings.network).floor
    layers = roofline.layers(*of, **settings.network)
    multiply_adds = sum(layer.multiply_adds * layer.count for layer in layers)
    return settings.batch * elements, settings.batch * 2 * multiply_adds * (1 + BACKWARD if trains else 1)


def floors_of(counts: tuple[int, int], rates: dict[str, float], precisions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By precision, the bytes and the operations of `counts_of`, and the longer of the two times at the machine's
    rates: None in a precision of which it has no rate of products.
    """
    elements, operations = counts
    floors = {}
    for precision in precisions:
        moved, rate = elements * ELEMENT_BYTES[precision], rates.get(precision)
        floors[precision] = {
            "bytes": moved,
            "operations": operations,
            "seconds": None if rate is None else max(moved / rates["copy"], operations / rate),
            "matrix_flops_per_second": rate,
        }
    return floors


def report(
    settings: Settings,
    where: dict[str, Any],
    rates: dict[str, float],
    counts: tuple[int, int],
    ways: Sequence[Measured],
) -> dict[str, Any]:
    """Everything as plain values; ways that have no time yet say so."""
    left = [each for each in ways if each.error is None and not each.seconds]
    ways = [replace(each, error=NOT_MEASURED) if each in left else each for each in ways]
    floors = floors_of(counts, rates, list(dict.fromkeys(precision_of(each.way, settings) for each in ways)))
    rows: list[dict[str, Any]] = []
    contiguous = [each for each in ways if each.way.name == "plain eager" and each.way.layout == "contiguous"]
    plain_seconds = contiguous[0].median if contiguous and contiguous[0].error is None else None
    for each in ways:
        precision = precision_of(each.way, settings)
        floor = floors[precision]
        seconds, rate = floor["seconds"], floor["matrix_flops_per_second"]
        row = {**asdict(each.way), "checkpointing": list(each.way.checkpointing), "path": each.path}
        row["precision"] = precision
        row |= {"error": each.error, "peak_memory_bytes": each.memory_bytes, "seconds": each.seconds}
        if each.error is None:
            row |= {
                "ms_per_step": 1e3 * each.median,
                "clips_per_second": settings.batch / each.median,
                "share_of_copy": floor["bytes"] / each.median / rates["copy"],
                "share_of_matrix": None if rate is None else floor["operations"] / each.median / rate,
                "times_floor": None if seconds is None else each.median / seconds,
                "times_plain": None if plain_seconds is None else plain_seconds / each.median,
            }
        rows.append(row)
    ours = next((each for form in (FILE, "folded") for each in ways if each.way.form == form), ways[0])
    ratios: dict[str, dict[str, Any]] = {}
    for name in ("plain eager", "plain compiled"):
        plain = [each for each in ways if each.way.name == name and each.error is None]
        if plain and ours.error is None:
            best = min(plain, key=lambda each: each.median)
            memory = None
            if ours.memory_bytes is not None and best.memory_bytes is not None:
                memory = ours.memory_bytes / best.memory_bytes
            ratios[name] = {
                "of": ours.way.name,
                "layout": best.way.layout,
                "speed": best.median / ours.median,
                "memory": memory,
            }
    return {
        "benchmark": settings.kind,
        "settings": settings.to_dict(),
        "machine": where,
        "rates": named_rates(rates, settings),
        "floor": {name: floors[settings.precision][name] for name in ("bytes", "operations", "seconds")},
        "floors": floors,
        "ways": rows,
        "not_measured": [f"{each.way.name}, {each.way.layout}" for each in left],
        "ratios": ratios,
        "process_peak_memory_bytes": None if settings.device.startswith("cuda") else process_memory(),
    }


# ---------------------------------------------------------------- the largest batch


def find_batches(settings: Settings, device: torch.device, *, against: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The largest batch of which a step fits into the GPU's memory, for ours and for the plain eager ones: after each
    way all that there is so far.
    """
    import gc

    import torch

    rows: list[dict[str, Any]] = []
    ways, where = ways_of(settings, against), machine(device)
    for number, way in enumerate(ways, 1):
        failure: list[str] = []

        def fits(batch: int, way: Way = way, failure: list[str] = failure) -> bool:
            torch.compiler.reset()  # after a few shapes torch.compile gives up and runs eagerly
            measured, step = start(way, replace(settings, batch=batch), device)
            done = step is not None
            del step
            gc.collect()
            torch.cuda.empty_cache()
            if measured.error is not None and not measured.error.startswith("out of memory"):
                failure.append(measured.error)
            return done

        found = largest(fits)
        rows.append({"name": way.name, "layout": way.layout, "largest_batch": None if failure else found})
        rows[-1]["error"] = failure[0] if failure else None
        yield {
            "benchmark": "find-batch",
            "settings": settings.to_dict(),
            "machine": where,
            "ways": list(rows),
            "not_measured": [f"{each.name}, {each.layout}" for each in ways[number:]],
        }


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
