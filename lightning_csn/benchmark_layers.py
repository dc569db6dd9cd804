"""`lightning-csn benchmark train --layers` and `--tune`: every depthwise layer alone, and the fastest is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning_csn.benchmark_machine import kernel_seconds, machine, named_rates, rates_of, seconds_of
from lightning_csn.benchmark_settings import LAYOUTS, PRECISIONS, Settings, depthwise_layers
from lightning_csn.benchmark_ways import Measured, Way, expected_failures, path_of, start, ways_of
from lightning_csn.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lightning_csn.models.roofline import Layer


def measure_layers(
    settings: Settings, device: torch.device, *, tell: Callable[[str], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """Forward and backward of each kind of depthwise layer: ours, and nn.Conv3d in both layouts; after each kind all
    that there is so far.

    Bytes: input and output once for the forward pass, and as many for each of the two gradients.
    """
    rates = rates_of(settings, device, [settings.precision])
    rows = []
    totals: dict[str, float] = {"ours": 0.0, **dict.fromkeys(LAYOUTS, 0.0)}
    path = path_of(replace(ways_of(settings, ())[0], backend=unfused(settings.backend, device)), settings, device)
    where, layers = machine(device), depthwise_layers(settings.architecture, settings.clip)
    for number, layer in enumerate(layers, 1):
        tell(layer_text(layer))
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
                "forward_share_of_copy": moved / forward / rates["copy"],
                "backward_share_of_copy": 2 * moved / backward / rates["copy"],
            }
        rows.append(row)
        yield {
            "benchmark": "layers",
            "settings": settings.to_dict(),
            "path": path,
            "machine": where,
            "rates": named_rates(rates, settings),
            "layers": list(rows),
            "not_measured": [layer_text(each) for each in layers[number:]],
            "total_ms": {name: 1e3 * seconds for name, seconds in totals.items()},
            "ratios": {"plain eager": {"speed": min(totals[layout] for layout in LAYOUTS) / totals["ours"]}},
        }


def layer_text(layer: Layer) -> str:
    """A layer in words."""
    return f"{layer.channels} channels, {layer.sizes_in} to {layer.sizes}"


def unfused(backend: str, device: torch.device) -> str:
    """A layer alone has no block around it that it could be fused with."""
    return "triton" if backend == "fused" or (backend == "auto" and device.type == "cuda") else backend


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
        torch.randn(settings.batch, channels, *shape, device=device).to(dtype).contiguous(memory_format=form)
        for channels, shape in ((layer.channels_in, layer.sizes_in), (layer.channels, layer.sizes))
    )
    weight = torch.randn(layer.channels, 1, 3, 3, 3, device=device).to(dtype)
    return x, weight, grad


# ---------------------------------------------------------------- tiles


def tune(
    settings: Settings, device: torch.device, *, tell: Callable[[str], None] = lambda _: None
) -> Iterator[dict[str, Any]]:
    """Measure the tiles of every kernel at every depthwise shape, and how blocks run, and keep the fastest for later
    runs: after each shape all that there is so far.
    """
    from lightning_csn.models.depthwise import unsupported

    layers = depthwise_layers(settings.architecture, settings.clip)
    x, weight, _ = layer_tensors(layers[0], settings.layout, replace(settings, batch=1), device)
    reason = unsupported(device.type, x.dtype, 5, tuple(weight.shape[1:]), layers[0].stride)
    if reason is not None:
        raise InputError(f"--tune: {reason}")
    from lightning_csn.models import choices, tiles

    rows: list[dict[str, Any]] = []
    where, folder = machine(device), str(choices.cache_path(tiles.TILES).parent)
    fusing = {"products of fused blocks": tune_products, "a whole step": tune_blocks}
    if settings.layout != "channels_last":  # fused blocks know no other
        fusing.clear()

    def result(left: Sequence[str]) -> dict[str, Any]:
        return {
            "benchmark": "tune",
            "settings": settings.to_dict(),
            "machine": where,
            "folder": folder,
            "kernels": list(rows),
            "not_measured": list(left),
        }

    for number, layer in enumerate(layers, 1):
        for problem, function in launches(layer, settings, device):
            tell(f"{problem.kernel}, {layer_text(layer)}")
            times = tiles.tune(function, problem, device, lambda f: 1e3 * kernel_seconds(f, device, settings.repeats))
            default, best = next(iter(times)), min(times, key=lambda tile: times[tile])
            rows.append(
                {
                    "kernel": problem.kernel,
                    "channels": layer.channels,
                    "sizes": list(layer.sizes),
                    "default_ms": times[default],
                    "best_ms": times[best],
                    "tile": best._asdict(),
                }
            )
        yield result([*map(layer_text, layers[number:]), *fusing])
    while fusing:
        measure = fusing.pop(next(iter(fusing)))
        rows += measure(settings, device, tell)
        yield result(list(fusing))


def tune_products(settings: Settings, device: torch.device, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure the 1x1x1 convolutions of fused blocks, with the steps beside them, in both forms.

    One choice holds for all products of the same widths, so that those of other roles are measured with them.
    """
    import torch

    from lightning_csn.models import launch_product, roofline

    alike: dict[tuple[int, int], dict[str, roofline.Product]] = {}
    for product in roofline.products(settings.architecture, settings.clip):
        alike.setdefault((product.channels_in, product.channels), {}).setdefault(product.role, product)
    rows = []
    for (channels_in, channels), roles in alike.items():
        name, sizes = " and ".join(roles), next(iter(roles.values())).sizes
        tell(f"{name}, {channels_in} to {channels} channels, {sizes}")
        weight = torch.randn(channels, channels_in, 1, 1, 1, device=device)
        weight = weight.to(getattr(torch, PRECISIONS[settings.precision]))
        steps = []
        for role, product in roles.items():
            layer = roofline.Layer("1x1x1", channels_in, channels, product.sizes, product.sizes, (1, 1, 1), 0)
            x, _, grad = layer_tensors(layer, settings.layout, settings, device)
            steps.append(product_steps(role, x, weight, grad))
        times = launch_product.tune(
            lambda steps=steps: [step() for step in steps],  # type: ignore[misc]
            x,
            weight,
            lambda f: 1e3 * kernel_seconds(f, device, settings.repeats),
        )
        rows.append(
            {
                "kernel": f"{name} of {channels_in}",
                "channels": channels,
                "sizes": list(sizes),
                "default_ms": next(iter(times.values())),
                "best_ms": min(times.values()),
                "form": min(times, key=lambda form: times[form]),
            }
        )
    return rows


def tune_blocks(settings: Settings, device: torch.device, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure a training step with the depthwise kernels alone and with fused blocks, for the choice of "auto"."""
    import torch

    from lightning_csn.models import choices, fused, roofline

    measured = {}
    for backend in ("triton", "fused"):
        tell(f"a training step, {backend}")
        measured[backend] = measure_step(replace(ways_of(settings, ())[0], backend=backend), settings, device)
    ran = {backend: 1e3 * each.median for backend, each in measured.items() if each.error is None}
    if not ran:
        raise InputError(f"--tune: no training step runs: {measured['fused'].error}")
    best = min(ran, key=lambda backend: ran[backend])
    dtype, kind = getattr(torch, PRECISIONS[settings.precision]), roofline.kind_of_blocks(settings.architecture)
    choices.keep(fused.BLOCKS, fused.blocks_of(kind, dtype), device, best)
    row = {"kernel": "training step", "channels": 3, "sizes": list(settings.clip)}
    return [{**row, "default_ms": ran.get("triton"), "best_ms": ran[best], "backend": best}]


def measure_step(way: Way, settings: Settings, device: torch.device) -> Measured:
    """A way with its times, or why it does not run; nothing of it is left in memory."""
    from lightning_csn.models.depthwise import depthwise_backend

    measured, step = start(way, settings, device)
    if step is not None:
        with expected_failures(measured), depthwise_backend(way.backend):
            measured.seconds = [seconds_of(step, device, settings.steps) for _ in range(settings.repeats)]
    return measured


def product_steps(role: str, x: Tensor, weight: Tensor, grad: Tensor) -> Callable[[], Any]:
    """What a fused block does with its reduce, interact or expand in training, for which there are two forms."""
    import torch

    from lightning_csn.models import launch_product

    norm, last = (tensor.new_ones(5, tensor.shape[1], dtype=torch.float32) for tensor in (x, grad))
    if role == "reduce":  # its gradients are the library's in both forms
        return lambda: launch_product.product_statistics(x, None, weight)
    if role == "interact":
        return lambda: (
            launch_product.product_statistics(x, norm, weight),
            launch_product.product_gradient(grad, x, norm, weight, True),
        )
    parameters = (last[0], last[1], 1e-3)
    return lambda: (
        launch_product.statistics_sum(x, norm, weight, parameters, grad, None),
        launch_product.normalised_sum_gradient(grad, grad, x, norm, weight, last, True, True),
    )


def launches(layer: Layer, settings: Settings, device: torch.device) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """The kernels that a layer runs in training, each as a function of the tile."""
    import torch

    from lightning_csn.models import launch, tiles

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
        yield tiles.problem_of(name, grad, strides, last), function
