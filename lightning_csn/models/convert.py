"""Give the tensors of published checkpoints the names of this project's networks, each exactly once.

The projects that publish CSN weights train one network and name its parts in seven ways. Each way is a table here:
where a part of our network lies there. Which table a checkpoint belongs to is seen from its names, and which network
it is (ir-CSN, ip-CSN or ResNet3D, depth, classes, channels) from names and shapes. What tensors cannot show, such as
the BatchNorm's eps, stands beside the table, because the source's code fixes it.

No file is opened here: `tensors.read_tensors` does that.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_csn.errors import InputError
from lightning_csn.models.network import (
    ARCHITECTURES,
    Architecture,
    Bottleneck,
    Convolution,
    Simple,
    create_network,
    full,
    interaction_preserved,
    interaction_reduced,
)


@dataclass(frozen=True)
class Converted:
    """A checkpoint under our names, for `create_network(architecture, num_classes=num_classes, **options)`.

    source: the project whose names the tensors had.
    num_classes: 0 where the checkpoint has no head.
    tensors: every parameter and buffer of that network.
    options: `in_channels` and `groups` as the shapes say, and what the source's code fixes (`norm_eps`, `stem_pool`,
        `head_pooling`, `head_average`); tensors do not show these, so a record that knows better wins.
    clip: fields of a ClipSpec, those that are the same for everything the source published.
    ignored: names of tensors that belong to training, not to the network.
    """

    source: str
    architecture: str
    num_classes: int
    tensors: dict[str, Tensor]
    options: dict[str, Any]
    clip: dict[str, Any]
    ignored: tuple[str, ...]


# Endings of the names of one part: here -> there. A convolution has no bias.
PYTORCH = {
    "conv": {"weight": ".weight"},
    "norm": {name: f".{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")},
    "head": {"weight": ".weight", "bias": ".bias"},
}
BLOB = {
    "conv": {"weight": "_w"},
    # _riv holds the variance itself, whatever the name suggests: VMZ's own converter copies it as it is
    "norm": {"weight": "_s", "bias": "_b", "running_mean": "_rm", "running_var": "_riv"},
    "head": {"weight": "_w", "bias": "_b"},
}

# Parts: here -> (convolution there, norm there), without their endings. {s} is the stage from 1, {i} the block in its
# stage from 0, {n} the block in the whole network from 0, {k} the number of classes. Read off the projects' code:
# facebookresearch/VMZ 4cc542d, open-mmlab/mmaction2 4d6c934, facebookresearch/pytorchvideo f3142bb,
# facebookresearch/SlowFast 287ec00, dmlc/gluon-cv 5677756, and torchvision's models/video/resnet.py.
Parts = Mapping[str, tuple[str, ...]]

OURS_ENDS = {"stem": ("stem.conv", "stem.norm"), "head": ("head",)}
OURS_BLOCK = {
    step: (f"stage{{s}}.{{i}}.{step}.conv", f"stage{{s}}.{{i}}.{step}.norm")
    for step in ("reduce", "interact", "convolve", "expand", "convolve1", "convolve2", "shortcut")
}
OURS = {**OURS_ENDS, **{step: OURS_BLOCK[step] for step in ("reduce", "convolve", "expand", "shortcut")}}
OURS_IP = {**OURS, "interact": OURS_BLOCK["interact"]}
OURS_SIMPLE = {**OURS_ENDS, **{step: OURS_BLOCK[step] for step in ("convolve1", "convolve2", "shortcut")}}

TORCHVISION_SIMPLE = {
    "stem": ("stem.0", "stem.1"),
    "convolve1": ("layer{s}.{i}.conv1.0", "layer{s}.{i}.conv1.1"),
    "convolve2": ("layer{s}.{i}.conv2.0", "layer{s}.{i}.conv2.1"),
    "shortcut": ("layer{s}.{i}.downsample.0", "layer{s}.{i}.downsample.1"),
    "head": ("fc",),
}
VMZ = {
    "stem": ("stem.0", "stem.1"),
    "reduce": ("layer{s}.{i}.conv1.0", "layer{s}.{i}.conv1.1"),
    "convolve": ("layer{s}.{i}.conv2.0", "layer{s}.{i}.conv2.1"),
    "expand": ("layer{s}.{i}.conv3.0", "layer{s}.{i}.conv3.1"),
    "shortcut": ("layer{s}.{i}.downsample.0", "layer{s}.{i}.downsample.1"),
    "head": ("fc",),
}
VMZ_IP = {
    **VMZ,
    "interact": ("layer{s}.{i}.conv2.0.0", "layer{s}.{i}.conv2.0.1"),
    "convolve": ("layer{s}.{i}.conv2.0.2", "layer{s}.{i}.conv2.1"),
}
# The ir builder counts one convolution more than there is: 1, 3, 4.
CAFFE2 = {
    "stem": ("conv1", "conv1_spatbn_relu"),
    "reduce": ("comp_{n}_conv_1", "comp_{n}_spatbn_1"),
    "convolve": ("comp_{n}_conv_3", "comp_{n}_spatbn_3"),
    "expand": ("comp_{n}_conv_4", "comp_{n}_spatbn_4"),
    "shortcut": ("shortcut_projection_{n}", "shortcut_projection_{n}_spatbn"),
    "head": ("last_out_L{k}",),
}
CAFFE2_FULL = {
    **CAFFE2,
    "convolve": ("comp_{n}_conv_2", "comp_{n}_spatbn_2"),
    "expand": ("comp_{n}_conv_3", "comp_{n}_spatbn_3"),
}
CAFFE2_IP = {**CAFFE2_FULL, "interact": ("comp_{n}_conv_2_middle", "comp_{n}_spatbn_2_middle")}
CAFFE2_SIMPLE = {
    "stem": CAFFE2["stem"],
    "convolve1": ("comp_{n}_conv_1", "comp_{n}_spatbn_1"),
    "convolve2": ("comp_{n}_conv_2", "comp_{n}_spatbn_2"),
    "shortcut": CAFFE2["shortcut"],
    "head": CAFFE2["head"],
}
MMACTION2_TRUNK = {
    "stem": ("conv1.conv", "conv1.bn"),
    "reduce": ("layer{s}.{i}.conv1.conv", "layer{s}.{i}.conv1.bn"),
    "convolve": ("layer{s}.{i}.conv2.0.conv", "layer{s}.{i}.conv2.0.bn"),
    "expand": ("layer{s}.{i}.conv3.conv", "layer{s}.{i}.conv3.bn"),
    "shortcut": ("layer{s}.{i}.downsample.conv", "layer{s}.{i}.downsample.bn"),
}
# For ip, conv2.0 is the 1x1x1 convolution: the same name as ir's 3x3x3.
MMACTION2_TRUNK_IP = {
    **MMACTION2_TRUNK,
    "interact": ("layer{s}.{i}.conv2.0.conv", "layer{s}.{i}.conv2.0.bn"),
    "convolve": ("layer{s}.{i}.conv2.1.conv", "layer{s}.{i}.conv2.1.bn"),
}
MMACTION2_HEAD = {"head": ("cls_head.fc_cls",)}
PYTORCHVIDEO = {
    "stem": ("blocks.0.conv", "blocks.0.norm"),
    "reduce": ("blocks.{s}.res_blocks.{i}.branch2.conv_a", "blocks.{s}.res_blocks.{i}.branch2.norm_a"),
    "convolve": ("blocks.{s}.res_blocks.{i}.branch2.conv_b", "blocks.{s}.res_blocks.{i}.branch2.norm_b"),
    "expand": ("blocks.{s}.res_blocks.{i}.branch2.conv_c", "blocks.{s}.res_blocks.{i}.branch2.norm_c"),
    "shortcut": ("blocks.{s}.res_blocks.{i}.branch1_conv", "blocks.{s}.res_blocks.{i}.branch1_norm"),
    "head": ("blocks.5.proj",),
}
GLUONCV = {
    "stem": ("conv1", "bn1"),
    "reduce": ("layer{s}.{i}.conv1", "layer{s}.{i}.bn1"),
    "convolve": ("layer{s}.{i}.conv3", "layer{s}.{i}.bn3"),
    "expand": ("layer{s}.{i}.conv4", "layer{s}.{i}.bn4"),
    "shortcut": ("layer{s}.{i}.down_sample.0", "layer{s}.{i}.down_sample.1"),
    "head": ("out_fc",),
}


def _below(prefix: str, parts: Parts) -> dict[str, tuple[str, ...]]:
    """The same parts with `prefix` before their names."""
    return {part: tuple(prefix + name for name in names) for part, names in parts.items()}


def _fixed(
    norm_eps: float, stem_pool: bool = True, head_pooling: Any = "global", head_average: str = "logits"
) -> dict[str, Any]:
    """What a source's code fixes."""
    return {
        "norm_eps": norm_eps,
        "stem_pool": stem_pool,
        "head_pooling": head_pooling,
        "head_average": head_average,
    }


# Caffe2 averages T/8 x 7 x 7 windows; in time, 4 is the whole map of up to 32 frames.
WINDOWS = [4, 7, 7]
VMZ_COLOURS = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
IMAGENET_COLOURS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GREY = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225)}
EVERY_SECOND = {"frames": 32, "step": 2}
SIZES = {"short_side": 256, "crop": 224, "test_crop": 256}
R3D_18_CLIP = {"frames": 16, "step": 1, "fps": 15, "short_side": 128, "crop": 112, "test_crop": 112}


@dataclass(frozen=True)
class Layout:
    """How one project names one kind of network, and what else it fixes.

    leftovers: pattern of names that belong to training, not to the network.
    """

    source: str
    parts: Parts
    options: Mapping[str, Any] = field(default_factory=dict)
    clip: Mapping[str, Any] = field(default_factory=dict)
    endings: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: PYTORCH)
    leftovers: str = r"(?!)"  # no name at all

    @cached_property
    def names(self) -> dict[str, str]:
        """Of every tensor: the name here, without stage and block -> the name there, with {s}, {i}, {n} or {k}."""
        names = {}
        for part, theres in self.parts.items():
            kinds = ("head",) if part == "head" else ("conv", "norm")
            for kind, there in zip(kinds, theres, strict=True):
                for ending, ending_there in self.endings[kind].items():
                    here = f"head.{ending}" if part == "head" else f"{part}.{kind}.{ending}"
                    names[here] = there + ending_there
        return names

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        there = (re.sub(r"\\{\w\\}", r"\\d+", re.escape(name)) for name in self.names.values())
        return re.compile("|".join(there))

    def knows(self, name: str) -> bool:
        """Whether a tensor of this name has a place in some network of this layout."""
        return self._pattern.fullmatch(name) is not None

    def find(self, here: str, names: Collection[str]) -> dict[str, dict[str, str]]:
        """Those of `names` that are `here` in some stage and block -> the numbers in them."""
        pattern = re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(self.names[here])))
        return {name: found.groupdict() for name in names if (found := pattern.fullmatch(name))}

    def name(self, here: str, architecture: Architecture, classes: str) -> str | None:
        """The name there of one tensor of a network; None if the project keeps nothing of the kind."""
        numbers = {"k": classes}
        if found := re.match(r"stage(\d)\.(\d+)\.", here):
            stage, block = int(found[1]), int(found[2])
            numbers |= {"s": found[1], "i": found[2], "n": str(sum(architecture.blocks[: stage - 1]) + block)}
            here = here[found.end() :]
        there = self.names.get(here)
        return None if there is None else there.format(**numbers)


# A checkpoint belongs to the first layout that knows most of its names, so what has fewer parts comes first.
# torchvision's r3d_18 and VMZ's have the same names and shapes; only torchvision's is published.
LAYOUTS = (
    Layout("lightning_csn", OURS_SIMPLE),
    Layout("lightning_csn", OURS),
    Layout("lightning_csn", OURS_IP),
    Layout("torchvision", TORCHVISION_SIMPLE, _fixed(1e-5, stem_pool=False), {**R3D_18_CLIP, **VMZ_COLOURS}),
    Layout("vmz", TORCHVISION_SIMPLE, _fixed(1e-3), VMZ_COLOURS),
    Layout("vmz", VMZ, _fixed(1e-3), VMZ_COLOURS),
    Layout("vmz", VMZ_IP, _fixed(1e-3), VMZ_COLOURS),
    *(
        Layout(
            "caffe2",
            parts,
            _fixed(1e-3, pooled, WINDOWS, "probabilities"),
            {**EVERY_SECOND, "fps": 30, **SIZES, **VMZ_COLOURS} if pooled else VMZ_COLOURS,
            BLOB,
            leftovers=r".*momentum.*|.*_lr(_.*)?|lr|model_iter|.*optimizer_iteration.*|iteration_mutex.*",
        )
        # `use_pool1` is off unless asked for, and VMZ's scripts ask for it when they train CSN only
        for parts, pooled in ((CAFFE2_SIMPLE, False), (CAFFE2_FULL, False), (CAFFE2, True), (CAFFE2_IP, True))
    ),
    # ported and own weights differ in mean and std, so those are not given
    *(
        Layout("mmaction2", parts, _fixed(1e-3), {**EVERY_SECOND, **SIZES}, leftovers=r"data_preprocessor\.(mean|std)")
        for parts in (
            {**_below("backbone.", MMACTION2_TRUNK), **MMACTION2_HEAD},
            {**_below("backbone.", MMACTION2_TRUNK_IP), **MMACTION2_HEAD},
            MMACTION2_TRUNK,  # the "_from_scratch_" files, from which it fine-tunes
            MMACTION2_TRUNK_IP,
        )
    ),
    Layout(
        "pytorchvideo", PYTORCHVIDEO, _fixed(1e-5, head_pooling=WINDOWS), {**EVERY_SECOND, "fps": 30, **SIZES, **GREY}
    ),
    Layout(
        "pyslowfast",
        _below("model.", PYTORCHVIDEO),
        _fixed(1e-5, head_pooling=WINDOWS, head_average="probabilities"),
        {**EVERY_SECOND, "fps": 30, **SIZES, **GREY},
    ),
    Layout("gluoncv", GLUONCV, _fixed(1e-3), {**EVERY_SECOND, **IMAGENET_COLOURS}),
)
SOURCES = tuple(dict.fromkeys(layout.source for layout in LAYOUTS))
WRAPPERS = ("module.", "_orig_mod.", "network.")  # DataParallel, torch.compile, and LitCSN in a Lightning checkpoint


def convert(tensors: Mapping[str, Tensor], source: str | None = None) -> Converted:
    """Tensors of a published checkpoint under our names.

    source: one of SOURCES, where names are not enough: VMZ's PyTorch code and torchvision name an r3d_18 alike (by
        default it is torchvision's). Our own names say nothing of eps and pooling, so `options` lacks them there.

    A checkpoint without a head gives num_classes 0. Counters of batches may be absent and are then 0. The tensors are
    passed on as they are, not copied. Raises InputError for names of no known project, and with the names for tensors
    that are missing, have no place, or have the wrong shape or type.

    >>> network = create_network("ipcsn_tiny", num_classes=5)
    >>> converted = convert(network.state_dict())
    >>> converted.source, converted.architecture, converted.num_classes
    ('lightning_csn', 'ipcsn_tiny', 5)
    """
    layout, prefix = _recognise(tensors, source)
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    heads = layout.find("head.weight", inside) if "head" in layout.parts else {}
    head, numbers = next(iter(heads.items()), (None, {}))
    num_classes = 0 if head is None or inside[head].ndim == 0 else inside[head].shape[0]
    stem = inside.get(layout.names["stem.conv.weight"])
    in_channels = 3 if stem is None or stem.ndim != 5 else max(stem.shape[1], 1)
    architecture, groups = _read_architecture(layout, inside)
    with torch.device("meta"):
        network = create_network(architecture, num_classes=num_classes, in_channels=in_channels, groups=groups)

    converted, used, missing, wrong = {}, set(), [], []
    for here, wanted in network.state_dict().items():
        there = layout.name(here, ARCHITECTURES[architecture], numbers.get("k", ""))
        tensor = None if there is None else inside.get(there)
        if tensor is not None:
            used.add(prefix + str(there))
            converted[here] = tensor
            if tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point():
                found = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
                wrong.append(f"'{prefix}{there}' is {found}, not {tuple(wanted.shape)}")
        elif here.endswith("num_batches_tracked"):
            converted[here] = torch.zeros(wanted.shape, dtype=wanted.dtype)
        else:
            missing.append(f"'{prefix}{there}'")
    rest = [name for name in tensors if name not in used]
    ignored = tuple(name for name in rest if re.fullmatch(layout.leftovers, name.removeprefix(prefix)))
    surplus = [repr(name) for name in rest if name not in ignored]
    if missing or surplus or wrong:
        faults = {"missing": missing, "without a place": surplus, "of the wrong shape or type": wrong}
        listed = "; ".join(f"{len(names)} {fault}: {_shorten(names)}" for fault, names in faults.items() if names)
        raise InputError(f"these tensors are named most like {layout.source}'s {architecture}, but {listed}")
    options = {**copy.deepcopy(layout.options), "in_channels": in_channels, "groups": groups}
    clip = dict(copy.deepcopy(layout.clip))
    return Converted(layout.source, architecture, num_classes, converted, options, clip, ignored)


def _recognise(tensors: Mapping[str, Tensor], source: str | None) -> tuple[Layout, str]:
    """The layout that knows most of the names, and what stands before all of them."""
    if source is not None and source not in SOURCES:
        raise InputError(f"no source {source!r}; there are: {', '.join(SOURCES)}")
    prefix = ""
    while wrapper := next((w for w in WRAPPERS if _share(name.startswith(prefix + w) for name in tensors) > 0.5), None):
        prefix += wrapper
    names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
    layouts = [layout for layout in LAYOUTS if source in (None, layout.source)]
    best = max(layouts, key=lambda layout: sum(map(layout.knows, names)))  # the first of equals
    if not any(map(best.knows, names)):
        raise InputError(
            f"the names of these tensors are not those of {source or ', '.join(SOURCES)}:"
            f" {_shorten([repr(name) for name in tensors]) or 'there are none'}"
        )
    return best, prefix


def _read_architecture(layout: Layout, tensors: Mapping[str, Tensor]) -> tuple[str, int | None]:
    """The architecture whose blocks are nearest to those that the names count, and the groups of its 3x3x3 layers."""
    block: type[Simple] | type[Bottleneck] = Simple if "convolve2" in layout.parts else Bottleneck
    convolve = "convolve2.conv.weight" if block is Simple else "convolve.conv.weight"
    blocks = layout.find(convolve, tensors)
    shapes = [tensors[name].shape for name in blocks if tensors[name].ndim == 5 and tensors[name].shape[1]]
    groups = Counter(shape[0] // shape[1] for shape in shapes).most_common(1)  # one wrong tensor must not decide
    depthwise = _share(shape[1] == 1 for shape in shapes) > 0.5
    convolution: Convolution = full
    if "interact" in layout.parts:
        convolution = interaction_preserved
    elif depthwise and block is Bottleneck:
        convolution = interaction_reduced

    def distance(architecture: Architecture) -> int:
        heres = [f"stage{s}.{i}.{convolve}" for s, count in enumerate(architecture.blocks, 1) for i in range(count)]
        return len({layout.name(here, architecture, "") for here in heres} ^ set(blocks))

    candidates = {
        name: row for name, row in ARCHITECTURES.items() if row.block is block and row.convolution is convolution
    }
    nearest = min(candidates, key=lambda name: distance(candidates[name]))
    grouped = convolution is full and groups and groups[0][0] > 1
    return nearest, groups[0][0] if grouped else None


def _share(answers: Any) -> float:
    answers = list(answers)
    return sum(answers) / max(len(answers), 1)


def _shorten(names: list[str]) -> str:
    """At most ten of them."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
