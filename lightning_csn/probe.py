"""How well a small classifier tells the classes apart by the features of a network that is not trained any further.

    report, probe = fit_probe(read_features("features.npz"))     linear or k-NN, cross-validated, on a CPU
    save_probe(probe, "my_head")                                 LitCSN.from_pretrained("my_head") has it as its head

It is the first figure to have of a data set, and the one that fine-tuning has to beat.

Shapes: N videos, D features, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_csn.errors import InputError, check_choice, check_count
from lightning_csn.feature_file import Features
from lightning_csn.fingerprints import hash_trunk
from lightning_csn.metrics import average_precisions
from lightning_csn.models import checkpoints

FIT_ON = ("train", "all")  # the split that is fitted on: the first of these that there is
GRIDS: dict[
    str, list[float]
] = {  # C, or the neighbours, of which one is chosen by cross-validation; of equals the first
    "linear": [1e-4, 1e-3, 1e-2, 0.1, 1, 10],
    "knn": [1, 3, 5, 10, 20],
}
CHOOSING_FOLDS = 3  # in which the choice is made, inside each fold of the figures
FEWEST = 4  # videos of the largest class, and groups: with fewer, no fold has two to choose by


@dataclass(frozen=True)
class Score:
    """Shares of 1: of videos that are answered right, and the mean F1 of the classes that a video has or is given.

    map: in place of these, where videos may have several labels: the mean of the average precisions of the classes that
        a video has.
    """

    top1: float | None = None
    macro_f1: float | None = None
    map: float | None = None

    def figures(self) -> dict[str, float]:
        """Those that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class ClassScore:
    """How a class is told: videos that have it; of those given it, the share that have it, and the other way round.

    Where videos may have several labels, given are those with a probability of 0.5 or more.
    """

    name: str
    videos: int
    precision: float
    recall: float
    f1: float
    average_precision: float | None = None  # where videos may have several labels, for a class that one has


@dataclass(frozen=True)
class Held:
    """Figures on videos that nothing was fitted or chosen on; majority: those of the commonest class for all, or of a
    class's share as its probability for all, where they may have several.
    """

    videos: int
    score: Score
    majority: Score
    classes: list[ClassScore]
    confusion: list[list[int]]  # row: what it is; column: what it is taken for; none of several labels


@dataclass(frozen=True)
class Report:
    """What a probe is worth.

    fitted_on: the split, of `videos` videos and `features` features. chosen: C or the number of neighbours.
    folds, majority_folds: figures of each fold of that split, fitted and chosen on the others; of the same folds, what
        answering the same for all is worth. held: of each other split; without any, of "folds" the figures of
        all folds' answers together.
    """

    kind: str
    fitted_on: str
    videos: int
    features: int
    chosen: dict[str, float]
    folds: list[Score]
    majority_folds: list[Score]
    grouped: bool
    held: dict[str, Held]
    class_names: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """A fitted classifier, as scikit-learn has it, of features that `manifest` describes."""

    kind: str
    pipeline: Any
    classes: list[str]
    manifest: dict[str, Any]
    multi_label: bool = False


def fit_probe(
    features: Features,
    held: Features | None = None,
    *,
    kind: str = "linear",
    folds: int = 5,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Report, Probe]:
    """A classifier of the features of split train (or all), and its figures.

    held: further features of the same network, all of which are held out; without it the other splits of `features`.
    kind: linear, a logistic regression on standardised features; or knn, the neighbours of least angle between them.
        How strong the regression's penalty is, or how many neighbours vote, is chosen by macro F1 in three folds. Where
        videos may have several labels, each class has a regression of its own, and the choice is by mAP.
    folds: that the videos are divided into, with equal shares of each class (of several, of the rarest), but no more
        than the largest class has videos; each is judged by what the others fit and choose. 0 leaves that out, where
        there are videos held out.
    groups: of each video of `features`, a name; videos of one name lie in one fold.
    seed: of which videos share a fold.

    Videos without a label are left out, unless they may have several. Raises InputError for fewer than two classes, and
    too few videos.
    """
    check_choice("kind", kind, tuple(GRIDS))
    if folds != 0:
        check_count("folds", folds, least=2)
    check_count("seed", seed, least=0)
    check_alike(features, held)
    splits = np.array(features.splits)
    fitted_on = next((split for split in FIT_ON if split in splits), None)
    if fitted_on is None:
        there = ", ".join(sorted(set(features.splits) - {""})) or "videos without classes"
        raise InputError(f"no features of split train to fit on, only {there}")
    chosen = (splits == fitted_on) & labelled(features)
    x, y = features.pooled()[chosen], features.labels[chosen]
    names = None if groups is None else np.array(groups)[chosen]
    check_enough(y, features.classes, names)
    others = held_out(features, held, fitted_on)
    if folds == 0 and not others:
        raise InputError(f"{fitted_on} is the only split: without folds there is no figure; --folds 5 has some")

    scores, majorities, answers = [], [], np.zeros(y.shape, np.float64 if y.ndim > 1 else np.int64)
    for train, test in divide(rarest(y), names, folds, seed) if folds else ():
        group = None if names is None else names[train]
        answers[test] = answer(search(x[train], y[train], group, kind, seed), x[test])
        scores.append(score(y[test], answers[test]))
        majorities.append(score(y[test], same(y[train], len(test))))
    found = search(x, y, names, kind, seed)
    judged = {
        split: judge(truth, answer(found, rows), same(y, len(truth)), features.classes)
        for split, (rows, truth) in others.items()
    } or {"folds": judge(y, answers, same(y, len(y)), features.classes)}
    report = Report(
        kind=kind,
        fitted_on=fitted_on,
        videos=len(y),
        features=x.shape[1],
        chosen={name.rpartition("__")[2]: value for name, value in found.best_params_.items()},
        folds=scores,
        majority_folds=majorities,
        grouped=groups is not None,
        held=judged,
        class_names=features.classes,
    )
    return report, Probe(kind, found.best_estimator_, features.classes, features.manifest, y.ndim > 1)


def search(x: np.ndarray, y: np.ndarray, groups: np.ndarray | None, kind: str, seed: int) -> Any:
    """scikit-learn's GridSearchCV, fitted: what was chosen in folds of these videos, fitted to all of them."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    several = y.ndim > 1
    folds = divide(rarest(y), groups, CHOOSING_FOLDS, seed)
    values = GRIDS[kind]
    if kind == "linear":
        regression = LogisticRegression(max_iter=1000)
        classifier: Any = OneVsRestClassifier(regression) if several else regression
        option = "estimator__C" if several else "C"
    else:
        fewest = min(len(train) for train, _ in folds)
        values = [value for value in values if value <= fewest]
        # The regressor's answer to zeros and ones are the shares of the neighbours.
        classifier = (KNeighborsRegressor if several else KNeighborsClassifier)(metric="cosine")
        option = "n_neighbors"
    steps = Pipeline([("scale", StandardScaler()), ("classifier", classifier)])
    scoring = (lambda fitted, rows, truth: score(truth, answer(fitted, rows)).map) if several else "f1_macro"
    with warnings.catch_warnings():
        # A penalty so weak that the fit is not at its end after so many steps is as good as none.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Of several labels, a class that none or all of a fold's videos have is answered with 0 or 1.
        warnings.filterwarnings("ignore", message="Label .* is present in all")
        return GridSearchCV(steps, {f"classifier__{option}": values}, scoring=scoring, cv=folds).fit(x, y)


def answer(fitted: Any, x: np.ndarray) -> np.ndarray:
    """Of each video its class (N,), or where it may have several, their probabilities (N, K)."""
    from sklearn.multiclass import OneVsRestClassifier

    classifier = getattr(fitted, "best_estimator_", fitted).named_steps["classifier"]
    found: np.ndarray = fitted.predict_proba(x) if isinstance(classifier, OneVsRestClassifier) else fitted.predict(x)
    return found


def labelled(features: Features) -> np.ndarray:
    """Which videos have a label, bool (N,); all where they may have several, and so none."""
    return np.ones(len(features.labels), bool) if features.labels.ndim > 1 else features.labels >= 0


def rarest(y: np.ndarray) -> np.ndarray:
    """The class of each video (N,); of several, (N, K), the one that the fewest have, and K for a video of none.

    >>> rarest(np.array([[1, 1], [1, 0], [0, 0]]))
    array([1, 0, 2])
    """
    if y.ndim == 1:
        return y
    counts = np.append(y.sum(0), len(y))
    of_none = (y == 0).all(1)[:, None]
    return np.where(np.append(y > 0, of_none, axis=1), counts, np.inf).argmin(1)


def divide(y: np.ndarray, groups: np.ndarray | None, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Videos to fit on and videos to judge by, `folds` times or as often as the videos allow."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    folds = min(folds, int(np.bincount(y).max()), len(y) if groups is None else len(set(groups)))
    if folds < 2:
        what = "videos of a class" if groups is None else "videos of a class, or groups,"
        raise InputError(f"there are too few {what} to choose by folds within folds")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        # A class of fewer videos than folds is not in all of them, and a group may hold most of a class.
        warnings.filterwarnings("ignore", message="The least populated class in y")
        parts = list(kind(folds, shuffle=True, random_state=seed).split(np.zeros(len(y)), y, groups))
    for train, _ in parts:
        if len(set(y[train])) < 2:
            raise InputError("a fold leaves videos of one class only to fit on; take fewer folds, or smaller groups")
    return parts


def check_enough(y: np.ndarray, classes: Sequence[str], groups: np.ndarray | None) -> None:
    """InputError unless there are two classes, and videos and groups enough for folds and a choice in each."""
    counts = y.sum(0) if y.ndim > 1 else np.bincount(y, minlength=len(classes))
    if (counts > 0).sum() < 2:
        only = ", ".join(name for name, count in zip(classes, counts, strict=True) if count) or "none"
        raise InputError(f"a classifier needs videos of two classes or more to fit on, there is {only}")
    amounts = {"videos in the largest class": int(counts.max())}
    if groups is not None:
        amounts["groups"] = len(set(groups))
    for what, there in amounts.items():
        if there < FEWEST:
            raise InputError(f"there are {there} {what} to fit on, and folds with a choice in each need {FEWEST}")


def check_alike(features: Features, held: Features | None) -> None:
    """InputError unless a classifier of these features can judge by those."""
    for each in (features, *([] if held is None else [held])):
        if not len(each.labels):
            raise InputError("there are no features in the file")
    if held is None:
        return
    ways = ("versions", "model", "architecture")  # in which the features' own numbers may be the same
    names = [name for name in features.manifest if name not in ways]
    if other := [name for name in names if features.manifest[name] != held.manifest.get(name)]:
        name = other[0]
        raise InputError(
            f"the features held out were made otherwise: {name} {features.manifest[name]} and {held.manifest.get(name)}"
        )
    if features.labels.ndim != held.labels.ndim:
        which = "held out" if held.labels.ndim > 1 else "to fit on"
        raise InputError(f"the videos {which} may have several labels each, and the others have one")
    if unknown := sorted(set(held.classes) - set(features.classes)):
        raise InputError(f"there are videos held out of {', '.join(map(repr, unknown))}, and none to fit on")


def held_out(features: Features, held: Features | None, fitted_on: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features (N, D) and labels of each split that is held out."""
    found = features
    if held is not None:
        numbers = np.array([features.classes.index(name) for name in held.classes] + [-1])  # -1 stays
        if held.labels.ndim > 1:
            labels = np.zeros((len(held.labels), len(features.classes)), held.labels.dtype)
            labels[:, numbers[:-1]] = held.labels
        else:
            labels = numbers[held.labels]
        found = replace(held, labels=labels)
    splits, rows = np.array(found.splits), found.pooled()
    return {
        split: (rows[chosen], found.labels[chosen])
        for split in dict.fromkeys(found.splits)
        if (held is not None or split != fitted_on) and (chosen := (splits == split) & labelled(found)).any()
    }


def same(y: np.ndarray, count: int) -> np.ndarray:
    """The same answer for so many videos: the commonest class, or where they may have several, each class's share.

    >>> same(np.array([1, 1, 0]), 2), same(np.array([[1, 1], [1, 0]]), 1)
    (array([1, 1]), array([[1. , 0.5]]))
    """
    return np.tile(y.mean(0), (count, 1)) if y.ndim > 1 else np.full(count, np.bincount(y).argmax())


def score(truth: np.ndarray, answers: np.ndarray) -> Score:
    """Figures of some answers.

    >>> score(np.array([0, 0, 1, 1]), np.array([0, 0, 2, 2]))
    Score(top1=0.5, macro_f1=0.3333333333333333, map=None)
    """
    from sklearn.metrics import f1_score

    if truth.ndim > 1:
        each = precisions(truth, answers)
        return Score(map=float(np.nanmean(each)) if truth.any() else 0.0)
    macro_f1 = f1_score(truth, answers, average="macro", zero_division=0.0)
    return Score(float((truth == answers).mean()), float(macro_f1))


def precisions(truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Average precision (K,) of each class, as a test has it; nan for one that no video has. Both arguments (N, K)."""
    return average_precisions(torch.from_numpy(truth), torch.from_numpy(answers)).numpy()


def judge(truth: np.ndarray, answers: np.ndarray, majority: np.ndarray, classes: Sequence[str]) -> Held:
    """All figures of some answers, beside those of the same answer for all."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    several = truth.ndim > 1
    numbers = range(len(classes))
    given = (answers >= 0.5).astype(np.int64) if several else answers
    columns = precision_recall_fscore_support(truth, given, labels=numbers, zero_division=0.0)
    each = precisions(truth, answers).tolist() if several else []
    rows = zip(classes, *(column.tolist() for column in columns), each or [None] * len(classes), strict=True)
    return Held(
        videos=len(truth),
        score=score(truth, answers),
        majority=score(truth, majority),
        classes=[
            ClassScore(name, int(count), precision, recall, f1, average if count else None)
            for name, precision, recall, f1, count, average in rows
        ],
        confusion=[] if several else confusion_matrix(truth, answers, labels=numbers).tolist(),
    )


# ---------------------------------------------------------------- the head


def save_probe(probe: Probe, folder: str | Path, *, source: str | Path | None = None) -> Path:
    """Write the network with a linear probe as its head, which LitCSN.from_pretrained opens.

    Standardisation becomes part of the head's weights. The logits of a view are the probe's for that view's features,
    and their mean over the views (average="logits") is the probe's answer for the video.

    source: the weights that the features are of; None is where they were then. Raises InputError where they are others,
    for a k-NN, and for a class without a video to fit on.
    """
    if probe.kind != "linear":
        raise InputError("only a linear probe is a head; neighbours are videos, which no weights hold")
    source = probe.manifest["model"] if source is None else source
    if not source:
        raise InputError("the features are of a model that was in memory; save_pretrained it, and name that folder")
    classifier = probe.pipeline.named_steps["classifier"]
    if probe.multi_label:
        known = [number for number, one in enumerate(classifier.estimators_) if hasattr(one, "coef_")]
    else:
        known = classifier.classes_.tolist()
    missing = sorted(set(range(len(probe.classes))) - set(known))
    if missing:
        which = "with, or none without," if probe.multi_label else "of"
        raise InputError(
            f"there was no video {which} {', '.join(repr(probe.classes[number]) for number in missing)} to fit on, so "
            "that the head would not know it; leave it out of the classes"
        )
    loaded = checkpoints.load(source, num_classes=0)
    if hash_trunk(loaded.network) != probe.manifest["weights"]:
        raise InputError(f"{source}: these are not the weights that the features are of")
    weight, bias = head_of(probe.pipeline)
    network: Any = loaded.network
    network.reset_classifier(len(probe.classes))
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(weight))
        network.head.bias.copy_(torch.from_numpy(bias))
    record = loaded.checkpoint.retrained(num_classes=len(probe.classes), classes=probe.classes)
    return checkpoints.save(network, replace(record, multi_label=probe.multi_label), folder)


def head_of(pipeline: Any) -> tuple[np.ndarray, np.ndarray]:
    """weight (K, D) and bias (K,) that give the pipeline's logits from features as they are, but for a shift of all."""
    scale, classifier = pipeline.named_steps["scale"], pipeline.named_steps["classifier"]
    parts = getattr(classifier, "estimators_", [classifier])  # of several labels, one for each class
    weight, bias = (
        np.concatenate([getattr(part, name) for part in parts]).astype(np.float64) for name in ("coef_", "intercept_")
    )
    if len(weight) == 1:  # of two classes, the logit of the second one
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scale.scale_
    return weight, bias - weight @ scale.mean_
