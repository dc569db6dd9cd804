"""The recipes of examples/: each trains in miniature, and in full its numbers fit together."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from lightning_csn.cli import main
from lightning_csn.models.checkpoints import load_network
from lightning_csn.optimizer import PARTS, part_of

# Of Lightning, about runs as short as these; and what torch 2.12 deprecates in it.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15

EXAMPLES = Path(__file__).parent.parent / "examples"
RECIPES = sorted(path.name for path in EXAMPLES.glob("*.yaml"))
CLIP = {"frames": 4, "step": 1, "fps": None, "short_side": 32, "crop": 32, "test_crop": 32}
COLOURS = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
SMALL = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.precision=32-true"]
SMALL += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
SMALL += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SMALL += ["--trainer.check_val_every_n_epoch=1", "--trainer.accumulate_grad_batches=1"]
SMALL += ["--data.num_workers=0", "--data.batch_size=2", "--data.flip_classes=[]"]


def settings(name):
    return yaml.safe_load((EXAMPLES / name).read_text())


def train(name, root, runs):
    """The checkpoint of a recipe in miniature, on the bundled weights where it takes some."""
    model = settings(name)["model"]
    scratch = "architecture" in model
    clip = CLIP | COLOURS if scratch else CLIP
    start = "--model.architecture=ircsn_tiny" if scratch else "--model.pretrained=ircsn_tiny_motion"
    options = [f"--data.root={root}", f"--trainer.default_root_dir={runs}", start, f"--model.clip={json.dumps(clip)}"]
    if scratch and "network" not in model:
        options.append("--model.network={}")
    assert main(["fit", f"--config={EXAMPLES / name}", *options, *SMALL]) == 0
    return torch.load(runs / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_in_miniature(name, split_folder, tmp_path):
    checkpoint = train(name, split_folder, tmp_path)
    assert checkpoint["global_step"] == 2
    held, recipe = checkpoint["hyper_parameters"], settings(name)
    for option, value in recipe["model"].items():
        if option not in ("architecture", "pretrained", "clip", "network"):
            assert held[option] == value, option
    assert recipe["model"].get("network", {}).items() <= held["network"].items()
    callbacks = {key.partition("{")[0] for key in checkpoint["callbacks"]}
    assert ("EMA" in callbacks) == ("ema" in recipe)


def test_the_linear_probe_trains_the_head_alone(split_folder, tmp_path):
    trained = train("linear_probe.yaml", split_folder, tmp_path)["state_dict"]
    for name, tensor in load_network("ircsn_tiny_motion").state_dict().items():
        if part_of(name) != "head":
            assert torch.equal(trained[f"network.{name}"], tensor), name
    assert trained["network.head.bias"].any()  # it begins with 0


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_of_a_recipe_fit_together(name):
    """What happens at some epoch happens before the last one; lr for so many clips a step is that of its source."""
    recipe = settings(name)
    data, model, trainer = (recipe[part] for part in ("data", "model", "trainer"))
    epochs = trainer["max_epochs"]
    assert model.get("warmup_epochs", 0) < epochs / 2
    assert all(milestone < epochs for milestone in model.get("milestones", []))
    assert ("milestones" in model) == (model.get("schedule") == "steps")
    for callback in trainer.get("callbacks", []):
        unfrozen = callback["init_args"].get("epochs")
        if isinstance(unfrozen, dict):
            assert all(epoch < epochs for epoch in unfrozen.values())
            assert set(model.get("stage_lrs", {})) <= set(unfrozen)  # no rate for what never learns
    clips = data["batch_size"] * data.get("train_clips", 1) * trainer.get("accumulate_grad_batches", 1)
    clips *= trainer.get("devices", 1)
    # SlowFast's CSN_32x2_R101: 0.1 for 64 clips; mmaction2's fine-tuning: 5e-4 for 96, here a third of both.
    published = {"scratch_kinetics.yaml": (64, 0.1), "finetune.yaml": (32, 5e-4 / 3)}
    if name in published:
        assert (clips, model["lr"] * clips / model["lr_batch"]) == pytest.approx(published[name])
    assert set(model.get("stage_lrs", {})) <= set(PARTS)
