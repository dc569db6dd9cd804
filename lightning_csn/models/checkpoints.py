"""The public checkpoints by name, and every other place that weights may come from; loading, saving, verifying.

checkpoints.json is the table: what weights there are, where they lie, and the conventions that they were trained with.
One row of it is a Checkpoint. What `save` writes is the same row, as config.json, beside model.safetensors and a model
card, so that weights never travel without their conventions.

A source is one of
    ircsn_152_ig65m                        a name in the table (`list_checkpoints`)
    hf://owner/repo[@revision][/file]      a Hub repository that `save` filled, or one weights file there
    https://...#sha256=HEX                 a weights file elsewhere
    path                                   a weights file, or a folder that `save` wrote; ./name where a name would do

torch is imported where it is needed, so that the table alone is quick to read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fnmatch
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from lightning_csn.clip import ClipSpec, clip_values
from lightning_csn.errors import InputError
from lightning_csn.models.download import (
    HubFile,
    WeightsFile,
    fetch,
    fetch_first,
    hash_file,
    hub_revision,
    is_hub_address,
    is_web_address,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_csn.models.convert import Converted
    from lightning_csn.models.network import ResNet3D

logger = logging.getLogger(__name__)

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
CLIP_FIELDS = tuple(spec.name for spec in dataclasses.fields(ClipSpec))
# Of records that do not say it: all that were published, and those written before there was such a field.
CLIP_DEFAULTS = {
    spec.name: spec.default for spec in dataclasses.fields(ClipSpec) if spec.default is not dataclasses.MISSING
}
METADATA_KEY = "lightning_csn"  # of the record inside model.safetensors, so that the file alone is enough
AVERAGING_KEY = "ema"  # of a Lightning checkpoint whose weights are averages


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is known of a set of weights. None, and an empty list, say that nobody said.

    name: in the table, or of the table's row that the weights come from.
    num_classes: outputs; 0 for a trunk without a head.
    classes: their names, in order; never made up: None where the outputs have none.
    multi_label: whether a video may have several classes, so that each output is a yes or no of its own.
    pretrained_on, trained_on: data sets, the last one in `trained_on`. trained_by: the project that did it.
    clip: fields of ClipSpec. fps None is "as filmed"; any other None is not known and must be given (`clip_spec`).
    network: options of create_network.
    files: where the weights lie, tried in this order.
    accuracy: as others report it: {top1, top5, protocol, source}, in percent.
    measured: as we measured it, {..., protocol}.
    """

    architecture: str
    num_classes: int | None
    classes: list[str] | None = None
    name: str | None = None
    pretrained_on: str | None = None
    trained_on: str | None = None
    trained_by: str | None = None
    clip: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    files: list[WeightsFile] = field(default_factory=list)
    accuracy: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    licence: str | None = None
    paper: str | None = None
    sources: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    multi_label: bool = False

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], *, name: str | None = None) -> Checkpoint:
        """The record of checkpoints.json, of a config.json or of `to_dict`; InputError for one with other fields."""
        if not isinstance(record, Mapping):
            raise InputError(f"a checkpoint must be fields by name, got {record!r}")
        values = dict(record) | {"name": name or record.get("name")}
        if isinstance(values.get("classes"), str):
            values["classes"] = class_names(values["classes"])
        for field_name in ("clip", "network", "files"):
            if values.get(field_name) is None:
                values.pop(field_name, None)
        files = values.pop("files", [])
        if not isinstance(files, list):
            raise InputError(f"files must be a list, got {files!r}")
        values["files"] = [WeightsFile(**_checked_fields(WeightsFile, "one of files", file)) for file in files]
        checkpoint = cls(**_checked_fields(cls, "a checkpoint", values))
        clip = _clip_values(checkpoint.clip)
        checkpoint = dataclasses.replace(
            checkpoint, clip={name: clip.get(name, CLIP_DEFAULTS.get(name)) for name in CLIP_FIELDS}
        )
        if checkpoint.classes is not None and len(checkpoint.classes) != checkpoint.num_classes:
            raise InputError(f"{checkpoint.num_classes} classes, but {len(checkpoint.classes)} names")
        return checkpoint

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and hyper-parameters; the names of Kinetics as "kinetics400"."""
        record = dataclasses.asdict(self)
        if self.classes is not None and self.classes == class_names("kinetics400"):
            record["classes"] = "kinetics400"
        return json.loads(json.dumps(record))

    def clip_spec(self, given: Mapping[str, Any] | ClipSpec | None = None) -> ClipSpec:
        """How clips must look, with the values `given` over the record's own.

        Raises InputError where a value is neither known nor given.
        """
        values = self.clip | _clip_values(given)
        if unknown := [name for name in CLIP_FIELDS if values.get(name) is None and name != "fps"]:
            raise InputError(
                f"nobody published how clips for {self.name or 'these weights'} must look: "
                f"{', '.join(unknown)} unknown; pass clip={{{', '.join(f'{name!r}: ...' for name in unknown)}}}"
            )
        return ClipSpec(**values)

    def retrained(self, *, num_classes: int, classes: list[str] | None) -> Checkpoint:
        """The record of weights that training made of these: who, on what and how well is open again."""
        before = [data for data in (self.pretrained_on, self.trained_on) if data is not None]
        return dataclasses.replace(
            self,
            num_classes=num_classes,
            classes=classes,
            multi_label=False,
            pretrained_on=", ".join(before) or None,
            trained_on=None,
            trained_by=None,
            files=[],
            accuracy=None,
            measured=None,
            notes=[] if self.name is None else [f"Started from {self.name}."],  # the others were about those weights
        )


def _checked_fields(kind: type, what: str, record: object) -> dict[str, Any]:
    """The fields of a record from outside, for `kind(**fields)`; InputError names what it lacks or should not have."""
    if not isinstance(record, Mapping):
        raise InputError(f"{what} must be fields by name, got {record!r}")
    specs = {spec.name: spec for spec in dataclasses.fields(kind)}
    if unknown := sorted(str(name) for name in set(record) - set(specs)):
        raise InputError(f"fields that {what} does not have: {', '.join(unknown)}")
    needed = {name for name, spec in specs.items() if spec.default is spec.default_factory is dataclasses.MISSING}
    if missing := sorted(needed - set(record)):
        raise InputError(f"{what} needs {' and '.join(missing)}")
    types = get_type_hints(kind)
    for name, value in record.items():
        if not _fits(value, types[name]):
            raise InputError(f"{name} of {what} must be {specs[name].type}, got {value!r}")
    return dict(record)


def _fits(value: object, kind: Any) -> bool:
    """Whether a value from JSON is of a field's type.

    >>> _fits(["up", "down"], list[str] | None), _fits([1], list[str] | None), _fits(True, int)
    (True, False, False)
    """
    inner = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_fits(value, one) for one in inner)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, Mapping) and all(_fits(name, inner[0]) for name in value)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


@dataclass(frozen=True)
class Loaded:
    """A network in eval mode, and the record that describes it as it now is."""

    network: ResNet3D
    checkpoint: Checkpoint


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found.

    sha256: of the file. published_sha256: what it had to be; None where nobody says. published_sha1: the SHA-1 that it
        had to have, and has, for a publisher who gives one.
    finite: whether the logits of one fixed clip are finite; logits: the first four of them.
    """

    source: str
    path: Path
    bytes: int
    sha256: str
    published_sha256: str | None
    published_sha1: str | None
    architecture: str
    num_classes: int
    parameters: int
    finite: bool
    logits: list[float]

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against these weights."""
        return self.finite and self.published_sha256 in (None, self.sha256)


# ---------------------------------------------------------------- the table


@cache
def _table() -> dict[str, Checkpoint]:
    here = Path(__file__).resolve()
    places = (here.parents[1] / "checkpoints.json", here.parents[2] / "checkpoints.json")  # a wheel, the repository
    records = json.loads(next(place for place in places if place.is_file()).read_text(encoding="utf-8"))
    return {name: Checkpoint.from_dict(record, name=name) for name, record in records.items()}


@cache
def _kinetics400() -> tuple[str, ...]:
    return tuple(Path(__file__).with_name("kinetics400.txt").read_text(encoding="utf-8").splitlines())


def class_names(known_as: str) -> list[str]:
    """The classes of a data set, in the order of the outputs that were trained on it.

    >>> class_names("kinetics400")[:2]
    ['abseiling', 'air drumming']
    """
    if known_as != "kinetics400":
        raise InputError(f"no class names {known_as!r}; there are: kinetics400 (or give a list)")
    return list(_kinetics400())


def list_checkpoints(filter: str = "*") -> list[str]:
    """Names of the checkpoints that match a pattern.

    >>> list_checkpoints("ipcsn_152_*m")
    ['ipcsn_152_ig65m', 'ipcsn_152_sports1m']
    """
    return sorted(fnmatch.filter(_table(), filter))


def find_checkpoint(name: str) -> Checkpoint:
    """The record of a name; InputError with the nearest ones if there is none.

    >>> find_checkpoint("ircsn_152_ig65m").clip_spec().frames
    32
    """
    if name not in _table():
        raise _unknown_name(name)
    return _table()[name]


def _unknown_name(name: str) -> InputError:
    from lightning_csn.models.network import ARCHITECTURES

    if name in ARCHITECTURES:
        weights = [record for record in _table() if _table()[record].architecture == name]
        have = f"; with weights there are {', '.join(weights)}" if weights else ""
        return InputError(
            f"{name!r} is an architecture, without weights{have}; LitCSN({name!r}) trains it from scratch"
        )
    near = difflib.get_close_matches(name, _table(), n=5, cutoff=0.5)
    nearest = f"the nearest are {', '.join(near)}; " if near else ""
    return InputError(f"no checkpoint {name!r}, and no file or folder; {nearest}'lightning-csn checkpoints' lists all")


# ---------------------------------------------------------------- loading


def load(
    source: str | Path,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    clip: Mapping[str, Any] | ClipSpec | None = None,
    sha256: str | None = None,
    **network_options: Any,
) -> Loaded:
    """The network of a source, in eval mode, with everything that is known of it.

    num_classes: a new head (normal with 0.01, bias 0) if it is not the number that the weights have; 0 for features.
    classes: names of the outputs. Where the weights have other names, the head is new, too.
    clip: values over those of the record; they are not checked for being complete, see `Checkpoint.clip_spec`.
    sha256: what the weights file must have. network_options: over the record's own, for `create_network`.

    Every tensor has its place and every place its tensor; a new head is the only exception. Raises InputError with
    what does not fit, and for sources that cannot be had.
    """
    record, files = _find(source, sha256)
    path, _ = fetch_first(files)
    converted, record = _read(path, source, record)
    network, record = _build(converted, record, source, num_classes, classes, network_options)
    return Loaded(network, dataclasses.replace(record, clip=record.clip | _clip_values(clip)))


def load_network(
    source: str | Path, *, num_classes: int | None = None, sha256: str | None = None, **network_options: Any
) -> ResNet3D:
    """The network of a source, in eval mode: normalised clips (B, C, T, H, W) -> logits (B, K). See `load`."""
    return load(source, num_classes=num_classes, sha256=sha256, **network_options).network


def fetch_weights(source: str | Path, *, sha256: str | None = None) -> Path:
    """The weights file of a source, downloaded where it is not here yet; see `load` for sources and errors."""
    return fetch_first(_find(source, sha256)[1])[0]


def verify(source: str | Path, *, sha256: str | None = None) -> Verification:
    """Hash a source's file again, load it strictly, and run one small fixed clip through the network.

    Raises InputError where `load` does, a wrong hash among it.
    """
    import torch

    record, files = _find(source, sha256)
    path, file = fetch_first(files)
    converted, record = _read(path, source, record)
    network, record = _build(converted, record, source, None, None, {})
    shape = (1, converted.options.get("in_channels", 3), 8, 64, 64)
    clip = torch.linspace(-2, 2, 8 * 64 * 64 * shape[1]).sin().view(shape)
    with torch.inference_mode():
        logits = network(clip).flatten().double()
    return Verification(
        source=str(source),
        path=path,
        bytes=path.stat().st_size,
        sha256=hash_file(path),
        published_sha256=file.sha256,
        published_sha1=file.sha1,
        architecture=network.architecture,
        num_classes=network.num_classes,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        finite=bool(logits.isfinite().all()),
        logits=logits[:4].tolist(),
    )


def _clip_values(given: Mapping[str, Any] | ClipSpec | None) -> dict[str, Any]:
    values = clip_values(given)
    if unknown := sorted(set(values) - set(CLIP_FIELDS)):
        raise InputError(f"clip has no {', '.join(unknown)}; there are: {', '.join(CLIP_FIELDS)}")
    return values


def _find(source: str | Path, sha256: str | None) -> tuple[Checkpoint | None, list[WeightsFile]]:
    """What a source says of itself, if it does, and where its weights lie."""
    text = str(source)
    if is_hub_address(text):
        wanted = HubFile.parse(text)
        return _find_on_hub(wanted, sha256) if wanted.file is None else (None, [WeightsFile.parse(text, sha256)])
    if is_web_address(text) or text.startswith("package:"):
        return None, [WeightsFile.parse(text, sha256)]
    if isinstance(source, str) and source in _table():
        if sha256 is not None:
            raise InputError(f"{source} is a name, whose hashes are in the table; a sha256 is for an address or a file")
        record = _table()[source]
        return record, record.files
    path = Path(source).expanduser()
    if path.is_dir():
        return _find_in_folder(path, sha256)
    if path.is_file():
        return None, [WeightsFile.parse(path, sha256)]
    if path.suffix or len(path.parts) > 1 or text.endswith(("/", "\\")) or isinstance(source, Path):
        hint = f"; for a repository of the Hub, write hf://{text}" if len(path.parts) == 2 and not path.suffix else ""
        raise InputError(f"{text}: no such file or folder{hint}")
    raise _unknown_name(text)


def _find_in_folder(folder: Path, sha256: str | None) -> tuple[Checkpoint, list[WeightsFile]]:
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: a folder with weights has a {CONFIG}; give the path of the weights file itself")
    record = _read_config(folder / CONFIG, str(folder))
    return record, [
        dataclasses.replace(file, address=str(folder / file.address), sha256=sha256 or file.sha256)
        for file in _files_beside(record, str(folder))
    ]


def _find_on_hub(wanted: HubFile, sha256: str | None) -> tuple[Checkpoint, list[WeightsFile]]:
    repository = f"hf://{wanted.repo}" + (f"@{wanted.revision}" if wanted.revision else "")
    config = fetch(f"{repository}/{CONFIG}")
    # The weights of the same commit, whatever happens to the branch meanwhile.
    commit = hub_revision(config)
    pinned = f"hf://{wanted.repo}@{commit}" if commit else repository
    record = _read_config(config, repository)
    files = [
        dataclasses.replace(file, address=f"{pinned}/{file.address}", sha256=sha256 or file.sha256)
        for file in _files_beside(record, repository)
    ]
    return dataclasses.replace(record, files=files), files


def _read_config(path: Path, where: str) -> Checkpoint:
    try:
        return Checkpoint.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # InputError and what json raises are ValueErrors
        raise InputError(f"{where}: {CONFIG} was not written by lightning_csn ({error})") from error


def _files_beside(record: Checkpoint, where: str) -> list[WeightsFile]:
    """The files of a config.json: names in its own folder, so that it cannot point anywhere else."""
    files = record.files or [WeightsFile(address=WEIGHTS)]
    for file in files:
        if Path(file.address).name != file.address:
            raise InputError(f"{where}: {CONFIG} may only name files beside it, not {file.address!r}")
    return files


def _read(path: Path, source: str | Path, record: Checkpoint | None) -> tuple[Converted, Checkpoint]:
    """The tensors of a file under our names, and their record: the given one, the file's own, or what names show."""
    from lightning_csn.models.convert import convert
    from lightning_csn.models.tensors import read_tensors

    content = read_tensors(path)
    try:
        converted = convert(content.tensors)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    record = record or _record_inside(content.metadata, source)
    if record is None:
        record = Checkpoint.from_dict(
            {
                "architecture": converted.architecture,
                "num_classes": converted.num_classes,
                "clip": converted.clip,
                "sources": [str(source)],
            }
        )
    found = {"architecture": converted.architecture, "num_classes": converted.num_classes}
    for name, value in found.items():
        if getattr(record, name) not in (None, value):
            raise InputError(f"{source}: {name} should be {getattr(record, name)}, the tensors have {value} ({path})")
    return converted, dataclasses.replace(record, num_classes=converted.num_classes)


def _record_inside(metadata: Mapping[str, Any], source: str | Path) -> Checkpoint | None:
    """The record that `save` put into a safetensors file, or what a Lightning checkpoint's hyper-parameters say."""
    if METADATA_KEY in metadata:
        try:
            return Checkpoint.from_dict(json.loads(metadata[METADATA_KEY]))
        except ValueError as error:  # InputError among them
            raise InputError(f"{source}: the record inside was not written by lightning_csn ({error})") from error
    options = metadata.get("hyper_parameters")
    if not isinstance(options, Mapping) or not {"architecture", "num_classes", "clip", "network"} <= set(options):
        return None
    mine = {name: options.get(name) for name in ("architecture", "num_classes", "classes", "clip", "network")}
    mine["multi_label"] = options.get("multi_label", False)
    averages = averaging_text(metadata)
    notes = [] if averages is None else [f"The weights are {averages}."]
    if averages is not None:
        logger.info("%s: the weights are %s", source, averages)
    mine["notes"] = notes
    try:
        record = Checkpoint.from_dict(mine)
        if options.get("origin") is None:
            return record
        origin = Checkpoint.from_dict(options["origin"])
    except InputError as error:
        raise InputError(
            f"{source}: the hyper-parameters inside were not written by lightning_csn ({error})"
        ) from error
    trained = origin.retrained(num_classes=options["num_classes"], classes=None)
    mine["notes"] = trained.notes + notes
    return Checkpoint.from_dict(trained.to_dict() | mine)


def averaging_text(content: Mapping[str, Any]) -> str | None:
    """What to say of a Lightning checkpoint whose weights are averages; None of another.

    >>> averaging_text({"ema": {"decay": 0.999, "updates": 120}})
    'averages of the weights over 120 steps of training (EMA, decay 0.999)'
    """
    record = content.get(AVERAGING_KEY)
    if record is None:
        return None
    return f"averages of the weights over {record['updates']} steps of training (EMA, decay {record['decay']:g})"


def _build(
    converted: Converted,
    record: Checkpoint,
    source: str | Path,
    num_classes: int | None,
    classes: Sequence[str] | None,
    network_options: Mapping[str, Any],
) -> tuple[ResNet3D, Checkpoint]:
    """The network with its weights, and the record of what was built."""
    from lightning_csn.models.network import check_options, create_network

    names, number = None if classes is None else list(classes), count_classes(num_classes, classes)
    wanted = converted.num_classes if number is None else number
    other_names = names is not None and record.classes is not None and names != record.classes
    keeps_head = wanted == converted.num_classes and not other_names

    try:
        options = converted.options | check_options(record.network)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    options |= check_options(network_options)
    if options.get("inflate") is not None:
        raise InputError(f"{source}: inflate starts a network from 2D weights; these weights would take their place")
    network = create_network(converted.architecture, num_classes=wanted, **options)
    tensors = {name: tensor for name, tensor in converted.tensors.items() if keeps_head or not name.startswith("head.")}
    _fill(network, tensors, source, new_head=not keeps_head)
    if keeps_head:
        record = dataclasses.replace(record, classes=record.classes if names is None else names)
    else:
        if wanted:
            logger.warning(
                "%s: a new head for %d classes; the %d outputs of the weights are left out",
                source,
                wanted,
                converted.num_classes,
            )
        record = record.retrained(num_classes=wanted, classes=names)
    return network.eval(), dataclasses.replace(record, network=network.trunk_options)


def count_classes(num_classes: int | None, classes: Sequence[str] | None) -> int | None:
    """How many classes are asked for by number or names; None where neither is given.

    Raises InputError for names that are too few, twice there, or not of that number.

    >>> count_classes(None, ["left", "right"])
    2
    """
    if classes is None:
        return num_classes
    if len(classes) < 2:
        raise InputError(f"a classifier needs two classes or more, got {list(classes)}")
    if len(set(classes)) != len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise InputError(f"every class needs a name of its own, {twice!r} is there twice")
    if num_classes not in (None, len(classes)):
        raise InputError(f"num_classes is {num_classes}, but classes has {len(classes)} names")
    return len(classes)


def _fill(network: ResNet3D, tensors: Mapping[str, Tensor], source: str | Path, *, new_head: bool) -> None:
    """Copy the tensors into the network. InputError unless each has a place and each place, but for a new head, one."""
    import torch

    places = dict(network.state_dict())
    if new_head:
        places = {name: tensor for name, tensor in places.items() if not name.startswith("head.")}
    faults = []
    # Caffe2 counts no batches. The count is used by no network here, only by BatchNorm with momentum None.
    counters = {name for name in places if name.endswith("num_batches_tracked")}
    for fault, wrong in (
        ("missing", sorted(set(places) - set(tensors) - counters)),
        ("without a place", sorted(set(tensors) - set(places))),
        ("of another shape", sorted(n for n in set(places) & set(tensors) if places[n].shape != tensors[n].shape)),
    ):
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            faults.append(f"{len(wrong)} {fault}: {', '.join(map(repr, wrong[:5]))}{more}")
    if faults:
        raise InputError(f"{source}: the tensors do not fit {network.architecture}; {'; '.join(faults)}")
    with torch.no_grad():
        for name, place in places.items():
            if name in tensors:
                place.copy_(tensors[name])


# ---------------------------------------------------------------- saving


def save(network: ResNet3D, checkpoint: Checkpoint, folder: str | Path) -> Path:
    """Write model.safetensors, config.json and the model card into `folder`, whole or not at all.

    The folder may be there if it is empty or holds an earlier save, which is replaced. Raises InputError for a record
    of another network, a folder with other things in it, and a disk that does not take it.
    """
    import safetensors.torch

    for name in ("architecture", "num_classes"):
        if getattr(checkpoint, name) != getattr(network, name):
            raise InputError(
                f"{name} of the record is {getattr(checkpoint, name)!r}, the network's is {getattr(network, name)!r}"
            )
    if checkpoint.classes is not None and len(checkpoint.classes) != network.num_classes:
        raise InputError(f"{len(checkpoint.classes)} class names for {network.num_classes} outputs")
    checkpoint = dataclasses.replace(checkpoint, network=network.trunk_options, files=[])
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = safetensors.torch.save(
        tensors, {"format": "pt", METADATA_KEY: json.dumps(checkpoint.to_dict(), sort_keys=True)}
    )
    with _replacing(Path(folder).expanduser()) as aside:
        (aside / WEIGHTS).write_bytes(content)
        file = WeightsFile(
            address=WEIGHTS, format="lightning_csn", sha256=hash_file(aside / WEIGHTS), bytes=len(content)
        )
        checkpoint = dataclasses.replace(checkpoint, files=[file])
        config = checkpoint.to_dict() | {"classes": checkpoint.classes}  # every name, for readers without this package
        (aside / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (aside / CARD).write_text(model_card(checkpoint, Path(folder).name), encoding="utf-8")
    return Path(folder).expanduser()


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` once it is filled, or goes away if it cannot be."""
    if folder.exists():
        if not folder.is_dir():
            raise InputError(f"{folder} is a file; give a folder to save into")
        if others := sorted(set(os.listdir(folder)) - {WEIGHTS, CONFIG, CARD}):
            raise InputError(f"{folder} holds other things ({', '.join(others[:3])}); give a new or an empty folder")
    aside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        new = aside / "new"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(aside / "old")
        new.rename(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}; nothing was saved") from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def model_card(checkpoint: Checkpoint, title: str) -> str:
    """README.md of a Hub repository: what the weights are, how to use them, and how well they do by whose account."""
    header = {
        "library_name": "lightning_csn",
        "pipeline_tag": "video-classification",
        "tags": ["video-classification", "action-recognition", checkpoint.architecture.split("_")[0]],
    }
    if checkpoint.licence is not None:
        header["license"] = checkpoint.licence.lower()  # as the Hub spells them
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", "", f"# {title}", ""]
    outputs = f"{checkpoint.num_classes} classes" if checkpoint.num_classes else "no head"
    lines += [f"Weights of {checkpoint.architecture} ({outputs}) for lightning_csn.", ""]
    facts = {
        "trained on": checkpoint.trained_on,
        "before that": checkpoint.pretrained_on,
        "trained by": checkpoint.trained_by,
        "licence": checkpoint.licence,
        "paper": checkpoint.paper,
    }
    lines += [f"* {name}: {value}" for name, value in facts.items() if value is not None]
    lines += ["", "```python", "from lightning_csn import LitCSN", ""]
    lines += [f'model = LitCSN.from_pretrained("hf://OWNER/{title}")  # or the path of this folder', "```", ""]
    lines += ["## Clips", "", "Values that nobody published are null.", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {json.dumps(value)} |" for name, value in checkpoint.clip.items()]
    if checkpoint.accuracy is not None:
        lines += ["", "## Accuracy, as others report it", "", *_accuracy_lines(checkpoint.accuracy)]
    if checkpoint.measured is not None:
        lines += ["", "## Accuracy, as measured with lightning_csn", "", *_accuracy_lines(checkpoint.measured)]
    if checkpoint.notes:
        lines += ["", "## Notes", "", *(f"* {note}" for note in checkpoint.notes)]
    if checkpoint.sources:
        lines += ["", "## Sources", "", *(f"* {source}" for source in checkpoint.sources)]
    return "\n".join(lines) + "\n"


def _accuracy_lines(accuracy: Mapping[str, Any]) -> list[str]:
    return [f"* {name}: {value}" for name, value in accuracy.items() if value is not None]
