"""Losses for `model.loss`: callables `(logits, targets) -> scalar`.

`logits` are `B, K`; `targets` are class indices `B`, or class probabilities `B, K` with mixup or CutMix. The losses of
torch are available under their own class paths, such as `torch.nn.CrossEntropyLoss`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_lightning.ranges import NonNegative, Positive, Rate, check_arguments


class FocalLoss(nn.Module):
    """Focal loss over softmax probabilities: `-w_k (1 - p_k)^gamma log p_k`, averaged over the batch.

    Source: Lin et al., 2017, arXiv:1708.02002, section 3.2, with the softmax in place of the sigmoid.

    Args:
        gamma: Focusing parameter; 0 is cross-entropy.
        weight: Weight of each class, K numbers.

    Raises:
        UserError: If an argument is out of range.
    """

    weight: Tensor | None

    def __init__(self, gamma: NonNegative = 2.0, weight: list[NonNegative] | None = None) -> None:
        super().__init__()
        check_arguments(FocalLoss.__init__, locals(), "model.loss.")
        self.gamma = gamma
        self.register_buffer(
            "weight", None if weight is None else torch.tensor(weight, dtype=torch.float32), persistent=False
        )

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_probability = logits.log_softmax(dim=1)  # B, K
        terms = -((1 - log_probability.exp()) ** self.gamma) * log_probability
        if self.weight is not None:
            terms = terms * self.weight
        return (terms * class_probabilities(logits, targets)).sum(dim=1).mean()


class BinaryCrossEntropy(nn.Module):
    """Sigmoid cross-entropy of every class against one-hot targets, averaged over the batch and the classes.

    Source: Wightman et al., 2021, arXiv:2110.00476 (ResNet strikes back), section 2.

    Args:
        label_smoothing: Mass that is spread over all classes, as in `torch.nn.CrossEntropyLoss`.
        pos_weight: Weight of the positive term of each class, K numbers.
    """

    pos_weight: Tensor | None

    def __init__(self, label_smoothing: Rate = 0.0, pos_weight: list[Positive] | None = None) -> None:
        super().__init__()
        check_arguments(BinaryCrossEntropy.__init__, locals(), "model.loss.")
        self.label_smoothing = label_smoothing
        weight = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float32)
        self.register_buffer("pos_weight", weight, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        wanted = class_probabilities(logits, targets)
        wanted = wanted * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        return F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=self.pos_weight)


def class_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Targets as probabilities, `B, K`: one-hot for class indices, unchanged for mixed targets."""
    return F.one_hot(targets, logits.shape[1]).to(logits.dtype) if targets.ndim == 1 else targets
