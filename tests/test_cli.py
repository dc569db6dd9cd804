"""The command line: what each command prints, which exit code it gives, and which option wins."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its loggers keep the stderr that they find, which must not be one test's
import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from lightning_csn import cli
from lightning_csn.cli import COMMANDS, main
from lightning_csn.clip import ClipSpec
from lightning_csn.datamodule import VideoDataModule
from lightning_csn.errors import InputError, SharedError
from lightning_csn.models import checkpoints
from lightning_csn.models.network import create_network
from lightning_csn.module import LitCSN
from lightning_csn.trainer_commands import merge_settings
from lightning_csn.trainer_help import TRAINER_COMMANDS
from lightning_csn.weights_commands import checkpoints_options

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

# Of Lightning, about runs as short as these; a user's run is long enough, or should hear it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def save_weights(folder, classes=CLASSES):
    torch.manual_seed(0)
    network = create_network("ircsn_tiny", num_classes=len(classes) if classes else 3)
    record = checkpoints.Checkpoint(
        architecture="ircsn_tiny", num_classes=network.num_classes, classes=classes, clip=CLIP.to_dict()
    )
    return checkpoints.save(network, record, folder)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with weights of a tiny network for the classes of `video_folder`."""
    return save_weights(tmp_path_factory.mktemp("weights") / "tiny")


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


# ---------------------------------------------------------------- help, and what a wrong command gets


@pytest.mark.parametrize(
    "argv", [["--help"], *([name, "--help"] for name in (*COMMANDS, *TRAINER_COMMANDS)), ["--version"]]
)
def test_help_and_version_exit_with_0(argv, capsys):
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("usage: lightning-csn" if argv[-1] == "--help" else "lightning-csn 0.")


def test_help_lists_every_command_with_what_it_does(capsys):
    assert main([]) == 0
    page = capsys.readouterr().out
    for name, summary in [(n, c.summary) for n, c in COMMANDS.items()] + [
        (n, c[0]) for n, c in TRAINER_COMMANDS.items()
    ]:
        assert re.search(rf"^  {name} +{re.escape(summary)}$", page, re.MULTILINE)
    assert max(map(len, page.splitlines())) <= 110


def test_help_and_the_list_of_checkpoints_import_nothing_heavy():
    heavy = "torch lightning av timm torchvision huggingface_hub PIL numpy sklearn scipy"
    script = f"""
import sys
from lightning_csn.cli import main
pages = [[name, "--help"] for name in ("classify", "fit", "features", "probe", "checkpoints")]
for argv in (["--help"], *pages, ["checkpoints"]):
    assert main(argv) == 0, argv
    loaded = [name for name in {heavy!r}.split() if name in sys.modules]
    assert not loaded, (argv, loaded)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["clasify", "a.mp4"], "invalid choice: 'clasify'"),
        (["classify"], "the following arguments are required: VIDEO"),
        (["classify", "a.mp4", "--clips", "0"], "a whole number of 1 or more is needed, got 0"),
        (["features", "videos", "--clips", "0"], "a whole number of 1 or more is needed, got 0"),
        (["classify", "a.mp4", "--crops", "2"], "argument --crops: invalid choice: 2"),
        (["features", "videos", "--crops", "2"], "argument --crops: invalid choice: 2"),
        (["split-data", "videos", "lists", "--fold", "0"], "a whole number of 1 or more is needed, got 0"),
        (["classify", "a.mp4", "--every", "-1"], "a number of seconds above 0 is needed, got -1"),
        (["classify", __file__, "--model", "ircsn_152_ig65"], "no file or folder; the nearest are ircsn_"),
        (["classify", "a.mp4", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["checkpoints", "vit*"], "no checkpoint's name matches 'vit*'"),
        (["download", "nope"], "no checkpoint 'nope'"),
        (["convert", "nope.pth", "out"], "nope.pth: no such file"),
        (["verify", "nope.pth"], "nope.pth: no such file"),
        (["make-motion", "m", "--train", "-1"], "train must be a whole number of 0 or more, got -1"),
        (["fit"], "fit needs videos: --data.root FOLDER, or a list file (--data.train_list FILE)"),
        (["test"], "test needs videos: --data.root FOLDER, or a list file (--data.test_list FILE)"),
        (["fit", f"--data.root={__file__}"], "this is a file, not a folder; if it lists videos, give a list"),
        (["test", "--data.root=.", "--ckpt_path=."], "--ckpt_path .: this is a folder, not a file"),
        (["classify", "no.mp4"], "no.mp4: there is no such file"),
        (["classify", "no.mp4", "no.avi", "--model=x"], "no.mp4: there is no such file, nor any of the 1 other"),
        (["classify", __file__, "--sheet=a.jpgx"], "a.jpgx: no picture can be written with this ending"),
        (["classify", __file__, "--model=ircsn_50"], "'ircsn_50' is an architecture, without weights; with weights"),
        (["classify", "."], "error: .: no videos in this folder"),
        (["classify", "a.mp4", "--output", "a.txt"], "a.txt: answers are written into a file, whose name ends in"),
        (["classify", "a.mp4", "--output", "a.csv", "--every", "2"], "--output and --every: one of the two"),
        (["classify", "a.mp4", "--workers", "-1"], "a whole number of 0 or more is needed, got -1"),
        (["fit", "--data.root=.", "--model.pretrained=x", "--ckpt_path=no.ckpt"], "no.ckpt: there is no such file"),
        (["fit", "--data.root=nowhere", "--model.architecture=ircsn_tiny"], "nowhere: no such folder"),
        (["fit", "--data.rot=x"], "--data.rot: the nearest option is --data.root; --help_all lists all of them"),
        (["fit", "--data.root=.", "--model.lr=fast"], "model.lr"),
        (["fit", "--config=nope.yaml"], "nope.yaml"),
        (["test", "--data.root=."], "test needs a network: --ckpt_path FILE of a run, or --model.pretrained"),
        (["test", "--data.root=.", "--ckpt_path=nope.ckpt"], "--ckpt_path nope.ckpt: there is no such file"),
    ],
)  # fmt: skip
def test_wrong_input_gets_a_message_and_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["classify", "a.mp4"], ["features", "videos"]])
def test_views_and_the_form_of_the_network_are_said_alike(argv):
    parse = cli.make_parser().parse_args
    first = parse(argv)
    assert (first.clips, first.crops, first.exact) == (10, 1, False)
    other = parse([*argv, "--clips=3", "--crops=full", "--exact"])
    assert (other.clips, other.crops, other.exact) == (3, "full", True)
    assert parse([*argv, "--crops=10"]).crops == 10


@pytest.mark.parametrize("argv", [["check-data", "videos"], ["pack", "videos", "out"], ["features", "videos"]])
def test_a_data_set_is_named_alike(argv):
    given = ["--train-list=a.txt", "--layout=kinetics", "--fold=2", "--classes", "up", "down", "--frames-fps=12.5"]
    args = cli.make_parser().parse_args([*argv, *given])
    assert (args.train_list, args.layout, args.fold) == ("a.txt", "kinetics", 2)
    assert (args.classes, args.frames_fps) == (["up", "down"], 12.5)


@pytest.mark.parametrize(
    ("raised", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 0), (InputError("no such thing"), 2)]
)
def test_exit_codes_of_what_a_command_raises(raised, code, capsys, monkeypatch):
    def run(args):
        raise raised

    monkeypatch.setitem(COMMANDS, "checkpoints", cli.Command("nothing", checkpoints_options, run))
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # pytest still needs its stdout
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    assert main(["checkpoints"]) == code


def test_a_bug_keeps_its_traceback(monkeypatch):
    def run(args):
        raise RuntimeError("a bug")

    monkeypatch.setitem(COMMANDS, "checkpoints", cli.Command("nothing", checkpoints_options, run))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["checkpoints"])


def test_an_interrupted_trainer_is_130(monkeypatch):
    def run(command, argv):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    monkeypatch.setattr(cli, "run_trainer", run)
    assert main(["fit"]) == 130


# ---------------------------------------------------------------- weights


def test_checkpoints_lists_names_accuracy_and_licence(capsys):
    assert main(["checkpoints", "ircsn_152*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == checkpoints.list_checkpoints("ircsn_152*")
    assert re.split("  +", lines[0])[:4] == ["NAME", "TRAINED ON", "CLASSES", "CLIP"]
    row = next(line for line in lines if line.startswith("ircsn_152_ig65m "))
    for part in ("IG-65M, Kinetics-400", "400", "32x2", "82.6", "95.3", "Apache-2.0"):
        assert part in row


def test_checkpoints_as_json_are_the_whole_records(capsys):
    assert main(["checkpoints", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert {record["name"] for record in records} == set(checkpoints.list_checkpoints())
    assert all(record["sources"] for record in records)


def test_convert_then_verify(tmp_path, capsys):
    network = create_network("ipcsn_tiny", num_classes=5)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    assert main(["convert", str(tmp_path / "mine.pth"), str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "ipcsn_tiny, 5 classes" in shown.out
    assert "does not say how clips must look" in shown.err
    like = ["--like", "ircsn_152_ig65m", "--num-classes", "7"]
    assert main(["convert", str(tmp_path / "mine.pth"), str(tmp_path / "out"), *like]) == 0
    shown = capsys.readouterr()
    assert "ipcsn_tiny, 7 classes" in shown.out
    assert "clips must look" not in shown.err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["clip"]["frames"] == 32
    assert main(["verify", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for part in ("good", "as its config.json says", "ipcsn_tiny, 7 outputs"):
        assert part in shown


@pytest.mark.parametrize(
    ("sha256", "sha1", "said"),
    [
        ("ab", None, "ab, as published"),
        ("cd", None, "ab, published: cd"),
        (None, "ef", "ab, its SHA-1 is as published"),
        (None, None, "ab, nobody published one to compare with"),
    ],
)
def test_verify_says_what_the_hash_was_compared_with(sha256, sha1, said, monkeypatch, capsys):
    file = {"path": Path("x"), "bytes": 1, "sha256": "ab", "published_sha256": sha256, "published_sha1": sha1}
    network = {"architecture": "ircsn_tiny", "num_classes": 2, "parameters": 3, "finite": True, "logits": [0.0]}
    found = checkpoints.Verification(source="x", **file, **network)
    monkeypatch.setattr(checkpoints, "verify", lambda source: found)
    main(["verify", "x"])
    assert re.search(rf"sha256 +{said}$", capsys.readouterr().out, re.MULTILINE)


def test_verify_fails_on_weights_that_are_not_finite(tmp_path, capsys):
    network = create_network("ircsn_tiny", num_classes=2)
    network.get_parameter("head.bias").data.fill_(float("nan"))
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    assert main(["verify", str(tmp_path / "mine.pth")]) == 2
    assert "NOT good" in capsys.readouterr().out


def test_download_says_where_the_file_is(weights, capsys):
    assert main(["download", str(weights / "model.safetensors")]) == 0
    assert str(weights / "model.safetensors") in capsys.readouterr().out


def test_make_motion_makes_what_was_asked_for(tmp_path, capsys):
    counts = ["--train", "1", "--val", "0", "--test", "0", "--workers", "1"]
    assert main(["make-motion", str(tmp_path / "motion"), *counts]) == 0
    assert len(list((tmp_path / "motion" / "train").glob("*/*.mp4"))) == 8
    assert "8 classes, videos: 8 train, 0 val, 0 test" in capsys.readouterr().out


# ---------------------------------------------------------------- classify


def test_classify_names_the_classes_of_each_video(video_folder, weights, capsys):
    paths = [str(video_folder / name / f"{name}_0.mp4") for name in CLASSES[:2]]
    assert main(["classify", *paths, "--model", str(weights), "--clips", "2", "--top", "2", "--every", "0.2"]) == 0
    shown = capsys.readouterr().out
    for path in paths:
        assert f"{path}  ({weights}, 2 clips x 1 crop)" in shown
    assert len(re.findall(r"^ +\d+\.\d%  (clapping|jumping|waving)$", shown, re.MULTILINE)) == 4
    assert (
        len(re.findall(r"^ +0\.\d\d to +0\.\d\d  \w+ \d+%, \w+ \d+%$", shown, re.MULTILINE)) == 6
    )  # 12 frames, 25 fps


def test_classify_says_which_videos_are_shorter_than_a_clip(make_video, weights, tmp_path, capsys):
    paths = [str(make_video(tmp_path / f"{frames}.mp4", frames=frames)) for frames in (3, 4)]
    assert main(["classify", *paths, "--model", str(weights), "--json"]) == 0
    shown = capsys.readouterr()
    assert [video["short"] for video in json.loads(shown.out)["videos"]] == [True, False]
    assert re.findall(r"(\S+): shorter than a clip of .*, so frames are repeated\n", shown.err) == paths[:1]
    assert main(["classify", *paths, "--model", str(weights), "--output", str(tmp_path / "a.csv")]) == 0
    assert "1 video is shorter than a clip of " in capsys.readouterr().err


def test_classify_as_json_reports_the_unreadable_in_its_place(video_folder, weights, tmp_path, capsys):
    good = str(video_folder / "waving" / "waving_0.mp4")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    assert main(["classify", str(bad), good, "nope.mp4", "--model", str(weights), "--json"]) == 2
    shown = capsys.readouterr()
    answers = json.loads(shown.out)
    assert [video["path"] for video in answers["videos"]] == [str(bad), good, "nope.mp4"]
    assert str(bad) in answers["videos"][0]["error"]
    assert sum(row["probability"] for row in answers["videos"][1]["top"]) == pytest.approx(1)
    assert "2 of 3 videos could not be read" in shown.err


def test_classify_checks_answers_and_draws_them(video_folder, weights, tmp_path, capsys):
    paths = [str(video_folder / name / f"{name}_0.mp4") for name in CLASSES]
    options = ["--clips", "1", "--labelled", "--sheet", str(tmp_path / "s.png"), "--json"]
    assert main(["classify", *paths, "--model", str(weights), *options]) == 0
    shown = capsys.readouterr()
    answers = json.loads(shown.out)["videos"]
    right = sum(answer["top"][0]["class"] == name for answer, name in zip(answers, CLASSES, strict=True))
    assert f"{right} of 3 answers are the name of the video's folder" in shown.err
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_classify_takes_folders_whole_and_writes_the_answers_into_a_file(video_folder, weights, tmp_path, capsys):
    alone = shutil.copyfile(video_folder / "waving" / "waving_0.mp4", tmp_path / "alone.mp4")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    out = tmp_path / "answers.jsonl"
    options = ["--model", str(weights), "--clips", "2", "--labelled", "--workers", "0", "--output", str(out)]
    assert main(["classify", str(alone), str(video_folder), str(bad), *options]) == 2
    shown = capsys.readouterr()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    inside = sorted(str(path) for path in video_folder.rglob("*.mp4"))
    assert [record["path"] for record in records] == [str(alone), *inside, str(bad)]
    assert [str(bad) in record.get("error", "") for record in records] == [False] * 10 + [True]
    assert shown.out == f"answers: {out} (11 videos, 1 of them unreadable)\n"
    right = sum(record["top"][0]["class"] == Path(record["path"]).parent.name for record in records[:-1])
    assert f"{right} of 10 answers are the name of the video's folder" in shown.err
    assert re.search(r"11 videos in \d+\.\d s, .* reading \d+% of the time of this process, network \d+%", shown.err)
    assert "1 of 11 videos could not be read" in shown.err


def test_classify_answers_a_video_once_that_is_named_twice(video_folder, weights, tmp_path, capsys):
    paths = sorted(str(path) for path in video_folder.rglob("*.mp4"))
    out = tmp_path / "answers.jsonl"
    options = ["--model", str(weights), "--clips", "1", "--workers", "0", "--output", str(out)]
    assert main(["classify", paths[3], str(video_folder), *options]) == 0
    records = [json.loads(line)["path"] for line in out.read_text().splitlines()]
    assert records == [paths[3], *paths[:3], *paths[4:]]
    assert "1 video is named more than once, and answered once" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["classify a.mp4 --model m.onnx", "test --data.root . --model.pretrained m.onnx"])
def test_an_exported_file_has_no_exact_form(command, capsys):
    assert main([*command.split(), "--exact"]) == 2
    assert "--exact: m.onnx is an exported file, which has one form only" in capsys.readouterr().err


def test_an_interrupted_classify_goes_on_where_it_was(video_folder, weights, tmp_path, monkeypatch, capsys):
    seen = []

    def forward(self, clips):
        if len(seen) == 4:
            seen.clear()
            raise KeyboardInterrupt
        seen.append(clips)
        return torch.tensor([[0.5, 0.25, 0.25]]).expand(len(clips), -1)

    monkeypatch.setattr(LitCSN, "forward", forward)
    out = tmp_path / "answers.csv"
    command = ["classify", str(video_folder), "--model", str(weights), "--workers", "1", "--output", str(out)]
    monkeypatch.setattr("lightning_csn.datamodule.MOST_TOGETHER", 1)  # a batch for each video
    assert main(command) == 130
    assert "interrupted; the same command goes on with the videos that are left" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--top", "1"]) == 2
    assert "holds answers of another run, which was stopped (there and here): top 5 and 1; " in capsys.readouterr().err
    assert main(command) == 130  # four more
    assert main(command) == 0
    assert len(seen) == 1
    with out.open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == sorted(map(str, video_folder.rglob("*.mp4")))
    assert list(tmp_path.iterdir()) == [out]


# ---------------------------------------------------------------- fit, validate, test, predict


def test_fit_keeps_the_last_and_the_best_checkpoint_and_its_options(trained):
    last = trained / "last.ckpt"
    assert hyper_parameters(last)["classes"] == CLASSES
    assert torch.load(last, weights_only=True)["epoch"] == 1
    assert len(list(trained.rglob("epoch=*val_top1=*.ckpt"))) == 1
    [config] = trained.rglob("config.yaml")
    assert "architecture: ircsn_tiny" in config.read_text()


def test_fit_without_validation_videos_keeps_the_last_checkpoint(video_folder, tmp_path, capsys):
    options = ["--model.architecture=ircsn_tiny", "--trainer.max_steps=1"]
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", f"--data.root={video_folder}", *SMALL, *QUIET, *options, root]) == 0
    assert (tmp_path / "last.ckpt").is_file()
    command = f"lightning-csn test --ckpt_path {tmp_path / 'last.ckpt'} --data.root {video_folder}"
    assert f"to test it (these are the videos it was trained on): {command}\n" in capsys.readouterr().out


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
    ("command", "error"), [("validate", None), ("validate", SharedError("no luck")), ("features", None)]
)
def test_a_process_leaves_the_others_when_it_ends(
    trained, weights, split_folder, tmp_path, monkeypatch, command, error
):
    """One that does not can abort at its end, whatever its exit code was to be."""

    def fail(self, batch, batch_idx):
        raise error

    if error is not None:
        monkeypatch.setattr(LitCSN, "validation_step", fail)
    options = {
        "validate": [f"--data.root={split_folder}", f"--ckpt_path={trained / 'last.ckpt'}", *SMALL, *QUIET],
        "features": [str(split_folder), f"--model={weights}", f"--output={tmp_path / 'f.npz'}", "--workers=0"],
    }
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert main([command, *options[command]]) == (0 if error is None else 2)
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_print_config_prints_what_a_run_would_take(capsys):
    assert main(["fit", "--print_config", "--model.lr=3", "--data.root=videos"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^data:\n(  .*\n)*  root: videos$", shown, re.MULTILINE)
    assert re.search(r"^  lr: 3\.0$", shown, re.MULTILINE)


def test_help_all_explains_every_option_and_the_short_page_names_none_that_is_not_there(capsys):
    """The short pages are written by hand, the long one comes from the signatures."""
    for command in TRAINER_COMMANDS:
        assert main([command, "--help_all"]) == 0
        everything = capsys.readouterr().out
        assert main([command, "--help"]) == 0
        short = capsys.readouterr().out
        flags = set(re.findall(r"--[\w.]+", re.sub(r"(?s)^usage.*?\n\n|examples:.*", "", short))) - {"--help_all"}
        assert {flag for flag in flags if flag not in everything} == set()
    assert "lr: highest learning rate".replace("lr: h", "H") in everything  # of the docstring of LitCSN


# ---------------------------------------------------------------- which option wins


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
    options = {"resume": True, "defaults": {"layer_decay": 1.0, "lr_end": 0.0}, "typed": {"layer_decay", "lr_end"}}
    before = {"lr": 0.125}  # of a version that did not know the others
    assert merge_settings(before, {"layer_decay": 1.0, "lr_end": 0.0}, **options)["layer_decay"] == 1
    with pytest.raises(InputError, match=r"layer_decay 0.5: the run to go on with has layer_decay 1.0"):
        merge_settings(before, {"layer_decay": 0.5}, **options)


@pytest.mark.parametrize(
    ("name", "held", "kept"),
    [("teacher", "weights", None), ("class_weights", "balanced", None), ("stage_lrs", {"stem": 0.0}, {})],
)
def test_null_takes_away_what_a_checkpoint_has(name, held, kept):
    options = {"typed": {name}, "defaults": {name: None}}
    before = {name: held, "classes": CLASSES}
    merged = merge_settings(before, {name: None, "classes": None}, **options, resume=False)
    assert merged == {name: kept, "classes": CLASSES, "pretrained": None}  # that of classes says nothing


@pytest.mark.parametrize("name", ["lr_batch", "stage_lrs"])
def test_null_is_refused_where_the_optimiser_goes_on_with_something(name):
    options = {"typed": {name}, "defaults": {"lr_batch": None, "stage_lrs": None}, "resume": True}
    with pytest.raises(InputError, match=f"--model.{name} (None|{{}}): the run to go on with has {name}"):
        merge_settings({"lr_batch": 8, "stage_lrs": {"stem": 0.0}}, {name: None}, **options)
    merge_settings({"lr_batch": None, "stage_lrs": {}}, {name: None}, **options)
    merge_settings({}, {name: None}, **options)  # of a version that had neither


def test_a_run_is_resumed_with_the_options_that_it_saved(split_folder, tmp_path):
    """The saved config names every option, defaults, nulls and `pretrained` too; the checkpoint contradicts none."""
    weights = save_weights(tmp_path / "weights")
    options = [f"--model.pretrained={weights}", "--model.lr=0.125", "--data.num_workers=0", "--data.batch_size=12"]
    root = f"--trainer.default_root_dir={tmp_path}"
    once = "--trainer.max_epochs=1"
    assert main(["fit", f"--data.root={split_folder}", *options, *QUIET[:-1], root, once]) == 0
    first = torch.load(tmp_path / "last.ckpt", weights_only=True)
    [config] = tmp_path.rglob("config.yaml")
    shutil.rmtree(weights)  # no longer needed: the checkpoint has the weights
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
