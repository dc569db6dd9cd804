"""Training on two processes, whole or sharded, gives the loss curve of one process with the same global batch."""

import json
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import DeepSpeedStrategy

from lightning_csn.cli import main
from lightning_csn.ema import EMA
from lightning_csn.errors import InputError
from lightning_csn.precise_bn import PreciseBatchNorm
from lightning_csn.unfreezing import GradualUnfreezing

CASES = {  # options of LitCSN, of the Trainer, and the parts of the network that do not learn
    "plain": ({}, {}, []),
    "checkpointing, frozen parts, clipped": (
        {"checkpointing": [1, 2], "optimizer": "adamw", "lr": 1e-3, "decay_norms": False},
        {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2},
        ["stem", "stage1"],
    ),
    "bf16-mixed": ({}, {"precision": "bf16-mixed"}, []),
    "synchronised": ({"lr": 1e-3}, {"sync_batchnorm": True}, []),  # few values a channel: more would be chaos
}
SCRIPT = '''
import json, os, sys
import lightning as L
import torch
from torch.utils.data import DataLoader
from lightning_csn.module import LitCSN
from lightning_csn.sharding import ShardedStrategy

folder, devices, cases = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
rank = int(os.environ.get("LOCAL_RANK", 0))
torch.set_num_threads(1)
CLIP = dict(frames=4, step=2, fps=None, short_side=32, crop=32, test_crop=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
results = {}


def batch(number):
    """This process's share of four clips."""
    generator = torch.Generator().manual_seed(number)
    clips = torch.randint(256, (4, 1, 3, 4, 32, 32), generator=generator, dtype=torch.uint8)[rank::devices]
    labels = torch.randint(4, (4,), generator=generator)[rank::devices]
    numbers = torch.arange(4)[rank::devices] + 4 * number
    return {"clips": clips, "labels": labels, "videos": numbers, "short": labels < 0, "unreadable": []}


def nothing(number):
    """A batch of which this process can read no video."""
    empty = {name: value[:0] for name, value in batch(number).items()}
    return empty | {"unreadable": [(number, "no such file")]}


def loader(first, count, empty=None):
    batches = [nothing(n) if n == empty and rank == 1 else batch(n) for n in range(first, first + count)]
    return DataLoader(batches, batch_size=None)


class Curve(L.Callback):
    """The loss of every step, over all processes; norms go by their running statistics, which do not move, unless they
    are synchronised."""

    def __init__(self, synchronised):
        self.losses, self.synchronised = [], synchronised

    def on_train_batch_start(self, trainer, module, *args):
        for part in module.network.modules():
            if isinstance(part, torch.nn.BatchNorm3d) and not self.synchronised:
                part.eval()

    def on_train_batch_end(self, trainer, module, outputs, *args):
        self.losses.append(trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean").item())


def make_trainer(strategy, **options):
    strategy = ShardedStrategy() if strategy == "fsdp2" else strategy
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    return L.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, use_distributed_sampler=False, **quiet, **options
    )


def run(name, strategy, data, checkpoint=None, epochs=1):
    options, settings, frozen = cases[name]
    torch.manual_seed(0)
    model = LitCSN("ircsn_tiny", num_classes=4, clip=CLIP, **{"lr": 0.02, "schedule": "constant"} | options)
    for part in frozen:
        model.network.get_submodule(part).requires_grad_(False)
    curve = Curve("sync_batchnorm" in settings)
    trainer = make_trainer(strategy, max_epochs=epochs, callbacks=[curve], **settings)
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    return curve.losses, trainer, model


TRAINED = "checkpointing, frozen parts, clipped"


def train_all(strategy):
    for name in cases:
        results[f"{strategy}, {name}"], trainer, _ = run(name, strategy, loader(0, 6))
        if name == TRAINED:
            trainer.save_checkpoint(f"{folder}/{strategy}.ckpt")


def go_on(strategy, source):
    """The test number of a checkpoint, and training on from it."""
    path = f"{folder}/{source}.ckpt"
    model = LitCSN.load_from_checkpoint(path)
    results[f"{strategy}, test of {source}"] = make_trainer(strategy).test(model, loader(50, 2), verbose=False)[0]
    results[f"{strategy}, on from {source}"] = run(TRAINED, strategy, loader(6, 6), path, epochs=2)[0]


if devices == 2:
    if "LOCAL_RANK" not in os.environ:  # one process, before it makes another
        devices = 1
        train_all("auto")
        devices = 2
    for strategy in ("ddp", "fsdp2"):
        train_all(strategy)
        go_on(strategy, "auto")
        for name in ("plain", "synchronised"):
            results[f"{strategy}, {name}, nothing readable"] = run(name, strategy, loader(0, 3, empty=1))[0]
else:
    for source in ("auto", "ddp", "fsdp2"):
        go_on("auto", source)
with open(f"{folder}/{devices}-{rank}.json", "w") as file:
    json.dump(results, file)
'''


@pytest.fixture(scope="module")
def results(run_script, tmp_path_factory):
    """Figures of one process and of two, which go on with each other's checkpoints."""
    folder = tmp_path_factory.mktemp("sharding")
    found = {}
    for devices in (2, 1):
        run_script(folder, SCRIPT, folder, devices, json.dumps(CASES))
        found |= json.loads((folder / f"{devices}-0.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_give_the_loss_curve_of_one(results, strategy, case):
    curve = results[f"auto, {case}"]
    assert max(curve) - min(curve) > 1e-3  # something is learned
    tolerance = 5e-3 if case == "bf16-mixed" else 1e-5  # bf16 has eight bits, and sums of halves round otherwise
    assert results[f"{strategy}, {case}"] == pytest.approx(curve, abs=tolerance)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_checkpoint_goes_on_with_other_processes(results, strategy):
    """From two processes to one, and back; the curve is that of one process all the way."""
    curve = results["auto, on from auto"]
    assert len(curve) == 6
    assert results[f"auto, on from {strategy}"] == pytest.approx(curve, abs=1e-5)
    assert results[f"{strategy}, on from auto"] == pytest.approx(curve, abs=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_test_number_is_exact(results, strategy):
    exact = results["auto, test of auto"]
    found = results[f"{strategy}, test of auto"]
    assert {name: found[name] for name in found if name != "test_loss"} == {
        name: exact[name] for name in exact if name != "test_loss"
    }
    assert found["test_loss"] == pytest.approx(exact["test_loss"], abs=1e-6)  # the network is folded on one process
    assert found["test_videos"] == 8


@pytest.mark.parametrize("case", ["plain", "synchronised"])
def test_a_process_that_can_read_nothing_does_not_hold_up_the_others(results, case):
    whole, sharded = (results[f"{strategy}, {case}, nothing readable"] for strategy in ("ddp", "fsdp2"))
    assert len(whole) == 3
    assert sharded == pytest.approx(whole, abs=1e-5)


def test_the_command_line_shards_and_says_what_shards_on_a_cpu(split_folder, tmp_path, capsys):
    options = ["fit", f"--data.root={split_folder}", "--model.architecture=ircsn_tiny", "--trainer.accelerator=cpu"]
    assert main([*options, "--trainer.strategy=fsdp", f"--trainer.default_root_dir={tmp_path}"]) == 2
    said = capsys.readouterr()
    assert "--trainer.strategy fsdp2" in said.out + said.err


@pytest.mark.parametrize(
    "callback", [EMA(), PreciseBatchNorm(), GradualUnfreezing()], ids=lambda one: type(one).__name__
)
def test_callbacks_that_need_whole_weights_refuse_deepspeed(callback):
    """Which is a DDPStrategy by its type."""
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # without the package that it needs to run
    with pytest.raises(InputError, match="DeepSpeedStrategy"):
        callback.setup(SimpleNamespace(strategy=strategy), None, "fit")
