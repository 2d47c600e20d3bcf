"""Load a finished run and evaluate it: confusion matrix, calibration, most confident errors.

Shapes: N images, K classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.checkpoint_classes import Allowed
from swin_lightning.class_counts import ClassCounts
from swin_lightning.config import instantiate, load_run_config
from swin_lightning.data import ImageDataModule
from swin_lightning.data.sampling import ImageDataset
from swin_lightning.errors import UserError
from swin_lightning.models.state_check import check_state, limit_to_state
from swin_lightning.models.weights import read_checkpoint
from swin_lightning.runs import RunFolder


@dataclass(frozen=True)
class Evaluation:
    """Predictions of a model on labelled images.

    Attributes:
        probabilities: `N, K`.
        labels: `N` int64.
        class_names: `K`.
        indices: Index of each image in its split, `N`.
    """

    probabilities: Tensor
    labels: Tensor
    class_names: list[str]
    indices: Tensor

    @property
    def predictions(self) -> Tensor:
        """The most probable class of each image, `N`."""
        return self.probabilities.argmax(dim=1)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return float((self.predictions == self.labels).float().mean())

    def confusion_matrix(self) -> Tensor:
        """Number of images, `K, K` (rows: true, columns: predicted)."""
        return multiclass_confusion_matrix(self.predictions, self.labels, len(self.class_names))

    def confused_pairs(self) -> pd.DataFrame:
        """Pairs of different classes in the confusion matrix, most frequent first: `label`, `prediction`, `images`."""
        matrix = self.confusion_matrix().fill_diagonal_(0)
        names = self.class_names
        rows = [(names[i], names[j], int(matrix[i, j])) for i, j in matrix.nonzero().tolist()]
        pairs = pd.DataFrame(rows, columns=["label", "prediction", "images"])
        return pairs.sort_values("images", ascending=False, kind="stable", ignore_index=True)

    def class_counts(self) -> Tensor:
        """Images, predictions and correct ones of each class, `3, K`."""
        counts = ClassCounts(len(self.class_names))
        counts.update(self.predictions, self.labels)
        return counts.compute()

    def errors(self) -> Tensor:
        """Positions (in this evaluation) of the wrong predictions, most confident first."""
        wrong = (self.predictions != self.labels).nonzero().flatten()
        confidence = self.probabilities[wrong].max(dim=1).values
        return wrong[confidence.argsort(descending=True, stable=True)]

    def balanced_sample(self, count: int) -> Tensor:
        """Positions (in this evaluation) of the first image of each class, then of the second of each, and so on."""
        K = len(self.class_names)
        occurrence = torch.empty_like(self.labels)  # number of earlier images of the same class
        by_class = [torch.arange(n) for n in self.labels.bincount(minlength=K).tolist()]
        occurrence[self.labels.argsort(stable=True)] = torch.cat(by_class)
        return (occurrence * K + self.labels).argsort()[:count]

    def calibration_bins(self, bins: int = 10) -> pd.DataFrame:
        """Images by the probability of their prediction, in equal bins: mean `confidence`, `accuracy`, `images`.

        Bins include their lower end, as in torchmetrics; empty bins are left out.
        """
        confidence, predictions = self.probabilities.max(dim=1)
        edges = torch.linspace(0, 1, bins + 1)[1:-1]
        answers = pd.DataFrame(
            {
                "bin": torch.bucketize(confidence, edges, right=True).numpy(),
                "confidence": confidence.double().numpy(),
                "accuracy": (predictions == self.labels).double().numpy(),
                "images": 1,
            }
        )
        table = answers.groupby("bin").agg({"confidence": "mean", "accuracy": "mean", "images": "sum"})
        return table.reset_index(drop=True)

    def calibration_error(self, bins: int = 10) -> float:
        """Expected calibration error (ECE) in [0, 1]. Source: Guo et al., 2017, arXiv:1706.04599."""
        # torchmetrics puts a probability of exactly 1 into a bin of its own; here it belongs to the last one
        probabilities = self.probabilities.clamp(max=1 - 2**-24)
        error = multiclass_calibration_error(probabilities, self.labels, len(self.class_names), n_bins=bins)
        return float(error)


def evaluate(model: nn.Module, data: ImageDataModule, split: str = "test", limit: int = 2000) -> Evaluation:
    """Classify the labelled images of a split.

    Args:
        model: Returns logits `B, K` for normalised images; it is switched to evaluation mode.
        data: The data module.
        split: `train`, `val` or `test`.
        limit: Maximum number of images; a larger split is subsampled at equal distances.

    Raises:
        UserError: If the split has no labelled image, cannot be indexed, or the model is not a classifier of its
            classes.
    """
    size = len(_source(data, split))
    indices = np.linspace(0, size - 1, min(limit, size)).round().astype(int)
    model.eval()
    probabilities, labels = [], []
    with torch.no_grad():
        for start in range(0, len(indices), 128):
            images, targets = load_samples(data, split, indices[start : start + 128])
            logits = model(data.normalize(images))
            if not isinstance(logits, Tensor) or logits.shape != (len(images), data.num_classes):
                raise UserError(f"{type(model).__name__} does not return logits of the {data.num_classes} classes")
            probabilities.append(logits.float().softmax(dim=1))
            labels.append(targets)
    known = torch.cat(labels) != IGNORE_INDEX if labels else torch.zeros(0)
    if not known.any():
        raise UserError(f"split {split!r} has no labelled image; use another one, --split val")
    return Evaluation(
        torch.cat(probabilities)[known], torch.cat(labels)[known], list(data.class_names), torch.tensor(indices)[known]
    )


def load_samples(data: ImageDataModule, split: str, indices: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Images of a split after the evaluation transform, before normalisation, `n, 3, S, S` uint8, and labels `n`."""
    dataset = ImageDataset(_source(data, split), data.eval_transform())
    items = [dataset[int(i)] for i in indices]
    return torch.stack([item["image"] for item in items]), torch.tensor([item["target"] for item in items])


def to_numpy(images: Tensor) -> list[np.ndarray]:
    """Images `n, 3, S, S` as `n` arrays `S, S, 3` for matplotlib."""
    return list(images.permute(0, 2, 3, 1).numpy())


def load_run(path: str | Path, allow: Allowed = ()) -> tuple[LightningModule, ImageDataModule]:
    """Model and data module of a run: its configuration, and the weights of its best checkpoint (else the last).

    Args:
        path: The run folder, or a checkpoint in it.
        allow: Classes that the run may name besides those of `swin_lightning`, see `checkpoint_classes`.

    Returns:
        The model on the CPU in evaluation mode, and the data module.

    Raises:
        UserError: If the folder is not a run folder, has no checkpoint, or the data module is no `ImageDataModule`.
    """
    run = (RunFolder.of_checkpoint(path) if Path(path).is_file() else None) or RunFolder.open(path)
    checkpoint = Path(path) if Path(path).is_file() else run.checkpoint()
    state, where = read_checkpoint(checkpoint).get("state_dict"), f"checkpoint {str(checkpoint)!r}"
    with limit_to_state(state, where):
        data, model = instantiate(load_run_config(run, allow))
    if not isinstance(data, ImageDataModule):
        raise UserError(f"run {str(path)!r}: {type(data).__name__} is not a subclass of ImageDataModule")
    model.load_state_dict(check_state(state, model, where))
    return model.eval(), data


def _source(data: ImageDataModule, split: str) -> Any:
    if split not in data.sources:
        data.sources[split] = data.load(split)
    source = data.sources[split]
    if not hasattr(source, "__getitem__"):
        raise UserError(f"data.streaming: the {split} split is a stream and cannot be indexed; use a local copy")
    return source
