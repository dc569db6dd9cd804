"""VideoDataModule: the right videos in every stage, the model's clips and classes, each video once on any processes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import multiprocessing
import pickle
import shutil
import sys
import textwrap
from pathlib import Path

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback
from torch.utils.data.distributed import DistributedSampler

from lightning_csn import datamodule
from lightning_csn.clip import ClipSpec
from lightning_csn.data import dataset
from lightning_csn.data.index import Entry, IndexWriter, stamp_of
from lightning_csn.data.order import EachVideoOnce, TrainOrder
from lightning_csn.data.reading import open_video
from lightning_csn.data.samples import count_text
from lightning_csn.data.watchdog import WatchedReader
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.errors import InputError
from lightning_csn.module import LitCSN

CLIP = ClipSpec(
    frames=2, step=2, fps=None, short_side=16, crop=16, test_crop=16, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning 2.6 on torch 2.15
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # of training without validation
]


class Recorder(L.LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self, clip=CLIP, classes=None, early=False):
        super().__init__()
        self.clip, self.classes, self.early = clip, classes, early
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch | {"epoch": self.current_epoch})
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(batch)
        return batch["videos"]

    def configure_optimizers(self):
        if self.early:  # as LitCSN does, to know the length of an epoch: before the checkpoint's loops are restored
            self.trainer.fit_loop.setup_data()
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def videos(self, stage):
        return [number for batch in self.seen[stage] for number in batch["videos"].tolist()]

    def draws(self):
        """Epoch, video and seed of everything that was seen in training."""
        return [
            (batch["epoch"], video, seed)
            for batch in self.seen["train"]
            for video, seed in zip(batch["videos"].tolist(), batch["seeds"].tolist(), strict=True)
        ]

    def labels(self, stage):
        return [label for batch in self.seen[stage] for label in batch["labels"].tolist()]


def trainer(**options) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    quiet |= {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}
    return L.Trainer(**quiet | options)


def data(root, **options) -> VideoDataModule:
    return VideoDataModule(root, **{"num_workers": 0, "batch_size": 4, "test_clips": 2, "test_crops": 1} | options)


def test_classes_are_known_at_once(split_folder, video_folder):
    assert data(split_folder).classes == ["clapping", "jumping", "waving"]
    assert data(video_folder).num_classes == 3
    assert data(video_folder, classes=["waving", "jumping", "clapping", "none"]).num_classes == 4


def test_fit_and_test_see_their_own_videos(split_folder, caplog):
    model, module = Recorder(), data(split_folder, test_clips=3, test_crops=3)
    with caplog.at_level(logging.INFO, "lightning_csn"):
        trainer().fit(model, module)
    assert sorted(model.videos("train")) == list(range(12))
    assert model.videos("train") != list(range(12))  # shuffled
    assert {tuple(batch["clips"].shape) for batch in model.seen["train"]} == {(4, 1, 3, 2, 16, 16)}
    assert model.videos("val") == list(range(6))
    assert model.labels("val") == [0, 0, 1, 1, 2, 2]
    assert model.seen["val"][0]["clips"].shape == (4, 1, 3, 2, 16, 16)
    assert "train: 12 videos; clapping 4, jumping 4, waving 4" in caplog.text
    assert caplog.text.count("val: 6 videos; clapping 2, jumping 2, waving 2") == 1
    trainer().test(model, module, verbose=False)
    assert model.videos("test") == list(range(9))
    assert model.seen["test"][0]["clips"].shape == (1, 9, 3, 2, 16, 16)  # nine views are more than a batch of four
    assert module.samples["test"][3].path.endswith("test_jumping_0.mp4")


def test_a_folder_without_splits_trains_without_validation(video_folder, caplog):
    model, module = Recorder(), data(video_folder)
    assert module.has_split("train")
    assert not module.has_split("val")
    with caplog.at_level(logging.INFO, "lightning_csn"):
        trainer().fit(model, module)
    assert sorted(model.videos("train")) == list(range(9))
    assert model.seen["val"] == []
    assert "no validation videos: training goes without validation" in caplog.text
    trainer().test(model, module, verbose=False)
    assert model.videos("test") == list(range(9))
    assert "all of its 9 videos, whether trained on or not" in caplog.text


def test_a_stage_without_videos_says_what_there_is(tmp_path, video_folder, split_folder, make_video):
    (tmp_path / "train.txt").write_text("waving/waving_0.mp4 waving\njumping/jumping_0.mp4 jumping\n")
    module = data(video_folder, train_list=tmp_path / "train.txt")
    with pytest.raises(InputError, match=r"train\.txt: no videos for test, only train; it takes test_list"):
        trainer().test(Recorder(), module)
    root = tmp_path / "videos"
    make_video(root / "train/run/a.mp4")
    with pytest.raises(InputError, match=r"no videos for val, only train; it takes a folder val/"):
        trainer().validate(Recorder(), data(root))
    make_video(tmp_path / "loose/a.mp4")
    with pytest.raises(InputError, match="no videos for train, only videos without classes"):
        trainer().fit(Recorder(), data(tmp_path / "loose"))


def test_list_files(tmp_path, video_folder):
    (tmp_path / "train.txt").write_text("waving/waving_0.mp4 waving\njumping/jumping_0.mp4 jumping\n")
    (tmp_path / "val.csv").write_text("waving/waving_1.mp4,waving\n")
    module = data(video_folder, train_list=tmp_path / "train.txt", val_list=tmp_path / "val.csv")
    model = Recorder()
    trainer().fit(model, module)
    assert module.classes == ["jumping", "waving"]
    assert sorted(zip(model.videos("train"), model.labels("train"), strict=True)) == [(0, 1), (1, 0)]
    assert model.labels("val") == [1]


def test_the_model_says_how_clips_look(split_folder):
    model, module = Recorder(), data(split_folder, clip={"frames": 2, "crop": 16})
    trainer().validate(model, module, verbose=False)
    assert module.clip == CLIP
    for given in (CLIP, CLIP.to_dict()):
        trainer().validate(model, data(split_folder, clip=given), verbose=False)


def test_other_clips_than_the_models_are_refused_with_both(split_folder):
    module = data(split_folder, clip={"frames": 4, "step": 2, "fps": 30})
    with pytest.raises(InputError, match=r"data and model\): frames 4 and 2; fps 30 and None; leave clip out"):
        trainer().fit(Recorder(), module)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (None, "clip needs frames, step, fps, .* too: no weights and no model"),
        ({"frames": 2, "step": 1}, "clip needs fps, short_side"),
        (CLIP.to_dict() | {"frame": 2}, "clip has no frame; there are: frames, step"),
        (CLIP.to_dict() | {"frames": 0}, r"clip\.frames must be a whole number"),
    ],
)
def test_clips_must_be_whole_without_a_model(split_folder, clip, message):
    with pytest.raises(InputError, match=message):
        data(split_folder, clip=clip).train_dataloader()


def test_loaders_work_without_a_trainer(split_folder):
    module = data(split_folder, clip=CLIP)
    batch = next(iter(module.train_dataloader()))
    assert batch["clips"].shape == (4, 1, 3, 2, 16, 16)
    assert isinstance(module.train_dataloader().sampler, TrainOrder)
    assert [batch["videos"].tolist() for batch in module.val_dataloader()] == [[0, 1, 2, 3], [4, 5]]
    assert next(iter(data(split_folder, clip=CLIP, eval_batch_size=5).test_dataloader()))["clips"].shape[:2] == (5, 2)


def test_labels_follow_the_models_classes(split_folder):
    model = Recorder(classes=["waving", "nothing", "jumping", "clapping"])
    module = data(split_folder)
    trainer().test(model, module, verbose=False)
    assert model.labels("test") == [3] * 3 + [2] * 3 + [0] * 3
    assert module.classes == model.classes
    with pytest.raises(InputError, match="folder 'clapping' is none of the 2 classes; nearest: 'clap'"):
        trainer().test(Recorder(classes=["clap", "jumping"]), data(split_folder))


def test_training_for_other_classes_as_many_as_the_models_names_the_way_out(split_folder):
    with pytest.raises(InputError, match=r"none of the 3 classes; .*; for a new head, pass classes=data\.classes"):
        trainer().fit(Recorder(classes=["act0", "act1", "act2"]), data(split_folder))


def test_videos_without_a_label_are_for_predict_only(split_folder, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text("path,label\ntrain/clapping/train_clapping_0.mp4,clapping\ntrain/jumping/train_jumping_0.mp4,\n")
    module = data(split_folder, train_list=file, test_list=file)
    for run in (trainer().fit, trainer().test):
        with pytest.raises(InputError, match=r"jumping_0.mp4: no label for it in \w+; only predict takes such videos"):
            run(Recorder(), module)
    assert sum(map(len, trainer().predict(Recorder(), module))) == 4  # both lists


def test_no_batch_looks_through_all_videos(split_folder):
    class Counted(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    times = set()
    for batch_size in (1, 6):
        module = data(split_folder, batch_size=batch_size)
        module.samples["train"] = Counted(module.samples["train"])
        trainer().fit(Recorder(), module)
        times.add(module.samples["train"].times)
    assert len(times) == 1  # whatever the number of batches


def test_mirrored_classes_change_places(tmp_path, make_video):
    for name in ("left", "right", "up"):
        make_video(tmp_path / name / "a.mp4", frames=4, size=(16, 16))
    model = Recorder(classes=["up", "right", "left"])  # the model's numbers are what is swapped
    trainer().fit(model, data(tmp_path, flip=1.0, flip_classes=[["left", "right"]]))
    swapped = dict(zip(model.videos("train"), model.labels("train"), strict=True))
    assert swapped == {0: 1, 1: 2, 2: 0}  # left is now right, right left, up up


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip_classes": [["clapping", "jumpin"]]}, "'jumpin' is none of the 3 classes"),
        ({"flip_classes": [["clapping"]]}, "pairs of classes"),
        ({"flip_classes": [["clapping", "waving"], ["waving", "jumping"]]}, "'waving' is in two pairs"),
        ({"flip": 1.5}, "flip must be a number from 0 to 1, got 1.5"),
        ({"scale": (0.5, 0.25)}, "scale is two shares"),
        ({"scale": 0.5}, "scale is two shares"),
        ({"scale": (0, 1)}, "scale is two shares"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more, got 0"),
        ({"test_clips": 0}, "test_clips must be a whole number of 1 or more"),
        ({"test_crops": 2}, "test_crops must be one of 1, 3, 10, full, got 2"),
        ({"num_workers": -1}, "num_workers must be a whole number of 0 or more"),
        ({"on_unreadable": "ignore"}, "on_unreadable must be one of skip, blank, raise, got 'ignore'"),
        ({"on_unreadable": {"fit": "skip"}}, "a stage of on_unreadable must be one of train, val, .*, got 'fit'"),
        ({"on_unreadable": {"val": "ignore"}}, "on_unreadable must be one of skip, blank, raise, got 'ignore'"),
        ({"unreadable_limit": 2}, "unreadable_limit must be a number from 0 to 1, got 2"),
        ({"frames_fps": 0}, "frames_fps must be a number of pictures per second above 0, or null; got 0"),
        ({"read_timeout": -1}, "read_timeout must be a number of 0 or more"),
        ({"read_timeout": 0}, "read_timeout must be a number of seconds above 0, or null"),
        ({"test_crops": 10, "flip_classes": [["clapping", "waving"]]}, "ten crops hold mirror images"),
        ({"train_clips": 0}, "train_clips must be a whole number of 1 or more"),
        ({"reader": "decord"}, "reader must be one of av, torchcodec"),
        ({"augment": "autoaugment"}, "augment must be one of none, randaugment, trivialaugment"),
        ({"augment_on": "gpu"}, "augment_on must be one of auto, workers, device"),
        ({"scale": ("a", "b")}, "scale is two shares of the area"),
        ({"short_sides": (256,)}, "short_sides is two numbers of pixels"),
        ({"short_sides": (320, 256)}, r"the smaller first; got \[320, 256\]"),
        ({"val_crops": True}, "val_crops must be one of 1, 3, 10, full, got True"),
        ({"test_crops": 1.0}, "test_crops must be one of 1, 3, 10, full, got 1.0"),
        ({"on_unreadable": None}, "on_unreadable must be one of skip, blank, raise, or one by stage, got None"),
    ],
)
def test_impossible_options_are_refused(split_folder, options, message):
    with pytest.raises(InputError, match=message):
        data(split_folder, **options)


@pytest.fixture
def damaged(tmp_path, make_video) -> Path:
    """Two classes; in each split one video of two is broken."""
    for split in ("train", "val"):
        make_video(tmp_path / split / "good" / "a.mp4", frames=4, size=(16, 16))
        (tmp_path / split / "worse").mkdir()
        (tmp_path / split / "worse" / "b.mp4").write_bytes(b"no video")
    return tmp_path


def unreadable(model, stage):
    return [pair for batch in model.seen[stage] for pair in batch["unreadable"]]


def test_unreadable_videos_are_skipped_and_counted(damaged):
    model = Recorder()
    trainer().fit(model, data(damaged, batch_size=1, unreadable_limit=0.5))
    for stage in ("train", "val"):
        assert model.videos(stage) == [0]
        assert [number for number, _ in unreadable(model, stage)] == [1]
        assert unreadable(model, stage)[0][1].startswith(str(damaged / stage / "worse" / "b.mp4"))


def test_unreadable_videos_become_gray_if_asked(damaged):
    model = Recorder(CLIP.__class__.from_dict(CLIP.to_dict() | {"mean": (0.2, 0.4, 0.6)}))
    module = data(damaged, on_unreadable="blank", unreadable_limit=1, augment="randaugment", augment_on="device")
    trainer().fit(model, module)
    for stage in ("train", "val"):
        (batch,) = model.seen[stage]
        assert sorted(zip(batch["videos"].tolist(), batch["labels"].tolist(), strict=True)) == [(0, 0), (1, 1)]
        assert batch["blank"].tolist() == [video == 1 for video in batch["videos"].tolist()]
        colours = batch["clips"][batch["blank"]].flatten(3).transpose(0, 2).flatten(1)
        assert [set(colour.tolist()) for colour in colours] == [{51}, {102}, {153}]
        assert [number for number, _ in batch["unreadable"]] == [1]
    model = Recorder()
    trainer().fit(model, data(damaged, on_unreadable={"val": "blank"}, unreadable_limit=1))
    assert [len(model.seen[stage][0]["videos"]) for stage in ("train", "val")] == [1, 2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_training_videos_end_the_run_if_asked(damaged, num_workers):
    before = set(multiprocessing.active_children())
    module = data(damaged, on_unreadable={"train": "raise"}, unreadable_limit=0.5, num_workers=num_workers)
    with pytest.raises(InputError) as error:
        trainer().fit(Recorder(), module)
    assert str(error.value).startswith(str(damaged / "train" / "worse" / "b.mp4"))
    assert "Traceback" not in str(error.value)
    assert set(multiprocessing.active_children()) <= before
    model = Recorder()
    trainer().validate(model, module, verbose=False)  # the stage has a policy of its own
    assert model.videos("val") == [0]


@pytest.mark.parametrize(("stage", "method"), [("train", "fit"), ("val", "validate"), ("predict", "predict")])
def test_each_stage_may_raise(damaged, stage, method):
    module = data(damaged, on_unreadable={stage: "raise"}, unreadable_limit=1)
    with pytest.raises(InputError, match=r"b\.mp4"):
        getattr(trainer(), method)(Recorder(), module)


@pytest.mark.parametrize(("stage", "method"), [("train", "fit"), ("val", "validate")])
def test_too_many_unreadable_videos_end_the_run(damaged, stage, method):
    with pytest.raises(InputError) as error:
        getattr(trainer(), method)(Recorder(), data(damaged, unreadable_limit=0.49))
    assert str(error.value).startswith(
        f"1 of the 2 videos of the {stage} split cannot be read, more than the share of 0.49 that unreadable_limit "
        "allows; 'lightning-csn check-data' finds all of them, to be mended or taken out; the first: "
        f"{damaged / stage / 'worse' / 'b.mp4'}: "
    )
    model = Recorder()
    trainer().predict(model, data(damaged, unreadable_limit=0))  # says it of each in its answers
    assert [number for number, _ in unreadable(model, "predict")] == [1, 3]


def test_a_read_that_hangs_is_given_up(damaged, monkeypatch):
    def hang_or_open(path, **options):
        if path.endswith("b.mp4"):
            options["cancelled"].wait()
        return open_video(path, **options)

    def patient(open_reader, *, seconds, name):  # with the others, however busy the machine is
        return WatchedReader(open_reader, seconds=seconds if name.endswith("b.mp4") else None, name=name)

    monkeypatch.setattr(dataset, "open_video", hang_or_open)
    monkeypatch.setattr(dataset, "WatchedReader", patient)
    model = Recorder()
    trainer().fit(model, data(damaged, read_timeout=0.3, unreadable_limit=1))
    for stage in ("train", "val"):
        message = f"{damaged / stage / 'worse' / 'b.mp4'}: not read within 0.3 seconds, so given up"
        assert unreadable(model, stage) == [(1, message)]
        assert model.videos(stage) == [0]


def test_an_index_tells_unreadable_videos_before_they_are_opened(damaged):
    path = damaged / "train" / "good" / "a.mp4"
    with IndexWriter(damaged / "index") as writer:
        stamp = stamp_of(path)
        writer.add(Entry(path=str(path), bytes=stamp.bytes, mtime_ns=stamp.mtime_ns, error=f"{path}: known to be bad"))
    model = Recorder()
    trainer().fit(model, data(damaged, index=damaged / "index", unreadable_limit=1))
    assert (0, f"{path}: known to be bad") in unreadable(model, "train")
    with pytest.raises(InputError, match="the index cannot be read"):
        trainer().fit(Recorder(), data(damaged, index=damaged / "nowhere"))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"times": None},
            "what was kept of the video, in an index or a shard, has been changed since; remove the",
        ),
        ({"info": {"num_frames": 99}}, "what was kept of the video"),
        ({"nonsense": 1}, "its entry in the index is none of check-data"),
    ],
)
def test_an_index_that_was_changed_is_one_line_from_a_worker_too(split_folder, tmp_path, changes, message, num_workers):
    path = tmp_path / "index"
    with IndexWriter(path) as writer:
        for video in sorted(split_folder.glob("train/*/*.mp4")):
            stamp = stamp_of(video)
            with open_video(video) as opened:
                layout = opened.layout.to_dict()
            writer.add(Entry(path=str(video), bytes=stamp.bytes, mtime_ns=stamp.mtime_ns, layout=layout))
    head, *lines = path.read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        if "nonsense" in changes:
            entry |= changes
        else:
            entry["layout"] |= {name: entry["layout"][name] | new if new else new for name, new in changes.items()}
    path.write_text("\n".join([head, *map(json.dumps, entries), ""]))
    with pytest.raises(InputError, match=message) as caught:
        trainer().fit(Recorder(), data(split_folder, index=path, num_workers=num_workers))
    assert str(caught.value).startswith(str(split_folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("known", "level", "said"), [(0, "WARNING", "index of other videos"), (5, "INFO", "index")])
def test_an_index_says_how_many_of_the_videos_it_knows(split_folder, tmp_path, caplog, known, level, said):
    videos = [*sorted(split_folder.glob("train/*/*.mp4"))[:known], split_folder / "elsewhere.mp4"]
    with IndexWriter(tmp_path / "index") as writer:
        for path in videos:
            writer.add(Entry(path=str(path), bytes=1, mtime_ns=1))
    with caplog.at_level("INFO", "lightning_csn"):
        trainer(limit_val_batches=0).fit(Recorder(), data(split_folder, index=tmp_path / "index"))
    found = [(record.levelname, record.message) for record in caplog.records if "scanned" in record.message]
    message = (
        f"{said}: {known} of the 12 videos of train are in {tmp_path / 'index'}; the others are scanned when they "
    )
    assert found[0] == (level, message + "are opened")


def test_a_reader_that_is_not_there_is_said_at_once(split_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(InputError, match="torchcodec"):
        data(split_folder, reader="torchcodec")


def test_classes_that_validation_never_sees_are_named(split_folder, tmp_path, caplog):
    root = tmp_path / "videos"
    shutil.copytree(split_folder, root)
    shutil.rmtree(root / "val" / "jumping")
    with caplog.at_level("INFO", "lightning_csn"):
        trainer().fit(Recorder(), data(root))
    said = "val has no video of 1 of the classes that train has, so that its figures say nothing of them: jumping"
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [said]


def test_several_clips_of_a_video_are_trained_on(split_folder):
    model = Recorder()
    model.clip = dataclasses.replace(CLIP, sampling="segments")
    trainer().fit(model, data(split_folder, train_clips=3, short_sides=(16, 20)))
    assert {tuple(batch["clips"].shape) for batch in model.seen["train"]} == {(4, 3, 3, 2, 16, 16)}
    assert model.seen["val"][0]["clips"].shape == (4, 1, 3, 2, 16, 16)
    assert sorted(model.videos("train")) == list(range(12))


def test_classes_are_balanced_if_asked(split_folder, tmp_path, caplog):
    root = tmp_path / "videos"
    shutil.copytree(split_folder, root)
    for number in (1, 2, 3):
        (root / "train" / "waving" / f"train_waving_{number}.mp4").unlink()
    model, module = Recorder(), data(root, balance=1.0, batch_size=9)
    with caplog.at_level("INFO", "lightning_csn"):
        trainer(max_epochs=2).fit(model, module)
    labels = [batch["labels"].bincount(minlength=3).tolist() for batch in model.seen["train"]]
    assert labels == [[3, 3, 3], [3, 3, 3]]
    assert len({seed for batch in model.seen["train"] for seed in batch["seeds"].tolist()}) == 18
    assert module.train_counts == pytest.approx([3, 3, 3])
    assert data(root).train_counts == [4, 4, 1]
    assert "balance 1: an epoch has about clapping 3, jumping 3, waving 3" in caplog.text


@pytest.mark.parametrize(("crops", "shape"), [(10, (1, 20, 3, 2, 16, 16)), ("full", (1, 2, 3, 2, 16, 21))])
def test_other_views_of_a_clip(split_folder, crops, shape):
    model = Recorder()
    trainer().test(model, data(split_folder, test_crops=crops), verbose=False)
    assert {tuple(batch["clips"].shape) for batch in model.seen["test"]} == {shape}


def test_whole_pictures_of_different_sizes_cannot_share_a_batch(tmp_path, make_video):
    for name, size in (("a", (16, 24)), ("b", (16, 32))):
        make_video(tmp_path / "test" / name / "a.mp4", frames=3, size=size)
    with pytest.raises(InputError, match=r"different sizes \(16 x 24, 16 x 32\) .*; set eval_batch_size to 1"):
        trainer().test(Recorder(), data(tmp_path, test_crops="full", eval_batch_size=2), verbose=False)
    model = Recorder()
    trainer().test(model, data(tmp_path, test_crops="full"), verbose=False)
    assert [batch["clips"].shape[-1] for batch in model.seen["test"]] == [24, 32]


def test_clips_are_augmented_alike_in_workers_and_on_the_device(split_folder, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    batches = {}
    for where in ("none", "workers", "device"):
        model = Recorder()
        policy = "none" if where == "none" else "randaugment"
        options = {"augment": policy, "color_jitter": 0.4 * (where != "none"), "augment_on": "auto", "train_clips": 2}
        trainer().fit(model, data(split_folder, **options | ({} if where == "none" else {"augment_on": where})))
        batches[where] = model.seen["train"]
    for plain, one, other in zip(*batches.values(), strict=True):
        assert torch.equal(one["clips"], other["clips"])
        assert torch.equal(one["seeds"], plain["seeds"])
        assert not torch.equal(one["clips"], plain["clips"])


def test_what_is_random_in_training_hangs_on_seed_epoch_and_video_alone(split_folder, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    runs = []
    for options in ({}, {"num_workers": 2}, {"batch_size": 3}):
        model = Recorder()
        torch.rand(len(runs))  # the global generator is elsewhere
        trainer(max_epochs=2).fit(model, data(split_folder, **options))
        clips = [clip for batch in model.seen["train"] for clip in batch["clips"]]
        runs.append(dict(zip(model.draws(), clips, strict=True)))
    for run in runs[1:]:
        assert list(run) == list(runs[0])
        assert all(torch.equal(clip, runs[0][draw]) for draw, clip in run.items())
    assert len(runs[0]) == 24
    monkeypatch.delenv("PL_GLOBAL_SEED")
    free = [Recorder(), Recorder()]
    for model in free:
        trainer().fit(model, data(split_folder))
    assert free[0].draws() != free[1].draws()


class Stop(Callback):
    """Saves after so many steps and ends the run, or not."""

    def __init__(self, step, path, *, end=True):
        self.step, self.path, self.end = step, path, end

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = self.end


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("step", "workers"), [(2, 2), (4, 0), (6, 0)])
def test_training_goes_on_in_the_middle_of_an_epoch(split_folder, tmp_path, monkeypatch, early, step, workers):
    whole, stopped, resumed = (Recorder(early=early) for _ in range(3))
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    trainer(max_epochs=3).fit(whole, data(split_folder))
    path = tmp_path / "last.ckpt"
    trainer(max_epochs=3, callbacks=[Stop(step, path)]).fit(stopped, data(split_folder, num_workers=workers))
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")  # the run goes on as it began
    again = trainer(max_epochs=3)
    again.fit(resumed, data(split_folder, num_workers=workers), ckpt_path=path, weights_only=True)
    assert stopped.draws() == whole.draws()[: 4 * step]
    assert resumed.draws() == whole.draws()[4 * step :]
    assert again.global_step == 9
    if step < 6:
        assert len(resumed.videos("val")) == 6 * (3 - step // 3)  # after every epoch that was not over
    trainer().test(Recorder(), data(split_folder), ckpt_path=path, weights_only=True, verbose=False)


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(split_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # to be restored after seed_everything
    networks = []
    for path in (None, tmp_path / "middle.ckpt"):
        L.seed_everything(len(networks), verbose=False)
        model = LitCSN(architecture="ircsn_tiny", clip=CLIP, num_classes=3, network={"dropout": 0.0})
        module = data(split_folder, augment="randaugment", train_clips=2)
        save = Stop(2, tmp_path / "middle.ckpt", end=False)
        runs = trainer(max_epochs=2, callbacks=[save] if path is None else [])
        runs.fit(model, module, ckpt_path=path, weights_only=path and True)
        assert runs.global_step == 6
        networks.append(model.state_dict())
    assert all(torch.equal(tensor, networks[1][name]) for name, tensor in networks[0].items())


def test_several_labels_of_a_video(split_folder, monkeypatch):
    module = data(split_folder, flip=1.0, flip_classes=[["clapping", "waving"]])
    module.multi_label = True
    module.samples = {
        split: [sample._replace(label=(0, 1) if sample.video else ()) for sample in samples]
        for split, samples in module.samples.items()
    }
    model = Recorder()
    trainer().fit(model, module)
    for stage, several in (("train", [0, 1, 1]), ("val", [1, 1, 0])):
        for batch in model.seen[stage]:
            assert batch["labels"].dtype == torch.float32
            for video, label in zip(batch["videos"].tolist(), batch["labels"].tolist(), strict=True):
                assert label == (several if video else [0, 0, 0])


def test_options_are_read_from_a_command_line(split_folder):
    parser = ArgumentParser()
    parser.add_class_arguments(VideoDataModule, "data", skip={"clip"}, fail_untyped=False)
    typed = ["--data.on_unreadable={train: skip, val: raise}", "--data.test_crops=full", "--data.short_sides=[20, 30]"]
    typed += ["--data.val_crops=3", "--data.classes=[a, b]", "--data.read_timeout=null", f"--data.root={split_folder}"]
    options = parser.parse_args(typed).data
    assert options.on_unreadable == {"train": "skip", "val": "raise"}
    assert (options.test_crops, options.val_crops, options.classes) == ("full", 3, ["a", "b"])
    assert (list(options.short_sides), options.read_timeout) == ([20, 30], None)
    assert parser.parse_args(["--data.on_unreadable=blank", "--data.classes=names.txt"]).data.on_unreadable == "blank"
    for name in ("root", "train_list", "classes", "index"):  # as what a config file names may be taken back
        assert parser.parse_args([f"--data.{name}=null"]).data[name] is None


def test_predict_takes_every_video_with_or_without_classes(tmp_path, split_folder, make_video):
    model = Recorder(classes=["a", "b"])  # the folders' names are no matter here
    module = data(split_folder)
    assert len(trainer().predict(model, module)) == 14  # two views each, batches of two of 27 videos
    assert sorted(model.videos("predict")) == list(range(27))
    assert set(model.labels("predict")) == {-1}
    assert model.seen["predict"][0]["clips"].shape == (2, 2, 3, 2, 16, 16)

    for name in ("b", "a", "c"):
        make_video(tmp_path / "loose" / f"{name}.mp4", frames=3, size=(16, 16))
    module = data(tmp_path / "loose")
    assert module.classes == []
    assert [Path(sample.path).name for sample in module.predict_samples] == ["a.mp4", "b.mp4", "c.mp4"]
    (tmp_path / "list.txt").write_text("# to do\nc.mp4\na.mp4 5\n")
    module = data(tmp_path / "loose", predict_list=tmp_path / "list.txt")
    assert [Path(sample.path).name for sample in module.predict_samples] == ["c.mp4", "a.mp4"]
    assert len(data(tmp_path / "loose" / "a.mp4").predict_samples) == 1
    model = Recorder()
    trainer().predict(model, data(None, predict_list=write(tmp_path / "loose" / "own.txt", "b.mp4\n")))
    assert model.videos("predict") == [0]


def test_videos_to_predict_may_be_named_one_by_one(tmp_path, make_video):
    paths = [make_video(tmp_path / f"{name}.mp4", frames=3, size=(16, 16)) for name in "ba"]
    model = Recorder()
    trainer().predict(model, data(None, predict_videos=[*paths, tmp_path / "none.mp4"]))
    assert model.videos("predict") == [0, 1]
    assert [number for number, _ in unreadable(model, "predict")] == [2]
    with pytest.raises(InputError, match="predict_videos must name videos, got none"):
        data(None, predict_videos=[])


def test_a_video_that_comes_during_a_prediction_moves_no_path(tmp_path, make_video):
    make_video(tmp_path / "b.mp4", frames=3, size=(16, 16))
    module, model = data(tmp_path), Recorder()
    model.on_predict_start = lambda: make_video(tmp_path / "a.mp4", frames=3, size=(16, 16))
    trainer().predict(model, module)
    assert [Path(sample.path).name for sample in module.predict_samples] == ["b.mp4"]
    trainer().predict(Recorder(), module)
    assert [Path(sample.path).name for sample in module.predict_samples] == ["a.mp4", "b.mp4"]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_list_to_predict_stands_alone_like_any_list(tmp_path, split_folder):
    listed = write(tmp_path / "list.txt", "test/waving/test_waving_0.mp4\n")
    module = data(split_folder, predict_list=listed, classes=["something", "else"])  # whatever the folders are called
    assert (module.samples, module.classes) == ({}, ["something", "else"])
    assert len(module.predict_samples) == 1


def test_predict_takes_the_videos_of_all_lists(tmp_path, video_folder):
    train = write(tmp_path / "train.txt", "waving/waving_0.mp4 waving\n")
    test = write(tmp_path / "test.txt", "jumping/jumping_0.mp4 jumping\n")
    module = data(video_folder, test_list=test, train_list=train)
    assert [Path(sample.path).name for sample in module.predict_samples] == ["waving_0.mp4", "jumping_0.mp4"]
    assert [(sample.label, sample.video) for sample in module.predict_samples] == [(-1, 0), (-1, 1)]


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(InputError, match="name a folder"):
        VideoDataModule()
    with pytest.raises(InputError, match="no such folder"):
        VideoDataModule(tmp_path / "nowhere")


def test_hyper_parameters_are_plain_and_make_the_same_module(split_folder):
    module = VideoDataModule(Path(split_folder), clip=CLIP, flip_classes=(("clapping", "waving"),), scale=(0.5, 1.0))
    plain = dict(module.hparams)
    assert json.loads(json.dumps(plain)) == plain
    assert plain.keys() == inspect.signature(VideoDataModule).parameters.keys()
    again = VideoDataModule(**plain)
    assert dict(again.hparams) == plain
    assert pickle.loads(pickle.dumps(again.samples)) == module.samples


@pytest.mark.parametrize(("processors", "workers", "shared"), [(1, 1, 1), (2, 2, 1), (6, 6, 3), (64, 8, 8)])
def test_there_is_a_worker_for_each_processor(split_folder, monkeypatch, processors, workers, shared):
    """Which the processes of a machine share."""
    monkeypatch.setattr(datamodule, "usable_processors", lambda: processors)
    module = VideoDataModule(split_folder, clip=CLIP)
    loader = module.test_dataloader()
    assert loader.num_workers == workers
    assert loader.persistent_workers
    assert not loader.pin_memory
    module.trainer = trainer(devices=2, strategy="ddp")
    assert module.test_dataloader().num_workers == shared


def test_workers_read_as_one_process_does(split_folder):
    alone, helped = Recorder(), Recorder()
    before = set(multiprocessing.active_children())
    trainer().test(alone, data(split_folder), verbose=False)
    trainer().test(helped, data(split_folder, num_workers=2), verbose=False)
    assert set(multiprocessing.active_children()) <= before
    for batch, same in zip(helped.seen["test"], alone.seen["test"], strict=True):
        assert torch.equal(batch["clips"], same["clips"])
        assert torch.equal(batch["videos"], same["videos"])


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 5, 7, 33])
def test_every_video_is_on_one_process(count, processes):
    shares = [EachVideoOnce(range(count), num_replicas=processes, rank=rank) for rank in range(processes)]
    assert all(isinstance(share, DistributedSampler) and len(share) == len(list(share)) > 0 for share in shares)
    owned = [number for share in shares[:count] for number in share]
    assert sorted(owned) == list(range(count))
    assert all(0 <= number < count for share in shares[count:] for number in share)


def test_two_processes_share_the_videos(run_script, split_folder, tmp_path, make_video, monkeypatch):
    """The real thing: Lightning's DDP with gloo, on 9 videos, on one only, and going on with a run of one process."""
    make_video(tmp_path / "one" / "test" / "waving" / "a.mp4", frames=4, size=(16, 16))
    for split, broken in (("train", [2]), ("val", [1, 3])):
        for number in range(5):
            path = make_video(tmp_path / "bad" / split / "aaabb"[number] / f"{number}.mp4", frames=3, size=(16, 16))
            if number in broken:
                path.write_bytes(b"no video")
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    whole, stopped, resumed = Recorder(), Recorder(), Recorder()
    trainer(max_epochs=3).fit(whole, data(split_folder, batch_size=2))
    stop = Stop(4, tmp_path / "one.ckpt")
    trainer(max_epochs=3, callbacks=[stop]).fit(stopped, data(split_folder, batch_size=2))
    run_script(
        tmp_path,
        textwrap.dedent(
            f"""
            import json, os, sys
            sys.path[:0] = {[str(Path(__file__).parent)]!r}
            from test_datamodule import InputError, Recorder, Stop, data, trainer

            def main():
                seen = {{}}
                for name, root in (("nine", {str(split_folder)!r}), ("one", {str(tmp_path / "one")!r})):
                    model, module = Recorder(), data(root)
                    runs = trainer(strategy="ddp", devices=2)
                    runs.test(model, module, verbose=False)
                    runs.predict(model, module, return_predictions=False)
                    if name == "nine":
                        runs.fit(model, module)
                        for path, early in (("one.ckpt", True), ("two.ckpt", False)):
                            again, stop = Recorder(early=early), Stop(7, {str(tmp_path)!r} + "/two.ckpt")
                            more = {{"max_epochs": 3, "callbacks": [stop]}}
                            trainer(strategy="ddp", devices=2, **more).fit(
                                again,
                                data(root, batch_size=2, num_workers=1),
                                ckpt_path={str(tmp_path)!r} + "/" + path,
                                weights_only=True,
                            )
                            seen[path] = again.draws()
                    seen[name] = {{stage: model.videos(stage) for stage in model.seen}}
                bad = {str(tmp_path / "bad")!r}  # of which only the second process has any in validation
                for stage, method, options in (
                    ("val", "validate", {{"unreadable_limit": 0.3, "eval_batch_size": 1}}),
                    ("train", "fit", {{"on_unreadable": {{"train": "raise"}}, "batch_size": 1}}),
                ):
                    try:
                        getattr(trainer(strategy="ddp", devices=2), method)(Recorder(), data(bad, **options))
                    except InputError as error:
                        seen[stage] = str(error)
                with open({str(tmp_path)!r} + f"/seen{{os.environ.get('LOCAL_RANK', '0')}}.json", "w") as file:
                    json.dump(seen, file)

            if __name__ == "__main__":
                main()
            """
        ),
    )
    first, second = (json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in (0, 1))
    assert (first["nine"]["test"], second["nine"]["test"]) == ([0, 2, 4, 6, 8], [1, 3, 5, 7])
    assert (first["nine"]["val"], second["nine"]["val"]) == ([0, 2, 4], [1, 3, 5])
    assert sorted(first["nine"]["predict"] + second["nine"]["predict"]) == list(range(27))
    assert sorted(first["nine"]["train"] + second["nine"]["train"]) == list(range(12))
    assert first["one"]["test"] == second["one"]["test"] == [0]  # the second process repeats it

    trainer(max_epochs=3).fit(
        resumed, data(split_folder, batch_size=2), ckpt_path=tmp_path / "two.ckpt", weights_only=True
    )

    def merged(name):
        return [tuple(draw) for both in zip(first[name], second[name], strict=True) for draw in both]

    assert first["val"] == second["val"]
    assert first["val"].startswith("2 of the 5 videos of the val split cannot be read")
    assert f"; the first: {tmp_path / 'bad/val/a/1.mp4'}: " in first["val"]
    assert first["train"] == second["train"]
    assert first["train"].startswith(f"{tmp_path / 'bad/train/a/2.mp4'}: ")

    # From one process to two in the first epoch, from two to two and from two to one in the second.
    assert stopped.draws() + merged("one.ckpt") + merged("two.ckpt") == whole.draws()
    assert resumed.draws() == merged("two.ckpt")


def test_counts_of_many_classes_are_summed_up():
    from collections import Counter

    names = [f"class {number}" for number in range(30)]
    counts = Counter({number: number + 1 for number in range(29)})
    assert count_text(counts, names) == "30 classes, 0 to 29 videos each, 15 in the middle"
