"""The Trainer's commands: what a run leaves and says, and which option wins."""

import csv
import json
import re
import shlex
import shutil
import signal
import sys
import weakref

import lightning.pytorch  # noqa: F401 - its loggers keep the stderr that they find, which must not be one test's
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.nn.parallel import DistributedDataParallel

from lightning_csn.cli import main
from lightning_csn.clip import ClipSpec
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.errors import SharedError
from lightning_csn.features import FeatureExtractor
from lightning_csn.module import LitCSN

CLASSES = ["clapping", "jumping", "waving"]
CLIP = ClipSpec(
    frames=4, step=1, fps=None, short_side=32, crop=32, test_crop=32, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)
)
SMALL = [f"--model.clip={json.dumps(CLIP.to_dict())}", "--data.num_workers=0", "--data.batch_size=4"]
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, split_folder):
    """The folder of a run of two epochs, a step each, as `fit` leaves it."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    code = main(
        ["fit", f"--data.root={split_folder}", "--model.architecture=ircsn_tiny", "--model.lr=0.125", *SMALL]
        + [option for option in QUIET if "logger" not in option]
        + ["--trainer.max_epochs=2", "--data.batch_size=12", f"--trainer.default_root_dir={runs}"]
    )
    assert code == 0
    return runs


def hyper_parameters(path):
    return torch.load(path, weights_only=True)["hyper_parameters"]


def test_fit_keeps_the_last_and_the_best_checkpoint_and_its_options(trained):
    last = trained / "last.ckpt"
    assert hyper_parameters(last)["classes"] == CLASSES
    assert torch.load(last, weights_only=True)["epoch"] == 1
    assert len(list(trained.rglob("epoch=*val_top1=*.ckpt"))) == 1
    [config] = trained.rglob("config.yaml")
    assert "architecture: ircsn_tiny" in config.read_text()


def test_fit_ends_with_figures_files_and_the_next_command(split_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [option for option in QUIET if "logger" not in option] + ["--model.architecture=ircsn_tiny"]
    options += ["--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2", "--model.lr=0.1"]
    assert main(["fit", f"--data.root={split_folder}", *SMALL, *options]) == 0
    with open(tmp_path / "runs/version_0/metrics.csv", newline="") as file:
        [row] = [row for row in csv.DictReader(file) if row["val_loss"]]
    names = ("val_top1", "val_top5", "val_macro_f1", "val_loss")
    best = f"epoch=1-val_top1={float(row['val_top1']):.4f}.ckpt"
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "last validation: " + ", ".join(f"{name} {float(row[name]):.4f}" for name in names),
        f"best val_top1 {float(row['val_top1']):.4f}: runs/version_0/checkpoints/{best}",
        "last: runs/last.ckpt",
        f"to test it: lightning-csn test --ckpt_path runs/last.ckpt --data.root {split_folder}",
    ]


def test_fit_without_validation_videos_keeps_the_last_checkpoint(video_folder, tmp_path, capsys):
    options = ["--model.architecture=ircsn_tiny", "--trainer.max_steps=1"]
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", f"--data.root={video_folder}", *SMALL, *QUIET, *options, root]) == 0
    assert (tmp_path / "last.ckpt").is_file()
    command = f"lightning-csn test --ckpt_path {tmp_path / 'last.ckpt'} --data.root {video_folder}"
    said = capsys.readouterr().out
    assert f"to test it (these are the videos it was trained on): {command}\n" in said
    assert "last validation: " not in said


@pytest.mark.parametrize("validated", [True, False])
def test_fit_without_test_videos_names_a_command_that_runs(validated, split_folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(split_folder / "train", tmp_path / "videos/train")
    if validated:
        shutil.copytree(split_folder / "val", tmp_path / "videos/val")
    monkeypatch.chdir(tmp_path)
    options = ["--model.architecture=ircsn_tiny", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=2"]
    options += ["--data.test_clips=2", "--trainer.default_root_dir=."]
    assert main(["fit", "--data.root=videos", *SMALL, *QUIET, *options]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    if not validated:
        assert line == "to test it: lightning-csn test --ckpt_path last.ckpt --data.root FOLDER --data.test_clips 2"
        return
    remark, _, command = line.partition(": lightning-csn ")
    assert remark == "there are no videos to test; of validation"
    assert command == "validate --ckpt_path last.ckpt --data.root videos"
    assert main([*command.split(), *QUIET, "--data.num_workers=0"]) == 0


def test_fit_that_ends_before_its_first_validation_says_so(split_folder, tmp_path, capsys):
    options = ["--model.architecture=ircsn_tiny", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=2"]
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", f"--data.root={split_folder}", *SMALL, *QUIET, *options, root]) == 0
    assert "no validation: it is every 2 epochs (--trainer.check_val_every_n_epoch)\n" in capsys.readouterr().out


@pytest.mark.parametrize("known", [True, False])
def test_fit_on_list_files_names_that_of_the_test(known, split_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lists = []
    for split in ("train", "val", "test"):
        file = tmp_path / f"{split} list.csv"
        names = [f"{split}/{name}/{split}_{name}_0.mp4 {name}" for name in CLASSES]
        file.write_text("\n".join(names) + "\n")
        lists += [f"--data.{split}_list={file}"] if known or split != "test" else []
    options = ["--model.architecture=ircsn_tiny", "--trainer.max_steps=1", "--trainer.default_root_dir=."]
    assert main(["fit", f"--data.root={split_folder}", *lists, *SMALL, *QUIET, *options]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("to test it: "))
    file = shlex.quote(str(tmp_path / "test list.csv")) if known else "FILE"
    assert line.endswith(f" test --ckpt_path last.ckpt --data.root {split_folder} --data.test_list {file}")
    if known:
        command = shlex.split(line.removeprefix("to test it: lightning-csn "))
        assert main([*command, *QUIET, "--data.num_workers=0"]) == 0


@pytest.mark.parametrize(("name", "value"), [("classes", ["a", "b", "c"]), ("multi_label", True)])
def test_fit_takes_no_classes_against_the_videos(name, value, video_folder, tmp_path, capsys):
    """By hand or in a file of options; the same that the videos say may stand in a file."""
    file = tmp_path / "options.yaml"
    file.write_text(json.dumps({"model": {name: value}}))
    for option in (f"--model.{name}={json.dumps(value)}", f"--config={file}"):
        assert main(["fit", f"--data.root={video_folder}", "--model.architecture=ircsn_tiny", *QUIET, option]) == 2
        assert f"error: --model.{name}: in training the videos decide; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("videos", "options", "message"),
    [
        (["a.mp4"], [], "{0}: the videos lie in no class folder; put them into {0}/CLASS/VIDEO, or give list files"),
        (["a.mp4"], ["--model.pretrained=ircsn_tiny_motion"], "{0}: the videos lie in no class folder"),
        (["Diving/a.mp4"], [], "{0}: only one class folder (Diving); a classifier needs two or more"),
        (["a/a.mp4", "b/b.mp4"], ["--model.num_classes=5"], "--model.num_classes 5: {0} has 2 classes; leave num_"),
    ],
)
def test_fit_says_what_is_wrong_with_the_class_folders(videos, options, message, tmp_path, capsys):
    for name in videos:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert main(["fit", f"--data.root={tmp_path}", *QUIET, *options]) == 2
    assert f"error: {message.format(tmp_path)}" in capsys.readouterr().err


def test_a_config_asks_for_stochastic_depth_in_training_alone(tmp_path, split_folder, monkeypatch):
    config = tmp_path / "deep.yaml"
    config.write_text("model:\n  architecture: ircsn_tiny\n  network: {drop_path: 0.75}\n  class_weights: balanced\n")
    left_out = {"training_step": [], "validation_step": []}

    def watch(name):
        step = getattr(LitCSN, name)

        def watched(self, *args):
            def count(module, inputs, output):  # clips whose whole branch is 0
                left_out[name].append((output.flatten(1) == 0).all(1).float().mean().item())

            last = self.network.stage4[0].drop_path
            assert last.drop_prob == 0.75
            handle = last.register_forward_hook(count)
            try:
                return step(self, *args)
            finally:
                handle.remove()

        monkeypatch.setattr(LitCSN, name, watched)

    for name in left_out:
        watch(name)
    options = [f"--data.root={split_folder}", *SMALL, *QUIET, f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    assert main(["fit", f"--config={config}", *options, "--trainer.max_epochs=2"]) == 0
    assert 0.4 < sum(left_out["training_step"]) / len(left_out["training_step"]) < 1
    assert not any(left_out["validation_step"])
    held = hyper_parameters(tmp_path / "runs" / "last.ckpt")
    assert held["network"]["drop_path"] == 0.75
    assert held["class_weights"] == "balanced"


def test_a_config_that_is_no_text_is_named(tmp_path, capsys):
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"\x80\x02\xff")
    for options in ([f"--config={garbage}"], ["--config", str(garbage)]):
        assert main(["fit", *options]) == 2
        assert f"--config {garbage}: no file of options, which is text (YAML)" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(video_folder, tmp_path, monkeypatch, capsys):
    def interrupt(self, batch, batch_idx):
        if self.current_epoch == len(said):  # in the first epoch of the first run, the second of the second
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    step, handler = LitCSN.training_step, signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(LitCSN, "training_step", interrupt)
    options = [f"--data.root={video_folder}", "--model.architecture=ircsn_tiny", *SMALL, "--data.batch_size=9", *QUIET]
    last, said = tmp_path / "last.ckpt", []
    for _ in range(2):
        try:
            assert main(["fit", *options, f"--trainer.default_root_dir={tmp_path}"]) == 130
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning has it ignored for good
        said.append(capsys.readouterr().out)
    assert "interrupted before the first checkpoint: nothing was kept\n" in said[0]
    assert f"interrupted; last checkpoint: {last}\n" in said[1]
    assert f"to go on: lightning-csn fit --config {tmp_path / 'config.yaml'} --ckpt_path {last}\n" in said[1]


def test_fit_with_pretrained_weights_takes_their_clip_and_a_new_head(make_video, weights, tmp_path):
    for name in ("one", "two"):
        for i in range(2):
            make_video(tmp_path / "videos" / name / f"{i}.mp4")
    options = [f"--model.pretrained={weights}", "--trainer.max_steps=1", "--data.num_workers=0"]
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", f"--data.root={tmp_path / 'videos'}", *QUIET, *options, root]) == 0
    kept = hyper_parameters(tmp_path / "last.ckpt")
    assert kept["classes"] == ["one", "two"]
    assert kept["clip"] == CLIP.to_dict()
    assert kept["pretrained"] is None


def test_the_newest_run_is_last_ckpt(split_folder, tmp_path):
    """A second run keeps the first one's checkpoints, and last.ckpt becomes its own."""
    for architecture in ("ircsn_tiny", "ipcsn_tiny"):
        options = [f"--model.architecture={architecture}", "--trainer.max_epochs=1", "--data.batch_size=12"]
        root = f"--trainer.default_root_dir={tmp_path}"
        assert main(["fit", f"--data.root={split_folder}", *SMALL, *QUIET[:-1], *options, root]) == 0
    assert hyper_parameters(tmp_path / "last.ckpt")["architecture"] == "ipcsn_tiny"
    kept = {hyper_parameters(path)["architecture"] for path in tmp_path.glob("version_*/**/last.ckpt")}
    assert kept == {"ircsn_tiny", "ipcsn_tiny"}


def test_test_needs_no_model_options(trained, split_folder, tmp_path, capsys):
    checkpoint = f"--ckpt_path={trained / 'last.ckpt'}"
    options = ["--data.num_workers=0", "--data.test_clips=2", "--data.test_crops=1"]
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["test", f"--data.root={split_folder}", checkpoint, *options, *QUIET, root]) == 0
    shown = capsys.readouterr().out
    assert "of 9 videos" in shown
    assert "2 clips x 1 crop of 4 frames of 32 x 32 pixels" in shown


def test_validate_scores_weights_without_a_run(split_folder, weights, tmp_path, capsys):
    options = [f"--model.pretrained={weights}", "--data.num_workers=0", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["validate", f"--data.root={split_folder}", *options, *QUIET]) == 0
    assert "of 6 videos (none unreadable; 0 shorter than a clip); 1 clip x 1 crop of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.strategy=foo", "invalid strategy name: `strategy='foo'`"),
        ("--trainer.devices=none", "the Trainer cannot be made with these options: `devices`"),
        ("--trainer.max_epochs=-7", "`max_epochs` must be a non-negative integer or -1"),
        pytest.param(
            "--trainer.accelerator=gpu",
            "No supported gpu backend found",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_trainer_that_cannot_be_made_gets_a_message_and_2(option, message, video_folder, capsys):
    assert main(["fit", f"--data.root={video_folder}", "--model.architecture=ircsn_tiny", *SMALL, *QUIET, option]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_cannot_be_written_gets_a_message_and_2(video_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    options = [f"--data.root={video_folder}", "--model.architecture=ircsn_tiny", "--trainer.max_steps=1", *SMALL]
    for root in (tmp_path / "file", tmp_path / "file" / "runs", tmp_path / "file" / "of" / "runs"):
        assert main(["fit", *options, *QUIET[:-1], f"--trainer.default_root_dir={root}"]) == 2
        assert "the run cannot be written: [Errno " in capsys.readouterr().err

    def save(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    assert main(["fit", *options, *QUIET, f"--trainer.default_root_dir={tmp_path / 'runs'}"]) == 2
    assert "runs: the run cannot be written: [Errno 28] No space left on device" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".ckpt", ".part")] == []


def test_too_little_memory_says_what_needs_less(trained, split_folder, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more")

    monkeypatch.setattr(LitCSN, "training_step", fails)
    monkeypatch.setattr(LitCSN, "view_logits", fails)
    fit = [f"--data.root={split_folder}", "--model.architecture=ircsn_tiny", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *fit, *SMALL, *QUIET, "--trainer.num_sanity_val_steps=0"]) == 2
    said = capsys.readouterr().err
    assert "error: out of memory on cpu: CUDA out of memory. Tried to allocate 9 GiB\nWhat would do: " in said
    assert "--data.batch_size below 4 (with --trainer.accumulate_grad_batches" in said
    assert "--model.checkpointing '[1,2]'" in said
    test = [f"--data.root={split_folder}", f"--ckpt_path={trained / 'last.ckpt'}", "--data.num_workers=0"]
    assert main(["test", *test, *QUIET]) == 2
    said = capsys.readouterr().err
    assert "What would do: --model.views_per_pass below 8; or --data.eval_batch_size 1\n" in said


def test_an_os_error_that_is_none_of_writing_keeps_its_traceback(monkeypatch, video_folder, tmp_path):
    def break_down(*args):
        raise FileNotFoundError(2, "No such file", "/somewhere/else")

    monkeypatch.setattr("lightning_csn.module.LitCSN.training_step", break_down)
    options = [f"--data.root={video_folder}", "--model.architecture=ircsn_tiny", *SMALL, *QUIET]
    with pytest.raises(FileNotFoundError, match="/somewhere/else"):
        main(["fit", *options, f"--trainer.default_root_dir={tmp_path}"])


def test_lightning_advertises_nothing(trained, split_folder, caplog):
    options = [f"--ckpt_path={trained / 'last.ckpt'}", "--data.num_workers=0", "--data.val_crops=1"]
    assert main(["validate", f"--data.root={split_folder}", *options, *QUIET]) == 0
    assert "GPU available" in caplog.text
    assert "Tip:" not in caplog.text


def test_predict_writes_a_line_per_video(trained, make_video, tmp_path, capsys):
    videos, out = tmp_path / "videos, unsorted", tmp_path / "answers" / "a.csv"
    for name in ("b/1.mp4", "a.mp4"):
        make_video(videos / name)
    (videos / "c.mp4").write_bytes(b"no video")
    options = ["--data.num_workers=0", "--data.test_clips=1", "--data.test_crops=1", f"--output={out}"]
    checkpoint = f"--ckpt_path={trained / 'last.ckpt'}"
    assert main(["predict", f"--data.root={videos}", checkpoint, *options, *QUIET]) == 0
    shown = capsys.readouterr()
    assert f"answers: {out} (3 videos, 1 of them unreadable)\n" in shown.out
    assert re.search(r"^3 videos in \d+\.\d s, .* waiting for videos \d+%$", shown.err, re.MULTILINE)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(videos / name) for name in ("a.mp4", "b/1.mp4", "c.mp4")]
    for row in rows[:2]:
        assert {row["class_1"], row["class_2"], row["class_3"]} == set(CLASSES)
        assert float(row["probability_1"]) >= float(row["probability_2"]) >= float(row["probability_3"])
        assert row["error"] == ""
    assert "c.mp4" in rows[2]["error"]
    assert rows[2]["class_1"] == ""


def test_an_interrupted_prediction_goes_on_with_the_same_command(trained, video_folder, tmp_path, monkeypatch, capsys):
    def interrupt(self, batch, batch_idx):
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.extend(batch["videos"].tolist())
        return step(self, batch, batch_idx)

    step, handler, seen = LitCSN.predict_step, signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(LitCSN, "predict_step", interrupt)
    out = tmp_path / "a.jsonl"
    options = ["--data.num_workers=0", "--data.test_clips=1", "--data.eval_batch_size=1", f"--output={out}"]
    command = ["predict", f"--data.root={video_folder}", f"--ckpt_path={trained / 'last.ckpt'}", *options, *QUIET]
    try:
        assert main(command) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning has it ignored for good
    assert "interrupted; the same command goes on with the videos that are left" in capsys.readouterr().out
    assert not out.exists()
    seen.clear()
    monkeypatch.setattr(
        LitCSN, "predict_step", lambda self, batch, i: seen.extend(batch["videos"]) or step(self, batch, i)
    )
    assert main(command) == 0
    assert seen == [5, 6, 7, 8]
    assert "5 of 9 videos are answered already" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 9


@pytest.mark.filterwarnings("ignore:It is recommended to use .*sync_dist=True")  # of a group that is no strategy's
@pytest.mark.parametrize(
    ("command", "error", "code"),
    [
        ("validate", None, 0),
        ("validate", SharedError("no luck"), 2),
        ("validate", SIGTERMException(), 143),
        ("fit", RuntimeError("a worker ended"), 143),
        ("features", None, 0),
        ("features", SharedError("no luck"), 2),
    ],
)
def test_a_process_leaves_the_others_when_it_ends(
    trained, weights, split_folder, tmp_path, monkeypatch, capsys, command, error, code
):
    """One that does not may abort, whatever its exit code was to be; and so may one in which a network in parallel is
    left, as in the frames of an error, for that holds the group.
    """

    def work(self, *args):
        parallel = DistributedDataParallel(torch.nn.Linear(1, 1))
        parallel.itself = [parallel]  # a cycle
        held.append(weakref.ref(parallel))
        for callback in self.trainer.checkpoint_callbacks:
            callback.asked = signal.SIGTERM  # of LastCheckpoint, which fit has alone
        if error is not None:
            raise type(error)(*error.args)  # `error` itself would keep these frames
        return step(self, *args)

    def leave_group():
        left.append([network() for network in held])
        destroy()

    kind, name = {
        "validate": (LitCSN, "validation_step"),
        "fit": (LitCSN, "training_step"),
        "features": (FeatureExtractor, "predict_step"),
    }[command]
    held, left = [], []
    step, destroy = getattr(kind, name), torch.distributed.destroy_process_group
    monkeypatch.setattr(kind, name, work)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", leave_group)
    options = {
        "validate": [f"--data.root={split_folder}", f"--ckpt_path={trained / 'last.ckpt'}", *SMALL, *QUIET],
        "fit": [
            f"--data.root={split_folder}",
            "--model.architecture=ircsn_tiny",
            f"--trainer.default_root_dir={tmp_path}",
            *SMALL,
            *QUIET,
        ],
        "features": [str(split_folder), f"--model={weights}", f"--output={tmp_path / 'f.npz'}", "--workers=0"],
    }
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert main([command, *options[command]]) == code
        assert not torch.distributed.is_initialized()
        assert left == [[None] * len(held)]
        assert held
        assert ("error: no luck" in capsys.readouterr().err) == isinstance(error, SharedError)
    finally:
        if torch.distributed.is_initialized():
            destroy()


def test_print_config_prints_what_a_run_would_take(capsys):
    assert main(["fit", "--print_config", "--model.lr=3", "--data.root=videos"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^data:\n(  .*\n)*  root: videos$", shown, re.MULTILINE)
    assert re.search(r"^  lr: 3\.0$", shown, re.MULTILINE)


def started(monkeypatch, argv):
    """The TrainerCommand that `main(argv)` builds, stopped before it runs."""
    from lightning_csn.trainer_commands import TrainerCommand

    seen = []
    monkeypatch.setattr(TrainerCommand, "run_command", lambda command: seen.append(command))
    assert main([*argv, *QUIET]) == 0
    return seen[0]


@pytest.mark.parametrize("option", ["--model.lr=0.1", "--model.architecture=ircsn_tiny"])
def test_fit_says_which_network_it_trains_where_nobody_chose_one(option, split_folder, monkeypatch, capsys):
    started(monkeypatch, ["fit", f"--data.root={split_folder}", option])
    said = re.search(r"^ircsn_50 \([\d,]+ parameters\) is trained from scratch", capsys.readouterr().err, re.MULTILINE)
    assert (said is not None) == ("architecture" not in option)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.pytorch.cli")
def test_trap_stock_lightningcli_takes_a_checkpoint_over_what_was_typed(trained, split_folder, monkeypatch):
    class Stock(LightningCLI):
        def _run_subcommand(self, subcommand):
            """Only what comes before it is asked for."""

    options = [f"--data.root={split_folder}", f"--ckpt_path={trained / 'last.ckpt'}", *QUIET, "--model.lr=9"]
    monkeypatch.setattr(sys, "argv", ["stock", "test", *options])
    stock = Stock(LitCSN, VideoDataModule, save_config_callback=None)
    assert stock.model.hparams["lr"] == 0.125


def test_options_given_by_hand_win_over_the_checkpoint(trained, split_folder, tmp_path, monkeypatch):
    config = tmp_path / "c.yaml"
    config.write_text("model: {label_smoothing: 0.25, clip: {short_side: 40}}")
    command = started(
        monkeypatch,
        [
            *("test", f"--data.root={split_folder}", f"--ckpt_path={trained / 'last.ckpt'}", f"--config={config}"),
            *("--model.average=logits", "--model.views_per_pass", "3", "--model.lr=9", "--model.network.dropout=0.5"),
        ],
    )
    hparams = command.model.hparams
    assert (hparams["average"], hparams["views_per_pass"], hparams["lr"]) == ("logits", 3, 9)
    assert hparams["label_smoothing"] == 0.25
    assert hparams["network"]["dropout"] == 0.5
    assert command.model.clip.short_side == 40
    assert command.model.clip.frames == CLIP.frames  # the rest is the checkpoint's
    assert hparams["architecture"] == "ircsn_tiny"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.architecture=ipcsn_tiny"], "architecture ipcsn_tiny: the weights of the checkpoint were made with"),
        (["--model.num_classes=4"], "num_classes 4: the weights of the checkpoint were made with num_classes 3"),
        (["--model.network.norm_eps=0.1"], "network.norm_eps 0.1: the weights of the checkpoint were made with"),
        (["--model.pretrained=ircsn_152_ig65m"], "--ckpt_path and --model.pretrained both bring weights"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_options_that_contradict_the_weights_are_refused(command, options, message, trained, split_folder, capsys):
    checkpoint = f"--ckpt_path={trained / 'last.ckpt'}"
    assert main([command, f"--data.root={split_folder}", checkpoint, *options, *QUIET]) == 2
    assert message in capsys.readouterr().err


def test_resuming_refuses_settings_that_the_optimiser_would_ignore(trained, split_folder, capsys):
    checkpoint = f"--ckpt_path={trained / 'last.ckpt'}"
    assert main(["fit", f"--data.root={split_folder}", checkpoint, "--model.lr=1", *QUIET]) == 2
    assert "the run to go on with has lr 0.125, and its optimiser goes on as it was" in capsys.readouterr().err


def test_a_run_is_resumed_with_the_options_that_it_saved(weights, split_folder, tmp_path):
    """The saved config names every option, defaults, nulls and `pretrained` too; the checkpoint contradicts none."""
    brought = shutil.copytree(weights, tmp_path / "weights")
    options = [f"--model.pretrained={brought}", "--model.lr=0.125", "--data.num_workers=0", "--data.batch_size=12"]
    root = f"--trainer.default_root_dir={tmp_path}"
    once = "--trainer.max_epochs=1"
    assert main(["fit", f"--data.root={split_folder}", *options, *QUIET[:-1], root, once]) == 0
    first = torch.load(tmp_path / "last.ckpt", weights_only=True)
    [config] = tmp_path.rglob("config.yaml")
    shutil.rmtree(brought)  # no longer needed: the checkpoint has the weights
    twice = "--trainer.max_epochs=2"
    assert main(["fit", f"--config={config}", f"--ckpt_path={tmp_path / 'last.ckpt'}", twice]) == 0
    resumed = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (first["global_step"], resumed["global_step"]) == (1, 2)
    assert resumed["hyper_parameters"] == first["hyper_parameters"]
    folders = {path.parent for path in tmp_path.rglob("version_*/**/*.ckpt")}
    assert folders == {tmp_path / "version_0" / "checkpoints"}  # it goes on where it was, and knows which was the best


def test_data_with_other_classes_than_the_weights_are_refused(weights, make_video, tmp_path, capsys):
    for name in ("clapping", "jumping", "sleeping"):
        make_video(tmp_path / name / "a.mp4")
    assert main(["test", f"--data.root={tmp_path}", f"--model.pretrained={weights}", *QUIET]) == 2
    assert "sleeping" in capsys.readouterr().err


def test_a_file_that_is_no_lightning_checkpoint_is_refused(weights, split_folder, tmp_path, capsys):
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pth")
    (tmp_path / "text.ckpt").write_text("no")
    (tmp_path / "empty.ckpt").touch()
    torch.save({"hyper_parameters": {"hidden": 3}, "state_dict": {}}, tmp_path / "other.ckpt")
    for name, message in (
        (tmp_path / "plain.pth", "weights alone are loaded by --model.pretrained"),
        (tmp_path / "other.ckpt", "this is the checkpoint of another LightningModule"),
        (tmp_path / "text.ckpt", "text.ckpt: this is no Lightning checkpoint\n"),
        (tmp_path / "empty.ckpt", "empty.ckpt: this is no Lightning checkpoint\n"),
    ):
        assert main(["test", f"--data.root={split_folder}", f"--ckpt_path={name}", *QUIET]) == 2
        assert message in capsys.readouterr().err
