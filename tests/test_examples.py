"""examples/: the notebook runs as it is, the configs say what their comments say, and the demo holds its promise."""

import json
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from traitlets.config import Config

from lightning_csn.cli import main
from lightning_csn.models.network import create_network

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(EXAMPLES / "transfer_learning.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    options = {"timeout": 600, "startup_timeout": 300, "resources": {"metadata": {"path": str(tmp_path)}}}
    with tempfile.TemporaryDirectory() as sockets:  # whose names are short enough; of five ports one may be taken
        if sys.platform != "win32":  # in the seconds between their choice and the kernel's start
            options["config"] = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        NotebookClient(notebook, **options).execute()
    printed = "".join(
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    before, after = map(float, re.search(r"top-1 ([0-9.]+) before, ([0-9.]+) after", printed).groups())
    assert after > before
    assert json.loads((tmp_path / "axes_network" / "config.json").read_text())["classes"][0] == "depth"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_option_of_a_config_exists(config, capsys):
    extra = [] if "root" in yaml.safe_load(config.read_text())["data"] else ["--data.root=videos"]
    assert main(["fit", f"--config={config}", *extra, "--print_config"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(config.read_text())
    for part in ("data", "model", "trainer"):
        for name, value in given[part].items():
            assert resolved[part][name] == value or name == "clip", (part, name)


def test_the_small_data_recipe_trains_and_its_test_sees_what_training_saw(split_folder, tmp_path, capsys):
    small = '--model.clip={"sampling": "segments", "frames": 2, "short_side": 16, "crop": 16, "test_crop": 16}'
    quick = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--data.num_workers=0"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.logger=false"]
    root = [f"--data.root={split_folder}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", f"--config={EXAMPLES / 'small_data.yaml'}", *root, small, *quick, *quiet]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("to test it: "))
    command = shlex.split(line.removeprefix("to test it: lightning-csn "))
    assert line.endswith("--data.test_clips 3 --data.test_crops 3")
    assert main([*command, "--data.num_workers=0", "--trainer.accelerator=cpu", *quiet]) == 0
    assert "; 3 clips x 3 crops of 2 frames over the whole video of 16 x 16 pixels, " in capsys.readouterr().out


def test_the_demo_ends_in_a_summary(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), str(tmp_path / "demo"), "--train=4", "--test=2", "--epochs=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--- summary" in done.stdout
    assert (tmp_path / "demo" / "answers.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_the_comparison_of_the_paper_counts_what_its_table_says(tmp_path, capsys):
    compare = runpy.run_path(str(EXAMPLES / "paper_in_small.py"))["main"]
    plot = tmp_path / "plot.png"
    compare([str(tmp_path), "--train=2", "--test=1", "--epochs=1", "--seeds=1", f"--plot={plot}"])
    runs = json.loads((tmp_path / "results.json").read_text())
    assert [run["architecture"] for run in runs] == ["resnet3d_tiny", "ipcsn_tiny", "ircsn_tiny"]
    assert all(16 * run["train"] == int(16 * run["train"]) and 8 * run["test"] == int(8 * run["test"]) for run in runs)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "+-" in line]
    for row, run in zip(rows, runs, strict=True):
        parameters = sum(p.numel() for p in create_network(run["architecture"], num_classes=8).parameters())
        assert row[1] == f"{parameters / 1e6:.2f}"
        assert [row[3], row[6]] == [f"{100 * run[split]:.1f}" for split in ("train", "test")]
        assert float(row[9]) == pytest.approx(float(row[3]) - float(row[6]), abs=0.11)
    assert plot.stat().st_size > 10_000
