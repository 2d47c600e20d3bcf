"""Precision, recall and F1 of every class, and their means over the classes, from three counts per class."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from swin_lightning.batch import IGNORE_INDEX


class ClassCounts(Metric):
    """Images of each class, predictions of it, and those that agree.

    torchmetrics' metrics select the labelled samples, which makes the host wait for a GPU in every batch.

    Args:
        num_classes: Number of classes K.
    """

    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Count a batch.

        Args:
            predictions: Class indices `B`.
            targets: Class indices `B`; those of `IGNORE_INDEX` are not counted.
        """
        known = (targets != IGNORE_INDEX).long()
        targets = targets.clamp(min=0)
        self.counts[0].scatter_add_(0, targets, known)
        self.counts[1].scatter_add_(0, predictions, known)
        self.counts[2].scatter_add_(0, targets, known * (predictions == targets))

    def compute(self) -> Tensor:
        """`3, K`: images, predictions, correct ones."""
        return self.counts


def class_scores(counts: Tensor) -> dict[str, Tensor]:
    """Scores of each class, each `K`: `precision`, `recall` and `f1` in [0, 1], and `images`.

    A class without images or without predictions has 0 where a score is undefined.

    Args:
        counts: Images, predictions and correct ones, `3, K`.
    """
    images, predictions, correct = counts.double()
    return {
        "precision": correct / predictions.clamp(min=1),
        "recall": correct / images.clamp(min=1),
        "f1": 2 * correct / (images + predictions).clamp(min=1),
        "images": counts[0],
    }


def class_rows(counts: Tensor, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The table by class: `class`, `precision`, `recall`, `f1`, `images`.

    Args:
        counts: Images, predictions and correct ones, `3, K`.
        class_names: K names.
    """
    scores = {name: values.tolist() for name, values in class_scores(counts).items()}
    return [
        {"class": label, **dict(zip(scores, row, strict=True))}
        for label, *row in zip(class_names, *scores.values(), strict=True)
    ]


def write_class_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the table by class as CSV, scores with four decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()})


def mean_scores(counts: Tensor) -> dict[str, Tensor]:
    """Means over the classes: macro F1 as `f1_macro`, and balanced accuracy (mean recall) as `acc_balanced`.

    As in scikit-learn, classes that occur neither as a label nor as a prediction do not count in the first, and classes
    without images not in the second. NaN without images.

    Args:
        counts: Images, predictions and correct ones, `3, K`.
    """
    scores = class_scores(counts)
    occurs, has_images = counts[:2].sum(dim=0) > 0, counts[0] > 0
    return {
        "f1_macro": (scores["f1"] * occurs).sum() / occurs.sum(),
        "acc_balanced": (scores["recall"] * has_images).sum() / has_images.sum(),
    }
