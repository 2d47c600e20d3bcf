"""A finished run, loaded again and measured: confusion, calibration, the worst mistakes.

Shapes: N images, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data import ImageDataModule
from swin_lightning.data.sampling import ImageDataset
from swin_lightning.errors import UserError
from swin_lightning.tasks.classification import SwinClassifier, load_classifier


@dataclass(frozen=True)
class Evaluation:
    """What a model answered.

    Attributes:
        probabilities: `N, K`.
        labels: `N` int64.
        class_names: `K`.
        indices: Place of each image in its split, `N`.
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
        """Share of right predictions."""
        return float((self.predictions == self.labels).float().mean())

    def confusion(self) -> Tensor:
        """Counts, `K, K`: a row a label, a column a prediction."""
        K = len(self.class_names)
        return torch.bincount(K * self.labels + self.predictions, minlength=K * K).view(K, K)

    def mistakes(self) -> Tensor:
        """Which images are wrong, the most confident first; positions in this evaluation."""
        confidence = self.probabilities.max(dim=1).values.where(self.predictions != self.labels, torch.tensor(-1.0))
        return confidence.argsort(descending=True, stable=True)[: int((confidence >= 0).sum())]

    def examples(self, count: int) -> Tensor:
        """Images of all classes in turn, the first of each, then the second; positions in this evaluation."""
        turn = torch.empty_like(self.labels)
        for k in self.labels.unique():
            turn[self.labels == k] = torch.arange(int((self.labels == k).sum()))
        return (turn * len(self.class_names) + self.labels).argsort()[:count]

    def confused(self) -> pd.DataFrame:
        """Pairs of classes by how often the first was taken for the second."""
        counts = self.confusion()
        pairs = [(int(counts[a, b]), a, b) for a, b in counts.nonzero().tolist() if a != b]
        rows = [
            (self.class_names[a], self.class_names[b], n) for n, a, b in sorted(pairs, key=lambda p: (-p[0], *p[1:]))
        ]
        return pd.DataFrame(rows, columns=["label", "prediction", "images"])

    def calibration(self, bins: int = 10) -> pd.DataFrame:
        """Images in bins of the prediction's probability: mean `confidence`, `accuracy` and number of `images`."""
        confidence, right = self.probabilities.max(dim=1).values, (self.predictions == self.labels).float()
        place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # a bin has its upper end
        rows = [
            (float(confidence[place == i].mean()), float(right[place == i].mean()), int((place == i).sum()))
            for i in range(bins)
            if (place == i).any()
        ]
        return pd.DataFrame(rows, columns=["confidence", "accuracy", "images"])

    def calibration_error(self, bins: int = 10) -> float:
        """Mean distance of confidence and accuracy (ECE). Source: Guo et al., 2017, arXiv:1706.04599."""
        table = self.calibration(bins)
        gap = (table["confidence"] - table["accuracy"]).abs()
        return float((gap * table["images"]).sum() / table["images"].sum())


def evaluate(classifier: SwinClassifier, data: ImageDataModule, split: str = "test", limit: int = 2000) -> Evaluation:
    """Classify the images of a split; of more than `limit`, so many at equal distances."""
    if split not in data.sources:
        data.sources[split] = data.load(split)
    indices = np.linspace(0, len(data.sources[split]) - 1, min(limit, len(data.sources[split]))).round().astype(int)
    classifier.eval()
    probabilities, labels = [], []
    with torch.no_grad():
        for part in np.array_split(indices, -(-len(indices) // 128)):
            images, targets = samples(data, split, part)
            probabilities.append(classifier(data.normalize(images)).float().softmax(dim=1))
            labels.append(targets)
    answers, truth = torch.cat(probabilities), torch.cat(labels)
    known = truth != IGNORE_INDEX
    names = classifier.class_names or [str(k) for k in range(answers.shape[1])]
    return Evaluation(answers[known], truth[known], names, torch.from_numpy(indices)[known])


def samples(data: ImageDataModule, split: str, indices: Any) -> tuple[Tensor, Tensor]:
    """Images of a split as the network sees them before normalisation, `n, 3, S, S` uint8, and their labels."""
    if split not in data.sources:
        data.sources[split] = data.load(split)
    items = [ImageDataset(data.sources[split], data.eval_transform())[int(i)] for i in indices]
    return torch.stack([item["image"] for item in items]), torch.tensor([item["target"] for item in items])


def pixels(images: Tensor) -> list[np.ndarray]:
    """`n, 3, S, S` uint8 -> arrays `S, S, 3` to be drawn."""
    return list(images.permute(0, 2, 3, 1).numpy())


def open_run(folder: str | Path) -> tuple[SwinClassifier, ImageDataModule]:
    """The classifier of a run's best checkpoint (else its last), and the data it was trained on.

    Raises:
        ValueError: If the folder is no run, or has no checkpoint.
    """
    from jsonargparse import ArgumentParser

    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{str(folder)!r} is no run folder: it has no config.yaml; give runs/<experiment>/<run>")
    found = [path for name in ("best", "last") if (path := folder / "checkpoints" / f"{name}.ckpt").is_file()]
    if not found:
        raise UserError(f"run {str(folder)!r} has no checkpoints/best.ckpt and no last.ckpt")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    data = parser.instantiate(parser.parse_object({"data": config["data"]})).data
    return load_classifier(str(found[0])).eval(), data
