"""The scores of each view of a test in one .npz file, so that another average costs no second run.

Shapes: N videos, V views of each, K classes. The views of a video are ordered by clip, then by crop. A file holds

- videos int64 (N,): numbers within the split, ascending. labels int64 (N,), or float32 (N, K) of 0 and 1.
- logits float32 (N, V, K). short bool (N,): shorter than a clip. blank bool (N,): unreadable, scored as gray clips.
- paths (N,): where the data has paths, else empty.
- unreadable int64 (U,) and messages (U,): what could not be read, and why.
- about: text, the JSON of About.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_csn.errors import InputError
from lightning_csn.fingerprints import video_text
from lightning_csn.metrics import VideoScores, average_precisions, mean_to_score, protocol_text, seen_text

VERSION = 1
_ARRAYS = ("videos", "labels", "logits", "short", "blank", "unreadable", "messages", "about")  # of parts too


@dataclass(frozen=True, kw_only=True)
class About:
    """Whose scores these are, of what, and how they were measured.

    network: sha256 of the weights. videos: what is known of the videos of the split (see fingerprints.py); None where
    the data does not tell. protocol: as LitCSN.protocol gives it. average: what the test took the mean of.
    classes: their names, None where they have none. multi_label: whether a video may have several.
    """

    network: str
    videos: dict[str, Any] | None
    protocol: dict[str, Any]
    average: str
    classes: list[str] | None
    multi_label: bool
    version: int = VERSION

    def differences(self, other: About) -> list[str]:
        """In what the tests differ, so that the scores of one are not those of the other; the average is no such thing.

        >>> one = About(network="ab" * 32, videos=None, protocol={"clips": 10}, average="logits", classes=None,
        ...             multi_label=False)
        >>> one.differences(dataclasses.replace(one, network="cd" * 32, protocol={"clips": 5}))
        ['network abababababab and cdcdcdcdcdcd (sha256)', 'clips 10 and 5']
        """
        found = []
        if self.network != other.network:
            found.append(f"network {self.network[:12]} and {other.network[:12]} (sha256)")
        if self.videos != other.videos:
            found.append(f"videos {video_text(self.videos)} and {video_text(other.videos)}")
        names = self.protocol | other.protocol
        mine, theirs = self.protocol, other.protocol
        found += [
            f"{name} {mine.get(name)} and {theirs.get(name)}" for name in names if mine.get(name) != theirs.get(name)
        ]
        if self.multi_label != other.multi_label:
            found.append(f"multi_label {self.multi_label} and {other.multi_label}")
        return found


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The logits of each view of the videos of a test; the fields are those of the file.

    views: which views these are, in words.
    """

    videos: Tensor
    labels: Tensor
    logits: Tensor
    short: Tensor
    blank: Tensor
    paths: list[str]
    unreadable: dict[int, str]
    about: About
    views: str

    def probabilities(self, average: str | None = None) -> Tensor:
        """Probabilities (N, K), the same to the last digit as in a test with this `average`; None is the test's own."""
        return mean_to_score(self.logits, average or self.about.average, multi_label=self.about.multi_label)

    def compute(self, average: str | None = None) -> dict[str, float]:
        """The figures of VideoScores, the same to the last digit as those of a test with this `average`."""
        scores = VideoScores(self.logits.shape[-1], multi_label=self.about.multi_label)
        short, blank = (self.videos[chosen].tolist() for chosen in (self.short, self.blank))
        scores.update(self.videos, self.labels, self.probabilities(average), list(self.unreadable), short, blank)
        return {name: value.item() for name, value in scores.compute().items()}

    def select(self, clips: Sequence[int] | None = None, crops: Sequence[int] | None = None) -> Scores:
        """With the views of these clips and crops alone, numbered from 0; None for all.

        A file that does not tell its clips and crops has V clips of one crop. InputError for numbers not there.
        """
        protocol = self.about.protocol
        views = self.logits.shape[1]
        num_clips = protocol["clips"] or views
        num_crops = views // num_clips
        picked = []
        for name, chosen, count in (("clips", clips, num_clips), ("crops", crops, num_crops)):
            chosen = range(count) if chosen is None else sorted(set(chosen))
            if not chosen or chosen[0] < 0 or chosen[-1] >= count:
                raise InputError(f"{name} {listed(chosen)}: there are {name} 0 to {count - 1}")
            picked.append((name, chosen, count))
        (_, clips, _), (_, crops, _) = picked
        if len(clips) * len(crops) == views:
            return self
        words = (
            f"{count} {name}" if len(chosen) == count else f"{name} {listed(chosen)} of {count}"
            for name, chosen, count in picked
        )
        numbers = [clip * num_crops + crop for clip in clips for crop in crops]
        return dataclasses.replace(self, logits=self.logits[:, numbers], views=" x ".join(words))

    def protocol(self, average: str | None = None) -> str:
        """How the figures were measured, in words."""
        return protocol_text(self.about.protocol, average or self.about.average, self.views)

    def class_names(self) -> list[str]:
        """Names of the K classes; their numbers where they have none."""
        return self.about.classes or [str(number) for number in range(self.logits.shape[-1])]

    def per_class(self, average: str | None = None) -> list[dict[str, Any]]:
        """Of each class that any video has: class, videos, and top1 (or average_precision, with multi_label)."""
        probabilities = self.probabilities(average)
        if self.about.multi_label:
            name, counts, figures = (
                "average_precision",
                self.labels.sum(0),
                average_precisions(self.labels, probabilities),
            )
        else:
            k = len(self.class_names())
            name, counts = "top1", torch.bincount(self.labels, minlength=k)
            figures = torch.bincount(self.labels[probabilities.argmax(-1) == self.labels], minlength=k) / counts
        rows = zip(self.class_names(), counts.tolist(), figures.tolist(), strict=True)
        return [{"class": each, "videos": int(count), name: figure} for each, count, figure in rows if count]

    def confusion(self, average: str | None = None) -> list[dict[str, Any]]:
        """How many videos of which class got which answer: class, answer, videos, for all that is not 0.

        With multi_label, of each class: class, and how many videos are right and wrong where 0.5 and more is a yes:
        true_positives, false_positives, false_negatives, true_negatives.
        """
        names, probabilities = self.class_names(), self.probabilities(average)
        if self.about.multi_label:
            truth, answer = self.labels.bool(), probabilities >= 0.5
            kinds = {
                "true_positives": truth & answer,
                "false_positives": ~truth & answer,
                "false_negatives": truth & ~answer,
                "true_negatives": ~truth & ~answer,
            }
            counts = {kind: found.sum(0).tolist() for kind, found in kinds.items()}
            return [{"class": name} | {kind: counts[kind][k] for kind in kinds} for k, name in enumerate(names)]
        pairs = torch.bincount(self.labels * len(names) + probabilities.argmax(-1), minlength=len(names) ** 2)
        return [
            {"class": names[pair // len(names)], "answer": names[pair % len(names)], "videos": int(pairs[pair])}
            for pair in pairs.nonzero()[:, 0].tolist()
        ]


def parts_folder(path: Path) -> Path:
    """Where the parts of a file of scores lie before it is written."""
    return path.with_name(f"{path.name}.parts")


def pack(arrays: dict[str, np.ndarray], unreadable: Mapping[int, str], about: About) -> dict[str, np.ndarray]:
    """The arrays of a file."""
    return arrays | {
        "unreadable": np.array(list(unreadable), dtype=np.int64),
        "messages": np.array(list(unreadable.values()), dtype=str),
        "about": np.array(json.dumps(dataclasses.asdict(about))),
    }


def write_arrays(path: Path, arrays: dict[str, np.ndarray], folder: Path | None = None) -> None:
    """Write an .npz file: in a folder (without one, beside its place), then renamed, so that a file there is whole."""
    beside = (folder or path.parent) / f"{path.name}.tmp"
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # names of arrays, none of which is allow_pickle
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where not even the folder is there
            beside.unlink()
        raise InputError(f"{path}: the scores cannot be written: {error.strerror}") from error


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some arrays of a file of scores; InputError where it is none."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:  # np.load leaves bad files open
            return {name: arrays[name] for name in names if name in arrays or name in _ARRAYS}
    except OSError as error:
        raise InputError(f"{path}: the scores cannot be read: {error.strerror or error}") from error
    except (
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:  # of NumPy, about pickles, of which none is read
        raise InputError(f"{path}: no scores of a test, or a damaged file") from error


def read_scores(path: str | os.PathLike[str]) -> Scores:
    """The scores of a test; InputError where the file is none, or not finished."""
    path = Path(path)
    if not path.exists() and parts_folder(path).is_dir():
        raise InputError(
            f"{path}: the test was stopped before all its videos were scored; the same command again goes on with it"
        )
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; 'lightning-csn test ... --scores {path}' writes it")
    return merge([path])


def read_about(path: Path) -> About:
    """Whose scores a file or a part holds."""
    values = json.loads(str(read_arrays(path, ["about"])["about"]))
    if values.get("version") != VERSION:
        raise InputError(
            f"{path}: scores of version {values.get('version')}, this lightning-csn reads version {VERSION}"
        )
    return About(**values)


def merge(paths: Sequence[Path], about: About | None = None) -> Scores:
    """What files and parts of one test hold together, each video once, in the order of their numbers.

    Of a video that several hold, one that could be read is taken, and else that of the first file. about: of the test;
    InputError where a file is of another. Without it the first file says what it is of.
    """
    expected = about or read_about(paths[0])
    places: dict[int, tuple[bool, int, int]] = {}  # of each video: blank, file, row
    few: list[dict[str, np.ndarray]] = []
    messages: dict[int, str] = {}
    known: dict[int, str] = {}
    for i, path in enumerate(paths):
        if differences := read_about(path).differences(expected):
            raise InputError(
                f"{path} holds the scores of another test (there and here): {'; '.join(differences)}; give another "
                "file for the scores, or delete that one"
            )
        few.append(read_arrays(path, ["videos", "labels", "short", "blank", "unreadable", "messages", "paths"]))
        rows = zip(few[i]["videos"].tolist(), few[i]["blank"].tolist(), strict=True)
        for row, (video, blank) in enumerate(rows):
            places[video] = min(places.get(video, (True, len(paths), 0)), (blank, i, row))
        messages |= dict(zip(few[i]["unreadable"].tolist(), few[i]["messages"].tolist(), strict=True))
        known |= dict(zip(few[i]["videos"].tolist(), few[i].get("paths", np.array([])).tolist(), strict=False))
    videos = sorted(places)
    logits: np.ndarray = np.empty(0)
    for i, path in enumerate(paths):  # one after the other: those of a large test may be all that fits into memory
        found = read_arrays(path, ["logits"])["logits"]
        if i == 0:
            logits = np.empty((len(videos), *found.shape[1:]), dtype=np.float32)
        if found.shape[1:] != logits.shape[1:]:
            raise InputError(f"{path}: {found.shape[1:]} views and classes, but {logits.shape[1:]} in {paths[0]}")
        chosen = [(place, places[video][2]) for place, video in enumerate(videos) if places[video][1] == i]
        if chosen:
            target, source = np.array(chosen).T
            logits[target] = found[source]

    def column(name: str) -> Tensor:
        rows = [few[i][name][row] for _, i, row in (places[video] for video in videos)]
        return torch.from_numpy(np.array(rows, dtype=few[0][name].dtype).reshape(len(videos), *few[0][name].shape[1:]))

    scores = {name: column(name) for name in ("videos", "labels", "short", "blank")}
    return Scores(
        **scores,
        logits=torch.from_numpy(logits),
        paths=[known.get(video, "") for video in videos],
        unreadable={n: messages[n] for n in sorted(messages) if n not in places or places[n][0]},
        about=expected,
        views=seen_text(expected.protocol, logits.shape[1]),
    )


def listed(numbers: Sequence[int]) -> str:
    """Numbers in words.

    >>> listed([0, 2, 4])
    '0, 2, 4'
    """
    return ", ".join(map(str, numbers))
