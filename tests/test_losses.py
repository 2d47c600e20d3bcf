"""Losses, by value."""

import pytest
import torch
import torch.nn.functional as F

from swin_lightning.errors import UserError
from swin_lightning.losses import BinaryCrossEntropy, FocalLoss, class_probabilities

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]])
INDICES = torch.tensor([0, 2])
MIXED = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])


def test_focal_loss_without_focusing_is_cross_entropy():
    torch.testing.assert_close(FocalLoss(gamma=0.0)(LOGITS, INDICES), F.cross_entropy(LOGITS, INDICES))
    torch.testing.assert_close(FocalLoss(gamma=0.0)(LOGITS, MIXED), F.cross_entropy(LOGITS, MIXED))


def test_focal_loss_value_with_class_weights():
    p = LOGITS.softmax(1)[torch.arange(2), INDICES]
    expected = (torch.tensor([3.0, 0.5]) * (1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(FocalLoss(gamma=2.0, weight=[3, 1, 0.5])(LOGITS, INDICES), expected)


def test_binary_cross_entropy_of_indices_and_mixed_targets():
    one_hot = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    for targets, wanted in ((INDICES, one_hot), (MIXED, MIXED)):
        expected = -(wanted * F.logsigmoid(LOGITS) + (1 - wanted) * F.logsigmoid(-LOGITS)).mean()
        torch.testing.assert_close(BinaryCrossEntropy()(LOGITS, targets), expected)
    smoothed = one_hot * 0.9 + 0.1 / 3
    expected = F.binary_cross_entropy_with_logits(LOGITS, smoothed)
    torch.testing.assert_close(BinaryCrossEntropy(label_smoothing=0.1)(LOGITS, INDICES), expected)


def test_class_weights_are_not_part_of_the_state():
    assert FocalLoss(weight=[1, 2, 3]).state_dict() == {}
    assert FocalLoss(weight=[1, 2, 3]).to(torch.float64).weight.dtype == torch.float64


def test_class_probabilities_of_indices():
    assert class_probabilities(LOGITS, INDICES).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert class_probabilities(LOGITS, MIXED) is MIXED


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: FocalLoss(gamma=-1), "loss.gamma -1"), (lambda: BinaryCrossEntropy(1.5), "loss.label_smoothing 1.5")],
)
def test_parameters_out_of_range(make, words):
    with pytest.raises(UserError, match=words):
        make()
