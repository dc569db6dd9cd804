"""VideoDataModule: the right videos in every stage, the model's clips and classes, each video once on any processes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import RandomSampler
from torch.utils.data.distributed import DistributedSampler

from lightning_csn import datamodule
from lightning_csn.clip import ClipSpec
from lightning_csn.datamodule import EachVideoOnce, VideoDataModule, count_text
from lightning_csn.errors import InputError

CLIP = ClipSpec(
    frames=2, step=2, fps=None, short_side=16, crop=16, test_crop=16, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # Lightning 2.6 on torch 2.15
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),  # of training without validation
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # a worker takes a second to start
]


class Recorder(L.LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self, clip=CLIP, classes=None):
        super().__init__()
        self.clip, self.classes = clip, classes
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(batch)
        return batch["videos"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def videos(self, stage):
        return [number for batch in self.seen[stage] for number in batch["videos"].tolist()]

    def labels(self, stage):
        return [label for batch in self.seen[stage] for label in batch["labels"].tolist()]


def trainer(**options) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, **quiet | {"devices": 1} | options)


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
    assert isinstance(module.train_dataloader().sampler, RandomSampler)
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
        ({"test_crops": 2}, "test_crops must be one of 1, 3, got 2"),
        ({"num_workers": -1}, "num_workers must be a whole number of 0 or more"),
        ({"on_unreadable": "ignore"}, "on_unreadable must be one of skip, raise, got 'ignore'"),
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


def test_unreadable_videos_are_skipped_and_counted(damaged):
    model = Recorder()
    trainer().fit(model, data(damaged, batch_size=1))
    for stage in ("train", "val"):
        assert model.videos(stage) == [0]
        unreadable = [pair for batch in model.seen[stage] for pair in batch["unreadable"]]
        assert [number for number, _ in unreadable] == [1]
        assert unreadable[0][1].startswith(str(damaged / stage / "worse" / "b.mp4"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_training_videos_end_the_run_if_asked(damaged, num_workers):
    module = data(damaged, on_unreadable="raise", num_workers=num_workers)
    with pytest.raises(InputError) as error:
        trainer().fit(Recorder(), module)
    assert str(error.value).startswith(str(damaged / "train" / "worse" / "b.mp4"))
    assert "Traceback" not in str(error.value)
    assert multiprocessing.active_children() == []
    model = Recorder()
    trainer().validate(model, module, verbose=False)  # counted there, never an end
    assert model.videos("val") == [0]


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


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(InputError, match="name a folder"):
        VideoDataModule()
    with pytest.raises(InputError, match="no such folder"):
        VideoDataModule(tmp_path / "nowhere")


def test_hyper_parameters_are_plain_and_make_the_same_module(split_folder):
    module = VideoDataModule(Path(split_folder), clip=CLIP, flip_classes=(("clapping", "waving"),), scale=(0.5, 1.0))
    plain = dict(module.hparams)
    assert json.loads(json.dumps(plain)) == plain
    again = VideoDataModule(**plain)
    assert dict(again.hparams) == plain
    assert pickle.loads(pickle.dumps(again.samples)) == module.samples


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than this machine has processors
@pytest.mark.parametrize(("processors", "workers"), [(1, 1), (2, 2), (6, 6), (64, 8)])
def test_there_is_a_worker_for_each_processor(split_folder, monkeypatch, processors, workers):
    monkeypatch.setattr(datamodule, "usable_processors", lambda: processors)
    loader = VideoDataModule(split_folder, clip=CLIP).test_dataloader()
    assert loader.num_workers == workers
    assert loader.persistent_workers
    assert not loader.pin_memory


def test_workers_read_as_one_process_does(split_folder):
    alone, helped = Recorder(), Recorder()
    trainer().test(alone, data(split_folder), verbose=False)
    trainer().test(helped, data(split_folder, num_workers=2), verbose=False)
    assert multiprocessing.active_children() == []
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


def test_two_processes_share_the_videos(split_folder, tmp_path, make_video):
    """The real thing: Lightning's DDP with gloo, on 9 videos, and on one only."""
    make_video(tmp_path / "one" / "test" / "waving" / "a.mp4", frames=4, size=(16, 16))
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import json, os, sys, torch
            sys.path[:0] = {[str(Path(__file__).parent)]!r}
            from test_datamodule import Recorder, data, trainer

            def main():
                seen = {{}}
                for name, root in (("nine", {str(split_folder)!r}), ("one", {str(tmp_path / "one")!r})):
                    model, module = Recorder(), data(root)
                    runs = trainer(strategy="ddp", devices=2)
                    runs.test(model, module, verbose=False)
                    runs.predict(model, module, return_predictions=False)
                    if name == "nine":
                        runs.fit(model, module)
                    seen[name] = {{stage: model.videos(stage) for stage in model.seen}}
                with open({str(tmp_path)!r} + f"/seen{{os.environ.get('LOCAL_RANK', '0')}}.json", "w") as file:
                    json.dump(seen, file)
                runs.strategy.barrier()  # a process that ends while the other still talks can abort
                torch.distributed.destroy_process_group()

            if __name__ == "__main__":
                main()
            """
        )
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "LOCAL_RANK"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(datamodule.__file__).parents[1])])
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in (0, 1))
    assert (first["nine"]["test"], second["nine"]["test"]) == ([0, 2, 4, 6, 8], [1, 3, 5, 7])
    assert (first["nine"]["val"], second["nine"]["val"]) == ([0, 2, 4], [1, 3, 5])
    assert sorted(first["nine"]["predict"] + second["nine"]["predict"]) == list(range(27))
    assert sorted(first["nine"]["train"] + second["nine"]["train"]) == list(range(12))
    assert first["one"]["test"] == second["one"]["test"] == [0]  # the second process repeats it


def test_counts_of_many_classes_are_summed_up():
    from collections import Counter

    names = [f"class {number}" for number in range(30)]
    counts = Counter({number: number + 1 for number in range(29)})
    assert count_text(counts, names) == "30 classes, 0 to 29 videos each, 15 in the middle"
