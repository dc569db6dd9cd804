"""distillation.py: a network learns from a teacher that sees what it sees, by its classes, and stays as it is."""

import logging
import shutil

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from lightning_csn.cli import main
from lightning_csn.ema import EMA
from lightning_csn.errors import InputError
from lightning_csn.loss import distillation_loss
from lightning_csn.module import LitCSN

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning 2.6 on torch 2.15
    # What Lightning says of trainings as small as these.
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

CLASSES = ["clapping", "jumping", "waving"]
CLIP = {
    "frames": 4,
    "step": 1,
    "fps": None,
    "short_side": 32,
    "crop": 32,
    "test_crop": 32,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.2, 0.5],
}


def make_model(seed=0, **options):
    torch.manual_seed(seed)
    return LitCSN("ircsn_tiny", **{"classes": CLASSES, "clip": CLIP, "schedule": "constant"} | options)


def save_teacher(folder, **options):
    """A network that does not answer everything alike: its statistics are those of clips, and its head is sure."""
    model = make_model(seed=1, **options)
    with torch.no_grad():
        for number in range(3):
            model.network(model.normalise(batch(number)["clips"].flatten(0, 1)))
        model.network.head.weight *= 30
    model.eval().save_pretrained(folder)
    return str(folder)


def batch(first=0):
    generator = torch.Generator().manual_seed(first)
    return {
        "clips": torch.randint(256, (3, 1, 3, 4, 32, 32), generator=generator, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 2]),
        "videos": torch.arange(3),
        "short": torch.zeros(3, dtype=torch.bool),
        "unreadable": [],
    }


def make_trainer(path, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(
        **{"accelerator": "cpu", "logger": False, "default_root_dir": path, "max_epochs": 1} | quiet | options
    )


def fit(model, path, *batches, **options):
    trainer = make_trainer(path, **options)
    trainer.fit(model, DataLoader(list(batches) or [batch()], batch_size=None))
    return trainer


def softened_distance(logits, taught, temperature):
    """The definition, term by term."""
    student, goal = (logits / temperature).softmax(-1), (taught / temperature).softmax(-1)
    return (goal * (goal.log() - student.log())).sum(-1).mean() * temperature**2


def test_the_loss_is_of_the_labels_and_of_the_teacher_who_sees_the_clips_in_its_own_colours(tmp_path):
    other = {"mean": [0.1, 0.2, 0.6], "std": [0.5, 0.4, 0.3]}
    teacher = LitCSN.from_pretrained(save_teacher(tmp_path / "teacher", clip=CLIP | other))
    clips = batch()["clips"].flatten(0, 1)
    trainer = fit(make_model(teacher=str(tmp_path / "teacher"), distill_weight=0.3), tmp_path)
    student = make_model()
    with torch.no_grad():
        logits, taught = student.network(student.normalise(clips)), teacher.network(teacher.normalise(clips))
    distance = softened_distance(logits, taught, 2.0)
    labelled = F.cross_entropy(logits, torch.tensor([0, 1, 2]))
    metrics = trainer.callback_metrics
    assert metrics["train_distill"].item() == pytest.approx(distance.item(), rel=1e-4)
    assert metrics["train_loss"].item() == pytest.approx((0.7 * labelled + 0.3 * distance).item(), rel=1e-4)
    wrong = softened_distance(logits, teacher.network(student.normalise(clips)), 2.0).item()
    assert wrong != pytest.approx(distance.item(), rel=0.01)  # what makes the test worth having


def test_both_see_the_same_mixed_clip(tmp_path, monkeypatch):
    model = make_model(teacher=save_teacher(tmp_path / "teacher"), cutmix=1.0, mixup=1.0)
    seen = []
    model.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0].clone()))
    find = LitCSN._find_teacher

    def watched(self):
        find(self)
        self._teacher.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0].clone()))

    monkeypatch.setattr(LitCSN, "_find_teacher", watched)
    fit(model, tmp_path)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=1e-5)
    unmixed = model.normalise(batch()["clips"].flatten(0, 1))
    assert not torch.allclose(seen[0], unmixed)


def test_the_teacher_stays_as_it_is_and_is_in_no_checkpoint(tmp_path):
    source = save_teacher(tmp_path / "teacher")
    before = LitCSN.from_pretrained(source).network.state_dict()
    model = make_model(teacher=source, lr=0.1)
    ema = EMA(0.9)
    found = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            network = module._teacher.network
            assert not any(one.training for one in network.modules())
            assert {
                name: value for name, value in network.state_dict().items() if not torch.equal(value, before[name])
            } == {}
            assert all(parameter.grad is None for parameter in network.parameters())
            assert ema._average_model.module._teacher in (None, module._teacher)
            found.append(trainer._checkpoint_connector.dump_checkpoint())

    fit(model, tmp_path, batch(), batch(1), callbacks=[ema, Watch()])
    assert found[-1]["state_dict"].keys() == make_model().state_dict().keys()
    assert len(found[-1]["optimizer_states"][0]["param_groups"][0]["params"]) <= len(list(make_model().parameters()))
    assert found[-1]["hyper_parameters"]["teacher"] == source
    assert model._teacher is None
    fit(model, tmp_path)  # and again


def test_classes_are_matched_by_name(tmp_path):
    fits = [save_teacher(tmp_path / "teacher"), save_teacher(tmp_path / "turned", classes=CLASSES[::-1])]
    turned = LitCSN.from_pretrained(fits[1])
    clips = batch()["clips"].flatten(0, 1)
    student = make_model()
    with torch.no_grad():
        taught = turned.network(turned.normalise(clips)).flip(-1)
        logits = student.network(student.normalise(clips))
    trainer = fit(make_model(teacher=fits[1]), tmp_path)
    assert trainer.callback_metrics["train_distill"].item() == pytest.approx(
        softened_distance(logits, taught, 2.0).item(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"classes": ["clapping", "jumping", "running"]},
            "its classes are not the model's, it lacks waving and has running",
        ),
        ({"classes": None, "num_classes": 3}, "3 outputs without names, and the model has 3 with names"),
        ({"multi_label": True}, r"any number of classes \(multi_label\), and the model gives each video one"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        fit(make_model(teacher=save_teacher(tmp_path / "teacher", **options)), tmp_path)


def test_a_teacher_of_other_clips_is_told(tmp_path, caplog):
    fit(make_model(teacher=save_teacher(tmp_path / "teacher", clip=CLIP | {"step": 3})), tmp_path)
    told = [one.message for one in caplog.records if one.levelno == logging.WARNING and "teacher" in one.message]
    assert told == ["the teacher sees clips of the model, which are not as its own (step 3 and 1)"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill_weight": 1.5}, "distill_weight must be a number from 0 to 1"),
        ({"distill_temperature": 0}, "distill_temperature must be above 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make_model(**options)


def test_a_weight_of_0_needs_no_teacher(tmp_path):
    trainer = fit(make_model(teacher=str(tmp_path / "gone"), distill_weight=0), tmp_path)
    assert "train_distill" not in trainer.callback_metrics
    with pytest.raises(InputError, match="gone: no such file or folder"):
        fit(make_model(teacher=str(tmp_path / "gone")), tmp_path)


def test_several_labels_are_taught_one_by_one():
    torch.manual_seed(0)
    logits, taught = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    loss = distillation_loss(logits, taught, 3.0, multi_label=True)
    student, goal = (logits / 3).sigmoid(), (taught / 3).sigmoid()
    yes, no = goal * (goal / student).log(), (1 - goal) * ((1 - goal) / (1 - student)).log()
    assert loss.item() == pytest.approx((yes + no).mean().item() * 9, rel=1e-4)
    for several in (False, True):
        assert distillation_loss(taught, taught, 3.0, multi_label=several).item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert logits.grad.abs().sum() > 0


def test_what_a_teacher_taught_needs_it_no_more(tmp_path, split_folder, capsys):
    source = save_teacher(tmp_path / "teacher")
    yaml = "{frames: 4, step: 1, fps: null, short_side: 32, crop: 32, test_crop: 32, mean: [0, 0, 0], std: [1, 1, 1]}"
    quiet = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
    quiet += ["--trainer.enable_model_summary=false", "--data.num_workers=0", f"--data.root={split_folder}"]
    quiet += [f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    new = ["--model.architecture=ircsn_tiny", f"--model.clip={yaml}", f"--model.teacher={source}"]
    assert main(["fit", *quiet, *new, "--trainer.max_epochs=1", "--data.batch_size=12"]) == 0
    shutil.rmtree(source)
    last = f"--ckpt_path={tmp_path / 'runs' / 'last.ckpt'}"
    assert main(["test", *quiet, last, "--data.test_clips=1", "--data.test_crops=1"]) == 0
    assert main(["fit", *quiet, last, "--trainer.max_epochs=2"]) == 2  # what goes on has its teacher, or says that
    assert "teacher: no such file or folder" in capsys.readouterr().err
    assert main(["fit", *quiet, last, "--trainer.max_epochs=2", "--model.distill_weight=0"]) == 0
