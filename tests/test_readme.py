"""README.md, DATA.md and FINETUNE.md: their commands run, and their table and files are what there is."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_csn.cli import COMMANDS, main, make_parser
from lightning_csn.models.checkpoints import find_checkpoint, list_checkpoints
from lightning_csn.models.network import create_network
from lightning_csn.trainer_help import TRAINER_COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "DATA.md", "FINETUNE.md")}
BLOCKS = {
    name: re.findall(r"^```(bash|python)( internet| gpu)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for name, text in PAGES.items()
}
ONLINE = [
    line for blocks in BLOCKS.values() for _, elsewhere, text in blocks if elsewhere for line in text.splitlines()
]


def run_blocks(name, tmp_path):
    """Run the blocks of a page one after another, where its reader would type them."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    for language, elsewhere, text in BLOCKS[name]:
        if elsewhere:
            continue
        command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_every_block_of_readme_runs(tmp_path):
    run_blocks("README.md", tmp_path)
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 1 + 16
    assert json.loads((tmp_path / "my_network" / "config.json").read_text())["architecture"] == "ircsn_tiny"


def test_every_block_of_the_page_on_data_runs(tmp_path):
    run_blocks("DATA.md", tmp_path)
    assert (tmp_path / "packed" / "index.json").is_file()
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_every_block_of_the_page_on_fine_tuning_runs(tmp_path):
    run_blocks("FINETUNE.md", tmp_path)
    assert json.loads((tmp_path / "probed" / "config.json").read_text())["architecture"] == "ircsn_tiny"
    assert torch.load(tmp_path / "runs" / "last.ckpt", weights_only=True)["epoch"] == 1  # the second, gone on with


def test_the_page_on_fine_tuning_names_every_recipe():
    linked = set(re.findall(r"\]\((examples/[^)]+\.yaml)\)", PAGES["FINETUNE.md"]))
    assert linked == {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.yaml")}


@pytest.mark.parametrize("line", ONLINE)
def test_commands_that_need_the_internet_or_a_gpu_can_at_least_be_parsed(line, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, *words = shlex.split(line)
    assert command == "lightning-csn"
    if words[0] in TRAINER_COMMANDS:
        assert main([*words, "--print_config"]) == 0
        assert "my_videos" in capsys.readouterr().out
    else:
        assert make_parser().parse_args(words).run is COMMANDS[words[0]].run


def test_what_make_gpu_runs_is_there():
    done = subprocess.run(["make", "--dry-run", "gpu"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    (tests,) = ([word for word in line if word.startswith("tests/")] for line in lines if "pytest" in line)
    asks = re.compile(r"not torch\.cuda\.is_available\(\)|\"cuda\" if torch\.cuda\.is_available\(\)")
    assert sorted(tests) == sorted(
        f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*.py") if asks.search(path.read_text())
    )
    benchmarks = [line[1 : line.index(">")] for line in lines if line[0].endswith("lightning-csn")]
    assert len(benchmarks) == 9
    for option in ("--tune", "--layers", "--compile", "reduce-overhead", "--cuda-graphs", "--find-batch"):
        assert any(option in words for words in benchmarks), option
    for words in benchmarks:
        assert make_parser().parse_args(words).run is COMMANDS["benchmark"].run


def checkpoint_table() -> str:
    """The table of public checkpoints, as README has it."""
    lines = [
        "| name | pre-trained on | trained on | reported top-1 / top-5 | M parameters | licence |",
        "|---|---|---|---|---|---|",
    ]
    for name in list_checkpoints():
        record = find_checkpoint(name)
        if record.measured is not None:
            continue  # ours, below the table
        reported = record.accuracy or {}
        top = " / ".join("-" if reported.get(k) is None else f"{reported[k]:.1f}" for k in ("top1", "top5"))
        parameters = f"{count_parameters(record.architecture, record.num_classes) / 1e6:.1f}"
        cells = (
            f"`{name}`",
            record.pretrained_on or "-",
            record.trained_on,
            top if reported else "-",
            parameters,
            record.licence,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def count_parameters(architecture: str, num_classes: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_network(architecture, num_classes=num_classes or 0).parameters())


def test_the_table_is_that_of_checkpoints_json():
    shown = README.split("checkpoints.json -->\n")[1].split("\n<!-- end of checkpoints")[0]
    assert shown == checkpoint_table(), f"README.md should have:\n{checkpoint_table()}"


def test_the_accuracy_of_the_bundled_network_is_the_measured_one():
    measured = find_checkpoint("ircsn_tiny_motion").measured
    assert f"top-1 {measured['top1']:.1f} on the 400 test videos" in README.replace("\n", " ")


def test_the_files_that_it_names_are_there():
    first, *others = README.split("## Where things are")[1].split("```")[1].strip().splitlines()
    named = {Path(name) for name in first.split()}
    named |= {Path("lightning_csn" if line.startswith("  ") else "") / line.split()[0] for line in others}
    assert not [str(path) for path in named if not (ROOT / path).exists()]
    files = {path.relative_to(ROOT) for path in (ROOT / "lightning_csn").glob("[!_]*.py")}
    assert files <= named, "the tree does not name every file"
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", "".join(PAGES.values())):
        assert (ROOT / link).exists(), link
