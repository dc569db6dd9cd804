"""The scores of each view: a test is made of them again, to the last digit, and goes on from them."""

import argparse
import dataclasses
import errno
import json
import logging
import os
import shutil
import signal

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_csn.average import average_options, run_average
from lightning_csn.cli import main
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.errors import InputError
from lightning_csn.fingerprints import hash_weights
from lightning_csn.scores import merge, read_scores, write_arrays
from lightning_csn.scores_writer import ScoresWriter

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15

CLASSES = ["clapping", "jumping", "waving"]
CLIP = {
    "frames": 4,
    "step": 2,
    "fps": None,
    "short_side": 32,
    "crop": 32,
    "test_crop": 32,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.2, 0.5],
}


@pytest.fixture(scope="module")
def make_model(tiny_model):
    """A model that is so sure of itself that it matters what is averaged."""
    return lambda **options: tiny_model(sure=500, classes=CLASSES, clip=CLIP, **options)


def make_data(root, **options):
    return VideoDataModule(
        root, **({"num_workers": 0, "test_clips": 2, "test_crops": 3, "unreadable_limit": 1.0} | options)
    )


class Watch(L.Callback):
    """Notes which videos are seen; stops the test, as a kill does, after so many of them."""

    def __init__(self, stop_after=None):
        self.seen, self.stop_after = [], stop_after

    def on_test_batch_start(self, trainer, module, batch, *args):
        if len(self.seen) == self.stop_after:
            raise RuntimeError("killed")
        self.seen += [*batch["videos"].tolist(), *(number for number, _ in batch["unreadable"])]


@pytest.fixture(scope="module")
def run_test(make_model, make_trainer_in):
    """The figures of a test of a folder's videos, or of other data."""

    def run(root, *callbacks, model=None, data=None, **options):
        trainer = make_trainer_in(os.devnull, callbacks=list(callbacks), **options)
        return trainer.test(model or make_model(), data or make_data(root), verbose=False)[0]

    return run


def figures(scores, average=None):
    return {f"test_{name}": float(value) for name, value in scores.compute(average).items()}


@pytest.fixture(scope="module")
def damaged_folder(video_folder, tmp_path_factory):
    """The videos of video_folder, of which number 4 (jumping_1.mp4) is damaged; leave as it is."""
    root = tmp_path_factory.mktemp("damaged") / "videos"
    shutil.copytree(video_folder, root)
    (root / "jumping" / "jumping_1.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module")
def written(run_test, damaged_folder, tmp_path_factory):
    """What a test of damaged_folder found, and the file that it wrote; leave as it is."""
    path = tmp_path_factory.mktemp("scores") / "new" / "scores.npz"
    return run_test(damaged_folder, ScoresWriter(path)), path


@pytest.fixture
def die_at_once(monkeypatch):
    """As after a SIGKILL, nothing is written any more when a test stops."""
    monkeypatch.setattr(ScoresWriter, "on_exception", lambda *args: None)


@pytest.fixture
def stop(run_test):
    """Stop a test after so many videos; gives those that were seen."""

    def run(root, path, stop_after):
        watch = Watch(stop_after)
        with pytest.raises(RuntimeError, match="killed"):
            run_test(root, ScoresWriter(path, videos_per_part=2), watch)
        return watch.seen

    return run


# Files


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_figures_of_a_test_come_again_to_the_last_digit(make_model, run_test, damaged_folder, written, average):
    tested = run_test(damaged_folder, model=make_model(average=average))
    assert figures(read_scores(written[1]), average) == tested
    assert tested["test_videos"] == 8
    assert (tested == written[0]) is (average == "probabilities")


def test_writing_scores_changes_no_figure(run_test, damaged_folder, written):
    assert run_test(damaged_folder) == written[0]


def test_a_file_holds_the_logits_of_each_view_and_says_what_they_are_of(make_model, damaged_folder, written):
    with np.load(written[1]) as file:  # NumPy alone
        arrays = dict(file)
    assert arrays["videos"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert arrays["labels"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert (arrays["logits"].shape, arrays["logits"].dtype) == ((8, 6, 3), np.float32)
    assert arrays["paths"][4] == str(damaged_folder / "jumping" / "jumping_2.mp4")
    assert arrays["unreadable"].tolist() == [4]
    assert "jumping_1.mp4: " in arrays["messages"][0]
    about = json.loads(str(arrays["about"]))
    assert about["network"] == hash_weights(make_model().network)
    assert about["classes"] == CLASSES
    assert {"clips": 2, "crops": 3, "frames": 4, "test_crop": 32, "precision": "32-true"}.items() <= about[
        "protocol"
    ].items()
    assert about["videos"]["count"] == 9
    model, data = make_model().eval(), make_data(damaged_folder)
    data.clip = model.clip
    item = data.test_dataloader().dataset[5]
    with torch.no_grad():
        expected = model.view_logits(item["clips"][None])[0]
    assert torch.equal(torch.from_numpy(arrays["logits"][4]), expected)


def test_nothing_but_the_file_is_left(written):
    assert [path.name for path in written[1].parent.iterdir()] == ["scores.npz"]


def test_a_file_is_written_without_a_name_for_its_videos_too(run_test, tmp_path):
    batch = {
        "clips": torch.randint(256, (2, 5, 3, 4, 32, 32), dtype=torch.uint8),
        "labels": torch.tensor([0, 2]),
        "videos": torch.tensor([3, 1]),
        "short": torch.tensor([True, False]),
        "unreadable": [],
    }
    loader = DataLoader([batch], batch_size=None)
    tested = run_test(None, ScoresWriter(tmp_path / "s.npz"), data=loader)
    scores = read_scores(tmp_path / "s.npz")
    assert figures(scores) == tested
    assert (scores.videos.tolist(), scores.short.tolist(), scores.paths) == ([1, 3], [False, True], ["", ""])
    assert scores.protocol().startswith("5 views of 4 frames of 32 x 32 pixels")
    assert scores.select(clips=[4]).protocol().startswith("clips 4 of 5 x 1 crops of 4 frames")
    with pytest.raises(InputError, match="this data does not tell its videos"):
        run_test(None, ScoresWriter(tmp_path / "s.npz"), data=loader)


def test_scores_of_several_labels_come_again(make_model, run_test, tmp_path):
    batches = [
        {
            "clips": torch.randint(256, (1, 2, 3, 4, 32, 32), dtype=torch.uint8),
            "labels": torch.tensor([[float(n % 2), 1.0, 0.0]]),
            "videos": torch.tensor([n]),
            "short": torch.tensor([False]),
            "unreadable": [],
        }
        for n in range(5)
    ]
    model = make_model(multi_label=True)
    tested = run_test(None, ScoresWriter(tmp_path / "s.npz"), model=model, data=DataLoader(batches, batch_size=None))
    scores = read_scores(tmp_path / "s.npz")
    assert figures(scores) == tested
    assert "test_map" in tested
    assert [(row["class"], row["videos"]) for row in scores.per_class()] == [("clapping", 2), ("jumping", 5)]
    assert scores.per_class()[1]["average_precision"] == pytest.approx(1)
    for row in scores.confusion():
        assert sum(count for name, count in row.items() if name != "class") == 5


def test_views_of_different_number_are_refused(run_test, tmp_path):
    batches = [
        {
            "clips": torch.zeros(1, views, 3, 4, 32, 32, dtype=torch.uint8),
            "labels": torch.tensor([0]),
            "videos": torch.tensor([views]),
            "short": torch.tensor([False]),
            "unreadable": [],
        }
        for views in (2, 3)
    ]
    with pytest.raises(InputError, match=r"as many views of one video as of another, got \[2, 3\]"):
        run_test(None, ScoresWriter(tmp_path / "s.npz"), data=DataLoader(batches, batch_size=None))


@pytest.mark.parametrize("name", ["scores", "scores.csv", "folder.npz"])
def test_a_name_that_is_no_npz_file_is_refused(tmp_path, name):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match=r"scores are written into one file, whose name ends in \.npz"):
        ScoresWriter(tmp_path / name)


def test_a_file_that_cannot_be_written_is_said(run_test, tmp_path, video_folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the scores cannot be written: Not a directory"):
        run_test(video_folder, ScoresWriter(tmp_path / "file" / "scores.npz"))


def test_nothing_is_written_half(tmp_path, monkeypatch):
    def fill(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", fill)
    with pytest.raises(InputError, match=r"s\.npz: the scores cannot be written: No space left on device"):
        write_arrays(tmp_path / "s.npz", {"videos": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no")
    np.savez(tmp_path / "b.npz", logits=np.zeros(3))
    for name in ("a", "b"):
        with pytest.raises(InputError, match=rf"{name}\.npz: no scores of a test, or a damaged file"):
            read_scores(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match=r"c\.npz: there is no such file; 'lightning-csn test \.\.\. --scores"):
        read_scores(tmp_path / "c.npz")


def test_a_file_of_another_version_is_refused(tmp_path, written):
    with np.load(written[1]) as file:
        arrays = dict(file)
    arrays["about"] = np.array(json.dumps(json.loads(str(arrays["about"])) | {"version": 9}))
    np.savez(tmp_path / "new.npz", **arrays)
    with pytest.raises(InputError, match="scores of version 9, this lightning-csn reads version 1"):
        read_scores(tmp_path / "new.npz")


def test_a_shell_writes_scores_and_averages_them(make_model, video_folder, tmp_path, capsys):
    make_model().save_pretrained(tmp_path / "weights")
    options = [f"--data.root={video_folder}", f"--model.pretrained={tmp_path / 'weights'}", "--data.num_workers=0"]
    options += ["--data.test_clips=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    options += ["--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}", f"--scores={tmp_path / 's.npz'}"]
    assert main(["test", *options]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test: "))
    parser = argparse.ArgumentParser()
    average_options(parser)
    assert run_average(parser.parse_args([str(tmp_path / "s.npz")])) == 0
    assert capsys.readouterr().out.splitlines()[0] == line
    assert "scores" not in make_model().hparams  # nothing that a checkpoint would carry on


# Going on


@pytest.mark.usefixtures("die_at_once")
def test_a_stopped_test_goes_on_where_it_was(run_test, stop, damaged_folder, written, tmp_path, caplog):
    path = tmp_path / "scores.npz"
    seen = stop(damaged_folder, path, 7)
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(InputError, match="the test was stopped before all its videos were scored"):
        read_scores(path)
    (path.parent / "scores.npz.parts" / "00000-half.npz.tmp").write_bytes(b"half a part")
    watch = Watch()
    with caplog.at_level(logging.INFO, logger="lightning_csn"):
        tested = run_test(damaged_folder, ScoresWriter(path), watch)
    # 4 cannot be read and is tried again; 6 was not in a part yet
    assert watch.seen == [4, 6, 7, 8]
    assert tested == written[0]
    assert "5 of 9 videos are scored already" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["scores.npz"]
    with np.load(path) as new, np.load(written[1]) as whole:
        for name in whole:
            assert np.array_equal(new[name], whole[name]), name


def test_nothing_lies_beside_the_file_when_a_test_ends_while_it_is_written(
    run_test, video_folder, tmp_path, monkeypatch
):
    def replace(source, target):
        if target == path:
            raise KeyboardInterrupt
        rename(source, target)

    path, rename = tmp_path / "scores.npz", os.replace
    monkeypatch.setattr(os, "replace", replace)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        run_test(video_folder, ScoresWriter(path))
    signal.signal(signal.SIGINT, handler)  # Lightning has it ignored for good
    assert [file.name for file in tmp_path.iterdir()] == ["scores.npz.parts"]


def test_what_an_error_stops_is_kept_to_the_last_video(run_test, stop, video_folder, tmp_path):
    seen = stop(video_folder, tmp_path / "s.npz", 5)
    watch = Watch()
    run_test(video_folder, ScoresWriter(tmp_path / "s.npz"), watch)
    assert seen + watch.seen == list(range(9))


@pytest.mark.usefixtures("die_at_once")
def test_a_test_may_be_stopped_again_and_average_otherwise(make_model, run_test, stop, damaged_folder, tmp_path):
    path = tmp_path / "scores.npz"
    stop(damaged_folder, path, 2)
    stop(damaged_folder, path, 4)
    watch, model = Watch(), make_model(average="logits")
    assert run_test(damaged_folder, ScoresWriter(path), watch, model=model) == run_test(damaged_folder, model=model)
    assert len(watch.seen) < 6
    assert read_scores(path).about.average == "logits"


def test_a_part_of_the_videos_is_completed_later(run_test, video_folder, tmp_path):
    writer = ScoresWriter(tmp_path / "s.npz")
    assert run_test(video_folder, writer, limit_test_batches=4)["test_videos"] == 4
    watch = Watch()
    assert run_test(video_folder, writer, watch) == run_test(video_folder)
    assert watch.seen == [4, 5, 6, 7, 8]


def test_a_finished_test_need_not_be_run_again(run_test, damaged_folder, written):
    before = written[1].read_bytes()
    watch = Watch()
    assert run_test(damaged_folder, ScoresWriter(written[1]), watch) == written[0]
    assert watch.seen == [4]  # in case it can be read by now
    assert written[1].read_bytes() == before


def test_where_all_is_scored_the_figures_are_those_of_the_file(run_test, video_folder, tmp_path):
    tested = run_test(video_folder, ScoresWriter(tmp_path / "s.npz"))
    watch = Watch()
    assert run_test(video_folder, ScoresWriter(tmp_path / "s.npz"), watch) == tested
    assert watch.seen == [0]  # a process without any batch would have nothing to end its test with


def test_a_video_that_was_repaired_is_scored(run_test, damaged_folder, video_folder, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(damaged_folder, root)
    writer = ScoresWriter(tmp_path / "s.npz")
    run_test(root, writer)
    shutil.copy(video_folder / "jumping" / "jumping_1.mp4", root / "jumping")
    assert run_test(root, writer) == run_test(video_folder)
    assert read_scores(tmp_path / "s.npz").unreadable == {}


def test_a_gray_clip_is_written_as_such_and_tried_again(run_test, damaged_folder, video_folder, tmp_path):
    root = tmp_path / "videos"
    shutil.copytree(damaged_folder, root)
    data, writer = make_data(root, on_unreadable="blank"), ScoresWriter(tmp_path / "s.npz")
    tested = run_test(root, writer, data=data)
    assert (tested["test_videos"], tested["test_unreadable"], tested["test_blank"]) == (9, 1, 1)
    scores = read_scores(tmp_path / "s.npz")
    assert figures(scores) == tested
    assert scores.blank.tolist() == [number == 4 for number in range(9)]
    assert list(scores.unreadable) == [4]
    shutil.copy(video_folder / "jumping" / "jumping_1.mp4", root / "jumping")
    watch = Watch()
    assert run_test(root, writer, watch, data=data) == run_test(video_folder)
    assert watch.seen == [4]
    assert not read_scores(tmp_path / "s.npz").blank.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 1}, r"network [0-9a-f]{12} and [0-9a-f]{12} \(sha256\); give another file"),
        ({"test_clips": 1}, r"clips 2 and 1; give another file"),
        ({"test_crops": 1}, r"crops 3 and 1; give"),
        ({"file": True}, r"videos 9 from clapping/clapping_0.mp4 on \(.*\) and 10 from clapping/clapping_0.mp4 on \("),
    ],
)
def test_scores_of_another_test_are_refused_with_both_named(
    make_model, run_test, damaged_folder, written, tmp_path, change, message
):
    root, model = damaged_folder, make_model(seed=change.pop("model", 0))
    if change.pop("file", False):
        root = tmp_path / "videos"
        shutil.copytree(damaged_folder, root)
        (root / "waving" / "z.mp4").write_bytes(b"new")
    before = written[1].read_bytes()
    with pytest.raises(
        InputError, match=rf"scores\.npz holds the scores of another test \(there and here\): {message}"
    ):
        run_test(root, ScoresWriter(written[1]), model=model, data=make_data(root, **change))
    assert written[1].read_bytes() == before


@pytest.mark.usefixtures("die_at_once")
def test_a_damaged_part_is_named(run_test, stop, video_folder, tmp_path):
    stop(video_folder, tmp_path / "s.npz", 4)
    part = next((tmp_path / "s.npz.parts").glob("*.npz"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=rf"{part.name}: no scores of a test, or a damaged file"):
        run_test(video_folder, ScoresWriter(tmp_path / "s.npz"))


def test_of_a_video_with_and_without_a_gray_clip_the_video_counts(tmp_path, written):
    with np.load(written[1]) as file:
        arrays = dict(file)
    np.savez(tmp_path / "gray.npz", **(arrays | {"blank": np.ones(8, dtype=bool), "logits": 0 * arrays["logits"]}))
    for files in ([tmp_path / "gray.npz", written[1]], [written[1], tmp_path / "gray.npz"]):
        scores = merge(files)
        assert not scores.blank.any()
        assert torch.equal(scores.logits, torch.from_numpy(arrays["logits"]))


# Figures


def test_some_views_alone_give_what_a_test_of_these_gives(run_test, video_folder, tmp_path):
    run_test(video_folder, ScoresWriter(tmp_path / "s.npz"))
    middle = read_scores(tmp_path / "s.npz").select(crops=[1])
    tested = run_test(video_folder, data=make_data(video_folder, test_crops=1))
    close = {name: pytest.approx(value, rel=1e-5) for name, value in tested.items()}
    assert figures(middle) == close  # other views share a pass through the network
    assert middle.protocol().startswith("2 clips x crops 1 of 3 of 4 frames of 32 x 32 pixels")
    assert middle.select(clips=[0]).logits.shape == (9, 1, 3)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"clips": [2]}, "clips 2: there are clips 0 to 1"),
        ({"crops": [0, 3]}, "crops 0, 3: there are crops 0 to 2"),
    ],
)
def test_views_that_are_not_there_are_refused(written, chosen, message):
    with pytest.raises(InputError, match=message):
        read_scores(written[1]).select(**chosen)


def test_classes_and_confusions_are_those_counted_by_hand(written):
    scores = read_scores(written[1])
    scores = dataclasses.replace(  # one view, whose answers are 0 0 1 1 1 2 2 0
        scores, logits=10 * torch.eye(3)[[0, 0, 1, 1, 1, 2, 2, 0]][:, None]
    )
    assert scores.per_class() == [
        {"class": "clapping", "videos": 3, "top1": pytest.approx(2 / 3)},
        {"class": "jumping", "videos": 2, "top1": 1},
        {"class": "waving", "videos": 3, "top1": pytest.approx(2 / 3)},
    ]
    counts = {(row["class"], row["answer"]): row["videos"] for row in scores.confusion()}
    assert counts == {
        ("clapping", "clapping"): 2,
        ("clapping", "jumping"): 1,
        ("jumping", "jumping"): 2,
        ("waving", "waving"): 2,
        ("waving", "clapping"): 1,
    }
    assert scores.compute()["top1"] == 0.75


# Which test it is
