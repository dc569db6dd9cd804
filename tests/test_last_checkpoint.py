"""last_checkpoint.py: runs that are stopped, by whom or what ever, and go on where they were."""

import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from kill_and_resume import curves

from lightning_csn.cli import main
from lightning_csn.errors import InputError
from lightning_csn.module import LitCSN

# Of Lightning, about runs as short as these; and what torch 2.12 deprecates in it.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15

CLIP = "{frames: 4, step: 1, fps: null, short_side: 32, crop: 32, test_crop: 32, mean: [0, 0, 0], std: [1, 1, 1]}"
SMALL = ["--model.architecture=ircsn_tiny", f"--model.clip={CLIP}", "--model.mixup=0.4", "--model.network.dropout=0.2"]
QUIET = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
QUIET += ["--trainer.enable_model_summary=false", "--data.num_workers=0", "--data.batch_size=2"]
FIT = [*QUIET, "--trainer.num_sanity_val_steps=0", "--trainer.max_epochs=2", "--data.eval_batch_size=2"]
FIT.append("--trainer.log_every_n_steps=1")


def record(monkeypatch, batches, stops):
    """Keeps the videos of every batch, as (stage, epoch, videos); stops: see `seen`."""

    def spy(stage, step):
        def spied(self, batch, batch_idx):
            batches.append((stage, self.current_epoch, sorted(batch["videos"].tolist())))
            stop = stops.pop((stage, sum(one == stage for one, *_ in batches)), None)
            if callable(stop):
                stop()
            elif stop is not None:
                os.kill(os.getpid(), stop)
            return step(self, batch, batch_idx)

        return spied

    for stage, name in (("train", "training_step"), ("val", "validation_step"), ("test", "test_step")):
        monkeypatch.setattr(LitCSN, name, spy(stage, getattr(LitCSN, name)))


@pytest.fixture
def seen(monkeypatch):
    """The batches of all runs; and what happens in one of them: (stage, its number from 1 on) -> signal or function."""
    batches, stops = [], {}
    record(monkeypatch, batches, stops)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield batches, stops
    assert signal.getsignal(signal.SIGTERM) is handlers[signal.SIGTERM]
    signal.signal(signal.SIGINT, handlers[signal.SIGINT])  # Lightning has it ignored for good


class Whole(NamedTuple):
    """A run that nobody stopped."""

    batches: list
    weights: dict
    file: Path


@pytest.fixture(scope="module")
def whole_run(split_folder, tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole")
    batches = []
    with pytest.MonkeyPatch.context() as patch:
        record(patch, batches, {})
        assert main(["fit", *FIT, *SMALL, f"--data.root={split_folder}", f"--trainer.default_root_dir={runs}"]) == 0
    assert [stage for stage, *_ in batches] == [*["train"] * 6, *["val"] * 3] * 2
    return Whole(batches, torch.load(runs / "last.ckpt", weights_only=True)["state_dict"], runs / "last.ckpt")


def fail():
    raise InputError("a disk that is gone")


@pytest.mark.parametrize(
    ("at", "stop", "code"),
    [
        (("train", 2), signal.SIGTERM, 143),
        (("train", 3), signal.SIGINT, 130),
        (("train", 6), signal.SIGTERM, 143),  # the last batch of an epoch
        (("val", 2), signal.SIGINT, 130),
        (("train", 4), fail, 2),
    ],
)
def test_a_run_that_is_stopped_goes_on_where_it_was(split_folder, tmp_path, seen, whole_run, capsys, at, stop, code):
    batches, stops = seen
    whole, weights, _ = whole_run
    options = [*FIT, f"--data.root={split_folder}"]
    stops[at] = stop
    runs = tmp_path / "stopped"
    options.append(f"--trainer.default_root_dir={runs}")
    assert main(["fit", *options, *SMALL]) == code
    assert [stage for stage, *_ in batches].count(at[0]) == at[1]  # it was the last
    shown = capsys.readouterr().out
    if code != 2:
        assert f"interrupted; last checkpoint: {runs / 'last.ckpt'}\n" in shown
        assert f"config.yaml --ckpt_path {runs / 'last.ckpt'}\n" in shown
    # A validation is done anew as a whole, and a batch that failed is seen again.
    first = batches[: -at[1]] if at[0] == "val" else batches[:-1] if code == 2 else batches.copy()
    assert first == whole[: len(first)]
    batches.clear()
    assert main(["fit", *options, f"--ckpt_path={runs / 'last.ckpt'}"]) == 0
    assert first + batches == whole
    held = torch.load(runs / "last.ckpt", weights_only=True)
    assert held["global_step"] == 12
    assert curves(runs) == curves(whole_run.file.parent)
    assert all(torch.equal(value, weights[name]) for name, value in held["state_dict"].items())
    assert list(runs.rglob("*.part")) == []


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(
    ("at", "resume"), [(("train", 2), []), (("train", 6), ["--resume"]), (("val", 2), ["--resume"])]
)
def test_slurms_signal_saves_what_is_whole_and_requeues_the_job(
    split_folder, tmp_path, seen, whole_run, monkeypatch, at, resume
):
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "csn", "SLURM_JOB_ID": "77"}.items():
        monkeypatch.setenv(name, value)  # by which Lightning knows SLURM
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, "0")
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\nkill -TERM $PPID\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    batches, stops = seen
    options = [*FIT, *SMALL, f"--data.root={split_folder}", f"--trainer.default_root_dir={tmp_path / 'run'}", *resume]

    def signals():  # SLURM's, and that of the end, before there was time
        os.kill(os.getpid(), signal.SIGUSR1)
        if at[0] == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    stops[at] = signals
    assert main(["fit", *options]) == 143
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    first = batches[: -at[1]] if at[0] == "val" else batches.copy()
    assert first == whole_run.batches[: len(first)]
    saved = torch.load(tmp_path / "run" / "hpc_ckpt_1.ckpt", weights_only=True)
    assert saved["global_step"] == (at[1] if at[0] == "train" else 6)
    batches.clear()
    assert main(["fit", *options]) == 0  # the same command; without --resume, Lightning finds hpc_ckpt_1.ckpt
    assert first + batches == whole_run.batches
    for name in ("last.ckpt", "hpc_ckpt_1.ckpt"):
        held = torch.load(tmp_path / "run" / name, weights_only=True)["state_dict"]
        assert all(torch.equal(value, whole_run.weights[key]) for key, value in held.items())


def test_no_more_is_lost_than_some_minutes_of_a_run_that_is_killed(split_folder, tmp_path, seen, whole_run):
    batches, stops = seen
    options = [*FIT, f"--data.root={split_folder}", "--trainer.max_epochs=1"]
    options.append(f"--trainer.default_root_dir={tmp_path / 'run'}")
    for at in (("train", 3), ("val", 1)):  # what there is in these moments is what a killed run leaves
        stops[at] = partial(shutil.copyfile, tmp_path / "run" / "last.ckpt", tmp_path / f"{at[0]}.ckpt")
    assert main(["fit", *options, *SMALL, "--save_minutes=0"]) == 0
    for name, done in (("train", 2), ("val", 6)):
        batches.clear()
        assert main(["fit", *options, f"--ckpt_path={tmp_path / name}.ckpt"]) == 0
        assert batches == whole_run.batches[done:9]


def test_nothing_is_left_of_a_run_that_is_stopped_in_its_first_batch(split_folder, tmp_path, seen, capsys):
    def interrupt():
        raise KeyboardInterrupt

    _, stops = seen
    stops["train", 1] = interrupt
    assert main(["fit", *FIT, *SMALL, f"--data.root={split_folder}", f"--trainer.default_root_dir={tmp_path}"]) == 130
    assert "interrupted before the first checkpoint: nothing was kept\n" in capsys.readouterr().out
    assert list(tmp_path.rglob("*.ckpt")) == []


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_test_that_is_stopped_says_what_is_kept(split_folder, tmp_path, seen, whole_run, capsys, stop, code):
    batches, stops = seen
    scores = tmp_path / "scores.npz"
    options = [*QUIET, f"--data.root={split_folder}", f"--ckpt_path={whole_run.file}", f"--scores={scores}"]
    options += ["--data.test_clips=1", "--data.test_crops=1", f"--trainer.default_root_dir={tmp_path}"]
    stops["test", 2] = stop
    assert main(["test", *options]) == code
    done = 4 if stop == signal.SIGTERM else 2  # Lightning finishes its batch; Ctrl-C does not
    said = f"interrupted; the scores of {done} of 9 videos are kept in {scores}.parts; the same command again goes on"
    assert said in capsys.readouterr().out
    batches.clear()
    assert main(["test", *options]) == 0
    assert sum(len(videos) for *_, videos in batches) == 9 - done
    assert [path.name for path in tmp_path.iterdir() if "scores" in path.name] == ["scores.npz"]


def test_a_run_whose_folder_has_a_relative_name_goes_on_and_is_kept(split_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [f"--data.root={split_folder}", *SMALL, *FIT, "--trainer.limit_train_batches=2", "--resume"]
    assert main(["fit", *options, "--trainer.max_epochs=1"]) == 0
    assert main(["fit", *options]) == 0  # without "the dirpath has changed", a warning of ModelCheckpoint
    assert torch.load(Path("runs", "last.ckpt"), weights_only=True)["global_step"] == 4
    assert sorted(path.name for path in Path("runs").glob("version_*/checkpoints/last*")) == ["last.ckpt"]


def test_a_run_goes_on_whose_checkpoint_holds_relative_paths(split_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [f"--data.root={split_folder}", *SMALL, *FIT, "--trainer.limit_train_batches=2"]
    assert main(["fit", *options, "--trainer.max_epochs=1"]) == 0
    checkpoint = torch.load(Path("runs", "last.ckpt"), weights_only=True)
    for state in checkpoint["callbacks"].values():  # as they were written at first
        for name in [name for name in state if name.endswith("path")]:
            state[name] = state[name] and os.path.relpath(state[name])
        if "best_k_models" in state:
            state["best_k_models"] = {os.path.relpath(path): score for path, score in state["best_k_models"].items()}
    torch.save(checkpoint, Path("runs", "last.ckpt"))
    assert main(["fit", *options, "--ckpt_path=runs/last.ckpt"]) == 0
    assert torch.load(Path("runs", "last.ckpt"), weights_only=True)["global_step"] == 4
    assert len(list(Path("runs").glob("version_*/checkpoints/epoch*"))) == 1  # the best of both
