"""distillation.py: a network learns from a teacher that sees what it sees, by its classes, and stays as it is."""

import logging
import shutil

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from lightning_csn.cli import main
from lightning_csn.ema import EMA
from lightning_csn.errors import InputError
from lightning_csn.loss import distillation_loss
from lightning_csn.module import LitCSN

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning 2.6 on torch 2.15

CLASSES = ["clapping", "jumping", "waving"]
COLOURS = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.5]}


@pytest.fixture
def make_model(tiny_model, tiny_clip):
    """A model of these classes and colours."""
    return lambda **options: tiny_model(**({"classes": CLASSES, "clip": tiny_clip | COLOURS} | options))


@pytest.fixture
def batch(tiny_batch):
    """A batch with a clip of each class."""
    return lambda seed=0: tiny_batch([0, 1, 2], seed)


@pytest.fixture
def save_teacher(make_model, batch, tmp_path):
    """A network that does not answer everything alike: its statistics are those of clips, and its head is sure."""

    def save(name="teacher", **options):
        model = make_model(seed=1, sure=30, **options)
        with torch.no_grad():
            for seed in range(3):
                model.network(model.normalise(batch(seed)["clips"].flatten(0, 1)))
        return str(model.eval().save_pretrained(tmp_path / name))

    return save


@pytest.fixture
def fit(make_trainer, tiny_loader, batch):
    """Train for an epoch; gives the trainer."""

    def run(model, *batches, **options):
        trainer = make_trainer(max_epochs=1, **options)
        trainer.fit(model, tiny_loader(*batches or [batch()]))
        return trainer

    return run


def softened_distance(logits, taught, temperature):
    """The definition, term by term."""
    student, goal = (logits / temperature).softmax(-1), (taught / temperature).softmax(-1)
    return (goal * (goal.log() - student.log())).sum(-1).mean() * temperature**2


def test_the_loss_is_of_the_labels_and_of_the_teacher_who_sees_the_clips_in_its_own_colours(
    fit, make_model, batch, save_teacher, tiny_clip
):
    other = {"mean": [0.1, 0.2, 0.6], "std": [0.5, 0.4, 0.3]}
    source = save_teacher(clip=tiny_clip | other)
    teacher = LitCSN.from_pretrained(source)
    clips = batch()["clips"].flatten(0, 1)
    trainer = fit(make_model(teacher=source, distill_weight=0.3))
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


def test_both_see_the_same_mixed_clip(fit, make_model, batch, save_teacher, monkeypatch):
    model = make_model(teacher=save_teacher(), cutmix=1.0, mixup=1.0)
    seen = []
    model.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0].clone()))
    find = LitCSN._find_teacher

    def watched(self):
        find(self)
        self._teacher.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0].clone()))

    monkeypatch.setattr(LitCSN, "_find_teacher", watched)
    fit(model)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=1e-5)
    unmixed = model.normalise(batch()["clips"].flatten(0, 1))
    assert not torch.allclose(seen[0], unmixed)


def test_the_teacher_stays_as_it_is_and_is_in_no_checkpoint(fit, make_model, batch, save_teacher):
    source = save_teacher()
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

    fit(model, batch(), batch(1), callbacks=[ema, Watch()])
    assert found[-1]["state_dict"].keys() == make_model().state_dict().keys()
    assert len(found[-1]["optimizer_states"][0]["param_groups"][0]["params"]) <= len(list(make_model().parameters()))
    assert found[-1]["hyper_parameters"]["teacher"] == source
    assert model._teacher is None
    fit(model)  # and again


def test_classes_are_matched_by_name(fit, make_model, batch, save_teacher):
    fits = [save_teacher(), save_teacher("turned", classes=CLASSES[::-1])]
    turned = LitCSN.from_pretrained(fits[1])
    clips = batch()["clips"].flatten(0, 1)
    student = make_model()
    with torch.no_grad():
        taught = turned.network(turned.normalise(clips)).flip(-1)
        logits = student.network(student.normalise(clips))
    trainer = fit(make_model(teacher=fits[1]))
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
def test_a_teacher_of_other_classes_is_refused(fit, make_model, save_teacher, options, message):
    with pytest.raises(InputError, match=message):
        fit(make_model(teacher=save_teacher(**options)))


def test_a_teacher_of_other_clips_is_told(fit, make_model, save_teacher, tiny_clip, caplog):
    fit(make_model(teacher=save_teacher(clip=tiny_clip | COLOURS | {"step": 3})))
    told = [one.message for one in caplog.records if one.levelno == logging.WARNING and "teacher" in one.message]
    assert told == ["the teacher sees clips of the model, which are not as its own (step 3 and 1)"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill_weight": 1.5}, "distill_weight must be a number from 0 to 1"),
        ({"distill_temperature": 0}, "distill_temperature must be above 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make_model, options, message):
    with pytest.raises(InputError, match=message):
        make_model(**options)


def test_a_weight_of_0_needs_no_teacher(fit, make_model, tmp_path):
    trainer = fit(make_model(teacher=str(tmp_path / "gone"), distill_weight=0))
    assert "train_distill" not in trainer.callback_metrics
    with pytest.raises(InputError, match="gone: no such file or folder"):
        fit(make_model(teacher=str(tmp_path / "gone")))


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


def test_what_a_teacher_taught_needs_it_no_more(save_teacher, tmp_path, split_folder, capsys):
    source = save_teacher()
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
