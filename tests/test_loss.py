"""loss.py: what training makes smaller, without a training. test_module.py has it in one."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lightning_csn.errors import InputError
from lightning_csn.loss import (
    check_labels,
    label_loss,
    loss_of_nothing,
    one_hot,
    training_loss,
    warn_of_balance,
    weights_for,
)
from lightning_csn.models.network import create_network

OPTIONS = {"multi_label": False, "label_smoothing": 0.1, "distill_weight": 0.25, "distill_temperature": 2.0}
LOGITS, TAUGHT = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 2, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 7.0, 0.0])])
def test_numbers_of_classes_and_their_shares_are_the_same_target(smoothing, weights):
    by_number = label_loss(LOGITS, LABELS, smoothing=smoothing, weights=weights)
    by_shares = label_loss(LOGITS, one_hot(LABELS, 4), smoothing=smoothing, weights=weights)
    torch.testing.assert_close(by_number, by_shares)


def test_half_a_batch_weighs_half():
    weights = torch.tensor([1.0, 0.5, 7.0, 3.0])
    halves = [label_loss(LOGITS[half], LABELS[half], weights=weights) for half in (slice(3), slice(3, 6))]
    torch.testing.assert_close(sum(halves) / 2, label_loss(LOGITS, LABELS, weights=weights))


def test_a_teacher_has_its_share_of_the_loss_and_none_is_no_part_of_it():
    alone, nothing = training_loss(LOGITS, LABELS, None, OPTIONS, None)
    assert nothing == 0
    torch.testing.assert_close(alone, F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1))
    taught, distance = training_loss(LOGITS, LABELS, TAUGHT, OPTIONS, None)
    assert distance > 0
    torch.testing.assert_close(taught, 0.75 * alone + 0.25 * distance)
    agreed, distance = training_loss(LOGITS, LABELS, LOGITS, OPTIONS, None)
    torch.testing.assert_close(agreed, 0.75 * alone)


def test_nothing_to_learn_leaves_every_parameter_a_gradient_of_zero():
    network = create_network("ircsn_tiny", num_classes=4)
    before = {name: value.clone() for name, value in network.named_buffers()}
    loss = loss_of_nothing(network, torch.empty(0, 3, 2, 16, 16), None)
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_of_the_other_kind_are_refused(multi_label):
    rows, numbers = one_hot(LABELS, 4), LABELS
    right, wrong = (rows, numbers) if multi_label else (numbers, rows)
    check_labels(right, 4, multi_label=multi_label)
    with pytest.raises(InputError, match=r"so that labels are \(6,"):
        check_labels(wrong, 4, multi_label=multi_label)


def test_class_weights_are_balanced_by_what_the_data_counts():
    data = SimpleNamespace(train_counts=[6.0, 2.0, 0.0, 4.0], samples_of=lambda split: range(12))
    assert weights_for(data, 4, multi_label=False).tolist() == pytest.approx([2 / 3, 2, 1, 1])
    assert weights_for(data, 4, multi_label=True).tolist() == pytest.approx([1, 5, 1, 2])
    with pytest.raises(InputError, match="the data counts 4 classes, the model has 3"):
        weights_for(data, 3, multi_label=False)
    with pytest.raises(InputError, match="'balanced' needs to know how often each class comes"):
        weights_for(None, 4, multi_label=False)


@pytest.mark.parametrize(
    ("balance", "weights", "said"),
    [
        (0.5, [1.0, 4.0], ("balance 0.5 and --model.class_weights (a list)", "so that they may count too much")),
        (0.5, "balanced", ("balance 0.5 and --model.class_weights balanced", "as either of them would alone")),
        (1.0, "balanced", ("balance 1 and --model.class_weights balanced", "are all 1")),
    ],
)
def test_two_remedies_for_classes_of_unequal_size_are_one_too_many(balance, weights, said, caplog):
    warn_of_balance(balance, weights, multi_label=False)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    found, does = said
    message = record.getMessage()
    assert message.startswith(f"--data.{found} are the same remedy")
    assert f"{does}. Take one of them: leave out --data.balance, or --model.class_weights" in message


@pytest.mark.parametrize(
    ("balance", "weights", "several"),
    [
        (0.0, [1.0, 4.0], False),
        (0.0, "balanced", False),
        (1.0, None, False),
        (1.0, [2.0, 2.0], False),
        (1.0, "balanced", True),  # weighs yes against no
    ],
)
def test_one_remedy_is_none_too_many(balance, weights, several, caplog):
    warn_of_balance(balance, weights, multi_label=several)
    assert not caplog.records
