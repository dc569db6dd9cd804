"""examples/: the notebook runs as it is, the configs say what their comments say, and the demo holds its promise."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from lightning_csn.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(EXAMPLES / "transfer_learning.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
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


def test_the_demo_ends_in_a_summary(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), str(tmp_path / "demo"), "--train=4", "--test=2", "--epochs=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--- summary" in done.stdout
    assert (tmp_path / "demo" / "answers.png").stat().st_size > 10_000
