"""examples/torchrun.sh and slurm.sh: what they start, and that the same command goes on with a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_csn.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"
CLIP = "{frames: 4, step: 1, fps: null, short_side: 32, crop: 32, test_crop: 32, mean: [0, 0, 0], std: [1, 1, 1]}"
FIT = ["--model.architecture=ircsn_tiny", f"--model.clip={CLIP}", "--trainer.accelerator=cpu", "--data.num_workers=0"]
FIT += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--data.batch_size=2"]

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15


def test_torchrun_trains_on_two_processes(split_folder, tmp_path):
    command = [str(EXAMPLES / "torchrun.sh"), *FIT, f"--data.root={split_folder}", "--trainer.max_epochs=1"]
    command.append("--trainer.strategy=fsdp2")
    environment = os.environ | {"PROCESSES": "2", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert torch.load(tmp_path / "runs" / "last.ckpt", weights_only=True)["global_step"] == 3  # of 12 videos, by 2 x 2
    (config,) = (tmp_path / "runs").glob("version_*/config.yaml")
    assert "strategy: fsdp2\n" in config.read_text()


@pytest.mark.parametrize(("code", "requeued"), [(143, True), (0, False), (2, False)])
def test_slurm_requeues_what_was_told_to_stop(tmp_path, capsys, code, requeued):
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit {code if name == "srun" else 0}\n')
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "8"}
    command = ["bash", str(EXAMPLES / "slurm.sh"), "--data.root=videos", "--trainer.strategy=fsdp2"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code
    started, *after = done.stdout.splitlines()
    assert after == ["scontrol requeue 7"] * requeued
    words = started.split()
    assert words[:3] == ["srun", "lightning-csn", "fit"]
    assert main([*words[2:], "--print_config"]) == 0
    assert "strategy: fsdp2\n" in capsys.readouterr().out


def test_the_same_command_begins_a_run_and_goes_on_with_it(split_folder, tmp_path, capsys):
    options = [*FIT, f"--data.root={split_folder}", f"--trainer.default_root_dir={tmp_path}", "--resume"]
    options += ["--trainer.devices=1", "--trainer.num_sanity_val_steps=0"]
    assert main(["fit", *options, "--trainer.max_epochs=1"]) == 0
    assert main(["fit", *options, "--trainer.max_epochs=2"]) == 0
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 12
