"""The command line as a whole: its pages, its exit codes, and what wrong input gets."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its loggers keep the stderr that they find, which must not be one test's
import pytest
import torch

from lightning_csn import cli
from lightning_csn.cli import COMMANDS, main
from lightning_csn.errors import InputError
from lightning_csn.trainer_help import TRAINER_COMMANDS
from lightning_csn.weights_commands import checkpoints_options


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
        (["classify", "a.mp4", "--modle=x"], "unrecognized arguments: --modle=x; --modle: the nearest option is --mod"),
        (["benchmark", "infer", "--frms"], "benchmark infer: error: unrecognized arguments: --frms; --frms: the near"),
        (["checkpoints", "vit*", "ip*"], "lightning-csn checkpoints: error: unrecognized arguments: ip*"),
        (["checkpoints", "vit*"], "no checkpoint's name matches 'vit*'"),
        (["download", "nope"], "no checkpoint 'nope'"),
        (["convert", "nope.pth", "out"], "nope.pth: no such file"),
        (["convert", "ircsn_tiny_motion", "out", "--num-classes=1"], "--num-classes must be a whole number of 2 or"),
        (["split-data", __file__, "out"], "test_cli.py: this is a file, not a folder"),
        (["probe", __file__], "test_cli.py: this is no file of features: an .npz is a zip archive, and this is none"),
        (["fit", "."], ".: the folder of the videos is named by --data.root ."),
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
    ("raised", "code"),
    [
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
        (InputError("no such thing"), 2),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"), 2),
        (MemoryError(), 2),
        (SystemExit(143), 143),
    ],
)
def test_exit_codes_of_what_a_command_raises(raised, code, capsys, monkeypatch):
    def run(args):
        raise raised

    monkeypatch.setitem(COMMANDS, "checkpoints", cli.Command("nothing", checkpoints_options, run))
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # pytest still needs its stdout
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    assert main(["checkpoints"]) == code
    assert re.search(rf"\b{code} [a-z]", cli.EPILOG)
    if isinstance(raised, RuntimeError):
        assert capsys.readouterr().err == (
            "lightning-csn: error: out of memory: CUDA out of memory. Tried to allocate 9 GiB; smaller batches, or "
            "shorter or smaller clips, need less\n"
        )


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


@pytest.mark.parametrize("command", ["classify a.mp4 --model m.onnx", "test --data.root . --model.pretrained m.onnx"])
def test_an_exported_file_has_no_exact_form(command, capsys):
    assert main([*command.split(), "--exact"]) == 2
    assert "--exact: m.onnx is an exported file, which has one form only" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["classify a.mp4 --model m.onnx", "predict --data.root . --model.pretrained m.onnx"]
)
def test_all_that_is_to_be_installed_for_an_answer_is_said_at_once(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").touch()
    Path("a.mp4").touch()
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in ("onnxruntime", "pyarrow") else found(name, *rest),
    )
    assert main([*command.split(), "--output", "a.parquet"]) == 2
    assert (
        "error: m.onnx needs onnxruntime; a.parquet needs pyarrow, which are not installed: "
        "pip install 'lightning-csn[onnx,parquet]'\n"
    ) in capsys.readouterr().err
