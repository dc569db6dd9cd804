"""Probes: figures that nothing was fitted on, and a head that answers as the probe does."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_csn import probe
from lightning_csn.cli import main
from lightning_csn.clip import ClipSpec
from lightning_csn.data.dataset import VideoDataset
from lightning_csn.errors import InputError
from lightning_csn.feature_file import Features, Truth, read_features, write_npz
from lightning_csn.features import LabelledVideos, extract_features
from lightning_csn.fit_probe import class_text, groups_of
from lightning_csn.metrics import VideoScores
from lightning_csn.module import LitCSN
from lightning_csn.probe import divide, fit_probe, judge, save_probe, score

CLIP = ClipSpec(
    frames=4, step=2, fps=None, short_side=40, crop=32, test_crop=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2)
)
MANIFEST = {"model": "ircsn_tiny_motion", "architecture": "ircsn_tiny", "weights": "ab", "clips": 2, "crops": 1}
KINDS = pytest.mark.parametrize("kind", ["linear", "knn"])

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15


def made(counts, *, distance=6.0, splits=None, seed=0, size=8):
    """Features of so many videos of each class, around a point of each class that is so far from the origin."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    points = distance * np.eye(size)[: len(counts)]
    rows = (points[labels] + random.standard_normal((len(labels), size))).astype(np.float32)
    names = [f"{'abcdefgh'[label]}/{n}.mp4" for n, label in enumerate(labels)]
    return Features(
        features=rows,
        labels=labels,
        classes=list("abcdefgh"[: len(counts)]),
        paths=names,
        splits=splits or ["train"] * len(labels),
        parts=[None] * len(labels),
        short=np.zeros(len(labels), bool),
        unreadable=[],
        manifest=MANIFEST,
    )


@KINDS
def test_classes_that_lie_apart_are_told_and_the_commonest_is_worth_its_share(kind):
    report, _ = fit_probe(made([20, 10, 10]), kind=kind)
    assert [one.top1 for one in report.folds] == [1.0] * 5
    assert [one.top1 for one in report.majority_folds] == [0.5] * 5
    assert report.majority_folds[0].macro_f1 == pytest.approx(2 / 9)  # 2 * 0.5 / (1 + 0.5) of one class in three
    held = report.held["folds"]
    assert (held.videos, held.score.top1, held.majority.top1) == (40, 1.0, 0.5)
    assert held.confusion == [[20, 0, 0], [0, 10, 0], [0, 0, 10]]
    assert [(one.name, one.videos, one.f1) for one in held.classes] == [("a", 20, 1.0), ("b", 10, 1.0), ("c", 10, 1.0)]


@KINDS
def test_features_without_meaning_are_worth_no_more_than_chance(kind):
    """With half as many features as videos, a classifier that has seen a video knows it by heart."""
    report, _ = fit_probe(made([40, 40], distance=0.0, size=40), kind=kind)
    assert np.mean([one.top1 for one in report.folds]) < 0.65


def test_videos_of_a_group_lie_in_one_fold(monkeypatch):
    """Every video is there twice, with a label by chance: who has seen its twin knows it."""
    divisions = []

    def watched(y, groups, folds, seed):
        divisions.append((groups, divide(y, groups, folds, seed)))
        return divisions[-1][1]

    monkeypatch.setattr(probe, "divide", watched)
    one = made([20, 20], distance=0.0)
    twice = replace(
        one,
        **{name: np.concatenate([getattr(one, name)] * 2) for name in ("features", "labels", "short")},
        **{name: getattr(one, name) * 2 for name in ("paths", "splits", "parts")},
    )
    apart, _ = fit_probe(twice, kind="knn", groups=twice.paths)
    assert len(divisions) == 1 + 5 + 1  # of the figures, of the choice in each of their folds, and of that in all
    for groups, folds in divisions:
        assert all(set(groups[train]).isdisjoint(groups[test]) for train, test in folds)
    mixed, _ = fit_probe(twice, kind="knn")
    assert np.mean([one.top1 for one in mixed.folds]) > 0.85
    assert np.mean([one.top1 for one in apart.folds]) < 0.65
    assert (apart.grouped, mixed.grouped) == (True, False)


def test_groups_are_what_paths_have_in_common():
    found = replace(made([2, 2]), paths=["x/p1_a.mp4", "y/p1_b.mp4", "p2_c.mp4", "other.mp4"])
    assert groups_of(found, r"(p\d+)_") == ["p1", "p1", "p2", "other.mp4"]
    assert groups_of(found, r"p\d(?=_)") == ["p1", "p1", "p2", "other.mp4"]
    with pytest.raises(InputError, match="'q' is found in none of 4 paths, such as x/p1_a"):
        groups_of(found, "q")
    with pytest.raises(InputError, match="--group is a regular expression"):
        groups_of(found, "(")


def test_other_splits_are_held_out_and_unlabelled_videos_left_out():
    found = made([12, 12], splits=(["train"] * 8 + ["val"] * 2 + ["test"] * 2) * 2)
    wrong = np.array(found.splits) == "test"
    labels = np.where(wrong, 1 - found.labels, found.labels)  # those of test are the other way round
    labels[[0, 8]] = -1  # one of train, one of val
    report, _ = fit_probe(replace(found, labels=labels))
    assert report.videos == 15
    assert {split: (held.videos, held.score.top1) for split, held in report.held.items()} == {
        "val": (3, 1.0),
        "test": (4, 0.0),
    }
    assert report.held["val"].confusion == [[1, 0], [0, 2]]


def test_another_file_is_held_out_whole_and_its_classes_are_known_by_name():
    found, other = made([10, 10, 10]), made([4, 4, 4], seed=1, splits=["train"] * 12)
    other = replace(other, classes=["c", "b", "a"], labels=2 - other.labels)
    other.labels[0] = -1
    report, _ = fit_probe(found, other)
    assert {split: held.videos for split, held in report.held.items()} == {"train": 11}
    assert report.held["train"].confusion == [[3, 0, 0], [0, 4, 0], [0, 0, 4]]
    with pytest.raises(InputError, match="videos held out of 'd', and none to fit on"):
        fit_probe(found, replace(other, classes=["c", "b", "d"]))
    with pytest.raises(InputError, match="made otherwise: weights ab and cd"):
        fit_probe(found, replace(other, manifest=MANIFEST | {"weights": "cd"}))


def test_features_of_views_and_steps_count_by_their_mean():
    found = made([10, 10])
    spread = np.stack([found.features - 50, found.features + 50], 1)
    _, one = fit_probe(found, found, folds=0)
    _, views = fit_probe(replace(found, features=spread), found, folds=0)
    _, steps = fit_probe(replace(found, features=spread[:, None]), found, folds=0)
    for other in (views, steps):
        answers = [each.pipeline.predict_proba(found.features) for each in (one, other)]
        np.testing.assert_allclose(*answers, atol=1e-4)


def test_the_figures_are_those_of_a_test():
    random = np.random.default_rng(0)
    truth, answers = random.integers(0, 4, 50), random.integers(0, 3, 50)
    scores = VideoScores(num_classes=6)
    scores.update(torch.arange(50), torch.from_numpy(truth), torch.eye(6)[torch.from_numpy(answers)])
    expected, found = scores.compute(), score(truth, answers)
    assert found.top1 == pytest.approx(expected["top1"].item())
    assert found.macro_f1 == pytest.approx(expected["macro_f1"].item())


def several(counts=(10, 10), **options):
    """Every fourth video of a class also has the first class, and lies on the way to its point."""
    found = made(counts, **options)
    labels = np.eye(len(counts), dtype=np.float32)[found.labels]
    labels[::4, 0] = 1
    rows = found.features.copy()
    rows[::4, 0] += np.where(found.labels[::4] > 0, 6, 0)
    return replace(found, features=rows, labels=labels)


@KINDS
def test_several_labels_are_told_each_by_itself(kind):
    found = several([20, 12, 8], splits=["train", "val"] * 20)
    report, _ = fit_probe(found, kind=kind, folds=3)
    shares = found.labels[np.array(found.splits) == "val"].mean(0)
    held = report.held["val"]
    assert held.majority.figures() == {"map": pytest.approx(shares.mean())}
    assert held.score.figures() == {"map": pytest.approx(np.mean([one.average_precision for one in held.classes]))}
    assert held.score.map > 0.8
    assert [one.videos for one in held.classes] == (20 * shares).tolist()
    assert held.confusion == []
    assert [one.map > 0.7 for one in report.folds] == [True] * 3
    assert np.mean([one.map for one in report.majority_folds]) < 0.6


def test_the_figure_of_several_labels_is_that_of_a_test():
    random = np.random.default_rng(0)
    truth, answers = random.integers(0, 2, (50, 4)).astype(np.float32), random.random((50, 4))
    truth[:, 3] = 0
    scores = VideoScores(num_classes=4, multi_label=True)
    scores.update(torch.arange(50), torch.from_numpy(truth), torch.from_numpy(answers))
    assert score(truth, answers).map == pytest.approx(scores.compute()["map"].item())


def test_several_labels_of_another_file_are_known_by_name():
    found, other = several([10, 10, 10]), several([6, 6, 6], seed=1)
    turned = replace(other, classes=["c", "b", "a"], labels=other.labels[:, ::-1].copy())
    assert fit_probe(found, turned, folds=0)[0] == fit_probe(found, other, folds=0)[0]
    with pytest.raises(InputError, match="videos to fit on may have several labels each, and the others have one"):
        fit_probe(found, made([6, 6, 6]), folds=0)


def test_a_class_that_all_or_none_have_is_no_head(tmp_path):
    found = several([10, 10, 10])
    found.labels[:, 1], found.labels[:, 2] = 0, 1
    _, fitted = fit_probe(found, found, folds=0)
    with pytest.raises(InputError, match="no video with, or none without, 'b', 'c' to fit on"):
        save_probe(fitted, tmp_path / "head")


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (made([10, 0]), {}, "videos of two classes or more to fit on, there is a"),
        (made([3, 3]), {}, "there are 3 videos in the largest class to fit on, and folds .* need 4"),
        (made([10, 10]), {"groups": ["x", "y"] * 10}, "there are 2 groups to fit on"),
        (made([10, 10], splits=["val"] * 20), {}, "no features of split train to fit on, only val"),
        (made([10, 10]), {"folds": 0}, "train is the only split: without folds there is no figure"),
        (made([10, 10]), {"folds": 1}, "folds must be a whole number of 2 or more, got 1"),
        (made([10, 10]), {"kind": "tree"}, "kind must be one of linear, knn, got 'tree'"),
        (made([]), {}, "there are no features in the file"),
        (made([10, 4]), {"groups": ["x"] * 10 + list("abcd")}, "leaves videos of one class only to fit on"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_a_reason(features, options, message):
    with pytest.raises(InputError, match=message):
        fit_probe(features, **options)


def test_a_class_of_fewer_videos_than_folds_is_fitted_all_the_same():
    report, _ = fit_probe(made([10, 10, 2]))
    assert len(report.folds) == 5
    assert sum(map(sum, report.held["folds"].confusion)) == 22
    report, _ = fit_probe(made([4, 4]), kind="knn")
    assert len(report.folds) == 4


# ---------------------------------------------------------------- the head


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = LitCSN("ircsn_tiny", classes=["a", "b"], clip=CLIP.to_dict()).eval()
    return str(model.save_pretrained(tmp_path_factory.mktemp("weights") / "tiny"))


def features_file(weights, root, path, **options):
    data = LabelledVideos(root, num_workers=0, test_clips=2, test_crops=1, **options)
    extract_features(weights, data, path, accelerator="cpu", exact=True)
    return data, read_features(path)


@pytest.mark.parametrize(("count", "multi_label"), [(2, False), (3, False), (3, True)])
def test_the_head_that_is_saved_answers_as_the_probe(count, multi_label, weights, split_folder, tmp_path):
    names = ["clapping", "jumping", "waving"][:count]
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for name in names:
            (tmp_path / split / name).symlink_to(split_folder / split / name)
    data, found = features_file(weights, tmp_path, tmp_path / "f.npz")
    if multi_label:
        found = replace(found, labels=np.eye(count, dtype=np.float32)[found.labels])
        found.labels[::5] = 1
    report, fitted = fit_probe(found)
    saved = save_probe(fitted, tmp_path / "head")
    model = LitCSN.from_pretrained(saved, average="logits")
    assert (model.classes, model.clip, model.multi_label) == (names, CLIP, multi_label)
    dataset = VideoDataset(data.samples["test"], CLIP, train=False, clips=2)
    with torch.inference_mode():
        answers = model(torch.stack([dataset[i]["clips"] for i in range(len(dataset))]))
    rows = found.pooled()[np.array(found.splits) == "test"]
    np.testing.assert_allclose(answers, fitted.pipeline.predict_proba(rows), atol=1e-4)
    assert report.held["test"].videos == 3 * count
    config = json.loads((saved / "config.json").read_text())
    assert (config["classes"], config["accuracy"], config["measured"]) == (names, None, None)


def test_a_test_of_the_head_has_the_figures_of_the_probe(weights, split_folder, tmp_path, capsys):
    views = ["--accelerator=cpu", "--clips=2", "--workers=0", f"--output={tmp_path / 'f.npz'}"]
    assert main(["features", str(split_folder), f"--model={weights}", *views]) == 0
    assert main(["probe", str(tmp_path / "f.npz"), "--json", "--folds=0", f"--save={tmp_path / 'head'}"]) == 0
    expected = json.loads(capsys.readouterr().out.partition("\n")[2])["held"]["test"]["score"]
    options = ["--data.test_clips=2", "--data.test_crops=1", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    options += [f"--trainer.default_root_dir={tmp_path}", "--model.average=logits"]
    head = f"--model.pretrained={tmp_path / 'head'}"
    assert main(["test", f"--data.root={split_folder}", head, *options]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"top-1 {expected['top1']:.4f}" in said
    assert f"macro F1 {expected['macro_f1']:.4f}" in said


def test_a_head_is_made_of_a_linear_probe_on_the_weights_of_the_features(weights, tmp_path):
    found = made([10, 10], size=512)
    _, linear = fit_probe(found, folds=0, held=found)
    _, neighbours = fit_probe(found, kind="knn")
    for fitted, source, message in (
        (neighbours, None, "only a linear probe is a head"),
        (linear, weights, "these are not the weights that the features are of"),
        (replace(linear, manifest=MANIFEST | {"model": ""}), None, "a model that was in memory"),
        (replace(linear, classes=["a", "b", "c"]), None, "no video of 'c' to fit on"),
    ):
        with pytest.raises(InputError, match=message):
            save_probe(fitted, tmp_path / "head", source=source)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the command


def write(found, path):
    several = found.labels.ndim > 1
    labels = [tuple(np.flatnonzero(row).tolist()) if several else int(row) for row in found.labels]
    rows = [
        ({"path": name, "features": None, "short": False}, Truth(split, label))
        for name, split, label in zip(found.paths, found.splits, labels, strict=True)
    ]
    for (record, _), row in zip(rows, found.features, strict=True):
        record |= {"features": base64.b64encode(row.tobytes()).decode(), "shape": list(row.shape)}
    write_npz(path, iter(rows), classes=found.classes, multi_label=several, manifest=found.manifest)
    return str(path)


def test_the_command_shows_what_it_found(tmp_path, capsys):
    found = made([14, 14, 14], splits=(["train"] * 10 + ["val"] * 4) * 3)
    file = write(found, tmp_path / "f.npz")
    assert main(["probe", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "30 videos of 3 classes (train), 8 features of ircsn_tiny_motion, 2 clips x 1 crop"
    cells = [" ".join(line.split()) for line in lines[1:]]
    assert cells[:3] == [
        "TOP-1 MACRO F1",
        "majority class 5 folds of train 0.3333 +- 0.0000 0.1667 +- 0.0000",
        "linear probe 5 folds of train 1.0000 +- 0.0000 1.0000 +- 0.0000",
    ]
    assert cells[3] == "majority class 12 videos of val 0.3333 0.1667"
    assert cells[4].startswith("linear probe (C 0.")
    assert cells[4].endswith("12 videos of val 1.0000 1.0000")
    assert cells[6] == "CLASS (val) VIDEOS PRECISION RECALL F1 as 0 as 1 as 2"
    assert cells[8] == "1 b 4 1.0000 1.0000 1.0000 0 4 0"


def test_the_command_shows_what_it_found_of_several_labels(tmp_path, capsys):
    file = write(several([12, 12], splits=["train", "train", "train", "val"] * 6), tmp_path / "f.npz")
    assert main(["probe", file]) == 0
    cells = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert cells[1] == "MAP"
    assert cells[2].startswith("shares of classes 5 folds of train 0.")
    assert cells[5].startswith("linear probe (C ")
    assert cells[5].endswith(" 6 videos of val 1.0000")
    assert cells[7] == "CLASS (val) VIDEOS AVERAGE PRECISION PRECISION RECALL F1"
    assert [line[:12] for line in cells[8:]] == ["0 a 3 1.0000", "1 b 3 1.0000"]


def test_the_command_as_json_and_with_neighbours(tmp_path, capsys):
    found = made([12, 12], splits=(["train"] * 8 + ["val"] * 4) * 2)
    file = write(found, tmp_path / "f.npz")
    other = write(replace(made([3, 3], seed=1), splits=["new"] * 6), tmp_path / "val.npz")
    assert main(["probe", file, "--kind", "knn", "--json", "--val", other, "--folds", "3", "--group", r"\d+"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["chosen"], len(report["folds"])) == ("knn", {"n_neighbors": 1}, 3)
    assert report["grouped"]
    assert report["held"]["new"]["confusion"] == [[3, 0], [0, 3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "knn", "--save", "head"], "--save is for --kind linear"),
        (["--model", "x"], "--model is for --save"),
        ([], "no such file; 'lightning-csn features' writes features"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, tmp_path, capsys):
    assert main(["probe", str(tmp_path / "f.npz"), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_worst_of_many_classes_are_shown(tmp_path, capsys):
    truth = np.repeat(np.arange(30), 2)
    answers = truth.copy()
    answers[14] = 9
    text = class_text(
        judge(truth, answers, np.zeros_like(truth), [f"class {n}" for n in range(30)]), "val"
    ).splitlines()
    assert " ".join(text[1].split()) == "7 class 7 2 1.0000 0.5000 0.6667 class 9 (1)"
    assert text[-1] == "(the lowest 20 of 30 classes; --json has all)"
    assert len(text) == 22


def test_scikit_learn_is_imported_where_a_probe_is_fitted_and_nowhere_else():
    script = "import sys, lightning_csn.probe, lightning_csn.cli; assert 'sklearn' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
